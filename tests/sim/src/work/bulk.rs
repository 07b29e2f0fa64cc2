//! Batches: BULK_SET of one tag under several keys on several shards. Whoever reads any of them sees whole batches: a set
//! of keys written only together is one register.

use super::registers::judge_register;
use super::{Ask, Outcome, Span, Workload, number_of, value_text};
use crate::check::linear::{Action, Operation, Value};
use crate::rng::Rng;
use std::collections::BTreeMap;

#[derive(Clone, Copy)]
enum Doing {
    Set(u64),
    Delete,
    GetAll,
    GetOne,
}

/// See the module's head.
pub(super) struct Bulk {
    sets: u32,
    width: u32,
    next_value: u64,
    next_tag: u64,
    seqs: BTreeMap<usize, u64>,
    doing: BTreeMap<u64, (u32, Doing)>,
    histories: BTreeMap<u32, Vec<Operation>>,
    last: u32,
    /// What was acknowledged may be lost: only whole batches are judged.
    forgets: bool,
}

impl Bulk {
    pub(super) fn new(keys: u32, forgets: bool) -> Self {
        Self {
            sets: 1 + keys / 5,
            width: 2 + keys % 4,
            next_value: 2,
            next_tag: 0,
            seqs: BTreeMap::new(),
            doing: BTreeMap::new(),
            histories: BTreeMap::new(),
            last: 0,
            forgets,
        }
    }

    fn keys(&self, set: u32) -> Vec<String> {
        (0..self.width).map(|place| format!("bulk{set}.{place}")).collect()
    }

    fn start(&mut self, set: u32, doing: Doing, line: String, may_repeat: bool) -> Ask {
        self.next_tag += 1;
        self.doing.insert(self.next_tag, (set, doing));
        Ask { line, tag: self.next_tag, may_repeat }
    }

    fn read_all(&mut self, set: u32) -> Ask {
        let names: Vec<String> = self.keys(set).iter().map(|key| format!("\"{key}\"")).collect();
        let line = format!("{{\"command\":\"BULK_GET\",\"keys\":[{}]}}", names.join(","));
        self.start(set, Doing::GetAll, line, true)
    }
}

impl Workload for Bulk {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let set = rng.below(u64::from(self.sets)) as u32;
        let has_session = rng.chance(700);
        let mut session = String::new();
        let what = rng.below(10);
        if has_session && what < 5 {
            let seq = self.seqs.entry(client).or_default();
            *seq += 1;
            session = format!(",\"client\":\"b{client}\",\"seq\":{seq},\"acked\":{seq}");
        }
        let keys = self.keys(set);
        match what {
            0..4 => {
                self.next_value += 1;
                let value = self.next_value;
                let items: Vec<String> =
                    keys.iter().map(|key| format!("\"{key}\":{}", value_text(value))).collect();
                let line = format!("{{\"command\":\"BULK_SET\",\"items\":{{{}}}{session}}}", items.join(","));
                self.start(set, Doing::Set(value), line, has_session)
            }
            4 => {
                let names: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
                let line = format!("{{\"command\":\"BULK_DELETE\",\"keys\":[{}]{session}}}", names.join(","));
                self.start(set, Doing::Delete, line, has_session)
            }
            5..7 => {
                let line = format!("{{\"command\":\"GET\",\"key\":\"{}\"}}", rng.pick(&keys));
                self.start(set, Doing::GetOne, line, true)
            }
            _ => self.read_all(set),
        }
    }

    fn end(&mut self, _: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String> {
        let (set, doing) = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        let action = match (outcome, doing) {
            (Outcome::Refused(_), _) => return Ok(()),
            (Outcome::Done(_) | Outcome::Unknown, Doing::Set(value)) => Action::Write(Some(value)),
            (Outcome::Done(reply), Doing::Delete) => {
                let deleted = reply["result"].as_u64().unwrap_or(u64::MAX);
                if deleted != 0 && deleted != u64::from(self.width) {
                    return Err(format!("BULK_DELETE found {deleted} of {} keys of bulk{set}", self.width));
                }
                Action::Delete(deleted > 0)
            }
            (Outcome::Unknown, Doing::Delete) => Action::Delete(true),
            (Outcome::Unknown, Doing::GetAll | Doing::GetOne) => return Ok(()),
            (Outcome::Done(reply), Doing::GetOne) => Action::Read(number_of(&reply["result"])?),
            (Outcome::Done(reply), Doing::GetAll) => {
                let members = reply["result"].as_object().ok_or("BULK_GET gives an object")?;
                let values: Vec<Value> = members.values().map(number_of).collect::<Result<_, _>>()?;
                if values.len() != self.width as usize || values.iter().any(|value| *value != values[0]) {
                    return Err(format!("BULK_GET of bulk{set} saw half of a batch: {values:?}"));
                }
                Action::Read(values[0])
            }
        };
        let returned = (!matches!(outcome, Outcome::Unknown)).then_some(span.returned);
        let operation = Operation { called: span.called, returned, action };
        self.histories.entry(set).or_default().push(operation);
        Ok(())
    }

    fn last(&mut self) -> Option<Ask> {
        let set = self.last;
        self.last += 1;
        (set < self.sets).then(|| self.read_all(set))
    }

    fn judge(&mut self) -> Result<u64, String> {
        if self.forgets {
            return Ok(0);
        }
        self.histories
            .iter()
            .map(|(set, history)| judge_register(&format!("bulk{set}"), history, None).map(u64::from))
            .sum()
    }

    fn name(&self) -> &'static str {
        "bulk"
    }
}
