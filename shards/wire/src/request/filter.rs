//! Filters of searches, and the tests that they share with QUERY_INDEX.
//!
//! A filter is one object: `{"and": [...]}`, `{"or": [...]}`, `{"not": {...}}`, or a field with one test. An empty `and`
//! holds for every key and an empty `or` for none. Nodes are bounded by `filter_nodes_max`, nesting by `depth_max`.

use super::fields::{Fields, check_bytes, shown, text_of};
use super::refusal::Problem;
use crate::commands::PATH_BYTES_MAX;
use crate::json::{self, Elements, Members};
use crate::limits::Limits;
use std::borrow::Cow;

/// What a record must satisfy.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter<'a> {
    /// Every one of these.
    And(Vec<Filter<'a>>),
    /// At least one of these.
    Or(Vec<Filter<'a>>),
    /// Not this.
    Not(Box<Filter<'a>>),
    /// A test on one field.
    Field {
        /// The field's path, such as `a.b`, as the client wrote it.
        path: Cow<'a, str>,
        /// What its value must be.
        test: Test<'a>,
    },
}

/// What a field's value must be. Bounds and values are scalar tokens, byte for byte.
#[derive(Clone, Debug, PartialEq)]
pub enum Test<'a> {
    /// Equal to this.
    Equal(&'a [u8]),
    /// Between these; at least one is there.
    Range {
        /// From here on.
        lower: Option<Bound<'a>>,
        /// Up to here.
        upper: Option<Bound<'a>>,
    },
    /// A string that begins so.
    Prefix(Cow<'a, str>),
}

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<'a> {
    /// The value at the end, a scalar token.
    pub value: &'a [u8],
    /// Whether that value itself belongs to the range.
    pub inclusive: bool,
}

/// The tokens that a test is made of, before they are known to fit together.
#[derive(Default)]
pub(super) struct TestFields<'a> {
    pub(super) value: Option<&'a [u8]>,
    pub(super) gt: Option<&'a [u8]>,
    pub(super) gte: Option<&'a [u8]>,
    pub(super) lt: Option<&'a [u8]>,
    pub(super) lte: Option<&'a [u8]>,
    pub(super) prefix: Option<&'a [u8]>,
}

/// The `filter` of a search.
pub(super) fn filter<'a>(fields: &Fields<'a, '_>) -> Result<Option<Filter<'a>>, Problem> {
    let Some(token) = fields.raw("filter").0 else { return Ok(None) };
    let mut nodes = 0;
    read(token, &mut nodes, fields.limits).map(Some)
}

/// Reads one node. The recursion is bounded by the depth that the scanner allowed.
fn read<'a>(token: &'a [u8], nodes: &mut usize, limits: &Limits) -> Result<Filter<'a>, Problem> {
    *nodes += 1;
    if *nodes > limits.filter_nodes_max {
        return Err(Problem::too_large("field \"filter\"", limits.filter_nodes_max, "parts"));
    }
    if token.first() != Some(&b'{') {
        return Err(Problem::bad(format!("a filter must be an object, not {}", json::kind_of(token))));
    }
    let mut members = Members::new(token, json::DEPTH_CEILING);
    if let (Some(Ok((name, value))), None) = (members.next(), members.next()) {
        match name.inner() {
            b"and" => return Ok(Filter::And(read_list(value, "and", nodes, limits)?)),
            b"or" => return Ok(Filter::Or(read_list(value, "or", nodes, limits)?)),
            b"not" => return Ok(Filter::Not(Box::new(read(value, nodes, limits)?))),
            _ => {}
        }
    }
    read_field(token, limits)
}

fn read_list<'a>(
    token: &'a [u8],
    name: &str,
    nodes: &mut usize,
    limits: &Limits,
) -> Result<Vec<Filter<'a>>, Problem> {
    let malformed = || {
        let kind = json::kind_of(token);
        Problem::bad(format!("\"{name}\" of a filter must be an array of filters, not {kind}"))
    };
    let elements = Elements::new(token, json::DEPTH_CEILING);
    elements.map(|element| read(element.map_err(|_| malformed())?, nodes, limits)).collect()
}

