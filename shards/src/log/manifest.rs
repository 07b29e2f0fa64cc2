//! What is known about a log outside its segments: two blocks in a file beside them, written in turns.
//!
//! A segment that is gone cannot say so. The manifest lists the segments of the log and is durable before anything in a new one
//! is acknowledged, so that a missing file is noticed; it also counts the epoch of record versions, which rises at
//! every start. A block, integers little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `STRNDMAN` |
//! | 8 | 2 | format, 1 |
//! | 10 | 2 | number of segments listed, at most [`LISTED_MAX`] |
//! | 12 | 4 | shard |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | log key |
//! | 40 | 8 | generation: rises by one with every write, and says which block it goes to |
//! | 48 | 4 | epoch of the versions that this run gives |
//! | 52 | 4 | zero |
//! | 56 | 8 | durable_upto: every sequence up to it was durable when this was written |
//! | 64 | 16 n | segments: id u64, epoch u64; oldest first |
//! | | | zeros |
//! | 4092 | 4 | CRC32C of bytes 0 to 4091 |
//!
//! The sound block of the higher generation counts. A torn write spoils the other block only, and nothing that depends on
//! it was acknowledged. At a start both blocks are written with the new epoch before the shard serves, so that the loss of
//! either block loses no epoch. This file must not read or write a file.

use super::header::BLOCK_BYTES;
use super::{LogIdentity, SegmentEpoch, SegmentId};
use crate::ids::Sequence;
use std::fmt;

/// Length of the file: two blocks.
pub const MANIFEST_BYTES: usize = 2 * BLOCK_BYTES;
/// Segments that a manifest lists, the newest ones. More than can have a write in flight at once: whatever is older is
/// stated to be durable in the segments themselves.
pub const LISTED_MAX: usize = 240;
/// The format this code writes.
pub const FORMAT: u16 = 1;

const MAGIC: [u8; 8] = *b"STRNDMAN";
const FORMAT_AT: usize = MAGIC.len();
const LISTED: usize = FORMAT_AT + 2;
const SHARD: usize = LISTED + 2;
const CLUSTER: usize = SHARD + 4;
const KEY: usize = CLUSTER + 16;
const GENERATION: usize = KEY + 8;
const EPOCH: usize = GENERATION + 8;
const ZERO: usize = EPOCH + 4;
const DURABLE_UPTO: usize = ZERO + 4;
const SEGMENTS: usize = DURABLE_UPTO + 8;
const SEGMENT_BYTES: usize = 16;
const CRC: usize = BLOCK_BYTES - 4;
const _: () = assert!(SEGMENTS == 64 && SEGMENTS + LISTED_MAX * SEGMENT_BYTES <= CRC);

/// A segment of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedSegment {
    /// The file.
    pub segment: SegmentId,
    /// Its life.
    pub epoch: SegmentEpoch,
}

/// What the manifest of a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose log it is.
    pub identity: LogIdentity,
    /// How often it was written.
    pub generation: u64,
    /// Epoch of the versions that the newest run gives or gave.
    pub epoch: u32,
    /// Every sequence up to this one was durable.
    pub durable_upto: Sequence,
    /// The newest segments of the log, oldest first. One that is not here any more although nothing states that it is no
    /// longer needed was removed by somebody else.
    pub segments: Vec<ListedSegment>,
}

/// Why a manifest cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// The file does not have two blocks; this is its length in bytes.
    Length(u64),
    /// Neither block is sound.
    Damaged,
    /// It belongs to the log of another cluster, data directory or shard.
    Foreign,
    /// It has a format that this version does not know.
    NewerFormat(u16),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(bytes) => {
                write!(f, "at byte {bytes}: the file ends, yet a manifest has {MANIFEST_BYTES} bytes")
            }
            Self::Damaged => f.write_str("at byte 0: neither of its two blocks matches its checksum"),
            Self::Foreign => f.write_str("it belongs to another data directory or shard"),
            Self::NewerFormat(format) => {
                write!(f, "it has manifest format {format}; this version knows {FORMAT}")
            }
        }
    }
}

impl Manifest {
    /// The manifest of a log without a batch, whose next run has an epoch above `epoch`.
    pub fn blank(identity: LogIdentity, epoch: u32) -> Self {
        Self { identity, generation: 0, epoch, durable_upto: Sequence(0), segments: Vec::new() }
    }

