//! Writes snapshots in slices beside traffic and says when the log may be cut.
//!
//! A snapshot is exact at the entry after which it began. Its bytes leave as effects, a bounded amount at a time; when
//! all are written the file is read back, and only if what is in it equals what the state counted is it kept and the log
//! cut. A snapshot that lost something (as the debug fault mode makes it) is counted and written again without faults.

use super::outbox::{Waiter, reply};
use super::{Floor, Shard};
use crate::batch::RequestHead;
use crate::command::answer::{Failure, Outcome};
use crate::consensus::membership::encode_members;
use crate::consensus::storage::SnapshotOffer;
use crate::effect::{Effects, SnapshotEffect};
use crate::ids::{Millis, Sequence};
use crate::index::Units;
use crate::index::set::SetWriter;
use crate::log::payload::PayloadBuffer;
use crate::mutants::{Mutant, is_on};
use crate::peer::meta_codec::encode_meta;
use crate::snapshot::{Chunk, SlotSet, SnapshotHeader, SnapshotWriter};

/// Bytes on their way to the file at once; more are produced when these are written.
const IN_FLIGHT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of one slice; a slice ends at the end of a table.
pub(super) const SLICE_BYTES: usize = 64 << 10;
/// Units of one slice of the indexes.
const INDEX_UNITS: u32 = 4096;
/// Pause before a snapshot that could not be written is tried again, in ms.
const RETRY_AFTER_MS: u64 = 5_000;

/// The snapshots of a shard.
#[derive(Default)]
pub(super) struct Snapshots {
    run: Option<Run>,
    /// Who waits for the run under way.
    waiters: Vec<Waiter>,
    /// Who came while one was under way and waits for the next.
    next_waiters: Vec<Waiter>,
    /// Index of the last one that was kept or fetched.
    kept_index: u64,
    /// Bytes handed to the log since that one began.
    pub(super) log_bytes: u64,
    not_before: Millis,
    /// One is due and writes wait until the indexes have caught up.
    is_draining: bool,
    /// The last one was found wanting: the next is written at once, without faults.
    is_urgent: bool,
    without_faults: bool,
    /// A snapshot stands for the log up to here, which is not durable yet.
    cut_owed: Option<Sequence>,
    /// When the last one began.
    begun_at: Millis,
    pub(super) counters: SnapshotCounters,
}

/// Figures about snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounters {
    /// Written, read back and kept.
    pub kept: u64,
    /// Found wanting when read back, and written again.
    pub refused: u64,
    /// Not written: the file system failed.
    pub failed: u64,
    /// Bytes of the last one that was kept.
    pub last_bytes: u64,
    /// Index of the last one that was kept.
    pub last_index: u64,
    /// What it holds, in a word: digest of the records and of the sessions. Replicas have equal ones at equal index.
    pub last_digest: [u64; 2],
}

struct Run {
    stage: Stage,
    index: u64,
    /// What followers are told of it once it is kept.
    offer: SnapshotOffer,
    log_bytes_at_start: u64,
    in_flight_bytes: u64,
    bytes: u64,
    with_faults: bool,
    /// As in [`SnapshotCounters::last_digest`], once all is written.
    digest: [u64; 2],
}

#[allow(
    clippy::large_enum_variant,
    reason = "a shard holds one at most, and a box would only move its bytes"
)]
enum Stage {
    Writing {
        /// Of the file.
        writer: Box<SnapshotWriter>,
        /// Of the indexes; `None` once they are written.
        indexes: Option<SetWriter>,
        /// Whether records and sessions are written.
        state_is_written: bool,
    },
    /// All is written and is being read back.
    Finishing,
}

impl Shard {
    /// SNAPSHOT: answered when one that began after this is kept.
    pub(super) fn admit_snapshot(&mut self, router: u8, head: &RequestHead, effects: &mut Effects) {
        let waiter = Waiter::client(router, head, false);
        if self.config.floor == Floor::Off {
            let text = "without a log (wal.sync = \"off\") nothing is kept on disk, so there is no snapshot";
            return reply(effects, router, head.token, &Outcome::Failed(Failure::UnsupportedInMode(text)));
        }
        if self.snapshots.run.is_none() && self.snapshots.kept_index == self.applied {
            return reply(effects, router, head.token, &Outcome::Ok);
        }
        self.snapshots.next_waiters.push(waiter);
        self.snapshots.not_before = Millis(0);
    }

