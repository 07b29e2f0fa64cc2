"""Two plain clients for people who come from earlier systems.

``TCPClient`` gives whole reply dicts and raises only when the connection fails; ``KVClient`` gives bare results and raises
error replies. Both connect with their first command and may be shared by threads.
"""

from __future__ import annotations

from typing import Any, Optional

from .client import Connection, Pipeline, result_of
from .commands import Commands
from .engine import Options
from .errors import StrandError
from .session import Reply, Request


class TCPClient(Connection, Commands[Reply]):
    """Every method gives the server's reply as a dict: ``{"status": "success", "result": ...}`` or an error reply."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8000, timeout: Optional[float] = None) -> None:
        super().__init__(host, port, Options() if timeout is None else Options(timeout=timeout, timeout_slow=timeout))

    def _send(self, request: Request) -> Reply:
        outcome = self._outcome(request)
        if isinstance(outcome, StrandError):
            raise outcome
        return outcome

    def hello(self) -> Reply:
        """Versions, limits, mode and capabilities of the server. Changes nothing on the connection."""
        return self._send(Request("HELLO", self._engine.hello_members()))

    def pipeline(self, timeout: Optional[float] = None) -> Pipeline:
        """Starts a pipeline; the timeout, in seconds, is for all of it."""
        return Pipeline(self, timeout)

    def __enter__(self) -> "TCPClient":
        return self


class KVClient(Connection, Commands[Any]):
    """Every method gives the bare result: ``get`` a value or None, ``incr`` a number, ``bulk_set([(k, v), ...])`` a count."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8000, timeout: Optional[float] = None) -> None:
        super().__init__(host, port, Options() if timeout is None else Options(timeout=timeout, timeout_slow=timeout))

    def _send(self, request: Request) -> Any:
        return result_of(self._outcome(request)).get("result")

    def hello(self) -> Any:
        """Versions, limits, mode and capabilities of the server. Changes nothing on the connection."""
        return self._send(Request("HELLO", self._engine.hello_members()))

    def pipeline(self, timeout: Optional[float] = None) -> Pipeline:
        """Starts a pipeline; the timeout, in seconds, is for all of it."""
        return Pipeline(self, timeout)

    def __enter__(self) -> "KVClient":
        return self
