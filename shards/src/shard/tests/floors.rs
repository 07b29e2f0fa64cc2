//! Floors of durability below `always`: who waits for what, and what a snapshot may cut.

use super::*;

#[test]
fn weaker_floors_answer_at_once_and_fsync_waits() {
    let mut world = World::new(1, Floor::Interval);
    let token = world.send(0, &set("a", "1"));
    assert_eq!(world.strands[0].replies[&token], (ReplyKind::Ok, String::new()));
    let token = world.send(0, &Record { flags: flag::FSYNC, ..set("a", "2") });
    assert_eq!(world.reply(0, token), None);
    assert_eq!(world.get(0, "a"), "\"result\":2", "applied all the same");
    world.sync(0);
    assert!(world.reply(0, token).is_some());

    let mut cache = World::new(1, Floor::Off);
    let token = cache.send(0, &Record { flags: flag::FSYNC, ..set("a", "2") });
    assert_eq!((cache.strands[0].replies[&token].0, cache.strands[0].log.len()), (ReplyKind::Error, 0));
}

/// Seed 73 of the simulator: under `interval` a snapshot was kept before the log had synced what is in it, and the cut of the
/// log met an assertion: the process died.
#[test]
fn a_snapshot_ahead_of_the_sync_cuts_nothing_until_then() {
    let mut world = World::new(1, Floor::Interval);
    world.sync(0);
    world.settle();
    world.send(0, &set("a", "1"));
    let token = world.send(0, &Record::plain(Op::Snapshot, b"", b""));
    let logged = world.strands[0].log.len();
    let mut cut = false;
    for _ in 0..100 {
        world.work(0);
        cut |= world.strands[0].log.len() < logged;
    }
    assert!(world.reply(0, token).is_some(), "the snapshot stands");
    assert!(!cut, "what is not durable is not cut");
    world.sync(0);
    assert!(world.strands[0].log.len() < logged, "once durable it is");
}
