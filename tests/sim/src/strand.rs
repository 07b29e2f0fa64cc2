//! One shard on its simulated machine: recovery, and the driver's loop on virtual time.
//!
//! Mirrors `src/boot/recover.rs` and `src/driver.rs` step by step and decides nothing of its own; what it drives is the
//! code that ships. Between any two effects the process may die.

use crate::disk::{DeviceHandle, SimDevice, SimDisk, SimSupply, SnapshotJobs};
use crate::fault::Fault;
use crate::plan::Plan;
use crate::world::CLUSTER;
use raft::prelude::Message as RaftMessage;
use shards::batch::{ReplyBatch, RequestBatch};
use shards::consensus::group::Append;
use shards::effect::{Effects, Role, SnapshotFetch};
use shards::event::{DiskFigures, Event};
use shards::ids::{GroupId, Millis, NodeNumber, ReplicaId, Sequence, even_slots};
use shards::index::set::IndexSettings;
use shards::log::manifest::ManifestError;
use shards::log::payload::PayloadBuffer;
use shards::log::{LogIdentity, LogShape, ReplayError};
use shards::meta::Meta;
use shards::shard::image::{Founding, encode_append, encode_start};
use shards::shard::{Floor, Left, Shard, ShardConfig};
use shards::state::SessionLimits;
use shards::storage::disk::{Disk as _, Open};
use shards::storage::manifest::{MANIFEST_FILE, create_manifest};
use shards::storage::recovery::RecoveryError;
use shards::storage::shard::{ShardPlace, recover_shard};
use shards::storage::wal::{
    Append as LogAppend, BUFFERS_MIN, Full, Reaped, SyncPolicy, Wal, WalFailure, WalOptions,
};
use shards::txn::message::GroupMessage;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// As the server's driver has it.
const TICK_MS: u64 = 20;
/// As the server's driver has it: a replica that is no more wanted and hears of no leader goes after this time.
const DISMISSED_AFTER_MS: u64 = 30_000;

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// By name: durability is unknown, or something cannot be read.
    Named(String),
    /// What was acknowledged is damaged; the process refuses to go on.
    Corrupt(String),
    /// What is there was written by a later version.
    LaterFormat(String),
    /// The power went.
    Cut,
    /// It was killed between two effects.
    Killed,
}

/// Which replica of a group a node has, and how that began.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The replica.
    pub replica: ReplicaId,
    /// How it began.
    pub founding: Founding,
    /// It should lead.
    pub is_preferred: bool,
}

/// Kills the process after so many more effects.
#[derive(Debug, Default)]
pub struct Fuse(pub Option<u64>);

