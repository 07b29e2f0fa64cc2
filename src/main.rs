//! The `strand` binary: reads the command line and hands over to the subcommand.

pub mod boot;
pub mod cli;
pub mod clock;
pub mod disk;
pub mod doorbell;
pub mod driver;
pub mod fatal;
pub mod front;
pub mod links;
pub mod logging;
pub mod peer;
pub mod preflight;
pub mod router;
pub mod service;
pub mod sys;
pub mod tuning;

fn main() -> std::process::ExitCode {
    cli::run().into()
}
