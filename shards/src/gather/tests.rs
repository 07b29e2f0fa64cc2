//! Gathers with scripted answers.

use super::*;
use crate::command::items;
use crate::command::record::{Op, Session, flag};
use crate::gather::bulk_get::BulkGet;
use crate::gather::delete_prefix::DeletePrefix;
use crate::gather::info::Info;
use crate::gather::scan::Scan;
use crate::gather::snapshot::Snapshot;
use crate::gather::topology::Topology;
use crate::ids::{NodeNumber, Version};
use crate::txn::Kind;
use crate::txn::message::{Start, push_version};
use strand_wire::limits::Limits;
use strand_wire::request::{self, Command};

fn with_command<T>(line: &str, run: impl FnOnce(&Command<'_>) -> T) -> T {
    run(&request::parse(line.as_bytes(), &Limits::default()).unwrap().command)
}

fn calls(step: Step) -> Vec<Call> {
    match step {
        Step::Calls(calls) => calls,
        other => panic!("calls, not {other:?}"),
    }
}

fn one_call(step: Step) -> Call {
    let mut calls = calls(step);
    assert_eq!(calls.len(), 1);
    calls.remove(0)
}

fn done(step: Step) -> (ReplyKind, String) {
    match step {
        Step::Done { kind, members } => (kind, String::from_utf8(members).unwrap()),
        other => panic!("the end, not {other:?}"),
    }
}

fn success(step: Step) -> String {
    let (kind, members) = done(step);
    assert_eq!(kind, ReplyKind::Success, "{members}");
    serde_json::from_str::<serde_json::Value>(&format!("{{{members}}}")).unwrap();
    members
}

fn failure(step: Step) -> String {
    let (kind, members) = done(step);
    assert_eq!(kind, ReplyKind::Error, "{members}");
    serde_json::from_str::<serde_json::Value>(&format!("{{{members}}}")).unwrap();
    members
}

/// Two keys of different groups and one more of the first's.
fn keys(topology: &Topology) -> [String; 3] {
    let of = |group: u32| {
        (0..)
            .map(|n| format!("k\"{n}"))
            .filter(move |key| topology.group_of(key.as_bytes()) == GroupId(group))
    };
    let mut zero = of(0);
    [zero.next().unwrap(), of(1).next().unwrap(), zero.next().unwrap()]
}

fn bulk_get(keys: &[String], local: bool) -> (Gather, Step) {
    let topology = Topology::even(2);
    let keys = serde_json::to_string(keys).unwrap();
    let consistency = if local { ",\"consistency\":\"local\"" } else { "" };
    with_command(&format!("{{\"command\":\"BULK_GET\",\"keys\":{keys}{consistency}}}"), |command| {
        let Command::BulkGet(request) = command else { unreachable!() };
        BulkGet::start(&topology, request, BulkGet::split(&topology, request))
    })
}

/// An answer to ReadMany.
fn read_many(values: &[Option<&str>], place: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        out.push(u8::from(value.is_some()));
        push_version(&mut out, Version { epoch: 0, place });
        let value = value.unwrap_or("");
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    out
}

fn part(gather: &mut Gather, number: u16, body: &[u8]) -> Step {
    gather.part(number, ReplyKind::Part, body)
}

#[test]
fn one_group_reads_once_and_several_twice() {
    let [a, b, c] = keys(&Topology::even(2));
    let (mut gather, step) = bulk_get(&[a.clone(), c.clone()], false);
    let call = one_call(step);
    assert_eq!((call.number, call.group), (0, GroupId(0)));
    assert_eq!(Record::decode(&call.record).unwrap().op, Op::ReadMany);
    let result = success(part(&mut gather, 0, &read_many(&[Some("1"), None], 5)));
    assert_eq!(result, format!("\"result\":{{{}:1,{}:null}}", quoted(&a), quoted(&c)));

    let (mut gather, step) = bulk_get(&[b.clone(), a.clone(), c.clone()], false);
    let (zero, one) = (read_many(&[Some("1"), Some("[2]")], 5), read_many(&[None], 7));
    assert!(gather.is_read());
    assert_eq!(calls(step).len(), 2);
    assert_eq!(part(&mut gather, 1, &one), Step::Wait);
    assert_eq!(calls(part(&mut gather, 0, &zero)).len(), 2, "a second round");
    assert_eq!(part(&mut gather, 0, &zero), Step::Wait);
    let result = success(part(&mut gather, 1, &one));
    let expected = format!("\"result\":{{{}:null,{}:1,{}:[2]}}", quoted(&b), quoted(&a), quoted(&c));
    assert_eq!(result, expected, "in the order of the request");

    let (mut gather, step) = bulk_get(&[a, b], true);
    let asked = calls(step);
    assert!(Record::decode(&asked[0].record).unwrap().has(flag::LOCAL));
    part(&mut gather, 0, &read_many(&[Some("1")], 5));
    success(part(&mut gather, 1, &one));
}

fn quoted(key: &str) -> String {
    serde_json::to_string(key).unwrap()
}

#[test]
fn rounds_that_differ_end_in_locks() {
    let [a, b, _] = keys(&Topology::even(2));
    let (mut gather, step) = bulk_get(&[a.clone(), b.clone()], false);
    let mut step = step;
    for round in 0..4 {
        assert_eq!(calls(step).len(), 2, "round {round}");
        // The value is the same each time; only the version tells that it was written again.
        assert_eq!(part(&mut gather, 0, &read_many(&[Some("1")], round)), Step::Wait);
        step = part(&mut gather, 1, &read_many(&[None], 9));
    }
    let call = one_call(step);
    assert_eq!(call.group, GroupId(0));
    let record = Record::decode(&call.record).unwrap();
    let start = Start::decode(record.value).unwrap();
    assert_eq!((record.op, start.kind, start.parts.len()), (Op::TxnStart, Kind::Read, 2));
    let mut values = Vec::new();
    items::push(&mut values, b.as_bytes(), b"\"x\"");
    items::push(&mut values, a.as_bytes(), b"");
    let result = success(part(&mut gather, call.number, &values));
    assert_eq!(result, format!("\"result\":{{{}:null,{}:\"x\"}}", quoted(&a), quoted(&b)));
}

#[test]
fn errors_and_nonsense_end_a_gather() {
    let [a, b, _] = keys(&Topology::even(2));
    let two = [a, b];
    let (mut gather, _) = bulk_get(&two, false);
    let error = b"\"code\":\"TIMEOUT\",\"error\":\"e\",\"retry\":\"safe\"";
    assert_eq!(failure(gather.part(1, ReplyKind::Error, error)).as_bytes(), error);
    for (number, kind, body) in
        [(0, ReplyKind::Success, &b"\"result\":1"[..]), (9, ReplyKind::Part, b""), (0, ReplyKind::Ok, b"")]
    {
        let (mut gather, _) = bulk_get(&two, false);
        assert!(failure(gather.part(number, kind, body)).contains("INTERNAL"));
    }
    for body in [&read_many(&[Some("1"), None], 3)[..], b"\x01", b""] {
        let (mut gather, _) = bulk_get(&two, true);
        part(&mut gather, 0, body);
        let step = part(&mut gather, 1, &read_many(&[None], 3));
        assert!(failure(step).contains("INTERNAL"));
    }
    let (mut gather, _) = bulk_get(&two, true);
    part(&mut gather, 0, b"");
    assert!(failure(part(&mut gather, 0, b"")).contains("INTERNAL"), "it came twice");
    assert_eq!(success(bulk_get(&[], false).1), "\"result\":{}");
}

#[test]
fn results_are_bounded() {
    let [a, ..] = keys(&Topology::even(2));
    let (mut gather, _) = bulk_get(&[a], false);
    let value = "1".repeat(RESULT_BYTES_MAX);
    let text = failure(part(&mut gather, 0, &read_many(&[Some(&value)], 3)));
    assert!(text.contains("TOO_LARGE") && text.ends_with(",\"limit\":67108864"), "{text}");
}

fn scan(fields: &str) -> (Gather, Step) {
    with_command(&format!("{{\"command\":\"SCAN\"{fields}}}"), |command| {
        let Command::Scan(request) = command else { unreachable!() };
        Scan::start(&Topology::even(2), request)
    })
}

fn page(cursor: Option<&str>, entries: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![u8::from(cursor.is_some())];
    if let Some(key) = cursor {
        out.extend_from_slice(&7u64.to_le_bytes());
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
    }
    for (key, value) in entries {
        items::push(&mut out, key.as_bytes(), value.as_bytes());
    }
    out
}

#[test]
fn a_scan_goes_from_shard_to_shard() {
    let (mut gather, step) = scan(",\"prefix\":\"p\",\"limit\":3,\"with_values\":true");
    let call = one_call(step);
    let record = Record::decode(&call.record).unwrap();
    assert_eq!((record.key, record.value, record.argument), (&b"p"[..], &b""[..], Some(3)));
    assert!(record.has(flag::WITH_VALUES) && call.group == GroupId(0));
    // A page may be short before the end of its shard.
    let call = one_call(part(&mut gather, 0, &page(Some("p1"), &[("p\"1", "{}")])));
    let record = Record::decode(&call.record).unwrap();
    assert_eq!(
        (call.group, record.argument, record.value),
        (GroupId(0), Some(2), &page(Some("p1"), &[])[..])
    );
    let call = one_call(part(&mut gather, 0, &page(None, &[("p2", "2")])));
    assert_eq!(call.group, GroupId(1));
    let result = success(part(&mut gather, 0, &page(Some("p3"), &[("p3", "3")])));
    let cursor = result.split("\"cursor\":\"").nth(1).unwrap().trim_end_matches("\"}");
    assert_eq!(
        result,
        format!(
            "\"result\":{{\"keys\":[\"p\\\"1\",\"p2\",\"p3\"],\"values\":[{{}},2,3],\"cursor\":\"{cursor}\"}}"
        )
    );
    assert_eq!(super::cursor::read(cursor), Some((GroupId(1), page(Some("p3"), &[]))));

    let (mut gather, step) = scan(&format!(",\"cursor\":\"{cursor}\""));
    assert_eq!(one_call(step).group, GroupId(1));
    assert_eq!(success(part(&mut gather, 0, &page(None, &[]))), "\"result\":{\"keys\":[],\"cursor\":null}");
}

#[test]
fn scans_are_bounded_and_bad_cursors_refused() {
    let (mut gather, mut step) = scan("");
    for _ in 0..super::scan::CALLS_MAX {
        one_call(step);
        step = part(&mut gather, 0, &page(Some("x"), &[]));
    }
    assert!(success(step).starts_with("\"result\":{\"keys\":[],\"cursor\":\""));

    let (mut gather, _) = scan(",\"with_values\":true");
    let value = quoted(&"1".repeat(super::scan::PAGE_BYTES_MAX));
    assert!(success(part(&mut gather, 0, &page(Some("x"), &[("x", &value)]))).contains("\"cursor\":\""));

    let (mut gather, _) = scan(",\"limit\":1");
    assert!(failure(part(&mut gather, 0, &page(None, &[("a", ""), ("b", "")]))).contains("INTERNAL"));

    let mut other = Vec::new();
    super::cursor::write(&mut other, GroupId(2), &[]);
    for bad in ["", "x", std::str::from_utf8(&other).unwrap()] {
        let text = failure(scan(&format!(",\"cursor\":\"{bad}\"")).1);
        assert!(text.contains("BAD_REQUEST") && text.contains("cursor"), "{text}");
    }
}

fn delete_prefix(fields: &str) -> (Gather, Step) {
    with_command(&format!("{{\"command\":\"DELETE_PREFIX\",\"prefix\":\"p\"{fields}}}"), |command| {
        let Command::DeletePrefix(request) = command else { unreachable!() };
        DeletePrefix::start(&Topology::even(2), request)
    })
}

fn slice(count: u64, cursor: Option<&str>) -> Vec<u8> {
    let mut out = count.to_le_bytes().to_vec();
    out.extend_from_slice(&page(cursor, &[]));
    out
}

#[test]
fn a_prefix_goes_on_every_group() {
    let (mut gather, step) = delete_prefix("");
    let asked = calls(step);
    assert_eq!(asked.iter().map(|call| (call.number, call.group.0)).collect::<Vec<_>>(), [(0, 0), (1, 1)]);
    assert_eq!(part(&mut gather, 1, &slice(4, None)), Step::Wait);
    let call = one_call(part(&mut gather, 0, &slice(10, Some("p7"))));
    let record = Record::decode(&call.record).unwrap();
    assert_eq!((call.number, record.key, record.value), (0, &b"p"[..], &page(Some("p7"), &[])[..]));
    assert!(!gather.is_read());
    assert_eq!(success(part(&mut gather, 0, &slice(1, None))), "\"result\":15");
}

#[test]
fn a_session_remembers_the_reply() {
    let fields = ",\"client\":\"c\",\"seq\":4";
    let (mut gather, step) = delete_prefix(fields);
    let recall = one_call(step);
    let record = Record::decode(&recall.record).unwrap();
    assert_eq!((record.op, recall.group), (Op::Recall, GroupId(0)));
    assert_eq!(record.session, Some(Session { client: b"c", seq: 4, acked: 0 }));
    let fingerprint = record.argument;
    assert_eq!(calls(part(&mut gather, 0, &[])).len(), 2);
    part(&mut gather, 0, &slice(2, None));
    let remember = one_call(part(&mut gather, 1, &slice(3, None)));
    let record = Record::decode(&remember.record).unwrap();
    assert_eq!(
        (record.op, record.argument, record.value),
        (Op::Remember, fingerprint, &b"\0\"result\":5"[..])
    );
    assert_eq!(success(gather.part(0, ReplyKind::Success, b"\"result\":5")), "\"result\":5");

    let (mut gather, _) = delete_prefix(fields);
    assert_eq!(success(gather.part(0, ReplyKind::Success, b"\"result\":5")), "\"result\":5", "a retry");
    let (mut gather, _) = delete_prefix(fields);
    part(&mut gather, 0, &[]);
    assert!(failure(gather.part(0, ReplyKind::Success, b"\"result\":5")).contains("INTERNAL"));
}

#[test]
fn figures_are_put_together() {
    let topology = Topology::even(2);
    let figures = |keys: u64| {
        format!("{{\"keys\":{keys},\"memory_bytes\":9,\"term\":2,\"commit_index\":8,\"applied_index\":7}}")
    };
    let (mut gather, step) = Info::figures(&topology, b"\"mode\":\"single\"".to_vec());
    let asked = calls(step);
    assert!(asked.len() == 2 && Record::flags_of(&asked[0].record) & flag::LOCAL != 0);
    assert_eq!(part(&mut gather, 1, figures(5).as_bytes()), Step::Wait);
    let result = success(part(&mut gather, 0, figures(4).as_bytes()));
    let expected = format!(
        "\"result\":{{\"mode\":\"single\",\"keys\":9,\"keys_memory_bytes\":18,\"shards\":[{},{}]}}",
        figures(4),
        figures(5)
    );
    assert_eq!(result, expected);

    // A shard without a copy has no figures, which is no error.
    let (mut gather, _) = Info::figures(&topology, b"\"mode\":\"single\"".to_vec());
    assert_eq!(gather.part(0, ReplyKind::Error, b"\"code\":\"NOT_LEADER\""), Step::Wait);
    let result = success(part(&mut gather, 1, figures(5).as_bytes()));
    assert!(
        result.ends_with(&format!("\"keys\":5,\"keys_memory_bytes\":9,\"shards\":[null,{}]}}", figures(5)))
    );
    let (mut gather, _) = Info::figures(&Topology::even(1), Vec::new());
    assert!(failure(part(&mut gather, 0, b"{}")).contains("INTERNAL"));
}

#[test]
fn groups_are_told_by_their_leaders() {
    let names = vec![(NodeNumber(1), "n1".to_owned()), (NodeNumber(2), "n2".to_owned())];
    let start = |leaders: &[u16]| {
        let topology = Topology::even(leaders.len() as u16);
        let leaders = leaders.iter().copied().map(NodeNumber).collect();
        Info::groups(&topology, b"\"nodes\":[]".to_vec(), names.clone(), leaders).0
    };
    let figures = "{\"keys\":1,\"memory_bytes\":9,\"term\":2,\"commit_index\":8,\"applied_index\":7";
    assert_eq!(
        success(part(&mut start(&[1]), 0, format!("{figures}}}").as_bytes())),
        "\"result\":{\"nodes\":[],\"groups\":[{\"group\":0,\"leader\":\"n1\",\"replicas\":[{\"node\":\"n1\",\
         \"role\":\"voter\",\"active\":true,\"match_index\":8,\"applied_index\":7,\"lag\":1}],\"term\":2,\"commit_index\":8,\"applied_index\":7,\"lag\":1}]}"
    );
    // The second group has no leader; the first one's has a copy that is behind, and one on a node of no name.
    let mut gather = start(&[2, 0]);
    assert_eq!(gather.part(1, ReplyKind::Error, b"\"code\":\"NO_QUORUM\""), Step::Wait);
    let copies = "[{\"node\":2,\"match_index\":8,\"applied_index\":7,\"lag\":1},\
                  {\"node\":3,\"match_index\":2,\"applied_index\":null,\"lag\":6,\"voter\":false}]";
    let result = success(part(&mut gather, 0, format!("{figures},\"replicas\":{copies}}}").as_bytes()));
    assert_eq!(
        result,
        "\"result\":{\"nodes\":[],\"groups\":[{\"group\":0,\"leader\":\"n2\",\"replicas\":[\
         {\"node\":\"n2\",\"role\":\"voter\",\"active\":true,\"match_index\":8,\"applied_index\":7,\"lag\":1},\
         {\"node\":null,\"role\":\"learner\",\"active\":true,\"match_index\":2,\"applied_index\":null,\"lag\":6}],\
         \"term\":2,\"commit_index\":8,\"applied_index\":7,\"lag\":6},{\"group\":1,\"leader\":null}]}"
    );
}

#[test]
fn a_snapshot_waits_for_all_and_tells_the_lowest_error() {
    let start = || {
        let (gather, step) = Snapshot::start(&Topology::even(3));
        assert_eq!(calls(step).len(), 3);
        gather
    };
    let mut gather = start();
    assert_eq!(gather.part(2, ReplyKind::Ok, b""), Step::Wait);
    assert_eq!(gather.part(0, ReplyKind::Ok, b""), Step::Wait);
    assert_eq!(done(gather.part(1, ReplyKind::Ok, b"")), (ReplyKind::Ok, String::new()));
    let mut gather = start();
    let error = |code: &str| format!("\"code\":\"{code}\"");
    assert_eq!(gather.part(2, ReplyKind::Error, error("DISK_FULL").as_bytes()), Step::Wait);
    assert_eq!(gather.part(1, ReplyKind::Error, error("TIMEOUT").as_bytes()), Step::Wait);
    assert_eq!(failure(gather.part(0, ReplyKind::Ok, b"")), error("TIMEOUT"));
}
