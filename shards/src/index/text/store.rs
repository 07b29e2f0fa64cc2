//! The text index as sections of bytes, so that a restart need not index again.
//!
//! [`SnapshotWriter`] writes the index as it was when the writer was made, a section a call, beside later reads and writes:
//! it pins the parts and holds the dictionary's ids. [`Loader`] takes the sections back in the same order. Document
//! frequencies, totals and locations are not written: they are counted from the documents, so that they cannot disagree.
//!
//! A section is its kind, its payload and the CRC-32C of both (little endian). Kinds: header, terms, segment head, chunk of a
//! segment's array, end. A loader checks the checksum, every count and every offset.

use super::bitmap::Bitmap;
use super::dictionary::{Dictionary, FieldId};
use super::merge::Merge;
use super::part::{Body, PartView};
use super::segment::{Column, Entry, Packed, Segment, TermSet};
use super::{Embedder, Field, Part, TextIndex};
use crate::ids::hash_of;
use crate::index::Units;
use crate::index::analyze::{ANALYZER_VERSION, Analyzer, AnalyzerKind};
use crate::index::codec::{Corrupt, Reader, put_bytes, put_varint, put_varint_u64};
use crate::index::sections::{SectionOrder, seal};
use std::rc::Rc;

/// Version 2 had coarser bounds of blocks, version 1 none by class of frequency.
const VERSION: u8 = 3;
/// Bytes of an array in one section.
const CHUNK_BYTES: usize = 64 << 10;
/// Ids in one section of terms.
const TERMS_A_SECTION: u32 = 2048;

const HEADER: u8 = 1;
const TERMS: u8 = 2;
const SEGMENT: u8 = 3;
const CHUNK: u8 = 4;
const END: u8 = 5;

/// Arrays of a segment before those of its columns.
const FIXED_ARRAYS: usize = 7;

/// Writes a text index section by section.
pub struct SnapshotWriter {
    parts: Vec<PartView>,
    fields: Vec<(FieldId, String, AnalyzerKind)>,
    next_field: FieldId,
    id_end: u32,
    vector_bytes: usize,
    stage: Stage,
}

enum Stage {
    Header,
    Terms { from: u32 },
    Seal { part: usize, merge: Box<Merge> },
    Head { part: usize, segment: Rc<Segment>, dead: Rc<Bitmap> },
    Array { part: usize, segment: Rc<Segment>, array: usize, from: usize },
    Part { part: usize },
    End,
    Done,
}

impl TextIndex {
    /// Pins the index for a snapshot. [`TextIndex::end_snapshot`] must follow, however the snapshot ends.
    pub fn begin_snapshot(&mut self) -> SnapshotWriter {
        self.dictionary.hold();
        let live = self.fields.iter().filter(|field| !field.dropped);
        SnapshotWriter {
            parts: self
                .parts
                .list
                .iter()
                .map(Part::view)
                .filter(|part| part.documents > part.dead.count())
                .collect(),
            fields: live.map(|field| (field.id, field.path.clone(), field.analyzer.kind())).collect(),
            next_field: self.next_field,
            id_end: self.dictionary.id_end(),
            vector_bytes: self.embedder.map_or(0, |embedder| embedder.dimensions()),
            stage: Stage::Header,
        }
    }

    /// Lets go of what [`TextIndex::begin_snapshot`] held.
    pub fn end_snapshot(&mut self, writer: SnapshotWriter) {
        drop(writer);
        self.dictionary.unhold();
    }
}

