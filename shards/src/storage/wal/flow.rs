//! The inside of the log's ring: filling buffers, writing, syncing, retiring in order, and keeping spares.
//!
//! See the parent for what it promises. A write goes Queued -> Writing -> Written -> Syncing -> Synced and leaves from
//! the front only. One round of syncs is in flight at a time, one sync for every file with completed writes.

use super::{
    CREATE_RETRY_NS, Filling, Full, MANIFEST, Progress, SyncPolicy, WRITE_TRIES_MAX, Wal, WalFailure, Write,
    WritingSegment,
};
use crate::log::SegmentId;
use crate::log::header::{self, BLOCK_BYTES};
use crate::log::manifest::ListedSegment;
use crate::log::payload::PayloadBuffer;
use crate::log::writer::Placed;
use crate::mutants::{Mutant, is_on};
use crate::storage::device::{BufferId, DeviceWrite, EIO, FileSlot, LogDevice, Outcome, SegmentSupply};
use crate::storage::segments::{SegmentDone, SegmentJob};
use std::io;

/// Writes not yet durable at once. More would only lengthen a sync; appends are refused until some retire.
const WRITES_MAX: usize = 64;
/// Whether a recovered log goes on in its last segment.
enum GoOn {
    /// It does: the segment is open.
    Yes,
    /// It does not: a fresh one is begun.
    Not,
    /// What it depends on is not known yet.
    NotYet,
    /// The device failed.
    Failed,
}

/// Free segments kept beside the spares; more are removed.
const FREE_KEPT: usize = 1;

impl<D: LogDevice, S: SegmentSupply<File = D::File>> Wal<D, S> {
    /// Whether a frame of this length finds a buffer.
    pub(super) fn has_room(&mut self, bytes: usize) -> bool {
        if let Some(filling) = self.filling
            && filling.used + bytes <= self.device.buffer(filling.buffer).len()
        {
            return true;
        }
        self.has_buffers(&[bytes])
    }

    /// Whether buffers for writes of these lengths are free.
    fn has_buffers(&self, lengths: &[usize]) -> bool {
        let (pooled, large) = self.device.free_buffers();
        let large_wanted = lengths.iter().filter(|bytes| **bytes > self.device.pool_buffer_bytes()).count();
        let room = self.writes.len() + lengths.len() < WRITES_MAX;
        room && lengths.len() - large_wanted <= pooled && large_wanted <= large
    }

    /// Buffer space for a frame that has room; queues what is being filled when it does not fit there.
    pub(super) fn fill_room(&mut self, bytes: usize) -> Filling {
        if let Some(filling) = self.filling
            && filling.used + bytes <= self.device.buffer(filling.buffer).len()
        {
            return filling;
        }
        self.queue_filling();
        let buffer = self.device.take_buffer(bytes).expect("the caller checked that there is room");
        let (segment, file) = self.open.expect("a segment is open");
        let (frame, reaches) = (self.last_frame, self.durable);
        let filling = Filling { buffer, segment, file, offset: 0, used: 0, frame, reaches };
        self.filling = Some(filling);
        filling
    }

    /// Notes the frame just laid at the end of the filling buffer.
    pub(super) fn filled(&mut self, placed: &Placed) {
        let filling = self.filling.as_mut().expect("a frame was laid into it");
        assert_eq!(placed.segment, filling.segment, "a buffer holds frames of one segment");
        if filling.used == 0 {
            filling.offset = placed.offset;
        }
        assert_eq!(
            filling.offset + filling.used as u64,
            placed.offset,
            "frames in a buffer follow one another"
        );
        filling.used += placed.bytes;
        filling.frame = placed.frame;
        filling.reaches = placed.reaches;
        self.last_frame = placed.frame;
    }

