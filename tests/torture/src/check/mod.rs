//! Judges of recorded histories.
//!
//! Compare-and-set and deletes are judged by the simulator's search ([`strand_sim::check::linear`]); registers and batches,
//! whose values are written once each, by their zones, however long the history is; counters by counting.

pub mod zones;

use std::collections::{BTreeMap, BTreeSet};
pub use strand_sim::check::linear::{Action, Operation, Value, Verdict, judge};

/// What is judged in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SET and GET of values that are written once.
    Register,
    /// Compare-and-set, delete and set again.
    Swap,
    /// One value in several keys, written by BULK_SET and read together.
    Batch,
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Event {
    /// How it is judged.
    pub kind: Kind,
    /// Which object.
    pub object: String,
    /// What happened.
    pub operation: Operation,
}

/// What the judges found.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// Operations that were judged.
    pub operations: u64,
    /// Those whose outcome nobody knows.
    pub unknown: u64,
    /// Objects whose search was given up.
    pub too_hard: u64,
    /// What must not be.
    pub violations: Vec<String>,
}

/// Judges every object's history; objects begin absent.
pub fn judge_all(events: &[Event]) -> Judgement {
    let mut found = Judgement::default();
    let mut objects: BTreeMap<(Kind, &str), Vec<Operation>> = BTreeMap::new();
    for event in events {
        found.operations += 1;
        found.unknown += u64::from(event.operation.returned.is_none());
        objects.entry((event.kind, &event.object)).or_default().push(event.operation);
    }
    for ((kind, object), history) in objects {
        let verdict = match kind {
            Kind::Register | Kind::Batch => zones::judge(&history),
            Kind::Swap => match judge(&history, None) {
                Verdict::Linear => Ok(()),
                Verdict::TooHard => {
                    found.too_hard += 1;
                    Ok(())
                }
                Verdict::Broken(text) => Err(text),
            },
        };
        if let Err(text) = verdict {
            found.violations.push(format!("{object} is no register: {text}\n{}", listing(&history)));
        }
    }
    found
}

/// A history as text, in order of calls.
fn listing(history: &[Operation]) -> String {
    let mut sorted = history.to_vec();
    sorted.sort_by_key(|operation| operation.called);
    let line = |operation: &Operation| {
        let returned = operation.returned.map_or("?".to_owned(), |at| at.to_string());
        format!("  {:>9} {returned:>9} {:?}", operation.called, operation.action)
    };
    sorted.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A counter that several clients raise by one, each request answered in the end: answers are distinct, and their number is
/// the last of them and what is read at the end.
pub fn judge_counter(name: &str, answers: &[i64], last_read: i64) -> Vec<String> {
    let distinct: BTreeSet<i64> = answers.iter().copied().collect();
    let mut violations = Vec::new();
    if distinct.len() != answers.len() {
        violations.push(format!("{name}: two increments had the same answer"));
    }
    let highest = distinct.last().copied().unwrap_or(0);
    if highest != last_read || distinct.len() as i64 != last_read {
        let count = distinct.len();
        violations
            .push(format!("{name}: {count} increments, the highest answer {highest}, read {last_read}"));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::judge_counter;

    #[test]
    fn counters_are_exact() {
        assert!(judge_counter("n", &[2, 1, 3], 3).is_empty());
        assert!(!judge_counter("n", &[1, 2, 2], 2).is_empty(), "counted once, answered twice");
        assert!(!judge_counter("n", &[1, 3], 3).is_empty(), "a retry counted twice");
        assert!(!judge_counter("n", &[1, 2, 3], 2).is_empty(), "an increment was lost");
    }
}
