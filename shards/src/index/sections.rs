//! Sections of a snapshot: a kind, a body and the CRC-32C of both, in an order that begins and ends.
//!
//! Whoever writes a section appends kind and body and then seals it; whoever loads hands each to [`SectionOrder::take`] first.

use super::codec::{Corrupt, Reader};

/// Appends the checksum of a section that begins at `start`; of nothing, if nothing was appended.
pub(crate) fn seal(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        let checksum = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }
}

/// How far a run of sections has been loaded: the first begins it and comes once, the last ends it.
#[derive(Debug)]
pub(crate) struct SectionOrder {
    first: u8,
    last: u8,
    is_begun: bool,
    is_complete: bool,
}

impl SectionOrder {
    /// The order in which kind `first` comes before all others and kind `last` after them.
    pub(crate) fn new(first: u8, last: u8) -> Self {
        Self { first, last, is_begun: false, is_complete: false }
    }

    /// The kind and body of the next section.
    ///
    /// # Errors
    /// The section is damaged, or out of order.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<(u8, Reader<'a>), Corrupt> {
        let Some((section, checksum)) = bytes.split_last_chunk::<4>() else {
            return Err(Corrupt("short section"));
        };
        if crc32c::crc32c(section) != u32::from_le_bytes(*checksum) {
            return Err(Corrupt("checksum of a section"));
        }
        let mut reader = Reader::new(section);
        let kind = reader.u8()?;
        if self.is_complete || (kind == self.first) == self.is_begun {
            return Err(Corrupt("order of sections"));
        }
        self.is_begun = true;
        self.is_complete = kind == self.last;
        Ok((kind, reader))
    }

    /// Whether the last section has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_checksums_are_held() {
        let section = |kind: u8| {
            let mut bytes = vec![kind, 7];
            seal(&mut bytes, 0);
            bytes
        };
        let check = |kinds: &[u8]| {
            let mut order = SectionOrder::new(1, 9);
            let taken = kinds.iter().try_for_each(|kind| order.take(&section(*kind)).map(drop));
            taken.map(|()| order.is_complete())
        };
        assert_eq!(check(&[1, 5, 5, 9]), Ok(true));
        assert_eq!(check(&[1, 5]), Ok(false));
        for wrong in [&[5][..], &[9], &[1, 1], &[1, 9, 5], &[1, 9, 9]] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
        let mut empty = vec![1, 2, 3];
        seal(&mut empty, 3);
        assert_eq!(empty.len(), 3, "nothing is not a section");
        for at in 0..6 {
            let mut damaged = section(1);
            damaged[at] ^= 4;
            assert!(SectionOrder::new(1, 9).take(&damaged).is_err());
        }
    }
}
