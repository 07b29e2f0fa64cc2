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
use super::files::DiskFile;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use shards::storage::device::{BufferId, Completion, DeviceWrite, FileSlot, LogDevice, Outcome};
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

struct Held {
    memory: Option<AlignedBuffer>,
    taken: bool,
    in_flight: bool,
}

/// The ring of one log.
pub struct LogRing {
    uring: IoUring,
    /// The pool first, then the slots of large buffers.
    buffers: Vec<Held>,
    pooled: usize,
    files: [Option<DiskFile>; FILES],
    in_flight: usize,
    /// The kernel took the pool's buffers, so writes from them need not pin memory each.
    registered_buffers: bool,
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
        let uring = build_ring()?;
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
        let files = [const { None }; FILES];
        Ok(Self {
            uring,
            buffers,
            pooled: pool_buffers,
            files,
            in_flight: 0,
            registered_buffers,
            _lock: lock,
        })
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
}

impl LogDevice for LogRing {
    type File = DiskFile;

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn pool_buffer_bytes(&self) -> usize {
        self.buffers[0].memory.as_ref().map_or(0, |memory| memory.len())
    }

    fn free_buffers(&self) -> (usize, usize) {
        let free = |held: &&Held| !held.taken;
        let (pool, large) = self.buffers.split_at(self.pooled);
        (pool.iter().filter(free).count(), large.iter().filter(free).count())
    }

    fn take_buffer(&mut self, bytes: usize) -> Option<BufferId> {
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

    fn buffer(&mut self, buffer: BufferId) -> &mut [u8] {
        let held = &mut self.buffers[usize::from(buffer.0)];
        assert!(held.taken && !held.in_flight, "a buffer in flight belongs to the kernel");
        held.memory.as_mut().expect("a taken buffer has memory")
    }

    fn release_buffer(&mut self, buffer: BufferId) {
        let place = usize::from(buffer.0);
        let held = &mut self.buffers[place];
        assert!(held.taken && !held.in_flight, "a buffer in flight belongs to the kernel");
        held.taken = false;
        if place >= self.pooled && held.memory.as_ref().is_some_and(|memory| memory.len() > LARGE_KEPT_BYTES)
        {
            held.memory = None;
        }
    }

    fn has_file_slot(&self) -> bool {
        self.files[1..].iter().any(Option::is_none)
    }

    fn add_file(&mut self, file: DiskFile) -> io::Result<Option<FileSlot>> {
        let Some(place) = (1..FILES).find(|place| self.files[*place].is_none()) else { return Ok(None) };
        let slot = u32::try_from(place).expect("there are few slots");
        self.uring.submitter().register_files_update(slot, &[file.as_raw_fd()])?;
        self.files[place] = Some(file);
        Ok(Some(FileSlot(slot)))
    }

    fn remove_file(&mut self, slot: FileSlot) -> io::Result<()> {
        self.uring.submitter().register_files_update(slot.0, &[-1])?;
        let removed = self.files[slot.0 as usize].take();
        assert!(removed.is_some(), "a slot is removed once");
        Ok(())
    }

    fn push_write(&mut self, write: &DeviceWrite, then_sync: bool) -> io::Result<()> {
        let held = &mut self.buffers[usize::from(write.buffer.0)];
        assert!(held.taken && !held.in_flight, "one write a buffer at a time");
        let memory = held.memory.as_ref().expect("a taken buffer has memory");
        assert!(write.from + write.bytes <= memory.len(), "a write stays inside its buffer");
        let length = u32::try_from(write.bytes).expect("a buffer is below 4 GiB");
        let start = memory[write.from..].as_ptr();
        let registered = self.registered_buffers && usize::from(write.buffer.0) < self.pooled;
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

    fn push_sync(&mut self, file: FileSlot) -> io::Result<()> {
        self.push(&[sync_entry(file)])
    }

    fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    fn submit_and_wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    fn has_completions(&mut self) -> bool {
        if !self.uring.completion().is_empty() {
            return true;
        }
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn reap(&mut self) -> io::Result<Option<Completion>> {
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
            return Ok(Some(Completion::Sync(FileSlot(slot), outcome_of(entry.result()))));
        }
        let buffer = u16::try_from(low).expect("a buffer was put there");
        self.buffers[usize::from(buffer)].in_flight = false;
        Ok(Some(Completion::Write(BufferId(buffer), outcome_of(entry.result()))))
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

/// What the kernel's result means: a count, or a negative error number.
fn outcome_of(result: i32) -> Outcome {
    match result {
        0.. => Outcome::Done(usize::try_from(result).expect("not negative")),
        _ if matches!(-result, libc::EINTR | libc::EAGAIN) => Outcome::Again,
        _ if -result == libc::ECANCELED => Outcome::Cancelled,
        _ => Outcome::Failed(-result),
    }
}

fn sync_entry(file: FileSlot) -> squeue::Entry {
    opcode::Fsync::new(Fixed(file.0)).flags(FsyncFlags::DATASYNC).build().user_data(SYNC | u64::from(file.0))
}

/// The best ring this kernel gives: older ones refuse flags that they do not know.
fn build_ring() -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut good = IoUring::builder();
    good.setup_coop_taskrun().setup_taskrun_flag();
    for builder in [&best, &good] {
        match builder.build(QUEUE_ENTRIES) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    IoUring::new(QUEUE_ENTRIES)
}
