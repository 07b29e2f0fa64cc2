//! Collects one answer of each group, by the numbers that their calls were given.
//!
//! Bounded: beyond [`RESULT_BYTES_MAX`] of answers, with what the gather holds beside them, the collection ends with an
//! error. When all have come they are handed over and the next round may be collected.

use super::{NO_PART, RESULT_BYTES_MAX, Step};
use crate::batch::ReplyKind;
use crate::command::record::Malformed;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Answers {
    parts: Vec<Option<Vec<u8>>>,
    missing: usize,
    bytes: usize,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Collected {
    /// The gather waits for others, or ends.
    Step(Step),
    /// The answers of all, by number.
    All(Vec<Vec<u8>>),
}

impl Answers {
    /// Waits for so many answers.
    pub(super) fn new(count: usize) -> Self {
        Self { parts: vec![None; count], missing: count, bytes: 0 }
    }

    /// Bytes that have come.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The answer to the call of this number; the gather holds `beside` more bytes.
    pub(super) fn take(
        &mut self,
        number: u16,
        kind: ReplyKind,
        body: &[u8],
        beside: usize,
    ) -> Result<Collected, Malformed> {
        if let Some(end) = end_of(kind, body)? {
            return Ok(Collected::Step(end));
        }
        let part = self.parts.get_mut(usize::from(number)).ok_or(Malformed("its number was never given"))?;
        if part.replace(body.to_vec()).is_some() {
            return Err(Malformed("it came twice"));
        }
        self.missing -= 1;
        self.bytes += body.len();
        if self.bytes + beside > RESULT_BYTES_MAX {
            return Ok(Collected::Step(Step::too_large()));
        }
        if self.missing > 0 {
            return Ok(Collected::Step(Step::Wait));
        }
        (self.missing, self.bytes) = (self.parts.len(), 0);
        Ok(Collected::All(self.parts.iter_mut().filter_map(Option::take).collect()))
    }
}

/// The end that an answer means which is no part: a shard's error is passed on.
pub(super) fn end_of(kind: ReplyKind, body: &[u8]) -> Result<Option<Step>, Malformed> {
    match kind {
        ReplyKind::Part => Ok(None),
        ReplyKind::Error => Ok(Some(Step::passed_on(kind, body))),
        // The router takes the mark off a part that may be stale before it hands it on.
        ReplyKind::Ok | ReplyKind::Success | ReplyKind::NotLeader | ReplyKind::StalePart => Err(NO_PART),
    }
}
