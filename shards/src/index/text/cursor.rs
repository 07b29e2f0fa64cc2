//! A cursor over one term's postings in one part, block by block, for sealed segments and tails alike.

use super::super::codec::{put_varint, skip_varints, varint_at};
use super::bounds::{Bounds, NO_BOUNDS};
use super::score::Weigher;
use super::segment::{BLOCK, PackedFrequencies, SealedList};
use super::tail::TailReader;
use bitpacking::{BitPacker, BitPacker4x};

/// Where a block has so many postings for each document wanted, these are looked up one by one.
const SPARSE: usize = 8;
/// The document of a cursor that has come to its end.
pub(crate) const END: u32 = u32::MAX;

/// Stands on one posting at a time. Documents rise.
pub(crate) struct Cursor<'a> {
    /// Apart, so that cursors are cheap to move and to allocate.
    unpacked: Box<Unpacked>,
    at: usize,
    length: usize,
    /// Where the packed frequencies of a sealed block stand, until somebody asks for one.
    packed: Option<PackedFrequencies>,
    source: Source<'a>,
}

/// The postings of one block.
struct Unpacked {
    documents: [u32; BLOCK],
    frequencies: [u32; BLOCK],
}

enum Source<'a> {
    Sealed(Sealed<'a>),
    Tail(TailSource<'a>),
}

struct Sealed<'a> {
    list: SealedList<'a>,
    packer: BitPacker4x,
    /// The block that is unpacked.
    block: u32,
    /// From here on [`Cursor::bounds_until`] looks at blocks.
    bound_block: u32,
    /// Byte where the positions of posting `position_index` begin.
    position_at: usize,
    position_index: usize,
}

struct TailSource<'a> {
    reader: TailReader<'a>,
    /// Documents from here on came after the view.
    documents_end: u32,
    count: u32,
    /// Positions of the block, of all postings, one after another.
    positions: Vec<u32>,
    starts: Vec<u32>,
    wants_positions: bool,
}

impl<'a> Cursor<'a> {
    pub(crate) fn sealed(list: SealedList<'a>) -> Self {
        let sealed = Sealed {
            list,
            packer: BitPacker4x::new(),
            block: 0,
            bound_block: 0,
            position_at: 0,
            position_index: 0,
        };
        Self::new(Source::Sealed(sealed))
    }

    pub(crate) fn tail(reader: TailReader<'a>, documents_end: u32, wants_positions: bool) -> Self {
        let count = reader.left();
        let (positions, starts) = (Vec::new(), Vec::new());
        let tail = TailSource { reader, documents_end, count, positions, starts, wants_positions };
        Self::new(Source::Tail(tail))
    }

    fn new(source: Source<'a>) -> Self {
        let unpacked = Box::new(Unpacked { documents: [0; BLOCK], frequencies: [0; BLOCK] });
        let mut cursor = Self { unpacked, at: 0, length: 0, packed: None, source };
        match &mut cursor.source {
            Source::Sealed(_) => cursor.load(0),
            Source::Tail(_) => cursor.load_tail(),
        }
        cursor
    }

    /// Unpacks a sealed block; past the last one the cursor is at its end.
    fn load(&mut self, block: u32) {
        let Source::Sealed(sealed) = &mut self.source else { return };
        sealed.block = block;
        self.at = 0;
        self.length = if block > sealed.list.blocks { 0 } else { sealed.list.block_length(block) };
        self.packed = None;
        if self.length > 0 {
            let Unpacked { documents, frequencies } = &mut *self.unpacked;
            self.packed = sealed.list.read_block(sealed.packer, block, documents, frequencies);
            sealed.position_at = sealed.list.positions_of(block);
            sealed.position_index = 0;
        }
    }

    fn load_tail(&mut self) {
        let Source::Tail(tail) = &mut self.source else { return };
        self.at = 0;
        self.length = 0;
        tail.positions.clear();
        tail.starts.clear();
        while self.length < BLOCK {
            let Some((document, frequency)) = tail.reader.next_posting() else { return };
            if document >= tail.documents_end {
                tail.documents_end = 0;
                return;
            }
            self.unpacked.documents[self.length] = document;
            self.unpacked.frequencies[self.length] = frequency;
            self.length += 1;
            tail.starts.push(tail.positions.len() as u32);
            let mut position = 0;
            for _ in 0..frequency {
                let distance = tail.reader.varint();
                if tail.wants_positions {
                    position += distance;
                    tail.positions.push(position);
                }
            }
        }
    }

    fn load_next(&mut self) {
        match &self.source {
            Source::Sealed(sealed) => self.load(sealed.block + 1),
            Source::Tail(_) => self.load_tail(),
        }
    }

