//! The figures as Markdown.

use crate::indexing::{COMMIT_DOCUMENTS, Cost, Indexed};
use crate::queries::{Class, median};
use crate::sets::{Building, SetCost};

/// The table of indexing and of sizes.
pub fn indexing(indexed: &Indexed, documents: usize, text_bytes: usize) {
    let rate =
        |costs: &[Cost], of: fn(&Cost) -> f64| documents as f64 / median(costs.iter().map(of).collect());
    let row = |name: &str, visible: &str, costs: &[Cost], bytes: Option<usize>, parts: Option<usize>| {
        println!(
            "| {name} | {visible} | {:.0} | {:.0} | {} | {} |",
            rate(costs, |cost| cost.wall_s),
            rate(costs, |cost| cost.cpu_s),
            bytes.map_or("".to_owned(), |bytes| format!("{:.2}", bytes as f64 / text_bytes as f64)),
            parts.map_or("".to_owned(), |parts| parts.to_string()),
        );
    };
    println!(
        "| indexing | visible | documents/s | documents a CPU second | index bytes over text bytes | parts |"
    );
    println!("|---|---|---|---|---|---|");
    let (live, settled) = (&indexed.live, &indexed.settled);
    row("Strand", "at once", &indexed.strand_costs, Some(live.bytes()), Some(live.parts()));
    println!(
        "| Strand, all merging done | | | | {:.2} | {} |",
        settled.bytes() as f64 / text_bytes as f64,
        settled.parts()
    );
    let (peer, no_stop_words) = (&indexed.peer, &indexed.peer_no_stop_words);
    row("tantivy, `en_stem`", "at the end", &indexed.peer_costs, Some(peer.bytes), Some(peer.segments));
    row(
        "tantivy, `en_stem` without stop words",
        "at the end",
        &indexed.peer_no_stop_words_costs,
        Some(no_stop_words.bytes),
        Some(no_stop_words.segments),
    );
    let committing = [indexed.peer_committing_cost];
    row("tantivy, `en_stem`", &format!("every {COMMIT_DOCUMENTS}"), &committing, None, None);
    println!("\nStrand, live: {}\n", live.report());
}

/// The table of queries.
pub fn queries(classes: &[Class]) {
    println!(
        "| top 10, p50 µs | Strand live | Strand merged | tantivy | tantivy without stop words | live : tantivy (least to most) |"
    );
    println!("|---|---|---|---|---|---|");
    for class in classes {
        let shown = |us: Option<f64>| us.map_or("".to_owned(), |us| format!("{us:.1}"));
        let ratio = class.ratio.map_or("".to_owned(), |[least, middle, most]| {
            let verdict = if middle > 1.0 { ", loses" } else { "" };
            format!("**{middle:.2}** ({least:.2} to {most:.2}){verdict}")
        });
        println!(
            "| {} | {:.1} | {:.1} | {} | {} | {ratio} |",
            class.name,
            class.live_us,
            class.settled_us,
            shown(class.peer_us),
            shown(class.peer_no_stop_words_us)
        );
    }
    println!();
}

/// The table of writes.
pub fn sets(costs: &[SetCost]) {
    println!("| SET of 100 words, one shard's engine | ns a SET | ns a SET with its indexing |");
    println!("|---|---|---|");
    for cost in costs {
        let indexed = cost.indexed_ns.map_or("".to_owned(), |ns| format!("{ns:.0}"));
        println!("| {} | {:.0} | {indexed} |", cost.name, cost.set_ns);
    }
    println!();
}

/// The table of an index being built.
pub fn building(built: &Building) {
    println!("| building an index in one shard's engine | steps | p50 µs | p99 | p99.9 | longest |");
    println!("|---|---|---|---|---|---|");
    for (name, figures) in
        [("each step's shortest of three builds", built.step_us), ("one build", built.once_us)]
    {
        let [p50, p99, p999, longest] = figures;
        println!(
            "| {} documents, {name} | {} | {p50:.0} | {p99:.0} | {p999:.0} | {longest:.0} |",
            built.documents, built.steps
        );
    }
    println!();
}
