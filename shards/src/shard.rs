//! One shard: the gate between what happens and what is to be done.
//!
//! [`Shard::step`] takes events and the time and leaves effects; [`Shard::work`] goes on with what is unfinished, within a
//! budget of work units. Requests are admitted, gather into the next log entry, are proposed, become durable, are
//! applied and answered, always in that order. Reads are answered from applied state, after every write of their key
//! that was admitted before them. The shard never reads a clock, never blocks and never answers a write before its floor
//! allows it.

mod admit;
mod advance;
mod apply;
mod budget;
mod cluster;
mod expiry;
mod held;
pub mod image;
mod members;
mod outbox;
mod pending;
mod propose;
mod reads;
mod reserve;
mod restore;
mod role;
mod searches;
mod slices;
mod snapshots;
pub mod survive;
mod transact;

use crate::catalog::Catalog;
use crate::command::answer::Failure;
use crate::command::record::Malformed;
use crate::consensus::group::{Collected, ConsensusError, Group, GroupConfig, Restored};
use crate::consensus::storage::SnapshotOffer;
use crate::effect::Effects;
use crate::event::{DiskFigures, Event, TurnFigures};
use crate::ids::{GroupId, Millis, Sequence, Slot};
use crate::index::set::{IndexSet, IndexSettings};
use crate::meta::Meta;
use crate::state::{State, TableLimits};
use crate::txn::coordinator::Coordinator;
use crate::txn::locks::Locks;
use crate::txn::state::TxnState;
use admit::Parked;
pub use admit::command_bytes_max;
pub use budget::Burden;
use outbox::{Gated, Waiter};
use pending::Pending;
use propose::{Gathered, Proposed};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// When a write is acknowledged; one rule for a whole shard, set by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// When durable.
    Always,
    /// When applied; the log is synced behind.
    Interval,
    /// When applied; there is no log.
    Off,
}

/// What an operator can set for a shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The cluster that the data belong to.
    pub cluster: u128,
    /// Which shard of this node.
    pub shard: u32,
    /// Which group this is.
    pub group: GroupId,
    /// The slots of the group.
    pub slots: Vec<Slot>,
    /// When writes are acknowledged.
    pub floor: Floor,
    /// Log batches on their way to the disk at once.
    pub commits_in_flight_max: usize,
    /// While a batch is on its way, an entry waits for at least so many commands.
    pub gather_commands_min: usize,
    /// An entry is closed at this size in bytes.
    pub entry_bytes_max: usize,
    /// An entry is closed at this number of commands; at most 1,024.
    pub entry_commands_max: usize,
    /// Writes that store are refused while the state holds as many bytes; 0 is no bound.
    pub memory_bytes_max: u64,
    /// Bytes of commands that may be admitted and not yet applied; from half of it on requests are left with their router,
    /// beyond it writes are refused.
    pub outstanding_bytes_max: usize,
    /// Keys that one page of SCAN or one slice of DELETE_PREFIX takes at most.
    pub page_keys_max: usize,
    /// Bytes of values in one page at most.
    pub page_bytes_max: usize,
    /// Records looked at for one page at most.
    pub page_examined_max: usize,
    /// A snapshot is due when so many bytes went into the log since the last one.
    pub snapshot_log_bytes: u64,
    /// A snapshot is due after so many ms if anything changed; 0 is never.
    pub snapshot_every_ms: u64,
    /// Bytes a second that a snapshot writes at most; 0 is no limit.
    pub snapshot_bytes_per_s_max: u64,
    /// Bytes of one slice of a snapshot, about.
    pub snapshot_slice_bytes: usize,
    /// Writes wait while a snapshot holds so many bytes of what changed before its turn came.
    pub snapshot_buffer_bytes_max: usize,
    /// How large the tables of the state grow before they are split.
    pub tables: TableLimits,
    /// What the operator says about indexes.
    pub indexes: IndexSettings,
    /// Units of one slice of indexing, about postings.
    pub index_units: u32,
    /// Bytes of applied entries that a leader keeps in memory for followers that do not have them yet; a follower further
    /// behind gets a snapshot.
    pub retained_bytes_max: usize,
    /// The longest payload of a log batch, in bytes: a command that fits none is refused.
    pub log_payload_bytes_max: usize,
    /// This replica should lead: it stands for election as soon as it starts.
    pub is_preferred: bool,
}

