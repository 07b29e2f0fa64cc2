//! What must hold among the replicas of a group after every turn: one leader a term, one entry an index for ever, nothing
//! committed that is not durable on a quorum, one durable vote a term, equal states at equal log indexes; and bounds of what each
//! holds.

use crate::plan::Plan;
use crate::strand::Strand;
use crate::world::World;
use raft::prelude::Message;
use shards::shard::Burden;
use std::collections::BTreeMap;

/// So many of the newest configurations of a group count as in force: a replica may be behind by a change or two.
const CONFIGURATIONS: usize = 4;

/// Above the largest command of the workloads, with what a transaction adds to it.
const LARGEST_COMMAND_BYTES: usize = 256 << 10;
/// Requests that wait for a lock although their clients have lost the connection and asked again, until their deadlines.
const WAITING_MAX: usize = 256;
/// Entries that may wait in one replica, beside those that it started with: it applies those in slices.
const ENTRIES_MAX: usize = 512;

/// Voters, and outgoing voters while a change is joint.
type Configuration = (Vec<u64>, Vec<u64>);

/// What has been seen of all groups.
#[derive(Default)]
pub(crate) struct Replicas {
    /// Who led in each term, by group and term.
    leaders: BTreeMap<(u32, u64), u64>,
    /// Term and content hash of every committed entry, by group and index.
    committed: BTreeMap<(u32, u64), (u64, u64)>,
    /// Which machines hold an entry durably, a bit each, by group, index and term.
    holders: BTreeMap<(u32, u64, u64), u32>,
    is_changing: bool,
    /// The configurations of each group that were seen, the newest last: voters and outgoing voters.
    configurations: BTreeMap<u32, Vec<Configuration>>,
    /// Which machine each replica lives or lived on.
    machines: BTreeMap<u64, usize>,
    /// How far each replica was looked at: durable and committed, by machine and group.
    looked: BTreeMap<(usize, u32), (u64, u64)>,
    /// The last vote that each replica has told anybody: term and candidate.
    votes: BTreeMap<(u32, u64), (u64, u64)>,
}

impl Replicas {
    /// Nothing was seen yet; `is_changing` says that members come and go.
    pub(crate) fn new(is_changing: bool) -> Self {
        Self { is_changing, ..Self::default() }
    }

    /// A replica starts anew from its disk.
    pub(crate) fn restarted(&mut self, machine: usize) {
        self.looked.retain(|(other, _), _| *other != machine);
    }

    /// What a machine held of a group, or of all, is gone.
    pub(crate) fn forget(&mut self, machine: usize, group: Option<u32>) {
        let concerns = |of: u32| group.is_none_or(|group| group == of);
        self.looked.retain(|(other, of), _| *other != machine || !concerns(*of));
        // What it has acknowledged of entries that do not count as committed yet may be heard after it is gone.
        for ((of, index, _), holders) in &mut self.holders {
            if concerns(*of) && self.committed.contains_key(&(*of, *index)) {
                *holders &= !(1 << machine);
            }
        }
    }

    /// Whether so many machines are a majority of some configuration that was in force lately.
    fn is_quorum(&self, group: u32, holders: u32) -> bool {
        let holds =
            |voter: &&u64| self.machines.get(*voter).is_some_and(|machine| holders & 1 << machine != 0);
        let is_majority =
            |voters: &Vec<u64>| voters.is_empty() || voters.iter().filter(holds).count() > voters.len() / 2;
        self.configurations[&group]
            .iter()
            .rev()
            .take(CONFIGURATIONS)
            .any(|(voters, outgoing)| !voters.is_empty() && is_majority(voters) && is_majority(outgoing))
    }

    /// Notes a vote that leaves a replica, which must be durable and the only one of its term.
    fn voted(
        &mut self,
        group: u32,
        replica: u64,
        (term, candidate): (u64, u64),
        durable: (u64, u64),
    ) -> Result<(), String> {
        if durable.0 < term || (durable.0 == term && durable.1 != candidate) {
            return Err(format!(
                "replica {replica} of group {group} tells its vote for {candidate} in term {term}; durable is {durable:?}"
            ));
        }
        match self.votes.insert((group, replica), (term, candidate)) {
            Some((before, other)) if before == term && other != candidate => Err(format!(
                "replica {replica} of group {group} votes for {other} and for {candidate} in term {term}"
            )),
            _ => Ok(()),
        }
    }