    /// Whether a snapshot is being written or read back.
    pub(super) fn snapshot_runs(&self) -> bool {
        self.snapshots.run.is_some()
    }

    /// Whether a snapshot waits for the indexes to catch up.
    pub(super) fn snapshot_drains_backlog(&self) -> bool {
        self.snapshots.is_draining
    }

    /// Whether so much waits to be written that writes must wait too.
    pub(super) fn snapshot_is_behind(&self) -> bool {
        self.snapshots.run.is_some()
            && SnapshotWriter::pending_bytes(&self.state) > self.config.snapshot_buffer_bytes_max
    }

    /// Begins a snapshot when one is due, or writes a slice of the one under way; whether more can be done now.
    pub(super) fn snapshot_some(&mut self, effects: &mut Effects) -> bool {
        if self.group.take_snapshot_wish() && self.applied > self.snapshots.kept_index {
            self.snapshots.is_urgent = true;
        }
        if self.snapshots.run.is_none() {
            self.snapshots.is_draining = self.snapshot_is_due();
            if self.snapshots.is_draining
                && (self.searches.indexes.backlog_len() == 0 || is_on(Mutant::BacklogNotDrained))
            {
                self.snapshots.is_draining = false;
                self.snapshots.is_urgent = false;
                let with_faults = !std::mem::take(&mut self.snapshots.without_faults);
                self.begin_snapshot(with_faults, effects);
            }
        }
        let is_behind = self.snapshot_is_behind();
        let Some(run) = &mut self.snapshots.run else { return false };
        let Stage::Writing { writer, indexes, state_is_written } = &mut run.stage else { return false };
        let elapsed_ms = self.now.0.saturating_sub(self.snapshots.begun_at.0);
        let rate = self.config.snapshot_bytes_per_s_max;
        // Once writes wait for it, the snapshot goes as fast as the disk takes it.
        let is_early = !is_behind
            && rate > 0
            && run.bytes > IN_FLIGHT_BYTES_MAX + rate.saturating_mul(elapsed_ms) / 1000;
        if run.in_flight_bytes >= IN_FLIGHT_BYTES_MAX || is_early {
            return false;
        }
        let mut chunks = Vec::new();
        if !*state_is_written {
            *state_is_written = !writer.slice(&mut self.state, self.config.snapshot_slice_bytes, &mut chunks);
        } else if let Some(sections) = indexes {
            let mut section = Vec::new();
            let set = &mut self.searches.indexes;
            if sections.next_section(set, &mut Units::new(INDEX_UNITS), &mut section) {
                put_index_section(writer, &section, &mut chunks);
            } else if let Some(sections) = indexes.take() {
                set.end_snapshot(sections);
            }
        }
        let more = !*state_is_written || indexes.is_some();
        run.send(chunks, effects);
        if !more {
            self.end_writing(effects);
        }
        more
    }

    /// Bytes of the snapshot have reached the file.
    pub(super) fn snapshot_written(&mut self, bytes: u64) {
        if let Some(run) = &mut self.snapshots.run {
            run.in_flight_bytes = run.in_flight_bytes.saturating_sub(bytes);
        }
    }

    /// The file stands, or it could not be written or was not what the state counted.
    pub(super) fn snapshot_finished(&mut self, result: Result<(), String>, effects: &mut Effects) {
        let Some(run) = self.snapshots.run.take() else { return };
        self.release_edits();
        match result {
            Ok(()) => {
                assert!(
                    matches!(run.stage, Stage::Finishing),
                    "a snapshot stands only when all of it was written"
                );
                self.keep_snapshot(&run, effects);
            }
            Err(text) => {
                let with_faults = run.with_faults;
                self.drop_writer(run);
                effects.snapshot.push(SnapshotEffect::Drop);
                self.snapshots.counters.refused += 1;
                if with_faults {
                    // The log still holds everything, so the snapshot is simply written again, soundly.
                    self.snapshots.without_faults = true;
                    self.snapshots.is_urgent = true;
                    let waiters = std::mem::take(&mut self.snapshots.waiters);
                    self.snapshots.next_waiters.extend(waiters);
                } else {
                    self.fail_snapshot(&text, effects);
                }
            }
        }
    }

    /// Figures about snapshots.
    pub fn snapshot_counters(&self) -> &SnapshotCounters {
        &self.snapshots.counters
    }

