//! Times to live: a value is there before its time is over and never after it. Each key has one client, so it knows. With
//! renewals, keys get short times and are written anew about when these end, and must then be there.

use super::{Ask, Outcome, Span, Workload, number_of, value_text};
use crate::rng::Rng;
use std::collections::{BTreeMap, VecDeque};

const KEYS_PER_CLIENT: u64 = 3;
/// Times to live that end about when the next request comes, in ms.
const SHORT_MS: [u64; 5] = [1, 5, 20, 60, 150];
const LONG_MS: u64 = 60_000;

#[derive(Clone, Copy)]
enum Doing {
    /// A value, and its time to live if it has one.
    Set(u64, Option<u64>),
    Expire(u64),
    Get,
    Delete,
    Persist,
}

/// A request to be made.
#[derive(Clone, Copy)]
enum Step {
    Set(Option<u64>),
    Expire(u64),
    Persist,
    Get,
}

/// What its client knows of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The value, if it is certain.
    value: Option<Option<u64>>,
    /// It is surely there before the first and surely gone after the second, in virtual microseconds.
    ends_us: Option<(u64, u64)>,
    /// It was seen to be gone.
    is_gone: bool,
}

/// See the module's head.
pub(super) struct Expiry {
    renews: bool,
    /// What a client does next to which key.
    script: BTreeMap<usize, VecDeque<(String, Step)>>,
    clock_error_us: u64,
    next_value: u64,
    next_tag: u64,
    doing: BTreeMap<u64, (String, Doing)>,
    known: BTreeMap<String, Known>,
    last: Vec<String>,
    has_listed: bool,
    /// How often the outcome of a write was lost, by client: its keys then get other names, since it may yet take effect.
    lives: BTreeMap<usize, u32>,
}

impl Expiry {
    pub(super) fn new(clock_error_ms: u64, renews: bool) -> Self {
        Self {
            renews,
            script: BTreeMap::new(),
            clock_error_us: clock_error_ms * 1000,
            next_value: 2,
            next_tag: 0,
            doing: BTreeMap::new(),
            known: BTreeMap::new(),
            last: Vec::new(),
            has_listed: false,
            lives: BTreeMap::new(),
        }
    }

    fn start(&mut self, key: &str, doing: Doing, line: String) -> Ask {
        self.next_tag += 1;
        self.doing.insert(self.next_tag, (key.to_owned(), doing));
        Ask { line, tag: self.next_tag, may_repeat: matches!(doing, Doing::Get) }
    }

    fn ask_for(&mut self, key: &str, step: Step) -> Ask {
        match step {
            Step::Set(ttl_ms) => {
                self.next_value += 1;
                let (value, text) = (self.next_value, value_text(self.next_value));
                let ttl = ttl_ms.map_or(String::new(), |ms| format!(",\"ttl_ms\":{ms}"));
                let line = format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{text}{ttl}}}");
                self.start(key, Doing::Set(value, ttl_ms), line)
            }
            Step::Expire(ttl_ms) => {
                let line = format!("{{\"command\":\"EXPIRE\",\"key\":\"{key}\",\"ttl_ms\":{ttl_ms}}}");
                self.start(key, Doing::Expire(ttl_ms), line)
            }
            Step::Persist => {
                let line = format!("{{\"command\":\"PERSIST\",\"key\":\"{key}\"}}");
                self.start(key, Doing::Persist, line)
            }
            Step::Get => {
                let line = format!("{{\"command\":\"GET\",\"key\":\"{key}\"}}");
                self.start(key, Doing::Get, line)
            }
        }
    }

    /// The next step of a client's script; a new one begins now and then.
    fn renew(&mut self, client: usize, key: &str, rng: &mut Rng) -> Option<Ask> {
        let steps = self.script.entry(client).or_default();
        if steps.is_empty() && rng.chance(500) {
            let renewal = *rng.pick(&[
                Step::Set(None),
                Step::Set(None),
                Step::Set(Some(LONG_MS)),
                Step::Expire(LONG_MS),
                Step::Persist,
            ]);
            steps.extend(
                [Step::Set(Some(*rng.pick(&SHORT_MS))), renewal, Step::Get]
                    .map(|step| (key.to_owned(), step)),
            );
        }
        let (key, step) = steps.pop_front()?;
        Some(self.ask_for(&key, step))
    }

    fn saw(&mut self, key: &str, value: Option<u64>, span: Span) -> Result<(), String> {
        let known = self.known.entry(key.to_owned()).or_default();
        let (called_us, returned_us) = span.times_us;
        let Some(expected) = known.value else { return Ok(()) };
        match (value, expected) {
            (None, None) => Ok(()),
            (Some(value), None) => Err(format!("{key} holds {value} that was deleted")),
            (Some(value), Some(written)) if value != written => {
                Err(format!("{key} holds {value}, written was {written}"))
            }
            (Some(value), Some(_)) => {
                if known.is_gone {
                    return Err(format!("{key}: {value} came back after it had expired"));
                }
                match known.ends_us {
                    Some((_, latest)) if called_us > latest + self.clock_error_us => {
                        Err(format!("{key}: {value} is there at {called_us} us, it ended by {latest} us"))
                    }
                    _ => Ok(()),
                }
            }
            (None, Some(written)) => {
                known.is_gone = true;
                match known.ends_us {
                    Some((earliest, _)) if returned_us + self.clock_error_us >= earliest => Ok(()),
                    ends => Err(format!("{key}: {written} is gone at {returned_us} us, it ends at {ends:?}")),
                }
            }
        }
    }
}