    /// The document that the cursor stands on, or [`END`].
    #[inline]
    pub(crate) fn document(&self) -> u32 {
        if self.at < self.length { self.unpacked.documents[self.at] } else { END }
    }

    /// How often the term stands in the document.
    #[inline]
    pub(crate) fn frequency(&mut self) -> u32 {
        self.unpack_frequencies();
        self.unpacked.frequencies[self.at]
    }

    /// Whoever only looks for documents never pays for the frequencies of a block.
    #[inline]
    fn unpack_frequencies(&mut self) {
        if let Some(packed) = self.packed.take()
            && let Source::Sealed(sealed) = &self.source
        {
            sealed.list.read_frequencies(sealed.packer, packed, &mut self.unpacked.frequencies);
        }
    }

    /// How many postings the list has in all, those after the view included.
    pub(crate) fn count(&self) -> u32 {
        match &self.source {
            Source::Sealed(sealed) => sealed.list.count,
            Source::Tail(tail) => tail.count,
        }
    }

    /// Bounds over all postings.
    pub(crate) fn bounds(&self) -> Bounds {
        match &self.source {
            Source::Sealed(sealed) => sealed.list.bounds_of_all(),
            Source::Tail(tail) => tail.reader.bounds().bounds(),
        }
    }

    /// Moves to the next posting.
    #[inline]
    pub(crate) fn step(&mut self) {
        self.at += 1;
        if self.at >= self.length && self.length > 0 {
            self.load_next();
        }
    }

    /// Moves to the first posting at or after `document`.
    #[inline]
    pub(crate) fn advance(&mut self, document: u32) {
        if self.document() >= document {
            return;
        }
        if self.unpacked.documents[self.length - 1] < document {
            self.load_containing(document);
            if self.document() >= document {
                return;
            }
        }
        // Lists of like density move a posting or two at a time.
        self.at += 1;
        if self.unpacked.documents[self.at..self.length].first().is_some_and(|next| *next < document) {
            let rest = &self.unpacked.documents[self.at..self.length];
            self.at += rest.partition_point(|other| *other < document);
        }
        if self.at >= self.length {
            self.load_next();
        }
    }

