//! Nodes with replicas of several groups, the links between them, and what must hold at every moment: one leader a term,
//! and one entry for each committed index.

use super::chance::Chance;
use super::disk::Replica;
use super::network::{Network, Packet, Weather};
use shards::batch::{ReplyKind, RequestBatch};
use shards::effect::{Effects, Role};
use shards::event::Event;
use shards::ids::{GroupId, Millis, NodeNumber, ReplicaId};
use shards::shard::ShardConfig;
use shards::shard::image::Founding;
use std::collections::BTreeMap;

/// A reply as a router gets it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) router: u8,
    pub(crate) token: u64,
    pub(crate) kind: ReplyKind,
    pub(crate) body: Vec<u8>,
}

/// What a world is made of.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: u16,
    pub(crate) groups: u32,
    /// Nodes that hold replicas from the beginning; the others are empty.
    pub(crate) founders: u16,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) retained_bytes_max: usize,
    pub(crate) sync_ms: (u64, u64),
    pub(crate) weather: Weather,
}

impl Shape {
    pub(crate) const CALM: Weather = Weather { delay_ms: (1, 3), lost_permille: 0, doubled_permille: 0 };
    pub(crate) const ROUGH: Weather = Weather { delay_ms: (1, 40), lost_permille: 50, doubled_permille: 30 };

    pub(crate) fn of(nodes: u16, groups: u32) -> Self {
        Self {
            nodes,
            groups,
            founders: nodes,
            snapshot_log_bytes: 64 << 20,
            retained_bytes_max: 1 << 20,
            sync_ms: (1, 4),
            weather: Self::CALM,
        }
    }
}

pub(crate) struct World {
    pub(crate) shape: Shape,
    pub(crate) now: u64,
    pub(crate) chance: Chance,
    pub(crate) network: Network,
    /// By node (from 1) and group; a node holds a replica of a group or none.
    pub(crate) replicas: BTreeMap<(u16, u32), Replica>,
    pub(crate) replies: Vec<Reply>,
    /// The newest word about each group's leader.
    pub(crate) roles: BTreeMap<u32, Role>,
    /// Who led in each term.
    leaders: BTreeMap<(u32, u64), ReplicaId>,
    /// Every committed entry, by group and index.
    committed: BTreeMap<(u32, u64), (u64, Vec<u8>)>,
    checked: BTreeMap<(u16, u32), u64>,
    /// Snapshots on their way: due time, node, group, from which node, at least which index.
    fetches: Vec<(u64, u16, u32, u16, u64)>,
}

/// Time that passes in one turn, in ms.
const TURN_MS: u64 = 5;
const NOW: u64 = 1_000_000;

