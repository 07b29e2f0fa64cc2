//! Numbers for writes: what makes a retry apply once.
//!
//! Invariants: a number is given once and rises; `acked` is the lowest number whose write the caller still waits for, so the
//! server may drop everything below it. Draws no random numbers: the id is an argument.

use crate::codec::Stamp;
use std::collections::BTreeSet;

/// The client id and numbers of one client instance.
#[derive(Debug)]
pub struct Sequencer {
    client: Box<str>,
    next: u64,
    unanswered: BTreeSet<u64>,
}

impl Sequencer {
    /// A sequencer for an id that no other client instance has.
    pub fn new(client: &str) -> Self {
        assert!(!client.is_empty(), "a client id has at least one character");
        Self { client: client.into(), next: 1, unanswered: BTreeSet::new() }
    }

    /// The id that goes with every number.
    pub fn client(&self) -> &str {
        &self.client
    }

    /// The number of a new write.
    pub fn begin(&mut self) -> u64 {
        let seq = self.next;
        self.next += 1;
        self.unanswered.insert(seq);
        seq
    }

    /// The stamp to send with a write that was begun and not settled, now or again.
    pub fn stamp(&self, seq: u64) -> Stamp<'_> {
        assert!(self.unanswered.contains(&seq), "a settled write is never sent again");
        let acked = self.unanswered.first().copied().unwrap_or(seq);
        Stamp { client: &self.client, seq, acked }
    }

    /// Notes that the caller has its answer, a reply or an error, and will not send this write again.
    pub fn settle(&mut self, seq: u64) {
        self.unanswered.remove(&seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_is_the_lowest_unanswered() {
        let mut numbers = Sequencer::new("c");
        let (first, second, third) = (numbers.begin(), numbers.begin(), numbers.begin());
        assert_eq!((first, second, third), (1, 2, 3));
        numbers.settle(second);
        assert_eq!(numbers.stamp(third).acked, 1);
        numbers.settle(first);
        assert_eq!(numbers.stamp(third).acked, 3);
    }
}
