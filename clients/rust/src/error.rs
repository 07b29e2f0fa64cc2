//! Everything that can go wrong between a caller and a Strand server, as types a program can match on.
//!
//! Invariant: an error says whether the request may have taken effect ([`Error::outcome`]), because a caller that must
//! decide what to do next needs to know that before anything else.

use serde_json::{Map, Value};
use std::{fmt, io, time::Duration};
use strand_wire::code::{Code, Retry};

/// The code of an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// One that this client knows.
    Known(Code),
    /// One of a newer server, as it was sent.
    Other(Box<str>),
}

impl ErrorCode {
    /// The code of a name on the wire.
    pub fn parse(name: &str) -> Self {
        Code::from_name(name).map_or_else(|| Self::Other(name.into()), Self::Known)
    }

    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(code) => code.as_str(),
            Self::Other(name) => name,
        }
    }
}

impl From<Code> for ErrorCode {
    fn from(code: Code) -> Self {
        Self::Known(code)
    }
}

/// The class of a word on the wire; an unknown word counts as [`Retry::Never`], the careful reading.
pub(crate) fn retry_of(word: &str) -> Retry {
    Retry::from_name(word).unwrap_or(Retry::Never)
}

/// An error reply of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerError {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// One sentence that says what to do.
    pub message: String,
    /// Whether to send the request again.
    pub retry: Retry,
    /// The whole reply, for the fields that belong to one code (`version`, `limit`, `progress`).
    pub fields: Map<String, Value>,
}

impl ServerError {
    /// Address of the leader (NOT_LEADER).
    pub fn leader(&self) -> Option<&str> {
        self.fields.get("leader").and_then(Value::as_str)
    }

    /// The shard that the request belongs to (NOT_LEADER).
    pub fn shard(&self) -> Option<u64> {
        self.fields.get("shard").and_then(Value::as_u64)
    }

    /// The current version of the key (CONFLICT of a condition).
    pub fn version(&self) -> Option<&str> {
        self.fields.get("version").and_then(Value::as_str)
    }
}

/// Whether a request that failed may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not take effect.
    NotApplied,
    /// It may or may not have taken effect.
    Unknown,
}

/// Why a call failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server answered with an error.
    Server(Box<ServerError>),
    /// No server could be reached.
    Connect {
        /// The address that was tried last, as the caller wrote it.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, and sending the request again was not allowed or did not help.
    Disconnected {
        /// What the system said.
        source: io::Error,
        /// Whether the request may have taken effect.
        outcome: Outcome,
    },
    /// The overall deadline of the call passed.
    Timeout {
        /// How long the call was allowed to take.
        after: Duration,
        /// Whether the request may have taken effect.
        outcome: Outcome,
    },
    /// The server sent something that is not a reply of this protocol.
    Protocol(String),
    /// The caller's value cannot be written as JSON, or a command was given in a form that is none.
    Encode(String),
    /// The reply's result does not have the shape that the caller asked for.
    Decode(String),
    /// Every connection of the pool stayed in use.
    PoolExhausted {
        /// How long the call waited for one.
        after: Duration,
    },
    /// The options contradict themselves or an address cannot be read.
    Config(String),
}

impl Error {
    /// The server's code, where the server answered.
    pub fn code(&self) -> Option<&ErrorCode> {
        self.server().map(|error| &error.code)
    }

    /// Whether the server answered with this code.
    pub fn is(&self, code: Code) -> bool {
        self.code() == Some(&ErrorCode::Known(code))
    }

    /// The server's error reply, where the server answered.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the request may have taken effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Server(error) if error.retry == Retry::SameSeq => Outcome::Unknown,
            Self::Disconnected { outcome, .. } | Self::Timeout { outcome, .. } => *outcome,
            Self::Protocol(_) | Self::Decode(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotApplied => "the request did not take effect",
            Self::Unknown => "the request may have taken effect",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(error) => write!(f, "{}: {}", error.code.as_str(), error.message),
            Self::Connect { address, source } => write!(f, "cannot connect to {address}: {source}"),
            Self::Disconnected { source, outcome } => write!(f, "the connection broke: {source}; {outcome}"),
            Self::Timeout { after, outcome } => write!(f, "no reply within {after:?}; {outcome}"),
            Self::Protocol(what) => write!(f, "the server does not speak this protocol: {what}"),
            Self::Encode(what) => write!(f, "the request cannot be written as JSON: {what}"),
            Self::Decode(what) => write!(f, "the result has another shape than asked for: {what}"),
            Self::PoolExhausted { after } => write!(f, "every connection stayed in use for {after:?}"),
            Self::Config(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Disconnected { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_their_names() {
        for code in Code::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), ErrorCode::Known(*code));
            assert_eq!(ErrorCode::from(*code).as_str(), code.as_str());
        }
        assert_eq!(ErrorCode::parse("NEW_ONE").as_str(), "NEW_ONE");
    }

    #[test]
    fn an_unknown_retry_word_is_read_carefully() {
        assert_eq!(retry_of("same_seq"), Retry::SameSeq);
        assert_eq!(retry_of("perhaps"), Retry::Never);
    }
}
