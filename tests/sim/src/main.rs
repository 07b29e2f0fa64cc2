//! The simulator's command line: one seed, a range, a replay of kept seeds; prints how to bring a failure back.

use std::io::Write as _;
use std::time::Instant;
use strand_sim::plan::Plan;
use strand_sim::world;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let first: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let last: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(first);
    let mut out = std::io::stdout().lock();
    let begun = Instant::now();
    let mut virtual_us = 0;
    for seed in first..=last {
        let plan = Plan::draw(seed);
        let at = Instant::now();
        let report = std::panic::catch_unwind(|| world::run(&plan)).unwrap_or_else(|_| strand_sim::world::Report { failure: Some("panic".into()), ..Default::default() });
        virtual_us += report.virtual_us;
        let _ = writeln!(out, "{seed} {:?} answered {} ok {} unk {} faults {} vt {} ms compared {} {} {}", at.elapsed(), report.answered, report.succeeded, report.unknown, report.faults.total(), report.virtual_us / 1000, report.compared, report.failure.as_ref().map_or("", |_| "FAILED"), report.failure.clone().unwrap_or_default());
    }
    let _ = writeln!(out, "{} s, {} virtual", begun.elapsed().as_secs_f64(), virtual_us / 1_000_000);
}
