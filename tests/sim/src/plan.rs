//! What one seed stands for: sizes, which faults, how much work. Drawn once, printed, and made smaller when a run fails.

use crate::fault::{Fault, FaultSet};
use crate::rng::Rng;
use shards::ids::GroupId;
use shards::shard::ShardConfig;
use shards::state::TableLimits;

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed of everything that happens.
    pub seed: u64,
    /// Machines.
    pub nodes: u32,
    /// Shards of each.
    pub shards: u32,
    /// Clients.
    pub clients: u32,
    /// Requests that clients make before all is healed.
    pub requests: u32,
    /// The classes of faults that are on.
    pub faults: FaultSet,
    /// Mean time between faults, in ms.
    pub fault_every_ms: u64,
    /// About how long clients take over their requests, in virtual microseconds.
    pub lasts_us: u64,
    /// Which workloads run, a bit each by place in `work::ALL`.
    pub work: u32,
    /// Keys that each workload uses.
    pub keys: u32,
    /// Mean pause of a client between bursts of requests, in microseconds.
    pub pause_us: u64,
    /// Size of log segments.
    pub segment_bytes: u64,
    /// Most segment files of a shard.
    pub segments_max: Option<u64>,
    /// Bytes of applied entries that a leader keeps for followers.
    pub retained_bytes: u64,
    /// Buffers of a log.
    pub buffers: u32,
    /// Log bytes after which a snapshot is due.
    pub snapshot_log_bytes: u64,
    /// Time after which a snapshot is due; 0 is never.
    pub snapshot_every_ms: u64,
    /// See the engine's setting of that name.
    pub commits_in_flight: u32,
    /// See `gather_commands_min` of the engine.
    pub gather_commands: u32,
    /// See `entry_commands_max` of the engine.
    pub entry_commands: u32,
    /// Syncs do nothing: a canary, never part of a plan that is drawn.
    pub lying_disk: bool,
    /// What it was drawn by: kept seeds have the plans of their time.
    pub generation: u8,
    /// The cluster has a meta state: its planner places replicas, nodes come and go.
    pub has_meta: bool,
    /// Machines beside `nodes` that are no nodes at first.
    pub spares: u32,
    /// Copies of each group.
    pub copies: u32,
    /// The log is synced every so often, and writes are acknowledged before: one machine, and only whole batches are
    /// promised. 0 is never.
    pub interval_ms: u64,
    /// How long a turn with more to do takes, in microseconds.
    pub turn_us: u64,
    /// Units of one call of background work.
    pub work_units: usize,
    /// Calls of background work in one turn.
    pub work_calls: usize,
    /// Bytes of commands that a shard may have admitted and not applied.
    pub outstanding_bytes: usize,
    /// Units of one slice of indexing.
    pub index_units: u32,
    /// Documents are written many at once and searched for at once, so that a backlog stands.
    pub bursts: bool,
    /// Keys get short times to live and are written anew about when these end.
    pub renewals: bool,
    /// Tables of the state are split at a few records, and a snapshot writes one of them at a time.
    pub small_tables: bool,
    /// What each write and sync of a log takes beyond what a quick disk does, in microseconds.
    pub slow_us: u64,
}

