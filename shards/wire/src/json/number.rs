//! JSON numbers: their grammar, and integers read from their tokens. Never rounds and never touches floating point.

use super::{Fault, FaultKind};

/// Passes over a number at `at`: `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`.
pub(super) fn scan(input: &[u8], at: &mut usize) -> Result<(), Fault> {
    if input.get(*at) == Some(&b'-') {
        *at += 1;
    }
    if input.get(*at) == Some(&b'0') {
        *at += 1;
    } else {
        digits(input, at)?;
    }
    if input.get(*at) == Some(&b'.') {
        *at += 1;
        digits(input, at)?;
    }
    if let Some(b'e' | b'E') = input.get(*at) {
        *at += 1;
        if let Some(b'+' | b'-') = input.get(*at) {
            *at += 1;
        }
        digits(input, at)?;
    }
    Ok(())
}

/// Passes over at least one digit.
fn digits(input: &[u8], at: &mut usize) -> Result<(), Fault> {
    let start = *at;
    while let Some(b'0'..=b'9') = input.get(*at) {
        *at += 1;
    }
    if *at == start { Err(Fault { at: start, kind: FaultKind::Digit }) } else { Ok(()) }
}

/// Whether a token is `-?digits`, of any size.
pub fn is_integer(token: &[u8]) -> bool {
    let digits = token.strip_prefix(b"-").unwrap_or(token);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// The number of a token of the form `digits`, if it fits. `1.0` and `1e3` are not of this form.
#[inline]
pub fn unsigned(token: &[u8]) -> Option<u64> {
    if token.is_empty() {
        return None;
    }
    token.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { sum.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// The number of a token of the form `-?digits`, if it fits.
#[inline]
pub fn signed(token: &[u8]) -> Option<i64> {
    match token.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits)?),
        None => i64::try_from(unsigned(token)?).ok(),
    }
}
