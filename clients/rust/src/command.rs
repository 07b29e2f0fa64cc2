//! One command as its JSON members, with what the client must know to route and retry it.
//!
//! Invariant: `body` never holds a line break, so that an encoded command is always one line. Never holds a connection.

use crate::error::Error;
use crate::route::{Slot, slot_of};
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// What sending a command twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Twice is as good as once: reads, and definitions that are checked for equality.
    Repeatable,
    /// A write that carries client id and sequence number, so that the server applies it once.
    Sequenced,
    /// Neither: never sent again once it may have arrived.
    Once,
}

/// What an order between two commands of one pipeline hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touches {
    /// One key, by its hash.
    Key(u64),
    /// Several keys or all.
    Many,
    /// No key at all.
    Nothing,
}

/// A command, ready to be stamped and sent.
#[derive(Clone, Debug)]
pub struct Command {
    name: Cow<'static, str>,
    /// Members after `command`, each led by a comma.
    body: Vec<u8>,
    nature: Nature,
    slot: Option<Slot>,
    touches: Touches,
    slow: bool,
    patience: Option<Duration>,
}

/// Time that the client gives a reply beyond the server's own `timeout_ms`.
const GRACE: Duration = Duration::from_millis(500);

impl Command {
    /// A command without fields. Its name decides how it is retried; an unknown one is never sent twice.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        let name = name.into();
        let upper = name.to_ascii_uppercase();
        let (nature, slow) = nature_of(&upper);
        let touches = match upper.as_str() {
            "PING" | "HELLO" | "INFO" | "CLUSTER" | "LIST_INDEXES" => Touches::Nothing,
            _ => Touches::Many,
        };
        Self { name, body: Vec::new(), nature, slot: None, touches, slow, patience: None }
    }

    /// Reads a command given as a JSON object with a member `command`.
    ///
    /// A command that brings its own `client` and `seq` keeps them, and its caller answers for retries.
    pub fn from_value(object: &Value) -> Result<Self, Error> {
        Self::from_json(&object.to_string())
    }

    /// As [`Command::from_value`] for JSON text, of which every member's bytes are kept, repeated members too.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let Members(members) =
            serde_json::from_str(text).map_err(|error| Error::Encode(error.to_string()))?;
        let text_of = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
        let name = members.iter().find(|(field, _)| field == "command").and_then(|(_, raw)| text_of(raw));
        let name = name.ok_or_else(|| Error::Encode("a command needs a text member `command`".into()))?;
        let mut command = Self::new(name);
        for (field, raw) in members.iter().filter(|(field, _)| field != "command") {
            command = match (field.as_str(), text_of(raw)) {
                ("key", Some(key)) => command.key(&key),
                _ => command.field(field, raw)?,
            };
            if field == "timeout_ms" {
                let ms = raw.get().parse().ok();
                command.patience = ms.map(|ms| Duration::from_millis(ms).saturating_add(GRACE));
            }
        }
        Ok(command)
    }

    /// Adds the member `key` and remembers where the key lives.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        let (slot, hash) = slot_of(key.as_bytes());
        self.slot = Some(slot);
        self.touches = Touches::Key(hash);
        self.text("key", key)
    }

    /// Adds a text member.
    #[must_use]
    pub fn text(self, name: &str, text: &str) -> Self {
        self.field(name, text).expect("a text is always JSON")
    }

    /// Adds a member with any value that can be written as JSON; the bytes of a raw value are kept.
    ///
    /// A command that is given `client` or `seq` keeps them, and its caller answers for retries.
    pub fn field<T: Serialize + ?Sized>(self, name: &str, value: &T) -> Result<Self, Error> {
        let mut written = Ok(());
        let command = self.member(name, |body| written = serde_json::to_writer(body, value));
        written.map_err(|error| Error::Encode(error.to_string()))?;
        Ok(command)
    }

    /// Adds a member whose JSON `write` appends.
    pub(crate) fn member(mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        // Who brings numbers of his own answers for retries.
        if matches!(name, "client" | "seq") {
            self.nature = Nature::Once;
        }
        self.body.push(b',');
        serde_json::to_writer(&mut self.body, name).expect("a text is always JSON");
        self.body.push(b':');
        let start = self.body.len();
        write(&mut self.body);
        // A raw value may hold line breaks between its tokens (never inside a text), and a line ends a command.
        for byte in &mut self.body[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        self
    }

    /// Adds a member whose type is always writable: numbers, flags, lists of them.
    pub(crate) fn plain<T: Serialize + ?Sized>(self, name: &str, value: &T) -> Self {
        self.field(name, value).expect("plain data is always JSON")
    }

    /// Adds a member when there is a value for it.
    pub(crate) fn optional<T: Serialize>(self, name: &str, value: Option<&T>) -> Self {
        match value {
            Some(value) => self.plain(name, value),
            None => self,
        }
    }

    /// Sets how long the server may take; the client waits half a second longer, retries included.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.patience = Some(timeout.saturating_add(GRACE));
        self.plain("timeout_ms", &ms)
    }

    /// The command's name as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What sending it twice would do.
    pub fn nature(&self) -> Nature {
        self.nature
    }

    /// Whether the server gives it the long time limit (searches, scans, administration).
    pub fn is_slow(&self) -> bool {
        self.slow
    }

    /// The time the caller gives it, when it asked for one with [`Command::timeout`].
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// The slot of its key, when it has one key.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    pub(crate) fn touches(&self) -> Touches {
        self.touches
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }
}

