//! What two settings owe each other; single values are checked by their range.
//!
//! Each rule tells both keys, their values and origins, and what to change.

use super::kinds::{CoreSet, RouterMode, WalSync};
use super::knobs::Tuning;
use super::layers::Origin;
use super::peers;
use shards::command::encode;
use shards::log;
use shards::shard::command_bytes_max;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Adds a problem for each rule that the configuration breaks.
pub fn check(tuning: &Tuning, origins: &BTreeMap<&'static str, Origin>, problems: &mut Vec<String>) {
    let mut rules = Rules { origins, problems };
    sizes(tuning, &mut rules);
    exposure(tuning, &mut rules);
    cores(tuning, &mut rules);
    cluster(tuning, &mut rules);
}

struct Rules<'a> {
    origins: &'a BTreeMap<&'static str, Origin>,
    problems: &'a mut Vec<String>,
}

impl Rules<'_> {
    /// Tells the problem `told` unless `holds`; `keys` are the settings involved.
    fn demand(&mut self, holds: bool, keys: &[&str], told: impl FnOnce() -> String) {
        if holds {
            return;
        }
        let origins: Vec<String> =
            keys.iter().filter_map(|key| Some(format!("{key}: {}", self.origins.get(*key)?))).collect();
        self.problems.push(format!("{} ({})", told(), origins.join(", ")));
    }
}

fn sizes(tuning: &Tuning, rules: &mut Rules<'_>) {
    let (limits, wal) = (&tuning.limits, &tuning.wal);
    let segment_bytes = u64::from(wal.segment_mib) << 20;
    let half_segment_bytes = segment_bytes / 2;
    let line_told = line_beyond_segment(tuning, segment_bytes);
    rules.demand(
        line_told.is_none(),
        &["limits.line_bytes_max", "limits.batch_items_max", "wal.segment_mib"],
        || format!("{}: lower the first or raise wal.segment_mib.", line_told.unwrap_or_default()),
    );
    rules.demand(
        limits.value_bytes_max < limits.line_bytes_max,
        &["limits.value_bytes_max", "limits.line_bytes_max"],
        || {
            format!(
                "limits.value_bytes_max = {} does not fit a line of limits.line_bytes_max = {}: lower the first or raise \
                 the second.",
                limits.value_bytes_max, limits.line_bytes_max
            )
        },
    );
    let unfinished_bytes_max = u64::from(limits.unfinished_input_mib_max) << 20;
    rules.demand(
        u64::from(limits.line_bytes_max) <= unfinished_bytes_max,
        &["limits.line_bytes_max", "limits.unfinished_input_mib_max"],
        || {
            format!(
                "limits.line_bytes_max = {} does not fit limits.unfinished_input_mib_max = {}: lower the first or raise the \
                 second.",
                limits.line_bytes_max, limits.unfinished_input_mib_max
            )
        },
    );
    rules.demand(
        u64::from(wal.entry_bytes_max) <= half_segment_bytes,
        &["wal.entry_bytes_max", "wal.segment_mib"],
        || {
            format!(
                "wal.entry_bytes_max = {} is more than half a log segment ({half_segment_bytes} bytes): lower it or raise \
                 wal.segment_mib.",
                wal.entry_bytes_max
            )
        },
    );
}

/// Why a log with segments of this size cannot hold every command that a line may bring, if it cannot. A data directory
/// keeps the size that it was made with, so it is asked for each.
pub fn line_beyond_segment(tuning: &Tuning, segment_bytes: u64) -> Option<String> {
    let limits = &tuning.limits;
    let (line, items) = (limits.line_bytes_max as usize, limits.batch_items_max as usize);
    let needed = encode::record_bytes_max(line, items);
    let held = command_bytes_max(log::payload_bytes_max(segment_bytes));
    (needed > held).then(|| {
        format!(
            "limits.line_bytes_max = {line} with limits.batch_items_max = {items} makes commands of up to {needed} bytes, \
             and half a log segment of {} MiB has room for {held}",
            segment_bytes >> 20
        )
    })
}

