//! Reading the payloads of table and session blocks. The maps stand in [`payload`](super::payload).
//!
//! The payloads come from a file: a sound checksum is no proof of sound content, so every length is checked before it is
//! used, and a fault names its place.

use super::error::{Fault, SnapshotError};
use super::format::{range_start, u32_at, u64_at};
use super::payload::{CLIENT_HEAD_BYTES, HAS_EXPIRY, RECORD_HEAD_BYTES, REPLY_HEAD_BYTES, TABLE_HEAD_BYTES};
use crate::ids::{KeyHash, Millis, Version, hash_of};
use crate::state::record::{Content, KEY_BYTES_MAX, RecordFlags, VALUE_BYTES_MAX};
use crate::state::sessions::{CLIENT_BYTES_MAX, REPLY_BODY_BYTES_MAX, Reply, StoredClient};
use crate::state::{Digest, SessionDigest};
use std::collections::VecDeque;
use xxhash_rust::xxh3::xxh3_64;

/// Some records of one table.
#[derive(Clone, Copy, Debug)]
pub struct TableBlock<'a> {
    /// Where the table's part of the key space begins.
    pub first_hash: KeyHash,
    /// How many leading hash bits its keys share.
    pub depth: u8,
    /// How many records the whole table had; a hint for memory.
    pub table_records: u32,
    records: u32,
    cursor: Cursor<'a>,
}

/// A record as it stands in a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRecord<'a> {
    /// Offset of the record in the file.
    pub(super) offset: u64,
    pub(super) hash: KeyHash,
    pub(super) key: &'a [u8],
    pub(super) content: Content<'a>,
}

/// Some clients' sessions.
#[derive(Clone, Copy, Debug)]
pub struct SessionBlock<'a> {
    cursor: Cursor<'a>,
}

/// A client as it stands in a snapshot.
#[derive(Debug)]
pub(super) struct ClientRecord<'a> {
    /// Offset of the client in the file.
    pub(super) offset: u64,
    pub(super) client: StoredClient<'a>,
    pub(super) replies: VecDeque<Reply>,
}

/// Bytes not read yet, and the file offset of the first of them.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], SnapshotError> {
        let Some((part, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(self.malformed(what));
        };
        self.rest = rest;
        self.offset += bytes as u64;
        Ok(part)
    }

    fn malformed(&self, what: &'static str) -> SnapshotError {
        SnapshotError { offset: self.offset, fault: Fault::Malformed(what) }
    }

    fn ensure(&self, holds: bool, what: &'static str) -> Result<(), SnapshotError> {
        if holds { Ok(()) } else { Err(self.malformed(what)) }
    }
}

impl<'a> TableBlock<'a> {
    pub(super) fn parse(payload: &'a [u8], offset: u64) -> Result<Self, SnapshotError> {
        let mut cursor = Cursor { rest: payload, offset };
        let head = cursor.take(TABLE_HEAD_BYTES, "a table block ends inside its head")?;
        let block = Self {
            first_hash: KeyHash(u64_at(head, 0)),
            depth: head[8],
            table_records: u32_at(head, 9),
            records: u32_at(head, 13),
            cursor,
        };
        cursor.ensure(block.depth <= 64, "a table shares more bits than a hash has")?;
        let start = range_start(block.first_hash, block.depth);
        cursor.ensure(block.first_hash == start, "a table begins inside its own range")?;
        Ok(block)
    }

    /// How many records the block says it has.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Gives every record to `each`.
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(&StoredRecord<'a>) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut cursor = self.cursor;
        for _ in 0..self.records {
            each(&self.next_record(&mut cursor)?)?;
        }
        cursor.ensure(cursor.rest.is_empty(), "bytes follow the last record of a block")
    }

    /// Checks every record and adds it to `digest`.
    pub(super) fn verify(&self, digest: &mut Digest) -> Result<(), SnapshotError> {
        self.for_each(|record| {
            let Content { value, version, expires_at, flags } = record.content;
            digest.add_hashed(record.hash, xxh3_64(value), version, expires_at, flags.bits());
            Ok(())
        })
    }