    /// Begins the next segment for a frame of `bytes`, or refuses and changes nothing.
    pub(super) fn begin_segment(
        &mut self,
        bytes: usize,
        reserved: bool,
        start: impl FnOnce(&mut PayloadBuffer),
    ) -> Result<(), Full> {
        if self.open.is_none() && self.last.is_some() {
            match self.go_on_in_last(bytes) {
                GoOn::Yes => return if self.has_room(bytes) { Ok(()) } else { Err(Full::Buffers) },
                GoOn::Not => self.last = None,
                GoOn::NotYet => return Err(Full::Preparing),
                GoOn::Failed => return Err(Full::Failed),
            }
        }
        let kept_back = usize::from(!reserved);
        if self.spares.len() <= kept_back {
            return Err(if self.create_failed_at_ns.is_some() { Full::DiskFull } else { Full::Preparing });
        }
        let mut payload = std::mem::take(&mut self.start);
        payload.clear();
        start(&mut payload);
        let begun = self.begin_segment_with(bytes, &payload);
        self.start = payload;
        begun
    }

    /// Opens the last segment of a recovered log to be written on, if there is no room for another beside the reserve.
    fn go_on_in_last(&mut self, bytes: usize) -> GoOn {
        let wanted = self.options.spare_segments.min(1) + 1;
        if self.spares.len() >= wanted {
            return GoOn::Not;
        }
        if self.create_failed_at_ns.is_none() {
            // Spares are on their way, or will be asked for.
            return GoOn::NotYet;
        }
        let room = self.writer.shape().segment_bytes - BLOCK_BYTES as u64;
        let last = self.last.as_mut().expect("the caller looked");
        if last.end.offset + bytes as u64 > room {
            return GoOn::Not;
        }
        let Some(file) = last.file.take() else {
            last.is_asked = last.is_asked || self.supply.ask(SegmentJob::Reopen(last.segment));
            return GoOn::NotYet;
        };
        if !self.device.has_file_slot() {
            last.file = Some(file);
            return GoOn::NotYet;
        }
        let (segment, end, direct) = (last.segment, last.end, file.direct);
        let added =
            self.device.add_file(file.file).map(|slot| slot.expect("the device said that it has a slot"));
        let Ok(slot) = self.noted(added) else { return GoOn::Failed };
        self.last = None;
        self.direct = direct;
        self.open = Some((segment, slot));
        self.writing.push(WritingSegment { segment, file: slot, uses: 1 });
        self.writer.go_on_in_last(&end);
        GoOn::Yes
    }

    fn begin_segment_with(&mut self, bytes: usize, start: &[u8]) -> Result<(), Full> {
        let start_bytes = header::frame_bytes(start.len());
        let together = start_bytes + bytes <= self.device.pool_buffer_bytes();
        let room = if together {
            self.has_buffers(&[BLOCK_BYTES, start_bytes + bytes])
        } else {
            self.has_buffers(&[BLOCK_BYTES, start_bytes, bytes])
        };
        // With both of its blocks in flight a crash could leave no manifest at all.
        let manifest_in_flight = self.writes.iter().any(|write| write.filled.segment == MANIFEST);
        if !room || manifest_in_flight || !self.device.has_file_slot() {
            return Err(Full::Buffers);
        }
        self.queue_filling();
        let spare = self.spares.pop_front().expect("the caller checked");
        let (segment, direct) = (spare.segment, spare.direct);
        let added =
            self.device.add_file(spare.file).map(|slot| slot.expect("the device said that it has a slot"));
        let file = self.noted(added).map_err(|_| Full::Failed)?;
        if let Some((closed, _)) = self.open.replace((segment, file)) {
            self.release_segment(closed).map_err(|_| Full::Failed)?;
        }
        self.direct = direct;
        self.writing.push(WritingSegment { segment, file, uses: 1 });
        self.queue_manifest(Some(segment));
        self.counters.segments += 1;
        let durable = self.durable;
        let filling = self.fill_room(start_bytes);
        let frame = &mut self.device.buffer(filling.buffer)[filling.used..];
        let placed = self.writer.start_segment(segment, start, durable, frame);
        self.filled(&placed);
        Ok(())
    }

