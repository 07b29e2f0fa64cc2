//! What `wal.sync` promises, what happens when the log has no room, and that the files stay bounded.

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::client::Connection;
use support::directory::files;
use support::server::Setup;
use support::{eventually, from_environment, say, timed};

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

fn set(key: &str, value: impl Into<Value>) -> Value {
    json!({"command": "SET", "key": key, "value": value.into()})
}

#[test]
fn under_interval_what_was_asked_to_be_synced_survives() {
    let _timed = timed("wal.sync = interval");
    let setup = Setup::small("interval").with(&["--wal-sync", "interval:50", "--shards", "3"]);
    let mut expected = Vec::new();
    for round in 0..4 {
        let server = setup.start();
        let mut c = server.connect();
        for (key, value) in &expected {
            assert_eq!(c.get(&json!({"command": "GET", "key": key})), *value, "round {round}: {key}");
        }
        // Acknowledged after the interval has passed: they are synced behind.
        c.get(&set(&format!("old{round}"), round));
        std::thread::sleep(Duration::from_millis(400));
        expected.push((format!("old{round}"), json!(round)));
        for n in 0..10 {
            let (key, value) = (format!("fsync{round}-{n}"), json!(n));
            let request = match n % 3 {
                0 => json!({"command": "SET", "key": key, "value": value, "durability": "fsync"}),
                1 => json!({"command": "INCR", "key": key, "amount": n, "durability": "fsync"}),
                _ => {
                    json!({"command": "BULK_SET", "items": {&key: value, format!("{key}b"): 1, format!("{key}c"): 1}})
                }
            };
            assert_eq!(c.ask(&request)["status"], "success", "{request}");
            // A batch over several shards is synced whatever the floor; one in a single shard is as the floor is.
            if n % 3 != 2 {
                expected.push((key, value));
            }
        }
        c.get(&json!({"command": "SET", "key": "memory", "value": round, "durability": "memory"}));
        server.kill();
    }
    let server = setup.start();
    let mut c = server.connect();
    for (key, value) in &expected {
        assert_eq!(c.get(&json!({"command": "GET", "key": key})), *value, "{key}");
    }
    server.stop();
    let server = setup.start();
    assert_eq!(
        server.get(&json!({"command": "GET", "key": "memory"})).as_u64().map(|value| value <= 3),
        Some(true)
    );
    server.stop();
}

#[test]
fn a_stop_under_interval_loses_nothing() {
    let _timed = timed("wal.sync = interval, stopped");
    let setup = Setup::small("interval-stop").with(&["--wal-sync", "interval:60000"]);
    let server = setup.start();
    let sets: Vec<Value> = (0..2000).map(|n| set(&format!("k{n}"), n)).collect();
    let mut c = server.connect();
    for part in sets.chunks(500) {
        assert!(c.pipeline(part).iter().all(|reply| reply["result"] == "OK"));
    }
    server.stop();
    let server = setup.start();
    let mut c = server.connect();
    for n in (0..2000).step_by(37) {
        assert_eq!(c.get(&json!({"command": "GET", "key": format!("k{n}")})), n);
    }
    server.stop();
}

