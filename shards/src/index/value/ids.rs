//! Small numbers for the keys that value indexes hold, so that sets of keys are bitmaps.
//!
//! All value indexes of a shard share them; a key has a number while any of them has an entry of it. Numbers are used again,
//! so a set of them speaks only for records that have not changed since it was made.

use crate::ids::hash_of;
use crate::index::keys::KeyTable;
use std::cell::RefCell;
use std::rc::Rc;

/// Numbers are kept in pieces of so many, so that none is ever copied.
const PIECE: usize = 4096;

/// The numbers, shared by the value indexes of a shard.
pub(crate) type SharedIds = Rc<RefCell<DocumentIds>>;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct DocumentIds {
    by_key: KeyTable,
    /// By number: the key, and how many entries it has in all indexes.
    pieces: Vec<Vec<(Box<[u8]>, u32)>>,
    free: Vec<u32>,
}

impl DocumentIds {
    /// Numbers are below this.
    pub(crate) fn end(&self) -> u32 {
        self.pieces.last().map_or(0, |last| ((self.pieces.len() - 1) * PIECE + last.len()) as u32)
    }

    fn key(&self, id: u32) -> &[u8] {
        &self.pieces[id as usize / PIECE][id as usize % PIECE].0
    }

    /// The number of a key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.find(hash_of(key), |id| self.key(id) == key)
    }

    /// The number of a key that gets one more entry.
    pub(super) fn acquire(&mut self, key: &[u8]) -> u32 {
        if let Some(id) = self.find(key) {
            self.pieces[id as usize / PIECE][id as usize % PIECE].1 += 1;
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                self.pieces[id as usize / PIECE][id as usize % PIECE] = (key.into(), 1);
                id
            }
            None => {
                if self.pieces.last().is_none_or(|last| last.len() == PIECE) {
                    self.pieces.push(Vec::with_capacity(PIECE));
                }
                let id = self.end();
                let last = self.pieces.last_mut().expect("a piece with room was made");
                last.push((key.into(), 1));
                id
            }
        };
        let Self { by_key, pieces, .. } = self;
        by_key.insert(hash_of(key), id, |id| hash_of(&pieces[id as usize / PIECE][id as usize % PIECE].0));
        id
    }

    /// An entry of the key with this number is gone.
    pub(super) fn release(&mut self, id: u32) {
        let slot = &mut self.pieces[id as usize / PIECE][id as usize % PIECE];
        assert!(slot.1 > 0, "an entry holds its key's number");
        slot.1 -= 1;
        if slot.1 == 0 {
            let key = std::mem::take(&mut slot.0);
            assert!(self.by_key.remove(hash_of(&key), id), "a key with entries is known");
            self.free.push(id);
        }
    }

    /// Number of keys.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_last_as_long_as_entries() {
        let mut ids = DocumentIds::default();
        let (a, b) = (ids.acquire(b"a"), ids.acquire(b"b"));
        assert_eq!((ids.acquire(b"a"), ids.find(b"b"), ids.end(), ids.len()), (a, Some(b), 2, 2));
        ids.release(a);
        assert_eq!(ids.find(b"a"), Some(a));
        ids.release(a);
        assert_eq!((ids.find(b"a"), ids.acquire(b"c"), ids.end()), (None, a, 2));
        for n in 0..2 * PIECE {
            ids.acquire(&n.to_le_bytes());
        }
        assert_eq!((ids.end() as usize, ids.len()), (2 * PIECE + 2, 2 * PIECE + 2));
    }
}