    /// Queues a write of the manifest, with the segment that is about to begin. Durability is told in the order in which
    /// writes are queued, so nothing in that segment counts as durable before the manifest lists it.
    pub(super) fn queue_manifest(&mut self, begins: Option<SegmentId>) {
        assert!(self.filling.is_none(), "what was appended before is queued before");
        let live: Vec<ListedSegment> = self.writer.live().map(ListedSegment::from).collect();
        let next = begins.map(|segment| ListedSegment { segment, epoch: self.writer.next_epoch() });
        let listed: Vec<ListedSegment> = live.into_iter().chain(next).collect();
        self.manifest.advance(self.durable, listed.into_iter());
        let buffer = self.device.take_buffer(BLOCK_BYTES).expect("the caller checked that there is room");
        self.manifest.encode(&mut self.device.buffer(buffer)[..BLOCK_BYTES]);
        let filled = Filling {
            buffer,
            segment: MANIFEST,
            file: self.manifest_file,
            offset: self.manifest.offset(),
            used: BLOCK_BYTES,
            frame: self.last_frame,
            reaches: self.writer.last_sequence(),
        };
        self.filling = Some(filled);
        self.queue_filling();
    }

    /// Ends the filling of a buffer: it becomes a write.
    pub(super) fn queue_filling(&mut self) {
        let Some(filled) = self.filling.take() else { return };
        let segment = self.writing.iter_mut().find(|writing| writing.segment == filled.segment);
        segment.expect("a filled segment is being written").uses += 1;
        self.writes.push_back(Write { filled, done: 0, tries: 0, progress: Progress::Queued, linked: false });
    }

    fn release_segment(&mut self, segment: SegmentId) -> Result<(), WalFailure> {
        let place = self.writing.iter().position(|writing| writing.segment == segment);
        let place = place.expect("a released segment is being written");
        self.writing[place].uses -= 1;
        if self.writing[place].uses == 0 {
            let gone = self.writing.swap_remove(place);
            let removed = self.device.remove_file(gone.file);
            self.noted(removed)?;
        }
        Ok(())
    }

    fn sync_is_due(&self) -> bool {
        let asked = self.is_closing || self.sync_target > self.durable_frame;
        match self.options.sync {
            SyncPolicy::Always => true,
            SyncPolicy::Interval { every_ns } => asked || self.now_ns >= self.last_sync_ns + every_ns,
        }
    }

    /// Pushes queued writes; a lone one with nothing else to sync takes its sync along, linked.
    pub(super) fn push_queued(&mut self) -> io::Result<()> {
        let Some(first) = self.writes.iter().position(|write| write.progress == Progress::Queued) else {
            return Ok(());
        };
        let file = self.writes[first].filled.file;
        let alone = first + 1 == self.writes.len();
        let same_file =
            self.writes.iter().all(|write| write.progress != Progress::Written || write.filled.file == file);
        if alone && same_file && self.syncs_in_flight == 0 && self.sync_is_due() {
            self.writes[first].linked = true;
            self.mark_syncing(file);
        }
        for place in first..self.writes.len() {
            if self.writes[place].progress == Progress::Queued {
                self.push_write(place)?;
            }
        }
        Ok(())
    }

    fn push_write(&mut self, place: usize) -> io::Result<()> {
        let write = &mut self.writes[place];
        write.progress = Progress::Writing;
        let Filling { buffer, file, offset, used, .. } = write.filled;
        let bytes = used - write.done;
        let linked = write.linked;
        self.counters.writes += 1;
        self.counters.bytes += bytes as u64;
        let write = DeviceWrite { buffer, from: write.done, bytes, file, offset: offset + write.done as u64 };
        self.device.push_write(&write, linked)
    }

    fn mark_syncing(&mut self, file: FileSlot) {
        self.syncs_in_flight += 1;
        self.counters.syncs += 1;
        self.last_sync_ns = self.now_ns;
        for write in &mut self.writes {
            if write.progress == Progress::Written && write.filled.file == file {
                write.progress = Progress::Syncing;
            }
        }
    }

