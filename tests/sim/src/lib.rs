//! The deterministic simulator: the engine that ships on simulated disks, networks and clocks, driven by one seed.
//!
//! A [`plan::Plan`] is drawn from a seed; [`world::run`] lives it through and reports. The engine's crate and its storage
//! code run unchanged; the driver's loop, the router and the disk are mirrored here, on virtual time. Nothing in this
//! crate reads a clock, a file or a random number, apart from the command line in `main.rs`. See docs/SIMULATION.md.

mod asking;
pub mod check;
pub mod client;
pub mod disk;
pub mod fault;
mod fetched;
mod inject;
pub mod machine;
mod members;
pub mod net;
pub mod plan;
mod replicas;
pub mod rng;
pub mod router;
mod scheduled;
pub mod strand;
pub mod suite;
pub mod trace;
mod traffic;
pub mod work;
pub mod world;
