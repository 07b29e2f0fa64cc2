//! Large commands in slices, and the bounds of what a shard holds: what others see in between, and that slices leave no
//! trace in the state.

use super::*;

/// Items of a command that is far larger than one step applies.
const ITEMS: usize = 6_000;

fn many(count: usize, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..count {
        items::push(&mut bytes, format!("k{number}").as_bytes(), value.as_bytes());
    }
    bytes
}

/// One call of background work; whether more is left.
fn slice(world: &mut World, number: usize, units: usize) -> bool {
    let mut effects = Effects::default();
    let now = world.now;
    let left = world.strands[number].shard.work(now, units, &mut effects).unwrap();
    world.take(number, effects);
    left == Left::More
}

/// Syncs, delivers and works, so many units a call, until nothing moves.
fn settle(world: &mut World, units: usize) {
    loop {
        let before: usize = world.strands.iter().map(|strand| strand.log.len()).sum();
        world.settle();
        let mut moved = false;
        for number in 0..world.strands.len() {
            // As the driver does: a shard that says it has no work gets no call, and must not need one.
            moved |= world.strands[number].shard.has_work() && slice(world, number, units);
        }
        let after: usize = world.strands.iter().map(|strand| strand.log.len()).sum();
        if !moved && before == after && world.messages.is_empty() {
            return;
        }
    }
}

fn digest(world: &World, number: usize) -> (usize, crate::state::Digest) {
    let keys = &world.strands[number].shard.state().keys;
    (keys.len(), keys.digest())
}

fn bulk<'a>(op: Op, items: &'a [u8]) -> Record<'a> {
    Record::plain(op, b"", items)
}

/// What a read of two keys tells: how many of them are there, of the answer's {found u8, version 12, length u32, value}.
fn found_of(answer: &str) -> usize {
    let bytes: Vec<u8> = answer.trim_matches(['[', ']']).split(", ").map(|n| n.parse().unwrap()).collect();
    let first = usize::from(bytes[0]);
    let length = u32::from_le_bytes(bytes[13..17].try_into().unwrap()) as usize;
    first + usize::from(bytes[17 + length])
}

#[test]
fn a_large_command_never_takes_more_than_its_slice() {
    let mut world = World::new(1, Floor::Always);
    let items = many(ITEMS, "1");
    let token = world.send(0, &bulk(Op::BulkSet, &items));
    world.sync(0);
    let mut before = world.strands[0].shard.state().keys.len();
    assert!(before > 0 && before <= STEP_UNITS as usize, "{before} records in one step");
    let mut calls = 0;
    while slice(&mut world, 0, 100) {
        let now = world.strands[0].shard.state().keys.len();
        assert!(now - before <= 100, "{} records in a slice of 100 units", now - before);
        before = now;
        calls += 1;
    }
    assert!(calls >= (ITEMS - STEP_UNITS as usize) / 100, "{calls} slices");
    assert_eq!(world.reply(0, token), Some("\"result\":6000"));
    let deleted = world.send(0, &bulk(Op::BulkDelete, &items));
    world.sync(0);
    assert_eq!(world.reply(0, deleted), None);
    settle(&mut world, 100);
    assert_eq!(world.reply(0, deleted), Some("\"result\":6000"));
    assert!(world.strands[0].shard.state().keys.is_empty() && world.strands[0].shard.is_quiet());
}

#[test]
fn nobody_sees_half_a_command() {
    for local in [0, flag::LOCAL] {
        let mut world = World::new(1, Floor::Always);
        let (items, ends) = (many(5 * ITEMS, "1"), items_of(&[("k0", ""), ("k29999", "")]));
        let both = Record { flags: local, ..Record::plain(Op::ReadMany, b"", &ends) };
        let one = Record { flags: local, ..Record::plain(Op::Get, b"k0", b"") };
        let before = world.send(0, &both);
        world.settle();
        assert_eq!(found_of(world.reply(0, before).unwrap()), 0);
        world.send(0, &bulk(Op::BulkSet, &items));
        world.sync(0);
        let mut reads = Vec::new();
        loop {
            let tokens = [world.send(0, &both), world.send(0, &one)];
            let half = world.strands[0].shard.state().keys.len() < 5 * ITEMS;
            assert!(
                !half || tokens.iter().all(|token| world.reply(0, *token).is_none()),
                "held while half done"
            );
            reads.push(tokens);
            if !slice(&mut world, 0, 500) {
                break;
            }
        }
        assert!(reads.len() > 5);
        world.settle();
        for [both, one] in reads {
            assert_eq!(found_of(world.reply(0, both).expect("answered")), 2);
            assert_eq!(world.reply(0, one), Some("\"result\":1"));
        }
    }
}

