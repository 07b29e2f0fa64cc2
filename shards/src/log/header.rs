//! The header of a batch: 128 bytes at the start of a 4 KiB block, integers little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `STRNDWAL` |
//! | 8 | 2 | format, 2; 1 is read too |
//! | 10 | 1 | kind: 1 entries, 2 segment start, 3 seal |
//! | 11 | 1 | zero |
//! | 12 | 4 | payload length in bytes |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | log key |
//! | 40 | 4 | shard |
//! | 44 | 4 | group ([`NO_GROUP`] in starts and seals) |
//! | 48 | 8 | segment id |
//! | 56 | 8 | segment epoch |
//! | 64 | 8 | epoch of the segment before this one, 0 for none |
//! | 72 | 8 | epoch of the oldest segment that recovery needs |
//! | 80 | 8 | offset of the batch in its file |
//! | 88 | 8 | sequence |
//! | 96 | 8 | durable_upto: every sequence up to it was durable when this was written |
//! | 104 | 4 | header CRC of the batch before |
//! | 108 | 4 | payload CRC |
//! | 112 | 8 | payload hash: xxh3_64 of what the payload CRC covers; zero in format 1 |
//! | 120 | 4 | zero |
//! | 124 | 4 | CRC32C of bytes 0 to 123 |
//!
//! The payload follows at once. Up to the next 512-byte sector it is filled with [`filler`], and the payload CRC covers
//! payload and fill: a lost last sector then differs from a written one in many bits, also where an earlier batch of the same
//! place is left in it. The payload hash is there because a CRC alone takes one torn write of 2^32 for a whole one, and one of
//! 2^32 divided by its bits, so six in a hundred of the longest, for one in which a bit has rotted. Zeros follow up to the next block and are covered by nothing. The header has a CRC of its own so that a rotten length does not hide what follows.
//! This file must not know what a payload means.

use super::{LogIdentity, SegmentEpoch, SegmentId};
use crate::ids::{GroupId, Sequence};
use xxhash_rust::xxh3::xxh3_64;

/// Batches start on multiples of this, so no block ever holds bytes of two batches.
pub const BLOCK_BYTES: usize = 4096;
/// The unit in which a disk may tear a write.
pub const SECTOR_BYTES: usize = 512;
/// Length of the header.
pub const HEADER_BYTES: usize = HEADER_CRC + 4;
/// The format this code writes.
pub const FORMAT: u16 = 2;
/// The format without a payload hash, which is read as well.
const FORMAT_WITHOUT_HASH: u16 = 1;
/// The group of batches that belong to the log and not to a group.
pub const NO_GROUP: GroupId = GroupId(u32::MAX);

const MAGIC: [u8; 8] = *b"STRNDWAL";
const FORMAT_AT: usize = MAGIC.len();
const KIND: usize = FORMAT_AT + 2;
const PAYLOAD_BYTES: usize = KIND + 2;
const CLUSTER: usize = PAYLOAD_BYTES + 4;
const KEY: usize = CLUSTER + 16;
const SHARD: usize = KEY + 8;
const GROUP: usize = SHARD + 4;
const SEGMENT: usize = GROUP + 4;
const EPOCH: usize = SEGMENT + 8;
const PREVIOUS_EPOCH: usize = EPOCH + 8;
const OLDEST_EPOCH: usize = PREVIOUS_EPOCH + 8;
const OFFSET: usize = OLDEST_EPOCH + 8;
const SEQUENCE: usize = OFFSET + 8;
const DURABLE_UPTO: usize = SEQUENCE + 8;
const PREVIOUS_CRC: usize = DURABLE_UPTO + 8;
const PAYLOAD_CRC: usize = PREVIOUS_CRC + 4;
const PAYLOAD_HASH: usize = PAYLOAD_CRC + 4;
const ZEROS: usize = PAYLOAD_HASH + 8;
const HEADER_CRC: usize = ZEROS + 4;
const _: () = assert!(HEADER_BYTES == 128 && HEADER_BYTES < SECTOR_BYTES && HEADER_BYTES.is_multiple_of(16));
const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// Log entries and hard state of one group; uses up one sequence.
    Entries,
    /// First batch of a segment: hard state and configuration of every group. Carries the next sequence, uses none.
    SegmentStart,
    /// Only restates `durable_upto` and the oldest epoch. Carries the next sequence, uses none.
    Seal,
}

