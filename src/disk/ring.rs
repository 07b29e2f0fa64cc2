//! The io_uring of one log: writes and syncs, with buffers and files that it owns until their last completion.
//!
//! Invariants: a buffer in flight is neither read, written nor freed by anyone; dropping the ring first waits for
//! everything in flight, and if it cannot wait it leaks the buffers rather than free them. The lock file of the data
//! directory is registered here, so that the lock outlives the process's last write even after `kill -9`: the kernel
//! drops registered files only after the last request. What is written where is decided by `wal`.
#![allow(
    unsafe_code,
    reason = "submission entries carry raw addresses; this is the one place that makes them"
)]

use super::aligned::AlignedBuffer;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Slots for registered files: the lock and the segments that still have unsynced writes.
const FILES: usize = 16;
/// Large buffers in existence at once.
const LARGE_BUFFERS: usize = 4;
/// A free large buffer up to this size is kept for the next one.
const LARGE_KEPT_BYTES: usize = 2 << 20;
/// Entries of the submission queue; the bounds above never need more.
const QUEUE_ENTRIES: u32 = 64;
/// Marks the completion of a sync.
const SYNC: u64 = 1 << 32;

/// One of the ring's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferId(u16);

/// One of the ring's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSlot(u32);

/// What to write: `bytes` from `from` in the buffer to `offset` in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingWrite {
    pub(super) buffer: BufferId,
    pub(super) from: usize,
    pub(super) bytes: usize,
    pub(super) file: FileSlot,
    pub(super) offset: u64,
}

/// What completed, with the number of bytes written or a negative error number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Completion {
    Write(BufferId, i32),
    Sync(FileSlot, i32),
}

/// How the ring came up, for the log and for `info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// Completions are run cooperatively, without interrupting the thread.
    pub cooperative: bool,
    /// Buffers are registered with the kernel.
    pub registered_buffers: bool,
}

struct Held {
    memory: Option<AlignedBuffer>,
    taken: bool,
    in_flight: bool,
}

pub(super) struct LogRing {
    uring: IoUring,
    /// The pool first, then the slots of large buffers.
    buffers: Vec<Held>,
    pooled: usize,
    files: [Option<File>; FILES],
    in_flight: usize,
    features: RingFeatures,
    /// Keeps the registered lock file's descriptor valid while it is registered.
    _lock: Option<File>,
}

impl LogRing {
    /// Makes the ring on the thread that will use it. `eventfd` is signalled at every completion.
    pub(super) fn new(
        pool_buffers: usize,
        pool_buffer_bytes: usize,
        eventfd: Option<RawFd>,
        lock: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        assert!((2..=24).contains(&pool_buffers), "the pool fits the submission queue");
        let (uring, cooperative) = build_ring()?;
        let held = |memory| Held { memory, taken: false, in_flight: false };
        let mut buffers: Vec<Held> =
            (0..pool_buffers).map(|_| held(Some(AlignedBuffer::zeroed(pool_buffer_bytes)))).collect();
        buffers.extend((0..LARGE_BUFFERS).map(|_| held(None)));
        let lock = lock.map(|lock| lock.try_clone_to_owned()).transpose()?.map(File::from);
        let mut descriptors = [-1; FILES];
        descriptors[0] = lock.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        uring.submitter().register_files(&descriptors)?;
        if let Some(eventfd) = eventfd {
            uring.submitter().register_eventfd(eventfd)?;
        }
        let vectors: Vec<libc::iovec> = buffers[..pool_buffers]
            .iter()
            .filter_map(|held| held.memory.as_ref())
            .map(|memory| libc::iovec { iov_base: memory.as_ptr().cast(), iov_len: memory.len() })
            .collect();
        // SAFETY: the buffers live in this struct, never move, and `drop` waits for the last request on them.
        let registered_buffers = unsafe { uring.submitter().register_buffers(&vectors) }.is_ok();
        let features = RingFeatures { cooperative, registered_buffers };
        let files = [const { None }; FILES];
        Ok(Self { uring, buffers, pooled: pool_buffers, files, in_flight: 0, features, _lock: lock })
    }

