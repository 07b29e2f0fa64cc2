//! Where replicas and leaders should be, and the next steps on the way there.
//!
//! Pure functions over the meta state and what group leaders report; run by group 0's leader. Two layers: [`wish`] changes
//! the placement itself (a node came, leaves, or holds more than its share), [`steps`] moves each group's configuration
//! and leader towards its placement, one change a group at a time. Every step is safe to repeat, to lose and to be taken
//! by a deposed planner: the group's own log decides. A group never loses a voter before its replacement votes.
//!
//! The method is the usual greedy one of placement drivers: equalise counts by moving one replica at a time from the
//! fullest to the emptiest node.

mod codec;

use crate::consensus::membership::MemberChange;
use crate::ids::{GroupId, NodeNumber, ReplicaId};
use crate::meta::{GroupPlacement, Meta, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// Groups whose members change at once, over the whole cluster: a move copies data, and traffic goes on.
pub const MOVES_MAX: usize = 4;
/// Leaders asked to hand over in one round of planning.
pub const TRANSFERS_MAX: usize = 4;
/// A learner so close behind its leader, in entries, becomes a voter.
pub const CAUGHT_UP_ENTRIES: u64 = 256;

/// What a group's leader reports of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The term of that leader.
    pub term: u64,
    /// The leader.
    pub leader: ReplicaId,
    /// Highest committed index.
    pub commit: u64,
    /// Whether a configuration change is under way: nothing else is asked meanwhile.
    pub is_changing: bool,
    /// Voters of the configuration, the leader included.
    pub voters: Vec<ReplicaId>,
    /// Learners.
    pub learners: Vec<ReplicaId>,
    /// How far each other replica is, and whether it was heard of lately.
    pub progress: Vec<Progress>,
}

/// What a leader knows of another replica of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The replica.
    pub replica: ReplicaId,
    /// Highest index known to be durable there.
    pub matched: u64,
    /// Heard of within the last election timeout.
    pub is_active: bool,
}

/// What the planner wants of a group's leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Change the members; several at once through a joint configuration.
    Change(Vec<MemberChange>),
    /// Hand leadership over.
    Transfer(ReplicaId),
}

impl Report {
    fn is_caught_up(&self, replica: ReplicaId) -> bool {
        let known = self.progress.iter().find(|progress| progress.replica == replica);
        known.is_some_and(|known| known.is_active && known.matched + CAUGHT_UP_ENTRIES >= self.commit)
    }

    /// Whether more than half of the voters answer, the leader included and `without` not.
    fn has_quorum_without(&self, without: ReplicaId) -> bool {
        let left = self.voters.iter().filter(|voter| **voter != without);
        let (mut count, mut active) = (0, 0);
        for voter in left {
            count += 1;
            let answers = |progress: &Progress| progress.replica == *voter && progress.is_active;
            active += usize::from(*voter == self.leader || self.progress.iter().any(answers));
        }
        active * 2 > count
    }
}

/// The placement of a new cluster: group `g` on the nodes `g, g + 1, ...` in turn, led by the first of them, or by the
/// primary where there is one.
pub fn founding(
    nodes: &[NodeNumber],
    groups: usize,
    replicas: usize,
    primary: Option<NodeNumber>,
) -> Vec<GroupPlacement> {
    assert!(!nodes.is_empty() && replicas > 0, "a cluster has a node and a copy");
    let replicas = replicas.min(nodes.len());
    let place = |group: usize| {
        let mut held: Vec<NodeNumber> =
            (0..replicas).map(|turn| nodes[(group + turn) % nodes.len()]).collect();
        if let Some(primary) = primary
            && !held.contains(&primary)
        {
            held[0] = primary;
        }
        let leader = primary.unwrap_or(held[0]);
        let replicas = held.into_iter().map(|node| ReplicaId::new(0, node)).collect();
        GroupPlacement { replicas, preferred: ReplicaId::new(0, leader) }
    };
    (0..groups).map(place).collect()
}

