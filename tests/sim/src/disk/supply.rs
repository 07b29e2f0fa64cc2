//! Segments prepared beside a log's thread: the helper of the real server as a queue on virtual time.

use super::platter::{SimDisk, SimFile};
use shards::storage::device::SegmentSupply;
use shards::storage::segments::{SegmentDone, SegmentJob, SegmentPlace, perform_job};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

/// Jobs that one log may have waiting.
const JOBS_MAX: usize = 4;

struct Queue {
    disk: SimDisk,
    clock: Rc<Cell<u64>>,
    directory: PathBuf,
    segment_bytes: u64,
    segments_max: Option<u64>,
    jobs: VecDeque<(u64, SegmentJob)>,
    done: VecDeque<SegmentDone<SimFile>>,
}

/// See the module's head. Both ends: the log's, and the one that advances the time.
#[derive(Clone)]
pub struct SimSupply(Rc<RefCell<Queue>>);

impl SimSupply {
    /// A helper for the log in `directory`.
    pub fn new(
        disk: SimDisk,
        clock: Rc<Cell<u64>>,
        directory: PathBuf,
        segment_bytes: u64,
        segments_max: Option<u64>,
    ) -> Self {
        let (jobs, done) = (VecDeque::new(), VecDeque::new());
        Self(Rc::new(RefCell::new(Queue { disk, clock, directory, segment_bytes, segments_max, jobs, done })))
    }

    /// When a job is finished next.
    pub fn due(&self) -> Option<u64> {
        let queue = self.0.borrow();
        if !queue.done.is_empty() {
            return Some(queue.clock.get());
        }
        queue.jobs.front().map(|(due, _)| *due)
    }

    /// Whether nothing was asked that is not taken.
    pub fn is_idle(&self) -> bool {
        let queue = self.0.borrow();
        queue.jobs.is_empty() && queue.done.is_empty()
    }

    /// There may be as many segments as are wanted from now on.
    pub fn lift_quota(&self) {
        self.0.borrow_mut().segments_max = None;
    }

    /// Does what is due.
    pub fn advance(&self) {
        let mut queue = self.0.borrow_mut();
        while queue.jobs.front().is_some_and(|(due, _)| *due <= queue.clock.get()) {
            queue.perform();
        }
    }
}

impl Queue {
    fn perform(&mut self) {
        let Some((_, job)) = self.jobs.pop_front() else { return };
        let Self { disk, directory, segment_bytes, segments_max, .. } = self;
        let place = SegmentPlace { directory, segment_bytes: *segment_bytes, segments_max: *segments_max };
        let done = perform_job(disk, &place, job);
        self.done.push_back(done);
    }
}

impl SegmentSupply for SimSupply {
    type File = SimFile;

    fn ask(&mut self, job: SegmentJob) -> bool {
        let mut queue = self.0.borrow_mut();
        if queue.jobs.len() + queue.done.len() >= JOBS_MAX {
            return false;
        }
        let after = queue.jobs.back().map_or(queue.clock.get(), |(due, _)| *due);
        let due = after.max(queue.clock.get()) + queue.disk.latency_us(3000);
        queue.jobs.push_back((due, job));
        true
    }

    fn poll(&mut self) -> Option<SegmentDone<SimFile>> {
        self.0.borrow_mut().done.pop_front()
    }

    fn waiting(&self) -> usize {
        let queue = self.0.borrow();
        queue.jobs.len() + queue.done.len()
    }

    fn wait(&mut self) {
        self.0.borrow_mut().perform();
    }
}
