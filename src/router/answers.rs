//! What the router says of the server and of itself.

use super::facts::{SERVER_VERSION, resident_bytes};
use super::figures::Figures;
use super::{Router, RouterCounters};
use crate::peer::nodes::address_of;
use shards::ids::{GroupId, Millis, NodeNumber, SLOTS};
use shards::meta::{Node, NodeState};
use strand_wire::code::Code;
use strand_wire::json::push_string;
use strand_wire::limits::Limits;
use strand_wire::reply::{push_error, push_unsigned};

/// A flag of a connection: answer NOT_LEADER instead of forwarding.
pub(super) const CONNECTION_REDIRECT: u32 = 1;

/// Version of the protocol.
const PROTOCOL_VERSION: u64 = 1;

/// The mode of a node without peers.
const MODE: &str = "single";

/// What a client may rely on beyond the commands' names.
const CAPABILITIES: &[&str] = &[
    "unordered",
    "redirect",
    "sessions",
    "versions",
    "conditions",
    "ttl",
    "atomic_bulk",
    "scan",
    "local_reads",
    "search",
    "semantic_search",
    "hybrid_search",
    "value_index",
    "text_index",
    "vector_index",
];

/// The mode of a node in a cluster.
const MODE_CLUSTER: &str = "cluster";

/// A node that was not heard for so long counts as down.
const DOWN_AFTER_MS: u64 = 3000;

/// Appends the members of the refusal of a request whose client wants to go to the leader itself.
pub(super) fn write_not_leader(out: &mut Vec<u8>, group: GroupId, address: &str) {
    let text = "another node leads the key's shard; send the request to the address in \"leader\"";
    push_error(out, Code::NotLeader, text, Code::NotLeader.retry());
    push_text(out, ",", "leader", address);
    out.push(b',');
    push_number(out, "shard", u64::from(group.0));
}

