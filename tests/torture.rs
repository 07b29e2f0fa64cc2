//! The torture harness in short form: a rolling restart, and power cuts where a disk can be mounted whose power can go.
//!
//! At length, with network namespaces and faults in pairs: `make torture` (docs/TORTURE.md).

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use strand_torture::cluster::{Cluster, Plan};
use strand_torture::disk::mount::Disk;
use strand_torture::report::summary;
use strand_torture::{cutpoints, founding, powercut, rolling};
use support::directory::TemporaryDirectory;
use support::server::free_port;
use support::{from_environment, say, timed};

fn plan(directory: &TemporaryDirectory, nodes: usize, has_disks: bool) -> Plan {
    Plan {
        binary: Path::new(env!("CARGO_BIN_EXE_strand")).to_owned(),
        folder: directory.path().to_owned(),
        nodes,
        replicas: nodes,
        shards: 2,
        network: None,
        has_disks,
        first_port: free_ports(),
        settings: vec!["snapshot.every_s=2".to_owned()],
        clock: None,
    }
}

/// Ports of one test: three nodes take two each, and so do the servers that visit cut points.
const PORTS: u16 = 8;

/// The first of as many free ports in a row as a test takes. Tests beside it get others.
fn free_ports() -> u16 {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let found = (0..1000).map(|_| free_port()).find(|first| (*first..first + PORTS).all(is_free));
    let first = found.expect("some ports in a row are free");
    // The search goes on behind these.
    for _ in 0..PORTS {
        free_port();
    }
    first
}

/// Whether a disk can be mounted here; says so where not.
fn can_mount(directory: &TemporaryDirectory) -> bool {
    match Disk::mount(&directory.path().join("try")) {
        Ok(_) => true,
        Err(error) => {
            say(&format!("no power cuts: a FUSE disk cannot be mounted here ({error})"));
            false
        }
    }
}

#[test]
fn clients_that_retry_notice_no_rolling_restart() {
    let _timed = timed("rolling restart of three nodes under load");
    let directory = TemporaryDirectory::new("torture-rolling");
    let mut cluster = Cluster::prepare(&plan(&directory, 3, false)).expect("nothing is mounted");
    let done = rolling::run(&mut cluster, 1, from_environment("STRAND_SEED", 1));
    let done = done.unwrap_or_else(|text| panic!("{text}"));
    let (longest, ends) = (summary(&done.longest), summary(&done.ends));
    say(&format!("{} requests; longest of a restart: {longest}; ends: {ends}", done.judged.requests));
    assert_eq!(done.restarts, 3);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let _timed = timed("power cuts of three nodes, and of one recorded log");
    let directory = TemporaryDirectory::new("torture-power");
    if !can_mount(&directory) {
        return;
    }
    let seed = from_environment("STRAND_SEED", 1);
    let mut cluster = Cluster::prepare(&plan(&directory, 3, true)).expect("disks can be mounted");
    let campaign = powercut::Campaign {
        cuts: from_environment("STRAND_POWER_CUTS", 3),
        writes_per_cut: 1000,
        writers: 3,
        seed,
        load_within: Duration::from_secs(10),
    };
    let done = powercut::run(&mut cluster, &campaign, say).unwrap_or_else(|text| panic!("{text}"));
    say(&format!("{} cuts of all nodes, {} acknowledged writes", done.cuts, done.acked));
    drop(cluster);
    let founded = founding::run(&plan(&directory, 3, true), 3, seed, || false);
    let founded = founded.unwrap_or_else(|text| panic!("{text}"));
    say(&format!("{} clusters founded over {} power cuts of nodes", founded.clusters, founded.cuts));
    let [honest, lying] = [false, true].map(|lies| {
        let campaign = cutpoints::Campaign {
            operations: 2000,
            points: if lies { 12 } else { 40 },
            servers: 2,
            writers: 2,
            seed,
            lies,
            within: Duration::from_secs(60),
        };
        cutpoints::run(&plan(&directory, 1, true), &campaign, say).unwrap_or_else(|text| panic!("{text}"))
    });
    assert!(honest.bad == 0 && honest.points > 0, "seed {seed}: {}", honest.findings.join("\n"));
    assert!(lying.bad > 0, "a disk that lies about syncs must be seen to lose data: {lying:?}");
}
