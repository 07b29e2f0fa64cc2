//! Damage to a data directory: whatever bit is flipped, whatever is cut off or stale, a server either refuses by name with
//! exit code 70 or answers every acknowledged value. Never a panic, never a wrong value.
//!
//! `STRAND_FLIPS` sets how many places are damaged, `STRAND_SEED` which. The places cover every file, and in the log the
//! header, payload and fill of batches as well as blank blocks.

mod support;

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::client::Connection;
use support::directory::{Picture, TemporaryDirectory, files};
use support::random::Random;
use support::server::{Ended, Server, Setup, free_port};
use support::{from_environment, say, timed};

const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 128;
const LOG_MAGIC: &[u8] = b"STRNDWAL";
const CORRUPTION: i32 = 70;
const CONFIGURATION: i32 = 78;

/// What every key must hold; `Null` for one that must be absent.
type Expected = BTreeMap<String, Value>;

/// A data directory with a snapshot, log behind it, deletes, counters and batches, and what it must answer.
struct Base {
    setup: Setup,
    picture: Picture,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
}

impl Base {
    fn new(name: &str, end: End) -> Self {
        let setup = Setup::small(name).set(&["snapshot.every_s=0"]);
        let server = setup.start();
        let mut c = server.connect();
        let mut expected = Expected::new();
        fill(&mut c, &mut expected, "before", 40);
        assert_eq!(c.ask(&json!({"command": "SNAPSHOT"}))["status"], "success");
        fill(&mut c, &mut expected, "after", 25);
        assert_eq!(c.get(&json!({"command": "BULK_DELETE", "keys": ["k0", "k1", "k2", "k3"]})), 4);
        (0..4).for_each(|n| drop(expected.insert(format!("k{n}"), Value::Null)));
        match end {
            End::Killed => server.kill(),
            End::Stopped => drop(server.stop()),
        }
        let picture = Picture::take(&setup.data());
        Self { setup, picture, expected }
    }

    /// Starts a server on the damaged directory: it answers rightly, or refuses in the right way. Whether it refused.
    fn judge(&self, what: &str) -> Option<Ended> {
        self.judge_by(what, |ended| ended.code() == Some(CORRUPTION))
    }

    /// As [`Base::judge`], for refusals that are right by this.
    fn judge_by(&self, what: &str, is_right: impl Fn(&Ended) -> bool) -> Option<Ended> {
        match self.setup.try_start() {
            Ok(server) => {
                check(&server, &self.expected, what);
                assert!(!server.stderr().contains("panicked"), "{what}: {}", server.stderr());
                server.kill();
                None
            }
            Err(ended) => {
                assert!(is_right(&ended), "{what}: {ended:#?}");
                assert!(!ended.stderr.contains("panicked"), "{what}: {ended:#?}");
                Some(ended)
            }
        }
    }

    /// Puts a file with other bytes in place of the one at this number, and the rest as it was.
    fn damage(&self, file: usize, bytes: &[u8]) {
        let data = self.setup.data();
        self.picture.restore(&data);
        std::fs::write(data.join(&self.picture.files()[file].0), bytes).expect("the file can be written");
    }
}

/// Writes keys one by one and in batches over both shards, and notes what must be there afterwards.
fn fill(c: &mut Connection, expected: &mut Expected, tag: &str, count: usize) {
    let mut requests = Vec::new();
    for n in 0..count {
        let value = json!(format!("{tag}-{n}-{}", "v".repeat(n * 7)));
        requests.push(json!({"command": "SET", "key": format!("k{n}"), "value": value}));
        expected.insert(format!("k{n}"), value);
    }
    for n in 0..3 {
        let items: Map<String, Value> =
            (0..5).map(|m| (format!("b{m}"), json!(format!("{tag}{n}")))).collect();
        items.iter().for_each(|(key, value)| drop(expected.insert(key.clone(), value.clone())));
        requests.push(json!({"command": "BULK_SET", "items": items}));
        requests.push(json!({"command": "INCR", "key": "counter", "client": tag, "seq": n + 1}));
    }
    let replies = c.pipeline(&requests);
    assert!(replies.iter().all(|reply| reply["status"] == "success"), "{replies:?}");
    let counted = expected.get("counter").and_then(Value::as_i64).unwrap_or(0) + 3;
    expected.insert("counter".to_owned(), json!(counted));
}

fn check(server: &Server, expected: &Expected, what: &str) {
    let keys: Vec<&String> = expected.keys().collect();
    let found = server.get(&json!({"command": "BULK_GET", "keys": keys}));
    for (key, value) in expected {
        assert_eq!(found[key], *value, "{what}: {key}: {}", server.stderr());
    }
}

