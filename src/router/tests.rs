//! From a JSON line to a JSON reply, over real sockets, links and shards.
