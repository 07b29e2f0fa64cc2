//! Keys whose text is still to be indexed, each once, in order of their first change.

use crate::ids::hash_of;
use crate::mutants::{Mutant, is_on};
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::rc::Rc;

/// Keys to be indexed, in order of their first change.
#[derive(Default)]
pub(super) struct Backlog {
    queue: VecDeque<(u64, Rc<[u8]>)>,
    keys: HashTable<Rc<[u8]>>,
}

impl Backlog {
    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The position of the oldest change that is still to be indexed; beyond all if there is none.
    pub(super) fn first_position(&self) -> u64 {
        self.queue.front().map_or(u64::MAX, |(position, _)| *position)
    }

    pub(super) fn push(&mut self, key: &[u8], position: u64) {
        if is_on(Mutant::BacklogForgets) && position.is_multiple_of(16) {
            return;
        }
        let hash = hash_of(key).0;
        if self.keys.find(hash, |known| **known == *key).is_some() {
            return;
        }
        let key: Rc<[u8]> = key.into();
        self.keys.insert_unique(hash, Rc::clone(&key), |other| hash_of(other).0);
        self.queue.push_back((position, key));
    }

    pub(super) fn pop(&mut self) -> Option<(u64, Rc<[u8]>)> {
        let (position, key) = self.queue.pop_front()?;
        if let Ok(entry) = self.keys.find_entry(hash_of(&key).0, |known| **known == *key) {
            entry.remove();
        }
        Some((position, key))
    }
}
