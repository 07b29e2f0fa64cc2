//! The index catalogue: which indexes exist. Group 0 owns it, every group holds a copy.
//!
//! Group 0 applies edits in the order of its log and so gives each state of the catalogue a version; the others take over
//! whatever later version they are sent. It is a pure list: building and answering is the index room's duty.

use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::gather::catalog::Change;
use crate::gather::search::OnDemand;
use crate::index::analyze::AnalyzerKind;
use crate::index::set::{INDEXES_MAX, IndexDefinition, IndexKind};
use crate::index::text::WHOLE;
use crate::index::vector::{Metric, VECTOR_DIMENSIONS_MAX};
use strand_wire::request::IndexKind as WireKind;

/// All definitions, in order of creation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Rises with every change.
    pub version: u64,
    /// The definitions.
    pub definitions: Vec<IndexDefinition>,
}

/// What a change of the catalogue came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The catalogue has changed.
    Yes,
    /// It was so already, or there was nothing to drop.
    No,
    /// The path has an index of this kind with another definition.
    Conflict(String),
    /// It cannot be: the reason.
    Refused(String),
}

impl Catalog {
    /// Applies a change.
    pub fn change(&mut self, change: &Change) -> Changed {
        match change {
            Change::Define(definition) => self.define(definition),
            Change::Drop { path, kind } => {
                let before = self.definitions.len();
                let is_meant = |known: &IndexDefinition| {
                    // Embeddings lie with the text of the whole value and go with it.
                    let goes_with = *kind == Some(WireKind::Text) && known.kind == IndexKind::Embedding;
                    let is_kind = kind.is_none_or(|kind| known.kind.name() == name_of(kind));
                    known.path == *path && (is_kind || goes_with)
                };
                self.definitions.retain(|known| !is_meant(known));
                if self.definitions.len() == before {
                    return Changed::No;
                }
                self.version += 1;
                Changed::Yes
            }
            Change::Install(bytes) => match Self::decode(bytes) {
                Ok(later) if later.version > self.version => {
                    *self = later;
                    Changed::Yes
                }
                Ok(_) => Changed::No,
                Err(malformed) => Changed::Refused(format!("a catalogue cannot be read: {}", malformed.0)),
            },
        }
    }

