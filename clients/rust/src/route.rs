//! Where keys live: slots, the leaders that replies taught this client, and the ports of shards that serve clients themselves.
//!
//! The slot rule is the protocol's ([`strand_wire::slot`]). Invariant: a wrong route costs one
//! NOT_LEADER reply and never a wrong answer, so everything here may be forgotten at any time.

use serde::Deserialize;
use std::collections::HashMap;
use strand_wire::slot;
use xxhash_rust::xxh3::xxh3_64;

/// One of 4,096 fixed parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

/// The number of slots.
pub const SLOTS: usize = slot::SLOTS as usize;

impl Slot {
    /// Its number, below [`SLOTS`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The slot of a key and the hash of the whole key.
pub fn slot_of(key: &[u8]) -> (Slot, u64) {
    let hash = xxh3_64(key);
    (Slot(slot::slot_of_hashed(key, hash)), hash)
}

/// The shard map and the leaders as HELLO tells them.
#[derive(Debug, Deserialize)]
pub struct ShardMap {
    /// The node that tells.
    node: Option<String>,
    slots: Vec<SlotRange>,
    leaders: Vec<LeaderOf>,
}

#[derive(Debug, Deserialize)]
struct SlotRange {
    first: u16,
    last: u16,
    group: u64,
    /// Where the shard's own thread listens, on the host of the node that tells.
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
struct LeaderOf {
    group: u64,
    node: Option<String>,
    address: Option<String>,
}

impl ShardMap {
    /// Each shard that serves clients itself, at its port on the host of `address`, by the ranges of slots.
    pub fn own_addresses(&self, address: &str) -> Vec<(std::ops::RangeInclusive<u16>, String)> {
        let ranges = self.slots.iter().filter_map(|range| Some((range, range.port?)));
        ranges.map(|(range, port)| (range.first..=range.last, beside(address, port))).collect()
    }
}

/// Another port on the host of an address.
fn beside(address: &str, port: u16) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    format!("{host}:{port}")
}

/// Leaders by shard and shards by slot, learned from HELLO and from NOT_LEADER replies.
#[derive(Debug, Default)]
pub struct Routes {
    shard_of_slot: HashMap<Slot, u64>,
    leader_of_shard: HashMap<u64, String>,
    /// Where a shard's own thread listens, and the leader's address for which that holds.
    own_of_shard: HashMap<u64, OwnPort>,
}

#[derive(Debug)]
struct OwnPort {
    leader: String,
    address: String,
}

impl Routes {
    /// Notes what a NOT_LEADER reply said about the shard of `slot`.
    pub fn learn(&mut self, slot: Option<Slot>, shard: u64, leader: &str) {
        if let Some(slot) = slot {
            self.shard_of_slot.insert(slot, shard);
        }
        // A cluster has at most one shard a slot; more names than that is a confused server.
        if self.leader_of_shard.len() >= SLOTS {
            self.leader_of_shard.clear();
        }
        self.leader_of_shard.insert(shard, leader.to_owned());
    }

    /// Takes over what HELLO said on a connection to `connected`; what it does not know stays.
    pub fn learn_map(&mut self, map: &ShardMap, connected: &str) {
        for range in &map.slots {
            for slot in range.first..=range.last.min(SLOTS as u16 - 1) {
                self.shard_of_slot.insert(Slot(slot), range.group);
            }
        }
        for leader in map.leaders.iter().take(SLOTS) {
            let Some(address) = &leader.address else { continue };
            self.leader_of_shard.insert(leader.group, address.clone());
            // A node knows its own ports only.
            if leader.node.is_some() && leader.node == map.node {
                let range = map.slots.iter().find(|range| range.group == leader.group);
                self.learn_own(leader.group, address, range.and_then(|range| range.port), connected);
            }
        }
    }

    fn learn_own(&mut self, shard: u64, leader: &str, port: Option<u16>, connected: &str) {
        match port {
            Some(port) => {
                let own = OwnPort { leader: leader.to_owned(), address: beside(connected, port) };
                self.own_of_shard.insert(shard, own);
            }
            None => drop(self.own_of_shard.remove(&shard)),
        }
    }

