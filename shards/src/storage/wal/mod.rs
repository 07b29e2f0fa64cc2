//! The write-ahead log of one shard at work: batches in, durable sequences out.
//!
//! `append` frames batches into buffers (several small ones share a write), `flush` hands them to the device in one
//! call, `reap` says without blocking what became durable. When nothing is in flight a write carries its sync linked
//! behind it; under load writes flow freely, and one sync at a time covers those that completed before it was submitted.
//! Durability is reported as a contiguous prefix, across segments too. Invariants: a batch is durable only when it and
//! every one before it were covered by a successful sync; after any failed write or sync nothing is written again, and
//! every call answers with that failure; without a spare segment appends are refused and nothing else changes, but for a log
//! just recovered, which goes on in its last segment rather than use the reserve up.
//! This file must not block (except `close`, `wait` and dropping it), and reads no clock: time comes as an argument.

mod flow;

use super::device::{BufferId, Completion, EIO, FileSlot, LogDevice, SegmentSupply};
use super::recovery::RecoveredLog;
use super::segments::OpenSegment;
use crate::ids::{GroupId, Sequence};
use crate::log::SegmentId;
use crate::log::header::{self, BLOCK_BYTES};
use crate::log::manifest::Manifest;
use crate::log::payload::PayloadBuffer;
use crate::log::writer::{Fit, FrameNumber, LogEnd, LogWriter};
use std::collections::VecDeque;
use std::fmt;
use std::io;

/// The fewest buffers: a new segment takes one for the manifest, its start and its first batch each.
pub const BUFFERS_MIN: usize = 3;
/// No segment has this number: among the files being written it stands for the manifest.
const MANIFEST: SegmentId = SegmentId(0);
/// Times a write is submitted again after it was put off or came back short before it counts as failed.
const WRITE_TRIES_MAX: u32 = 1000;
/// Pause before another try to make a segment when the disk was full.
const CREATE_RETRY_NS: u64 = 1_000_000_000;

/// When a batch is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// At once.
    Always,
    /// At most every so many nanoseconds, or when asked by [`Wal::sync_now`].
    Interval {
        /// The time in nanoseconds.
        every_ns: u64,
    },
}

/// Sizes of a log's buffers and spares.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// When to sync.
    pub sync: SyncPolicy,
    /// Buffers in the pool, at least [`BUFFERS_MIN`]: how many writes may be in flight.
    pub buffers: usize,
    /// Size of each in bytes, whole blocks. Longer batches take one of a few larger buffers.
    pub buffer_bytes: usize,
    /// Segments kept ready beside the reserve.
    pub spare_segments: usize,
    /// How long the log must be quiet before a seal states what is durable, in nanoseconds.
    pub seal_after_ns: u64,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            sync: SyncPolicy::Always,
            buffers: 8,
            buffer_bytes: 256 << 10,
            spare_segments: 1,
            seal_after_ns: 50_000_000,
        }
    }
}

/// One batch of entries.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// Its sequence: one above the last.
    pub sequence: Sequence,
    /// Whose entries.
    pub group: GroupId,
    /// The archive of a `RecordV1`.
    pub payload: &'a [u8],
    /// Whether it may use the reserve segment: votes, decisions and whatever lets space be freed.
    pub reserved: bool,
}

/// Why a batch was not taken. Nothing changed; the same sequence is offered again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Every buffer is in flight: reap, then try again.
    Buffers,
    /// The next segment is being prepared: reap, then try again.
    Preparing,
    /// The next segment cannot be made. Writes are answered with DISK_FULL until a reap says otherwise.
    DiskFull,
    /// The payload is longer than any segment takes.
    TooLarge,
    /// The log has failed; `reap` and `flush` say how.
    Failed,
}

/// Named reasons for which the process must stop: durability is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalFailure {
    /// A write failed, or came back empty again and again.
    Write(SegmentId, i32),
    /// A sync failed.
    Sync(SegmentId, i32),
    /// The device itself failed, before or beside any write.
    Device(i32),
}

impl fmt::Display for WalFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, errno) = match self {
            Self::Write(segment, errno) => (format!("writing {}", Written(*segment)), *errno),
            Self::Sync(segment, errno) => (format!("syncing {}", Written(*segment)), *errno),
            Self::Device(errno) => ("the io_uring of the log".to_owned(), *errno),
        };
        write!(f, "{what} failed: {}", io::Error::from_raw_os_error(errno))
    }
}

