//! Performs the engine's snapshot effects through the file worker: bytes gather into larger pieces, jobs wait in order.
//!
//! Never blocks the shard. What waits here is bounded by the engine, which sends no more than a few megabytes ahead of
//! what it has heard to be written.

use crate::disk::worker::{FileDone, FileJob, FileWorker};
use shards::effect::SnapshotEffect;
use shards::event::Event;
use shards::storage::read_back::ReadBack;
use std::collections::VecDeque;

/// Bytes that gather before they become a job.
const PIECE_BYTES: usize = 256 << 10;

/// A shard's snapshot file under way.
pub struct SnapshotFiles {
    worker: Option<FileWorker>,
    /// Jobs that the worker had no room for.
    waiting: VecDeque<FileJob>,
    gathered: Vec<u8>,
    /// Sizes of the pieces handed over and not yet written, in order.
    handed: VecDeque<u64>,
    spare: Vec<Vec<u8>>,
    news: VecDeque<FileDone>,
    /// Answers to jobs of a snapshot that was given up are still to come, so many of them.
    stale: usize,
    /// Jobs of the snapshot under way that are not answered yet.
    open: usize,
}

impl SnapshotFiles {
    /// Over a worker; none for a cache, whose engine writes no snapshot.
    pub fn new(worker: Option<FileWorker>) -> Self {
        Self {
            worker,
            waiting: VecDeque::new(),
            gathered: Vec::new(),
            handed: VecDeque::new(),
            spare: Vec::new(),
            news: VecDeque::new(),
            stale: 0,
            open: 0,
        }
    }

    /// Performs effects, in order.
    pub(super) fn perform(&mut self, effects: &mut Vec<SnapshotEffect>) {
        if effects.is_empty() && self.waiting.is_empty() {
            return;
        }
        for effect in effects.drain(..) {
            match effect {
                SnapshotEffect::Begin { index } => {
                    self.forget();
                    self.waiting.push_back(FileJob::Begin(index));
                }
                SnapshotEffect::Write(chunk) => {
                    self.gathered.extend_from_slice(chunk.as_slice());
                    if self.gathered.len() >= PIECE_BYTES {
                        self.hand_over();
                    }
                }
                SnapshotEffect::Finish(expected) => {
                    self.hand_over();
                    let verifier = ReadBack::new(expected);
                    self.waiting.push_back(FileJob::Finish(Box::new(verifier)));
                }
                SnapshotEffect::Drop => {
                    self.forget();
                    self.waiting.push_back(FileJob::Abort);
                }
            }
        }
        // What is left small is written too, or the engine would wait for it to be.
        self.hand_over();
        self.ask();
    }

    /// Collects what the worker has done.
    pub(super) fn collect(&mut self, events: &mut Vec<Event>) {
        self.poll();
        while let Some(done) = self.news.pop_front() {
            if self.stale > 0 {
                self.stale -= 1;
                continue;
            }
            self.open = self.open.saturating_sub(1);
            match done {
                FileDone::Begun | FileDone::Aborted => {}
                FileDone::Appended(mut buffer) => {
                    let bytes = self.handed.pop_front().unwrap_or(0);
                    buffer.clear();
                    self.spare.push(buffer);
                    self.spare.truncate(4);
                    events.push(Event::SnapshotWritten { bytes });
                }
                FileDone::Finished(..) => events.push(Event::SnapshotFinished(Ok(()))),
                FileDone::Failed(text) => {
                    tracing::warn!("a snapshot was not kept: {text}");
                    self.forget();
                    events.push(Event::SnapshotFinished(Err(text)));
                }
            }
        }
        self.ask();
    }

    /// Whether the worker has answered something.
    pub(super) fn has_news(&mut self) -> bool {
        self.poll();
        !self.news.is_empty()
    }

    /// Whether the worker does nothing for this shard.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.open == 0 && self.stale == 0
    }

    /// Whether more bytes would find room, so that the engine need not be asked for more in vain.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty()
    }

    fn poll(&mut self) {
        if let Some(worker) = &mut self.worker {
            while let Some(done) = worker.poll() {
                self.news.push_back(done);
            }
        }
    }

    fn hand_over(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let next = self.spare.pop().unwrap_or_default();
        let piece = std::mem::replace(&mut self.gathered, next);
        self.handed.push_back(piece.len() as u64);
        self.waiting.push_back(FileJob::Append(piece));
    }

    fn ask(&mut self) {
        let Some(worker) = &mut self.worker else {
            assert!(self.waiting.is_empty(), "a cache writes no snapshot");
            return;
        };
        while let Some(job) = self.waiting.pop_front() {
            match worker.ask(job) {
                Ok(()) => self.open += 1,
                Err(job) => return self.waiting.push_front(job),
            }
        }
    }

    /// Nothing of the snapshot under way counts any more; answers to what the worker has are passed over.
    fn forget(&mut self) {
        self.waiting.clear();
        self.gathered.clear();
        self.handed.clear();
        self.stale += std::mem::take(&mut self.open);
    }
}
