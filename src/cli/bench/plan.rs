//! From flags to phases: what each sends, for how long, and in which proportions.
//!
//! A plan is data; the worker carries it out. Loading comes first, so that reads find something and writes replace.

use super::dialect::Kind;
use super::options::{Arguments, Distribution, Workload};
use super::random::{KeyChoice, Random, YCSB_THETA, Zipfian, mix};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One stretch of load with figures of its own.
#[derive(Debug)]
pub(super) struct Phase {
    /// Its name in the report.
    pub(super) name: &'static str,
    /// Sockets over all threads.
    pub(super) connections: usize,
    /// Requests under way on each; in an open loop the most.
    pub(super) depth: usize,
    /// What is sent.
    pub(super) mix: Mix,
    /// When it ends.
    pub(super) until: Until,
    /// Requests a second over all threads; none: closed loop.
    pub(super) rate: Option<f64>,
    /// A request that must succeed before the phase starts.
    pub(super) before: Option<&'static str>,
}

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Until {
    /// After so many requests; all of it is measured.
    Requests(u64),
    /// After a time, measured from the end of the warm-up.
    Time {
        /// Not measured.
        warm_up: Duration,
        /// Measured.
        measured: Duration,
    },
}

/// What a phase sends.
#[derive(Debug)]
pub(super) enum Mix {
    /// Each of the first keys once.
    Each(Kind),
    /// One kind with drawn keys.
    Only(Kind, KeyChoice),
    /// Two kinds, the first with this share, with drawn keys.
    Share(f64, Kind, Kind, KeyChoice),
    /// Reads with this share, with drawn keys, and writes of new keys.
    Insert(f64, Kind, KeyChoice),
    /// The queries of the material, drawn.
    Queries(u64),
}

/// Numbers that all threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Requests given out in a phase that ends after a number of them.
    pub(super) issued: AtomicU64,
    /// Keys that exist or are on their way.
    pub(super) keys: AtomicU64,
}

/// Draws the requests of one thread.
#[derive(Debug)]
pub(super) struct Source<'p> {
    phase: &'p Phase,
    shared: &'p Shared,
    random: Random,
    /// Keys of one bulk write; a bulk write starts so far below the end that all fit.
    batch: u64,
}

/// A request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) key: u64,
    pub(super) salt: u64,
}

impl<'p> Source<'p> {
    pub(super) fn new(phase: &'p Phase, shared: &'p Shared, seed: u64, thread: usize, batch: usize) -> Self {
        let random = Random::new(mix(seed ^ mix(thread as u64 + 1)));
        Self { phase, shared, random, batch: batch as u64 }
    }

    /// The next request; none when the phase has given out all of its requests.
    pub(super) fn next(&mut self) -> Option<Request> {
        let mut turn = 0;
        if let Until::Requests(requests) = self.phase.until {
            turn = self.shared.issued.fetch_add(1, Ordering::Relaxed);
            if turn >= requests {
                return None;
            }
        }
        let salt = self.random.next();
        let keys = self.shared.keys.load(Ordering::Relaxed);
        let (kind, key) = match &self.phase.mix {
            Mix::Each(kind) => (*kind, turn),
            Mix::Only(kind @ Kind::BulkSet, choice) => {
                (*kind, choice.draw(&mut self.random, keys).min(keys - self.batch))
            }
            Mix::Only(kind, choice) => (*kind, choice.draw(&mut self.random, keys)),
            Mix::Share(share, first, second, choice) => {
                let kind = if self.random.chance(*share) { *first } else { *second };
                (kind, choice.draw(&mut self.random, keys))
            }
            Mix::Insert(share, read, choice) => {
                if self.random.chance(*share) {
                    // The newest may still be under way; they are not there to be read yet.
                    let under_way = (self.phase.connections * self.phase.depth) as u64;
                    let there = keys.saturating_sub(under_way).max(1);
                    (*read, choice.draw(&mut self.random, there))
                } else {
                    (Kind::Set, self.shared.keys.fetch_add(1, Ordering::Relaxed))
                }
            }
            Mix::Queries(queries) => (Kind::Search, self.random.below(*queries)),
        };
        Some(Request { kind, key, salt })
    }
}

/// Requests under way on a connection while loading.
const LOAD_DEPTH: usize = 64;

/// Share of reads in YCSB B, D and E.
const MOSTLY: f64 = 0.95;

