//! What applying a command may touch: the key space, seen at the entry's stamp, and whoever follows changes.
//!
//! A record whose time to live is over at the stamp counts as absent, so that every replica judges alike whenever it
//! applies. Every change of a record goes through here, so that no index can miss one.

use crate::ids::{KeyHash, Millis, Version, hash_of};
use crate::mutants::{Mutant, is_on};
use crate::state::{Content, KeySpace, Record, RecordFlags};
use xxhash_rust::xxh3::xxh3_64;

/// Follows changes of records: the indexes.
pub trait Observer {
    /// Whether anything follows at all; if not, old values are not even copied.
    fn is_active(&self) -> bool;
    /// A record changed from `old` to `new`; `None` is absent.
    fn changed(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>);
}

/// The surroundings of one command while it is applied.
pub struct Context<'a> {
    /// The records of the shard.
    pub keys: &'a mut KeySpace,
    /// Told of every change.
    pub observer: &'a mut dyn Observer,
    /// The entry's time.
    pub stamp: Millis,
    /// The version that this command writes.
    pub version: Version,
}

impl Context<'_> {
    /// The record of a key, unless its time to live is over.
    pub fn live(&self, hash: KeyHash, key: &[u8]) -> Option<Record<'_>> {
        self.keys.get(hash, key).filter(|record| !is_over(record.expires_at, self.stamp))
    }

    /// Writes a record.
    pub fn put(&mut self, hash: KeyHash, key: &[u8], value: &[u8], expires_at: Option<Millis>, debug: bool) {
        if self.observer.is_active() {
            let old = self.keys.get(hash, key).map(|record| record.value.to_vec());
            self.observer.changed(key, old.as_deref(), Some(value));
        }
        let flags = if debug && draws_fault(self.version, hash) {
            RecordFlags::DEBUG_FAULT
        } else {
            RecordFlags::NONE
        };
        self.keys.set(hash, key, Content { value, version: self.version, expires_at, flags });
    }

    /// Removes a record, whether its time is over or not; tells whether there was a live one.
    pub fn take_out(&mut self, hash: KeyHash, key: &[u8]) -> bool {
        let Some(record) = self.keys.get(hash, key) else { return false };
        let was_live = !is_over(record.expires_at, self.stamp);
        if self.observer.is_active() {
            let old = record.value.to_vec();
            self.observer.changed(key, Some(&old), None);
        }
        self.keys.remove(hash, key, self.version);
        was_live
    }

    /// Removes the records of `keys` whose time to live is over; returns how many.
    pub fn expire<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>) -> u64 {
        let mut count = 0;
        for key in keys {
            let hash = hash_of(key);
            let over = self.keys.get(hash, key).is_some_and(|record| is_over(record.expires_at, self.stamp));
            if over || is_on(Mutant::ExpiredBlindly) {
                self.take_out(hash, key);
                count += 1;
            }
        }
        count
    }
}

/// Whether a time to live has ended.
pub fn is_over(expires_at: Option<Millis>, now: Millis) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

/// The one draw in a hundred of the debug fault mode: a hash of the version, so that every replica draws alike. The key
/// takes part so that the records of one batch draw apart.
fn draws_fault(version: Version, hash: KeyHash) -> bool {
    let mut bytes = [0u8; 20];
    bytes[..4].copy_from_slice(&version.epoch.to_le_bytes());
    bytes[4..12].copy_from_slice(&version.place.to_le_bytes());
    bytes[12..].copy_from_slice(&hash.0.to_le_bytes());
    xxh3_64(&bytes).is_multiple_of(100)
}
