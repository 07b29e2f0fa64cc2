//! Where keys live in a cluster: slots, and the leaders that replies taught this client.
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
    slots: Vec<SlotRange>,
    leaders: Vec<LeaderOf>,
}

#[derive(Debug, Deserialize)]
struct SlotRange {
    first: u16,
    last: u16,
    group: u64,
}

#[derive(Debug, Deserialize)]
struct LeaderOf {
    group: u64,
    address: Option<String>,
}

/// Leaders by shard and shards by slot, learned from HELLO and from NOT_LEADER replies.
#[derive(Debug, Default)]
pub struct Routes {
    shard_of_slot: HashMap<Slot, u64>,
    leader_of_shard: HashMap<u64, String>,
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

    /// Takes over what HELLO said; what it does not know stays.
    pub fn learn_map(&mut self, map: &ShardMap) {
        for range in &map.slots {
            for slot in range.first..=range.last.min(SLOTS as u16 - 1) {
                self.shard_of_slot.insert(Slot(slot), range.group);
            }
        }
        for leader in map.leaders.iter().take(SLOTS) {
            if let Some(address) = &leader.address {
                self.leader_of_shard.insert(leader.group, address.clone());
            }
        }
    }

    /// Address of the leader of a slot, when known.
    pub fn leader(&self, slot: Slot) -> Option<&str> {
        let shard = self.shard_of_slot.get(&slot)?;
        self.leader_of_shard.get(shard).map(String::as_str)
    }

    /// Forgets every leader at an address that failed.
    pub fn forget(&mut self, address: &str) {
        self.leader_of_shard.retain(|_, leader| leader != address);
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
        routes.learn_map(&map);
        assert_eq!((routes.leader(Slot(2047)), routes.leader(Slot(2048))), (Some("x:1"), Some("y:2")));
        let wild = r#"{"slots":[{"first":0,"last":65535,"group":3}],"leaders":[]}"#;
        routes.learn_map(&serde_json::from_str(wild).unwrap());
        assert_eq!(routes.leader(Slot(4095)), None, "a map beyond the slots is cut");
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
