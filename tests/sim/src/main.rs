//! The simulator's command line: one seed, a range of seeds, the kept seeds, the mutants; prints how to bring a failure back.
//!
//! `SEED=7`, `SEEDS=1..1000`, `FAULTS=kill,power-cut`, `REQUESTS=50`, `CLIENTS=2`, `WORK=1`, `SHARDS=1`, `NODES=3`, `META=0`, `OLD=1`, `LYING=1`,
//! `THREADS=2`, `MUTANTS=all`: as words of the command line. Exit code 1 says that a plan failed.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use strand_sim::fault::{Fault, FaultSet};
use strand_sim::plan::{GENERATION, Plan};
use strand_sim::suite::{self, Summary};

const SHRINK_TRIES: usize = 300;
const KEPT: &str = include_str!("../seeds.txt");

#[derive(Default)]
struct Wishes {
    seeds: Option<(u64, u64)>,
    faults: Option<FaultSet>,
    requests: Option<u32>,
    clients: Option<u32>,
    work: Option<u32>,
    shards: Option<u32>,
    nodes: Option<u32>,
    lying: bool,
    generation: Option<u8>,
    meta: Option<bool>,
    threads: usize,
    #[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "read where mutants are compiled in"))]
    mutants: Option<String>,
}

impl Wishes {
    fn read(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut wishes = Self { threads: cores, ..Self::default() };
        for word in words {
            let (name, text) = word.split_once('=').ok_or_else(|| format!("{word} is no NAME=VALUE"))?;
            if text.is_empty() {
                continue;
            }
            let number = || text.parse::<u64>().map_err(|_| format!("{word}: a number is wanted"));
            let small = || text.parse::<u32>().map_err(|_| format!("{word}: a number is wanted"));
            match name {
                "SEED" => wishes.seeds = Some((number()?, number()?)),
                "SEEDS" => {
                    let parts =
                        text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                    wishes.seeds =
                        Some(parts.ok_or_else(|| format!("{word}: give a range such as 1..1000"))?);
                }
                "FAULTS" if text == "none" => wishes.faults = Some(FaultSet::default()),
                "FAULTS" => {
                    let mut set = FaultSet::default();
                    for name in text.split(',') {
                        set = set.with(
                            Fault::from_name(name).ok_or_else(|| format!("no fault is called {name}"))?,
                        );
                    }
                    wishes.faults = Some(set);
                }
                "REQUESTS" => wishes.requests = Some(small()?),
                "CLIENTS" => wishes.clients = Some(small()?.max(1)),
                "WORK" => wishes.work = Some(small()?),
                "SHARDS" => wishes.shards = Some(small()?.max(1)),
                "NODES" => wishes.nodes = Some(small()?.max(1)),
                "OLD" => wishes.generation = (text != "0").then_some(small()?.min(255) as u8),
                "META" => wishes.meta = Some(text != "0"),
                "LYING" => wishes.lying = text != "0",
                "THREADS" => wishes.threads = (number()? as usize).max(1),
                "MUTANTS" => wishes.mutants = Some(text.to_owned()),
                _ => return Err(format!("{name} is unknown")),
            }
        }
        Ok(wishes)
    }

    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::draw_as(seed, self.generation.unwrap_or(GENERATION));
        if let Some(nodes) = self.nodes {
            plan = plan.with_nodes(nodes);
        }
        if let Some(has_meta) = self.meta {
            plan = plan.with_meta(has_meta);
        }
        plan.faults = self.faults.unwrap_or(plan.faults);
        plan.requests = self.requests.unwrap_or(plan.requests);
        plan.clients = self.clients.unwrap_or(plan.clients);
        plan.work = self.work.unwrap_or(plan.work);
        plan.shards = self.shards.unwrap_or(plan.shards);
        plan.lying_disk = self.lying;
        plan
    }
}

fn tell(text: &str) {
    // Nobody listening is no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn main() -> ExitCode {
    let wishes = match Wishes::read(std::env::args().skip(1)) {
        Ok(wishes) => wishes,
        Err(text) => {
            tell(&text);
            return ExitCode::from(2);
        }
    };
    #[cfg(feature = "mutants")]
    if let Some(names) = &wishes.mutants {
        return mutants(names, &wishes);
    }
    let kept = replay_kept();
    if !kept {
        return ExitCode::FAILURE;
    }
    let (first, last) = wishes.seeds.unwrap_or((1, 100));
    if first == last {
        return one(&wishes.plan(first));
    }
    many(&wishes, first, last)
}

/// Seeds that failed once are run before anything else.
fn replay_kept() -> bool {
    let mut good = true;
    for line in KEPT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words = line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned);
        match Wishes::read(words) {
            Ok(wishes) => {
                let plan = wishes.plan(wishes.seeds.unwrap_or_default().0);
                if let Some(text) = suite::run(&plan).failure {
                    tell(&format!("a kept seed fails: {line}\n  {text}"));
                    good = false;
                }
            }
            Err(text) => {
                tell(&format!("seeds.txt: {line}: {text}"));
                good = false;
            }
        }
    }
    good
}

