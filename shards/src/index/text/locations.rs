//! Where each indexed key's live document is: (part, document), found by the hash of the key.
//!
//! Keys are not stored here: the caller compares them. Split into sub-tables, so that growth moves little at a time.

use super::super::super::ids::KeyHash;
use hashbrown::HashTable;

const TABLES: usize = 1024;

/// A document's place. May name a part that was merged away, until the relocation has passed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) part: u32,
    pub(crate) document: u32,
}

#[derive(Debug)]
pub(crate) struct Locations {
    tables: Vec<HashTable<Location>>,
    count: usize,
}

impl Default for Locations {
    fn default() -> Self {
        Self { tables: (0..TABLES).map(|_| HashTable::new()).collect(), count: 0 }
    }
}

/// The sub-table of a hash: bits that hashbrown uses for neither its tag nor its place.
fn table_of(hash: KeyHash) -> usize {
    (hash.0 >> 36) as usize % TABLES
}

impl Locations {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn find_mut(
        &mut self,
        hash: KeyHash,
        same: impl FnMut(&Location) -> bool,
    ) -> Option<&mut Location> {
        self.tables[table_of(hash)].find_mut(hash.0, same)
    }

    pub(crate) fn remove(&mut self, hash: KeyHash, same: impl FnMut(&Location) -> bool) -> Option<Location> {
        let entry = self.tables[table_of(hash)].find_entry(hash.0, same).ok()?;
        self.count -= 1;
        Some(entry.remove().0)
    }

    /// Adds the location of a key that has none; `hash_of` gives the hash of a location's key.
    pub(crate) fn insert(
        &mut self,
        hash: KeyHash,
        location: Location,
        hash_of: impl Fn(&Location) -> KeyHash,
    ) {
        self.tables[table_of(hash)].insert_unique(hash.0, location, |other| hash_of(other).0);
        self.count += 1;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.tables.iter().map(|table| table.allocation_size()).sum::<usize>()
            + TABLES * size_of::<HashTable<Location>>()
    }
}
