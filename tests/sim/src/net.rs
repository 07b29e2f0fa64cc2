//! The links between machines: messages are late, lost, doubled and overtaken; pairs of machines do not hear one another.
//!
//! Nothing is lost or doubled inside a machine. It decides when a message arrives and never what is in it.

use crate::fault::{Fault, FaultCounts};
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// See the module's head.
#[derive(Default)]
pub struct Net {
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Messages doubled, of a thousand.
    pub double: u64,
    /// Messages that are late and may be overtaken, of a thousand.
    pub late: u64,
    /// Some messages are late by seconds.
    pub is_heavy: bool,
    /// Who does not reach whom.
    blocked: BTreeSet<(usize, usize)>,
    /// Links that deliver nothing before a time.
    clogged: BTreeMap<(usize, usize), u64>,
    /// When the last message of a link arrives: the next one comes behind it.
    last: BTreeMap<(usize, usize), u64>,
    /// How often messages were lost, doubled and late.
    pub counts: FaultCounts,
}

impl Net {
    /// Links that lose nothing yet.
    pub fn new(is_heavy: bool) -> Self {
        Self { is_heavy, ..Self::default() }
    }

    /// When a message arrives, if it does; twice, if it may be doubled and is.
    pub fn send(&mut self, rng: &mut Rng, now: u64, from: usize, to: usize, may_double: bool) -> Vec<u64> {
        if from == to {
            return vec![now + 3];
        }
        if self.blocked.contains(&(from, to)) {
            return Vec::new();
        }
        if self.loss > 0 && rng.chance(self.loss) {
            self.counts.add(Fault::Loss);
            return Vec::new();
        }
        let mut arrivals = Vec::new();
        let mut copies = 1;
        if may_double && self.double > 0 && rng.chance(self.double) {
            self.counts.add(Fault::Duplicate);
            copies = 2;
        }
        for _ in 0..copies {
            let mut at = now + 80 + rng.below(200);
            if self.late > 0 && rng.chance(self.late) {
                self.counts.add(Fault::Delay);
                at +=
                    if self.is_heavy && rng.chance(150) { rng.below(3_000_000) } else { rng.below(150_000) };
            } else {
                let free_at = self.clogged.get(&(from, to)).copied().unwrap_or(0);
                let last = self.last.entry((from, to)).or_default();
                at = at.max(free_at).max(*last + 1);
                *last = at;
            }
            arrivals.push(at);
        }
        arrivals
    }

    /// Whether one machine reaches another now.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.blocked.contains(&(from, to))
    }

    /// Cuts the machines apart as a fault of this class does.
    pub fn cut(&mut self, rng: &mut Rng, fault: Fault, machines: usize, now: u64) {
        let side: Vec<bool> = (0..machines).map(|_| rng.chance(500)).collect();
        let (one, other) = (rng.place(machines), rng.place(machines));
        for from in 0..machines {
            for to in 0..machines {
                let is_cut = match fault {
                    Fault::Partition => side[from] != side[to],
                    Fault::OneWay => (from, to) == (one, other),
                    Fault::Bridge => from != one && to != one && side[from] != side[to],
                    _ => false,
                };
                if is_cut && from != to {
                    self.blocked.insert((from, to));
                }
            }
        }
        if fault == Fault::Clog {
            self.clogged.insert((one, other), now + rng.below(2_000_000));
        }
    }

    /// A machine hears nothing before this time, and then everything.
    pub fn deafen(&mut self, machine: usize, machines: usize, until: u64) {
        for from in (0..machines).filter(|from| *from != machine) {
            self.clogged.insert((from, machine), until);
        }
    }

    /// Everybody hears everybody.
    pub fn join(&mut self) {
        self.blocked.clear();
        self.clogged.clear();
    }

    /// The faults end.
    pub fn heal(&mut self) {
        self.join();
        (self.loss, self.double, self.late) = (0, 0, 0);
    }
}
