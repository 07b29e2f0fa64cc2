//! `strand cluster recover --unsafe`: the last resort when most nodes of a cluster are lost for good.
//!
//! Shows what the node has and what may be lost, refuses while a majority still answers, and asks before it does anything.
//! The work is in `boot::survive`; this file talks.

use super::super::flags::ConfigurationFlags;
use crate::boot::survive::{self, Plan, Recovered};
use crate::fatal::Fatal;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

const ABOUT: &str = "\
Run it on one stopped node, the one with the most (compare the plans of all that are left). Entries that only the lost nodes had are \
lost, a batch over several shards may be there in part, and entries that were never acknowledged may appear. The old data directory is \
kept under another name. Other nodes that are left cannot join with what they have: give them empty data directories and add them.";

/// `strand cluster recover`.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Arguments {
    /// Said by whoever knows that acknowledged data may be lost.
    #[arg(long = "unsafe", required = true)]
    is_unsafe: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Go on although some groups have no readable replica here; they begin empty.
    #[arg(long)]
    lose_groups: bool,
    #[command(flatten)]
    flags: ConfigurationFlags,
}

/// Runs it.
///
/// # Errors
/// When the plan cannot be made or must not be carried out, the operator says no, or the work fails.
pub(super) fn run(arguments: &Arguments, json: bool) -> Result<(), Fatal> {
    let tuning = arguments.flags.load()?.tuning;
    crate::logging::start(&tuning.log);
    let plan = survive::survey(&tuning)?;
    if json {
        super::super::print(&format!("{}\n", plan_json(&plan)))?;
    } else {
        super::super::print(&plan_text(&plan))?;
    }
    refuse_what_must_not_be(&plan, arguments.lose_groups)?;
    if !arguments.yes && !confirmed(&plan.node_id)? {
        return Err(Fatal::Failed("Nothing was changed.".to_owned()));
    }
    let recovered = survive::perform(&plan, &tuning)?;
    if json {
        let kept_as = plan.kept_as.display().to_string();
        return super::super::print(&format!("{}\n", done_json(&recovered, &kept_as)));
    }
    let (Recovered { cluster, .. }, node_id) = (recovered, &plan.node_id);
    super::super::print(&format!(
        "Done. Cluster {cluster:032x} is node {node_id} alone; what was before is kept in {}.\nStart it: strand serve --id {node_id} \
         --data-dir {} (with the ports that it had). Then start empty nodes with --peers that name it, and add them: strand cluster \
         add ID.\n",
        plan.kept_as.display(),
        plan.path.display()
    ))
}

/// While more than half of the members answer, nothing is lost that a recovery would bring back.
fn refuse_what_must_not_be(plan: &Plan, lose_groups: bool) -> Result<(), Fatal> {
    let answering: Vec<&str> =
        plan.others.iter().filter(|(_, _, answers)| *answers).map(|(id, ..)| id.as_str()).collect();
    let members = plan.others.len() + 1;
    if (answering.len() + 1) * 2 > members && members > 1 {
        return Err(Fatal::Failed(format!(
            "Nothing was changed: {} of {members} nodes are there with this one ({} answer), so no majority is lost. Start this node \
             as usual; to give the cluster up all the same, stop the others first.",
            answering.len() + 1,
            answering.join(", ")
        )));
    }
    let missing = plan.groups.iter().filter(|group| group.is_err()).count();
    if missing > 0 && !lose_groups {
        return Err(Fatal::Failed(format!(
            "Nothing was changed: {missing} of {} groups cannot be read here (see the plan), and would begin empty. Recover on a node \
             that has them, or say --lose-groups.",
            plan.groups.len()
        )));
    }
    Ok(())
}

fn confirmed(node_id: &str) -> Result<bool, Fatal> {
    if !io::stdin().is_terminal() {
        return Err(Fatal::Failed(
            "Nothing was changed: nobody can be asked here; say --yes to go on.".to_owned(),
        ));
    }
    let failed = |error: io::Error| Fatal::Failed(format!("The terminal cannot be asked: {error}."));
    write!(io::stderr(), "Type the node's id ({node_id}) to go on: ").map_err(failed)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim() == node_id)
}

fn plan_text(plan: &Plan) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "Node {} of cluster {:032x} would go on alone, as a new cluster, with what {} holds.\n",
        plan.node_id,
        plan.cluster,
        plan.path.display()
    );
    for (id, address, answers) in &plan.others {
        let state = if *answers { "ANSWERS" } else { "does not answer" };
        let _ = writeln!(out, "  {id} ({address}) {state}; it would be no member any more");
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "group",
        "voters",
        "term",
        "snapshot",
        "committed",
        "last",
        "what may be lost or appear",
    ]);
    for (number, group) in plan.groups.iter().enumerate() {
        match group {
            Ok(had) => {
                let voters = had.voters.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let unsure = had.last_index - had.commit_index;
                table.add_row([
                    number.to_string(),
                    voters,
                    had.term.to_string(),
                    had.snapshot_index.to_string(),
                    had.commit_index.to_string(),
                    had.last_index.to_string(),
                    format!(
                        "lost: what others had after {}; appear: {unsure} entries not known to be committed",
                        had.last_index
                    ),
                ]);
            }
            Err(why) => {
                let nothing = || "-".to_owned();
                table.add_row([
                    number.to_string(),
                    nothing(),
                    nothing(),
                    nothing(),
                    nothing(),
                    nothing(),
                    format!("ALL of it: {why}"),
                ]);
            }
        }
    }
    let _ = writeln!(out, "\n{table}\nThe directory would be kept as {}.", plan.kept_as.display());
    out
}

fn plan_json(plan: &Plan) -> Value {
    let group = |(number, group): (usize, &Result<_, String>)| match group {
        Ok(had) => {
            let had: &shards::shard::survive::Remains = had;
            json!({
                "group": number,
                "voters": had.voters.iter().map(|voter| voter.0).collect::<Vec<_>>(),
                "term": had.term,
                "snapshot_index": had.snapshot_index,
                "commit_index": had.commit_index,
                "last_index": had.last_index,
            })
        }
        Err(why) => json!({ "group": number, "lost": why }),
    };
    let other = |(id, address, answers): &(String, String, bool)| json!({ "id": id, "address": address, "answers": answers });
    json!({
        "node": plan.node_id,
        "cluster": format!("{:032x}", plan.cluster),
        "data_dir": plan.path.display().to_string(),
        "kept_as": plan.kept_as.display().to_string(),
        "others": plan.others.iter().map(other).collect::<Vec<_>>(),
        "groups": plan.groups.iter().enumerate().map(group).collect::<Vec<_>>(),
    })
}

fn done_json(recovered: &Recovered, kept_as: &str) -> Value {
    json!({
        "cluster": format!("{:032x}", recovered.cluster),
        "meta_version": recovered.meta_version,
        "applied_index": recovered.applied,
        "kept_as": kept_as,
    })
}