    pub(super) fn features(&self) -> RingFeatures {
        self.features
    }

    /// Submitted or queued requests without a completion yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Size of a pooled buffer in bytes.
    pub(super) fn pool_buffer_bytes(&self) -> usize {
        self.buffers[0].memory.as_ref().map_or(0, |memory| memory.len())
    }

    /// How many pooled and how many large buffers could be taken now.
    pub(super) fn free_buffers(&self) -> (usize, usize) {
        let free = |held: &&Held| !held.taken;
        let (pool, large) = self.buffers.split_at(self.pooled);
        (pool.iter().filter(free).count(), large.iter().filter(free).count())
    }

    /// Takes a buffer of at least `bytes`; `None` when all of that kind are in use.
    pub(super) fn take_buffer(&mut self, bytes: usize) -> Option<BufferId> {
        let large = bytes > self.pool_buffer_bytes();
        let range = if large { self.pooled..self.buffers.len() } else { 0..self.pooled };
        let place = range.clone().find(|place| !self.buffers[*place].taken)?;
        let held = &mut self.buffers[place];
        if held.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            held.memory = Some(AlignedBuffer::zeroed(bytes));
        }
        held.taken = true;
        Some(BufferId(u16::try_from(place).expect("there are few buffers")))
    }

    /// The contents of a taken buffer that is not in flight.
    pub(super) fn buffer(&mut self, buffer: BufferId) -> &mut [u8] {
        let held = &mut self.buffers[usize::from(buffer.0)];
        assert!(held.taken && !held.in_flight, "a buffer in flight belongs to the kernel");
        held.memory.as_mut().expect("a taken buffer has memory")
    }

    /// Gives a buffer back.
    pub(super) fn release_buffer(&mut self, buffer: BufferId) {
        let place = usize::from(buffer.0);
        let held = &mut self.buffers[place];
        assert!(held.taken && !held.in_flight, "a buffer in flight belongs to the kernel");
        held.taken = false;
        if place >= self.pooled && held.memory.as_ref().is_some_and(|memory| memory.len() > LARGE_KEPT_BYTES)
        {
            held.memory = None;
        }
    }

    /// Whether another file can be registered.
    pub(super) fn has_file_slot(&self) -> bool {
        self.files[1..].iter().any(Option::is_none)
    }

    /// Registers a file. `None` when every slot is in use.
    pub(super) fn add_file(&mut self, file: File) -> io::Result<Option<FileSlot>> {
        let Some(place) = (1..FILES).find(|place| self.files[*place].is_none()) else { return Ok(None) };
        let slot = u32::try_from(place).expect("there are few slots");
        self.uring.submitter().register_files_update(slot, &[file.as_raw_fd()])?;
        self.files[place] = Some(file);
        Ok(Some(FileSlot(slot)))
    }

    /// Unregisters and closes a file without requests in flight.
    pub(super) fn remove_file(&mut self, slot: FileSlot) -> io::Result<()> {
        self.uring.submitter().register_files_update(slot.0, &[-1])?;
        let removed = self.files[slot.0 as usize].take();
        assert!(removed.is_some(), "a slot is removed once");
        Ok(())
    }

    /// Queues a write, and when asked a sync of the same file that starts once the write is complete.
    pub(super) fn push_write(&mut self, write: &RingWrite, then_sync: bool) -> io::Result<()> {
        let held = &mut self.buffers[usize::from(write.buffer.0)];
        assert!(held.taken && !held.in_flight, "one write a buffer at a time");
        let memory = held.memory.as_ref().expect("a taken buffer has memory");
        assert!(write.from + write.bytes <= memory.len(), "a write stays inside its buffer");
        let length = u32::try_from(write.bytes).expect("a buffer is below 4 GiB");
        let start = memory[write.from..].as_ptr();
        let registered = self.features.registered_buffers && usize::from(write.buffer.0) < self.pooled;
        let file = Fixed(write.file.0);
        let entry = if registered {
            opcode::WriteFixed::new(file, start, length, write.buffer.0).offset(write.offset).build()
        } else {
            opcode::Write::new(file, start, length).offset(write.offset).build()
        };
        let entry = entry.user_data(u64::from(write.buffer.0));
        held.in_flight = true;
        if then_sync {
            self.push(&[entry.flags(squeue::Flags::IO_LINK), sync_entry(write.file)])
        } else {
            self.push(&[entry])
        }
    }

    /// Queues a sync of a file's data, which covers the writes that completed before it is submitted.
    pub(super) fn push_sync(&mut self, file: FileSlot) -> io::Result<()> {
        self.push(&[sync_entry(file)])
    }

    fn push(&mut self, entries: &[squeue::Entry]) -> io::Result<()> {
        let room = |queue: &squeue::SubmissionQueue<'_>| queue.capacity() - queue.len();
        if room(&self.uring.submission()) < entries.len() {
            self.submit()?;
        }
        let mut queue = self.uring.submission();
        // SAFETY: the addresses lie in buffers that this struct owns and neither touches nor frees before the
        // completion (`in_flight`, `drop`); the files are registered and stay so until their last completion.
        let pushed = unsafe { queue.push_multiple(entries) };
        pushed.map_err(|_| io::Error::other("the submission queue of the log stays full"))?;
        self.in_flight += entries.len();
        Ok(())
    }

    /// Hands what is queued to the kernel, in one call. What it cannot take now stays queued.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// As [`LogRing::submit`], and waits for one completion.
    pub(super) fn submit_and_wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        loop {
            match self.uring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory or wants completions reaped first: the entries stay queued.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether entries wait in the queue for a submission.
    pub(super) fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// The next completion, without blocking.
    /// Whether [`LogRing::reap`] would find something.
    pub(super) fn has_completions(&mut self) -> bool {
        if !self.uring.completion().is_empty() {
            return true;
        }
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    pub(super) fn reap(&mut self) -> io::Result<Option<Completion>> {
        let mut found = self.uring.completion().next();
        if found.is_none() {
            let queue = self.uring.submission();
            let kernel_has_more = queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if kernel_has_more {
                self.submit()?;
                found = self.uring.completion().next();
            }
        }
        let Some(entry) = found else { return Ok(None) };
        self.in_flight -= 1;
        let low = entry.user_data() & (SYNC - 1);
        if entry.user_data() & SYNC != 0 {
            let slot = u32::try_from(low).expect("a slot was put there");
            return Ok(Some(Completion::Sync(FileSlot(slot), entry.result())));
        }
        let buffer = u16::try_from(low).expect("a buffer was put there");
        self.buffers[usize::from(buffer)].in_flight = false;
        Ok(Some(Completion::Write(BufferId(buffer), entry.result())))
    }
}

impl Drop for LogRing {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            let waited = self.submit_and_wait();
            while let Ok(Some(_)) = self.reap() {}
            if waited.is_err() {
                // Memory that the kernel may still read must stay where it is.
                self.buffers.drain(..).for_each(std::mem::forget);
                return;
            }
        }
    }
}

fn sync_entry(file: FileSlot) -> squeue::Entry {
    opcode::Fsync::new(Fixed(file.0)).flags(FsyncFlags::DATASYNC).build().user_data(SYNC | u64::from(file.0))
}

/// The best ring this kernel gives: older ones refuse flags that they do not know.
fn build_ring() -> io::Result<(IoUring, bool)> {
    let mut best = IoUring::builder();
    best.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut good = IoUring::builder();
    good.setup_coop_taskrun().setup_taskrun_flag();
    for builder in [&best, &good] {
        match builder.build(QUEUE_ENTRIES) {
            Ok(ring) => return Ok((ring, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((IoUring::new(QUEUE_ENTRIES)?, false))
}
