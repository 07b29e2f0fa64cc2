//! Payloads of table and session blocks as they are written, and the chunks of bytes that a snapshot goes out in.
//!
//! ```text
//! table payload                          sessions payload: clients, each
//! 0   first hash     u64                 0    id length     u16
//! 8   depth          u8                  2    floor         u64
//! 9   table records  u32 (a hint)        10   last active   u64
//! 13  block records  u32                 18   timer idle    u8
//! 17  records, each                      19   timer due     u64
//!     0   flags        u8                27   timer order   u64
//!     1   key length   u16               35   replies       u32
//!     3   value length u32               39   id, then replies, each
//!     7   place        u64                    0   seq          u64
//!     15  epoch        u32                    8   fingerprint  u64
//!     19  [expires at  u64]                   16  stamp        u64
//!         key, value                          24  kind         u8
//!                                             25  body length  u32
//!                                             29  body
//! ```
//!
//! The top bit of a record's flags says that an expiry follows. Large values go out as they stand in the state, shared.

use super::format::{PAYLOAD_BYTES, PAYLOAD_BYTES_MAX, range_start};
use crate::ids::KeyHash;
use crate::state::Record;
use crate::state::record::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::state::sessions::{
    CLIENT_BYTES_MAX, CLIENT_REPLY_BYTES_MAX, REPLY_BODY_BYTES_MAX, Reply, StoredClient,
};
use std::sync::Arc;

pub(super) const TABLE_HEAD_BYTES: usize = 17;
pub(super) const RECORD_HEAD_BYTES: usize = 19;
pub(super) const CLIENT_HEAD_BYTES: usize = 39;
pub(super) const REPLY_HEAD_BYTES: usize = 29;
/// Bit of a record's flags: an expiry follows its head.
pub(super) const HAS_EXPIRY: u8 = 0x80;

/// Values from here on are shared with the state; shorter ones are cheaper to copy.
const SHARED_BYTES_MIN: usize = 4096;

const _: () = assert!(
    TABLE_HEAD_BYTES + RECORD_HEAD_BYTES + 8 + KEY_BYTES_MAX + VALUE_BYTES_MAX <= PAYLOAD_BYTES_MAX,
    "every record fits a block of its own"
);
const _: () = assert!(
    CLIENT_HEAD_BYTES + CLIENT_BYTES_MAX + CLIENT_REPLY_BYTES_MAX + REPLY_HEAD_BYTES + REPLY_BODY_BYTES_MAX
        <= PAYLOAD_BYTES,
    "every client fits a block of its own; what a reply costs in memory is more than its head"
);

/// Some bytes of a snapshot, to be written after those that came before.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Bytes made for the snapshot.
    Bytes(Vec<u8>),
    /// A value that the state holds as well.
    Shared(Arc<[u8]>),
}

impl Chunk {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// The payload of one block.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(super) kind: PayloadKind,
    pub(super) chunks: Vec<Chunk>,
    bytes: usize,
}

/// What the payload is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum PayloadKind {
    #[default]
    Table,
    Sessions,
}

impl Payload {
    /// Length in bytes, shared values included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// CRC-32C over all chunks.
    pub(super) fn crc(&self) -> u32 {
        self.chunks.iter().fold(0, |crc, chunk| crc32c::crc32c_append(crc, chunk.as_slice()))
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.open().extend_from_slice(bytes);
    }

    fn share(&mut self, value: Arc<[u8]>) {
        self.bytes += value.len();
        self.chunks.push(Chunk::Shared(value));
    }

    fn open(&mut self) -> &mut Vec<u8> {
        if !matches!(self.chunks.last(), Some(Chunk::Bytes(_))) {
            self.chunks.push(Chunk::Bytes(Vec::new()));
        }
        match self.chunks.last_mut() {
            Some(Chunk::Bytes(bytes)) => bytes,
            _ => unreachable!("such a chunk was pushed above"),
        }
    }
}

/// A table block's payload in the making.
#[derive(Debug)]
pub(crate) struct TablePayload {
    payload: Payload,
    records: u32,
}

impl TablePayload {
    /// An empty payload for some of the `table_records` records that share `depth` leading bits with `hash`, with room
    /// for about `expected_bytes` of them.
    pub(crate) fn new(hash: KeyHash, depth: u8, table_records: usize, expected_bytes: usize) -> Self {
        let mut payload = Payload::default();
        payload.open().reserve_exact(TABLE_HEAD_BYTES + expected_bytes.min(PAYLOAD_BYTES));
        payload.put(&range_start(hash, depth).0.to_le_bytes());
        payload.put(&[depth]);
        payload.put(&u32::try_from(table_records).unwrap_or(u32::MAX).to_le_bytes());
        payload.put(&0u32.to_le_bytes());
        Self { payload, records: 0 }
    }

