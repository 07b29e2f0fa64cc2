#!/usr/bin/env python3
"""Measures search on a live server: what an index costs writes, reads beside its building, and a restart with it.

Uses the corpora of ../tantivy (GCIDE and WordNet, 243,895 documents), the server target/release/strand (built if it is not
there) and its own `strand bench` for reads. Prints Markdown for docs/BENCHMARKS.md. One server at a time, each with a data
directory of its own below target/, removed at the end. Standard library only.

  live.py [restart] [building] [writes]        all three by default
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PART_NAMES = ["restart", "building", "writes"]
WORDS = "river boat doctor music school engine piano teacher tree bear winter garden letter mountain silver".split()


def corpora():
    """The corpus files, made by the comparison with tantivy."""
    place = importlib.util.spec_from_file_location("compare", HERE.parent / "tantivy" / "compare.py")
    compare = importlib.util.module_from_spec(place)
    place.loader.exec_module(compare)
    return compare.corpora(TARGET / "corpus")


def documents(limit=None):
    """(key, value as JSON) of the corpora, at most so many."""
    count = 0
    for file in corpora():
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                yield document["id"], json.dumps(document["title"] + " " + document["text"], ensure_ascii=False)
                count += 1
                if count == limit:
                    return


class Server:
    """A server with a data directory of its own."""

    def __init__(self, name, port, arguments=()):
        self.port, self.arguments = port, list(arguments)
        self.data = TARGET / f"live-{name}"
        shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    def start(self):
        """Starts it; the seconds until it answers."""
        began = time.monotonic()
        command = [str(TARGET / "release" / "strand"), "serve", "--port", str(self.port), "--data-dir", str(self.data)]
        log = open(TARGET / "live.log", "ab")
        self.process = subprocess.Popen(command + self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            try:
                if self.ask({"command": "PING"})["result"] == "PONG":
                    return time.monotonic() - began
            except OSError:
                if self.process.poll() is not None or time.monotonic() - began > 120:
                    sys.exit(f"the server does not start; see {TARGET / 'live.log'}")
                time.sleep(0.002)

    def ask(self, request):
        with socket.create_connection(("127.0.0.1", self.port), timeout=600) as connection:
            connection.sendall(json.dumps({"timeout_ms": 600_000, **request} if request["command"] != "PING" else request).encode() + b"\n")
            reply = json.loads(connection.makefile("rb").readline())
        if reply.get("status") != "success":
            sys.exit(f"{request} -> {reply}")
        return reply

    def stop(self):
        self.process.terminate()
        if self.process.wait(timeout=120) != 0:
            sys.exit("the server did not end in good order")

    def end(self):
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)


def send_all(port, lines, window=256):
    """Sends lines on one connection, at most so many unanswered; the seconds until the last reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        room = threading.Semaphore(window)
        state = {"replies": 0, "bad": None}

        def read():
            for reply in connection.makefile("rb", 1 << 20):
                if not reply.startswith(b'{"status":"success"'):
                    state["bad"] = reply
                state["replies"] += 1
                room.release()
                if state["replies"] == len(lines):
                    return

        reader = threading.Thread(target=read, daemon=True)
        began = time.monotonic()
        reader.start()
        for start in range(0, len(lines), 32):
            part = lines[start : start + 32]
            for _ in part:
                room.acquire()
            connection.sendall(b"".join(part))
        reader.join(timeout=600)
        if state["bad"] or state["replies"] != len(lines):
            sys.exit(f"{state['replies']} of {len(lines)} replies; {state['bad']}")
        return time.monotonic() - began


def set_line(key, value):
    return f'{{"command":"SET","key":{json.dumps(key, ensure_ascii=False)},"value":{value}}}\n'.encode()


def load(server, limit=None):
    lines = [set_line(key, value) for key, value in documents(limit)]
    return len(lines), send_all(server.port, lines)


QUERIES = ["musical instrument", "\"united states\"", "elephant~1", "+genus -plant"]


def answers(server):
    return [server.ask({"command": "SEARCH", "query": query})["result"] for query in QUERIES]


def restart(port):
    server = Server("restart", port, ["--shards", "1"])
    count, loaded_s = load(server)
    began = time.monotonic()
    expected = answers(server)
    indexed_s = time.monotonic() - began
    began = time.monotonic()
    server.ask({"command": "SNAPSHOT"})
    snapshot_s = time.monotonic() - began
    times = []
    for _ in range(3):
        server.stop()
        began = time.monotonic()
        ready_s = server.start()
        if answers(server) != expected:
            sys.exit("other answers after a restart")
        times.append((time.monotonic() - began, ready_s))
    server.end()
    whole_s, ready_s = statistics.median(times)
    print(f"\n{count} documents, one shard, loaded in {loaded_s:.1f} s; a snapshot takes {snapshot_s:.1f} s.\n")
    print("| | seconds |\n|---|---|")
    print(f"| first search: all documents are indexed | {indexed_s:.2f} |")
    print(f"| restart until searches are answered, the same hits (median of 3) | {whole_s:.2f} |")
    print(f"| of these, until the server answers at all | {ready_s:.2f} |")
    print(f"| restart : indexing | {whole_s / indexed_s:.2f} |")


