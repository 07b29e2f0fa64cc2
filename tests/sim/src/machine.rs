//! A machine: its disk, its clock, and the process on it while it lives.

use crate::disk::SimDisk;
use crate::fault::Fault;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::router::Router;
use crate::strand::{Fuse, Moment, Out, Seat, Stop, Strand, directory, log_identity, replica_of};
use crate::world::BEGINNING_US;
use shards::ids::{GroupId, Millis, NodeNumber, ReplicaId};
use shards::meta::Meta;
use shards::shard::image::Founding;
use shards::storage::replica_dir;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// A place that was damaged, and how it was before.
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: usize,
    /// What stood there.
    pub good: Vec<u8>,
    /// What stands there since.
    pub bad: Vec<u8>,
    /// It is what a later version would have written, and must be refused as such.
    pub is_later_format: bool,
}

/// See the module's head.
pub struct Machine {
    /// Its disk.
    pub disk: SimDisk,
    /// Counts the processes: what belongs to an earlier one is dropped.
    pub life: u32,
    /// Whether a process runs.
    pub is_up: bool,
    /// Whether it takes requests.
    pub is_listening: bool,
    /// Its replicas by shard, while it is up; a node of a cluster with a meta state has not one of each.
    pub strands: Vec<Option<Strand>>,
    /// Which node of the cluster it is, if it is one.
    pub node: Option<NodeNumber>,
    /// Drawn for each new disk.
    pub incarnation: u128,
    /// The meta state that it knows, and the one that the cluster was founded with.
    pub meta: Option<Arc<Meta>>,
    /// See `meta`.
    pub first_meta: Option<Arc<Meta>>,
    /// Whose files stand in each shard's directory.
    pub seats: Vec<Option<ReplicaId>>,
    /// The durable files of each shard's directory when it began to be emptied, until another replica is there.
    pub leavings: Vec<BTreeSet<String>>,
    /// Its router.
    pub router: Router,
    /// When it dies between two effects.
    pub fuse: Fuse,
    /// It does nothing before this time.
    pub paused_until_us: u64,
    /// Damage that a good copy can mend.
    pub damage: Vec<Damage>,
    /// Who leads each group, as far as this machine knows: the term and the machine.
    pub views: Vec<(u64, Option<usize>)>,
    /// How far its wall clock is off, in ms.
    pub clock_off_ms: i64,
    number: usize,
    shards: u32,
    started_us: u64,
    started_wall_ms: u64,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(plan: &Plan, number: usize, disk: SimDisk, rng: &mut Rng) -> Self {
        for number in 0..plan.shards {
            crate::strand::make_directory(&disk, GroupId(number));
        }
        let skewed = plan.faults.has(Fault::ClockSkew);
        let clock_off_ms = if skewed { rng.below(20_000_000) as i64 - 10_000_000 } else { 0 };
        Self {
            disk,
            life: 0,
            is_up: false,
            is_listening: false,
            strands: (0..plan.shards).map(|_| None).collect(),
            node: Some(NodeNumber(number as u16 + 1)),
            incarnation: number as u128 + 1,
            meta: None,
            first_meta: None,
            seats: vec![Some(replica_of(number)); plan.shards as usize],
            leavings: vec![BTreeSet::new(); plan.shards as usize],
            router: Router::new(plan.shards, number, 0),
            fuse: Fuse::default(),
            paused_until_us: 0,
            damage: Vec::new(),
            views: vec![(0, None); plan.shards as usize],
            clock_off_ms,
            number,
            shards: plan.shards,
            started_us: BEGINNING_US,
            started_wall_ms: 0,
        }
    }

    /// Whether the process of this life runs.
    pub fn is_alive(&self, life: u32) -> bool {
        self.is_up && self.life == life
    }

    /// The time as its process sees it.
    pub fn moment(&self, now_us: u64) -> Moment {
        let elapsed_us = now_us - self.started_us;
        Moment { wall: Millis(self.started_wall_ms + elapsed_us / 1000), elapsed_ns: elapsed_us * 1000 }
    }

    /// The running process follows its machine's clock, forwards only.
    pub fn follow_wall(&mut self, now_us: u64) {
        let wall_ms = self.wall_ms(now_us);
        let shown = self.moment(now_us).wall.0;
        self.started_wall_ms += wall_ms.saturating_sub(shown);
    }

    fn wall_ms(&self, now_us: u64) -> u64 {
        ((now_us / 1000) as i64 + self.clock_off_ms) as u64
    }

