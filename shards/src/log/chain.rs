//! Which segments may be the live log: the chain that links lead back along, to a segment that can be the first.
//!
//! Knows only what headers and the manifest state (see `replay`), and never reads a file.

use super::header::BatchHeader;
use super::{SegmentEpoch, SegmentId};
use crate::ids::Sequence;
use std::collections::BTreeMap;

/// What sound headers state, wherever they were found.
#[derive(Default)]
pub(super) struct Statements {
    pub(super) durable_upto: Sequence,
    pub(super) durable_in: SegmentId,
    /// What the manifest says of the same.
    pub(super) manifest_upto: Sequence,
    pub(super) oldest_epoch: SegmentEpoch,
    pub(super) highest_epoch: SegmentEpoch,
    /// Which segment each one follows and which file it is in, of those of which any header is legible.
    pub(super) links: BTreeMap<SegmentEpoch, (SegmentEpoch, SegmentId)>,
}

/// Segments with valid starts that may be the live log, oldest first.
pub(super) struct Chain {
    pub(super) segments: Vec<(SegmentId, BatchHeader)>,
    /// A newer segment that was passed over because the epoch it follows is missing.
    pub(super) broken: Option<(SegmentId, SegmentEpoch)>,
}

/// The chain of the newest segment that leads back without a gap to a segment that is the oldest needed, or the first of all.
/// A segment that a gap cuts off was never durable, or the statements found later prove otherwise. Heads are looked for along
/// the links from the highest epoch of which anything is legible: a segment beside that path was left behind by an earlier
/// recovery and never counts again, even if what came after it is torn. Where the path is lost, every older start may be one.
pub(super) fn chain_of(starts: &[(SegmentId, BatchHeader)], statements: &Statements) -> Chain {
    let mut broken = None;
    let mut head = statements.highest_epoch;
    while head != SegmentEpoch(0) {
        let after = match chain_from(starts, head, statements) {
            Ok(segments) => return Chain { segments, broken },
            Err(after) => after,
        };
        broken = broken.or(after);
        head = match statements.links.get(&head) {
            Some((previous, _)) => *previous,
            None => {
                let older = starts.iter().rev().map(|(_, start)| start.epoch).find(|epoch| *epoch < head);
                older.unwrap_or(SegmentEpoch(0))
            }
        };
    }
    Chain { segments: Vec::new(), broken }
}

/// The chain that ends with segment `head`, or the segment in it whose predecessor is missing, with that one's epoch.
#[expect(clippy::type_complexity, reason = "segments with their starts, or where they end")]
fn chain_from(
    starts: &[(SegmentId, BatchHeader)],
    head: SegmentEpoch,
    statements: &Statements,
) -> Result<Vec<(SegmentId, BatchHeader)>, Option<(SegmentId, SegmentEpoch)>> {
    let mut segments = Vec::new();
    let mut link = head;
    while let Ok(place) = starts.binary_search_by_key(&link, |(_, start)| start.epoch) {
        let (segment, start) = starts[place];
        segments.push((segment, start));
        link = start.previous_epoch;
        let may_be_first = start.epoch <= statements.oldest_epoch || link == SegmentEpoch(0);
        // Only what is durable is cut off, so what came before the log's first segment was. Where nothing states that, the start
        // is of a life that a recovery gave up, and what it follows was torn.
        let durable = statements.durable_upto.max(statements.manifest_upto);
        if may_be_first && start.sequence.0 <= durable.0 + 1 {
            segments.reverse();
            return Ok(segments);
        }
    }
    Err(segments.last().map(|(segment, _)| (*segment, link)))
}
