//! Segment files: making them, opening them, and the helper thread that keeps spares ready.
//!
//! A segment is created by writing zeros through the whole file, syncing it, renaming it into place and syncing the
//! directory; after that its size and extents never change, so a commit syncs data only. A recycled segment is reused in
//! place: its next life has a higher epoch, which makes every record in it stale. Creation takes tens of milliseconds and
//! never runs on a shard's thread: `SegmentPool` is one thread for the process, asked and answering through bounded
//! channels. This file must not know what is in a segment.

use super::aligned::AlignedBuffer;
use super::sync_directory;
use super::worker::Wake;
use shards::log::SegmentId;
use shards::log::replay::SegmentFile;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Zeros written at once.
const ZERO_BYTES: usize = 1 << 20;
/// Jobs that one shard may have waiting at the helper thread.
const JOBS_PER_SHARD: usize = 4;

/// An open segment file.
#[derive(Debug)]
pub struct OpenSegment {
    /// Which one.
    pub segment: SegmentId,
    /// The file, for reading and writing.
    pub file: File,
    /// Whether it bypasses the page cache; false where the file system refuses that.
    pub direct: bool,
}

/// Opens an existing segment, past the page cache where the file system allows it.
pub fn open_segment(directory: &Path, segment: SegmentId) -> io::Result<OpenSegment> {
    let path = directory.join(segment.file_name());
    let (file, direct) = open_direct(OpenOptions::new().read(true).write(true), &path)?;
    Ok(OpenSegment { segment, file, direct })
}

/// Creates a segment of zeros, or replaces the unfinished rest of an earlier attempt. The file appears under its name only when it is whole and durable.
pub fn create_segment(directory: &Path, segment: SegmentId, segment_bytes: u64) -> io::Result<OpenSegment> {
    let temporary = directory.join(format!("{}.tmp", segment.file_name()));
    let result = fill_with_zeros(&temporary, segment_bytes).and_then(|()| {
        std::fs::rename(&temporary, directory.join(segment.file_name()))?;
        sync_directory(directory)?;
        open_segment(directory, segment)
    });
    if result.is_err() {
        // The space of a failed attempt is given back; if even that fails, the next start removes the rest.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn fill_with_zeros(path: &Path, segment_bytes: u64) -> io::Result<()> {
    let (file, _) = open_direct(OpenOptions::new().write(true).create(true).truncate(true), path)?;
    let zeros = AlignedBuffer::zeroed(ZERO_BYTES.min(usize::try_from(segment_bytes).unwrap_or(ZERO_BYTES)));
    let mut offset = 0;
    while offset < segment_bytes {
        let length = (zeros.len() as u64).min(segment_bytes - offset);
        file.write_all_at(&zeros[..length as usize], offset)?;
        offset += length;
    }
    file.sync_all()
}

/// Opens with O_DIRECT, or without it where the file system (a tmpfs, for one) refuses.
pub(super) fn open_direct(options: &OpenOptions, path: &Path) -> io::Result<(File, bool)> {
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((options.open(path)?, false)),
        result => Ok((result?, true)),
    }
}

/// Lists the segments of a shard in ascending order, and removes what an interrupted creation left.
pub fn list_segments(directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(segment) = SegmentId::from_file_name(name) {
            found.push(SegmentFile { segment, bytes: entry.metadata()?.len() });
        } else if name.strip_suffix(".tmp").and_then(SegmentId::from_file_name).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    found.sort_by_key(|file| file.segment);
    Ok(found)
}

/// What a shard asks of the helper thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentJob {
    /// Create a new segment.
    Create(SegmentId),
    /// Open a free segment for its next life.
    Reopen(SegmentId),
    /// Remove a free segment that is not needed as a spare.
    Delete(SegmentId),
}

/// How a job ended.
#[derive(Debug)]
pub enum SegmentDone {
    /// A spare is ready.
    Ready(OpenSegment),
    /// The file is gone.
    Deleted(SegmentId),
    /// It could not be done. A failed creation leaves nothing behind.
    Failed(SegmentJob, io::Error),
}

