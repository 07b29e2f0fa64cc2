//! What a coordinator says at each answer, by itself.

use super::*;

const NOW: Millis = Millis(1000);

fn plan(kind: Kind) -> Plan {
    let parts = vec![(GroupId(0), b"x".to_vec()), (GroupId(2), b"y".to_vec())];
    Plan { kind, debug: false, parts, deadline: Millis(9000) }
}

fn txn() -> TxnId {
    TxnId { group: GroupId(0), opened: Version::new(0, 5, 0) }
}

fn prepared(attempt: u32, index: u64) -> Message {
    let place = Version::new(0, index, 0);
    Message::Prepared { txn: txn(), attempt, place, count: 1, values: vec![index as u8] }
}

#[test]
fn the_straight_way() {
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.opened(txn().opened, plan(Kind::Set), NOW, &mut actions);
    assert_eq!(actions.len(), 2);
    actions.clear();
    coordinator.answer(GroupId(2), prepared(1, 7), NOW, &mut actions);
    assert!(actions.is_empty());
    coordinator.answer(GroupId(0), prepared(1, 8), NOW, &mut actions);
    let prepares = vec![(GroupId(0), Version::new(0, 8, 0)), (GroupId(2), Version::new(0, 7, 0))];
    assert_eq!(actions, [Action::Decide(Decide { txn: txn(), commit: true, result: 2, prepares })]);
    actions.clear();
    coordinator.decided(txn().opened, true, NOW, &mut actions);
    let finish = |group, index| {
        let commit = Some(Version::new(0, index, 0));
        Action::Send(GroupId(group), Message::Finish { txn: txn(), commit, attempt: LAST_TRY })
    };
    assert_eq!(actions, [finish(0, 8), finish(2, 7)]);
    actions.clear();
    let early = Message::Finished { txn: txn(), attempt: 1 };
    coordinator.answer(GroupId(2), early, NOW, &mut actions);
    coordinator.answer(GroupId(0), Message::Finished { txn: txn(), attempt: LAST_TRY }, NOW, &mut actions);
    coordinator.answer(GroupId(0), Message::Finished { txn: txn(), attempt: LAST_TRY }, NOW, &mut actions);
    assert!(actions.is_empty());
    coordinator.answer(GroupId(2), Message::Finished { txn: txn(), attempt: LAST_TRY }, NOW, &mut actions);
    assert_eq!(actions, [Action::Forget(txn())]);
    assert!(coordinator.is_empty());
}

#[test]
fn a_refused_try_backs_out_and_goes_in_order() {
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.opened(txn().opened, plan(Kind::Read), NOW, &mut actions);
    actions.clear();
    coordinator.answer(GroupId(0), Message::Refused { txn: txn(), attempt: 1 }, NOW, &mut actions);
    coordinator.answer(GroupId(2), prepared(1, 7), NOW, &mut actions);
    assert_eq!(actions.len(), 2, "both are told to drop: {actions:?}");
    actions.clear();
    coordinator.answer(GroupId(2), Message::Finished { txn: txn(), attempt: 1 }, NOW, &mut actions);
    coordinator.answer(GroupId(0), Message::Finished { txn: txn(), attempt: 1 }, NOW, &mut actions);
    assert!(matches!(
        actions[..],
        [Action::Send(GroupId(0), Message::Prepare { wait: true, attempt: 2, .. })]
    ));
    actions.clear();
    coordinator.answer(GroupId(2), prepared(1, 7), NOW, &mut actions);
    assert!(matches!(actions[..], [Action::Send(_, Message::Finish { attempt: 1, .. })]), "{actions:?}");
    actions.clear();
    coordinator.answer(GroupId(0), prepared(2, 9), NOW, &mut actions);
    assert!(matches!(actions[..], [Action::Send(GroupId(2), Message::Prepare { .. })]));
    actions.clear();
    coordinator.answer(GroupId(2), prepared(2, 10), NOW, &mut actions);
    assert_eq!(actions[0], Action::Values(txn(), vec![9, 10]));
    assert!(matches!(&actions[1], Action::Decide(decide) if !decide.commit));
}

