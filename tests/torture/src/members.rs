//! Members come and go under load: two nodes join three, then two of the first three leave, one drained and one dead. Nothing
//! may be lost, replicas and leaders must be even after each step, and the longest request and each node's memory are told.

use crate::cluster::Cluster;
use crate::filling::{Filling, Writers};
use crate::load::Load;
use crate::node::Setup;
use crate::report::Report;
use crate::storm;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nodes that found the cluster.
const FOUNDERS: usize = 3;
/// Longest until replicas and leaders are even after a step.
const EVEN_WITHIN: Duration = Duration::from_secs(180);
/// Longest that a client tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// Load before the first step and after each.
const CALM: Duration = Duration::from_secs(3);
/// The bar for any request while members change.
pub const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How the second leaver leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// Drained, as the first.
    Drained,
    /// Killed, then removed.
    Dead,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Each step: what, how long until all was even, the longest request.
    pub steps: Vec<(String, Duration, Duration)>,
    /// Each node after each step: its id, replicas, leaders, bytes its replicas hold and bytes resident.
    pub memory: Vec<(String, Vec<Member>)>,
    /// Writes of the filling's keys that were acknowledged.
    pub overwritten: u64,
    /// What the judged load did.
    pub judged: storm::Done,
}

/// What a node carries.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Groups of which it has a replica, without the meta group.
    pub replicas: usize,
    /// Groups that it leads.
    pub leads: usize,
    /// Bytes that the replicas' state takes, as INFO tells.
    pub held: u64,
    /// Bytes resident, as the kernel tells.
    pub resident: u64,
}

impl Done {
    /// Lines for the ledger.
    pub fn text(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let mut lines = vec![format!(
            "{} operations judged, {} more writes compared",
            self.judged.operations, self.overwritten
        )];
        for (what, took, longest) in &self.steps {
            let (took_s, longest_ms) = (took.as_secs_f64(), longest.as_millis());
            lines.push(format!("    {what}: even after {took_s:.1} s, longest request {longest_ms} ms"));
        }
        for (when, members) in &self.memory {
            let each: Vec<String> = members
                .iter()
                .map(|member| {
                    let Member { id, replicas, leads, held, resident } = member;
                    format!("{id} {replicas}/{leads} {}/{} MiB", mib(*held), mib(*resident))
                })
                .collect();
            lines.push(format!("    {when} (replicas/leaders, held/resident): {}", each.join(", ")));
        }
        lines.join("\n")
    }
}

/// Lets two nodes join and two leave, of a cluster of five places that is prepared and not started.
///
/// # Errors
/// With the finding.
pub fn run(
    cluster: &mut Cluster,
    keys: u64,
    second: Second,
    seed: u64,
    report: &Report,
) -> Result<Done, String> {
    let mut done = Done::default();
    let all = cluster.addresses();
    let mut joining = cluster.setups.split_off(FOUNDERS);
    cluster.processes.truncate(FOUNDERS);
    let ids: Vec<String> = cluster.setups.iter().map(|setup| setup.id.clone()).collect();
    for setup in &mut cluster.setups {
        // Founders know only of founders.
        let peers = setup.peers.take().unwrap_or_default();
        let names = |peer: &&str| ids.iter().any(|id| peer.starts_with(&format!("{id}@")));
        setup.peers = Some(peers.split(',').filter(names).collect::<Vec<_>>().join(","));
    }
    cluster.start_all()?;
    let begun = Instant::now();
    let filling = Filling::write(&cluster.addresses(), keys)?;
    report.say(&format!("{keys} keys written in {:.1} s", begun.elapsed().as_secs_f64()));
    let traffic = Traffic {
        load: Load::begin(&all, 4, PATIENCE, Duration::from_millis(2), seed),
        writers: filling.overwrite(&all, 4, PATIENCE, seed),
    };
    let result = steps(cluster, &mut joining, second, &traffic, report, &mut done);
    let Traffic { load, writers } = traffic;
    // The replicas can be compared once nothing is written any more.
    let stopped = writers.stop().map(|written| done.overwritten = written);
    let rested = load.rest(PATIENCE);
    let judged = storm::judge(cluster, &load, &mut done.judged);
    if let Err(text) = result.and(stopped).and(judged).and(rested) {
        load.abandon();
        return Err(format!("{text}\n{}", cluster.tails()));
    }
    load.stop();
    for address in cluster.addresses() {
        filling.compare(address)?;
    }
    report.say(&format!("all {keys} keys compared at each of {} nodes", cluster.len()));
    Ok(done)
}

struct Traffic {
    load: Load,
    writers: Writers,
}

impl Traffic {
    fn take_longest(&self) -> Duration {
        self.load.take_longest().max(self.writers.take_longest())
    }
}

