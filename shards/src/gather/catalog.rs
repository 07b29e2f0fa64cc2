//! CREATE_INDEX and DROP_INDEX: the catalogue of indexes changes in group 0, and every other group takes it over.
//!
//! Group 0 logs the change and answers with the whole catalogue; the other groups are then given that catalogue, log it
//! and answer "OK". A change that finds nothing to do gives the catalogue out all the same, so that a retry completes
//! what an interrupted first try left undone. A group that holds a later catalogue keeps it.
//!
//! | call | value | answer |
//! |---|---|---|
//! | `CatalogChange`, group 0 | [`Change`]: 4, definition as in the catalogue; or 2, kind u8, path | changed u8, catalogue |
//! | `CatalogChange`, others | 3, catalogue | OK |

use super::topology::Topology;
use super::{Call, Gather, NO_PART, Step, text_of};
use crate::batch::ReplyKind;
use crate::catalog::{decode_definition, encode_definition};
use crate::command::record::{Malformed, Op, Record, take_u8};
use crate::ids::GroupId;
use crate::index::set::IndexDefinition;
use strand_wire::request::IndexKind;

/// What is done to the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Define an index, unless the same one is there.
    Define(IndexDefinition),
    /// Drop the indexes of a path.
    Drop {
        /// The path.
        path: String,
        /// Only of this kind.
        kind: Option<IndexKind>,
    },
    /// Take a catalogue over, unless a later one is held: its bytes.
    Install(Vec<u8>),
}

impl Change {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Define(definition) => {
                out.push(4);
                encode_definition(definition, out);
            }
            Self::Drop { path, kind } => {
                out.extend_from_slice(&[2, kind_number(*kind)]);
                out.extend_from_slice(path.as_bytes());
            }
            Self::Install(catalogue) => {
                out.push(3);
                out.extend_from_slice(catalogue);
            }
        }
    }

    /// Reads what [`Change::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        match take_u8(rest)? {
            2 => {
                let kind = kind_of(take_u8(rest)?)?;
                Ok(Self::Drop { path: text_of(rest)?.to_owned(), kind })
            }
            3 => Ok(Self::Install(rest.to_vec())),
            4 => {
                let definition = decode_definition(rest)?;
                if rest.is_empty() {
                    Ok(Self::Define(definition))
                } else {
                    Err(Malformed("bytes after a definition"))
                }
            }
            _ => Err(Malformed("an unknown change of the catalogue")),
        }
    }
}

fn kind_number(kind: Option<IndexKind>) -> u8 {
    match kind {
        None => 0,
        Some(IndexKind::Value) => 1,
        Some(IndexKind::Text) => 2,
        Some(IndexKind::Vector) => 3,
    }
}

fn kind_of(number: u8) -> Result<Option<IndexKind>, Malformed> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(IndexKind::Value)),
        2 => Ok(Some(IndexKind::Text)),
        3 => Ok(Some(IndexKind::Vector)),
        _ => Err(Malformed("an unknown kind of index")),
    }
}

/// The group that owns the catalogue.
const OWNER: GroupId = GroupId(0);

/// See the module's head.
#[derive(Debug)]
pub struct CatalogChange {
    groups: u16,
    is_drop: bool,
    /// Whether the owner changed anything; `None` before its answer.
    changed: Option<bool>,
    /// Other groups that have not taken the catalogue over.
    left: u16,
}

impl CatalogChange {
    /// Begins.
    pub fn start(topology: &Topology, change: &Change) -> (Gather, Step) {
        let groups = u16::try_from(topology.groups()).expect("at most 4,096 groups");
        let is_drop = matches!(change, Change::Drop { .. });
        let gather = Self { groups, is_drop, changed: None, left: groups - 1 };
        (Gather::CatalogChange(gather), Step::Calls(vec![call(0, change)]))
    }

    pub(super) fn part(&mut self, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        match (kind, self.changed) {
            (ReplyKind::Error, _) => Ok(Step::passed_on(kind, body)),
            (ReplyKind::Part, None) => {
                let (changed, catalogue) = body.split_first().ok_or(Malformed("it is empty"))?;
                self.changed = Some(*changed == 1);
                if self.left == 0 {
                    return Ok(self.finish());
                }
                let install = Change::Install(catalogue.to_vec());
                Ok(Step::Calls((1..self.groups).map(|group| call(group, &install)).collect()))
            }
            (ReplyKind::Ok, Some(_)) => {
                self.left = self.left.checked_sub(1).ok_or(Malformed("it came twice"))?;
                Ok(if self.left == 0 { self.finish() } else { Step::Wait })
            }
            _ => Err(NO_PART),
        }
    }

    fn finish(&self) -> Step {
        match (self.is_drop, self.changed) {
            (false, _) => Step::Done { kind: ReplyKind::Ok, members: Vec::new() },
            (true, Some(true)) => Step::success(b"\"result\":true".to_vec()),
            (true, _) => Step::success(b"\"result\":false".to_vec()),
        }
    }
}

fn call(group: u16, change: &Change) -> Call {
    let mut value = Vec::new();
    change.encode(&mut value);
    let group_id = GroupId(u32::from(group));
    let is_install = matches!(change, Change::Install(_));
    assert!((group_id == OWNER) != is_install, "the owner changes, the others take over");
    Call::new(group, group_id, &Record::plain(Op::CatalogChange, &[], &value))
}
