//! The mutable end of the index: documents that came last, appended only.
//!
//! Views share a tail with the writer (`Rc<RefCell<Tail>>`) and read it up to the number of documents it had when they
//! were pinned: nothing that is already there ever changes. Postings lie in chunks of one byte pool, a chain a term:
//! per document the distance to the one before (times two, plus one when the frequency is 1), the frequency unless it
//! is 1, and the distances between positions.

use super::super::codec::put_varint;
use super::bounds::{Coarse, Pair};
use super::dictionary::FieldId;
use super::segment::DocumentRecord;
use hashbrown::HashTable;

/// A tail is sealed when it has this many documents,
pub(crate) const DOCUMENTS_MAX: usize = 4096;
/// or this many bytes in pool and records.
pub(crate) const BYTES_MAX: usize = 2 << 20;

const CHUNK_BYTES_MIN: u32 = 16;
const CLASS_MAX: u8 = 7;
const LINK_BYTES: u32 = 4;

/// Length and norm of the documents in one field.
#[derive(Debug, Default)]
pub(crate) struct TailColumn {
    pub(crate) field: FieldId,
    pub(crate) lengths: Vec<u32>,
    /// Only for the whole value.
    pub(crate) norms: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    term: u32,
    first: u32,
    write: u32,
    /// Where the link of the chunk being written stands.
    end: u32,
    last_document: u32,
    count: u32,
    bounds: Coarse,
    class: u8,
}

#[derive(Debug, Default)]
pub(crate) struct Tail {
    records: Vec<u8>,
    record_at: Vec<u32>,
    columns: Vec<TailColumn>,
    vectors: Vec<i8>,
    heads: Vec<Head>,
    by_term: HashTable<u32>,
    pool: Vec<u8>,
}

