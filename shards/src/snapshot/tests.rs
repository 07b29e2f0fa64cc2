//! Snapshots: exact under traffic, golden, and no damage passes.

use super::*;
use crate::batch::ReplyKind;
use crate::ids::{GroupId, Millis, Slot, Version, hash_of};
use crate::state::model_tests::{Change, Model, SMALL, Said, apply, change, check};
use crate::state::record::Content;
use crate::state::{Check, KeySpace, RecordFlags, SessionLimits, Sessions, State};
use proptest::prelude::*;

fn header() -> SnapshotHeader {
    let mut slots = SlotSet::default();
    slots.insert(Slot(0));
    slots.insert(Slot(4095));
    SnapshotHeader {
        cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        shard: 2,
        group: GroupId(5),
        epoch: 3,
        applied_index: 77,
        applied_term: 4,
        entry_stamp: Millis(1_700_000_000_000),
        slots,
    }
}

fn bytes_of(chunks: &[Chunk]) -> Vec<u8> {
    chunks.iter().flat_map(Chunk::as_slice).copied().collect()
}

fn write(state: &mut State, faults: bool, sections: &[(&str, &[u8])]) -> (Vec<u8>, SnapshotSummary) {
    let mut out = Vec::new();
    let mut writer = SnapshotWriter::begin(&header(), faults, state, &mut out);
    while writer.slice(state, 1000, &mut out) {}
    for (name, bytes) in sections {
        writer.section(name, bytes, &mut out);
    }
    let summary = writer.finish(state, &mut out);
    (bytes_of(&out), summary)
}

/// Reads a file in pieces of this size, as the verifier does.
fn read(file: &[u8], piece_bytes: usize) -> Result<Footer, SnapshotError> {
    let mut reader = SnapshotReader::new();
    for mut piece in file.chunks(piece_bytes) {
        while reader.feed(&mut piece)?.is_some() {}
        assert!(piece.is_empty(), "all input is taken");
    }
    reader.finish().map(|(_, footer)| footer)
}

type Sections = Vec<(String, Vec<u8>)>;

fn load(file: &[u8], piece_bytes: usize) -> Result<(State, SnapshotHeader, Sections), SnapshotError> {
    let mut loader = SnapshotLoader::new(SMALL, SessionLimits::default());
    let mut sections = Sections::new();
    for mut piece in file.chunks(piece_bytes) {
        while loader.feed(&mut piece, |name, bytes| match sections.last_mut() {
            Some((last, gathered)) if last == name => gathered.extend_from_slice(bytes),
            _ => sections.push((name.to_owned(), bytes.to_vec())),
        })? {}
    }
    loader.finish().map(|(state, header, _)| (state, header, sections))
}

fn small_state() -> State {
    let mut state = State { keys: KeySpace::new(SMALL), sessions: Sessions::default() };
    for (number, expires_at) in [None, Some(Millis(9)), None].into_iter().enumerate() {
        let key = format!("key{number}");
        let version = Version::new(3, number as u64, 1);
        let flags = if number == 2 { RecordFlags::DEBUG_FAULT } else { RecordFlags::NONE };
        let content = Content { value: b"\"v\"", version, expires_at, flags };
        state.keys.set(hash_of(key.as_bytes()), key.as_bytes(), content);
    }
    state.sessions.record(b"client", 7, 0xfeed, ReplyKind::Success, b"\"result\":1", Millis(1000));
    state.sessions.record(b"client", 9, 0xbeef, ReplyKind::Ok, b"", Millis(1001));
    state.sessions.record(b"other", 1, 1, ReplyKind::Ok, b"", Millis(1002));
    state.sessions.acked(b"other", 2, Millis(1003));
    state
}

