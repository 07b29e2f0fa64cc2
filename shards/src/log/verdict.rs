//! What a replay found, in words that a person understands.
//!
//! Shapes and texts only; the judgement is in `replay`.

use super::{SegmentEpoch, SegmentId};
use crate::ids::Sequence;
use std::fmt;

/// How the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// After the last batch nothing of a later one was found.
    Clean,
    /// Writing was interrupted: bytes of batches that were never acknowledged were found and left out.
    Torn {
        /// The file of the first batch left out.
        segment: SegmentId,
        /// Where in it, in bytes.
        offset: u64,
        /// What was wrong with it.
        reason: Reason,
    },
}

/// Damage to records that were durable. A replica must not vote or acknowledge with such a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The damaged file.
    pub segment: SegmentId,
    /// The first damaged batch in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub reason: Reason,
    /// How it is known that this was no interrupted write.
    pub proof: Proof,
}

/// What is wrong with the bytes at a place where a batch was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Only zeros.
    Blank,
    /// Neither zeros nor a batch.
    NotABatch,
    /// The header does not match its CRC.
    HeaderCrc,
    /// The payload does not match its CRC.
    PayloadCrc,
    /// A sound batch of an earlier life of the file, or one that was left out by an earlier recovery.
    Stale,
    /// A sound batch that does not follow the one before it.
    Chain,
    /// A sound header that says what no batch here could say.
    Field,
    /// A batch that would end beyond the file.
    Length,
    /// The segment ended although more was to come.
    End,
    /// The file does not have its fixed size; this is the size it has.
    Size(u64),
    /// The segment with this epoch is missing, or its start is unreadable.
    Missing(SegmentEpoch),
    /// Two files claim the same epoch.
    Twice(SegmentEpoch),
    /// The file is not there.
    Gone,
}

/// Why a bad batch is damage and not a torn tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Another batch states that the log was durable up to this sequence, which the bad batch would have had or preceded.
    DurableUpto(Sequence),
    /// The batch is one flipped bit away from being valid, which no interrupted write leaves behind.
    OneBit,
    /// The state of the file itself is the proof.
    File,
    /// The manifest lists the segment, and nothing states that it is no longer needed.
    Listed,
    /// The manifest says that the log was durable up to this sequence.
    ManifestUpto(Sequence),
}

/// Why a log could not be replayed.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplayError<E> {
    /// Durable records are damaged.
    Corrupt(Corruption),
    /// A file belongs to the log of another cluster, data directory or shard.
    Foreign(SegmentId),
    /// A file was written in a format that this version does not know.
    NewerFormat(SegmentId, u16),
    /// A read failed.
    Read(SegmentId, E),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("there are only zeros"),
            Self::NotABatch => f.write_str("the bytes are not a log batch"),
            Self::HeaderCrc => f.write_str("the header of the batch does not match its checksum"),
            Self::PayloadCrc => f.write_str("the payload of the batch does not match its checksum"),
            Self::Stale => f.write_str("there is only a batch from an earlier use of the file"),
            Self::Chain => f.write_str("the batch does not follow the one before it"),
            Self::Field => f.write_str("the header of the batch contradicts its place"),
            Self::Length => f.write_str("the batch would end beyond the file"),
            Self::End => f.write_str("the file ends although the log goes on"),
            Self::Size(bytes) => write!(f, "the file has {bytes} bytes, not its fixed size"),
            Self::Missing(epoch) => {
                write!(f, "segment epoch {} is missing or its start is unreadable", epoch.0)
            }
            Self::Gone => f.write_str("the file is gone"),
            Self::Twice(epoch) => write!(f, "another file claims segment epoch {} too", epoch.0),
        }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log is damaged in {} at byte {}: {}", self.segment, self.offset, self.reason)?;
        match self.proof {
            Proof::DurableUpto(sequence) => {
                write!(
                    f,
                    ", yet a later record proves that everything up to sequence {} was durable",
                    sequence.0
                )
            }
            Proof::OneBit => f.write_str(", and it is a single flipped bit away from being whole"),
            Proof::File => Ok(()),
            Proof::Listed => f.write_str(", yet the manifest lists it as a part of the log"),
            Proof::ManifestUpto(sequence) => {
                write!(f, ", yet the manifest says that everything up to sequence {} was durable", sequence.0)
            }
        }
    }
}

impl<E: fmt::Display> fmt::Display for ReplayError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(corruption) => corruption.fmt(f),
            Self::Foreign(segment) => write!(f, "{segment} belongs to another data directory or shard"),
            Self::NewerFormat(segment, format) => {
                write!(f, "{segment} has log format {format}; this version knows {}", super::header::FORMAT)
            }
            Self::Read(segment, error) => write!(f, "reading {segment} failed: {error}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for ReplayError<E> {}
