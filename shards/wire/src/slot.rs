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
    let hash = if may_have_tag(key) { tag_of(key).map_or(hash, xxh3_64) } else { hash };
    (hash >> 52) as u16
}

/// As [`slot_of_hashed`] for a key that was not hashed yet.
pub fn slot_of(key: &[u8]) -> u16 {
    slot_of_hashed(key, xxh3_64(key))
}

/// Whether a `{` stands in the key: false only if there is none. Keys are short and seldom tagged, so this looks at eight
/// bytes at a time without a call.
#[inline]
fn may_have_tag(key: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = key.as_chunks::<8>();
    let mut marks = 0;
    for word in words {
        // x - 1 borrows into the top bit where a byte was zero, and perhaps in the byte above it.
        let brace = u64::from_le_bytes(*word) ^ (ONES * b'{' as u64);
        marks |= brace.wrapping_sub(ONES) & !brace;
    }
    marks & TOPS != 0 || rest.contains(&b'{')
}

/// The bytes between the first `{` and the next `}`, when there are any.
#[cold]
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
        assert_eq!(slot_of(b"a long name of {user1} and more"), slot_of(b"user1"));
        assert_eq!(slot_of(b"eight by{user1}"), slot_of(b"user1"));
        for key in [&b"{}a"[..], b"{a", b"a}", b"}{", b"eight by{}", b"0123456{"] {
            assert_eq!(slot_of(key), (xxh3_64(key) >> 52) as u16, "no tag");
        }
        assert!((0..10_000u32).all(|n| slot_of(&n.to_le_bytes()) < SLOTS));
        // Golden: the published xxh3_64 of no bytes is 2d06800538d394c2.
        assert_eq!(slot_of(b""), 0x2d0);
    }
}