#[test]
fn without_a_log_nothing_is_kept_and_nothing_pretends_to_be() {
    let _timed = timed("wal.sync = off");
    let setup = Setup::small("off").with(&["--wal-sync", "off", "--shards", "3"]);
    let server = setup.start();
    let mut c = server.connect();
    let sets: Vec<Value> = (0..500).map(|n| set(&format!("k{n}"), n)).collect();
    assert!(c.pipeline(&sets).iter().all(|reply| reply["result"] == "OK"));
    let batch = json!({"a": 1, "b": 1, "c": 1, "d": 1});
    assert_eq!(c.get(&json!({"command": "BULK_SET", "items": batch})), 4);
    assert_eq!(c.get(&json!({"command": "BULK_GET", "keys": ["a", "b", "c", "d"]})), batch);
    let mut versions = std::collections::HashSet::new();
    let write = json!({"command": "SET", "key": "v", "value": 1, "with_version": true});
    for _ in 0..20 {
        assert!(versions.insert(c.ask(&write)["version"].to_string()));
    }
    assert_eq!(c.refusal(&json!({"command": "SNAPSHOT"})), "UNSUPPORTED_IN_MODE");
    let synced = json!({"command": "SET", "key": "synced", "value": 1, "durability": "fsync"});
    assert_eq!(c.refusal(&synced), "UNSUPPORTED_IN_MODE", "no sync is told that there was not");
    assert_eq!(c.ask(&json!({"command": "GET", "key": "synced"}))["found"], false);
    assert!(!files(&setup.data()).iter().any(|(path, _)| is_segment(path)), "there is no log");
    server.kill();
    let server = setup.start();
    let mut c = server.connect();
    assert_eq!(c.get(&json!({"command": "SCAN"}))["keys"], json!([]), "a cache begins empty");
    // A version that was given out and forgotten is not given to anything else.
    for _ in 0..20 {
        assert!(versions.insert(c.ask(&write)["version"].to_string()));
    }
    server.stop();
}

#[test]
fn files_stay_bounded_under_overwrites() {
    let _timed = timed("bounded files");
    let setup = Setup::small("bounded").set(&["snapshot.every_mib=4"]);
    let mut server = setup.start();
    let megabytes = from_environment("STRAND_OVERWRITE_MIB", 60);
    let mut most = 0;
    for step in 0..megabytes {
        let requests: Vec<Value> = (0..16)
            .map(|n| set(&format!("k{}", n % 12), format!("{step}-{n}-{}", "x".repeat(64 << 10))))
            .collect();
        let mut c = server.connect();
        assert!(c.pipeline(&requests).iter().all(|reply| reply["result"] == "OK"));
        most = most.max(files(&setup.data()).iter().filter(|(path, _)| is_segment(path)).count());
        if step == megabytes / 2 {
            server.kill();
            server = setup.start();
        }
    }
    say(&format!("{megabytes} MiB written, at most {most} segments of 2 MiB"));
    assert!(most <= 2 * 12, "{most} segments of 2 MiB for two shards with a snapshot every 4 MiB");
    let snapshots =
        || files(&setup.data()).iter().filter(|(path, _)| path.to_string_lossy().contains("snap-")).count();
    eventually("old snapshots are removed", Duration::from_secs(10), || snapshots() <= 2 * 2);
    server.kill();
    let server = setup.start();
    let last = megabytes - 1;
    for n in 4..16 {
        let value = format!("{last}-{n}-{}", "x".repeat(64 << 10));
        assert_eq!(server.get(&json!({"command": "GET", "key": format!("k{}", n % 12)})), value);
    }
    let told = server.stderr();
    let batches: u64 = told
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| line["batches"].as_u64())
        .sum();
    assert!(batches < megabytes * 16 / 2, "a restart begins from the snapshots: {told}");
    server.stop();
}

/// Makes it impossible to create segments: a directory stands where the temporary file would be.
fn obstacles(data: &Path) -> Vec<PathBuf> {
    let mut made = Vec::new();
    for shard in ["shard-0000", "shard-0001"] {
        for number in 1..60 {
            let path = data.join(shard).join(format!("wal-{number:08}.seg.tmp"));
            if !path.with_extension("").exists() && std::fs::create_dir(&path).is_ok() {
                made.push(path);
            }
        }
    }
    made
}

