//! Clusters that grow and shrink, planned to the end with made-up groups.

use super::*;
use crate::meta::Node;

struct World {
    meta: Meta,
    reports: BTreeMap<GroupId, Report>,
    /// Groups whose members ever changed at once.
    moves_max: usize,
}

impl World {
    fn new(nodes: u16, groups: usize, replicas: u16, primary: Option<u16>) -> Self {
        let numbers: Vec<NodeNumber> = (1..=nodes).map(NodeNumber).collect();
        let placement = founding(&numbers, groups, usize::from(replicas), primary.map(NodeNumber));
        let mut world = Self {
            meta: Meta { replicas, groups: placement, next_replica: 1, ..Meta::default() },
            reports: BTreeMap::new(),
            moves_max: 0,
        };
        for number in numbers {
            world.add(number.0);
        }
        if let Some(primary) = primary {
            world.meta.nodes[usize::from(primary) - 1].is_primary = true;
        }
        for (number, placement) in world.meta.groups.iter().enumerate() {
            let report = Report {
                leader: placement.preferred,
                voters: placement.replicas.clone(),
                ..Report::default()
            };
            world.reports.insert(GroupId(number as u32), report);
        }
        world
    }

    fn add(&mut self, number: u16) {
        self.meta.nodes.push(Node { number: NodeNumber(number), ..Node::default() });
    }

    fn leave(&mut self, number: u16) {
        self.meta.nodes[usize::from(number) - 1].state = NodeState::Leaving;
    }

    /// Plans and obeys until nothing is left to do; `dead` nodes follow nothing and lead nothing.
    fn settle(&mut self, dead: &[u16]) {
        let is_dead = |replica: ReplicaId| dead.contains(&replica.node().0);
        for (group, report) in &mut self.reports {
            if is_dead(report.leader) {
                let heir = report.voters.iter().copied().find(|voter| !is_dead(*voter));
                report.leader = heir.unwrap_or_else(|| panic!("group {group} lost all"));
            }
        }
        for round in 0.. {
            assert!(round < 2000, "the plan never ends");
            for report in self.reports.values_mut() {
                report.commit = 1000;
                let others = report.voters.iter().chain(&report.learners);
                report.progress = others
                    .map(|replica| Progress {
                        replica: *replica,
                        matched: if is_dead(*replica) { 0 } else { 1000 },
                        is_active: !is_dead(*replica),
                    })
                    .collect();
            }
            let settled = |world: &Self, group: GroupId| {
                is_settled(&world.meta.groups[group.0 as usize], &world.reports[&group])
            };
            let change = replan(&self.meta, &self.reports);
            let change = change.or_else(|| wish(&self.meta, |group| !settled(self, group)));
            let is_wish = change.is_some();
            if let Some((group, placement)) = change {
                for (at, replica) in placement.replicas.iter().enumerate() {
                    let nodes = placement.replicas[..at].iter().map(|held| held.node());
                    assert!(!nodes.clone().any(|node| node == replica.node()), "two replicas on one node");
                }
                assert!(placement.replicas.contains(&placement.preferred));
                self.meta.groups[group.0 as usize] = placement;
                self.meta.next_replica += 1;
            }
            let busy = (0..self.meta.groups.len()).filter(|g| !settled(self, GroupId(*g as u32))).count();
            self.moves_max = self.moves_max.max(busy);
            let steps = steps(&self.meta, &self.reports);
            if steps.is_empty() && !is_wish {
                return;
            }
            for (group, step) in steps {
                self.obey(group, step);
            }
        }
    }

