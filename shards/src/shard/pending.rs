//! Which keys have writes on the way from admission to apply: a counting filter that never says no wrongly.
//!
//! A linearizable read of a key with a write before it waits for that write, so that one connection sees its own writes
//! in order; every other read is answered at once. A false yes costs a read one commit of waiting.

use crate::ids::KeyHash;

/// log2 of the number of counters. With 800 writes in flight one read in twenty waits for nothing.
const BITS: u32 = 14;

/// Counts of pending writes by the upper bits of the key's hash.
#[derive(Debug)]
pub(super) struct Pending {
    counts: Vec<u32>,
    /// Commands of so many keys that marking each would make nearly every counter say yes.
    large: u32,
}

/// Bytes of items from which a command counts as one that writes any key: some thousands of keys.
const LARGE_BYTES: usize = 256 << 10;

impl Default for Pending {
    fn default() -> Self {
        Self { counts: vec![0; 1 << BITS], large: 0 }
    }
}

impl Pending {
    /// A write of this key is on its way.
    pub(super) fn add(&mut self, hash: KeyHash) {
        self.counts[bucket(hash)] += 1;
    }

    /// A write of this key is applied or given up.
    pub(super) fn remove(&mut self, hash: KeyHash) {
        let count = &mut self.counts[bucket(hash)];
        *count = count.checked_sub(1).expect("every pending write was added before");
    }

    /// Forgets every write: none of those on their way is this leader's any more.
    pub(super) fn clear(&mut self) {
        self.counts.fill(0);
        self.large = 0;
    }

    /// A command that writes these items is on its way, if its items are large; tells whether they are.
    pub(super) fn add_large(&mut self, items: &[u8]) -> bool {
        let is_large = items.len() >= LARGE_BYTES;
        self.large += u32::from(is_large);
        is_large
    }

    /// The same for a command that is applied or given up.
    pub(super) fn remove_large(&mut self, items: &[u8]) -> bool {
        let is_large = items.len() >= LARGE_BYTES;
        let left = self.large.checked_sub(u32::from(is_large));
        self.large = left.expect("every pending write was added before");
        is_large
    }

    /// Whether a write of this key may be on its way.
    pub(super) fn may_have(&self, hash: KeyHash) -> bool {
        self.large > 0 || self.counts[bucket(hash)] > 0
    }
}

/// Middle bits: the uppermost choose the shard, so within one shard they are alike.
fn bucket(hash: KeyHash) -> usize {
    (hash.0 as usize >> 8) & ((1 << BITS) - 1)
}