    /// No segment before this epoch is needed, or 0 where that is not known: the log has no segment, or more than are listed.
    pub fn oldest_epoch(&self) -> SegmentEpoch {
        let first = self.segments.first().filter(|_| self.segments.len() < LISTED_MAX);
        first.map_or(SegmentEpoch(0), |listed| listed.epoch)
    }

    /// Where in the file this generation stands, in bytes.
    pub fn offset(&self) -> u64 {
        (self.generation % 2) * BLOCK_BYTES as u64
    }

    /// Goes on to the next generation, with what is known now. Only the newest [`LISTED_MAX`] segments are kept.
    pub fn advance(&mut self, durable_upto: Sequence, live: impl ExactSizeIterator<Item = ListedSegment>) {
        assert!(durable_upto >= self.durable_upto, "what was durable stays so");
        self.generation += 1;
        self.durable_upto = durable_upto;
        self.segments.clear();
        let passed_over = live.len().saturating_sub(LISTED_MAX);
        self.segments.extend(live.skip(passed_over));
    }

    /// Writes the block of this generation into `out`, which has [`BLOCK_BYTES`] bytes.
    pub fn encode(&self, out: &mut [u8]) {
        assert!(out.len() == BLOCK_BYTES && self.segments.len() <= LISTED_MAX, "a manifest is one block");
        out.fill(0);
        out[..FORMAT_AT].copy_from_slice(&MAGIC);
        put(out, FORMAT_AT, FORMAT.to_le_bytes());
        put(out, LISTED, (self.segments.len() as u16).to_le_bytes());
        put(out, SHARD, self.identity.shard.to_le_bytes());
        put(out, CLUSTER, self.identity.cluster.to_le_bytes());
        put(out, KEY, self.identity.key.to_le_bytes());
        put(out, GENERATION, self.generation.to_le_bytes());
        put(out, EPOCH, self.epoch.to_le_bytes());
        put(out, DURABLE_UPTO, self.durable_upto.0.to_le_bytes());
        for (place, listed) in self.segments.iter().enumerate() {
            let at = SEGMENTS + place * SEGMENT_BYTES;
            put(out, at, listed.segment.0.to_le_bytes());
            put(out, at + 8, listed.epoch.0.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..CRC]);
        put(out, CRC, crc.to_le_bytes());
    }

    /// The whole file with this generation and nothing in the other block.
    pub fn first_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MANIFEST_BYTES];
        let at = self.offset() as usize;
        self.encode(&mut bytes[at..at + BLOCK_BYTES]);
        bytes
    }

    /// Reads the file: the newest sound block of the log `identity`.
    pub fn decode(bytes: &[u8], identity: &LogIdentity) -> Result<Self, ManifestError> {
        if bytes.len() != MANIFEST_BYTES {
            return Err(ManifestError::Length(bytes.len() as u64));
        }
        let (first, second) = bytes.split_at(BLOCK_BYTES);
        let blocks = [decode_block(first, 0, identity), decode_block(second, 1, identity)];
        if let Some(error) =
            blocks.iter().find_map(|block| block.as_ref().err().filter(|e| **e != ManifestError::Damaged))
        {
            return Err(*error);
        }
        let newest = blocks.into_iter().filter_map(Result::ok).max_by_key(|manifest| manifest.generation);
        newest.ok_or(ManifestError::Damaged)
    }
}

fn decode_block(block: &[u8], parity: u64, identity: &LogIdentity) -> Result<Manifest, ManifestError> {
    let crc = u32::from_le_bytes(get(block, CRC));
    if block[..FORMAT_AT] != MAGIC || crc32c::crc32c(&block[..CRC]) != crc {
        return Err(ManifestError::Damaged);
    }
    let format = u16::from_le_bytes(get(block, FORMAT_AT));
    if format != FORMAT {
        return Err(ManifestError::NewerFormat(format));
    }
    let found = LogIdentity {
        cluster: u128::from_le_bytes(get(block, CLUSTER)),
        key: u64::from_le_bytes(get(block, KEY)),
        shard: u32::from_le_bytes(get(block, SHARD)),
    };
    if found != *identity {
        return Err(ManifestError::Foreign);
    }
    let generation = u64::from_le_bytes(get(block, GENERATION));
    let listed = usize::from(u16::from_le_bytes(get(block, LISTED)));
    if listed > LISTED_MAX || generation % 2 != parity {
        return Err(ManifestError::Damaged);
    }
    let at = |place: usize| SEGMENTS + place * SEGMENT_BYTES;
    let segment = |place| ListedSegment {
        segment: SegmentId(u64::from_le_bytes(get(block, at(place)))),
        epoch: SegmentEpoch(u64::from_le_bytes(get(block, at(place) + 8))),
    };
    Ok(Manifest {
        identity: found,
        generation,
        epoch: u32::from_le_bytes(get(block, EPOCH)),
        durable_upto: Sequence(u64::from_le_bytes(get(block, DURABLE_UPTO))),
        segments: (0..listed).map(segment).collect(),
    })
}

fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("every field lies inside the block")
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: LogIdentity = LogIdentity { cluster: 0x0102, key: 0x0304, shard: 5 };

    fn sample(generation: u64, listed: u64) -> Manifest {
        let segments =
            (0..listed).map(|n| ListedSegment { segment: SegmentId(n + 1), epoch: SegmentEpoch(n + 7) });
        Manifest {
            identity: IDENTITY,
            generation,
            epoch: 9,
            durable_upto: Sequence(11),
            segments: segments.collect(),
        }
    }

    fn file(first: Option<&Manifest>, second: Option<&Manifest>) -> Vec<u8> {
        let mut bytes = vec![0; MANIFEST_BYTES];
        for manifest in [first, second].into_iter().flatten() {
            let at = manifest.offset() as usize;
            manifest.encode(&mut bytes[at..at + BLOCK_BYTES]);
        }
        bytes
    }

    #[test]
    fn the_newest_block_counts_and_survives_its_bytes() {
        for listed in [0, 1, LISTED_MAX as u64] {
            let (older, newer) = (sample(6, 2), sample(7, listed));
            assert_eq!(Manifest::decode(&file(Some(&older), Some(&newer)), &IDENTITY), Ok(newer.clone()));
            assert_eq!(Manifest::decode(&newer.first_bytes(), &IDENTITY), Ok(newer));
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample(7, 1).first_bytes();
        let hex = |range: std::ops::Range<usize>| -> String {
            bytes[BLOCK_BYTES..][range].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let golden = concat!(
            "5354524e444d414e",
            "0100",
            "0100",
            "05000000",
            "02010000000000000000000000000000",
            "0403000000000000",
            "0700000000000000",
            "09000000",
            "00000000",
            "0b00000000000000",
            "0100000000000000",
            "0700000000000000",
            "00000000"
        );
        assert_eq!(hex(0..84), golden);
        assert_eq!(hex(CRC..BLOCK_BYTES), "5425f5c7");
    }

    #[test]
    fn a_flipped_bit_leaves_the_other_block_and_two_leave_nothing() {
        let (older, newer) = (sample(6, 2), sample(7, 3));
        let whole = file(Some(&older), Some(&newer));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit / 8 < BLOCK_BYTES { &newer } else { &older };
            assert_eq!(Manifest::decode(&bytes, &IDENTITY).as_ref(), Ok(expected), "bit {bit}");
        }
        let mut bytes = whole.clone();
        bytes[100] ^= 1;
        bytes[BLOCK_BYTES + 200] ^= 1;
        assert_eq!(Manifest::decode(&bytes, &IDENTITY), Err(ManifestError::Damaged));
        for length in [0, 1, BLOCK_BYTES, MANIFEST_BYTES - 1] {
            assert_eq!(
                Manifest::decode(&whole[..length], &IDENTITY),
                Err(ManifestError::Length(length as u64))
            );
        }
    }

    #[test]
    fn others_and_later_ones_are_refused() {
        let bytes = file(Some(&sample(6, 2)), None);
        let other = LogIdentity { shard: 6, ..IDENTITY };
        assert_eq!(Manifest::decode(&bytes, &other), Err(ManifestError::Foreign));
        let mut later = bytes;
        later[FORMAT_AT] = 2;
        let crc = crc32c::crc32c(&later[..CRC]);
        later[CRC..BLOCK_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&later, &IDENTITY), Err(ManifestError::NewerFormat(2)));
    }

    #[test]
    fn a_long_log_lists_its_newest_segments() {
        let mut manifest = sample(1, 0);
        let live = sample(0, LISTED_MAX as u64);
        let mut segments = live.segments.clone();
        segments.push(ListedSegment { segment: SegmentId(900), epoch: SegmentEpoch(900) });
        manifest.advance(Sequence(12), segments.iter().copied());
        assert_eq!((manifest.generation, manifest.durable_upto), (2, Sequence(12)));
        assert_eq!(manifest.segments, segments[1..]);
    }
}