/// The next change of the placement, if it is not as it should be: one group's new placement. `is_busy` says whether a
/// group's configuration is still on its way to its placement; such a group is left alone.
///
/// The order: replicas off nodes that leave, then missing replicas, then evenness of replicas, then evenness of preferred
/// leaders. New replicas take their number from `meta.next_replica`.
pub fn wish(meta: &Meta, is_busy: impl Fn(GroupId) -> bool) -> Option<(GroupId, GroupPlacement)> {
    let members: Vec<NodeNumber> =
        meta.nodes.iter().filter(|node| node.state == NodeState::Member).map(|node| node.number).collect();
    if members.is_empty() {
        return None;
    }
    let groups =
        || meta.groups.iter().enumerate().map(|(number, placement)| (GroupId(number as u32), placement));
    if groups().filter(|(group, _)| is_busy(*group)).count() >= MOVES_MAX {
        return None;
    }
    let load = replica_counts(meta, &members);
    let free = || groups().filter(|(group, _)| !is_busy(*group));
    let wanted = usize::from(meta.replicas).min(members.len());

    // A replica on a node that leaves goes to the emptiest node without one, or away where there are enough.
    for (group, placement) in free() {
        let Some(leaving) = placement.replicas.iter().copied().find(|held| !members.contains(&held.node()))
        else {
            continue;
        };
        let staying = placement.replicas.iter().filter(|held| members.contains(&held.node())).count();
        let mut next = placement.clone();
        next.replicas.retain(|held| *held != leaving);
        if staying < wanted {
            let Some(target) = emptiest(&load, placement) else { continue };
            next.replicas.push(ReplicaId::new(meta.next_replica, target));
        }
        return Some((group, with_leader(meta, next)));
    }
    for (group, placement) in free().filter(|(_, placement)| placement.replicas.len() < wanted) {
        let Some(target) = emptiest(&load, placement) else { continue };
        let mut next = placement.clone();
        next.replicas.push(ReplicaId::new(meta.next_replica, target));
        return Some((group, with_leader(meta, next)));
    }
    if let Some((group, placement)) = free().find(|(_, placement)| placement.replicas.len() > wanted) {
        let fullest = placement.replicas.iter().copied().max_by_key(|held| (load.get(&held.node()), *held));
        let mut next = placement.clone();
        next.replicas.retain(|held| Some(*held) != fullest);
        return Some((group, with_leader(meta, next)));
    }
    even_replicas(meta, &load, free).or_else(|| even_leaders(meta, &members, free))
}

/// Another end for a move that cannot come to its end: the replica that was to be filled is on a node that leaves, does not
/// answer, and has no vote yet, so nobody misses it. Without this the group would stay busy, and its node would never be gone.
///
/// The new target is a node that holds nothing of the group: one whose old replica still votes must not be given another, since
/// ids are never used again. Where there is none the group shrinks to what stays, and grows again once it stands so.
pub fn replan(meta: &Meta, reports: &BTreeMap<GroupId, Report>) -> Option<(GroupId, GroupPlacement)> {
    let is_member = |node: NodeNumber| meta.node(node).is_some_and(|node| node.state == NodeState::Member);
    let members: Vec<NodeNumber> =
        meta.nodes.iter().map(|node| node.number).filter(|node| is_member(*node)).collect();
    let load = replica_counts(meta, &members);
    for (group, report) in reports.iter().filter(|(_, report)| !report.is_changing) {
        let Some(placement) = meta.groups.get(group.0 as usize) else { continue };
        let is_active =
            |replica| report.progress.iter().any(|known| known.replica == replica && known.is_active);
        let is_lost = |held: &&ReplicaId| {
            !is_member(held.node()) && !report.voters.contains(*held) && !is_active(**held)
        };
        let Some(lost) = placement.replicas.iter().find(is_lost).copied() else { continue };
        let mut next = placement.clone();
        next.replicas.retain(|held| *held != lost);
        let stays = next.replicas.iter().any(|held| report.voters.contains(held));
        let held = || placement.replicas.iter().chain(&report.voters).chain(&report.learners);
        let free = load.iter().filter(|(node, _)| held().all(|replica| replica.node() != **node));
        if let Some((target, _)) = free.min_by_key(|(node, count)| (**count, **node)) {
            next.replicas.push(ReplicaId::new(meta.next_replica, *target));
        } else if !stays {
            continue;
        }
        return Some((*group, with_leader(meta, next)));
    }
    None
}

