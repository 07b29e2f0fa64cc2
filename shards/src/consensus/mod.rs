//! Consensus of one group through raft-rs: what is appended, what is committed, who leads.
//!
//! The write-ahead log is the Raft log. This room turns proposals into appends and durable appends into committed
//! entries; it never looks into an entry and never touches the disk.

pub mod group;
pub mod storage;
