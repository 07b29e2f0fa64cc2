//! `strand top`: what a node does, shard by shard, again and again.
//!
//! Asks INFO and draws the difference between two answers; everything shown is what the server told. Through the client's public
//! API only.

use super::cells::{right, table, tinted};
use crate::fatal::Fatal;
use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, Table};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};
use strand_client::{Client, ClientOptions};

const EXAMPLES: &str = "\
Examples:
  strand top                            the node on 127.0.0.1:8000, every second; Ctrl-C ends it
  strand top -a 10.0.0.1:8000 -i 5      another node, every five seconds
  strand top --count 1                  one look, for scripts
  strand top --json --count 1           the same as one JSON object a line

Columns: requests and writes a second; syncs of the log a second and how long they took (p50, p99); the turns of the shard's
thread, whose end a request waits for; and what waits: log batches in flight, entries to apply, keys to index.";

/// `strand top`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Address of the node.
    #[arg(short, long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    address: String,
    /// Token to present, for servers that ask for one.
    #[arg(long, env = "STRAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// How many times to look; without end if left out.
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// Print one JSON object a look: INFO's, with the rates in `rates`.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the node does not answer.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let failed = |error: strand_client::Error| Fatal::Failed(format!("The node did not answer: {error}."));
    let options = ClientOptions { token: arguments.token.clone(), ..ClientOptions::default() };
    let mut client = Client::connect_with(&[&arguments.address], options).map_err(failed)?;
    let mut before = Look { at: Instant::now(), info: client.info().map_err(failed)? };
    let is_drawn = io::stdout().is_terminal() && !arguments.json;
    for looked in 1.. {
        std::thread::sleep(Duration::from_secs(arguments.interval));
        let now = Look { at: Instant::now(), info: client.info().map_err(failed)? };
        let rates = Rates::between(&before, &now);
        if arguments.json {
            let mut info = now.info.clone();
            info["rates"] = rates.json();
            super::print(&format!("{info}\n"))?;
        } else {
            // Over what was drawn before.
            let clear = if is_drawn { "\x1b[H\x1b[J" } else { "" };
            super::print(&format!("{clear}{}", draw(&now.info, &rates, is_drawn)))?;
        }
        if arguments.count.is_some_and(|count| looked >= count) {
            break;
        }
        before = now;
    }
    Ok(())
}

/// One answer of INFO.
struct Look {
    at: Instant,
    info: Value,
}

/// What happened between two looks, a second, by shard.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rates {
    shards: Vec<ShardRates>,
}

/// What a shard did, a second; nothing where this node had no replica at the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct ShardRates {
    requests: f64,
    writes: f64,
    batches: f64,
}

impl Rates {
    fn between(before: &Look, now: &Look) -> Self {
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let of = |shard: &Value| {
            let then = shards(&before.info).find(|other| other["shard"] == shard["shard"]);
            let rate = |pointer: &str| {
                let figure = |shard: &Value| shard.pointer(pointer).and_then(Value::as_u64);
                match (then.and_then(figure), figure(shard)) {
                    // A node that was started again counts from zero.
                    (Some(then), Some(now)) if now >= then => (now - then) as f64 / seconds,
                    _ => 0.0,
                }
            };
            ShardRates {
                requests: rate("/requests"),
                writes: rate("/commands"),
                batches: rate("/wal/batches"),
            }
        };
        Self { shards: shards(&now.info).map(of).collect() }
    }

    fn total(&self, of: impl Fn(&ShardRates) -> f64) -> f64 {
        self.shards.iter().map(of).sum()
    }

    fn json(&self) -> Value {
        let each = self.shards.iter().map(|shard| {
            json!({
                "requests_per_s": shard.requests.round(),
                "writes_per_s": shard.writes.round(),
                "log_batches_per_s": shard.batches.round(),
            })
        });
        json!({
            "requests_per_s": self.total(|shard| shard.requests).round(),
            "writes_per_s": self.total(|shard| shard.writes).round(),
            "shards": each.collect::<Vec<_>>(),
        })
    }
}

fn shards(info: &Value) -> impl Iterator<Item = &Value> {
    // Null where this node has no replica.
    info["shards"].as_array().into_iter().flatten().filter(|shard| shard.is_object())
}

/// One look as text.
fn draw(info: &Value, rates: &Rates, coloured: bool) -> String {
    let plain = |value: &Value| super::cells::text(value);
    let head = format!(
        "{} at {}, strand {}, {}, up {}\n{} keys, {} resident, {} requests/s, {} writes/s\n",
        plain(&info["node"]),
        plain(&info["address"]),
        plain(&info["version"]),
        plain(&info["mode"]),
        span(info["uptime_s"].as_u64().unwrap_or(0)),
        plain(&info["keys"]),
        bytes(info["memory"]["resident_bytes"].as_u64().unwrap_or(0)),
        count(rates.total(|shard| shard.requests)),
        count(rates.total(|shard| shard.writes)),
    );
    format!("{head}{}\n", shard_table(info, rates, coloured))
}