/// The generation of plans that is drawn now.
pub const GENERATION: u8 = 4;

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        Self::draw_as(seed, GENERATION)
    }

    /// The plan of a seed as a generation had it.
    pub fn draw_as(seed: u64, generation: u8) -> Self {
        let mut plan = Self::draw_first(seed);
        if generation >= 2 {
            plan.draw_second();
        }
        if generation >= 3 {
            plan.draw_third();
        }
        if generation >= 4 {
            plan.draw_fourth();
        }
        plan
    }

    /// What came with indexing that falls behind and commits that take long.
    fn draw_fourth(&mut self) {
        self.generation = 4;
        let mut rng = Rng::new(self.seed ^ 0x666f_7572_7468);
        self.bursts = rng.chance(500);
        self.renewals = rng.chance(500);
        if rng.chance(400) {
            // A turn indexes a document or a piece of one, and the next turn lets requests wait.
            self.index_units = *rng.pick(&[1, 1, 64]);
            self.work_calls = 1;
            self.turn_us = *rng.pick(&[300, 1_000, 3_000]);
        }
        self.small_tables = rng.chance(400);
        if self.small_tables {
            self.work_calls = *rng.pick(&[1, self.work_calls]);
            self.turn_us = *rng.pick(&[self.turn_us, 300, 1_000]);
        }
        if rng.chance(800) && self.has_meta && self.faults != FaultSet::default() {
            self.faults = self.faults.with(Fault::CutInsideEmptying);
        }
        let is_slow = rng.chance(350);
        let slow_us = *rng.pick(&[10_000, 40_000, 150_000]);
        if is_slow && self.faults != FaultSet::default() {
            // Not so slow that clients cannot ask what they are to ask while this lasts.
            let share = self.lasts_us * u64::from(self.clients) / u64::from(self.requests);
            let most = if self.nodes > 1 { 40_000 } else { 150_000 };
            self.slow_us = slow_us.min(share).min(most);
        }
    }

    /// What came with the turns of disks and clocks that were missing at first.
    fn draw_third(&mut self) {
        self.generation = 3;
        let mut rng = Rng::new(self.seed ^ 0x0074_6869_7264);
        self.work_calls = *rng.pick(&[8, 8, 1]);
        self.outstanding_bytes = *rng.pick(&[128 << 20, 128 << 20, 256 << 10, 40 << 10]);
        let is_calm = self.faults == FaultSet::default();
        if is_calm {
            return;
        }
        for (fault, per_mille) in [(Fault::Echo, 500), (Fault::LoneLeader, 400)] {
            if rng.chance(per_mille) && (self.nodes > 1 || !fault.needs_cluster()) {
                self.faults = self.faults.with(fault);
            }
        }
        if self.interval_ms > 0 && rng.chance(700) {
            // What one shard has told another and not yet synced is lost by a power cut in that moment only.
            let cuts = [Fault::PowerCut, Fault::PowerCutAll, Fault::CutInsideFiles, Fault::DiskStall];
            self.faults = cuts.into_iter().fold(FaultSet::default(), FaultSet::with);
            self.fault_every_ms = self.lasts_us / 1000 / 40;
        }
    }

    /// What came with meta states.
    fn draw_second(&mut self) {
        let seed = self.seed;
        let plan = self;
        plan.generation = 2;
        let mut rng = Rng::new(seed ^ 0x6d65_7461);
        let is_calm = plan.faults == FaultSet::default();
        for fault in [Fault::LaterFormat, Fault::ReadError] {
            if rng.chance(300) && !is_calm {
                plan.faults = plan.faults.with(fault);
            }
        }
        if plan.nodes > 1 && rng.chance(600) && !is_calm {
            plan.faults = plan.faults.with(Fault::VoterDies);
        }
        plan.turn_us = *rng.pick(&[5, 5, 60, 300]);
        plan.work_units = *rng.pick(&[256, 256, 16, 2]);
        let is_alone = plan.nodes == 1;
        if is_alone && rng.chance(150) {
            plan.interval_ms = *rng.pick(&[5, 50, 400]);
            plan.work = crate::work::FORGIVING;
            plan.shards = plan.shards.max(2);
        }
        plan.has_meta = !is_alone && rng.chance(550);
        if plan.has_meta {
            plan.spares = rng.below(2) as u32;
            plan.copies = 3;
            for fault in [Fault::Membership, Fault::LostDisk] {
                if rng.chance(650) && !is_calm {
                    plan.faults = plan.faults.with(fault);
                }
            }
        }
    }

    fn draw_first(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut faults = FaultSet::default();
        // One plan in ten has no faults: then nothing at all may be refused or slow.
        let is_calm = rng.chance(100);
        for fault in Fault::ALL.into_iter().take(Fault::OLD + 1) {
            let is_on = rng.chance(400);
            if is_on && !is_calm && !fault.needs_cluster() {
                faults = faults.with(fault);
            }
        }
        let nodes = *rng.pick(&[1, 1, 3, 3, 5]);
        for fault in Fault::ALL.into_iter().take(Fault::OLD).filter(|fault| fault.needs_cluster()) {
            if nodes > 1 && !is_calm && rng.chance(400) {
                faults = faults.with(fault);
            }
        }
        let is_full = faults.has(Fault::DiskFull);
        let clients = rng.between(2, 12);
        let requests = rng.between(150, 600);
        // Requests come in bursts; the pauses between bursts spread them over the whole time.
        let lasts_us = *rng.pick(&[1_000_000, 5_000_000, 20_000_000]);
        let pause_us = lasts_us * clients / requests * 1000 / crate::world::PAUSES_PER_MILLE;
        Self {
            seed,
            nodes,
            shards: *rng.pick(&[1, 2, 2, 3, 4]),
            clients: clients as u32,
            requests: requests as u32,
            faults,
            fault_every_ms: lasts_us / 1000 / rng.between(4, 30),
            lasts_us,
            work: 1 + rng.below((1 << crate::work::COUNT) - 1) as u32,
            keys: rng.between(1, 12) as u32,
            pause_us,
            segment_bytes: *rng.pick(&[256 << 10, 256 << 10, 512 << 10]),
            segments_max: (is_full && rng.chance(500)).then(|| rng.between(4, 8)),
            retained_bytes: *rng.pick(&[0, 64 << 10, 1 << 20]),
            buffers: rng.between(2, 6) as u32,
            snapshot_log_bytes: *rng.pick(&[64 << 10, 256 << 10, 1 << 20]),
            snapshot_every_ms: *rng.pick(&[0, 0, 500, 3000]),
            commits_in_flight: rng.between(1, 6) as u32,
            gather_commands: *rng.pick(&[1, 4, 64]),
            entry_commands: *rng.pick(&[3, 64, 1024]),
            lying_disk: false,
            generation: 1,
            has_meta: false,
            spares: 0,
            copies: nodes,
            interval_ms: 0,
            turn_us: 5,
            work_units: 256,
            work_calls: 8,
            outstanding_bytes: 128 << 20,
            index_units: ShardConfig::new(GroupId(0)).index_units,
            bursts: false,
            renewals: false,
            small_tables: false,
            slow_us: 0,
        }
    }

    /// When tables of the state are split.
    pub fn tables(&self) -> TableLimits {
        const SMALL: TableLimits = TableLimits {
            records_max: 4,
            inline_bytes_max: 2000,
            large_bytes_max: 20_000,
            large_records_min: 2,
        };
        if self.small_tables { SMALL } else { TableLimits::default() }
    }

    /// With so many machines; the copies of a group are never more than these.
    #[must_use]
    pub fn with_nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self.copies = if self.has_meta { self.copies.min(nodes) } else { nodes };
        self.has_meta &= nodes > 1;
        if nodes > 1 {
            self.interval_ms = 0;
        }
        self
    }

    /// With or without a meta state.
    #[must_use]
    pub fn with_meta(mut self, has_meta: bool) -> Self {
        self.has_meta = has_meta && self.nodes > 1;
        self.copies = if self.has_meta { self.nodes.min(3) } else { self.nodes };
        if !self.has_meta {
            self.spares = 0;
        }
        self
    }

    /// The flags that bring this plan back, beside its seed.
    pub fn flags(&self) -> String {
        let drawn = Self::draw_as(self.seed, self.generation);
        let mut flags = format!("SEED={}", self.seed);
        if self.generation < GENERATION {
            flags += &format!(" OLD={}", self.generation);
        }
        if self.has_meta != drawn.has_meta {
            flags += &format!(" META={}", u8::from(self.has_meta));
        }
        if self.faults != drawn.faults {
            let names: Vec<String> = self.faults.iter().map(|fault| fault.to_string()).collect();
            flags += &format!(" FAULTS={}", if names.is_empty() { "none".into() } else { names.join(",") });
        }
        for (name, mine, theirs) in [
            ("REQUESTS", self.requests, drawn.requests),
            ("CLIENTS", self.clients, drawn.clients),
            ("WORK", self.work, drawn.work),
            ("SHARDS", self.shards, drawn.shards),
            ("NODES", self.nodes, drawn.nodes),
        ] {
            if mine != theirs {
                flags += &format!(" {name}={mine}");
            }
        }
        flags
    }
}
