//! Byte maps of the file header, the block head and the footer. All numbers are little endian.
//!
//! ```text
//! file header (580)                      block head (40)                 footer payload (72)
//! 0    magic          "STRNDSNP"         0   magic         "SBLK"        0   table blocks    u64
//! 8    version        u32                4   kind          u8            8   session blocks  u64
//! 12   shard          u32                5   zero          3 bytes       16  section blocks  u64
//! 16   cluster        u128               8   payload bytes u32           24  records         u64
//! 32   group          u32                12  payload CRC   u32           32  record digest   u64
//! 36   epoch          u32                16  offset        u64           40  clients         u64
//! 40   applied index  u64                24  identity      u64           48  replies         u64
//! 48   applied term   u64                32  ordinal       u32           56  session digest  u64
//! 56   entry stamp    u64                36  head CRC      u32           64  file bytes      u64
//! 64   slots          512 bytes
//! 576  CRC            u32
//! ```
//!
//! CRCs are CRC-32C of all bytes before them (head, header) or of the payload. `identity` is xxh3_64 of the file header,
//! so a block of another file never passes; `offset` is that of the head itself.

use super::error::Fault;
use crate::ids::{GroupId, KeyHash, Millis, SLOTS, Slot};
use crate::state::{Digest, SessionDigest};
use xxhash_rust::xxh3::xxh3_64;

/// The format written by this program.
pub(super) const VERSION: u32 = 1;
pub(super) const FILE_HEADER_BYTES: usize = 580;
pub(super) const BLOCK_HEAD_BYTES: usize = 40;
const FOOTER_BYTES: usize = 72;
const FILE_MAGIC: [u8; 8] = *b"STRNDSNP";
const BLOCK_MAGIC: [u8; 4] = *b"SBLK";
const SLOT_BYTES: usize = SLOTS as usize / 8;
const _: () = assert!(64 + SLOT_BYTES + 4 == FILE_HEADER_BYTES);

/// A payload gathers records up to this many bytes.
pub(crate) const PAYLOAD_BYTES: usize = 5 << 18;
/// One large record may make a payload as long as this.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 9 << 20;

/// The slots that belonged to the group.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotSet([u8; SLOT_BYTES]);

impl Default for SlotSet {
    fn default() -> Self {
        Self([0; SLOT_BYTES])
    }
}

impl SlotSet {
    /// Adds a slot.
    pub fn insert(&mut self, slot: Slot) {
        self.0[usize::from(slot.0 / 8)] |= 1 << (slot.0 % 8);
    }

    /// Whether the slot is in the set.
    pub fn contains(&self, slot: Slot) -> bool {
        self.0[usize::from(slot.0 / 8)] & 1 << (slot.0 % 8) != 0
    }

    /// How many slots are in the set.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlotSet({} slots)", self.len())
    }
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotHeader {
    /// The cluster, so that no other one's data is loaded.
    pub cluster: u128,
    /// The shard on the node that wrote it.
    pub shard: u32,
    /// The group whose state it is.
    pub group: GroupId,
    /// Epoch of the versions written at that time.
    pub epoch: u32,
    /// The last log entry that is part of the state.
    pub applied_index: u64,
    /// That entry's term.
    pub applied_term: u64,
    /// That entry's time stamp.
    pub entry_stamp: Millis,
    /// The slots that the group had.
    pub slots: SlotSet,
}

impl SnapshotHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.shard.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.group.0.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.applied_index.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.applied_term.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.entry_stamp.0.to_le_bytes());
        bytes[64..64 + SLOT_BYTES].copy_from_slice(&self.slots.0);
        let crc = crc32c::crc32c(&bytes[..FILE_HEADER_BYTES - 4]);
        bytes[FILE_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Checks and reads the header; magic and version first, because another version may have another layout. One that would
    /// be sound with the version of this program is damaged there.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        assert_eq!(bytes.len(), FILE_HEADER_BYTES, "the reader gathered the whole header");
        if bytes[..8] != FILE_MAGIC {
            return Err(Fault::NotASnapshot);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            let mut known = bytes.to_vec();
            known[8..12].copy_from_slice(&VERSION.to_le_bytes());
            let is_ours =
                crc32c::crc32c(&known[..FILE_HEADER_BYTES - 4]) == u32_at(bytes, FILE_HEADER_BYTES - 4);
            return Err(if is_ours { Fault::HeaderChecksum } else { Fault::UnsupportedVersion(version) });
        }
        if crc32c::crc32c(&bytes[..FILE_HEADER_BYTES - 4]) != u32_at(bytes, FILE_HEADER_BYTES - 4) {
            return Err(Fault::HeaderChecksum);
        }
        let mut slots = SlotSet::default();
        slots.0.copy_from_slice(&bytes[64..64 + SLOT_BYTES]);
        Ok(Self {
            shard: u32_at(bytes, 12),
            cluster: u128::from(u64_at(bytes, 16)) | u128::from(u64_at(bytes, 24)) << 64,
            group: GroupId(u32_at(bytes, 32)),
            epoch: u32_at(bytes, 36),
            applied_index: u64_at(bytes, 40),
            applied_term: u64_at(bytes, 48),
            entry_stamp: Millis(u64_at(bytes, 56)),
            slots,
        })
    }
}

