//! JSON without a tree: validates and cuts bytes into tokens, strictly by RFC 8259, and copies nothing.
//!
//! Invariants. What [`Scanner::value`] accepts is exactly what `serde_json` accepts as a `RawValue`, apart from the depth
//! limit: numbers keep any size and precision, control characters in strings are refused, bytes must be UTF-8, and a lone
//! surrogate escape such as `"\ud800"` is let through, since the token is kept as it came. Only decoding such a string
//! into text ([`Text::decode`]) refuses it. UTF-8 is checked string by string and only where a byte above 127 occurs, as
//! everything outside strings is ASCII by grammar; plain ASCII lines are therefore read once. Nesting is kept in the bits
//! of one integer, so no input can exhaust the stack. No function here panics on any input.

mod number;
mod string;
mod walk;

pub use number::{is_integer, signed, unsigned};
pub use string::{LoneSurrogate, Text, push_string};
pub use walk::{Elements, Members};

use std::fmt;

/// The deepest nesting that a [`Scanner`] can hold, whatever limit it is given.
pub const DEPTH_CEILING: u32 = 128;

/// Why bytes are not JSON, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset in bytes from the start of the scanned input.
    pub at: usize,
    /// What is wrong there.
    pub kind: FaultKind,
}

/// What was expected or found at a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A value was expected.
    Value,
    /// `{` was expected.
    Object,
    /// `[` was expected.
    Array,
    /// A member name in quotes was expected.
    Name,
    /// `:` was expected.
    Colon,
    /// `,` or `}` was expected.
    CommaOrBrace,
    /// `,` or `]` was expected.
    CommaOrBracket,
    /// Nothing more was expected.
    End,
    /// A digit was expected.
    Digit,
    /// One of `true`, `false`, `null` was expected.
    Literal,
    /// A backslash is followed by no known escape.
    Escape,
    /// A control character stands unescaped in a string.
    Control,
    /// The string has no closing quote.
    Unclosed,
    /// The bytes are not UTF-8.
    Utf8,
    /// Arrays and objects nest deeper than allowed.
    TooDeep,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value => "expected a value",
            Self::Object => "expected a JSON object, which starts with '{'",
            Self::Array => "expected an array, which starts with '['",
            Self::Name => "expected a member name in double quotes",
            Self::Colon => "expected ':' after the member name",
            Self::CommaOrBrace => "expected ',' or '}'",
            Self::CommaOrBracket => "expected ',' or ']'",
            Self::End => "expected the end of the line",
            Self::Digit => "expected a digit",
            Self::Literal => "expected true, false or null",
            Self::Escape => {
                "expected one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t or \\u with four hexadecimal digits"
            }
            Self::Control => "a control character in a string must be escaped",
            Self::Unclosed => "expected a closing double quote",
            Self::Utf8 => "the bytes are not valid UTF-8",
            Self::TooDeep => "arrays and objects nest too deep",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.kind, self.at)
    }
}

impl std::error::Error for Fault {}

/// A position in bytes that are read as JSON.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the first byte of `input`.
    pub const fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Goes on at an offset into `input`, at most its length.
    pub(crate) const fn resume(input: &'a [u8], at: usize) -> Self {
        Self { input, at }
    }

    /// Offset of the next byte.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The next byte, if there is one.
    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    /// Passes over spaces, tabs, carriage returns and newlines.
    #[inline]
    pub fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes over `byte`, or says that `kind` was expected.
    #[inline]
    pub fn expect(&mut self, byte: u8, kind: FaultKind) -> Result<(), Fault> {
        if self.peek() != Some(byte) {
            return Err(self.fault(kind));
        }
        self.at += 1;
        Ok(())
    }

    /// Passes over `byte` if it comes next, and says whether it did.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Fault> {
        self.skip_space();
        if self.at < self.input.len() { Err(self.fault(FaultKind::End)) } else { Ok(()) }
    }

    /// The next string, whose opening quote comes next.
    #[inline]
    pub fn string(&mut self) -> Result<Text<'a>, Fault> {
        self.expect(b'"', FaultKind::Name)?;
        string::scan(self.input, &mut self.at)
    }

    /// A member's name and the colon after it, up to its value.
    #[inline]
    pub fn name(&mut self) -> Result<Text<'a>, Fault> {
        let name = self.string()?;
        self.skip_space();
        self.expect(b':', FaultKind::Colon)?;
        self.skip_space();
        Ok(name)
    }

    /// The token of the next value, without the white space around it, in which arrays and objects may nest `depth_max`
    /// deep (a scalar has depth 0, `[]` has 1).
    #[inline]
    pub fn value(&mut self, depth_max: u32) -> Result<&'a [u8], Fault> {
        self.skip_space();
        let start = self.at;
        match self.peek() {
            Some(b'{' | b'[') => self.skip_nested(depth_max.min(DEPTH_CEILING))?,
            _ => self.skip_scalar()?,
        }
        Ok(&self.input[start..self.at])
    }

    /// A fault at the next byte.
    pub(crate) fn fault(&self, kind: FaultKind) -> Fault {
        Fault { at: self.at, kind }
    }

    #[inline]
    fn skip_scalar(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                string::scan(self.input, &mut self.at).map(|_| ())
            }
            Some(b'-' | b'0'..=b'9') => number::scan(self.input, &mut self.at),
            Some(b't') => self.skip_literal(b"true"),
            Some(b'f') => self.skip_literal(b"false"),
            Some(b'n') => self.skip_literal(b"null"),
            _ => Err(self.fault(FaultKind::Value)),
        }
    }

    fn skip_literal(&mut self, literal: &[u8]) -> Result<(), Fault> {
        if !self.input[self.at..].starts_with(literal) {
            return Err(self.fault(FaultKind::Literal));
        }
        self.at += literal.len();
        Ok(())
    }

    /// Passes over an array or object. Bit 0 of `open` says whether the innermost open one is an object.
    fn skip_nested(&mut self, depth_max: u32) -> Result<(), Fault> {
        let mut open: u128 = 0;
        let mut depth = 0;
        loop {
            // A value comes next.
            let opened = match self.peek() {
                Some(b'{') => Some(true),
                Some(b'[') => Some(false),
                _ => None,
            };
            if let Some(object) = opened {
                if depth == depth_max {
                    return Err(self.fault(FaultKind::TooDeep));
                }
                depth += 1;
                open = open << 1 | u128::from(object);
                self.at += 1;
                self.skip_space();
                if self.peek() != Some(if object { b'}' } else { b']' }) {
                    if object {
                        self.name()?;
                    }
                    continue;
                }
            } else {
                self.skip_scalar()?;
                self.skip_space();
            }
            // A value, or the opening of an empty container, lies behind.
            loop {
                let object = open & 1 == 1;
                if self.take(b',') {
                    self.skip_space();
                    if object {
                        self.name()?;
                    }
                    break;
                }
                let (close, kind) =
                    if object { (b'}', FaultKind::CommaOrBrace) } else { (b']', FaultKind::CommaOrBracket) };
                self.expect(close, kind)?;
                open >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Ok(());
                }
                self.skip_space();
            }
        }
    }
}

/// Names the type of a token by its first byte, with its article, for messages.
pub fn kind_of(token: &[u8]) -> &'static str {
    match token.first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ if is_integer(token) => "an integer",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests;
