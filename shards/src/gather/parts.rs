//! The layouts of what shards answer to a gathering router ([`ReplyKind::Part`](crate::batch::ReplyKind::Part)).
//!
//! Unversioned: they never leave the process (peer links will carry them between equal versions only). Every reader
//! checks bounds and returns an error for bytes that are no such part.
//!
//! | answer to | layout |
//! |---|---|
//! | `ReadMany` | per key {found u8, version 12, length u32, value}, in the order of the request |
//! | `Scan` | cursor, items |
//! | `DeletePrefix` | count u64, cursor |
//! | `TxnStart` of kind read | items; an absent key has an empty value |
//! | `Recall` | nothing: the request is fresh |
//! | `Info` | a JSON object |
//!
//! A cursor is 0 at the end, or {1, hash u64, key length u16, key}.

use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::Version;

/// One key's answer to `ReadMany`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPart<'a> {
    /// The value; `None` for an absent key.
    pub value: Option<&'a [u8]>,
    /// Version of the record, or of the last delete near an absent key.
    pub version: Version,
}

/// Reads the next key's answer off the front of a `ReadMany` part.
pub fn take_read<'a>(rest: &mut &'a [u8]) -> Result<ReadPart<'a>, Malformed> {
    let found = match take_u8(rest)? {
        0 => false,
        1 => true,
        _ => return Err(Malformed("a key that is neither found nor absent")),
    };
    let version = Version { epoch: take_u32(rest)?, place: take_u64(rest)? };
    let length = take_u32(rest)? as usize;
    let value = take(rest, length)?;
    if !found && length > 0 {
        return Err(Malformed("an absent key with a value"));
    }
    Ok(ReadPart { value: found.then_some(value), version })
}

/// Reads a cursor off the front: its bytes, or `None` at the end of the shard.
pub fn take_cursor<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    let whole = *rest;
    match take_u8(rest)? {
        0 => return Ok(None),
        1 => {}
        _ => return Err(Malformed("an unknown cursor")),
    }
    take_u64(rest)?;
    let length = usize::from(take_u16(rest)?);
    take(rest, length)?;
    Ok(Some(&whole[..whole.len() - rest.len()]))
}

/// Reads an answer to `DeletePrefix`: how many keys went, and where to go on.
pub fn slice(mut bytes: &[u8]) -> Result<(u64, Option<&[u8]>), Malformed> {
    let rest = &mut bytes;
    let count = take_u64(rest)?;
    let cursor = take_cursor(rest)?;
    if rest.is_empty() { Ok((count, cursor)) } else { Err(Malformed("bytes after a slice")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &[u8], read: impl Fn(&[u8]) -> bool) {
        assert!(read(bytes));
        for end in 0..bytes.len() {
            assert!(!read(&bytes[..end]), "cut at {end}");
        }
    }

    #[test]
    fn parts_are_bounds_checked() {
        let mut cursor = vec![1];
        cursor.extend_from_slice(&7u64.to_le_bytes());
        cursor.extend_from_slice(&2u16.to_le_bytes());
        cursor.extend_from_slice(b"ab");
        cut(&cursor, |mut bytes| take_cursor(&mut bytes).is_ok());
        assert_eq!(take_cursor(&mut &cursor[..]), Ok(Some(&cursor[..])));
        assert_eq!(take_cursor(&mut &[0u8, 9][..]), Ok(None));
        assert!(take_cursor(&mut &[2u8][..]).is_err());

        let mut bytes = 5u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(&cursor);
        cut(&bytes, |bytes| slice(bytes).is_ok());
        assert_eq!(slice(&bytes), Ok((5, Some(&cursor[..]))));
        bytes.push(0);
        assert!(slice(&bytes).is_err());

        let mut read = vec![1, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        read.extend_from_slice(b"77");
        cut(&read, |mut bytes| take_read(&mut bytes).is_ok());
        let version = Version { epoch: 3, place: 8 };
        assert_eq!(take_read(&mut &read[..]), Ok(ReadPart { value: Some(b"77"), version }));
        read[0] = 0;
        assert!(take_read(&mut &read[..]).is_err(), "absent and with a value");
        read[0] = 2;
        assert!(take_read(&mut &read[..]).is_err());
    }
}