#[test]
fn slices_leave_no_trace_in_the_state() {
    let (items, fewer) = (many(ITEMS, "1"), many(ITEMS / 2, ""));
    let mut wanted = None;
    for units in [7, 100, 1_000_000] {
        let mut world = World::new(1, Floor::Always);
        let session = Some(Session { client: b"c", seq: 1, acked: 0 });
        world.send(0, &Record { session, ..bulk(Op::BulkSet, &items) });
        world.send(0, &bulk(Op::BulkDelete, &fewer));
        world.send(0, &set("k1", "2"));
        settle(&mut world, units);
        let found = digest(&world, 0);
        assert_eq!(found.0, ITEMS / 2 + 1);
        assert_eq!(*wanted.get_or_insert(found), found, "in slices of {units} units");
        let again = world.send(0, &Record { session, ..bulk(Op::BulkSet, &items) });
        settle(&mut world, units);
        assert_eq!(world.reply(0, again), Some("\"result\":6000"), "a retry is answered and not applied");
        assert_eq!(digest(&world, 0), found);
    }
    // A crash between any two slices: what is durable is applied again, all of it.
    for slices in [0, 1, 5, 20] {
        let mut world = World::new(1, Floor::Always);
        let session = Some(Session { client: b"c", seq: 1, acked: 0 });
        world.send(0, &Record { session, ..bulk(Op::BulkSet, &items) });
        world.send(0, &bulk(Op::BulkDelete, &fewer));
        world.send(0, &set("k1", "2"));
        world.sync(0);
        world.sync(0);
        for _ in 0..slices {
            slice(&mut world, 0, 100);
        }
        world.crash(0);
        settle(&mut world, 300);
        assert!(world.strands[0].shard.is_ready());
        assert_eq!(Some(digest(&world, 0)), wanted, "after {slices} slices");
    }
}

#[test]
fn a_snapshot_holds_whole_commands() {
    let mut world = World::new(1, Floor::Always);
    let items = many(ITEMS, "1");
    world.ask(0, &set("first", "1"));
    world.send(0, &bulk(Op::BulkSet, &items));
    world.sync(0);
    let asked = world.send(0, &Record::plain(Op::Snapshot, b"", b""));
    let mut runs_while_half_done = false;
    while world.strands[0].shard.slices.is_half_done() {
        runs_while_half_done |= world.strands[0].shard.snapshot_runs();
        slice(&mut world, 0, 200);
    }
    assert!(!runs_while_half_done, "none begins inside a command");
    // This one changes every table while the snapshot is being written.
    let other = many(ITEMS, "22");
    slice(&mut world, 0, 200);
    world.send(0, &bulk(Op::BulkSet, &other));
    for _ in 0..200 {
        world.work(0);
    }
    settle(&mut world, 200);
    assert_eq!(world.reply(0, asked), Some(""));
    let wanted = digest(&world, 0);
    world.crash(0);
    settle(&mut world, 200);
    assert_eq!(digest(&world, 0), wanted, "snapshot and log make the same state");
}

