//! Snapshot files written beside a shard's thread: the file worker of the real server as a queue on virtual time.
//!
//! Mirrors the driver's way with snapshot effects. Which file, which order and what is checked is decided by
//! `shards::storage::snapshots`.

use super::platter::SimDisk;
use shards::effect::SnapshotEffect;
use shards::event::Event;
use shards::snapshot::Footer;
use shards::storage::read_back::ReadBack;
use shards::storage::snapshots::SnapshotWriter;
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

/// One job of the worker.
pub enum FileJob {
    /// Begin a file.
    Begin(u64),
    /// Add bytes.
    Append(Vec<u8>),
    /// Sync, read back, put in place.
    Finish(Footer),
    /// Give up.
    Abort,
}

/// See the module's head.
pub struct SnapshotJobs {
    disk: SimDisk,
    clock: Rc<Cell<u64>>,
    directory: PathBuf,
    jobs: VecDeque<(u64, FileJob)>,
    writing: Option<SnapshotWriter<SimDisk>>,
    /// Snapshots put in place.
    pub finished: u64,
}

impl SnapshotJobs {
    /// A worker for a shard's directory.
    pub fn new(disk: SimDisk, clock: Rc<Cell<u64>>, directory: PathBuf) -> Self {
        Self { disk, clock, directory, jobs: VecDeque::new(), writing: None, finished: 0 }
    }

    /// Takes an effect over.
    pub fn perform(&mut self, effect: SnapshotEffect) {
        let job = match effect {
            SnapshotEffect::Begin { index } => {
                self.jobs.clear();
                FileJob::Begin(index)
            }
            SnapshotEffect::Write(chunk) => {
                let bytes = chunk.as_slice();
                if let Some((_, FileJob::Append(last))) = self.jobs.back_mut() {
                    return last.extend_from_slice(bytes);
                }
                FileJob::Append(bytes.to_vec())
            }
            SnapshotEffect::Finish(expected) => FileJob::Finish(expected),
            SnapshotEffect::Drop => {
                self.jobs.clear();
                FileJob::Abort
            }
        };
        let after = self.jobs.back().map_or(0, |(due, _)| *due).max(self.clock.get());
        self.jobs.push_back((after + self.disk.latency_us(300), job));
    }

    /// Whether nothing is to be done and no file is open.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.writing.is_none()
    }

    /// When a job is finished next.
    pub fn due(&self) -> Option<u64> {
        self.jobs.front().map(|(due, _)| *due)
    }

    /// Does what is due and tells the shard.
    pub fn collect(&mut self, events: &mut Vec<Event>) {
        while self.jobs.front().is_some_and(|(due, _)| *due <= self.clock.get()) {
            let Some((_, job)) = self.jobs.pop_front() else { return };
            match self.do_job(job) {
                Ok(None) => {}
                Ok(Some(event)) => events.push(event),
                Err(text) => {
                    if let Some(writer) = self.writing.take() {
                        writer.abort();
                    }
                    // What else waits belongs to the snapshot that failed.
                    self.jobs.clear();
                    events.push(Event::SnapshotFinished(Err(text)));
                }
            }
        }
    }

    fn do_job(&mut self, job: FileJob) -> Result<Option<Event>, String> {
        match job {
            FileJob::Begin(index) => {
                if let Some(writer) = self.writing.take() {
                    writer.abort();
                }
                let writer = SnapshotWriter::create(self.disk.clone(), &self.directory, index);
                self.writing = Some(writer.map_err(|error| error.to_string())?);
                Ok(None)
            }
            FileJob::Append(bytes) => {
                let writer = self.writing.as_mut().ok_or("no snapshot is under way")?;
                writer.append(&bytes).map_err(|error| error.to_string())?;
                Ok(Some(Event::SnapshotWritten { bytes: bytes.len() as u64 }))
            }
            FileJob::Finish(expected) => {
                let writer = self.writing.take().ok_or("no snapshot is under way")?;
                let mut verifier = ReadBack::new(expected);
                writer.finish(&mut verifier).map_err(|error| error.to_string())?;
                self.finished += 1;
                Ok(Some(Event::SnapshotFinished(Ok(()))))
            }
            FileJob::Abort => {
                if let Some(writer) = self.writing.take() {
                    writer.abort();
                }
                Ok(None)
            }
        }
    }
}
