//! What leaves a shard, and what arrives at a machine: between its own threads, and over the links to others.

use crate::fault::Fault;
use crate::fetched::take_snapshot;
use crate::strand::Out;
use crate::world::{Happening, Packet, World};
use raft::prelude::MessageType;
use shards::batch::{NotLeader, ReplyBatch, RequestBatch};
use shards::effect::SnapshotFetch;
use shards::event::Event;
use shards::ids::{GroupId, ReplicaId};
use std::rc::Rc;

/// So many messages between groups, of a thousand, arrive once more.
const ECHOES_PER_MILLE: u64 = 150;

impl World {
    /// Sends what a shard's turn has left, in the driver's order.
    pub(crate) fn send_out(&mut self, number: usize, shard: usize, out: Out) {
        let life = self.machines[number].life;
        for (router, batch) in out.replies {
            self.trace.note_bytes(&batch.bytes);
            let to = usize::from(router);
            if !self.machines[to].is_up {
                continue;
            }
            if to == number {
                let after = self.rng.below(10);
                self.schedule(after, Happening::Replies(number, life, batch));
                continue;
            }
            // A reply belongs to the process that asked; one of a later life knows nothing of it.
            let packet = Packet::Replies(self.machines[to].life, Rc::new(batch));
            self.send(number, to, &packet, false);
        }
        for message in out.messages {
            let view = self.machines[number].views[message.to.0 as usize].1;
            if let Some(to) = view {
                let packet = Packet::Message(message);
                self.send(number, to, &packet, true);
                if self.plan.faults.has(Fault::Echo) && !self.is_healed && self.rng.chance(ECHOES_PER_MILLE) {
                    self.report.faults.add(Fault::Echo);
                    let again = 2_000 + self.rng.around(800_000);
                    self.schedule(again, Happening::Packet(number, to, packet));
                }
            }
        }
        let mut dies = false;
        for message in out.raft {
            if let Some(to) = self.machine_of(ReplicaId(message.to).node()) {
                let kind = message.get_msg_type();
                let is_vote = kind == MessageType::MsgRequestVoteResponse && !message.reject;
                if is_vote {
                    self.note_vote(number, shard, &message);
                }
                let packet = Packet::Raft(GroupId(shard as u32), Box::new(message));
                if self.plan.faults.has(Fault::VoterDies) && !self.is_healed {
                    let is_asking =
                        matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
                    let late = if is_asking { self.rng.below(90_000) } else { 0 };
                    self.send_late(number, to, &packet, true, late);
                    dies |= is_vote && self.rng.chance(300);
                } else {
                    self.send(number, to, &packet, true);
                }
            }
        }
        if let Some(role) = out.role {
            let leader = self.machine_of(role.leader.node());
            self.learn(number, shard, role.term, leader);
        }
        if let Some(fetch) = out.fetch {
            let after = 5_000 + self.rng.below(100_000);
            self.schedule(after, Happening::Fetched(number, life, GroupId(shard as u32), fetch));
        }
        if let Some(meta) = out.meta
            && self.plan.has_meta
        {
            self.learn_meta(number, &meta);
        }
        if dies && self.machines[number].is_up {
            self.report.faults.add(Fault::VoterDies);
            if self.rng.chance(600) {
                self.power_off(number);
            } else {
                self.kill(number);
            }
            let after = 500 + self.rng.below(4_000);
            self.schedule(after, Happening::Boot(number, self.machines[number].life));
        }
    }

    /// A machine hears who leads a group.
    fn learn(&mut self, number: usize, shard: usize, term: u64, leader: Option<usize>) {
        let known = &mut self.machines[number].views[shard];
        let is_newer = term > known.0 || (term == known.0 && leader.is_some());
        if !is_newer || *known == (term, leader) {
            return;
        }
        *known = (term, leader);
        if leader.is_some() {
            for other in 0..self.machines[number].strands.len() {
                self.tell(number, other, Event::Leader(GroupId(shard as u32)));
            }
        }
    }

    /// Sends something to a machine.
    pub(crate) fn send(&mut self, from: usize, to: usize, packet: &Packet, may_double: bool) {
        self.send_late(from, to, packet, may_double, 0);
    }

    fn send_late(&mut self, from: usize, to: usize, packet: &Packet, may_double: bool, late_us: u64) {
        let now = self.now();
        for at in self.net.send(&mut self.rng, now, from, to, may_double) {
            self.schedule(at - now + late_us, Happening::Packet(from, to, packet.clone()));
        }
    }

