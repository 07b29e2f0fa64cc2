//! Linearizability of one register: the search of Wing and Gong with Lowe's memory of configurations.
//!
//! (Wing and Gong 1993; Lowe, "Testing for linearizability", 2017; the list of calls and returns as in Porcupine.) An
//! operation whose outcome nobody knows may take effect at any time after its call, or never. Values are written once
//! each, so one that nobody saw and that no condition named is left out of the search.

use std::collections::HashSet;

/// A value of a register: a number that is written once, or nothing.
pub type Value = Option<u64>;

/// What an operation did, or may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote it.
    Write(Value),
    /// Saw it.
    Read(Value),
    /// Saw whether there was a value.
    Exists(bool),
    /// Wrote the second where the first was; false where it was not.
    Swap(Value, Value, bool),
    /// Took the value away and said whether there was one.
    Delete(bool),
}

/// One operation: called, and returned unless its outcome is unknown. Times are positions in one global order.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When it was called.
    pub called: u64,
    /// When it returned; `None` when nobody knows whether it took effect.
    pub returned: Option<u64>,
    /// What it did.
    pub action: Action,
}

/// The state after an action, if it is possible in this one. `certain` says that the outcome is known.
fn apply(state: Value, action: Action, certain: bool) -> Option<Value> {
    match action {
        Action::Write(value) => Some(value),
        Action::Read(value) => (state == value).then_some(state),
        Action::Exists(is_there) => (state.is_some() == is_there).then_some(state),
        Action::Swap(from, to, took) if certain => match (state == from, took) {
            (true, true) => Some(to),
            (false, false) => Some(state),
            _ => None,
        },
        Action::Swap(from, to, _) => Some(if state == from { to } else { state }),
        Action::Delete(was_there) if certain => (state.is_some() == was_there).then_some(None),
        Action::Delete(_) => Some(None),
    }
}

/// Drops unknown operations that nobody can have noticed.
fn relevant(operations: &[Operation]) -> Vec<Operation> {
    let mut seen: HashSet<Value> = HashSet::new();
    for operation in operations {
        match operation.action {
            Action::Read(value) => drop(seen.insert(value)),
            Action::Swap(from, _, _) => drop(seen.insert(from)),
            Action::Write(_) | Action::Exists(_) | Action::Delete(_) => {}
        }
    }
    // That there is a value, or another one than expected, can be noticed without naming it.
    let counts = operations.iter().any(|operation| {
        let is_refused = matches!(operation.action, Action::Swap(_, _, false));
        let looks = matches!(operation.action, Action::Exists(_) | Action::Delete(_));
        (is_refused || looks) && operation.returned.is_some()
    });
    let matters = |operation: &&Operation| match (operation.returned, operation.action) {
        (None, Action::Read(_) | Action::Exists(_)) => false,
        (None, Action::Write(value @ Some(_)) | Action::Swap(_, value, _)) => counts || seen.contains(&value),
        _ => true,
    };
    operations.iter().filter(matters).copied().collect()
}

/// Why a history is none of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is one.
    Linear,
    /// There is no order that explains it; the longest explained part.
    Broken(String),
    /// The search was given up after so many steps; nothing is known.
    TooHard,
}

const STEPS_MAX: usize = 2_000_000;

/// Judges the history of a register that holds `initial` at first.
pub fn judge(operations: &[Operation], initial: Value) -> Verdict {
    let operations = relevant(operations);
    let count = operations.len();
    // Calls and returns in order; what never returned returns at the end, and may be left out.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(count * 2);
    for (number, operation) in operations.iter().enumerate() {
        events.push((operation.called, true, number));
        events.push((operation.returned.unwrap_or(u64::MAX), false, number));
    }
    events.sort_unstable_by_key(|(at, is_call, number)| (*at, !is_call, *number));
    let mut search = Search::new(&operations, &events);
    search.run(initial)
}