    /// Loads the block whose last document is the first at or after `document`.
    fn load_containing(&mut self, document: u32) {
        match &self.source {
            Source::Sealed(sealed) => {
                let (mut low, mut high) = (sealed.block + 1, sealed.list.blocks);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if sealed.list.last_document(middle) < document {
                        low = middle + 1;
                    } else {
                        high = middle;
                    }
                }
                self.load(low);
            }
            Source::Tail(_) => {
                while self.length > 0 && self.unpacked.documents[self.length - 1] < document {
                    self.load_tail();
                }
            }
        }
    }

    /// The unpacked postings from the cursor on, up to documents below `end`; the cursor moves past them. Empty when the
    /// cursor stands at or beyond `end`.
    #[inline]
    pub(crate) fn take_below(&mut self, end: u32) -> Taken {
        self.unpack_frequencies();
        let rest = &self.unpacked.documents[self.at..self.length];
        let count = if rest.last().is_some_and(|last| *last < end) {
            rest.len()
        } else {
            rest.partition_point(|document| *document < end)
        };
        Taken { from: self.at, to: self.at + count }
    }

    /// The postings of [`Cursor::take_below`].
    #[inline]
    pub(crate) fn taken(&self, taken: Taken) -> impl Iterator<Item = (u32, u32)> + '_ {
        let range = taken.from..taken.to;
        self.unpacked.documents[range.clone()]
            .iter()
            .copied()
            .zip(self.unpacked.frequencies[range].iter().copied())
    }

    /// Moves past what was taken.
    #[inline]
    pub(crate) fn pass(&mut self, taken: Taken) {
        self.at = taken.to;
        if self.at >= self.length && self.length > 0 {
            self.load_next();
        }
    }

    /// The most that a posting from document `from` to below `end` can add, in amortised constant time for rising calls;
    /// `None` if there is none.
    pub(crate) fn bound_until(&mut self, from: u32, end: u32, weigher: Weigher) -> Option<i64> {
        let mut highest = None;
        self.each_bounds_until(from, end, |bounds| highest = highest.max(Some(weigher.bound(bounds))));
        highest
    }

    /// Bounds over the same postings.
    pub(crate) fn bounds_until(&mut self, from: u32, end: u32) -> Option<Bounds> {
        let mut all = NO_BOUNDS;
        self.each_bounds_until(from, end, |bounds| all.widen(bounds));
        (!all.is_nothing()).then_some(all)
    }

    /// Calls `each` with the bounds of the blocks that hold postings from `from` to below `end`.
    #[inline]
    fn each_bounds_until(&mut self, from: u32, end: u32, mut each: impl FnMut(&Bounds)) {
        if self.document() >= end {
            return;
        }
        match &mut self.source {
            Source::Sealed(sealed) => {
                let mut block = sealed.block_of(from);
                let list = &sealed.list;
                while block < list.blocks {
                    each(&list.bounds(block));
                    if list.last_document(block) >= end - 1 {
                        return;
                    }
                    block += 1;
                }
                if list.block_length(block) > 0 {
                    each(&list.bounds(block));
                }
            }
            Source::Tail(tail) => each(&tail.reader.bounds().bounds()),
        }
    }

    /// The last document of the block that `document` would be in, and bounds over that block; for rising calls.
    #[inline]
    pub(crate) fn block_bounds(&mut self, document: u32) -> (u32, Bounds) {
        match &mut self.source {
            Source::Sealed(sealed) => {
                let block = sealed.block_of(document);
                let list = &sealed.list;
                let last = if block < list.blocks { list.last_document(block) } else { END - 1 };
                (last, list.bounds(block))
            }
            Source::Tail(tail) => (END - 1, tail.reader.bounds().bounds()),
        }
    }

    /// The end of the block that `document` would be in; for rising calls.
    #[inline]
    pub(crate) fn block_end(&mut self, document: u32) -> u32 {
        match &mut self.source {
            Source::Sealed(sealed) => {
                let block = sealed.block_of(document);
                if block < sealed.list.blocks { sealed.list.last_document(block) + 1 } else { END }
            }
            Source::Tail(_) => END,
        }
    }

    /// Finds the documents of the list among `wanted`, which rise: places in `wanted`, each with the frequency. The cursor
    /// ends at or behind the last one wanted.
    pub(crate) fn meet(&mut self, wanted: &[u32], places: &mut Places, met: &mut Vec<(u32, u32)>) {
        let mut next = 0;
        while next < wanted.len() {
            self.advance(wanted[next]);
            if self.length == 0 {
                return;
            }
            let first = met.len();
            let here = &self.unpacked.documents[..self.length];
            let mut at = self.at;
            let last = here[here.len() - 1];
            let end = next + wanted[next..].partition_point(|document| *document <= last);
            if (end - next) * SPARSE < here.len() - at {
                for (n, document) in (next..end).zip(&wanted[next..end]) {
                    at += here[at..].partition_point(|other| other < document);
                    if here[at] == *document {
                        met.push((n as u32, at as u32));
                    }
                }
            } else {
                at += places.meet(&wanted[next..end], &here[at..], (next as u32, at as u32), met);
            }
            next = end;
            let is_through = next < wanted.len();
            if met.len() > first {
                self.unpack_frequencies();
                for (_, at) in &mut met[first..] {
                    *at = self.unpacked.frequencies[*at as usize];
                }
            }
            self.at = at;
            if is_through {
                // What is wanted next lies behind this block, perhaps far behind.
                self.at = self.length - 1;
            } else if self.at >= self.length {
                self.load_next();
            }
        }
    }

    /// What was taken: documents, and as many frequencies.
    #[inline]
    pub(crate) fn run(&self, taken: Taken) -> (&[u32], &[u32]) {
        (&self.unpacked.documents[taken.from..taken.to], &self.unpacked.frequencies[taken.from..taken.to])
    }

    /// Reads the term's positions in the document.
    pub(crate) fn positions(&mut self, out: &mut Vec<u32>) {
        out.clear();
        let frequency = self.frequency();
        match &mut self.source {
            Source::Sealed(sealed) => {
                sealed.seek_positions(self.at, &self.unpacked.frequencies);
                let stream = sealed.list.position_stream();
                let mut position = 0;
                for _ in 0..frequency {
                    position += varint_at(stream, &mut sealed.position_at);
                    out.push(position);
                }
                sealed.position_index = self.at + 1;
            }
            Source::Tail(tail) => {
                assert!(tail.wants_positions, "a cursor that reads positions is made for it");
                let start = tail.starts[self.at] as usize;
                out.extend_from_slice(&tail.positions[start..start + frequency as usize]);
            }
        }
    }

    /// Appends the term's positions in the document as varint distances.
    pub(crate) fn copy_positions(&mut self, out: &mut Vec<u8>) {
        let frequency = self.frequency();
        match &mut self.source {
            Source::Sealed(sealed) => {
                sealed.seek_positions(self.at, &self.unpacked.frequencies);
                let start = sealed.position_at;
                let stream = sealed.list.position_stream();
                skip_varints(stream, &mut sealed.position_at, frequency);
                out.extend_from_slice(&stream[start..sealed.position_at]);
                sealed.position_index = self.at + 1;
            }
            Source::Tail(tail) => {
                let start = tail.starts[self.at] as usize;
                let mut before = 0;
                for position in &tail.positions[start..start + frequency as usize] {
                    put_varint(out, position - before);
                    before = *position;
                }
            }
        }
    }
}

