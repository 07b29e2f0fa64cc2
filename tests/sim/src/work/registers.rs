//! Registers: SET, GET, DELETE, EXISTS and compare-and-set of unique values on a few keys, judged key by key.

use super::{Ask, Outcome, Span, Workload, code, number_of, value_text};
use crate::check::linear::{self, Action, Operation, Value, Verdict};
use crate::rng::Rng;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Doing {
    Set(u64),
    Get,
    /// What some replica holds: any value that was on its way by then.
    Local,
    Exists,
    Delete,
    Absent(u64),
    Swap(u64, u64),
    Version(u64, u64),
}

/// See the module's head.
pub(super) struct Registers {
    keys: u32,
    with_faults: bool,
    with_local: bool,
    next_value: u64,
    next_tag: u64,
    seqs: BTreeMap<usize, u64>,
    doing: BTreeMap<u64, (u32, Doing)>,
    histories: BTreeMap<u32, Vec<Operation>>,
    /// What each client last saw of a key, with its version.
    seen: BTreeMap<(usize, u32), (u64, String)>,
    /// The version of every value seen with one.
    versions: BTreeMap<(u32, u64), String>,
    /// Values that were sent to be written, by key.
    sent: BTreeSet<(u32, u64)>,
    last: u32,
}

impl Registers {
    pub(super) fn new(keys: u32, with_faults: bool, with_local: bool) -> Self {
        Self {
            keys,
            with_faults,
            with_local,
            next_value: 1,
            next_tag: 0,
            seqs: BTreeMap::new(),
            doing: BTreeMap::new(),
            histories: BTreeMap::new(),
            seen: BTreeMap::new(),
            versions: BTreeMap::new(),
            sent: BTreeSet::new(),
            last: 0,
        }
    }

    fn value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    fn request(&mut self, key: u32, doing: &Doing, client: usize, rng: &mut Rng) -> (String, bool) {
        let name = format!("reg{key}");
        let mut may_repeat = rng.chance(500);
        let mut session = String::new();
        if may_repeat {
            let seq = self.seqs.entry(client).or_default();
            *seq += 1;
            session = format!(",\"client\":\"r{client}\",\"seq\":{seq},\"acked\":{seq}");
        }
        let debug = if self.with_faults && rng.chance(300) { ",\"debug\":true" } else { "" };
        let version = if rng.chance(300) { ",\"with_version\":true" } else { "" };
        let set = |value: u64, condition: &str| {
            let value = value_text(value);
            format!(
                "{{\"command\":\"SET\",\"key\":\"{name}\",\"value\":{value}{condition}{session}{debug}{version}}}"
            )
        };
        let line = match doing {
            Doing::Set(value) => set(*value, ""),
            Doing::Absent(value) => set(*value, ",\"if\":{\"absent\":true}"),
            Doing::Swap(from, to) => set(*to, &format!(",\"if\":{{\"value\":{}}}", value_text(*from))),
            Doing::Version(from, to) => {
                let version = &self.versions[&(key, *from)];
                set(*to, &format!(",\"if\":{{\"version\":\"{version}\"}}"))
            }
            Doing::Delete => format!("{{\"command\":\"DELETE\",\"key\":\"{name}\"{session}}}"),
            Doing::Get => {
                may_repeat = true;
                format!("{{\"command\":\"GET\",\"key\":\"{name}\"{version}}}")
            }
            Doing::Local => {
                may_repeat = true;
                format!("{{\"command\":\"GET\",\"key\":\"{name}\",\"consistency\":\"local\"}}")
            }
            Doing::Exists => {
                may_repeat = true;
                format!("{{\"command\":\"EXISTS\",\"key\":\"{name}\"}}")
            }
        };
        (line, may_repeat)
    }

    fn start(&mut self, key: u32, doing: Doing, client: usize, rng: &mut Rng) -> Ask {
        let (line, may_repeat) = self.request(key, &doing, client, rng);
        self.next_tag += 1;
        if let Doing::Set(value) | Doing::Absent(value) | Doing::Swap(_, value) | Doing::Version(_, value) =
            doing
        {
            self.sent.insert((key, value));
        }
        self.doing.insert(self.next_tag, (key, doing));
        Ask { line, tag: self.next_tag, may_repeat }
    }

    fn note_version(&mut self, key: u32, value: u64, reply: &Json) -> Result<(), String> {
        let Some(version) = reply["version"].as_str() else { return Ok(()) };
        match self.versions.insert((key, value), version.to_owned()) {
            Some(before) if before != version => {
                Err(format!("value {value} of reg{key} had version {before} and has {version}"))
            }
            _ => Ok(()),
        }
    }
}