/// Places of one file where a flipped bit meets different structures: for each class some bit numbers.
fn places(path: &Path, bytes: &[u8], random: &mut Random) -> Vec<(&'static str, usize)> {
    let mut bit = |from: usize, to: usize| {
        let bits = u64::try_from((to - from) * 8).expect("a file of a test is small");
        from * 8 + usize::try_from(random.below(bits)).expect("below the file's length")
    };
    if path.extension().is_none_or(|extension| extension != "seg") {
        let step = bytes.len().div_ceil(6).max(1);
        return (0..bytes.len())
            .step_by(step)
            .map(|at| ("file", bit(at, (at + step).min(bytes.len()))))
            .collect();
    }
    let mut found = Vec::new();
    let mut blanks = 0;
    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let at = number * BLOCK_BYTES;
        if block.starts_with(LOG_MAGIC) {
            let length = block[12..16].try_into().map_or(0, u32::from_le_bytes) as usize;
            let payload_end = at + HEADER_BYTES + length.min(BLOCK_BYTES - HEADER_BYTES);
            found.push(("header", bit(at, at + HEADER_BYTES)));
            if length > 0 {
                found.push(("payload", bit(at + HEADER_BYTES, payload_end)));
            }
            if payload_end < at + BLOCK_BYTES {
                found.push(("fill", bit(payload_end, at + BLOCK_BYTES)));
            }
        } else if block.iter().any(|byte| *byte != 0) {
            found.push(("rest", bit(at, at + BLOCK_BYTES)));
        } else if blanks < 2 {
            blanks += 1;
            found.push(("blank", bit(at, at + BLOCK_BYTES)));
        }
    }
    found
}

fn flip_bits(name: &'static str, end: End, flips: u64) {
    let seed = from_environment("STRAND_SEED", 1);
    let mut random = Random::new(seed);
    let base = Base::new(name, end);
    assert!(base.judge("undamaged").is_none(), "the undamaged directory starts");
    let mut all = Vec::new();
    for (file, (path, bytes)) in base.picture.files().iter().enumerate() {
        all.extend(places(path, bytes, &mut random).into_iter().map(|(class, bit)| (file, class, bit)));
    }
    // One place of every kind in every file first, the rest as chance will have it.
    let mut order: Vec<(bool, u64, usize)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (number, (file, class, _)) in all.iter().enumerate() {
        order.push((!seen.insert((*file, *class)), random.next(), number));
    }
    order.sort_unstable();
    let mut refused = BTreeMap::new();
    let chosen = usize::try_from(flips).expect("a sensible number").min(order.len());
    for (_, _, number) in &order[..chosen] {
        let (file, class, bit) = all[*number];
        let (path, bytes) = &base.picture.files()[file];
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        base.damage(file, &bytes);
        let what = format!("seed {seed}, {} bit {} of byte {}, {class}", path.display(), bit % 8, bit / 8);
        let entry: &mut (u32, u32) = refused.entry(class).or_default();
        entry.0 += 1;
        if let Some(ended) = base.judge(&what) {
            entry.1 += 1;
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            assert!(ended.stderr.contains(&name), "{what}: the file is not named: {}", ended.stderr);
            let in_segment = path.extension().is_some_and(|extension| extension == "seg");
            assert!(!in_segment || ended.stderr.contains("at byte "), "{what}: no offset: {}", ended.stderr);
        }
    }
    say(&format!("{name}: {chosen} of {} places; tried and refused by class: {refused:?}", all.len()));
    let damaged: u32 =
        ["header", "payload"].iter().filter_map(|class| refused.get(class)).map(|(_, r)| r).sum();
    assert!(damaged > 0, "damage to live batches is refused");
}

#[test]
fn no_flipped_bit_of_a_killed_server_is_believed() {
    let _timed = timed("flipped bits after kill -9");
    flip_bits("flips-killed", End::Killed, from_environment("STRAND_FLIPS", 60));
}

#[test]
fn no_flipped_bit_of_a_stopped_server_is_believed() {
    let _timed = timed("flipped bits after a stop");
    flip_bits("flips-stopped", End::Stopped, from_environment("STRAND_FLIPS", 60));
}

