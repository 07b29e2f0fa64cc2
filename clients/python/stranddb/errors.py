"""Everything that can go wrong between a caller and a server, one class a code.

Every error says whether the request may have taken effect (``outcome_unknown``). Never imports the rest of the package.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Type

__all__ = [
    "StrandError", "ServerError", "ConnectError", "DisconnectedError", "RequestTimeout", "ProtocolError",
    "EncodeError", "PoolExhausted", "BadRequestError", "UnknownCommandError", "TooLargeError",
    "WrongTypeError", "CounterOverflowError", "NoSuchIndexError", "IndexExistsError", "ConflictError",
    "NotLeaderError", "NoQuorumError", "ServerTimeout", "SeqExpiredError", "OverloadedError",
    "OutOfMemoryError", "DiskFullError", "ReadOnlyError", "AuthRequiredError", "ForbiddenError",
    "UnsupportedInModeError", "ShuttingDownError", "InternalError",
]


class StrandError(Exception):
    """Base of every error of this package."""

    #: Whether the request may have taken effect although it failed.
    outcome_unknown: bool = False


class ConnectError(StrandError, ConnectionError):
    """No server could be reached."""


class DisconnectedError(StrandError, ConnectionError):
    """The connection broke, and sending the request again was not allowed or did not help."""

    def __init__(self, message: str, outcome_unknown: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class RequestTimeout(StrandError, TimeoutError):
    """The overall deadline of the call passed, or the server's own (code TIMEOUT is ``ServerTimeout``)."""

    def __init__(self, message: str, outcome_unknown: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ProtocolError(StrandError):
    """The server sent something that is not a reply of this protocol."""

    outcome_unknown = True


class EncodeError(StrandError, ValueError):
    """The request cannot be written as one line of JSON; nothing was sent."""


class PoolExhausted(StrandError):
    """Every connection of the pool stayed in use."""


class ServerError(StrandError):
    """The server answered with an error."""

    def __init__(self, reply: Dict[str, Any]) -> None:
        self.reply = reply
        self.code: str = str(reply.get("code", ""))
        self.message: str = str(reply.get("error", ""))
        #: ``never``, ``safe`` or ``same_seq``.
        self.retry: str = str(reply.get("retry", "never"))
        super().__init__(f"{self.code}: {self.message}")
        self.outcome_unknown = self.retry == "same_seq"

    @property
    def version(self) -> Optional[str]:
        """The current version of the key, in a conflict."""
        return self.reply.get("version")

    @property
    def leader(self) -> Optional[str]:
        """Address of the leader, where the server names one."""
        return self.reply.get("leader")


class BadRequestError(ServerError):
    """The line is no request: a field is unknown, missing or ill-typed."""


class UnknownCommandError(ServerError):
    """The server knows no such command."""


class TooLargeError(ServerError):
    """Something is over a limit; the reply names it."""


class WrongTypeError(ServerError):
    """The value does not have the type that the command needs."""


class CounterOverflowError(ServerError):
    """The counter would leave 64 bits; it is unchanged."""


class NoSuchIndexError(ServerError):
    """There is no such index."""


class IndexExistsError(ServerError):
    """The index exists with another definition."""


class ConflictError(ServerError):
    """The condition is not met, or a sequence number was used for another request."""


class NotLeaderError(ServerError):
    """Another node leads this shard."""


class NoQuorumError(ServerError):
    """Too few nodes can be reached."""


class ServerTimeout(ServerError):
    """The server's own deadline passed; the outcome is unknown."""


class SeqExpiredError(ServerError):
    """The retry came too late to tell whether the write was applied."""


class OverloadedError(ServerError):
    """The server has too much to do."""


class OutOfMemoryError(ServerError):
    """The server has no memory left."""


class DiskFullError(ServerError):
    """The server's disk is full; reads go on."""


class ReadOnlyError(ServerError):
    """The server takes no writes."""


class AuthRequiredError(ServerError):
    """A token is needed."""


class ForbiddenError(ServerError):
    """The token does not allow this."""


class UnsupportedInModeError(ServerError):
    """The server's mode cannot promise this."""


class ShuttingDownError(ServerError):
    """The server is stopping."""


class InternalError(ServerError):
    """The server has a fault; its log says more."""


_CLASSES: Dict[str, Type[ServerError]] = {
    "BAD_REQUEST": BadRequestError,
    "UNKNOWN_COMMAND": UnknownCommandError,
    "TOO_LARGE": TooLargeError,
    "WRONG_TYPE": WrongTypeError,
    "OVERFLOW": CounterOverflowError,
    "NO_SUCH_INDEX": NoSuchIndexError,
    "INDEX_EXISTS": IndexExistsError,
    "CONFLICT": ConflictError,
    "NOT_LEADER": NotLeaderError,
    "NO_QUORUM": NoQuorumError,
    "TIMEOUT": ServerTimeout,
    "SEQ_EXPIRED": SeqExpiredError,
    "OVERLOADED": OverloadedError,
    "OUT_OF_MEMORY": OutOfMemoryError,
    "DISK_FULL": DiskFullError,
    "READ_ONLY": ReadOnlyError,
    "AUTH_REQUIRED": AuthRequiredError,
    "FORBIDDEN": ForbiddenError,
    "UNSUPPORTED_IN_MODE": UnsupportedInModeError,
    "SHUTTING_DOWN": ShuttingDownError,
    "INTERNAL": InternalError,
}


def error_of(reply: Dict[str, Any]) -> ServerError:
    """The error of an error reply, in the class of its code."""
    return _CLASSES.get(str(reply.get("code")), ServerError)(reply)
