//! Several nodes as one cluster: their places, disks and processes, and what they say of themselves.

use crate::disk::mount::Disk;
use crate::network::Network;
use crate::node::{Process, Setup};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

/// Longest wait for a node to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server's binary.
    pub binary: PathBuf,
    /// Where data, logs and mounts may lie.
    pub folder: PathBuf,
    /// How many nodes; one alone is a single server.
    pub nodes: usize,
    /// Copies of each group.
    pub replicas: usize,
    /// Shards.
    pub shards: usize,
    /// The network, or loopback.
    pub network: Option<Network>,
    /// Whether each node has a disk whose power can go, or a folder.
    pub has_disks: bool,
    /// First port on loopback; each node takes two.
    pub first_port: u16,
    /// More settings.
    pub settings: Vec<String>,
    /// The library that moves a node's wall clock.
    pub clock: Option<PathBuf>,
}

/// A cluster.
pub struct Cluster {
    /// How each node is started.
    pub setups: Vec<Setup>,
    /// Those that run.
    pub processes: Vec<Option<Process>>,
    /// Their disks, if they have any.
    pub disks: Vec<Disk>,
    /// The network, if there is one.
    pub network: Option<Network>,
}

/// One replica as its node's INFO tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// What it has applied.
    pub applied: u64,
    /// The log index of its last snapshot.
    pub snapshot: u64,
    /// The digest of that snapshot's content.
    pub digest: String,
}

impl Cluster {
    /// Prepares the nodes, and their disks; starts nothing.
    ///
    /// # Errors
    /// When a disk cannot be mounted.
    pub fn prepare(plan: &Plan) -> Result<Self, String> {
        let mut disks = Vec::new();
        let mut setups = Vec::new();
        for node in 0..plan.nodes {
            let mut data = plan.folder.join(format!("data{node}"));
            if plan.has_disks {
                let path = plan.folder.join(format!("disk{node}"));
                disks.push(Disk::mount(&path).map_err(|error| format!("a disk cannot be mounted: {error}"))?);
                data = path.join("data");
            }
            setups.push(setup(plan, node, data));
        }
        let processes = (0..plan.nodes).map(|_| None).collect();
        Ok(Self { setups, processes, disks, network: plan.network.clone() })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.setups.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.setups.is_empty()
    }

