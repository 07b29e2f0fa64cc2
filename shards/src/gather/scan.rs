//! SCAN: one page of keys, shard by shard.
//!
//! A page ends when it has as many keys as were asked for, when it holds [`PAGE_BYTES_MAX`] bytes, or after
//! [`CALLS_MAX`] calls, so that a rare prefix costs a bounded time and may bring an empty page with a cursor.

use super::parts::take_cursor;
use super::{Call, Gather, NO_PART, Step, cursor, text_of};
use crate::batch::ReplyKind;
use crate::command::encode::consistency_bits;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record, flag};
use crate::gather::topology::Topology;
use crate::ids::GroupId;
use strand_wire::code::Code;
use strand_wire::json::push_string;
use strand_wire::request;

/// Bytes of keys and values after which a page ends.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Calls after which a page ends.
pub const CALLS_MAX: u32 = 8;

/// See the module's head.
#[derive(Debug)]
pub struct Scan {
    prefix: Vec<u8>,
    flags: u16,
    groups: u32,
    /// Where the next call reads on: the group, and that shard's cursor (empty: its beginning).
    group: GroupId,
    cursor: Vec<u8>,
    /// Keys that are still wanted.
    left: u64,
    calls: u32,
    /// Keys and values, each with a comma behind it.
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Scan {
    /// Begins where the request's cursor says.
    pub fn start(topology: &Topology, request: &request::Scan<'_>) -> (Gather, Step) {
        let groups = u32::try_from(topology.groups()).expect("at most 4,096 groups");
        let from = match &request.cursor {
            None => Some((GroupId(0), Vec::new())),
            Some(text) => cursor::read(text).filter(|(group, _)| group.0 < groups),
        };
        let is_good = from.is_some();
        let (group, cursor) = from.unwrap_or_default();
        let values = if request.with_values { flag::WITH_VALUES } else { 0 };
        let mut gather = Self {
            prefix: request.prefix.as_bytes().to_vec(),
            flags: values | consistency_bits(request.consistency),
            groups,
            group,
            cursor,
            left: request.limit,
            calls: 0,
            keys: Vec::new(),
            values: Vec::new(),
        };
        let text = "field \"cursor\" is not one that SCAN gave out; begin without it";
        let step = if is_good { gather.ask() } else { Step::failed(Code::BadRequest, text) };
        (Gather::Scan(gather), step)
    }

    pub(super) fn part(&mut self, kind: ReplyKind, mut body: &[u8]) -> Result<Step, Malformed> {
        match kind {
            ReplyKind::Part => {}
            ReplyKind::Error => return Ok(Step::passed_on(kind, body)),
            _ => return Err(NO_PART),
        }
        match take_cursor(&mut body)? {
            Some(cursor) => self.cursor = cursor.to_vec(),
            None => {
                self.group.0 += 1;
                self.cursor.clear();
            }
        }
        for item in items::iter(body) {
            let (key, value) = item?;
            self.take(key, value)?;
        }
        let is_over = self.group.0 >= self.groups;
        let is_full = self.left == 0 || self.keys.len() + self.values.len() >= PAGE_BYTES_MAX;
        Ok(if is_over || is_full || self.calls >= CALLS_MAX { self.finish(is_over) } else { self.ask() })
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.keys.len() + self.values.len() + self.prefix.len() + self.cursor.len()
    }

    fn with_values(&self) -> bool {
        self.flags & flag::WITH_VALUES != 0
    }

    fn ask(&mut self) -> Step {
        self.calls += 1;
        let (flags, argument) = (self.flags, Some(self.left));
        let record = Record { flags, argument, ..Record::plain(Op::Scan, &self.prefix, &self.cursor) };
        Step::Calls(vec![Call::new(0, self.group, &record)])
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        self.left = self.left.checked_sub(1).ok_or(Malformed("a page is longer than was asked for"))?;
        push_string(&mut self.keys, text_of(key)?);
        self.keys.push(b',');
        if self.with_values() {
            self.values.extend_from_slice(value);
            self.values.push(b',');
        }
        Ok(())
    }

    fn finish(&self, is_over: bool) -> Step {
        let mut out = Vec::with_capacity(self.held_bytes() + 128);
        out.extend_from_slice(b"\"result\":{\"keys\":[");
        out.extend_from_slice(without_comma(&self.keys));
        out.push(b']');
        if self.with_values() {
            out.extend_from_slice(b",\"values\":[");
            out.extend_from_slice(without_comma(&self.values));
            out.push(b']');
        }
        out.extend_from_slice(b",\"cursor\":");
        if is_over {
            out.extend_from_slice(b"null");
        } else {
            out.push(b'"');
            cursor::write(&mut out, self.group, &self.cursor);
            out.push(b'"');
        }
        out.push(b'}');
        Step::success(out)
    }
}

fn without_comma(list: &[u8]) -> &[u8] {
    list.strip_suffix(b",").unwrap_or(list)
}
