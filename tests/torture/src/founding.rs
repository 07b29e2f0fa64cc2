//! Clusters that are cut off at birth: nodes lose their power, or are killed, while they found a cluster. However often that
//! happens, in the end they must found it, or go on with what was founded.

use crate::cluster::{Cluster, Plan};
use std::time::Duration;
use strand_sim::rng::Rng;

/// Most interruptions of one founding.
const INTERRUPTIONS_MAX: u64 = 4;
/// Longest time before an interruption, in ms: about twice what a founding takes.
const BEFORE_MS_MAX: u64 = 900;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Clusters.
    pub clusters: u64,
    /// Power cuts of a node.
    pub cuts: u64,
    /// Kills of a node.
    pub kills: u64,
}

/// Founds so many clusters after this plan, or as many as fit into the time; each in a folder of its own.
///
/// # Errors
/// With the words of the nodes that do not found one.
pub fn run(plan: &Plan, clusters: u64, seed: u64, is_over: impl Fn() -> bool) -> Result<Done, String> {
    let mut done = Done::default();
    for number in 0..clusters {
        if is_over() {
            break;
        }
        let folder = plan.folder.join(format!("founding{number}"));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut cluster = Cluster::prepare(&Plan { folder, clock: None, ..plan.clone() })?;
        let mut rng = Rng::new(seed.wrapping_add(number));
        found(&mut cluster, &mut rng, &mut done)
            .map_err(|text| format!("cluster {number} of seed {seed}: {text}\n{}", cluster.tails()))?;
        done.clusters += 1;
    }
    Ok(done)
}

fn found(cluster: &mut Cluster, rng: &mut Rng, done: &mut Done) -> Result<(), String> {
    for _ in 0..rng.between(1, INTERRUPTIONS_MAX) {
        for node in 0..cluster.len() {
            if cluster.processes[node].is_none() {
                cluster.start(node)?;
            }
        }
        std::thread::sleep(Duration::from_millis(rng.below(BEFORE_MS_MAX)));
        for node in 0..cluster.len() {
            match rng.below(4) {
                0 => {}
                1 => {
                    cluster.kill(node);
                    done.kills += 1;
                }
                _ => {
                    cluster.disks[node].power_off();
                    cluster.kill(node);
                    cluster.disks[node].power_on(rng).map_err(|error| error.to_string())?;
                    done.cuts += 1;
                }
            }
        }
    }
    for node in 0..cluster.len() {
        if cluster.processes[node].is_none() {
            cluster.start(node)?;
        }
    }
    for node in 0..cluster.len() {
        cluster.until_answers(node)?;
    }
    cluster.until_led(Duration::from_secs(60))
}
