//! `strand bench`: a load generator for Strand and, with the same effort, for servers that speak Redis's or etcd's protocol.
//!
//! `options` are the flags, `plan` makes phases of them, `worker` threads carry a phase out over `link`s in a `dialect`,
//! `tally` counts, `report` and `plot` show. It is a client like any other and uses no part of the server.

mod dialect;
mod durability;
mod etcd;
mod json;
mod link;
mod options;
mod plan;
mod plot;
mod random;
mod report;
mod resp;
mod server_cpu;
mod shards;
mod tally;
mod texts;
mod worker;

pub use self::options::Arguments;

use self::dialect::{Dialect, Material, SPARE_LETTERS};
use self::options::{Durability, Protocol, Workload};
use self::plan::{Phase, Shared, Source, Until};
use self::random::Random;
use self::report::Outcome;
use self::server_cpu::{CpuTimes, ThreadCpu};
use self::shards::Shards;
use self::tally::Tally;
use self::texts::Texts;
use self::worker::{Place, Pulse, Worker};
use crate::fatal::Fatal;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Loads a server and tells what it found.
///
/// # Errors
/// When the load cannot be made, or when any reply was wrong, so that scripts notice by the exit code.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    arguments.check()?;
    if arguments.workload == Workload::Durability {
        return durability(arguments);
    }
    let outcomes = match arguments.protocol {
        Protocol::Json => phases(json::Json, arguments)?,
        Protocol::Resp => phases(resp::Resp, arguments)?,
        Protocol::Etcd => phases(etcd::Etcd, arguments)?,
    };
    let text = if arguments.json {
        format!("{:#}\n", report::json(name(&arguments.workload), name(&arguments.protocol), &outcomes))
    } else {
        report::table(&outcomes)
    };
    super::print(&text)?;
    if let Some(path) = &arguments.plot {
        let title = format!("strand bench {}, {}", name(&arguments.workload), arguments.address);
        let page = plot::page(&title, &report::table(&outcomes), &outcomes);
        let written = std::fs::write(path, page);
        written.map_err(|error| Fatal::Failed(format!("Cannot write {}: {error}.", path.display())))?;
    }
    match outcomes.iter().find(|outcome| !outcome.tally.is_sound()) {
        None => Ok(()),
        Some(outcome) => {
            let problem =
                outcome.tally.first_problem.as_deref().unwrap_or("Some requests were never answered.");
            Err(Fatal::Failed(format!("Not every reply in {} was right. {problem}", outcome.name)))
        }
    }
}

/// Kills servers of its own and tells what they kept.
fn durability(arguments: &Arguments) -> Result<(), Fatal> {
    let found = durability::run(arguments).map_err(Fatal::Failed)?;
    super::print(&found.report(arguments.json))?;
    found.problem().map_or(Ok(()), |told| Err(Fatal::Failed(told)))
}

/// The name of a flag's value.
fn name(value: &impl ValueEnum) -> &'static str {
    // Values are static, and so are their names; one that is hidden has none.
    let value = value.to_possible_value().map(|value| value.get_name().to_owned());
    value.map_or("", |name| &*name.leak())
}

fn phases<D: Dialect>(dialect: D, arguments: &Arguments) -> Result<Vec<Outcome>, Fatal> {
    let addresses = arguments.resolve()?;
    let mut random = Random::new(arguments.seed);
    let texts = match &arguments.text {
        Some(path) if arguments.workload == Workload::Search => {
            Texts::read(path, &mut random).map_err(Fatal::Configuration)?
        }
        _ => Texts::default(),
    };
    let (documents, queries) = (texts.documents.len() as u64, texts.queries.len() as u64);
    let material = material(arguments, texts, &mut random);
    let plan = plan::phases(arguments, documents, queries);
    let shared = Shared { issued: AtomicU64::new(0), keys: AtomicU64::new(arguments.keys) };
    let shards =
        arguments.shard_aware.then(|| Shards::ask(addresses[0])).transpose().map_err(Fatal::Failed)?;
    let mut outcomes = Vec::new();
    for phase in &plan {
        shared.issued.store(0, Ordering::Relaxed);
        if let Some(request) = phase.before {
            ask(addresses[0], request).map_err(Fatal::Failed)?;
        }
        let (material, shared, shards) = (&material, &shared, shards.as_ref());
        let run = Run { dialect, arguments, addresses: &addresses, shards, phase, material, shared };
        let (tally, server) = run.go().map_err(Fatal::Failed)?;
        let Phase { name, connections, depth, rate, .. } = *phase;
        outcomes.push(Outcome { name, connections, depth, rate, tally, server });
    }
    Ok(outcomes)
}

fn material(arguments: &Arguments, texts: Texts, random: &mut Random) -> Material {
    let letters = (0..arguments.value_bytes + SPARE_LETTERS).map(|_| b'a' + random.below(26) as u8);
    Material {
        key_prefix: if arguments.workload == Workload::Search { "doc:" } else { "key:" }.to_owned(),
        value_bytes: arguments.value_bytes,
        batch: arguments.batch,
        // YCSB's ranges are 1 to 100 records long.
        limit: if arguments.workload == Workload::YcsbE { 100 } else { arguments.top_k.max(1) },
        durability: match arguments.durability {
            Durability::Default => None,
            Durability::Fsync => Some("fsync"),
            Durability::Memory => Some("memory"),
        },
        objects: arguments.workload == Workload::YcsbE,
        letters: letters.collect(),
        documents: texts.documents,
        queries: texts.queries,
    }
}

