//! What every `make test` runs of the simulator: determinism, the canary, and as many seeds as fit a minute.

use std::time::{Duration, Instant};
use strand_sim::fault::{Fault, FaultSet};
use strand_sim::plan::Plan;
use strand_sim::suite;

/// Seeds of the short form; more with STRAND_SIM_SEEDS.
const SEEDS: u64 = 500;
/// The short form begins no further hundred after this time, on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(150);

#[test]
fn one_seed_is_one_history() {
    for seed in 1..=12 {
        // Some of them found clusters whose members change.
        let plan = Plan::draw(seed);
        let (first, second) = (suite::run(&plan), suite::run(&plan));
        assert_eq!(first.failure, None, "seed {seed}");
        assert_eq!(first.trace, second.trace, "seed {seed} has two histories");
        assert_ne!(first.trace, suite::run(&Plan { seed: seed + 1000, ..plan }).trace);
    }
}

/// The canary: with a disk whose syncs do nothing, acknowledged writes must be seen to be lost.
#[test]
fn a_lying_disk_is_seen_to_lose_data() {
    let lie = |seed| Plan { lying_disk: true, ..Plan::draw(seed) };
    let summary = suite::run_many(1, 100, 2, 1, lie, || (), |_| ());
    assert!(!summary.failures.is_empty(), "100 seeds on a lying disk, and nothing was missed");
}

/// The same in a cluster: three disks that lie are no quorum of honest ones.
#[test]
fn lying_disks_of_a_cluster_are_seen_to_lose_data() {
    let lie = |seed| {
        let plan = Plan::draw(seed).with_nodes(3).with_meta(false);
        Plan { lying_disk: true, faults: plan.faults.with(Fault::PowerCutAll), ..plan }
    };
    let summary = suite::run_many(1, 60, 2, 1, lie, || (), |_| ());
    assert!(!summary.failures.is_empty(), "60 seeds on three lying disks, and nothing was missed");
}

/// Nodes come and go, and disks are lost: the planner moves replicas under faults, and runs in which it did not are vacuous.
#[test]
fn members_change_under_faults() {
    let change = |seed| {
        let plan = Plan::draw(seed).with_nodes(4).with_meta(true);
        Plan { faults: plan.faults.with(Fault::Membership).with(Fault::LostDisk), ..plan }
    };
    let summary = suite::run_many(1, 20, 2, 1, change, || (), |_| ());
    if let Some((plan, text)) = summary.failures.first() {
        drop(std::panic::take_hook());
        panic!("make sim {}: {text}", plan.flags());
    }
    let (changes, disks) = (summary.faults.of(Fault::Membership), summary.faults.of(Fault::LostDisk));
    assert!(changes >= 10 && disks >= 5, "{changes} changes of members, {disks} lost disks in 20 seeds");
}

#[test]
fn a_calm_plan_has_no_faults_and_nothing_unknown() {
    for seed in 1..=10 {
        let plan = Plan { faults: FaultSet::default(), ..Plan::draw(seed) };
        let report = suite::run(&plan);
        assert_eq!(report.failure, None, "seed {seed}");
        assert_eq!((report.faults.total(), report.unknown), (0, 0), "seed {seed}");
        assert!(report.succeeded >= u64::from(plan.requests) / 2, "seed {seed}: {report:?}");
    }
}

#[test]
fn the_short_form() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = std::env::var("STRAND_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let (begun, mut done, mut kinds) = (Instant::now(), 0, 0);
    for first in (1..=seeds).step_by(100) {
        if begun.elapsed() > TIME_MAX {
            break;
        }
        let last = (first + 99).min(seeds);
        let summary = suite::run_many(first, last, threads, 1, Plan::draw, || (), |_| ());
        if let Some((plan, text)) = summary.failures.first() {
            let (smaller, reason) = suite::shrink(plan, text, 100);
            // The simulator keeps panics of the engine quiet; this one is to be seen.
            drop(std::panic::take_hook());
            panic!("make sim {}\n  {text}\nsmaller: make sim {}\n  {reason}", plan.flags(), smaller.flags());
        }
        done += summary.runs;
        kinds = kinds.max(summary.runs_with.iter().filter(|runs| **runs > 0).count());
    }
    assert!(done >= 100, "the machine is too slow for a hundred seeds in {TIME_MAX:?}");
    assert!(kinds >= 25, "only {kinds} kinds of faults were injected");
}
