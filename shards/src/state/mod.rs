//! The replicated state of one shard: the key space and the retry sessions.