    /// Where requests on keys of a slot go best, when known: to the leader's address, or to the port on which the leading
    /// shard's thread listens itself.
    pub fn leader(&self, slot: Slot) -> Option<&str> {
        let shard = self.shard_of_slot.get(&slot)?;
        let leader = self.leader_of_shard.get(shard)?;
        let own = self.own_of_shard.get(shard).filter(|own| own.leader == *leader);
        Some(own.map_or(leader, |own| &own.address))
    }

    /// Forgets an address that failed. A shard whose own port failed is reached by its node's common address.
    pub fn forget(&mut self, address: &str) {
        self.leader_of_shard.retain(|_, leader| leader != address);
        self.own_of_shard.retain(|_, own| own.address != address);
    }

    /// The addresses learned, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let mut all: Vec<String> = self.leader_of_shard.values().cloned().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_decide_the_slot() {
        assert_eq!(slot_of(b"{user1}.name").0, slot_of(b"x{user1}y").0);
        assert_ne!(slot_of(b"{user1}.name").1, slot_of(b"x{user1}y").1);
        assert_eq!(slot_of(b"{}a").0.index(), (xxh3_64(b"{}a") >> 52) as usize);
        // Golden: the published xxh3_64 of no bytes is 2d06800538d394c2.
        assert_eq!(slot_of(b"").0.index(), 0x2d0);
    }

    #[test]
    fn the_shard_map_of_hello_is_taken_over() {
        let map = r#"{"slots":[{"first":0,"last":2047,"group":0},{"first":2048,"last":4095,"group":1}],
            "leaders":[{"group":0,"node":"a","address":"x:1"},{"group":1,"node":null,"address":null}],"mode":"cluster"}"#;
        let map: ShardMap = serde_json::from_str(map).unwrap();
        let mut routes = Routes::default();
        routes.learn(Some(Slot(4000)), 1, "y:2");
        routes.learn_map(&map, "x:1");
        assert_eq!((routes.leader(Slot(2047)), routes.leader(Slot(2048))), (Some("x:1"), Some("y:2")));
        let wild = r#"{"slots":[{"first":0,"last":65535,"group":3}],"leaders":[]}"#;
        routes.learn_map(&serde_json::from_str(wild).unwrap(), "x:1");
        assert_eq!(routes.leader(Slot(4095)), None, "a map beyond the slots is cut");
    }

    #[test]
    fn shards_are_met_at_their_own_ports_on_the_host_that_told() {
        let map = r#"{"node":"a","slots":[{"first":0,"last":2047,"group":0,"port":501},
            {"first":2048,"last":4095,"group":1,"port":502}],"leaders":[{"group":0,"node":"a","address":"0.0.0.0:1"},
            {"group":1,"node":"b","address":"y:2"}]}"#;
        let map: ShardMap = serde_json::from_str(map).unwrap();
        let mut routes = Routes::default();
        routes.learn_map(&map, "[::1]:1");
        assert_eq!(routes.leader(Slot(1)), Some("[::1]:501"));
        assert_eq!(routes.leader(Slot(4000)), Some("y:2"), "another node's ports are not known");
        let own = map.own_addresses("x:1");
        assert_eq!(own, [(0..=2047, "x:501".to_owned()), (2048..=4095, "x:502".to_owned())]);
        routes.learn(Some(Slot(1)), 0, "y:2");
        assert_eq!(routes.leader(Slot(1)), Some("y:2"), "the port was the old leader's");
        routes.learn(Some(Slot(1)), 0, "0.0.0.0:1");
        assert_eq!(routes.leader(Slot(1)), Some("[::1]:501"));
        routes.forget("[::1]:501");
        assert_eq!(routes.leader(Slot(1)), Some("0.0.0.0:1"));
    }

    #[test]
    fn one_reply_moves_every_known_slot_of_the_shard() {
        let (a, b) = (Slot(1), Slot(2));
        let mut routes = Routes::default();
        routes.learn(Some(a), 7, "x:1");
        routes.learn(Some(b), 7, "y:2");
        assert_eq!(routes.leader(a), Some("y:2"));
        routes.forget("y:2");
        assert_eq!(routes.leader(a), None);
    }
}