fn exposure(tuning: &Tuning, rules: &mut Rules<'_>) {
    let server = &tuning.server;
    rules.demand(!server.host.is_empty(), &["server.host"], || {
        "server.host is empty: give an address.".to_owned()
    });
    rules.demand(
        server.insecure || server.host.is_empty() || is_loopback(&server.host),
        &["server.host", "server.insecure"],
        || {
            format!(
                "server.host = \"{}\" is reachable from other machines and this server asks nobody for a password: use \
                 127.0.0.1, or give --insecure if the network in front of it is trusted.",
                server.host
            )
        },
    );
    rules.demand(valid_id(&server.id), &["server.id"], || {
        format!(
            "server.id = {:?} must be 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.'.",
            server.id
        )
    });
}

fn cores(tuning: &Tuning, rules: &mut Rules<'_>) {
    let cores = &tuning.cores;
    rules.demand(
        tuning.server.shards == 0
            || cores.shard.is_empty()
            || cores.shard.len() == tuning.server.shards as usize,
        &["cores.shard", "server.shards"],
        || {
            format!(
                "cores.shard lists {} cores for server.shards = {}: list one core for each shard.",
                cores.shard.len(),
                tuning.server.shards
            )
        },
    );
    rules.demand(
        cores.router.is_empty() || cores.router.len() == tuning.router.threads as usize,
        &["cores.router", "router.threads"],
        || {
            format!(
                "cores.router lists {} cores for router.threads = {}: list one core for each thread.",
                cores.router.len(),
                tuning.router.threads
            )
        },
    );
    rules.demand(
        tuning.router.mode == RouterMode::Thread || (cores.router.is_empty() && tuning.router.threads == 1),
        &["router.mode", "router.threads", "cores.router"],
        || {
            "router.mode = \"inline\" has no router threads: leave router.threads and cores.router out, or choose \
             \"thread\"."
                .to_owned()
        },
    );
    if let CoreSet::Listed(allowed) = &cores.allowed {
        for (key, list) in [("cores.shard", &cores.shard), ("cores.router", &cores.router)] {
            let outside: Vec<&u32> = list.iter().filter(|core| !allowed.contains(core)).collect();
            rules.demand(outside.is_empty(), &[key, "cores.allowed"], || {
                format!("{key} names cores {outside:?}, which cores.allowed does not allow.")
            });
        }
    }
}

fn cluster(tuning: &Tuning, rules: &mut Rules<'_>) {
    let cluster = &tuning.cluster;
    if cluster.peers.is_empty() && cluster.port == 0 {
        rules.demand(!cluster.primary, &["cluster.primary"], || {
            "cluster.primary prefers one of several nodes, and there is one: leave it out or give cluster.peers."
                .to_owned()
        });
        return;
    }
    rules.demand(
        tuning.wal.sync == WalSync::Always,
        &["wal.sync", "cluster.peers"],
        || {
            format!(
                "wal.sync = \"{}\" is not allowed in a cluster: a replica may not forget what it acknowledged. Use \"always\".",
                tuning.wal.sync
            )
        },
    );
    rules.demand(
        cluster.port != 0 || tuning.server.port <= u16::MAX - peers::CLUSTER_PORT_OFFSET,
        &["cluster.port", "server.port"],
        || {
            format!(
                "server.port = {} plus {} is no port: give cluster.port.",
                tuning.server.port,
                peers::CLUSTER_PORT_OFFSET
            )
        },
    );
    if cluster.peers.is_empty() {
        return;
    }
    rules.demand(
        origin_of(rules.origins, "server.id") != Origin::Default,
        &["server.id", "cluster.peers"],
        || "cluster.peers needs a name for this node: give --id.".to_owned(),
    );
    let parsed: Vec<_> = cluster.peers.iter().map(|text| peers::parse(text)).collect();
    for error in parsed.iter().filter_map(|peer| peer.as_ref().err()) {
        rules.demand(false, &["cluster.peers"], || error.to_string());
    }
    let same_id = parsed.iter().flatten().any(|peer| peer.id.as_deref() == Some(&tuning.server.id));
    rules.demand(!same_id, &["cluster.peers", "server.id"], || {
        format!("cluster.peers lists this node itself, {}: list the others only.", tuning.server.id)
    });
}