/// Appends a node's state for CLUSTER.
fn write_node(out: &mut Vec<u8>, node: &Node, me: NodeNumber, heard: Option<Millis>, now: Millis) {
    let silent_ms = heard.map(|heard| now.0.saturating_sub(heard.0));
    let is_up = node.number == me || silent_ms.is_some_and(|ms| ms < DOWN_AFTER_MS);
    out.push(b'{');
    push_text(out, "", "id", &node.id);
    out.push(b',');
    push_number(out, "number", u64::from(node.number.0));
    push_text(out, ",", "address", &address_of(node));
    out.push(b',');
    push_number(out, "cluster_port", u64::from(node.cluster_port));
    push_text(out, ",", "state", if is_up { "up" } else { "down" });
    let role = match node.state {
        NodeState::Member => "member",
        NodeState::Leaving => "leaving",
        NodeState::Gone => "gone",
    };
    push_text(out, ",", "role", role);
    out.extend_from_slice(if node.is_primary { b",\"primary\":true" } else { b",\"primary\":false" });
    out.extend_from_slice(if node.number == me { b",\"self\":true" } else { b",\"self\":false" });
    out.extend_from_slice(b",\"heard_ms_ago\":");
    match silent_ms {
        _ if node.number == me => out.push(b'0'),
        Some(ms) => push_unsigned(out, ms),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

impl Router {
    fn mode(&self) -> &'static str {
        if self.cluster.is_some() { MODE_CLUSTER } else { MODE }
    }

    /// Appends the members of HELLO's reply.
    pub(super) fn write_hello(&self, out: &mut Vec<u8>) {
        let (facts, topology) = (&self.facts, &self.topology);
        out.extend_from_slice(b"\"result\":{");
        push_number(out, "protocol", PROTOCOL_VERSION);
        push_text(out, ",", "version", SERVER_VERSION);
        push_text(out, ",", "node", &facts.node_id);
        push_text(out, ",", "mode", self.mode());
        out.extend_from_slice(b",\"limits\":{");
        write_limits(out, &self.settings.limits);
        out.extend_from_slice(b"},\"capabilities\":[");
        push_list(out, CAPABILITIES.iter(), |out, name| push_string(out, name));
        out.extend_from_slice(b"],");
        push_number(out, "shards", topology.groups() as u64);
        out.push(b',');
        push_number(out, "slots_total", u64::from(SLOTS));
        out.extend_from_slice(b",\"slots\":[");
        push_list(out, topology.ranges().iter(), |out, range| {
            out.push(b'{');
            push_number(out, "first", u64::from(range.first.0));
            out.push(b',');
            push_number(out, "last", u64::from(range.last.0));
            out.push(b',');
            push_number(out, "group", u64::from(range.group.0));
            if let Some(port) = facts.shard_ports.get(range.group.0 as usize) {
                out.push(b',');
                push_number(out, "port", u64::from(*port));
            }
            out.push(b'}');
        });
        out.extend_from_slice(b"],\"leaders\":[");
        push_list(out, topology.each(), |out, group| self.write_leader(out, group));
        out.extend_from_slice(b"]}");
    }

    fn write_leader(&self, out: &mut Vec<u8>, group: GroupId) {
        out.push(b'{');
        push_number(out, "group", u64::from(group.0));
        let leader = match &self.cluster {
            None => Some((self.facts.node_id.clone(), self.facts.address.clone())),
            Some(cluster) => cluster.nodes.name_of(cluster.view.leader(group).node),
        };
        match leader {
            Some((node, address)) => {
                push_text(out, ",", "node", &node);
                push_text(out, ",", "address", &address);
            }
            None => out.extend_from_slice(b",\"node\":null,\"address\":null"),
        }
        out.push(b'}');
    }

    /// Appends the members of CLUSTER's result that tell of nodes.
    pub(super) fn write_nodes(&self, out: &mut Vec<u8>, now: Millis) {
        push_text(out, "", "mode", self.mode());
        let Some(cluster) = &self.cluster else {
            out.extend_from_slice(b",\"nodes\":[{");
            push_text(out, "", "id", &self.facts.node_id);
            push_text(out, ",", "address", &self.facts.address);
            return out.extend_from_slice(b",\"state\":\"up\",\"self\":true}]");
        };
        let meta = cluster.nodes.meta();
        out.push(b',');
        push_number(out, "meta_version", meta.version);
        out.push(b',');
        push_number(out, "replicas_wanted", u64::from(meta.replicas));
        out.extend_from_slice(b",\"nodes\":[");
        let present = meta.nodes.iter().filter(|node| node.state != NodeState::Gone);
        push_list(out, present, |out, node| {
            write_node(out, node, cluster.view.me(), cluster.nodes.last_heard(node.number), now);
        });
        out.push(b']');
    }

    /// The nodes' ids by number, for CLUSTER.
    pub(super) fn node_names(&self) -> Vec<(NodeNumber, String)> {
        let Some(cluster) = &self.cluster else { return vec![(NodeNumber(1), self.facts.node_id.clone())] };
        let meta = cluster.nodes.meta();
        meta.nodes.iter().map(|node| (node.number, node.id.clone())).collect()
    }

    /// Who leads each group, for CLUSTER.
    pub(super) fn leaders(&self) -> Vec<NodeNumber> {
        let leader = |group| match &self.cluster {
            None => NodeNumber(1),
            Some(cluster) => cluster.view.leader(group).node,
        };
        self.topology.each().map(leader).collect()
    }

    /// The members of INFO's result that are known without the shards.
    pub(super) fn info_head(&self, now: Millis) -> Vec<u8> {
        let mut out = Vec::new();
        push_text(&mut out, "", "version", SERVER_VERSION);
        out.push(b',');
        push_number(&mut out, "uptime_s", now.0.saturating_sub(self.facts.started.0) / 1000);
        push_text(&mut out, ",", "mode", self.mode());
        push_text(&mut out, ",", "node", &self.facts.node_id);
        push_text(&mut out, ",", "address", &self.facts.address);
        out.push(b',');
        push_number(&mut out, "pid", u64::from(std::process::id()));
        out.extend_from_slice(b",\"memory\":{\"resident_bytes\":");
        match resident_bytes() {
            Some(bytes) => push_unsigned(&mut out, bytes),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b"},\"router\":{");
        self.write_counters(&mut out);
        out.push(b'}');
        // A poisoned lock only means that its writer panicked between two texts.
        let extra = self.facts.extra.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !extra.is_empty() {
            out.push(b',');
            out.extend_from_slice(extra.as_bytes());
        }
        out
    }

    fn write_counters(&self, out: &mut Vec<u8>) {
        let Figures { counters, gathers_now, gathers_bytes, waiting, outstanding } = self.figures_of_all();
        let RouterCounters {
            sent,
            answered_alone,
            refused,
            gathers,
            calls,
            gather_timeouts,
            came_back,
            leader_changes,
            no_quorum,
            redirects,
        } = counters;
        let numbers = [
            ("routers", self.facts.routers.routers() as u64),
            ("sent", sent),
            ("answered_without_shard", answered_alone),
            ("refused", refused),
            ("gathers", gathers),
            ("calls", calls),
            ("gather_timeouts", gather_timeouts),
            ("gathers_now", gathers_now),
            ("gathers_bytes", gathers_bytes),
            ("waiting", waiting),
            ("came_back", came_back),
            ("leader_changes", leader_changes),
            ("no_quorum", no_quorum),
            ("redirects", redirects),
        ];
        push_list(out, numbers.iter(), |out, (name, number)| push_number(out, name, *number));
        out.extend_from_slice(b",\"outstanding\":[");
        push_list(out, outstanding.iter(), |out, count| push_unsigned(out, *count));
        out.push(b']');
    }
}

fn write_limits(out: &mut Vec<u8>, limits: &Limits) {
    // Taken apart so that a new limit is not forgotten here.
    let Limits {
        line_bytes_max,
        key_bytes_max,
        value_bytes_max,
        depth_max,
        batch_items_max,
        in_flight_max,
        connections_max,
        id_bytes_max,
        query_bytes_max,
        window_max,
        page_items_max,
        timeout_ms_max,
        filter_nodes_max,
        paths_max,
        dimensions_max,
    } = limits;
    let numbers = [
        ("line_bytes_max", *line_bytes_max as u64),
        ("key_bytes_max", *key_bytes_max as u64),
        ("value_bytes_max", *value_bytes_max as u64),
        ("depth_max", u64::from(*depth_max)),
        ("batch_items_max", *batch_items_max as u64),
        ("in_flight_max", *in_flight_max as u64),
        ("connections_max", *connections_max as u64),
        ("id_bytes_max", *id_bytes_max as u64),
        ("query_bytes_max", *query_bytes_max as u64),
        ("window_max", *window_max),
        ("page_items_max", *page_items_max),
        ("timeout_ms_max", u64::from(*timeout_ms_max)),
        ("filter_nodes_max", *filter_nodes_max as u64),
        ("paths_max", *paths_max as u64),
        ("dimensions_max", *dimensions_max as u64),
    ];
    push_list(out, numbers.iter(), |out, (name, number)| push_number(out, name, *number));
}

fn push_list<T>(out: &mut Vec<u8>, list: impl Iterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    for (number, item) in list.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

fn push_number(out: &mut Vec<u8>, name: &str, number: u64) {
    push_string(out, name);
    out.push(b':');
    push_unsigned(out, number);
}

fn push_text(out: &mut Vec<u8>, before: &str, name: &str, text: &str) {
    out.extend_from_slice(before.as_bytes());
    push_string(out, name);
    out.push(b':');
    push_string(out, text);
}