struct Search<'a> {
    operations: &'a [Operation],
    events: &'a [(u64, bool, usize)],
    next: Vec<usize>,
    before: Vec<usize>,
    return_of: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation], events: &'a [(u64, bool, usize)]) -> Self {
        let count = events.len();
        let mut return_of = vec![0; operations.len()];
        for (place, (_, is_call, number)) in events.iter().enumerate() {
            if !is_call {
                return_of[*number] = place + 1;
            }
        }
        // Place 0 is the head; event `n` stands at `n + 1`.
        let next = (1..=count + 1).collect();
        let before = (0..=count + 1).map(|place| place.saturating_sub(1)).collect();
        Self { operations, events, next, before, return_of }
    }

    fn unlink(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn relink(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = place;
        self.before[next] = place;
    }

    fn run(&mut self, initial: Value) -> Verdict {
        let end = self.events.len() + 1;
        self.next.push(end);
        let mut done = vec![0u64; self.operations.len().div_ceil(64)];
        let mut known: HashSet<(Vec<u64>, Value)> = HashSet::new();
        let mut stack: Vec<(usize, Value)> = Vec::new();
        let (mut state, mut at, mut deepest) = (initial, self.next[0], 0);
        for _ in 0..STEPS_MAX {
            // Only what nobody saw the end of is left: it never took effect.
            if at == end || self.events[at - 1].0 == u64::MAX {
                return Verdict::Linear;
            }
            let (_, is_call, number) = self.events[at - 1];
            if is_call {
                let operation = self.operations[number];
                if let Some(after) = apply(state, operation.action, operation.returned.is_some()) {
                    done[number / 64] |= 1 << (number % 64);
                    if known.insert((done.clone(), after)) {
                        stack.push((at, state));
                        deepest = deepest.max(stack.len());
                        state = after;
                        self.unlink(at);
                        self.unlink(self.return_of[number]);
                        at = self.next[0];
                        continue;
                    }
                    done[number / 64] &= !(1 << (number % 64));
                }
                at = self.next[at];
                continue;
            }
            // A return whose call found no place: take the last choice back.
            let Some((place, old)) = stack.pop() else {
                let stuck = self.operations[number];
                return Verdict::Broken(format!("{stuck:?} after {deepest} operations in order"));
            };
            let (_, _, number) = self.events[place - 1];
            done[number / 64] &= !(1 << (number % 64));
            self.relink(self.return_of[number]);
            self.relink(place);
            state = old;
            at = self.next[place];
        }
        Verdict::TooHard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(history: &[(u64, u64, Action)], is_linear: bool) {
        let operations: Vec<Operation> = history
            .iter()
            .map(|(called, returned, action)| Operation {
                called: *called,
                returned: (*returned > 0).then_some(*returned),
                action: *action,
            })
            .collect();
        let verdict = judge(&operations, None);
        assert_eq!(verdict == Verdict::Linear, is_linear, "{history:?}: {verdict:?}");
    }

    #[test]
    fn registers_are_told_from_what_is_none() {
        use Action::{Delete, Exists, Read, Swap, Write};
        check(&[], true);
        check(&[(1, 2, Read(None))], true);
        check(&[(1, 2, Write(Some(1))), (3, 4, Read(Some(1)))], true);
        check(&[(1, 2, Write(Some(1))), (3, 4, Read(None))], false);
        check(&[(1, 5, Write(Some(1))), (2, 3, Read(None)), (4, 6, Read(Some(1)))], true);
        check(&[(1, 5, Write(Some(1))), (2, 3, Read(Some(1))), (4, 6, Read(None))], false);
        // Unknown: may have happened, at any later time, or never.
        check(&[(1, 0, Write(Some(1))), (2, 3, Read(None)), (4, 5, Read(Some(1)))], true);
        check(&[(1, 0, Write(Some(1))), (2, 3, Read(Some(1))), (4, 5, Read(None))], false);
        check(
            &[(1, 2, Write(Some(1))), (3, 0, Delete(true)), (4, 5, Read(None)), (6, 7, Read(Some(1)))],
            false,
        );
        check(
            &[(1, 2, Swap(None, Some(1), true)), (3, 4, Swap(Some(1), Some(2), true)), (5, 6, Read(Some(2)))],
            true,
        );
        check(&[(1, 2, Swap(None, Some(1), true)), (3, 4, Swap(None, Some(2), true))], false);
        check(&[(1, 0, Swap(None, Some(1), true)), (3, 4, Swap(None, Some(2), false))], true);
        check(&[(1, 2, Write(Some(1))), (3, 4, Exists(false))], false);
        check(
            &[(1, 0, Write(Some(1))), (3, 4, Exists(true)), (5, 6, Delete(true)), (7, 8, Exists(false))],
            true,
        );
        check(&[(1, 0, Write(Some(1))), (3, 4, Delete(true)), (5, 6, Delete(true))], false);
        // Two reads at once that disagree on an order of two writes.
        let writes = [(1, 10, Write(Some(1))), (2, 11, Write(Some(2)))];
        let reads = [(12, 13, Read(Some(1))), (14, 15, Read(Some(2)))];
        check(&[writes[0], writes[1], reads[0], reads[1]], false);
        check(&[writes[0], writes[1], reads[0]], true);
    }
}
