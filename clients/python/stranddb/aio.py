"""The asyncio client: the engine's steps over asyncio streams, with the same methods as ``stranddb.Client``.

Calls of one client run one after another, each as one exchange; use pipelines to send many at once, or several clients to
run side by side. A cancelled call closes its connection, because its reply could no longer be told apart.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import (Any, AsyncIterator, Dict, Generator, Iterable, List, Mapping, Optional, Sequence, Tuple, Type,
                    TypeVar)

from .client import Addresses, address_list, result_of
from .commands import BUILD, Commands, Items
from .engine import DeadlinePassed, Engine, Link, Options, Outcome, Step
from .errors import ConflictError, StrandError
from .session import Reply, Request

T = TypeVar("T")
READ_BYTES = 64 * 1024


class StreamLink(Link):
    """A connection over asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader = reader
        self._writer = writer

    def close(self) -> None:
        # abort and not close: what is left to send belongs to nobody any more.
        self._writer.transport.abort()

    def is_healthy(self) -> bool:
        """Whether the connection is open and at rest, as far as the event loop has noticed."""
        gone = self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()
        return not gone and self.session.is_quiet

    async def turn(self, deadline: float) -> None:
        """Hands what is queued to the transport and reads once."""
        if self.session.output:
            self._writer.write(bytes(self.session.output))
            self.session.sent(len(self.session.output))
        data = await _until(deadline, self._reader.read(READ_BYTES))
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.session.receive(data)


async def _until(deadline: float, waiting: Any) -> Any:
    left = deadline - time.monotonic()
    try:
        return await asyncio.wait_for(waiting, max(left, 0.0))
    except asyncio.TimeoutError:
        raise DeadlinePassed("the deadline passed") from None


async def _connect(step: Step) -> StreamLink:
    host, port = step.address
    reader, writer = await _until(step.deadline, asyncio.open_connection(host, port, limit=1 << 20))
    return StreamLink(reader, writer)


async def drive(steps: Generator[Step, Any, T]) -> T:
    """Performs the engine's steps until it has its result."""
    answer: Any = None
    failure: Any = None
    try:
        while True:
            step = steps.throw(failure) if failure is not None else steps.send(answer)
            answer = failure = None
            try:
                if step.what == "connect":
                    answer = await _connect(step)
                elif step.what == "turn":
                    await step.link.turn(step.deadline)
                elif step.what == "check":
                    # The loop learns of a closed connection only when it runs.
                    await asyncio.sleep(0)
                    answer = step.link.is_healthy()
                else:
                    await asyncio.sleep(step.deadline)
            except (OSError, StrandError) as error:
                failure = error
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()


class AsyncPipeline(Commands[int]):
    """Commands that queue up and travel together; every method gives the position of its outcome.

    Leaving an ``async with`` block sends what is queued.
    """

    def __init__(self, client: "AsyncClient", timeout: Optional[float] = None) -> None:
        self._client = client
        self._requests: List[Request] = []
        self._timeout = timeout
        self.outcomes: List[Outcome] = []

    def _send(self, request: Request) -> int:
        self._requests.append(request)
        return len(self._requests) - 1

    def __len__(self) -> int:
        return len(self._requests)

    async def execute(self) -> List[Outcome]:
        """Sends what is queued and gives one outcome a command: a reply (also an error reply) or an error."""
        requests, self._requests = self._requests, []
        self.outcomes = await self._client._run(requests, self._timeout)
        return self.outcomes

    @property
    def results(self) -> List[Any]:
        """One result a command; raises the first error."""
        return [result_of(outcome).get("result") for outcome in self.outcomes]

    async def __aenter__(self) -> "AsyncPipeline":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        if kind is None:
            await self.execute()


