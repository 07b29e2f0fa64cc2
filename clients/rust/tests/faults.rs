//! What the client does when things go wrong, against the fake server and its faults on demand.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use strand_client::{
    Client, ClientOptions, Code, Command, Error, ErrorCode, IndexQuery, Outcome, Pool, PoolOptions,
    RetryPolicy,
};
use support::{FakeServer, Fault, error};

fn quick() -> ClientOptions {
    let retry = RetryPolicy {
        pause_first: Duration::from_millis(2),
        pause_max: Duration::from_millis(20),
        ..RetryPolicy::default()
    };
    ClientOptions { timeout: Duration::from_secs(5), retry, ..ClientOptions::default() }
}

fn client(server: &FakeServer) -> Client {
    Client::connect_with(&[&server.address], quick()).expect("the fake server listens")
}

#[test]
fn a_write_whose_reply_was_lost_applies_once() {
    let server = FakeServer::start();
    let mut client = client(&server);
    server.inject("INCR", Fault::CloseAfter);
    server.inject("INCR", Fault::CloseBefore);
    assert_eq!(client.incr("n", 1).unwrap(), 1);
    assert_eq!(client.incr("n", 1).unwrap(), 2);
    assert_eq!(server.applied(), 2);
    let sent = server.requests("INCR");
    assert_eq!(sent[0]["seq"], sent[1]["seq"], "a retry keeps its number");
    assert_ne!(sent[1]["seq"], sent[2]["seq"]);
    assert_eq!(sent[2]["acked"], sent[2]["seq"]);
    assert_eq!(sent[0]["client"], json!(client.client_id()));
}

#[test]
fn a_pipeline_cut_in_the_middle_applies_once_and_in_order() {
    let server = FakeServer::start();
    let mut client = client(&server);
    let mut pipeline = client.pipeline();
    for _ in 0..40 {
        pipeline.incr("n", 1);
    }
    server.inject("INCR", Fault::Slow(Duration::ZERO));
    for _ in 0..9 {
        server.inject("INCR", Fault::Slow(Duration::ZERO));
    }
    server.inject("INCR", Fault::CloseAfter);
    let results: Vec<u64> =
        pipeline.send().into_iter().map(|reply| reply.unwrap().result().unwrap()).collect();
    assert_eq!(results, (1..=40).collect::<Vec<u64>>());
    assert_eq!(server.applied(), 40);
    assert_eq!(server.accepted(), 2);
}

#[test]
fn what_may_not_be_repeated_is_not() {
    let server = FakeServer::start();
    let mut client = client(&server);
    server.inject("SHUTDOWN", Fault::CloseAfter);
    let error = client.shutdown().unwrap_err();
    assert!(matches!(error, Error::Disconnected { outcome: Outcome::Unknown, .. }), "{error:?}");
    assert_eq!(server.requests("SHUTDOWN").len(), 1);
    client.ping().unwrap();
}

#[test]
fn retry_classes_are_honoured() {
    let server = FakeServer::start();
    let mut client = client(&server);
    server.inject("SET", Fault::Answer(error("OVERLOADED", "safe")));
    server.inject("SET", Fault::Answer(error("TIMEOUT", "same_seq")));
    client.set("k", &1).unwrap();
    let sent = server.requests("SET");
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|request| request["seq"] == sent[0]["seq"]));
    server.inject("SET", Fault::Answer(error("DISK_FULL", "never")));
    assert_eq!(client.set("k", &2).unwrap_err().code(), Some(&ErrorCode::Known(Code::DiskFull)));
    // Its own numbers are the caller's business: the client repeats only what is safe.
    server.inject("INCR", Fault::Answer(error("TIMEOUT", "same_seq")));
    let own = json!({"command": "INCR", "key": "n", "client": "me", "seq": 1});
    assert_eq!(client.send_command(&own).unwrap()["code"], "TIMEOUT");
}

#[test]
fn a_refused_write_is_not_repeated_after_a_later_one_took_effect() {
    let server = FakeServer::start();
    let mut client = client(&server);
    server.inject("SET", Fault::Answer(error("OVERLOADED", "safe")));
    let mut pipeline = client.pipeline();
    pipeline.set("k", &"first").unwrap().set("k", &"second").unwrap();
    let outcomes = pipeline.send();
    assert_eq!(outcomes[0].as_ref().unwrap_err().code(), Some(&ErrorCode::Known(Code::Overloaded)));
    assert!(outcomes[1].is_ok());
    assert_eq!(server.value("k"), Some(json!("second")));
    // Another key in between is no reason to give up.
    server.inject("SET", Fault::Answer(error("OVERLOADED", "safe")));
    let mut pipeline = client.pipeline();
    pipeline.set("a", &1).unwrap().set("b", &2).unwrap();
    assert!(pipeline.send().iter().all(Result::is_ok));
    assert_eq!(server.value("a"), Some(json!(1)));
}

