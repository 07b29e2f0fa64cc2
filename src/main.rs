//! The `strand` binary: reads the command line and hands over to the subcommand.

pub mod disk;

fn main() {}
