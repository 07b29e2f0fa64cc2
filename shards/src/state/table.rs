//! One small table of the key space: an open-addressed index over record blocks.
//!
//! A slot is eight bytes: where the record stands and the upper half of its key's hash, so that a lookup reads one
//! record, a resize none, and a split none beyond the copy. Large values stand apart, shared. Invariants: every slot
//! points at a live record of this table; a large value belongs to exactly one record. A table never knows which part
//! of the key space it has, apart from how many leading hash bits its keys share.

use super::blocks::Blocks;
use super::digest::Digest;
use super::record::{self, Content, Draft, Head, LARGE_VALUE_BYTES, Large, Record};
use crate::ids::{KeyHash, Millis, Version, hash_of};
use hashbrown::HashTable;
use std::sync::Arc;

/// Garbage below this is not worth a compaction.
const GARBAGE_BYTES_MIN: usize = 4096;
/// The outer allocation of an `Arc<[u8]>` in front of its bytes.
const SHARED_HEADER_BYTES: usize = 2 * size_of::<usize>();

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    position: u32,
    /// The upper half of the key's hash.
    pub(super) tag: u32,
}

#[derive(Debug)]
pub(super) struct Table {
    slots: HashTable<Slot>,
    blocks: Blocks,
    large: Vec<Option<Large>>,
    large_free: Vec<u32>,
    large_bytes: usize,
    live_bytes: usize,
    garbage_bytes: usize,
    /// Not later than any expiry in the table; `u64::MAX` when none is known.
    pub(super) earliest_expiry: u64,
    /// The version of the last delete among the keys of this table, or of the table it was split from.
    pub(super) last_delete: Version,
    /// How many leading hash bits the keys share.
    pub(super) depth: u8,
    /// The last snapshot that has this table's content of its beginning.
    pub(super) captured: u32,
}

pub(super) fn tag_of(hash: KeyHash) -> u32 {
    (hash.0 >> 32) as u32
}

/// What the index hashes by: the low bits of the tag choose the bucket and the next seven are its control byte, since
/// the leading ones are the same throughout a table.
fn spread(tag: u32) -> u64 {
    u64::from(tag) | u64::from(tag) << 45
}

impl Table {
    pub(super) fn new(depth: u8, captured: u32) -> Self {
        Self {
            slots: HashTable::new(),
            blocks: Blocks::default(),
            large: Vec::new(),
            large_free: Vec::new(),
            large_bytes: 0,
            live_bytes: 0,
            garbage_bytes: 0,
            earliest_expiry: u64::MAX,
            last_delete: Version::default(),
            depth,
            captured,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of records in the blocks that are in use.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Bytes of values that stand out of line.
    pub(super) fn large_bytes(&self) -> usize {
        self.large_bytes
    }

    /// Everything this table has allocated.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.slots.allocation_size()
            + self.blocks.allocated_bytes()
            + self.large.capacity() * size_of::<Option<Large>>()
            + self.large_free.capacity() * size_of::<u32>()
            + (self.large.len() - self.large_free.len()) * SHARED_HEADER_BYTES
            + self.large_bytes
    }

    #[inline]
    pub(super) fn get(&self, hash: KeyHash, key: &[u8]) -> Option<Record<'_>> {
        let tag = tag_of(hash);
        let slot = self.slots.find(spread(tag), |slot| {
            slot.tag == tag && record::key_is(self.blocks.at(slot.position), key)
        })?;
        Some(self.record(*slot))
    }

    /// Where the record of this hash probably stands; reads the index only.
    pub(super) fn likely_position(&self, hash: KeyHash) -> Option<u32> {
        let tag = tag_of(hash);
        self.slots.find(spread(tag), |slot| slot.tag == tag).map(|slot| slot.position)
    }

    /// Reads a byte of the record there, so that it is in the cache.
    pub(super) fn touch(&self, position: u32) -> u8 {
        self.blocks.at(position)[0]
    }

    /// Where the record of this key stands if this content can take its place there: both are small, and the new one fits.
    #[inline]
    pub(super) fn position_in_place(&self, hash: KeyHash, key: &[u8], content: &Content<'_>) -> Option<u32> {
        if content.value.len() >= LARGE_VALUE_BYTES {
            return None;
        }
        let tag = tag_of(hash);
        let slot = self.slots.find(spread(tag), |slot| {
            slot.tag == tag && record::key_is(self.blocks.at(slot.position), key)
        })?;
        let head = Head::read(self.blocks.at(slot.position));
        let draft = Draft { key, content: *content, large: None };
        (!head.out_of_line && draft.fits(head.capacity_bytes())).then_some(slot.position)
    }

