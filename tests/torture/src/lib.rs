//! Real nodes under faults, judged by what clients saw.
//!
//! The binary `strand` runs as it ships, each node in a network namespace and on a disk of its own ([`disk`]) that the harness
//! can cut, slow, fill and break. Clients record what they ask and hear ([`load`]); [`check`] judges it. Faults come in random
//! pairs from a seed ([`storm`]); power cuts of all nodes and of one recorded log have campaigns of their own. Nothing here
//! uses the product's client or parser, so that both cannot be wrong alike. See docs/TORTURE.md.

pub mod check;
pub mod client;
pub mod cluster;
pub mod cutpoints;
pub mod disk;
pub mod fault;
pub mod filling;
pub mod founding;
pub mod keeper;
pub mod kills;
pub mod load;
pub mod members;
pub mod network;
pub mod node;
pub mod powercut;
pub mod report;
pub mod rolling;
pub mod storm;
