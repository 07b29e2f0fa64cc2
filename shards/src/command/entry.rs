//! The data of one log entry: the commands that gathered while the last commit was in flight.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format, 1 |
//! | 1 | 1 | zero |
//! | 2 | 2 | number of commands |
//! | 4 | 4 | epoch |
//! | 8 | 8 | stamp, ms since 1970; never below the stamp of an earlier entry |
//! | 16 | | per command: u32 length, record |
//!
//! An entry holds 1 to 1,024 commands, so that a position fits the ten bits it has in a version. Empty data is the entry
//! that a new leader commits first.

use super::record::{Malformed, take, take_u32};
use crate::ids::Millis;

/// Bytes in front of each command.
pub const LENGTH_BYTES: usize = 4;
/// Bytes before the first command.
pub const HEAD_BYTES: usize = 16;
/// Most commands in one entry.
pub const COMMANDS_MAX: usize = 1024;
const FORMAT: u8 = 1;

/// Collects commands into the data of the next entry.
#[derive(Debug)]
pub struct EntryBuilder {
    bytes: Vec<u8>,
    count: u16,
}

impl Default for EntryBuilder {
    fn default() -> Self {
        Self::new(0)
    }
}

impl EntryBuilder {
    /// An entry without commands, with room for `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.max(HEAD_BYTES));
        bytes.resize(HEAD_BYTES, 0);
        Self { bytes, count: 0 }
    }

    /// Number of commands gathered.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes gathered, head included.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an encoded record and returns its position in the entry.
    pub fn push(&mut self, record: &[u8]) -> u16 {
        assert!(self.count() < COMMANDS_MAX, "the caller closes a full entry");
        let length = u32::try_from(record.len()).expect("a record is below 4 GiB");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(record);
        self.count += 1;
        self.count - 1
    }

    /// Closes the entry and returns its data.
    pub fn finish(mut self, epoch: u32, stamp: Millis) -> Vec<u8> {
        assert!(self.count > 0, "an entry without commands is never proposed");
        self.bytes[0] = FORMAT;
        self.bytes[2..4].copy_from_slice(&self.count.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&epoch.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&stamp.0.to_le_bytes());
        self.bytes
    }
}

/// The data of an entry, read.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Epoch of the versions that this entry's commands give.
    pub epoch: u32,
    /// The entry's time.
    pub stamp: Millis,
    left: u16,
    rest: &'a [u8],
}

/// A place between two commands of an entry, kept by whoever applies it in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    epoch: u32,
    stamp: Millis,
    left: u16,
    bytes_left: usize,
}

impl<'a> Entry<'a> {
    /// Where the commands to come stand.
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, stamp: self.stamp, left: self.left, bytes_left: self.rest.len() }
    }

    /// Bytes of the commands to come.
    pub fn bytes_left(&self) -> usize {
        self.rest.len()
    }

    /// Goes on at a place of the same data.
    ///
    /// # Panics
    /// When the data are shorter than those of the place.
    pub fn resume(data: &'a [u8], place: Place) -> Self {
        let Place { epoch, stamp, left, bytes_left } = place;
        Self { epoch, stamp, left, rest: &data[data.len() - bytes_left..] }
    }

    /// Reads the head; the commands come from the iterator.
    pub fn decode(data: &'a [u8]) -> Result<Self, Malformed> {
        let head = data.first_chunk::<HEAD_BYTES>().ok_or(Malformed("an entry shorter than its head"))?;
        if head[0] != FORMAT {
            return Err(Malformed("an entry of an unknown format"));
        }
        let left = u16::from_le_bytes([head[2], head[3]]);
        if left == 0 || usize::from(left) > COMMANDS_MAX {
            return Err(Malformed("an entry with an impossible number of commands"));
        }
        let epoch = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let stamp = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        Ok(Self { epoch, stamp: Millis(stamp), left, rest: &data[HEAD_BYTES..] })
    }

    /// The bytes of the next command; `None` after the last.
    pub fn next_record(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.left == 0 {
            return if self.rest.is_empty() {
                Ok(None)
            } else {
                Err(Malformed("bytes after the last command"))
            };
        }
        self.left -= 1;
        let length = take_u32(&mut self.rest)? as usize;
        take(&mut self.rest, length).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive() {
        let mut builder = EntryBuilder::new(0);
        assert_eq!(builder.push(b"one"), 0);
        assert_eq!(builder.push(b""), 1);
        let data = builder.finish(3, Millis(99));
        let mut entry = Entry::decode(&data).unwrap();
        assert_eq!((entry.epoch, entry.stamp), (3, Millis(99)));
        assert_eq!(entry.next_record(), Ok(Some(&b"one"[..])));
        let mut entry = Entry::resume(&data, entry.place());
        assert_eq!((entry.epoch, entry.stamp), (3, Millis(99)));
        assert_eq!(entry.next_record(), Ok(Some(&b""[..])));
        assert_eq!(entry.next_record(), Ok(None));
        let golden =
            [1, 0, 2, 0, 3, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'o', b'n', b'e', 0, 0, 0, 0];
        assert_eq!(data, golden);
    }

    #[test]
    fn damage_is_an_error() {
        let mut builder = EntryBuilder::new(0);
        builder.push(b"abc");
        let data = builder.finish(0, Millis(1));
        let walk = |data: &[u8]| -> Result<(), Malformed> {
            let mut entry = Entry::decode(data)?;
            while entry.next_record()?.is_some() {}
            Ok(())
        };
        assert_eq!(walk(&data), Ok(()));
        for end in 0..data.len() {
            assert!(walk(&data[..end]).is_err());
        }
        let longer = [&data[..], b"x"].concat();
        assert!(walk(&longer).is_err());
    }
}
