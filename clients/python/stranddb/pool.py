"""Clients shared by threads.

Invariants: at most ``size`` clients exist; one is in the hands of at most one caller; one whose connection is broken is given
to nobody again.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import TracebackType
from typing import Iterator, List, Optional, Type

from .client import Addresses, Client, address_list
from .engine import Options
from .errors import PoolExhausted, StrandError

PING_AFTER = 30.0


class Pool:
    """A bounded pool. Connects when it is used.

    >>> pool = Pool("127.0.0.1:8000", size=8)         # doctest: +SKIP
    >>> with pool.client() as client:                 # doctest: +SKIP
    ...     client.incr("visits")
    """

    def __init__(self, addresses: Addresses = "127.0.0.1:8000", *, size: int = 16, wait: float = 5.0,
                 options: Optional[Options] = None) -> None:
        if size < 1:
            raise ValueError("a pool needs room for one client")
        self._addresses = address_list(addresses)
        self._options = options
        self._wait = wait
        self._places = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: List[Client] = []
        self._closed = False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client in working order, for the length of a ``with`` block."""
        if not self._places.acquire(timeout=self._wait):
            raise PoolExhausted(f"every connection stayed in use for {self._wait:g} s")
        try:
            client = self._take() or Client(self._addresses, options=self._options)
            try:
                yield client
            finally:
                self._give_back(client)
        finally:
            self._places.release()

    def _take(self) -> Optional[Client]:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                client = self._idle.pop()
            if _is_sound(client):
                return client
            client.close()

    def _give_back(self, client: Client) -> None:
        if client.is_healthy():
            with self._lock:
                if not self._closed:
                    self._idle.append(client)
                    return
        client.close()

    def close(self) -> None:
        """Closes what is idle; what is on loan closes when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()


def _is_sound(client: Client) -> bool:
    if not client.is_healthy():
        return False
    link = client._engine.links[client._engine.primary]
    if time.monotonic() - link.last_used < PING_AFTER:
        return True
    try:
        return client.ping() == "PONG"
    except StrandError:
        return False
