"""The synchronous client: typed methods, pipelines, and iteration over pages.

A client may be shared by threads: one call runs at a time. For calls side by side use ``stranddb.Pool``.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, Union

from .commands import BUILD, Commands, Items
from .engine import Engine, Options, Outcome
from .errors import ConflictError, StrandError, error_of
from .session import Reply, Request
from .transport import drive

Addresses = Union[str, Sequence[str]]


def address_list(addresses: Addresses, port: Optional[int] = None) -> List[str]:
    """``"host:port"``, several with commas between, a list of them, or host and port apart."""
    if port is not None:
        if not isinstance(addresses, str):
            raise TypeError("a port goes with one host")
        return [f"[{addresses}]:{port}" if ":" in addresses else f"{addresses}:{port}"]
    if isinstance(addresses, str):
        return [address.strip() for address in addresses.split(",")]
    return list(addresses)


def result_of(outcome: Outcome) -> Reply:
    """The reply of a success; raises what is none."""
    if isinstance(outcome, StrandError):
        raise outcome
    if outcome["status"] != "success":
        raise error_of(outcome)
    return outcome


class Connection:
    """What every synchronous client has: an engine, a lock, and a way to close."""

    def __init__(self, addresses: Addresses, port: Optional[int] = None, options: Optional[Options] = None) -> None:
        self._engine = Engine(address_list(addresses, port), options or Options())
        self._lock = threading.RLock()

    def _run(self, requests: Sequence[Request], timeout: Optional[float] = None) -> List[Outcome]:
        with self._lock:
            return drive(self._engine.run(requests, timeout))

    def _outcome(self, request: Request) -> Outcome:
        return self._run([request])[0]

    def connect(self) -> None:
        """Connects to the first address that answers; otherwise the first command does."""
        engine = self._engine
        with self._lock:
            deadline = time.monotonic() + engine.options.connect_timeout * len(engine.seeds)
            drive(engine.ready(engine.primary, deadline))

    @property
    def client_id(self) -> str:
        """The id that this client's writes carry, unique per instance."""
        return self._engine.sequencer.client

    @property
    def address(self) -> str:
        """The address that unrouted commands go to."""
        return self._engine.primary

    def is_healthy(self) -> bool:
        """Whether the connection is open and nothing unexpected waits on it. Sends nothing."""
        link: Any = self._engine.links.get(self._engine.primary)
        return link is not None and link.is_healthy()

    def close(self) -> None:
        """Closes the connections. A later command opens them again."""
        with self._lock:
            self._engine.close()

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()


class Pipeline(Commands[int]):
    """Commands that queue up and travel together; every method gives the position of its outcome.

    Leaving a ``with`` block sends what is queued. ``results`` then holds one result a command, and raises the first
    error; ``outcomes`` holds replies and errors as they are.
    """

    def __init__(self, connection: Connection, timeout: Optional[float] = None) -> None:
        self._connection = connection
        self._requests: List[Request] = []
        self._timeout = timeout
        self.outcomes: List[Outcome] = []

    def _send(self, request: Request) -> int:
        self._requests.append(request)
        return len(self._requests) - 1

    def __len__(self) -> int:
        return len(self._requests)

    def execute(self) -> List[Outcome]:
        """Sends what is queued and gives one outcome a command: a reply (also an error reply) or an error."""
        requests, self._requests = self._requests, []
        self.outcomes = self._connection._run(requests, self._timeout)
        return self.outcomes

    @property
    def results(self) -> List[Any]:
        """One result a command; raises the first error."""
        return [result_of(outcome).get("result") for outcome in self.outcomes]

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if kind is None:
            self.execute()


