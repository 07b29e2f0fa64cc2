//! Segment files: making, opening and listing them.
//!
//! A segment is created by writing zeros through the whole file, syncing it, renaming it into place and syncing the
//! directory; after that its size and extents never change, so a commit syncs data only. A recycled segment is reused in
//! place: its next life has a higher epoch, which makes every record in it stale. Creation takes tens of milliseconds and
//! never runs on a shard's thread. This file must not know what is in a segment.

use super::disk::{Disk, DiskFile, Open};
use crate::log::SegmentId;
use crate::log::header::BLOCK_BYTES;
use crate::log::replay::SegmentFile;
use crate::mutants::{Mutant, is_on};
use rkyv::util::AlignedVec;
use std::io;
use std::path::Path;

/// Zeros written at once.
const ZERO_BYTES: usize = 1 << 20;

/// Memory that a file opened past the page cache takes.
pub(super) type BlockBuffer = AlignedVec<BLOCK_BYTES>;

/// An open segment file.
#[derive(Debug)]
pub struct OpenSegment<F> {
    /// Which one.
    pub segment: SegmentId,
    /// The file, for reading and writing.
    pub file: F,
    /// Whether it bypasses the page cache; false where the file system refuses that.
    pub direct: bool,
}

/// What a log asks of whoever prepares its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentJob {
    /// Create a new segment.
    Create(SegmentId),
    /// Open a free segment for its next life.
    Reopen(SegmentId),
    /// Remove a free segment that is not needed as a spare.
    Delete(SegmentId),
}

/// How a job ended.
#[derive(Debug)]
pub enum SegmentDone<F> {
    /// A spare is ready.
    Ready(OpenSegment<F>),
    /// The file is gone.
    Deleted(SegmentId),
    /// It could not be done. A failed creation leaves nothing behind.
    Failed(SegmentJob, io::Error),
}

/// Where a log's segments are and how many there may be.
#[derive(Clone, Copy, Debug)]
pub struct SegmentPlace<'a> {
    /// The directory.
    pub directory: &'a Path,
    /// The fixed size of a segment in bytes.
    pub segment_bytes: u64,
    /// Most files that there may be, when limited: a creation beyond fails as if the disk were full.
    pub segments_max: Option<u64>,
}

/// Opens an existing segment, past the page cache where the file system allows it.
pub fn open_segment<D: Disk>(
    disk: &D,
    directory: &Path,
    segment: SegmentId,
) -> io::Result<OpenSegment<D::File>> {
    let file = disk.open(&directory.join(segment.file_name()), Open::WRITE_DIRECT)?;
    let direct = file.is_direct();
    Ok(OpenSegment { segment, file, direct })
}

/// Creates a segment of zeros, or replaces the unfinished rest of an earlier attempt. The file appears under its name only
/// when it is whole and durable.
pub fn create_segment<D: Disk>(
    disk: &D,
    directory: &Path,
    segment: SegmentId,
    segment_bytes: u64,
) -> io::Result<OpenSegment<D::File>> {
    let temporary = directory.join(format!("{}.tmp", segment.file_name()));
    let result = fill_with_zeros(disk, &temporary, segment_bytes).and_then(|()| {
        disk.rename(&temporary, &directory.join(segment.file_name()))?;
        if !is_on(Mutant::SegmentNameNotSynced) {
            disk.sync_directory(directory)?;
        }
        open_segment(disk, directory, segment)
    });
    if result.is_err() {
        // The space of a failed attempt is given back; if even that fails, the next start removes the rest.
        let _ = disk.remove(&temporary);
    }
    result
}

fn fill_with_zeros<D: Disk>(disk: &D, path: &Path, segment_bytes: u64) -> io::Result<()> {
    let file = disk.open(path, Open::CREATE_DIRECT)?;
    let mut zeros = BlockBuffer::new();
    zeros.resize(ZERO_BYTES.min(usize::try_from(segment_bytes).unwrap_or(ZERO_BYTES)), 0);
    let mut offset = 0;
    while offset < segment_bytes {
        let length = (zeros.len() as u64).min(segment_bytes - offset);
        file.write_at(&zeros[..length as usize], offset)?;
        offset += length;
    }
    if is_on(Mutant::SegmentNotSynced) { Ok(()) } else { file.sync() }
}

/// Lists the segments of a shard in ascending order, and removes what an interrupted creation left.
pub fn list_segments<D: Disk>(disk: &D, directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut found = Vec::new();
    for entry in disk.list(directory)? {
        if let Some(segment) = SegmentId::from_file_name(&entry.name) {
            found.push(SegmentFile { segment, bytes: entry.bytes });
        } else if entry.name.strip_suffix(".tmp").and_then(SegmentId::from_file_name).is_some() {
            disk.remove(&directory.join(&entry.name))?;
        }
    }
    found.sort_by_key(|file| file.segment);
    Ok(found)
}

/// Does one job. Blocks.
pub fn perform_job<D: Disk>(disk: &D, place: &SegmentPlace<'_>, job: SegmentJob) -> SegmentDone<D::File> {
    let directory = place.directory;
    let result = match job {
        SegmentJob::Create(segment) => within_budget(disk, place)
            .and_then(|()| create_segment(disk, directory, segment, place.segment_bytes))
            .map(SegmentDone::Ready),
        SegmentJob::Reopen(segment) => open_segment(disk, directory, segment).map(SegmentDone::Ready),
        SegmentJob::Delete(segment) => disk
            .remove(&directory.join(segment.file_name()))
            .and_then(|()| disk.sync_directory(directory))
            .map(|()| SegmentDone::Deleted(segment)),
    };
    result.unwrap_or_else(|error| SegmentDone::Failed(job, error))
}

fn within_budget<D: Disk>(disk: &D, place: &SegmentPlace<'_>) -> io::Result<()> {
    let Some(budget) = place.segments_max else { return Ok(()) };
    let existing = disk.list(place.directory)?;
    let existing = existing.iter().filter(|entry| SegmentId::from_file_name(&entry.name).is_some()).count();
    if (existing as u64) < budget { Ok(()) } else { Err(io::Error::from(io::ErrorKind::StorageFull)) }
}
