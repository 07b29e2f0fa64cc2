//! Indexes over the values of one shard: full text, semantic, and by field value.
