//! Times to live: a value is there before its time is over and never after it. Each key has one client, so it knows.

use super::{Ask, Outcome, Span, Workload, number_of, value_text};
use crate::rng::Rng;
use std::collections::BTreeMap;

const KEYS_PER_CLIENT: u64 = 3;

#[derive(Clone, Copy)]
enum Doing {
    Set(u64, u64),
    Get,
    Delete,
    Persist,
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
    pub(super) fn new(clock_error_ms: u64) -> Self {
        Self {
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

impl Workload for Expiry {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let life = self.lives.get(&client).copied().unwrap_or_default();
        let key = format!("ttl{client}.{}.{life}", rng.below(KEYS_PER_CLIENT));
        match rng.below(10) {
            0..4 => {
                self.next_value += 1;
                let (value, ttl_ms) = (self.next_value, *rng.pick(&[20, 300, 2000, 60_000]));
                let text = value_text(value);
                let line =
                    format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{text},\"ttl_ms\":{ttl_ms}}}");
                self.start(&key, Doing::Set(value, ttl_ms), line)
            }
            4 => {
                let line = format!("{{\"command\":\"DELETE\",\"key\":\"{key}\"}}");
                self.start(&key, Doing::Delete, line)
            }
            5 => {
                let line = format!("{{\"command\":\"PERSIST\",\"key\":\"{key}\"}}");
                self.start(&key, Doing::Persist, line)
            }
            _ => {
                let line = format!("{{\"command\":\"GET\",\"key\":\"{key}\"}}");
                self.start(&key, Doing::Get, line)
            }
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
                return Ok(());
            }
            _ => {}
        }
        let known = self.known.entry(key.clone()).or_default();
        let was_lost = known.value.is_none();
        match (outcome, doing) {
            (_, Doing::Set(value, ttl_ms)) => {
                let ends_us = Some((span.times_us.0 + ttl_ms * 1000, span.times_us.1 + ttl_ms * 1000 + 2000));
                *known = Known { value: Some(Some(value)), ends_us, is_gone: false };
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
