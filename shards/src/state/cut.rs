//! A snapshot of the key space beside traffic: its content at one moment, handed out table by table while it changes.
//!
//! Copy on first change: a table that has not been written yet is serialised just before it changes for the first time
//! or splits, into a queue that the caller drains; the others follow in hash order. Counts and digest are taken from the
//! records in the state at that moment and never from the serialised bytes, so that a record lost on the way out shows
//! when the file is read back. Large values are shared with the state, not copied. The queue is bounded by the caller,
//! who slows writes down while [`KeySpace::cut_pending_bytes`] is high.

use super::digest::Digest;
use super::keyspace::KeySpace;
use crate::ids::{KeyHash, hash_of};
use crate::snapshot::payload::{Payload, TablePayload};
use std::collections::VecDeque;

/// What the state knows about a cut, to be compared with what can be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CutTotals {
    /// Number and digest of the records as of the beginning of the snapshot.
    pub digest: Digest,
    /// Records left out on purpose by the debug fault; they are in the digest.
    pub left_out: u64,
}

/// A snapshot under way.
#[derive(Debug)]
pub(super) struct Cut {
    faults: bool,
    /// Where the next table to write begins; `None` when all were visited.
    next: Option<KeyHash>,
    pending: VecDeque<Payload>,
    pending_bytes: usize,
    totals: CutTotals,
}

impl KeySpace {
    /// Fixes the content to be written: all that is in the state now. With `faults`, records that carry the debug fault
    /// are left out of the written bytes, but not out of counts and digest.
    pub fn begin_snapshot(&mut self, faults: bool) {
        assert!(self.cut.is_none(), "one snapshot at a time");
        self.generation += 1;
        self.cut = Some(Cut {
            faults,
            next: Some(KeyHash(0)),
            pending: VecDeque::new(),
            pending_bytes: 0,
            totals: CutTotals::default(),
        });
    }

    /// Whether a snapshot is under way.
    pub fn snapshot_running(&self) -> bool {
        self.cut.is_some()
    }

    /// Bytes serialised ahead of their turn because their tables changed, large values included.
    pub fn cut_pending_bytes(&self) -> usize {
        self.cut.as_ref().map_or(0, |cut| cut.pending_bytes)
    }

    /// The next block's payload; `None` when everything was handed out. The work of one table at most.
    pub(crate) fn next_payload(&mut self) -> Option<Payload> {
        loop {
            let cut = self.cut.as_mut().expect("a snapshot is under way");
            if let Some(payload) = cut.pending.pop_front() {
                cut.pending_bytes -= payload.bytes();
                return Some(payload);
            }
            let from = cut.next?;
            let number = self.table_of(from);
            let end = self.table_end(from);
            if self.tables[number].captured != self.generation {
                self.capture(number);
            }
            self.cut.as_mut().expect("a snapshot is under way").next = end;
        }
    }

    /// Ends a snapshot whose payloads were all handed out.
    pub(crate) fn end_snapshot(&mut self) -> CutTotals {
        let cut = self.cut.take().expect("a snapshot is under way");
        assert!(cut.next.is_none() && cut.pending.is_empty(), "every table was handed out");
        cut.totals
    }

    /// Gives a snapshot up.
    pub fn abort_snapshot(&mut self) {
        self.cut = None;
    }

    /// Serialises a table that has not changed since the snapshot began.
    pub(super) fn capture(&mut self, number: usize) {
        let generation = self.generation;
        let cut = self.cut.as_mut().expect("a snapshot is under way");
        let table = &mut self.tables[number];
        assert_ne!(table.captured, generation, "a table is captured once a snapshot");
        table.captured = generation;
        let mut open: Option<TablePayload> = None;
        let expected_bytes = table.live_bytes() + table.len() * 4;
        for slot in table.slots_as_stored() {
            let record = table.record(slot);
            let hash = hash_of(record.key);
            cut.totals.digest.add_record(hash, &record);
            if cut.faults && record.flags.debug_fault() {
                cut.totals.left_out += 1;
                continue;
            }
            if let Some(full) = open.take_if(|payload| !payload.fits(&record)) {
                cut.queue(full.close());
            }
            open.get_or_insert_with(|| TablePayload::new(hash, table.depth, table.len(), expected_bytes))
                .push(&record);
        }
        if let Some(last) = open {
            cut.queue(last.close());
        }
    }
}

impl Cut {
    fn queue(&mut self, payload: Payload) {
        self.pending_bytes += payload.bytes();
        self.pending.push_back(payload);
    }
}