#[test]
fn comes_back_as_it_was() {
    let mut state = small_state();
    let sections: [(&str, &[u8]); 3] = [("meta", b"abc"), ("index.text", &[7; 3_000_000]), ("z", b"d")];
    let (file, summary) = write(&mut state, false, &sections);
    assert_eq!(summary.footer.file_bytes, file.len() as u64);
    assert_eq!(summary.footer.records, state.keys.digest());
    assert_eq!(summary.footer.sessions, state.sessions.digest());
    for piece_bytes in [1, 7, 4096, file.len()] {
        assert_eq!(read(&file, piece_bytes), Ok(summary.footer));
        let (loaded, loaded_header, loaded_sections) = load(&file, piece_bytes).unwrap();
        assert_eq!(loaded_header, header());
        assert!(loaded_header.slots.contains(Slot(4095)) && !loaded_header.slots.contains(Slot(1)));
        assert_eq!(loaded.keys.digest(), state.keys.digest());
        assert_eq!(loaded.sessions.digest(), state.sessions.digest());
        assert_eq!(loaded.keys.last_delete(hash_of(b"x")), Version::new(3, 77, 1023));
        let expected: Sections =
            sections.iter().map(|(name, bytes)| ((*name).into(), bytes.to_vec())).collect();
        assert_eq!(loaded_sections, expected);
        assert!(matches!(loaded.sessions.check(b"client", 7, 0xfeed), Check::Replay(reply)
            if &*reply.body == b"\"result\":1" && reply.kind == ReplyKind::Success));
        assert_eq!(loaded.sessions.check(b"other", 1, 1), Check::Expired);
    }
    state.sessions = Sessions::default();
    let again = write(&mut state, false, &[]);
    assert_eq!(read(&again.0, 100), Ok(again.1.footer), "a second snapshot of the same state");
}

