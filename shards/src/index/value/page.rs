//! Pages of a value index: equality, ranges and prefixes in either order, with a cursor that any shard understands.
//!
//! The order is (value, key), descending pages reverse it whole. A key with several values in the range counts at the one
//! that comes first in the page's order. A cursor names the last entry of a page, not a place in memory, so it holds over
//! restarts and over all shards: each goes on after it, and [`merge_pages`] puts their pages together.

use super::encode::{encode, encode_prefix, type_bounds};
use super::{ValueIndex, split};
use crate::index::Units;
use crate::index::codec::Corrupt;
use crate::index::extract::Scalar;
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::ops::Bound;

const CURSOR_VERSION: u8 = 1;

/// What to list, as bounds on entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Encoded values from here on (`false`: after it and all it begins).
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    is_descending: bool,
    /// Most keys in the page.
    limit: usize,
    /// The last entry of the page before.
    after: Option<Vec<u8>>,
}

/// Encoded value and key.
pub type PageEntry = (Box<[u8]>, Box<[u8]>);

/// A shard's page, or the page of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order asked for.
    pub entries: Vec<PageEntry>,
    /// Nothing follows.
    pub is_last: bool,
}

impl PageRequest {
    /// Keys with exactly this value, in the order of keys. `None` for a number token that is none.
    pub fn equal(value: Scalar<'_>, limit: usize) -> Option<Self> {
        let mut encoded = Vec::new();
        encode(value, &mut encoded)
            .then(|| Self::new(Bound::Included(encoded.clone()), Bound::Included(encoded), limit))
    }

    /// Keys with a value between two bounds of one type; a missing bound is the end of the type.
    ///
    /// # Errors
    /// Both bounds are missing, they are of different types, or a number token is none.
    pub fn range(
        low: Bound<Scalar<'_>>,
        high: Bound<Scalar<'_>>,
        limit: usize,
    ) -> Result<Self, &'static str> {
        let encoded = |bound: Bound<Scalar<'_>>| -> Result<Bound<Vec<u8>>, &'static str> {
            let bytes = |scalar| {
                let mut bytes = Vec::new();
                if encode(scalar, &mut bytes) { Ok(bytes) } else { Err("a bound is no number") }
            };
            Ok(match bound {
                Bound::Included(scalar) => Bound::Included(bytes(scalar)?),
                Bound::Excluded(scalar) => Bound::Excluded(bytes(scalar)?),
                Bound::Unbounded => Bound::Unbounded,
            })
        };
        let (low, high) = (encoded(low)?, encoded(high)?);
        let (start, end) = match (&low, &high) {
            (Bound::Included(bytes) | Bound::Excluded(bytes), Bound::Unbounded)
            | (Bound::Unbounded, Bound::Included(bytes) | Bound::Excluded(bytes)) => type_bounds(bytes),
            (
                Bound::Included(left) | Bound::Excluded(left),
                Bound::Included(right) | Bound::Excluded(right),
            ) => {
                if type_bounds(left) != type_bounds(right) {
                    return Err("the bounds of a range must be of one type");
                }
                type_bounds(left)
            }
            (Bound::Unbounded, Bound::Unbounded) => return Err("a range needs a bound"),
        };
        let low = if low == Bound::Unbounded { Bound::Included(start) } else { low };
        let high = if high == Bound::Unbounded { Bound::Excluded(end) } else { high };
        Ok(Self::new(low, high, limit))
    }

    /// Keys with a string that begins so.
    pub fn prefix(prefix: &str, limit: usize) -> Self {
        let mut low = Vec::new();
        encode_prefix(prefix, &mut low);
        let mut high = low.clone();
        // Encoded strings hold no 0xff, so this is after all that begin with the prefix.
        high.push(0xff);
        Self::new(Bound::Included(low), Bound::Excluded(high), limit)
    }

    fn new(low: Bound<Vec<u8>>, high: Bound<Vec<u8>>, limit: usize) -> Self {
        Self { low, high, is_descending: false, limit: limit.max(1), after: None }
    }

    /// The same from high to low.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.is_descending = true;
        self
    }

    /// The same after the page that ended with this cursor.
    ///
    /// # Errors
    /// The text is no cursor of this kind.
    pub fn after(mut self, cursor: &str) -> Result<Self, Corrupt> {
        let digit =
            |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8).ok_or(Corrupt("cursor"));
        if !cursor.len().is_multiple_of(2) {
            return Err(Corrupt("cursor"));
        }
        let pairs = cursor.as_bytes().chunks_exact(2);
        let bytes: Vec<u8> =
            pairs.map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect::<Result<_, Corrupt>>()?;
        let [CURSOR_VERSION, entry @ ..] = &bytes[..] else { return Err(Corrupt("version of a cursor")) };
        match super::encode::encoded_length(entry) {
            Some(length) if length < entry.len() => self.after = Some(entry.to_vec()),
            _ => return Err(Corrupt("cursor")),
        }
        Ok(self)
    }

    fn includes_from_below(&self, value: &[u8]) -> bool {
        match &self.low {
            Bound::Included(low) => value >= &low[..],
            Bound::Excluded(low) => value > &low[..],
            Bound::Unbounded => true,
        }
    }

    fn includes_from_above(&self, value: &[u8]) -> bool {
        match &self.high {
            Bound::Included(high) => value <= &high[..],
            Bound::Excluded(high) => value < &high[..],
            Bound::Unbounded => true,
        }
    }

    /// Whether an encoded value lies in the range.
    pub(crate) fn includes(&self, value: &[u8]) -> bool {
        self.includes_from_below(value) && self.includes_from_above(value)
    }
}