/// The members of an object as they stand, in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// How a command of this (upper case) name is retried, and whether it is a slow one.
fn nature_of(name: &str) -> (Nature, bool) {
    match name {
        "SET" | "DELETE" | "INCR" | "BULK_SET" | "BULK_DELETE" | "EXPIRE" | "PERSIST" => {
            (Nature::Sequenced, false)
        }
        "DELETE_PREFIX" => (Nature::Sequenced, true),
        "PING" | "GET" | "EXISTS" | "BULK_GET" | "TTL" => (Nature::Repeatable, false),
        "SCAN" | "SEARCH" | "SEMANTIC_SEARCH" | "HYBRID_SEARCH" | "QUERY_INDEX" | "LIST_INDEXES" | "INFO"
        | "CLUSTER" | "SNAPSHOT" | "CREATE_INDEX" => (Nature::Repeatable, true),
        // HELLO belongs to one connection; DROP_INDEX sent twice would answer false for an index it dropped.
        "HELLO" => (Nature::Once, false),
        _ => (Nature::Once, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn raw_values_keep_their_bytes_on_one_line() {
        let raw = RawValue::from_string("{\n\"a\" : 1.50,\r\n\"b\":\"x\\ny\"}".into()).unwrap();
        let command = Command::new("SET").field("value", &raw).unwrap();
        assert_eq!(command.body(), br#","value":{ "a" : 1.50,  "b":"x\ny"}"#);
    }

    #[test]
    fn objects_become_commands() {
        let command = Command::from_value(&json!({"command": "set", "key": "k\n", "value": [1]})).unwrap();
        assert_eq!(command.nature(), Nature::Sequenced);
        assert_eq!(command.slot(), Some(slot_of(b"k\n").0));
        let exact =
            Command::from_json(r#"{"command":"SET","value":{"z":1.50,"a":1e400},"x":1,"x":2}"#).unwrap();
        assert_eq!(exact.body(), br#","value":{"z":1.50,"a":1e400},"x":1,"x":2"#);
        let own = Command::from_value(&json!({"command": "SET", "client": "me", "seq": 1})).unwrap();
        assert_eq!(own.nature(), Nature::Once);
        for bad in [json!([]), json!({}), json!({"command": 1})] {
            assert!(matches!(Command::from_value(&bad), Err(Error::Encode(_))), "{bad}");
        }
    }

    #[test]
    fn unknown_commands_are_never_sent_twice() {
        assert_eq!(Command::new("SELF_DESTRUCT").nature(), Nature::Once);
        assert_eq!(Command::new("SHUTDOWN").nature(), Nature::Once);
    }
}
