//! What routers count, and how one of them tells for all: each leaves its figures on a board now and then.
//!
//! A router writes only its own place, and reads the others' when INFO is asked, so no request meets a lock. Figures of other
//! routers are [`PUBLISH_MS`] old at most, plus the sleep of an idle one.

use super::{Router, Way};
use shards::ids::Millis;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often a router leaves its figures on the board, in milliseconds.
const PUBLISH_MS: u64 = 100;

/// Counts since the router was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterCounters {
    /// Requests sent to a shard as they are.
    pub sent: u64,
    /// Lines that the router answered without a shard, refusals included.
    pub answered_alone: u64,
    /// Lines that were no request.
    pub refused: u64,
    /// Gathers begun.
    pub gathers: u64,
    /// Calls of gathers.
    pub calls: u64,
    /// Gathers that ended at their deadline.
    pub gather_timeouts: u64,
    /// Requests that came back because the replica that they reached does not lead.
    pub came_back: u64,
    /// Times that a group's requests began to go to a leader, the first included.
    pub leader_changes: u64,
    /// Requests that found no leader until their deadline.
    pub no_quorum: u64,
    /// Requests answered with the leader's address, as their connection wishes.
    pub redirects: u64,
}

/// Counters, and what is under way at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) counters: RouterCounters,
    pub(super) gathers_now: u64,
    pub(super) gathers_bytes: u64,
    pub(super) waiting: u64,
    /// Requests at each group.
    pub(super) outstanding: Vec<u64>,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        let RouterCounters {
            sent,
            answered_alone,
            refused,
            gathers,
            calls,
            gather_timeouts,
            came_back,
            leader_changes,
            no_quorum,
            redirects,
        } = &mut self.counters;
        *sent += other.counters.sent;
        *answered_alone += other.counters.answered_alone;
        *refused += other.counters.refused;
        *gathers += other.counters.gathers;
        *calls += other.counters.calls;
        *gather_timeouts += other.counters.gather_timeouts;
        *came_back += other.counters.came_back;
        *leader_changes += other.counters.leader_changes;
        *no_quorum += other.counters.no_quorum;
        *redirects += other.counters.redirects;
        self.gathers_now += other.gathers_now;
        self.gathers_bytes += other.gathers_bytes;
        self.waiting += other.waiting;
        for (sum, more) in self.outstanding.iter_mut().zip(&other.outstanding) {
            *sum += more;
        }
    }
}

/// The figures of all routers of a server, each in a place of its own.
#[derive(Debug)]
pub struct RouterBoard(Vec<Mutex<Figures>>);

impl RouterBoard {
    /// A board for so many routers.
    pub fn new(routers: usize) -> Self {
        Self((0..routers).map(|_| Mutex::default()).collect())
    }

    /// How many routers there are.
    pub(super) fn routers(&self) -> usize {
        self.0.len()
    }

    fn place(&self, number: usize) -> MutexGuard<'_, Figures> {
        // A poisoned lock only means that its writer panicked between two figures.
        self.0[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Router {
    /// Gives the router its place on the board; before the first turn. The first place otherwise.
    ///
    /// # Panics
    /// When the board has no such place.
    pub fn take_place(&mut self, number: usize) {
        assert!(number < self.facts.routers.routers(), "the board has a place for each router");
        self.number = number;
    }

    /// Leaves the figures on the board if that is due; to be called once a turn. A single router tells them itself.
    #[inline]
    pub fn publish(&mut self, now: Millis) {
        if now >= self.next_publish && self.facts.routers.routers() > 1 {
            self.next_publish = Millis(now.0 + PUBLISH_MS);
            *self.facts.routers.place(self.number) = self.figures();
        }
    }

    /// The figures of all routers together: this one's as they are, the others' as they left them.
    pub(super) fn figures_of_all(&self) -> Figures {
        let board = &self.facts.routers;
        let others = (0..board.routers()).filter(|number| *number != self.number);
        let mut all = self.figures();
        others.for_each(|number| all.add(&board.place(number)));
        all
    }

    fn figures(&self) -> Figures {
        Figures {
            counters: self.counters,
            gathers_now: self.gathers.count() as u64,
            gathers_bytes: self.gathers.held_bytes() as u64,
            waiting: self.ways.iter().map(|way| way.held() as u64).sum(),
            outstanding: self.ways.iter().map(|way: &Way| way.outstanding() as u64).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_added() {
        let counters = |n| RouterCounters {
            sent: n,
            answered_alone: n,
            refused: n,
            gathers: n,
            calls: n,
            gather_timeouts: n,
            came_back: n,
            leader_changes: n,
            no_quorum: n,
            redirects: n,
        };
        let figures = |n| Figures {
            counters: counters(n),
            gathers_now: n,
            gathers_bytes: n,
            waiting: n,
            outstanding: vec![n, 2 * n],
        };
        let mut sum = figures(1);
        sum.add(&figures(2));
        assert_eq!(sum, figures(3));
    }
}
