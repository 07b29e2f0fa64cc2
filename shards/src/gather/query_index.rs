//! QUERY_INDEX: one page of a value index out of a page of each shard, merged in the order of the index.
//!
//! | call | value | answer |
//! |---|---|---|
//! | `QueryIndex` | [`Ask`] | is last u8, per entry: encoded value u32 length, key u16 length, record's value u32 length |
//!
//! A shard may end its page early; the merged page then ends before what that shard has not listed. It must list at
//! least one entry, or say that nothing follows.

use super::answers::{Answers, Collected};
use super::search::{push_long, push_short, take_long, take_short};
use super::topology::Topology;
use super::{Call, Gather, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::encode::consistency_bits;
use crate::command::record::{Malformed, Op, Record, take_u8, take_u32};
use crate::index::extract::Scalar;
use crate::index::value::{Page, PageRequest, merge_pages};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;
use strand_wire::code::Code;
use strand_wire::json::{self, Scanner, push_string};
use strand_wire::request::{self, Order, Test};

/// What a shard is asked to list.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask<'a> {
    /// The index's path.
    pub path: Cow<'a, str>,
    /// What values must be.
    pub test: Test<'a>,
    /// Keys in the page.
    pub limit: u32,
    /// Where the page before ended.
    pub cursor: Option<Cow<'a, str>>,
    /// Greatest first.
    pub is_descending: bool,
    /// Records' values are given too.
    pub with_values: bool,
}

impl<'a> Ask<'a> {
    /// What a client's request asks of each shard.
    pub fn new(query: &request::QueryIndex<'a>) -> Self {
        Self {
            path: query.field.clone(),
            test: query.test.clone(),
            limit: u32::try_from(query.limit).unwrap_or(u32::MAX),
            cursor: query.cursor.clone(),
            is_descending: query.order == Order::Descending,
            with_values: query.with_values,
        }
    }

    /// The page to ask a value index for, or what is wrong with the request.
    pub fn page_request(&self) -> Result<PageRequest, String> {
        let limit = self.limit as usize;
        let mut request = match &self.test {
            Test::Equal(token) => with_scalar(token, |scalar| PageRequest::equal(scalar, limit))
                .ok_or("the value is no number")?,
            Test::Range { lower, upper } => {
                let (low, high) = (lower.as_ref().map(text_or_token), upper.as_ref().map(text_or_token));
                PageRequest::range(bound(low.as_ref()), bound(high.as_ref()), limit)?
            }
            Test::Prefix(prefix) => PageRequest::prefix(prefix, limit),
        };
        if self.is_descending {
            request = request.descending();
        }
        match &self.cursor {
            None => Ok(request),
            Some(cursor) => request.after(cursor).map_err(|_| {
                "field \"cursor\" is not one that QUERY_INDEX gave out; begin without it".to_owned()
            }),
        }
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_descending) | u8::from(self.with_values) << 1);
        out.extend_from_slice(&self.limit.to_le_bytes());
        push_short(out, self.path.as_bytes());
        push_long(out, self.cursor.as_deref().unwrap_or_default().as_bytes());
        match &self.test {
            Test::Equal(token) => {
                out.push(1);
                push_long(out, token);
            }
            Test::Range { lower, upper } => {
                out.push(2);
                for end in [lower, upper] {
                    out.push(end.map_or(0, |end| 1 + u8::from(end.inclusive)));
                    push_long(out, end.map_or(&[], |end| end.value));
                }
            }
            Test::Prefix(prefix) => {
                out.push(3);
                push_long(out, prefix.as_bytes());
            }
        }
    }

    /// Reads what [`Ask::encode`] wrote.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let bits = take_u8(rest)?;
        let limit = take_u32(rest)?;
        let path = Cow::Borrowed(text_of(take_short(rest)?)?);
        let cursor = text_of(take_long(rest)?)?;
        let cursor = (!cursor.is_empty()).then_some(Cow::Borrowed(cursor));
        let test = match take_u8(rest)? {
            1 => Test::Equal(take_long(rest)?),
            2 => Test::Range { lower: take_end(rest)?, upper: take_end(rest)? },
            3 => Test::Prefix(Cow::Borrowed(text_of(take_long(rest)?)?)),
            _ => return Err(Malformed("an unknown test")),
        };
        let (is_descending, with_values) = (bits & 1 != 0, bits & 2 != 0);
        Ok(Self { path, test, limit, cursor, is_descending, with_values })
    }
}

fn take_end<'a>(rest: &mut &'a [u8]) -> Result<Option<request::Bound<'a>>, Malformed> {
    let kind = take_u8(rest)?;
    let value = take_long(rest)?;
    match kind {
        0 => Ok(None),
        1 | 2 => Ok(Some(request::Bound { value, inclusive: kind == 2 })),
        _ => Err(Malformed("an unknown end of a range")),
    }
}

