//! Ends times to live: overdue records are removed by an entry of the log, so that every replica removes them alike.
//!
//! Tables know their earliest expiry; a walk over the tables, a slice at a time, proposes what is overdue. A read that
//! meets an overdue record proposes its removal first and waits for it.

use super::Shard;
use super::outbox::Waiter;
use crate::command::context::is_over;
use crate::command::items;
use crate::command::record::{Op, Record};
use crate::ids::{KeyHash, Millis, hash_of};
use crate::mutants::{Mutant, is_on};

/// Where the walk over the tables stands.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    next: KeyHash,
    /// The walk rests until then after it came round.
    rests_until: Millis,
}

/// Time between two walks over all tables.
const REST_MS: u64 = 500;
/// Keys removed by one command.
const KEYS_MAX: usize = 200;

impl Shard {
    /// The time by which reads judge times to live: never before the stamp of an entry that is applied. A write which found a
    /// key's time to be over was judged by that stamp, and a leader with a slower clock than the one that stamped it must
    /// not show the key again.
    #[inline]
    pub(super) fn read_time(&self) -> Millis {
        self.now.max(self.stamp_applied)
    }

    /// Whether a key's time to live is over now.
    pub(super) fn is_overdue(&self, hash: KeyHash, key: &[u8]) -> bool {
        !is_on(Mutant::OverdueIsRead)
            && self
                .state
                .keys
                .get(hash, key)
                .is_some_and(|record| is_over(record.expires_at, self.read_time()))
    }

    /// Proposes to remove those of these keys that are overdue when the entry is stamped.
    pub(super) fn propose_expiry(&mut self, keys: &[&[u8]]) {
        let mut value = Vec::new();
        for key in keys {
            items::push(&mut value, key, &[]);
        }
        let mut bytes = Vec::new();
        Record::plain(Op::Expired, &[], &value).encode(&mut bytes);
        self.gather(&bytes, Waiter::nobody(), None);
        self.mark_items(&value);
    }

    /// Walks on over the tables and proposes what it finds overdue.
    pub(super) fn expire_some(&mut self, units: usize) {
        if !self.is_ready || self.now < self.expiry.rests_until || !self.has_log_room {
            return;
        }
        let page = self.state.keys.overdue(self.read_time(), self.expiry.next, KEYS_MAX, units.max(1));
        let keys: Vec<&[u8]> = page
            .keys
            .iter()
            .map(Vec::as_slice)
            .filter(|key| !self.locks.is_held(key))
            .filter(|key| !self.pending.may_have(hash_of(key)) || is_on(Mutant::ExpiredBlindly))
            .collect();
        if !keys.is_empty() {
            self.propose_expiry(&keys);
        }
        match page.next {
            Some(next) => self.expiry.next = next,
            None => {
                self.expiry.next = KeyHash(0);
                self.expiry.rests_until = Millis(self.now.0 + REST_MS);
            }
        }
    }
}
