//! The log's device on a simulated disk: requests complete later, in any order, and sometimes not as hoped.
//!
//! It keeps its own account of which batches would survive a power cut now, read off the frames that it was given, so that
//! what the log reports durable can be judged.

use super::platter::{SimDisk, SimFile};
use crate::fault::Fault;
use shards::ids::Sequence;
use shards::log::header::{self, BLOCK_BYTES, BatchHeader, BatchKind};
use shards::storage::device::{BufferId, Completion, DeviceWrite, EIO, FileSlot, LogDevice, Outcome};
use shards::storage::wal::WalOptions;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

const FILES: usize = 15;
const LARGE_BUFFERS: usize = 4;

struct Held {
    memory: Vec<u8>,
    is_taken: bool,
}

enum Request {
    Write {
        buffer: BufferId,
        slot: FileSlot,
        id: u64,
        offset: usize,
        bytes: usize,
        outcome: Outcome,
        then_sync: bool,
    },
    Sync {
        slot: FileSlot,
        covered: Vec<u64>,
        outcome: Outcome,
    },
}

/// A batch on its way to the medium.
struct Frame {
    sequence: Sequence,
    file: SimFile,
    from: usize,
    to: usize,
    /// Its bytes have arrived up to here.
    arrived: usize,
}

struct State {
    disk: SimDisk,
    clock: Rc<Cell<u64>>,
    /// What is under way, with the time at which it completes.
    under_way: Vec<(u64, Request)>,
    done: VecDeque<(Completion, Option<u64>)>,
    files: [Option<SimFile>; FILES],
    frames: VecDeque<Frame>,
    durable: Sequence,
    write_us: u64,
}

/// See the module's head.
pub struct SimDevice {
    buffers: Vec<Held>,
    pooled: usize,
    pool_bytes: usize,
    queued: Vec<Request>,
    state: Rc<RefCell<State>>,
}

/// The rest of the world's view of a device.
#[derive(Clone)]
pub struct DeviceHandle(Rc<RefCell<State>>);

impl SimDevice {
    /// A device with a pool of buffers, on the world's clock. Everything up to `durable` was made durable before. Its writes
    /// and syncs take `slow_us` beyond what a quick disk's do.
    pub fn new(
        disk: SimDisk,
        clock: Rc<Cell<u64>>,
        options: &WalOptions,
        durable: Sequence,
        slow_us: u64,
    ) -> Self {
        let (buffers, buffer_bytes) = (options.buffers, options.buffer_bytes);
        let held = |memory| Held { memory, is_taken: false };
        let mut all: Vec<Held> = (0..buffers).map(|_| held(vec![0; buffer_bytes])).collect();
        all.extend((0..LARGE_BUFFERS).map(|_| held(Vec::new())));
        // How fast this disk is for as long as the process lives: nothing that a stall of this moment may slow down.
        let write_us = 20 + slow_us + disk.0.borrow_mut().rng.around(60);
        let state = State {
            disk,
            clock,
            under_way: Vec::new(),
            done: VecDeque::new(),
            files: [const { None }; FILES],
            frames: VecDeque::new(),
            durable,
            write_us,
        };
        Self {
            buffers: all,
            pooled: buffers,
            pool_bytes: buffer_bytes,
            queued: Vec::new(),
            state: Rc::new(RefCell::new(state)),
        }
    }

    /// For whoever advances the time.
    pub fn handle(&self) -> DeviceHandle {
        DeviceHandle(Rc::clone(&self.state))
    }
}

impl DeviceHandle {
    /// When something completes next.
    pub fn due(&self) -> Option<u64> {
        let state = self.0.borrow();
        if !state.done.is_empty() {
            return Some(state.clock.get());
        }
        state.under_way.iter().map(|(due, _)| *due).min()
    }

    /// Completes what is due.
    pub fn advance(&self) {
        self.0.borrow_mut().advance();
    }

    /// The newest batch that, with all before it, would survive a power cut now.
    pub fn truly_durable(&self) -> Sequence {
        let mut state = self.0.borrow_mut();
        state.count_durable();
        state.durable
    }
}

impl State {
    fn advance(&mut self) {
        let now = self.clock.get();
        loop {
            let next = self.under_way.iter().enumerate().filter(|(_, (due, _))| *due <= now);
            let Some((place, _)) = next.min_by_key(|(_, (due, _))| *due) else { return };
            let (_, request) = self.under_way.remove(place);
            self.complete(request);
        }
    }