impl SnapshotWriter {
    /// Appends the next section to `out`, or nothing if the budget went into preparing one; false after the last.
    pub fn next_section(&mut self, index: &mut TextIndex, units: &mut Units, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.write_header(out);
                Stage::Terms { from: 0 }
            }
            Stage::Terms { from } => {
                let end = self.id_end.min(from.saturating_add(TERMS_A_SECTION));
                write_terms(&index.dictionary, from, end, out);
                units.spend(u64::from(end - from) * 2);
                if end == self.id_end { Stage::Part { part: 0 } } else { Stage::Terms { from: end } }
            }
            Stage::Part { part } => match self.parts.get(part) {
                None => Stage::End,
                Some(view) => match &view.body {
                    Body::Sealed(segment) => {
                        Stage::Head { part, segment: Rc::clone(segment), dead: Rc::clone(&view.dead) }
                    }
                    Body::Tail(_) => {
                        let merge = Merge::copy(std::slice::from_ref(view), self.vector_bytes);
                        Stage::Seal { part, merge: Box::new(merge) }
                    }
                },
            },
            Stage::Seal { part, mut merge } => {
                let dead = &self.parts[part].dead;
                if merge.step(units, &mut index.dictionary, |_, document| dead.contains(document)) {
                    Stage::Head { part, segment: Rc::new(merge.finish().0), dead: Rc::default() }
                } else {
                    Stage::Seal { part, merge }
                }
            }
            Stage::Head { part, segment, dead } => {
                write_head(&segment, &dead, out);
                units.spend(dead.bytes() as u64 / 16 + 16);
                Stage::Array { part, segment, array: 0, from: 0 }
            }
            Stage::Array { part, segment, array, from } => match array_of(&segment, array) {
                None => Stage::Part { part: part + 1 },
                Some(items) => {
                    let end = items.len().min(from + CHUNK_BYTES / items.item_bytes());
                    out.push(CHUNK);
                    put_varint(out, array as u32);
                    items.write(from, end, out);
                    units.spend(CHUNK_BYTES as u64 / 64);
                    let (array, from) = if end == items.len() { (array + 1, 0) } else { (array, end) };
                    Stage::Array { part, segment, array, from }
                }
            },
            Stage::End => {
                out.push(END);
                put_varint_u64(out, self.parts.len() as u64);
                Stage::Done
            }
            Stage::Done => return false,
        };
        seal(out, start);
        true
    }

    fn write_header(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[HEADER, VERSION]);
        put_varint(out, ANALYZER_VERSION);
        put_varint(out, u32::from(self.next_field));
        put_varint_u64(out, self.vector_bytes as u64);
        put_varint_u64(out, self.fields.len() as u64);
        for (id, path, analyzer) in &self.fields {
            put_varint(out, u32::from(*id));
            put_bytes(out, path.as_bytes());
            put_bytes(out, analyzer.name().as_bytes());
        }
    }
}

fn write_terms(dictionary: &Dictionary, from: u32, end: u32, out: &mut Vec<u8>) {
    out.push(TERMS);
    put_varint_u64(out, u64::from(end - from));
    for id in from..end {
        match dictionary.get(id) {
            Some((field, term)) => {
                put_varint(out, u32::from(field) + 1);
                put_bytes(out, term);
            }
            None => put_varint(out, 0),
        }
    }
}

fn write_head(segment: &Segment, dead: &Bitmap, out: &mut Vec<u8>) {
    out.push(SEGMENT);
    put_varint_u64(out, segment.columns.len() as u64);
    for column in &segment.columns {
        put_varint(out, u32::from(column.field));
        out.push(match column.lengths {
            Packed::One(_) => 1,
            Packed::Two(_) => 2,
            Packed::Four(_) => 4,
        });
    }
    dead.encode(out);
    let mut array = 0;
    while let Some(items) = array_of(segment, array) {
        put_varint_u64(out, items.len() as u64);
        array += 1;
    }
}