#[test]
fn deadlines_hold_and_the_next_call_gets_its_own_reply() {
    let server = FakeServer::start();
    let options = ClientOptions { timeout: Duration::from_millis(150), ..quick() };
    let mut client = Client::connect_with(&[&server.address], options).unwrap();
    server.inject("GET", Fault::Slow(Duration::from_millis(600)));
    let begin = Instant::now();
    let error = client.get("slow").unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    client.set("k", &"mine").unwrap();
    assert_eq!(client.get("k").unwrap(), Some(json!("mine")));
    server.inject("SET", Fault::Slow(Duration::from_millis(300)));
    assert_eq!(client.set("k", &"late").unwrap_err().outcome(), Outcome::Unknown);
}

#[test]
fn retries_end_at_the_deadline() {
    let server = FakeServer::start();
    let options = ClientOptions { timeout: Duration::from_millis(200), ..quick() };
    let mut client = Client::connect_with(&[&server.address], options.clone()).unwrap();
    for _ in 0..1_000 {
        server.inject("GET", Fault::Answer(error("OVERLOADED", "safe")));
    }
    let begin = Instant::now();
    assert_eq!(client.get("k").unwrap_err().code(), Some(&ErrorCode::Known(Code::Overloaded)));
    assert!(begin.elapsed() < Duration::from_millis(400));
    let tries = server.requests("GET").len();
    // As many as go into the time when every pause that is drawn is the shortest, and one before the first and at the end.
    let mut left = options.timeout;
    let shortest = (1..).take_while(|attempts| {
        let pause = options.retry.pause(*attempts, 0);
        let fits = pause < left;
        left = left.saturating_sub(pause);
        fits
    });
    let tries_max = shortest.count() + 1;
    assert!((3..=tries_max).contains(&tries), "{tries} of {tries_max} at most");
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let server = FakeServer::start();
    let mut client = client(&server);
    server.inject("GET", Fault::Nonsense);
    assert!(matches!(client.get("k").unwrap_err(), Error::Protocol(_)));
    client.ping().unwrap();
    assert_eq!(server.accepted(), 2);
}

