//! Error codes: the closed, append-only list of what can go wrong, and what a client may do about it.
//!
//! A code's text is part of the protocol and never changes. New codes go to the end.

use std::fmt;

/// What a client may do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request would fail again.
    Never,
    /// Nothing was changed: the request may be sent again as it is, after a pause or to another node.
    Safe,
    /// The outcome is unknown: sent again with the same `client` and `seq` it is applied once.
    SameSeq,
}

impl Retry {
    /// The text in the reply's `retry` member.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Safe => "safe",
            Self::SameSeq => "same_seq",
        }
    }

    /// Reads what [`Retry::as_str`] writes.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Never, Self::Safe, Self::SameSeq].into_iter().find(|retry| retry.as_str() == name)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $retry:ident;)*) => {
        /// The reason of a failure. The numbers are stored with remembered replies, so they never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Code { $($(#[$doc])* $variant = $number,)* }

        impl Code {
            /// Every code, in the order of the numbers.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The text in the reply's `code` member.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What a client may do in general. A reply may say better: a read that timed out is safe to repeat.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$variant => Retry::$retry,)* }
            }

            /// The code with this stored number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Reads what [`Code::as_str`] writes.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The line is no request: malformed JSON, a field unknown, missing, repeated or of the wrong type.
    BadRequest = 1, "BAD_REQUEST", Never;
    /// No command has this name.
    UnknownCommand = 2, "UNKNOWN_COMMAND", Never;
    /// Something exceeds a limit, which the reply's `limit` states.
    TooLarge = 3, "TOO_LARGE", Never;
    /// The stored value is of a type that the command does not take.
    WrongType = 4, "WRONG_TYPE", Never;
    /// The result does not fit 64 bits; nothing changed.
    Overflow = 5, "OVERFLOW", Never;
    /// The query needs an index that does not exist.
    NoSuchIndex = 6, "NO_SUCH_INDEX", Never;
    /// An index with another definition is on this field.
    IndexExists = 7, "INDEX_EXISTS", Never;
    /// The condition does not hold, or the pair of client and seq belongs to another request.
    Conflict = 8, "CONFLICT", Never;
    /// Another node leads; the reply's `leader` names it.
    NotLeader = 9, "NOT_LEADER", Safe;
    /// Too few nodes answer; the request was not proposed.
    NoQuorum = 10, "NO_QUORUM", Safe;
    /// No answer in time; a write may or may not take effect.
    Timeout = 11, "TIMEOUT", SameSeq;
    /// The seq is older than what is remembered of this client.
    SeqExpired = 12, "SEQ_EXPIRED", Never;
    /// The server is at a bound; the request was not begun.
    Overloaded = 13, "OVERLOADED", Safe;
    /// The memory limit is reached; nothing changed.
    OutOfMemory = 14, "OUT_OF_MEMORY", Safe;
    /// The log has no room; nothing changed, reads go on.
    DiskFull = 15, "DISK_FULL", Safe;
    /// This server takes no writes.
    ReadOnly = 16, "READ_ONLY", Never;
    /// HELLO with a token must come first.
    AuthRequired = 17, "AUTH_REQUIRED", Never;
    /// The token or the configuration does not allow this.
    Forbidden = 18, "FORBIDDEN", Never;
    /// The mode that the server runs in cannot promise this.
    UnsupportedInMode = 19, "UNSUPPORTED_IN_MODE", Never;
    /// The server is stopping; the request was not begun.
    ShuttingDown = 20, "SHUTTING_DOWN", Safe;
    /// A defect of the server; the outcome is unknown.
    Internal = 21, "INTERNAL", SameSeq;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_frozen() {
        let listed: Vec<String> = Code::ALL
            .iter()
            .map(|code| format!("{}={}:{}", *code as u8, code, code.retry().as_str()))
            .collect();
        let frozen = "1=BAD_REQUEST:never 2=UNKNOWN_COMMAND:never 3=TOO_LARGE:never 4=WRONG_TYPE:never \
            5=OVERFLOW:never 6=NO_SUCH_INDEX:never 7=INDEX_EXISTS:never 8=CONFLICT:never 9=NOT_LEADER:safe \
            10=NO_QUORUM:safe 11=TIMEOUT:same_seq 12=SEQ_EXPIRED:never 13=OVERLOADED:safe 14=OUT_OF_MEMORY:safe \
            15=DISK_FULL:safe 16=READ_ONLY:never 17=AUTH_REQUIRED:never 18=FORBIDDEN:never \
            19=UNSUPPORTED_IN_MODE:never 20=SHUTTING_DOWN:safe 21=INTERNAL:same_seq";
        assert_eq!(listed.join(" "), frozen);
    }

    #[test]
    fn texts_read_back() {
        for &code in Code::ALL {
            assert_eq!(Code::from_name(code.as_str()), Some(code));
            assert_eq!(Code::from_number(code as u8), Some(code));
            assert_eq!(Retry::from_name(code.retry().as_str()), Some(code.retry()));
        }
        assert_eq!(
            (Code::from_name("LOCKED"), Code::from_number(0), Retry::from_name("")),
            (None, None, None)
        );
    }
}
