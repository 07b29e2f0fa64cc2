//! Consensus of one group through raft-rs: what is appended, what is committed, who leads, who is a member.
//!
//! The write-ahead log is the Raft log. This room turns proposals into appends and durable appends into committed
//! entries; it never looks into an entry of commands and never touches the disk.
//!
//! - [`group`]: the gate around raft-rs.
//! - [`storage`]: the part of the log that is in memory.
//! - [`membership`]: changes of the members, and their bytes.
//! - [`progress`]: what a leader knows of each follower, and who may join or go.
//! - [`election`]: when a follower stands for election.

pub mod election;
pub mod group;
pub mod membership;
pub mod progress;
pub mod storage;
