//! The links between nodes: messages are late, lost, doubled and overtaken; pairs of nodes are cut off from one another.

use super::chance::Chance;
use raft::prelude::Message as RaftMessage;
use shards::ids::GroupId;
use shards::txn::message::GroupMessage;
use std::collections::{BTreeMap, BTreeSet};

/// What travels between nodes.
#[derive(Clone)]
pub(crate) enum Packet {
    Raft(GroupId, Box<RaftMessage>),
    Group(GroupMessage),
}

/// How bad the links are.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay_ms: (u64, u64),
    pub(crate) lost_permille: u64,
    pub(crate) doubled_permille: u64,
}

pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Ordered pairs of nodes between which nothing gets through.
    blocked: BTreeSet<(u16, u16)>,
    /// By time of arrival and number.
    under_way: BTreeMap<(u64, u64), (u16, u16, Packet)>,
    sent: u64,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { weather, blocked: BTreeSet::new(), under_way: BTreeMap::new(), sent: 0 }
    }

    pub(crate) fn send(&mut self, now: u64, from: u16, to: u16, packet: &Packet, chance: &mut Chance) {
        let is_home = from == to;
        let copies = if !is_home && chance.permille(self.weather.doubled_permille) { 2 } else { 1 };
        for _ in 0..copies {
            if !is_home && chance.permille(self.weather.lost_permille) {
                continue;
            }
            let (low, high) = self.weather.delay_ms;
            let delay = if is_home { 0 } else { chance.between(low, high) };
            self.sent += 1;
            self.under_way.insert((now + delay, self.sent), (from, to, packet.clone()));
        }
    }

    /// What arrives by now, in order.
    pub(crate) fn arrived(&mut self, now: u64) -> Vec<(u16, Packet)> {
        let later = self.under_way.split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut self.under_way, later);
        due.into_values()
            .filter(|(from, to, _)| !self.blocked.contains(&(*from, *to)))
            .map(|(_, to, packet)| (to, packet))
            .collect()
    }

    /// Nothing gets from one node to the other.
    pub(crate) fn block(&mut self, from: u16, to: u16) {
        self.blocked.insert((from, to));
    }

    /// Cuts a node off from all others, both ways.
    pub(crate) fn isolate(&mut self, node: u16, nodes: u16) {
        for other in (1..=nodes).filter(|other| *other != node) {
            self.block(node, other);
            self.block(other, node);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }

    /// What was on its way to or from a node that died.
    pub(crate) fn drop_of(&mut self, node: u16) {
        self.under_way.retain(|_, (from, to, _)| *from != node && *to != node);
    }
}