impl Workload for Registers {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let key = rng.below(u64::from(self.keys)) as u32;
        let seen = self.seen.get(&(client, key)).cloned();
        let doing = match (rng.below(12), seen) {
            (0..4, _) => Doing::Set(self.value()),
            (4, _) => Doing::Delete,
            (5, _) if self.with_local && rng.chance(500) => Doing::Local,
            (5, _) => Doing::Exists,
            (6, _) => Doing::Absent(self.value()),
            (7, Some((from, _))) => Doing::Swap(from, self.value()),
            (8, Some((from, version))) if !version.is_empty() => Doing::Version(from, self.value()),
            _ => Doing::Get,
        };
        self.start(key, doing, client, rng)
    }

    fn end(&mut self, client: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String> {
        let (key, doing) = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        let action = match (outcome, &doing) {
            (Outcome::Done(reply), Doing::Get) => {
                let value = number_of(&reply["result"]).map_err(|text| format!("reg{key}: {text}"))?;
                if let Some(value) = value {
                    self.note_version(key, value, reply)?;
                    let version = self.versions.get(&(key, value)).cloned().unwrap_or_default();
                    self.seen.insert((client, key), (value, version));
                }
                Action::Read(value)
            }
            (Outcome::Done(reply), Doing::Local) => {
                let value = number_of(&reply["result"]).map_err(|text| format!("reg{key}: {text}"))?;
                return match value {
                    Some(value) if !self.sent.contains(&(key, value)) => {
                        Err(format!("reg{key}: a local read shows {value}, which nobody wrote there"))
                    }
                    _ => Ok(()),
                };
            }
            (Outcome::Done(reply), Doing::Exists) => Action::Exists(reply["result"] == true),
            (Outcome::Done(reply), Doing::Delete) => Action::Delete(reply["result"] == true),
            (Outcome::Done(reply), Doing::Set(value)) => {
                self.note_version(key, *value, reply)?;
                Action::Write(Some(*value))
            }
            (Outcome::Done(reply), Doing::Absent(value)) => {
                self.note_version(key, *value, reply)?;
                Action::Swap(None, Some(*value), true)
            }
            (Outcome::Done(reply), Doing::Swap(from, to) | Doing::Version(from, to)) => {
                self.note_version(key, *to, reply)?;
                Action::Swap(Some(*from), Some(*to), true)
            }
            (Outcome::Refused(reply), Doing::Absent(value)) if code(reply) == "CONFLICT" => {
                Action::Swap(None, Some(*value), false)
            }
            (Outcome::Refused(reply), Doing::Swap(from, to) | Doing::Version(from, to))
                if code(reply) == "CONFLICT" =>
            {
                Action::Swap(Some(*from), Some(*to), false)
            }
            (Outcome::Refused(_), _) => return Ok(()),
            (Outcome::Unknown, Doing::Get | Doing::Local | Doing::Exists) => return Ok(()),
            (Outcome::Unknown, Doing::Set(value)) => Action::Write(Some(*value)),
            (Outcome::Unknown, Doing::Delete) => Action::Delete(true),
            (Outcome::Unknown, Doing::Absent(value)) => Action::Swap(None, Some(*value), true),
            (Outcome::Unknown, Doing::Swap(from, to) | Doing::Version(from, to)) => {
                Action::Swap(Some(*from), Some(*to), true)
            }
        };
        let returned = (!matches!(outcome, Outcome::Unknown)).then_some(span.returned);
        let operation = Operation { called: span.called, returned, action };
        self.histories.entry(key).or_default().push(operation);
        Ok(())
    }

    fn last(&mut self) -> Option<Ask> {
        let key = self.last;
        self.last += 1;
        (key < self.keys).then(|| self.start(key, Doing::Get, usize::MAX, &mut Rng::new(u64::from(key))))
    }

    fn judge(&mut self) -> Result<u64, String> {
        let mut unjudged = 0;
        for (key, history) in &self.histories {
            unjudged += u64::from(judge_register(&format!("reg{key}"), history, None)?);
        }
        let mut owners: BTreeMap<(u32, &str), u64> = BTreeMap::new();
        for ((key, value), version) in &self.versions {
            if let Some(other) = owners.insert((*key, version), *value) {
                return Err(format!("values {other} and {value} of reg{key} share version {version}"));
            }
        }
        Ok(unjudged)
    }

    fn name(&self) -> &'static str {
        "registers"
    }
}

/// Judges one register's history, with the history in the complaint; whether it was too hard to judge.
pub(super) fn judge_register(name: &str, history: &[Operation], initial: Value) -> Result<bool, String> {
    match linear::judge(history, initial) {
        Verdict::Linear => Ok(false),
        Verdict::TooHard => Ok(true),
        Verdict::Broken(text) => {
            let mut sorted = history.to_vec();
            sorted.sort_by_key(|operation| operation.called);
            let lines: Vec<String> = sorted
                .iter()
                .map(|operation| {
                    let returned = operation.returned.map_or("?".to_owned(), |at| at.to_string());
                    format!("  {:>6} {returned:>6} {:?}", operation.called, operation.action)
                })
                .collect();
            Err(format!("{name} is no register: {text}\n{}", lines.join("\n")))
        }
    }
}
