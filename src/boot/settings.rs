//! From the operator's knobs to the settings of each room: the one place where units are turned.

use crate::driver::DriverSettings;
use crate::front::FrontSettings;
use crate::router::RouterSettings;
use crate::service::ServiceSettings;
use crate::tuning::{RouterMode, Tuning, WalSync};
use shards::ids::{GroupId, even_slots};
use shards::index::set::IndexSettings;
use shards::shard::{Floor, ShardConfig};
use shards::state::SessionLimits;
use shards::storage::wal::{SyncPolicy, WalOptions};
use strand_wire::limits::Limits;

/// Longest sleep of a router, for its own deadlines.
pub(super) const ROUTER_SLEEP_MS: u64 = 50;
/// Time between two looks of a shard at deadlines and times to live.
const SHARD_TICK_MS: u64 = 20;

/// The settings of a shard's loop.
pub(super) fn driver(tuning: &Tuning) -> DriverSettings {
    let shard = &tuning.shard;
    let interval_ms = match tuning.wal.sync {
        WalSync::Interval { ms } => u64::from(ms),
        WalSync::Always | WalSync::Off => SHARD_TICK_MS,
    };
    DriverSettings {
        work_slice_us: u64::from(shard.work_slice_us),
        spin_us: u64::from(shard.spin_before_park_us),
        inbox_batches_max: shard.inbox_batches_max as usize,
        tick_ms: SHARD_TICK_MS.min(interval_ms),
    }
}

/// The settings of the engine for one shard of so many.
pub(super) fn shard(
    tuning: &Tuning,
    indexes: IndexSettings,
    cluster: u128,
    number: u32,
    shards: u32,
) -> ShardConfig {
    let group = GroupId(number);
    let (wal, snapshot) = (&tuning.wal, &tuning.snapshot);
    ShardConfig {
        cluster,
        shard: number,
        slots: even_slots(group, shards),
        floor: match wal.sync {
            WalSync::Always => Floor::Always,
            WalSync::Interval { .. } => Floor::Interval,
            WalSync::Off => Floor::Off,
        },
        commits_in_flight_max: wal.commits_in_flight_max as usize,
        gather_commands_min: wal.gather_commands_min as usize,
        entry_bytes_max: wal.entry_bytes_max as usize,
        entry_commands_max: wal.entry_commands_max as usize,
        memory_bytes_max: (u64::from(tuning.memory.max_mib) << 20) / u64::from(shards),
        outstanding_bytes_max: (tuning.memory.outstanding_mib as usize) << 20,
        snapshot_log_bytes: u64::from(snapshot.every_mib) << 20,
        snapshot_every_ms: u64::from(snapshot.every_s) * 1000,
        snapshot_bytes_per_s_max: u64::from(snapshot.mib_per_s_max) << 20,
        snapshot_buffer_bytes_max: (snapshot.buffer_mib_max as usize) << 20,
        retained_bytes_max: (tuning.cluster.catch_up_mib as usize) << 20,
        indexes,
        ..ShardConfig::new(group)
    }
}

/// Bounds of the table of remembered replies.
pub(super) fn sessions(tuning: &Tuning) -> SessionLimits {
    let memory = &tuning.memory;
    SessionLimits {
        clients_max: memory.sessions_max as usize,
        replies_per_client_max: memory.session_replies_max as usize,
        bytes_max: (memory.session_mib_max as usize) << 20,
        reply_age_ms: u64::from(memory.session_s) * 1000,
        idle_ms: u64::from(memory.session_idle_s) * 1000,
    }
}

/// The settings of a log.
pub(super) fn wal(tuning: &Tuning) -> WalOptions {
    let wal = &tuning.wal;
    WalOptions {
        sync: match wal.sync {
            WalSync::Interval { ms } => SyncPolicy::Interval { every_ns: u64::from(ms) * 1_000_000 },
            WalSync::Always | WalSync::Off => SyncPolicy::Always,
        },
        buffers: wal.commits_in_flight_max as usize,
        buffer_bytes: (wal.buffer_kib as usize) << 10,
        spare_segments: wal.spare_segments as usize,
        ..WalOptions::default()
    }
}

/// The settings of one of a server's services, which are so many as it has routers, or shards in inline mode.
pub(super) fn service(tuning: &Tuning, shards: u32) -> ServiceSettings {
    let router = &tuning.router;
    let (services, spin_us) = match router.mode {
        RouterMode::Thread => (router.threads, router.spin_us),
        RouterMode::Inline => (shards, tuning.shard.spin_before_park_us),
    };
    ServiceSettings {
        front: front(tuning, services),
        router: self::router(tuning),
        spin_us: u64::from(spin_us),
        drain_ms: u64::from(tuning.timeouts.drain_s) * 1000,
    }
}

/// The settings of a client front, one of so many.
fn front(tuning: &Tuning, fronts: u32) -> FrontSettings {
    let (router, limits, timeouts) = (&tuning.router, &tuning.limits, &tuning.timeouts);
    let line_bytes_max = limits.line_bytes_max as usize;
    let unfinished_bytes_max = (limits.unfinished_input_mib_max as usize) << 20;
    FrontSettings {
        connections_max: limits.connections_max as usize,
        in_flight_max: limits.in_flight_max as usize,
        line_bytes_max,
        // The budget is the server's; each front gets its part, and never less than one line.
        unfinished_bytes_max: (unfinished_bytes_max / fronts as usize).max(line_bytes_max),
        unsent_bytes_max: limits.output_bytes_max as usize,
        lines_per_turn_max: router.lines_per_turn_max as usize,
        write_stall_ms_max: u64::from(timeouts.slow_reader_s) * 1000,
        line_idle_ms_max: u64::from(timeouts.unfinished_line_s) * 1000,
        line_bytes_per_s_min: u64::from(timeouts.min_bytes_per_s),
        idle_ms_max: u64::from(timeouts.idle_s) * 1000,
        buffers: router.recv_buffers as u16,
        buffer_bytes: router.recv_buffer_bytes as usize,
        ring_entries: router.ring_entries,
        ..FrontSettings::default()
    }
}

/// The settings of a router.
fn router(tuning: &Tuning) -> RouterSettings {
    RouterSettings { limits: limits(tuning), debug_faults: tuning.debug.faults, ..RouterSettings::default() }
}

/// What clients may ask for.
fn limits(tuning: &Tuning) -> Limits {
    let limits = &tuning.limits;
    Limits {
        line_bytes_max: limits.line_bytes_max as usize,
        key_bytes_max: limits.key_bytes_max as usize,
        value_bytes_max: limits.value_bytes_max as usize,
        depth_max: limits.depth_max,
        batch_items_max: limits.batch_items_max as usize,
        in_flight_max: limits.in_flight_max as usize,
        connections_max: limits.connections_max as usize,
        window_max: u64::from(tuning.search.window_max),
        ..Limits::default()
    }
}
