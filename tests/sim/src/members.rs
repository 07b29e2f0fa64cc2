//! A cluster with a meta state: nodes come and go, disks are lost, and the planner of the engine moves replicas.
//!
//! The operator here does what an operator does, ADD_NODE and REMOVE_NODE, again and again until the meta state shows it;
//! everything else is the engine's: the placement, learners, joint configurations, hand-overs, the dismissal of replicas.
//! One wish at a time. A disk is lost only while every group stands as placed, with all its copies, and every node is up: a
//! second copy lost before the first is replaced is more than three copies promise.

use crate::fault::Fault;
use crate::strand::{Stop, Strand, directory};
use crate::world::{CLUSTER, Happening, Packet, World};
use shards::ids::{GroupId, NodeNumber, ReplicaId};
use shards::meta::{Meta, MetaChange, Node, NodeState};
use shards::placement;
use std::sync::Arc;

/// How often the operator looks, and nodes tell one another what they know.
const ROUND_US: u64 = 200_000;

/// What the operator wants.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    /// This machine shall be a node.
    Add(usize),
    /// This node shall go.
    Remove(NodeNumber),
    /// This node's disk is gone; the machine comes back as another one.
    Replace(NodeNumber, usize),
    /// This node shall lead this group.
    Prefer(GroupId, NodeNumber),
}

/// The operator of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    pub(crate) wish: Option<Wish>,
    disks: u128,
}

fn node_of(number: usize, incarnation: u128) -> Node {
    let id = format!("machine{number}-{incarnation}");
    let (port, host) = (8000 + number as u16, "127.0.0.1".to_owned());
    Node { id, incarnation, host, port, cluster_port: port + 1000, ..Node::default() }
}

impl World {
    /// Founds a cluster with a meta state on the first machines; the others are blank.
    pub(crate) fn found(&mut self) {
        let nodes: Vec<Node> = (0..self.plan.nodes as usize)
            .map(|number| Node {
                number: NodeNumber(number as u16 + 1),
                ..node_of(number, self.machines[number].incarnation)
            })
            .collect();
        let numbers: Vec<NodeNumber> = nodes.iter().map(|node| node.number).collect();
        let (groups, copies) = (self.plan.shards as usize, self.plan.copies as usize);
        let next_node = nodes.len() as u16 + 1;
        let groups = placement::founding(&numbers, groups, copies, None);
        let replicas = self.plan.copies as u16;
        let meta = Meta { version: 1, cluster: CLUSTER, replicas, nodes, groups, next_node, next_replica: 1 };
        let meta = Arc::new(meta);
        for (number, machine) in self.machines.iter_mut().enumerate() {
            machine.first_meta = Some(Arc::clone(&meta));
            machine.seats.fill(None);
            machine.node = None;
            if number < self.plan.nodes as usize {
                machine.node = Some(NodeNumber(number as u16 + 1));
                machine.meta = Some(Arc::clone(&meta));
            }
        }
        self.schedule(ROUND_US, Happening::Round);
    }

    /// The machine that is a node.
    pub(crate) fn machine_of(&self, node: NodeNumber) -> Option<usize> {
        self.machines.iter().position(|machine| machine.node == Some(node))
    }

    /// The newest meta state on any machine.
    fn newest_meta(&self) -> Option<Arc<Meta>> {
        let known = self.machines.iter().filter_map(|machine| machine.meta.clone());
        known.max_by_key(|meta| meta.version)
    }

    /// A machine hears of a meta state.
    pub(crate) fn learn_meta(&mut self, number: usize, meta: &Arc<Meta>) {
        let machine = &mut self.machines[number];
        if machine.meta.as_ref().is_none_or(|known| known.version >= meta.version) {
            return;
        }
        machine.meta = Some(Arc::clone(meta));
        let mut woken = Vec::new();
        for (shard, strand) in machine.strands.iter_mut().enumerate() {
            if let Some(strand) = strand {
                strand.events.push(shards::event::Event::Meta(Arc::clone(meta)));
                woken.push(shard);
            }
        }
        for shard in woken {
            self.wake(number, shard, 2);
        }
        self.take_seats(number);
    }

    /// Starts the replicas that a node should have and has not.
    fn take_seats(&mut self, number: usize) {
        let machine = &self.machines[number];
        if !machine.is_up {
            return;
        }
        let life = machine.life;
        for shard in 0..self.plan.shards {
            if self.machines[number].strands[shard as usize].is_none()
                && self.machines[number].appointed(&self.plan, GroupId(shard)).is_some()
            {
                self.schedule(1_000, Happening::Seat(number, life, shard as usize));
            }
        }
    }

