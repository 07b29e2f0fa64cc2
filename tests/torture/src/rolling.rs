//! A rolling restart: each node in turn is asked to end by SIGTERM and started again, under load. No request of a client that
//! retries may fail, each node must end with code 0, and what clients saw is judged.

use crate::cluster::Cluster;
use crate::load::Load;
use crate::node::Signal;
use crate::storm;
use std::time::{Duration, Instant};

/// Longest until a node has ended in good order.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Longest until every group is led after a node came back.
const LED_WITHIN: Duration = Duration::from_secs(45);
/// Longest that a client tries: a request that needs more has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Restarts.
    pub restarts: u64,
    /// The longest request around each restart.
    pub longest: Vec<Duration>,
    /// How long each node took to end.
    pub ends: Vec<Duration>,
    /// What the load did.
    pub judged: storm::Done,
}

/// Restarts every node so many times, of a cluster that is prepared and not started.
///
/// # Errors
/// With the finding.
pub fn run(cluster: &mut Cluster, times: u64, seed: u64) -> Result<Done, String> {
    let mut done = Done::default();
    cluster.start_all()?;
    let load = Load::begin(&cluster.addresses(), 4, PATIENCE, Duration::from_millis(2), seed);
    for _ in 0..times {
        for node in 0..cluster.len() {
            std::thread::sleep(Duration::from_millis(500));
            load.take_longest();
            restart(cluster, node, &mut done)
                .map_err(|text| format!("restart of n{}: {text}\n{}", node + 1, cluster.tails()))?;
            done.longest.push(load.take_longest());
            done.restarts += 1;
        }
        load.rest(LED_WITHIN).and(storm::judge(cluster, &load, &mut done.judged))?;
        load.resume();
    }
    let figures = load.stop();
    done.judged.requests = figures.requests;
    done.judged.retries = figures.retries;
    if figures.requests < done.restarts * 20 {
        return Err(format!("{} requests prove nothing", figures.requests));
    }
    Ok(done)
}

fn restart(cluster: &mut Cluster, node: usize, done: &mut Done) -> Result<(), String> {
    let mut process = cluster.processes[node].take().ok_or("it does not run")?;
    process.signal(Signal::Terminate);
    let begun = Instant::now();
    let status = process.wait(ENDS_WITHIN).ok_or_else(|| format!("it does not end: {}", process.tail()))?;
    done.ends.push(begun.elapsed());
    if status.code() != Some(0) {
        return Err(format!("it ended with {status}: {}", process.tail()));
    }
    drop(process);
    cluster.start(node)?;
    cluster.until_answers(node)?;
    cluster.until_led(LED_WITHIN)
}