#[test]
fn damage_to_a_known_record_is_refused_with_its_place() {
    let _timed = timed("damage in a known record");
    let base = Base::new("known-record", End::Killed);
    let needle = b"after-20-vvv";
    let find = |bytes: &[u8]| bytes.windows(needle.len()).position(|window| window == needle);
    let found = base.picture.files().iter().enumerate().find_map(|(n, (_, bytes))| Some((n, find(bytes)?)));
    let (file, at) = found.expect("the value stands in the log as it was sent");
    let (path, bytes) = &base.picture.files()[file];
    let mut bytes = bytes.clone();
    bytes[at] ^= 1;
    base.damage(file, &bytes);
    let ended = base.judge("a flipped bit in a value").expect("it is refused");
    let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    for part in [&name, "checksum", "at byte ", "\"exit_code\":70"] {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
}

/// Length of a snapshot's header, which ends with its checksum, and where its format number stands in it.
const SNAPSHOT_HEADER_BYTES: usize = 580;
const SNAPSHOT_FORMAT_AT: usize = 8;

/// A snapshot that a later version of the server might have written: another format number under a right checksum.
fn of_a_later_format(bytes: &[u8]) -> Vec<u8> {
    let mut later = bytes.to_vec();
    let format = later[SNAPSHOT_FORMAT_AT] + 1;
    later[SNAPSHOT_FORMAT_AT] = format;
    let crc = crc32c::crc32c(&later[..SNAPSHOT_HEADER_BYTES - 4]);
    later[SNAPSHOT_HEADER_BYTES - 4..SNAPSHOT_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    later
}

#[test]
fn a_snapshot_of_a_later_format_stops_the_server_by_name_and_is_left_alone() {
    let _timed = timed("snapshots of a later format");
    let base = Base::new("later-format", End::Stopped);
    let data = base.setup.data();
    let is_snapshot = |path: &Path| path.to_string_lossy().contains("snap-");
    let snapshots: Vec<usize> =
        (0..base.picture.files().len()).filter(|n| is_snapshot(&base.picture.files()[*n].0)).collect();
    assert_eq!(snapshots.len(), 2, "each shard has a snapshot");
    let shards_of = |picture: &Picture| -> Vec<(PathBuf, Vec<u8>)> {
        let files = picture.files().iter();
        files.filter(|(path, _)| path.to_string_lossy().contains("shard-")).cloned().collect()
    };
    // One of them, and both: a server that refused may have counted a start of a shard that it could read.
    for later in [&snapshots[..1], &snapshots[1..], &snapshots[..]] {
        base.picture.restore(&data);
        for number in later {
            let (path, bytes) = &base.picture.files()[*number];
            std::fs::write(data.join(path), of_a_later_format(bytes)).expect("the file can be written");
        }
        let before = shards_of(&Picture::take(&data));
        for round in 0..2 {
            let ended = base.setup.try_start().expect_err("a later format is refused");
            assert_eq!(ended.code(), Some(CONFIGURATION), "{ended:#?}");
            for part in ["snap-", "snapshot format 2", "does not know", "\"exit_code\":78"] {
                assert!(
                    ended.stderr.contains(part),
                    "round {round}: {part:?} is missing in {}",
                    ended.stderr
                );
            }
            assert!(!ended.stderr.contains("panicked"), "{ended:#?}");
        }
        let after = shards_of(&Picture::take(&data));
        let folders: Vec<&Path> =
            later.iter().filter_map(|number| base.picture.files()[*number].0.parent()).collect();
        let of_refused = |files: &[(PathBuf, Vec<u8>)]| -> Vec<(PathBuf, Vec<u8>)> {
            files
                .iter()
                .filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder)))
                .cloned()
                .collect()
        };
        assert!(
            of_refused(&before) == of_refused(&after),
            "{folders:?} was touched by a server that refused it"
        );
        // The version that wrote it finds everything as it was.
        for number in later {
            let (path, bytes) = &base.picture.files()[*number];
            std::fs::write(data.join(path), bytes).expect("the file can be written");
        }
        assert!(base.judge("the snapshots as they were").is_none(), "the version that wrote it starts");
    }
}

#[test]
fn segments_that_are_cut_are_noticed() {
    let _timed = timed("cut segments");
    let base = Base::new("cut", End::Stopped);
    let mut random = Random::new(from_environment("STRAND_SEED", 1));
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    for (file, (path, bytes)) in
        base.picture.files().iter().enumerate().filter(|(_, (path, _))| is_segment(path))
    {
        let length = usize::try_from(random.below(bytes.len() as u64)).expect("below the file's length");
        for length in [0, length / BLOCK_BYTES * BLOCK_BYTES, length, bytes.len() - 1] {
            base.damage(file, &bytes[..length]);
            let what = format!("{} cut to {length} bytes", path.display());
            let ended = base.judge(&what).unwrap_or_else(|| panic!("{what}: a server started"));
            assert!(ended.stderr.contains(&format!("{length} bytes")), "{what}: {}", ended.stderr);
        }
    }
}

