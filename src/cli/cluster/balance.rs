//! How even a cluster is: replicas and leaders of each node, counted from what CLUSTER tells.

use super::{Progress, array, nodes};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is still uneven. Even means within one, over the nodes that are to hold replicas; leaders are counted over those that
/// are up, since only they can lead.
pub(super) fn progress(status: &Value) -> Progress {
    let members = || nodes(status).filter(|node| node["role"] != "leaving" && node["role"] != "gone");
    let ids = |only_up: bool| -> BTreeMap<&str, usize> {
        let wanted = members().filter(|node| !only_up || node["state"] == "up");
        wanted.filter_map(|node| Some((node["id"].as_str()?, 0))).collect()
    };
    let (mut held, mut led) = (ids(false), ids(true));
    let (mut leaderless, mut learners, mut strays) = (0, 0, 0);
    for group in array(&status["groups"]) {
        match group["leader"].as_str().map(|leader| led.get_mut(leader)) {
            Some(Some(count)) => *count += 1,
            Some(None) => strays += 1,
            None => leaderless += 1,
        }
        for replica in array(&group["replicas"]) {
            learners += usize::from(replica["role"] == "learner");
            match replica["node"].as_str().and_then(|node| held.get_mut(node)) {
                Some(count) => *count += 1,
                None => strays += 1,
            }
        }
    }
    let text = format!(
        "replicas {}, leaders {}{}",
        counts(&held),
        counts(&led),
        match (leaderless, learners) {
            (0, 0) => String::new(),
            (0, _) => format!("; {learners} replicas are being filled"),
            _ => format!("; {leaderless} groups have no leader"),
        }
    );
    let is_done = leaderless + learners + strays == 0 && is_even(&held) && is_even(&led);
    Progress { text, is_done }
}

fn is_even(counts: &BTreeMap<&str, usize>) -> bool {
    let (least, most) = (counts.values().min(), counts.values().max());
    most.zip(least).is_some_and(|(most, least)| most - least <= 1)
}

fn counts(of: &BTreeMap<&str, usize>) -> String {
    let each = of.iter().map(|(node, count)| format!("{node} {count}"));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(leaders: [Option<&str>; 4], state_of_c: &str, role: &str) -> Value {
        let replicas = json!([{"node": "a"}, {"node": "b"}, {"node": "c", "role": role}]);
        let group = |leader: &Option<&str>| json!({ "leader": leader, "replicas": replicas });
        json!({
            "nodes": [
                {"id": "a", "state": "up"}, {"id": "b", "state": "up"}, {"id": "c", "state": state_of_c},
            ],
            "groups": leaders.iter().map(group).collect::<Vec<_>>(),
        })
    }

    fn check(leaders: [Option<&str>; 4], state_of_c: &str, role: &str, is_done: bool) {
        let found = progress(&status(leaders, state_of_c, role));
        assert_eq!(found.is_done, is_done, "{}", found.text);
    }

    #[test]
    fn even_is_within_one_and_settled() {
        let (a, b, c) = (Some("a"), Some("b"), Some("c"));
        check([a, b, c, a], "up", "voter", true);
        check([a, b, a, a], "up", "voter", false);
        check([a, b, a, b], "down", "voter", true);
        check([a, b, a, b], "up", "voter", false);
        check([a, b, c, None], "up", "voter", false);
        check([a, b, c, a], "up", "learner", false);
        check([a, b, c, c], "down", "voter", false);
    }
}
