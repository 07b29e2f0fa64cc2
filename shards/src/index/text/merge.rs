//! Seals a tail or merges parts into one segment, in bounded steps beside reads and writes.
//!
//! First the live documents of all inputs are copied, in order, and get their new numbers (`forward`); a document that
//! dies after it was copied dies in the output too ([`Merge::note_death`]), one that dies before is left out. Then the
//! postings follow, term by term. Inputs stay readable until the output takes their place.

use super::super::codec::{put_varint, skip_varints};
use super::bitmap::Bitmap;
use super::dictionary::Dictionary;
use super::part::{Body, Open, PartView};
use super::segment::{SealedList, Segment};
use super::tail::TailReader;
use super::writer::{SegmentWriter, Sizes};
use crate::index::Units;

/// New number of a document that the output does not have.
pub(crate) const GONE: u32 = u32::MAX;
/// Postings copied between two looks at the budget.
const POSTINGS_A_STEP: u32 = 1024;
/// Positions copied out of a tail between two looks at the budget, about.
const POSITIONS_A_STEP: u64 = 64 << 10;

pub(crate) struct Merge {
    pub(crate) inputs: Vec<Input>,
    /// Documents of the output that died while it was made.
    pub(crate) dead: Bitmap,
    /// Terms that the output does not have, with the number of inputs that do. They stay in the dictionary as long as the
    /// inputs are parts of the index: a snapshot that begins before the merge ends writes these, dead documents and all.
    pub(crate) gone: Vec<(u32, u32)>,
    writer: SegmentWriter,
    stage: Stage,
    vector_bytes: usize,
    /// Whether the output takes the inputs' place, and so their references to terms.
    replaces: bool,
}

pub(crate) struct Input {
    pub(crate) part: u32,
    body: Body,
    documents: u32,
    /// New numbers of the documents seen so far.
    pub(crate) forward: Vec<u32>,
    /// The terms of a tail, in order.
    tail_terms: Vec<u32>,
    next_tail_term: usize,
    next_term: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Documents {
        input: usize,
    },
    Terms {
        from: u32,
    },
    /// Inside a term: the input, and the document to go on from.
    Term {
        id: u32,
        input: usize,
        document: u32,
    },
    Done,
}

impl Merge {
    /// A merge of these parts, as they are now.
    pub(crate) fn new(parts: &[PartView], vector_bytes: usize) -> Self {
        let mut sizes = Sizes::default();
        for part in parts {
            if let Body::Sealed(segment) = &part.body {
                sizes.records += segment.records.len();
                sizes.documents += segment.record_at.len();
                sizes.postings += segment.postings.len();
                sizes.positions += segment.positions.len();
                sizes.vectors += segment.vectors.len();
            }
        }
        let inputs = parts.iter().map(|part| Input {
            part: part.id,
            body: part.body.clone(),
            documents: part.documents,
            forward: Vec::with_capacity(part.documents as usize),
            tail_terms: Vec::new(),
            next_tail_term: 0,
            next_term: None,
        });
        Self {
            inputs: inputs.collect(),
            dead: Bitmap::default(),
            gone: Vec::new(),
            writer: SegmentWriter::new(sizes),
            stage: Stage::Documents { input: 0 },
            vector_bytes,
            replaces: true,
        }
    }

    /// A merge whose output goes elsewhere, while the inputs stay. The dictionary's ids must be held meanwhile.
    pub(crate) fn copy(parts: &[PartView], vector_bytes: usize) -> Self {
        Self { replaces: false, ..Self::new(parts, vector_bytes) }
    }

    /// A document of an input has died.
    pub(crate) fn note_death(&mut self, part: u32, document: u32) {
        let input = self.inputs.iter().find(|input| input.part == part);
        let moved = input.and_then(|input| input.forward.get(document as usize).copied());
        if let Some(moved) = moved.filter(|moved| *moved != GONE) {
            self.dead.insert(moved);
        }
    }