fn read_field<'a>(token: &'a [u8], limits: &Limits) -> Result<Filter<'a>, Problem> {
    let mut path = None;
    let mut test = TestFields::default();
    for member in Members::new(token, json::DEPTH_CEILING) {
        let (name, value) =
            member.map_err(|fault| Problem::bad(format!("the filter is not valid JSON: {fault}")))?;
        let name = name.decode().unwrap_or(Cow::Borrowed("\\u"));
        let slot = match &*name {
            "field" => &mut path,
            "value" => &mut test.value,
            "gt" => &mut test.gt,
            "gte" => &mut test.gte,
            "lt" => &mut test.lt,
            "lte" => &mut test.lte,
            "prefix" => &mut test.prefix,
            "and" | "or" | "not" => {
                return Err(Problem::bad(format!("\"{name}\" must be the only member of its filter")));
            }
            other => {
                let takes = "field with value, gt, gte, lt, lte or prefix; or one of and, or, not";
                return Err(Problem::bad(format!(
                    "a filter has no member {}; it takes {takes}",
                    shown(other)
                )));
            }
        };
        if slot.replace(value).is_some() {
            return Err(Problem::bad(format!("a filter gives \"{name}\" twice")));
        }
    }
    let path =
        path.ok_or_else(|| Problem::bad("a filter needs \"field\", \"and\", \"or\" or \"not\"".to_owned()))?;
    let path = path_of(path, "\"field\" of a filter")?;
    let test = read_test(&test, "a filter", limits)?;
    Ok(Filter::Field { path, test })
}

/// The path of a field: text of 1 to `PATH_BYTES_MAX` bytes.
pub(super) fn path_of<'a>(token: &'a [u8], what: &str) -> Result<Cow<'a, str>, Problem> {
    let path = text_of(token, what)?;
    if path.is_empty() {
        return Err(Problem::bad(format!("{what} must not be empty")));
    }
    check_bytes(&path, what, PATH_BYTES_MAX)?;
    Ok(path)
}

/// Exactly one of: a value, a prefix, a range of one or two ends.
pub(super) fn read_test<'a>(
    fields: &TestFields<'a>,
    what: &str,
    limits: &Limits,
) -> Result<Test<'a>, Problem> {
    let one = || {
        Problem::bad(format!(
            "{what} needs exactly one of: value, prefix, a range of gt or gte and lt or lte"
        ))
    };
    let lower = end(fields.gt, fields.gte, "gt", "gte", limits)?;
    let upper = end(fields.lt, fields.lte, "lt", "lte", limits)?;
    let range = lower.is_some() || upper.is_some();
    match (fields.value, fields.prefix, range) {
        (Some(value), None, false) => Ok(Test::Equal(scalar(value, "value", limits)?)),
        (None, Some(prefix), false) => {
            let prefix = text_of(prefix, "\"prefix\"")?;
            check_bytes(&prefix, "\"prefix\"", limits.key_bytes_max)?;
            Ok(Test::Prefix(prefix))
        }
        (None, None, true) => Ok(Test::Range { lower, upper }),
        _ => Err(one()),
    }
}

fn end<'a>(
    open: Option<&'a [u8]>,
    closed: Option<&'a [u8]>,
    open_name: &str,
    closed_name: &str,
    limits: &Limits,
) -> Result<Option<Bound<'a>>, Problem> {
    match (open, closed) {
        (Some(_), Some(_)) => {
            Err(Problem::bad(format!("give \"{open_name}\" or \"{closed_name}\", not both")))
        }
        (Some(value), None) => Ok(Some(Bound { value: scalar(value, open_name, limits)?, inclusive: false })),
        (None, Some(value)) => {
            Ok(Some(Bound { value: scalar(value, closed_name, limits)?, inclusive: true }))
        }
        (None, None) => Ok(None),
    }
}

/// Arrays and objects have no place in the order of values. A value is at most as long as a query.
fn scalar<'a>(token: &'a [u8], name: &str, limits: &Limits) -> Result<&'a [u8], Problem> {
    if let Some(b'[' | b'{') = token.first() {
        let kind = json::kind_of(token);
        return Err(Problem::bad(format!(
            "\"{name}\" must be a string, a number, true, false or null, not {kind}"
        )));
    }
    if token.first() == Some(&b'"') {
        // An index compares decoded text, so it must be text.
        text_of(token, &format!("\"{name}\""))?;
    }
    if token.len() > limits.query_bytes_max {
        return Err(Problem::too_large(&format!("\"{name}\""), limits.query_bytes_max, "bytes"));
    }
    Ok(token)
}