    /// Stores a record over the one with this key at a position that [`Table::position_in_place`] gave for it.
    #[inline]
    pub(super) fn overwrite(&mut self, position: u32, key: &[u8], content: Content<'_>) {
        if let Some(expires_at) = content.expires_at {
            self.earliest_expiry = self.earliest_expiry.min(expires_at.0);
        }
        let stored = self.blocks.at_mut(position);
        let capacity_bytes = Head::read(stored).capacity_bytes();
        Draft { key, content, large: None }.overwrite(stored, capacity_bytes);
    }

    /// Stores a record; whether one with this key was there.
    pub(super) fn set(&mut self, hash: KeyHash, key: &[u8], content: Content<'_>) -> bool {
        if let Some(expires_at) = content.expires_at {
            self.earliest_expiry = self.earliest_expiry.min(expires_at.0);
        }
        let tag = tag_of(hash);
        let Self { slots, blocks, .. } = self;
        let found = slots
            .find_mut(spread(tag), |slot| slot.tag == tag && record::key_is(blocks.at(slot.position), key));
        let Some(slot) = found else {
            let large = self.put_large(content.value);
            let draft = Draft { key, content, large };
            let position = self.blocks.append(&draft);
            self.live_bytes += draft.bytes();
            self.slots.insert_unique(spread(tag), Slot { position, tag }, |slot| spread(slot.tag));
            return false;
        };
        let old_position = slot.position;
        let stored = self.blocks.at(old_position);
        let (capacity_bytes, old_large) = {
            let head = Head::read(stored);
            (head.capacity_bytes(), head.large_position(stored))
        };
        if let Some(position) = old_large {
            self.drop_large(position);
        }
        let large = self.put_large(content.value);
        let draft = Draft { key, content, large };
        if draft.fits(capacity_bytes) {
            draft.overwrite(self.blocks.at_mut(old_position), capacity_bytes);
            return true;
        }
        let position = self.blocks.append(&draft);
        self.live_bytes += draft.bytes();
        self.live_bytes -= capacity_bytes;
        self.garbage_bytes += capacity_bytes;
        let moved = self
            .slots
            .find_mut(spread(tag), |slot| slot.position == old_position)
            .expect("the slot found above is still there");
        moved.position = position;
        self.compact_if_due();
        true
    }

    /// Stores a copy of another table's record, whose key this one does not have. A large value is shared.
    pub(super) fn keep(&mut self, hash: KeyHash, record: &Record<'_>) {
        let large = record.large.map(|large| self.put(large.clone()));
        let Record { key, value, version, expires_at, flags, .. } = *record;
        let draft = Draft { key, content: Content { value, version, expires_at, flags }, large };
        let position = self.blocks.append(&draft);
        self.live_bytes += draft.bytes();
        let tag = tag_of(hash);
        self.slots.insert_unique(spread(tag), Slot { position, tag }, |slot| spread(slot.tag));
    }

    /// Forgets a record; whether it was there.
    pub(super) fn remove(&mut self, hash: KeyHash, key: &[u8], version: Version) -> bool {
        let tag = tag_of(hash);
        let Self { slots, blocks, .. } = self;
        let Ok(entry) = slots
            .find_entry(spread(tag), |slot| slot.tag == tag && record::key_is(blocks.at(slot.position), key))
        else {
            return false;
        };
        let (slot, _) = entry.remove();
        let stored = self.blocks.at(slot.position);
        let head = Head::read(stored);
        if let Some(position) = head.large_position(stored) {
            self.drop_large(position);
        }
        self.live_bytes -= head.capacity_bytes();
        self.garbage_bytes += head.capacity_bytes();
        self.last_delete = self.last_delete.max(version);
        if self.slots.is_empty() {
            let Self { last_delete, depth, captured, .. } = *self;
            *self = Self::new(depth, captured);
            self.last_delete = last_delete;
        } else {
            self.compact_if_due();
        }
        true
    }

    /// Takes the records whose next hash bit is set out into a new table; both share one bit more than before.
    pub(super) fn split(&mut self) -> Self {
        assert!(self.depth < 32, "the tag has the bit to split by");
        let bit = 1 << (31 - self.depth);
        let mut halves = [Self::new(self.depth + 1, self.captured), Self::new(self.depth + 1, self.captured)];
        for half in &mut halves {
            half.last_delete = self.last_delete;
        }
        let right_records = self.slots.iter().filter(|slot| slot.tag & bit != 0).count();
        let [left, right] = &mut halves;
        // A table whose records all stay on one side is handed on as it is: loading in hash order does this often.
        if right_records == 0 {
            self.depth += 1;
            return std::mem::replace(right, Self::new(0, 0));
        }
        if right_records == self.len() {
            self.depth += 1;
            return std::mem::replace(self, std::mem::replace(left, Self::new(0, 0)));
        }
        left.reserve(self.len() - right_records);
        right.reserve(right_records);
        for slot in &self.slots {
            let half = if slot.tag & bit == 0 { &mut *left } else { &mut *right };
            half.adopt(*slot, self.blocks.at(slot.position), &mut self.large);
        }
        let [left, right] = halves;
        *self = left;
        right
    }

