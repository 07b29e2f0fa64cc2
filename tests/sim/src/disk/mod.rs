//! A disk that tears, forgets and fails: what the engine's storage code runs on in a simulation.
//!
//! It promises what the seam in `shards::storage` says and breaks everything else: what was not synced survives a power
//! cut in any subset of its 512-byte sectors, names are durable only once their directory was synced, operations fail when
//! the plan says so. It never fails silently unless a plan makes it lie.

mod device;
mod files;
mod platter;
mod seam;
mod supply;

pub use device::{DeviceHandle, SimDevice};
pub use files::{FileJob, SnapshotJobs};
pub use platter::{DiskFaults, SimDisk, SimFile};
pub use supply::SimSupply;
