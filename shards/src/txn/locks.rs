//! Who waits for which locked key, as the leader of a participant knows it.
//!
//! A key is held from the moment its PREPARE is proposed until its FINISH is applied, so that a command which the leader
//! lets through never meets an intent when it is applied. Whatever meets a held key waits in that key's first-in
//! first-out queue, which keeps the order of one connection's commands for one key. Queues are bounded by the requests
//! that routers admit. A new leader rebuilds the holders from the intents; waiters are gone with the old one.

use super::TxnId;
use crate::command::items;
use std::collections::{BTreeMap, VecDeque};

/// Held keys and their queues of `W`.
#[derive(Debug)]
pub struct Locks<W> {
    held: BTreeMap<Box<[u8]>, Held<W>>,
    /// Each holder with the number it got when it came; a scan waits for the holders that were before it.
    holders: BTreeMap<TxnId, u64>,
    next_number: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Held<W> {
    txn: TxnId,
    queue: VecDeque<W>,
}

impl<W> Default for Locks<W> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), holders: BTreeMap::new(), next_number: 0, waiting: 0 }
    }
}

impl<W> Locks<W> {
    /// Whether no key is held, the usual case on the request path.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Number of waiters in all queues.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether a key is held.
    pub fn is_held(&self, key: &[u8]) -> bool {
        !self.held.is_empty() && self.held.contains_key(key)
    }

    /// Whether a transaction holds anything here.
    pub fn holds(&self, txn: TxnId) -> bool {
        self.holders.contains_key(&txn)
    }

    /// The first of these keys that another transaction than `except` holds.
    pub fn first_held<'a>(&self, bytes: &'a [u8], except: Option<TxnId>) -> Option<&'a [u8]> {
        if self.held.is_empty() {
            return None;
        }
        let keys = items::iter(bytes).map_while(Result::ok).map(|(key, _)| key);
        keys.into_iter().find(|key| self.held.get(*key).is_some_and(|held| Some(held.txn) != except))
    }

    /// A transaction begins to hold keys, unless it has begun before.
    pub fn begin(&mut self, txn: TxnId) {
        let number = self.next_number;
        self.holders.entry(txn).or_insert(number);
        self.next_number += 1;
    }

    /// Holds a key for a transaction that has begun.
    ///
    /// # Panics
    /// When another transaction holds it.
    pub fn hold_key(&mut self, txn: TxnId, key: &[u8]) {
        if let Some(held) = self.held.get(key) {
            return assert_eq!(held.txn, txn, "a key has one holder");
        }
        self.held.insert(key.into(), Held { txn, queue: VecDeque::new() });
    }

    /// Holds every key of these items for a transaction.
    ///
    /// # Panics
    /// When another transaction holds one of them.
    pub fn hold(&mut self, txn: TxnId, bytes: &[u8]) {
        self.begin(txn);
        for (key, _) in items::iter(bytes).map_while(Result::ok) {
            self.hold_key(txn, key);
        }
    }

    /// Lets something wait for a held key.
    pub fn wait(&mut self, key: &[u8], waiter: W) {
        let held = self.held.get_mut(key).expect("only a held key is waited for");
        held.queue.push_back(waiter);
        self.waiting += 1;
    }

    /// Whether another transaction than this one holds a key.
    pub fn is_held_by_other(&self, key: &[u8], txn: TxnId) -> bool {
        self.held.get(key).is_some_and(|held| held.txn != txn)
    }

    /// Releases one key if this transaction holds it; hands over what waited for it, in its order. Whoever releases all of
    /// them ends with [`Locks::end`].
    pub fn release_key(&mut self, txn: TxnId, key: &[u8], freed: &mut Vec<W>) {
        if self.is_held_by_other(key, txn) {
            return;
        }
        let Some(held) = self.held.remove(key) else { return };
        self.waiting -= held.queue.len();
        freed.extend(held.queue);
    }

    /// A transaction has released all of its keys.
    pub fn end(&mut self, txn: TxnId) {
        self.holders.remove(&txn);
    }

    /// Holds nothing any more. Nobody may be waiting.
    pub fn clear(&mut self) {
        assert_eq!(self.waiting, 0, "whoever waits is taken out first");
        self.held.clear();
        self.holders.clear();
    }

    /// Takes out the waiters that `is_over` names.
    pub fn take_waiting(&mut self, mut is_over: impl FnMut(&W) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        if self.waiting == 0 {
            return taken;
        }
        for held in self.held.values_mut() {
            for _ in 0..held.queue.len() {
                let waiter = held.queue.pop_front().expect("as many as counted");
                if is_over(&waiter) {
                    taken.push(waiter);
                } else {
                    held.queue.push_back(waiter);
                }
            }
        }
        self.waiting -= taken.len();
        taken
    }

    /// A number above that of every present holder, to be given to [`Locks::are_gone_before`].
    pub fn horizon(&self) -> u64 {
        self.next_number
    }

    /// Whether every holder that was here at that horizon is gone.
    pub fn are_gone_before(&self, horizon: u64) -> bool {
        self.holders.is_empty() || self.holders.values().all(|number| *number >= horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupId, Version};

    #[test]
    fn waiters_come_back_in_order() {
        let txn = |index| TxnId { group: GroupId(0), opened: Version::new(0, index, 0) };
        let mut bytes = Vec::new();
        items::push(&mut bytes, b"a", b"");
        items::push(&mut bytes, b"b", b"");
        let mut locks = Locks::default();
        locks.hold(txn(1), &bytes);
        let horizon = locks.horizon();
        assert_eq!(locks.first_held(&bytes, Some(txn(1))), None);
        assert_eq!(locks.first_held(&bytes, Some(txn(2))), Some(&b"a"[..]));
        locks.wait(b"a", 1);
        locks.wait(b"b", 2);
        locks.wait(b"a", 3);
        assert_eq!(locks.take_waiting(|w| *w == 2), [2]);
        assert!(!locks.are_gone_before(horizon));
        let mut freed = Vec::new();
        locks.release_key(txn(1), b"b", &mut freed);
        assert!(freed.is_empty() && !locks.is_held(b"b") && locks.is_held(b"a"));
        locks.release_key(txn(1), b"a", &mut freed);
        assert_eq!(freed, [1, 3]);
        assert!(locks.holds(txn(1)), "until it ends");
        locks.end(txn(1));
        assert!(locks.are_gone_before(horizon) && locks.is_empty() && locks.waiting() == 0);
    }
}
