//! A sealed part of the index: immutable, compact, made by [`super::writer`].
//!
//! Postings of a term (`postings`, from [`Entry::postings_at`]):
//!
//! | bytes | what |
//! |---|---|
//! | varint | number of postings n |
//! | 4, if 2 <= n < 128 | coarse bounds ([`super::bounds`]) |
//! | 20 a full block of 128 | last document, data offset, positions offset (u32 each), highest lnc weight (f32, rounded up), bounds offset (u32) |
//! | 16, if n >= 128 | data offset, positions offset and bounds offset of the rest, bounds offset of the whole list (u32 each) |
//! | a full block | two widths in bits, packed distances of documents, packed frequencies less one |
//! | if n >= 128 | bounds of each full block, of the rest and of the whole list |
//! | the rest | per posting: varint of distance times two, plus one if the frequency is 1; else the frequency |
//!
//! Data and bounds offsets count from the end of the tables, positions offsets from [`Entry::positions_at`]. Positions are the varint
//! distances within each document, in posting order. All integers little endian.

use super::super::codec::{u32_at, varint_at};
use super::bounds::{ANY_BOUNDS, Bounds, COARSE_BYTES, Coarse};
use super::dictionary::FieldId;
use bitpacking::{BitPacker, BitPacker4x};

/// Postings in a full block.
pub(crate) const BLOCK: usize = 128;
pub(crate) const META_BYTES: usize = 20;
/// Where in a block's table row the offset of its bounds stands.
pub(crate) const BOUNDS_IN_META: usize = 16;
pub(crate) const REST_BYTES: usize = 16;

/// Unsigned integers in the narrowest of 1, 2 or 4 bytes that holds them all.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    One(Vec<u8>),
    Two(Vec<u16>),
    Four(Vec<u32>),
}

impl Packed {
    pub(crate) fn new(values: &[u32]) -> Self {
        match values.iter().max().copied().unwrap_or(0) {
            0..=0xff => Self::One(values.iter().map(|value| *value as u8).collect()),
            0x100..=0xffff => Self::Two(values.iter().map(|value| *value as u16).collect()),
            _ => Self::Four(values.to_vec()),
        }
    }

    #[inline]
    pub(crate) fn get(&self, at: u32) -> u32 {
        match self {
            Self::One(values) => u32::from(values[at as usize]),
            Self::Two(values) => u32::from(values[at as usize]),
            Self::Four(values) => values[at as usize],
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(values) => values.len(),
            Self::Two(values) => values.len(),
            Self::Four(values) => values.len(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::One(values) => values.capacity(),
            Self::Two(values) => values.capacity() * 2,
            Self::Four(values) => values.capacity() * 4,
        }
    }
}

/// Lengths (and for the whole value norms) of the documents in one field.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) field: FieldId,
    pub(crate) lengths: Packed,
    /// The lengths in a byte each, [`SHORT_OPEN`] for that or more; empty where `lengths` are bytes themselves.
    short: Vec<u8>,
    pub(crate) norms: Vec<f32>,
}

/// In a byte: a length of so many or more.
pub(crate) const SHORT_OPEN: u8 = u8::MAX;

impl Column {
    pub(crate) fn new(field: FieldId, lengths: Packed, norms: Vec<f32>) -> Self {
        let short = match &lengths {
            Packed::One(_) => Vec::new(),
            Packed::Two(lengths) => {
                lengths.iter().map(|length| (*length).min(SHORT_OPEN.into()) as u8).collect()
            }
            Packed::Four(lengths) => {
                lengths.iter().map(|length| (*length).min(SHORT_OPEN.into()) as u8).collect()
            }
        };
        Self { field, lengths, short, norms }
    }

    /// The lengths in a byte each, [`SHORT_OPEN`] for that or more: one long document must not make all others slow.
    pub(crate) fn short(&self) -> &[u8] {
        match &self.lengths {
            Packed::One(lengths) => lengths,
            _ => &self.short,
        }
    }

    fn bytes(&self) -> usize {
        self.lengths.bytes() + self.short.capacity() + self.norms.capacity() * 4
    }
}

/// Where a term's lists begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) postings_at: u32,
    pub(crate) positions_at: u32,
}

/// A set of term ids with rank: which ids are there, and as the how-manieth.
#[derive(Clone, Debug, Default)]
pub(crate) struct TermSet {
    words: Vec<u64>,
    ranks: Vec<u32>,
}

impl TermSet {
    /// Builds the set of ids given in ascending order.
    pub(crate) fn new(ids: &[u32]) -> Self {
        let mut words = vec![0u64; ids.last().map_or(0, |last| *last as usize / 64 + 1)];
        for id in ids {
            words[*id as usize / 64] |= 1 << (id % 64);
        }
        Self::from_words(words)
    }