fn hash_of(term: u32) -> u64 {
    (u64::from(term) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn chunk_bytes(class: u8) -> u32 {
    CHUNK_BYTES_MIN << class
}

impl Tail {
    pub(crate) fn documents(&self) -> u32 {
        self.record_at.len() as u32
    }

    pub(crate) fn is_full(&self, documents_max: usize) -> bool {
        self.record_at.len() >= documents_max || self.pool.len() + self.records.len() >= BYTES_MAX
    }

    pub(crate) fn record(&self, document: u32) -> DocumentRecord<'_> {
        let start = self.record_at[document as usize] as usize;
        let end = self.record_at.get(document as usize + 1).map_or(self.records.len(), |end| *end as usize);
        DocumentRecord::new(&self.records[start..end])
    }

    pub(crate) fn length(&self, field: FieldId, document: u32) -> u32 {
        let column = self.columns.iter().find(|column| column.field == field);
        column.and_then(|column| column.lengths.get(document as usize).copied()).unwrap_or(0)
    }

    pub(crate) fn columns(&self) -> &[TailColumn] {
        &self.columns
    }

    pub(crate) fn vectors(&self) -> &[i8] {
        &self.vectors
    }

    /// Appends a document from its (term, position) pairs, each term in the upper half, in order. It has at least
    /// `length_min` tokens in each field that it has any in.
    ///
    /// Returns its number; `is_new` hears of every term that this tail did not have.
    pub(crate) fn push(
        &mut self,
        key: &[u8],
        pairs: &[u64],
        length_min: u32,
        mut is_new: impl FnMut(u32),
    ) -> u32 {
        let document = self.push_record(key, &[]);
        let mut last_term = 0;
        for group in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            let term = (group[0] >> 32) as u32;
            put_varint(&mut self.records, term - last_term);
            last_term = term;
            self.push_posting(term, (document, length_min), group, &mut is_new);
        }
        document
    }

    /// Appends the record of a document, its terms as varint distances; returns its number. Postings may have been
    /// pushed for it already.
    pub(crate) fn push_record(&mut self, key: &[u8], terms: &[u8]) -> u32 {
        let document = self.documents();
        self.record_at.push(u32::try_from(self.records.len()).expect("a tail is sealed long before 4 GiB"));
        put_varint(&mut self.records, key.len() as u32);
        self.records.extend_from_slice(key);
        self.records.extend_from_slice(terms);
        document
    }

    /// Sets the length of the newest document in a field, and its norm where the field keeps norms.
    pub(crate) fn set_length(&mut self, field: FieldId, length: u32, norm: Option<f32>) {
        let at = self.columns.iter().position(|column| column.field == field).unwrap_or_else(|| {
            self.columns.push(TailColumn { field, ..TailColumn::default() });
            self.columns.len() - 1
        });
        let column = &mut self.columns[at];
        let before = self.record_at.len() - 1;
        column.lengths.resize(before, 0);
        column.lengths.push(length);
        if let Some(norm) = norm {
            column.norms.resize(before, 0.0);
            column.norms.push(norm);
        }
    }

    /// Appends the newest document's vector.
    pub(crate) fn push_vector(&mut self, vector: &[i8]) {
        self.vectors.extend_from_slice(vector);
    }

    /// Appends a posting of a document whose number is the newest, or the next, with the least of its lengths; positions
    /// rise, and what stands above their lower half is passed over.
    pub(crate) fn push_posting<P: Copy + Into<u64>>(
        &mut self,
        term: u32,
        (document, length): (u32, u32),
        group: &[P],
        is_new: &mut impl FnMut(u32),
    ) {
        let hash = hash_of(term);
        let heads = &self.heads;
        let at = match self.by_term.find(hash, |at| heads[*at as usize].term == term) {
            Some(at) => *at,
            None => {
                let at = self.heads.len() as u32;
                let first = self.pool.len() as u32;
                self.pool.resize(self.pool.len() + CHUNK_BYTES_MIN as usize, 0);
                let end = first + CHUNK_BYTES_MIN - LINK_BYTES;
                self.heads.push(Head {
                    term,
                    first,
                    write: first,
                    end,
                    last_document: 0,
                    count: 0,
                    bounds: Coarse::default(),
                    class: 0,
                });
                let heads = &self.heads;
                self.by_term.insert_unique(hash, at, |at| hash_of(heads[*at as usize].term));
                is_new(term);
                at
            }
        };
        let mut head = self.heads[at as usize];
        let frequency = group.len() as u32;
        let distance = document - head.last_document;
        self.put(&mut head, distance << 1 | u32::from(frequency == 1));
        if frequency != 1 {
            self.put(&mut head, frequency);
        }
        let mut before = 0;
        for pair in group {
            let position = (*pair).into() as u32;
            self.put(&mut head, position - before);
            before = position;
        }
        head.bounds.widen_by(Pair { frequency, length });
        head.last_document = document;
        head.count += 1;
        self.heads[at as usize] = head;
    }

    #[inline]
    fn put(&mut self, head: &mut Head, mut value: u32) {
        while value >= 0x80 {
            self.put_byte(head, value as u8 | 0x80);
            value >>= 7;
        }
        self.put_byte(head, value as u8);
    }

    #[inline]
    fn put_byte(&mut self, head: &mut Head, byte: u8) {
        if head.write == head.end {
            head.class = (head.class + 1).min(CLASS_MAX);
            let start = u32::try_from(self.pool.len()).expect("a tail is sealed long before 4 GiB");
            let link = head.end as usize;
            self.pool[link..link + LINK_BYTES as usize].copy_from_slice(&start.to_le_bytes());
            self.pool.resize(self.pool.len() + chunk_bytes(head.class) as usize, 0);
            head.write = start;
            head.end = start + chunk_bytes(head.class) - LINK_BYTES;
        }
        self.pool[head.write as usize] = byte;
        head.write += 1;
    }

    /// The terms that the tail holds, in order. Costs a sort.
    pub(crate) fn terms(&self) -> Vec<u32> {
        let mut terms: Vec<u32> = self.heads.iter().map(|head| head.term).collect();
        terms.sort_unstable();
        terms
    }

    /// The postings of a term.
    pub(crate) fn postings(&self, term: u32) -> Option<TailReader<'_>> {
        let at = *self.by_term.find(hash_of(term), |at| self.heads[*at as usize].term == term)?;
        let head = &self.heads[at as usize];
        let end = head.first + CHUNK_BYTES_MIN - LINK_BYTES;
        Some(TailReader {
            pool: &self.pool,
            at: head.first,
            end,
            class: 0,
            left: head.count,
            last_document: 0,
            bounds: head.bounds,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let columns: usize =
            self.columns.iter().map(|c| (c.lengths.capacity() + c.norms.capacity()) * 4).sum();
        let heads = self.heads.capacity() * size_of::<Head>() + self.by_term.allocation_size();
        self.records.capacity()
            + self.record_at.capacity() * 4
            + columns
            + heads
            + self.pool.capacity()
            + self.vectors.capacity()
    }
}

/// Reads one term's chain of chunks.
#[derive(Clone, Debug)]
pub(crate) struct TailReader<'a> {
    pool: &'a [u8],
    at: u32,
    end: u32,
    class: u8,
    left: u32,
    last_document: u32,
    bounds: Coarse,
}

