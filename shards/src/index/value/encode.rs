//! Scalars as bytes whose order is the order of values, and whose equality is equality.
//!
//! null < false < true < numbers < strings. One tag byte, then:
//!
//! - numbers, exact decimals of any length: a sign byte (0 negative, 1 zero, 2 positive); for non-zero ones 0.d1d2d3... times
//!   ten to the exponent, d1 and the last digit not 0: the exponent (one byte biased by 0x80 from -63 to 63, else 0xff or 0x00
//!   and eight bytes big endian), the digits two a byte plus one, and 0. A negative number has all bytes after the sign
//!   inverted. `1`, `1.0` and `10e-1` are equal; exponents beyond 2^61 are cut to that.
//! - strings: the UTF-8 bytes, with 0x00 as 0x00 0x01, then 0x00 0x00.
//!
//! No encoding is a prefix of another one, so a key can follow.

use crate::index::extract::Scalar;

const NULL: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const NUMBER: u8 = 4;
const STRING: u8 = 5;

const EXPONENT_MAX: i64 = 1 << 61;

/// Appends the sortable form of `scalar`; false for a number token that is none, and then nothing is appended.
pub fn encode(scalar: Scalar<'_>, out: &mut Vec<u8>) -> bool {
    match scalar {
        Scalar::Null => out.push(NULL),
        Scalar::Bool(false) => out.push(FALSE),
        Scalar::Bool(true) => out.push(TRUE),
        Scalar::Number(token) => return encode_number(token, out),
        Scalar::String(text) => {
            out.push(STRING);
            escape(text, out);
            out.extend_from_slice(&[0, 0]);
        }
    }
    true
}

/// The start that the encodings of all strings with this prefix share.
pub fn encode_prefix(prefix: &str, out: &mut Vec<u8>) {
    out.push(STRING);
    escape(prefix, out);
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        out.push(byte);
        if byte == 0 {
            out.push(1);
        }
    }
}

