//! The write-ahead log as bytes: batch framing, placement in segments, and replay.
//!
//! A log belongs to one shard and consists of segment files of one fixed size. This module decides where each byte
//! stands and what bytes found after a crash mean; `src/disk/` performs the reads and writes. So the simulator runs the
//! same code over a fake disk. What it must not do: open a file, or trust a byte that no checksum covers.
//!
//! - [`header`]: the fixed header at the start of every batch.
//! - [`manifest`]: what is known about the log outside its segments.
//! - [`payload`]: what a batch carries, as rkyv archives.
//! - [`writer`]: where the next batch goes, and which segments a cut sets free.
//! - [`replay`]: reading a log back, and telling a torn tail from rot.

mod chain;
pub mod header;
pub mod manifest;
pub mod payload;
mod repair;
pub mod replay;
mod verdict;
mod window;
pub mod writer;

#[cfg(test)]
mod tests;

use std::fmt;

pub use verdict::{Corruption, Proof, Reason, ReplayError, Tail};
use window::PayloadWindow;

/// Names a segment file for the file's whole life, through every reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u64);

impl SegmentId {
    /// The name of the file in the shard's directory.
    pub fn file_name(self) -> String {
        format!("wal-{:08}.seg", self.0)
    }

    /// Reads what [`SegmentId::file_name`] writes; `None` for any other name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
        let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
        let id = Self(plain.then(|| digits.parse().ok()).flatten()?);
        (id.file_name() == name).then_some(id)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

/// One life of a segment file. Rises with every segment that the log begins, so it also orders them; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentEpoch(pub u64);

/// Whose log a batch belongs to. A batch of any other log is never replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster's id.
    pub cluster: u128,
    /// A random number of this data directory that never leaves the machine: clients cannot know it, so no value they
    /// store can pass for a batch.
    pub key: u64,
    /// The shard.
    pub shard: u32,
}

/// What is fixed for a log when its data directory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogShape {
    /// Whose log it is.
    pub identity: LogIdentity,
    /// Size of every segment in bytes; a multiple of [`header::BLOCK_BYTES`], at least [`SEGMENT_BYTES_MIN`].
    pub segment_bytes: u64,
}

/// The smallest segment: room for a start, one batch and a seal.
pub const SEGMENT_BYTES_MIN: u64 = 8 * header::BLOCK_BYTES as u64;
/// The largest segment; offsets in memory stay below 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The default size of a segment.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

impl LogShape {
    /// Checks the size, so that every later computation holds.
    pub fn new(identity: LogIdentity, segment_bytes: u64) -> Self {
        assert!(segment_bytes.is_multiple_of(header::BLOCK_BYTES as u64), "a segment is whole blocks");
        assert!(
            (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes),
            "a segment's size is in range"
        );
        Self { identity, segment_bytes }
    }

    /// The longest payload of a batch, in bytes: its frame stays two blocks under half a segment, so that a segment
    /// holds a start, a batch and a seal whatever their sizes.
    pub fn payload_bytes_max(&self) -> usize {
        payload_bytes_max(self.segment_bytes)
    }
}

/// [`LogShape::payload_bytes_max`] of a log with segments of this size.
pub const fn payload_bytes_max(segment_bytes: u64) -> usize {
    frame_bytes_max(segment_bytes) - header::HEADER_BYTES
}

const fn frame_bytes_max(segment_bytes: u64) -> usize {
    (segment_bytes / 2) as usize / header::BLOCK_BYTES * header::BLOCK_BYTES - 2 * header::BLOCK_BYTES
}
