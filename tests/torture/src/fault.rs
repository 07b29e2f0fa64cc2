//! What is done to nodes, by class; a round does two of them at once.

use crate::cluster::Cluster;
use crate::node::Signal;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use strand_sim::rng::Rng;

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// kill -9.
    Kill,
    /// SIGSTOP.
    Pause,
    /// A node hears no other and is heard by none.
    Isolate,
    /// The nodes fall into two parts; one has a majority.
    Halves,
    /// A node is heard and hears nobody, or the other way around.
    OneWay,
    /// Two sides do not hear one another; one node hears both.
    Bridge,
    /// A node loses a quarter of what it hears from nodes.
    Loss,
    /// A node's cable is narrow.
    Narrow,
    /// Each write and each sync takes long.
    SlowDisk,
    /// No file may grow.
    FullDisk,
    /// Writes or syncs fail: the node must end by name.
    BrokenDisk,
    /// The wall clock jumps.
    Clock,
    /// The power of one node goes: what it had not synced may be gone.
    PowerCut,
}

/// Every class.
pub const ALL: [Class; 13] = [
    Class::Kill,
    Class::Pause,
    Class::Isolate,
    Class::Halves,
    Class::OneWay,
    Class::Bridge,
    Class::Loss,
    Class::Narrow,
    Class::SlowDisk,
    Class::FullDisk,
    Class::BrokenDisk,
    Class::Clock,
    Class::PowerCut,
];

impl Class {
    /// Whether it needs namespaces.
    fn needs_network(self) -> bool {
        use Class::{Bridge, Halves, Isolate, Loss, Narrow, OneWay};
        matches!(self, Isolate | Halves | OneWay | Bridge | Loss | Narrow)
    }

    fn needs_disk(self) -> bool {
        matches!(self, Self::SlowDisk | Self::FullDisk | Self::BrokenDisk | Self::PowerCut)
    }

    /// Whether this cluster can have it.
    pub fn is_possible(self, cluster: &Cluster) -> bool {
        (!self.needs_network() || cluster.network.is_some())
            && (!self.needs_disk() || !cluster.disks.is_empty())
            && (self != Self::Clock || cluster.setups.iter().all(|setup| setup.clock.is_some()))
            && (self != Self::Bridge || cluster.len() >= 3)
    }
}

/// A fault of one node, or around it.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What.
    pub class: Class,
    /// To whom.
    pub node: usize,
    /// How much, in the class's own unit.
    amount: u64,
}

impl Fault {
    /// Draws the particulars.
    pub fn draw(class: Class, nodes: usize, rng: &mut Rng) -> Self {
        let node = rng.place(nodes);
        let amount = match class {
            // Microseconds.
            Class::SlowDisk => rng.between(5_000, 150_000),
            // Seconds back or forth.
            Class::Clock => rng.between(1, 7200),
            // Bytes that still fit.
            Class::FullDisk => rng.below(64 << 10),
            _ => rng.word(),
        };
        Self { class, node, amount }
    }

    /// How long it lasts.
    pub fn lasts(&self, rng: &mut Rng) -> Duration {
        Duration::from_millis(match self.class {
            Class::Pause => rng.between(1000, 30_000),
            Class::Isolate => rng.between(9000, 14_000),
            // Long enough that logs want segments that cannot be made.
            Class::FullDisk => rng.between(10_000, 25_000),
            _ => rng.between(2000, 10_000),
        })
    }

    /// A line for the ledger.
    pub fn text(&self) -> String {
        format!("{:?} at n{}", self.class, self.node + 1)
    }

    /// Does it.
    ///
    /// # Errors
    /// When the machine does not do as it is told: no finding about the product.
    pub fn inject(&self, cluster: &mut Cluster) -> Result<(), String> {
        let (node, nodes) = (self.node, cluster.len());
        match self.class {
            Class::Kill => cluster.kill(node),
            Class::Pause => {
                if let Some(process) = &cluster.processes[node] {
                    process.signal(Signal::Stop);
                }
            }
            Class::PowerCut => {
                cluster.disks[node].power_off();
                cluster.kill(node);
                let restored = cluster.disks[node].power_on(&mut Rng::new(self.amount));
                restored.map_err(|error| error.to_string())?;
            }
            Class::SlowDisk => cluster.disks[node].faults().delay_us.store(self.amount, Ordering::SeqCst),
            Class::FullDisk => {
                let disk = &cluster.disks[node];
                disk.faults().capacity_bytes.store(disk.bytes() + self.amount, Ordering::SeqCst);
            }
            Class::BrokenDisk => {
                let faults = cluster.disks[node].faults();
                let which =
                    if self.amount.is_multiple_of(2) { &faults.fails_writes } else { &faults.fails_syncs };
                which.store(true, Ordering::SeqCst);
            }
            Class::Clock => {
                let sign = if self.amount.is_multiple_of(2) { "" } else { "-" };
                set_clock(cluster, node, &format!("{sign}{}", self.amount))?;
            }
            Class::Narrow => {
                let network = cluster.network.as_ref().expect("it is possible");
                network.narrow(node, true).map_err(|error| error.to_string())?;
            }
            Class::Isolate | Class::Halves | Class::OneWay | Class::Bridge | Class::Loss => {
                self.partition(cluster, nodes)?;
            }
        }
        Ok(())
    }

