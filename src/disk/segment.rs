//! The helper thread that keeps spare segments ready: one for the process, asked and answering through bounded channels.
//!
//! What a job does is decided in `shards::storage::segments`; this thread lets it block.

use super::files::{DiskFile, RealDisk};
use super::worker::Wake;
use shards::storage::device::SegmentSupply;
use shards::storage::segments::{SegmentDone, SegmentJob, SegmentPlace, perform_job};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Jobs that one shard may have waiting at the helper thread.
const JOBS_PER_SHARD: usize = 4;
/// How long a log that waits for a spare looks away.
const WAIT: Duration = Duration::from_millis(1);

struct Request {
    job: SegmentJob,
    directory: PathBuf,
    segment_bytes: u64,
    budget: Option<u64>,
    reply: SyncSender<SegmentDone<DiskFile>>,
    wake: Wake,
}

/// The helper thread that prepares segments. Ends when the pool and all its handles are dropped.
#[derive(Clone, Debug)]
pub struct SegmentPool {
    requests: SyncSender<Request>,
    /// Most segment files that a shard's directory may hold, when limited.
    segments_max: Option<u64>,
}

/// One shard's end of the pool.
pub struct SegmentPoolHandle {
    requests: SyncSender<Request>,
    reply: SyncSender<SegmentDone<DiskFile>>,
    done: Receiver<SegmentDone<DiskFile>>,
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
                let place = SegmentPlace {
                    directory: &request.directory,
                    segment_bytes: request.segment_bytes,
                    segments_max: request.budget,
                };
                let done = perform_job(&RealDisk, &place, request.job);
                if let SegmentDone::Failed(job, error) = &done {
                    let directory = request.directory.display();
                    tracing::warn!(%directory, ?job, "a log segment could not be prepared: {error}");
                }
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

impl SegmentSupply for SegmentPoolHandle {
    type File = DiskFile;

    fn ask(&mut self, job: SegmentJob) -> bool {
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

    fn poll(&mut self) -> Option<SegmentDone<DiskFile>> {
        let done = self.done.try_recv().ok()?;
        self.waiting -= 1;
        Some(done)
    }

    fn waiting(&self) -> usize {
        self.waiting
    }

    fn wait(&mut self) {
        std::thread::sleep(WAIT);
    }
}
