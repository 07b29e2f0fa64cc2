//! Filters: a tree of comparisons that a document's value must meet.
//!
//! A comparison holds if any scalar at its path does (arrays are transparent); ranges stay in one type, as in value
//! indexes, and the same encoding decides. What is missing meets nothing but a `not`.

use super::extract::{Scalar, Walker};
use super::value::{PageRequest, each_value, encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::Bound;

/// Deepest nesting of a filter.
pub const FILTER_DEPTH_MAX: usize = 16;
/// Comparisons in one filter.
pub const COMPARISONS_MAX: usize = 1024;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of them hold.
    And(Vec<Filter>),
    /// At least one holds.
    Or(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// A scalar at the path lies in the range.
    Compare {
        /// Escaped path.
        path: String,
        /// What a value index would list.
        range: PageRequest,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    field: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    gt: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    gte: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    lt: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    lte: Option<&'a RawValue>,
    prefix: Option<String>,
    #[serde(borrow)]
    and: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    or: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default, deserialize_with = "present")]
    not: Option<&'a RawValue>,
}

/// Tells a field that is null from one that is not there.
fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(input).map(Some)
}

impl Filter {
    /// Reads `{"field":...,"gte":...}`, `{"and":[...]}`, `{"or":[...]}` or `{"not":...}`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(json: &str) -> Result<Self, String> {
        Self::read(json, 0, &mut 0)
    }

    fn read(json: &str, depth: usize, comparisons: &mut usize) -> Result<Self, String> {
        if depth > FILTER_DEPTH_MAX {
            return Err(format!("a filter nests at most {FILTER_DEPTH_MAX} deep"));
        }
        let written: Written<'_> = serde_json::from_str(json).map_err(|error| format!("filter: {error}"))?;
        let mut list = |items: Vec<&RawValue>| -> Result<Vec<Self>, String> {
            items.iter().map(|item| Self::read(item.get(), depth + 1, comparisons)).collect()
        };
        let nothing_else = written.value.is_none() && written.prefix.is_none() && !written.has_range();
        match (written.field, written.and, written.or, written.not) {
            (None, Some(items), None, None) if nothing_else => Ok(Self::And(list(items)?)),
            (None, None, Some(items), None) if nothing_else => Ok(Self::Or(list(items)?)),
            (None, None, None, Some(item)) if nothing_else => {
                Ok(Self::Not(Box::new(Self::read(item.get(), depth + 1, comparisons)?)))
            }
            (Some(path), None, None, None) => {
                *comparisons += 1;
                if *comparisons > COMPARISONS_MAX {
                    return Err(format!("a filter has at most {COMPARISONS_MAX} comparisons"));
                }
                let bounds = [(written.gt, written.gte), (written.lt, written.lte)];
                let range = comparison(written.value, bounds, written.prefix.as_deref())?;
                Ok(Self::Compare { path, range })
            }
            _ => Err(
                "a filter has either field with value, prefix, gt, gte, lt or lte, or one of and, or, not"
                    .to_owned(),
            ),
        }
    }

    /// Whether a JSON token meets the filter.
    pub fn matches(&self, value: &[u8], walker: &mut Walker) -> bool {
        match self {
            Self::And(filters) => filters.iter().all(|filter| filter.matches(value, walker)),
            Self::Or(filters) => filters.iter().any(|filter| filter.matches(value, walker)),
            Self::Not(filter) => !filter.matches(value, walker),
            Self::Compare { path, range } => {
                let mut is_met = false;
                let mut encoded = Vec::new();
                each_value(walker, value, path.as_bytes(), |scalar| {
                    encoded.clear();
                    is_met |= encode::encode(scalar, &mut encoded) && range.includes(&encoded);
                });
                is_met
            }
        }
    }
}

impl Written<'_> {
    fn has_range(&self) -> bool {
        self.gt.is_some() || self.gte.is_some() || self.lt.is_some() || self.lte.is_some()
    }
}

type RawPair<'a> = (Option<&'a RawValue>, Option<&'a RawValue>);