    fn obey(&mut self, group: GroupId, step: Step) {
        let report = self.reports.get_mut(&group).unwrap();
        let changes = match step {
            Step::Change(changes) => changes,
            Step::Transfer(replica) => {
                assert!(report.voters.contains(&replica));
                report.leader = replica;
                return;
            }
        };
        for change in changes {
            match change {
                MemberChange::AddLearner(replica) => report.learners.push(replica),
                MemberChange::Promote(replica) => {
                    report.learners.retain(|learner| *learner != replica);
                    report.voters.push(replica);
                }
                MemberChange::Remove(replica) => {
                    assert_ne!(replica, report.leader, "a leader is never removed while it leads");
                    report.learners.retain(|learner| *learner != replica);
                    report.voters.retain(|voter| *voter != replica);
                }
            }
        }
        let active = |voter: &ReplicaId| {
            *voter == report.leader || report.progress.iter().any(|p| p.replica == *voter && p.is_active)
        };
        let answering = report.voters.iter().filter(|voter| active(voter)).count();
        assert!(answering * 2 > report.voters.len(), "a change lost the quorum");
    }

    fn check_even(&self, members: &[u16]) {
        let members: Vec<NodeNumber> = members.iter().copied().map(NodeNumber).collect();
        let spread = |counts: BTreeMap<NodeNumber, usize>| {
            counts.values().max().unwrap() - counts.values().min().unwrap()
        };
        for placement in &self.meta.groups {
            let wanted = usize::from(self.meta.replicas).min(members.len());
            assert_eq!(placement.replicas.len(), wanted);
            assert!(placement.replicas.iter().all(|replica| members.contains(&replica.node())));
        }
        assert!(spread(replica_counts(&self.meta, &members)) <= 1, "replicas are uneven");
        let leads = |node: NodeNumber| self.reports.values().filter(|r| r.leader.node() == node).count();
        let leaders = members.iter().map(|node| (*node, leads(*node))).collect();
        assert!(spread(leaders) <= 1, "leaders are uneven");
    }
}

#[test]
fn a_cluster_grows_and_shrinks_evenly() {
    for groups in [1, 2, 3, 7, 16, 64] {
        let mut world = World::new(3, groups, 3, None);
        world.settle(&[]);
        world.check_even(&[1, 2, 3]);
        world.add(4);
        world.settle(&[]);
        world.check_even(&[1, 2, 3, 4]);
        world.add(5);
        world.settle(&[]);
        world.check_even(&[1, 2, 3, 4, 5]);
        world.leave(1);
        world.leave(2);
        world.settle(&[]);
        world.check_even(&[3, 4, 5]);
        assert!(world.moves_max <= MOVES_MAX + 1, "{} groups moved at once", world.moves_max);
    }
}

#[test]
fn a_dead_node_is_replaced_also_when_it_led() {
    for groups in [1, 5, 16] {
        let mut world = World::new(4, groups, 3, None);
        world.leave(2);
        world.settle(&[2]);
        world.check_even(&[1, 3, 4]);
    }
}

#[test]
fn one_node_becomes_three_and_one_again() {
    let mut world = World::new(1, 4, 3, None);
    world.add(2);
    world.add(3);
    world.settle(&[]);
    world.check_even(&[1, 2, 3]);
    world.leave(1);
    world.leave(3);
    world.settle(&[]);
    world.check_even(&[2]);
}

#[test]
fn a_primary_leads_everything_and_again_after_its_return() {
    let mut world = World::new(3, 6, 3, Some(2));
    world.settle(&[]);
    let leads = |world: &World| world.reports.values().filter(|r| r.leader.node() == NodeNumber(2)).count();
    assert_eq!(leads(&world), 6);
    world.settle(&[2]);
    assert_eq!(leads(&world), 0);
    world.settle(&[]);
    assert_eq!(leads(&world), 6);
}

#[test]
fn leaders_go_back_when_a_node_returns() {
    let mut world = World::new(3, 16, 3, None);
    world.settle(&[3]);
    world.settle(&[]);
    world.check_even(&[1, 2, 3]);
}

