//! Several keys with values inside one record: [u16 key length, u32 value length, key, value], repeated.
//!
//! Keys are distinct; the router has already let the last value of a repeated key win. Order is the client's.

use super::record::{Malformed, take, take_u16, take_u32};

/// Appends one item; `value` is empty for commands that only name keys.
pub fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let key_length = u16::try_from(key.len()).expect("a key fits 16 bits of length");
    let value_length = u32::try_from(value.len()).expect("a value fits 32 bits of length");
    out.extend_from_slice(&key_length.to_le_bytes());
    out.extend_from_slice(&value_length.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Walks over items; ends at the first malformed one, which it yields as an error.
pub fn iter(bytes: &[u8]) -> Items<'_> {
    Items { rest: bytes }
}

/// Hands the items behind the first `walked` bytes to `each` until the end or until it says that it has enough; `walked`
/// follows. Whether the end is reached.
pub fn walk(
    bytes: &[u8],
    walked: &mut usize,
    mut each: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<bool, Malformed> {
    let mut rest = &bytes[*walked..];
    let mut goes_on = true;
    while goes_on && !rest.is_empty() {
        let (key, value) = read(&mut rest)?;
        goes_on = each(key, value);
        *walked = bytes.len() - rest.len();
    }
    Ok(rest.is_empty())
}

/// See [`iter`].
#[derive(Clone, Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl Items<'_> {
    /// Bytes of the items to come.
    pub fn bytes_left(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = read(&mut self.rest);
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

fn read<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let key_length = usize::from(take_u16(rest)?);
    let value_length = take_u32(rest)? as usize;
    Ok((take(rest, key_length)?, take(rest, value_length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_survive_and_damage_is_seen() {
        let mut bytes = Vec::new();
        push(&mut bytes, b"a", b"1");
        push(&mut bytes, b"bb", b"");
        let read: Vec<_> = iter(&bytes).map(Result::unwrap).collect();
        assert_eq!(read, [(&b"a"[..], &b"1"[..]), (b"bb", b"")]);
        assert!(iter(&bytes[..bytes.len() - 1]).any(|item| item.is_err()));
        let (mut walked, mut seen) = (0, Vec::new());
        let mut step = |seen: &mut Vec<Vec<u8>>| {
            walk(&bytes, &mut walked, |key, _| {
                seen.push(key.to_vec());
                false
            })
        };
        assert_eq!((step(&mut seen), step(&mut seen), step(&mut seen)), (Ok(false), Ok(true), Ok(true)));
        assert_eq!(seen, [b"a".to_vec(), b"bb".to_vec()]);
        assert!(walk(&bytes[..bytes.len() - 1], &mut 0, |_, _| true).is_err());
    }
}