impl std::error::Error for WalFailure {}

/// A file that the log writes, in words.
struct Written(SegmentId);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            MANIFEST => f.write_str("the manifest of the log"),
            segment => write!(f, "the log segment {segment}"),
        }
    }
}

/// What a reap found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Everything up to here is durable, when that moved.
    pub durable_upto: Option<Sequence>,
    /// Buffers came free, or a segment: a refused append may now succeed.
    pub room: bool,
    /// Whether segments cannot be made: writes that need one are refused.
    pub disk_full: bool,
}

/// Figures for metrics, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalCounters {
    /// Batches appended, without starts and seals.
    pub batches: u64,
    /// Writes submitted.
    pub writes: u64,
    /// Syncs submitted.
    pub syncs: u64,
    /// Bytes submitted.
    pub bytes: u64,
    /// Segments begun.
    pub segments: u64,
    /// Seals written.
    pub seals: u64,
}

/// A buffer that is being filled with frames that follow one another in one segment.
#[derive(Clone, Copy)]
struct Filling {
    buffer: BufferId,
    segment: SegmentId,
    file: FileSlot,
    offset: u64,
    used: usize,
    frame: FrameNumber,
    reaches: Sequence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Waits for `flush`, or for a sync to be linked behind it.
    Queued,
    Writing,
    Written,
    /// Covered by the sync in flight.
    Syncing,
    Synced,
}

struct Write {
    filled: Filling,
    done: usize,
    tries: u32,
    progress: Progress,
    /// In the sync in flight only if it completes whole: the sync is linked behind it.
    linked: bool,
}

/// The last segment of a recovered log, which is written on where there is no room for another.
struct LastSegment<F> {
    segment: SegmentId,
    end: LogEnd,
    /// Whether its file was asked for.
    is_asked: bool,
    file: Option<OpenSegment<F>>,
}

struct WritingSegment {
    segment: SegmentId,
    file: FileSlot,
    /// Writes of it that are not yet synced, plus one while it is the open segment.
    uses: usize,
}

/// The log of one shard, on the shard's thread.
pub struct Wal<D: LogDevice, S: SegmentSupply<File = D::File>> {
    device: D,
    writer: LogWriter,
    options: WalOptions,
    supply: S,
    /// Ready segments; the last one is the reserve.
    spares: VecDeque<OpenSegment<D::File>>,
    /// Files that may be written over.
    free: VecDeque<SegmentId>,
    next_segment: SegmentId,
    open: Option<(SegmentId, FileSlot)>,
    /// Before the first append: the segment that recovery found the log's end in.
    last: Option<LastSegment<D::File>>,
    manifest: Manifest,
    manifest_file: FileSlot,
    writing: Vec<WritingSegment>,
    filling: Option<Filling>,
    /// Oldest first.
    writes: VecDeque<Write>,
    syncs_in_flight: usize,
    /// A write with a linked sync came back short, so that sync reports a cancellation.
    sync_was_cut: bool,
    /// Everything up to this frame was asked to be synced.
    sync_target: FrameNumber,
    /// The last write of the manifest, which is no frame, is to be synced without waiting for an interval.
    is_closing: bool,
    last_frame: FrameNumber,
    /// The open segment has no room for a seal.
    seal_refused: bool,
    direct: bool,
    durable: Sequence,
    durable_frame: FrameNumber,
    /// What the newest batch states to be durable.
    stated: Sequence,
    last_sync_ns: u64,
    last_append_ns: u64,
    now_ns: u64,
    create_failed_at_ns: Option<u64>,
    failure: Option<WalFailure>,
    start: PayloadBuffer,
    counters: WalCounters,
}

impl<D: LogDevice, S: SegmentSupply<File = D::File>> fmt::Debug for Wal<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { durable, failure, counters, .. } = self;
        f.debug_struct("Wal")
            .field("durable", durable)
            .field("failure", failure)
            .field("counters", counters)
            .finish_non_exhaustive()
    }
}

