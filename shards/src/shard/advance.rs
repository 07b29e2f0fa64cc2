//! Moves a shard on: proposes, takes what consensus wants done, hands batches to the log, applies, until nothing moves.

use super::{Floor, Shard, ShardFault};
use crate::effect::Effects;
use crate::index::Units;

/// Size of the blocks that the log is written in.
const LOG_BLOCK_BYTES: u64 = 4096;

impl Shard {
    /// Proposes, collects and applies until nothing moves or the units are spent.
    pub(super) fn advance(&mut self, units: u32, effects: &mut Effects) -> Result<(), ShardFault> {
        let mut units = Units::new(units);
        loop {
            self.follow_role(effects);
            // What was proposed is on its way once it is collected; only what comes of it moves anything again.
            self.propose_some()?;
            let mut moved = self.ask_for_reads();
            self.group.collect(&mut self.collected);
            if !self.collected.messages.is_empty() {
                effects.raft.append(&mut self.collected.messages);
            }
            if !self.collected.appends.is_empty() {
                self.hand_over_appends(effects);
                // Without a log they are durable by now, and what waited for that is collected next.
                moved |= self.config.floor == Floor::Off;
            }
            if !self.collected.replaced.is_empty() {
                let replaced = std::mem::take(&mut self.collected.replaced);
                self.entries_replaced(replaced, effects);
                moved = true;
            }
            if let Some(answered) = self.collected.confirmed.take() {
                self.end_rounds(answered, effects);
                moved = true;
            }
            if !self.collected.committed.is_empty() {
                self.slices.push(&mut self.collected.committed);
            }
            let applied = self.applied;
            // What is reserved may leave something to propose, which nothing else would wake the shard for.
            moved |= !self.slices.reservations.is_empty() && units.left();
            self.apply_some(&mut units, effects)?;
            self.reserve_some(&mut units, effects);
            if !moved && applied == self.applied {
                self.tell_role(effects);
                return Ok(());
            }
        }
    }

    fn hand_over_appends(&mut self, effects: &mut Effects) {
        for append in self.collected.appends.drain(..) {
            let bytes = append.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
            self.counters.log_bytes += bytes;
            // A batch takes whole blocks of the log, however little is in it.
            self.snapshots.log_bytes += bytes.next_multiple_of(LOG_BLOCK_BYTES);
            if self.config.floor == Floor::Off {
                continue;
            }
            if let Some((index, _)) = append.reset {
                for list in [&mut self.batches, &mut self.history] {
                    list.clear();
                    list.push_back((index, append.sequence));
                }
            }
            if let (Some(first), Some(last)) = (append.entries.first(), append.entries.last()) {
                for list in [&mut self.batches, &mut self.history] {
                    // Batches whose entries are replaced by these have nothing more to wait for.
                    while list.back().is_some_and(|(before, _)| *before >= first.index) {
                        list.pop_back();
                    }
                    list.push_back((last.index, append.sequence));
                }
            }
            effects.appends.push(append);
        }
        if self.config.floor == Floor::Off {
            self.durable = self.group.last_sequence();
            self.group.durable(self.durable);
        }
    }
}