fn encode_number(token: &str, out: &mut Vec<u8>) -> bool {
    let (is_negative, magnitude) = match token.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, token),
    };
    let (mantissa, exponent) = match magnitude.find(['e', 'E']) {
        Some(at) => match parse_exponent(&magnitude[at + 1..]) {
            Some(exponent) => (&magnitude[..at], exponent),
            None => return false,
        },
        None => (magnitude, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let digits = || whole.bytes().chain(fraction.bytes());
    let leading = digits().take_while(|digit| *digit == b'0').count();
    let total = whole.len() + fraction.len();
    out.push(NUMBER);
    if leading == total {
        out.push(1);
        return true;
    }
    let trailing =
        fraction.bytes().rev().chain(whole.bytes().rev()).take_while(|digit| *digit == b'0').count();
    let exponent =
        exponent.saturating_add(whole.len() as i64 - leading as i64).clamp(-EXPONENT_MAX, EXPONENT_MAX);
    out.push(if is_negative { 0 } else { 2 });
    let start = out.len();
    match exponent {
        -63..=63 => out.push((0x80 + exponent) as u8),
        _ => {
            out.push(if exponent > 0 { 0xff } else { 0 });
            out.extend_from_slice(&((exponent + EXPONENT_MAX) as u64).to_be_bytes());
        }
    }
    let mut significant = digits().skip(leading).take(total - leading - trailing).map(|digit| digit - b'0');
    while let Some(tens) = significant.next() {
        out.push(tens * 10 + significant.next().unwrap_or(0) + 1);
    }
    out.push(0);
    if is_negative {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
    true
}

/// Reads `[+-]digits`, as many as there may be.
fn parse_exponent(text: &str) -> Option<i64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let add = |sum: i64, digit: u8| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
    let value = digits.bytes().fold(0i64, add).min(EXPONENT_MAX);
    Some(if is_negative { -value } else { value })
}

/// Length of the encoded scalar at the start of `bytes`, which [`encode`] wrote; `None` if there is none.
pub(crate) fn encoded_length(bytes: &[u8]) -> Option<usize> {
    let find = |from: usize, end: u8| {
        bytes.get(from..)?.iter().position(|byte| *byte == end).map(|at| from + at + 1)
    };
    match *bytes.first()? {
        NULL | FALSE | TRUE => Some(1),
        NUMBER => match *bytes.get(1)? {
            1 => Some(2),
            sign @ (0 | 2) => {
                let invert = if sign == 0 { 0xff } else { 0 };
                let exponent = *bytes.get(2)? ^ invert;
                find(if matches!(exponent, 0 | 0xff) { 11 } else { 3 }, invert)
            }
            _ => None,
        },
        STRING => {
            let mut at = 1;
            loop {
                at = find(at, 0)?;
                match *bytes.get(at)? {
                    0 => return Some(at + 1),
                    _ => at += 1,
                }
            }
        }
        _ => None,
    }
}

/// The first bytes of all values of the same type as an encoded one (false and true are one type).
pub(crate) fn type_bounds(encoded: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match encoded.first() {
        Some(&FALSE | &TRUE) => (vec![FALSE], vec![NUMBER]),
        Some(&tag) => (vec![tag], vec![tag + 1]),
        None => (Vec::new(), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    fn encoded(scalar: Scalar<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(encode(scalar, &mut out));
        assert_eq!(encoded_length(&out), Some(out.len()));
        out
    }

    fn number(token: &str) -> Vec<u8> {
        encoded(Scalar::Number(token))
    }

    #[test]
    fn values_in_order() {
        let huge = format!("1{}", "0".repeat(300));
        let values = [
            Scalar::Null,
            Scalar::Bool(false),
            Scalar::Bool(true),
            Scalar::Number("-1e99999999999999999999"),
            Scalar::Number("-1e100"),
            Scalar::Number("-12"),
            Scalar::Number("-11.5"),
            Scalar::Number("-1"),
            Scalar::Number("-0.999"),
            Scalar::Number("-1e-100"),
            Scalar::Number("0"),
            Scalar::Number("1e-100"),
            Scalar::Number("0.0999"),
            Scalar::Number("0.1"),
            Scalar::Number("0.10000000000000000000001"),
            Scalar::Number("9007199254740992"),
            Scalar::Number("9007199254740993"),
            Scalar::Number("18446744073709551616"),
            Scalar::Number(&huge),
            Scalar::Number("1.5e300"),
            Scalar::String(""),
            Scalar::String("\0"),
            Scalar::String("\0a"),
            Scalar::String("a"),
            Scalar::String("a\0"),
            Scalar::String("ab"),
            Scalar::String("é"),
        ];
        for pair in values.windows(2) {
            assert!(encoded(pair[0]) < encoded(pair[1]), "{pair:?}");
        }
        for (left, right) in
            [("1", "1.0"), ("1", "10e-1"), ("-0", "0.000e5"), ("1200", "1.2E+3"), ("0.05", "5e-2")]
        {
            assert_eq!(number(left), number(right), "{left} {right}");
        }
        let out = &mut Vec::new();
        assert!(!encode(Scalar::Number("1e"), out) && !encode(Scalar::Number("-"), out) && out.is_empty());
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(number("-12.5"), [4, 0, !0x82, !13, !51, 0xff]);
        assert_eq!(number("1e100"), [4, 2, 0xff, 0x20, 0, 0, 0, 0, 0, 0, 101, 11, 0]);
        assert_eq!(encoded(Scalar::String("a\0")), [5, b'a', 0, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn small_decimals_sort_as_numbers(a in -200_000i64..200_000, b in -200_000i64..200_000, scale in 0u32..5) {
            let token = |n: i64| format!("{n}e-{scale}");
            let dotted = |n: i64| {
                let power = 10i64.pow(scale);
                let sign = if n < 0 { "-" } else { "" };
                format!("{sign}{}.{:0width$}0", n.abs() / power, n.abs() % power, width = scale as usize)
            };
            prop_assert_eq!(number(&token(a)).cmp(&number(&dotted(b))), a.cmp(&b));
            prop_assert_eq!(number(&token(a)).cmp(&number(&dotted(a))), Ordering::Equal);
        }

        #[test]
        fn strings_sort_as_bytes(a in "[\0\u{1}a]{0,4}", b in "[\0\u{1}a]{0,4}") {
            prop_assert_eq!(encoded(Scalar::String(&a)).cmp(&encoded(Scalar::String(&b))), a.cmp(&b));
            let mut prefix = Vec::new();
            encode_prefix(&b, &mut prefix);
            // An escaped zero byte may end where the string goes on, so a prefix of strings is one of bytes.
            prop_assert_eq!(encoded(Scalar::String(&a)).starts_with(&prefix), a.starts_with(&b));
        }

        #[test]
        fn lengths_of_any_bytes(bytes in prop::collection::vec(prop_oneof![0u8..6, Just(255), any::<u8>()], 0..20)) {
            if let Some(length) = encoded_length(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