fn steps(
    cluster: &mut Cluster,
    joining: &mut Vec<Setup>,
    second: Second,
    traffic: &Traffic,
    report: &Report,
    done: &mut Done,
) -> Result<(), String> {
    std::thread::sleep(CALM);
    done.steps.push(("before".to_owned(), Duration::ZERO, traffic.take_longest()));
    done.memory.push(("three nodes".to_owned(), members(cluster)?));
    for mut setup in joining.drain(..) {
        // Any member will do.
        let asked = &cluster.setups[FOUNDERS - 1];
        let port = asked.cluster_port.ok_or("members have a port for members")?;
        setup.peers = Some(format!("{}:{}:{port}", asked.host, asked.port));
        let what = format!("{} joins", setup.id);
        let place =
            format!("{}@{}:{}:{}", setup.id, setup.host, setup.port, setup.cluster_port.unwrap_or_default());
        cluster.setups.push(setup);
        cluster.processes.push(None);
        cluster.start(cluster.len() - 1)?;
        step(cluster, &what, &["add", &place], traffic, report, done)?;
    }
    done.memory.push(("five nodes".to_owned(), members(cluster)?));
    let first = cluster.setups[0].id.clone();
    step(cluster, &format!("{first} is drained"), &["remove", &first], traffic, report, done)?;
    leave(cluster)?;
    let next = cluster.setups[0].id.clone();
    let what = match second {
        Second::Drained => format!("{next} is drained"),
        Second::Dead => {
            cluster.kill(0);
            format!("{next} is killed and replaced")
        }
    };
    step(cluster, &what, &["remove", &next], traffic, report, done)?;
    if second == Second::Drained {
        leave(cluster)?;
    } else {
        forget(cluster);
    }
    done.memory.push(("three nodes, two of them new".to_owned(), members(cluster)?));
    Ok(())
}

/// One change by the product's own command, which returns when it is complete.
fn step(
    cluster: &Cluster,
    what: &str,
    arguments: &[&str],
    traffic: &Traffic,
    report: &Report,
    done: &mut Done,
) -> Result<(), String> {
    traffic.take_longest();
    let begun = Instant::now();
    let asked = &cluster.setups[FOUNDERS - 1];
    let mut command = Command::new(&asked.binary);
    command.arg("cluster").args(arguments).args(["--address", &asked.address().to_string(), "--wait-s"]);
    command.arg(EVEN_WITHIN.as_secs().to_string()).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(format!("{what}: {}: {said}{error}", output.status));
    }
    let gone = (arguments[0] == "remove").then(|| arguments[1]);
    while !is_even(cluster, gone) {
        if begun.elapsed() > EVEN_WITHIN {
            return Err(format!("{what}: replicas and leaders are not even: {:?}", members(cluster)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = begun.elapsed();
    std::thread::sleep(CALM);
    let longest = traffic.take_longest();
    report.say(&format!(
        "{what}: even after {:.1} s, longest request {} ms",
        took.as_secs_f64(),
        longest.as_millis()
    ));
    done.steps.push((what.to_owned(), took, longest));
    Ok(())
}

/// The first node was told that it is no member any more: it ends in good order.
fn leave(cluster: &mut Cluster) -> Result<(), String> {
    let process = cluster.processes[0].as_mut().ok_or("it does not run")?;
    match process.wait(PATIENCE).and_then(|status| status.code()) {
        Some(0) => {
            forget(cluster);
            Ok(())
        }
        other => Err(format!("a node that was removed ended with {other:?}: {}", process.tail())),
    }
}

fn forget(cluster: &mut Cluster) {
    cluster.setups.remove(0);
    cluster.processes.remove(0);
}

/// Whether every member but the one that goes has as many replicas and leaders as any other, within one.
fn is_even(cluster: &Cluster, gone: Option<&str>) -> bool {
    let asked = cluster.setups.last().expect("there are nodes");
    let seen = cluster.cluster_as_seen_by(asked.address());
    let counts = counts(&seen);
    let even = |numbers: Vec<usize>| {
        let (least, most) = (numbers.iter().min(), numbers.iter().max());
        least.zip(most).is_some_and(|(least, most)| most - least <= 1)
    };
    let staying: Vec<&String> =
        cluster.setups.iter().map(|setup| &setup.id).filter(|id| gone != Some(id)).collect();
    let of = |pick: fn(&(usize, usize)) -> usize| {
        staying.iter().map(|id| counts.get(*id).map_or(0, pick)).collect::<Vec<_>>()
    };
    gone.is_none_or(|gone| !counts.contains_key(gone))
        && even(of(|found| found.0))
        && even(of(|found| found.1))
}

/// Replicas and leaders of each node by its id, of all groups but the meta group. Learners count as replicas.
fn counts(cluster: &Value) -> BTreeMap<String, (usize, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for group in cluster["groups"].as_array().into_iter().flatten() {
        for replica in group["replicas"].as_array().into_iter().flatten() {
            counts.entry(replica["node"].as_str().unwrap_or_default().to_owned()).or_default().0 += 1;
        }
        if let Some(leader) = group["leader"].as_str() {
            counts.entry(leader.to_owned()).or_default().1 += 1;
        }
    }
    counts
}

fn members(cluster: &Cluster) -> Result<Vec<Member>, String> {
    let asked = cluster.setups.last().ok_or("there are nodes")?;
    let counts = counts(&cluster.cluster_as_seen_by(asked.address()));
    let member = |(node, setup): (usize, &Setup)| {
        let process = cluster.processes[node].as_ref().ok_or_else(|| format!("{} does not run", setup.id))?;
        let info = process.ask(&serde_json::json!({"command": "INFO"})).map_err(|error| error.to_string())?;
        let shards = info["result"]["shards"].as_array().cloned().unwrap_or_default();
        let held = shards.iter().filter_map(|shard| shard["memory_bytes"].as_u64()).sum();
        let (replicas, leads) = counts.get(&setup.id).copied().unwrap_or_default();
        let resident = process.resident_bytes().map_err(|error| error.to_string())?;
        Ok(Member { id: setup.id.clone(), replicas, leads, held, resident })
    };
    cluster.setups.iter().enumerate().map(member).collect()
}
