//! Several replicas of several groups in a simulated world: what must hold whatever fails.
//!
//! `STRAND_CLUSTER_SEEDS` says how many seeds each randomized test runs; a failure names its seed.

mod chance;
mod clients;
mod disk;
mod history;
mod network;
mod world;

use chance::Chance;
use clients::{Client, End, Wish, increments, turn};
use shards::consensus::membership::MemberChange;
use shards::consensus::progress::{Follower, MemberRefusal};
use shards::event::Event;
use shards::ids::{Millis, NodeNumber, ReplicaId};
use shards::shard::Shard;
use shards::shard::image::Founding;
use world::{Shape, World};

#[allow(clippy::disallowed_methods, reason = "how long a test looks is no input of the engine")]
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("STRAND_CLUSTER_SEEDS").ok().and_then(|text| text.parse().ok());
    0..asked.unwrap_or(usual)
}

fn shard(world: &mut World, node: u16, group: u32) -> &mut Shard {
    let replica = world.replicas.get_mut(&(node, group)).expect("it is placed");
    replica.shard.as_mut().expect("the node lives")
}

/// Runs until every client is idle.
fn drain(world: &mut World, clients: &mut [Client], ms: u64) {
    let end = world.now + ms;
    while clients.iter().any(|client| !client.is_idle()) {
        assert!(world.now < end, "a request is never answered");
        turn(world, clients);
    }
}

fn ask(world: &mut World, clients: &mut [Client], wish: Wish) -> End {
    clients[0].begin(world, wish);
    drain(world, clients, 20_000);
    clients[0].ends.last().expect("it ended").1.clone()
}

fn level(world: &mut World) {
    assert!(world.turn_until(30_000, |world| world.is_level()), "the replicas never agree");
    for group in 0..world.shape.groups {
        let leader = world.serving(group).expect("a level world has leaders");
        let members = shard(world, leader, group).progress();
        let records = world.records(leader, group);
        for member in members {
            let node = member.replica.node().0;
            assert!(world.records(node, group) == records, "node {node} differs in group {group}");
        }
    }
}

#[test]
fn three_replicas_serve_and_survive_the_loss_of_any_one() {
    for victim in 1..=3 {
        let mut world = World::new(Shape::of(3, 1), 1);
        let mut clients = [Client::new(0, 0, 1)];
        assert_eq!(
            ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into())),
            End::Done(String::new())
        );
        assert_eq!(world.serving(0), Some(1), "the preferred replica leads first");
        world.crash(victim);
        if clients[0].target() == victim {
            clients[0].lost(&mut world);
        }
        let before = world.now;
        let read = ask(&mut world, &mut clients, Wish::Get("a".into()));
        assert_eq!(read, End::Done("\"result\":1".into()));
        assert!(world.now - before < 2000, "a leader's death costs {} ms", world.now - before);
        assert_eq!(
            ask(&mut world, &mut clients, Wish::Set("a".into(), "2".into())),
            End::Done(String::new())
        );
        world.start(victim);
        level(&mut world);
        assert_eq!(ask(&mut world, &mut clients, Wish::Get("a".into())), End::Done("\"result\":2".into()));
    }
}

/// A read that a leader cut off from its followers has in its hands is never answered from what it holds.
#[test]
fn a_leader_that_is_cut_off_answers_nothing() {
    let mut world = World::new(Shape::of(3, 1), 2);
    let mut clients = [Client::new(0, 0, 1), Client::new(1, 0, 1)];
    ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into()));
    let old = world.serving(0).expect("somebody leads");
    world.network.isolate(old, 3);
    clients[0].begin(&mut world, Wish::Get("a".into()));
    for _ in 0..20 {
        turn(&mut world, &mut clients);
    }
    assert!(clients[0].ends.len() == 1, "nobody could confirm the read");
    assert!(world.turn_until(3000, |world| world.serving(0).is_some_and(|node| node != old)));
    clients[1].begin(&mut world, Wish::Set("a".into(), "2".into()));
    drain(&mut world, &mut clients, 10_000);
    let (_, read) = clients[0].ends.last().expect("it ended");
    assert!(
        *read == End::Done("\"result\":1".into()) || *read == End::Done("\"result\":2".into()),
        "the read went to the new leader: {read:?}"
    );
    assert!(clients[0].refusals > 0, "the old leader gave it back");
    world.network.heal();
    level(&mut world);
    let mut history = clients[0].history.clone();
    history.extend(clients[1].history.clone());
    assert_eq!(history::check(&history), Ok(()));
}

