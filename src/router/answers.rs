//! What the router says of the server and of itself.

use super::facts::{SERVER_VERSION, ServerFacts, resident_bytes};
use super::{Router, RouterCounters};
use shards::gather::topology::Topology;
use shards::ids::{Millis, SLOTS};
use strand_wire::json::push_string;
use strand_wire::limits::Limits;
use strand_wire::reply::push_unsigned;

/// A flag of a connection: answer NOT_LEADER instead of forwarding.
pub(super) const CONNECTION_REDIRECT: u32 = 1;

/// Version of the protocol.
const PROTOCOL_VERSION: u64 = 1;

/// The mode of a node without peers.
const MODE: &str = "single";

/// What a client may rely on beyond the commands' names.
const CAPABILITIES: &[&str] = &["unordered", "sessions", "versions", "conditions", "atomic_bulk", "scan"];

/// Appends the members of HELLO's reply.
pub(super) fn write_hello(out: &mut Vec<u8>, facts: &ServerFacts, topology: &Topology, limits: &Limits) {
    out.extend_from_slice(b"\"result\":{");
    push_number(out, "protocol", PROTOCOL_VERSION);
    push_text(out, ",", "version", SERVER_VERSION);
    push_text(out, ",", "node", &facts.node_id);
    push_text(out, ",", "mode", MODE);
    out.extend_from_slice(b",\"limits\":{");
    write_limits(out, limits);
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
        out.push(b'}');
    });
    out.extend_from_slice(b"],\"leaders\":[");
    push_list(out, topology.each(), |out, group| {
        out.push(b'{');
        push_number(out, "group", u64::from(group.0));
        push_text(out, ",", "node", &facts.node_id);
        push_text(out, ",", "address", &facts.address);
        out.push(b'}');
    });
    out.extend_from_slice(b"]}");
}

/// Appends the members of CLUSTER's result that tell of nodes.
pub(super) fn write_nodes(out: &mut Vec<u8>, facts: &ServerFacts) {
    push_text(out, "", "mode", MODE);
    out.extend_from_slice(b",\"nodes\":[{");
    push_text(out, "", "id", &facts.node_id);
    push_text(out, ",", "address", &facts.address);
    out.extend_from_slice(b",\"state\":\"up\",\"self\":true}]");
}

impl Router {
    /// The members of INFO's result that are known without the shards.
    pub(super) fn info_head(&self, now: Millis) -> Vec<u8> {
        let mut out = Vec::new();
        push_text(&mut out, "", "version", SERVER_VERSION);
        out.push(b',');
        push_number(&mut out, "uptime_s", now.0.saturating_sub(self.facts.started.0) / 1000);
        push_text(&mut out, ",", "mode", MODE);
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
        let RouterCounters { sent, answered_alone, refused, gathers, calls, gather_timeouts } = self.counters;
        let waiting: usize = self.waiting.iter().map(std::collections::VecDeque::len).sum();
        let numbers = [
            ("sent", sent),
            ("answered_without_shard", answered_alone),
            ("refused", refused),
            ("gathers", gathers),
            ("calls", calls),
            ("gather_timeouts", gather_timeouts),
            ("gathers_now", self.gathers.count() as u64),
            ("gathers_bytes", self.gathers.held_bytes() as u64),
            ("calls_waiting", waiting as u64),
        ];
        push_list(out, numbers.iter(), |out, (name, number)| push_number(out, name, *number));
        out.extend_from_slice(b",\"outstanding\":[");
        push_list(out, self.links.iter(), |out, link| push_unsigned(out, link.outstanding() as u64));
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
