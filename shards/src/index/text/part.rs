//! What a query sees of one part of the index, be it a sealed segment or a tail up to a length.

use super::bitmap::Bitmap;
use super::bounds::Bounds;
use super::cursor::Cursor;
use super::dictionary::FieldId;
use super::segment::{DocumentRecord, Packed, SHORT_OPEN, Segment};
use super::tail::Tail;
use std::cell::{Ref, RefCell};
use std::rc::Rc;

/// The documents and postings of a part.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Appended to, or waiting to be sealed.
    Tail(Rc<RefCell<Tail>>),
    /// Immutable.
    Sealed(Rc<Segment>),
}

/// A part as one view sees it: its body, how many documents of it, and which of them are dead.
#[derive(Clone, Debug)]
pub(crate) struct PartView {
    pub(crate) id: u32,
    pub(crate) body: Body,
    pub(crate) documents: u32,
    pub(crate) dead: Rc<Bitmap>,
}

/// A part opened for reading.
pub(crate) enum Open<'a> {
    Tail(Ref<'a, Tail>, u32),
    Sealed(&'a Segment),
}

/// Lengths of the documents in one field.
#[derive(Clone, Copy)]
pub(crate) enum Lengths<'a> {
    None,
    /// In a byte each, up to [`SHORT_OPEN`], and all of them as they are.
    Sealed(&'a [u8], &'a Packed),
    Plain(&'a [u32]),
}

impl Lengths<'_> {
    #[inline]
    pub(crate) fn get(self, document: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::Sealed(short, packed) => match short[document as usize] {
                SHORT_OPEN => packed.get(document),
                length => u32::from(length),
            },
            Self::Plain(plain) => plain.get(document as usize).copied().unwrap_or(0),
        }
    }
}

impl Body {
    pub(crate) fn open(&self, documents: u32) -> Open<'_> {
        match self {
            Self::Tail(tail) => Open::Tail(tail.borrow(), documents),
            Self::Sealed(segment) => Open::Sealed(segment),
        }
    }

    pub(crate) fn documents(&self) -> u32 {
        match self {
            Self::Tail(tail) => tail.borrow().documents(),
            Self::Sealed(segment) => segment.documents(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Tail(tail) => tail.borrow().bytes(),
            Self::Sealed(segment) => segment.bytes(),
        }
    }

    /// Calls `then` with a document's record.
    pub(crate) fn with_record<T>(&self, document: u32, then: impl FnOnce(DocumentRecord<'_>) -> T) -> T {
        match self {
            Self::Tail(tail) => then(tail.borrow().record(document)),
            Self::Sealed(segment) => then(segment.record(document)),
        }
    }

    /// A document's length in a field.
    pub(crate) fn length(&self, field: FieldId, document: u32) -> u32 {
        match self {
            Self::Tail(tail) => tail.borrow().length(field, document),
            Self::Sealed(segment) => segment.column(field).map_or(0, |column| column.lengths.get(document)),
        }
    }
}

impl Open<'_> {
    pub(crate) fn documents(&self) -> u32 {
        match self {
            Self::Tail(_, documents) => *documents,
            Self::Sealed(segment) => segment.documents(),
        }
    }

    pub(crate) fn key(&self, document: u32) -> &[u8] {
        match self {
            Self::Tail(tail, _) => tail.record(document).key(),
            Self::Sealed(segment) => segment.record(document).key(),
        }
    }

    pub(crate) fn cursor(&self, term: u32, wants_positions: bool) -> Option<Cursor<'_>> {
        match self {
            Self::Tail(tail, documents) => {
                Some(Cursor::tail(tail.postings(term)?, *documents, wants_positions))
            }
            Self::Sealed(segment) => Some(Cursor::sealed(segment.postings(term)?)),
        }
    }

    /// What no posting of a term exceeds; `None` if it has none.
    pub(crate) fn bounds(&self, term: u32) -> Option<Bounds> {
        match self {
            Self::Tail(tail, _) => Some(tail.postings(term)?.bounds().bounds()),
            Self::Sealed(segment) => Some(segment.postings(term)?.bounds_of_all()),
        }
    }

    /// Number of postings of a term.
    pub(crate) fn count(&self, term: u32) -> u32 {
        match self {
            Self::Tail(tail, _) => tail.postings(term).map_or(0, |reader| reader.left()),
            Self::Sealed(segment) => segment.postings(term).map_or(0, |list| list.count),
        }
    }

    pub(crate) fn lengths(&self, field: FieldId) -> Lengths<'_> {
        match self {
            Self::Tail(tail, _) => match tail.columns().iter().find(|column| column.field == field) {
                Some(column) => Lengths::Plain(&column.lengths),
                None => Lengths::None,
            },
            Self::Sealed(segment) => {
                segment.column(field).map_or(Lengths::None, |c| Lengths::Sealed(c.short(), &c.lengths))
            }
        }
    }

    /// Norms of the documents in the whole value; documents beyond the end have none.
    pub(crate) fn norms(&self) -> &[f32] {
        match self {
            Self::Tail(tail, _) => match tail.columns().iter().find(|column| column.field == 0) {
                Some(column) => &column.norms,
                None => &[],
            },
            Self::Sealed(segment) => segment.column(0).map_or(&[][..], |column| &column.norms),
        }
    }

    pub(crate) fn vectors(&self) -> &[i8] {
        match self {
            Self::Tail(tail, _) => tail.vectors(),
            Self::Sealed(segment) => &segment.vectors,
        }
    }
}
