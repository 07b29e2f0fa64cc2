//! Pulling a snapshot: which bytes of which file, and the answer. Frames carry the checksum of each piece.
//!
//! | ask | bytes | | answer | bytes |
//! |---|---|---|---|---|
//! | index of the snapshot; 0 for the newest | 8 | | what it is, see [`Answer`] | 1 |
//! | first byte wanted | 8 | | index of the snapshot | 8 |
//! | most bytes wanted | 4 | | length of the whole file | 8 |
//! | | | | the bytes | rest |
//!
//! A puller that was cut off asks for the same index again from where it was; when that file is gone it starts anew with
//! the newest. Integers are little-endian.

use super::PayloadRefused;
use crate::command::record::{Malformed, take_u8, take_u32, take_u64};

/// The most bytes in one answer.
pub const PIECE_BYTES_MAX: u32 = 1 << 20;

/// A wish for bytes of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Index of the snapshot; 0 for the newest.
    pub index: u64,
    /// First byte wanted.
    pub offset: u64,
    /// Most bytes wanted; at most [`PIECE_BYTES_MAX`] come.
    pub bytes_max: u32,
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Bytes from the offset that was asked for.
    Piece {
        /// The snapshot's index.
        index: u64,
        /// Length of the whole file.
        length: u64,
        /// The bytes; none only at the end.
        bytes: &'a [u8],
    },
    /// There is no such snapshot any more, or none at all yet.
    None,
}

impl Ask {
    /// Appends the ask.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes_max.to_le_bytes());
    }

    /// Reads an ask.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(mut payload: &[u8]) -> Result<Self, PayloadRefused> {
        let rest = &mut payload;
        let mut read =
            || Ok(Self { index: take_u64(rest)?, offset: take_u64(rest)?, bytes_max: take_u32(rest)? });
        let ask = read().map_err(told)?;
        if rest.is_empty() { Ok(ask) } else { Err("bytes after an ask".into()) }
    }
}

impl<'a> Answer<'a> {
    /// Appends the answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Piece { index, length, bytes } => {
                out.push(1);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::None => out.push(2),
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(mut payload: &'a [u8]) -> Result<Self, PayloadRefused> {
        let rest = &mut payload;
        match take_u8(rest).map_err(told)? {
            1 => {
                let (index, length) = (take_u64(rest).map_err(told)?, take_u64(rest).map_err(told)?);
                Ok(Self::Piece { index, length, bytes: rest })
            }
            2 if rest.is_empty() => Ok(Self::None),
            _ => Err("an unknown answer about a snapshot".into()),
        }
    }
}

fn told(malformed: Malformed) -> PayloadRefused {
    PayloadRefused(malformed.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;

    #[test]
    fn both_survive_and_look_as_they_always_did() {
        let ask = Ask { index: 7, offset: 4096, bytes_max: 100 };
        let mut bytes = Vec::new();
        ask.encode(&mut bytes);
        assert_eq!(hex(&bytes), "0700000000000000001000000000000064000000");
        assert_eq!(Ask::decode(&bytes), Ok(ask));
        for answer in [Answer::Piece { index: 7, length: 9, bytes: b"abc" }, Answer::None] {
            bytes.clear();
            answer.encode(&mut bytes);
            assert_eq!(Answer::decode(&bytes), Ok(answer));
        }
        bytes.clear();
        Answer::Piece { index: 7, length: 9, bytes: b"abc" }.encode(&mut bytes);
        assert_eq!(hex(&bytes), "0107000000000000000900000000000000616263");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Ask::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}