#[test]
fn a_minority_refuses_in_time() {
    let mut world = World::new(Shape::of(3, 1), 3);
    let mut clients = [Client::new(0, 0, 1)];
    ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into()));
    world.crash(2);
    world.crash(3);
    let before = world.now;
    let read = ask(&mut world, &mut clients, Wish::Get("a".into()));
    assert!(matches!(&read, End::Failed(text) if text.contains("NO_QUORUM")), "{read:?}");
    assert!(world.now - before < 3500);
    world.start(2);
    assert!(world.turn_until(5000, |world| world.serving(0).is_some()));
    assert_eq!(ask(&mut world, &mut clients, Wish::Get("a".into())), End::Done("\"result\":1".into()));
}

#[test]
fn leadership_is_handed_over_without_a_gap() {
    let mut world = World::new(Shape::of(3, 1), 4);
    let mut clients = [Client::new(0, 0, 1)];
    ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into()));
    let to = ReplicaId::new(0, NodeNumber(3));
    shard(&mut world, 1, 0).transfer(to).expect("node 3 may lead");
    let before = world.now;
    assert!(world.turn_until(1000, |world| world.serving(0) == Some(3)));
    assert!(world.now - before < 200, "a transfer costs {} ms", world.now - before);
    assert_eq!(ask(&mut world, &mut clients, Wish::Get("a".into())), End::Done("\"result\":1".into()));
    let until = Millis(world.now + 1000);
    world.replicas.get_mut(&(3, 0)).expect("it is placed").events.push(Event::Resign(until));
    assert!(world.turn_until(300, |world| world.serving(0).is_some_and(|node| node != 3)), "node 3 resigned");
}

#[test]
fn a_follower_far_behind_gets_a_snapshot() {
    let shape = Shape { retained_bytes_max: 4096, snapshot_log_bytes: 1 << 20, ..Shape::of(3, 1) };
    let mut world = World::new(shape, 5);
    let mut clients = [Client::new(0, 0, 1)];
    clients[0].depth = 32;
    ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into()));
    world.crash(3);
    for number in 0..2000 {
        while !clients[0].has_room() {
            turn(&mut world, &mut clients);
        }
        clients[0].begin(&mut world, Wish::Set(format!("k{}", number % 300), format!("\"{number}\"")));
    }
    drain(&mut world, &mut clients, 10_000);
    world.start(3);
    level(&mut world);
    assert!(shard(&mut world, 3, 0).counters().restores > 0, "the log alone could not fill it");
    // What it restored is what it recovers: the log began anew behind the snapshot.
    ask(&mut world, &mut clients, Wish::Set("b".into(), "2".into()));
    level(&mut world);
    world.crash(3);
    world.start(3);
    level(&mut world);
    assert_eq!(shard(&mut world, 3, 0).counters().restores, 0, "the second start needs no snapshot");
}

#[test]
fn members_come_and_go() {
    let mut world = World::new(Shape { founders: 3, ..Shape::of(4, 1) }, 6);
    let mut clients = [Client::new(0, 0, 1)];
    ask(&mut world, &mut clients, Wish::Set("a".into(), "1".into()));
    let newcomer = ReplicaId::new(1, NodeNumber(4));
    let gone = ReplicaId::new(0, NodeNumber(3));
    world.place(4, 0, Founding::Empty { replica: newcomer });
    world.start(4);
    shard(&mut world, 1, 0)
        .change_members(&[MemberChange::AddLearner(newcomer)])
        .expect("a learner may come");
    assert!(
        world.turn_until(10_000, |world| {
            let last = shard(world, 1, 0).group().last_index();
            let filled = |one: &Follower| one.replica == newcomer && one.keeps_up(last);
            shard(world, 1, 0).progress().iter().any(filled)
        }),
        "the newcomer is filled"
    );
    let swap = [MemberChange::Promote(newcomer), MemberChange::Remove(gone)];
    shard(&mut world, 1, 0).change_members(&swap).expect("the newcomer has caught up");
    assert_eq!(shard(&mut world, 1, 0).change_members(&swap), Err(MemberRefusal::Busy));
    assert!(world.turn_until(5000, |world| {
        let leader = shard(world, 1, 0);
        !leader.is_changing_members() && leader.group().conf_state().voters.contains(&newcomer.0)
    }));
    assert!(!shard(&mut world, 1, 0).group().conf_state().voters.contains(&gone.0));
    world.crash(3);
    world.crash(2);
    world.turn_until(500, |_| false);
    world.start(2);
    ask(&mut world, &mut clients, Wish::Set("a".into(), "2".into()));
    level(&mut world);
    let lost =
        shard(&mut world, 1, 0).change_members(&[MemberChange::Remove(ReplicaId::new(0, NodeNumber(9)))]);
    assert!(lost.is_err());
    world.crash(1);
    if clients[0].target() == 1 {
        clients[0].lost(&mut world);
    }
    assert_eq!(ask(&mut world, &mut clients, Wish::Get("a".into())), End::Done("\"result\":2".into()));
}

