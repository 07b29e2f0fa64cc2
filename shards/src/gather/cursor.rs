//! The cursor of SCAN as clients hold it: a string that says where the next page begins.
//!
//! Layout before base64url without padding: {format u8 = 1, group u16, the shard's cursor (empty: its beginning), CRC-32C
//! u32 of all before}. It names a position by hash and key and nothing in memory, so it survives growth, restarts and
//! failover. The checksum tells a mangled cursor from a good one; it is no protection against forgery, and a forged one
//! reads nothing that SCAN would not.

use crate::ids::GroupId;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 3;
const CHECK_BYTES: usize = 4;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What each byte of a text stands for; 64 for none.
const VALUES: &[u8; 256] = &{
    let mut values = [64; 256];
    let mut value = 0;
    while value < 64 {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Appends the cursor for going on in `group` behind the shard's own cursor.
pub fn write(out: &mut Vec<u8>, group: GroupId, shard_cursor: &[u8]) {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + shard_cursor.len() + CHECK_BYTES);
    bytes.push(FORMAT);
    bytes.extend_from_slice(&u16::try_from(group.0).expect("at most 4,096 groups").to_le_bytes());
    bytes.extend_from_slice(shard_cursor);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    for chunk in bytes.chunks(3) {
        let word = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = word(0) << 16 | word(1) << 8 | word(2);
        for digit in 0..=chunk.len() {
            out.push(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63]);
        }
    }
}

/// Reads what [`write`] wrote: the group and the shard's own cursor. `None` for anything else.
pub fn read(text: &str) -> Option<(GroupId, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0;
        for at in 0..4 {
            let value = chunk.get(at).map_or(0, |byte| VALUES[usize::from(*byte)]);
            if value == 64 {
                return None;
            }
            bits = bits << 6 | u32::from(value);
        }
        // A chunk of one digit holds no byte.
        let count = chunk.len().checked_sub(1).filter(|count| *count > 0)?;
        bytes.extend_from_slice(&bits.to_be_bytes()[1..=count]);
    }
    let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*check) {
        return None;
    }
    let (head, shard_cursor) = body.split_first_chunk::<HEAD_BYTES>()?;
    if head[0] != FORMAT {
        return None;
    }
    Some((GroupId(u32::from(u16::from_le_bytes([head[1], head[2]]))), shard_cursor.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(group: u32, shard_cursor: &[u8]) -> String {
        let mut out = Vec::new();
        write(&mut out, GroupId(group), shard_cursor);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cursors_survive() {
        for length in 0..20 {
            let bytes: Vec<u8> = (0..length).map(|at: u8| at.wrapping_mul(37).wrapping_add(250)).collect();
            assert_eq!(read(&text(4095, &bytes)), Some((GroupId(4095), bytes)));
        }
    }

    #[test]
    fn golden_cursor() {
        assert_eq!(text(2, b"\x01ab"), GOLDEN);
        assert_eq!(read(GOLDEN), Some((GroupId(2), b"\x01ab".to_vec())));
    }

    const GOLDEN: &str = "AQIAAWFiUQS6fg";

    #[test]
    fn mangled_cursors_are_refused() {
        let good = text(7, b"some place");
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(read(&bad).is_none_or(|found| Some(found) == read(&good)), "{bad}");
            assert_eq!(read(&good[..at]), None);
        }
        for bad in ["", "A", "!!!!", "é", "AAAAAAAAAAA=", "\u{0}"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
