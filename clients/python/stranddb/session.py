"""Requests into lines and lines into replies, without sockets and without a clock.

Invariants: an encoded request is exactly one line; every submitted ticket comes back once, by a reply or by
``Session.unanswered``; a write keeps its sequence number through all its attempts.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, Generic, Iterator, List, Optional, Tuple, TypeVar

from .errors import EncodeError, ProtocolError

T = TypeVar("T")
Reply = Dict[str, Any]

#: Sent with ``client`` and ``seq``: the server applies a repetition once.
SEQUENCED = frozenset("SET DELETE INCR BULK_SET BULK_DELETE EXPIRE PERSIST DELETE_PREFIX".split())
#: Twice is as good as once.
REPEATABLE = frozenset("PING GET EXISTS BULK_GET TTL SCAN SEARCH SEMANTIC_SEARCH HYBRID_SEARCH QUERY_INDEX LIST_INDEXES "
                       "INFO CLUSTER SNAPSHOT CREATE_INDEX".split())
#: Commands to which the server gives its short deadline.
QUICK = frozenset("PING HELLO GET SET DELETE EXISTS INCR BULK_SET BULK_GET BULK_DELETE EXPIRE TTL PERSIST".split())
#: Commands that touch no key.
KEYLESS = frozenset("PING HELLO INFO CLUSTER LIST_INDEXES".split())


@dataclass
class Request:
    """One command: its name and its other members."""

    command: str
    members: Dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(line: Dict[str, Any]) -> "Request":
        """Reads a command given as a dict with a member ``command``."""
        if not isinstance(line, dict) or not isinstance(line.get("command"), str):
            raise EncodeError("a command is a dict with a text member 'command'")
        return Request(line["command"], {name: value for name, value in line.items() if name != "command"})

    @property
    def nature(self) -> str:
        """``sequenced``, ``repeatable`` or ``once``: whether it may be sent a second time."""
        name = self.command.upper()
        if "client" in self.members or "seq" in self.members:
            return "once"
        if name in SEQUENCED:
            return "sequenced"
        return "repeatable" if name in REPEATABLE else "once"

    @property
    def key(self) -> Optional[str]:
        key = self.members.get("key")
        return key if isinstance(key, str) else None

    @property
    def is_quick(self) -> bool:
        return self.command.upper() in QUICK

    @property
    def is_keyless(self) -> bool:
        return self.command.upper() in KEYLESS

    @property
    def timeout(self) -> Optional[float]:
        """Seconds that the caller gives the server, when it said so."""
        timeout_ms = self.members.get("timeout_ms")
        return timeout_ms / 1000 if isinstance(timeout_ms, (int, float)) else None


def encode(request: Request, stamp: Optional[Dict[str, Any]] = None, ident: Optional[int] = None) -> bytes:
    """One command as a line, stamped and numbered where asked for."""
    line: Dict[str, Any] = {"command": request.command}
    if ident is not None:
        line["id"] = ident
    line.update(request.members)
    if stamp is not None:
        line.update(stamp)
    try:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"the request cannot be written as JSON: {error}") from error


class Sequencer:
    """The id and the numbers that make a repeated write apply once."""

    def __init__(self) -> None:
        #: Unique per client instance.
        self.client = secrets.token_hex(12)
        self._next = 1
        # A dict keeps its order, so its first key is the lowest number.
        self._unanswered: Dict[int, None] = {}

    def begin(self) -> int:
        """The number of a new write."""
        seq, self._next = self._next, self._next + 1
        self._unanswered[seq] = None
        return seq

    def stamp(self, seq: int) -> Dict[str, Any]:
        """The members to send with a write that is not settled, now or again."""
        assert seq in self._unanswered, "a settled write is never sent again"
        return {"client": self.client, "seq": seq, "acked": next(iter(self._unanswered))}

    def settle(self, seq: int) -> None:
        """Notes that the caller has its answer and will not send this write again."""
        self._unanswered.pop(seq, None)


class Session:
    """One connection's conversation: requests in, bytes out; bytes in, replies out."""

    def __init__(self, reply_bytes_max: int = 65 * 1024 * 1024) -> None:
        self.output = bytearray()
        self._input = bytearray()
        self._scanned = 0
        self._reply_bytes_max = reply_bytes_max
        self._ordered: Optional[Deque[Tuple[int, int]]] = deque()
        self._by_id: Dict[int, Tuple[int, int]] = {}
        self._next_id = 0
        self._sent_total = 0

    def set_unordered(self) -> None:
        """From here on replies may overtake one another; HELLO said so and was answered."""
        assert self.in_flight == 0, "the mode changes only when nothing is in flight"
        self._ordered = None

    def submit(self, ticket: int, request: Request, stamp: Optional[Dict[str, Any]] = None) -> None:
        """Queues a request. The ticket comes back with its reply."""
        start = self._sent_total + len(self.output)
        if self._ordered is not None:
            self.output += encode(request, stamp)
            self._ordered.append((ticket, start))
        else:
            self.output += encode(request, stamp, self._next_id)
            self._by_id[self._next_id] = (ticket, start)
            self._next_id += 1

    def sent(self, count: int) -> None:
        """Notes that the first ``count`` bytes of ``output`` were written."""
        del self.output[:count]
        self._sent_total += count

    def receive(self, data: bytes) -> None:
        """Takes bytes that were read from the connection."""
        self._input += data

    def replies(self) -> Iterator[Tuple[int, Reply]]:
        """Every whole reply that has come, with its ticket. After an error the connection must be closed."""
        begin = 0
        try:
            while True:
                end = self._input.find(b"\n", max(begin, self._scanned))
                if end < 0:
                    self._scanned = len(self._input)
                    if len(self._input) - begin > self._reply_bytes_max:
                        raise ProtocolError("a reply line is too long")
                    return
                line = bytes(self._input[begin:end])
                begin = end + 1
                yield self._reply(line)
        finally:
            del self._input[:begin]
            self._scanned = max(0, self._scanned - begin)

    def _reply(self, line: bytes) -> Tuple[int, Reply]:
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a reply is not JSON: {error}") from error
        if not isinstance(reply, dict) or reply.get("status") not in ("success", "error"):
            raise ProtocolError(f"a reply has no status: {line[:120]!r}")
        if self._ordered is not None:
            request = self._ordered.popleft() if self._ordered else None
        else:
            ident = reply.pop("id", None)
            request = self._by_id.pop(ident, None) if isinstance(ident, int) else None
        if request is None:
            raise ProtocolError(f"a reply belongs to no request: {line[:120]!r}")
        return request[0], reply

    @property
    def in_flight(self) -> int:
        """How many requests wait for a reply."""
        return len(self._ordered) if self._ordered is not None else len(self._by_id)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight, half sent or half received."""
        return self.in_flight == 0 and not self.output and not self._input

    def unanswered(self) -> List[Tuple[int, bool]]:
        """What is in flight when the connection ends: the ticket, and whether any byte of it was sent."""
        waiting = self._ordered if self._ordered is not None else self._by_id.values()
        return [(ticket, start < self._sent_total) for ticket, start in sorted(waiting, key=lambda one: one[1])]