/// Pairs of places that can be noted: a power of two above the length of a block, so that no place needs to be checked.
const PAIRS: usize = BLOCK * 2;

/// Documents that a table of places spans.
const PLACES: usize = 16 << 10;

/// By document, counted from the first of some that rise, its place among them plus one; zero between calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Vec<u8>);

impl Places {
    /// Notes the pairs of places of documents that stand in both lists, counted from those given; returns how many of `here`
    /// are not behind the last one wanted. Both lists rise and are no longer than a block.
    ///
    /// The wanted go into the table and the others are looked up in it: nothing waits for the outcome of a comparison, as it
    /// would where the lists are merged.
    fn meet(
        &mut self,
        wanted: &[u32],
        here: &[u32],
        (left_base, right_base): (u32, u32),
        met: &mut Vec<(u32, u32)>,
    ) -> usize {
        let (Some(first), Some(last)) = (wanted.first().copied(), wanted.last().copied()) else { return 0 };
        let here = &here[..here.partition_point(|document| *document <= last)];
        if (last - first) as usize >= PLACES || here.first().is_some_and(|document| *document < first) {
            for (right, document) in here.iter().enumerate() {
                if let Ok(left) = wanted.binary_search(document) {
                    met.push((left_base + left as u32, right_base + right as u32));
                }
            }
            return here.len();
        }
        if self.0.is_empty() {
            self.0.resize(PLACES, 0);
        }
        let table: &mut [u8; PLACES] = self.0.as_mut_slice().try_into().expect("the table has one size");
        for (place, document) in (1..).zip(wanted) {
            table[(document - first) as usize % PLACES] = place;
        }
        let mut pairs = [(0u8, 0u8); PAIRS];
        let mut count = 0;
        for (right, document) in (0..).zip(here) {
            let place = table[(document - first) as usize % PLACES];
            pairs[count % PAIRS] = (place, right);
            count += usize::from(place > 0);
        }
        for document in wanted {
            table[(document - first) as usize % PLACES] = 0;
        }
        let pair =
            |(left, right): &(u8, u8)| (left_base + u32::from(*left) - 1, right_base + u32::from(*right));
        met.extend(pairs[..count].iter().map(pair));
        here.len()
    }
}

impl Sealed<'_> {
    /// The block that `document` would be in, if not before one asked for earlier; the rest counts as one.
    #[inline]
    fn block_of(&mut self, document: u32) -> u32 {
        let mut block = self.bound_block.max(self.block);
        while block < self.list.blocks && self.list.last_document(block) < document {
            block += 1;
        }
        self.bound_block = block;
        block
    }

    /// Moves the position stream to the posting `index` of the block.
    fn seek_positions(&mut self, index: usize, frequencies: &[u32; BLOCK]) {
        if self.position_index > index {
            self.position_at = self.list.positions_of(self.block);
            self.position_index = 0;
        }
        let skipped: u32 = frequencies[self.position_index..index].iter().sum();
        skip_varints(self.list.position_stream(), &mut self.position_at, skipped);
        self.position_index = index;
    }
}

/// A run of unpacked postings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    from: usize,
    to: usize,
}

impl Taken {
    pub(crate) fn len(self) -> usize {
        self.to - self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_meet_as_a_merge_would(mut left in prop::collection::vec(0u32..40_000, 0..BLOCK), mut right in prop::collection::vec(0u32..40_000, 0..BLOCK), thin in 1u32..400) {
            let mut places = Places::default();
            for list in [&mut left, &mut right] {
                list.iter_mut().for_each(|document| *document /= thin);
                list.sort_unstable();
                list.dedup();
            }
            for _ in 0..2 {
                let mut met = Vec::new();
                let passed = places.meet(&left, &right, (7, 9), &mut met);
                let expected: Vec<(u32, u32)> = (7..)
                    .zip(&left)
                    .flat_map(|(n, a)| (9..).zip(&right).filter(move |(_, b)| a == *b).map(move |(m, _)| (n, m)))
                    .collect();
                prop_assert_eq!(met, expected);
                prop_assert_eq!(passed, right.partition_point(|document| left.last().is_some_and(|last| document <= last)));
            }
        }
    }
}