    fn define(&mut self, definition: &IndexDefinition) -> Changed {
        if let IndexKind::Vector { dimensions, .. } = definition.kind
            && !(1..=VECTOR_DIMENSIONS_MAX).contains(&dimensions)
        {
            let text = format!("\"dim\" must be from 1 to {VECTOR_DIMENSIONS_MAX}");
            return Changed::Refused(text);
        }
        let find = |path: &str, kind: &str| {
            self.definitions.iter().find(|known| known.path == path && known.kind.name() == kind)
        };
        match find(&definition.path, definition.kind.name()) {
            Some(known) if known == definition => return Changed::No,
            Some(known) => {
                return Changed::Conflict(format!(
                    "there is another index of kind {} on {:?}; DROP_INDEX it first",
                    known.kind.name(),
                    known.path
                ));
            }
            None => {}
        }
        // Embeddings are kept with the text of the whole value, so they bring it along.
        let needs_text = definition.kind == IndexKind::Embedding && find(WHOLE, "text").is_none();
        if self.definitions.len() + usize::from(needs_text) >= INDEXES_MAX {
            return Changed::Refused(format!(
                "there are {INDEXES_MAX} indexes, the most there may be; DROP_INDEX one first"
            ));
        }
        if needs_text {
            self.definitions.push(OnDemand::Text(WHOLE.to_owned()).definition());
        }
        self.definitions.push(definition.clone());
        self.version += 1;
        Changed::Yes
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

fn name_of(kind: WireKind) -> &'static str {
    match kind {
        WireKind::Value => "value",
        WireKind::Text => "text",
        WireKind::Vector => "vector",
    }
}

const FORMAT: u8 = 1;

/// Appends a definition.
pub(crate) fn encode_definition(definition: &IndexDefinition, out: &mut Vec<u8>) {
    push_text(out, &definition.path);
    push_text(out, definition.kind.name());
    match definition.kind {
        IndexKind::Text { analyzer } => push_text(out, analyzer.name()),
        IndexKind::Vector { dimensions, metric } => {
            let dimensions = u32::try_from(dimensions).expect("dimensions are bounded");
            out.extend_from_slice(&dimensions.to_le_bytes());
            push_text(out, metric.name());
        }
        IndexKind::Value | IndexKind::Embedding => {}
    }
}

/// Reads a definition that [`encode_definition`] wrote.
pub(crate) fn decode_definition(rest: &mut &[u8]) -> Result<IndexDefinition, Malformed> {
    let path = take_text(rest)?.to_owned();
    let kind = match take_text(rest)? {
        "value" => IndexKind::Value,
        "embedding" => IndexKind::Embedding,
        "text" => {
            let analyzer = AnalyzerKind::from_name(take_text(rest)?).ok_or(Malformed("unknown analyzer"))?;
            IndexKind::Text { analyzer }
        }
        "vector" => {
            let dimensions = take_u32(rest)? as usize;
            let metric = Metric::from_name(take_text(rest)?).ok_or(Malformed("unknown metric"))?;
            IndexKind::Vector { dimensions, metric }
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

    fn define(path: &str, kind: IndexKind) -> Change {
        Change::Define(IndexDefinition { path: path.to_owned(), kind })
    }

    fn text(analyzer: AnalyzerKind) -> IndexKind {
        IndexKind::Text { analyzer }
    }

    fn vector(dimensions: usize) -> IndexKind {
        IndexKind::Vector { dimensions, metric: Metric::Dot }
    }

    #[test]
    fn changes_and_the_bytes_of_the_catalogue() {
        let drop = |kind| Change::Drop { path: "a.b".to_owned(), kind };
        let mut catalog = Catalog::default();
        let steps = [
            (define("a.b", IndexKind::Value), Changed::Yes),
            (define("a.b", IndexKind::Value), Changed::No),
            (define("a.b", text(AnalyzerKind::English)), Changed::Yes),
            (drop(Some(WireKind::Text)), Changed::Yes),
            (drop(Some(WireKind::Text)), Changed::No),
            (drop(None), Changed::Yes),
            (define("*", text(AnalyzerKind::Keyword)), Changed::Yes),
            (define("*", IndexKind::Embedding), Changed::Yes),
            (Change::Drop { path: "*".to_owned(), kind: Some(WireKind::Text) }, Changed::Yes),
            (define("*", IndexKind::Embedding), Changed::Yes),
            (define("*", text(AnalyzerKind::default())), Changed::No),
            (define("v", vector(3)), Changed::Yes),
        ];
        for (change, expected) in steps {
            assert_eq!(catalog.change(&change), expected, "{change:?}");
        }
        assert!(matches!(catalog.change(&define("*", text(AnalyzerKind::Keyword))), Changed::Conflict(_)));
        assert!(matches!(catalog.change(&define("v", vector(4))), Changed::Conflict(_)));
        assert!(matches!(catalog.change(&define("w", vector(0))), Changed::Refused(_)));
        assert!(matches!(catalog.change(&define("w", vector(5000))), Changed::Refused(_)));
        assert_eq!((catalog.version, catalog.definitions.len()), (9, 3));
        let mut bytes = Vec::new();
        catalog.encode(&mut bytes);
        assert_eq!(Catalog::decode(&bytes).as_ref(), Ok(&catalog));
        for end in 0..bytes.len() {
            assert!(Catalog::decode(&bytes[..end]).is_err());
        }
        let mut copy = Catalog::default();
        assert_eq!(copy.change(&Change::Install(bytes.clone())), Changed::Yes);
        assert_eq!(copy, catalog);
        assert_eq!(copy.change(&Change::Install(bytes)), Changed::No);
    }
}
