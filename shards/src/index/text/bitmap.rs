//! A growing set of document numbers, shared with pinned views by copy on write.

use super::super::codec::{Corrupt, Reader, put_varint_u64};

/// A bit a document; documents beyond the end are not in the set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    count: u32,
}

impl Bitmap {
    pub(crate) fn contains(&self, document: u32) -> bool {
        self.words.get(document as usize / 64).is_some_and(|word| word >> (document % 64) & 1 == 1)
    }

    /// Adds a document that is not in the set yet.
    pub(crate) fn insert(&mut self, document: u32) {
        let word = document as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1u64 << (document % 64);
        assert!(self.words[word] & bit == 0, "a document dies once");
        self.words[word] |= bit;
        self.count += 1;
    }

    /// Number of documents in the set.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn bytes(&self) -> usize {
        self.words.capacity() * 8
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.words.len() as u64);
        for word in &self.words {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads what [`Bitmap::encode`] wrote.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let length = reader.count(8)?;
        let words = (0..length).map(|_| reader.u64()).collect::<Result<Vec<u64>, Corrupt>>()?;
        let count = words.iter().map(|word| word.count_ones()).sum();
        Ok(Self { words, count })
    }

    /// Whether every document in the set is below `limit`.
    pub(crate) fn is_below(&self, limit: usize) -> bool {
        let last = self.words.iter().rposition(|word| *word != 0);
        last.is_none_or(|at| at * 64 + 63 - (self.words[at].leading_zeros() as usize) < limit)
    }
}