    /// A replica that was wished for starts.
    pub(crate) fn seat(&mut self, number: usize, shard: usize) -> Result<(), String> {
        let machine = &mut self.machines[number];
        if machine.strands[shard].is_some() {
            return Ok(());
        }
        let now = machine.moment(self.clock.get());
        let before = machine.seats[shard];
        let seated = machine.seat_replica(&self.plan, shard as u32, &self.clock, now, self.is_healed);
        if self.machines[number].seats[shard] != before {
            self.replicas.forget(number, Some(shard as u32));
        }
        match seated {
            Ok(None) => Ok(()),
            Ok(Some(out)) => {
                self.send_out(number, shard, out);
                self.wake(number, shard, 1);
                Ok(())
            }
            Err(stop) => self.stopped(number, stop),
        }
    }

    /// Gives a replica up that is no more wanted, when the group goes on without it.
    pub(crate) fn dismiss(&mut self, number: usize, shard: usize) -> Result<(), String> {
        let machine = &mut self.machines[number];
        let appointed = machine.appointed(&self.plan, GroupId(shard as u32)).map(|seat| seat.replica);
        let now = machine.moment(self.clock.get());
        let may_go = machine.strands[shard].as_mut().is_some_and(|strand| strand.may_go(now, appointed));
        if !may_go {
            return Ok(());
        }
        let strand = machine.strands[shard].take().expect("just seen");
        self.count_snapshots(&strand)?;
        if let Err(stop) = strand.close() {
            return self.stopped(number, stop);
        }
        let emptied = self.empty(number, GroupId(shard as u32));
        let machine = &mut self.machines[number];
        machine.damage.retain(|damage| {
            crate::strand::parent(&damage.file) != directory(GroupId(shard as u32)).to_string_lossy()
        });
        machine.seats[shard] = None;
        self.replicas.forget(number, Some(shard as u32));
        if let Err(stop) = emptied {
            return self.stopped(number, stop);
        }
        self.take_seats(number);
        Ok(())
    }

    /// Removes the files of a replica that is no more. Now and then the power goes in the middle of that.
    fn empty(&mut self, number: usize, group: GroupId) -> Result<(), Stop> {
        let machine = &mut self.machines[number];
        if self.plan.generation < 4 {
            machine.disk.in_peace(|disk| disk.erase(&directory(group).to_string_lossy()));
            return Ok(());
        }
        if !self.is_healed && self.plan.faults.has(Fault::CutInsideEmptying) && self.rng.chance(500) {
            machine.disk.cut_after(self.rng.below(10));
        }
        let emptied = machine.empty(group);
        machine.disk.spare();
        if machine.disk.is_cut() {
            self.report.faults.add(Fault::CutInsideEmptying);
        }
        emptied
    }

    /// Every so often: nodes tell one another what they know, and the operator looks how far his wish is.
    pub(crate) fn round(&mut self) {
        for from in 0..self.machines.len() {
            let Some(meta) = self.machines[from].meta.clone().filter(|_| self.machines[from].is_up) else {
                continue;
            };
            let views = self.machines[from].views.clone();
            for to in 0..self.machines.len() {
                if to != from && self.machines[to].node.is_some() {
                    let packet = Packet::Gossip(Arc::clone(&meta), views.clone());
                    self.send(from, to, &packet, false);
                }
            }
        }
        self.operate();
        self.schedule(ROUND_US, Happening::Round);
    }

    fn operate(&mut self) {
        let (Some(wish), Some(meta)) = (self.operator.wish.clone(), self.newest_meta()) else { return };
        let is_gone = |node: NodeNumber| meta.node(node).is_none();
        let is_done = match wish {
            Wish::Add(machine) => self.add(machine, &meta),
            Wish::Remove(node) => self.remove(node, &meta),
            Wish::Replace(lost, machine) => {
                let leaves = meta.node(lost).is_none_or(|node| node.state == NodeState::Leaving);
                if !leaves {
                    self.ask_for(&MetaChange::RemoveNode(lost));
                }
                let is_there = leaves && self.add(machine, &meta);
                is_there && is_gone(lost)
            }
            Wish::Prefer(group, node) => {
                self.ask_for(&MetaChange::Prefer { group, node });
                true
            }
        };
        if is_done {
            self.operator.wish = None;
        }
    }

    /// Whether the machine is a node; asks for it otherwise.
    fn add(&mut self, machine: usize, meta: &Arc<Meta>) -> bool {
        if self.machines[machine].node.is_some() {
            return true;
        }
        let node = node_of(machine, self.machines[machine].incarnation);
        match meta.node_by_id(&node.id) {
            Some(known) => {
                self.machines[machine].node = Some(known.number);
                self.machines[machine].meta = Some(Arc::clone(meta));
                let life = self.machines[machine].life;
                self.schedule(1_000, Happening::Boot(machine, life));
                true
            }
            None => {
                self.ask_for(&MetaChange::AddNode(node));
                false
            }
        }
    }

    /// Whether the node is gone, and its machine blank; asks for it otherwise.
    fn remove(&mut self, node: NodeNumber, meta: &Arc<Meta>) -> bool {
        if meta.node(node).is_some() {
            self.ask_for(&MetaChange::RemoveNode(node));
            return false;
        }
        if let Some(machine) = self.machine_of(node) {
            self.power_off(machine);
            self.blank(machine);
        }
        true
    }