impl TailReader<'_> {
    #[inline]
    fn byte(&mut self) -> u8 {
        if self.at == self.end {
            self.at = super::super::codec::u32_at(self.pool, self.end as usize);
            self.class = (self.class + 1).min(CLASS_MAX);
            self.end = self.at + chunk_bytes(self.class) - LINK_BYTES;
        }
        let byte = self.pool[self.at as usize];
        self.at += 1;
        byte
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> u32 {
        let mut byte = self.byte();
        let mut value = u32::from(byte & 0x7f);
        let mut shift = 7;
        while byte >= 0x80 {
            byte = self.byte();
            value |= u32::from(byte & 0x7f) << shift;
            shift += 7;
        }
        value
    }

    /// What no posting of the list exceeds, those after a view included.
    pub(crate) fn bounds(&self) -> Coarse {
        self.bounds
    }

    /// How many postings are still to come.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// The next document and frequency; as many position distances follow, to be read with [`TailReader::varint`].
    #[inline]
    pub(crate) fn next_posting(&mut self) -> Option<(u32, u32)> {
        self.left = self.left.checked_sub(1)?;
        let head = self.varint();
        self.last_document += head >> 1;
        let frequency = if head & 1 == 1 { 1 } else { self.varint() };
        Some((self.last_document, frequency))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postings_come_back_across_chunks() {
        let mut tail = Tail::default();
        let mut new = Vec::new();
        for document in 0..500u64 {
            let mut pairs: Vec<u64> =
                (0..document % 7 + 1).map(|n| 9 << 32 | (n * 1000 + document)).collect();
            pairs.extend((0..document % 3).map(|n| 70_000 << 32 | n));
            tail.push(format!("key{document}").as_bytes(), &pairs, 9, |term| new.push(term));
            tail.set_length(0, pairs.len() as u32, Some(1.5));
        }
        assert_eq!(new, [9, 70_000]);
        assert_eq!(tail.terms(), [9, 70_000]);
        let mut reader = tail.postings(9).unwrap();
        assert_eq!(reader.bounds().to_bytes(), [7, 9, 9, 9]);
        for document in 0..500u32 {
            assert_eq!(reader.next_posting(), Some((document, document % 7 + 1)));
            let mut position = 0;
            for n in 0..document % 7 + 1 {
                position += reader.varint();
                assert_eq!(position, n * 1000 + document);
            }
        }
        assert_eq!(reader.next_posting(), None);
        let record = tail.record(2);
        assert_eq!((record.key(), record.terms().collect::<Vec<u32>>()), (&b"key2"[..], vec![9, 70_000]));
        assert_eq!((tail.length(0, 4), tail.length(1, 4), tail.columns()[0].norms[4]), (6, 0, 1.5));
    }
}
