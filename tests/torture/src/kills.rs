//! kill -9 of a node under load, again and again: how long each group is without service, those that the node led and those
//! that it did not; and everything that clients saw is judged.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::load::Load;
use crate::report::{self, Report};
use crate::storm;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;
use xxhash_rust::xxh3::xxh3_64;

/// Service is watched this long before and after a kill.
const BEFORE: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_millis(3500);
/// Pause between two requests of a prober.
const EVERY: Duration = Duration::from_millis(5);
/// Kills between two judgements.
const JUDGE_EVERY: u64 = 4;
/// The bar for a group whose leader died.
pub const GAP_MAX: Duration = Duration::from_secs(2);

/// What a campaign did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Kills.
    pub rounds: u64,
    /// Gaps in service of groups that the dead node led.
    pub led: Vec<Duration>,
    /// Of the other groups.
    pub others: Vec<Duration>,
    /// Of all groups in the second before a kill.
    pub calm: Vec<Duration>,
    /// What the load did.
    pub judged: storm::Done,
}

impl Done {
    /// Lines for the ledger.
    pub fn text(&self) -> String {
        format!(
            "{} kills; gap in service of groups whose leader died: {}\n    of other groups: {}\n    before kills: {}\n    {} operations judged",
            self.rounds,
            report::summary(&self.led),
            report::summary(&self.others),
            report::summary(&self.calm),
            self.judged.operations
        )
    }
}

/// A key of each group.
fn keys(cluster: &Cluster) -> Result<BTreeMap<u64, String>, String> {
    let hello = crate::client::ask_once(cluster.addresses()[0], &json!({"command": "HELLO"}));
    let hello = hello.map_err(|error| error.to_string())?;
    let slots = hello["result"]["slots"].as_array().cloned().unwrap_or_default();
    let mut keys = BTreeMap::new();
    for range in &slots {
        let (Some(first), Some(last), Some(group)) =
            (range["first"].as_u64(), range["last"].as_u64(), range["group"].as_u64())
        else {
            return Err(format!("HELLO's slots are not as documented: {range}"));
        };
        // The slot of a key is the upper 12 bits of its hash.
        let key = (0..200_000)
            .map(|number| format!("probe{number}"))
            .find(|key| (first..=last).contains(&(xxh3_64(key.as_bytes()) >> 52)));
        keys.entry(group).or_insert(key.ok_or("a range of slots without a key")?);
    }
    Ok(keys)
}

/// One group's completions.
fn probe(nodes: &[SocketAddr], key: &str, number: usize, stop: &AtomicBool) -> Result<Vec<Instant>, String> {
    let name = format!("probe{number}-{key}");
    let mut client = Client::new(name, nodes.to_vec(), number, Duration::from_secs(60));
    client.timeout_ms = 5000;
    let mut completions = Vec::new();
    while !stop.load(Ordering::Acquire) {
        client.insist(json!({"command": "SET", "key": key, "value": completions.len()}))?;
        completions.push(Instant::now());
        std::thread::sleep(EVERY);
    }
    Ok(completions)
}

/// The longest time without a completion between two moments.
fn longest_gap(completions: &[Instant], from: Instant, to: Instant) -> Duration {
    let inside = completions.iter().copied().filter(|at| (from..=to).contains(at));
    let mut last = from;
    let mut longest = Duration::ZERO;
    for at in inside.chain([to]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// Kills so many nodes, or as many as fit into the time, of a cluster that is prepared and not started.
///
/// # Errors
/// With the finding.
pub fn run(
    cluster: &mut Cluster,
    rounds: u64,
    within: Duration,
    seed: u64,
    report: &Report,
) -> Result<Done, String> {
    let mut rng = Rng::new(seed);
    let mut done = Done::default();
    cluster.start_all()?;
    let keys = keys(cluster)?;
    let load = Load::begin(&cluster.addresses(), 4, Duration::from_secs(90), Duration::from_millis(4), seed);
    let begun = Instant::now();
    while done.rounds < rounds && begun.elapsed() < within {
        let victim = rng.place(cluster.len());
        let mut killed = round(cluster, &keys, victim, &mut rng, &mut done);
        done.rounds += 1;
        let is_last = done.rounds == rounds || begun.elapsed() >= within;
        if killed.is_ok() && (is_last || done.rounds.is_multiple_of(JUDGE_EVERY) || load.has_violations()) {
            killed = judge(cluster, &load, &mut done);
        }
        killed.map_err(|text| format!("kill {} of seed {seed}: {text}\n{}", done.rounds, cluster.tails()))?;
        if done.rounds.is_multiple_of(10) {
            report.say(&format!("{} kills; led: {}", done.rounds, report::summary(&done.led)));
        }
    }
    load.stop();
    Ok(done)
}

/// Judging needs rest, so it comes after every few kills.
fn judge(cluster: &Cluster, load: &Load, done: &mut Done) -> Result<(), String> {
    let rested = load.rest(Duration::from_secs(45));
    let judged = storm::judge(cluster, load, &mut done.judged);
    rested.and(judged)?;
    load.resume();
    Ok(())
}

fn round(
    cluster: &mut Cluster,
    keys: &BTreeMap<u64, String>,
    victim: usize,
    rng: &mut Rng,
    done: &mut Done,
) -> Result<(), String> {
    let survivors: Vec<SocketAddr> = (0..cluster.len())
        .filter(|node| *node != victim)
        .map(|node| cluster.setups[node].address())
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let asked = (victim + 1) % cluster.len();
    let mut killed = Instant::now();
    let mut leaders = BTreeMap::new();
    let probes = std::thread::scope(|scope| {
        let start = |(number, (group, key)): (usize, (&u64, &String))| {
            let (survivors, stop, key) = (&survivors, Arc::clone(&stop), key.clone());
            (*group, scope.spawn(move || probe(survivors, &key, number, &stop)))
        };
        let probes: Vec<_> = keys.iter().enumerate().map(start).collect();
        std::thread::sleep(BEFORE + Duration::from_millis(200 + rng.below(500)));
        leaders = cluster.leaders(asked);
        killed = Instant::now();
        cluster.kill(victim);
        std::thread::sleep(AFTER);
        stop.store(true, Ordering::Release);
        let join =
            |(group, probe): (u64, std::thread::ScopedJoinHandle<'_, Result<Vec<Instant>, String>>)| {
                let completions = probe.join().unwrap_or_else(|_| Err("a prober panicked".to_owned()));
                completions.map(|completions| (group, completions))
            };
        probes.into_iter().map(join).collect::<Result<Vec<_>, String>>()
    })?;
    for (group, completions) in probes {
        done.calm.push(longest_gap(&completions, killed - BEFORE, killed));
        let gap = longest_gap(&completions, killed, killed + AFTER);
        if leaders.get(&group) == Some(&victim) { done.led.push(gap) } else { done.others.push(gap) }
    }
    cluster.start(victim)?;
    cluster.until_answers(victim)?;
    cluster.until_led(Duration::from_secs(45))
}
