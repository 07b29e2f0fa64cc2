//! `strand config`: prints the configuration that a server would run with.

use super::flags::ConfigurationFlags;
use crate::fatal::Fatal;
use crate::tuning::reference;

const EXAMPLES: &str = "\
Examples:
  strand config --origin                         who said what
  strand config --config tuning/cache.toml       what a profile comes to
  strand config --documented > mine.toml         a file to start from, every setting explained";

/// Flags of `strand config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Add to each line where its value came from: flag, environment, file or default
    #[arg(long, conflicts_with_all = ["documented", "markdown"])]
    origin: bool,
    /// Add to each setting what it does, its unit and its range
    #[arg(long, conflicts_with = "markdown")]
    documented: bool,
    /// Print the list of all settings as Markdown tables instead, as in tuning/README.md
    #[arg(long)]
    markdown: bool,
    #[command(flatten)]
    flags: ConfigurationFlags,
}

/// Prints the configuration.
///
/// # Errors
/// When it has problems.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    if arguments.markdown {
        return super::print(&reference::markdown());
    }
    let configured = arguments.flags.load()?;
    let text = if arguments.documented {
        reference::documented(&configured.tuning)
    } else {
        reference::effective(&configured.tuning, arguments.origin.then_some(&configured.origins))
    };
    super::print(&text)
}