/// Runs with the scalar of a token.
fn with_scalar<T>(token: &[u8], run: impl FnOnce(Scalar<'_>) -> T) -> T {
    run(scalar(&decode_token(token)))
}

/// A scalar token with its text decoded.
enum Token<'a> {
    Plain(&'a [u8]),
    Text(Cow<'a, str>),
}

fn decode_token(token: &[u8]) -> Token<'_> {
    match Scanner::new(token).string().ok().and_then(|text| text.decode().ok()) {
        Some(text) => Token::Text(text),
        None => Token::Plain(token),
    }
}

fn scalar<'t>(token: &'t Token<'_>) -> Scalar<'t> {
    match token {
        Token::Text(text) => Scalar::String(text),
        Token::Plain(b"null") => Scalar::Null,
        Token::Plain(b"true") => Scalar::Bool(true),
        Token::Plain(b"false") => Scalar::Bool(false),
        Token::Plain(token) => Scalar::Number(std::str::from_utf8(token).unwrap_or_default()),
    }
}

fn text_or_token<'t>(end: &request::Bound<'t>) -> (Token<'t>, bool) {
    (decode_token(end.value), end.inclusive)
}

fn bound<'t>(end: Option<&'t (Token<'_>, bool)>) -> Bound<Scalar<'t>> {
    match end {
        None => Bound::Unbounded,
        Some((token, true)) => Bound::Included(scalar(token)),
        Some((token, false)) => Bound::Excluded(scalar(token)),
    }
}

/// Appends a shard's page; `value_of` gives records' values where they are wanted.
pub fn write_page<'v>(
    out: &mut Vec<u8>,
    page: &Page,
    is_last: bool,
    value_of: impl Fn(&[u8]) -> Option<&'v [u8]>,
) {
    out.push(u8::from(is_last));
    for (value, key) in &page.entries {
        push_long(out, value);
        push_short(out, key);
        push_long(out, value_of(key).unwrap_or_default());
    }
}

type Values = BTreeMap<Box<[u8]>, Vec<u8>>;

fn read_page(mut bytes: &[u8], values: &mut Values) -> Result<Page, Malformed> {
    let rest = &mut bytes;
    let mut page = Page { is_last: take_u8(rest)? == 1, ..Page::default() };
    while !rest.is_empty() {
        let (value, key, record) = (take_long(rest)?, take_short(rest)?, take_long(rest)?);
        page.entries.push((value.into(), key.into()));
        if !record.is_empty() {
            values.insert(key.into(), record.to_vec());
        }
    }
    Ok(page)
}

/// See the module's head.
#[derive(Debug)]
pub struct QueryIndex {
    request: Option<PageRequest>,
    with_values: bool,
    answers: Answers,
}

impl QueryIndex {
    /// Begins.
    pub fn start(topology: &Topology, query: &request::QueryIndex<'_>) -> (Gather, Step) {
        let ask = Ask::new(query);
        let request = ask.page_request();
        let step = match &request {
            Err(text) => Step::failed(Code::BadRequest, text),
            Ok(_) => {
                let mut value = Vec::new();
                ask.encode(&mut value);
                let flags = consistency_bits(query.consistency);
                let record = Record { flags, ..Record::plain(Op::QueryIndex, &[], &value) };
                let calls = (0u16..).zip(topology.each());
                Step::Calls(calls.map(|(number, group)| Call::new(number, group, &record)).collect())
            }
        };
        let answers = Answers::new(topology.groups());
        let gather = Self { request: request.ok(), with_values: query.with_values, answers };
        (Gather::QueryIndex(Box::new(gather)), step)
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        match self.answers.take(number, kind, body, 0)? {
            Collected::Step(step) => Ok(step),
            Collected::All(answers) => self.finish(&answers),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.answers.bytes()
    }

    fn finish(&self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        let request = self.request.as_ref().ok_or(Malformed("nothing was asked"))?;
        let mut values = Values::new();
        let pages = answers.iter().map(|answer| read_page(answer, &mut values));
        let page = merge_pages(request, pages.collect::<Result<Vec<_>, _>>()?);
        if page.entries.is_empty() && !page.is_last {
            return Err(Malformed("an empty page that is not the last"));
        }
        let mut out = b"\"result\":[".to_vec();
        for (number, (_, key)) in page.entries.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            if self.with_values {
                out.extend_from_slice(b"{\"key\":");
                push_string(&mut out, text_of(key)?);
                out.extend_from_slice(b",\"value\":");
                out.extend_from_slice(values.get(key).map_or(&b"null"[..], Vec::as_slice));
                out.push(b'}');
            } else {
                push_string(&mut out, text_of(key)?);
            }
        }
        out.push(b']');
        if let Some(cursor) = page.cursor() {
            out.extend_from_slice(b",\"cursor\":");
            json::push_string(&mut out, &cursor);
        }
        Ok(Step::success(out))
    }
}