    fn snapshot_is_due(&self) -> bool {
        let snapshots = &self.snapshots;
        let every_ms = self.config.snapshot_every_ms;
        let is_old = every_ms > 0 && self.now.0.saturating_sub(snapshots.begun_at.0) >= every_ms;
        let is_long = snapshots.log_bytes >= self.config.snapshot_log_bytes;
        let has_changes = self.applied > snapshots.kept_index;
        // A log without room gets some back by a snapshot, and by nothing else: waiting for more bytes would be for ever.
        let is_long = is_long || !self.has_log_room;
        if self.searches.edits_in_flight > 0 {
            return false;
        }
        let is_wanted =
            snapshots.is_urgent || !snapshots.next_waiters.is_empty() || (has_changes && (is_old || is_long));
        // A long backlog is drained beside traffic first; only if that never ends do writes wait for it.
        let may_drain = self.backlog_is_short() || snapshots.log_bytes >= 2 * self.config.snapshot_log_bytes;
        is_wanted
            && may_drain
            && self.applied > 0
            && self.slices.current.is_none()
            && self.config.floor != Floor::Off
            && self.now >= snapshots.not_before
    }

    fn begin_snapshot(&mut self, with_faults: bool, effects: &mut Effects) {
        let mut slots = SlotSet::default();
        for slot in self.config.slots.iter() {
            slots.insert(*slot);
        }
        let header = SnapshotHeader {
            cluster: self.config.cluster,
            shard: self.config.shard,
            group: self.config.group,
            epoch: self.epoch,
            applied_index: self.applied,
            applied_term: self.applied_term,
            entry_stamp: self.stamp_applied,
            slots,
        };
        self.snapshots.begun_at = self.now;
        let mut chunks = Vec::new();
        let mut writer = SnapshotWriter::begin(&header, with_faults, &mut self.state, &mut chunks);
        let mut txns = Vec::new();
        if !is_on(Mutant::TransactionsNotKept) {
            self.txns.encode(&mut txns);
        }
        writer.section(super::image::SECTION_TXNS, &txns, &mut chunks);
        let mut catalog = Vec::new();
        if !is_on(Mutant::CatalogueNotKept) {
            self.searches.catalog.encode(&mut catalog);
        }
        writer.section(super::image::SECTION_CATALOG, &catalog, &mut chunks);
        if self.cluster.state().version > 0 {
            let mut meta = PayloadBuffer::new();
            encode_meta(self.cluster.state(), &mut meta);
            writer.section(super::image::SECTION_META, &meta, &mut chunks);
        }
        let mut members = Vec::new();
        encode_members(self.group.conf_state(), &mut members);
        writer.section(super::image::SECTION_MEMBERS, &members, &mut chunks);
        let conf_state = self.group.conf_state().clone();
        let offer = SnapshotOffer { index: self.applied, term: self.applied_term, conf_state };
        let indexes = Some(self.searches.indexes.begin_snapshot());
        let mut run = Run {
            stage: Stage::Writing { writer: Box::new(writer), indexes, state_is_written: false },
            index: self.applied,
            offer,
            log_bytes_at_start: self.snapshots.log_bytes,
            in_flight_bytes: 0,
            bytes: 0,
            with_faults,
            digest: [0; 2],
        };
        effects.snapshot.push(SnapshotEffect::Begin { index: self.applied });
        run.send(chunks, effects);
        self.snapshots.run = Some(run);
        let next = std::mem::take(&mut self.snapshots.next_waiters);
        self.snapshots.waiters.extend(next);
    }

    fn end_writing(&mut self, effects: &mut Effects) {
        let Some(mut run) = self.snapshots.run.take() else { return };
        if let Stage::Writing { writer, .. } = run.stage {
            let mut chunks = Vec::new();
            let summary = writer.finish(&mut self.state, &mut chunks);
            run.stage = Stage::Finishing;
            run.digest = [summary.footer.records.sum, summary.footer.sessions.sum];
            run.send(chunks, effects);
            effects.snapshot.push(SnapshotEffect::Finish(summary.footer));
        }
        self.snapshots.run = Some(run);
    }

