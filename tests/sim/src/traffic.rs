//! What leaves a shard, and what arrives at a machine: between its own threads, and over the links to others.

use crate::strand::{Out, machine_of, take_snapshot};
use crate::world::{Happening, Packet, World};
use shards::batch::ReplyBatch;
use shards::effect::SnapshotFetch;
use shards::event::Event;
use shards::ids::{GroupId, ReplicaId};
use std::rc::Rc;

impl World {
    /// Sends what a shard's turn has left, in the driver's order.
    pub(crate) fn send_out(&mut self, number: usize, shard: usize, out: Out) {
        let life = self.machines[number].life;
        for (router, batch) in out.replies {
            self.trace.note_bytes(&batch.bytes);
            let to = usize::from(router);
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
                self.send(number, to, &Packet::Message(message), true);
            }
        }
        for message in out.raft {
            if let Some(to) = machine_of(ReplicaId(message.to)) {
                let packet = Packet::Raft(GroupId(shard as u32), Box::new(message));
                self.send(number, to, &packet, true);
            }
        }
        if let Some(role) = out.role {
            self.learn(number, shard, role.term, machine_of(role.leader));
        }
        if let Some(fetch) = out.fetch {
            let after = 5_000 + self.rng.below(100_000);
            self.schedule(after, Happening::Fetched(number, life, GroupId(shard as u32), fetch));
        }
    }

    /// A machine hears who leads a group.
    fn learn(&mut self, number: usize, shard: usize, term: u64, leader: Option<usize>) {
        let known = &mut self.machines[number].views[shard];
        if term > known.0 || (term == known.0 && leader.is_some()) {
            *known = (term, leader);
        }
    }

    /// Sends something to a machine.
    pub(crate) fn send(&mut self, from: usize, to: usize, packet: &Packet, may_double: bool) {
        let now = self.now();
        for at in self.net.send(&mut self.rng, now, from, to, may_double) {
            self.schedule(at - now, Happening::Packet(from, to, packet.clone()));
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
                let shard = group.0 as usize;
                self.machines[to].strands[shard].events.push(Event::Raft(message));
                self.wake(to, shard, 2);
            }
            Packet::Message(message) => {
                let shard = message.to.0 as usize;
                self.machines[to].strands[shard].events.push(Event::Message(message));
                self.wake(to, shard, 2);
            }
            Packet::Requests(life, batch) => {
                // What an earlier process asked for is not asked any more, and nobody would hear the answer.
                let Some(batch) = batch.take().filter(|_| self.machines[from].life == life) else { return };
                let shard = batch.group.0 as usize;
                self.machines[to].strands[shard].inbox.push_back((from as u8, batch));
                let after = 1 + self.rng.below(5);
                self.wake(to, shard, after);
            }
            Packet::Replies(life, batch) => self.take_replies(to, life, &batch),
        }
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
        let source = usize::from(fetch.node.0) - 1;
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
        machine.strands[group.0 as usize].events.push(event);
        self.wake(number, group.0 as usize, 5);
        Ok(())
    }
}