    /// Something arrives at a machine.
    pub(crate) fn arrive(&mut self, from: usize, to: usize, packet: Packet) {
        if !self.machines[to].is_up {
            if matches!(packet, Packet::Requests(..)) && self.machines[from].is_up {
                let life = self.machines[from].life;
                self.schedule(100, Happening::LinkBroke(from, life, to));
            }
            return;
        }
        match packet {
            Packet::Raft(group, message) => {
                let is_known = self.machines[to]
                    .meta
                    .as_ref()
                    .is_none_or(|meta| meta.node(ReplicaId(message.from).node()).is_some());
                if is_known {
                    self.tell(to, group.0 as usize, Event::Raft(message));
                }
            }
            Packet::Message(message) => {
                self.tell(to, message.to.0 as usize, Event::Message(message));
            }
            Packet::Requests(life, batch) => {
                // What an earlier process asked for is not asked any more, and nobody would hear the answer.
                let Some(batch) = batch.take().filter(|_| self.machines[from].life == life) else { return };
                let shard = batch.group.0 as usize;
                let Some(strand) = &mut self.machines[to].strands[shard] else {
                    return self.refuse(to, from, &batch);
                };
                strand.inbox.push_back((from as u8, batch));
                let after = 1 + self.rng.below(5);
                self.wake(to, shard, after);
            }
            Packet::Replies(life, batch) => self.take_replies(to, life, &batch),
            Packet::Gossip(meta, views) => {
                self.learn_meta(to, &meta);
                for (shard, (term, leader)) in views.into_iter().enumerate() {
                    self.learn(to, shard, term, leader);
                }
            }
        }
    }

    fn tell(&mut self, number: usize, shard: usize, event: Event) {
        if let Some(strand) = &mut self.machines[number].strands[shard] {
            strand.events.push(event);
            self.wake(number, shard, 2);
        }
    }

    /// A node without a replica of a group refuses every request for it, as the server's vacant shards do.
    fn refuse(&mut self, number: usize, from: usize, batch: &RequestBatch) {
        let mut replies = ReplyBatch::default();
        for head in &batch.heads {
            let (hash, deadline, record) = (head.hash, head.deadline, batch.record(head));
            let refused = NotLeader { leader: ReplicaId(0), term: 0, hash, deadline, record };
            replies.push_not_leader(head.token, &refused);
        }
        let life = self.machines[from].life;
        if from == number {
            return self.schedule(5, Happening::Replies(number, life, replies));
        }
        self.send(number, from, &Packet::Replies(life, Rc::new(replies)), false);
    }

    /// A router takes replies.
    pub(crate) fn take_replies(&mut self, number: usize, life: u32, batch: &ReplyBatch) {
        if !self.machines[number].is_alive(life) {
            return;
        }
        let named = self.machines[number].router.replies(batch);
        let mut is_news = false;
        for (group, term, leader) in named {
            let before = self.machines[number].views[group.0 as usize].1;
            let leader = self.machine_of(leader.node());
            self.learn(number, group.0 as usize, term, leader);
            is_news |= self.machines[number].views[group.0 as usize].1 != before;
        }
        if is_news {
            let now = self.machines[number].moment(self.now()).wall;
            self.machines[number].router.send_refused(now);
        }
        self.route(number);
    }

    /// A snapshot that a shard wished for is fetched from another machine's disk.
    pub(crate) fn fetched(
        &mut self,
        number: usize,
        group: GroupId,
        fetch: SnapshotFetch,
    ) -> Result<(), String> {
        let source = self.machine_of(fetch.node).filter(|source| self.machines[*source].is_up);
        let Some(source) = source else {
            let image = Err("its node is not there".to_owned());
            self.tell(number, group.0 as usize, Event::SnapshotFetched { index: fetch.index, image });
            return Ok(());
        };
        if self.machines[number].strands[group.0 as usize].is_none() {
            return Ok(());
        }
        let found = (self.machines[source].is_up && self.net.reaches(source, number))
            .then(|| self.machines[source].newest_snapshot(group))
            .flatten()
            .filter(|(index, _)| *index >= fetch.index);
        let machine = &mut self.machines[number];
        let event = match found {
            Some((index, bytes)) => take_snapshot(&machine.disk, group, index, &bytes),
            None => Event::SnapshotFetched { index: fetch.index, image: Err("it is not there".to_owned()) },
        };
        if machine.disk.is_cut() {
            return self.stopped(number, crate::strand::Stop::Cut);
        }
        self.tell(number, group.0 as usize, event);
        Ok(())
    }
}
