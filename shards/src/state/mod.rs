//! The replicated state of one shard: the key space and the retry sessions.
//!
//! Both change only by what is applied from the log, so replicas that applied the same entries hold equal content. How
//! records are laid out in memory (tables, blocks, garbage) is private and may differ between replicas; [`digest`]s,
//! scans and snapshots never show it. Nothing here reads a clock, judges an expiry or writes a byte outside memory.

mod blocks;
mod cut;
pub mod digest;
pub mod keyspace;
pub mod record;
mod scan;
mod session_cut;
pub mod sessions;
mod table;

#[cfg(test)]
pub(crate) mod model_tests;

pub use cut::CutTotals;
pub use digest::{Digest, SessionDigest};
pub use keyspace::{KeySpace, TableLimits};
pub use record::{Content, Record, RecordFlags};
pub use scan::{OverduePage, Position, ScanPage};
pub use session_cut::SessionTotals;
pub use sessions::{Check, Refusal, Reply, SessionLimits, Sessions};

/// Everything of one group that lives in memory and in snapshots, apart from what other modules keep beside it.
#[derive(Debug, Default)]
pub struct State {
    /// The records.
    pub keys: KeySpace,
    /// The replies remembered for retries.
    pub sessions: Sessions,
}
