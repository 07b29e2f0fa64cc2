//! Value indexes: the keys of objects in the order of the values at a path.

pub mod encode;
pub(crate) mod ids;
mod page;

pub use page::{Page, PageEntry, PageRequest, merge_pages};

use super::Units;
use super::codec::{Corrupt, Reader, put_bytes, put_varint_u64};
use super::extract::{Scalar, Walker};
use crate::mutants::{Mutant, is_on};
use ids::SharedIds;
use std::collections::BTreeMap;

/// The value index of one path in one shard.
///
/// One ordered set of (encoded value, key), each with the key's number; an entry costs its bytes, a 16-byte pointer, a number,
/// an allocation's header and its share of half-empty nodes: about 56 bytes over value and key. Keys with several values (arrays) are listed apart too, so
/// that a query can tell which of them comes first. Building is idempotent: entries of a key are set from its value.
#[derive(Debug, Default)]
pub struct ValueIndex {
    path: Vec<u8>,
    /// Each with the number of its key.
    entries: BTreeMap<Box<[u8]>, u32>,
    ids: SharedIds,
    /// The distinct encoded values, in order, of keys that have more than one.
    several: BTreeMap<Box<[u8]>, Vec<Box<[u8]>>>,
    bytes: usize,
    walker: Walker,
    /// While a snapshot is written: entries that changed since it began, and whether they were there then.
    frozen: Option<BTreeMap<Box<[u8]>, bool>>,
}

const SECTION_VERSION: u8 = 1;
/// Bytes that an entry takes beyond its own; its key's number comes on top, once for all indexes of a shard.
const ENTRY_OVERHEAD_BYTES: usize = 56;

impl ValueIndex {
    /// An empty index of the scalars at an escaped path.
    pub fn new(path: &str) -> Self {
        Self::sharing(path, &SharedIds::default())
    }

    /// An empty index that shares the numbers of keys with other ones.
    pub(crate) fn sharing(path: &str, ids: &SharedIds) -> Self {
        Self { path: path.as_bytes().to_vec(), ids: SharedIds::clone(ids), ..Self::default() }
    }

    /// Gives the numbers of all its keys back, before it is dropped.
    pub(crate) fn release_ids(&mut self) {
        let mut ids = self.ids.borrow_mut();
        std::mem::take(&mut self.entries).into_values().for_each(|id| ids.release(id));
    }