impl<D: LogDevice, S: SegmentSupply<File = D::File>> Wal<D, S> {
    /// Goes on with a recovered log whose run has begun. `device` has pooled buffers as `options` say and no files; `supply`
    /// prepares segments in the log's directory; `manifest` is the manifest's file, open for writing.
    pub fn new(
        log: &RecoveredLog,
        options: WalOptions,
        mut device: D,
        supply: S,
        manifest: D::File,
    ) -> io::Result<Self> {
        assert!(device.pool_buffer_bytes().is_multiple_of(BLOCK_BYTES), "buffers are whole blocks");
        assert!(device.free_buffers().0 >= BUFFERS_MIN, "a segment can begin");
        let manifest_file = device.add_file(manifest)?.expect("a new device has room for a file");
        let recovered = &log.recovered;
        let mut wal = Self {
            device,
            writer: LogWriter::resume(log.shape, recovered),
            options,
            supply,
            spares: VecDeque::new(),
            free: recovered.free.iter().copied().collect(),
            next_segment: SegmentId(log.last_segment.0 + 1),
            open: None,
            last: recovered.end.zip(recovered.live.last()).map(|(end, live)| LastSegment {
                segment: live.segment,
                end,
                is_asked: false,
                file: None,
            }),
            manifest: log.manifest.clone(),
            manifest_file,
            writing: vec![WritingSegment { segment: MANIFEST, file: manifest_file, uses: 1 }],
            filling: None,
            writes: VecDeque::new(),
            syncs_in_flight: 0,
            sync_was_cut: false,
            sync_target: FrameNumber(0),
            is_closing: false,
            last_frame: FrameNumber(0),
            seal_refused: false,
            direct: false,
            durable: recovered.last_sequence,
            durable_frame: FrameNumber(0),
            stated: recovered.last_sequence,
            last_sync_ns: 0,
            last_append_ns: 0,
            now_ns: 0,
            create_failed_at_ns: None,
            failure: None,
            start: PayloadBuffer::new(),
            counters: WalCounters::default(),
        };
        wal.prepare_spares();
        Ok(wal)
    }

    /// The sequence that the next batch must have.
    pub fn next_sequence(&self) -> Sequence {
        self.writer.next_sequence()
    }

    /// Everything up to here is durable.
    pub fn durable_upto(&self) -> Sequence {
        self.durable
    }

    /// Bytes of segment files that hold the live log; count these, not record bytes, when deciding to snapshot.
    pub fn live_bytes(&self) -> u64 {
        self.writer.live_bytes()
    }

    /// The longest payload that an append takes, in bytes.
    pub fn payload_bytes_max(&self) -> usize {
        self.writer.shape().payload_bytes_max()
    }

    /// Whether a helper thread is making or removing a segment for this log.
    pub fn awaits_segments(&self) -> bool {
        self.supply.waiting() > 0
    }

    /// Writes that were appended and are not yet durable.
    pub fn in_flight(&self) -> usize {
        self.writes.len() + usize::from(self.filling.is_some())
    }

    /// Whether a reap would find something; no system call.
    pub fn has_completions(&mut self) -> bool {
        self.device.has_completions()
    }

    /// Figures for metrics.
    pub fn counters(&self) -> WalCounters {
        self.counters
    }

    /// Whether the open segment bypasses the page cache; false where the file system refuses O_DIRECT, and before the
    /// first append.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// What the log writes to.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Takes a batch; `flush` writes it. When a segment must begin first, `start` puts the archive of a `StartV1` into its
    /// argument: the state of every group in this log before this batch.
    pub fn append(&mut self, batch: &Append<'_>, start: impl FnOnce(&mut PayloadBuffer)) -> Result<(), Full> {
        if self.failure.is_some() {
            return Err(Full::Failed);
        }
        let bytes = header::frame_bytes(batch.payload.len());
        match self.writer.fit(batch.payload.len()) {
            Fit::TooLarge => return Err(Full::TooLarge),
            Fit::Fits => {
                if !self.has_room(bytes) {
                    return Err(Full::Buffers);
                }
            }
            Fit::NeedsSegment => self.begin_segment(bytes, batch.reserved, start)?,
        }
        let durable = self.durable;
        let filling = self.fill_room(bytes);
        let frame = &mut self.device.buffer(filling.buffer)[filling.used..];
        let placed = self.writer.place(batch.sequence, batch.group, batch.payload, durable, frame);
        self.filled(&placed);
        self.stated = durable;
        self.seal_refused = false;
        self.counters.batches += 1;
        Ok(())
    }