struct Request {
    job: SegmentJob,
    directory: PathBuf,
    segment_bytes: u64,
    budget: Option<u64>,
    reply: SyncSender<SegmentDone>,
    wake: Wake,
}

/// The helper thread that prepares segments. Ends when the pool and all its handles are dropped.
#[derive(Debug)]
pub struct SegmentPool {
    requests: SyncSender<Request>,
    /// Most segment files that a shard's directory may hold, when limited.
    segments_max: Option<u64>,
}

/// One shard's end of the pool.
pub struct SegmentPoolHandle {
    requests: SyncSender<Request>,
    reply: SyncSender<SegmentDone>,
    done: Receiver<SegmentDone>,
    directory: PathBuf,
    segment_bytes: u64,
    budget: Option<u64>,
    wake: Wake,
    waiting: usize,
}

impl SegmentPool {
    /// Starts the thread. `shards` bounds the queue. With `segments_max` a creation beyond that many files in a shard's
    /// directory fails as if the disk were full: a quota for operators.
    pub fn start(shards: usize, segments_max: Option<u64>) -> io::Result<Self> {
        let (requests, incoming) = sync_channel::<Request>(shards.max(1) * JOBS_PER_SHARD);
        std::thread::Builder::new().name("segments".into()).spawn(move || {
            for request in incoming {
                let done = perform(&request);
                // A shard that is gone needs no answer; there is room for every job it may have waiting.
                let _ = request.reply.send(done);
                (request.wake)();
            }
        })?;
        Ok(Self { requests, segments_max })
    }

    /// The end for the shard whose segments lie in `directory`; `wake` is called after every finished job.
    pub fn handle(&self, directory: &Path, segment_bytes: u64, wake: Wake) -> SegmentPoolHandle {
        let (reply, done) = sync_channel(JOBS_PER_SHARD);
        let requests = self.requests.clone();
        let (directory, budget) = (directory.to_path_buf(), self.segments_max);
        SegmentPoolHandle { requests, reply, done, directory, segment_bytes, budget, wake, waiting: 0 }
    }
}

impl SegmentPoolHandle {
    /// Asks for a job; false when too many are waiting.
    pub fn ask(&mut self, job: SegmentJob) -> bool {
        if self.waiting == JOBS_PER_SHARD {
            return false;
        }
        let (directory, reply) = (self.directory.clone(), self.reply.clone());
        let (segment_bytes, budget, wake) = (self.segment_bytes, self.budget, self.wake.clone());
        let request = Request { job, directory, segment_bytes, budget, reply, wake };
        match self.requests.try_send(request) {
            Ok(()) => {
                self.waiting += 1;
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// The next finished job, without blocking.
    pub fn poll(&mut self) -> Option<SegmentDone> {
        let done = self.done.try_recv().ok()?;
        self.waiting -= 1;
        Some(done)
    }

    /// Jobs asked for and not yet polled.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

fn perform(request: &Request) -> SegmentDone {
    let directory = &request.directory;
    let result = match request.job {
        SegmentJob::Create(segment) => within_budget(request)
            .and_then(|()| create_segment(directory, segment, request.segment_bytes))
            .map(SegmentDone::Ready),
        SegmentJob::Reopen(segment) => open_segment(directory, segment).map(SegmentDone::Ready),
        SegmentJob::Delete(segment) => std::fs::remove_file(directory.join(segment.file_name()))
            .and_then(|()| sync_directory(directory))
            .map(|()| SegmentDone::Deleted(segment)),
    };
    result.unwrap_or_else(|error| SegmentDone::Failed(request.job, error))
}

fn within_budget(request: &Request) -> io::Result<()> {
    let Some(budget) = request.budget else { return Ok(()) };
    let existing = list_segments(&request.directory)?.len() as u64;
    if existing < budget { Ok(()) } else { Err(io::Error::from(io::ErrorKind::StorageFull)) }
}
