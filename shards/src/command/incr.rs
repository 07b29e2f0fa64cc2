//! Applies INCR: adds to an integer token, keeps the time to live.

use super::answer::{Failure, Outcome};
use super::context::Context;
use super::record::Record;
use crate::ids::KeyHash;

/// INCR by the record's argument, a signed number in its bits; an absent key counts as 0.
pub fn incr(context: &mut Context<'_>, hash: KeyHash, record: &Record<'_>) -> Outcome {
    let amount = record.argument.unwrap_or(1) as i64;
    let (current, expires_at) = match context.live(hash, record.key) {
        None => (0, None),
        Some(found) => match parse_integer(found.value) {
            Some(Integer::Small(current)) => (current, found.expires_at),
            Some(Integer::Beyond) => return Outcome::Failed(Failure::Overflow),
            None => return Outcome::Failed(Failure::WrongType),
        },
    };
    let Some(sum) = current.checked_add(amount) else { return Outcome::Failed(Failure::Overflow) };
    let mut text = itoa::Buffer::new();
    context.put(hash, record.key, text.format(sum).as_bytes(), expires_at, false);
    Outcome::Integer(sum)
}

enum Integer {
    Small(i64),
    Beyond,
}

/// Reads a token of the form `-?digits`.
fn parse_integer(token: &[u8]) -> Option<Integer> {
    let digits = token.strip_prefix(b"-").unwrap_or(token);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let text = std::str::from_utf8(token).ok()?;
    Some(text.parse().map_or(Integer::Beyond, Integer::Small))
}
