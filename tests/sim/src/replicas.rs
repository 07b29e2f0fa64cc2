//! What must hold among the replicas of a group after every turn: one leader a term, one entry an index for ever, nothing
//! committed that is not durable on a quorum, equal states at equal log indexes.

use crate::strand::Strand;
use crate::world::World;
use std::collections::BTreeMap;

/// What has been seen of all groups.
#[derive(Default)]
pub(crate) struct Replicas {
    /// Who led in each term, by group and term.
    leaders: BTreeMap<(u32, u64), u64>,
    /// Term and content hash of every committed entry, by group and index.
    committed: BTreeMap<(u32, u64), (u64, u64)>,
    /// Which machines hold an entry durably, a bit each, by group, index and term.
    holders: BTreeMap<(u32, u64, u64), u32>,
    /// How far each replica was looked at: durable and committed, by machine and group.
    looked: BTreeMap<(usize, u32), (u64, u64)>,
}

impl Replicas {
    /// A replica starts anew from its disk.
    pub(crate) fn restarted(&mut self, machine: usize) {
        self.looked.retain(|(other, _), _| *other != machine);
    }

    fn look(&mut self, machine: usize, group: u32, strand: &Strand, quorum: u32) -> Result<(), String> {
        let raft = strand.shard.group();
        if raft.is_leader() {
            let me = machine as u64 + 1;
            let leader = *self.leaders.entry((group, raft.term())).or_insert(me);
            if leader != me {
                return Err(format!(
                    "group {group} has two leaders in term {}: {leader} and {me}",
                    raft.term()
                ));
            }
        }
        self.note_durable(machine, group, strand);
        let commit = raft.commit_index();
        let looked = self.looked.entry((machine, group)).or_default();
        let commit_from = looked.1;
        looked.1 = commit.max(commit_from);
        if commit <= commit_from {
            return Ok(());
        }
        for (index, entry) in strand.entries.range(commit_from + 1..=commit) {
            let known = *self.committed.entry((group, *index)).or_insert(*entry);
            if known != *entry {
                return Err(format!("group {group} has two entries at {index}: {known:?} and {entry:?}"));
            }
            let holders = self.holders.get(&(group, *index, entry.0)).copied().unwrap_or_default();
            if holders.count_ones() < quorum {
                return Err(format!(
                    "entry {index} of group {group} counts as committed on machine {machine}, and is durable on machines \
                     {holders:b} only"
                ));
            }
        }
        Ok(())
    }

    /// Notes which entries a machine has on its disk; also when it dies in this turn, since what it said before it died may
    /// be heard.
    pub(crate) fn note_durable(&mut self, machine: usize, group: u32, strand: &Strand) {
        let durable = strand.durable_index;
        let looked = self.looked.entry((machine, group)).or_default();
        // What was replaced is looked at again.
        let from = looked.0.min(durable);
        looked.0 = durable;
        let fresh = if from < durable {
            strand.entries.range(from.saturating_sub(64) + 1..=durable)
        } else {
            strand.entries.range(0..0)
        };
        for (index, (term, _)) in fresh {
            *self.holders.entry((group, *index, *term)).or_default() |= 1 << machine;
        }
    }
}

impl World {
    /// What must hold after every turn.
    pub(crate) fn inspect(&mut self, number: usize, shard: usize) -> Result<(), String> {
        let strand = &self.machines[number].strands[shard];
        let group = shard as u32;
        let (true_durable, reported) = (strand.truly_durable(), strand.reported_durable());
        if true_durable < reported && !self.plan.lying_disk {
            return Err(format!("the log says that batch {} is durable; {} is", reported.0, true_durable.0));
        }
        let quorum = self.plan.nodes / 2 + 1;
        self.replicas.look(number, group, strand, quorum)?;
        let applied = strand.shard.applied_index();
        if applied.is_multiple_of(3) && applied > 0 && !strand.shard.is_applying() {
            let digest = strand.shard.state().keys.digest();
            let digest = digest.sum.wrapping_mul(31).wrapping_add(digest.records);
            if let Some(before) = self.digests.insert((group, applied), digest)
                && !self.plan.lying_disk
            {
                self.report.compared += 1;
                if before != digest {
                    return Err(format!("group {group} holds two states at entry {applied}"));
                }
            }
        }
        Ok(())
    }
}