fn one(plan: &Plan) -> ExitCode {
    tell(&format!("{plan:#?}"));
    let begun = Instant::now();
    let report = suite::run(plan);
    let (took, lived) = (begun.elapsed().as_secs_f64(), report.virtual_us as f64 / 1e6);
    tell(&format!(
        "{} requests answered, {} with success, {} unknown; {} faults; {lived:.1} s lived in {took:.2} s; trace {:016x}",
        report.answered,
        report.succeeded,
        report.unknown,
        report.faults.total(),
        report.trace
    ));
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(text) => {
            fail(plan, &text);
            ExitCode::FAILURE
        }
    }
}

fn many(wishes: &Wishes, first: u64, last: u64) -> ExitCode {
    let begun = Instant::now();
    let shown = AtomicU64::new(0);
    let is_terminal = std::io::stdout().is_terminal();
    let progress = |summary: &Summary| {
        let second = begun.elapsed().as_secs();
        let step = if is_terminal { 1 } else { 15 };
        if second >= shown.load(Ordering::Relaxed) + step {
            shown.store(second, Ordering::Relaxed);
            let rate = summary.runs as f64 / begun.elapsed().as_secs_f64();
            let failed = summary.failures.len();
            tell(&format!(
                "{} of {} seeds, {rate:.1} a second, {failed} failed",
                summary.runs,
                last - first + 1
            ));
        }
    };
    let summary = suite::run_many(first, last, wishes.threads, 5, |seed| wishes.plan(seed), || (), progress);
    let took = begun.elapsed().as_secs_f64();
    tell(&summary.table());
    tell(&format!(
        "{} seeds in {took:.1} s: {:.1} a second, {:.0} times real time; {} requests, {} of unknown outcome; {} snapshots, \
         {} states compared",
        summary.runs,
        summary.runs as f64 / took,
        summary.virtual_us as f64 / 1e6 / took,
        summary.answered,
        summary.unknown,
        summary.snapshots,
        summary.compared
    ));
    tell(&format!(
        "{} histories too hard to judge; the most that a shard held at once: {:?}",
        summary.unjudged, summary.peak
    ));
    for (plan, text) in &summary.failures {
        fail(plan, text);
    }
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fail(plan: &Plan, text: &str) {
    let lying = if plan.lying_disk { " LYING=1" } else { "" };
    tell(&format!("FAILED  make sim {}{lying}\n  {text}", plan.flags()));
    let (smaller, text) = suite::shrink(plan, text, SHRINK_TRIES);
    tell(&format!("smaller make sim {}{lying}\n  {text}", smaller.flags()));
}

/// Seeds at which the search for a mutant begins, when none is named, and how many are tried from each.
#[cfg(feature = "mutants")]
const STARTS: [u64; 3] = [1, 10_001, 20_001];
#[cfg(feature = "mutants")]
const TRIED: u64 = 500;

/// Switches each mutant on and counts the seeds until one fails, from several starts. Exit code 1 says that the median of one of
/// them is beyond what was tried.
#[cfg(feature = "mutants")]
fn mutants(names: &str, wishes: &Wishes) -> ExitCode {
    use shards::mutants::{Mutant, switch};
    let ranges = match wishes.seeds {
        Some(range) => vec![range],
        None => STARTS.iter().map(|first| (*first, first + TRIED - 1)).collect(),
    };
    let (mut measured, mut missed) = (0, 0);
    for mutant in Mutant::ALL.iter().copied() {
        let name = format!("{mutant:?}");
        if names != "all" && !names.split(',').any(|wanted| wanted == name) {
            continue;
        }
        let (begun, mut counts, mut found) = (Instant::now(), Vec::new(), None);
        for (first, last) in &ranges {
            let make = |seed| wishes.plan(seed);
            let summary = suite::run_many(*first, *last, wishes.threads, 1, make, || switch(mutant), |_| ());
            counts.push(if summary.failures.is_empty() { u64::MAX } else { summary.runs });
            found = summary.failures.into_iter().next().or(found);
        }
        let shown: Vec<String> = counts.iter().map(|count| tried(*count)).collect();
        counts.sort_unstable();
        let median = counts[counts.len() / 2];
        measured += 1;
        missed += usize::from(median == u64::MAX);
        let took = begun.elapsed().as_secs_f64();
        let how = found.map_or_else(String::new, |(plan, text)| {
            let text: String = text.lines().next().unwrap_or_default().chars().take(150).collect();
            format!(" seed {}: {text}", plan.seed)
        });
        tell(&format!(
            "{name:<24} median {:>5} of {:<16} {took:>6.1} s{how}",
            tried(median),
            shown.join(" ")
        ));
    }
    tell(&format!("{measured} mutants, {missed} not found at the median"));
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A number of seeds, or that it was not enough.
#[cfg(feature = "mutants")]
fn tried(count: u64) -> String {
    if count == u64::MAX { "-".to_owned() } else { count.to_string() }
}