impl ShardConfig {
    /// The defaults for a group.
    pub fn new(group: GroupId) -> Self {
        Self {
            cluster: 0,
            shard: group.0,
            group,
            slots: Vec::new(),
            floor: Floor::Always,
            commits_in_flight_max: 4,
            gather_commands_min: 64,
            entry_bytes_max: 1 << 20,
            entry_commands_max: 1024,
            memory_bytes_max: 0,
            outstanding_bytes_max: 128 << 20,
            page_keys_max: 1000,
            page_bytes_max: 1 << 20,
            page_examined_max: 4000,
            snapshot_log_bytes: 256 << 20,
            snapshot_every_ms: 0,
            snapshot_bytes_per_s_max: 0,
            snapshot_slice_bytes: snapshots::SLICE_BYTES,
            snapshot_buffer_bytes_max: 256 << 20,
            tables: TableLimits::default(),
            indexes: IndexSettings::default(),
            index_units: searches::INDEX_UNITS,
            retained_bytes_max: 128 << 20,
            log_payload_bytes_max: 16 << 20,
            is_preferred: false,
        }
    }
}

/// What a shard starts from.
#[derive(Default)]
pub struct ShardImage {
    /// Consensus: hard state, snapshot index and the entries after it.
    pub group: Restored,
    /// Keys and sessions as of the snapshot.
    pub state: State,
    /// Transactions as of the snapshot.
    pub txns: TxnState,
    /// Highest entry stamp in the snapshot.
    pub stamp: Millis,
    /// Epoch for new versions.
    pub epoch: u32,
    /// The last index in each batch of the log, with the batch.
    pub history: VecDeque<(u64, Sequence)>,
    /// Bytes of the log's batches.
    pub log_bytes: u64,
    /// The index catalogue as of the snapshot.
    pub catalog: Catalog,
    /// The cluster's meta state as of the snapshot (group 0).
    pub meta: Meta,
    /// The indexes as of the snapshot.
    pub indexes: IndexSet,
    /// What followers may be told of the snapshot, if there is one that tells the members.
    pub offer: Option<SnapshotOffer>,
}

/// The shard cannot go on: the process stops by this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardFault {
    /// A committed entry cannot be read.
    Entry(Malformed),
    /// raft-rs refused its input.
    Consensus(ConsensusError),
}

impl From<Malformed> for ShardFault {
    fn from(malformed: Malformed) -> Self {
        Self::Entry(malformed)
    }
}

impl From<ConsensusError> for ShardFault {
    fn from(error: ConsensusError) -> Self {
        Self::Consensus(error)
    }
}

impl std::fmt::Display for ShardFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(malformed) => write!(f, "a committed entry cannot be read: {}", malformed.0),
            Self::Consensus(error) => write!(f, "consensus failed: {}", error.0),
        }
    }
}

/// Plain counters, read by whoever reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounters {
    /// Requests admitted.
    pub requests: u64,
    /// Entries proposed.
    pub entries: u64,
    /// Commands applied.
    pub commands: u64,
    /// Records removed because their time to live was over.
    pub expired: u64,
    /// Transactions opened here.
    pub transactions: u64,
    /// Bytes handed to the log.
    pub log_bytes: u64,
    /// Times that the snapshot of another replica took the place of the state.
    pub restores: u64,
    /// Snapshots of other replicas that could not be had.
    pub fetches_failed: u64,
}

/// One shard of the key space.
pub struct Shard {
    config: ShardConfig,
    group: Group,
    state: State,
    txns: TxnState,
    epoch: u32,
    now: Millis,
    /// Highest stamp given to an entry.
    stamp: Millis,
    /// Index of the last applied entry.
    applied: u64,
    /// Index of the entry that is being applied, or of the last one that was.
    applying: u64,
    /// Term of that entry.
    applied_term: u64,
    /// Highest stamp of an applied entry.
    stamp_applied: Millis,
    /// Whether this leader has applied everything from before its term.
    is_ready: bool,
    has_log_room: bool,

    slices: slices::Slices,
    budget: budget::Budget,
    gathered: Gathered,
    /// Entries that are full and wait for their turn.
    sealed: VecDeque<Gathered>,
    proposed: VecDeque<Proposed>,
    pending: Pending,
    /// Which batch holds the entries up to an index, for batches not yet durable.
    batches: VecDeque<(u64, Sequence)>,
    durable: Sequence,
    /// The last index in each batch that the log still holds.
    history: VecDeque<(u64, Sequence)>,

    /// Reads that wait for the commands before a position of an entry, in the order of both.
    reads: VecDeque<(u64, u16, Parked)>,
    /// Scans that wait for an entry and for the locks held when they came.
    scans: VecDeque<(u64, u64, Parked)>,
    /// Replies and messages that wait for a sync.
    gated: VecDeque<(Sequence, Gated)>,

