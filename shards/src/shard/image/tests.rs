//! What recovery makes of a log that a crash cut off inside a segment's beginning.

use super::*;
use crate::log::SegmentId;
use crate::log::payload::GroupStartV1;

/// Seeds 3128 and 3808 of the simulator: a follower's log began a segment with the batch of entry 2, and the power cut
/// kept the segment's start and not that batch. The start told that entry 2 was committed, so the replica took a torn
/// tail for damage and refused to start.
///
/// Seed 15798: the batch would have replaced entry 1 and committed what it put there. Cut short, the start made the old entry
/// 1 count as committed, which no other replica had: replicas of one group that differ, for good.
#[test]
fn a_start_without_its_batch_is_no_damage_and_commits_nothing() {
    let group = GroupId(0);
    let mut builder = ImageBuilder::new(group, None, SessionLimits::default());
    let mut payload = PayloadBuffer::new();
    let mut take = |kind, sequence, payload: &[u8]| {
        let sequence = Sequence(sequence);
        builder.batch(&ReplayedBatch { kind, group, sequence, payload, segment: SegmentId(1), offset: 0 });
    };
    let entries = vec![Entry { term: 1, index: 1, ..Entry::default() }];
    let hard_state = HardState { term: 1, vote: 1, commit: 0, ..HardState::default() };
    let append = Append { sequence: Sequence(1), hard_state, reset: None, entries };
    encode_append(&append, &mut payload);
    take(BatchKind::Entries, 1, &payload);
    let hard_state = HardStateV1 { term: 2, vote: 3, commit: 2 };
    let configuration = ConfigurationV1 { voters: &[LONE_REPLICA], ..ConfigurationV1::default() };
    StartV1 { groups: &[GroupStartV1 { group: 0, epoch: 1, hard_state, configuration }] }
        .encode(&mut payload);
    take(BatchKind::SegmentStart, 1, &payload);
    let image = builder.finish(Sequence(1)).unwrap();
    let found = &image.group.hard_state;
    assert_eq!(
        (found.term, found.vote, found.commit),
        (2, 3, 0),
        "a promise is kept, a commit needs its entry"
    );
}
