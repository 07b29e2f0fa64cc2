//! The configuration: a TOML file, the environment and flags become one checked [`Tuning`].
//!
//! [`knobs`] states every setting once; [`layers`] puts the sources on top of one another and remembers where each value
//! came from; [`relations`] checks what two settings owe each other. What leaves this room is valid: the rest of the program
//! does not check again. Reads only what it is handed, so that the tests need no environment.

pub mod cores;
pub mod kinds;
pub mod knobs;
pub mod layers;
pub mod peers;
pub mod range;
pub mod reference;
pub mod relations;

pub use kinds::{CoreSet, LogFormat, LogLevel, RouterMode, WalSync};
pub use knobs::Tuning;

use std::path::PathBuf;

impl Tuning {
    /// The data directory: the one that is set, or `data/ID`.
    pub fn data_dir(&self) -> PathBuf {
        if self.server.data_dir.is_empty() {
            PathBuf::from("data").join(&self.server.id)
        } else {
            PathBuf::from(&self.server.data_dir)
        }
    }
}