#[test]
fn the_next_seed_takes_over() {
    let (first, second) = (FakeServer::start(), FakeServer::start());
    let nobody = "127.0.0.1:1".to_owned();
    let seeds = [&nobody, &first.address, &second.address];
    let mut client = Client::connect_with(&seeds, quick()).unwrap();
    assert_eq!(client.address(), first.address);
    first.inject("PING", Fault::Answer(error("SHUTTING_DOWN", "safe")));
    client.ping().unwrap();
    assert_eq!(client.address(), second.address);
    let error = Client::connect_with(&[&nobody], quick()).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[test]
fn leaders_are_followed_and_remembered() {
    let (follower, leader) = (FakeServer::start(), FakeServer::start());
    let options = ClientOptions { redirect: true, ..quick() };
    let mut client = Client::connect_with(&[&follower.address], options).unwrap();
    assert_eq!(follower.requests("HELLO")[0]["redirect"], json!(true));
    let mut refusal = error("NOT_LEADER", "safe");
    refusal["leader"] = json!(leader.address);
    refusal["shard"] = json!(3);
    follower.inject("SET", Fault::Answer(refusal));
    client.set("k", &1).unwrap();
    client.set("k", &2).unwrap();
    assert_eq!((follower.requests("SET").len(), leader.requests("SET").len()), (1, 2));
    assert_eq!(leader.value("k"), Some(json!(2)));
    assert_eq!(client.address(), follower.address, "other keys keep their node");
}

#[test]
fn the_map_of_hello_leads_to_the_leader_at_once() {
    let (seed, leader) = (FakeServer::start(), FakeServer::start());
    let map = json!({
        "slots": [{"first": 0, "last": 4095, "group": 5}],
        "leaders": [{"group": 5, "node": "b", "address": leader.address}],
    });
    seed.inject("HELLO", Fault::Answer(json!({"status": "success", "result": map})));
    let options = ClientOptions { redirect: true, ..quick() };
    let mut client = Client::connect_with(&[&seed.address], options).unwrap();
    client.set("k", &1).unwrap();
    assert_eq!((seed.requests("SET").len(), leader.requests("SET").len()), (0, 1));
}

/// Tells a client of two shards, each at the port of a server of its own.
fn tell_of_shards(common: &FakeServer, shards: [&FakeServer; 2]) {
    let port = |server: &FakeServer| {
        let (_, port) = server.address.rsplit_once(':').expect("HOST:PORT");
        port.parse::<u16>().expect("a port")
    };
    let map = json!({
        "node": "a",
        "slots": [{"first": 0, "last": 2047, "group": 0, "port": port(shards[0])},
            {"first": 2048, "last": 4095, "group": 1, "port": port(shards[1])}],
        "leaders": [{"group": 0, "node": "a", "address": common.address},
            {"group": 1, "node": "a", "address": common.address}],
    });
    common.inject("HELLO", Fault::Answer(json!({"status": "success", "result": map})));
}

#[test]
fn shards_are_met_at_their_own_ports() {
    let servers = [(); 3].map(|()| FakeServer::start());
    let [common, low, high] = &servers;
    tell_of_shards(common, [low, high]);
    let options = ClientOptions { shard_aware: true, ..quick() };
    let mut client = Client::connect_with(&[&common.address], options).unwrap();
    let mut pipeline = client.pipeline();
    for n in 0..64 {
        pipeline.set(&format!("k{n}"), &n).unwrap();
    }
    assert!(pipeline.send().iter().all(Result::is_ok));
    let counts = [common, low, high].map(|server| server.requests("SET").len());
    assert_eq!((counts[0], counts[1] + counts[2]), (0, 64), "{counts:?}");
    assert!(counts[1] > 10 && counts[2] > 10, "{counts:?}");
    for n in 0..64 {
        let key = format!("k{n}");
        let at_home = if strand_client::route::slot_of(key.as_bytes()).0.index() < 2048 { low } else { high };
        assert_eq!(at_home.value(&key), Some(json!(n)));
    }
    client.bulk_set([("k1", 1)]).unwrap();
    assert_eq!(common.requests("BULK_SET").len(), 1, "what has several keys goes to the common port");
    assert!(low.requests("HELLO").iter().all(|hello| hello.get("redirect").is_none()));
}

#[test]
fn a_shards_own_port_that_cannot_be_reached_is_done_without() {
    let (common, low) = (FakeServer::start(), FakeServer::start());
    // Nobody listens at the second shard's port.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let map = json!({
        "node": "a",
        "slots": [{"first": 0, "last": 4095, "group": 0, "port": port}],
        "leaders": [{"group": 0, "node": "a", "address": common.address}],
    });
    common.inject("HELLO", Fault::Answer(json!({"status": "success", "result": map})));
    let options = ClientOptions { shard_aware: true, ..quick() };
    let mut client = Client::connect_with(&[&common.address, &low.address], options).unwrap();
    client.set("k", &1).unwrap();
    client.set("k", &2).unwrap();
    assert_eq!(common.value("k"), Some(json!(2)));
}

#[test]
fn what_touches_many_keys_keeps_its_place_between_shards() {
    let servers = [(); 3].map(|()| FakeServer::start());
    let [common, low, high] = &servers;
    tell_of_shards(common, [low, high]);
    let options = ClientOptions { shard_aware: true, ..quick() };
    let mut client = Client::connect_with(&[&common.address], options).unwrap();
    let mut pipeline = client.pipeline();
    for n in 0..8 {
        pipeline.set(&format!("k{n}"), &n).unwrap();
    }
    pipeline.command(strand_client::Command::new("SCAN"));
    pipeline.set("k1", &"last").unwrap();
    assert!(pipeline.send().iter().all(Result::is_ok));
    let mut sets = [low.arrivals("SET"), high.arrivals("SET")].concat();
    sets.sort();
    let scan = common.arrivals("SCAN")[0];
    assert_eq!(sets.len(), 9);
    assert!(sets[7] < scan && scan < sets[8], "eight before the scan and one behind it");
}

#[test]
fn several_addresses_stand_in_one_text() {
    let there = FakeServer::start();
    let mut client = Client::connect(&format!("127.0.0.1:1, {}", there.address)).unwrap();
    client.set("k", &1).unwrap();
    assert_eq!(there.value("k"), Some(json!(1)));
}

