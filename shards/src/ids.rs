//! Newtypes for the numbers that must not be confused.
//!
//! Never holds state. The rule that maps a key to its slot is the wire's ([`strand_wire::slot`]), since clients follow it too.

use std::fmt;
use strand_wire::slot;
use xxhash_rust::xxh3::xxh3_64;

/// A Raft group. On one machine group `n` is shard `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(pub u32);

/// A node of the cluster; given by the meta state, never reused. 0 is none. A node that is alone is number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeNumber(pub u16);

/// A copy of a group, as raft knows it: a number from the meta state (upper 48 bits), never reused within its group, and
/// the node that holds it (lower 16), so that whoever sees a replica knows where it lives. 0 is none. The first replica on
/// a node has number 0, so a node that is alone is replica 1 of each of its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    /// The replica with this number on a node.
    pub fn new(number: u64, node: NodeNumber) -> Self {
        assert!(number < 1 << 48, "a replica's number fits 48 bits");
        Self(number << 16 | u64::from(node.0))
    }

    /// The node that holds it.
    pub fn node(self) -> NodeNumber {
        NodeNumber(self.0 as u16)
    }

    /// Its number among the replicas that its group ever had on that node.
    pub fn number(self) -> u64 {
        self.0 >> 16
    }
}

/// Position of a batch in one shard's write-ahead log; rises by one a batch, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

/// Milliseconds since the Unix epoch, as given by the caller. Entry stamps never decrease within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

/// Names one request at the router that sent it; opaque to the engine and echoed in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Token(pub u64);

/// xxh3_64 of a whole key. It orders keys inside a shard; [`slot_of`] decides the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyHash(pub u64);

/// One of [`SLOTS`] fixed parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot(pub u16);

pub use strand_wire::slot::SLOTS;

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hash that places a key inside its shard.
#[inline]
pub fn hash_of(key: &[u8]) -> KeyHash {
    KeyHash(xxh3_64(key))
}

/// The slot of a key; the rule is the wire's.
pub fn slot_of(key: &[u8]) -> Slot {
    slot_of_hashed(key, hash_of(key))
}

/// As [`slot_of`] for a caller that already has the hash of the whole key.
#[inline]
pub fn slot_of_hashed(key: &[u8], hash: KeyHash) -> Slot {
    Slot(slot::slot_of_hashed(key, hash.0))
}

/// The slots of one group when slots are spread evenly over so many groups.
pub fn even_slots(group: GroupId, groups: u32) -> Vec<Slot> {
    let slots = u32::from(SLOTS);
    assert!(group.0 < groups && groups <= slots, "every group has a slot");
    (0..slots).filter(|slot| slot * groups / slots == group.0).map(|slot| Slot(slot as u16)).collect()
}

/// Version of a stored record: where in the history of its group it was written. Compared only for equality by clients.
///
/// `place` packs the entry index (upper 54 bits) and the position of the command in its entry (lower 10 bits). The epoch
/// rises whenever history may have been lost: a restart under a floor below `always`, a restore, an unsafe recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Epoch of the history that wrote the record.
    pub epoch: u32,
    /// Entry index times 1,024 plus position in the entry.
    pub place: u64,
}

impl Version {
    /// The version of the command at `position` (below 1,024) in entry `index`.
    pub fn new(epoch: u32, index: u64, position: u16) -> Self {
        assert!(position < 1024, "a position fits ten bits");
        assert!(index < 1 << 54, "an entry index fits 54 bits");
        Self { epoch, place: index << 10 | u64::from(position) }
    }

    /// Index of the entry. Within one run of a shard it tells which of two records was written later; the epoch does not:
    /// each replica counts its own, and another leader may write with a lower one.
    pub fn index(self) -> u64 {
        self.place >> 10
    }

    /// Reads the text that [`fmt::Display`] writes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, place) = text.split_once('-')?;
        let number = |part: &str| -> Option<u64> {
            let plain =
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        Some(Self { epoch: u32::try_from(number(epoch)?).ok()?, place: number(place)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.epoch, self.place)
    }
}

/// A map for lookups in memory, hashed by ahash under fixed seeds. Its order differs between processors, so it is never
/// walked into an output: what must come out in order lives in a BTreeMap.
pub type Map<K, V> = hashbrown::HashMap<K, V, FixedSeeds>;

/// Builds ahash hashers that are the same in every process on one kind of processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedSeeds;

impl std::hash::BuildHasher for FixedSeeds {
    type Hasher = ahash::AHasher;

    fn build_hasher(&self) -> ahash::AHasher {
        ahash::RandomState::with_seeds(0x5354_5241, 0x4e44_0001, 0x4e44_0002, 0x4e44_0003).build_hasher()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_share_a_slot() {
        assert_eq!(slot_of(b"{user1}.name"), slot_of(b"x{user1}y"));
        assert_eq!(slot_of(b"{}a"), slot_of_hashed(b"{}a", hash_of(b"{}a")));
        assert!(slot_of(b"abc").0 < SLOTS);
    }

    #[test]
    fn versions_survive_their_text() {
        for version in [Version::new(0, 0, 0), Version::new(7, 1 << 40, 1023)] {
            assert_eq!(Version::parse(&version.to_string()), Some(version));
        }
        for bad in ["", "1", "1-", "-1", "+1-2", "1-2-3", "g-1"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
