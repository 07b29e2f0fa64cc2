//! Whether what clients saw of registers is linearizable.
//!
//! Every value is written once, so the zones of Gibbons and Korach (Testing Shared Memories) decide it: the operations on one
//! value span a zone, and the zones of one key must not cross.

use std::collections::BTreeMap;

/// One finished operation on a register, or one whose end is not known.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) key: String,
    pub(crate) is_write: bool,
    /// What was written or read; `None` for a read of nothing.
    pub(crate) value: Option<String>,
    pub(crate) begun: u64,
    /// `None` when nobody knows whether it took place.
    pub(crate) ended: Option<u64>,
}

/// The time that the operations on one value span.
struct Zone {
    value: Option<String>,
    write_begun: u64,
    first_end: u64,
    last_begin: u64,
}

/// Says what is wrong with the history, if anything is.
pub(crate) fn check(history: &[Operation]) -> Result<(), String> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys.into_iter()
        .try_for_each(|(key, operations)| check_key(&operations).map_err(|text| format!("{key}: {text}")))
}

fn check_key(operations: &[&Operation]) -> Result<(), String> {
    // Nothing was there before time began.
    let nothing = Zone { write_begun: 0, first_end: 0, last_begin: 0, value: None };
    let mut zones: BTreeMap<Option<String>, Zone> = BTreeMap::from([(None, nothing)]);
    for write in operations.iter().filter(|one| one.is_write) {
        let end = write.ended.unwrap_or(u64::MAX);
        let (value, begun) = (write.value.clone(), write.begun);
        let zone = Zone { write_begun: begun, first_end: end, last_begin: begun, value: value.clone() };
        if zones.insert(value, zone).is_some() {
            return Err("a value was written twice".to_owned());
        }
    }
    for read in operations.iter().filter(|one| !one.is_write) {
        let Some(ended) = read.ended else { continue };
        let Some(zone) = zones.get_mut(&read.value) else {
            return Err(format!("{:?} was read and never written", read.value));
        };
        if ended < zone.write_begun {
            return Err(format!("{:?} was read before it was written", read.value));
        }
        zone.first_end = zone.first_end.min(ended);
        zone.last_begin = zone.last_begin.max(read.begun);
    }
    // A write without an end that nobody has seen may never have taken place.
    zones.retain(|_, zone| zone.first_end < u64::MAX);
    let zones: Vec<Zone> = zones.into_values().collect();
    let is_forward = |zone: &Zone| zone.first_end < zone.last_begin;
    for (at, one) in zones.iter().enumerate() {
        for two in &zones[at + 1..] {
            let (forward, other) = if is_forward(one) { (one, two) } else { (two, one) };
            if !is_forward(forward) {
                continue;
            }
            // Two that go forward must not overlap; one that goes backward must not lie within one that goes forward.
            let (low, high) = (other.first_end.min(other.last_begin), other.first_end.max(other.last_begin));
            let crosses = match is_forward(other) {
                true => forward.first_end < other.last_begin && other.first_end < forward.last_begin,
                false => forward.first_end < low && high < forward.last_begin,
            };
            if crosses {
                return Err(format!("{:?} and {:?} cross in time", forward.value, other.value));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(is_write: bool, value: &str, begun: u64, ended: u64) -> Operation {
        let value = (!value.is_empty()).then(|| value.to_owned());
        Operation { key: "k".to_owned(), is_write, value, begun, ended: Some(ended) }
    }

    #[test]
    fn the_checker_finds_what_is_wrong() {
        let write = |value, begun, ended| operation(true, value, begun, ended);
        let read = |value, begun, ended| operation(false, value, begun, ended);
        assert!(check(&[write("a", 1, 5), read("", 2, 3), read("a", 4, 6)]).is_ok());
        assert!(check(&[write("a", 1, 5), read("", 6, 7)]).is_err(), "a stale read");
        assert!(check(&[write("a", 1, 2), write("b", 3, 4), read("a", 5, 6)]).is_err(), "a lost write");
        assert!(check(&[write("a", 1, 9), read("a", 2, 3), read("", 4, 5)]).is_err(), "time goes back");
        assert!(check(&[write("a", 5, 6), read("a", 1, 2)]).is_err(), "the future");
        assert!(check(&[read("x", 1, 2)]).is_err());
        let lost = Operation { ended: None, ..write("a", 1, 0) };
        assert!(check(&[lost.clone(), read("", 5, 6)]).is_ok());
        assert!(check(&[lost.clone(), read("", 5, 6), read("a", 7, 8)]).is_ok());
        assert!(check(&[lost, read("a", 5, 6), read("", 7, 8)]).is_err());
    }
}