/// A decoded header. The offset of a batch and the id of its file are in it so that bytes that a disk put in the wrong
/// place are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// What the batch is for.
    pub kind: BatchKind,
    /// Length of the payload in bytes, without fill.
    pub payload_bytes: u32,
    /// Whose log it is.
    pub identity: LogIdentity,
    /// The group whose records it carries.
    pub group: GroupId,
    /// The file it was written to.
    pub segment: SegmentId,
    /// The life of that file.
    pub epoch: SegmentEpoch,
    /// The segment before this one in the log.
    pub previous_epoch: SegmentEpoch,
    /// The oldest segment that recovery needed when this was written.
    pub oldest_epoch: SegmentEpoch,
    /// Where in the file.
    pub offset: u64,
    /// Its sequence; of a start or seal, the sequence of the next entries.
    pub sequence: Sequence,
    /// Every sequence up to this one was durable when this was written; always below `sequence`.
    pub durable_upto: Sequence,
    /// Header CRC of the batch before it in the log, 0 for the first.
    pub previous_crc: u32,
    /// What payload and fill must sum up to.
    pub payload: PayloadSums,
}

/// The checksums of a batch's payload and fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadSums {
    /// CRC32C.
    pub crc: u32,
    /// xxh3_64; `None` in batches of format 1.
    pub hash: Option<u64>,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// All zeros: never written.
    Blank,
    /// Something else than a batch.
    Magic,
    /// The header's CRC does not match.
    Crc,
    /// A sound header of a format that this version does not know.
    Format(u16),
    /// A sound header with a kind or padding that its format does not have.
    Field,
}

/// Bytes that a batch with this payload covers with its CRCs: header, payload, fill.
pub fn covered_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(SECTOR_BYTES)
}

/// Bytes that a batch with this payload takes in its segment, and so in a write.
pub fn frame_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

impl BatchKind {
    fn code(self) -> u8 {
        match self {
            Self::Entries => 1,
            Self::SegmentStart => 2,
            Self::Seal => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Entries),
            2 => Some(Self::SegmentStart),
            3 => Some(Self::Seal),
            _ => None,
        }
    }
}

/// What fills the rest of a batch's last sector, over and over; no byte of it is zero. Readers check it only as a part of what
/// the CRC covers.
pub fn filler(epoch: SegmentEpoch, sequence: Sequence) -> [u8; 4] {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&epoch.0.to_le_bytes()), &sequence.0.to_le_bytes());
    crc.to_le_bytes().map(|byte| byte | 1)
}

impl PayloadSums {
    /// The sums of what follows a header up to the end of its last sector.
    pub fn of(payload_and_fill: &[u8]) -> Self {
        Self { crc: crc32c::crc32c(payload_and_fill), hash: Some(xxh3_64(payload_and_fill)) }
    }

    /// Whether these bytes are the ones that were summed up.
    pub fn fit(&self, payload_and_fill: &[u8]) -> bool {
        crc32c::crc32c(payload_and_fill) == self.crc
            && self.hash.is_none_or(|hash| xxh3_64(payload_and_fill) == hash)
    }
}

