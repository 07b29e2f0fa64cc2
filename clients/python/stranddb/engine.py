"""The loop behind every call: route, send, gather, and send again what may be sent again, until the deadline.

It is a generator that yields what it needs done (connect, one turn of a connection, a pause), so that the synchronous and
the asyncio client share it. Invariants: every item ends with exactly one outcome; a write keeps its number through all its
attempts; no item is sent again after a later item of the same call that touches the same key has taken effect.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Dict, Generator, List, Optional, Sequence, Tuple, Union

from .errors import (ConnectError, DisconnectedError, EncodeError, ProtocolError, RequestTimeout, ServerError, StrandError,
                     error_of)
from .placement import hash64, slot_of
from .session import Reply, Request, Sequencer, Session, encode

VERSION = "0.1.0"
HOPS_MAX = 5
LINKS_MAX = 64
ROUTES_MAX = 4096
#: Fixed parts of the key space.
SLOTS = 4096
OUTPUT_BYTES_HIGH = 256 * 1024
TRUSTED_IDLE = 0.05
GRACE = 0.5

Outcome = Union[Reply, StrandError]


class DeadlinePassed(OSError):
    """Raised by a driver when a step's deadline passed; unlike TimeoutError it is never a network's own."""




@dataclass(frozen=True)
class Options:
    """How a client connects, waits (all in seconds) and retries."""

    connect_timeout: float = 2.0
    #: Overall deadline of a data command, retries included.
    timeout: float = 10.0
    #: Overall deadline of a search, a scan or an administrative command.
    timeout_slow: float = 65.0
    #: How often a request is sent at most, the first time included.
    attempts_max: int = 64
    #: Longest pause before the second attempt; it doubles from there up to ``pause_max``, a quarter of what a
    #: shard takes to find another leader.
    pause_first: float = 0.01
    pause_max: float = 0.25
    token: Optional[str] = None
    #: Whether replies come in request order.
    ordered: bool = True
    #: Asks the cluster for leaders' addresses and then talks to them directly.
    redirect: bool = False
    #: Talks to each shard of a server at the shard's own port where the server has such ports (``router.mode = "inline"``),
    #: as ``redirect`` does too. Needs the package xxhash; commands on several keys go to the address given all the same.
    shard_aware: bool = False
    #: Requests in flight on one connection; at most the server's 1,024.
    window: int = 512
    #: Longest request that is sent, in bytes.
    request_bytes_max: int = 16 * 1024 * 1024

    @property
    def uses_map(self) -> bool:
        """Whether the shard map decides where a request on one key goes."""
        return self.redirect or self.shard_aware

    def check(self) -> None:
        if not 1 <= self.window <= 1024:
            raise ValueError(f"a window of {self.window} is not between 1 and 1,024")
        if self.attempts_max < 1:
            raise ValueError("a request needs at least one attempt")


@dataclass(frozen=True)
class Step:
    """What the driver is asked to do: ``connect``, ``turn``, ``check`` or ``sleep``."""

    what: str
    address: Tuple[str, int] = ("", 0)
    link: Any = None
    deadline: float = 0.0


Steps = Generator[Step, Any, None]


class Link:
    """A connection and its conversation. Drivers subclass it with a transport."""

    def __init__(self) -> None:
        self.session = Session()
        self.last_used = time.monotonic()

    def close(self) -> None:
        raise NotImplementedError


@dataclass
class Item:
    request: Request
    seq: Optional[int] = None
    attempts: int = 0
    hops: int = 0
    directed: Optional[str] = None
    in_doubt: bool = False
    last: Optional[Outcome] = None
    done: Optional[Outcome] = None

    @property
    def refused(self) -> bool:
        return isinstance(self.last, dict)

    def give_up(self, patience: float) -> None:
        """Ends the item with what its last attempt said."""
        last, self.last = self.last, None
        # A refusal of a repetition says nothing about the attempt that got no answer.
        if isinstance(last, dict) and (not self.in_doubt or last.get("retry") != "safe"):
            self.done = last
        elif isinstance(last, DisconnectedError):
            self.done = DisconnectedError(str(last), self.in_doubt)
        elif isinstance(last, StrandError) and not self.in_doubt:
            self.done = last
        else:
            self.done = RequestTimeout(f"no reply within {patience:g} s", self.in_doubt)


def split_address(address: str) -> Tuple[str, int]:
    """``HOST:PORT``, IPv6 in brackets."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


