//! Everything that meets the disk: the data directory, the log's ring and helper thread, the thread for snapshot files.
//!
//! The engine decides (`shards::log` says what bytes go where and what they mean, `shards::storage` which file is made,
//! synced, renamed and refused when); this module performs behind the two traits of that seam, and reports what became
//! durable. Blocking work (making segments, snapshot files) runs on helper threads, never on a shard's.

mod aligned;
pub mod data_dir;
pub mod files;
pub mod replica_dir;
mod ring;
pub mod segment;
pub mod wal;
pub mod worker;

#[cfg(test)]
pub(crate) mod tests;