    /// The set of the bits in `words`.
    pub(crate) fn from_words(words: Vec<u64>) -> Self {
        let ranks = words.iter().scan(0, |rank, word| {
            let before = *rank;
            *rank += word.count_ones();
            Some(before)
        });
        let ranks = ranks.collect();
        Self { words, ranks }
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Number of ids in the set.
    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    #[inline]
    pub(crate) fn rank(&self, id: u32) -> Option<usize> {
        let at = id as usize / 64;
        let word = *self.words.get(at)?;
        let below = word & ((1 << (id % 64)) - 1);
        (word >> (id % 64) & 1 == 1).then(|| (self.ranks[at] + below.count_ones()) as usize)
    }

    /// The lowest id in the set that is at least `from`.
    pub(crate) fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize / 64;
        let mut word = *self.words.get(at)? & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    fn bytes(&self) -> usize {
        self.words.capacity() * 8 + self.ranks.capacity() * 4
    }
}

/// A sealed part.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) records: Vec<u8>,
    /// Start of each record, and the end of the last.
    pub(crate) record_at: Vec<u32>,
    pub(crate) columns: Vec<Column>,
    /// One vector a document where embeddings are kept.
    pub(crate) vectors: Vec<i8>,
    pub(crate) terms: TermSet,
    pub(crate) entries: Vec<Entry>,
    pub(crate) postings: Vec<u8>,
    pub(crate) positions: Vec<u8>,
}

impl Segment {
    pub(crate) fn documents(&self) -> u32 {
        self.record_at.len() as u32 - 1
    }

    pub(crate) fn record(&self, document: u32) -> DocumentRecord<'_> {
        let at = document as usize;
        DocumentRecord::new(&self.records[self.record_at[at] as usize..self.record_at[at + 1] as usize])
    }

    pub(crate) fn column(&self, field: FieldId) -> Option<&Column> {
        self.columns.iter().find(|column| column.field == field)
    }

    /// The postings of a term.
    #[inline]
    pub(crate) fn postings(&self, term: u32) -> Option<SealedList<'_>> {
        let entry = self.entries[self.terms.rank(term)?];
        let mut at = entry.postings_at as usize;
        let count = varint_at(&self.postings, &mut at);
        let blocks = count / BLOCK as u32;
        let mut hint = None;
        if blocks == 0 && count >= 2 {
            hint = Some(Coarse::at(&self.postings, at));
            at += COARSE_BYTES;
        }
        let data = at + if blocks > 0 { blocks as usize * META_BYTES + REST_BYTES } else { 0 };
        Some(SealedList {
            segment: self,
            count,
            blocks,
            metas: at,
            data,
            positions: entry.positions_at as usize,
            hint,
        })
    }

    /// Bytes of memory, and a measure of how much a merge has to move.
    pub(crate) fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::bytes).sum();
        let lists = self.postings.capacity() + self.positions.capacity() + self.entries.capacity() * 8;
        self.records.capacity()
            + self.record_at.capacity() * 4
            + columns
            + self.vectors.capacity()
            + self.terms.bytes()
            + lists
    }
}

/// Where a block's frequencies are, not yet unpacked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedFrequencies {
    at: usize,
    bits: u8,
}

/// One term's postings in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealedList<'a> {
    segment: &'a Segment,
    pub(crate) count: u32,
    /// Number of full blocks.
    pub(crate) blocks: u32,
    metas: usize,
    data: usize,
    positions: usize,
    hint: Option<Coarse>,
}