    /// The machine has another disk, with nothing on it.
    fn blank(&mut self, machine: usize) {
        self.operator.disks += 1;
        let incarnation = 1000 + self.operator.disks;
        self.machines[machine].lose_disk(incarnation);
        self.replicas.forget(machine, None);
    }

    fn ask_for(&mut self, change: &MetaChange) {
        let up: Vec<usize> = (0..self.machines.len()).filter(|number| self.machines[*number].is_up).collect();
        if up.is_empty() {
            return;
        }
        let number = *self.rng.pick(&up);
        self.next_ask += 1;
        let ask = self.next_ask;
        let now = self.machines[number].moment(self.now()).wall;
        self.machines[number].router.change_meta(now, ask, change);
        self.route(number);
    }

    /// The operator begins something, if he is idle; whether he did.
    pub(crate) fn begin_wish(&mut self) -> bool {
        let Some(meta) = self.newest_meta().filter(|_| self.operator.wish.is_none()) else { return false };
        let blank = self.machines.iter().position(|machine| machine.node.is_none());
        let members: Vec<NodeNumber> = meta
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Member)
            .map(|node| node.number)
            .collect();
        let wish = match (self.rng.below(3), blank) {
            (0, _) => {
                let group = GroupId(self.rng.below(u64::from(self.plan.shards)) as u32);
                let replicas: Vec<ReplicaId> = meta.groups[group.0 as usize].replicas.clone();
                Wish::Prefer(group, self.rng.pick(&replicas).node())
            }
            (_, Some(machine)) => Wish::Add(machine),
            (_, None) if members.len() > self.plan.copies as usize => Wish::Remove(*self.rng.pick(&members)),
            _ => return false,
        };
        self.operator.wish = Some(wish);
        true
    }

    /// A disk is lost, if the cluster can bear it; whether it was.
    pub(crate) fn lose_a_disk(&mut self, number: usize) -> bool {
        let Some(node) = self.machines[number].node.filter(|_| self.operator.wish.is_none()) else {
            return false;
        };
        if !self.is_settled() {
            return false;
        }
        self.power_off(number);
        self.blank(number);
        self.operator.wish = Some(Wish::Replace(node, number));
        true
    }

    /// Whether every node is up and every group stands as placed, with as many replicas as there should be, all in reach of its
    /// leader. A group whose move was undone stands as placed with one too few, before it grows again.
    pub(crate) fn is_settled(&self) -> bool {
        let Some(meta) = self.newest_meta() else { return true };
        let is_up =
            |node: &Node| self.machine_of(node.number).is_some_and(|number| self.machines[number].is_up);
        let nodes_stand = meta.nodes.iter().all(|node| node.state == NodeState::Gone || is_up(node));
        let members = meta.nodes.iter().filter(|node| node.state == NodeState::Member).count();
        let copies = usize::from(meta.replicas).min(members);
        nodes_stand
            && meta.groups.iter().enumerate().all(|(shard, placed)| {
                let strands = self.machines.iter().filter_map(|machine| machine.strands.get(shard)?.as_ref());
                let leads = |strand: &&Strand| strand.shard.is_ready() && strand.shard.group().is_leader();
                let Some(leader) =
                    strands.into_iter().filter(leads).max_by_key(|strand| strand.shard.group().term())
                else {
                    return false;
                };
                let conf_state = leader.shard.group().conf_state();
                let last = leader.shard.group().last_index();
                let mut wanted: Vec<u64> = placed.replicas.iter().map(|replica| replica.0).collect();
                let mut voters = conf_state.voters.clone();
                wanted.sort_unstable();
                voters.sort_unstable();
                let keeps_up = leader.shard.progress().iter().all(|one| one.is_active && one.keeps_up(last));
                wanted == voters
                    && wanted.len() >= copies
                    && conf_state.voters_outgoing.is_empty()
                    && conf_state.learners.is_empty()
                    && keeps_up
            })
    }

    /// Whether the operator has what he wanted and every group stands as placed.
    pub(crate) fn is_arranged(&self) -> bool {
        self.operator.wish.is_none() && self.is_settled()
    }

    /// Counts what became of a replica's snapshots. One that differs from its state although nothing was done to it is a
    /// defect, found before it did harm.
    pub(crate) fn count_snapshots(&mut self, strand: &Strand) -> Result<(), String> {
        let counters = strand.shard.snapshot_counters();
        self.report.snapshots += counters.kept;
        for _ in 0..counters.refused {
            self.report.faults.add(Fault::LostRecord);
        }
        let causes =
            [Fault::LostRecord, Fault::FileError, Fault::ReadError, Fault::DiskFull, Fault::CutInsideFiles];
        if counters.refused > 0
            && !causes.iter().any(|fault| self.plan.faults.has(*fault))
            && !self.plan.lying_disk
        {
            return Err("a snapshot was refused, and nothing was done to it".to_owned());
        }
        Ok(())
    }
}