    /// Whether the record has room beside those already in.
    pub(crate) fn fits(&self, record: &Record<'_>) -> bool {
        let needed = RECORD_HEAD_BYTES + 8 + record.key.len() + record.value.len();
        self.payload.bytes + needed <= PAYLOAD_BYTES
    }

    /// Adds a record; the first one always fits.
    pub(crate) fn push(&mut self, record: &Record<'_>) {
        let mut head = [0; RECORD_HEAD_BYTES + 8];
        let key_bytes = u16::try_from(record.key.len()).expect("a key is at most 4,096 bytes long");
        let value_bytes = u32::try_from(record.value.len()).expect("a value is at most 8 MiB long");
        head[0] = record.flags.bits();
        head[1..3].copy_from_slice(&key_bytes.to_le_bytes());
        head[3..7].copy_from_slice(&value_bytes.to_le_bytes());
        head[7..15].copy_from_slice(&record.version.place.to_le_bytes());
        head[15..19].copy_from_slice(&record.version.epoch.to_le_bytes());
        let mut head_bytes = RECORD_HEAD_BYTES;
        if let Some(expires_at) = record.expires_at {
            head[0] |= HAS_EXPIRY;
            head[19..27].copy_from_slice(&expires_at.0.to_le_bytes());
            head_bytes += 8;
        }
        let payload = &mut self.payload;
        payload.put(&head[..head_bytes]);
        payload.put(record.key);
        match record.value_shared() {
            Some(value) if value.len() >= SHARED_BYTES_MIN => payload.share(value),
            _ => payload.put(record.value),
        }
        self.records += 1;
    }

    /// The finished payload.
    pub(crate) fn close(mut self) -> Payload {
        match self.payload.chunks.first_mut() {
            Some(Chunk::Bytes(first)) => first[13..17].copy_from_slice(&self.records.to_le_bytes()),
            _ => unreachable!("a table payload begins with its head"),
        }
        assert!(self.payload.bytes <= PAYLOAD_BYTES_MAX, "the record that was too long came alone");
        self.payload
    }
}

/// A sessions block's payload in the making.
#[derive(Debug, Default)]
pub(crate) struct SessionPayload {
    bytes: Vec<u8>,
}

impl SessionPayload {
    /// Length so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a client unless there is no room left; a single client always has room.
    pub(crate) fn push<'a>(
        &mut self,
        client: &StoredClient<'_>,
        replies: impl IntoIterator<Item = &'a Reply> + Clone,
    ) -> bool {
        let reply_bytes: usize =
            replies.clone().into_iter().map(|reply| REPLY_HEAD_BYTES + reply.body.len()).sum();
        let needed = CLIENT_HEAD_BYTES + client.id.len() + reply_bytes;
        if self.bytes.len() + needed > PAYLOAD_BYTES {
            return false;
        }
        let bytes = &mut self.bytes;
        let start = bytes.len();
        let id_bytes = u16::try_from(client.id.len()).expect("a client id is at most 256 bytes long");
        bytes.extend_from_slice(&id_bytes.to_le_bytes());
        bytes.extend_from_slice(&client.floor.to_le_bytes());
        bytes.extend_from_slice(&client.last_active.0.to_le_bytes());
        bytes.push(u8::from(client.idle));
        bytes.extend_from_slice(&client.due.0.to_le_bytes());
        bytes.extend_from_slice(&client.order.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(client.id);
        let mut count = 0u32;
        for reply in replies {
            let body_bytes = u32::try_from(reply.body.len()).expect("a reply body is at most 64 KiB long");
            bytes.extend_from_slice(&reply.seq.to_le_bytes());
            bytes.extend_from_slice(&reply.fingerprint.to_le_bytes());
            bytes.extend_from_slice(&reply.stamp.0.to_le_bytes());
            bytes.push(reply.kind_code());
            bytes.extend_from_slice(&body_bytes.to_le_bytes());
            bytes.extend_from_slice(&reply.body);
            count += 1;
        }
        bytes[start + 35..start + 39].copy_from_slice(&count.to_le_bytes());
        true
    }

    /// The finished payload.
    pub(crate) fn close(self) -> Payload {
        let bytes = self.bytes.len();
        Payload { kind: PayloadKind::Sessions, chunks: vec![Chunk::Bytes(self.bytes)], bytes }
    }
}
