//! Filters as bitmaps: what value indexes know of a filter, so that a document is judged without reading its value.
//!
//! Each comparison on an indexed field becomes the set of its keys' numbers; and, or and not are operations on sets. A
//! comparison on a plain field leaves the set too large, never too small: then the value decides among those in the set. A set speaks
//! for the records that have not changed since [`FilterPlan::new`], and for keys that have a number; all others are judged by their value.

use super::Units;
use super::filter::Filter;
use super::set::IndexSet;
use super::value::PageRequest;
use roaring::RoaringBitmap;

/// Entries of one comparison beyond which its set costs more than it saves.
const ENTRIES_MAX: u64 = 1 << 20;

/// Builds the sets of a filter's comparisons, a slice at a time.
#[derive(Debug)]
pub struct FilterPlan {
    /// In the order in which the filter's tree is walked.
    leaves: Vec<Leaf>,
    next: usize,
}

#[derive(Debug)]
struct Leaf {
    path: String,
    range: PageRequest,
    /// `None`: the field has no index, or too many keys meet the comparison.
    found: Option<RoaringBitmap>,
    after: Option<Box<[u8]>>,
}

/// What the indexes say of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterSet {
    ids: RoaringBitmap,
    is_exact: bool,
}

/// What a set says of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It meets the filter.
    Meets,
    /// It does not.
    Fails,
    /// Its value decides.
    Unknown,
}

impl FilterPlan {
    /// A plan for a filter; `None` if no field of it is indexed.
    pub fn new(filter: &Filter, indexes: &IndexSet) -> Option<Self> {
        let mut leaves = Vec::new();
        gather_leaves(filter, indexes, &mut leaves);
        leaves.iter().any(|leaf| leaf.found.is_some()).then_some(Self { leaves, next: 0 })
    }

    /// Goes on until the budget is spent; true when all sets are there.
    pub fn step(&mut self, indexes: &IndexSet, units: &mut Units) -> bool {
        while let Some(leaf) = self.leaves.get_mut(self.next) {
            if !units.left() {
                return false;
            }
            if let Some(found) = &mut leaf.found {
                let Some(values) = indexes.values(&leaf.path) else {
                    // Dropped meanwhile: what is there may lack something.
                    leaf.found = None;
                    continue;
                };
                if !values.gather(&leaf.range, &mut leaf.after, units, found) {
                    if found.len() > ENTRIES_MAX {
                        leaf.found = None;
                    }
                    continue;
                }
            }
            self.next += 1;
        }
        true
    }

    /// What all sets together say of the filter that the plan was made for; `None` if they say nothing.
    pub fn finish(self, filter: &Filter, indexes: &IndexSet) -> Option<FilterSet> {
        let all = indexes.document_ids().borrow().end();
        let mut leaves = self.leaves.into_iter();
        evaluate(filter, all, &mut leaves)
    }
}

fn gather_leaves(filter: &Filter, indexes: &IndexSet, leaves: &mut Vec<Leaf>) {
    match filter {
        Filter::And(filters) | Filter::Or(filters) => {
            filters.iter().for_each(|filter| gather_leaves(filter, indexes, leaves));
        }
        Filter::Not(filter) => gather_leaves(filter, indexes, leaves),
        Filter::Compare { path, range } => {
            let is_indexed = indexes.values(path).is_some() && indexes.is_indexed(0, path, "value");
            let found = is_indexed.then(RoaringBitmap::new);
            leaves.push(Leaf { path: path.clone(), range: range.clone(), found, after: None });
        }
    }
}

fn evaluate(filter: &Filter, all: u32, leaves: &mut dyn Iterator<Item = Leaf>) -> Option<FilterSet> {
    match filter {
        Filter::Compare { .. } => {
            let ids = leaves.next().and_then(|leaf| leaf.found)?;
            Some(FilterSet { ids, is_exact: true })
        }
        Filter::Not(inner) => {
            let inner = evaluate(inner, all, leaves).filter(|inner| inner.is_exact)?;
            Some(FilterSet { ids: every(all) - inner.ids, is_exact: true })
        }
        Filter::And(filters) => {
            let sets: Vec<Option<FilterSet>> =
                filters.iter().map(|filter| evaluate(filter, all, leaves)).collect();
            let is_exact = sets.iter().all(|set| set.as_ref().is_some_and(|set| set.is_exact));
            let known = sets.into_iter().flatten().map(|set| set.ids);
            let ids = known.reduce(|left, right| left & right);
            ids.or_else(|| filters.is_empty().then(|| every(all))).map(|ids| FilterSet { ids, is_exact })
        }
        Filter::Or(filters) => {
            // All are evaluated, so that each takes its own leaves.
            let sets: Vec<Option<FilterSet>> =
                filters.iter().map(|filter| evaluate(filter, all, leaves)).collect();
            let sets: Vec<FilterSet> = sets.into_iter().collect::<Option<_>>()?;
            let is_exact = sets.iter().all(|set| set.is_exact);
            let ids = sets.into_iter().fold(RoaringBitmap::new(), |left, right| left | right.ids);
            Some(FilterSet { ids, is_exact })
        }
    }
}