/// Moves one replica from the fullest node to the emptiest one, while they differ by more than one.
fn even_replicas<'m, I: Iterator<Item = (GroupId, &'m GroupPlacement)>>(
    meta: &Meta,
    load: &BTreeMap<NodeNumber, usize>,
    free: impl Fn() -> I,
) -> Option<(GroupId, GroupPlacement)> {
    let (&least, &low) = load.iter().min_by_key(|(node, count)| (**count, **node))?;
    let mut by_load: Vec<(&NodeNumber, &usize)> = load.iter().collect();
    by_load.sort_by_key(|(node, count)| (usize::MAX - **count, **node));
    for (&node, &count) in by_load {
        if count <= low + 1 {
            return None;
        }
        // A replica that is not to lead is moved first: its move disturbs nobody.
        let holds =
            |placement: &GroupPlacement, node| placement.replicas.iter().any(|held| held.node() == node);
        let movable = free().filter(|(_, placement)| holds(placement, node) && !holds(placement, least));
        let Some((group, placement)) = movable.min_by_key(|(group, p)| (p.preferred.node() == node, *group))
        else {
            continue;
        };
        let mut next = placement.clone();
        next.replicas.retain(|held| held.node() != node);
        next.replicas.push(ReplicaId::new(meta.next_replica, least));
        return Some((group, with_leader(meta, next)));
    }
    None
}

/// Names another preferred leader for one group: the primary where it holds a replica; else a move from the node with the
/// most to one with at least two fewer, along a chain of groups where no direct move exists.
fn even_leaders<'m, I: Iterator<Item = (GroupId, &'m GroupPlacement)>>(
    meta: &Meta,
    members: &[NodeNumber],
    free: impl Fn() -> I,
) -> Option<(GroupId, GroupPlacement)> {
    if let Some(primary) = primary_of(meta) {
        let (group, placement) = free().find(|(_, placement)| {
            placement.preferred.node() != primary
                && placement.replicas.iter().any(|held| held.node() == primary)
        })?;
        let preferred = placement.replicas.iter().copied().find(|held| held.node() == primary)?;
        return Some((group, GroupPlacement { preferred, ..placement.clone() }));
    }
    let counts = leader_counts(meta, members);
    let mut by_count: Vec<(usize, NodeNumber)> = counts.iter().map(|(node, count)| (*count, *node)).collect();
    by_count.sort_by(|a, b| b.cmp(a));
    for &(most, from) in &by_count {
        // Breadth first over "a group led by A has a replica on B": the first hop of the shortest chain to a node with
        // two fewer. Taking only that hop leaves the counts between as they are in the end, one change at a time.
        let mut reached: BTreeMap<NodeNumber, (GroupId, ReplicaId)> = BTreeMap::new();
        let mut frontier = vec![from];
        while let Some(at) = frontier.first().copied() {
            frontier.remove(0);
            for (group, placement) in free().filter(|(_, placement)| placement.preferred.node() == at) {
                for held in placement.replicas.iter().filter(|held| members.contains(&held.node())) {
                    let next = held.node();
                    if next == from || reached.contains_key(&next) {
                        continue;
                    }
                    reached.insert(next, (group, *held));
                    frontier.push(next);
                }
            }
        }
        let target =
            reached.keys().copied().filter(|node| counts[node] + 2 <= most).min_by_key(|node| counts[node]);
        let Some(target) = target else { continue };
        // Only the last hop of the chain is taken: it lowers nobody's count but its giver's, and makes the giver the next
        // target, so the chain shortens until it starts at the fullest node.
        let (group, preferred) = reached[&target];
        let placement = &meta.groups[group.0 as usize];
        return Some((group, GroupPlacement { preferred, ..placement.clone() }));
    }
    None
}

