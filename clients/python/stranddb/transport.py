"""Sockets that never block, driven by the engine's steps; for the synchronous clients.

Waiting is one poll for both directions, so a large pipeline cannot lock up with a server that stops reading until its
replies are read.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Generator, TypeVar

from .engine import DeadlinePassed, Link, Step
from .errors import StrandError

T = TypeVar("T")
READ_BYTES = 64 * 1024


class SocketLink(Link):
    """A connection over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock

    def close(self) -> None:
        self._sock.close()

    def is_healthy(self) -> bool:
        """Whether the connection is open and at rest. A byte nobody asked for counts as broken."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return self.session.is_quiet
        except OSError:
            return False
        return False

    def turn(self, deadline: float) -> None:
        """Writes what can be written, waits for the socket, and reads once if there is something to read."""
        self._write_some()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed("the deadline passed")
        if _readable(self._sock, bool(self.session.output), left):
            try:
                data = self._sock.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self.session.receive(data)

    def _write_some(self) -> None:
        while self.session.output:
            try:
                with memoryview(self.session.output) as view:
                    count = self._sock.send(view[:1 << 20])
            except (BlockingIOError, InterruptedError):
                return
            except BrokenPipeError:
                # The server may have said why before it closed: what can still be read is read first.
                return
            self.session.sent(count)


def _readable(sock: socket.socket, writing: bool, limit: float) -> bool:
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(sock, select.POLLIN | (select.POLLOUT if writing else 0))
        return any(events & ~select.POLLOUT for _, events in poller.poll(max(1, int(limit * 1000))))
    return bool(select.select([sock], [sock] if writing else [], [], limit)[0])


def connect(step: Step) -> SocketLink:
    left = step.deadline - time.monotonic()
    if left <= 0:
        raise DeadlinePassed("the deadline passed")
    sock = socket.create_connection(step.address, timeout=left)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return SocketLink(sock)


def drive(steps: Generator[Step, Any, T]) -> T:
    """Performs the engine's steps until it has its result."""
    answer: Any = None
    failure: Any = None
    try:
        while True:
            step = steps.throw(failure) if failure is not None else steps.send(answer)
            answer = failure = None
            try:
                if step.what == "connect":
                    answer = connect(step)
                elif step.what == "turn":
                    step.link.turn(step.deadline)
                elif step.what == "check":
                    answer = step.link.is_healthy()
                else:
                    time.sleep(step.deadline)
            except (OSError, StrandError) as error:
                failure = error
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()