class Client(Connection):
    """A client of one server, or of one cluster through several addresses.

    >>> client = Client("127.0.0.1:8000")             # doctest: +SKIP
    >>> client.set("user:1", {"name": "Ada"})         # doctest: +SKIP
    >>> client.get("user:1")["name"]                  # doctest: +SKIP
    'Ada'
    """

    def __init__(self, addresses: Addresses = "127.0.0.1:8000", port: Optional[int] = None,
                 options: Optional[Options] = None) -> None:
        super().__init__(addresses, port, options)
        self.connect()

    def __enter__(self) -> "Client":
        return self

    def pipeline(self, timeout: Optional[float] = None) -> Pipeline:
        """Starts a pipeline; the timeout, in seconds, is for all of it."""
        return Pipeline(self, timeout)

    def send_command(self, command: Dict[str, Any]) -> Reply:
        """Any command, given as a dict with a member ``command``; gives the whole reply, an error reply too."""
        request = Request.of(command)
        ident = None
        if not self._engine.options.ordered:
            ident = request.members.pop("id", None)
        outcome = self._outcome(request)
        if isinstance(outcome, StrandError):
            raise outcome
        return outcome if ident is None else {"id": ident, **outcome}

    def _reply(self, request: Request) -> Reply:
        return result_of(self._outcome(request))

    # One method a command. The asyncio client has the same ones.
    # --- methods ---
    def ping(self) -> str:
        """Gives ``"PONG"``."""
        return self._reply(BUILD.ping())["result"]  # type: ignore[no-any-return]

    def hello(self) -> Dict[str, Any]:
        """Versions, limits, mode and capabilities of the server. Changes nothing on the connection."""
        return self._reply(Request("HELLO", self._engine.hello_members()))["result"]  # type: ignore[no-any-return]

    def set(self, key: str, value: Any, *, ttl_ms: Optional[int] = None, condition: Optional[Mapping[str, Any]] = None,
            durability: Optional[str] = None, with_version: bool = False, **fields: Any) -> Optional[str]:
        """Stores a value; gives the new version when asked for. A condition that is not met raises ConflictError."""
        reply = self._reply(BUILD.set(key, value, ttl_ms=ttl_ms, condition=condition, durability=durability,
                                      with_version=with_version or None, **fields))
        return reply.get("version")

    def set_if_absent(self, key: str, value: Any, **fields: Any) -> bool:
        """Stores a value if the key does not exist; False when it does."""
        try:
            self._reply(BUILD.set(key, value, condition={"absent": True}, **fields))
        except ConflictError:
            return False
        return True

    def get(self, key: str, default: Any = None, *, consistency: Optional[str] = None, **fields: Any) -> Any:
        """The value of a key, or the default when the key does not exist."""
        reply = self._reply(BUILD.get(key, consistency=consistency, **fields))
        return reply.get("result") if reply.get("found", True) else default

    def get_versioned(self, key: str, **fields: Any) -> Optional[Tuple[Any, str]]:
        """The value of a key and its version, or None."""
        reply = self._reply(BUILD.get(key, with_version=True, **fields))
        return (reply.get("result"), reply["version"]) if reply.get("found", True) else None

    def delete(self, key: str, *, condition: Optional[Mapping[str, Any]] = None, **fields: Any) -> bool:
        """Removes a key; True if it existed."""
        return self._reply(BUILD.delete(key, condition=condition, **fields))["result"]  # type: ignore[no-any-return]

    def exists(self, key: str, **fields: Any) -> bool:
        """Whether a key exists."""
        return self._reply(BUILD.exists(key, **fields))["result"]  # type: ignore[no-any-return]

    def incr(self, key: str, amount: int = 1, **fields: Any) -> int:
        """Adds to an integer, which counts as 0 when absent; gives the new one."""
        return self._reply(BUILD.incr(key, amount, **fields))["result"]  # type: ignore[no-any-return]

    def bulk_set(self, items: Items, **fields: Any) -> int:
        """Stores a mapping or pairs, all or none; gives the number of distinct keys."""
        return self._reply(BUILD.bulk_set(items, **fields))["result"]  # type: ignore[no-any-return]

    def bulk_get(self, keys: Iterable[str], **fields: Any) -> Dict[str, Any]:
        """The values of many keys, one consistent snapshot; None for a key that does not exist."""
        return self._reply(BUILD.bulk_get(keys, **fields))["result"]  # type: ignore[no-any-return]

    def bulk_delete(self, keys: Iterable[str], **fields: Any) -> int:
        """Removes many keys, all or none; gives the number that existed."""
        return self._reply(BUILD.bulk_delete(keys, **fields))["result"]  # type: ignore[no-any-return]

    def expire(self, key: str, ttl_ms: int, **fields: Any) -> bool:
        """Lets a key expire after this many milliseconds; False when it does not exist."""
        return self._reply(BUILD.expire(key, ttl_ms, **fields))["result"]  # type: ignore[no-any-return]

    def ttl(self, key: str, **fields: Any) -> int:
        """Milliseconds left; -1 without expiry, -2 when the key does not exist."""
        return self._reply(BUILD.ttl(key, **fields))["result"]  # type: ignore[no-any-return]

    def persist(self, key: str, **fields: Any) -> bool:
        """Takes the expiry off a key; False when it had none."""
        return self._reply(BUILD.persist(key, **fields))["result"]  # type: ignore[no-any-return]

    def delete_prefix(self, prefix: str, **fields: Any) -> int:
        """Removes every key that begins with a prefix, in slices and not atomically; gives the number."""
        return self._reply(BUILD.delete_prefix(prefix, **fields))["result"]  # type: ignore[no-any-return]

    def search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
               fields: Optional[Sequence[str]] = None, filter: Optional[Mapping[str, Any]] = None,
               with_values: Optional[bool] = None, highlight: Optional[bool] = None, **more: Any) -> List[Dict[str, Any]]:
        """Full-text search by BM25; hits with ``key`` and ``score``, best first."""
        return self._reply(BUILD.search(  # type: ignore[no-any-return]
            query, top_k, offset=offset, fields=fields, filter=filter, with_values=with_values, highlight=highlight,
            **more))["result"]

    def semantic_search(self, query: Optional[str] = None, top_k: Optional[int] = None, *,
                        vector: Optional[Sequence[float]] = None, model: Optional[str] = None,
                        filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> List[Dict[str, Any]]:
        """Search by similarity to a text or a vector; hits with ``key`` and ``similarity``."""
        return self._reply(BUILD.semantic_search(  # type: ignore[no-any-return]
            query, top_k, vector=vector, model=model, filter=filter, **fields))["result"]

    def hybrid_search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
                      model: Optional[str] = None, alpha: Optional[float] = None, fusion: Optional[str] = None,
                      filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> List[Dict[str, Any]]:
        """Search by words and similarity; hits with ``key``, ``score``, ``bm25`` and ``similarity``."""
        return self._reply(BUILD.hybrid_search(  # type: ignore[no-any-return]
            query, top_k, offset=offset, model=model, alpha=alpha, fusion=fusion, filter=filter, **fields))["result"]

    def create_index(self, field: str, kind: str = "value", *, dim: Optional[int] = None, metric: Optional[str] = None,
                     analyzer: Optional[str] = None) -> None:
        """Makes an index of kind ``value``, ``text`` or ``vector``; the same definition again is accepted."""
        self._reply(BUILD.create_index(field, kind, dim=dim, metric=metric, analyzer=analyzer))

    def list_indexes(self) -> Any:
        """Name, kind, state, progress, entries and bytes of every index."""
        return self._reply(BUILD.list_indexes())["result"]

    def drop_index(self, field: str, kind: Optional[str] = None) -> bool:
        """Removes an index; False when there was none."""
        return self._reply(BUILD.drop_index(field, kind))["result"]  # type: ignore[no-any-return]

    def info(self) -> Dict[str, Any]:
        """Version, uptime, memory, keys, per-shard counts, log and snapshot figures."""
        return self._reply(BUILD.info())["result"]  # type: ignore[no-any-return]

    def cluster(self) -> Dict[str, Any]:
        """Nodes and groups of the cluster."""
        return self._reply(BUILD.cluster())["result"]  # type: ignore[no-any-return]

    def snapshot(self) -> Any:
        """Writes a snapshot of every shard now."""
        return self._reply(BUILD.snapshot())["result"]

    def add_node(self, node: str, address: Optional[str] = None, **fields: Any) -> Any:
        """Makes a node a member of the cluster: ``ID@HOST:PORT[:CLUSTER_PORT]``, or an id and the address apart."""
        return self._reply(BUILD.add_node(node, address, **fields))["result"]

    def remove_node(self, node: str, **fields: Any) -> Any:
        """Takes a node out of the cluster."""
        return self._reply(BUILD.remove_node(node, **fields))["result"]

    def transfer_leader(self, node: str, shard: Optional[int] = None, **fields: Any) -> Any:
        """Makes a node the preferred leader of one shard, or without ``shard`` of everything."""
        return self._reply(BUILD.transfer_leader(node, shard, **fields))["result"]

    def balance(self, **fields: Any) -> Any:
        """Spreads leaders evenly over the nodes again: no node is preferred any more."""
        return self._reply(BUILD.balance(**fields))["result"]

    def shutdown(self) -> Any:
        """Asks the server to stop: it drains, syncs and exits."""
        return self._reply(BUILD.shutdown())["result"]

    def scan(self, prefix: Optional[str] = None, *, page: Optional[int] = None, **fields: Any) -> Iterator[str]:
        """Every key, or those that begin with a prefix, in no order; pages are fetched as needed."""
        cursor: Optional[str] = None
        while True:
            result = self._reply(BUILD.scan(prefix, cursor=cursor, limit=page, **fields))["result"]
            for key in result["keys"]:
                yield key
            cursor = result.get("cursor")
            if cursor is None:
                return

    def query_index(self, field: str, *equal: Any, page: Optional[int] = None, **conditions: Any) -> Iterator[Any]:
        """Keys whose value at a field meets a condition: a value to be equal to, or ``gt``, ``gte``, ``lt``, ``lte``, ``prefix``.

        With ``with_values=True``: dicts with ``key`` and ``value``. Pages are fetched as needed.
        """
        cursor: Optional[str] = None
        while True:
            reply = self._reply(BUILD.query_index(field, *equal, limit=page, cursor=cursor, **conditions))
            for found in reply["result"]:
                yield found
            cursor = reply.get("cursor")
            if cursor is None:
                return