fn primary_of(meta: &Meta) -> Option<NodeNumber> {
    meta.nodes.iter().find(|node| node.is_primary && node.state == NodeState::Member).map(|node| node.number)
}

/// Keeps the preferred leader among the replicas, or names the one on the node that should lead the fewest groups.
fn with_leader(meta: &Meta, mut placement: GroupPlacement) -> GroupPlacement {
    if !placement.replicas.contains(&placement.preferred) {
        let members: Vec<NodeNumber> = placement.replicas.iter().map(|held| held.node()).collect();
        let counts = leader_counts(meta, &members);
        let fewest = placement.replicas.iter().copied().min_by_key(|held| (counts[&held.node()], *held));
        placement.preferred = fewest.unwrap_or_default();
    }
    placement
}

fn emptiest(load: &BTreeMap<NodeNumber, usize>, placement: &GroupPlacement) -> Option<NodeNumber> {
    let is_free = |node: &NodeNumber| placement.replicas.iter().all(|held| held.node() != *node);
    load.iter()
        .filter(|(node, _)| is_free(node))
        .min_by_key(|(node, count)| (**count, **node))
        .map(|(node, _)| *node)
}

fn replica_counts(meta: &Meta, members: &[NodeNumber]) -> BTreeMap<NodeNumber, usize> {
    let held = || meta.groups.iter().flat_map(|placement| &placement.replicas);
    members.iter().map(|node| (*node, held().filter(|held| held.node() == *node).count())).collect()
}

fn leader_counts(meta: &Meta, members: &[NodeNumber]) -> BTreeMap<NodeNumber, usize> {
    let leads = |node: NodeNumber| meta.groups.iter().filter(|p| p.preferred.node() == node).count();
    members.iter().map(|node| (*node, leads(*node))).collect()
}

/// Whether a group's configuration is as its placement says.
pub fn is_settled(placement: &GroupPlacement, report: &Report) -> bool {
    let same = |held: &[ReplicaId]| {
        held.len() == placement.replicas.len()
            && held.iter().all(|replica| placement.replicas.contains(replica))
    };
    !report.is_changing && report.learners.is_empty() && same(&report.voters)
}

/// The next step of one group towards its placement; `None` when there is nothing to do, or nothing safe.
pub fn step(placement: &GroupPlacement, report: &Report) -> Option<Step> {
    if report.is_changing {
        return None;
    }
    let is_voter = |replica: &ReplicaId| report.voters.contains(replica);
    if let Some(missing) =
        placement.replicas.iter().find(|replica| !is_voter(replica) && !report.learners.contains(replica))
    {
        return Some(Step::Change(vec![MemberChange::AddLearner(*missing)]));
    }
    if let Some(stray) = report.learners.iter().find(|learner| !placement.replicas.contains(learner)) {
        return Some(Step::Change(vec![MemberChange::Remove(*stray)]));
    }
    if let Some(learner) = report.learners.first() {
        if !report.is_caught_up(*learner) {
            return None;
        }
        // The one it replaces goes in the same change, unless it leads: then it hands over first.
        let is_replaced =
            |voter: &&ReplicaId| !placement.replicas.contains(voter) && **voter != report.leader;
        let replaced = report.voters.iter().find(is_replaced).map(|voter| MemberChange::Remove(*voter));
        return Some(Step::Change([MemberChange::Promote(*learner)].into_iter().chain(replaced).collect()));
    }
    let extra = report.voters.iter().copied().filter(|voter| !placement.replicas.contains(voter));
    for extra in extra {
        if extra == report.leader {
            let heir = placement.replicas.iter().copied().filter(|replica| report.is_caught_up(*replica));
            return heir
                .min_by_key(|replica| (*replica != placement.preferred, *replica))
                .map(Step::Transfer);
        }
        if report.has_quorum_without(extra) {
            return Some(Step::Change(vec![MemberChange::Remove(extra)]));
        }
    }
    let wants = placement.preferred != ReplicaId::default() && placement.preferred != report.leader;
    (wants && report.is_caught_up(placement.preferred)).then_some(Step::Transfer(placement.preferred))
}