    fn look(&mut self, machine: usize, group: u32, strand: &Strand) -> Result<(), String> {
        let raft = strand.shard.group();
        self.machines.insert(raft.replica().0, machine);
        let hard_state = raft.hard_state();
        if let Some((term, candidate)) = self.votes.get(&(group, raft.replica().0))
            && (hard_state.term < *term || (hard_state.term == *term && hard_state.vote != *candidate))
        {
            return Err(format!(
                "replica {} of group {group} voted for {candidate} in term {term}, and knows of {} in term {}",
                raft.replica().0,
                hard_state.vote,
                hard_state.term
            ));
        }
        let conf_state = raft.conf_state();
        let seen = self.configurations.entry(group).or_default();
        let is_new = !seen.iter().rev().take(CONFIGURATIONS).any(|(voters, outgoing)| {
            *voters == conf_state.voters && *outgoing == conf_state.voters_outgoing
        });
        if is_new && !conf_state.voters.is_empty() {
            seen.push((conf_state.voters.clone(), conf_state.voters_outgoing.clone()));
        }
        if raft.is_leader() {
            let me = raft.replica().0;
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
            let is_first = !self.committed.contains_key(&(group, *index));
            let known = *self.committed.entry((group, *index)).or_insert(*entry);
            if known != *entry {
                return Err(format!("group {group} has two entries at {index}: {known:?} and {entry:?}"));
            }
            // Where members go, those who held it may be gone.
            if !is_first && self.is_changing {
                continue;
            }
            let holders = self.holders.get(&(group, *index, entry.0)).copied().unwrap_or_default();
            if !self.is_quorum(group, holders) {
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

/// What one shard holds of the requests, transactions and entries of a run: a few times what was measured over many plans. A
/// queue without a bound grows beyond it.
fn is_bounded(plan: &Plan, burden: &Burden, recovered: usize) -> bool {
    let (requests, shards) = (plan.requests as usize, plan.shards as usize);
    burden.outstanding_bytes <= (plan.outstanding_bytes + LARGEST_COMMAND_BYTES) * (1 + shards)
        && burden.unapplied <= ENTRIES_MAX.max(recovered)
        && burden.in_flight <= ENTRIES_MAX + requests
        && burden.waiting <= WAITING_MAX + 4 * plan.clients as usize * (1 + shards)
        && burden.transactions <= requests
        && burden.intents <= requests
        && burden.backlog <= ENTRIES_MAX + requests
}

impl World {
    /// A vote leaves a replica.
    pub(crate) fn note_vote(&mut self, number: usize, shard: usize, message: &Message) {
        let Some(strand) = &self.machines[number].strands[shard] else { return };
        if self.plan.lying_disk {
            return;
        }
        let vote = (message.term, message.to);
        if let Err(text) = self.replicas.voted(shard as u32, message.from, vote, strand.durable_vote) {
            self.complaint.get_or_insert(text);
        }
    }

    /// What must hold after every turn.
    pub(crate) fn inspect(&mut self, number: usize, shard: usize) -> Result<(), String> {
        let Some(strand) = &self.machines[number].strands[shard] else { return Ok(()) };
        let group = shard as u32;
        let (true_durable, reported) = (strand.truly_durable(), strand.reported_durable());
        if true_durable < reported && !self.plan.lying_disk {
            return Err(format!("the log says that batch {} is durable; {} is", reported.0, true_durable.0));
        }
        let burden = strand.shard.burden();
        self.report.peak = self.report.peak.max(&burden);
        if !is_bounded(&self.plan, &burden, strand.recovered) {
            return Err(format!("a shard holds more than it may: {burden:?}"));
        }
        if self.plan.interval_ms > 0 {
            // What was applied may be forgotten with the power, and be another entry afterwards.
            return Ok(());
        }
        self.replicas.look(number, group, strand)?;
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