#[test]
fn transactions_are_installed_in_slices() {
    for kind in [Kind::Set, Kind::Delete] {
        let mut world = World::new(2, Floor::Always);
        let (first, second) = (many(ITEMS, "1"), many(ITEMS, "2"));
        if kind == Kind::Delete {
            world.send(0, &bulk(Op::BulkSet, &first));
            world.send(1, &bulk(Op::BulkSet, &second));
            settle(&mut world, 1000);
        }
        let value = start_txn(kind, &[(0, &first), (1, &second)]);
        let txn = world.send(0, &Record::plain(Op::TxnStart, b"", &value));
        let ends = items_of(&[("k0", ""), ("k5999", "")]);
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        for round in 0..400 {
            world.settle();
            for number in 0..2 {
                if world.strands[number].shard.has_work() {
                    slice(&mut world, number, 200);
                }
            }
            if round % 10 == 0 {
                for flags in [0, flag::LOCAL] {
                    reads.push(world.send(1, &Record { flags, ..Record::plain(Op::ReadMany, b"", &ends) }));
                }
                writes.push(world.send(1, &set("other", "1")));
            }
        }
        settle(&mut world, 200);
        assert_eq!(world.reply(0, txn), Some("\"result\":12000"));
        let seen: Vec<usize> = reads.iter().map(|read| found_of(world.reply(1, *read).unwrap())).collect();
        assert!(seen.iter().all(|found| *found == 0 || *found == 2), "{seen:?}");
        assert!(writes.iter().all(|write| world.reply(1, *write) == Some("")));
        for strand in &world.strands {
            assert!(strand.shard.is_quiet() && strand.shard.txns.is_idle() && strand.shard.locks.is_empty());
            assert_eq!(strand.shard.outstanding_bytes(), 0, "all bytes are given back");
        }
    }
}

/// Large transactions over the same keys, in opposite order of arrival, beside writes of these keys: all end, each whole.
#[test]
fn large_transactions_in_conflict_all_end() {
    let mut world = World::new(2, Floor::Always);
    let mut tokens = Vec::new();
    let mut writes = Vec::new();
    for round in 0..4 {
        let value = round.to_string();
        let (first, second) = (many(ITEMS, &value), many(ITEMS, &value));
        let value = start_txn(Kind::Set, &[(0, &first), (1, &second)]);
        tokens.push(world.send(0, &Record::plain(Op::TxnStart, b"", &value)));
        world.sync(0);
        for number in [1, 0] {
            let messages = std::mem::take(&mut world.messages);
            for message in messages {
                world.step(message.to.0 as usize, Some(Event::Message(message)));
            }
            writes.push((number, world.send(number, &set(&format!("k{round}"), "\"mine\""))));
            slice(&mut world, number, 300);
        }
    }
    for _ in 0..3000 {
        world.settle();
        for number in 0..2 {
            if world.strands[number].shard.has_work() {
                slice(&mut world, number, 1000);
            }
        }
    }
    for token in tokens {
        assert_eq!(world.reply(0, token), Some("\"result\":12000"));
    }
    for (number, token) in writes {
        assert_eq!(world.reply(number, token), Some(""));
    }
    assert_eq!(world.get(0, "k5999"), world.get(1, "k5999"), "each transaction is whole");
    for strand in &world.strands {
        assert!(strand.shard.is_quiet() && strand.shard.txns.is_idle() && strand.shard.locks.is_empty());
        assert_eq!((strand.shard.outstanding_bytes(), strand.shard.locks.waiting()), (0, 0));
    }
}

/// The coordinator gives up while a participant is still reserving keys: they are given back and nothing is installed.
#[test]
fn a_reservation_that_is_given_up_leaves_nothing() {
    let mut world = World::new(2, Floor::Always);
    let items = many(ITEMS, "1");
    let value = start_txn(Kind::Set, &[(0, &items), (1, &items)]);
    let token = world.send(0, &Record::plain(Op::TxnStart, b"", &value));
    world.sync(0);
    for message in std::mem::take(&mut world.messages) {
        world.step(message.to.0 as usize, Some(Event::Message(message)));
    }
    assert!(!world.strands[1].shard.slices.reservations.is_empty());
    let write = world.send(1, &set("k0", "2"));
    assert_eq!(world.reply(1, write), None, "the key is reserved");
    world.now.0 += 4900;
    for number in [0, 0, 0, 0] {
        world.now.0 += 200;
        world.step(number, None);
        world.sync(number);
    }
    let finish =
        |message: &&GroupMessage| matches!(message.body, crate::txn::message::Message::Finish { .. });
    assert!(world.messages.iter().any(|message| finish(&message)), "the coordinator has given up");
    settle(&mut world, 300);
    assert!(world.reply(0, token).unwrap().contains("TIMEOUT"));
    assert!(world.strands[1].shard.state().keys.len() <= 1);
    for strand in &world.strands {
        assert!(strand.shard.is_quiet() && strand.shard.txns.is_idle() && strand.shard.locks.is_empty());
    }
}