/// The next steps of all groups, within [`MOVES_MAX`] and [`TRANSFERS_MAX`].
pub fn steps(meta: &Meta, reports: &BTreeMap<GroupId, Report>) -> Vec<(GroupId, Step)> {
    let mut left = (MOVES_MAX, TRANSFERS_MAX);
    let mut found = Vec::new();
    for (number, placement) in meta.groups.iter().enumerate() {
        let group = GroupId(number as u32);
        let Some(report) = reports.get(&group) else { continue };
        let Some(step) = step(placement, report) else {
            left.0 = left.0.saturating_sub(usize::from(!is_settled(placement, report)));
            continue;
        };
        let room = match step {
            Step::Change(_) => &mut left.0,
            Step::Transfer(_) => &mut left.1,
        };
        if *room > 0 {
            *room -= 1;
            found.push((group, step));
        }
    }
    found
}

/// Nodes with a voter that its leader has not heard of lately, and none that has been heard of.
pub fn silent_nodes(reports: &BTreeMap<GroupId, Report>) -> BTreeSet<NodeNumber> {
    let known = || reports.values().flat_map(|report| &report.progress);
    let nodes = |is_active: bool| -> BTreeSet<NodeNumber> {
        let of_kind = known().filter(|progress| progress.is_active == is_active);
        of_kind.map(|progress| progress.replica.node()).collect()
    };
    let leading: BTreeSet<NodeNumber> = reports.values().map(|report| report.leader.node()).collect();
    nodes(false).into_iter().filter(|node| !nodes(true).contains(node) && !leading.contains(node)).collect()
}

/// Why a node must not leave now: some group would be left without an answering majority. One sentence that says which, and what
/// to do; `None` when it may leave. `all_had_time` says whether a group without a report has no leader; else it is passed over.
pub fn removal_objection(
    meta: &Meta,
    reports: &BTreeMap<GroupId, Report>,
    leaving: NodeNumber,
    all_had_time: bool,
) -> Option<String> {
    let silent = silent_nodes(reports);
    let name = |number: NodeNumber| meta.node(number).map_or("?", |node| node.id.as_str());
    let rest: Vec<NodeNumber> = meta
        .nodes
        .iter()
        .filter(|node| node.state == NodeState::Member && node.number != leaving)
        .map(|node| node.number)
        .collect();
    let wanted = usize::from(meta.replicas).min(rest.len());
    for (number, placement) in meta.groups.iter().enumerate() {
        let group = GroupId(number as u32);
        if !placement.replicas.iter().any(|held| held.node() == leaving) {
            continue;
        }
        if !reports.contains_key(&group) && all_had_time {
            return Some(format!(
                "group {group} has no leader now, so its copy on {:?} cannot be moved; ask again when it has one",
                name(leaving)
            ));
        }
        let staying = || placement.replicas.iter().map(|held| held.node()).filter(|node| rest.contains(node));
        let is_free = |node: &&NodeNumber| !silent.contains(node) && staying().all(|held| held != **node);
        let added = rest.iter().filter(is_free).count().min(wanted.saturating_sub(staying().count()));
        let copies = staying().count() + added;
        let answering = staying().filter(|node| !silent.contains(node)).count() + added;
        if answering < copies / 2 + 1 {
            let lost: Vec<&str> = staying().filter(|node| silent.contains(node)).map(name).collect();
            return Some(format!(
                "without {:?} only {answering} of {copies} copies of group {group} would answer, and more than half must; start {} \
                 again, or remove it first",
                name(leaving),
                lost.join(", ")
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests;