impl Page {
    /// Where the next page begins, if there is one.
    pub fn cursor(&self) -> Option<String> {
        let (value, key) = self.entries.last().filter(|_| !self.is_last)?;
        let bytes = std::iter::once(&CURSOR_VERSION).chain(value.iter()).chain(key.iter());
        Some(bytes.map(|byte| format!("{byte:02x}")).collect())
    }
}

impl ValueIndex {
    /// A page of this shard, shorter than its limit when the budget is spent first; its cursor goes on from there.
    ///
    /// The first entry is always looked at, so pages come to an end.
    pub fn page(&self, request: &PageRequest, units: &mut Units) -> Page {
        let low = match &request.low {
            Bound::Included(low) | Bound::Excluded(low) => Bound::Included(&low[..]),
            Bound::Unbounded => Bound::Unbounded,
        };
        let mut page = Page::default();
        let after = request.after.as_deref();
        // A cursor from before the range (or past it) leaves the whole range (or nothing) to list.
        let entries: Box<dyn Iterator<Item = &Box<[u8]>>> = if request.is_descending {
            let high = self.end_of(request);
            let high = after
                .map_or(high.as_deref(), |after| Some(high.as_deref().map_or(after, |high| high.min(after))));
            let high = high.map_or(Bound::Unbounded, Bound::Excluded);
            if is_empty(low, high) {
                page.is_last = true;
                return page;
            }
            Box::new(self.entries.range::<[u8], _>((low, high)).rev().map(|(entry, _)| entry))
        } else {
            let start = match (after, low) {
                (Some(after), Bound::Included(low)) if after < low => Bound::Included(low),
                (Some(after), _) => Bound::Excluded(after),
                (None, low) => low,
            };
            Box::new(self.entries.range::<[u8], _>((start, Bound::Unbounded)).map(|(entry, _)| entry))
        };
        for entry in entries {
            let (value, key) = split(entry);
            let beyond = if request.is_descending {
                !request.includes_from_below(value)
            } else {
                !request.includes_from_above(value)
            };
            if beyond {
                page.is_last = true;
                return page;
            }
            if page.entries.len() == request.limit || (!units.left() && !page.entries.is_empty()) {
                return page;
            }
            units.spend(4);
            if request.includes(value) && self.is_first(request, value, key) {
                page.entries.push((value.into(), key.into()));
            }
        }
        page.is_last = true;
        page
    }

    /// Adds the numbers of the keys with a value in the range to `found`, entries after `after` on, until the budget is
    /// spent; true at the end of the range. `after` tells where to go on.
    pub(crate) fn gather(
        &self,
        request: &PageRequest,
        after: &mut Option<Box<[u8]>>,
        units: &mut Units,
        found: &mut RoaringBitmap,
    ) -> bool {
        let start = match (&*after, &request.low) {
            (Some(after), _) => Bound::Excluded(&after[..]),
            (None, Bound::Included(low) | Bound::Excluded(low)) => Bound::Included(&low[..]),
            (None, Bound::Unbounded) => Bound::Unbounded,
        };
        for (entry, id) in self.entries.range::<[u8], _>((start, Bound::Unbounded)) {
            let (value, _) = split(entry);
            if !request.includes_from_above(value) {
                return true;
            }
            if request.includes_from_below(value) {
                found.insert(*id);
            }
            units.spend(2);
            if !units.left() {
                *after = Some(entry.clone());
                return false;
            }
        }
        true
    }

    /// An entry bound above all that the request may include.
    fn end_of(&self, request: &PageRequest) -> Option<Vec<u8>> {
        match &request.high {
            Bound::Excluded(high) => Some(high.clone()),
            Bound::Included(high) => {
                // Past every entry with exactly this value: keys follow it, and no key is longer than this.
                let next = high.iter().rposition(|byte| *byte != 0xff)?;
                let mut end = high[..=next].to_vec();
                end[next] += 1;
                Some(end)
            }
            Bound::Unbounded => None,
        }
    }