    /// Starts a process: every shard comes back from the disk.
    pub fn boot(
        &mut self,
        plan: &Plan,
        clock: &Rc<Cell<u64>>,
        is_healed: bool,
    ) -> Result<Vec<(usize, Out)>, Stop> {
        assert!(!self.is_up, "a machine runs one process");
        self.life += 1;
        self.fuse = Fuse::default();
        self.disk.power_on();
        self.router = Router::new(plan.shards, self.number, self.life);
        self.views = vec![(0, (plan.nodes == 1).then_some(0)); plan.shards as usize];
        // A node of a cluster takes requests at once, whoever leads.
        self.is_listening = plan.nodes > 1;
        self.started_us = clock.get();
        self.started_wall_ms = self.wall_ms(clock.get());
        let now = self.moment(clock.get());
        // It counts as up from here on, so that a death on the way is one.
        self.is_up = true;
        let mut outs = Vec::new();
        for number in 0..self.shards {
            if let Some(out) = self.seat_replica(plan, number, clock, now, is_healed)? {
                outs.push((number as usize, out));
            }
        }
        if self.damage.iter().any(|damage| damage.is_later_format && self.is_in_place(damage)) {
            return Err(Stop::Corrupt(
                "files of a later version are read as if they were of this one".to_owned(),
            ));
        }
        Ok(outs)
    }

    /// Starts this node's replica of a group, if it has one or is to have one: from its files, or as a new one.
    pub fn seat_replica(
        &mut self,
        plan: &Plan,
        number: u32,
        clock: &Rc<Cell<u64>>,
        now: Moment,
        is_healed: bool,
    ) -> Result<Option<Out>, Stop> {
        let (group, place) = (GroupId(number), number as usize);
        let held = if plan.generation >= 4 { self.found(group)? } else { self.held(group) };
        let Some(seat) = self.appointed(plan, group).or(held) else { return Ok(None) };
        assert!(self.strands[place].is_none(), "a group has one replica on a node");
        if plan.generation >= 4 && self.meta.is_some() {
            self.prepare(group, seat.replica)?;
            self.seats[place] = Some(seat.replica);
        } else if self.seats[place] != Some(seat.replica) {
            self.disk.in_peace(|disk| {
                disk.erase(&crate::strand::directory(group).to_string_lossy());
                crate::strand::make_directory(disk, group);
            });
            self.seats[place] = Some(seat.replica);
        }
        let (mut strand, out) = Strand::recover(plan, &seat, group, &self.disk, clock, now, is_healed)?;
        if let Some(meta) = &self.meta {
            strand.events.push(shards::event::Event::Meta(Arc::clone(meta)));
        }
        self.strands[place] = Some(strand);
        Ok(Some(out))
    }

    /// The replica that this node should have of a group.
    pub fn appointed(&self, plan: &Plan, group: GroupId) -> Option<Seat> {
        let Some(meta) = &self.meta else {
            let founding = if plan.nodes == 1 {
                Founding::Alone
            } else {
                let voters = (0..plan.nodes as usize).map(replica_of).collect();
                Founding::Voter { replica: replica_of(self.number), voters }
            };
            let is_preferred = self.number == group.0 as usize % plan.nodes as usize;
            return Some(Seat { replica: replica_of(self.number), founding, is_preferred });
        };
        let replica = meta.replica_on(group, self.node?)?;
        let is_preferred = meta.groups[group.0 as usize].preferred == replica;
        Some(Seat { replica, founding: self.founding(group, replica)?, is_preferred })
    }

    /// The replica whose files stand here: one that is placed nowhere any more and may still have its vote.
    fn held(&self, group: GroupId) -> Option<Seat> {
        let replica = self.seats[group.0 as usize]?;
        Some(Seat { replica, founding: self.founding(group, replica)?, is_preferred: false })
    }

    /// As [`Machine::held`], by what the directory says, as the server judges it.
    fn found(&self, group: GroupId) -> Result<Option<Seat>, Stop> {
        let Some(node) = self.node.filter(|_| self.meta.is_some()) else { return Ok(None) };
        let found = replica_dir::held(&self.disk, &directory(group));
        let Some(number) = found.map_err(|error| self.refused(&error))? else { return Ok(None) };
        let replica = ReplicaId::new(number, node);
        let Some(founding) = self.founding(group, replica) else { return Ok(None) };
        if number == 0 && !matches!(founding, Founding::Voter { .. }) {
            return Ok(None);
        }
        let (files, leavings) = (self.files_of(group), &self.leavings[group.0 as usize]);
        let gone: Vec<&String> = leavings.difference(&files).collect();
        // A directory that was made ready for another replica, up to the last sync, has that one and not what was there.
        let named =
            leavings.iter().find_map(|path| path.rsplit('/').next()?.strip_prefix(replica_dir::REPLICA));
        if !gone.is_empty() && named.unwrap_or("0") == format!("{number:x}") {
            return Err(Stop::Corrupt(format!("replica {} came back without {gone:?}", replica.0)));
        }
        Ok(Some(Seat { replica, founding, is_preferred: false }))
    }

    /// Makes a directory ready for a replica, as the server does.
    fn prepare(&mut self, group: GroupId, replica: ReplicaId) -> Result<(), Stop> {
        let prepared = replica_dir::prepare(&self.disk, &directory(group), replica, log_identity(group));
        prepared.map_err(|error| self.refused(&error))?;
        self.leavings[group.0 as usize].clear();
        Ok(())
    }