class Engine:
    """Connections, routes and numbers of one client."""

    def __init__(self, addresses: Sequence[str], options: Options) -> None:
        options.check()
        if not addresses:
            raise ValueError("at least one address is needed")
        for address in addresses:
            split_address(address)
        self.options = options
        self.seeds = list(addresses)
        self.primary = self.seeds[0]
        self.links: Dict[str, Link] = {}
        self.sequencer = Sequencer()
        self._shard_of_key: "OrderedDict[str, int]" = OrderedDict()
        self._leaders: Dict[int, str] = {}
        self._slots: List[int] = []
        #: By shard: the leader's address for which it holds, and where the shard's own thread listens.
        self._own: Dict[int, Tuple[str, str]] = {}

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self.links.clear()

    def patience(self, requests: Sequence[Request]) -> float:
        """The overall deadline of a call in seconds: that of its slowest request."""
        def one(request: Request) -> float:
            if request.timeout is not None:
                return request.timeout + GRACE
            return self.options.timeout if request.is_quick else self.options.timeout_slow
        return max(map(one, requests), default=0.0)

    def run(self, requests: Sequence[Request], timeout: Optional[float] = None) -> Generator[Step, Any, List[Outcome]]:
        """Runs requests in order; one outcome each, a reply (also an error reply) or an error."""
        patience = self.patience(requests) if timeout is None else timeout
        deadline = time.monotonic() + patience
        items = [self._item(request) for request in requests]
        try:
            while True:
                open_items = [at for at, item in enumerate(items) if item.done is None]
                if not open_items:
                    break
                attempts = max(items[at].attempts for at in open_items)
                redirected = all(items[at].directed for at in open_items)
                if attempts and not redirected:
                    pause = self._pause(attempts)
                    if time.monotonic() + pause >= deadline:
                        for at in open_items:
                            items[at].give_up(patience)
                        break
                    yield Step("sleep", deadline=pause)
                yield from self._round(items, open_items, deadline, patience)
        finally:
            for item in items:
                if item.seq is not None:
                    self.sequencer.settle(item.seq)
        outcomes = [item.done for item in items]
        assert all(outcome is not None for outcome in outcomes), "the loop ends with every item done"
        return outcomes  # type: ignore[return-value]

    def _item(self, request: Request) -> Item:
        try:
            length = len(encode(request))
            if length > self.options.request_bytes_max:
                raise EncodeError(f"{length} bytes are over the limit of {self.options.request_bytes_max}")
        except EncodeError as error:
            return Item(request, done=error)
        return Item(request, seq=self.sequencer.begin() if request.nature == "sequenced" else None)

    def _pause(self, attempts: int) -> float:
        bound = min(self.options.pause_first * 2 ** min(attempts - 1, 20), self.options.pause_max)
        return bound / 2 + random.random() * bound / 2

    def _round(self, items: List[Item], open_items: List[int], deadline: float, patience: float) -> Steps:
        for stretch in self._stretches(items, open_items):
            yield from self._attempt(items, stretch, deadline, patience)
        self._keep_order(items, open_items, patience)

    def _stretches(self, items: List[Item], open_items: List[int]) -> List[List[int]]:
        """What may touch any key waits for what was queued before it, which may go elsewhere, and the other way round."""
        if not self.options.uses_map or not self.options.ordered:
            return [open_items]

        def touches_many(at: int) -> bool:
            return items[at].request.key is None and not items[at].request.is_keyless
        return [list(stretch) for _, stretch in groupby(open_items, touches_many)]

    def _attempt(self, items: List[Item], open_items: List[int], deadline: float, patience: float) -> Steps:
        """One attempt for items that may go to several places at once, address by address."""
        by_address: Dict[str, List[int]] = {}
        for at in open_items:
            by_address.setdefault(self._address_for(items[at]), []).append(at)
        for wanted, batch in by_address.items():
            try:
                address = yield from self.ready(wanted, deadline)
            except StrandError as error:
                for at in batch:
                    self._unreachable(items[at], error)
                continue
            yield from self._exchange(address, items, batch, deadline, patience)

    def _address_for(self, item: Item) -> str:
        directed, item.directed = item.directed, None
        if directed:
            return directed
        shard = self._shard_of(item.request.key) if item.request.key is not None else None
        if shard is None or shard not in self._leaders:
            return self.primary
        leader = self._leaders[shard]
        own = self._own.get(shard)
        return own[1] if own is not None and own[0] == leader else leader

    def ready(self, wanted: str, deadline: float) -> Generator[Step, Any, str]:
        """Makes a connection ready, to the address asked for or to any other node known; gives the one that answered."""
        first_error: Optional[StrandError] = None
        for address in dict.fromkeys([wanted, self.primary, *self.seeds, *sorted(set(self._leaders.values()))]):
            link = self.links.get(address)
            if link is not None:
                if time.monotonic() - link.last_used < TRUSTED_IDLE or (yield Step("check", link=link)):
                    return address
                self.links.pop(address).close()
            try:
                link = yield from self._connect(address, deadline)
            except (OSError, StrandError, ValueError) as error:
                self._leaders = {shard: leader for shard, leader in self._leaders.items() if leader != address}
                self._own = {shard: own for shard, own in self._own.items() if own[1] != address}
                known = error if isinstance(error, StrandError) else ConnectError(f"cannot connect to {address}: {error}")
                first_error = first_error or known
                continue
            if len(self.links) >= LINKS_MAX:
                for other in [other for other in self.links if other != self.primary]:
                    self.links.pop(other).close()
            self.links[address] = link
            if wanted == self.primary:
                self.primary = address
            return address
        assert first_error is not None, "there is always an address to try"
        raise first_error

    def _connect(self, address: str, deadline: float) -> Generator[Step, Any, Link]:
        until = min(deadline, time.monotonic() + self.options.connect_timeout)
        link: Link = yield Step("connect", address=split_address(address), deadline=until)
        try:
            hello = self.hello_members()
            if len(hello) > 1 or self.options.uses_map:
                link.session.submit(0, Request("HELLO", hello))
                answers: List[Tuple[int, Reply]] = []
                while not answers:
                    yield Step("turn", link=link, deadline=until)
                    answers = list(link.session.replies())
                if answers[0][1]["status"] != "success":
                    raise error_of(answers[0][1])
                if self.options.uses_map:
                    self._learn_map(answers[0][1].get("result"), address)
            if not self.options.ordered:
                link.session.set_unordered()
        except BaseException:
            link.close()
            raise
        return link

    def hello_members(self) -> Dict[str, Any]:
        """The members of HELLO that the options need."""
        members: Dict[str, Any] = {"client": f"strand-python/{VERSION}"}
        if not self.options.ordered:
            members["ordered"] = False
        if self.options.redirect:
            members["redirect"] = True
        if self.options.token is not None:
            members["token"] = self.options.token
        return members

    def _exchange(self, address: str, items: List[Item], batch: List[int], deadline: float, patience: float) -> Steps:
        """Sends a batch over one link and notes how each item fared."""
        link = self.links.pop(address)
        session = link.session
        missing = dict.fromkeys(batch)
        queued, leaving, broken = 0, False, None
        whole = False
        try:
            while missing:
                while queued < len(batch) and session.in_flight < self.options.window \
                        and len(session.output) < OUTPUT_BYTES_HIGH:
                    item = items[batch[queued]]
                    stamp = self.sequencer.stamp(item.seq) if item.seq is not None else None
                    session.submit(batch[queued], item.request, stamp)
                    queued += 1
                yield Step("turn", link=link, deadline=deadline)
                for at, reply in session.replies():
                    missing.pop(at, None)
                    leaving = leaving or reply.get("code") == "SHUTTING_DOWN"
                    self._replied(items[at], reply)
            whole = True
        except (OSError, StrandError) as error:
            broken = error
        finally:
            # Also when the caller was cancelled: replies on this link could no longer be told apart.
            if whole and not leaving:
                link.last_used = time.monotonic()
                self.links[address] = link
            else:
                link.close()
        if leaving and self.primary == address:
            following = self.seeds.index(address) + 1 if address in self.seeds else 0
            self.primary = self.seeds[following % len(self.seeds)]
        if broken is not None:
            sent = dict(session.unanswered())
            for at in missing:
                self._broke(items[at], broken, sent.get(at, False), patience)

    def _replied(self, item: Item, reply: Reply) -> None:
        item.attempts += 1
        if reply["status"] == "success":
            item.done = reply
            if item.seq is not None:
                self.sequencer.settle(item.seq)
            return
        item.last = reply
        leader, shard = reply.get("leader"), reply.get("shard")
        if reply.get("code") == "NOT_LEADER" and isinstance(leader, str):
            if isinstance(shard, int):
                self._learn(item.request.key, shard, leader)
            item.hops += 1
            if item.hops <= HOPS_MAX:
                item.directed = leader
                return
        retry = reply.get("retry")
        item.in_doubt = item.in_doubt or retry == "same_seq"
        allowed = retry == "safe" or (retry == "same_seq" and item.request.nature != "once")
        if not allowed or item.attempts >= self.options.attempts_max:
            item.give_up(0.0)

    def _shard_of(self, key: str) -> Optional[int]:
        """The shard of a key by the slot map of HELLO, or by what a NOT_LEADER reply said of the key."""
        if self._slots:
            return self._slots[slot_of(key.encode("utf-8", "surrogatepass"), hash64)]
        return self._shard_of_key.get(key)

    def _learn_map(self, result: Any, connected: str) -> None:
        """Takes over the shard map and the leaders of a HELLO reply; a server that tells none is asked key by key."""
        try:
            slots = [0] * SLOTS
            for one in result["slots"]:
                for slot in range(int(one["first"]), min(int(one["last"]), SLOTS - 1) + 1):
                    slots[slot] = int(one["group"])
            leaders = {int(one["group"]): str(one["address"]) for one in result["leaders"] if one.get("address")}
            host = connected.rpartition(":")[0]
            mine = {int(one["group"]) for one in result["leaders"] if one.get("node") and one["node"] == result.get("node")}
            own = {int(one["group"]): f"{host}:{int(one['port'])}" for one in result["slots"] if one.get("port")}
            for address in [*leaders.values(), *own.values()]:
                split_address(address)
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        self._slots = slots
        self._leaders.update(leaders)
        # A node knows its own ports only.
        for group in mine & leaders.keys():
            self._own.pop(group, None)
            if group in own:
                self._own[group] = (leaders[group], own[group])

    def _learn(self, key: Optional[str], shard: int, leader: str) -> None:
        if key is not None:
            self._shard_of_key[key] = shard
            self._shard_of_key.move_to_end(key)
            if len(self._shard_of_key) > ROUTES_MAX:
                self._shard_of_key.popitem(last=False)
        if len(self._leaders) >= ROUTES_MAX:
            self._leaders.clear()
        self._leaders[shard] = leader

    def _broke(self, item: Item, error: BaseException, sent: bool, patience: float) -> None:
        item.attempts += 1
        item.in_doubt = item.in_doubt or sent
        if isinstance(error, DeadlinePassed):
            item.done = RequestTimeout(f"no reply within {patience:g} s", item.in_doubt)
        elif isinstance(error, ProtocolError):
            item.done = ProtocolError(str(error))
        else:
            item.last = DisconnectedError(f"the connection broke: {error}", item.in_doubt)
            allowed = not sent or item.request.nature != "once"
            if not allowed or item.attempts >= self.options.attempts_max:
                item.give_up(patience)

    def _unreachable(self, item: Item, error: StrandError) -> None:
        item.attempts += 1
        item.last = error
        passing = isinstance(error, ConnectError) or (isinstance(error, ServerError) and error.retry == "safe")
        if not passing or item.attempts >= self.options.attempts_max:
            item.give_up(0.0)

    def _keep_order(self, items: List[Item], open_items: List[int], patience: float) -> None:
        """Gives up what was refused while something later that touches the same keys may have taken effect."""
        if len(items) < 2:
            return
        last_of_key: Dict[str, int] = {}
        last_of_many = last = -1
        for at, item in enumerate(items):
            succeeded = isinstance(item.done, dict) and item.done["status"] == "success"
            if not (succeeded or item.in_doubt) or item.request.is_keyless:
                continue
            if item.request.key is not None:
                last_of_key[item.request.key] = at
            else:
                last_of_many = at
            last = at
        for at in open_items:
            item = items[at]
            if item.done is not None or not item.refused or item.request.is_keyless:
                continue
            key = item.request.key
            after = last if key is None else max(last_of_key.get(key, -1), last_of_many)
            if after > at:
                item.give_up(patience)
