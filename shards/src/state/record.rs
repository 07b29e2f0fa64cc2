//! The layout of one record inside a table's blocks. In memory only: the snapshot has a format of its own.
//!
//! ```text
//! 0   place       u64   Version::place
//! 8   epoch       u32   Version::epoch
//! 12  shape       u32   key length (13 bits), inline value length (11), flags (8)
//! 16  slack       u8    unused bytes behind the record that belong to it
//! 17  expires_at  u64   only with HAS_EXPIRY
//!     key
//!     value, or its u32 position among the table's large values with OUT_OF_LINE
//! ```
//!
//! Never holds an offset of another record, so records move freely when their table splits or is compacted.

use crate::ids::{Millis, Version};
use std::sync::Arc;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Values of this size and above stand out of line, one shared allocation each.
pub const LARGE_VALUE_BYTES: usize = 1024;

/// Bytes in front of expiry, key and value.
const HEADER_BYTES: usize = 17;
const EXPIRY_BYTES: usize = 8;
const LARGE_POSITION_BYTES: usize = 4;
/// Most unused bytes that a record keeps when a shorter one overwrites it in place.
const SLACK_BYTES_MAX: usize = u8::MAX as usize;

/// The largest record as it stands in a block.
pub(super) const RECORD_BYTES_MAX: usize = HEADER_BYTES + EXPIRY_BYTES + KEY_BYTES_MAX + LARGE_VALUE_BYTES;

const KEY_BITS: u32 = 13;
const VALUE_BITS: u32 = 11;
const _: () = assert!(KEY_BYTES_MAX < 1 << KEY_BITS);
const _: () = assert!(LARGE_VALUE_BYTES < 1 << VALUE_BITS);

const HAS_EXPIRY: u8 = 0x80;
const OUT_OF_LINE: u8 = 0x40;

/// Marks that a record carries; they are content, so they are replicated, digested and kept in snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RecordFlags(u8);

impl RecordFlags {
    /// No mark.
    pub const NONE: Self = Self(0);
    /// Its part of the next snapshot is to be lost, as a file system might lose it (DESIGN.md, "Faults as a feature").
    pub const DEBUG_FAULT: Self = Self(1);
    /// There was no record with this key. Stands only beside a table that a snapshot has not come to, never in one.
    pub(super) const ABSENT: Self = Self(2);
    /// Every mark of a record; the two upper bits belong to the layout.
    const KNOWN: u8 = 1;

    /// The marks as stored in a snapshot.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Reads stored marks; `None` when one of them is unknown.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits & !Self::KNOWN == 0).then_some(Self(bits))
    }

    /// Whether the record's part of the next snapshot is to be lost.
    pub fn debug_fault(self) -> bool {
        self.0 & Self::DEBUG_FAULT.0 != 0
    }
}

/// One record as a reader sees it; borrowed from the state.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The whole key.
    pub key: &'a [u8],
    /// The value, byte for byte as it was written.
    pub value: &'a [u8],
    /// Where in the history it was written.
    pub version: Version,
    /// When it ends; the state itself never judges by it.
    pub expires_at: Option<Millis>,
    /// Its marks.
    pub flags: RecordFlags,
    pub(super) large: Option<&'a Large>,
}

impl<'a> Record<'a> {
    /// The value as a shared allocation, for values of [`LARGE_VALUE_BYTES`] and more: no byte is copied.
    pub fn value_shared(&self) -> Option<Arc<[u8]>> {
        self.large.map(|large| Arc::clone(&large.bytes))
    }
}

/// What a write stores beside the key.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The value, at most [`VALUE_BYTES_MAX`].
    pub value: &'a [u8],
    /// The version of this write.
    pub version: Version,
    /// When the record ends, if it does.
    pub expires_at: Option<Millis>,
    /// Its marks.
    pub flags: RecordFlags,
}

/// A value out of line, with the hash of its bytes as they came in, so that digests never read it again.
#[derive(Clone, Debug)]
pub(super) struct Large {
    pub(super) bytes: Arc<[u8]>,
    pub(super) hash: u64,
}

/// The decoded head of a stored record.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) version: Version,
    pub(super) expires_at: Option<Millis>,
    pub(super) flags: RecordFlags,
    pub(super) out_of_line: bool,
    key_start: usize,
    key_bytes: usize,
    tail_bytes: usize,
    slack_bytes: usize,
}

