//! `strand serve`: runs the server.

use super::flags::ConfigurationFlags;
use crate::boot;
use crate::fatal::{self, Fatal};
use crate::logging;

const EXAMPLES: &str = "\
Examples:
  strand serve --port 8000 --id node1 --data-dir data/node1
  strand serve --config tuning/production.toml
  strand serve --shards 1 --set timeouts.idle_s=600
  STRAND_SERVER__PORT=7000 strand serve

Flags win over STRAND_SECTION__KEY variables, those over the file, that over defaults.
SIGTERM and SIGINT stop it in good order; a second one stops it at once.";

/// Flags of `strand serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    flags: ConfigurationFlags,
}

/// Runs the server until it is asked to stop.
///
/// # Errors
/// The reason for which it could not start or had to stop.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let tuning = arguments.flags.load()?.tuning;
    logging::start(&tuning.log);
    fatal::exit_on_panic();
    boot::serve(tuning)
}