def reads(port, seconds, rate, is_loading=False):
    """`strand bench` reading at a steady rate keys that it wrote itself; latencies in microseconds."""
    command = [str(TARGET / "release" / "strand"), "bench", "mixed", "--address", f"127.0.0.1:{port}", "--read-ratio", "1"]
    command += ["--rate", str(rate), "--connections", "4", "--depth", "16", "--keys", "10000", "--duration", str(seconds)]
    command += ["--warm-up", "0.5", "--json"] + ([] if is_loading else ["--no-load"])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def latencies(process):
    phase = json.loads(process.communicate()[0])["phases"][-1]
    if phase["errors"] or phase["wrong"]:
        sys.exit(f"reads failed: {phase['first_problem']}")
    found = phase["latency"]["read"]
    return [found[name] / 1000 for name in ("p50_ns", "p99_ns", "p99.9_ns", "max_ns")]


def building(port):
    count = 200_000
    server = Server("building", port, ["--shards", "1"])
    load(server, count)
    latencies(reads(server.port, 1, 2000, is_loading=True))
    rows = []
    for name, seconds in (("nothing else", 5), ("the index being built", None), ("the index there", 5)):
        if seconds is None:
            # Reads for as long as it was seen to take: long enough to cover nothing but the building.
            asked = threading.Thread(target=lambda: server.ask({"command": "SEARCH", "query": "elephant"}))
            asked.start()
            began, parts = time.monotonic(), []
            while asked.is_alive():
                parts.append(latencies(reads(server.port, 2, 2000)))
            built_s = time.monotonic() - began
            # The last part may reach beyond the building.
            parts = parts[:-1] or parts
            rows.append((f"{name} ({built_s:.0f} s)", [max(part[n] for part in parts) if n else statistics.median(part[0] for part in parts) for n in range(4)]))
        else:
            rows.append((name, latencies(reads(server.port, seconds, 2000))))
    server.end()
    print(f"\n2,000 GETs a second (open loop) on one shard that holds {count} documents of the corpora; µs. While the index is built")
    print("each figure is the worst of stretches of two seconds, the median that of the stretches.\n")
    print("| beside | p50 | p99 | p99.9 | slowest |\n|---|---|---|---|---|")
    for name, figures in rows:
        print("| " + " | ".join([name, *(f"{figure:,.0f}" for figure in figures)]) + " |")


def writes(port):
    count, rounds = 40_000, 3
    texts = [json.dumps(" ".join(f"{WORDS[(n * m + m // 7) % len(WORDS)]}{(n * m) % (50 * (1 + m % 40))}" for m in range(1, 101))) for n in range(4096)]
    lines = [set_line(f"doc:{n % 20_000}", texts[n % len(texts)]) for n in range(count)]
    servers = [Server("plain", port, ["--shards", "1"]), Server("indexed", port + 1, ["--shards", "1"])]
    send_all(servers[0].port, lines[:2000])
    servers[1].ask({"command": "SEARCH", "query": "river1"})
    rates = {"never searched": [], "text index active: acknowledged": [], "text index active: indexed too": []}
    for _ in range(rounds):
        rates["never searched"].append(count / send_all(servers[0].port, lines))
        began = time.monotonic()
        rates["text index active: acknowledged"].append(count / send_all(servers[1].port, lines))
        servers[1].ask({"command": "SEARCH", "query": "river1"})
        rates["text index active: indexed too"].append(count / (time.monotonic() - began))
    for server in servers:
        server.end()
    print(f"\nSET of 100 words ({len(texts[0])} bytes), {count} on one connection, 256 under way, one shard, synced before the reply; median of {rounds}.\n")
    print("| database | SET/s |\n|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f}) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PART_NAMES, []], help="what to measure")
    parser.add_argument("--port", type=int, default=18_731, help="first port to listen on")
    arguments = parser.parse_args()
    if not (TARGET / "release" / "strand").exists():
        cargo = os.environ.get("CARGO", "cargo")
        subprocess.run([cargo, "build", "--release", "--locked", "--bin", "strand"], cwd=ROOT, check=True)
    for name in arguments.parts or PART_NAMES:
        {"restart": restart, "building": building, "writes": writes}[name](arguments.port)


if __name__ == "__main__":
    main()
