//! The command line: one file per subcommand, one exit code per outcome.
//!
//! Every subcommand returns a [`Fatal`] that says what is wrong and what to do; this file tells it and picks the exit
//! code. Usage errors are clap's, with exit code 2.

pub mod bench;
mod cells;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod doctor;
mod dump;
pub mod export;
pub mod flags;
mod hits;
pub mod import;
pub mod serve;
pub mod shell;
pub mod top;
pub mod tune;

use crate::fatal::{self, ExitCode, Fatal};
use clap::{Parser, Subcommand};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  strand serve                                   one node on 127.0.0.1:8000, data in data/node1
  strand serve --port 7000 --data-dir ./mine     another port, another place
  strand serve --config tuning/throughput.toml   a profile from a file
  strand serve --set wal.sync=interval:100       any setting, by section and name
  strand config --origin                         what is in force, and who said so
  strand doctor                                  can this machine run it?
  strand top                                     what a running server does
  echo '{\"command\":\"SET\",\"key\":\"foo\",\"value\":\"bar\"}' | nc -q1 localhost 8000

Exit codes: 0 done, 1 failed, 2 usage, 70 data corruption, 75 try again, 78 bad configuration.";

/// A key-value database with search inside it, one strand per core.
#[derive(Debug, Parser)]
#[command(name = "strand", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::Arguments),
    /// Measure a server, this one or another.
    Bench(bench::Arguments),
    /// Show a cluster and change it.
    Cluster(cluster::Arguments),
    /// Print the configuration that a server would run with.
    Config(config::Arguments),
    /// Send commands: one, many from a pipe, or in a shell.
    Cli(shell::ShellArgs),
    /// Load a real text collection and show what the database can do with it.
    Demo(demo::DemoArgs),
    /// Check whether this machine can run the server, and say what to change.
    Doctor(doctor::Arguments),
    /// Write all keys of a running server to a file.
    Export(export::Arguments),
    /// Store what was exported, or lines of JSON from another program.
    Import(import::Arguments),
    /// Watch what a running server does.
    Top(top::Arguments),
    /// Print a profile for this machine.
    Tune(tune::Arguments),
    /// Print the version.
    Version,
}

/// Reads the process's command line and does what it says.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, and go to stdout with exit code 0.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
        }
    };
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Cli(arguments) => return shell::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Version => print(&version()),
    };
    match outcome {
        Ok(()) => ExitCode::Done,
        Err(reason) => {
            fatal::tell(&reason);
            reason.exit_code()
        }
    }
}

fn version() -> String {
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    format!("strand {} ({target}, protocol 1)\n", env!("CARGO_PKG_VERSION"))
}

/// Writes to stdout; a reader that has gone away (`strand config | head`) is no failure.
fn print(text: &str) -> Result<(), Fatal> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Fatal::Failed(format!("Cannot write to stdout: {error}.")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