impl BatchHeader {
    /// Writes the header and returns its CRC, which the next batch carries as `previous_crc`.
    pub fn encode(&self, out: &mut [u8; HEADER_BYTES]) -> u32 {
        assert!(self.durable_upto < self.sequence, "a batch cannot claim itself durable");
        out[..FORMAT_AT].copy_from_slice(&MAGIC);
        let format = if self.payload.hash.is_some() { FORMAT } else { FORMAT_WITHOUT_HASH };
        put(out, FORMAT_AT, format.to_le_bytes());
        put(out, KIND, [self.kind.code(), 0]);
        put(out, PAYLOAD_BYTES, self.payload_bytes.to_le_bytes());
        put(out, CLUSTER, self.identity.cluster.to_le_bytes());
        put(out, KEY, self.identity.key.to_le_bytes());
        put(out, SHARD, self.identity.shard.to_le_bytes());
        put(out, GROUP, self.group.0.to_le_bytes());
        put(out, SEGMENT, self.segment.0.to_le_bytes());
        put(out, EPOCH, self.epoch.0.to_le_bytes());
        put(out, PREVIOUS_EPOCH, self.previous_epoch.0.to_le_bytes());
        put(out, OLDEST_EPOCH, self.oldest_epoch.0.to_le_bytes());
        put(out, OFFSET, self.offset.to_le_bytes());
        put(out, SEQUENCE, self.sequence.0.to_le_bytes());
        put(out, DURABLE_UPTO, self.durable_upto.0.to_le_bytes());
        put(out, PREVIOUS_CRC, self.previous_crc.to_le_bytes());
        put(out, PAYLOAD_CRC, self.payload.crc.to_le_bytes());
        put(out, PAYLOAD_HASH, self.payload.hash.unwrap_or(0).to_le_bytes());
        put(out, ZEROS, [0; HEADER_CRC - ZEROS]);
        let crc = crc32c::crc32c(&out[..HEADER_CRC]);
        put(out, HEADER_CRC, crc.to_le_bytes());
        crc
    }

    /// Reads a header and its CRC from the start of `bytes`, which hold at least [`HEADER_BYTES`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderError> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().expect("the caller reads whole blocks");
        if bytes[..FORMAT_AT] != MAGIC {
            let blank = bytes.iter().all(|byte| *byte == 0);
            return Err(if blank { HeaderError::Blank } else { HeaderError::Magic });
        }
        let crc = u32::from_le_bytes(get(bytes, HEADER_CRC));
        if crc32c::crc32c(&bytes[..HEADER_CRC]) != crc {
            return Err(HeaderError::Crc);
        }
        let format = u16::from_le_bytes(get(bytes, FORMAT_AT));
        let hash = u64::from_le_bytes(get(bytes, PAYLOAD_HASH));
        let hash = match format {
            FORMAT => Some(hash),
            FORMAT_WITHOUT_HASH if hash == 0 => None,
            FORMAT_WITHOUT_HASH => return Err(HeaderError::Field),
            _ => return Err(HeaderError::Format(format)),
        };
        let [kind, zero] = get(bytes, KIND);
        let zeros: [u8; HEADER_CRC - ZEROS] = get(bytes, ZEROS);
        let kind = BatchKind::from_code(kind).filter(|_| zero == 0 && zeros.iter().all(|byte| *byte == 0));
        let header = Self::decode_fields(bytes, kind.ok_or(HeaderError::Field)?, hash);
        if header.durable_upto >= header.sequence {
            return Err(HeaderError::Field);
        }
        Ok((header, crc))
    }

    fn decode_fields(bytes: &[u8; HEADER_BYTES], kind: BatchKind, hash: Option<u64>) -> Self {
        Self {
            kind,
            payload_bytes: u32::from_le_bytes(get(bytes, PAYLOAD_BYTES)),
            identity: LogIdentity {
                cluster: u128::from_le_bytes(get(bytes, CLUSTER)),
                key: u64::from_le_bytes(get(bytes, KEY)),
                shard: u32::from_le_bytes(get(bytes, SHARD)),
            },
            group: GroupId(u32::from_le_bytes(get(bytes, GROUP))),
            segment: SegmentId(u64::from_le_bytes(get(bytes, SEGMENT))),
            epoch: SegmentEpoch(u64::from_le_bytes(get(bytes, EPOCH))),
            previous_epoch: SegmentEpoch(u64::from_le_bytes(get(bytes, PREVIOUS_EPOCH))),
            oldest_epoch: SegmentEpoch(u64::from_le_bytes(get(bytes, OLDEST_EPOCH))),
            offset: u64::from_le_bytes(get(bytes, OFFSET)),
            sequence: Sequence(u64::from_le_bytes(get(bytes, SEQUENCE))),
            durable_upto: Sequence(u64::from_le_bytes(get(bytes, DURABLE_UPTO))),
            previous_crc: u32::from_le_bytes(get(bytes, PREVIOUS_CRC)),
            payload: PayloadSums { crc: u32::from_le_bytes(get(bytes, PAYLOAD_CRC)), hash },
        }
    }
}

