//! Keys to numbers: a hash table in parts, so that no single growth takes long.
//!
//! Holds numbers only; whoever uses it keeps the keys and says which number belongs to which key. Nothing is read out in
//! the order of the table.

use crate::ids::KeyHash;
use hashbrown::HashTable;

/// Number of parts: at a million keys a part grows in some 50 us.
const PARTS: usize = 1024;

/// Numbers by the hash of their key.
#[derive(Debug)]
pub(crate) struct KeyTable {
    parts: Box<[HashTable<u32>]>,
    entries: usize,
}

impl Default for KeyTable {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| HashTable::new()).collect(), entries: 0 }
    }
}

/// The middle bits: the lowest ones place a key among shards, the table itself uses the ends.
fn part_of(hash: KeyHash) -> usize {
    (hash.0 >> 24) as usize % PARTS
}

impl KeyTable {
    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// The number under this hash for which `is_it` holds.
    pub(crate) fn find(&self, hash: KeyHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.parts[part_of(hash)].find(hash.0, |number| is_it(*number)).copied()
    }

    /// Adds a number that is not there; `hash_of_number` tells the hash of any other one.
    pub(crate) fn insert(&mut self, hash: KeyHash, number: u32, hash_of_number: impl Fn(u32) -> KeyHash) {
        self.parts[part_of(hash)].insert_unique(hash.0, number, |other| hash_of_number(*other).0);
        self.entries += 1;
    }

    /// Takes a number out; whether it was there.
    pub(crate) fn remove(&mut self, hash: KeyHash, number: u32) -> bool {
        match self.parts[part_of(hash)].find_entry(hash.0, |other| *other == number) {
            Ok(entry) => {
                entry.remove();
                self.entries -= 1;
                true
            }
            Err(_) => false,
        }
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        PARTS * size_of::<HashTable<u32>>() + self.entries * 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::hash_of;

    #[test]
    fn numbers_are_found_until_they_are_removed() {
        let mut table = KeyTable::default();
        let key = |number: u32| number.to_string().into_bytes();
        for number in 0..20_000 {
            table.insert(hash_of(&key(number)), number, |other| hash_of(&key(other)));
        }
        for number in (0..20_000).step_by(2) {
            assert!(
                table.remove(hash_of(&key(number)), number) && !table.remove(hash_of(&key(number)), number)
            );
        }
        assert_eq!(table.len(), 10_000);
        for number in 0..20_000 {
            let found = table.find(hash_of(&key(number)), |other| other == number);
            assert_eq!(found, (number % 2 == 1).then_some(number));
        }
    }
}