#[test]
fn admitted_bytes_have_a_bound() {
    let mut world = World::new(1, Floor::Always);
    world.strands[0].shard.config.outstanding_bytes_max = 10_000;
    let large = format!("\"{}\"", "x".repeat(1500));
    let mut tokens = Vec::new();
    for number in 0..10 {
        tokens.push(world.send(0, &set(&format!("k{number}"), &large)));
        let shard = &world.strands[0].shard;
        assert!(shard.outstanding_bytes() <= 10_000);
        assert_eq!(shard.has_room(), shard.outstanding_bytes() < 5_000, "the driver stops at half of it");
    }
    let read = world.send(0, &Record::plain(Op::Get, b"k0", b""));
    world.settle();
    let refused = |token: &&u64| world.reply(0, **token).unwrap().contains("OVERLOADED");
    assert_eq!(tokens.iter().filter(refused).count(), 4, "six of them fit");
    assert_eq!(world.reply(0, read), Some(format!("\"result\":{large}").as_str()));
    assert_eq!(world.strands[0].shard.outstanding_bytes(), 0);
    assert_eq!(world.ask(0, &set("k9", &large)), "", "there is room again");
    // A command that is larger than the bound is let in alone, or it could never be.
    let huge = format!("\"{}\"", "x".repeat(20_000));
    assert_eq!(world.ask(0, &set("huge", &huge)), "");
}

#[test]
fn what_waits_counts_as_memory() {
    let mut world = World::new(1, Floor::Always);
    let shard = &mut world.strands[0].shard;
    shard.config.memory_bytes_max = shard.memory_bytes() + 5_000;
    let value = format!("\"{}\"", "x".repeat(800));
    let tokens: Vec<u64> = (0..8).map(|number| world.send(0, &set(&format!("k{number}"), &value))).collect();
    let refused = |token: &&u64| world.reply(0, **token).is_some_and(|text| text.contains("OUT_OF_MEMORY"));
    assert_eq!(tokens.iter().filter(refused).count(), 2, "nothing is applied yet, and yet some are refused");
    world.strands[0].shard.searches.bytes = 1 << 20;
    assert!(world.ask(0, &set("a", "1")).contains("OUT_OF_MEMORY"), "indexes count");
}

#[test]
fn a_prefix_goes_in_slices() {
    let mut world = World::new(1, Floor::Always);
    world.strands[0].shard.config.page_keys_max = 7;
    for number in 0..30 {
        world.ask(0, &set(&format!("p{number}"), "1"));
    }
    world.ask(0, &set("q", "1"));
    let mut cursor = Vec::new();
    let mut rounds = 0;
    loop {
        let token = world.send(0, &Record::plain(Op::DeletePrefix, b"p", &cursor));
        world.settle();
        let (kind, text) = &world.strands[0].replies[&token];
        assert_eq!(*kind, ReplyKind::Part);
        let body: Vec<u8> = text.trim_matches(['[', ']']).split(", ").map(|n| n.parse().unwrap()).collect();
        rounds += 1;
        cursor = body[8..].to_vec();
        if cursor == [0] {
            break;
        }
    }
    assert!(rounds >= 5);
    assert_eq!(world.strands[0].shard.state().keys.len(), 1);
}

#[test]
fn bounds_refuse_writes_and_not_reads() {
    let mut world = World::new(1, Floor::Always);
    world.ask(0, &set("a", "1"));
    world.strands[0].shard.config.memory_bytes_max = 1;
    assert!(world.ask(0, &set("b", "1")).contains("OUT_OF_MEMORY"));
    world.strands[0].shard.config.memory_bytes_max = 0;
    world.step(0, Some(Event::LogRoom(false)));
    assert!(world.ask(0, &set("b", "1")).contains("DISK_FULL"));
    assert_eq!(world.get(0, "a"), "\"result\":1");
    world.step(0, Some(Event::LogRoom(true)));
    assert_eq!(world.ask(0, &set("b", "1")), "");
}