    /// Goes on until the budget is spent; true when the output is complete. `is_dead` knows the inputs' dead.
    pub(crate) fn step(
        &mut self,
        units: &mut Units,
        dictionary: &mut Dictionary,
        is_dead: impl Fn(u32, u32) -> bool,
    ) -> bool {
        while units.left() {
            match self.stage {
                Stage::Documents { input } if input == self.inputs.len() => {
                    for input in &mut self.inputs {
                        if let Body::Tail(tail) = &input.body {
                            input.tail_terms = tail.borrow().terms();
                            units.spend(input.tail_terms.len() as u64 * 3);
                        }
                        input.seek_term(0);
                    }
                    self.stage = Stage::Terms { from: 0 };
                }
                Stage::Documents { input } => self.copy_document(input, units, &is_dead),
                Stage::Terms { from } => self.begin_term(from, units, dictionary),
                Stage::Term { id, input, document } => {
                    self.copy_postings(id, input, document, units, dictionary);
                }
                Stage::Done => return true,
            }
        }
        self.stage == Stage::Done
    }

    fn copy_document(&mut self, at: usize, units: &mut Units, is_dead: &impl Fn(u32, u32) -> bool) {
        let input = &mut self.inputs[at];
        let document = input.forward.len() as u32;
        if document == input.documents {
            self.stage = Stage::Documents { input: at + 1 };
            return;
        }
        units.spend(6);
        if is_dead(input.part, document) {
            input.forward.push(GONE);
            return;
        }
        let open = input.body.open(input.documents);
        let vectors = open.vectors();
        let vector = match self.vector_bytes {
            0 => &[][..],
            length => {
                vectors.get(document as usize * length..(document as usize + 1) * length).unwrap_or(&[])
            }
        };
        let writer = &mut self.writer;
        let moved = match &open {
            Open::Tail(tail, _) => {
                let moved = writer.push_document(tail.record(document).raw(), vector);
                for column in tail.columns() {
                    if let Some(length) = column.lengths.get(document as usize).filter(|length| **length > 0)
                    {
                        writer.set_length(
                            column.field,
                            *length,
                            column.norms.get(document as usize).copied(),
                        );
                    }
                }
                moved
            }
            Open::Sealed(segment) => {
                let moved = writer.push_document(segment.record(document).raw(), vector);
                for column in &segment.columns {
                    let length = column.lengths.get(document);
                    if length > 0 {
                        writer.set_length(column.field, length, column.norms.get(document as usize).copied());
                    }
                }
                moved
            }
        };
        drop(open);
        self.inputs[at].forward.push(moved);
    }

    fn begin_term(&mut self, from: u32, units: &mut Units, dictionary: &Dictionary) {
        units.spend(6);
        for input in &mut self.inputs {
            if input.next_term.is_some_and(|term| term < from) {
                input.seek_term(from);
            }
        }
        match self.inputs.iter().filter_map(|input| input.next_term).min() {
            Some(id) => {
                self.writer.begin_term(id, dictionary.term(id).0);
                self.stage = Stage::Term { id, input: 0, document: 0 };
            }
            None => self.stage = Stage::Done,
        }
    }