#[test]
fn a_removal_that_would_lose_the_quorum_waits() {
    let (first, second, third) = (ReplicaId(1), ReplicaId(2), ReplicaId(3));
    let placement = GroupPlacement { replicas: vec![first, second], preferred: first };
    let active = |replica, is_active| Progress { replica, matched: 9, is_active };
    let mut report =
        Report { leader: first, voters: vec![first, second, third], commit: 9, ..Report::default() };
    report.progress = vec![active(second, false), active(third, true)];
    assert_eq!(step(&placement, &report), None, "one of two would not be more than half");
    report.progress[0].is_active = true;
    assert_eq!(step(&placement, &report), Some(Step::Change(vec![MemberChange::Remove(third)])));
}

/// Reports of three groups on three nodes (or more, of which the rest hold nothing), with these nodes silent.
fn told_of(nodes: u16, silent: &[u16]) -> (Meta, BTreeMap<GroupId, Report>) {
    let mut world = World::new(nodes, 3, 3, None);
    for report in world.reports.values_mut() {
        let progress = |replica: &ReplicaId| Progress {
            replica: *replica,
            matched: 0,
            is_active: !silent.contains(&replica.node().0),
        };
        report.progress = report.voters.iter().map(progress).collect();
        report.leader = report.voters.iter().copied().find(|one| !silent.contains(&one.node().0)).unwrap();
    }
    (world.meta, world.reports)
}

#[test]
fn a_removal_that_would_lose_a_majority_is_objected_to() {
    let check = |nodes: u16, silent: &[u16], leaving: u16, expected: Option<&str>| {
        let (meta, reports) = told_of(nodes, silent);
        let objection = removal_objection(&meta, &reports, NodeNumber(leaving), true);
        match (&objection, expected) {
            (None, None) => {}
            (Some(text), Some(part)) => assert!(text.contains(part), "{text}"),
            _ => panic!("{nodes} nodes, {silent:?} silent, {leaving} leaves: {objection:?}"),
        }
    };
    check(3, &[], 1, None);
    check(3, &[3], 3, None);
    check(3, &[3], 2, Some("only 1 of 2 copies of group 0 would answer"));
    check(4, &[3], 2, None);
    check(5, &[2, 3], 1, Some("of group"));
    let (meta, mut reports) = told_of(3, &[]);
    reports.remove(&GroupId(1));
    let missing = removal_objection(&meta, &reports, NodeNumber(2), true).unwrap();
    assert!(missing.contains("group 1 has no leader now"), "{missing}");
    assert_eq!(
        removal_objection(&meta, &reports, NodeNumber(2), false),
        None,
        "it may just not have been heard"
    );
    assert_eq!(silent_nodes(&told_of(3, &[2]).1), BTreeSet::from([NodeNumber(2)]));
}

/// A node dies while it is filled, and its operator removes it: the move gets another end, or is undone.
#[test]
fn a_move_to_a_node_that_died_and_leaves_ends() {
    for has_another in [true, false] {
        let mut world = World::new(3, 1, 3, None);
        world.add(4);
        world.add(5);
        if !has_another {
            world.leave(5);
        }
        // One voter is to go to the fourth node, which holds a learner that will never be filled.
        let (target, old) = (ReplicaId::new(1, NodeNumber(4)), ReplicaId::new(0, NodeNumber(3)));
        world.meta.next_replica = 2;
        let placement = &mut world.meta.groups[0];
        placement.replicas.retain(|held| *held != old);
        placement.replicas.push(target);
        world.reports.get_mut(&GroupId(0)).unwrap().learners.push(target);
        world.settle(&[4]);
        let report = &world.reports[&GroupId(0)];
        assert_eq!(report.learners, [target], "it may come back while it is a member");
        world.leave(4);
        world.settle(&[4]);
        let (placement, report) = (&world.meta.groups[0], &world.reports[&GroupId(0)]);
        assert!(is_settled(placement, report), "{placement:?} {report:?}");
        let mut nodes: Vec<u16> = report.voters.iter().map(|voter| voter.node().0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, if has_another { [1, 2, 5] } else { [1, 2, 3] });
        assert!(!report.voters.contains(&old), "an id that was given up is never used again");
    }
}
