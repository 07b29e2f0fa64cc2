"""A method per command that builds its request; what becomes of the request is up to the subclass.

Fields left out (``None``) are not sent. ``**fields`` passes on any further field of the protocol, such as ``timeout_ms``.
Holds no connection.
"""

from __future__ import annotations

from typing import Any, Dict, Generic, Iterable, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from .session import Request

R = TypeVar("R")
Items = Union[Mapping[str, Any], Iterable[Tuple[str, Any]], Iterable[Mapping[str, Any]]]


def request(command: str, members: Dict[str, Any], fields: Dict[str, Any]) -> Request:
    """A request of what is not None, in which ``condition`` is the protocol's ``if``. A value may be None."""
    merged = {name: value for name, value in {**members, **fields}.items() if value is not None or name == "value"}
    if "condition" in merged:
        merged["if"] = merged.pop("condition")
    return Request(command, merged)


class Commands(Generic[R]):
    """Every command of the protocol."""

    def _send(self, request: Request) -> R:
        raise NotImplementedError

    def send_command(self, command: Dict[str, Any]) -> R:
        """Any command, given as a dict with a member ``command``."""
        return self._send(Request.of(command))

    def ping(self, **fields: Any) -> R:
        return self._send(request("PING", {}, fields))

    def set(self, key: str, value: Any, *, ttl_ms: Optional[int] = None, condition: Optional[Mapping[str, Any]] = None,
            durability: Optional[str] = None, with_version: Optional[bool] = None, **fields: Any) -> R:
        """Stores a value; ``condition`` is ``{"absent": True}``, ``{"present": True}``, ``{"version": V}`` or ``{"value": X}``."""
        members = {"key": key, "value": value, "ttl_ms": ttl_ms, "condition": condition, "durability": durability,
                   "with_version": with_version}
        return self._send(request("SET", members, fields))

    def get(self, key: str, *, consistency: Optional[str] = None, with_version: Optional[bool] = None, **fields: Any) -> R:
        members = {"key": key, "consistency": consistency, "with_version": with_version}
        return self._send(request("GET", members, fields))

    def delete(self, key: str, *, condition: Optional[Mapping[str, Any]] = None, **fields: Any) -> R:
        return self._send(request("DELETE", {"key": key, "condition": condition}, fields))

    def exists(self, key: str, **fields: Any) -> R:
        return self._send(request("EXISTS", {"key": key}, fields))

    def incr(self, key: str, amount: int = 1, **fields: Any) -> R:
        return self._send(request("INCR", {"key": key, "amount": amount}, fields))

    def bulk_set(self, items: Items, **fields: Any) -> R:
        """Stores a mapping, pairs, or dicts with ``key`` and ``value``; all or none."""
        plain = dict(items) if isinstance(items, Mapping) else list(items)
        return self._send(request("BULK_SET", {"items": plain}, fields))

    def bulk_get(self, keys: Iterable[str], **fields: Any) -> R:
        return self._send(request("BULK_GET", {"keys": list(keys)}, fields))

    def bulk_delete(self, keys: Iterable[str], **fields: Any) -> R:
        return self._send(request("BULK_DELETE", {"keys": list(keys)}, fields))

    def expire(self, key: str, ttl_ms: int, **fields: Any) -> R:
        return self._send(request("EXPIRE", {"key": key, "ttl_ms": ttl_ms}, fields))

    def ttl(self, key: str, **fields: Any) -> R:
        return self._send(request("TTL", {"key": key}, fields))

    def persist(self, key: str, **fields: Any) -> R:
        return self._send(request("PERSIST", {"key": key}, fields))

    def scan(self, prefix: Optional[str] = None, *, cursor: Optional[str] = None, limit: Optional[int] = None,
             with_values: Optional[bool] = None, **fields: Any) -> R:
        """One page of keys."""
        members = {"prefix": prefix, "cursor": cursor, "limit": limit, "with_values": with_values}
        return self._send(request("SCAN", members, fields))

    def delete_prefix(self, prefix: str, **fields: Any) -> R:
        return self._send(request("DELETE_PREFIX", {"prefix": prefix}, fields))

    def search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
               fields: Optional[Sequence[str]] = None, filter: Optional[Mapping[str, Any]] = None,
               with_values: Optional[bool] = None, highlight: Optional[bool] = None, **more: Any) -> R:
        """Full-text search; ``fields`` are the paths to search in."""
        members = {"query": query, "top_k": top_k, "offset": offset, "fields": fields, "filter": filter,
                   "with_values": with_values, "highlight": highlight}
        return self._send(request("SEARCH", members, more))

    def semantic_search(self, query: Optional[str] = None, top_k: Optional[int] = None, *,
                        vector: Optional[Sequence[float]] = None, model: Optional[str] = None,
                        filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> R:
        """Search by similarity to a text or to a vector."""
        members = {"query": query, "top_k": top_k, "model": model, "filter": filter,
                   "vector": None if vector is None else list(vector)}
        return self._send(request("SEMANTIC_SEARCH", members, fields))

    def hybrid_search(self, query: str, top_k: Optional[int] = None, *, offset: Optional[int] = None,
                      model: Optional[str] = None, alpha: Optional[float] = None, fusion: Optional[str] = None,
                      filter: Optional[Mapping[str, Any]] = None, **fields: Any) -> R:
        """Search by words and similarity together."""
        members = {"query": query, "top_k": top_k, "offset": offset, "model": model, "alpha": alpha, "fusion": fusion,
                   "filter": filter}
        return self._send(request("HYBRID_SEARCH", members, fields))

    def create_index(self, field: str, kind: Optional[str] = None, *, dim: Optional[int] = None,
                     metric: Optional[str] = None, analyzer: Optional[str] = None, **fields: Any) -> R:
        """Makes an index of kind ``value`` (default), ``text`` or ``vector``."""
        members = {"field": field, "kind": kind, "dim": dim, "metric": metric, "analyzer": analyzer}
        return self._send(request("CREATE_INDEX", members, fields))

    def query_index(self, field: str, *equal: Any, gt: Any = None, gte: Any = None, lt: Any = None, lte: Any = None,
                    prefix: Optional[str] = None, limit: Optional[int] = None, cursor: Optional[str] = None,
                    order: Optional[str] = None, with_values: Optional[bool] = None, **fields: Any) -> R:
        """One page of keys: ``query_index(field, value)`` (or ``value=``) for equality, else a range or a prefix."""
        if len(equal) > 1:
            raise TypeError("query_index takes at most one value to be equal to")
        members = {"field": field, "gt": gt, "gte": gte, "lt": lt, "lte": lte, "prefix": prefix, "limit": limit,
                   "cursor": cursor, "order": order, "with_values": with_values}
        if equal:
            members["value"] = equal[0]
        return self._send(request("QUERY_INDEX", members, fields))

    def list_indexes(self, **fields: Any) -> R:
        return self._send(request("LIST_INDEXES", {}, fields))

    def drop_index(self, field: str, kind: Optional[str] = None, **fields: Any) -> R:
        return self._send(request("DROP_INDEX", {"field": field, "kind": kind}, fields))

    def info(self, **fields: Any) -> R:
        return self._send(request("INFO", {}, fields))

    def cluster(self, **fields: Any) -> R:
        return self._send(request("CLUSTER", {}, fields))

    def snapshot(self, **fields: Any) -> R:
        return self._send(request("SNAPSHOT", {}, fields))

    def add_node(self, node: str, address: Optional[str] = None, **fields: Any) -> R:
        """A node is ``ID@HOST:PORT[:CLUSTER_PORT]``, or an id with the address apart."""
        return self._send(request("ADD_NODE", {"node": node, "address": address}, fields))

    def remove_node(self, node: str, **fields: Any) -> R:
        return self._send(request("REMOVE_NODE", {"node": node}, fields))

    def transfer_leader(self, node: str, shard: Optional[int] = None, **fields: Any) -> R:
        return self._send(request("TRANSFER_LEADER", {"node": node, "shard": shard}, fields))

    def balance(self, **fields: Any) -> R:
        return self._send(request("BALANCE", {}, fields))

    def shutdown(self, **fields: Any) -> R:
        return self._send(request("SHUTDOWN", {}, fields))


class Builder(Commands[Request]):
    """Gives the request itself."""

    def _send(self, request: Request) -> Request:
        return request


BUILD = Builder()
COMMAND_METHODS: List[str] = sorted(name for name in vars(Commands) if not name.startswith("_"))