/// One of a segment's arrays.
enum Array<'a> {
    Bytes(&'a [u8]),
    Signed(&'a [i8]),
    Two(&'a [u16]),
    Four(&'a [u32]),
    Eight(&'a [u64]),
    Entries(&'a [Entry]),
    Floats(&'a [f32]),
}

fn array_of(segment: &Segment, array: usize) -> Option<Array<'_>> {
    Some(match array {
        0 => Array::Bytes(&segment.records),
        1 => Array::Four(&segment.record_at),
        2 => Array::Signed(&segment.vectors),
        3 => Array::Eight(segment.terms.words()),
        4 => Array::Entries(&segment.entries),
        5 => Array::Bytes(&segment.postings),
        6 => Array::Bytes(&segment.positions),
        _ => {
            let column = segment.columns.get((array - FIXED_ARRAYS) / 2)?;
            match (&column.lengths, (array - FIXED_ARRAYS) % 2) {
                (_, 1) => Array::Floats(&column.norms),
                (Packed::One(lengths), _) => Array::Bytes(lengths),
                (Packed::Two(lengths), _) => Array::Two(lengths),
                (Packed::Four(lengths), _) => Array::Four(lengths),
            }
        }
    })
}

impl Array<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(items) => items.len(),
            Self::Signed(items) => items.len(),
            Self::Two(items) => items.len(),
            Self::Four(items) => items.len(),
            Self::Eight(items) => items.len(),
            Self::Entries(items) => items.len(),
            Self::Floats(items) => items.len(),
        }
    }

    fn item_bytes(&self) -> usize {
        match self {
            Self::Bytes(_) | Self::Signed(_) => 1,
            Self::Two(_) => 2,
            Self::Four(_) | Self::Floats(_) => 4,
            Self::Eight(_) | Self::Entries(_) => 8,
        }
    }

    fn write(&self, from: usize, end: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(items) => out.extend_from_slice(&items[from..end]),
            Self::Signed(items) => out.extend(items[from..end].iter().map(|item| *item as u8)),
            Self::Two(items) => out.extend(items[from..end].iter().flat_map(|item| item.to_le_bytes())),
            Self::Four(items) => out.extend(items[from..end].iter().flat_map(|item| item.to_le_bytes())),
            Self::Eight(items) => out.extend(items[from..end].iter().flat_map(|item| item.to_le_bytes())),
            Self::Floats(items) => out.extend(items[from..end].iter().flat_map(|item| item.to_le_bytes())),
            Self::Entries(items) => {
                for item in &items[from..end] {
                    out.extend_from_slice(&item.postings_at.to_le_bytes());
                    out.extend_from_slice(&item.positions_at.to_le_bytes());
                }
            }
        }
    }
}

/// Takes the sections of a [`SnapshotWriter`] back.
pub struct Loader {
    index: TextIndex,
    segment: Option<Partial>,
    segments: u64,
    vector_bytes: usize,
    order: SectionOrder,
    /// Written by an older version: of no use.
    is_outdated: bool,
}

/// A segment whose arrays are arriving.
struct Partial {
    columns: Vec<(FieldId, u8)>,
    dead: Bitmap,
    lengths: Vec<u64>,
    arrays: Vec<Vec<u8>>,
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl Loader {
    /// A loader that waits for the first section.
    pub fn new() -> Self {
        Self {
            index: TextIndex::new(),
            segment: None,
            segments: 0,
            vector_bytes: 0,
            order: SectionOrder::new(HEADER, END),
            is_outdated: false,
        }
    }

    /// Takes the next section.
    ///
    /// # Errors
    /// The section is damaged, out of order, or of a later version.
    pub fn section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let (kind, mut reader) = self.order.take(bytes)?;
        match kind {
            HEADER => self.header(&mut reader)?,
            _ if self.is_outdated => return Ok(()),
            TERMS => self.terms(&mut reader)?,
            SEGMENT => self.head(&mut reader)?,
            CHUNK => self.chunk(&mut reader)?,
            END => {
                self.end_segment()?;
                if reader.varint_u64()? != self.segments {
                    return Err(Corrupt("number of segments"));
                }
            }
            _ => return Err(Corrupt("kind of section")),
        }
        if reader.is_empty() { Ok(()) } else { Err(Corrupt("bytes after a section")) }
    }

    fn header(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        let version = reader.u8()?;
        let analyzer_version = reader.varint()?;
        if version > VERSION || version == 0 {
            return Err(Corrupt("version of the text index"));
        }
        if analyzer_version > ANALYZER_VERSION {
            return Err(Corrupt("version of the analyzers"));
        }
        if version < VERSION || analyzer_version < ANALYZER_VERSION {
            self.is_outdated = true;
            reader.take(reader.left())?;
            return Ok(());
        }
        let field_id = |value: u32| FieldId::try_from(value).map_err(|_| Corrupt("field number"));
        self.index.next_field = field_id(reader.varint()?)?;
        self.vector_bytes = usize::try_from(reader.varint_u64()?).map_err(|_| Corrupt("dimensions"))?;
        for _ in 0..reader.count(3)? {
            let id = field_id(reader.varint()?)?;
            let path = reader.str()?.to_owned();
            let analyzer = AnalyzerKind::from_name(reader.str()?).ok_or(Corrupt("analyzer"))?;
            let analyzer = Analyzer::new(analyzer);
            self.index.fields.push(Field {
                id,
                path,
                analyzer,
                remembered_at: 0,
                documents: 0,
                total_length: 0,
                dropped: false,
            });
        }
        Ok(())
    }

    fn terms(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        for _ in 0..reader.count(1)? {
            let field = reader.varint()?;
            let term = match field.checked_sub(1) {
                None => None,
                Some(field) => {
                    let field = FieldId::try_from(field).map_err(|_| Corrupt("field number"))?;
                    Some((field, reader.bytes()?))
                }
            };
            if !self.index.dictionary.load(term) {
                return Err(Corrupt("term"));
            }
        }
        Ok(())
    }

    fn head(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        self.end_segment()?;
        let mut columns = Vec::new();
        for _ in 0..reader.count(2)? {
            let field = FieldId::try_from(reader.varint()?).map_err(|_| Corrupt("field number"))?;
            let width = reader.u8()?;
            if !matches!(width, 1 | 2 | 4) {
                return Err(Corrupt("width of lengths"));
            }
            columns.push((field, width));
        }
        let dead = Bitmap::decode(reader)?;
        let count = FIXED_ARRAYS + columns.len() * 2;
        let lengths = (0..count).map(|_| reader.varint_u64()).collect::<Result<Vec<u64>, Corrupt>>()?;
        let arrays = vec![Vec::new(); count];
        self.segment = Some(Partial { columns, dead, lengths, arrays });
        Ok(())
    }

    fn chunk(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        let segment = self.segment.as_mut().ok_or(Corrupt("chunk without a segment"))?;
        let array = reader.varint()? as usize;
        let bytes = reader.take(reader.left())?;
        segment.arrays.get_mut(array).ok_or(Corrupt("array of a segment"))?.extend_from_slice(bytes);
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Corrupt> {
        let Some(partial) = self.segment.take() else { return Ok(()) };
        let (segment, dead) = partial.assemble(self.vector_bytes)?;
        check_segment(&segment, &self.index.dictionary)?;
        self.segments += 1;
        let id = self.index.next_part;
        self.index.next_part += 1;
        let part = Part { id, body: Body::Sealed(Rc::new(segment)), dead: Rc::new(dead), busy: false };
        let before_tail = self.index.parts.list.len() - 1;
        self.index.parts.list.insert(before_tail, part);
        self.index.count_part(before_tail)
    }

    /// Whether an older version wrote the sections, or one whose analyzers make other terms: the text must be indexed anew.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// The loaded index, if it is not outdated. `embedder` must be given if the index was written with vectors.
    ///
    /// # Errors
    /// A section is missing, or the vectors are not this embedder's.
    pub fn finish(mut self, embedder: Option<&'static dyn Embedder>) -> Result<TextIndex, Corrupt> {
        if !self.order.is_complete() || self.is_outdated {
            return Err(Corrupt("missing section"));
        }
        if embedder.map_or(0, |embedder| embedder.dimensions()) != self.vector_bytes {
            return Err(Corrupt("dimensions"));
        }
        self.index.embedder = embedder;
        self.index.dictionary.finish_load();
        Ok(self.index)
    }
}

impl Partial {
    fn assemble(self, vector_bytes: usize) -> Result<(Segment, Bitmap), Corrupt> {
        let sizes = [1, 4, 1, 8, 8, 1, 1];
        for (n, bytes) in self.arrays.iter().enumerate() {
            let item = match n.checked_sub(FIXED_ARRAYS) {
                None => sizes[n],
                Some(n) if n % 2 == 1 => 4,
                Some(n) => usize::from(self.columns[n / 2].1),
            };
            if !bytes.len().is_multiple_of(item) || (bytes.len() / item) as u64 != self.lengths[n] {
                return Err(Corrupt("length of an array"));
            }
        }
        let mut arrays = self.arrays.into_iter();
        let mut next = || arrays.next().unwrap_or_default();
        let records = next();
        let record_at = words(&next());
        let vectors: Vec<i8> = next().into_iter().map(|byte| byte as i8).collect();
        let term_words: Vec<u64> = next()
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes a chunk")))
            .collect();
        let entries = words(&next());
        let entries =
            entries.chunks_exact(2).map(|pair| Entry { postings_at: pair[0], positions_at: pair[1] });
        let entries: Vec<Entry> = entries.collect();
        let (postings, positions) = (next(), next());
        let mut columns = Vec::new();
        for (field, width) in &self.columns {
            let lengths = next();
            let lengths = match width {
                1 => Packed::One(lengths),
                2 => Packed::Two(
                    lengths.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect(),
                ),
                _ => Packed::Four(words(&lengths)),
            };
            let norms = words(&next()).into_iter().map(f32::from_bits).collect();
            columns.push(Column::new(*field, lengths, norms));
        }
        let documents = record_at.len().checked_sub(1).ok_or(Corrupt("records"))?;
        if vectors.len() != documents * vector_bytes {
            return Err(Corrupt("vectors"));
        }
        if !self.dead.is_below(documents) || u32::try_from(documents).is_err() {
            return Err(Corrupt("tombstone beyond its segment"));
        }
        let terms = TermSet::from_words(term_words);
        Ok((Segment { records, record_at, columns, vectors, terms, entries, postings, positions }, self.dead))
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes a chunk")))
        .collect()
}

/// Whether everything that a segment refers to is there. The insides of posting lists are under the checksums alone.
fn check_segment(segment: &Segment, dictionary: &Dictionary) -> Result<(), Corrupt> {
    let documents = segment.documents() as usize;
    let offsets = &segment.record_at;
    let ordered =
        offsets.is_sorted() && offsets[0] == 0 && offsets[documents] as usize == segment.records.len();
    if !ordered {
        return Err(Corrupt("records"));
    }
    for column in &segment.columns {
        if column.lengths.len() != documents || !(column.norms.is_empty() || column.norms.len() == documents)
        {
            return Err(Corrupt("column"));
        }
    }
    for document in 0..documents {
        let record = &segment.records[offsets[document] as usize..offsets[document + 1] as usize];
        let mut reader = Reader::new(record);
        let length = reader.count(1)?;
        reader.take(length)?;
        let mut term = 0u32;
        while !reader.is_empty() {
            term = term.checked_add(reader.varint()?).ok_or(Corrupt("term of a document"))?;
            if dictionary.get(term).is_none() {
                return Err(Corrupt("term of a document"));
            }
        }
    }
    if segment.terms.count() != segment.entries.len() {
        return Err(Corrupt("terms"));
    }
    let (mut id, mut postings_at) = (0, None);
    for entry in &segment.entries {
        id = segment.terms.next(id).ok_or(Corrupt("terms"))? + 1;
        let rises = postings_at.is_none_or(|before| entry.postings_at > before);
        let inside = (entry.postings_at as usize) < segment.postings.len()
            && entry.positions_at as usize <= segment.positions.len();
        if !rises || !inside || dictionary.get(id - 1).is_none() {
            return Err(Corrupt("entry of a term"));
        }
        postings_at = Some(entry.postings_at);
    }
    Ok(())
}

impl TextIndex {
    /// Counts the documents and terms of a part that was loaded.
    fn count_part(&mut self, at: usize) -> Result<(), Corrupt> {
        let Self { parts, dictionary, locations, fields, .. } = self;
        let (id, body, dead) =
            (parts.list[at].id, parts.list[at].body.clone(), Rc::clone(&parts.list[at].dead));
        let Body::Sealed(segment) = &body else { return Err(Corrupt("part")) };
        let mut next = segment.terms.next(0);
        while let Some(term) = next {
            dictionary.retain(term);
            next = segment.terms.next(term + 1);
        }
        for document in (0..segment.documents()).filter(|document| !dead.contains(*document)) {
            let record = segment.record(document);
            let hash = hash_of(record.key());
            if locations.find_mut(hash, |location| parts.has_key(*location, record.key())).is_some() {
                return Err(Corrupt("a key in two places"));
            }
            let location = super::Location { part: id, document };
            locations.insert(hash, location, |location| parts.hash_at(*location));
            record.terms().for_each(|term| dictionary.count_document(term));
        }
        for field in fields {
            let Some(column) = segment.column(field.id) else { continue };
            for document in (0..segment.documents()).filter(|document| !dead.contains(*document)) {
                let length = u64::from(column.lengths.get(document));
                field.documents += u64::from(length > 0);
                field.total_length += length;
            }
        }
        Ok(())
    }
}
