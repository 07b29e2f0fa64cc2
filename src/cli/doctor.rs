//! `strand doctor`: whether this machine can run the server as configured, as a table or as JSON.

use super::flags::ConfigurationFlags;
use crate::fatal::Fatal;
use crate::preflight::{self, Check, Verdict};
use crate::sys;
use crate::tuning::{Tuning, cores};
use comfy_table::{ContentArrangement, Table, presets};

/// Flags of `strand doctor`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ConfigurationFlags,
}

/// Prints the checks.
///
/// # Errors
/// When a check failed, so that scripts notice by the exit code.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let tuning = arguments.flags.load()?.tuning;
    let checks = preflight::examine(&tuning, shards(&tuning)?);
    let text = if arguments.json { json(&checks)? } else { table(&checks) };
    super::print(&text)?;
    let failures = checks.iter().filter(|check| check.verdict == Verdict::Failure).count();
    match failures {
        0 => Ok(()),
        1 => Err(Fatal::Machine("One check failed; its row says what to change.".to_owned())),
        _ => Err(Fatal::Machine(format!("{failures} checks failed; their rows say what to change."))),
    }
}

/// The number of shards to check for: that of a new directory.
fn shards(tuning: &Tuning) -> Result<u32, Fatal> {
    let available = sys::available_cores().unwrap_or_else(|_| vec![0]);
    let usable = cores::usable(&available, &tuning.cores.allowed);
    let usable = usable.map_err(|error| Fatal::Configuration(error.to_string()))?;
    Ok(cores::shards_of_new_directory(tuning.server.shards, &tuning.cores, &usable))
}

fn json(checks: &[Check]) -> Result<String, Fatal> {
    match serde_json::to_string_pretty(checks) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Fatal::Failed(format!("Cannot write the checks as JSON: {error}."))),
    }
}

fn table(checks: &[Check]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(100);
    }
    table.set_header(["check", "verdict", "found", "what to change"]);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "WARNING",
            Verdict::Failure => "FAILURE",
        };
        table.add_row([check.name, verdict, &check.found, &check.advice]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(verdict: Verdict, advice: &str) -> Check {
        Check { name: "cores", verdict, found: "2".to_owned(), advice: advice.to_owned() }
    }

    #[test]
    fn both_forms_carry_every_part() {
        let checks = [check(Verdict::Good, ""), check(Verdict::Failure, "buy more")];
        let shown = table(&checks);
        assert!(shown.contains("FAILURE") && shown.contains("buy more") && shown.contains("good"));
        let read: serde_json::Value = serde_json::from_str(&json(&checks).unwrap()).unwrap();
        assert_eq!(read[1]["verdict"], "failure");
        assert_eq!(read[1]["advice"], "buy more");
    }
}
