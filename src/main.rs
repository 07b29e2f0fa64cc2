//! The `strand` binary: reads the command line and hands over to the subcommand.

pub mod doorbell;
pub mod front;
pub mod links;
pub mod router;

fn main() {}
