//! The index catalogue: which indexes exist. Group 0 owns it, every group holds a copy.
//!
//! Group 0 applies edits in the order of its log and so gives each state of the catalogue a version; the others take over
//! whatever later version they are sent. It is a pure list: building and answering is the index room's duty.

use crate::command::record::{Malformed, take, take_u8, take_u16, take_u64};
use crate::index::analyze::AnalyzerKind;
use crate::index::set::{INDEXES_MAX, IndexDefinition, IndexKind};

/// All definitions, in order of creation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Rises with every change.
    pub version: u64,
    /// The definitions.
    pub definitions: Vec<IndexDefinition>,
}

/// A wish to change the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Add a definition.
    Create(IndexDefinition),
    /// Remove the definitions of a path; only those of a kind when it is named.
    Drop {
        /// The path.
        path: String,
        /// `value` or `text`, or nothing for any.
        kind: Option<String>,
    },
}

/// What an edit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Edited {
    /// The catalogue has changed.
    Changed = 0,
    /// It was so already, or there was nothing to drop.
    Unchanged = 1,
    /// The path has an index of this kind with another definition.
    Conflict = 2,
    /// There are as many indexes as there may be.
    Full = 3,
}

impl Edited {
    /// Reads the number of an outcome.
    pub fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::Changed),
            1 => Ok(Self::Unchanged),
            2 => Ok(Self::Conflict),
            3 => Ok(Self::Full),
            _ => Err(Malformed("unknown outcome of an edit of the catalogue")),
        }
    }
}

impl Catalog {
    /// Applies an edit.
    pub fn edit(&mut self, edit: &Edit) -> Edited {
        match edit {
            Edit::Create(definition) => {
                let same_place = |known: &&IndexDefinition| {
                    known.path == definition.path && known.kind.name() == definition.kind.name()
                };
                match self.definitions.iter().find(same_place) {
                    Some(known) if known == definition => return Edited::Unchanged,
                    Some(_) => return Edited::Conflict,
                    None if self.definitions.len() >= INDEXES_MAX => return Edited::Full,
                    None => self.definitions.push(definition.clone()),
                }
            }
            Edit::Drop { path, kind } => {
                let before = self.definitions.len();
                let is_meant = |known: &IndexDefinition| {
                    known.path == *path && kind.as_ref().is_none_or(|kind| known.kind.name() == kind)
                };
                self.definitions.retain(|known| !is_meant(known));
                if self.definitions.len() == before {
                    return Edited::Unchanged;
                }
            }
        }
        self.version += 1;
        Edited::Changed
    }

    /// Appends the catalogue.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.version.to_le_bytes());
        let count = u16::try_from(self.definitions.len()).expect("the catalogue is bounded");
        out.extend_from_slice(&count.to_le_bytes());
        for definition in &self.definitions {
            encode_definition(definition, out);
        }
    }

    /// Reads what [`Catalog::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        if take_u8(rest)? != FORMAT {
            return Err(Malformed("a catalogue of an unknown format"));
        }
        let version = take_u64(rest)?;
        let definitions = (0..take_u16(rest)?).map(|_| decode_definition(rest)).collect::<Result<_, _>>()?;
        if rest.is_empty() {
            Ok(Self { version, definitions })
        } else {
            Err(Malformed("bytes after the catalogue"))
        }
    }
}

impl Edit {
    /// Appends the edit, a log payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Create(definition) => {
                out.push(1);
                encode_definition(definition, out);
            }
            Self::Drop { path, kind } => {
                out.push(2);
                push_text(out, path);
                push_text(out, kind.as_deref().unwrap_or(""));
            }
        }
    }

    /// Reads what [`Edit::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let edit = match take_u8(rest)? {
            1 => Self::Create(decode_definition(rest)?),
            2 => {
                let (path, kind) = (take_text(rest)?, take_text(rest)?);
                Self::Drop { path: path.to_owned(), kind: (!kind.is_empty()).then(|| kind.to_owned()) }
            }
            _ => return Err(Malformed("unknown edit of the catalogue")),
        };
        if rest.is_empty() { Ok(edit) } else { Err(Malformed("bytes after an edit of the catalogue")) }
    }
}

const FORMAT: u8 = 1;

fn encode_definition(definition: &IndexDefinition, out: &mut Vec<u8>) {
    push_text(out, &definition.path);
    push_text(out, definition.kind.name());
    let analyzer = match definition.kind {
        IndexKind::Text { analyzer } => analyzer.name(),
        IndexKind::Value => "",
    };
    push_text(out, analyzer);
}

fn decode_definition(rest: &mut &[u8]) -> Result<IndexDefinition, Malformed> {
    let path = take_text(rest)?.to_owned();
    let (kind, analyzer) = (take_text(rest)?, take_text(rest)?);
    let kind = match kind {
        "value" => IndexKind::Value,
        "text" => {
            let analyzer = AnalyzerKind::from_name(analyzer).ok_or(Malformed("unknown analyzer"))?;
            IndexKind::Text { analyzer }
        }
        _ => return Err(Malformed("unknown kind of index")),
    };
    Ok(IndexDefinition { path, kind })
}

/// Appends a text of at most 65,535 bytes with its length.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("paths and names are short");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Reads a text that [`push_text`] wrote.
pub(crate) fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let length = usize::from(take_u16(rest)?);
    std::str::from_utf8(take(rest, length)?).map_err(|_| Malformed("a text that is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, analyzer: AnalyzerKind) -> Edit {
        Edit::Create(IndexDefinition { path: path.to_owned(), kind: IndexKind::Text { analyzer } })
    }

    #[test]
    fn edits_and_their_bytes() {
        let value = Edit::Create(IndexDefinition { path: "a.b".to_owned(), kind: IndexKind::Value });
        let drop = |kind: Option<&str>| Edit::Drop { path: "a.b".to_owned(), kind: kind.map(str::to_owned) };
        let mut catalog = Catalog::default();
        let steps = [
            (value.clone(), Edited::Changed),
            (value.clone(), Edited::Unchanged),
            (text("a.b", AnalyzerKind::English), Edited::Changed),
            (text("a.b", AnalyzerKind::Standard), Edited::Conflict),
            (drop(Some("text")), Edited::Changed),
            (drop(Some("text")), Edited::Unchanged),
            (drop(None), Edited::Changed),
            (text("*", AnalyzerKind::Keyword), Edited::Changed),
        ];
        for (edit, expected) in steps {
            let mut bytes = Vec::new();
            edit.encode(&mut bytes);
            let read = Edit::decode(&bytes).unwrap();
            assert_eq!(read, edit);
            assert_eq!(catalog.edit(&read), expected, "{edit:?}");
        }
        assert_eq!(catalog.version, 5);
        let mut bytes = Vec::new();
        catalog.encode(&mut bytes);
        assert_eq!(Catalog::decode(&bytes), Ok(catalog));
        for end in 0..bytes.len() {
            assert!(Catalog::decode(&bytes[..end]).is_err());
        }
    }
}
