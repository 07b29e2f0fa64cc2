//! The records of one shard: an extendible directory of small tables, split by the leading bits of xxh3_64(key).
//!
//! Growth never stalls: a table that is full splits in two by its next hash bit, and when it already uses every bit of
//! the directory, the directory doubles, which copies four bytes an entry (Fagin et al., "Extendible Hashing", 1979).
//! One table is the largest unit of work anywhere: split, compaction, its part of a snapshot. Tables never merge.
//!
//! The caller gives the hash with every key; it must be [`hash_of`](crate::ids::hash_of) of it.

use super::cut::Cut;
use super::digest::Digest;
use super::record::{Content, KEY_BYTES_MAX, Record, VALUE_BYTES_MAX};
use super::table::Table;
use crate::ids::{KeyHash, Version};

/// When a table is full. Tests make tables small; the server uses the defaults.
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// Most records in one table.
    pub records_max: usize,
    /// Most bytes of records in the blocks of one table.
    pub inline_bytes_max: usize,
    /// Most bytes of values out of line, as long as there are [`Self::large_records_min`] records.
    pub large_bytes_max: usize,
    /// Fewer records than this are never split for their large values: the directory would grow faster than the data.
    pub large_records_min: usize,
}

impl Default for TableLimits {
    /// 3,584 records fill seven eighths of 4,096 buckets, the most that the index takes before it doubles.
    fn default() -> Self {
        Self { records_max: 3584, inline_bytes_max: 1 << 20, large_bytes_max: 2 << 20, large_records_min: 16 }
    }
}

/// Most hash bits that the directory uses; below the 32 that a table's slots keep.
const DEPTH_MAX: u8 = 28;
/// A directory up to this size may double whatever the number of tables.
const DIRECTORY_FREE: usize = 1024;
/// A larger one only while it has at most so many entries a table, so that keys chosen to collide grow one slow table
/// and not the directory.
const ENTRIES_PER_TABLE_MAX: usize = 16;

/// How many lookups are read ahead together.
const TOUCH_BATCH: usize = 32;

/// The records of one shard.
#[derive(Debug)]
pub struct KeySpace {
    /// Table of each value of the leading `depth` hash bits.
    directory: Vec<u32>,
    depth: u8,
    pub(super) tables: Vec<Table>,
    records: usize,
    table_bytes: usize,
    limits: TableLimits,
    /// A delete version that stands in for those from before a snapshot was loaded.
    delete_floor: Version,
    /// Rises with every snapshot; a table whose `captured` is lower has not been written to it.
    pub(super) generation: u32,
    pub(super) cut: Option<Cut>,
}

impl Default for KeySpace {
    fn default() -> Self {
        Self::new(TableLimits::default())
    }
}

impl KeySpace {
    /// An empty key space.
    pub fn new(limits: TableLimits) -> Self {
        assert!(limits.records_max > 0 && limits.inline_bytes_max > 0, "a table holds something");
        let table = Table::new(0, 0);
        Self {
            directory: vec![0],
            depth: 0,
            table_bytes: table.memory_bytes(),
            tables: vec![table],
            records: 0,
            limits,
            delete_floor: Version::default(),
            generation: 0,
            cut: None,
        }
    }

    /// From now on tables are split at these limits.
    pub fn set_limits(&mut self, limits: TableLimits) {
        assert!(limits.records_max > 0 && limits.inline_bytes_max > 0, "a table holds something");
        self.limits = limits;
    }

    /// Number of records, overdue ones included.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Number of tables.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Bytes allocated for tables, records, values and directory; kept up to date by every change. What a running
    /// snapshot still holds is apart: [`Self::cut_pending_bytes`].
    pub fn bytes(&self) -> usize {
        let spare_tables = self.tables.capacity() - self.tables.len();
        self.table_bytes + self.directory.capacity() * size_of::<u32>() + spare_tables * size_of::<Table>()
    }

