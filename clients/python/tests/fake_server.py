"""A small Strand of its own for the client's tests: real sockets, a dict for a store, and faults on demand.

It remembers ``client`` and ``seq`` as a server must, so that a retry that would apply twice is seen.
"""

import json
import os
import socket
import socketserver
import sys
import threading
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))


def success(result, **beside):
    return {"status": "success", "result": result, **beside}


def error(code, retry, **fields):
    return {"status": "error", "code": code, "error": "as the test asked", "retry": retry, **fields}


class FakeServer:
    """Faults are ``close_after``, ``close_before``, ``nonsense``, ``("slow", seconds)`` or a reply dict; each is used once."""

    def __init__(self):
        self.keys, self.remembered, self.requests, self.applied, self.accepted = {}, {}, [], 0, 0
        self.faults, self.lock, self.sockets = {}, threading.Lock(), []
        fake = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with fake.lock:
                    fake.accepted += 1
                    fake.sockets.append(self.request)
                try:
                    fake.serve(self.request)
                except OSError:
                    pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self):
        return self.server.server_address[1]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.close_connections()

    def close_connections(self):
        with self.lock:
            sockets, self.sockets = self.sockets, []
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def inject(self, command, *faults):
        self.faults.setdefault(command, []).extend(faults)

    def seen(self, command):
        return [request for request in self.requests if request.get("command") == command]

    def serve(self, sock):
        buffered = sock.makefile("rb")
        ordered, held = True, None
        while True:
            if held is not None and not buffered.peek(1):
                return
            line = buffered.readline()
            if not line:
                return
            try:
                request = json.loads(line)
            except ValueError:
                sock.sendall(json.dumps(error("BAD_REQUEST", "never")).encode() + b"\n")
                continue
            name = request["command"].upper()
            queue = self.faults.get(name)
            fault = queue.pop(0) if queue else None
            if fault == "close_before":
                return sock.shutdown(socket.SHUT_RDWR)
            with self.lock:
                self.requests.append(request)
                reply = dict(fault) if isinstance(fault, dict) else self.answer(name, request)
            if name == "HELLO":
                ordered = request.get("ordered", True)
            if "id" in request:
                reply["id"] = request["id"]
            if fault == "close_after":
                return sock.shutdown(socket.SHUT_RDWR)
            if isinstance(fault, tuple):
                time.sleep(fault[1])
            data = b"+PONG\n" if fault == "nonsense" else json.dumps(reply).encode() + b"\n"
            # In unordered mode every even reply overtakes the one before it.
            if not ordered and name == "GET" and held is None and request["key"] != "last":
                held = data
                continue
            sock.sendall(data + (held or b""))
            held = None

    def answer(self, name, request):
        pair = (request.get("client"), request.get("seq"))
        if None not in pair and pair in self.remembered:
            return dict(self.remembered[pair])
        reply = self.apply(name, request)
        if None not in pair:
            self.remembered[pair] = dict(reply)
        return reply

    def apply(self, name, request):
        key, keys = request.get("key"), self.keys
        if name == "PING":
            return success("PONG")
        if name == "HELLO":
            return success({"protocol": 1})
        if name == "SET":
            condition = request.get("if", {})
            if condition.get("absent") and key in keys:
                return error("CONFLICT", "never", version=keys[key][1])
            if "version" in condition and (key not in keys or keys[key][1] != condition["version"]):
                return error("CONFLICT", "never", version=keys[key][1] if key in keys else None)
            self.applied += 1
            keys[key] = (request["value"], str(self.applied))
            return success("OK", version=str(self.applied)) if request.get("with_version") else success("OK")
        if name == "GET":
            if key not in keys:
                return success(None, found=False)
            return success(keys[key][0], version=keys[key][1]) if request.get("with_version") else success(keys[key][0])
        if name == "DELETE":
            return success(keys.pop(key, None) is not None)
        if name == "EXISTS":
            return success(key in keys)
        if name == "INCR":
            before = keys.get(key, (0, ""))[0]
            if not isinstance(before, int):
                return error("WRONG_TYPE", "never")
            after = before + request.get("amount", 1)
            if not -2 ** 63 <= after < 2 ** 63:
                return error("OVERFLOW", "never")
            self.applied += 1
            keys[key] = (after, str(self.applied))
            return success(after)
        if name == "BULK_SET":
            items = request["items"]
            pairs = items.items() if isinstance(items, dict) else (
                (item["key"], item["value"]) if isinstance(item, dict) else item for item in items)
            distinct = dict(pairs)
            self.applied += 1
            keys.update({name: (value, str(self.applied)) for name, value in distinct.items()})
            return success(len(distinct))
        if name == "BULK_GET":
            return success({name: keys[name][0] if name in keys else None for name in request["keys"]})
        if name == "SCAN":
            return self.scan(request)
        if name == "QUERY_INDEX":
            found = sorted(name for name, (value, _) in keys.items()
                           if isinstance(value, dict) and value.get(request["field"]) == request["value"]
                           and name > (request.get("cursor") or ""))
            page = found[:request.get("limit", 10_000)]
            return success(page, cursor=page[-1]) if len(found) > len(page) else success(page)
        return error("UNKNOWN_COMMAND", "never")

    def scan(self, request):
        if request.get("cursor") is None:
            # An empty page with a cursor is not the end; a client must bear it.
            return success({"keys": [], "cursor": "="})
        rest = sorted(key for key in self.keys
                      if key.startswith(request.get("prefix", "")) and key > request["cursor"][1:])
        page = rest[:request.get("limit", 100)]
        return success({"keys": page, "cursor": "=" + page[-1] if len(rest) > len(page) else None})


def any_server(test):
    """The address in STRAND_TEST_ADDRESS, or that of a fake server for the length of a test."""
    address = os.environ.get("STRAND_TEST_ADDRESS")
    if address:
        return address
    fake = FakeServer()
    test.addCleanup(fake.stop)
    return fake.address


def own_prefix(test):
    """A key prefix that no other test and no other run uses."""
    return "client-test:%s:%s:" % (test, uuid.uuid4().hex)
