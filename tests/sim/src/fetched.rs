//! A snapshot of another machine, put on this machine's disk and loaded, as `src/peer/` does it with what a link brought.
//!
//! Must not: judge what is loaded; a snapshot that is refused is an event like any other.

use crate::disk::SimDisk;
use crate::strand::directory;
use crate::world::CLUSTER;
use shards::event::Event;
use shards::ids::GroupId;
use shards::shard::image::{ImageIdentity, SnapshotImage, SnapshotIntake};
use shards::state::SessionLimits;
use shards::storage::snapshots::{SnapshotWriter, Verifier};

/// Puts the bytes of another machine's snapshot on this machine's disk and loads them.
pub(crate) fn take_snapshot(disk: &SimDisk, group: GroupId, index: u64, bytes: &[u8]) -> Event {
    let image = load_snapshot(disk, group, index, bytes).map(Box::new);
    Event::SnapshotFetched { index, image }
}

fn load_snapshot(disk: &SimDisk, group: GroupId, index: u64, bytes: &[u8]) -> Result<SnapshotImage, String> {
    let mut writer =
        SnapshotWriter::create(disk.clone(), &directory(group), index).map_err(|error| error.to_string())?;
    writer.append(bytes).map_err(|error| error.to_string())?;
    writer.finish(&mut AsTheyAre).map_err(|error| error.to_string())?;
    let identity = ImageIdentity { cluster: CLUSTER, shard: group.0, group };
    let mut intake = SnapshotIntake::new(identity, SessionLimits::default());
    intake.feed(bytes).map_err(|error| error.to_string())?;
    intake.finish().map_err(|error| error.to_string())
}

/// The bytes are checked when they are loaded.
struct AsTheyAre;

impl Verifier for AsTheyAre {
    fn chunk(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}