#[test]
fn two_nodes_that_point_at_each_other_do_not_trap_the_client() {
    let (a, b) = (FakeServer::start(), FakeServer::start());
    for (here, there) in [(&a, &b), (&b, &a)] {
        for _ in 0..100 {
            let mut refusal = error("NOT_LEADER", "safe");
            refusal["leader"] = json!(there.address);
            here.inject("SET", Fault::Answer(refusal));
        }
    }
    let options = ClientOptions { timeout: Duration::from_secs(1), ..quick() };
    let mut client = Client::connect_with(&[&a.address], options).unwrap();
    assert_eq!(client.set("k", &1).unwrap_err().code(), Some(&ErrorCode::Known(Code::NotLeader)));
}

#[test]
fn unordered_replies_find_their_requests() {
    let server = FakeServer::start();
    let options = ClientOptions { ordered: false, ..quick() };
    let mut client = Client::connect_with(&[&server.address], options).unwrap();
    client.bulk_set((0..100).map(|n| (format!("k{n}"), n))).unwrap();
    let mut pipeline = client.pipeline();
    for n in 0..100 {
        pipeline.get(&format!("k{n}"));
    }
    for (n, reply) in pipeline.send().into_iter().enumerate() {
        assert_eq!(reply.unwrap().result::<usize>().unwrap(), n);
    }
    let reply = client.send_command(&json!({"command": "PING", "id": "mine"})).unwrap();
    assert_eq!(reply["id"], "mine");
}

#[test]
fn a_connection_that_broke_while_idle_is_replaced_before_use() {
    let server = FakeServer::start();
    let mut client = client(&server);
    client.ping().unwrap();
    server.close_connections();
    std::thread::sleep(Duration::from_millis(80));
    // SHUTDOWN is never repeated, so it shows that the dead connection was not even tried.
    let reply = client.execute_raw(Command::new("SHUTDOWN")).unwrap();
    assert_eq!(reply.error().unwrap().code, ErrorCode::Known(Code::UnknownCommand));
    assert_eq!(server.accepted(), 2);
}

#[test]
fn lines_over_the_limit_stay_here() {
    let server = FakeServer::start();
    let options = ClientOptions { request_bytes_max: 1_000, ..quick() };
    let mut client = Client::connect_with(&[&server.address], options).unwrap();
    assert!(matches!(client.set("k", &"x".repeat(1_000)).unwrap_err(), Error::Encode(_)));
    assert!(server.requests("SET").is_empty());
}

#[test]
fn index_queries_go_page_by_page() {
    let server = FakeServer::start();
    let mut client = client(&server);
    client.bulk_set((0..25).map(|n| (format!("k{n:02}"), json!({"even": n % 2 == 0})))).unwrap();
    let query = IndexQuery::value(true).page(5);
    let keys: Vec<String> = client.query_index("even", query).map(|found| found.unwrap().key).collect();
    assert_eq!(keys, (0..25).step_by(2).map(|n| format!("k{n:02}")).collect::<Vec<_>>());
    assert_eq!(server.requests("QUERY_INDEX").len(), 3);
}

#[test]
fn pools_are_bounded_and_give_out_only_sound_connections() {
    let server = FakeServer::start();
    let options = PoolOptions { size_max: 2, wait_max: Duration::from_millis(100) };
    let pool = Pool::new(&[&server.address], quick(), options).unwrap();
    let (mut one, mut two) = (pool.get().unwrap(), pool.get().unwrap());
    assert!(matches!(pool.get().unwrap_err(), Error::PoolExhausted { .. }));
    one.ping().unwrap();
    two.ping().unwrap();
    drop((one, two));
    assert_eq!((pool.size(), server.accepted()), (2, 2));
    server.close_connections();
    std::thread::sleep(Duration::from_millis(20));
    pool.get().unwrap().ping().unwrap();
    assert_eq!((pool.size(), server.accepted()), (1, 3), "both broken ones were dropped");
    // One that breaks while on loan does not come back.
    let loan = pool.get().unwrap();
    server.close_connections();
    std::thread::sleep(Duration::from_millis(20));
    drop(loan);
    assert_eq!(pool.size(), 0);
}

#[test]
fn many_threads_share_a_pool() {
    let server = FakeServer::start();
    let pool = Pool::new(&[&server.address], quick(), PoolOptions { size_max: 3, ..PoolOptions::default() })
        .unwrap();
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for _ in 0..50 {
                    pool.get().unwrap().incr("n", 1).unwrap();
                }
            });
        }
    });
    assert_eq!(server.value("n"), Some(Value::from(400)));
    assert!(pool.size() <= 3);
}
