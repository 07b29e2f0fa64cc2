//! LIST_INDEXES: what every shard says of its part of each index, summed.
//!
//! A shard's answer to `Indexes` is a list of [`Line`]s: {kind name u16 length, analyzer name u16 length (empty: none),
//! path u16 length, is ready u8, scanned u64, records u64, entries u64, bytes u64}, in the order of the catalogue.

use super::search::{push_short, take_short};
use super::topology::Topology;
use super::{Call, Gather, NO_PART, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::record::{Malformed, Op, Record, take_u8, take_u32, take_u64};
use strand_wire::json::push_string;
use strand_wire::reply::{push_float, push_unsigned};

/// One index, in one shard or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its kind's name.
    pub kind: String,
    /// Its analyzer's name; empty where it has none.
    pub analyzer: String,
    /// Its path.
    pub path: String,
    /// Numbers in a vector, 0 for other kinds.
    pub dimensions: u32,
    /// How vectors are compared; empty for other kinds.
    pub metric: String,
    /// Whether it can answer.
    pub is_ready: bool,
    /// Records that its building has looked at.
    pub scanned: u64,
    /// Records that there are.
    pub records: u64,
    /// Entries, or documents.
    pub entries: u64,
    /// Bytes of memory.
    pub bytes: u64,
}

impl Line {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for text in [&self.kind, &self.analyzer, &self.path, &self.metric] {
            push_short(out, text.as_bytes());
        }
        out.extend_from_slice(&self.dimensions.to_le_bytes());
        out.push(u8::from(self.is_ready));
        for number in [self.scanned, self.records, self.entries, self.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn take(rest: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self {
            kind: text_of(take_short(rest)?)?.to_owned(),
            analyzer: text_of(take_short(rest)?)?.to_owned(),
            path: text_of(take_short(rest)?)?.to_owned(),
            metric: text_of(take_short(rest)?)?.to_owned(),
            dimensions: take_u32(rest)?,
            is_ready: take_u8(rest)? == 1,
            scanned: take_u64(rest)?,
            records: take_u64(rest)?,
            entries: take_u64(rest)?,
            bytes: take_u64(rest)?,
        })
    }

    fn add(&mut self, other: &Self) {
        self.is_ready &= other.is_ready;
        self.scanned += other.scanned;
        self.records += other.records;
        self.entries += other.entries;
        self.bytes += other.bytes;
    }

    fn write(&self, out: &mut Vec<u8>) {
        for name in ["{\"name\":", ",\"field\":"] {
            out.extend_from_slice(name.as_bytes());
            push_string(out, &self.path);
        }
        out.extend_from_slice(b",\"kind\":");
        push_string(out, &self.kind);
        if !self.analyzer.is_empty() {
            out.extend_from_slice(b",\"analyzer\":");
            push_string(out, &self.analyzer);
        }
        if self.dimensions > 0 {
            out.extend_from_slice(b",\"dim\":");
            push_unsigned(out, u64::from(self.dimensions));
            out.extend_from_slice(b",\"metric\":");
            push_string(out, &self.metric);
        }
        let state: &[u8] = if self.is_ready { b"ready" } else { b"building" };
        out.extend_from_slice(b",\"state\":\"");
        out.extend_from_slice(state);
        out.extend_from_slice(b"\",\"progress\":");
        let part = self.scanned as f64 / self.records.max(1) as f64;
        push_float(out, if self.is_ready { 1.0 } else { part.min(0.99) });
        out.extend_from_slice(b",\"entries\":");
        push_unsigned(out, self.entries);
        out.extend_from_slice(b",\"bytes\":");
        push_unsigned(out, self.bytes);
        out.push(b'}');
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct ListIndexes {
    left: usize,
    lines: Vec<Line>,
}

impl ListIndexes {
    /// Begins.
    pub fn start(topology: &Topology) -> (Gather, Step) {
        let record = Record::plain(Op::Indexes, &[], &[]);
        let calls = (0u16..).zip(topology.each()).map(|(number, group)| Call::new(number, group, &record));
        let gather = Self { left: topology.groups(), lines: Vec::new() };
        (Gather::ListIndexes(gather), Step::Calls(calls.collect()))
    }

    pub(super) fn part(&mut self, kind: ReplyKind, mut body: &[u8]) -> Result<Step, Malformed> {
        match kind {
            ReplyKind::Part => {}
            ReplyKind::Error => return Ok(Step::passed_on(kind, body)),
            _ => return Err(NO_PART),
        }
        while !body.is_empty() {
            let line = Line::take(&mut body)?;
            let same = |known: &&mut Line| known.path == line.path && known.kind == line.kind;
            match self.lines.iter_mut().find(same) {
                Some(known) => known.add(&line),
                None => self.lines.push(line),
            }
        }
        self.left = self.left.checked_sub(1).ok_or(Malformed("it came twice"))?;
        if self.left > 0 {
            return Ok(Step::Wait);
        }
        // In one order whatever the order of the answers was.
        self.lines.sort_by(|a, b| (&a.path, &a.kind).cmp(&(&b.path, &b.kind)));
        let mut out = b"\"result\":[".to_vec();
        for (number, line) in self.lines.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            line.write(&mut out);
        }
        out.push(b']');
        Ok(Step::success(out))
    }
}