    /// Starts a round of syncs over everything written, when none is in flight and one is due.
    pub(super) fn push_sync(&mut self) -> io::Result<()> {
        if self.syncs_in_flight > 0 || !self.sync_is_due() {
            return Ok(());
        }
        while let Some(write) = self.writes.iter().find(|write| write.progress == Progress::Written) {
            let file = write.filled.file;
            self.mark_syncing(file);
            self.device.push_sync(file)?;
        }
        Ok(())
    }

    pub(super) fn write_completed(&mut self, buffer: BufferId, outcome: Outcome) -> Result<(), WalFailure> {
        let place = self
            .writes
            .iter()
            .position(|write| write.progress == Progress::Writing && write.filled.buffer == buffer);
        let place = place.expect("a completion belongs to a write");
        let write = &mut self.writes[place];
        let linked = std::mem::take(&mut write.linked);
        let segment = write.filled.segment;
        match outcome {
            Outcome::Done(bytes) => {
                write.done += bytes;
                assert!(write.done <= write.filled.used, "the device writes no more than asked");
                if write.done == write.filled.used || is_on(Mutant::ShortWriteCounts) {
                    write.progress = if linked { Progress::Syncing } else { Progress::Written };
                    self.device.release_buffer(buffer);
                    return Ok(());
                }
                // O_DIRECT wants whole blocks: the started one is written again, with the same bytes.
                write.done = write.done / BLOCK_BYTES * BLOCK_BYTES;
            }
            Outcome::Again => {}
            Outcome::Failed(errno) => return self.fail(WalFailure::Write(segment, errno)),
            // Only what is linked behind something is cancelled, and no write is.
            Outcome::Cancelled => return self.fail(WalFailure::Write(segment, EIO)),
        }
        write.tries += 1;
        if write.tries > WRITE_TRIES_MAX {
            return self.fail(WalFailure::Write(segment, EIO));
        }
        // The linked sync was cancelled with it; its completion says so.
        self.sync_was_cut |= linked;
        let pushed = self.push_write(place);
        self.noted(pushed)
    }

    pub(super) fn sync_completed(&mut self, file: FileSlot, outcome: Outcome) -> Result<(), WalFailure> {
        self.syncs_in_flight -= 1;
        let reached = match outcome {
            Outcome::Failed(_) if is_on(Mutant::SyncErrorPassedOver) => Progress::Synced,
            Outcome::Done(_) => Progress::Synced,
            // Cancelled because its linked write was short: nothing was synced and nothing failed.
            Outcome::Cancelled if self.sync_was_cut => Progress::Written,
            _ => {
                let errno = if let Outcome::Failed(errno) = outcome { errno } else { EIO };
                let writing = self.writing.iter().find(|writing| writing.file == file);
                let segment = writing.expect("a synced file is being written").segment;
                return self.fail(WalFailure::Sync(segment, errno));
            }
        };
        self.sync_was_cut = false;
        for write in &mut self.writes {
            if write.progress == Progress::Syncing && write.filled.file == file {
                write.progress = reached;
            }
        }
        Ok(())
    }

    /// Takes durable writes from the front; true when that freed something.
    pub(super) fn retire(&mut self) -> Result<bool, WalFailure> {
        let mut retired = false;
        while self.writes.front().is_some_and(|write| {
            write.progress == Progress::Synced
                || (is_on(Mutant::AckBeforeSync) && write.progress == Progress::Written)
        }) {
            let write = self.writes.pop_front().expect("just seen");
            assert!(self.durable <= write.filled.reaches, "sequences become durable in order");
            self.durable = write.filled.reaches;
            self.durable_frame = write.filled.frame;
            self.release_segment(write.filled.segment)?;
            retired = true;
        }
        while let Some(free) = self.writer.take_free(self.durable_frame) {
            self.free.push_back(free);
        }
        Ok(retired)
    }