    fn complete(&mut self, request: Request) {
        match request {
            Request::Write { buffer, slot, id, offset, bytes, outcome, then_sync } => {
                let length = match outcome {
                    Outcome::Done(length) => length,
                    _ => 0,
                };
                let mut outcome = outcome;
                let write = match outcome {
                    Outcome::Failed(_) => {
                        self.disk.fail_write(id);
                        None
                    }
                    _ => self.disk.end_write(id, length),
                };
                if write.is_none() && length > 0 {
                    // The power went meanwhile.
                    outcome = Outcome::Failed(EIO);
                }
                if write.is_some() {
                    self.note_arrival(slot, offset, offset + length);
                }
                self.done.push_back((Completion::Write(buffer, outcome), write));
                if then_sync {
                    let whole = outcome == Outcome::Done(bytes);
                    let outcome = if whole { self.sync_outcome() } else { Outcome::Cancelled };
                    let mut covered = self.covered(slot);
                    covered.extend(write);
                    let due = self.clock.get() + self.disk.latency_us(self.write_us);
                    self.under_way.push((due, Request::Sync { slot, covered, outcome }));
                }
            }
            Request::Sync { slot, covered, outcome } => {
                let file = self.files[slot.0 as usize].as_ref().expect("a synced file is open").again();
                let mut outcome = outcome;
                if matches!(outcome, Outcome::Done(_)) && self.disk.end_sync(&file, &covered).is_err() {
                    outcome = Outcome::Failed(EIO);
                }
                self.done.push_back((Completion::Sync(slot, outcome), None));
            }
        }
    }

    fn covered(&self, slot: FileSlot) -> Vec<u64> {
        let file = self.files[slot.0 as usize].as_ref().expect("a synced file is open");
        self.disk.covered(file)
    }

    /// Whether a sync that begins now will fail.
    fn sync_outcome(&self) -> Outcome {
        let mut platter = self.disk.0.borrow_mut();
        let per_mille = platter.faults.sync_error;
        if per_mille > 0 && platter.rng.chance(per_mille) {
            platter.counts.add(Fault::SyncError);
            return Outcome::Failed(EIO);
        }
        Outcome::Done(0)
    }

    fn write_outcome(&self, bytes: usize) -> Outcome {
        let mut platter = self.disk.0.borrow_mut();
        let faults = platter.faults;
        if faults.write_error > 0 && platter.rng.chance(faults.write_error) {
            platter.counts.add(Fault::WriteError);
            return Outcome::Failed(EIO);
        }
        if faults.short_write > 0 && platter.rng.chance(faults.short_write) {
            platter.counts.add(Fault::ShortWrite);
            let part = platter.rng.place(bytes / super::platter::SECTOR_BYTES) * super::platter::SECTOR_BYTES;
            return if part == 0 { Outcome::Again } else { Outcome::Done(part) };
        }
        Outcome::Done(bytes)
    }

    /// Notes that a stretch of a file arrived.
    fn note_arrival(&mut self, slot: FileSlot, from: usize, to: usize) {
        let file = self.files[slot.0 as usize].as_ref().expect("a written file is open");
        for frame in self.frames.iter_mut().filter(|frame| frame.file.is_same(file)) {
            if from <= frame.arrived && frame.arrived < to {
                frame.arrived = frame.to.min(to);
            }
        }
    }

    fn count_durable(&mut self) {
        while let Some(frame) = self.frames.front() {
            if frame.arrived < frame.to || !self.disk.is_durable(&frame.file, frame.from, frame.to) {
                return;
            }
            self.durable = self.durable.max(frame.sequence);
            self.frames.pop_front();
        }
    }

    /// Reads the batches off what is to be written. The rest of a short write names none: it was noted before.
    fn note_frames(&mut self, file: &SimFile, offset: usize, bytes: &[u8]) {
        let is_rest = self.frames.iter().any(|f| f.file.is_same(file) && f.from <= offset && offset < f.to);
        if is_rest {
            return;
        }
        let mut at = 0;
        while at < bytes.len() {
            let Ok((header, _)) = BatchHeader::decode(&bytes[at..at + BLOCK_BYTES]) else {
                at += BLOCK_BYTES;
                continue;
            };
            let length = header::frame_bytes(header.payload_bytes as usize);
            let is_entries = header.kind == BatchKind::Entries;
            let sequence = if is_entries { header.sequence } else { Sequence(header.sequence.0 - 1) };
            let from = offset + at;
            self.frames.push_back(Frame {
                sequence,
                file: file.again(),
                from,
                to: from + length,
                arrived: from,
            });
            at += length;
        }
    }
}

impl LogDevice for SimDevice {
    type File = SimFile;

    fn pool_buffer_bytes(&self) -> usize {
        self.pool_bytes
    }

