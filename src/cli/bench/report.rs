//! What a run found: a table for people, JSON for programs.

use super::server_cpu::ThreadCpu;
use super::tally::{SLOT, Tally};
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A finished phase.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) name: &'static str,
    pub(super) connections: usize,
    pub(super) depth: usize,
    pub(super) rate: Option<f64>,
    pub(super) tally: Tally,
    /// What each thread of the server used in the measured time; empty where that was not asked for.
    pub(super) server: Vec<ThreadCpu>,
}

impl Outcome {
    /// Replies a second.
    pub(super) fn requests_per_s(&self) -> f64 {
        self.tally.replies as f64 / self.tally.seconds().max(1e-9)
    }

    /// CPU nanoseconds of the server a request.
    pub(super) fn server_ns(&self) -> Option<f64> {
        let all: u64 = self.server.iter().map(|thread| thread.cpu_ns).sum();
        (!self.server.is_empty() && self.tally.replies > 0).then(|| all as f64 / self.tally.replies as f64)
    }
}

/// Latencies that are reported: name and quantile.
pub(super) const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// The table and what should be said below it.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["phase", "load", "requests/s", "keys/s", "latency of"];
    header.extend(QUANTILES.map(|(name, _)| name));
    header.extend(["slowest", "server CPU"]);
    table.set_header(&header);
    for column in (2..header.len()).filter(|column| header[*column] != "latency of") {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for outcome in outcomes {
        for (row, (group, histogram)) in outcome.tally.latencies().enumerate() {
            let mut cells = if row == 0 { whole(outcome) } else { vec![String::new(); 4] };
            cells.push(group.name().to_owned());
            cells.extend(QUANTILES.map(|(_, quantile)| duration(histogram.value_at_quantile(quantile))));
            cells.push(duration(histogram.max()));
            let server = outcome.server_ns().filter(|_| row == 0);
            cells.push(server.map_or_else(String::new, |ns| format!("{}/request", duration(ns as u64))));
            table.add_row(cells);
        }
    }
    let mut text = format!("{table}\n");
    for outcome in outcomes {
        notes(outcome).iter().for_each(|note| text.push_str(&format!("{}: {note}\n", outcome.name)));
    }
    text
}

/// The cells that belong to a phase as a whole.
fn whole(outcome: &Outcome) -> Vec<String> {
    let load = match outcome.rate {
        None => format!("{} x {}", outcome.connections, outcome.depth),
        Some(rate) => format!("{}/s over {}", count(rate), outcome.connections),
    };
    let tally = &outcome.tally;
    let items = if tally.items == tally.replies {
        String::new()
    } else {
        count(tally.items as f64 / tally.seconds().max(1e-9))
    };
    vec![outcome.name.to_owned(), load, count(outcome.requests_per_s()), items]
}

/// What a reader of the figures must know.
fn notes(outcome: &Outcome) -> Vec<String> {
    let tally = &outcome.tally;
    let mut notes = Vec::new();
    let mut note = |number: u64, told: &str| {
        if number > 0 {
            notes.push(format!("{} {told}", count(number as f64)));
        }
    };
    note(tally.absent, "reads found no such key.");
    note(tally.errors, "requests were REFUSED.");
    note(tally.wrong, "values were WRONG.");
    note(tally.unanswered, "requests were never ANSWERED.");
    note(tally.unsent, "requests were due and never sent: the server takes less than --rate.");
    notes.extend(tally.first_problem.clone());
    if let Some(all_ns) = outcome.server_ns() {
        let each = outcome.server.iter().map(|thread| {
            let ns = thread.cpu_ns as f64 / tally.replies as f64;
            let busy = thread.cpu_ns as f64 / 1e7 / tally.seconds();
            format!("{} {ns:.0} ({busy:.0}% of a core)", thread.name)
        });
        notes.push(format!(
            "server CPU nanoseconds a request: {all_ns:.0} = {}.",
            each.collect::<Vec<_>>().join(" + ")
        ));
    }
    notes
}