class AsyncClient:
    """A client for asyncio. Connects with ``async with``, ``connect`` or its first command.

    >>> async with AsyncClient("127.0.0.1:8000") as client:     # doctest: +SKIP
    ...     await client.set("greeting", "hello")
    """

    def __init__(self, addresses: Addresses = "127.0.0.1:8000", port: Optional[int] = None,
                 options: Optional[Options] = None) -> None:
        self._engine = Engine(address_list(addresses, port), options or Options())
        # Made with the first call: before Python 3.10 a lock belongs to the loop it was made in.
        self._lock: Optional[asyncio.Lock] = None

    async def _run(self, requests: Sequence[Request], timeout: Optional[float] = None) -> List[Outcome]:
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            return await drive(self._engine.run(requests, timeout))

    async def connect(self) -> None:
        """Connects to the first address that answers."""
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            deadline = time.monotonic() + self._engine.options.connect_timeout * len(self._engine.seeds)
            await drive(self._engine.ready(self._engine.primary, deadline))

    @property
    def client_id(self) -> str:
        """The id that this client's writes carry, unique per instance."""
        return self._engine.sequencer.client

    @property
    def address(self) -> str:
        """The address that unrouted commands go to."""
        return self._engine.primary

    async def close(self) -> None:
        """Closes the connections. A later command opens them again."""
        self._engine.close()
        await asyncio.sleep(0)

    async def __aenter__(self) -> "AsyncClient":
        await self.connect()
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        await self.close()

    def pipeline(self, timeout: Optional[float] = None) -> AsyncPipeline:
        """Starts a pipeline; the timeout, in seconds, is for all of it."""
        return AsyncPipeline(self, timeout)

    async def send_command(self, command: Dict[str, Any]) -> Reply:
        """Any command, given as a dict with a member ``command``; gives the whole reply, an error reply too."""
        request = Request.of(command)
        ident = None
        if not self._engine.options.ordered:
            ident = request.members.pop("id", None)
        outcome = (await self._run([request]))[0]
        if isinstance(outcome, StrandError):
            raise outcome
        return outcome if ident is None else {"id": ident, **outcome}

    async def _reply(self, request: Request) -> Reply:
        return result_of((await self._run([request]))[0])

    # One method a command, as in the synchronous client.
    async def ping(self) -> str:
        """Gives ``"PONG"``."""
        return (await self._reply(BUILD.ping()))["result"]  # type: ignore[no-any-return]

    async def hello(self) -> Dict[str, Any]:
        """Versions, limits, mode and capabilities of the server. Changes nothing on the connection."""
        return (await self._reply(Request("HELLO", self._engine.hello_members())))["result"]  # type: ignore[no-any-return]

    async def set(self, key: str, value: Any, *, ttl_ms: Optional[int] = None, condition: Optional[Mapping[str, Any]] = None,
            durability: Optional[str] = None, with_version: bool = False, **fields: Any) -> Optional[str]:
        """Stores a value; gives the new version when asked for. A condition that is not met raises ConflictError."""
        reply = await self._reply(BUILD.set(key, value, ttl_ms=ttl_ms, condition=condition, durability=durability,
                                      with_version=with_version or None, **fields))
        return reply.get("version")

    async def set_if_absent(self, key: str, value: Any, **fields: Any) -> bool:
        """Stores a value if the key does not exist; False when it does."""
        try:
            await self._reply(BUILD.set(key, value, condition={"absent": True}, **fields))
        except ConflictError:
            return False
        return True

    async def get(self, key: str, default: Any = None, *, consistency: Optional[str] = None, **fields: Any) -> Any:
        """The value of a key, or the default when the key does not exist."""
        reply = await self._reply(BUILD.get(key, consistency=consistency, **fields))
        return reply.get("result") if reply.get("found", True) else default

    async def get_versioned(self, key: str, **fields: Any) -> Optional[Tuple[Any, str]]:
        """The value of a key and its version, or None."""
        reply = await self._reply(BUILD.get(key, with_version=True, **fields))
        return (reply.get("result"), reply["version"]) if reply.get("found", True) else None

    async def delete(self, key: str, *, condition: Optional[Mapping[str, Any]] = None, **fields: Any) -> bool:
        """Removes a key; True if it existed."""
        return (await self._reply(BUILD.delete(key, condition=condition, **fields)))["result"]  # type: ignore[no-any-return]

    async def exists(self, key: str, **fields: Any) -> bool:
        """Whether a key exists."""
        return (await self._reply(BUILD.exists(key, **fields)))["result"]  # type: ignore[no-any-return]

    async def incr(self, key: str, amount: int = 1, **fields: Any) -> int:
        """Adds to an integer, which counts as 0 when absent; gives the new one."""
        return (await self._reply(BUILD.incr(key, amount, **fields)))["result"]  # type: ignore[no-any-return]

    async def bulk_set(self, items: Items, **fields: Any) -> int:
        """Stores a mapping or pairs, all or none; gives the number of distinct keys."""
        return (await self._reply(BUILD.bulk_set(items, **fields)))["result"]  # type: ignore[no-any-return]

    async def bulk_get(self, keys: Iterable[str], **fields: Any) -> Dict[str, Any]:
        """The values of many keys, one consistent snapshot; None for a key that does not exist."""
        return (await self._reply(BUILD.bulk_get(keys, **fields)))["result"]  # type: ignore[no-any-return]

    async def bulk_delete(self, keys: Iterable[str], **fields: Any) -> int:
        """Removes many keys, all or none; gives the number that existed."""
        return (await self._reply(BUILD.bulk_delete(keys, **fields)))["result"]  # type: ignore[no-any-return]

    async def expire(self, key: str, ttl_ms: int, **fields: Any) -> bool:
        """Lets a key expire after this many milliseconds; False when it does not exist."""
        return (await self._reply(BUILD.expire(key, ttl_ms, **fields)))["result"]  # type: ignore[no-any-return]

    async def ttl(self, key: str, **fields: Any) -> int:
        """Milliseconds left; -1 without expiry, -2 when the key does not exist."""
        return (await self._reply(BUILD.ttl(key, **fields)))["result"]  # type: ignore[no-any-return]

    async def persist(self, key: str, **fields: Any) -> bool:
        """Takes the expiry off a key; False when it had none."""
        return (await self._reply(BUILD.persist(key, **fields)))["result"]  # type: ignore[no-any-return]

    async def delete_prefix(self, prefix: str, **fields: Any) -> int:
        """Removes every key that begins with a prefix, in slices and not atomically; gives the number."""
        return (await self._reply(BUILD.delete_prefix(prefix, **fields)))["result"]  # type: ignore[no-any-return]

    async def search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
               fields: Optional[Sequence[str]] = None, filter: Optional[Mapping[str, Any]] = None,
               with_values: Optional[bool] = None, highlight: Optional[bool] = None, **more: Any) -> List[Dict[str, Any]]:
        """Full-text search by BM25; hits with ``key`` and ``score``, best first."""
        return (await self._reply(BUILD.search(  # type: ignore[no-any-return]
            query, top_k, offset=offset, fields=fields, filter=filter, with_values=with_values, highlight=highlight,
            **more)))["result"]

    async def semantic_search(self, query: Optional[str] = None, top_k: Optional[int] = None, *,
                        vector: Optional[Sequence[float]] = None, model: Optional[str] = None,
                        filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> List[Dict[str, Any]]:
        """Search by similarity to a text or a vector; hits with ``key`` and ``similarity``."""
        return (await self._reply(BUILD.semantic_search(  # type: ignore[no-any-return]
            query, top_k, vector=vector, model=model, filter=filter, **fields)))["result"]

    async def hybrid_search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
                      model: Optional[str] = None, alpha: Optional[float] = None, fusion: Optional[str] = None,
                      filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> List[Dict[str, Any]]:
        """Search by words and similarity; hits with ``key``, ``score``, ``bm25`` and ``similarity``."""
        return (await self._reply(BUILD.hybrid_search(  # type: ignore[no-any-return]
            query, top_k, offset=offset, model=model, alpha=alpha, fusion=fusion, filter=filter, **fields)))["result"]

    async def create_index(self, field: str, kind: str = "value", *, dim: Optional[int] = None, metric: Optional[str] = None,
                     analyzer: Optional[str] = None) -> None:
        """Makes an index of kind ``value``, ``text`` or ``vector``; the same definition again is accepted."""
        await self._reply(BUILD.create_index(field, kind, dim=dim, metric=metric, analyzer=analyzer))

    async def list_indexes(self) -> Any:
        """Name, kind, state, progress, entries and bytes of every index."""
        return (await self._reply(BUILD.list_indexes()))["result"]

    async def drop_index(self, field: str, kind: Optional[str] = None) -> bool:
        """Removes an index; False when there was none."""
        return (await self._reply(BUILD.drop_index(field, kind)))["result"]  # type: ignore[no-any-return]

    async def info(self) -> Dict[str, Any]:
        """Version, uptime, memory, keys, per-shard counts, log and snapshot figures."""
        return (await self._reply(BUILD.info()))["result"]  # type: ignore[no-any-return]

    async def cluster(self) -> Dict[str, Any]:
        """Nodes and groups of the cluster."""
        return (await self._reply(BUILD.cluster()))["result"]  # type: ignore[no-any-return]

    async def snapshot(self) -> Any:
        """Writes a snapshot of every shard now."""
        return (await self._reply(BUILD.snapshot()))["result"]

    async def add_node(self, node: str, address: Optional[str] = None, **fields: Any) -> Any:
        """Makes a node a member of the cluster: ``ID@HOST:PORT[:CLUSTER_PORT]``, or an id and the address apart."""
        return (await self._reply(BUILD.add_node(node, address, **fields)))["result"]

    async def remove_node(self, node: str, **fields: Any) -> Any:
        """Takes a node out of the cluster."""
        return (await self._reply(BUILD.remove_node(node, **fields)))["result"]

    async def transfer_leader(self, node: str, shard: Optional[int] = None, **fields: Any) -> Any:
        """Makes a node the preferred leader of one shard, or without ``shard`` of everything."""
        return (await self._reply(BUILD.transfer_leader(node, shard, **fields)))["result"]

    async def balance(self, **fields: Any) -> Any:
        """Spreads leaders evenly over the nodes again: no node is preferred any more."""
        return (await self._reply(BUILD.balance(**fields)))["result"]

    async def shutdown(self) -> Any:
        """Asks the server to stop: it drains, syncs and exits."""
        return (await self._reply(BUILD.shutdown()))["result"]

    async def scan(self, prefix: Optional[str] = None, *, page: Optional[int] = None, **fields: Any) -> AsyncIterator[str]:
        """Every key, or those that begin with a prefix, in no order; pages are fetched as needed."""
        cursor: Optional[str] = None
        while True:
            result = (await self._reply(BUILD.scan(prefix, cursor=cursor, limit=page, **fields)))["result"]
            for key in result["keys"]:
                yield key
            cursor = result.get("cursor")
            if cursor is None:
                return

    async def query_index(self, field: str, *equal: Any, page: Optional[int] = None, **conditions: Any) -> AsyncIterator[Any]:
        """Keys whose value at a field meets a condition: a value to be equal to, or ``gt``, ``gte``, ``lt``, ``lte``, ``prefix``.

        With ``with_values=True``: dicts with ``key`` and ``value``. Pages are fetched as needed.
        """
        cursor: Optional[str] = None
        while True:
            reply = await self._reply(BUILD.query_index(field, *equal, limit=page, cursor=cursor, **conditions))
            for found in reply["result"]:
                yield found
            cursor = reply.get("cursor")
            if cursor is None:
                return