fn origin_of(origins: &BTreeMap<&'static str, Origin>, key: &str) -> Origin {
    origins.get(key).cloned().unwrap_or(Origin::Default)
}

/// Whether only this machine reaches the address. A name other than `localhost` is not looked up here, so it counts as
/// reachable.
fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether the name is safe as a directory name and in a peer list.
pub fn valid_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::super::layers::{FlagSetting, Sources, load};

    /// Loads these settings and checks that the one problem mentions `told`, or that there is none.
    fn check(settings: &[(&str, &str)], told: Option<&str>) {
        let flag = |(key, text): &(&str, &str)| FlagSetting {
            key: (*key).to_owned(),
            text: (*text).to_owned(),
            flag: "--set".to_owned(),
        };
        let sources = Sources { flags: settings.iter().map(flag).collect(), ..Sources::default() };
        match (load(&sources), told) {
            (Ok(_), None) => {}
            (Err(problems), Some(told)) => {
                assert_eq!(problems.0.len(), 1, "{settings:?}: {problems}");
                assert!(problems.0[0].contains(told), "{settings:?}: {problems}");
            }
            (Ok(_), Some(told)) => panic!("{settings:?} passes, expected: {told}"),
            (Err(problems), None) => panic!("{settings:?}: {problems}"),
        }
    }

    #[test]
    fn a_line_fits_half_a_segment() {
        check(&[("wal.segment_mib", "16")], Some("half a log segment"));
        // What the log adds of its own counts: 32 MiB would have room for the line and not for its frame.
        check(&[("wal.segment_mib", "32")], Some("half a log segment"));
        check(&[("wal.segment_mib", "34")], None);
        check(&[("wal.segment_mib", "34"), ("limits.batch_items_max", "1000000")], Some("batch_items_max"));
        check(&[("limits.line_bytes_max", "8388608")], Some("does not fit a line"));
        let long = ("limits.line_bytes_max", "33554432");
        check(
            &[long, ("wal.segment_mib", "72"), ("limits.unfinished_input_mib_max", "16")],
            Some("unfinished_input_mib_max"),
        );
    }

    #[test]
    fn an_open_address_needs_a_word() {
        for host in ["0.0.0.0", "192.168.1.7", "::", "db.example"] {
            check(&[("server.host", host)], Some("--insecure"));
            check(&[("server.host", host), ("server.insecure", "true")], None);
        }
        for host in ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"] {
            check(&[("server.host", host)], None);
        }
        for id in ["", "a/b", "..", "a b"] {
            check(&[("server.id", id)], Some("server.id"));
        }
    }

    #[test]
    fn core_lists_agree_with_counts() {
        check(&[("cores.shard", "0,1"), ("server.shards", "3")], Some("one core for each shard"));
        check(&[("cores.shard", "0,1")], None);
        check(&[("cores.router", "0,1")], Some("one core for each thread"));
        check(&[("cores.allowed", "0-1"), ("cores.router", "2")], Some("does not allow"));
        let inline = ("router.mode", "inline");
        check(&[inline], None);
        check(&[inline, ("cores.router", "0")], Some("no router threads"));
        check(&[inline, ("router.threads", "2")], Some("no router threads"));
        check(&[("router.mode", "threads")], Some("router.mode"));
    }

    #[test]
    fn peers_need_an_id_and_full_durability() {
        let peers = ("cluster.peers", "127.0.0.1:8001");
        let id = ("server.id", "node1");
        check(&[peers], Some("give --id"));
        check(&[peers, id], None);
        check(&[peers, id, ("wal.sync", "off")], Some("\"always\""));
        check(&[peers, id, ("server.port", "65000")], Some("cluster.port"));
        check(&[("cluster.peers", "node1@a:1"), id], Some("this node itself"));
        check(&[("cluster.peers", "a"), id], Some("HOST:PORT"));
        check(&[("cluster.port", "9000")], None);
        check(&[("cluster.port", "9000"), ("wal.sync", "off")], Some("in a cluster"));
        check(&[("cluster.primary", "true")], Some("there is one"));
    }
}