/// What a coordinator says to a leader that has just ceased to lead is heard by nobody: it is said again to the next one at
/// once, and not when a timer ends.
#[test]
fn a_batch_over_groups_does_not_wait_long_when_a_leader_moves() {
    let mut world = World::new(Shape::of(3, 2), 8);
    let mut clients = [Client::new(0, 0, 2)];
    ask(&mut world, &mut clients, Wish::SetAll("a".into(), "0".into()));
    let mut longest = 0;
    for number in 1..=60u16 {
        let leader = world.serving(1).expect("the other group is led");
        let to = ReplicaId::new(0, NodeNumber(1 + (leader + number) % 3));
        if to.node().0 != leader {
            shard(&mut world, leader, 1).transfer(to).expect("every replica may lead");
        }
        world.turn_until(u64::from(number % 7) * 5, |_| false);
        let before = world.now;
        let end = ask(&mut world, &mut clients, Wish::SetAll("a".into(), number.to_string()));
        assert_eq!(end, End::Done("\"result\":2".into()));
        longest = longest.max(world.now - before);
        // Who has given leadership away is left alone for a while.
        world.turn_until(3500, |_| false);
    }
    assert!(longest < 250, "a leader that moves costs a batch {longest} ms");
    level(&mut world);
}

/// Requests of one connection take effect in their order, whoever leads meanwhile.
#[test]
fn a_stream_keeps_its_order_across_leaders() {
    for seed in seeds(6) {
        let mut world = World::new(Shape::of(3, 1), 100 + seed);
        let mut clients = [Client::new(0, 0, 1)];
        clients[0].depth = 16;
        let mut chance = Chance::new(seed);
        for number in 0..400u64 {
            while !clients[0].has_room() {
                turn(&mut world, &mut clients);
            }
            clients[0].begin(&mut world, Wish::Increment("n".into()));
            if number % 50 == 25
                && let Some(leader) = world.serving(0)
            {
                let to = ReplicaId::new(0, NodeNumber(1 + chance.below(3) as u16));
                let _ = shard(&mut world, leader, 0).transfer(to);
            }
        }
        drain(&mut world, &mut clients, 30_000);
        let results: Vec<End> = clients[0].ends.iter().map(|(_, end)| end.clone()).collect();
        let expected: Vec<End> = (1..=400).map(|number| End::Done(format!("\"result\":{number}"))).collect();
        assert_eq!(results.len(), expected.len(), "seed {seed}");
        assert!(results == expected, "seed {seed}: {results:?}");
        assert!(clients[0].refusals > 0, "seed {seed}: leadership moved while requests were under way");
    }
}

/// Everything at once: two groups, several clients, crashes, partitions, bad links, transfers, snapshots.
#[test]
fn whatever_fails_nothing_acknowledged_is_lost() {
    for seed in seeds(12) {
        chaos(seed);
    }
}