fn shard_table(info: &Value, rates: &Rates, coloured: bool) -> Table {
    let names = [
        "shard", "role", "keys", "memory", "req/s", "writes/s", "syncs/s", "p50", "p99", "turn p99",
        "longest", "flight", "apply", "index",
    ];
    let mut table = table(&names, coloured);
    // Without lines fourteen columns fit a terminal.
    table.load_preset(NOTHING);
    for (shard, rates) in shards(info).zip(&rates.shards) {
        let role = &shard["role"];
        let colour = if role == "leader" { Color::Green } else { Color::Yellow };
        let figure = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let time =
            |pointer: &str| figure(shard.pointer(pointer).and_then(Value::as_u64).map_or("-".into(), micros));
        table.add_row([
            right(&shard["shard"]),
            tinted(Cell::new(super::cells::text(role)), coloured, colour),
            right(&shard["keys"]),
            figure(shard["memory_bytes"].as_u64().map_or("-".into(), bytes)),
            figure(count(rates.requests)),
            figure(count(rates.writes)),
            figure(count(rates.batches)),
            time("/wal/commit_p50_us"),
            time("/wal/commit_p99_us"),
            time("/turns/p99_us"),
            time("/turns/longest_us"),
            right(&shard["queues"]["in_flight"]),
            right(&shard["queues"]["unapplied"]),
            right(&shard["queues"]["index_backlog"]),
        ]);
    }
    table
}

/// A number to three digits.
fn count(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.2}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

fn bytes(number: u64) -> String {
    match number {
        n if n >= 1 << 30 => format!("{:.2} GiB", n as f64 / f64::from(1 << 30)),
        n if n >= 1 << 20 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        n => format!("{:.1} KiB", n as f64 / 1024.0),
    }
}

fn micros(number: u64) -> String {
    match number {
        n if n >= 10_000 => format!("{:.0} ms", n as f64 / 1e3),
        n if n >= 1000 => format!("{:.1} ms", n as f64 / 1e3),
        n => format!("{n} µs"),
    }
}

fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, requests: u64, is_there: bool) -> Look {
        let shard = json!({
            "shard": 0, "role": "leader", "keys": 3, "memory_bytes": 2048, "requests": requests, "commands": requests / 2,
            "wal": {"batches": requests / 10, "commit_p50_us": 900, "commit_p99_us": 12_345},
            "turns": {"p99_us": 40, "longest_us": 1900},
            "queues": {"in_flight": 1, "unapplied": 0, "index_backlog": 7},
        });
        let shards = if is_there { json!([shard, Value::Null]) } else { json!([Value::Null, Value::Null]) };
        let info = json!({"node": "n\u{1b}", "address": "h:1", "version": "1", "mode": "single", "uptime_s": 4000, "keys": 3,
            "memory": {"resident_bytes": 3 << 20}, "shards": shards});
        Look { at, info }
    }

    #[test]
    fn rates_are_differences_and_a_restart_counts_nothing() {
        let begin = Instant::now();
        let end = begin + Duration::from_secs(2);
        let rates = Rates::between(&look(begin, 1000, true), &look(end, 51_000, true));
        assert_eq!(rates.shards[0], ShardRates { requests: 25_000.0, writes: 12_500.0, batches: 2500.0 });
        assert_eq!(rates.shards.len(), 1);
        let restarted = Rates::between(&look(begin, 1000, true), &look(end, 10, true));
        assert_eq!(restarted.total(|shard| shard.requests), 0.0);
        let came = Rates::between(&look(begin, 0, false), &look(end, 10, true));
        assert_eq!(came.shards[0], ShardRates::default());
    }

    #[test]
    fn a_look_shows_what_matters() {
        let begin = Instant::now();
        let now = look(begin + Duration::from_secs(1), 51_000, true);
        let rates = Rates::between(&look(begin, 1000, true), &now);
        let drawn = draw(&now.info, &rates, false);
        for expected in
            ["up 1 h 6 min", "3.0 MiB resident", "50.0k requests/s", "900 µs", "12 ms", "1.9 ms", "leader"]
        {
            assert!(drawn.contains(expected), "{expected} is missing:\n{drawn}");
        }
        assert!(!drawn.contains('\u{1b}'), "neither colours nor control characters");
        assert!(draw(&now.info, &rates, true).contains('\u{1b}'));
        assert_eq!(rates.json()["requests_per_s"], 50_000.0);
    }
}
