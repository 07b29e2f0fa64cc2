//! Which group a client's numbered write went to, so that the same number on a key of another group is refused.
//!
//! A group remembers replies by (client, seq) and refuses another request under a pair that it knows, but it never sees
//! what another group was sent. This table does, for the pairs that went through this router lately. It is a help against
//! clients that number wrongly and no promise: it forgets what falls on the same place, and at a restart. It never refuses
//! the first use of a pair, up to two pairs with equal 64-bit hashes. Asked for writes with `client` and `seq` only: one
//! hash and one cache line each, no allocation after the first.

use shards::ids::GroupId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Places in the table, each of eight bytes. A pair's place are the lower 16 bits of its hash.
const PLACES: usize = 1 << 16;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// The upper 48 bits of a pair's hash above its group's number plus one; 0 for none. Empty until the first pair comes.
    places: Vec<u64>,
}

impl Pairs {
    /// Whether this pair went to another group before. If not, it belongs to this one from now on.
    pub(super) fn is_elsewhere(&mut self, client: &[u8], seq: u64, group: GroupId) -> bool {
        if self.places.is_empty() {
            self.places.resize(PLACES, 0);
        }
        let hash = xxh3_64_with_seed(client, seq);
        let number = u16::try_from(group.0 + 1).expect("at most 4,096 groups");
        let mine = hash & !0xffff | u64::from(number);
        let place = &mut self.places[hash as usize % PLACES];
        if *place >> 16 == mine >> 16 && *place != mine && *place & 0xffff != 0 {
            return true;
        }
        *place = mine;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_stays_with_its_group_and_places_are_taken_over() {
        let mut pairs = Pairs::default();
        for seq in 0..1000 {
            assert!(!pairs.is_elsewhere(b"a", seq, GroupId(0)), "{seq}: the first use");
            assert!(!pairs.is_elsewhere(b"a", seq, GroupId(0)), "{seq}: a retry");
            assert!(pairs.is_elsewhere(b"a", seq, GroupId(1)), "{seq}: another group");
            assert!(!pairs.is_elsewhere(b"a", seq, GroupId(0)), "{seq}: the refusal changed nothing");
            assert!(!pairs.is_elsewhere(b"b", seq, GroupId(4095)), "{seq}: another client");
        }
        // A hundred thousand pairs fall on 65,536 places: none of them is refused.
        assert!((0..100_000).all(|seq| !pairs.is_elsewhere(b"c", seq, GroupId(2))));
    }
}
