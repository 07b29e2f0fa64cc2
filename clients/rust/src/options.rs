//! How a client connects and how long it waits, and the optional fields of commands.
//!
//! Defaults fit a server with its own defaults; every duration is bounded.

use crate::command::Command;
use crate::error::Error;
use crate::retry::RetryPolicy;
use crate::session::REPLY_BYTES_MAX;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// How a client connects, waits and retries.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Longest wait for one TCP connection.
    pub connect_timeout: Duration,
    /// Overall deadline of a data command, retries included.
    pub timeout: Duration,
    /// Overall deadline of a search, a scan or an administrative command, retries included.
    pub timeout_slow: Duration,
    /// When requests are sent again.
    pub retry: RetryPolicy,
    /// Sent in HELLO on every new connection.
    pub token: Option<String>,
    /// Whether replies come in request order. Without, a pipeline's requests may run in any order.
    pub ordered: bool,
    /// Asks the cluster for the leader's address instead of forwarding, and then talks to leaders directly.
    pub redirect: bool,
    /// Talks to each shard of a server at the shard's own port where the server has such ports (`router.mode = "inline"`), as
    /// `redirect` does too. Commands on several keys, and everything where there are no such ports, go to the address given.
    pub shard_aware: bool,
    /// Requests in flight on one connection; at most the server's 1,024.
    pub window: usize,
    /// Longest command that is sent, in bytes; the server's bound on a line.
    pub request_bytes_max: usize,
    /// Longest reply that is accepted, in bytes.
    pub reply_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            timeout_slow: Duration::from_secs(65),
            retry: RetryPolicy::default(),
            token: None,
            ordered: true,
            redirect: false,
            shard_aware: false,
            window: 512,
            request_bytes_max: 16 * 1024 * 1024,
            reply_bytes_max: REPLY_BYTES_MAX,
        }
    }
}

impl ClientOptions {
    /// Whether the shard map decides where a request on one key goes.
    pub(crate) fn uses_map(&self) -> bool {
        self.redirect || self.shard_aware
    }

    /// Says what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(1..=1024).contains(&self.window) {
            return Err(Error::Config(format!("a window of {} is not between 1 and 1,024", self.window)));
        }
        if self.retry.attempts_max == 0 {
            return Err(Error::Config("a request needs at least one attempt".into()));
        }
        Ok(())
    }
}

/// What must hold for a conditional write.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum If {
    /// The key does not exist; holds `true`.
    Absent(bool),
    /// The key exists; holds `true`.
    Present(bool),
    /// The key has this version.
    Version(String),
    /// The key has this value, the same JSON bytes.
    Value(Value),
}

impl If {
    /// The key must not exist.
    pub fn absent() -> Self {
        Self::Absent(true)
    }

    /// The key must exist.
    pub fn present() -> Self {
        Self::Present(true)
    }

    /// The key must have this version.
    pub fn version(version: impl Into<String>) -> Self {
        Self::Version(version.into())
    }

    /// The key must have this value.
    pub fn value(value: impl Into<Value>) -> Self {
        Self::Value(value.into())
    }
}

/// What a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The disk.
    Fsync,
    /// Memory, as far as the operator's floor allows.
    Memory,
}

/// How fresh a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// It sees every write that was acknowledged before it; the default.
    Linearizable,
    /// What the answering node has.
    Local,
}

/// Writes the setters of an options struct.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $store:expr;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            let store: fn(&mut Self, $type) = $store;
            store(&mut self, $name);
            self
        })*
    };
}
pub(crate) use setters;

/// Optional fields of SET.
#[derive(Clone, Debug, Default)]
pub struct SetOptions {
    ttl: Option<Duration>,
    condition: Option<If>,
    durability: Option<Durability>,
    with_version: bool,
    debug: bool,
}

impl SetOptions {
    setters! {
        /// Time to live, 1 ms or more; without one SET clears it.
        ttl: Duration => |all, value| all.ttl = Some(value);
        /// What must hold; otherwise the server answers CONFLICT.
        condition: If => |all, value| all.condition = Some(value);
        /// What the write waits for.
        durability: Durability => |all, value| all.durability = Some(value);
        /// Asks for the new version.
        with_version: bool => |all, value| all.with_version = value;
        /// Takes part in the server's fault injection.
        debug: bool => |all, value| all.debug = value;
    }

    pub(crate) fn apply(&self, command: Command) -> Command {
        let command = command
            .optional("ttl_ms", self.ttl.map(ttl_ms).as_ref())
            .optional("if", self.condition.as_ref())
            .optional("durability", self.durability.as_ref())
            .optional("with_version", self.with_version.then_some(&true));
        command.optional("debug", self.debug.then_some(&true))
    }
}

/// Optional fields of DELETE.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    condition: Option<If>,
    durability: Option<Durability>,
}

impl DeleteOptions {
    setters! {
        /// What must hold; otherwise the server answers CONFLICT.
        condition: If => |all, value| all.condition = Some(value);
        /// What the write waits for.
        durability: Durability => |all, value| all.durability = Some(value);
    }

    pub(crate) fn apply(&self, command: Command) -> Command {
        command.optional("if", self.condition.as_ref()).optional("durability", self.durability.as_ref())
    }
}

/// Whole milliseconds, at least 1.
pub(crate) fn ttl_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_have_the_protocols_form() {
        assert_eq!(json!(If::absent()), json!({"absent": true}));
        assert_eq!(json!(If::version("1-2")), json!({"version": "1-2"}));
        assert_eq!(json!(If::value(7)), json!({"value": 7}));
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let plain = SetOptions::default().apply(Command::new("SET"));
        assert_eq!(plain.body(), b"");
        let full =
            SetOptions::default().ttl(Duration::from_micros(5)).with_version(true).condition(If::present());
        let body = full.apply(Command::new("SET")).body().to_vec();
        assert_eq!(body, br#","ttl_ms":1,"if":{"present":true},"with_version":true"#);
    }
}