/// The identity that every block of a file with this header carries.
pub(super) fn identity_of(header: &[u8]) -> u64 {
    xxh3_64(header)
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    Table = 1,
    Sessions = 2,
    Section = 3,
    Footer = 255,
}

/// The fixed head of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHead {
    pub(super) kind: BlockKind,
    pub(super) payload_bytes: u32,
    pub(super) payload_crc: u32,
    pub(super) place: BlockPlace,
}

/// Where a block belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockPlace {
    pub(super) offset: u64,
    pub(super) identity: u64,
    pub(super) ordinal: u32,
}

impl BlockHead {
    pub(super) fn encode(&self) -> [u8; BLOCK_HEAD_BYTES] {
        let mut bytes = [0; BLOCK_HEAD_BYTES];
        bytes[..4].copy_from_slice(&BLOCK_MAGIC);
        bytes[4] = self.kind as u8;
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.place.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.place.identity.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.place.ordinal.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], expected: BlockPlace) -> Result<Self, Fault> {
        assert_eq!(bytes.len(), BLOCK_HEAD_BYTES, "the reader gathered the whole head");
        if bytes[..4] != BLOCK_MAGIC || crc32c::crc32c(&bytes[..36]) != u32_at(bytes, 36) {
            return Err(Fault::HeadChecksum);
        }
        let place =
            BlockPlace { offset: u64_at(bytes, 16), identity: u64_at(bytes, 24), ordinal: u32_at(bytes, 32) };
        if place != expected {
            return Err(Fault::Misplaced);
        }
        let kind = match bytes[4] {
            1 => BlockKind::Table,
            2 => BlockKind::Sessions,
            3 => BlockKind::Section,
            255 => BlockKind::Footer,
            other => return Err(Fault::UnknownKind(other)),
        };
        if bytes[5..8] != [0; 3] {
            return Err(Fault::Malformed("the zero bytes of a block head are not zero"));
        }
        let payload_bytes = u32_at(bytes, 8);
        if payload_bytes as usize > PAYLOAD_BYTES_MAX {
            return Err(Fault::PayloadTooLong(payload_bytes));
        }
        Ok(Self { kind, payload_bytes, payload_crc: u32_at(bytes, 12), place })
    }
}

/// How many blocks of each kind a file has, without the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BlockCounts {
    /// Parts of tables.
    pub tables: u64,
    /// Blocks of sessions.
    pub sessions: u64,
    /// Parts of sections.
    pub sections: u64,
}

/// What a whole snapshot must add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Blocks before the footer.
    pub blocks: BlockCounts,
    /// Number and digest of the records in the state that was written.
    pub records: Digest,
    /// Numbers and digest of its sessions.
    pub sessions: SessionDigest,
    /// Length of the file, footer included.
    pub file_bytes: u64,
}

/// Bytes of a footer block.
pub(super) const FOOTER_BLOCK_BYTES: u64 = (BLOCK_HEAD_BYTES + FOOTER_BYTES) as u64;

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let numbers = [
            self.blocks.tables,
            self.blocks.sessions,
            self.blocks.sections,
            self.records.records,
            self.records.sum,
            self.sessions.clients,
            self.sessions.replies,
            self.sessions.sum,
            self.file_bytes,
        ];
        let mut bytes = [0; FOOTER_BYTES];
        for (part, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() != FOOTER_BYTES {
            return Err(Fault::Malformed("the footer has a wrong length"));
        }
        let number = |position: usize| u64_at(bytes, position * 8);
        Ok(Self {
            blocks: BlockCounts { tables: number(0), sessions: number(1), sections: number(2) },
            records: Digest { records: number(3), sum: number(4) },
            sessions: SessionDigest { clients: number(5), replies: number(6), sum: number(7) },
            file_bytes: number(8),
        })
    }
}

/// Where the part of the key space begins that shares the leading `depth` bits with `hash`.
pub(super) fn range_start(hash: KeyHash, depth: u8) -> KeyHash {
    KeyHash(if depth == 0 { 0 } else { hash.0 & u64::MAX << (64 - u32::from(depth)) })
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice is four bytes long"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice is eight bytes long"))
}