    locks: Locks<admit::LockWaiter>,
    waiting_prepares: BTreeSet<(crate::txn::TxnId, u32)>,
    /// PREPAREs that this leader has proposed, with their try.
    preparing: BTreeMap<crate::txn::TxnId, u32>,
    /// FINISHes that this leader has proposed, with the try to be told to the coordinator.
    finishing: BTreeMap<crate::txn::TxnId, u32>,
    /// When coordinators were last asked about old intents.
    asked_at: Millis,
    /// When this replica, as a leader, first met each intent, by its own clock.
    intents_met: BTreeMap<crate::txn::TxnId, Millis>,
    coordinator: Coordinator,
    txn_waiters: BTreeMap<crate::ids::Version, Vec<Waiter>>,
    /// What waiters of certain commands go on with, by [`Waiter::ticket`].
    tickets: BTreeMap<u32, outbox::Ticket>,
    next_ticket: u32,
    expiry: expiry::Expiry,
    snapshots: snapshots::Snapshots,
    searches: searches::Searches,
    cluster: cluster::Cluster,
    held: held::Held,
    standing: role::Standing,
    fetching: Option<restore::Fetching>,

    counters: ShardCounters,
    disk: DiskFigures,
    turns: TurnFigures,
    last_tick: Millis,
    collected: Collected,
}

/// Time between ticks: deadlines, resends, raft's clock.
const TICK_MS: u64 = 50;

/// Units that one step applies at most, well below a millisecond; the rest is left to [`Shard::work`].
const STEP_UNITS: u32 = 1500;

/// What a batch takes beside its entries, and an entry beside its commands.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// What is left after [`Shard::work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: the shard may sleep until something happens or the next tick.
    Nothing,
    /// More work is ready now.
    More,
}

impl Shard {
    /// A shard as recovery found it. It leads nothing before [`Shard::start`].
    pub fn restore(config: ShardConfig, image: ShardImage, now: Millis) -> Result<Self, ShardFault> {
        assert!((1..=crate::command::entry::COMMANDS_MAX).contains(&config.entry_commands_max));
        assert!(config.commits_in_flight_max > 0, "a log without a batch in flight never moves");
        let ShardImage {
            group,
            mut state,
            txns,
            stamp,
            epoch,
            history,
            log_bytes,
            catalog,
            meta,
            indexes,
            offer,
        } = image;
        state.keys.set_limits(config.tables);
        let (applied, applied_term) = (group.snapshot_index, group.snapshot_term);
        let durable = group.sequence;
        let wait_for_sync = config.floor == Floor::Always;
        let retained_bytes_max = config.retained_bytes_max;
        let batch_bytes_max = config.log_payload_bytes_max - BATCH_OVERHEAD_BYTES;
        let group_config =
            GroupConfig { group: config.group, wait_for_sync, retained_bytes_max, batch_bytes_max };
        let mut group = Group::restore(group, group_config)?;
        if let Some(offer) = offer {
            group.offer_snapshot(offer);
        }
        let searches = searches::Searches::restored(catalog, indexes, config.indexes, now, group.replica());
        let mut locks = Locks::default();
        for (txn, intent) in txns.intents() {
            locks.hold(txn, &intent.items);
        }
        let coordinator = Coordinator::new(config.group);
        Ok(Self {
            config,
            group,
            state,
            txns,
            epoch,
            now,
            stamp,
            applied,
            applying: applied,
            applied_term,
            stamp_applied: stamp,
            is_ready: false,
            has_log_room: true,
            slices: slices::Slices::default(),
            budget: budget::Budget::default(),
            gathered: Gathered::default(),
            sealed: VecDeque::new(),
            proposed: VecDeque::new(),
            pending: Pending::default(),
            batches: VecDeque::new(),
            durable,
            history,
            reads: VecDeque::new(),
            scans: VecDeque::new(),
            gated: VecDeque::new(),
            locks,
            waiting_prepares: BTreeSet::new(),
            preparing: BTreeMap::new(),
            finishing: BTreeMap::new(),
            asked_at: now,
            intents_met: BTreeMap::new(),
            coordinator,
            txn_waiters: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            expiry: expiry::Expiry::default(),
            cluster: cluster::Cluster::restored(meta),
            searches,
            held: held::Held::default(),
            standing: role::Standing::default(),
            fetching: None,
            snapshots: snapshots::Snapshots::restored(applied, log_bytes, now),
            counters: ShardCounters::default(),
            disk: DiskFigures::default(),
            turns: TurnFigures::default(),
            last_tick: now,
            collected: Collected::default(),
        })
    }