impl World {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        let mut world = Self {
            shape,
            now: NOW,
            chance: Chance::new(seed),
            network: Network::new(shape.weather),
            replicas: BTreeMap::new(),
            replies: Vec::new(),
            roles: BTreeMap::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            checked: BTreeMap::new(),
            fetches: Vec::new(),
        };
        let voters: Vec<ReplicaId> =
            (1..=shape.founders).map(|node| ReplicaId::new(0, NodeNumber(node))).collect();
        for node in 1..=shape.founders {
            for group in 0..shape.groups {
                let founding =
                    Founding::Voter { replica: voters[usize::from(node) - 1], voters: voters.clone() };
                world.place(node, group, founding);
            }
            world.start(node);
        }
        world
    }

    /// Puts a replica on a node's disk.
    pub(crate) fn place(&mut self, node: u16, group: u32, founding: Founding) {
        let is_preferred = u32::from(node - 1) % u32::from(self.shape.founders) == group;
        let config = ShardConfig {
            cluster: 7,
            snapshot_log_bytes: self.shape.snapshot_log_bytes,
            retained_bytes_max: self.shape.retained_bytes_max,
            is_preferred,
            ..ShardConfig::new(GroupId(group))
        };
        self.replicas.insert((node, group), Replica::new(config, founding));
    }

    /// Starts a node's replicas from its disk.
    pub(crate) fn start(&mut self, node: u16) {
        for group in 0..self.shape.groups {
            let Some(replica) = self.replicas.get_mut(&(node, group)) else { continue };
            if replica.shard.is_none() {
                let effects = replica.start(Millis(self.now));
                self.checked.remove(&(node, group));
                self.perform(node, group, effects);
            }
        }
    }

    /// A node dies without a word.
    pub(crate) fn crash(&mut self, node: u16) {
        for group in 0..self.shape.groups {
            if let Some(replica) = self.replicas.get_mut(&(node, group)) {
                replica.crash();
            }
        }
        self.network.drop_of(node);
        self.fetches.retain(|(_, to, ..)| *to != node);
    }

    /// The node whose replica serves as leader, if there is one.
    pub(crate) fn serving(&self, group: u32) -> Option<u16> {
        (1..=self.shape.nodes).find(|node| {
            self.replicas.get(&(*node, group)).and_then(|replica| replica.shard.as_ref()).is_some_and(
                |shard| {
                    shard.is_ready()
                        && shard.group().term() == self.roles.get(&group).map_or(0, |role| role.term)
                },
            )
        })
    }

    /// Hands a batch to a node's shard; whether the node lives.
    pub(crate) fn request(&mut self, node: u16, group: u32, router: u8, batch: Box<RequestBatch>) -> bool {
        let Some(replica) = self.replicas.get_mut(&(node, group)) else { return false };
        if replica.shard.is_none() {
            return false;
        }
        replica.events.push(Event::Requests { router, batch });
        true
    }

    /// A little time passes: packets arrive, disks sync, shards step and work.
    pub(crate) fn turn(&mut self) {
        self.now += TURN_MS;
        for (to, packet) in self.network.arrived(self.now) {
            let (group, event) = match packet {
                Packet::Raft(group, message) => (group.0, Event::Raft(message)),
                Packet::Group(message) => (message.to.0, Event::Message(message)),
            };
            if let Some(replica) = self.replicas.get_mut(&(to, group))
                && replica.shard.is_some()
            {
                replica.events.push(event);
            }
        }
        self.fetch();
        for place in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.step(place);
        }
    }

    /// Turns until something holds; false if it does not within so many ms.
    pub(crate) fn turn_until(&mut self, ms: u64, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + ms;
        while self.now < end {
            if holds(self) {
                return true;
            }
            self.turn();
        }
        holds(self)
    }

    fn step(&mut self, place: (u16, u32)) {
        let Some(replica) = self.replicas.get_mut(&place) else { return };
        if replica.shard.is_none() {
            return;
        }
        replica.sync(self.now);
        let mut events = std::mem::take(&mut replica.events);
        let mut effects = Effects::default();
        let now = Millis(self.now);
        if let Some(shard) = &mut replica.shard {
            shard.step(now, &mut events, &mut effects).expect("no replica faults");
        }
        self.perform(place.0, place.1, effects);
        let mut effects = Effects::default();
        if let Some(shard) = self.replicas.get_mut(&place).and_then(|replica| replica.shard.as_mut()) {
            shard.work(now, 2000, &mut effects).expect("no replica faults");
        }
        self.perform(place.0, place.1, effects);
        self.check(place);
    }

    /// Does what a shard wants done.
    pub(crate) fn perform(&mut self, node: u16, group: u32, mut effects: Effects) {
        let Some(replica) = self.replicas.get_mut(&(node, group)) else { return };
        replica.write(&mut effects, self.now, self.shape.sync_ms, &mut self.chance);
        for message in effects.raft {
            let to = ReplicaId(message.to).node().0;
            let packet = Packet::Raft(GroupId(group), Box::new(message));
            self.network.send(self.now, node, to, &packet, &mut self.chance);
        }
        for message in effects.messages {
            let leader = self.roles.get(&message.to.0).map_or(0, |role| role.leader.node().0);
            if leader > 0 {
                self.network.send(self.now, node, leader, &Packet::Group(message), &mut self.chance);
            }
        }
        if let Some(fetch) = effects.fetch {
            self.fetches.retain(|(_, to, of, ..)| (*to, *of) != (node, group));
            let due = self.now + self.chance.between(20, 100);
            self.fetches.push((due, node, group, fetch.node.0, fetch.index));
        }
        if let Some(role) = effects.role {
            let known = self.roles.entry(group).or_default();
            let is_newer = role.term > known.term || (role.term == known.term && role.leader.0 != 0);
            if is_newer {
                *known = role;
                for replica in self.replicas.values_mut().filter(|replica| replica.shard.is_some()) {
                    replica.events.push(Event::Leader(GroupId(group)));
                }
            }
        }
        for (router, batch) in effects.replies.iter().enumerate() {
            for head in &batch.heads {
                let shared = batch.shared.get(head.shared as usize).map_or(&[][..], |value| value);
                let body = [batch.body(head), shared].concat();
                self.replies.push(Reply { router: router as u8, token: head.token.0, kind: head.kind, body });
            }
        }
    }

    fn fetch(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.fetches.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, node, group, from, index) in due {
            let found = self.replicas.get(&(from, group)).and_then(|replica| {
                replica.shard.as_ref()?;
                replica.snapshot.clone()
            });
            if let Some(replica) = self.replicas.get_mut(&(node, group))
                && replica.shard.is_some()
            {
                replica.receive_snapshot(found, index);
            }
        }
    }

    /// One leader a term, one entry an index.
    fn check(&mut self, place: (u16, u32)) {
        let group = place.1;
        let Some(replica) = self.replicas.get(&place) else { return };
        let Some(shard) = &replica.shard else { return };
        let raft = shard.group();
        if raft.is_leader() {
            let known = self.leaders.entry((group, raft.term())).or_insert(raft.replica());
            assert_eq!(*known, raft.replica(), "group {group} has two leaders in term {}", raft.term());
        }
        let checked = self.checked.entry(place).or_insert(0);
        for (index, (term, data)) in replica.entries.range(*checked + 1..raft.commit_index() + 1) {
            let known = self.committed.entry((group, *index)).or_insert_with(|| (*term, data.clone()));
            assert!(known == &(*term, data.clone()), "group {group} has two entries at index {index}");
        }
        *checked = raft.commit_index().max(*checked);
    }

    /// All records of a replica.
    pub(crate) fn records(&self, node: u16, group: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let shard = self.replicas[&(node, group)].shard.as_ref().expect("the node lives");
        let mut found = BTreeMap::new();
        let from = shards::state::Position::default();
        shard.state().keys.scan(&from, &[], usize::MAX, usize::MAX, |record| {
            found.insert(record.key.to_vec(), record.value.to_vec());
        });
        found
    }

    /// The index that a replica has applied everything up to.
    pub(crate) fn applied(&self, node: u16, group: u32) -> u64 {
        self.replicas[&(node, group)].shard.as_ref().map_or(0, |shard| shard.applied_index())
    }

    /// Whether every group has a serving leader whose members have applied the same.
    pub(crate) fn is_level(&self) -> bool {
        (0..self.shape.groups).all(|group| {
            let Some(leader) = self.serving(group) else { return false };
            let shard = self.replicas[&(leader, group)].shard.as_ref().expect("it serves");
            let last = shard.group().last_index();
            shard.progress().iter().all(|member| {
                let node = member.replica.node().0;
                self.applied(node, group) == last && self.applied(leader, group) == last
            })
        })
    }
}
