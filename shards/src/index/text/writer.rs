//! Builds a segment: first its documents, then its terms in ascending order of id, each posting by posting.

use super::super::codec::{put_varint, u32_at};
use super::bounds::{Bounds, Coarse, NO_BOUNDS, Pair};
use super::dictionary::FieldId;
use super::score::{document_weight, round_up};
use super::segment::{BLOCK, BOUNDS_IN_META, Column, Entry, META_BYTES, Packed, Segment, TermSet};
use bitpacking::{BitPacker, BitPacker4x};

struct GrowingColumn {
    field: FieldId,
    lengths: Vec<u32>,
    norms: Vec<f32>,
}

/// A segment in the making.
pub(crate) struct SegmentWriter {
    packer: BitPacker4x,
    records: Vec<u8>,
    record_at: Vec<u32>,
    columns: Vec<GrowingColumn>,
    vectors: Vec<i8>,
    terms: Vec<u32>,
    entries: Vec<Entry>,
    postings: Vec<u8>,
    positions: Vec<u8>,
    term: TermWriter,
}

/// The state of the term being written.
struct TermWriter {
    id: u32,
    column: Option<usize>,
    count: u32,
    /// The last document of the last full block.
    block_start: u32,
    filled: usize,
    documents: [u32; BLOCK],
    frequencies: [u32; BLOCK],
    /// Of the full blocks.
    bounds_before: Bounds,
    metas: Vec<u8>,
    data: Vec<u8>,
    /// The bounds of the full blocks, as bytes.
    bounds_data: Vec<u8>,
    positions_at: usize,
    block_positions_at: usize,
}

/// How much to reserve, so that nothing large is ever moved while the segment grows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    pub(crate) records: usize,
    pub(crate) documents: usize,
    pub(crate) postings: usize,
    pub(crate) positions: usize,
    pub(crate) vectors: usize,
}

impl GrowingColumn {
    /// Length and norm of a document.
    #[inline]
    fn of(&self, document: u32) -> (u32, f32) {
        let at = document as usize;
        (self.lengths.get(at).copied().unwrap_or(0), self.norms.get(at).copied().unwrap_or(0.0))
    }
}

impl TermWriter {
    /// Documents and frequencies since the last full block.
    fn gathered(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let gathered = self.documents.iter().zip(&self.frequencies).take(self.filled);
        gathered.map(|(document, frequency)| (*document, *frequency))
    }
}

