//! Counters: INCR with client and seq, sent again until answered. Every increment counts exactly once.

use super::{Ask, Outcome, Span, Workload, code};
use crate::rng::Rng;
use std::collections::BTreeMap;

/// See the module's head.
pub(super) struct Counters {
    keys: u32,
    next_tag: u64,
    seqs: BTreeMap<usize, u64>,
    doing: BTreeMap<u64, (u32, bool)>,
    /// Of each key: what each answered increment came to, with its span.
    counted: BTreeMap<u32, Vec<(i64, Span)>>,
    reads: BTreeMap<u32, Vec<(i64, Span)>>,
    /// Increments that nobody knows the end of.
    unknown: BTreeMap<u32, i64>,
    last: u32,
}

impl Counters {
    pub(super) fn new(keys: u32) -> Self {
        Self {
            keys: keys.min(3),
            next_tag: 0,
            seqs: BTreeMap::new(),
            doing: BTreeMap::new(),
            counted: BTreeMap::new(),
            reads: BTreeMap::new(),
            unknown: BTreeMap::new(),
            last: 0,
        }
    }

    fn start(&mut self, key: u32, line: String, is_increment: bool) -> Ask {
        self.next_tag += 1;
        self.doing.insert(self.next_tag, (key, is_increment));
        Ask { line, tag: self.next_tag, may_repeat: true }
    }

    fn read(&mut self, key: u32) -> Ask {
        self.start(key, format!("{{\"command\":\"GET\",\"key\":\"count{key}\"}}"), false)
    }
}

impl Workload for Counters {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let key = rng.below(u64::from(self.keys)) as u32;
        if rng.chance(250) {
            return self.read(key);
        }
        let seq = self.seqs.entry(client).or_default();
        *seq += 1;
        // Some clients say what they still wait for, some leave the server to forget.
        let acked = if client.is_multiple_of(2) { format!(",\"acked\":{seq}") } else { String::new() };
        let line = format!(
            "{{\"command\":\"INCR\",\"key\":\"count{key}\",\"client\":\"n{client}\",\"seq\":{seq}{acked}}}"
        );
        self.start(key, line, true)
    }

    fn end(&mut self, _: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String> {
        let (key, is_increment) = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        match (outcome, is_increment) {
            (Outcome::Done(reply), _) => {
                let result = &reply["result"];
                let number = if result.is_null() { 0 } else { result.as_i64().ok_or("no number")? };
                let list = if is_increment { &mut self.counted } else { &mut self.reads };
                list.entry(key).or_default().push((number, span));
            }
            (Outcome::Refused(reply), true) if matches!(code(reply), "SEQ_EXPIRED" | "CONFLICT") => {
                return Err(format!("count{key}: a seq that is waited for was forgotten: {reply}"));
            }
            (Outcome::Unknown, true) => *self.unknown.entry(key).or_default() += 1,
            _ => {}
        }
        Ok(())
    }

    fn last(&mut self) -> Option<Ask> {
        let key = self.last;
        self.last += 1;
        (key < self.keys).then(|| self.read(key))
    }

    fn judge(&mut self) -> Result<u64, String> {
        for key in 0..self.keys {
            let mut counted = self.counted.remove(&key).unwrap_or_default();
            let reads = self.reads.remove(&key).unwrap_or_default();
            let unknown = self.unknown.get(&key).copied().unwrap_or_default();
            let known = counted.len() as i64;
            counted.sort_by_key(|(number, _)| *number);
            if let Some(pair) = counted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(format!("count{key}: two increments came to {}", pair[0].0));
            }
            let highest = counted.last().map_or(0, |(number, _)| *number);
            if highest > known + unknown {
                return Err(format!("count{key} reached {highest} by {known} + {unknown} increments"));
            }
            let mut all: Vec<(i64, Span, bool)> = counted.iter().map(|(n, span)| (*n, *span, true)).collect();
            all.extend(reads.iter().map(|(n, span)| (*n, *span, false)));
            if let Some((number, _, _)) = all.iter().find(|(number, ..)| *number > known + unknown) {
                return Err(format!("count{key} showed {number} after {known} + {unknown} increments"));
            }
            // What ended before something else was called is not above it, and below it if that is an increment.
            all.sort_by_key(|(_, span, _)| span.called);
            let mut ended: Vec<(u64, i64)> = all.iter().map(|(n, span, _)| (span.returned, *n)).collect();
            ended.sort_unstable();
            let (mut place, mut floor) = (0, i64::MIN);
            for (number, span, is_increment) in &all {
                while place < ended.len() && ended[place].0 < span.called {
                    floor = floor.max(ended[place].1);
                    place += 1;
                }
                if *number < floor || (*is_increment && *number == floor) {
                    return Err(format!("count{key} went from {floor} back to {number} at {span:?}"));
                }
            }
            // The last read comes after everything.
            if let Some((number, _)) = reads.iter().max_by_key(|(_, span)| span.called)
                && *number < known
            {
                return Err(format!("count{key} shows {number} after {known} acknowledged increments"));
            }
        }
        Ok(0)
    }

    fn name(&self) -> &'static str {
        "counters"
    }
}