fn remove_each_file(name: &'static str, end: End) {
    let base = Base::new(name, end);
    let mut refused = Vec::new();
    for (path, _) in base.picture.files() {
        base.picture.restore(&base.setup.data());
        std::fs::remove_file(base.setup.data().join(path)).expect("the file is there");
        let what = format!("{} removed", path.display());
        if let Some(ended) = base.judge(&what) {
            let file = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            let named = if file.starts_with("snap-") { "snap-" } else { &file };
            assert!(ended.stderr.contains(named), "{what}: the file is not named: {}", ended.stderr);
            refused.push(path.display().to_string());
        }
    }
    say(&format!("{name}: {} files removed one at a time; refused: {refused:?}", base.picture.files().len()));
    for shard in 0..2 {
        let is_refused = |part: &str| {
            refused.iter().any(|path| path.contains(&format!("shard-{shard:04}")) && path.contains(part))
        };
        assert!(is_refused("wal-") && is_refused("manifest"), "shard {shard}: {refused:?}");
    }
    assert!(refused.iter().any(|path| path.ends_with("strand.meta")), "{refused:?}");
}

#[test]
fn a_removed_file_is_noticed_after_kill() {
    let _timed = timed("each file removed after kill -9");
    remove_each_file("removed-killed", End::Killed);
}

#[test]
fn a_removed_file_is_noticed_after_a_stop() {
    let _timed = timed("each file removed after a stop");
    remove_each_file("removed-stopped", End::Stopped);
}

#[test]
fn overwritten_blocks_are_never_taken_for_data() {
    let _timed = timed("overwritten and misplaced blocks");
    let seed = from_environment("STRAND_SEED", 1);
    let mut random = Random::new(seed);
    let base = Base::new("blocks", End::Stopped);
    let segments: Vec<usize> = (0..base.picture.files().len())
        .filter(|file| base.picture.files()[*file].0.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    let mut blocks = Vec::new();
    for file in &segments {
        for (number, block) in base.picture.files()[*file].1.chunks(BLOCK_BYTES).enumerate() {
            if block.starts_with(LOG_MAGIC) {
                blocks.push((*file, number * BLOCK_BYTES));
            }
        }
    }
    let pick =
        |random: &mut Random| blocks[usize::try_from(random.below(blocks.len() as u64)).expect("small")];
    let mut refused = 0;
    for trial in 0..from_environment("STRAND_BLOCKS", 16) {
        let (from_file, from) = pick(&mut random);
        let source = base.picture.files()[from_file].1[from..from + BLOCK_BYTES].to_vec();
        let (file, mut at) = pick(&mut random);
        let mut bytes = base.picture.files()[file].1.clone();
        if random.chance(1, 3) {
            // Behind the end of the log, where a stale block of a recycled segment would lie.
            let used = blocks.iter().filter(|(other, _)| *other == file).count();
            at = (used + usize::try_from(random.below(8)).expect("small")) * BLOCK_BYTES;
        }
        let block = if random.chance(1, 3) { vec![0; BLOCK_BYTES] } else { source };
        bytes[at..at + BLOCK_BYTES].copy_from_slice(&block);
        base.damage(file, &bytes);
        let path = base.picture.files()[file].0.display();
        let what = format!("seed {seed}, trial {trial}: {path} at {at}");
        // The start of another shard's segment says that the file is of that shard, which is refused as such.
        let is_foreign = base.picture.files()[from_file].0.parent() != base.picture.files()[file].0.parent();
        let is_right = |ended: &Ended| match ended.code() {
            Some(CONFIGURATION) => {
                is_foreign && ended.stderr.contains("belongs to another data directory or shard")
            }
            code => code == Some(CORRUPTION),
        };
        refused += u32::from(base.judge_by(&what, is_right).is_some());
    }
    assert!(refused > 0, "acknowledged blocks that are gone are noticed");
}

#[test]
fn a_torn_tail_is_cut_and_told() {
    let _timed = timed("a torn tail");
    for attempt in 0..10 {
        let setup = Setup::small("torn").set(&["snapshot.every_s=0"]);
        let server = setup.start();
        let mut c = server.connect();
        let mut expected = Expected::new();
        fill(&mut c, &mut expected, "whole", 10);
        // Many blocks long, and killed before a seal can state that it was durable: to the next start it looks like a
        // write that the machine did not finish, once its end is gone.
        let value = format!("torn{}end-of-it", "t".repeat(60_000));
        c.get(&json!({"command": "SET", "key": "k5", "value": value}));
        server.kill();
        let picture = Picture::take(&setup.data());
        let needle = b"end-of-it";
        let find = |bytes: &[u8]| bytes.windows(needle.len()).position(|window| window == needle);
        let found = picture.files().iter().find_map(|(path, bytes)| Some((path, bytes, find(bytes)?)));
        let (path, bytes, at) = found.expect("the value stands in the log as it was sent");
        let mut bytes = bytes.clone();
        let block = at / BLOCK_BYTES * BLOCK_BYTES;
        bytes[block..block + BLOCK_BYTES].fill(0);
        std::fs::write(setup.data().join(path), &bytes).expect("the file can be written");
        match setup.try_start() {
            Ok(server) => {
                check(&server, &expected, "before the torn batch");
                assert!(server.stderr().contains("Torn"), "a cut is told: {}", server.stderr());
                // The next start finds nothing to cut any more, and what was written since.
                server.connect().get(&json!({"command": "SET", "key": "k5", "value": "anew"}));
                expected.insert("k5".to_owned(), json!("anew"));
                server.kill();
                let server = setup.start();
                check(&server, &expected, "after the cut");
                server.stop();
                return;
            }
            // The seal was quicker than the kill; then it is damage, rightly.
            Err(ended) => assert_eq!(ended.code(), Some(CORRUPTION), "attempt {attempt}: {ended:#?}"),
        }
    }
    panic!("a seal was written before every kill");
}

#[test]
fn recycled_segments_hold_nothing_that_comes_back() {
    let _timed = timed("recycled segments");
    let setup = Setup::small("recycled").set(&["snapshot.every_mib=4"]);
    let mut server = setup.start();
    let mut random = Random::new(from_environment("STRAND_SEED", 1));
    let mut expected = Expected::new();
    for round in 0..6 {
        let mut c = server.connect();
        for step in 0..40 {
            let requests: Vec<Value> = (0..8)
                .map(|n| {
                    let value = json!(format!("{round}-{step}-{n}-{}", "r".repeat(10_000)));
                    let key = format!("k{}", random.below(20));
                    expected.insert(key.clone(), value.clone());
                    json!({"command": "SET", "key": key, "value": value})
                })
                .collect();
            assert!(c.pipeline(&requests).iter().all(|reply| reply["result"] == "OK"));
        }
        server.kill();
        server = setup.start();
        check(&server, &expected, &format!("round {round}"));
    }
    let segments =
        files(&setup.data()).iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).count();
    assert!(segments <= 2 * 12, "{segments} segments for a log that is cut again and again");
    server.stop();
}