/// The phases of a workload. `documents` and `queries` are those of a text file.
pub(super) fn phases(arguments: &Arguments, documents: u64, queries: u64) -> Vec<Phase> {
    let load = Phase {
        name: "load",
        connections: arguments.connections(),
        depth: arguments.depth().max(LOAD_DEPTH),
        mix: Mix::Each(Kind::Set),
        until: Until::Requests(if arguments.workload == Workload::Search {
            documents
        } else {
            arguments.keys
        }),
        rate: None,
        before: None,
    };
    let measured = |name: &'static str, mix: Mix| Phase {
        name,
        connections: arguments.connections(),
        depth: arguments.depth(),
        mix,
        until: Until::Time {
            warm_up: Duration::from_secs_f64(arguments.warm_up),
            measured: Duration::from_secs_f64(arguments.duration),
        },
        rate: arguments.rate,
        before: None,
    };
    let zipfian = || Zipfian::new(arguments.keys, arguments.theta);
    let choice = || match arguments.distribution() {
        Distribution::Uniform => KeyChoice::Uniform,
        Distribution::Zipfian => KeyChoice::Zipfian(zipfian()),
    };
    let share = |reads: f64| Mix::Share(reads, Kind::Get, Kind::Set, choice());
    let mut phases = match arguments.workload {
        Workload::Speed => vec![
            measured("write", Mix::Only(Kind::Set, choice())),
            measured("read", Mix::Only(Kind::Get, choice())),
        ],
        Workload::Pipeline => vec![measured("pipelined write", Mix::Only(Kind::Set, choice()))],
        Workload::Throughput => vec![measured("bulk write", Mix::Only(Kind::BulkSet, choice()))],
        Workload::Mixed => vec![measured("mixed", share(arguments.read_ratio))],
        Workload::Durability => Vec::new(),
        Workload::Search => {
            let first = Phase {
                name: "first search",
                connections: 1,
                depth: 1,
                until: Until::Requests(1),
                rate: None,
                ..measured("", Mix::Queries(queries))
            };
            vec![first, measured("search", Mix::Queries(queries))]
        }
        Workload::YcsbA => vec![measured("ycsb-a", share(0.5))],
        Workload::YcsbB => vec![measured("ycsb-b", share(MOSTLY))],
        Workload::YcsbC => vec![measured("ycsb-c", Mix::Only(Kind::Get, choice()))],
        Workload::YcsbD => {
            let latest = KeyChoice::Latest(Zipfian::new(arguments.keys, YCSB_THETA));
            vec![measured("ycsb-d", Mix::Insert(MOSTLY, Kind::Get, latest))]
        }
        Workload::YcsbE => vec![measured("ycsb-e", Mix::Insert(MOSTLY, Kind::Range, choice()))],
        Workload::YcsbF => {
            vec![measured("ycsb-f", Mix::Share(0.5, Kind::Get, Kind::ReadToModify, choice()))]
        }
    };
    if !arguments.no_load && arguments.workload != Workload::Durability {
        phases.insert(0, load);
    }
    if arguments.workload == Workload::YcsbE
        && let Some(first) = phases.first_mut()
    {
        first.before = Some(r#"{"command":"CREATE_INDEX","field":"n"}"#);
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(mix: Mix, until: Until) -> Phase {
        Phase { name: "test", connections: 2, depth: 2, mix, until, rate: None, before: None }
    }

    fn shared(keys: u64) -> Shared {
        Shared { issued: AtomicU64::new(0), keys: AtomicU64::new(keys) }
    }

    const ENDLESS: Until = Until::Time { warm_up: Duration::ZERO, measured: Duration::MAX };

    #[test]
    fn a_load_writes_every_key_once_over_all_threads() {
        let phase = phase(Mix::Each(Kind::Set), Until::Requests(10));
        let shared = shared(10);
        let mut sources = [0, 1].map(|thread| Source::new(&phase, &shared, 1, thread, 1));
        let mut keys = Vec::new();
        while let Some(request) = sources[keys.len() % 2].next() {
            keys.push(request.key);
        }
        assert_eq!(keys, (0..10).collect::<Vec<_>>());
        assert_eq!(sources[0].next(), None);
    }

    #[test]
    fn shares_are_kept() {
        let phase = phase(Mix::Share(0.95, Kind::Get, Kind::Set, KeyChoice::Uniform), ENDLESS);
        let shared = shared(100);
        let mut source = Source::new(&phase, &shared, 1, 0, 1);
        let reads = (0..10_000).filter(|_| source.next().unwrap().kind == Kind::Get).count();
        assert!((9400..9600).contains(&reads), "{reads}");
    }

    #[test]
    fn inserts_are_new_keys_and_reads_are_older() {
        let choice = KeyChoice::Latest(Zipfian::new(100, YCSB_THETA));
        let phase = phase(Mix::Insert(0.5, Kind::Get, choice), ENDLESS);
        let shared = shared(100);
        let mut source = Source::new(&phase, &shared, 1, 0, 1);
        let mut next = 100;
        for _ in 0..1000 {
            let request = source.next().unwrap();
            match request.kind {
                Kind::Set => {
                    assert_eq!(request.key, next);
                    next += 1;
                }
                _ => assert!(request.key + 4 < next),
            }
        }
        assert!(next > 500);
    }

    #[test]
    fn bulk_writes_stay_among_the_keys() {
        let phase = phase(Mix::Only(Kind::BulkSet, KeyChoice::Uniform), ENDLESS);
        let shared = shared(10);
        let mut source = Source::new(&phase, &shared, 1, 0, 8);
        assert!((0..100).all(|_| source.next().unwrap().key <= 2));
    }
}
