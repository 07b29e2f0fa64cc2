//! What a key may hold: the last acknowledged value, or one of those that were sent and not answered.
//!
//! For keys that one connection alone writes, in an order it knows. So the value after all that was sent is known too, and with
//! it every reply.

use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};

/// What a request does to one key: its value from then on, `None` for absent.
pub(crate) type Effect = (String, Option<Value>);

/// A request that was sent and not answered.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// The line, to be sent again as it is.
    pub(crate) line: String,
    /// The result that a single application gives; `None` where others write too.
    pub(crate) result: Option<Value>,
    pub(crate) effects: Vec<Effect>,
    /// Has `client` and `seq`; otherwise it is never sent again.
    pub(crate) retried: bool,
    /// The number of the write to a shared key, if it is one.
    pub(crate) shared: Option<usize>,
}

/// The keys of one connection.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// After everything acknowledged.
    acknowledged: BTreeMap<String, Option<Value>>,
    /// After everything sent.
    sent: BTreeMap<String, Option<Value>>,
    pub(crate) unanswered: VecDeque<Pending>,
}

impl Model {
    /// The value after everything sent.
    pub(crate) fn sent(&self, key: &str) -> Option<&Value> {
        self.sent.get(key).and_then(Option::as_ref)
    }

    pub(crate) fn send(&mut self, pending: Pending) {
        for (key, value) in &pending.effects {
            self.sent.insert(key.clone(), value.clone());
        }
        self.unanswered.push_back(pending);
    }

    /// The oldest request was answered.
    ///
    /// # Panics
    /// When nothing was asked.
    pub(crate) fn answer(&mut self) -> Pending {
        let pending = self.unanswered.pop_front().expect("an answer follows a request");
        for (key, value) in &pending.effects {
            self.acknowledged.insert(key.clone(), value.clone());
        }
        pending
    }

    /// Every key that was ever written.
    pub(crate) fn keys(&self) -> Vec<&String> {
        self.sent.keys().collect()
    }

    /// What the key may hold now.
    pub(crate) fn admissible(&self, key: &str) -> Vec<Option<&Value>> {
        let acknowledged = self.acknowledged.get(key).and_then(Option::as_ref);
        let effects = self.unanswered.iter().flat_map(|pending| &pending.effects);
        let in_flight = effects.filter(|(other, _)| other == key).map(|(_, value)| value.as_ref());
        std::iter::once(acknowledged).chain(in_flight).collect()
    }

    /// The requests that will not be sent again are over: what was found after them counts from now on.
    pub(crate) fn settle(&mut self, found: &dyn Fn(&str) -> Option<Value>) {
        let (retried, over): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.unanswered).into_iter().partition(|pending| pending.retried);
        self.unanswered = retried;
        for (key, _) in over.into_iter().flat_map(|pending| pending.effects) {
            let value = found(&key);
            self.acknowledged.insert(key.clone(), value.clone());
            self.sent.insert(key, value);
        }
    }
}