/// Seeds 71, 778 and 858 of the simulator: an intent of the first try, made by a PREPARE that came twice, was never dropped. Its
/// transaction waited in another group for one that waited here for it.
#[test]
fn what_is_left_of_an_earlier_try_is_dropped() {
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.opened(txn().opened, plan(Kind::Set), NOW, &mut actions);
    let record = Record {
        kind: Kind::Set,
        fingerprint: 0,
        participants: vec![GroupId(0), GroupId(2)],
        origin: None,
        status: Status::Pending,
    };
    actions.clear();
    coordinator.asked(GroupId(2), txn(), Some(&record), &mut actions);
    assert!(actions.is_empty(), "the first try is under way");
    coordinator.answer(GroupId(0), Message::Refused { txn: txn(), attempt: 1 }, NOW, &mut actions);
    coordinator.answer(GroupId(2), prepared(1, 7), NOW, &mut actions);
    for group in [0, 2] {
        let finished = Message::Finished { txn: txn(), attempt: 1 };
        coordinator.answer(GroupId(group), finished, NOW, &mut actions);
    }
    let drop = [Action::Send(GroupId(2), Message::Finish { txn: txn(), commit: None, attempt: 1 })];
    actions.clear();
    coordinator.answer(GroupId(2), prepared(1, 9), NOW, &mut actions);
    assert_eq!(actions, drop);
    actions.clear();
    coordinator.asked(GroupId(2), txn(), Some(&record), &mut actions);
    assert_eq!(actions, drop);
}

#[test]
fn late_ones_abort_and_unknown_ones_are_aborted() {
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.opened(txn().opened, plan(Kind::Set), NOW, &mut actions);
    actions.clear();
    coordinator.tick(Millis(1600), &mut actions);
    assert_eq!(actions.len(), 2, "said again");
    actions.clear();
    coordinator.tick(Millis(9000), &mut actions);
    assert!(matches!(&actions[..], [Action::Decide(decide)] if !decide.commit));
    actions.clear();
    coordinator.asked(GroupId(2), txn(), None, &mut actions);
    let dropped = Message::Finish { txn: txn(), commit: None, attempt: LAST_TRY };
    assert_eq!(actions, [Action::Send(GroupId(2), dropped)]);
}

#[test]
fn what_may_be_lost_is_said_again() {
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.opened(txn().opened, plan(Kind::Set), NOW, &mut actions);
    coordinator.answer(GroupId(0), prepared(1, 8), NOW, &mut actions);
    let mut said_again_after = |coordinator: &mut Coordinator, from: u64| {
        let mut waits = |ms: &u64| {
            actions.clear();
            coordinator.tick(Millis(from + *ms), &mut actions);
            matches!(actions[..], [Action::Send(GroupId(2), Message::Prepare { .. })])
        };
        (0..2000).step_by(50).filter(&mut waits).collect::<Vec<u64>>()
    };
    assert_eq!(said_again_after(&mut coordinator, NOW.0), [500, 1000, 1500]);

    // Another leader listens from now on: it is told at once what it is asked, and nobody else is.
    let mut actions = Vec::new();
    coordinator.leader_changed(GroupId(0), Millis(3000), &mut actions);
    assert!(actions.is_empty(), "that one has answered");
    coordinator.leader_changed(GroupId(2), Millis(3000), &mut actions);
    assert!(matches!(actions[..], [Action::Send(GroupId(2), Message::Prepare { .. })]), "{actions:?}");
    coordinator.tick(Millis(3450), &mut actions);
    assert_eq!(actions.len(), 1);
    coordinator.tick(Millis(3500), &mut actions);
    assert_eq!(actions.len(), 2, "it may not have been ready to listen");
    coordinator.answer(GroupId(2), prepared(1, 9), Millis(3100), &mut actions);
    coordinator.decided(txn().opened, true, Millis(3100), &mut actions);
    coordinator.answer(
        GroupId(0),
        Message::Finished { txn: txn(), attempt: LAST_TRY },
        Millis(3100),
        &mut actions,
    );
    actions.clear();
    for group in [0, 2] {
        coordinator.leader_changed(GroupId(group), Millis(3101), &mut actions);
    }
    assert!(matches!(actions[..], [Action::Send(GroupId(2), Message::Finish { .. })]), "{actions:?}");
}

#[test]
fn a_new_leader_aborts_the_pending_and_finishes_the_decided() {
    let record = |status| Record {
        kind: Kind::Set,
        fingerprint: 0,
        participants: vec![GroupId(0), GroupId(2)],
        origin: None,
        status,
    };
    let place = Version::new(0, 4, 0);
    let pending = record(Status::Pending);
    let committed = record(Status::Committed(vec![(GroupId(0), place), (GroupId(2), place)]));
    let records = [(Version::new(0, 1, 0), &pending), (Version::new(0, 2, 0), &committed)];
    let mut coordinator = Coordinator::new(GroupId(0));
    let mut actions = Vec::new();
    coordinator.take_over(records.into_iter(), NOW, &mut actions);
    assert!(matches!(&actions[0], Action::Decide(decide) if !decide.commit));
    let txn = TxnId { group: GroupId(0), opened: records[1].0 };
    let finish = Message::Finish { txn, commit: Some(place), attempt: LAST_TRY };
    assert_eq!(actions[1..], [Action::Send(GroupId(0), finish.clone()), Action::Send(GroupId(2), finish)]);
}
