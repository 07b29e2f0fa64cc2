//! The `strand` binary: reads the command line and hands over to the subcommand.

pub mod tuning;

fn main() {
    let _ = tuning::layers::load(&tuning::layers::Sources::default());
}