impl Fuse {
    fn burn(&mut self) -> Result<(), Stop> {
        match &mut self.0 {
            None => Ok(()),
            Some(0) => Err(Stop::Killed),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

/// What leaves a shard in one turn, in order.
#[derive(Default)]
pub struct Out {
    /// Replies to the router of this number.
    pub replies: Vec<(u8, ReplyBatch)>,
    /// Messages to other groups.
    pub messages: Vec<GroupMessage>,
    /// Messages to other replicas of the group.
    pub raft: Vec<RaftMessage>,
    /// Who leads, when that changed.
    pub role: Option<Role>,
    /// A snapshot that is wanted from another machine.
    pub fetch: Option<SnapshotFetch>,
    /// The meta state, when it changed.
    pub meta: Option<Arc<Meta>>,
}

/// See the module's head.
pub struct Strand {
    /// The engine.
    pub shard: Shard,
    /// What was handed to the log: sequence and last index of each batch not yet reported durable.
    pub handed: VecDeque<(Sequence, u64)>,
    /// Term and content hash of the log's entries.
    pub entries: BTreeMap<u64, (u64, u64)>,
    /// Entries that its log held when it started: all of them may wait to be applied at once.
    pub recovered: usize,
    /// The newest term of its group that its machine knows of.
    pub known_term: u64,
    /// Whether it was told of a newer term than it leads in.
    is_outdated: bool,
    /// The last index that was reported durable.
    pub durable_index: u64,
    /// Term and vote that were reported durable.
    pub durable_vote: (u64, u64),
    /// Those in batches not yet reported durable, when they differ from the ones before.
    handed_votes: VecDeque<(Sequence, (u64, u64))>,
    /// What has come and was not yet stepped.
    pub events: Vec<Event>,
    /// Batches of requests that the shard has not taken.
    pub inbox: VecDeque<(u8, Box<RequestBatch>)>,
    /// When a turn is scheduled.
    pub wake_at: Option<u64>,
    /// Snapshot files.
    pub files: SnapshotJobs,
    group: GroupId,
    wal: Wal<SimDevice, SimSupply>,
    device: DeviceHandle,
    supply: SimSupply,
    waiting: VecDeque<Append>,
    log_has_room: bool,
    effects: Effects,
    payload: PayloadBuffer,
    next_tick: Millis,
    has_more_work: bool,
    work_units: usize,
    work_calls: usize,
    /// Since when nobody wants this replica and no leader is heard.
    unwanted_since: Option<Millis>,
}

/// Time as a process sees it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Its wall clock, which never goes back while it lives.
    pub wall: Millis,
    /// Nanoseconds since it started.
    pub elapsed_ns: u64,
}

pub(crate) fn log_identity(group: GroupId) -> LogIdentity {
    LogIdentity { cluster: CLUSTER, key: 0x6b65_7900 + u64::from(group.0), shard: group.0 }
}

/// Prepares the directory of a shard on a new disk, as the first start of a server does.
pub fn make_directory(disk: &SimDisk, group: GroupId) {
    let made = create_manifest(disk, &directory(group), log_identity(group), 0);
    made.expect("nothing goes wrong before the beginning");
}

/// The directory of a shard.
pub fn directory(group: GroupId) -> PathBuf {
    PathBuf::from(format!("/data/shard-{:04}", group.0))
}

/// The replica of a machine: each holds one of every group.
pub fn replica_of(machine: usize) -> ReplicaId {
    ReplicaId::new(0, NodeNumber(machine as u16 + 1))
}

fn config(plan: &Plan, group: GroupId, is_preferred: bool) -> ShardConfig {
    ShardConfig {
        is_preferred,
        retained_bytes_max: plan.retained_bytes as usize,
        log_payload_bytes_max: LogShape::new(log_identity(group), plan.segment_bytes).payload_bytes_max(),
        cluster: CLUSTER,
        slots: even_slots(group, plan.shards),
        floor: if plan.interval_ms > 0 { Floor::Interval } else { Floor::Always },
        commits_in_flight_max: plan.commits_in_flight as usize,
        gather_commands_min: plan.gather_commands as usize,
        entry_commands_max: plan.entry_commands as usize,
        entry_bytes_max: (plan.segment_bytes / 8) as usize,
        page_keys_max: 7,
        snapshot_log_bytes: plan.snapshot_log_bytes,
        snapshot_every_ms: plan.snapshot_every_ms,
        outstanding_bytes_max: plan.outstanding_bytes,
        index_units: plan.index_units,
        tables: plan.tables(),
        snapshot_slice_bytes: if plan.small_tables {
            1
        } else {
            ShardConfig::new(group).snapshot_slice_bytes
        },
        ..ShardConfig::new(group)
    }
}

impl Strand {
    /// Brings a shard back from its disk.
    pub fn recover(
        plan: &Plan,
        seat: &Seat,
        group: GroupId,
        disk: &SimDisk,
        clock: &Rc<Cell<u64>>,
        now: Moment,
        is_healed: bool,
    ) -> Result<(Self, Out), Stop> {
        let recovered = Self::recover_from(plan, seat, group, disk, clock, now, is_healed);
        // Whatever a machine without power said meanwhile was never said.
        if disk.is_cut() { Err(Stop::Cut) } else { recovered }
    }

    fn recover_from(
        plan: &Plan,
        seat: &Seat,
        group: GroupId,
        disk: &SimDisk,
        clock: &Rc<Cell<u64>>,
        now: Moment,
        is_healed: bool,
    ) -> Result<(Self, Out), Stop> {
        let path = directory(group);
        let place = ShardPlace {
            directory: &path,
            shape: LogShape::new(log_identity(group), plan.segment_bytes),
            group,
            sessions: SessionLimits::default(),
            indexes: IndexSettings::default(),
            founding: &seat.founding,
        };
        let recovered = recover_shard(disk, &place).map_err(|error| recovery_failed(&error))?;
        let (log, image) = (&recovered.log, recovered.image);
        let last = log.recovered.last_sequence;
        let durable_index =
            image.group.entries.last().map_or(image.group.snapshot_index, |entry| entry.index);
        let durable_vote = (image.group.hard_state.term, image.group.hard_state.vote);
        let entries = image.group.entries.iter();
        let entries: BTreeMap<u64, (u64, u64)> =
            entries.map(|entry| (entry.index, (entry.term, xxh3_64(&entry.data)))).collect();
        let shard = Shard::restore(config(plan, group, seat.is_preferred), image, now.wall)
            .map_err(|fault| Stop::Corrupt(fault.to_string()))?;
        let options = WalOptions {
            buffers: (plan.buffers as usize).max(BUFFERS_MIN),
            buffer_bytes: 16 << 10,
            sync: match plan.interval_ms {
                0 => SyncPolicy::Always,
                ms => SyncPolicy::Interval { every_ns: ms * 1_000_000 },
            },
            ..WalOptions::default()
        };
        let device = SimDevice::new(disk.clone(), Rc::clone(clock), &options, last);
        let supply = SimSupply::new(
            disk.clone(),
            Rc::clone(clock),
            path.clone(),
            plan.segment_bytes,
            plan.segments_max.filter(|_| !is_healed),
        );
        let handle = device.handle();
        let named = |error: std::io::Error| Stop::Named(format!("the log's ring: {error}"));
        let manifest = disk.open(&path.join(MANIFEST_FILE), Open::WRITE_DIRECT).map_err(named)?;
        let wal = Wal::new(log, options, device, supply.clone(), manifest).map_err(named)?;
        let mut strand = Self {
            shard,
            handed: VecDeque::new(),
            recovered: entries.len(),
            known_term: 0,
            is_outdated: false,
            entries,
            durable_index,
            durable_vote,
            handed_votes: VecDeque::new(),
            events: Vec::new(),
            inbox: VecDeque::new(),
            wake_at: None,
            files: SnapshotJobs::new(disk.clone(), Rc::clone(clock), path),
            group,
            wal,
            device: handle,
            supply,
            waiting: VecDeque::new(),
            log_has_room: true,
            effects: Effects::default(),
            payload: PayloadBuffer::new(),
            next_tick: Millis(0),
            has_more_work: true,
            work_units: plan.work_units,
            work_calls: plan.work_calls,
            unwanted_since: None,
        };
        let started = strand.shard.start(now.wall, &mut strand.effects);
        started.map_err(|fault| Stop::Corrupt(fault.to_string()))?;
        let mut out = Out::default();
        strand.perform(now, &mut Fuse::default(), &mut out)?;
        Ok((strand, out))
    }

    /// One turn: whatever has happened, stepped and performed, and a slice of background work. True when more is to be
    /// done at once.
    pub fn turn(
        &mut self,
        now: Moment,
        disk: &SimDisk,
        fuse: &mut Fuse,
        out: &mut Out,
    ) -> Result<bool, Stop> {
        let turned = self.turn_through(now, fuse, out);
        if disk.is_cut() { Err(Stop::Cut) } else { turned }
    }

    fn turn_through(&mut self, now: Moment, fuse: &mut Fuse, out: &mut Out) -> Result<bool, Stop> {
        self.device.advance();
        self.supply.advance();
        while self.shard.has_room() {
            let Some((router, batch)) = self.inbox.pop_front() else { break };
            self.events.push(Event::Requests { router, batch });
        }
        self.files.collect(&mut self.events);
        let reaped = self.wal.reap();
        self.reaped(reaped)?;
        let is_tick = now.wall >= self.next_tick;
        let mut busy = !self.events.is_empty();
        if busy || is_tick {
            if is_tick {
                self.next_tick = Millis(now.wall.0 + TICK_MS);
                self.report_disk();
                let group = self.shard.group();
                if group.is_leader() && (self.known_term > group.term() || self.is_outdated) {
                    self.is_outdated = self.known_term > group.term();
                    self.events.push(Event::Term(self.known_term));
                }
            }
            let stepped = self.shard.step(now.wall, &mut self.events, &mut self.effects);
            stepped.map_err(|fault| Stop::Corrupt(fault.to_string()))?;
            self.perform(now, fuse, out)?;
        }
        self.has_more_work |= self.shard.has_work() || self.shard.is_applying();
        if self.has_more_work || is_tick {
            for _ in 0..self.work_calls {
                let worked = self.shard.work(now.wall, self.work_units, &mut self.effects);
                let left = worked.map_err(|fault| Stop::Corrupt(fault.to_string()))?;
                self.has_more_work = left == Left::More;
                self.perform(now, fuse, out)?;
                if !self.has_more_work {
                    break;
                }
            }
            busy |= self.has_more_work;
        }
        self.flush(now)?;
        Ok(busy)
    }

    /// When the shard wants a turn although nothing comes.
    pub fn due(&self, now: Moment, now_us: u64) -> u64 {
        let tick = now_us + self.next_tick.0.saturating_sub(now.wall.0).max(1) * 1000;
        // What is overdue after a turn waits for the device, whose completions are events.
        let wal = self.wal.due_ns().filter(|due| *due > now.elapsed_ns);
        let wal = wal.map(|due| now_us + (due - now.elapsed_ns) / 1000 + 1);
        [Some(tick), wal, self.device.due(), self.supply.due(), self.files.due()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(tick)
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.shard.is_quiet() && self.waiting.is_empty() && self.events.is_empty() && self.inbox.is_empty()
    }

    /// The newest batch that would survive a power cut now.
    pub fn truly_durable(&self) -> Sequence {
        self.device.truly_durable()
    }

    /// The newest batch that the log has reported durable.
    pub fn reported_durable(&self) -> Sequence {
        self.wal.durable_upto()
    }

    /// How its log is, for complaints.
    pub fn describe_log(&self) -> String {
        let (durable, handed) = (self.wal.durable_upto().0, self.waiting.len());
        format!(
            "log durable up to batch {durable}, {handed} batches wait, room {}, due {:?}, device due {:?}, {:?}",
            self.log_has_room,
            self.wal.due_ns(),
            self.device.due(),
            self.wal.counters()
        )
    }

    /// Its log may have as many segments as it wants from now on.
    pub fn lift_quota(&self) {
        self.supply.lift_quota();
    }

    /// Whether the replica is no more wanted and the group goes on without it, as the server's driver judges it;
    /// `appointed` is the replica that this node should have.
    pub fn may_go(&mut self, now: Moment, appointed: Option<ReplicaId>) -> bool {
        if appointed == Some(self.shard.group().replica()) {
            self.unwanted_since = None;
            return false;
        }
        if self.shard.hears_a_leader() {
            self.unwanted_since = None;
        }
        let since = *self.unwanted_since.get_or_insert(now.wall);
        let is_forgotten = self.shard.may_be_forgotten() && now.wall.0 >= since.0 + DISMISSED_AFTER_MS;
        (appointed.is_some() || self.shard.is_dismissed() || is_forgotten)
            && self.is_quiet()
            && self.files.is_idle()
            && self.supply.is_idle()
    }

    /// Seals and closes the log, as at the end in good order.
    pub fn close(self) -> Result<(), Stop> {
        self.wal.close().map_err(log_failed)
    }

    fn reaped(&mut self, reaped: Result<Reaped, WalFailure>) -> Result<(), Stop> {
        let reaped = reaped.map_err(log_failed)?;
        if let Some(upto) = reaped.durable_upto {
            self.events.push(Event::Durable(upto));
            while self.handed.front().is_some_and(|(sequence, _)| *sequence <= upto) {
                let (_, index) = self.handed.pop_front().expect("just seen");
                self.durable_index = index;
            }
            while self.handed_votes.front().is_some_and(|(sequence, _)| *sequence <= upto) {
                let (_, vote) = self.handed_votes.pop_front().expect("just seen");
                self.durable_vote = vote;
            }
        }
        if reaped.room && !self.waiting.is_empty() {
            self.write_waiting()?;
        }
        let has_room = !reaped.disk_full;
        if has_room != self.log_has_room {
            self.log_has_room = has_room;
            self.events.push(Event::LogRoom(has_room));
        }
        Ok(())
    }

    /// Performs every effect in the driver's order. Each is a place at which the process may die.
    fn perform(&mut self, now: Moment, fuse: &mut Fuse, out: &mut Out) -> Result<(), Stop> {
        if !self.effects.appends.is_empty() {
            fuse.burn()?;
            for append in self.effects.appends.drain(..) {
                let vote = (append.hard_state.term, append.hard_state.vote);
                if self.handed_votes.back().map_or(self.durable_vote, |(_, vote)| *vote) != vote {
                    self.handed_votes.push_back((append.sequence, vote));
                }
                if let Some((index, _)) = append.reset {
                    // A snapshot stands for everything up to here; the log begins anew behind it.
                    self.entries.clear();
                    self.handed.push_back((append.sequence, index));
                }
                if let (Some(first), Some(last)) = (append.entries.first(), append.entries.last()) {
                    // What is replaced was never committed, and what replaces it is not durable yet.
                    self.durable_index = self.durable_index.min(first.index - 1);
                    self.entries.split_off(&first.index);
                    self.handed.push_back((append.sequence, last.index));
                }
                for entry in &append.entries {
                    self.entries.insert(entry.index, (entry.term, xxh3_64(&entry.data)));
                }
                self.waiting.push_back(append);
            }
            self.write_waiting()?;
        }
        if std::mem::take(&mut self.effects.sync_now) {
            self.wal.sync_now();
        }
        if let Some(upto) = self.effects.cut.take() {
            fuse.burn()?;
            self.wal.cut(upto);
        }
        self.flush(now)?;
        for (number, replies) in self.effects.replies.iter_mut().enumerate() {
            if !replies.heads.is_empty() {
                fuse.burn()?;
                out.replies.push((number as u8, std::mem::take(replies)));
            }
        }
        self.effects.returned.clear();
        for message in self.effects.messages.drain(..) {
            fuse.burn()?;
            out.messages.push(message);
        }
        for message in self.effects.raft.drain(..) {
            fuse.burn()?;
            out.raft.push(message);
        }
        out.role = self.effects.role.take().or(out.role);
        out.fetch = self.effects.fetch.take().or(out.fetch);
        out.meta = self.effects.meta.take().or(out.meta.take());
        for effect in self.effects.snapshot.drain(..) {
            fuse.burn()?;
            self.files.perform(effect);
        }
        Ok(())
    }

    fn flush(&mut self, now: Moment) -> Result<(), Stop> {
        self.wal.flush(now.elapsed_ns).map_err(log_failed)
    }

    fn write_waiting(&mut self) -> Result<(), Stop> {
        while let Some(batch) = self.waiting.front() {
            encode_append(batch, &mut self.payload);
            let reserved = batch.entries.is_empty();
            let append =
                LogAppend { sequence: batch.sequence, group: self.group, payload: &self.payload, reserved };
            let shard = &self.shard;
            match self.wal.append(&append, |out| encode_start(shard, out)) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(Full::Buffers | Full::Preparing | Full::Failed) => return Ok(()),
                Err(Full::DiskFull) => {
                    if self.log_has_room {
                        self.log_has_room = false;
                        self.events.push(Event::LogRoom(false));
                    }
                    return Ok(());
                }
                Err(Full::TooLarge) => panic!("limits keep an entry below half a segment"),
            }
        }
        Ok(())
    }

    fn report_disk(&mut self) {
        let counters = self.wal.counters();
        self.events.push(Event::Disk(DiskFigures {
            batches: counters.batches,
            writes: counters.writes,
            syncs: counters.syncs,
            bytes: counters.bytes,
            segments: counters.segments,
            live_bytes: self.wal.live_bytes(),
            ..DiskFigures::default()
        }));
    }
}

/// The class of fault that a stop of this kind is counted under.
pub fn class_of(stop: &Stop) -> Option<Fault> {
    matches!(stop, Stop::Killed).then_some(Fault::KillBetweenEffects)
}

fn log_failed(failure: WalFailure) -> Stop {
    Stop::Named(failure.to_string())
}

fn recovery_failed(error: &RecoveryError) -> Stop {
    let text = error.to_string();
    match error {
        RecoveryError::Io(..) | RecoveryError::Replay(ReplayError::Read(..), _) => Stop::Named(text),
        RecoveryError::NewerSnapshot(..)
        | RecoveryError::Replay(ReplayError::NewerFormat(..), _)
        | RecoveryError::Manifest(_, ManifestError::NewerFormat(_)) => Stop::LaterFormat(text),
        _ => Stop::Corrupt(text),
    }
}

/// The directory of a file.
pub fn parent(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(parent, _)| parent)
}