/// A bit that flips in the number of the format is damage, which another copy mends; a later format is none.
#[test]
fn a_later_format_is_told_from_a_damaged_number() {
    let (file, _) = write(&mut small_state(), false, &[]);
    let fault = |file: &[u8]| read(file, 100).map_err(|error| error.fault);
    for bit in 0..32 {
        let mut bytes = file.clone();
        bytes[8 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(fault(&bytes), Err(Fault::HeaderChecksum), "bit {bit}");
    }
    let mut later = file;
    later[8] = 2;
    let crc = crc32c::crc32c(&later[..576]);
    later[576..580].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(fault(&later), Err(Fault::UnsupportedVersion(2)));
}

/// Changing these bytes changes the format: it needs a new version, and a reader for this one.
#[test]
fn golden_bytes() {
    // One record, because the order of records in a block is free.
    let mut state = small_state();
    for key in [b"key0", b"key2"] {
        state.keys.remove(hash_of(key), key, Version::new(3, 9, 0));
    }
    let (file, _) = write(&mut state, false, &[("meta", b"m")]);
    assert_eq!(file.len(), GOLDEN_BYTES);
    assert_eq!(&file[..20], b"STRNDSNP\x01\0\0\0\x02\0\0\0\x10\x0f\x0e\x0d");
    assert_eq!(&file[580..585], b"SBLK\x02");
    assert_eq!(crc32c::crc32c(&file), GOLDEN_CRC);
    // Key for key as the map in `payload` has it.
    let record = [
        &[0x80, 4, 0, 3, 0, 0, 0][..],
        &(1u64 << 10 | 1).to_le_bytes(),
        &3u32.to_le_bytes(),
        &9u64.to_le_bytes(),
        b"key1\"v\"",
    ]
    .concat();
    assert!(memchr::memmem::find(&file, &record).is_some());
    let client = [
        &[6, 0][..],
        &0u64.to_le_bytes(),
        &1001u64.to_le_bytes(),
        &[0],
        &3_601_000u64.to_le_bytes(),
        &1u64.to_le_bytes(),
        &2u32.to_le_bytes(),
        b"client",
        &7u64.to_le_bytes(),
        &0xfeedu64.to_le_bytes(),
        &1000u64.to_le_bytes(),
        &[1, 10, 0, 0, 0],
        b"\"result\":1",
    ]
    .concat();
    assert!(memchr::memmem::find(&file, &client).is_some());
}

const GOLDEN_BYTES: usize = 1026;
const GOLDEN_CRC: u32 = 4_069_893_237;

#[test]
fn every_flipped_bit_is_found() {
    let (file, _) = write(&mut small_state(), false, &[("meta", b"m")]);
    let mut damaged = file.clone();
    for bit in 0..file.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = read(&damaged, 61).expect_err("a flipped bit passed");
        assert!(error.offset <= bit as u64 / 8, "{error} for byte {}", bit / 8);
        assert!(load(&damaged, 4096).is_err());
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(read(&damaged, 61).is_ok());
}

#[test]
fn every_truncation_is_found() {
    let (file, _) = write(&mut small_state(), false, &[("meta", b"m")]);
    for length in 0..file.len() {
        let error = read(&file[..length], 100).expect_err("a cut file passed");
        assert_eq!(error, SnapshotError { offset: length as u64, fault: Fault::Truncated });
    }
    let longer = [&file[..], b"x"].concat();
    let fault = Fault::BytesAfterFooter;
    assert_eq!(read(&longer, 100), Err(SnapshotError { offset: file.len() as u64, fault }));
}

#[test]
fn the_debug_fault_is_found_by_reading_back() {
    let mut state = small_state();
    let (file, summary) = write(&mut state, true, &[]);
    assert_eq!(summary.left_out, 1);
    let fault = Fault::Count { of: "records", expected: 3, found: 2 };
    assert_eq!(read(&file, 4096), Err(SnapshotError { offset: file.len() as u64, fault }));
    assert!(load(&file, 4096).is_err(), "a state without the record is never given away");
    let (file, summary) = write(&mut state, false, &[]);
    assert_eq!((read(&file, 4096), summary.left_out), (Ok(summary.footer), 0));
}

#[test]
fn blocks_of_another_file_or_place_do_not_pass() {
    let mut state = small_state();
    let (file, _) = write(&mut state, false, &[("a", b"12"), ("b", b"34")]);
    let end = file.len() - 112;
    let (first, second) = (end - 88, end - 44);
    let swapped = [&file[..first], &file[second..end], &file[first..second], &file[end..]].concat();
    let misplaced = |offset: usize| SnapshotError { offset: offset as u64, fault: Fault::Misplaced };
    assert_eq!(read(&swapped, 4096), Err(misplaced(first)));
    let mut other_header = header();
    other_header.applied_index += 1;
    let grafted = [&other_header.encode()[..], &file[580..]].concat();
    assert_eq!(read(&grafted, 4096), Err(misplaced(580)));
}

#[test]
fn sound_checksums_do_not_excuse_false_content() {
    let table = |depth: u8, records: u32, body: &[u8]| {
        [&[0; 8][..], &[depth], &[9, 0, 0, 0], &records.to_le_bytes(), body].concat()
    };
    let record = |flags: u8, key_bytes: u16, value_bytes: u32, rest: &[u8]| {
        [&[flags][..], &key_bytes.to_le_bytes(), &value_bytes.to_le_bytes(), &[0; 12], rest].concat()
    };
    let good = record(0, 1, 1, b"kv");
    assert!(parse_table(&table(0, 1, &good)).is_ok());
    for (payload, offset, message) in [
        (vec![0; 16], 0, "a table block ends inside its head"),
        (table(65, 0, b""), 17, "a table shares more bits than a hash has"),
        (table(0, 1, &[]), 17, "a block ends inside a record's head"),
        (table(0, 1, &record(0x40, 1, 1, b"kv")), 36, "a record has an unknown flag"),
        (table(0, 1, &record(0, 0, 1, b"v")), 36, "a key has an impossible length"),
        (table(0, 1, &record(0, 1, u32::MAX, b"kv")), 36, "a value has an impossible length"),
        (table(0, 1, &record(0, 1, 2, b"kv")), 37, "a block ends inside a value"),
        (table(0, 1, &record(0x80, 1, 1, b"kv")), 36, "a block ends inside an expiry"),
        (table(0, 1, &[&good[..], b"x"].concat()), 38, "bytes follow the last record of a block"),
        (table(64, 1, &good), 38, "a key belongs to another table"),
    ] {
        let fault = Fault::Malformed(message);
        assert_eq!(parse_table(&payload), Err(SnapshotError { offset: 1000 + offset, fault }));
    }
    let clients = content::SessionBlock::new(&[1; 38], 0).verify(&mut Default::default());
    assert!(matches!(clients, Err(SnapshotError { offset: 0, fault: Fault::Malformed(_) })));
}

fn parse_table(payload: &[u8]) -> Result<(), SnapshotError> {
    content::TableBlock::parse(payload, 1000)?.verify(&mut Default::default())
}

#[test]
fn a_key_or_client_that_comes_twice_is_found() {
    let mut state = small_state();
    let mut out = Vec::new();
    let mut writer = SnapshotWriter::begin(&header(), false, &mut state, &mut out);
    while writer.slice(&mut state, 1000, &mut out) {}
    let mut twin = small_state();
    twin.keys.begin_snapshot(false);
    let table = twin.keys.next_payload().unwrap();
    writer.put_payload(table, &mut out);
    writer.finish(&mut state, &mut out);
    let file = bytes_of(&out);
    assert!(matches!(load(&file, 4096).map(|_| ()), Err(SnapshotError { fault: Fault::DuplicateKey, .. })));
    let found = read(&file, 4096).expect_err("the verifier finds it too");
    assert_eq!(found.fault, Fault::Count { of: "records", expected: 3, found: 6 });
}

#[test]
fn values_of_every_size_come_back() {
    let mut state = State::default();
    let sizes = [0, 1, 1023, 1024, 4095, 4096, 16_384, 1_300_000, 1_310_720, 8 << 20];
    for (number, size) in sizes.into_iter().enumerate() {
        let key = vec![b'k'; 4096 - number];
        let value = vec![number as u8; size];
        let version = Version::new(0, number as u64, 0);
        let content = Content { value: &value, version, expires_at: None, flags: RecordFlags::NONE };
        state.keys.set(hash_of(&key), &key, content);
    }
    let (file, summary) = write(&mut state, false, &[]);
    let (loaded, ..) = load(&file, 1 << 20).unwrap();
    assert_eq!(loaded.keys.digest(), summary.footer.records);
    for (number, size) in sizes.into_iter().enumerate() {
        let key = vec![b'k'; 4096 - number];
        assert_eq!(loaded.keys.get(hash_of(&key), &key).unwrap().value, vec![number as u8; size]);
    }
}

#[test]
fn a_snapshot_given_up_leaves_no_trace() {
    let mut state = small_state();
    let before = state.keys.digest();
    let mut out = Vec::new();
    let writer = SnapshotWriter::begin(&header(), false, &mut state, &mut out);
    state.keys.remove(hash_of(b"key0"), b"key0", Version::new(3, 50, 0));
    assert!(SnapshotWriter::pending_bytes(&state) > 0);
    writer.abort(&mut state);
    assert!(!state.keys.snapshot_running() && SnapshotWriter::pending_bytes(&state) == 0);
    let (file, _) = write(&mut state, false, &[]);
    assert_ne!(load(&file, 4096).unwrap().0.keys.digest(), before);
}

#[test]
fn a_write_during_a_snapshot_keeps_one_record_and_not_its_table() {
    let mut state = State::default();
    let key = |number: u32| format!("key{number}").into_bytes();
    let content = |place: u64, value: &'static [u8]| Content {
        value,
        version: Version::new(1, place, 0),
        expires_at: None,
        flags: RecordFlags::NONE,
    };
    for number in 0..3_000 {
        state.keys.set(hash_of(&key(number)), &key(number), content(1, &[b'v'; 100]));
    }
    let large: &[u8] = Box::leak(vec![b'l'; 1 << 20].into_boxed_slice());
    state.keys.set(hash_of(b"large"), b"large", content(2, large));
    assert_eq!(state.keys.tables(), 1);
    let before = state.keys.digest();
    let mut out = Vec::new();
    let mut writer = SnapshotWriter::begin(&header(), false, &mut state, &mut out);
    for place in 10..20 {
        state.keys.set(hash_of(&key(7)), &key(7), content(place, b"again and again"));
    }
    state.keys.remove(hash_of(&key(8)), &key(8), Version::new(1, 21, 0));
    state.keys.set(hash_of(b"new"), b"new", content(22, b"was not there"));
    let kept = SnapshotWriter::pending_bytes(&state);
    assert!(kept > 200 && kept < 4096, "three records were kept, in {kept} bytes");
    state.keys.set(hash_of(b"large"), b"large", content(23, b"small now"));
    let kept = SnapshotWriter::pending_bytes(&state) - kept;
    assert!((1 << 20..1 << 21).contains(&kept), "the snapshot alone holds the large value: {kept} bytes");
    while writer.slice(&mut state, 1000, &mut out) {}
    assert_eq!(SnapshotWriter::pending_bytes(&state), 0);
    let summary = writer.finish(&mut state, &mut out);
    assert_eq!(summary.footer.records, before);
    let (loaded, ..) = load(&bytes_of(&out), 1 << 20).unwrap();
    assert_eq!(loaded.keys.digest(), before);
    assert_eq!(loaded.keys.get(hash_of(b"large"), b"large").unwrap().value, large);
    assert!(loaded.keys.get(hash_of(b"new"), b"new").is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    Reply { client: u8, seq: u64, body_bytes: usize },
    Acked { client: u8, seq: u64 },
    Expire { stamp: u64 },
    Slice,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => change().prop_map(Step::Change),
        3 => (0u8..6, 0u64..50, 0usize..60).prop_map(|(client, seq, body_bytes)| Step::Reply { client, seq, body_bytes }),
        1 => (0u8..6, 0u64..50).prop_map(|(client, seq)| Step::Acked { client, seq }),
        1 => (0u64..200).prop_map(|stamp| Step::Expire { stamp }),
        1 => Just(Step::Slice),
    ]
}

