//! Why a line is no request, in words that say what to do. Writes no reply for anything that was accepted.

use crate::code::Code;
use crate::json::{Fault, FaultKind};
use crate::limits::Limits;
use crate::reply;

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The request's id, when the line could be read as far as that.
    pub id: Option<&'a [u8]>,
    /// One of BAD_REQUEST, UNKNOWN_COMMAND, TOO_LARGE.
    pub code: Code,
    /// One sentence that says what to do.
    pub message: String,
    /// The limit that was exceeded, with TOO_LARGE.
    pub limit: Option<u64>,
    /// Whether the connection must be closed after this reply.
    pub close: bool,
}

/// A refusal before its id is known.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) limit: Option<u64>,
}

impl Refusal<'_> {
    /// For a line that exceeds `line_bytes_max`, read or not: its connection is closed, as the rest is not awaited.
    pub fn line_too_long(limits: &Limits) -> Self {
        let limit = limits.line_bytes_max;
        let message = format!("send lines of at most {limit} bytes: the connection is closed");
        Self { id: None, code: Code::TooLarge, message, limit: Some(limit as u64), close: true }
    }

    /// Appends the error reply.
    pub fn write(&self, out: &mut Vec<u8>) {
        reply::error(out, self.id, self.code, &self.message, |out| {
            if let Some(limit) = self.limit {
                out.extend_from_slice(b",\"limit\":");
                reply::push_unsigned(out, limit);
            }
        });
    }
}

impl Problem {
    pub(super) fn bad(message: String) -> Self {
        Self { code: Code::BadRequest, message, limit: None }
    }

    pub(super) fn too_large(what: &str, limit: usize, unit: &str) -> Self {
        let message = format!("{what} may have at most {limit} {unit}");
        Self { code: Code::TooLarge, message, limit: Some(limit as u64) }
    }

    /// Malformed JSON, or one nested deeper than `depth_max`. `base` is where the scanned bytes begin in the line.
    pub(super) fn json(fault: Fault, base: usize, limits: &Limits) -> Self {
        let at = base + fault.at;
        if fault.kind == FaultKind::TooDeep {
            let limit = limits.value_depth_max();
            let message = format!("nest arrays and objects at most {limit} deep: byte {at} opens one more");
            return Self { code: Code::TooLarge, message, limit: Some(u64::from(limit)) };
        }
        Self::bad(format!("the line is not valid JSON: {} at byte {at}", fault.kind))
    }

    pub(super) fn with_id(self, id: Option<&[u8]>) -> Refusal<'_> {
        Refusal { id, code: self.code, message: self.message, limit: self.limit, close: false }
    }
}