    /// Starts the first election, if this replica is alone or should lead; others wait for a leader's word.
    pub fn start(&mut self, now: Millis, effects: &mut Effects) -> Result<(), ShardFault> {
        self.now = self.now.max(now);
        if self.group.is_alone() || self.config.is_preferred {
            self.group.campaign()?;
        }
        self.advance(STEP_UNITS, effects)
    }

    /// Takes what happened, in order, and leaves what is to be done. Drains `events`.
    pub fn step(
        &mut self,
        now: Millis,
        events: &mut Vec<Event>,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        self.now = self.now.max(now);
        for event in events.drain(..) {
            match event {
                Event::Requests { router, batch } => self.admit_batch(router, batch, effects),
                Event::Message(message) => self.hear(message, effects),
                Event::Durable(sequence) => self.became_durable(sequence, effects),
                Event::LogRoom(has_room) => self.has_log_room = has_room,
                Event::Disk(figures) => self.disk = figures,
                Event::Turns(figures) => self.turns = figures,
                Event::SnapshotWritten { bytes } => self.snapshot_written(bytes),
                Event::SnapshotFinished(result) => self.snapshot_finished(result, effects),
                Event::Raft(message) => self.hear_raft(*message, effects)?,
                Event::Unreachable(replica) => self.group.unreachable(replica),
                Event::SnapshotFetched { index, image } => self.snapshot_fetched(index, image, effects)?,
                Event::Leader(group) => self.hear_of_leader(group, effects),
                Event::Term(term) => self.group.outdated_by(term),
                Event::Meta(meta) => self.hear_meta(meta),
                Event::Resign(until) => self.resign(until),
            }
        }
        if self.now.0 - self.last_tick.0 >= TICK_MS {
            self.last_tick = self.now;
            self.tick(effects)?;
        }
        self.advance(STEP_UNITS, effects)
    }

    /// Goes on with unfinished work for about `units` records or postings.
    pub fn work(&mut self, now: Millis, units: usize, effects: &mut Effects) -> Result<Left, ShardFault> {
        self.now = self.now.max(now);
        self.expire_some(units);
        let searching = self.search_some(effects);
        let more = self.snapshot_some(effects) || searching;
        self.advance(u32::try_from(units).unwrap_or(u32::MAX), effects)?;
        let more = more || self.is_applying();
        Ok(if more { Left::More } else { Left::Nothing })
    }

    /// Whether [`Shard::work`] would find something to do now.
    pub fn has_work(&self) -> bool {
        self.is_applying() || self.has_search_work()
    }

    /// Whether nothing is under way: every request is answered, every transaction finished.
    pub fn is_quiet(&self) -> bool {
        self.proposed.is_empty()
            && self.gathered.is_empty()
            && self.sealed.is_empty()
            && self.gated.is_empty()
            && self.reads.is_empty()
            && self.scans.is_empty()
            && self.held.is_empty()
            && self.coordinator.is_empty()
            && self.locks.waiting() == 0
            && self.group.in_flight() == 0
            && !self.is_applying()
            && !self.snapshots.is_running()
    }

    /// Whether the shard serves: it leads and has applied everything from before its term.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.applied
    }

    /// When [`Shard::step`] wants to be called again if nothing happens before.
    pub fn next_tick(&self) -> Millis {
        Millis(self.last_tick.0 + TICK_MS)
    }

    /// The shard's counters.
    pub fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    /// The state, to look at.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Term, vote and commit index, and the configuration, for the start of a log segment.
    pub fn group(&self) -> &Group {
        &self.group
    }

    fn became_durable(&mut self, sequence: Sequence, effects: &mut Effects) {
        assert!(sequence >= self.durable, "durability never goes back");
        self.durable = sequence;
        self.group.durable(sequence);
        while self.batches.front().is_some_and(|(_, batch)| *batch <= sequence) {
            self.batches.pop_front();
        }
        self.open_gate(effects);
        self.cut_what_is_durable(effects);
    }

    fn tick(&mut self, effects: &mut Effects) -> Result<(), ShardFault> {
        self.tick_resignation();
        self.group.tick();
        self.follow_role(effects);
        self.forget_if_dismissed(effects);
        self.restore_fetched(effects)?;
        self.tick_reads(effects);
        self.give_up_late(effects);
        self.give_up_searches(effects);
        self.measure_indexes();
        if self.is_ready {
            let mut actions = Vec::new();
            self.coordinator.tick(self.now, &mut actions);
            self.perform(actions, effects);
            self.ask_about_old_intents(effects);
            self.cluster_tick(effects);
        }
        Ok(())
    }

    fn refuse(&self, router: u8, head: &crate::batch::RequestHead, failure: Failure, effects: &mut Effects) {
        outbox::reply_failure(effects, router, head.token, failure);
    }
}

#[cfg(test)]
mod tests;
