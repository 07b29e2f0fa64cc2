//! One recorded log, cut at thousands of points: what would be on the disk if the power had gone there, booted and compared with
//! what had been acknowledged by then.
//!
//! The trace is recorded once, from the first byte of a blank disk, while writers work; an acknowledgement is dated by the
//! disk's position when it was read, so that every operation it rests on lies before that. Points are drawn from a seed and
//! visited in order, by several servers at once, each with a disk of its own.

use crate::cluster::{Cluster, Plan};
use crate::disk::cut::after_cut;
use crate::disk::image::{Image, Operation};
use crate::powercut::{Position, Writer};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

/// How often the server is killed while its trace is recorded.
const LIVES: u64 = 4;

/// What is recorded and how often it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// Operations of the disk that the trace has at least.
    pub operations: u64,
    /// Points.
    pub points: u64,
    /// Servers at once.
    pub servers: usize,
    /// Writers during the recording.
    pub writers: usize,
    /// The choices.
    pub seed: u64,
    /// Whether the disk lies about syncs while it is recorded: then something must be lost.
    pub lies: bool,
    /// Longest that all of it may take; points that were not visited by then are left out.
    pub within: Duration,
}

/// What a campaign did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Operations of the trace, and syncs among them.
    pub operations: u64,
    /// Syncs among them.
    pub syncs: u64,
    /// Acknowledged writes in the trace.
    pub acked: u64,
    /// Points that were visited.
    pub points: u64,
    /// Keys compared.
    pub keys: u64,
    /// Points at which something was lost or wrong, the first of them in words.
    pub bad: u64,
    /// What was wrong there.
    pub findings: Vec<String>,
}

/// A trace and the ledgers of those who wrote while it was recorded.
struct Recording {
    trace: Vec<Operation>,
    writers: Vec<Writer>,
}

/// Runs a campaign with servers made after this plan, which is for one node with a disk.
///
/// # Errors
/// When the harness itself fails; findings are in the result.
pub fn run(plan: &Plan, campaign: &Campaign, mut say: impl FnMut(&str)) -> Result<Done, String> {
    let begun = Instant::now();
    let recording = record(plan, campaign)?;
    let syncs =
        recording.trace.iter().filter(|operation| matches!(operation, Operation::Sync { .. })).count();
    let acked = recording.writers.iter().map(|writer| writer.ledger.acked).sum();
    let operations = recording.trace.len() as u64;
    say(&format!("recorded {operations} operations, {syncs} of them syncs, {acked} acknowledged writes"));
    if acked == 0 {
        return Err("nothing was acknowledged, so the trace proves nothing".to_owned());
    }
    let mut rng = Rng::new(campaign.seed);
    let mut points: Vec<(u64, u64)> =
        (0..campaign.points).map(|_| (rng.below(operations + 1), rng.word())).collect();
    points.sort_unstable();
    let left = campaign.within.saturating_sub(begun.elapsed());
    let shares = std::thread::scope(|scope| {
        let start = |server: usize| {
            let mine: Vec<_> = points.iter().copied().skip(server).step_by(campaign.servers).collect();
            let recording = &recording;
            scope.spawn(move || visit_all(plan, server, recording, &mine, left))
        };
        let all: Vec<_> = (0..campaign.servers).map(start).collect();
        all.into_iter()
            .map(|share| share.join().map_err(|_| "a server's thread panicked".to_owned()))
            .collect::<Vec<_>>()
    });
    let mut done = Done { operations, syncs: syncs as u64, acked, ..Done::default() };
    for share in shares {
        let share = share??;
        done.points += share.points;
        done.keys += share.keys;
        done.bad += share.bad;
        done.findings.extend(share.findings);
    }
    Ok(done)
}

/// A plan of the same kind in a folder and on a port of its own.
fn plan_of(plan: &Plan, name: &str, number: u16) -> Result<Plan, String> {
    let folder = plan.folder.join(name);
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(Plan { folder, first_port: plan.first_port + 2 * number, ..plan.clone() })
}

