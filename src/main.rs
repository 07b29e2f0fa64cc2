//! The `strand` binary: reads the command line and hands over to the subcommand.

pub mod boot;
pub mod cli;
pub mod clock;
pub mod fatal;
pub mod logging;
pub mod preflight;
pub mod sys;
pub mod tuning;

fn main() -> std::process::ExitCode {
    cli::run().into()
}