fn chaos(seed: u64) {
    let mut chance = Chance::new(seed ^ 0xc4a0_5000);
    let weather = if chance.permille(500) { Shape::ROUGH } else { Shape::CALM };
    let nodes = if chance.permille(300) { 5 } else { 3 };
    let shape = Shape {
        weather,
        retained_bytes_max: 1 << chance.between(10, 18),
        snapshot_log_bytes: 1 << chance.between(16, 22),
        sync_ms: (1, chance.between(1, 20)),
        ..Shape::of(nodes, 2)
    };
    let mut world = World::new(shape, seed);
    let mut clients: Vec<Client> =
        (0..5).map(|router| Client::new(router, u32::from(router) % 2, 2)).collect();
    let mut written = 0u64;
    let end = world.now + 25_000;
    let (mut next_fault, mut down) = (world.now + 2000, Vec::new());
    while world.now < end {
        for client in clients.iter_mut().filter(|client| client.has_room()) {
            if chance.permille(300) {
                written += 1;
                let key = format!("r{}", chance.below(3));
                // The lowest group coordinates.
                let is_for_all = client.group() == 0 && chance.permille(200);
                client.begin(
                    &mut world,
                    match chance.below(3) {
                        0 if is_for_all => {
                            Wish::SetAll(format!("t{}", chance.below(2)), format!("\"{written}\""))
                        }
                        0 => Wish::Set(key, format!("\"{written}\"")),
                        1 => Wish::Get(key),
                        _ => Wish::Increment(format!("c{}", chance.below(2))),
                    },
                );
            }
        }
        if world.now >= next_fault {
            next_fault = world.now + chance.between(300, 2500);
            fault(&mut world, &mut clients, &mut chance, &mut down);
        }
        turn(&mut world, &mut clients);
    }
    world.network.heal();
    world.network.weather = Shape::CALM;
    for node in down {
        world.start(node);
    }
    drain(&mut world, &mut clients, 60_000);
    // A transaction is decided before every group has applied it; what was lost on the way is said again.
    world.turn_until(5000, |_| false);
    level(&mut world);
    verdict(&mut world, &clients, seed);
}

fn fault(world: &mut World, clients: &mut [Client], chance: &mut Chance, down: &mut Vec<u16>) {
    let nodes = world.shape.nodes;
    let node = 1 + chance.below(u64::from(nodes)) as u16;
    match chance.below(6) {
        0 | 1 => {
            if down.len() >= usize::from(nodes - 1) / 2 {
                world.start(down.remove(0));
            } else if !down.contains(&node) {
                world.crash(node);
                down.push(node);
                for client in clients.iter_mut().filter(|client| client.target() == node) {
                    client.lost(world);
                }
            }
        }
        2 => world.network.isolate(node, nodes),
        3 => world.network.block(node, 1 + chance.below(u64::from(nodes)) as u16),
        4 => world.network.heal(),
        _ => {
            let group = chance.below(u64::from(world.shape.groups)) as u32;
            if let Some(leader) = world.serving(group) {
                let _ = shard(world, leader, group).transfer(ReplicaId::new(0, NodeNumber(node)));
            }
        }
    }
}

fn verdict(world: &mut World, clients: &[Client], seed: u64) {
    for group in 0..world.shape.groups {
        let of_group: Vec<&Client> = clients.iter().skip(group as usize).step_by(2).collect();
        let history: Vec<_> = of_group.iter().flat_map(|client| client.history.clone()).collect();
        assert_eq!(history::check(&history), Ok(()), "seed {seed}, group {group}");
        let leader = world.serving(group).expect("a level world has leaders");
        let records = world.records(leader, group);
        for operation in history.iter().filter(|one| one.is_write && one.ended.is_some()) {
            assert!(
                records.contains_key(operation.key.as_bytes()),
                "seed {seed}: {operation:?} left nothing"
            );
        }
    }
    for group in 0..world.shape.groups {
        let leader = world.serving(group).expect("a level world has leaders");
        let records = world.records(leader, group);
        let of_group = clients.iter().enumerate().filter(|(at, _)| *at as u32 % 2 == group);
        let ends: Vec<_> = of_group.flat_map(|(_, client)| client.ends.clone()).collect();
        for (key, (least, most)) in increments(&ends) {
            let value = records.get(key.as_bytes()).map_or(0, |value| number(value));
            assert!((least..=most).contains(&value), "seed {seed}: {key} is {value}, not {least} to {most}");
        }
    }
    let (one, two) = (world.serving(0).expect("it leads"), world.serving(1).expect("it leads"));
    let (one, two) = (world.records(one, 0), world.records(two, 1));
    for key in ["t0", "t1"] {
        assert_eq!(one.get(key.as_bytes()), two.get(key.as_bytes()), "seed {seed}: {key} is not whole");
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a counter is a number")
}