fn record(plan: &Plan, campaign: &Campaign) -> Result<Recording, String> {
    let plan = plan_of(plan, "record", 0)?;
    let mut cluster = Cluster::prepare(&plan)?;
    let disk = &cluster.disks[0];
    disk.record();
    disk.faults().lies.store(campaign.lies, Ordering::SeqCst);
    let clock = disk.clock();
    let position: Position = Arc::new(move || clock.position());
    cluster.start_all()?;
    let mut writers: Vec<Writer> =
        (0..campaign.writers).map(|number| Writer::new(number, campaign.seed + number as u64)).collect();
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = cluster.addresses()[0];
    // The process dies a few times on the way, so that what recovery writes is in the trace too.
    for life in 1..=LIVES {
        std::thread::scope(|scope| {
            for writer in &mut writers {
                let (stop, acked, position) = (&stop, &acked, &position);
                scope.spawn(move || writer.write(address, stop, acked, position));
            }
            let begun = Instant::now();
            let wanted = campaign.operations * life / LIVES;
            while position() < wanted && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            cluster.kill(0);
        });
        if life < LIVES {
            cluster.start_all()?;
        }
    }
    stop.store(true, Ordering::Release);
    let disk = &cluster.disks[0];
    disk.wait_until_closed().map_err(|error| error.to_string())?;
    Ok(Recording { trace: disk.recorded(), writers })
}

fn visit_all(
    plan: &Plan,
    server: usize,
    recording: &Recording,
    points: &[(u64, u64)],
    within: Duration,
) -> Result<Done, String> {
    let begun = Instant::now();
    let number = u16::try_from(server).expect("servers are few") + 1;
    let plan = plan_of(plan, &format!("server{server}"), number)?;
    let mut cluster = Cluster::prepare(&plan)?;
    // Each server compares with a copy of the ledgers: a check is theirs to make.
    let mut writers: Vec<Writer> = recording.writers.iter().map(Writer::copy).collect();
    let (mut image, mut played) = (Image::default(), 0);
    let mut done = Done::default();
    let used =
        recording.trace.iter().enumerate().filter_map(|(place, operation)| Some((operation.file()?, place)));
    let last_use: BTreeMap<u64, usize> = used.collect();
    for (point, seed) in points {
        if begun.elapsed() > within {
            break;
        }
        for operation in &recording.trace[played..*point as usize] {
            image.apply(operation);
        }
        played = *point as usize;
        image.forget(|inode| last_use.get(&inode).is_none_or(|last| *last < played));
        let left = after_cut(&image, &mut Rng::new(*seed));
        visit(&mut cluster, left, &mut writers, *point, *seed, &mut done)?;
    }
    Ok(done)
}

fn visit(
    cluster: &mut Cluster,
    left: Image,
    writers: &mut [Writer],
    point: u64,
    seed: u64,
    done: &mut Done,
) -> Result<(), String> {
    cluster.disks[0].replace(left).map_err(|error| error.to_string())?;
    empty(&cluster.setups[0].stderr);
    let mut texts = Vec::new();
    match cluster.start(0).and_then(|()| cluster.until_answers(0)) {
        Err(text) => texts.push(text),
        Ok(()) => {
            let address = cluster.addresses()[0];
            for writer in writers.iter_mut() {
                match writer.check(address, point, false) {
                    Ok(found) => {
                        done.keys += found.keys;
                        if !found.is_good() {
                            texts.push(found.text());
                        }
                    }
                    Err(text) => texts.push(text),
                }
            }
        }
    }
    cluster.kill(0);
    done.points += 1;
    if !texts.is_empty() {
        done.bad += 1;
        if done.findings.len() < 5 {
            done.findings.push(format!("cut at {point} (seed {seed}):\n{}", texts.join("\n")));
        }
    }
    Ok(())
}

/// Thousands of starts would make a long log.
fn empty(log: &Path) {
    if log.exists() {
        drop(std::fs::File::create(log));
    }
}