    fn keep_snapshot(&mut self, run: &Run, effects: &mut Effects) {
        let mut upto: Option<Sequence> = None;
        while self
            .history
            .front()
            .is_some_and(|(last, _)| *last <= run.index + if is_on(Mutant::CutTooFar) { 2 } else { 0 })
        {
            upto = self.history.pop_front().map(|(_, sequence)| sequence);
        }
        self.snapshots.cut_owed = upto.or(self.snapshots.cut_owed);
        self.cut_what_is_durable(effects);
        self.group.offer_snapshot(run.offer.clone());
        let snapshots = &mut self.snapshots;
        snapshots.kept_index = run.index;
        snapshots.log_bytes = snapshots.log_bytes.saturating_sub(run.log_bytes_at_start);
        snapshots.counters.kept += 1;
        snapshots.counters.last_bytes = run.bytes;
        snapshots.counters.last_index = run.index;
        snapshots.counters.last_digest = run.digest;
        for waiter in self.snapshots.waiters.drain(..).filter(|waiter| !waiter.is_silent) {
            reply(effects, waiter.router, waiter.token, &Outcome::Ok);
        }
    }

    /// Cuts the log off behind a snapshot as soon as what is cut is durable: where the log syncs behind what is applied, a
    /// snapshot can stand before the log holds what is in it.
    pub(super) fn cut_what_is_durable(&mut self, effects: &mut Effects) {
        if self.snapshots.cut_owed.is_some_and(|upto| upto <= self.durable) {
            effects.cut = self.snapshots.cut_owed.take();
        }
    }

    fn fail_snapshot(&mut self, text: &str, effects: &mut Effects) {
        self.snapshots.counters.failed += 1;
        self.snapshots.not_before = Millis(self.now.0 + RETRY_AFTER_MS);
        let text = format!("the snapshot was not written: {text}; the log still holds everything");
        for waiter in self.snapshots.waiters.drain(..).filter(|waiter| !waiter.is_silent) {
            reply(effects, waiter.router, waiter.token, &Outcome::Failed(Failure::Internal(text.clone())));
        }
    }

    /// A change of the catalogue does not wait for a replica that only follows: its snapshot is begun anew.
    pub(super) fn interrupt_snapshot(&mut self, effects: &mut Effects) {
        let is_writing =
            self.snapshots.run.as_ref().is_some_and(|run| matches!(run.stage, Stage::Writing { .. }));
        if is_writing {
            self.abort_snapshot();
            effects.snapshot.push(SnapshotEffect::Drop);
            self.snapshots.is_urgent = true;
        }
    }

    /// Gives the snapshot under way up. Who waits for it waits for the next.
    pub(super) fn abort_snapshot(&mut self) {
        if let Some(run) = self.snapshots.run.take() {
            self.drop_writer(run);
        }
        let waiters = std::mem::take(&mut self.snapshots.waiters);
        self.snapshots.next_waiters.extend(waiters);
    }

    fn drop_writer(&mut self, run: Run) {
        if let Stage::Writing { writer, indexes, .. } = run.stage {
            writer.abort(&mut self.state);
            if let Some(sections) = indexes {
                self.searches.indexes.end_snapshot(sections);
            }
        }
    }
}

impl Snapshots {
    /// Who waits for a snapshot, to give them up in time.
    pub(super) fn all_waiters(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.waiters.iter_mut().chain(&mut self.next_waiters)
    }

    /// A shard restored from a snapshot at this index, with so much log behind it.
    pub(super) fn restored(kept_index: u64, log_bytes: u64, now: Millis) -> Self {
        Self { kept_index, log_bytes, begun_at: now, ..Self::default() }
    }

    /// A snapshot of another replica is this replica's newest one now.
    pub(super) fn fetched(&mut self, index: u64, now: Millis) {
        assert!(self.run.is_none(), "the one under way was given up");
        (self.kept_index, self.log_bytes, self.begun_at) = (index, 0, now);
        (self.is_draining, self.is_urgent) = (false, false);
    }

    /// Whether one is being written.
    pub(super) fn is_running(&self) -> bool {
        self.run.is_some()
    }
}

impl Run {
    fn send(&mut self, chunks: Vec<Chunk>, effects: &mut Effects) {
        for chunk in chunks {
            let length = chunk.as_slice().len() as u64;
            self.in_flight_bytes += length;
            self.bytes += length;
            effects.snapshot.push(SnapshotEffect::Write(chunk));
        }
    }
}

/// A section of the index room may be cut into several blocks on its way; its length stands before it.
fn put_index_section(writer: &mut SnapshotWriter, section: &[u8], chunks: &mut Vec<Chunk>) {
    if section.is_empty() {
        return;
    }
    let length = u32::try_from(section.len()).expect("sections stay below 4 GiB");
    let framed = [&length.to_le_bytes()[..], section].concat();
    writer.section(super::image::SECTION_INDEXES, &framed, chunks);
}
