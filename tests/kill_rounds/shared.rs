//! Keys that several connections write at once, and what they may hold.
//!
//! Every write has a unique value and an interval in which it took effect: from its first sending to its answer. A value may
//! be found unless another write began after its interval had ended and was itself acknowledged. The counter gives each
//! increment another number; all of them together are its value.

use super::support::client::Connection;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Instant;

/// Keys that are written as one batch.
pub(crate) const BATCH: [&str; 5] = ["shared:a", "shared:b", "shared:c", "shared:d", "shared:e"];
/// A key that is written alone.
pub(crate) const SINGLE: &str = "shared:single";
/// A counter.
pub(crate) const COUNTER: &str = "shared:counter";

/// What a write goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Batch,
    Single,
    Counter,
}

#[derive(Debug)]
struct Write {
    target: Target,
    value: Value,
    sent: Instant,
    answered: Option<Instant>,
}

/// All writes to the shared keys so far.
#[derive(Debug, Default)]
pub(crate) struct SharedKeys {
    writes: Mutex<Vec<Write>>,
    /// The numbers that increments answered.
    counted: Mutex<HashSet<i64>>,
}

impl SharedKeys {
    /// Notes a write that is about to be sent, and gives it a number.
    pub(crate) fn sending(&self, target: Target, value: Value) -> usize {
        let mut writes = self.writes.lock().expect("no thread panics with the lock");
        writes.push(Write { target, value, sent: Instant::now(), answered: None });
        writes.len() - 1
    }

    /// Notes that a write was acknowledged with this result.
    pub(crate) fn answered(&self, number: usize, result: &Value, context: &str) {
        let mut writes = self.writes.lock().expect("no thread panics with the lock");
        writes[number].answered = Some(Instant::now());
        if writes[number].target == Target::Counter {
            let count = result.as_i64().expect("an increment answers an integer");
            let mut counted = self.counted.lock().expect("no thread panics with the lock");
            assert!(counted.insert(count), "{context}: two increments answered {count}");
        }
    }

    fn found(&self, target: Target, value: &Value, context: &str) {
        let writes = self.writes.lock().expect("no thread panics with the lock");
        let to_target = || writes.iter().filter(|write| write.target == target);
        let newest_begun = to_target().filter(|write| write.answered.is_some()).map(|write| write.sent).max();
        if value.is_null() {
            assert_eq!(
                newest_begun, None,
                "{context}: {target:?} is absent although a write was acknowledged"
            );
            return;
        }
        let write = to_target().find(|write| write.value == *value);
        let write = write.unwrap_or_else(|| panic!("{context}: nobody wrote {value} to {target:?}"));
        let overwritten = write.answered.zip(newest_begun).is_some_and(|(answered, begun)| answered < begun);
        assert!(
            !overwritten,
            "{context}: {target:?} holds {value}, which an acknowledged write had replaced"
        );
    }

    /// Compares what the server holds with what it may hold.
    pub(crate) fn check(&self, connection: &mut Connection, context: &str) {
        let batch = connection.get(&json!({"command": "BULK_GET", "keys": BATCH}));
        assert!(BATCH.iter().all(|key| batch[key] == batch[BATCH[0]]), "{context}: half a batch: {batch}");
        self.found(Target::Batch, &batch[BATCH[0]], context);
        self.found(Target::Single, &connection.get(&json!({"command": "GET", "key": SINGLE})), context);
        let count = connection.get(&json!({"command": "GET", "key": COUNTER})).as_i64().unwrap_or(0);
        let (answered, sent) = self.counts();
        assert!(
            answered <= count && count <= sent,
            "{context}: the counter is {count} after {answered} acknowledged and {sent} sent increments"
        );
    }

    /// After everything was answered the counter is exact.
    pub(crate) fn check_final(&self, connection: &mut Connection, context: &str) {
        self.check(connection, context);
        let (answered, sent) = self.counts();
        assert_eq!(answered, sent, "{context}: every increment was answered in the end");
        let counted = self.counted.lock().expect("no thread panics with the lock");
        assert_eq!(
            counted.iter().max().copied().unwrap_or(0),
            sent,
            "{context}: increments are numbered without a gap"
        );
    }

    fn counts(&self) -> (i64, i64) {
        let writes = self.writes.lock().expect("no thread panics with the lock");
        let increments = || writes.iter().filter(|write| write.target == Target::Counter);
        let answered = increments().filter(|write| write.answered.is_some()).count();
        let count = |length: usize| i64::try_from(length).expect("a test writes less than that");
        (count(answered), count(increments().count()))
    }
}
