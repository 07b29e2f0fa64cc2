//! BULK_GET: many values as they were at one moment.
//!
//! One group answers with one consistent read. Several are read again until two rounds in a row are equal, versions
//! included: then nothing changed between the end of the first and the beginning of the second, and that moment is the
//! snapshot. After [`UNEQUAL_ROUNDS_MAX`] unequal rounds the keys are read under the locks of a transaction, which always
//! comes to an end. With `consistency: local` one round is all.

use super::answers::{Answers, Collected, end_of};
use super::parts::{ReadPart, take_read};
use super::{Call, Gather, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::encode::{self, consistency_bits};
use crate::command::items::{self, Items};
use crate::command::record::{Malformed, Op, Record};
use crate::gather::topology::Topology;
use crate::ids::GroupId;
use crate::mutants::{Mutant, is_on};
use crate::txn::Kind;
use strand_wire::json::push_string;
use strand_wire::request::{self, Consistency};

/// Rounds that differ from the one before them until locks are taken.
pub const UNEQUAL_ROUNDS_MAX: u32 = 3;

/// See the module's head.
#[derive(Debug)]
pub struct BulkGet {
    consistency: Consistency,
    /// The keys of each group, ascending by group; a call's number is the place in here.
    parts: Vec<(GroupId, Vec<u8>)>,
    /// For each key of the request, in its order, the place of its group in `parts`.
    places: Vec<u16>,
    /// The answers of the round before.
    before: Option<Vec<Vec<u8>>>,
    /// The answers of this round, by number.
    round: Answers,
    unequal_rounds: u32,
    /// The transaction was asked for.
    under_locks: bool,
}

impl BulkGet {
    /// The groups that the keys of a request live in: one is answered by a single read.
    pub fn split(topology: &Topology, request: &request::BulkGet<'_>) -> Vec<(GroupId, Vec<u8>)> {
        encode::split(topology, request.keys.iter().map(|key| (&**key, &[][..])))
    }

    /// Begins; `parts` come from [`BulkGet::split`].
    pub fn start(
        topology: &Topology,
        request: &request::BulkGet<'_>,
        parts: Vec<(GroupId, Vec<u8>)>,
    ) -> (Gather, Step) {
        let place_of = |key: &str| {
            let group = topology.group_of(key.as_bytes());
            let place = parts.binary_search_by_key(&group, |(group, _)| *group);
            place.expect("every key's group has a part") as u16
        };
        let places = request.keys.iter().map(|key| place_of(key)).collect();
        let gather = Self {
            consistency: request.consistency,
            round: Answers::new(parts.len()),
            parts,
            places,
            before: None,
            unequal_rounds: 0,
            under_locks: false,
        };
        let step = if gather.parts.is_empty() {
            Step::success(b"\"result\":{}".to_vec())
        } else {
            gather.read_all()
        };
        (Gather::BulkGet(gather), step)
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        if self.under_locks {
            return match end_of(kind, body)? {
                Some(end) => Ok(end),
                None => self.finish_locked(body),
            };
        }
        // A round holds the values once, the result holds them again with the keys.
        let round = match self.round.take(number, kind, body, 0)? {
            Collected::Step(step) => return Ok(step),
            Collected::All(round) => round,
        };
        let alone = self.parts.len() == 1 || self.consistency == Consistency::Local;
        match self.before.replace(round) {
            None if alone || is_on(Mutant::OneRoundIsEnough) => self.finish(),
            None => Ok(self.read_all()),
            Some(before) if self.before.as_ref() == Some(&before) => self.finish(),
            Some(_) => {
                self.unequal_rounds += 1;
                Ok(if self.unequal_rounds < UNEQUAL_ROUNDS_MAX {
                    self.read_all()
                } else {
                    self.read_locked()
                })
            }
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        let keys: usize = self.parts.iter().map(|(_, items)| items.len()).sum();
        let before: usize = self.before.iter().flatten().map(Vec::len).sum();
        keys + self.places.len() * 2 + before + self.round.bytes()
    }

    fn read_all(&self) -> Step {
        let flags = consistency_bits(self.consistency);
        let calls = (0u16..).zip(&self.parts).map(|(number, (group, items))| {
            Call::new(number, *group, &Record { flags, ..Record::plain(Op::ReadMany, &[], items) })
        });
        Step::Calls(calls.collect())
    }

    fn read_locked(&mut self) -> Step {
        self.under_locks = true;
        self.before = None;
        let mut value = Vec::new();
        encode::start(Kind::Read, &self.parts).encode(&mut value);
        let lowest = self.parts[0].0;
        Step::Calls(vec![Call::new(0, lowest, &Record::plain(Op::TxnStart, &[], &value))])
    }

    /// The result of equal rounds: keys and answers of each group stand in the same order.
    fn finish(&self) -> Result<Step, Malformed> {
        let answers = self.before.as_deref().unwrap_or_default();
        let mut answers: Vec<&[u8]> = answers.iter().map(Vec::as_slice).collect();
        let mut keys: Vec<Items<'_>> = self.parts.iter().map(|(_, items)| items::iter(items)).collect();
        let mut result = ObjectWriter::new();
        for place in self.places.iter().map(|place| usize::from(*place)) {
            let (key, _) = keys[place].next().ok_or(Malformed("a key is missing"))??;
            let ReadPart { value, .. } = take_read(&mut answers[place])?;
            result.push(key, value)?;
        }
        if answers.iter().any(|rest| !rest.is_empty()) {
            return Err(Malformed("it holds more keys than were asked for"));
        }
        Ok(result.finish())
    }

    /// The result of the transaction, whose keys come in its own order.
    fn finish_locked(&self, body: &[u8]) -> Result<Step, Malformed> {
        let mut found = items::iter(body).collect::<Result<Vec<_>, _>>()?;
        found.sort_unstable_by_key(|(key, _)| *key);
        let mut keys: Vec<Items<'_>> = self.parts.iter().map(|(_, items)| items::iter(items)).collect();
        let mut result = ObjectWriter::new();
        for place in self.places.iter().map(|place| usize::from(*place)) {
            let (key, _) = keys[place].next().ok_or(Malformed("a key is missing"))??;
            let at = found.binary_search_by_key(&key, |(key, _)| *key);
            let (_, value) = found[at.map_err(|_| Malformed("it lacks a key"))?];
            result.push(key, (!value.is_empty()).then_some(value))?;
        }
        Ok(result.finish())
    }
}

/// Writes `"result":{...}`.
struct ObjectWriter {
    out: Vec<u8>,
    is_first: bool,
}

impl ObjectWriter {
    fn new() -> Self {
        Self { out: b"\"result\":{".to_vec(), is_first: true }
    }

    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Malformed> {
        if !std::mem::take(&mut self.is_first) {
            self.out.push(b',');
        }
        push_string(&mut self.out, text_of(key)?);
        self.out.push(b':');
        self.out.extend_from_slice(value.unwrap_or(b"null"));
        Ok(())
    }

    fn finish(mut self) -> Step {
        self.out.push(b'}');
        Step::success(self.out)
    }
}
