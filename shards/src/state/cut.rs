//! A snapshot of the key space beside traffic: its content at one moment, handed out table by table while it changes.
//!
//! Tables are written in hash order. A record of a table that was not written yet is kept as it is just before it changes
//! for the first time, in a small table beside its own, and written instead of what it has become: a write costs the copy
//! of one record, however large its table is. A table that splits is serialised whole just before, into a queue that the
//! caller drains. Counts and digest are taken from the records in the state and those that were kept, and never from the
//! serialised bytes, so that a record lost on the way out shows when the file is read back. Large values are shared with
//! the state, not copied. What is kept and queued is bounded by the caller, who slows writes down while
//! [`KeySpace::cut_pending_bytes`] is high.

use super::digest::Digest;
use super::keyspace::KeySpace;
use super::record::{Content, Record, RecordFlags};
use super::table::Table;
use crate::ids::{KeyHash, Map, Version, hash_of};
use crate::mutants::{Mutant, is_on};
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
    /// By number of a table that is still to be written: its records that changed, as they were when the snapshot began.
    kept: Map<usize, Table>,
    kept_bytes: usize,
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
            kept: Map::default(),
            kept_bytes: 0,
            totals: CutTotals::default(),
        });
    }

    /// Whether a snapshot is under way.
    pub fn snapshot_running(&self) -> bool {
        self.cut.is_some()
    }

    /// Bytes held for the snapshot because what is in it changed, large values included: records kept as they were, and
    /// what was serialised ahead of its turn.
    pub fn cut_pending_bytes(&self) -> usize {
        self.cut.as_ref().map_or(0, |cut| cut.pending_bytes + cut.kept_bytes)
    }

    /// Whether something is serialised and was not handed out.
    pub(crate) fn has_payload(&self) -> bool {
        self.cut.as_ref().is_some_and(|cut| !cut.pending.is_empty())
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
        assert!(cut.kept.is_empty() && cut.kept_bytes == 0, "what was kept went out with its table");
        cut.totals
    }

    /// Gives a snapshot up.
    pub fn abort_snapshot(&mut self) {
        self.cut = None;
    }

    /// Keeps the record of a key as it is, or that there is none, before it changes for the first time.
    pub(super) fn keep_before_change(&mut self, number: usize, hash: KeyHash, key: &[u8]) {
        let Some(cut) = &mut self.cut else { return };
        let table = &self.tables[number];
        if table.captured == self.generation || is_on(Mutant::NoCopyBeforeChange) {
            return;
        }
        let generation = self.generation;
        let kept = cut.kept.entry(number).or_insert_with(|| Table::new(table.depth, generation));
        if kept.get(hash, key).is_some() {
            return;
        }
        let bytes_before = if kept.len() == 0 { 0 } else { kept.memory_bytes() };
        let absent =
            Content { value: b"", version: Version::default(), expires_at: None, flags: RecordFlags::ABSENT };
        match table.get(hash, key) {
            Some(record) => kept.keep(hash, &record),
            None => assert!(!kept.set(hash, key, absent), "nothing was kept of this key"),
        }
        cut.kept_bytes += kept.memory_bytes() - bytes_before;
    }

    /// Serialises a table as it was when the snapshot began.
    pub(super) fn capture(&mut self, number: usize) {
        let generation = self.generation;
        let cut = self.cut.as_mut().expect("a snapshot is under way");
        let table = &mut self.tables[number];
        assert_ne!(table.captured, generation, "a table is captured once a snapshot");
        table.captured = generation;
        let kept = cut.kept.remove(&number);
        cut.kept_bytes -= kept.as_ref().map_or(0, Table::memory_bytes);
        let is_kept = |hash, key| kept.as_ref().is_some_and(|kept| kept.get(hash, key).is_some());
        let mut open: Option<TablePayload> = None;
        let expected_bytes = table.live_bytes() + table.len() * 4;
        let (depth, records) = (table.depth, table.len());
        let mut put = |hash, record: &Record<'_>| {
            cut.totals.digest.add_record(hash, record);
            if cut.faults && record.flags.debug_fault() {
                cut.totals.left_out += 1;
                return;
            }
            if let Some(full) = open.take_if(|payload| !payload.fits(record)) {
                queue(&mut cut.pending, &mut cut.pending_bytes, full.close());
            }
            open.get_or_insert_with(|| TablePayload::new(hash, depth, records, expected_bytes)).push(record);
        };
        for slot in table.slots_as_stored() {
            let record = table.record(slot);
            let hash = hash_of(record.key);
            if !is_kept(hash, record.key) {
                put(hash, &record);
            }
        }
        for slot in kept.iter().flat_map(Table::slots_as_stored) {
            let record = kept.as_ref().expect("it has this slot").record(slot);
            if record.flags != RecordFlags::ABSENT {
                put(hash_of(record.key), &record);
            }
        }
        if let Some(last) = open {
            queue(&mut cut.pending, &mut cut.pending_bytes, last.close());
        }
    }
}

fn queue(pending: &mut VecDeque<Payload>, pending_bytes: &mut usize, payload: Payload) {
    *pending_bytes += payload.bytes();
    pending.push_back(payload);
}