impl SealedList<'_> {
    #[inline]
    pub(crate) fn last_document(&self, block: u32) -> u32 {
        u32_at(&self.segment.postings, self.metas + block as usize * META_BYTES)
    }

    /// The first block that may hold `document` or one behind it.
    pub(crate) fn block_of(&self, document: u32) -> u32 {
        let (mut low, mut high) = (0, self.blocks);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.last_document(middle) < document {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Bounds of a block; `blocks` names the rest.
    #[inline]
    pub(crate) fn bounds(&self, block: u32) -> Bounds {
        let meta = self.metas + block as usize * META_BYTES;
        if block < self.blocks {
            let weight_max = f32::from_bits(u32_at(&self.segment.postings, meta + 12));
            return self.bounds_from(meta + BOUNDS_IN_META, weight_max);
        }
        self.bounds_of_rest(meta + 8)
    }

    /// Bounds of all postings.
    pub(crate) fn bounds_of_all(&self) -> Bounds {
        self.bounds_of_rest(self.metas + self.blocks as usize * META_BYTES + 12)
    }

    fn bounds_of_rest(&self, offset_at: usize) -> Bounds {
        match self.blocks {
            0 => self.hint.map_or(ANY_BOUNDS, Coarse::bounds),
            _ => self.bounds_from(offset_at, f32::INFINITY),
        }
    }

    /// The bounds whose offset stands there.
    #[inline]
    fn bounds_from(&self, offset_at: usize, weight_max: f32) -> Bounds {
        let bytes = &self.segment.postings[..];
        Bounds::decode(bytes, self.data + u32_at(bytes, offset_at) as usize, weight_max)
    }

    /// Number of postings in a block; `blocks` names the rest.
    pub(crate) fn block_length(&self, block: u32) -> usize {
        if block < self.blocks { BLOCK } else { self.count as usize % BLOCK }
    }

    /// Unpacks a block; `blocks` names the rest. The frequencies of a full block stay packed until
    /// [`SealedList::read_frequencies`] is given what this returns.
    pub(crate) fn read_block(
        &self,
        packer: BitPacker4x,
        block: u32,
        documents: &mut [u32; BLOCK],
        frequencies: &mut [u32; BLOCK],
    ) -> Option<PackedFrequencies> {
        let bytes = &self.segment.postings[..];
        let before = if block == 0 { 0 } else { self.last_document(block - 1) };
        let mut at = self.data;
        if self.blocks > 0 {
            at += u32_at(
                bytes,
                self.metas
                    + if block < self.blocks {
                        block as usize * META_BYTES + 4
                    } else {
                        block as usize * META_BYTES
                    },
            ) as usize;
        }
        if block < self.blocks {
            let (wide, narrow) = (bytes[at], bytes[at + 1]);
            at += 2;
            at += packer.decompress_sorted(before, &bytes[at..], documents, wide);
            return Some(PackedFrequencies { at, bits: narrow });
        }
        let mut document = before;
        for n in 0..self.block_length(block) {
            let head = varint_at(bytes, &mut at);
            document = document.wrapping_add(head >> 1);
            documents[n] = document;
            frequencies[n] = if head & 1 == 1 { 1 } else { varint_at(bytes, &mut at) };
        }
        None
    }

    /// Calls `each` with document and frequency of every posting of a list without a full block.
    #[inline]
    pub(crate) fn each_of_rest(&self, mut each: impl FnMut(u32, u32)) {
        assert!(self.blocks == 0, "the list has no full block");
        let bytes = &self.segment.postings[..];
        let (mut at, mut document) = (self.data, 0u32);
        for _ in 0..self.count {
            let head = varint_at(bytes, &mut at);
            document = document.wrapping_add(head >> 1);
            each(document, if head & 1 == 1 { 1 } else { varint_at(bytes, &mut at) });
        }
    }

    /// Unpacks the frequencies of a full block.
    pub(crate) fn read_frequencies(
        &self,
        packer: BitPacker4x,
        packed: PackedFrequencies,
        frequencies: &mut [u32; BLOCK],
    ) {
        if packed.bits == 0 {
            return frequencies.fill(1);
        }
        packer.decompress(&self.segment.postings[packed.at..], frequencies, packed.bits);
        for frequency in frequencies.iter_mut() {
            *frequency = frequency.wrapping_add(1);
        }
    }

    /// Where a block's positions begin in the segment's stream.
    pub(crate) fn positions_of(&self, block: u32) -> usize {
        if self.blocks == 0 {
            return self.positions;
        }
        let offset = block as usize * META_BYTES + if block < self.blocks { 8 } else { 4 };
        self.positions + u32_at(&self.segment.postings, self.metas + offset) as usize
    }

    pub(crate) fn position_stream(&self) -> &[u8] {
        &self.segment.positions
    }
}

/// A document's key and, in ascending order as varint distances, the ids of its terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DocumentRecord<'a> {
    bytes: &'a [u8],
}

impl<'a> DocumentRecord<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn key(&self) -> &'a [u8] {
        let mut at = 0;
        let length = varint_at(self.bytes, &mut at) as usize;
        &self.bytes[at..at + length]
    }

    pub(crate) fn terms(&self) -> impl Iterator<Item = u32> + use<'a> {
        let bytes = self.bytes;
        let mut at = 0;
        let key_length = varint_at(bytes, &mut at) as usize;
        at += key_length;
        let mut term = 0u32;
        std::iter::from_fn(move || {
            (at < bytes.len()).then(|| {
                term = term.wrapping_add(varint_at(bytes, &mut at));
                term
            })
        })
    }
}
