//! What may be wrong with a snapshot, and where.

use std::fmt;

/// The first thing found wrong in a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotError {
    /// Offset in the file: of the file header, of the head or payload of the block, or of the record in it.
    pub offset: u64,
    /// What is wrong there.
    pub fault: Fault,
}

/// Kinds of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file does not begin like a snapshot.
    NotASnapshot,
    /// Written by a format this program does not know.
    UnsupportedVersion(u32),
    /// The file header's checksum does not fit its bytes.
    HeaderChecksum,
    /// The checksum of a block's head does not fit its bytes, or it is no head.
    HeadChecksum,
    /// A sound block of another file or another place.
    Misplaced,
    /// A block of a kind this format does not have.
    UnknownKind(u8),
    /// A payload longer than any block may be, in bytes.
    PayloadTooLong(u32),
    /// The checksum of a payload does not fit its bytes.
    PayloadChecksum,
    /// The payload is sound but does not say what its kind should.
    Malformed(&'static str),
    /// A key stands in the file twice.
    DuplicateKey,
    /// A client stands in the file twice.
    DuplicateClient,
    /// The file holds another number of something than the state had when it was written.
    Count {
        /// Of what.
        of: &'static str,
        /// According to the footer.
        expected: u64,
        /// In the blocks.
        found: u64,
    },
    /// The numbers are right, but the content is not what the state had.
    Digest,
    /// The file ends before its footer does.
    Truncated,
    /// Something follows the footer.
    BytesAfterFooter,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot damaged at offset {}: ", self.offset)?;
        match &self.fault {
            Fault::NotASnapshot => write!(f, "it does not begin like a snapshot"),
            Fault::UnsupportedVersion(version) => write!(f, "format version {version} is unknown"),
            Fault::HeaderChecksum => write!(f, "the file header's checksum is wrong"),
            Fault::HeadChecksum => write!(f, "a block head's checksum is wrong"),
            Fault::Misplaced => write!(f, "a block of another file or place"),
            Fault::UnknownKind(kind) => write!(f, "block kind {kind} is unknown"),
            Fault::PayloadTooLong(bytes) => write!(f, "a payload of {bytes} bytes is too long"),
            Fault::PayloadChecksum => write!(f, "a payload's checksum is wrong"),
            Fault::Malformed(what) => write!(f, "{what}"),
            Fault::DuplicateKey => write!(f, "a key stands here a second time"),
            Fault::DuplicateClient => write!(f, "a client stands here a second time"),
            Fault::Count { of, expected, found } => {
                write!(f, "{found} {of} in the file, {expected} in the state that was written")
            }
            Fault::Digest => write!(f, "the content differs from the state that was written"),
            Fault::Truncated => write!(f, "the file ends too early"),
            Fault::BytesAfterFooter => write!(f, "bytes follow the footer"),
        }
    }
}

impl std::error::Error for SnapshotError {}