    fn partition(&self, cluster: &mut Cluster, nodes: usize) -> Result<(), String> {
        let network = cluster.network.as_mut().expect("it is possible");
        let around: Vec<usize> = (0..nodes).map(|step| (self.node + step) % nodes).collect();
        let mut part = |one: &[usize], other: &[usize], both: bool| {
            for (speaker, listener) in
                one.iter().flat_map(|one| other.iter().map(move |other| (*one, *other)))
            {
                network.deafen(speaker, listener);
                if both {
                    network.deafen(listener, speaker);
                }
            }
        };
        match self.class {
            Class::Isolate => part(&around[..1], &around[1..], true),
            Class::Halves => {
                let (few, many) = around.split_at((nodes - 1) / 2);
                part(few, many, true);
            }
            Class::OneWay if self.amount.is_multiple_of(2) => part(&around[..1], &around[1..], false),
            Class::OneWay => part(&around[1..], &around[..1], false),
            Class::Bridge => {
                let (one, other) = around[1..].split_at((nodes - 1) / 2);
                part(one, other, true);
            }
            _ => network.lose(self.node),
        }
        network.apply().map_err(|error| error.to_string())
    }
}

/// The library reads seconds as text.
fn set_clock(cluster: &Cluster, node: usize, seconds: &str) -> Result<(), String> {
    let Some((_, file)) = &cluster.setups[node].clock else { return Ok(()) };
    write_clock(file, seconds)
}

/// Sets by how many seconds a node's wall clock is wrong.
///
/// # Errors
/// When the file cannot be written.
pub fn write_clock(file: &Path, seconds: &str) -> Result<(), String> {
    let seconds: i64 = seconds.parse().map_err(|error| format!("{seconds}: {error}"))?;
    // In place: the library has the file mapped.
    let opened = fs::File::options().create(true).truncate(false).write(true).open(file);
    opened
        .and_then(|opened| std::os::unix::fs::FileExt::write_all_at(&opened, &seconds.to_le_bytes(), 0))
        .map_err(|error| format!("{}: {error}", file.display()))
}

/// Takes all faults back and starts the nodes that are gone. A node that ended though nobody had a hand in it is a finding.
///
/// # Errors
/// With the words of a node that ended by itself or does not come back.
pub fn heal_all(cluster: &mut Cluster, faults: &[Fault]) -> Result<(), String> {
    if let Some(network) = &mut cluster.network {
        network.heal();
        network.apply().map_err(|error| error.to_string())?;
    }
    let mut findings = Vec::new();
    for fault in faults {
        if let (Class::Narrow, Some(network)) = (fault.class, &cluster.network) {
            // The same node may have been drawn twice.
            drop(network.narrow(fault.node, false));
        }
    }
    for disk in &cluster.disks {
        let healthy = disk.faults();
        healthy.delay_us.store(0, Ordering::SeqCst);
        healthy.capacity_bytes.store(u64::MAX, Ordering::SeqCst);
        healthy.fails_writes.store(false, Ordering::SeqCst);
        healthy.fails_syncs.store(false, Ordering::SeqCst);
    }
    for node in 0..cluster.len() {
        set_clock(cluster, node, "0")?;
        if let Some(process) = &cluster.processes[node] {
            process.signal(Signal::Continue);
        }
        let ended = cluster.processes[node].as_mut().and_then(crate::node::Process::ended);
        let may_end = faults.iter().any(|fault| fault.node == node && fault.class == Class::BrokenDisk);
        if let Some(status) = ended {
            if !may_end {
                let tail =
                    cluster.processes[node].as_ref().map(crate::node::Process::tail).unwrap_or_default();
                findings.push(format!("n{} ended by itself ({status}): {tail}", node + 1));
            }
            cluster.processes[node] = None;
        }
        if cluster.processes[node].is_none() {
            cluster.start(node)?;
        }
    }
    for node in 0..cluster.len() {
        cluster.until_answers(node)?;
    }
    if findings.is_empty() { Ok(()) } else { Err(findings.join("\n")) }
}
