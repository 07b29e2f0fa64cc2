//! Walking the key space in pages: for SCAN in the order of (hash, key), and for overdue records table by table.
//!
//! The order of a scan depends on the keys alone, so a position stays good while tables split, on another replica and
//! after a restart: a key that is present throughout comes exactly once.

use super::keyspace::KeySpace;
use super::record::Record;
use super::table::{Slot, Table, tag_of};
use crate::ids::{KeyHash, Millis, hash_of};

/// A place in the order of (hash, key): just behind the key that it names, or before every key of its hash.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// Hash of the last key seen, or the first hash to see.
    pub hash: KeyHash,
    /// The last key seen; empty for none of this hash.
    pub key: Vec<u8>,
}

/// How a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// Where to go on; `None` after the last key.
    pub next: Option<Position>,
    /// Records looked at, those without the prefix included.
    pub examined: usize,
}

/// Keys whose expiry passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverduePage {
    /// The keys, in no particular order.
    pub keys: Vec<Vec<u8>>,
    /// Where to go on; `None` after the last table.
    pub next: Option<KeyHash>,
}

impl KeySpace {
    /// Gives up to `limit` records with this prefix behind `from` to `each`, looking at no more than about `budget`
    /// records and visiting at least one table, so that repeated calls come to an end.
    pub fn scan(
        &self,
        from: &Position,
        prefix: &[u8],
        limit: usize,
        budget: usize,
        mut each: impl FnMut(&Record<'_>),
    ) -> ScanPage {
        assert!(limit > 0 && budget > 0, "a page asks for something");
        let (mut after_hash, mut after_key) = (from.hash, from.key.as_slice());
        let (mut given, mut examined) = (0, 0);
        loop {
            let table = &self.tables[self.table_of(after_hash)];
            let wanted = if prefix.is_empty() { limit - given } else { usize::MAX };
            for (hash, slot) in ordered(table, after_hash, after_key, wanted.min(budget - examined)) {
                let record = table.record(slot);
                examined += 1;
                if record.key.starts_with(prefix) {
                    each(&record);
                    given += 1;
                }
                if given == limit || examined == budget {
                    return ScanPage { next: Some(Position { hash, key: record.key.to_vec() }), examined };
                }
            }
            match self.table_end(after_hash) {
                None => return ScanPage { next: None, examined },
                Some(hash) => (after_hash, after_key) = (hash, &[]),
            }
            // An empty table costs a unit too, or a scan of a key space emptied by deletes would know no bound.
            examined += 1;
            if examined >= budget {
                return ScanPage { next: Some(Position { hash: after_hash, key: Vec::new() }), examined };
            }
        }
    }

    /// Finds up to about `keys_max` keys whose expiry is not after `now`, beginning with the table that holds `from`.
    /// Costs about `budget` units: one a table and one a record of the tables that may hold an overdue one. Keys stay
    /// overdue until the caller has them removed, and are found again.
    pub fn overdue(&mut self, now: Millis, from: KeyHash, keys_max: usize, budget: usize) -> OverduePage {
        let mut keys = Vec::new();
        let (mut next, mut spent) = (Some(from), 0);
        while let Some(hash) = next {
            if spent >= budget || keys.len() >= keys_max {
                break;
            }
            let number = self.table_of(hash);
            let table = &mut self.tables[number];
            spent += 1;
            if table.earliest_expiry <= now.0 {
                spent += table.len();
                table.overdue(now, keys_max, &mut keys);
            }
            next = self.table_end(hash);
        }
        OverduePage { keys, next }
    }
}

/// The first records of a table behind a position, in order: at least `wanted` of them when there are so many, and all
/// that share the last one's tag.
fn ordered(table: &Table, after_hash: KeyHash, after_key: &[u8], wanted: usize) -> Vec<(KeyHash, Slot)> {
    let after_tag = tag_of(after_hash);
    let mut slots: Vec<Slot> = table.slots().filter(|slot| slot.tag >= after_tag).collect();
    // Records before the position may share its tag: take the tag's records on top of what is wanted.
    let skipped = slots.iter().filter(|slot| slot.tag == after_tag).count();
    let wanted = wanted.saturating_add(skipped);
    if wanted < slots.len() {
        let (_, last, _) = slots.select_nth_unstable_by_key(wanted - 1, |slot| slot.tag);
        let last_tag = last.tag;
        slots.retain(|slot| slot.tag <= last_tag);
    }
    let mut records: Vec<(KeyHash, &[u8], Slot)> = slots
        .iter()
        .map(|slot| {
            let key = table.record(*slot).key;
            (hash_of(key), key, *slot)
        })
        .filter(|(hash, key, _)| (*hash, *key) > (after_hash, after_key))
        .collect();
    records.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    records.into_iter().map(|(hash, _, slot)| (hash, slot)).collect()
}