fn take_step(state: &mut State, model: &mut Model, place: u64, step: &Step) {
    let stamp = Millis(place);
    match *step {
        Step::Change(ref change) => apply(&mut state.keys, model, place, change),
        Step::Reply { client, seq, body_bytes } => {
            if state.sessions.check(&[client], seq, seq) == Check::Fresh {
                let body = vec![place as u8; body_bytes];
                state.sessions.record(&[client], seq, seq, ReplyKind::Success, &body, stamp);
            }
        }
        Step::Acked { client, seq } => state.sessions.acked(&[client], seq, stamp),
        Step::Expire { stamp } => {
            state.sessions.expire(Millis(stamp), 2);
        }
        Step::Slice => (),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn is_exact_at_the_moment_it_began(
        before in prop::collection::vec(step(), 0..200),
        during in prop::collection::vec(step(), 0..200),
        budget in 1usize..4000,
    ) {
        let limits = SessionLimits { reply_age_ms: 40, idle_ms: 60, ..SessionLimits::default() };
        let mut state = State { keys: KeySpace::new(SMALL), sessions: Sessions::new(limits) };
        let mut model = Model::new();
        for (place, step) in before.iter().enumerate() {
            take_step(&mut state, &mut model, place as u64, step);
        }
        let (frozen, sessions) = (model.clone(), state.sessions.digest());
        let mut out = Vec::new();
        let mut writer = SnapshotWriter::begin(&header(), false, &mut state, &mut out);
        for (place, step) in during.iter().enumerate() {
            take_step(&mut state, &mut model, 1000 + place as u64, step);
            if matches!(step, Step::Slice) {
                writer.slice(&mut state, budget, &mut out);
            }
        }
        while writer.slice(&mut state, budget, &mut out) {}
        prop_assert_eq!(SnapshotWriter::pending_bytes(&state), 0);
        let summary = writer.finish(&mut state, &mut out);
        let file = bytes_of(&out);
        prop_assert_eq!(read(&file, 1000), Ok(summary.footer));
        let (mut loaded, ..) = load(&file, 777).unwrap();
        check(&mut loaded.keys, &frozen);
        prop_assert_eq!(loaded.sessions.digest(), sessions);
        check(&mut state.keys, &model);
        prop_assert!(frozen.values().all(|said: &Said| said.version.epoch == 3));
    }
}

#[test]
fn a_loaded_table_of_sessions_goes_on_like_the_one_that_was_written() {
    let limits = SessionLimits { reply_age_ms: 40, idle_ms: 60, ..SessionLimits::default() };
    let mut state = State { keys: KeySpace::default(), sessions: Sessions::new(limits) };
    for place in 0..200u64 {
        let client = [(place % 11) as u8];
        if state.sessions.check(&client, place, 1) == Check::Fresh {
            state.sessions.record(&client, place, 1, ReplyKind::Ok, b"", Millis(place));
        }
        state.sessions.acked(&client, place.saturating_sub(place % 31), Millis(place));
        state.sessions.expire(Millis(place), 1);
    }
    let (file, _) = write(&mut state, false, &[]);
    let mut loader = SnapshotLoader::new(SMALL, limits);
    let mut input = file.as_slice();
    while loader.feed(&mut input, |_, _| {}).unwrap() {}
    let mut loaded = loader.finish().unwrap().0;
    for place in 200..400u64 {
        for sessions in [&mut state.sessions, &mut loaded.sessions] {
            let client = [(place % 17) as u8];
            if place < 300 && sessions.check(&client, place, 1) == Check::Fresh {
                sessions.record(&client, place, 1, ReplyKind::Ok, b"", Millis(place));
            }
            sessions.expire(Millis(place), 1);
        }
        assert_eq!(state.sessions.digest(), loaded.sessions.digest(), "at {place}");
        assert_eq!(state.sessions.bytes(), loaded.sessions.bytes());
    }
    assert_eq!(state.sessions.clients(), 0, "all were forgotten in the end");
    assert_eq!(state.sessions.bytes(), 0);
}
