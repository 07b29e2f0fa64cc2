//! Steps of a transaction that come twice, as links between nodes may bring them: what the second one must not do.

use super::*;
use crate::ids::Version;
use crate::txn::TxnId;
use crate::txn::message::Message;

/// A transaction of group 0, which the test plays.
fn txn(number: u64) -> TxnId {
    TxnId { group: GroupId(0), opened: Version::new(1, number, 0) }
}

fn tell(world: &mut World, body: Message) {
    world.step(1, Some(Event::Message(GroupMessage { from: GroupId(0), to: GroupId(1), body })));
}

fn prepare(world: &mut World, txn: TxnId, attempt: u32) {
    let (items, deadline) = (items_of(&[("k", "1")]), Millis(world.now.0 + 5000));
    tell(
        world,
        Message::Prepare { txn, attempt, wait: false, kind: Kind::Set, debug: false, items, deadline },
    );
}

/// Syncs and delivers what the participant does alone, and says what it answered.
fn answers(world: &mut World) -> Vec<Message> {
    world.sync(1);
    world.sync(1);
    std::mem::take(&mut world.messages).into_iter().map(|message| message.body).collect()
}

fn is_prepared(answers: &[Message], of: TxnId, with: u32) -> bool {
    matches!(answers, [Message::Prepared { txn, attempt, .. }] if *txn == of && *attempt == with)
}

/// Seeds 3669 and 3960 of the simulator: a PREPARE and its FINISH came twice, and the coordinator, which had its answer to the
/// first of them, began its next try while the second FINISH was on its way through the log.
#[test]
fn a_try_that_begins_before_the_last_one_has_ended_is_not_heard_yet() {
    let mut world = World::new(2, Floor::Always);
    let (first, other) = (txn(1), txn(2));
    prepare(&mut world, first, 1);
    assert!(is_prepared(&answers(&mut world), first, 1));
    tell(&mut world, Message::Finish { txn: first, commit: None, attempt: 1 });
    prepare(&mut world, first, 2);
    world.sync(1);
    // The FINISH has let go of the key, so this one may have it.
    prepare(&mut world, other, 1);
    let said = answers(&mut world);
    let [Message::Finished { attempt: 1, .. }, rest @ ..] = &said[..] else { panic!("{said:?}") };
    assert!(is_prepared(rest, other, 1), "{rest:?}");

    prepare(&mut world, first, 2);
    assert_eq!(answers(&mut world), [Message::Refused { txn: first, attempt: 2 }]);
    let done = Message::Finish { txn: other, commit: None, attempt: 1 };
    tell(&mut world, done);
    assert_eq!(answers(&mut world), [Message::Finished { txn: other, attempt: 1 }]);
    prepare(&mut world, first, 2);
    assert!(
        is_prepared(&answers(&mut world), first, 2),
        "said again when the first try has ended, it is heard"
    );
}