    fn next_record(&self, cursor: &mut Cursor<'a>) -> Result<StoredRecord<'a>, SnapshotError> {
        let offset = cursor.offset;
        let head = cursor.take(RECORD_HEAD_BYTES, "a block ends inside a record's head")?;
        let key_bytes = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let value_bytes = u32_at(head, 3) as usize;
        let flags = RecordFlags::from_bits(head[0] & !HAS_EXPIRY);
        let flags = flags.ok_or_else(|| cursor.malformed("a record has an unknown flag"))?;
        cursor.ensure((1..=KEY_BYTES_MAX).contains(&key_bytes), "a key has an impossible length")?;
        cursor.ensure(value_bytes <= VALUE_BYTES_MAX, "a value has an impossible length")?;
        let expires_at = match head[0] & HAS_EXPIRY {
            0 => None,
            _ => Some(Millis(u64_at(cursor.take(8, "a block ends inside an expiry")?, 0))),
        };
        let key = cursor.take(key_bytes, "a block ends inside a key")?;
        let value = cursor.take(value_bytes, "a block ends inside a value")?;
        let hash = hash_of(key);
        cursor.ensure(range_start(hash, self.depth) == self.first_hash, "a key belongs to another table")?;
        let version = Version { place: u64_at(head, 7), epoch: u32_at(head, 15) };
        Ok(StoredRecord { offset, hash, key, content: Content { value, version, expires_at, flags } })
    }
}

impl<'a> SessionBlock<'a> {
    pub(super) fn new(payload: &'a [u8], offset: u64) -> Self {
        Self { cursor: Cursor { rest: payload, offset } }
    }

    /// Gives every client to `each`.
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(ClientRecord<'a>) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut cursor = self.cursor;
        while !cursor.rest.is_empty() {
            each(next_client(&mut cursor)?)?;
        }
        Ok(())
    }

    /// Checks every client and adds it to `digest`.
    pub(super) fn verify(&self, digest: &mut SessionDigest) -> Result<(), SnapshotError> {
        self.for_each(|record| {
            digest.add(&record.client, &record.replies);
            Ok(())
        })
    }
}

fn next_client<'a>(cursor: &mut Cursor<'a>) -> Result<ClientRecord<'a>, SnapshotError> {
    let offset = cursor.offset;
    let head = cursor.take(CLIENT_HEAD_BYTES, "a block ends inside a client's head")?;
    let id_bytes = usize::from(u16::from_le_bytes([head[0], head[1]]));
    cursor.ensure(id_bytes <= CLIENT_BYTES_MAX, "a client id has an impossible length")?;
    cursor.ensure(head[18] <= 1, "a client's timer is of no known kind")?;
    let id = cursor.take(id_bytes, "a block ends inside a client id")?;
    let client = StoredClient {
        id,
        floor: u64_at(head, 2),
        last_active: Millis(u64_at(head, 10)),
        idle: head[18] == 1,
        due: Millis(u64_at(head, 19)),
        order: u64_at(head, 27),
    };
    let mut replies = VecDeque::new();
    let mut lowest = client.floor;
    for _ in 0..u32_at(head, 35) {
        let reply = next_reply(cursor)?;
        cursor.ensure((lowest..u64::MAX).contains(&reply.seq), "a client's replies are out of order")?;
        lowest = reply.seq + 1;
        replies.push_back(reply);
    }
    cursor.ensure(!client.idle || replies.is_empty(), "a client with replies waits to be forgotten")?;
    Ok(ClientRecord { offset, client, replies })
}

fn next_reply(cursor: &mut Cursor<'_>) -> Result<Reply, SnapshotError> {
    let head = cursor.take(REPLY_HEAD_BYTES, "a block ends inside a reply's head")?;
    let kind = Reply::kind_of(head[24]);
    let kind = kind.ok_or_else(|| cursor.malformed("a reply is of no known kind"))?;
    let body_bytes = u32_at(head, 25) as usize;
    cursor.ensure(body_bytes <= REPLY_BODY_BYTES_MAX, "a reply body has an impossible length")?;
    let body = cursor.take(body_bytes, "a block ends inside a reply body")?.into();
    Ok(Reply {
        seq: u64_at(head, 0),
        fingerprint: u64_at(head, 8),
        stamp: Millis(u64_at(head, 16)),
        kind,
        body,
    })
}