    /// The record of a key.
    #[inline]
    pub fn get(&self, hash: KeyHash, key: &[u8]) -> Option<Record<'_>> {
        self.tables[self.table_of(hash)].get(hash, key)
    }

    /// Reads ahead for a batch of lookups, so that their cache misses overlap instead of adding up. A driver that has
    /// several requests at hand calls this with their hashes and then handles them one by one. No effect on any answer;
    /// the number returned says nothing.
    pub fn touch_many(&self, hashes: &[KeyHash]) -> u64 {
        // Index first, records second: two short loops keep more loads in flight than one with a chain of two.
        let mut positions = [(0, None); TOUCH_BATCH];
        let mut sum = 0u64;
        for batch in hashes.chunks(TOUCH_BATCH) {
            for (position, hash) in positions.iter_mut().zip(batch) {
                let number = self.table_of(*hash);
                *position = (number, self.tables[number].likely_position(*hash));
            }
            for (number, position) in &positions[..batch.len()] {
                if let Some(position) = position {
                    sum = sum.wrapping_add(u64::from(self.tables[*number].touch(*position)));
                }
            }
        }
        std::hint::black_box(sum)
    }

    /// Stores a record over any that the key has; whether there was one.
    pub fn set(&mut self, hash: KeyHash, key: &[u8], content: Content<'_>) -> bool {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "the command checked the key's length");
        assert!(content.value.len() <= VALUE_BYTES_MAX, "the command checked the value's length");
        let mut number = self.table_of(hash);
        if let Some(position) = self.tables[number].position_in_place(hash, key, &content) {
            // Nothing grows and nothing shrinks, so there is nothing to split or to count.
            self.keep_before_change(number, hash, key);
            self.tables[number].overwrite(position, key, content);
            return true;
        }
        while self.is_full(number) && self.split(hash) {
            number = self.table_of(hash);
        }
        self.keep_before_change(number, hash, key);
        let table = &mut self.tables[number];
        let before = table.memory_bytes();
        let replaced = table.set(hash, key, content);
        self.table_bytes = self.table_bytes + table.memory_bytes() - before;
        self.records += usize::from(!replaced);
        replaced
    }

    /// Removes a key by a write of this version; whether it was there. A removal of an absent key changes nothing.
    pub fn remove(&mut self, hash: KeyHash, key: &[u8], version: Version) -> bool {
        let number = self.table_of(hash);
        if self.cut.is_some() {
            if self.tables[number].get(hash, key).is_none() {
                return false;
            }
            self.keep_before_change(number, hash, key);
        }
        let table = &mut self.tables[number];
        let before = table.memory_bytes();
        let removed = table.remove(hash, key, version);
        self.table_bytes = self.table_bytes + table.memory_bytes() - before;
        self.records -= usize::from(removed);
        removed
    }

    /// A version that changes whenever a key near this hash is deleted: two equal answers around a read of an absent
    /// key mean that it was absent throughout. Depends on the history of splits, so compare answers of one replica, or
    /// of several at the price of a needless retry.
    pub fn last_delete(&self, hash: KeyHash) -> Version {
        self.tables[self.table_of(hash)].last_delete.max(self.delete_floor)
    }

    /// Lets no [`Self::last_delete`] be older than this. A loaded state gets the last version of the snapshot's index,
    /// because the deletes before it are forgotten.
    pub fn raise_delete_floor(&mut self, version: Version) {
        self.delete_floor = self.delete_floor.max(version);
    }

    /// Number and digest of all records. Reads every record: for tests and for a state already stopped; a snapshot
    /// gives the same figures table by table.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for table in &self.tables {
            digest.add(table.digest());
        }
        digest
    }

    /// Number and digest of the records of the table that holds `from`, and where the next table begins (`None` after
    /// the last). Adds up to [`Self::digest`] over a whole pass, one table a step, when nothing changes meanwhile.
    pub fn digest_table(&self, from: KeyHash) -> (Digest, Option<KeyHash>) {
        (self.tables[self.table_of(from)].digest(), self.table_end(from))
    }

    /// Number and digest of the records with `first <= hash <= last`, whatever tables they stand in, so that states
    /// with different histories compare range by range.
    pub fn digest_range(&self, first: KeyHash, last: KeyHash) -> Digest {
        let mut digest = Digest::default();
        let mut next = Some(first);
        while let Some(from) = next.filter(|from| *from <= last) {
            let table = &self.tables[self.table_of(from)];
            for slot in table.slots() {
                let record = table.record(slot);
                let hash = crate::ids::hash_of(record.key);
                if first <= hash && hash <= last {
                    digest.add_record(hash, &record);
                }
            }
            next = self.table_end(from);
        }
        digest
    }

    /// Prepares an empty key space for the records of a table that shared `depth` leading bits with `hash`, as far as
    /// the bounds of the directory allow. Only a hint: content never depends on it.
    pub(crate) fn expect_table(&mut self, hash: KeyHash, depth: u8, records: usize) {
        let mut number = self.table_of(hash);
        while self.tables[number].depth < depth && self.tables[number].len() == 0 && self.split(hash) {
            number = self.table_of(hash);
        }
        let table = &mut self.tables[number];
        let before = table.memory_bytes();
        table.reserve(records.min(self.limits.records_max.saturating_sub(table.len())));
        self.table_bytes = self.table_bytes + table.memory_bytes() - before;
    }

    /// The table that holds the keys of this hash.
    #[inline]
    pub(super) fn table_of(&self, hash: KeyHash) -> usize {
        self.directory[self.entry_of(hash)] as usize
    }

    /// Where the keys of the next table begin.
    pub(super) fn table_end(&self, hash: KeyHash) -> Option<KeyHash> {
        let depth = self.tables[self.table_of(hash)].depth;
        if depth == 0 {
            return None;
        }
        let shift = 64 - u32::from(depth);
        ((hash.0 >> shift) + 1).checked_mul(1 << shift).map(KeyHash)
    }

    #[inline]
    fn entry_of(&self, hash: KeyHash) -> usize {
        // Two shifts, because a shift by 64 would overflow in a directory of one entry.
        (hash.0 >> 1 >> (63 - u32::from(self.depth))) as usize
    }

    fn is_full(&self, number: usize) -> bool {
        let (table, limits) = (&self.tables[number], &self.limits);
        table.len() >= limits.records_max
            || table.live_bytes() >= limits.inline_bytes_max
            || (table.large_bytes() >= limits.large_bytes_max && table.len() >= limits.large_records_min)
    }

    /// Splits the table of this hash, doubling the directory if need be; false when the bounds forbid it and the table
    /// has to hold more than its limits say.
    fn split(&mut self, hash: KeyHash) -> bool {
        let number = self.table_of(hash);
        let depth = self.tables[number].depth;
        if depth == self.depth && !self.double_directory() {
            return false;
        }
        // What is kept of a table is found by its number and its place among all hashes, which change now.
        if self.cut.is_some() && self.tables[number].captured != self.generation {
            self.capture(number);
        }
        let before = self.tables[number].memory_bytes();
        let right = self.tables[number].split();
        let left = &self.tables[number];
        assert_eq!((left.depth, right.depth), (depth + 1, depth + 1), "both halves share one bit more");
        self.table_bytes = self.table_bytes + left.memory_bytes() + right.memory_bytes() - before;
        let right_number = u32::try_from(self.tables.len()).expect("memory ends before 2^32 tables");
        self.tables.push(right);
        // The entries of a table stand together; the upper half of them now belongs to the new one.
        let span = 1usize << (self.depth - depth);
        let first = self.entry_of(hash) & !(span - 1);
        for entry in &mut self.directory[first + span / 2..first + span] {
            assert_eq!(*entry as usize, number, "the entries of a table stand together");
            *entry = right_number;
        }
        true
    }

    fn double_directory(&mut self) -> bool {
        let entries = self.directory.len();
        let sparse = entries >= DIRECTORY_FREE && entries >= self.tables.len() * ENTRIES_PER_TABLE_MAX;
        if self.depth >= DEPTH_MAX || sparse {
            return false;
        }
        let mut doubled = Vec::with_capacity(entries * 2);
        for entry in &self.directory {
            doubled.extend([*entry, *entry]);
        }
        self.directory = doubled;
        self.depth += 1;
        true
    }
}
