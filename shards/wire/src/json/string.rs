//! JSON strings: finding their end, decoding them to text and writing them.
//!
//! The end is found sixteen bytes at a time. A byte above 127 switches to a pass that ignores such bytes and has the string
//! checked as UTF-8 at its end.

use super::{Fault, FaultKind};
use crate::marks;
use std::borrow::Cow;

/// A string token's inside, between the quotes: valid UTF-8 with valid escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    inner: &'a [u8],
    escaped: bool,
}

/// An escaped half of a surrogate pair without its other half: no text contains that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoneSurrogate;

impl<'a> Text<'a> {
    /// The bytes between the quotes, escapes as they are.
    #[inline]
    pub const fn inner(&self) -> &'a [u8] {
        self.inner
    }

    /// The text itself when no escape occurs in it.
    #[inline]
    pub fn plain(&self) -> Option<&'a str> {
        if self.escaped { None } else { simdutf8::basic::from_utf8(self.inner).ok() }
    }

    /// Resolves escapes; borrows when there are none.
    pub fn decode(&self) -> Result<Cow<'a, str>, LoneSurrogate> {
        match self.plain() {
            Some(text) => Ok(Cow::Borrowed(text)),
            None => unescape(self.inner).map(Cow::Owned),
        }
    }
}

/// Reads a string whose opening quote lies before `at`, and leaves `at` behind its closing quote.
#[inline]
pub(super) fn scan<'a>(input: &'a [u8], at: &mut usize) -> Result<Text<'a>, Fault> {
    let start = *at;
    let mut escaped = false;
    let mut wide = false;
    loop {
        *at = if wide { next_special::<true>(input, *at) } else { next_special::<false>(input, *at) };
        match input.get(*at) {
            Some(b'"') => break,
            Some(b'\\') => {
                escaped = true;
                skip_escape(input, at)?;
            }
            Some(0x80..) => wide = true,
            Some(_) => return Err(Fault { at: *at, kind: FaultKind::Control }),
            None => return Err(Fault { at: *at, kind: FaultKind::Unclosed }),
        }
    }
    let inner = &input[start..*at];
    *at += 1;
    if wide && simdutf8::basic::from_utf8(inner).is_err() {
        let valid = std::str::from_utf8(inner).map_or_else(|error| error.valid_up_to(), str::len);
        return Err(Fault { at: start + valid, kind: FaultKind::Utf8 });
    }
    Ok(Text { inner, escaped })
}

/// Position of the next quote, backslash, control character or (unless `WIDE`) byte above 127, or the input's end.
#[inline]
fn next_special<const WIDE: bool>(input: &[u8], at: usize) -> usize {
    if WIDE { marks::next_syntax(input, at) } else { marks::next_syntax_or_wide(input, at) }
}

/// Passes over the escape at `at`, which is a backslash.
fn skip_escape(input: &[u8], at: &mut usize) -> Result<(), Fault> {
    let fault = Fault { at: *at, kind: FaultKind::Escape };
    match input.get(*at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => *at += 2,
        Some(b'u') => {
            let digits = input.get(*at + 2..*at + 6).ok_or(fault)?;
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(fault);
            }
            *at += 6;
        }
        _ => return Err(fault),
    }
    Ok(())
}

/// Resolves the escapes of a scanned string's inside.
fn unescape(inner: &[u8]) -> Result<String, LoneSurrogate> {
    let inner = std::str::from_utf8(inner).expect("a scanned string is UTF-8");
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(slash) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..slash]);
        let escape = rest.as_bytes()[slash + 1];
        let mut length = 2;
        text.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, used) = unicode(&rest[slash..])?;
                length = used;
                character
            }
            itself => char::from(itself),
        });
        rest = &rest[slash + length..];
    }
    text.push_str(rest);
    Ok(text)
}

/// The character that `\uXXXX`, or a surrogate pair of two, stands for, and the length of its escape.
fn unicode(escape: &str) -> Result<(char, usize), LoneSurrogate> {
    let unit = |from: usize| {
        let digits = escape.get(from..from + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let first = unit(0).ok_or(LoneSurrogate)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 6));
    }
    let second = unit(6).filter(|low| (0xdc00..0xe000).contains(low)).ok_or(LoneSurrogate)?;
    if first >= 0xdc00 {
        return Err(LoneSurrogate);
    }
    let combined = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    Ok((char::from_u32(combined).ok_or(LoneSurrogate)?, 12))
}

/// Appends `text` as a JSON string with its quotes: escapes what must be escaped and nothing else.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut done = 0;
    loop {
        let next = next_special::<true>(bytes, done);
        out.extend_from_slice(&bytes[done..next]);
        let Some(&byte) = bytes.get(next) else { break };
        push_escape(out, byte);
        done = next + 1;
    }
    out.push(b'"');
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}