    /// Hands everything appended to the device and starts a sync when one is due: at most one system call. Also keeps
    /// spare segments coming, and seals a log that has been quiet.
    pub fn flush(&mut self, now_ns: u64) -> Result<(), WalFailure> {
        self.now_ns = now_ns;
        self.check()?;
        if self.filling.is_some() {
            self.last_append_ns = now_ns;
            self.queue_filling();
        } else if self.seal_due_at().is_some_and(|due_ns| now_ns >= due_ns) {
            self.place_seal();
        }
        self.prepare_spares();
        let pushed = self.push_queued().and_then(|()| self.push_sync());
        self.noted(pushed)?;
        self.submit()
    }

    /// Syncs everything appended so far as soon as possible, under [`SyncPolicy::Interval`] too.
    pub fn sync_now(&mut self) {
        self.sync_target = self.last_frame;
    }

    /// When `flush` should be called again although nothing was appended, in nanoseconds: a sync or a seal falls due.
    pub fn due_ns(&self) -> Option<u64> {
        let sync = match self.options.sync {
            SyncPolicy::Interval { every_ns } if !self.writes.is_empty() && self.syncs_in_flight == 0 => {
                Some(self.last_sync_ns + every_ns)
            }
            _ => None,
        };
        let create = self.create_failed_at_ns.map(|at_ns| at_ns + CREATE_RETRY_NS);
        [sync, create, self.seal_due_at()].into_iter().flatten().min()
    }

    /// What completed since the last call; starts the next sync. Never blocks.
    pub fn reap(&mut self) -> Result<Reaped, WalFailure> {
        self.check()?;
        let before = self.durable;
        let mut room = self.collect_spares();
        loop {
            let next = self.device.reap();
            let Some(completion) = self.noted(next)? else { break };
            match completion {
                Completion::Write(buffer, result) => self.write_completed(buffer, result)?,
                Completion::Sync(file, result) => self.sync_completed(file, result)?,
            }
        }
        room |= self.retire()?;
        let pushed = self.push_queued().and_then(|()| self.push_sync());
        self.noted(pushed)?;
        self.submit()?;
        let durable_upto = (self.durable > before).then_some(self.durable);
        Ok(Reaped {
            durable_upto,
            room,
            disk_full: self.create_failed_at_ns.is_some() && self.spares.len() <= 1,
        })
    }

    /// Says that no batch up to `upto`, which is durable, is needed any more. Its segments are reused once a batch that
    /// says so is durable; a quiet log writes a seal for that.
    pub fn cut(&mut self, upto: Sequence) {
        assert!(upto <= self.durable, "only what is durable can be cut");
        self.writer.cut(upto);
    }

    /// Blocks until something completes, then reaps: for tests and shutdown.
    pub fn wait(&mut self) -> Result<Reaped, WalFailure> {
        self.check()?;
        if self.device.in_flight() > 0 {
            let waited = self.device.submit_and_wait();
            self.noted(waited)?;
        } else if self.supply.waiting() > 0 {
            self.supply.wait();
        }
        self.reap()
    }

    /// Makes everything durable, seals the log, lets the manifest say how far it goes, and closes it. Blocks.
    pub fn close(mut self) -> Result<(), WalFailure> {
        self.drain()?;
        if self.seal_wanted() {
            self.place_seal();
            self.drain()?;
        }
        if self.manifest.durable_upto < self.durable {
            self.is_closing = true;
            self.queue_manifest(None);
            self.drain()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), WalFailure> {
        self.sync_now();
        self.flush(self.now_ns)?;
        while self.in_flight() > 0 {
            self.sync_now();
            self.wait()?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), WalFailure> {
        self.failure.map_or(Ok(()), Err)
    }

    fn fail<T>(&mut self, failure: WalFailure) -> Result<T, WalFailure> {
        Err(*self.failure.get_or_insert(failure))
    }

    fn noted<T>(&mut self, result: io::Result<T>) -> Result<T, WalFailure> {
        result.or_else(|error| self.fail(WalFailure::Device(error.raw_os_error().unwrap_or(EIO))))
    }

    fn submit(&mut self) -> Result<(), WalFailure> {
        if self.device.has_unsubmitted() {
            let submitted = self.device.submit();
            self.noted(submitted)?;
        }
        Ok(())
    }
}
