//! The log's writes and syncs, as the engine asks for them: the queued half of the seam to the disk.
//!
//! Requests are pushed, handed over by a submit, and complete later, in any order. A sync covers exactly the writes whose
//! completion had been reaped before it was pushed, and a write that it is linked behind. A buffer in flight belongs to the
//! device. A device counts its completions honestly; what it must not do is decide, retry or reorder on its own account.

use super::segments::{SegmentDone, SegmentJob};
use std::io;

/// The error number for a device that cannot say more.
pub const EIO: i32 = 5;

/// One of the device's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(pub u16);

/// One of the files that the device holds open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSlot(pub u32);

/// What to write: `bytes` from `from` in the buffer to `offset` in the file.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWrite {
    /// The buffer, not in flight.
    pub buffer: BufferId,
    /// Where in it the bytes begin; a whole block.
    pub from: usize,
    /// How many bytes; whole blocks.
    pub bytes: usize,
    /// The file.
    pub file: FileSlot,
    /// Where in the file, in bytes; a whole block.
    pub offset: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; of a write, so many bytes from its beginning.
    Done(usize),
    /// Nothing was done and nothing failed: it may be pushed again.
    Again,
    /// It never ran, because the write that it was linked behind did not complete whole.
    Cancelled,
    /// It failed with this error number; what is on the disk is unknown.
    Failed(i32),
}

/// A request that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The write from this buffer.
    Write(BufferId, Outcome),
    /// A sync of this file.
    Sync(FileSlot, Outcome),
}

/// Where a log writes to.
pub trait LogDevice {
    /// An open segment file.
    type File;

    /// Size of a pooled buffer in bytes, whole blocks.
    fn pool_buffer_bytes(&self) -> usize;

    /// How many pooled and how many large buffers could be taken now.
    fn free_buffers(&self) -> (usize, usize);

    /// Takes a buffer of at least `bytes`, a large one if a pooled one is too small; `None` when all of that kind are taken.
    fn take_buffer(&mut self, bytes: usize) -> Option<BufferId>;

    /// The contents of a taken buffer that is not in flight.
    fn buffer(&mut self, buffer: BufferId) -> &mut [u8];

    /// Gives a buffer back that is not in flight.
    fn release_buffer(&mut self, buffer: BufferId);

    /// Whether another file can be added.
    fn has_file_slot(&self) -> bool;

    /// Adds a file. `None` when every slot is in use.
    fn add_file(&mut self, file: Self::File) -> io::Result<Option<FileSlot>>;

    /// Closes a file without requests in flight.
    fn remove_file(&mut self, slot: FileSlot) -> io::Result<()>;

    /// Queues a write, and when asked a sync of the same file that starts once the write is complete.
    fn push_write(&mut self, write: &DeviceWrite, then_sync: bool) -> io::Result<()>;

    /// Queues a sync of a file's data.
    fn push_sync(&mut self, file: FileSlot) -> io::Result<()>;

    /// Whether something was pushed and not handed over.
    fn has_unsubmitted(&mut self) -> bool;

    /// Hands over what was pushed. Never blocks; what cannot be taken now stays queued.
    fn submit(&mut self) -> io::Result<()>;

    /// As [`LogDevice::submit`], and waits for one completion: before a shard serves, and at the end.
    fn submit_and_wait(&mut self) -> io::Result<()>;

    /// Requests pushed whose completion was not reaped.
    fn in_flight(&self) -> usize;

    /// Whether [`LogDevice::reap`] would find something.
    fn has_completions(&mut self) -> bool;

    /// The next completion, without blocking.
    fn reap(&mut self) -> io::Result<Option<Completion>>;
}

/// Who prepares segment files for a log, beside its thread.
pub trait SegmentSupply {
    /// An open segment file.
    type File;

    /// Asks for a job; false when too many are waiting.
    fn ask(&mut self, job: SegmentJob) -> bool;

    /// The next finished job, without blocking.
    fn poll(&mut self) -> Option<SegmentDone<Self::File>>;

    /// Jobs asked for and not yet polled.
    fn waiting(&self) -> usize;

    /// Lets some time go by, or until a job is finished: before a shard serves, and at the end.
    fn wait(&mut self);
}