impl SegmentWriter {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let mut record_at = Vec::with_capacity(sizes.documents + 1);
        record_at.push(0);
        Self {
            packer: BitPacker4x::new(),
            records: Vec::with_capacity(sizes.records),
            record_at,
            columns: Vec::new(),
            vectors: Vec::with_capacity(sizes.vectors),
            terms: Vec::new(),
            entries: Vec::new(),
            postings: Vec::with_capacity(sizes.postings),
            positions: Vec::with_capacity(sizes.positions),
            term: TermWriter {
                id: 0,
                column: None,
                count: 0,
                block_start: 0,
                filled: 0,
                documents: [0; BLOCK],
                frequencies: [0; BLOCK],
                bounds_before: NO_BOUNDS,
                metas: Vec::new(),
                data: Vec::new(),
                bounds_data: Vec::new(),
                positions_at: 0,
                block_positions_at: 0,
            },
        }
    }

    /// Appends a document and returns its number.
    pub(crate) fn push_document(&mut self, record: &[u8], vector: &[i8]) -> u32 {
        self.records.extend_from_slice(record);
        self.record_at.push(u32::try_from(self.records.len()).expect("merges stay below 2 GiB"));
        self.vectors.extend_from_slice(vector);
        self.record_at.len() as u32 - 2
    }

    /// Sets the length of the newest document in a field.
    pub(crate) fn set_length(&mut self, field: FieldId, length: u32, norm: Option<f32>) {
        let at = self.columns.iter().position(|column| column.field == field).unwrap_or_else(|| {
            self.columns.push(GrowingColumn { field, lengths: Vec::new(), norms: Vec::new() });
            self.columns.len() - 1
        });
        let before = self.record_at.len() - 2;
        let column = &mut self.columns[at];
        column.lengths.resize(before, 0);
        column.lengths.push(length);
        if let Some(norm) = norm {
            column.norms.resize(before, 0.0);
            column.norms.push(norm);
        }
    }

    /// Begins a term; ids rise.
    pub(crate) fn begin_term(&mut self, id: u32, field: FieldId) {
        assert!(self.terms.last().is_none_or(|last| *last < id), "terms come in order");
        let term = &mut self.term;
        term.id = id;
        term.column = self.columns.iter().position(|column| column.field == field);
        term.count = 0;
        term.block_start = 0;
        term.filled = 0;
        term.bounds_before = NO_BOUNDS;
        term.metas.clear();
        term.data.clear();
        term.bounds_data.clear();
        term.positions_at = self.positions.len();
        term.block_positions_at = self.positions.len();
    }

    /// Where the raw position distances of the next posting go.
    pub(crate) fn positions(&mut self) -> &mut Vec<u8> {
        &mut self.positions
    }

    /// Appends a posting of the current term, whose positions have been written.
    pub(crate) fn push(&mut self, document: u32, frequency: u32) {
        let term = &mut self.term;
        term.documents[term.filled] = document;
        term.frequencies[term.filled] = frequency;
        term.filled += 1;
        term.count += 1;
        if term.filled == BLOCK {
            self.flush_block();
        }
    }

    /// The bounds of the postings since the last full block.
    fn bounds(&self) -> Bounds {
        let column = self.term.column.map(|at| &self.columns[at]);
        let mut bounds = NO_BOUNDS;
        for (document, frequency) in self.term.gathered() {
            let (length, norm) = column.map_or((0, 0.0), |column| column.of(document));
            bounds.widen_by(Pair { frequency, length });
            let weight = if norm > 0.0 {
                round_up(document_weight(frequency) / f64::from(norm))
            } else {
                f32::INFINITY
            };
            bounds.weight_max = bounds.weight_max.max(weight);
        }
        bounds
    }

    /// The coarse bounds of the same.
    fn coarse(&self) -> Coarse {
        let column = self.term.column.map(|at| &self.columns[at]);
        let mut bounds = Coarse::default();
        for (document, frequency) in self.term.gathered() {
            let length = column.map_or(0, |column| column.of(document).0);
            bounds.widen_by(Pair { frequency, length });
        }
        bounds
    }

    fn flush_block(&mut self) {
        let bounds = self.bounds();
        let (packer, term) = (self.packer, &mut self.term);
        let last = term.documents[BLOCK - 1];
        let relative = term.block_positions_at - term.positions_at;
        let weight_max = bounds.weight_max.to_bits();
        // Where the bounds stand is known when all data are there.
        let bounds_at = term.bounds_data.len();
        for value in [last, term.data.len() as u32, relative as u32, weight_max, bounds_at as u32] {
            term.metas.extend_from_slice(&value.to_le_bytes());
        }
        bounds.encode(&mut term.bounds_data);
        term.bounds_before.widen(&bounds);
        for frequency in &mut term.frequencies {
            *frequency -= 1;
        }
        let wide = packer.num_bits_sorted(term.block_start, &term.documents);
        let narrow = packer.num_bits(&term.frequencies);
        term.data.extend_from_slice(&[wide, narrow]);
        let at = term.data.len();
        let sizes = (BitPacker4x::compressed_block_size(wide), BitPacker4x::compressed_block_size(narrow));
        term.data.resize(at + sizes.0 + sizes.1, 0);
        packer.compress_sorted(term.block_start, &term.documents, &mut term.data[at..at + sizes.0], wide);
        packer.compress(&term.frequencies, &mut term.data[at + sizes.0..], narrow);
        term.block_start = last;
        term.filled = 0;
        term.block_positions_at = self.positions.len();
    }

    /// Ends the current term; false if it had no posting, and then it is not in the segment.
    pub(crate) fn end_term(&mut self) -> bool {
        let count = self.term.count;
        if count == 0 {
            return false;
        }
        // Bounds take looks at the columns: those of a single posting are never asked for.
        let coarse = if (2..BLOCK as u32).contains(&count) { self.coarse() } else { Coarse::default() };
        let bounds = if count >= BLOCK as u32 { self.bounds() } else { NO_BOUNDS };
        let term = &mut self.term;
        self.terms.push(term.id);
        self.entries.push(Entry {
            postings_at: u32::try_from(self.postings.len()).expect("merges stay below 2 GiB"),
            positions_at: u32::try_from(term.positions_at).expect("merges stay below 2 GiB"),
        });
        let out = &mut self.postings;
        put_varint(out, term.count);
        if term.count >= BLOCK as u32 {
            let bounds_at = term.data.len() as u32;
            for meta in term.metas.as_chunks_mut::<META_BYTES>().0 {
                let offset = bounds_at + u32_at(meta, BOUNDS_IN_META);
                meta[BOUNDS_IN_META..].copy_from_slice(&offset.to_le_bytes());
            }
            let rest_at = bounds_at + term.bounds_data.len() as u32;
            bounds.encode(&mut term.bounds_data);
            let all_at = bounds_at + term.bounds_data.len() as u32;
            term.bounds_before.widen(&bounds);
            term.bounds_before.encode(&mut term.bounds_data);
            out.extend_from_slice(&term.metas);
            let relative = term.block_positions_at - term.positions_at;
            let data_at = bounds_at + term.bounds_data.len() as u32;
            for value in [data_at, relative as u32, rest_at, all_at] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            out.extend_from_slice(&term.data);
            out.extend_from_slice(&term.bounds_data);
        } else if term.count >= 2 {
            out.extend_from_slice(&coarse.to_bytes());
        }
        let mut before = term.block_start;
        for (document, frequency) in term.documents.iter().zip(&term.frequencies).take(term.filled) {
            put_varint(out, (document - before) << 1 | u32::from(*frequency == 1));
            if *frequency != 1 {
                put_varint(out, *frequency);
            }
            before = *document;
        }
        true
    }

    /// The finished segment.
    pub(crate) fn finish(mut self) -> Segment {
        let documents = self.record_at.len() - 1;
        let columns = self.columns.iter_mut().map(|column| {
            column.lengths.resize(documents, 0);
            if !column.norms.is_empty() {
                column.norms.resize(documents, 0.0);
            }
            column.norms.shrink_to_fit();
            Column::new(column.field, Packed::new(&column.lengths), std::mem::take(&mut column.norms))
        });
        let mut columns: Vec<Column> = columns.collect();
        columns.sort_by_key(|column| column.field);
        for list in [&mut self.records, &mut self.postings, &mut self.positions] {
            list.shrink_to_fit();
        }
        self.record_at.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.vectors.shrink_to_fit();
        Segment {
            records: self.records,
            record_at: self.record_at,
            columns,
            vectors: self.vectors,
            terms: TermSet::new(&self.terms),
            entries: self.entries,
            postings: self.postings,
            positions: self.positions,
        }
    }
}