/// Sends one line and wants a success.
fn ask(address: SocketAddr, request: &str) -> Result<(), String> {
    let reply = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        Ok(reply)
    };
    match reply() {
        Ok(reply) if reply.starts_with("{\"status\":\"success\"") => Ok(()),
        Ok(reply) => Err(format!("{request} was refused: {}", reply.trim_end())),
        Err(error) => Err(format!(
            "{address} does not answer: {error}. Is a server running there? `strand serve` starts one; --address names \
             another."
        )),
    }
}

/// One phase on its way.
struct Run<'p, D> {
    dialect: D,
    arguments: &'p Arguments,
    addresses: &'p [SocketAddr],
    shards: Option<&'p Shards>,
    phase: &'p Phase,
    material: &'p Material,
    shared: &'p Shared,
}

impl<D: Dialect> Run<'_, D> {
    /// Loads with all threads, and watches.
    fn go(&self) -> Result<(Tally, Vec<ThreadCpu>), String> {
        let threads = self.arguments.threads.min(self.phase.connections);
        let pulses: Vec<Pulse> = (0..threads).map(|_| Pulse::default()).collect();
        let failed = AtomicBool::new(false);
        // Nobody starts before all have connected.
        let start = Barrier::new(threads + 1);
        thread::scope(|scope| {
            let handles: Vec<_> = pulses
                .iter()
                .enumerate()
                .map(|(thread, pulse)| {
                    let (start, failed) = (&start, &failed);
                    scope.spawn(move || {
                        let (addresses, shards) = (self.addresses, self.shards);
                        let worker = self.worker(Place { thread, threads, addresses, shards }, pulse, failed);
                        failed.fetch_or(worker.is_err(), Ordering::Relaxed);
                        start.wait();
                        worker?.run(Instant::now())
                    })
                })
                .collect();
            start.wait();
            let began = Instant::now();
            let done = || handles.iter().all(|handle| handle.is_finished());
            let server = self.watch(began, &pulses, done);
            let mut whole = Tally::new(self.phase);
            for handle in handles {
                let tally = handle
                    .join()
                    .map_err(|_| "A thread of the generator panicked; report this.".to_owned())?;
                whole.add(tally?);
            }
            Ok((whole, server))
        })
    }

    fn worker<'w>(
        &'w self,
        place: Place<'w>,
        pulse: &'w Pulse,
        failed: &'w AtomicBool,
    ) -> Result<Worker<'w, D>, String> {
        let Self { dialect, arguments, phase, material, shared, .. } = self;
        let source = Source::new(phase, shared, arguments.seed, place.thread, arguments.batch);
        Worker::connect(*dialect, place, phase, material, source, pulse, failed)
    }

    /// Shows how far the load is until it is done, and takes the server's CPU times at both ends of the measured time.
    fn watch(&self, began: Instant, pulses: &[Pulse], done: impl Fn() -> bool) -> Vec<ThreadCpu> {
        let bar = self.bar();
        let (from, to) = match self.phase.until {
            Until::Requests(_) => (began, None),
            Until::Time { warm_up, measured } => (began + warm_up, Some(began + warm_up + measured)),
        };
        let cpu = || CpuTimes::read(&self.arguments.server_pid);
        let replies = || pulses.iter().map(|pulse| pulse.replies.load(Ordering::Relaxed)).sum::<u64>();
        let (mut first, mut last) = (None, None);
        let mut seen = (began, 0);
        while !done() {
            let now = Instant::now();
            if first.is_none() && now >= from {
                first = cpu();
            }
            if last.is_none() && to.is_some_and(|to| now >= to) {
                last = cpu();
            }
            let all = replies();
            let rate = (all - seen.1) as f64 / (now - seen.0).as_secs_f64().max(1e-6);
            if now - seen.0 >= Duration::from_millis(500) {
                bar.set_message(format!("{}/s", report::count(rate)));
                seen = (now, all);
            }
            bar.set_position(if to.is_some() { (now - began).as_millis() as u64 } else { all });
            // To the edge of the window exactly, else often enough to look alive.
            let edges = [Some(from), to];
            let edge = edges.into_iter().flatten().filter(|edge| *edge > now).min();
            let nap = edge.map_or(Duration::MAX, |edge| edge - now);
            thread::sleep(nap.min(Duration::from_millis(20)));
        }
        bar.finish_and_clear();
        match (first, last.or_else(cpu)) {
            (Some(first), Some(last)) => last.since(&first),
            _ => Vec::new(),
        }
    }

    fn bar(&self) -> ProgressBar {
        if self.arguments.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (length, what) = match self.phase.until {
            Until::Requests(requests) => (requests, "{pos} of {len}"),
            Until::Time { warm_up, measured } => ((warm_up + measured).as_millis() as u64, "{percent}%"),
        };
        let style = ProgressStyle::with_template(&format!("{{prefix}} {{wide_bar}} {what} {{msg}}"));
        let bar = ProgressBar::new(length).with_prefix(self.phase.name);
        style.map_or(bar.clone(), |style| bar.with_style(style))
    }
}
