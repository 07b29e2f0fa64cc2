//! Many plans at once, a failing one made smaller, and what a panic said.

use crate::fault::{Fault, FaultCounts};
use crate::plan::Plan;
use crate::world::{self, Report};
use shards::shard::Burden;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

static QUIET_HOOK: Once = Once::new();

/// Runs a plan; a panic of the engine is a failure that tells what was said and where.
pub fn run(plan: &Plan) -> Report {
    QUIET_HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            LAST_PANIC.with_borrow_mut(|last| *last = info.to_string().replace('\n', " "));
        }));
    });
    panic::catch_unwind(AssertUnwindSafe(|| world::run(plan))).unwrap_or_else(|_| Report {
        failure: Some(LAST_PANIC.with_borrow(Clone::clone)),
        ..Report::default()
    })
}

/// What many plans came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Plans run.
    pub runs: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests whose outcome nobody knows.
    pub unknown: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Faults by class.
    pub faults: FaultCounts,
    /// Plans in which each class was injected.
    pub runs_with: Vec<u64>,
    /// Snapshots kept.
    pub snapshots: u64,
    /// States compared with another at the same log index.
    pub compared: u64,
    /// Histories that were too hard to judge.
    pub unjudged: u64,
    /// The most that a shard held at once, of each kind.
    pub peak: Burden,
    /// The plans that failed, with why.
    pub failures: Vec<(Plan, String)>,
}

impl Summary {
    fn take(&mut self, plan: &Plan, report: Report) {
        self.runs += 1;
        self.answered += report.answered;
        self.unknown += report.unknown;
        self.virtual_us += report.virtual_us;
        self.faults.merge(&report.faults);
        self.runs_with.resize(Fault::ALL.len(), 0);
        for fault in Fault::ALL {
            self.runs_with[fault as usize] += u64::from(report.faults.of(fault) > 0);
        }
        self.snapshots += report.snapshots;
        self.compared += report.compared;
        self.unjudged += report.unjudged;
        self.peak = self.peak.max(&report.peak);
        if let Some(text) = report.failure {
            self.failures.push((plan.clone(), text));
        }
    }

    /// A table of faults by class.
    pub fn table(&self) -> String {
        let mut text = format!("{:<22} {:>9} {:>7}\n", "fault", "injected", "runs");
        for fault in Fault::ALL {
            let (count, runs) = (self.faults.of(fault), self.runs_with.get(fault as usize).unwrap_or(&0));
            text += &format!("{:<22} {count:>9} {runs:>7}\n", fault.to_string());
        }
        text
    }
}

/// Runs plans on so many threads; `make` gives the plan of a number from `first` to `last`, `prepare` is called on each
/// thread before it begins, `progress` now and then with how many are done. Stops early after `failures_max` failures.
pub fn run_many(
    first: u64,
    last: u64,
    threads: usize,
    failures_max: usize,
    make: impl Fn(u64) -> Plan + Sync,
    prepare: impl Fn() + Sync,
    progress: impl Fn(&Summary) + Sync,
) -> Summary {
    let next = AtomicU64::new(first);
    let is_over = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                prepare();
                while !is_over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > last {
                        return;
                    }
                    let plan = make(number);
                    let report = run(&plan);
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.take(&plan, report);
                    if summary.failures.len() >= failures_max {
                        is_over.store(true, Ordering::Relaxed);
                    }
                    progress(&summary);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failures.sort_by_key(|(plan, _)| plan.seed);
    summary
}

/// Makes a failing plan smaller while it still fails, at most `tries` runs: fewer kinds of faults, fewer requests, clients
/// and workloads. Another failure than the first counts too.
pub fn shrink(plan: &Plan, text: &str, mut tries: usize) -> (Plan, String) {
    let (mut plan, mut text) = (plan.clone(), text.to_owned());
    loop {
        let mut smaller: Vec<Plan> = Vec::new();
        for fault in plan.faults.iter() {
            smaller.push(Plan { faults: plan.faults.without(fault), ..plan.clone() });
        }
        for requests in [plan.requests / 2, plan.requests * 9 / 10] {
            if requests >= 8 && requests < plan.requests {
                smaller.push(Plan { requests, ..plan.clone() });
            }
        }
        if plan.clients > 1 {
            smaller.push(Plan { clients: plan.clients / 2, ..plan.clone() });
            smaller.push(Plan { clients: plan.clients - 1, ..plan.clone() });
        }
        for number in 0..crate::work::COUNT {
            let work = plan.work & !(1 << number);
            if work != plan.work && work != 0 {
                smaller.push(Plan { work, ..plan.clone() });
            }
        }
        if plan.shards > 1 {
            smaller.push(Plan { shards: plan.shards - 1, ..plan.clone() });
        }
        if plan.nodes > 3 {
            smaller.push(plan.clone().with_nodes(3));
        }
        if plan.has_meta {
            smaller.push(plan.clone().with_meta(false));
        }
        let mut found = None;
        for candidate in smaller {
            if tries == 0 {
                return (plan, text);
            }
            tries -= 1;
            let failure = run(&candidate).failure.filter(|failure| !failure.starts_with("vacuous"));
            if let Some(failure) = failure {
                found = Some((candidate, failure));
                break;
            }
        }
        match found {
            Some(better) => (plan, text) = better,
            None => return (plan, text),
        }
    }
}