/// When a time to live that was given by a request ends, at the earliest and at the latest.
fn ends_us(span: Span, ttl_ms: u64) -> (u64, u64) {
    (span.times_us.0 + ttl_ms * 1000, span.times_us.1 + ttl_ms * 1000 + 2000)
}

impl Workload for Expiry {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let life = self.lives.get(&client).copied().unwrap_or_default();
        let key = format!("ttl{client}.{}.{life}", rng.below(KEYS_PER_CLIENT));
        if self.renews
            && let Some(ask) = self.renew(client, &key, rng)
        {
            return ask;
        }
        match rng.below(10) {
            0..4 => {
                let ttl_ms = *rng.pick(&[20, 300, 2000, 60_000]);
                self.ask_for(&key, Step::Set(Some(ttl_ms)))
            }
            4 => {
                let line = format!("{{\"command\":\"DELETE\",\"key\":\"{key}\"}}");
                self.start(&key, Doing::Delete, line)
            }
            5 => self.ask_for(&key, Step::Persist),
            _ => self.ask_for(&key, Step::Get),
        }
    }

    fn end(&mut self, client: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String> {
        let (key, doing) = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        match (outcome, doing) {
            (Outcome::Refused(_), _) | (Outcome::Unknown, Doing::Get) => return Ok(()),
            (Outcome::Done(reply), Doing::Get) => return self.saw(&key, number_of(&reply["result"])?, span),
            (Outcome::Unknown, _) => {
                // It may take effect later: nothing is certain of this key any more.
                self.known.insert(key, Known::default());
                *self.lives.entry(client).or_default() += 1;
                // The steps that are left name it.
                self.script.remove(&client);
                return Ok(());
            }
            _ => {}
        }
        let known = self.known.entry(key.clone()).or_default();
        let was_lost = known.value.is_none();
        match (outcome, doing) {
            (_, Doing::Set(value, ttl_ms)) => {
                let ends_us = ttl_ms.map(|ms| ends_us(span, ms));
                *known = Known { value: Some(Some(value)), ends_us, is_gone: false };
            }
            (Outcome::Done(reply), Doing::Expire(_)) if reply["result"] != true => {
                return self.saw(&key, None, span);
            }
            (_, Doing::Expire(ttl_ms)) if !was_lost => {
                if known.is_gone || known.value == Some(None) {
                    return Err(format!("{key}: EXPIRE found a value that is gone"));
                }
                known.ends_us = Some(ends_us(span, ttl_ms));
            }
            (_, Doing::Delete) => *known = Known { value: Some(None), ends_us: None, is_gone: false },
            (Outcome::Done(reply), Doing::Persist) if reply["result"] == true && !was_lost => {
                if known.is_gone || known.value == Some(None) {
                    return Err(format!("{key}: PERSIST found a value that is gone"));
                }
                known.ends_us = None;
            }
            _ => {}
        }
        Ok(())
    }

    fn last(&mut self) -> Option<Ask> {
        if !std::mem::replace(&mut self.has_listed, true) {
            self.last = self.known.keys().cloned().collect();
        }
        let key = self.last.pop()?;
        let line = format!("{{\"command\":\"GET\",\"key\":\"{key}\"}}");
        Some(self.start(&key, Doing::Get, line))
    }

    fn judge(&mut self) -> Result<u64, String> {
        Ok(0)
    }

    fn name(&self) -> &'static str {
        "expiry"
    }
}
