//! The slot rule: which of 4,096 fixed parts of the key space a key belongs to. Servers place keys by it, and clients that go
//! to leaders themselves follow it.
//!
//! The rule is part of the storage format and of the protocol: it never changes. Slots say nothing of groups or nodes;
//! HELLO's reply does.

use xxhash_rust::xxh3::xxh3_64;

/// The number of slots.
pub const SLOTS: u16 = 4096;

/// The slot of a key, below [`SLOTS`]: the upper 12 bits of xxh3_64 of its `{tag}` when it has a non-empty one, of the whole
/// key otherwise. `hash` is xxh3_64 of the whole key, which callers have anyway.
#[inline]
pub fn slot_of_hashed(key: &[u8], hash: u64) -> u16 {
    (tag_of(key).map_or(hash, xxh3_64) >> 52) as u16
}

/// As [`slot_of_hashed`] for a key that was not hashed yet.
pub fn slot_of(key: &[u8]) -> u16 {
    slot_of_hashed(key, xxh3_64(key))
}

/// The bytes between the first `{` and the next `}`, when there are any.
#[inline]
fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = memchr::memchr(b'{', key)?;
    let rest = &key[open + 1..];
    let close = memchr::memchr(b'}', rest)?;
    (close > 0).then(|| &rest[..close])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_share_a_slot() {
        assert_eq!(slot_of(b"{user1}.name"), slot_of(b"x{user1}y"));
        assert_eq!(slot_of(b"{user1}.name"), slot_of(b"user1"));
        for key in [&b"{}a"[..], b"{a", b"a}", b"}{"] {
            assert_eq!(slot_of(key), (xxh3_64(key) >> 52) as u16, "no tag");
        }
        assert!((0..10_000u32).all(|n| slot_of(&n.to_le_bytes()) < SLOTS));
        // Golden: the published xxh3_64 of no bytes is 2d06800538d394c2.
        assert_eq!(slot_of(b""), 0x2d0);
    }
}
