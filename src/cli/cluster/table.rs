//! CLUSTER's result as two tables: the nodes with what they hold, and the groups with their replicas.
//!
//! Shows what the server told and computes only sums. Text from the server is drawn without control characters.

use super::{array, nodes};
use crate::cli::cells::{number, right, table, text, tinted};
use comfy_table::{Cell, Color, Table};
use serde_json::Value;
use std::fmt::Write as _;

/// Draws both tables.
pub(super) fn draw(status: &Value, coloured: bool) -> String {
    let groups = array(&status["groups"]);
    let mut out = String::new();
    let _ = writeln!(out, "{}", node_table(status, groups, coloured));
    let _ = writeln!(out, "{}", group_table(groups, coloured));
    let replicas = || groups.iter().flat_map(|group| array(&group["replicas"]));
    let silent = replicas().filter(|replica| replica["active"] == false).count();
    let learners = replicas().filter(|replica| replica["role"] == "learner").count();
    if learners > 0 {
        let _ = writeln!(out, "{learners} replicas are being filled");
    }
    if silent > 0 {
        let _ = writeln!(out, "{silent} replicas do not answer");
    }
    let leaderless = groups.iter().filter(|group| group["leader"].is_null()).count();
    if leaderless > 0 {
        let _ = writeln!(out, "{leaderless} of {} groups have no leader", groups.len());
    }
    out
}

fn node_table(status: &Value, groups: &[Value], coloured: bool) -> Table {
    let mut table = table(&["node", "address", "state", "role", "last heard", "leads", "replicas"], coloured);
    for node in nodes(status) {
        let id = &node["id"];
        let leads = groups.iter().filter(|group| group["leader"] == *id).count();
        let replicas = groups.iter().flat_map(|group| array(&group["replicas"]));
        let held = replicas.filter(|replica| replica["node"] == *id).count();
        let state = text(&node["state"]);
        let colour = if state == "up" { Color::Green } else { Color::Red };
        let heard = match (&node["self"], node["heard_ms_ago"].as_u64()) {
            (Value::Bool(true), _) => "this node".to_owned(),
            (_, Some(ms)) => format!("{ms} ms ago"),
            (_, None) => "never".to_owned(),
        };
        let role = if node["primary"] == true { "primary".to_owned() } else { text(&node["role"]) };
        table.add_row([
            Cell::new(text(id)),
            Cell::new(text(&node["address"])),
            tinted(Cell::new(state), coloured, colour),
            Cell::new(role),
            Cell::new(heard),
            number(leads),
            number(held),
        ]);
    }
    table
}

fn group_table(groups: &[Value], coloured: bool) -> Table {
    let mut table = table(&["group", "leader", "term", "committed", "applied", "replicas (lag)"], coloured);
    for group in groups {
        let replicas = array(&group["replicas"]).iter().map(|replica| {
            let learner = if replica["role"] == "learner" { " learner" } else { "" };
            let silent = if replica["active"] == false { " silent" } else { "" };
            format!("{} ({}{learner}{silent})", text(&replica["node"]), text(&replica["lag"]))
        });
        let leader = match &group["leader"] {
            Value::Null => tinted(Cell::new("none"), coloured, Color::Red),
            leader => Cell::new(text(leader)),
        };
        table.add_row([
            right(&group["group"]),
            leader,
            right(&group["term"]),
            right(&group["commit_index"]),
            right(&group["applied_index"]),
            Cell::new(replicas.collect::<Vec<_>>().join(", ")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_and_groups_are_counted_and_missing_leaders_told() {
        let replicas = json!([{"node": "a", "role": "voter", "lag": 0}, {"node": "b\u{1b}", "role": "learner", "lag": 7, "active": false}]);
        let status = json!({
            "nodes": [
                {"id": "a", "address": "h:1", "state": "up", "role": "member", "self": true, "primary": true},
                {"id": "b", "address": "h:2", "state": "down", "role": "member", "heard_ms_ago": 4000},
            ],
            "groups": [
                {"group": 0, "leader": "a", "term": 3, "commit_index": 9, "applied_index": 9, "replicas": replicas},
                {"group": 1, "leader": null},
            ],
        });
        let drawn = draw(&status, false);
        for expected in [
            "this node",
            "primary",
            "4000 ms ago",
            "b (7 learner silent)",
            "none",
            "1 replicas do not answer",
        ] {
            assert!(drawn.contains(expected), "{expected} is missing:\n{drawn}");
        }
        assert!(drawn.ends_with("1 of 2 groups have no leader\n"));
        assert!(!drawn.contains('\u{1b}'), "neither colours nor control characters");
        assert!(draw(&status, true).contains('\u{1b}'));
    }
}