fn put<const N: usize>(out: &mut [u8; HEADER_BYTES], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("every field lies inside the header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BatchHeader {
        BatchHeader {
            kind: BatchKind::Entries,
            payload_bytes: 0x0102_0304,
            identity: LogIdentity {
                cluster: 0x1111_2222_3333_4444_5555_6666_7777_8888,
                key: 0x99aa,
                shard: 7,
            },
            group: GroupId(9),
            segment: SegmentId(3),
            epoch: SegmentEpoch(12),
            previous_epoch: SegmentEpoch(11),
            oldest_epoch: SegmentEpoch(10),
            offset: 0x2000,
            sequence: Sequence(1000),
            durable_upto: Sequence(998),
            previous_crc: 0xdead_beef,
            payload: PayloadSums { crc: 0xcafe_f00d, hash: Some(0x0123_4567_89ab_cdef) },
        }
    }

    #[test]
    fn headers_survive_their_bytes() {
        let mut bytes = [0xff; HEADER_BYTES];
        for kind in [BatchKind::Entries, BatchKind::SegmentStart, BatchKind::Seal] {
            let header = BatchHeader { kind, ..sample() };
            let crc = header.encode(&mut bytes);
            assert_eq!(BatchHeader::decode(&bytes), Ok((header, crc)));
            let older = BatchHeader { payload: PayloadSums { hash: None, ..header.payload }, ..header };
            let crc = older.encode(&mut bytes);
            assert_eq!(BatchHeader::decode(&bytes), Ok((older, crc)));
        }
    }

    #[test]
    fn golden_bytes() {
        // Both formats: what was written without a payload hash is read for good.
        let older = PayloadSums { hash: None, ..sample().payload };
        let formats = [("02", "efcdab8967452301", sample().payload), ("01", "0000000000000000", older)];
        for (format, hash, payload) in formats {
            let mut bytes = [0; HEADER_BYTES];
            BatchHeader { payload, ..sample() }.encode(&mut bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let golden = format!(
                "5354524e4457414c{format}00010004030201888877776666555544443333222211\
                 11aa990000000000000700000009000000030000000000000\
                 00c000000000000000b000000000000000a000000000000000020000000000000e803000000000000e603000000000000\
                 efbeadde0df0feca{hash}00000000"
            );
            assert_eq!(hex[..248], golden);
            assert_eq!(hex[248..], format!("{:08x}", crc32c::crc32c(&bytes[..124]).swap_bytes()));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let mut bytes = [0; HEADER_BYTES];
        sample().encode(&mut bytes);
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(BatchHeader::decode(&[0; HEADER_BYTES]), Err(HeaderError::Blank));
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut bytes = [0; HEADER_BYTES];
        sample().encode(&mut bytes);
        bytes[FORMAT_AT] = 9;
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
        put(&mut bytes, HEADER_CRC, crc.to_le_bytes());
        assert_eq!(BatchHeader::decode(&bytes), Err(HeaderError::Format(9)));
    }
}
