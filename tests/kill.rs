//! kill -9 under load, again and again: what was acknowledged is there, no batch is half there, no retry counts twice.
//!
//! The story of a round: workers with connections of their own write with many requests in flight; the server is killed at a
//! random moment; it starts on the same directory; every key is compared with what it may hold; the workers send again, with
//! the same `client` and `seq`, all that was not answered, compare every reply with the one that a single application would
//! have given, and go on. `STRAND_KILL_ROUNDS` sets the rounds and `STRAND_SEED` the choices.

#[path = "kill_rounds/model.rs"]
mod model;
#[path = "kill_rounds/shared.rs"]
mod shared;
mod support;
#[path = "kill_rounds/worker.rs"]
mod worker;

use shared::SharedKeys;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::random::Random;
use support::server::{Server, Setup};
use support::{from_environment, say, timed};
use worker::Worker;

const WORKERS: usize = 4;

/// What the rounds of one test differ in.
struct Rounds {
    name: &'static str,
    settings: &'static [&'static str],
    rounds: u64,
    /// Longest load before the kill.
    load_ms_max: u64,
}

fn run(case: &Rounds) {
    let seed = from_environment("STRAND_SEED", 1);
    let mut random = Random::new(seed);
    let mut setup = Setup::small(case.name).with(&["--shards", "3"]).set(case.settings);
    let shared = Arc::new(SharedKeys::default());
    let mut workers: Vec<Worker> =
        (0..WORKERS).map(|number| Worker::new(number, random.next(), Arc::clone(&shared))).collect();
    let mut slowest_start = Duration::ZERO;
    for round in 0..case.rounds {
        // The same data on fewer cores and on all of them again.
        setup.add(&["--cores", if round % 3 == 2 { "0" } else { "all" }]);
        let server = setup.start();
        slowest_start = slowest_start.max(server.ready_after);
        let context = format!("seed {seed}, round {round}");
        check_all(&server, &workers, &shared, &context);
        let last = round + 1 == case.rounds;
        let load = Duration::from_millis(20 + random.below(case.load_ms_max));
        workers = load_and_end(server, workers, load, !last, &context);
        if last {
            let server = setup.start();
            check_all(&server, &workers, &shared, &context);
            workers.iter().for_each(|worker| assert!(worker.is_answered(), "{context}"));
            shared.check_final(&mut server.connect(), &context);
            server.stop();
        }
    }
    let (answered, retried) = workers.iter().fold((0, 0), |(a, r), w| (a + w.answered, r + w.retried));
    say(&format!(
        "{}: {} rounds, {answered} answers, {retried} retries, slowest start {slowest_start:?}",
        case.name, case.rounds
    ));
    assert!(
        answered > 20 * case.rounds && (case.rounds < 3 || retried > 0),
        "there was load when it was killed"
    );
}

fn check_all(server: &Server, workers: &[Worker], shared: &SharedKeys, context: &str) {
    let mut connection = server.connect();
    for worker in workers {
        worker.check(&mut connection, context).unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    shared.check(&mut connection, context);
}

/// Lets the workers work for this time and ends the server, by a kill or, with everything answered, in good order.
fn load_and_end(
    server: Server,
    workers: Vec<Worker>,
    load: Duration,
    kill: bool,
    context: &str,
) -> Vec<Worker> {
    let enough = Arc::new(AtomicBool::new(false));
    let port = server.port();
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let (enough, context) = (Arc::clone(&enough), context.to_owned());
            std::thread::spawn(move || {
                worker.work(port, &enough, &context);
                worker
            })
        })
        .collect();
    let reader = {
        let enough = Arc::clone(&enough);
        std::thread::spawn(move || worker::read_batches(port, WORKERS, &enough))
    };
    std::thread::sleep(load);
    if kill {
        server.kill();
        enough.store(true, Ordering::Release);
    } else {
        enough.store(true, Ordering::Release);
    }
    let join =
        |thread: std::thread::JoinHandle<Worker>| thread.join().expect("a worker found something wrong");
    let workers = threads.into_iter().map(join).collect();
    reader.join().expect("the reader found something wrong");
    workers
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_applies_twice() {
    let _timed = timed("kill -9 under load");
    let rounds = from_environment("STRAND_KILL_ROUNDS", 5);
    run(&Rounds { name: "kill", settings: &["snapshot.every_mib=4"], rounds, load_ms_max: 400 });
}

#[test]
fn the_same_with_a_log_that_holds_everything() {
    let _timed = timed("kill -9 under load, no snapshots");
    let rounds = from_environment("STRAND_KILL_ROUNDS", 5).min(10);
    run(&Rounds {
        name: "kill-log",
        settings: &["snapshot.every_mib=512", "snapshot.every_s=0"],
        rounds,
        load_ms_max: 150,
    });
}