    /// Removes the files of a replica that is no more, as the server does.
    pub fn empty(&mut self, group: GroupId) -> Result<(), Stop> {
        self.leavings[group.0 as usize] = self.files_of(group);
        replica_dir::empty(&self.disk, &directory(group)).map_err(|error| self.refused(&error))
    }

    fn files_of(&self, group: GroupId) -> BTreeSet<String> {
        self.disk.settled_names(&directory(group).to_string_lossy())
    }

    fn refused(&self, error: &std::io::Error) -> Stop {
        if self.disk.is_cut() { Stop::Cut } else { Stop::Named(format!("a shard's directory: {error}")) }
    }

    fn founding(&self, group: GroupId, replica: ReplicaId) -> Option<Founding> {
        let first = &self.first_meta.as_ref()?.groups[group.0 as usize].replicas;
        Some(if first.contains(&replica) {
            Founding::Voter { replica, voters: first.clone() }
        } else {
            Founding::Empty { replica }
        })
    }

    /// The replicas that run.
    pub fn running(&self) -> impl Iterator<Item = &Strand> {
        self.strands.iter().flatten()
    }

    /// The disk is gone, and with it everything that the machine was.
    pub fn lose_disk(&mut self, incarnation: u128) {
        assert!(!self.is_up, "a disk is lost while nobody runs on it");
        self.disk.in_peace(|disk| disk.erase_all());
        self.damage.clear();
        self.seats.fill(None);
        self.leavings.fill(BTreeSet::new());
        (self.node, self.meta, self.incarnation) = (None, None, incarnation);
    }

    fn is_in_place(&self, damage: &Damage) -> bool {
        let Damage { file, offset, bad, .. } = damage;
        let is_there =
            self.disk.durable_files(crate::strand::parent(file)).iter().any(|(name, _)| name == file);
        is_there && self.disk.peek(file, *offset, bad.len()) == *bad
    }

    /// The newest snapshot of a group on its disk.
    pub fn newest_snapshot(&self, group: GroupId) -> Option<(u64, Vec<u8>)> {
        let place = crate::strand::directory(group);
        let files = self.disk.durable_files(&place.to_string_lossy());
        let indexed = files.into_iter().filter_map(|(name, bytes)| {
            let index = name.rsplit_once("snap-")?.1.parse::<u64>().ok()?;
            Some((index, name, bytes))
        });
        let (index, name, bytes) = indexed.max()?;
        Some((index, self.disk.peek(&name, 0, bytes)))
    }

    /// Puts good copies back where damage stands; false when there was none.
    pub fn repair(&mut self) -> bool {
        let mut mended = false;
        // The newest first: it may stand on an older one, which is what it keeps as the good copy.
        for damage in std::mem::take(&mut self.damage).into_iter().rev() {
            if self.is_in_place(&damage) {
                self.disk.damage(&damage.file, damage.offset, &damage.good);
                mended = true;
            }
        }
        mended
    }

    /// Its faults end; the operator gives its logs the room that they want.
    pub fn heal(&mut self, lies: bool) {
        self.disk.set_faults(|faults| *faults = crate::disk::DiskFaults { lies, ..Default::default() });
        self.fuse = Fuse::default();
        self.paused_until_us = 0;
        self.running().for_each(Strand::lift_quota);
    }

    /// Whether it serves and nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.node.is_none()
            || (self.is_up
                && self.is_listening
                && self.router.outstanding() == 0
                && self.router.gathers() == 0
                && self.running().all(Strand::is_quiet))
    }

    /// What it is at, for complaints.
    pub fn describe(&self) -> String {
        let shards: Vec<String> = (0..self.strands.len())
            .filter_map(|shard| Some((shard, self.strands[shard].as_ref()?)))
            .map(|(shard, strand)| {
                let (quiet, ready, group) = (strand.is_quiet(), strand.shard.is_ready(), strand.shard.group());
                let (conf, role) = (group.conf_state(), group.role_name());
                format!(
                    "{shard}: {} {role} of term {}, applied {} of {}, quiet {quiet}, ready {ready}, voters {:?} before {:?} learners {:?}, {:?}, {}, {}",
                    group.replica().0,
                    group.term(),
                    strand.shard.applied_index(),
                    group.last_index(),
                    conf.voters,
                    conf.voters_outgoing,
                    conf.learners,
                    strand.shard.burden(),
                    strand.describe_log(),
                    strand.shard.describe_transactions()
                )
            })
            .collect();
        format!(
            "node {:?} up {} listening {} outstanding {} gathers {} views {:?} shards {shards:#?}",
            self.node,
            self.is_up,
            self.is_listening,
            self.router.outstanding(),
            self.router.gathers(),
            self.views
        )
    }
}