impl Head {
    /// Reads the head of the record that starts `stored`.
    #[inline]
    pub(super) fn read(stored: &[u8]) -> Self {
        let fixed = stored.first_chunk::<HEADER_BYTES>().expect("a stored record has its header");
        let shape = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]);
        let layout = (shape >> (KEY_BITS + VALUE_BITS)) as u8;
        let has_expiry = layout & HAS_EXPIRY != 0;
        let out_of_line = layout & OUT_OF_LINE != 0;
        let expires_at =
            has_expiry.then(|| Millis(u64::from_le_bytes(array(&stored[HEADER_BYTES..][..EXPIRY_BYTES]))));
        let value_bytes = (shape >> KEY_BITS & ((1 << VALUE_BITS) - 1)) as usize;
        Self {
            version: Version {
                place: u64::from_le_bytes(array(&fixed[..8])),
                epoch: u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            },
            expires_at,
            flags: RecordFlags(layout & !(HAS_EXPIRY | OUT_OF_LINE)),
            out_of_line,
            key_start: HEADER_BYTES + if has_expiry { EXPIRY_BYTES } else { 0 },
            key_bytes: (shape & ((1 << KEY_BITS) - 1)) as usize,
            tail_bytes: if out_of_line { LARGE_POSITION_BYTES } else { value_bytes },
            slack_bytes: usize::from(fixed[16]),
        }
    }

    /// The key of the record, given the same bytes as [`Self::read`].
    #[inline]
    pub(super) fn key<'a>(&self, stored: &'a [u8]) -> &'a [u8] {
        &stored[self.key_start..][..self.key_bytes]
    }

    /// What follows the key: the inline value, or the encoded position of a large one.
    #[inline]
    pub(super) fn tail<'a>(&self, stored: &'a [u8]) -> &'a [u8] {
        &stored[self.key_start + self.key_bytes..][..self.tail_bytes]
    }

    /// Position of the value among the table's large ones.
    #[inline]
    pub(super) fn large_position(&self, stored: &[u8]) -> Option<u32> {
        self.out_of_line.then(|| u32::from_le_bytes(array(self.tail(stored))))
    }

    /// Bytes in use, without slack.
    #[inline]
    pub(super) fn used_bytes(&self) -> usize {
        self.key_start + self.key_bytes + self.tail_bytes
    }

    /// Bytes that belong to the record in its block.
    #[inline]
    pub(super) fn capacity_bytes(&self) -> usize {
        self.used_bytes() + self.slack_bytes
    }
}

/// Whether the stored record has this key; reads no more than it must.
#[inline]
pub(super) fn key_is(stored: &[u8], key: &[u8]) -> bool {
    let shape = u32::from_le_bytes(array(&stored[12..16]));
    let start = HEADER_BYTES + if shape >> 31 != 0 { EXPIRY_BYTES } else { 0 };
    (shape & ((1 << KEY_BITS) - 1)) as usize == key.len() && stored[start..][..key.len()] == *key
}

/// A record about to be stored: its parts, with a large value already put in its place.
#[derive(Clone, Copy)]
pub(super) struct Draft<'a> {
    pub(super) key: &'a [u8],
    pub(super) content: Content<'a>,
    /// Position of the value among the large ones, when it stands there.
    pub(super) large: Option<u32>,
}

impl Draft<'_> {
    /// Bytes that the record needs.
    pub(super) fn bytes(&self) -> usize {
        let expiry = if self.content.expires_at.is_some() { EXPIRY_BYTES } else { 0 };
        let tail = if self.large.is_some() { LARGE_POSITION_BYTES } else { self.content.value.len() };
        HEADER_BYTES + expiry + self.key.len() + tail
    }

    /// Whether the record may overwrite one of this capacity.
    pub(super) fn fits(&self, capacity_bytes: usize) -> bool {
        let bytes = self.bytes();
        bytes <= capacity_bytes && capacity_bytes - bytes <= SLACK_BYTES_MAX
    }

    /// Appends the record without slack.
    pub(super) fn append(&self, block: &mut Vec<u8>) {
        block.extend_from_slice(&self.header(0));
        if let Some(expires_at) = self.content.expires_at {
            block.extend_from_slice(&expires_at.0.to_le_bytes());
        }
        block.extend_from_slice(self.key);
        match self.large {
            Some(position) => block.extend_from_slice(&position.to_le_bytes()),
            None => block.extend_from_slice(self.content.value),
        }
    }

    /// Writes the record over one with this key and the given capacity.
    pub(super) fn overwrite(&self, stored: &mut [u8], capacity_bytes: usize) {
        assert!(self.fits(capacity_bytes), "a record is overwritten only where it fits");
        let slack = (capacity_bytes - self.bytes()) as u8;
        let (header, mut rest) = stored.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&self.header(slack));
        let mut put = |bytes: &[u8]| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            part.copy_from_slice(bytes);
            rest = after;
        };
        if let Some(expires_at) = self.content.expires_at {
            put(&expires_at.0.to_le_bytes());
        }
        put(self.key);
        match self.large {
            Some(position) => put(&position.to_le_bytes()),
            None => put(self.content.value),
        }
    }

    fn header(&self, slack: u8) -> [u8; HEADER_BYTES] {
        assert!(self.key.len() <= KEY_BYTES_MAX, "the command checked the key's length");
        let inline_bytes = if self.large.is_some() { 0 } else { self.content.value.len() };
        assert!(inline_bytes < LARGE_VALUE_BYTES, "a large value stands out of line");
        let mut layout = self.content.flags.0;
        if self.content.expires_at.is_some() {
            layout |= HAS_EXPIRY;
        }
        if self.large.is_some() {
            layout |= OUT_OF_LINE;
        }
        let shape = self.key.len() as u32
            | (inline_bytes as u32) << KEY_BITS
            | u32::from(layout) << (KEY_BITS + VALUE_BITS);
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&self.content.version.place.to_le_bytes());
        header[8..12].copy_from_slice(&self.content.version.epoch.to_le_bytes());
        header[12..16].copy_from_slice(&shape.to_le_bytes());
        header[16] = slack;
        header
    }
}

/// Copies a stored record to the end of a block, without its slack.
pub(super) fn copy(stored: &[u8], block: &mut Vec<u8>) {
    let used = Head::read(stored).used_bytes();
    let start = block.len();
    block.extend_from_slice(&stored[..used]);
    block[start + 16] = 0;
}

/// Replaces the position of the large value in a record that has one.
pub(super) fn set_large_position(stored: &mut [u8], position: u32) {
    let head = Head::read(stored);
    assert!(head.out_of_line, "only a large value has a position");
    let start = head.key_start + head.key_bytes;
    stored[start..start + LARGE_POSITION_BYTES].copy_from_slice(&position.to_le_bytes());
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cut exactly this many bytes")
}