    pub(super) fn seal_wanted(&self) -> bool {
        let news = self.durable > self.stated || self.writer.cut_is_pending();
        news && self.open.is_some() && !self.seal_refused
    }

    pub(super) fn seal_due_at(&self) -> Option<u64> {
        let quiet = self.in_flight() == 0 && self.seal_wanted();
        quiet.then_some(self.last_append_ns + self.options.seal_after_ns)
    }

    pub(super) fn place_seal(&mut self) {
        // A full segment takes no seal; the start of the next one says the same.
        self.seal_refused = !self.writer.seal_fits();
        if self.seal_refused || !self.has_room(BLOCK_BYTES) {
            return;
        }
        let durable = self.durable;
        let filling = self.fill_room(BLOCK_BYTES);
        let frame = &mut self.device.buffer(filling.buffer)[filling.used..];
        let placed = self.writer.seal(durable, frame).expect("it fits");
        self.filled(&placed);
        self.queue_filling();
        self.stated = durable;
        self.counters.seals += 1;
    }

    /// Keeps the wanted number of spares ready or asked for, and removes free segments beyond need.
    pub(super) fn prepare_spares(&mut self) {
        let wanted = self.options.spare_segments + 1;
        let may_create = self.create_failed_at_ns.is_none_or(|at_ns| self.now_ns >= at_ns + CREATE_RETRY_NS);
        while self.spares.len() + self.supply.waiting() < wanted {
            let recycled = self.free.pop_front();
            let job = match recycled {
                Some(segment) => SegmentJob::Reopen(segment),
                None if may_create => SegmentJob::Create(self.next_segment),
                None => break,
            };
            if !self.supply.ask(job) {
                self.free.extend(recycled);
                break;
            }
            if recycled.is_none() {
                self.next_segment.0 += 1;
            }
        }
        while self.free.len() > FREE_KEPT && self.spares.len() >= wanted {
            let segment = self.free.pop_back().expect("just counted");
            if !self.supply.ask(SegmentJob::Delete(segment)) {
                self.free.push_back(segment);
                break;
            }
        }
    }

    fn is_last(&self, segment: SegmentId) -> bool {
        self.last.as_ref().is_some_and(|last| last.segment == segment)
    }

    /// Takes what the helper thread finished; true when a spare came.
    pub(super) fn collect_spares(&mut self) -> bool {
        let mut came = false;
        while let Some(done) = self.supply.poll() {
            match done {
                SegmentDone::Ready(file) if self.is_last(file.segment) => {
                    self.last.as_mut().expect("just seen").file = Some(file);
                    came = true;
                }
                // What cannot be opened is not written on: the reserve has to do.
                SegmentDone::Failed(SegmentJob::Reopen(segment), _) if self.is_last(segment) => {
                    self.last = None;
                    came = true;
                }
                // Asked for, and not needed any more: it stays as it is.
                SegmentDone::Ready(file) if self.writer.is_live(file.segment) => {}
                SegmentDone::Failed(SegmentJob::Reopen(segment), _) if self.writer.is_live(segment) => {}
                SegmentDone::Ready(spare) => {
                    self.spares.push_back(spare);
                    self.create_failed_at_ns = None;
                    came = true;
                }
                SegmentDone::Failed(SegmentJob::Reopen(segment), _) => {
                    self.free.push_back(segment);
                    self.create_failed_at_ns = Some(self.now_ns);
                }
                SegmentDone::Failed(SegmentJob::Create(_), _) => {
                    self.create_failed_at_ns = Some(self.now_ns);
                    // A recovered log that waited for this goes on in its last segment.
                    came |= self.last.is_some();
                }
                // A file that could not be removed is found again, as a free one, at the next start.
                SegmentDone::Deleted(_) | SegmentDone::Failed(SegmentJob::Delete(_), _) => {}
            }
        }
        came
    }
}