#[test]
fn the_number_of_cores_may_change_and_that_of_shards_may_not() {
    let _timed = timed("cores and shards");
    let mut setup = Setup::small("cores").with(&["--shards", "5", "--cores", "all"]);
    let server = setup.start();
    let mut expected = Expected::new();
    fill(&mut server.connect(), &mut expected, "cores", 50);
    server.stop();
    for cores in ["0", "all"] {
        setup.add(&["--cores", cores]);
        let server = setup.start();
        check(&server, &expected, cores);
        server.kill();
    }
    setup.add(&["--shards", "2"]);
    let refused = setup.try_start().expect_err("another number of shards");
    assert_eq!(refused.code(), Some(78), "{refused:#?}");
    assert!(refused.stderr.contains('5') && refused.stderr.contains("shards"), "{}", refused.stderr);
    setup.add(&["--shards", "5", "--id", "another"]);
    let refused = setup.try_start().expect_err("another node");
    assert_eq!(refused.code(), Some(78), "{refused:#?}");
}

#[test]
fn a_second_server_on_the_directory_is_refused_by_name() {
    let _timed = timed("two servers");
    let setup = Setup::small("locked");
    let server = setup.start();
    let refused = setup.try_start_on(&setup.data(), free_port()).expect_err("the directory is in use");
    assert_eq!(refused.code(), Some(75), "{refused:#?}");
    assert!(refused.stderr.contains(&format!("pid {}", server.child().id())), "{}", refused.stderr);
    assert!(refused.after < Duration::from_secs(2), "{refused:#?}");
    let elsewhere = TemporaryDirectory::new("same-port");
    let refused = setup.run_to_its_end(&elsewhere.path().join("data"), server.port());
    assert_eq!(refused.code(), Some(75), "{refused:#?}");
    assert!(refused.stderr.contains(&server.port().to_string()), "{}", refused.stderr);
    assert_eq!(server.get(&json!({"command": "PING"})), "PONG");
    server.stop();
}