    /// Number of entries: a key has one for each distinct value at the path.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes + self.entries.len() * ENTRY_OVERHEAD_BYTES
    }

    /// A record has changed from `old` to `new`, each a JSON token or absent.
    pub fn apply(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        let before =
            old.filter(|_| !is_on(Mutant::OldEntryStays)).map_or_else(Vec::new, |value| self.values(value));
        let after = new.map_or_else(Vec::new, |value| self.values(value));
        if before == after {
            // Also the first sight of a record whose entries a build has not made yet.
            self.insert_all(key, &after);
            return;
        }
        for value in &before {
            let entry = entry_of(value, key);
            if let Some(id) = self.entries.remove(&entry) {
                self.ids.borrow_mut().release(id);
                self.bytes -= entry.len();
                if let Some(frozen) = &mut self.frozen {
                    frozen.entry(entry).or_insert(true);
                }
            }
        }
        if before.len() > 1
            && let Some(values) = self.several.remove(key)
        {
            self.bytes -= several_bytes(key, &values);
        }
        self.insert_all(key, &after);
    }

    fn insert_all(&mut self, key: &[u8], values: &[Box<[u8]>]) {
        for value in values {
            let entry = entry_of(value, key);
            if self.entries.contains_key(&entry) {
                continue;
            }
            if let Some(frozen) = &mut self.frozen {
                frozen.entry(entry.clone()).or_insert(false);
            }
            self.bytes += entry.len();
            let id = self.ids.borrow_mut().acquire(key);
            self.entries.insert(entry, id);
        }
        if values.len() > 1 && !self.several.contains_key(key) {
            self.bytes += several_bytes(key, values);
            self.several.insert(key.into(), values.to_vec());
        }
    }

    /// The distinct encoded values at the path, in order.
    fn values(&mut self, value: &[u8]) -> Vec<Box<[u8]>> {
        let mut found: Vec<Box<[u8]>> = Vec::new();
        let Self { path, walker, .. } = self;
        each_value(walker, value, path, |scalar| {
            let mut bytes = Vec::new();
            if encode::encode(scalar, &mut bytes) {
                found.push(bytes.into());
            }
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    /// From now on [`ValueIndex::write_section`] writes the index as it is now, until [`ValueIndex::end_snapshot`].
    pub fn begin_snapshot(&mut self) {
        self.frozen = Some(BTreeMap::new());
    }

    /// Forgets what the snapshot needed.
    pub fn end_snapshot(&mut self) {
        self.frozen = None;
    }

    /// Writes entries from `after` on (empty: from the start) until `units` are spent; returns where to go on.
    pub fn write_section(&self, after: &[u8], units: &mut Units, out: &mut Vec<u8>) -> Option<Box<[u8]>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = if after.is_empty() { Unbounded } else { Excluded(after) };
        let nothing = BTreeMap::new();
        let frozen = self.frozen.as_ref().unwrap_or(&nothing);
        let now = self.entries.range::<[u8], _>((start, Unbounded)).map(|(entry, _)| entry);
        let now = now.filter(|entry| !frozen.contains_key(*entry));
        let then = frozen
            .range::<[u8], _>((start, Unbounded))
            .filter(|(_, was_there)| **was_there)
            .map(|(entry, _)| entry);
        let (mut now, mut then) = (now.peekable(), then.peekable());
        let mut taken: Vec<&[u8]> = Vec::new();
        let mut more = None;
        loop {
            let entry = match (now.peek(), then.peek()) {
                (Some(left), Some(right)) if left < right => now.next(),
                (Some(_), None) => now.next(),
                _ => then.next(),
            };
            let Some(entry) = entry else { break };
            if !units.left() && !taken.is_empty() {
                more = taken.last().map(|last| Box::from(*last));
                break;
            }
            units.spend(4 + entry.len() as u64 / 64);
            taken.push(entry);
        }
        out.push(SECTION_VERSION);
        put_varint_u64(out, taken.len() as u64);
        taken.iter().for_each(|entry| put_bytes(out, entry));
        more
    }

    /// Adds the entries of one written section.
    ///
    /// # Errors
    /// The bytes are no section.
    pub fn load_section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != SECTION_VERSION {
            return Err(Corrupt("version of a value section"));
        }
        for _ in 0..reader.count(1)? {
            let entry = reader.bytes()?;
            let length = encode::encoded_length(entry).ok_or(Corrupt("value entry"))?;
            if length >= entry.len() {
                return Err(Corrupt("value entry without a key"));
            }
            if !self.entries.contains_key(entry) {
                let id = self.ids.borrow_mut().acquire(&entry[length..]);
                self.entries.insert(entry.into(), id);
                self.bytes += entry.len();
            }
        }
        if reader.is_empty() { Ok(()) } else { Err(Corrupt("bytes after a value section")) }
    }

    /// Completes a load: finds the keys with several values. Costs a pass over the entries.
    pub fn finish_load(&mut self) {
        let mut by_key: BTreeMap<&[u8], Vec<Box<[u8]>>> = BTreeMap::new();
        for entry in self.entries.keys() {
            let (value, key) = split(entry);
            by_key.entry(key).or_default().push(value.into());
        }
        let several = by_key.into_iter().filter(|(_, values)| values.len() > 1);
        self.several = several.map(|(key, values)| (key.into(), values)).collect();
        self.bytes += self.several.iter().map(|(key, values)| several_bytes(key, values)).sum::<usize>();
    }
}

/// Calls `each` for every scalar of a JSON token at exactly `path`, arrays being transparent.
pub(crate) fn each_value(walker: &mut Walker, value: &[u8], path: &[u8], mut each: impl FnMut(Scalar<'_>)) {
    let first = value.iter().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(first, Some(b'{' | b'[')) {
        return;
    }
    walker.walk(value, |at, scalar| {
        if at == path {
            each(scalar);
        }
    });
}

fn several_bytes(key: &[u8], values: &[Box<[u8]>]) -> usize {
    key.len()
        + ENTRY_OVERHEAD_BYTES
        + values.iter().map(|value| value.len() + ENTRY_OVERHEAD_BYTES / 2).sum::<usize>()
}

fn entry_of(value: &[u8], key: &[u8]) -> Box<[u8]> {
    [value, key].concat().into()
}

/// The encoded value and the key of an entry.
fn split(entry: &[u8]) -> (&[u8], &[u8]) {
    let length = encode::encoded_length(entry).expect("an entry begins with an encoded value");
    entry.split_at(length)
}