fn every(all: u32) -> RoaringBitmap {
    let mut ids = RoaringBitmap::new();
    ids.insert_range(0..all);
    ids
}

impl FilterSet {
    /// What it says of an unchanged record with this key.
    pub fn judge(&self, key: &[u8], indexes: &IndexSet) -> Verdict {
        match indexes.document_ids().borrow().find(key) {
            Some(id) if !self.ids.contains(id) => Verdict::Fails,
            Some(_) if self.is_exact => Verdict::Meets,
            _ => Verdict::Unknown,
        }
    }

    /// Number of keys in it.
    pub fn len(&self) -> u64 {
        self.ids.len()
    }

    /// Whether no key is in it.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::extract::Walker;
    use super::super::set::{DocumentSource, IndexDefinition, IndexKind};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Nothing;

    impl DocumentSource for Nothing {
        fn value(&self, _: &[u8]) -> Option<&[u8]> {
            None
        }

        fn scan(&self, _: &[u8], _: usize, _: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
            None
        }
    }

    fn filter() -> impl Strategy<Value = String> {
        let leaf = ("[abp]", 0u8..6, prop::sample::select(vec!["value", "gt", "gte", "lt", "lte"]))
            .prop_map(|(field, number, how)| format!("{{\"field\":\"{field}\",\"{how}\":{number}}}"));
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|list| format!("{{\"and\":[{}]}}", list.join(","))),
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|list| format!("{{\"or\":[{}]}}", list.join(","))),
                inner.prop_map(|one| format!("{{\"not\":{one}}}")),
            ]
        })
    }

    proptest! {
        /// `a` and `b` are indexed, `p` is plain; arrays and absent fields occur.
        #[test]
        fn sets_agree_with_values(
            filters in prop::collection::vec(filter(), 1..4), budget in 1u32..40,
            changes in prop::collection::vec((0u8..30, prop::option::of((0u8..6, 0u8..7, 0u8..6))), 0..80),
        ) {
            let mut set = IndexSet::default();
            for path in ["a", "b"] {
                set.define(IndexDefinition { path: path.to_owned(), kind: IndexKind::Value });
            }
            set.work(&mut Units::unlimited(), &Nothing);
            let mut records: BTreeMap<Vec<u8>, String> = BTreeMap::new();
            for (key, change) in changes {
                let key = vec![key];
                let new = change.map(|(a, b, p)| match b {
                    6 => format!("{{\"a\":[{a},{p}],\"p\":{p}}}"),
                    0 => format!("{{\"p\":{p}}}"),
                    _ => format!("{{\"a\":{a},\"b\":{b},\"p\":{p}}}"),
                });
                let old = records.remove(&key);
                set.apply(&key, old.as_deref().map(str::as_bytes), new.as_deref().map(str::as_bytes));
                records.extend(new.map(|new| (key, new)));
            }
            for json in filters {
                let filter = Filter::parse(&json).unwrap();
                let Some(mut plan) = FilterPlan::new(&filter, &set) else { continue };
                while !plan.step(&set, &mut Units::new(budget)) {}
                let Some(found) = plan.finish(&filter, &set) else { continue };
                let is_plain = json.contains("\"p\"");
                for (key, value) in &records {
                    let expected = filter.matches(value.as_bytes(), &mut Walker::default());
                    let verdict = found.judge(key, &set);
                    prop_assert!(verdict == Verdict::Unknown || (verdict == Verdict::Meets) == expected, "{} {}", json, value);
                    if !is_plain && value.contains("\"a\"") {
                        prop_assert_ne!(verdict, Verdict::Unknown, "{}", json);
                    }
                }
            }
            // Numbers go with their entries.
            for path in ["a", "b"] {
                prop_assert!(set.drop_index(path, "value"));
            }
            prop_assert_eq!(set.document_ids().borrow().len(), 0);
        }
    }
}
