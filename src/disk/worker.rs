//! The helper thread that writes snapshot files, so that no shard waits for one.
//!
//! One thread for the process; every shard has a handle with bounded queues both ways and at most one snapshot under
//! way. Each job is answered once, in order. After a failure the rest of that snapshot's jobs answer with a refusal.
//! A shard is woken after every answer. This file must not decide how fast to write: the shard paces its chunks.

use super::files::RealDisk;
use shards::storage::snapshots::{SnapshotWriter, Verifier};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Jobs that one shard may have waiting.
pub const JOBS_PER_SHARD: usize = 4;

/// Wakes the shard that waits for an answer.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a shard asks for.
pub enum FileJob {
    /// Begin the snapshot at this log index, giving up one under way.
    Begin(u64),
    /// Add these bytes.
    Append(Vec<u8>),
    /// Sync it, read it back through the verifier, put it in place.
    Finish(Box<dyn Verifier + Send>),
    /// Give it up.
    Abort,
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub enum FileDone {
    /// The snapshot is begun.
    Begun,
    /// The bytes were taken; the emptied buffer comes back for the next ones.
    Appended(Vec<u8>),
    /// The snapshot stands: its index and its length in bytes.
    Finished(u64, u64),
    /// It was given up.
    Aborted,
    /// It failed and was given up; the reason.
    Failed(String),
}

struct Request {
    shard: usize,
    job: FileJob,
}

struct ShardEnd {
    directory: PathBuf,
    reply: SyncSender<FileDone>,
    wake: Wake,
    writing: Option<(u64, SnapshotWriter<RealDisk>)>,
}

/// One shard's end of the worker.
#[derive(Debug)]
pub struct FileWorker {
    shard: usize,
    requests: SyncSender<Request>,
    done: Receiver<FileDone>,
    waiting: usize,
}

/// Starts the thread for shards that keep their snapshots in these directories. It ends when every handle is dropped.
pub fn start_file_worker(shards: Vec<(PathBuf, Wake)>) -> io::Result<Vec<FileWorker>> {
    let (requests, incoming) = sync_channel::<Request>(shards.len().max(1) * JOBS_PER_SHARD);
    let mut ends = Vec::with_capacity(shards.len());
    let mut handles = Vec::with_capacity(shards.len());
    for (shard, (directory, wake)) in shards.into_iter().enumerate() {
        let (reply, done) = sync_channel(JOBS_PER_SHARD);
        ends.push(ShardEnd { directory, reply, wake, writing: None });
        handles.push(FileWorker { shard, requests: requests.clone(), done, waiting: 0 });
    }
    drop(requests);
    std::thread::Builder::new().name("snapshots".into()).spawn(move || {
        for request in incoming {
            let end = &mut ends[request.shard];
            let done = end.perform(request.job);
            // A shard that is gone needs no answer; there is room for every job it may have waiting.
            let _ = end.reply.send(done);
            (end.wake)();
        }
    })?;
    Ok(handles)
}

impl FileWorker {
    /// Asks for a job; gives it back when too many are waiting.
    pub fn ask(&mut self, job: FileJob) -> Result<(), FileJob> {
        if self.waiting == JOBS_PER_SHARD {
            return Err(job);
        }
        match self.requests.try_send(Request { shard: self.shard, job }) {
            Ok(()) => {
                self.waiting += 1;
                Ok(())
            }
            Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) => Err(request.job),
        }
    }

    /// The next answer, without blocking.
    pub fn poll(&mut self) -> Option<FileDone> {
        let done = self.done.try_recv().ok()?;
        self.waiting -= 1;
        Some(done)
    }
}

impl ShardEnd {
    fn perform(&mut self, job: FileJob) -> FileDone {
        let result = match job {
            FileJob::Begin(index) => self.begin(index),
            FileJob::Append(bytes) => self.append(bytes),
            FileJob::Finish(verifier) => self.finish(verifier),
            FileJob::Abort => {
                self.give_up();
                Ok(FileDone::Aborted)
            }
        };
        result.unwrap_or_else(|reason| {
            self.give_up();
            FileDone::Failed(reason)
        })
    }

    fn begin(&mut self, index: u64) -> Result<FileDone, String> {
        self.give_up();
        let writer =
            SnapshotWriter::create(RealDisk, &self.directory, index).map_err(|error| error.to_string())?;
        self.writing = Some((index, writer));
        Ok(FileDone::Begun)
    }

    fn append(&mut self, mut bytes: Vec<u8>) -> Result<FileDone, String> {
        let (_, writer) = self.writing.as_mut().ok_or("no snapshot is under way")?;
        writer.append(&bytes).map_err(|error| error.to_string())?;
        bytes.clear();
        Ok(FileDone::Appended(bytes))
    }

    fn finish(&mut self, mut verifier: Box<dyn Verifier + Send>) -> Result<FileDone, String> {
        let (index, writer) = self.writing.take().ok_or("no snapshot is under way")?;
        let length = writer.finish(&mut *verifier).map_err(|error| error.to_string())?;
        Ok(FileDone::Finished(index, length))
    }

    fn give_up(&mut self) {
        if let Some((_, writer)) = self.writing.take() {
            writer.abort();
        }
    }
}