/// The run as JSON: figures with their units in the names.
pub(super) fn json(workload: &str, protocol: &str, outcomes: &[Outcome]) -> Value {
    let phases: Vec<Value> = outcomes.iter().map(phase_json).collect();
    json!({"workload": workload, "protocol": protocol, "phases": phases})
}

fn phase_json(outcome: &Outcome) -> Value {
    let tally = &outcome.tally;
    let latencies: serde_json::Map<String, Value> = tally
        .latencies()
        .map(|(group, histogram)| (group.name().to_owned(), latency_json(histogram)))
        .collect();
    json!({
        "name": outcome.name,
        "connections": outcome.connections,
        "depth": outcome.depth,
        "rate_per_s": outcome.rate,
        "seconds": tally.seconds(),
        "requests": tally.replies,
        "requests_per_s": outcome.requests_per_s(),
        "keys": tally.items,
        "absent": tally.absent,
        "errors": tally.errors,
        "compared": tally.compared,
        "wrong": tally.wrong,
        "unanswered": tally.unanswered,
        "unsent": tally.unsent,
        "first_problem": tally.first_problem,
        "sent_bytes": tally.sent_bytes,
        "received_bytes": tally.received_bytes,
        "latency": latencies,
        "server_cpu_ns_per_request": outcome.server_ns(),
        "server_threads": outcome.server,
        "slot_ms": SLOT.as_millis() as u64,
        "replies_by_slot": tally.slots.iter().map(|slot| slot.replies).collect::<Vec<_>>(),
    })
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    let mut figures = serde_json::Map::new();
    for (name, quantile) in QUANTILES {
        figures.insert(format!("{name}_ns"), histogram.value_at_quantile(quantile).into());
    }
    figures.insert("mean_ns".to_owned(), histogram.mean().into());
    figures.insert("max_ns".to_owned(), histogram.max().into());
    figures.insert("count".to_owned(), histogram.len().into());
    Value::Object(figures)
}

/// Nanoseconds in the unit that fits, three digits.
pub(super) fn duration(nanos: u64) -> String {
    let nanos = nanos as f64;
    let (value, unit) = match nanos {
        ..1e3 => return format!("{nanos:.0} ns"),
        ..1e6 => (nanos / 1e3, "µs"),
        ..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// A number with a comma between thousands.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tally::Group;
    use super::super::tally::tests::phase;
    use super::*;

    pub(crate) fn outcome() -> Outcome {
        let mut tally = Tally::new(&phase());
        for now_ms in 500..1500 {
            tally.replied(Group::Read, 0, now_ms * 1_000_000, 4, 4);
        }
        let server = vec![ThreadCpu { name: "router-0".to_owned(), cpu_ns: 2_000_000 }];
        Outcome { name: "mixed", connections: 50, depth: 16, rate: None, tally, server }
    }

    #[test]
    fn figures_are_readable() {
        let shown = [0, 999, 1000, 12_345, 999_400, 1_000_000, 2_500_000_000].map(duration);
        assert_eq!(shown, ["0 ns", "999 ns", "1.00 µs", "12.3 µs", "999 µs", "1.00 ms", "2.50 s"]);
        assert_eq!([1.0, 999.0, 1000.0, 1_234_567.4].map(count), ["1", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_table_tells_all() {
        let mut outcome = outcome();
        outcome.tally.errors = 3;
        let shown = table(&[outcome]);
        for part in [
            "mixed",
            "50 x 16",
            "4,000",
            "500 ns/request",
            "router-0 500 (0% of a core)",
            "3 requests were REFUSED",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }

    #[test]
    fn programs_get_the_same() {
        let read = json("mixed", "json", &[outcome()]);
        let phase = &read["phases"][0];
        assert_eq!((&phase["requests"], &phase["requests_per_s"]), (&json!(4000), &json!(4000.0)));
        assert_eq!(phase["server_cpu_ns_per_request"], 500.0);
        assert!(phase["latency"]["read"]["p99_ns"].as_u64().unwrap() > 1_480_000_000);
    }
}