    /// Makes room for so many more records.
    pub(super) fn reserve(&mut self, records: usize) {
        self.slots.reserve(records, |slot| spread(slot.tag));
    }

    /// Takes over a record of another table, its large value included.
    fn adopt(&mut self, slot: Slot, stored: &[u8], from: &mut [Option<Large>]) {
        let head = Head::read(stored);
        let position = self.blocks.append_copy(stored);
        if let Some(large_position) = head.large_position(stored) {
            let large = from[large_position as usize].take().expect("a record's large value is there");
            let own = self.put(large);
            record::set_large_position(self.blocks.at_mut(position), own);
        }
        if let Some(expires_at) = head.expires_at {
            self.earliest_expiry = self.earliest_expiry.min(expires_at.0);
        }
        self.live_bytes += head.used_bytes();
        self.slots.insert_unique(spread(slot.tag), Slot { position, tag: slot.tag }, |slot| spread(slot.tag));
    }

    /// Copies the live records into new blocks once a third of the old ones is garbage.
    fn compact_if_due(&mut self) {
        if self.garbage_bytes < GARBAGE_BYTES_MIN || self.garbage_bytes * 2 < self.live_bytes {
            return;
        }
        let old = std::mem::take(&mut self.blocks);
        self.live_bytes = 0;
        self.garbage_bytes = 0;
        for slot in &mut self.slots {
            let stored = old.at(slot.position);
            self.live_bytes += Head::read(stored).used_bytes();
            slot.position = self.blocks.append_copy(stored);
        }
        if self.slots.len() * 8 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2, |slot| spread(slot.tag));
        }
    }

    fn put_large(&mut self, value: &[u8]) -> Option<u32> {
        if value.len() < LARGE_VALUE_BYTES {
            return None;
        }
        Some(self.put(Large { bytes: Arc::from(value), hash: xxhash_rust::xxh3::xxh3_64(value) }))
    }

    fn put(&mut self, large: Large) -> u32 {
        self.large_bytes += large.bytes.len();
        if let Some(position) = self.large_free.pop() {
            self.large[position as usize] = Some(large);
            return position;
        }
        self.large.push(Some(large));
        u32::try_from(self.large.len() - 1).expect("a table holds far fewer than 2^32 records")
    }

    fn drop_large(&mut self, position: u32) {
        let large = self.large[position as usize].take().expect("a record's large value is there");
        self.large_bytes -= large.bytes.len();
        self.large_free.push(position);
    }

    /// The slots of all records, in no order that matters.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().copied()
    }

    /// The slots of all records in the order in which these stand in memory, for a pass over all of them: reading in
    /// that order costs far less than the sort.
    pub(super) fn slots_as_stored(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.slots().collect();
        slots.sort_unstable_by_key(|slot| slot.position);
        slots
    }

    /// The record of a slot of this table.
    #[inline]
    pub(super) fn record(&self, slot: Slot) -> Record<'_> {
        let stored = self.blocks.at(slot.position);
        let head = Head::read(stored);
        let tail = head.tail(stored);
        let large = head
            .large_position(stored)
            .map(|position| self.large[position as usize].as_ref().expect("a record's large value is there"));
        Record {
            key: head.key(stored),
            value: large.map_or(tail, |large| &large.bytes),
            version: head.version,
            expires_at: head.expires_at,
            flags: head.flags,
            large,
        }
    }

    /// The digest of the whole table; reads every record, but no large value.
    pub(super) fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for slot in self.slots_as_stored() {
            let record = self.record(slot);
            digest.add_record(hash_of(record.key), &record);
        }
        digest
    }

    /// Takes the keys that ended by `now`, at most `keys_max`, and learns the earliest expiry of the others.
    pub(super) fn overdue(&mut self, now: Millis, keys_max: usize, keys: &mut Vec<Vec<u8>>) {
        let mut earliest = u64::MAX;
        for slot in self.slots.iter() {
            let stored = self.blocks.at(slot.position);
            let head = Head::read(stored);
            let Some(expires_at) = head.expires_at else { continue };
            earliest = earliest.min(expires_at.0);
            if expires_at <= now && keys.len() < keys_max {
                keys.push(head.key(stored).to_vec());
            }
        }
        self.earliest_expiry = earliest;
    }
}
