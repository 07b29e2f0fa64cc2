//! Applies the writes of one key: SET, DELETE, EXPIRE and PERSIST.

use super::answer::{Failure, Outcome};
use super::context::Context;
use super::record::{Condition, Record, flag};
use crate::ids::{KeyHash, Millis};
use crate::mutants::{Mutant, is_on};

/// SET: stores the value; clears a time to live unless it gives one.
pub fn set(context: &mut Context<'_>, hash: KeyHash, record: &Record<'_>) -> Outcome {
    if let Some(failure) = unmet(context, hash, record) {
        return Outcome::Failed(failure);
    }
    let expires_at = record.argument.map(|ttl| deadline(context.stamp, ttl));
    context.put(hash, record.key, record.value, expires_at, record.has(flag::DEBUG));
    if record.has(flag::WITH_VERSION) { Outcome::Written(context.version) } else { Outcome::Ok }
}

/// DELETE: whether the key was there.
pub fn delete(context: &mut Context<'_>, hash: KeyHash, record: &Record<'_>) -> Outcome {
    if let Some(failure) = unmet(context, hash, record) {
        return Outcome::Failed(failure);
    }
    if is_on(Mutant::TombstoneLost) && context.version.place >> 10 & 3 == 0 {
        return Outcome::Bool(context.live(hash, record.key).is_some());
    }
    Outcome::Bool(context.take_out(hash, record.key))
}

/// EXPIRE: gives a time to live; whether the key was there.
pub fn expire(context: &mut Context<'_>, hash: KeyHash, record: &Record<'_>) -> Outcome {
    let at = deadline(context.stamp, record.argument.unwrap_or(0));
    retime(context, hash, record.key, Some(at))
}

/// PERSIST: takes the time to live away; whether there was one.
pub fn persist(context: &mut Context<'_>, hash: KeyHash, record: &Record<'_>) -> Outcome {
    match context.live(hash, record.key) {
        Some(found) if found.expires_at.is_some() => retime(context, hash, record.key, None),
        _ => Outcome::Bool(false),
    }
}

/// Why the record's condition does not hold.
fn unmet(context: &Context<'_>, hash: KeyHash, record: &Record<'_>) -> Option<Failure> {
    let condition = record.condition?;
    let found = context.live(hash, record.key);
    let met = match (condition, &found) {
        (Condition::Absent, found) => found.is_none(),
        (Condition::Present, found) => found.is_some(),
        (Condition::Version(version), Some(found)) => {
            found.version == version || is_on(Mutant::VersionNotCompared)
        }
        (Condition::Value(value), Some(found)) => found.value == value || is_on(Mutant::ConditionMetByAny),
        (Condition::Version(_) | Condition::Value(_), None) => false,
    };
    (!met).then(|| Failure::Conflict(found.map(|found| found.version)))
}

/// Writes a live record again with another expiry; the version moves, since what a client may rely on has changed.
fn retime(context: &mut Context<'_>, hash: KeyHash, key: &[u8], expires_at: Option<Millis>) -> Outcome {
    let Some(found) = context.live(hash, key) else { return Outcome::Bool(false) };
    let value = found.value.to_vec();
    context.put(hash, key, &value, expires_at, false);
    Outcome::Bool(true)
}

fn deadline(stamp: Millis, ttl_ms: u64) -> Millis {
    Millis(stamp.0.saturating_add(ttl_ms))
}
