//! The snapshot file of one shard: its format, its writer and its reader, without a file in sight.
//!
//! ```text
//! file    = file header, block*, footer block
//! block   = block head (40 bytes), payload
//! payload = part of a table | some clients' sessions | part of a named section
//! ```
//!
//! [`SnapshotWriter`] turns the state into chunks of bytes in slices beside traffic, exact at the log index at which it
//! began; [`SnapshotReader`] takes the bytes in pieces of any size, checks all of them and says at which offset what is
//! wrong; [`SnapshotLoader`] makes a state of what was read, and gives it away only when everything fitted. Counts and
//! digests in the footer come from the state and are compared with what the blocks hold, so a record that never reached
//! the file is found although every checksum is right.

mod content;
mod error;
mod format;
mod load;
pub(crate) mod payload;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use content::{SessionBlock, TableBlock};
pub use error::{Fault, SnapshotError};
pub use format::{BlockCounts, Footer, SlotSet, SnapshotHeader};
pub use load::SnapshotLoader;
pub use payload::Chunk;
pub use reader::{Block, SnapshotReader};
pub use writer::{SnapshotSummary, SnapshotWriter};
