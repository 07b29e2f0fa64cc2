//! What the driver measures of its shard, told to the shard, which answers INFO.

use super::Driver;
use shards::event::{DiskFigures, Event, TurnFigures};

impl Driver {
    /// How long turns and commits took, and what the log did: told with every tick.
    pub(super) fn report_figures(&mut self) {
        let now_us = self.seat.clock.elapsed_us();
        let turns = self.turn_times.percentiles(now_us);
        self.events.push(Event::Turns(TurnFigures {
            p50_us: turns.p50_us,
            p99_us: turns.p99_us,
            p999_us: turns.p999_us,
            longest_us: turns.longest_us,
            measured: turns.count,
        }));
        if let Some(wal) = &self.wal {
            let counters = wal.counters();
            let commits = self.commit_times.percentiles(now_us);
            let figures = DiskFigures {
                batches: counters.batches,
                writes: counters.writes,
                syncs: counters.syncs,
                bytes: counters.bytes,
                segments: counters.segments,
                live_bytes: wal.live_bytes(),
                commit_p50_us: commits.p50_us,
                commit_p99_us: commits.p99_us,
                commits_measured: commits.count,
            };
            self.events.push(Event::Disk(figures));
        }
    }
}