fn comparison(
    value: Option<&RawValue>,
    bounds: [RawPair<'_>; 2],
    prefix: Option<&str>,
) -> Result<PageRequest, String> {
    let has_range = bounds.iter().any(|(open, closed)| open.is_some() || closed.is_some());
    match (value, has_range, prefix) {
        (Some(value), false, None) => {
            let owned = scalar(value)?;
            PageRequest::equal(owned.borrow(), 1).ok_or_else(|| "filter: value is no number".to_owned())
        }
        (None, false, Some(prefix)) => Ok(PageRequest::prefix(prefix, 1)),
        (None, true, None) => {
            let mut owned = Vec::new();
            for (open, closed) in bounds {
                owned.push(match (open, closed) {
                    (Some(_), Some(_)) => {
                        return Err("filter: give gt or gte, and lt or lte, not both".to_owned());
                    }
                    (Some(open), None) => Bound::Excluded(scalar(open)?),
                    (None, Some(closed)) => Bound::Included(scalar(closed)?),
                    (None, None) => Bound::Unbounded,
                });
            }
            PageRequest::range(owned[0].as_ref().map(Owned::borrow), owned[1].as_ref().map(Owned::borrow), 1)
                .map_err(|reason| format!("filter: {reason}"))
        }
        _ => Err("a comparison has one of value, prefix, or bounds".to_owned()),
    }
}

/// A scalar out of a request.
#[derive(Clone, Debug)]
enum Owned {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
}

impl Owned {
    fn borrow(&self) -> Scalar<'_> {
        match self {
            Self::Null => Scalar::Null,
            Self::Bool(truth) => Scalar::Bool(*truth),
            Self::Number(token) => Scalar::Number(token),
            Self::Text(text) => Scalar::String(text),
        }
    }
}

fn scalar(raw: &RawValue) -> Result<Owned, String> {
    let mut found = None;
    let json = raw.get().trim();
    if json.starts_with(['{', '[']) {
        return Err("filter: compare with null, a boolean, a number or a string".to_owned());
    }
    Walker::default().walk(json.as_bytes(), |_, scalar| {
        found = Some(match scalar {
            Scalar::Null => Owned::Null,
            Scalar::Bool(truth) => Owned::Bool(truth),
            Scalar::Number(token) => Owned::Number(token.to_owned()),
            Scalar::String(text) => Owned::Text(text.to_owned()),
        });
    });
    found.ok_or_else(|| "filter: a value cannot be read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(filter: &str, value: &str, expected: bool) {
        let filter = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        assert_eq!(filter.matches(value.as_bytes(), &mut Walker::default()), expected, "{filter:?} {value}");
    }

    #[test]
    fn filters_by_example() {
        let value = r#"{"price":15.0,"tags":["red","blue"],"a":{"b":null},"big":9007199254740993}"#;
        check(r#"{"field":"price","gte":10,"lt":20}"#, value, true);
        check(r#"{"field":"price","gt":15}"#, value, false);
        check(r#"{"field":"price","value":15}"#, value, true);
        check(r#"{"field":"price","gte":"10"}"#, value, false);
        check(r#"{"field":"tags","value":"blue"}"#, value, true);
        check(r#"{"field":"tags","prefix":"re"}"#, value, true);
        check(r#"{"field":"a.b","value":null}"#, value, true);
        check(r#"{"field":"a.c","value":null}"#, value, false);
        check(r#"{"field":"big","gt":9007199254740992}"#, value, true);
        check(
            r#"{"and":[{"field":"price","lte":15},{"not":{"field":"tags","value":"green"}}]}"#,
            value,
            true,
        );
        check(r#"{"or":[{"field":"price","lt":1},{"field":"x","value":1}]}"#, value, false);
        check(r#"{"not":{"field":"x","value":1}}"#, "\"text\"", true);
    }

    #[test]
    fn malformed_filters_say_why() {
        let deep = format!("{}{}{}", "{\"not\":".repeat(40), "{\"field\":\"a\",\"value\":1}", "}".repeat(40));
        for filter in [
            "{}",
            "[]",
            r#"{"field":"a"}"#,
            r#"{"field":"a","value":1,"gt":2}"#,
            r#"{"field":"a","gt":1,"gte":2}"#,
            r#"{"field":"a","gt":1,"lt":"x"}"#,
            r#"{"field":"a","value":[1]}"#,
            r#"{"and":[],"or":[]}"#,
            r#"{"field":"a","values":1}"#,
            &deep,
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[{}\\[\\]\":,a0-9 ]{0,40}|\\{\"(and|or|not|field)\":[\\[{\"a}\\]]{0,8}") {
            let _ = Filter::parse(&text);
        }
    }
}
