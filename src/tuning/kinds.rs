//! Values of knobs that are more than a number: the sync rule, core sets, modes, log formats.
//!
//! Plain data with one text form each; the form is the same in TOML, in flags and in the environment.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// When a write counts as durable: the operator's floor, one rule for every shard of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalSync {
    /// A write is acknowledged after its log batch is synced (and committed, in a cluster).
    Always,
    /// A write is acknowledged after it is applied; the log is synced at least every `ms` milliseconds.
    Interval {
        /// The longest time between two syncs while there is something to sync, in milliseconds.
        ms: u32,
    },
    /// No log is written; the server is a cache.
    Off,
}

impl WalSync {
    /// The longest interval: a minute.
    pub const INTERVAL_MS_MAX: u32 = 60_000;
}

impl FromStr for WalSync {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let interval = || text.strip_prefix("interval:")?.parse::<u32>().ok();
        match text {
            "always" => Ok(WalSync::Always),
            "off" => Ok(WalSync::Off),
            _ => match interval() {
                Some(ms @ 1..=Self::INTERVAL_MS_MAX) => Ok(WalSync::Interval { ms }),
                _ => Err(format!("{text:?} is not \"always\", \"interval:MS\" or \"off\"")),
            },
        }
    }
}

impl fmt::Display for WalSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalSync::Always => f.write_str("always"),
            WalSync::Interval { ms } => write!(f, "interval:{ms}"),
            WalSync::Off => f.write_str("off"),
        }
    }
}

impl Serialize for WalSync {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WalSync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The cores that the server may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CoreSet {
    /// These cores and no others.
    Listed(Vec<u32>),
    /// The word `all`: every core that the system gives to the process.
    All(AllWord),
}

impl CoreSet {
    /// Every core that the system gives to the process.
    pub const ALL: CoreSet = CoreSet::All(AllWord::All);
}

/// The word `all`; a type of its own, so that no other word reads as a core set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllWord {
    /// `"all"`.
    All,
}

/// Which threads serve the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterMode {
    /// Threads of their own, `router.threads` of them.
    Thread,
    /// Each shard's thread, beside its shard.
    Inline,
}

impl fmt::Display for RouterMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouterMode::Thread => "thread",
            RouterMode::Inline => "inline",
        })
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// The least important events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs an operator now.
    Error,
    /// What needs an operator soon.
    Warn,
    /// Starts, stops, snapshots, elections.
    Info,
    /// What helps to find a fault in a running server.
    Debug,
    /// Everything; never per request.
    Trace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_rules_survive_their_text() {
        for rule in
            [WalSync::Always, WalSync::Interval { ms: 1 }, WalSync::Interval { ms: 60_000 }, WalSync::Off]
        {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        for bad in ["", "Always", "interval", "interval:", "interval:0", "interval:60001", "interval:-1"] {
            assert!(bad.parse::<WalSync>().is_err(), "{bad}");
        }
    }

    #[test]
    fn core_sets_read_a_list_or_the_word_all() {
        #[derive(Deserialize)]
        struct Holder {
            cores: CoreSet,
        }
        let read = |text: &str| toml::from_str::<Holder>(text).map(|holder| holder.cores);
        assert_eq!(read("cores = \"all\"").ok(), Some(CoreSet::ALL));
        assert_eq!(read("cores = [0, 2]").ok(), Some(CoreSet::Listed(vec![0, 2])));
        assert!(read("cores = \"some\"").is_err());
    }
}
