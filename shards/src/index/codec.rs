//! Little-endian integers and varints over byte slices: writing to a `Vec`, reading with bounds checks.
//!
//! Readers never panic on foreign bytes: a short or overlong input is [`Corrupt`]. The unchecked readers
//! ([`varint_at`], [`u32_at`]) are for bytes that this process wrote or that a loader has validated.

/// Bytes that do not hold what they should: short, overlong, or with a wrong checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt(
    /// What was being read.
    pub &'static str,
);

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "corrupt index bytes: {}", self.0)
    }
}

impl std::error::Error for Corrupt {}

/// Appends `value` as LEB128, one to five bytes.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` as LEB128, one to ten bytes.
pub(crate) fn put_varint_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a varint of trusted bytes at `*at` and moves `*at` past it.
#[inline]
pub(crate) fn varint_at(bytes: &[u8], at: &mut usize) -> u32 {
    let mut byte = bytes[*at];
    *at += 1;
    let mut value = u32::from(byte & 0x7f);
    let mut shift = 7;
    while byte >= 0x80 {
        byte = bytes[*at];
        *at += 1;
        value |= u32::from(byte & 0x7f) << (shift & 31);
        shift += 7;
    }
    value
}

/// Moves `*at` past `count` varints of trusted bytes.
#[inline]
pub(crate) fn skip_varints(bytes: &[u8], at: &mut usize, mut count: u32) {
    // Eight bytes hold at most eight ends, so while as many are wanted all of them may be passed.
    while count >= 8
        && let Some(eight) = bytes[*at..].first_chunk::<8>()
    {
        count -= (!u64::from_le_bytes(*eight) & 0x8080_8080_8080_8080).count_ones();
        *at += 8;
    }
    while count > 0 {
        count -= u32::from(bytes[*at] < 0x80);
        *at += 1;
    }
}

/// The little-endian `u32` at `at` of trusted bytes.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

/// Reads foreign bytes front to back.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Corrupt> {
        if length > self.bytes.len() {
            return Err(Corrupt("short input"));
        }
        let (head, tail) = self.bytes.split_at(length);
        self.bytes = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32_at(self.take(4)?, 0))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Corrupt> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    pub(crate) fn varint_u64(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Corrupt("overlong varint"))
    }

    pub(crate) fn varint(&mut self) -> Result<u32, Corrupt> {
        u32::try_from(self.varint_u64()?).map_err(|_| Corrupt("varint beyond 32 bits"))
    }

    /// A length that must fit what is left, each counted item taking at least `item_bytes_min` bytes.
    pub(crate) fn count(&mut self, item_bytes_min: usize) -> Result<usize, Corrupt> {
        let count = usize::try_from(self.varint_u64()?).map_err(|_| Corrupt("count"))?;
        if count.checked_mul(item_bytes_min).is_none_or(|bytes| bytes > self.bytes.len()) {
            return Err(Corrupt("count beyond the input"));
        }
        Ok(count)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Corrupt> {
        let length = self.count(1)?;
        self.take(length)
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, Corrupt> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Corrupt("not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_their_edges() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u32::MAX - 1, u32::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut at = 0;
            assert_eq!((varint_at(&out, &mut at), at), (value, out.len()));
            assert_eq!(Reader::new(&out).varint(), Ok(value));
        }
        let mut out = Vec::new();
        put_varint_u64(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).varint_u64(), Ok(u64::MAX));
        assert!(Reader::new(&out).varint().is_err(), "64 bits do not fit 32");
        assert!(Reader::new(&[0x80; 11]).varint_u64().is_err());
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        for n in 0..100u32 {
            starts.push(out.len());
            put_varint(&mut out, 1 << (n * 7 % 32));
        }
        for (count, start) in starts.iter().enumerate() {
            let mut at = 0;
            skip_varints(&out, &mut at, count as u32);
            assert_eq!(at, *start, "{count} varints are passed");
        }
        assert!(Reader::new(&[0x80]).varint_u64().is_err());
        assert!(Reader::new(&[200, 1, 7]).bytes().is_err());
    }
}
