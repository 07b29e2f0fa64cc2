//! The commands of a shard: their binary form, and a file per operation that applies it and answers.
//!
//! A command reaches the shard as a [`record::Record`], which is also what the log holds. Applying is a pure function of
//! the state, the record, its version and its entry's stamp, so every replica and every replay comes to the same end. A
//! rejection after commit (a condition not met, an overflow) is a result like any other. Nothing here waits or sends.

pub mod answer;
pub mod bulk;
pub mod context;
pub mod encode;
pub mod entry;
pub mod incr;
pub mod items;
pub mod record;
pub mod write;
