//! A disk whose power can go: files in memory, of which only what was synced is sure to survive.
//!
//! [`image`] holds the files, what is pending, and the recorded trace; [`cut`] says what a power cut leaves; [`mount`] is
//! what the harness does to it, `served` shows it to the server as a file system.

pub mod cut;
pub mod image;
pub mod mount;
mod served;