    fn free_buffers(&self) -> (usize, usize) {
        let free = |held: &&Held| !held.is_taken;
        let (pool, large) = self.buffers.split_at(self.pooled);
        (pool.iter().filter(free).count(), large.iter().filter(free).count())
    }

    fn take_buffer(&mut self, bytes: usize) -> Option<BufferId> {
        let range = if bytes > self.pool_bytes { self.pooled..self.buffers.len() } else { 0..self.pooled };
        let place = range.clone().find(|place| !self.buffers[*place].is_taken)?;
        let held = &mut self.buffers[place];
        if held.memory.len() < bytes {
            held.memory = vec![0; bytes];
        }
        held.is_taken = true;
        Some(BufferId(place as u16))
    }

    fn buffer(&mut self, buffer: BufferId) -> &mut [u8] {
        let held = &mut self.buffers[usize::from(buffer.0)];
        assert!(held.is_taken, "a buffer is filled while it is taken");
        &mut held.memory
    }

    fn release_buffer(&mut self, buffer: BufferId) {
        let held = &mut self.buffers[usize::from(buffer.0)];
        assert!(held.is_taken, "a buffer is given back once");
        held.is_taken = false;
        // What a buffer held before must never be taken for what it holds next.
        held.memory.fill(0xee);
    }

    fn has_file_slot(&self) -> bool {
        self.state.borrow().files.iter().any(Option::is_none)
    }

    fn add_file(&mut self, file: SimFile) -> io::Result<Option<FileSlot>> {
        let mut state = self.state.borrow_mut();
        let Some(place) = state.files.iter().position(Option::is_none) else { return Ok(None) };
        state.files[place] = Some(file);
        Ok(Some(FileSlot(place as u32)))
    }

    fn remove_file(&mut self, slot: FileSlot) -> io::Result<()> {
        let removed = self.state.borrow_mut().files[slot.0 as usize].take();
        assert!(removed.is_some(), "a slot is removed once");
        Ok(())
    }

    fn push_write(&mut self, write: &DeviceWrite, then_sync: bool) -> io::Result<()> {
        assert!(
            write.from.is_multiple_of(BLOCK_BYTES) && write.bytes.is_multiple_of(BLOCK_BYTES),
            "whole blocks"
        );
        let bytes = &self.buffers[usize::from(write.buffer.0)].memory[write.from..write.from + write.bytes];
        let mut state = self.state.borrow_mut();
        let file = state.files[write.file.0 as usize].as_ref().expect("a written file is open").again();
        state.note_frames(&file, write.offset as usize, bytes);
        let outcome = state.write_outcome(write.bytes);
        let id = state.disk.begin_write(&file, write.offset, bytes.into())?;
        let (buffer, slot, offset, bytes) = (write.buffer, write.file, write.offset as usize, write.bytes);
        self.queued.push(Request::Write { buffer, slot, id, offset, bytes, outcome, then_sync });
        Ok(())
    }

    fn push_sync(&mut self, file: FileSlot) -> io::Result<()> {
        let state = self.state.borrow();
        let (covered, outcome) = (state.covered(file), state.sync_outcome());
        self.queued.push(Request::Sync { slot: file, covered, outcome });
        Ok(())
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.queued.is_empty()
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        for request in self.queued.drain(..) {
            let usual = state.write_us;
            let due = state.clock.get() + state.disk.latency_us(usual);
            state.under_way.push((due, request));
        }
        Ok(())
    }

    fn submit_and_wait(&mut self) -> io::Result<()> {
        self.submit()?;
        let mut state = self.state.borrow_mut();
        if state.done.is_empty()
            && let Some(place) = (0..state.under_way.len()).min_by_key(|place| state.under_way[*place].0)
        {
            let (_, request) = state.under_way.remove(place);
            state.complete(request);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        let state = self.state.borrow();
        let linked = state
            .under_way
            .iter()
            .filter(|(_, request)| matches!(request, Request::Write { then_sync: true, .. }));
        self.queued.len() + state.under_way.len() + linked.count() + state.done.len()
    }

    fn has_completions(&mut self) -> bool {
        !self.state.borrow().done.is_empty()
    }

    fn reap(&mut self) -> io::Result<Option<Completion>> {
        let mut state = self.state.borrow_mut();
        let Some((completion, write)) = state.done.pop_front() else { return Ok(None) };
        if let (Completion::Write(..), Some(write)) = (completion, write) {
            let file = state.files.iter().flatten().map(SimFile::again).collect::<Vec<_>>();
            for file in file {
                state.disk.see_write(&file, write);
            }
        }
        Ok(Some(completion))
    }
}