    /// Whether `value` is the key's first in the range and order asked for.
    fn is_first(&self, request: &PageRequest, value: &[u8], key: &[u8]) -> bool {
        let Some(values) = self.several.get(key) else { return true };
        let mut inside = values.iter().filter(|other| request.includes(other));
        let first = if request.is_descending { inside.next_back() } else { inside.next() };
        first.is_some_and(|first| **first == *value)
    }
}

fn is_empty(low: Bound<&[u8]>, high: Bound<&[u8]>) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

/// One page out of the pages that all shards gave for one request.
///
/// A shard that stopped early (budget) hides what it would list next, so the merged page ends there.
pub fn merge_pages(request: &PageRequest, pages: Vec<Page>) -> Page {
    let mut queues: Vec<(VecDeque<PageEntry>, bool)> =
        pages.into_iter().map(|page| (page.entries.into(), page.is_last)).collect();
    let mut merged = Page::default();
    loop {
        if merged.entries.len() == request.limit {
            merged.is_last = queues.iter().all(|(entries, is_last)| entries.is_empty() && *is_last);
            return merged;
        }
        if queues.iter().any(|(entries, is_last)| entries.is_empty() && !is_last) {
            return merged;
        }
        let heads = queues.iter().enumerate().filter_map(|(n, (entries, _))| Some((entries.front()?, n)));
        let next = if request.is_descending { heads.max() } else { heads.min() };
        let Some((_, n)) = next else {
            merged.is_last = true;
            return merged;
        };
        merged.entries.extend(queues[n].0.pop_front());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<String, Vec<Value>>;

    #[derive(Clone, Debug, PartialEq, PartialOrd)]
    enum Value {
        Null,
        Bool(bool),
        Number(i64),
        Text(String),
    }

    impl Value {
        fn json(&self) -> String {
            match self {
                Self::Null => "null".to_owned(),
                Self::Bool(truth) => truth.to_string(),
                Self::Number(n) => format!("{n}.0e0"),
                Self::Text(text) => format!("{text:?}"),
            }
        }

        fn kind(&self) -> u8 {
            match self {
                Self::Null => 0,
                Self::Bool(_) => 1,
                Self::Number(_) => 2,
                Self::Text(_) => 3,
            }
        }

        fn with<T>(&self, then: impl FnOnce(Scalar<'_>) -> T) -> T {
            match self {
                Self::Null => then(Scalar::Null),
                Self::Bool(truth) => then(Scalar::Bool(*truth)),
                Self::Number(n) => then(Scalar::Number(&n.to_string())),
                Self::Text(text) => then(Scalar::String(text)),
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (-20i64..20).prop_map(Value::Number),
            "[ab]{0,3}".prop_map(Value::Text),
        ]
    }

    #[derive(Clone, Debug)]
    enum Ask {
        Equal(Value),
        Range(Bound<Value>, Bound<Value>),
        Prefix(String),
    }

    fn bound() -> impl Strategy<Value = Bound<Value>> {
        prop_oneof![
            Just(Bound::Unbounded),
            value().prop_map(Bound::Included),
            value().prop_map(Bound::Excluded)
        ]
    }

    fn ask() -> impl Strategy<Value = Ask> {
        prop_oneof![
            value().prop_map(Ask::Equal),
            (bound(), bound()).prop_map(|(low, high)| Ask::Range(low, high)),
            "[ab]{0,2}".prop_map(Ask::Prefix),
        ]
    }

    fn scalar_bound<T>(bound: &Bound<Value>, then: impl FnOnce(Bound<Scalar<'_>>) -> T) -> T {
        match bound {
            Bound::Included(value) => value.with(|scalar| then(Bound::Included(scalar))),
            Bound::Excluded(value) => value.with(|scalar| then(Bound::Excluded(scalar))),
            Bound::Unbounded => then(Bound::Unbounded),
        }
    }

    fn request(ask: &Ask, limit: usize) -> Option<PageRequest> {
        match ask {
            Ask::Equal(value) => value.with(|scalar| PageRequest::equal(scalar, limit)),
            Ask::Range(low, high) => {
                scalar_bound(low, |low| scalar_bound(high, |high| PageRequest::range(low, high, limit).ok()))
            }
            Ask::Prefix(prefix) => Some(PageRequest::prefix(prefix, limit)),
        }
    }

    fn matches(ask: &Ask, value: &Value) -> bool {
        match ask {
            Ask::Equal(other) => value == other,
            Ask::Prefix(prefix) => matches!(value, Value::Text(text) if text.starts_with(prefix)),
            Ask::Range(low, high) => {
                let same = |bound: &Bound<Value>| match bound {
                    Bound::Included(other) | Bound::Excluded(other) => other.kind() == value.kind(),
                    Bound::Unbounded => true,
                };
                let above = match low {
                    Bound::Included(low) => value >= low,
                    Bound::Excluded(low) => value > low,
                    Bound::Unbounded => true,
                };
                let below = match high {
                    Bound::Included(high) => value <= high,
                    Bound::Excluded(high) => value < high,
                    Bound::Unbounded => true,
                };
                same(low) && same(high) && above && below
            }
        }
    }

    fn expected(model: &Model, ask: &Ask, is_descending: bool) -> Vec<String> {
        let mut found: Vec<(Value, String)> = Vec::new();
        for (key, values) in model {
            let inside = values.iter().filter(|value| matches(ask, value)).cloned();
            let best = inside.reduce(|a, b| if (a < b) == is_descending { b } else { a });
            found.extend(best.map(|value| (value, key.clone())));
        }
        found.sort_by(|a, b| a.partial_cmp(b).unwrap());
        if is_descending {
            found.reverse();
        }
        found.into_iter().map(|(_, key)| key).collect()
    }

    fn json(values: &[Value]) -> String {
        let list: Vec<String> = values.iter().map(Value::json).collect();
        match &list[..] {
            [one] => format!("{{\"a\":{{\"b\":{one}}},\"b\":1}}"),
            _ => format!("{{\"x\":2,\"a\":[{{\"b\":[{}]}},7,{{\"c\":0}}]}}", list.join(",")),
        }
    }

    proptest! {
        #[test]
        fn pages_agree_with_a_model(
            operations in prop::collection::vec(("[k-p]{1,2}", prop::collection::vec(value(), 0..4), any::<bool>()), 0..60),
            asks in prop::collection::vec((ask(), any::<bool>()), 1..6), limit in 1usize..7, budget in 1u32..40,
        ) {
            let mut model = Model::new();
            let mut shards = [ValueIndex::new("a.b"), ValueIndex::new("a.b")];
            let mut single = ValueIndex::new("a.b");
            for (key, values, is_delete) in operations {
                let old = model.get(&key).map(|values| json(values));
                let new = (!is_delete).then(|| json(&values));
                let (old, new) = (old.as_deref().map(str::as_bytes), new.as_deref().map(str::as_bytes));
                single.apply(key.as_bytes(), old, new);
                shards[usize::from(key.as_bytes()[0] % 2)].apply(key.as_bytes(), old, new);
                if is_delete { model.remove(&key); } else { model.insert(key, values); }
            }
            let mut loaded = ValueIndex::new("a.b");
            let mut from: Box<[u8]> = Box::default();
            loop {
                let mut out = Vec::new();
                let next = single.write_section(&from, &mut Units::new(budget), &mut out);
                loaded.load_section(&out).unwrap();
                match next { Some(next) => from = next, None => break }
            }
            loaded.finish_load();
            prop_assert!(loaded.entries.keys().eq(single.entries.keys()));
            prop_assert_eq!(&loaded.several, &single.several);
            prop_assert_eq!(loaded.bytes, single.bytes);
            for (ask, is_descending) in asks {
                let Some(first) = request(&ask, limit) else { continue };
                let first = if is_descending { first.descending() } else { first };
                let expected = expected(&model, &ask, is_descending);
                for shards in [&shards[..], std::slice::from_ref(&single)] {
                    let mut request = first.clone();
                    let mut keys = Vec::new();
                    loop {
                        let pages = shards.iter().map(|shard| shard.page(&request, &mut Units::new(budget))).collect();
                        let page = merge_pages(&request, pages);
                        prop_assert!(page.entries.len() <= limit);
                        keys.extend(page.entries.iter().map(|(_, key)| String::from_utf8(key.to_vec()).unwrap()));
                        match page.cursor() { Some(cursor) => request = first.clone().after(&cursor).unwrap(), None => break }
                    }
                    prop_assert_eq!(&keys, &expected);
                }
            }
        }

        #[test]
        fn foreign_cursors_and_sections_are_refused_or_survived(cursor in "[0-9a-f]{0,20}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut index = ValueIndex::new("a");
            index.apply(b"k", None, Some(b"{\"a\":1}"));
            if let Ok(request) = PageRequest::prefix("", 3).after(&cursor) {
                index.page(&request, &mut Units::new(10));
                index.page(&request.descending(), &mut Units::new(10));
            }
            let _ = index.load_section(&bytes);
        }
    }
}
