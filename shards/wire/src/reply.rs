//! Writers of reply lines: each appends to a buffer, most without an allocation of their own.
//!
//! Shapes: `{"status":"success","result":...}` and `{"status":"error","code":"CODE","error":"...","retry":"..."}`, with
//! `"id":<token>` right after the status where the request had one, and a newline at the end. Tokens and members are
//! written as they are given: whoever gives them holds that they are JSON without a newline.

use crate::code::{Code, Retry};

pub use crate::json::push_string;

/// The reply to a write without an id.
pub const OK_LINE: &[u8] = b"{\"status\":\"success\",\"result\":\"OK\"}\n";

/// The members of that reply after the status.
pub const OK_MEMBERS: &[u8] = b"\"result\":\"OK\"";

/// Begins a success reply: everything before its members, the comma included.
pub fn success_prefix(out: &mut Vec<u8>, id: Option<&[u8]>) {
    prefix(out, b"{\"status\":\"success\",", id);
}

/// Begins an error reply: everything before its members, the comma included.
pub fn error_prefix(out: &mut Vec<u8>, id: Option<&[u8]>) {
    prefix(out, b"{\"status\":\"error\",", id);
}

fn prefix(out: &mut Vec<u8>, status: &[u8], id: Option<&[u8]>) {
    out.extend_from_slice(status);
    if let Some(id) = id {
        out.extend_from_slice(b"\"id\":");
        out.extend_from_slice(id);
        out.push(b',');
    }
}

/// Ends a reply that a prefix began and members followed.
pub fn finish(out: &mut Vec<u8>) {
    out.extend_from_slice(b"}\n");
}

/// A whole success reply with the result `"OK"`.
pub fn ok(out: &mut Vec<u8>, id: Option<&[u8]>) {
    match id {
        None => out.extend_from_slice(OK_LINE),
        Some(_) => members(out, id, OK_MEMBERS),
    }
}

/// A whole success reply with these members, such as `"result":1` or `"version":"0-1","result":null`.
pub fn members(out: &mut Vec<u8>, id: Option<&[u8]>, members: &[u8]) {
    out.reserve(members.len() + id.map_or(0, <[u8]>::len) + 32);
    success_prefix(out, id);
    out.extend_from_slice(members);
    finish(out);
}

/// A whole success reply with this token as its result.
pub fn result(out: &mut Vec<u8>, id: Option<&[u8]>, token: &[u8]) {
    out.reserve(token.len() + id.map_or(0, <[u8]>::len) + 48);
    success_prefix(out, id);
    push_result(out, token);
    finish(out);
}

/// A whole error reply with the code's own advice about a retry. `extra` appends further members, each after a comma.
pub fn error(
    out: &mut Vec<u8>,
    id: Option<&[u8]>,
    code: Code,
    message: &str,
    extra: impl FnOnce(&mut Vec<u8>),
) {
    error_prefix(out, id);
    push_error(out, code, message, code.retry());
    extra(out);
    finish(out);
}

/// A whole error reply whose members [`push_error`] wrote elsewhere.
pub fn error_members(out: &mut Vec<u8>, id: Option<&[u8]>, members: &[u8]) {
    error_prefix(out, id);
    out.extend_from_slice(members);
    finish(out);
}

/// Appends the members `"result":<token>`.
pub fn push_result(out: &mut Vec<u8>, token: &[u8]) {
    out.extend_from_slice(b"\"result\":");
    out.extend_from_slice(token);
}

/// Appends the members `"code":...,"error":...,"retry":...`.
pub fn push_error(out: &mut Vec<u8>, code: Code, message: &str, retry: Retry) {
    out.extend_from_slice(b"\"code\":\"");
    out.extend_from_slice(code.as_str().as_bytes());
    out.extend_from_slice(b"\",\"error\":");
    push_string(out, message);
    out.extend_from_slice(b",\"retry\":\"");
    out.extend_from_slice(retry.as_str().as_bytes());
    out.push(b'"');
}