/// Writes until the log has no room; how many writes were acknowledged.
fn fill(c: &mut Connection, tag: &str) -> u64 {
    for n in 0..2_000 {
        let reply = c.ask(&json!({
            "command": "SET", "key": format!("{tag}{n}"), "value": "x".repeat(60_000), "timeout_ms": 20_000
        }));
        if reply["status"] != "success" {
            assert_eq!((&reply["code"], &reply["retry"]), (&json!("DISK_FULL"), &json!("safe")), "{reply}");
            return n;
        }
    }
    panic!("120 MB went into a log that cannot grow");
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_reading() {
    let _timed = timed("a full disk");
    let setup = Setup::small("full").set(&["snapshot.every_mib=64", "snapshot.every_s=0"]);
    let server = setup.start();
    let mut c = server.connect();
    c.get(&json!({"command": "INCR", "key": "kept"}));
    std::thread::sleep(Duration::from_millis(300));
    let made = obstacles(&setup.data());
    assert!(!made.is_empty());
    let written = fill(&mut c, "first");
    assert!(written > 10, "{written} writes fit the segments that were there");
    assert_eq!(c.get(&json!({"command": "GET", "key": "kept"})), 1);
    assert_eq!(c.get(&json!({"command": "GET", "key": "first0"})), "x".repeat(60_000));
    let scanned = c.get(&json!({"command": "SCAN", "prefix": "first", "limit": 10_000}));
    assert!(scanned["keys"].as_array().is_some_and(|keys| !keys.is_empty()), "reads go on: {scanned}");
    for path in made {
        std::fs::remove_dir(path).expect("it is empty");
    }
    eventually("writes go on by themselves", Duration::from_secs(10), || {
        (0..8).all(|n| c.ask(&set(&format!("again{n}"), n))["status"] == "success")
    });
    server.kill();
    let server = setup.start();
    let mut c = server.connect();
    for n in 0..written {
        assert_eq!(
            c.get(&json!({"command": "GET", "key": format!("first{n}")})),
            "x".repeat(60_000),
            "first{n}"
        );
    }
    assert_eq!(c.get(&json!({"command": "GET", "key": "kept"})), 1);
    server.stop();
}

#[test]
fn a_snapshot_makes_room_on_a_full_disk() {
    let _timed = timed("a snapshot on a full disk");
    let setup = Setup::small("full-snapshot").set(&["snapshot.every_mib=64", "snapshot.every_s=0"]);
    let server = setup.start();
    let mut c = server.connect();
    std::thread::sleep(Duration::from_millis(300));
    let made = obstacles(&setup.data());
    fill(&mut c, "k");
    // Both shards are full, or one is and the other nearly so; a snapshot of each frees its log.
    assert_eq!(c.ask(&json!({"command": "SNAPSHOT"}))["status"], "success");
    eventually("there is room again", Duration::from_secs(10), || {
        (0..8).all(|n| c.ask(&set(&format!("again{n}"), n))["status"] == "success")
    });
    drop(made);
    server.kill();
    // What stands in the way of a start would be an operator's to remove.
    for (path, _) in
        std::fs::read_dir(setup.data()).expect("it is there").flatten().map(|entry| (entry.path(), ()))
    {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    let server = setup.start();
    assert_eq!(server.get(&json!({"command": "GET", "key": "again7"})), 7);
    assert_eq!(server.get(&json!({"command": "GET", "key": "k0"})), "x".repeat(60_000));
    server.stop();
}

#[test]
fn memory_has_a_bound_that_reads_and_deletes_do_not_mind() {
    let _timed = timed("a full memory");
    let setup = Setup::small("memory").with(&["--memory-max-mib", "8"]);
    let server = setup.start();
    let mut c = server.connect();
    let value = "m".repeat(50_000);
    let mut written = 0;
    let refused = loop {
        let reply = c.ask(&set(&format!("m{written}"), value.clone()));
        if reply["status"] != "success" {
            break reply;
        }
        written += 1;
        assert!(written < 1_000, "50 MB went into 8 MiB");
    };
    assert_eq!((&refused["code"], &refused["retry"]), (&json!("OUT_OF_MEMORY"), &json!("safe")), "{refused}");
    assert!(written > 20, "{written}");
    assert_eq!(c.get(&json!({"command": "GET", "key": "m0"})), value);
    let keys: Vec<String> = (0..written).map(|n| format!("m{n}")).collect();
    assert_eq!(c.get(&json!({"command": "BULK_DELETE", "keys": keys})), written);
    assert_eq!(c.get(&set("m0", value)), "OK");
    server.stop();
}