    /// Where clients find the nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.setups.iter().map(Setup::address).collect()
    }

    /// Starts a node; does not wait for it.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start(&mut self, node: usize) -> Result<(), String> {
        let process = self.setups[node].start().map_err(|error| format!("node {node}: {error}"))?;
        self.processes[node] = Some(process);
        Ok(())
    }

    /// Starts all nodes and waits until each answers and every group has a leader.
    ///
    /// # Errors
    /// With what a node said, when it does not.
    pub fn start_all(&mut self) -> Result<(), String> {
        for node in 0..self.len() {
            self.start(node)?;
        }
        for node in 0..self.len() {
            self.until_answers(node)?;
        }
        self.until_led(Duration::from_secs(60))
    }

    /// Waits until a node answers.
    ///
    /// # Errors
    /// With what it said, when it does not.
    pub fn until_answers(&mut self, node: usize) -> Result<(), String> {
        let process = self.processes[node].as_mut().ok_or_else(|| format!("node {node} does not run"))?;
        process.until_it_answers(ANSWER_WITHIN).map_err(|text| format!("node {node}: {text}"))
    }

    /// Ends a node without warning, if it runs.
    pub fn kill(&mut self, node: usize) {
        if let Some(process) = self.processes[node].take() {
            process.kill();
        }
    }

    /// Waits until every group has a leader and all nodes count each other as up.
    ///
    /// # Errors
    /// With the last that was seen.
    pub fn until_led(&self, within: Duration) -> Result<(), String> {
        let begun = Instant::now();
        let mut last = Value::Null;
        while begun.elapsed() < within {
            let all = self.addresses().iter().all(|address| {
                last = self.cluster_as_seen_by(*address);
                is_led(&last)
            });
            if all {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("not all groups are led within {within:?}: {last}"))
    }

    /// CLUSTER of one node.
    pub fn cluster_as_seen_by(&self, address: SocketAddr) -> Value {
        let request = json!({"command": "CLUSTER", "timeout_ms": 3000});
        let mut reply = crate::client::ask_once(address, &request).unwrap_or_default();
        reply["result"].take()
    }

    /// Which node leads each group, by number, as one node knows it.
    pub fn leaders(&self, asked: usize) -> BTreeMap<u64, usize> {
        let cluster = self.cluster_as_seen_by(self.setups[asked].address());
        let groups = cluster["groups"].as_array().cloned().unwrap_or_default();
        let find = |group: &Value| {
            let leader = group["leader"].as_str()?;
            let node = self.setups.iter().position(|setup| setup.id == leader)?;
            Some((group["group"].as_u64()?, node))
        };
        groups.iter().filter_map(find).collect()
    }

    /// The replicas of one node, by shard.
    pub fn replicas(&self, node: usize) -> BTreeMap<u64, Replica> {
        let request = json!({"command": "INFO", "timeout_ms": 3000});
        let reply = crate::client::ask_once(self.setups[node].address(), &request).unwrap_or_default();
        let shards = reply["result"]["shards"].as_array().cloned().unwrap_or_default();
        let read = |shard: &Value| {
            let snapshots = &shard["snapshots"];
            let replica = Replica {
                applied: shard["applied_index"].as_u64()?,
                snapshot: snapshots["last_index"].as_u64()?,
                digest: snapshots["last_digest"].as_str()?.to_owned(),
            };
            Some((shard["shard"].as_u64()?, replica))
        };
        shards.iter().filter_map(read).collect()
    }

    /// The power of all nodes goes at once, and comes back. Nodes are not started.
    ///
    /// # Errors
    /// When a killed process keeps a file open.
    pub fn cut_all(&mut self, rng: &mut Rng) -> Result<(), String> {
        for disk in &self.disks {
            disk.power_off();
        }
        for node in 0..self.len() {
            self.kill(node);
        }
        for disk in &self.disks {
            disk.power_on(rng).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The last that each node said, for a report of a failure.
    pub fn tails(&self) -> String {
        let tail = |setup: &Setup| format!("--- {}:\n{}", setup.id, crate::node::tail(&setup.stderr));
        self.setups.iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}

fn is_led(cluster: &Value) -> bool {
    let groups = cluster["groups"].as_array().map_or(&[][..], Vec::as_slice);
    let nodes = cluster["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    !groups.is_empty()
        && groups.iter().all(|group| group["leader"].is_string())
        && nodes.iter().all(|node| node["state"] == "up")
}

fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

fn place(plan: &Plan, node: usize) -> (IpAddr, u16, u16) {
    if plan.network.is_some() {
        return (Network::address(node), 7000, 7001);
    }
    let port = plan.first_port + 2 * u16::try_from(node).expect("nodes are few");
    (IpAddr::V4(Ipv4Addr::LOCALHOST), port, port + 1)
}

fn setup(plan: &Plan, node: usize, data: PathBuf) -> Setup {
    let (host, port, cluster_port) = place(plan, node);
    let peers = (0..plan.nodes).filter(|other| *other != node).map(|other| {
        let (host, port, cluster_port) = place(plan, other);
        format!("{}@{host}:{port}:{cluster_port}", name(other))
    });
    let is_alone = plan.nodes == 1;
    let mut settings = plan.settings.clone();
    if !is_alone {
        settings.push(format!("cluster.replicas={}", plan.replicas));
    }
    let clock = plan.clock.as_ref().map(|library| (library.clone(), clock_file(&plan.folder, node)));
    Setup {
        binary: plan.binary.clone(),
        id: name(node),
        host,
        port,
        cluster_port: (!is_alone).then_some(cluster_port),
        peers: (!is_alone).then(|| peers.collect::<Vec<_>>().join(",")),
        data,
        stderr: plan.folder.join(format!("node{node}.log")),
        namespace: plan.network.as_ref().map(|network| network.namespace(node)),
        arguments: vec!["--shards".to_owned(), plan.shards.to_string()],
        settings,
        clock,
    }
}

/// The file that says by how much a node's wall clock is wrong.
pub fn clock_file(folder: &Path, node: usize) -> PathBuf {
    folder.join(format!("clock{node}"))
}