/// Appends a number in decimal digits, two at a time.
pub fn push_unsigned(out: &mut Vec<u8>, mut number: u64) {
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    while number >= 10 {
        let pair = (number % 100) as usize * 2;
        number /= 100;
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    // What is left is one digit, or nothing where the pairs took everything.
    if number > 0 || start == DIGITS_MAX {
        start -= 1;
        digits[start] = b'0' + number as u8;
    }
    out.extend_from_slice(&digits[start..]);
}

/// `00` to `99`.
const PAIRS: &[u8; 200] = &{
    let mut pairs = [0; 200];
    let mut number = 0;
    while number < 100 {
        pairs[number * 2] = b'0' + (number / 10) as u8;
        pairs[number * 2 + 1] = b'0' + (number % 10) as u8;
        number += 1;
    }
    pairs
};

/// Appends a number in decimal digits, after a minus where it is negative.
pub fn push_signed(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    push_unsigned(out, number.unsigned_abs());
}

/// Appends the shortest decimal number that reads back as this double; `null` for what JSON cannot say. Allocates
/// nothing, but formats more slowly than integers: for scores, not for every reply.
pub fn push_float(out: &mut Vec<u8>, number: f64) {
    use std::io::Write;
    if number.is_finite() {
        write!(out, "{number}").expect("a vector takes every byte");
    } else {
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(line: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), line);
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }

    #[test]
    fn shapes_are_the_protocol() {
        check("{\"status\":\"success\",\"result\":\"OK\"}\n", |out| ok(out, None));
        check("{\"status\":\"success\",\"id\":7,\"result\":\"OK\"}\n", |out| ok(out, Some(b"7")));
        check("{\"status\":\"success\",\"id\":\"a\",\"result\":[1]}\n", |out| {
            result(out, Some(b"\"a\""), b"[1]");
        });
        check("{\"status\":\"success\",\"result\":null,\"found\":false}\n", |out| {
            members(out, None, b"\"result\":null,\"found\":false");
        });
        check(
            "{\"status\":\"error\",\"id\":1,\"code\":\"CONFLICT\",\"error\":\"it \\\"is\\\" so\",\"retry\":\"never\",\
             \"version\":\"0-1\"}\n",
            |out| {
                error(out, Some(b"1"), Code::Conflict, "it \"is\" so", |out| {
                    out.extend_from_slice(b",\"version\":\"0-1\"");
                });
            },
        );
        check("{\"status\":\"error\",\"code\":\"TIMEOUT\",\"error\":\"e\",\"retry\":\"safe\"}\n", |out| {
            let mut body = Vec::new();
            push_error(&mut body, Code::Timeout, "e", Retry::Safe);
            error_members(out, None, &body);
        });
    }

    #[test]
    fn chosen_integers_are_written() {
        for number in
            [0, 1, 9, 10, 11, 99, 100, 101, 110, 999, 1000, 1001, 10_000, 100_100, u64::MAX, u64::MAX - 1]
        {
            let mut out = Vec::new();
            push_unsigned(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn numbers_read_back(bits in any::<u64>(), shift in 0..64u32, float in any::<f64>()) {
            let number = (bits >> shift) as i64;
            let mut out = Vec::new();
            push_signed(&mut out, number);
            out.push(b' ');
            push_unsigned(&mut out, bits >> shift);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{number} {}", bits >> shift));
            let mut out = Vec::new();
            push_float(&mut out, float);
            let read: Option<f64> = serde_json::from_slice::<Option<serde_json::Number>>(&out).unwrap()
                .map(|number| number.to_string().parse().unwrap());
            if float.is_finite() {
                prop_assert_eq!(String::from_utf8(out).unwrap().parse::<f64>().unwrap(), float);
                prop_assert!(read.is_some());
            } else {
                prop_assert!(read.is_none());
            }
        }
    }
}