    fn copy_postings(
        &mut self,
        id: u32,
        at: usize,
        from: u32,
        units: &mut Units,
        dictionary: &mut Dictionary,
    ) {
        if at == self.inputs.len() {
            let holders = self.inputs.iter().filter(|input| input.next_term == Some(id)).count();
            let is_kept = self.writer.end_term();
            if self.replaces && is_kept {
                dictionary.retain(id);
                for _ in 0..holders {
                    dictionary.release(id);
                }
            } else if self.replaces {
                self.gone.push((id, holders as u32));
            }
            self.stage = Stage::Terms { from: id + 1 };
            return;
        }
        self.stage = Stage::Term { id, input: at + 1, document: 0 };
        let input = &self.inputs[at];
        if input.next_term != Some(id) {
            return;
        }
        let open = input.body.open(input.documents);
        match &open {
            Open::Tail(tail, _) => {
                let Some(reader) = tail.postings(id) else { return };
                if let Some(document) = copy_from_tail(reader, input, from, &mut self.writer, units) {
                    self.stage = Stage::Term { id, input: at, document };
                }
                return;
            }
            Open::Sealed(segment) => {
                let Some(list) = segment.postings(id) else { return };
                if list.blocks == 0 {
                    return copy_short(&list, input, &mut self.writer, units);
                }
            }
        }
        let Some(mut cursor) = open.cursor(id, true) else { return };
        cursor.advance(from);
        let mut copied = 0;
        while cursor.document() < input.documents {
            if copied == POSTINGS_A_STEP {
                self.stage = Stage::Term { id, input: at, document: cursor.document() };
                break;
            }
            let moved = input.forward[cursor.document() as usize];
            if moved != GONE {
                cursor.copy_positions(self.writer.positions());
                self.writer.push(moved, cursor.frequency());
                units.spend(u64::from(cursor.frequency()) / 16);
            }
            cursor.step();
            copied += 1;
        }
        // Opening the lists costs more than the few postings that most terms have.
        units.spend(u64::from(copied) * 2 + 6);
    }

    /// The output: the segment, its dead documents, and where each input's documents went.
    pub(crate) fn finish(self) -> (Segment, Bitmap, Vec<(u32, Vec<u32>)>) {
        assert!(self.stage == Stage::Done, "only a complete merge is finished");
        let forwards = self.inputs.into_iter().map(|input| (input.part, input.forward));
        (self.writer.finish(), self.dead, forwards.collect())
    }
}

/// Copies the postings of a list without a full block: most terms have one or two, and no cursor is made for these.
fn copy_short(list: &SealedList<'_>, input: &Input, writer: &mut SegmentWriter, units: &mut Units) {
    let (stream, mut at) = (list.position_stream(), list.positions_of(0));
    let mut positions = 0;
    list.each_of_rest(|document, frequency| {
        let start = at;
        skip_varints(stream, &mut at, frequency);
        positions += u64::from(frequency);
        let moved = input.forward[document as usize];
        if moved != GONE {
            writer.positions().extend_from_slice(&stream[start..at]);
            writer.push(moved, frequency);
        }
    });
    units.spend(u64::from(list.count) * 2 + positions / 16 + 6);
}

/// Copies a tail's postings of a term from the document `from` on; returns the document to go on from if there are more than
/// one step may copy.
fn copy_from_tail(
    mut reader: TailReader<'_>,
    input: &Input,
    from: u32,
    writer: &mut SegmentWriter,
    units: &mut Units,
) -> Option<u32> {
    let (mut copied, mut positions) = (0, 0);
    let mut stopped = None;
    while let Some((document, frequency)) = reader.next_posting() {
        if document >= input.documents {
            break;
        }
        let moved = input.forward[document as usize];
        if document < from || moved == GONE {
            (0..frequency).for_each(|_| _ = reader.varint());
            continue;
        }
        if copied == POSTINGS_A_STEP || positions >= POSITIONS_A_STEP {
            stopped = Some(document);
            break;
        }
        for _ in 0..frequency {
            put_varint(writer.positions(), reader.varint());
        }
        writer.push(moved, frequency);
        copied += 1;
        positions += u64::from(frequency);
    }
    units.spend(u64::from(copied) * 2 + positions / 16 + 6);
    stopped
}

impl Input {
    pub(crate) fn documents(&self) -> u32 {
        self.documents
    }

    fn seek_term(&mut self, from: u32) {
        self.next_term = match &self.body {
            Body::Sealed(segment) => segment.terms.next(from),
            Body::Tail(_) => {
                while self.tail_terms.get(self.next_tail_term).is_some_and(|term| *term < from) {
                    self.next_tail_term += 1;
                }
                self.tail_terms.get(self.next_tail_term).copied()
            }
        };
    }
}
