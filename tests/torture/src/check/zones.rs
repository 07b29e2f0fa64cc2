//! Linearizability of a register whose values are written once each, by zones: sorting instead of search.
//!
//! (Gibbons and Korach, "Testing shared memories", 1997.) A value's write and its reads are one cluster. If some operation of
//! it returned before another was called, the value was certainly there between: a forward zone. Else there is a moment at
//! which all of them ran at once, and the value may have been there only then: a backward zone. The register is linearizable
//! if no two forward zones overlap, no backward zone lies inside a forward one, and nobody read what was not yet written.

use super::{Action, Operation, Value};
use std::collections::BTreeMap;

#[derive(Debug)]
struct Cluster {
    /// When the write was called; 0 for the beginning.
    written: u64,
    first_return: u64,
    last_call: u64,
    first_read_return: u64,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    low: u64,
    high: u64,
    value: Value,
}

/// Judges a history of [`Action::Write`] and [`Action::Read`]; other actions are refused. The register is absent at first, and
/// nobody writes "absent".
///
/// # Errors
/// Why it is none.
pub fn judge(history: &[Operation]) -> Result<(), String> {
    let clusters = clusters(history)?;
    let mut forward = Vec::new();
    let mut backward = Vec::new();
    for (value, cluster) in &clusters {
        if cluster.first_read_return < cluster.written {
            return Err(format!("{value:?} was read before it was written"));
        }
        let (low, high) = (cluster.first_return, cluster.last_call);
        if low < high {
            forward.push(Zone { low, high, value: *value });
        } else {
            backward.push(Zone { low: high, high: low, value: *value });
        }
    }
    forward.sort_unstable_by_key(|zone| zone.low);
    for pair in forward.windows(2) {
        if pair[1].low < pair[0].high {
            let (one, other) = (pair[0].value, pair[1].value);
            return Err(format!("{one:?} was there both before and after {other:?}, or both at once"));
        }
    }
    for zone in backward {
        let place = forward.partition_point(|other| other.low < zone.low);
        let Some(around) = place.checked_sub(1).map(|place| forward[place]) else { continue };
        if zone.high < around.high {
            return Err(format!("{:?} came and went while {:?} was there", zone.value, around.value));
        }
    }
    Ok(())
}

fn clusters(history: &[Operation]) -> Result<BTreeMap<Value, Cluster>, String> {
    let beginning = Cluster { written: 0, first_return: 0, last_call: 0, first_read_return: u64::MAX };
    let mut clusters = BTreeMap::from([(None, beginning)]);
    for operation in history {
        let Action::Write(value @ Some(_)) = operation.action else { continue };
        let returned = operation.returned.unwrap_or(u64::MAX);
        let written = operation.called;
        let cluster =
            Cluster { written, first_return: returned, last_call: written, first_read_return: u64::MAX };
        if clusters.insert(value, cluster).is_some() {
            return Err(format!("{value:?} was written twice: the harness is wrong"));
        }
    }
    for operation in history {
        match (operation.action, operation.returned) {
            (Action::Write(Some(_)), _) | (Action::Read(_), None) => {}
            (Action::Read(value), Some(returned)) => {
                let Some(cluster) = clusters.get_mut(&value) else {
                    return Err(format!("{value:?} was read and nobody wrote it"));
                };
                cluster.first_return = cluster.first_return.min(returned);
                cluster.first_read_return = cluster.first_read_return.min(returned);
                cluster.last_call = cluster.last_call.max(operation.called);
            }
            (action, _) => return Err(format!("{action:?} is not judged by zones: the harness is wrong")),
        }
    }
    // A write of unknown outcome that nobody saw may never have been; it gets a zone that ends never and hurts nobody.
    Ok(clusters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{self, Verdict};
    use strand_sim::rng::Rng;

    fn operation(called: u64, returned: u64, action: Action) -> Operation {
        Operation { called, returned: (returned > 0).then_some(returned), action }
    }

    #[test]
    fn stale_and_lost_values_are_seen() {
        use Action::{Read, Write};
        let one = operation(1, 2, Write(Some(1)));
        assert!(judge(&[one, operation(3, 4, Read(Some(1)))]).is_ok());
        assert!(judge(&[one, operation(3, 4, Read(None))]).is_err(), "lost");
        assert!(judge(&[one, operation(3, 4, Read(Some(7)))]).is_err(), "from nowhere");
        let two = operation(3, 4, Write(Some(2)));
        assert!(judge(&[one, two, operation(5, 6, Read(Some(1)))]).is_err(), "stale");
        assert!(judge(&[operation(5, 6, Write(Some(1))), operation(1, 2, Read(Some(1)))]).is_err(), "early");
        assert!(judge(&[operation(1, 0, Write(Some(1))), operation(3, 4, Read(None))]).is_ok(), "unknown");
    }

    /// The two judges agree on thousands of small histories, most of them wrong.
    #[test]
    fn zones_agree_with_the_search() {
        let (mut linear, mut broken) = (0, 0);
        for seed in 0..20_000 {
            let mut rng = Rng::new(seed);
            let mut times: Vec<u64> = (1..=16).collect();
            for place in (1..times.len()).rev() {
                times.swap(place, rng.place(place + 1));
            }
            let writes = rng.between(1, 4);
            let count = rng.between(2, 8);
            let history: Vec<Operation> = (0..count)
                .map(|number| {
                    let pair = &times[number as usize * 2..][..2];
                    let (called, returned) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                    let is_unknown = number < writes && rng.chance(200);
                    let action = if number < writes {
                        Action::Write(Some(number + 1))
                    } else {
                        Action::Read(Some(rng.below(writes + 1)).filter(|value| *value > 0))
                    };
                    operation(called, if is_unknown { 0 } else { returned }, action)
                })
                .collect();
            let searched = check::judge(&history, None) == Verdict::Linear;
            let zoned = judge(&history);
            assert_eq!(searched, zoned.is_ok(), "seed {seed}: {zoned:?}\n{history:#?}");
            if searched { linear += 1 } else { broken += 1 }
        }
        assert!(linear > 1000 && broken > 1000, "both kinds: {linear} {broken}");
    }
}
