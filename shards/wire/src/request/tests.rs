//! Tests of the parser: every command, every refusal, and agreement of its fast and its general path.

use super::*;
use crate::code::Code;
use crate::commands::{COMMANDS, COMMON, FieldKind};
use proptest::prelude::*;

/// For every command a line without and one with every optional field that goes with the others.
const CORPUS: &[&str] = &[
    r#"{"command":"PING"}"#,
    r#"{"command":"HELLO"}"#,
    r#"{"command":"hello","ordered":false,"redirect":true,"token":"t","client":"c","id":"h"}"#,
    r#"{"command":"SET","key":"k","value":"v"}"#,
    r#" { "id" : 7 , "value" : {"a":[1,2.5e3,null,"\u00e9"]} , "key" : "schlüssel" , "command" : "set" } "#,
    r#"{"command":"SET","key":"k","value":1,"ttl_ms":5,"if":{"version":"0-1"},"client":"c","seq":1,"acked":1,"durability":"fsync","with_version":true,"debug":true,"timeout_ms":100}"#,
    r#"{"command":"SET","key":"\u006b","value":1,"if":{"value":[1, 2]}}"#,
    r#"{"command":"GET","key":"k"}"#,
    r#"{"command":"GET","key":"k","consistency":"local","with_version":true}"#,
    r#"{"command":"DELETE","key":"k"}"#,
    r#"{"command":"DELETE","key":"k","if":{"present":true},"client":"c","seq":2,"acked":2,"durability":"memory"}"#,
    r#"{"command":"EXISTS","key":"k","consistency":"linearizable"}"#,
    r#"{"command":"INCR","key":"k"}"#,
    r#"{"command":"INCR","key":"k","amount":-5,"client":"c","seq":18446744073709551614,"acked":0,"durability":"fsync"}"#,
    r#"{"command":"BULK_SET","items":{"a":1,"b":[{}],"a":2}}"#,
    r#"{"command":"BULK_SET","items":[["a",1],["\u0061","x"]],"client":"c","seq":1,"debug":false}"#,
    r#"{"command":"BULK_SET","items":[{"key":"a","value":1},{"value":{"key":1},"key":"b"}],"acked":1,"client":"c","seq":1}"#,
    r#"{"command":"BULK_GET","keys":["b","a","b","\u0061"],"consistency":"local"}"#,
    r#"{"command":"BULK_DELETE","keys":["b","a"],"client":"c","seq":1,"acked":1}"#,
    r#"{"command":"EXPIRE","key":"k","ttl_ms":1,"client":"c","seq":1,"acked":1}"#,
    r#"{"command":"TTL","key":"k","consistency":"local"}"#,
    r#"{"command":"PERSIST","key":"k","client":"c","seq":1,"acked":1}"#,
    r#"{"command":"SCAN"}"#,
    r#"{"command":"SCAN","prefix":"p","cursor":"c","limit":5,"with_values":true,"consistency":"local"}"#,
    r#"{"command":"SCAN","cursor":null}"#,
    r#"{"command":"DELETE_PREFIX","prefix":"p","client":"c","seq":1,"acked":1}"#,
    r#"{"command":"SEARCH","query":"a \"b c\"~2"}"#,
    r#"{"command":"SEARCH","query":"q","top_k":0,"offset":3,"fields":["a.b","c"],"filter":{"and":[{"field":"p","gte":1,"lt":2},{"or":[]},{"not":{"field":"s","prefix":"x"}},{"field":"e","value":"y"}]},"with_values":true,"highlight":true,"consistency":"local"}"#,
    r#"{"command":"SEMANTIC_SEARCH","query":"q","top_k":3,"model":"embedding","filter":{"field":"a","value":null},"consistency":"local"}"#,
    r#"{"command":"SEMANTIC_SEARCH","vector":[1,-0.5,2e-3],"model":"v"}"#,
    r#"{"command":"HYBRID_SEARCH","query":"q","top_k":3,"offset":1,"model":"tfidf","alpha":0.5,"fusion":"rrf","filter":{"field":"a","lte":"z"},"consistency":"linearizable"}"#,
    r#"{"command":"CREATE_INDEX","field":"a.b"}"#,
    r#"{"command":"CREATE_INDEX","field":"a","kind":"vector","dim":128,"metric":"dot"}"#,
    r#"{"command":"CREATE_INDEX","field":"a","kind":"text","analyzer":"english"}"#,
    r#"{"command":"QUERY_INDEX","field":"a","value":"x","limit":7,"cursor":"c","order":"desc","with_values":true,"consistency":"local"}"#,
    r#"{"command":"QUERY_INDEX","field":"a","gt":1,"lte":2}"#,
    r#"{"command":"QUERY_INDEX","field":"a","gte":1,"lt":2}"#,
    r#"{"command":"QUERY_INDEX","field":"a","prefix":"x"}"#,
    r#"{"command":"LIST_INDEXES"}"#,
    r#"{"command":"DROP_INDEX","field":"a","kind":"text"}"#,
    r#"{"command":"INFO"}"#,
    r#"{"command":"CLUSTER"}"#,
    r#"{"command":"SNAPSHOT"}"#,
    r#"{"command":"ADD_NODE","node":"n4","address":"h:1:2"}"#,
    r#"{"command":"REMOVE_NODE","node":"n4"}"#,
    r#"{"command":"TRANSFER_LEADER","node":"n4","shard":3}"#,
    r#"{"command":"BALANCE"}"#,
    r#"{"command":"SHUTDOWN"}"#,
];

fn limits() -> Limits {
    Limits::default()
}

fn command(line: &str) -> Command<'_> {
    parse(line.as_bytes(), &limits()).unwrap_or_else(|refusal| panic!("{line}: {refusal:?}")).command
}

fn refusal(line: &str) -> Refusal<'_> {
    parse(line.as_bytes(), &limits()).expect_err(line)
}

fn check_refused(line: &str, code: Code, said: &str) {
    let refusal = refusal(line);
    assert_eq!((refusal.code, refusal.close), (code, false), "{line}: {}", refusal.message);
    assert!(refusal.message.contains(said), "{line}: {}", refusal.message);
}

/// Where the fast path gives a request, the general one gives the same.
fn check_paths_agree(line: &[u8], limits: &Limits) -> bool {
    let general = general::parse(line, limits);
    if let Ok(request) = &general {
        assert_eq!(request.command.name(), request.command.spec().name);
        assert!(
            serde_json::from_slice::<&serde_json::value::RawValue>(line).is_ok(),
            "what is accepted is JSON"
        );
    }
    match key_request(line, limits) {
        Some(request) => {
            assert_eq!(Some(request.whole()), general.ok(), "{}", String::from_utf8_lossy(line));
            true
        }
        None => false,
    }
}

#[test]
fn every_command_and_field_of_the_table_is_read() {
    for spec in COMMANDS {
        let lines: Vec<_> = CORPUS.iter().filter(|line| command(line).name() == spec.name).collect();
        assert!(!lines.is_empty(), "{}", spec.name);
        for field in spec.fields {
            let line = lines.iter().find(|line| line.contains(&format!("\"{}\":", field.name)));
            let line = line.unwrap_or_else(|| panic!("no line has {} of {}", field.name, spec.name));
            // Put an impossible value in place of the field's own: it must be refused by name, so it was looked at.
            let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            let mut wrong = members.clone();
            let value = if let FieldKind::Scalar = field.kind {
                serde_json::json!([1])
            } else {
                serde_json::json!(false)
            };
            let value = if let FieldKind::Flag = field.kind { serde_json::json!(0) } else { value };
            wrong.insert(field.name.to_owned(), value);
            if field.kind != FieldKind::Any {
                let wrong = serde_json::to_string(&wrong).unwrap();
                let refused = refusal(&wrong);
                let named = refused.message.contains(field.name) || field.kind == FieldKind::Filter;
                assert!(refused.code == Code::BadRequest && named, "{wrong}: {}", refused.message);
            }
            let mut missing = members.clone();
            missing.remove(field.name);
            let missing = serde_json::to_string(&missing).unwrap();
            if field.required {
                check_refused(&missing, Code::BadRequest, &format!("needs field \"{}\"", field.name));
            }
            let twice = format!("{},\"{}\":0}}", line.trim().strip_suffix('}').unwrap(), field.name);
            check_refused(&twice, Code::BadRequest, "only once");
        }
    }
}

#[test]
fn common_fields_go_with_every_command() {
    for line in CORPUS {
        let body = line.trim().strip_suffix('}').unwrap();
        let unknown = format!("{body},\"frobnicate\":0}}");
        check_refused(&unknown, Code::BadRequest, "no field \"frobnicate\"");
        for common in COMMON.iter().filter(|common| !line.contains(&format!("\"{}\"", common.name))) {
            let with = format!("{body},\"{}\":12}}", common.name);
            let request = parse(with.as_bytes(), &limits()).map_err(|refusal| refusal.message).unwrap();
            let found =
                if common.name == "id" { request.id == Some(b"12") } else { request.timeout_ms == Some(12) };
            assert!(found, "{with}");
        }
    }
}

#[test]
fn corpus_survives_truncation_and_mutation() {
    let limits = limits();
    for line in CORPUS {
        assert_eq!(parse(line.as_bytes(), &limits), general::parse(line.as_bytes(), &limits));
        check_paths_agree(line.as_bytes(), &limits);
        for end in 0..line.trim_end().len() {
            check_paths_agree(&line.as_bytes()[..end], &limits);
            assert!(parse(&line.as_bytes()[..end], &limits).is_err());
        }
        let mut bytes = line.as_bytes().to_vec();
        for place in 0..bytes.len() {
            let kept = bytes[place];
            for byte in [
                0, b' ', b'"', b'\\', b',', b':', b'{', b'}', b'[', b']', b'0', b'-', b'e', b'k', 0x7f, 0x80,
                0xff,
            ] {
                bytes[place] = byte;
                check_paths_agree(&bytes, &limits);
            }
            for bit in 0..8 {
                bytes[place] = kept ^ 1 << bit;
                check_paths_agree(&bytes, &limits);
            }
            bytes[place] = kept;
        }
    }
}

#[test]
fn set_keeps_every_byte() {
    let Command::Set(set) = command(CORPUS[4]) else { panic!() };
    assert_eq!((&*set.key, set.value), ("schlüssel", r#"{"a":[1,2.5e3,null,"\u00e9"]}"#.as_bytes()));
    let Command::Set(set) = command(CORPUS[5]) else { panic!() };
    let session = Some(Session { client: "c".into(), seq: 1, acked: Some(1) });
    let condition = Some(Condition::Version("0-1".into()));
    let durability = Durability::Fsync;
    let all = Set {
        key: "k".into(),
        value: b"1",
        ttl_ms: Some(5),
        condition,
        session,
        durability,
        with_version: true,
        debug: true,
    };
    assert_eq!(set, all);
    let Command::Set(set) = command(CORPUS[6]) else { panic!() };
    assert_eq!((&*set.key, set.condition), ("k", Some(Condition::Value(b"[1, 2]"))));
    // A value may hold what text may not: it is never decoded here.
    let Command::Set(set) = command(r#"{"command":"SET","key":"k","value":"\ud800"}"#) else { panic!() };
    assert_eq!(set.value, br#""\ud800""#);
}

#[test]
fn batches_merge_repeated_keys() {
    let items = |line| match command(line) {
        Command::BulkSet(set) => set.items,
        other => panic!("{other:?}"),
    };
    assert_eq!(items(CORPUS[14]), [("a".into(), &b"2"[..]), ("b".into(), b"[{}]")]);
    assert_eq!(items(CORPUS[15]), [(Cow::from("a"), &b"\"x\""[..])]);
    assert_eq!(items(CORPUS[16]), [("a".into(), &b"1"[..]), ("b".into(), br#"{"key":1}"#)]);
    assert_eq!(items(r#"{"command":"BULK_SET","items":[]}"#), []);
    let Command::BulkGet(get) = command(CORPUS[17]) else { panic!() };
    assert_eq!(get.keys, ["b", "a"]);
    let empty = command(r#"{"command":"BULK_DELETE","keys":[]}"#);
    assert_eq!(empty, Command::BulkDelete(BulkDelete { keys: vec![], session: None }));
}

#[test]
fn filters_become_trees() {
    let Command::Search(search) = command(CORPUS[27]) else { panic!() };
    let field = |path: &'static str, test| Filter::Field { path: path.into(), test };
    let lower = Some(Bound { value: &b"1"[..], inclusive: true });
    let upper = Some(Bound { value: &b"2"[..], inclusive: false });
    let expected = Filter::And(vec![
        field("p", Test::Range { lower, upper }),
        Filter::Or(vec![]),
        Filter::Not(Box::new(field("s", Test::Prefix("x".into())))),
        field("e", Test::Equal(b"\"y\"")),
    ]);
    assert_eq!(search.filter, Some(expected));
    assert_eq!((search.top_k, search.offset, search.fields), (0, 3, vec!["a.b".into(), "c".into()]));
    assert!(search.filter_token.unwrap().starts_with(br#"{"and":[{"#));
    let check = |filter: &str, said| {
        let line = format!(r#"{{"command":"SEARCH","query":"q","filter":{filter}}}"#);
        check_refused(&line, Code::BadRequest, said);
    };
    check("[]", "must be an object");
    check("{}", "needs \"field\"");
    check(r#"{"and":{}}"#, "must be an array of filters");
    check(r#"{"and":[],"or":[]}"#, "only member");
    check(r#"{"field":"a"}"#, "exactly one of");
    check(r#"{"field":"a","value":1,"gt":1}"#, "exactly one of");
    check(r#"{"field":"a","gt":1,"gte":1}"#, "not both");
    check(r#"{"field":"a","value":{}}"#, "not an object");
    check(r#"{"field":"a","valeu":1}"#, "no member \"valeu\"");
    check(r#"{"field":"a","value":1,"value":1}"#, "twice");
    let wide = format!(r#"{{"or":[{}]}}"#, vec![r#"{"or":[]}"#; 1024].join(","));
    let line = format!(r#"{{"command":"SEARCH","query":"q","filter":{wide}}}"#);
    check_refused(&line, Code::TooLarge, "1024 parts");
}

#[test]
fn refusals_say_what_to_do() {
    let bad = |line, said| check_refused(line, Code::BadRequest, said);
    bad("", "expected a JSON object, which starts with '{' at byte 0");
    bad("[]", "starts with '{' at byte 0");
    bad("{} {}", "expected the end of the line at byte 3");
    bad(r#"{"command":"SET","key":"k","value":}"#, "expected a value at byte 35");
    bad(r#"{}"#, "field \"command\"");
    bad(r#"{"comand":"GET"}"#, "instead of \"comand\"");
    bad(r#"{"command":1}"#, "not an integer");
    bad(r#"{"command":"GET","kye":"k"}"#, "did you mean \"key\"?");
    bad(r#"{"command":"PING","x":1}"#, "it takes id, timeout_ms, command");
    bad(r#"{"command":"GET"}"#, "GET needs field \"key\"");
    bad(r#"{"command":"GET","key":1}"#, "field \"key\" must be a string, not an integer");
    bad(r#"{"command":"GET","key":""}"#, "must not be empty");
    bad(r#"{"command":"GET","key":"\udc00"}"#, "lone surrogate");
    bad(r#"{"command":"BULK_GET","keys":["a","\ud800"]}"#, "keys[1]");
    bad(r#"{"command":"BULK_SET","items":{"\ud800":1}}"#, "lone surrogate");
    bad(r#"{"command":"BULK_SET","items":{"":1}}"#, "must not be empty");
    bad(r#"{"command":"BULK_SET","items":[["a"]]}"#, "items[0] must be [key, value]");
    bad(r#"{"command":"BULK_SET","items":[{"key":"a","val":1}]}"#, "no field \"val\"");
    bad(r#"{"command":"SET","key":"k","value":1,"seq":1}"#, "together");
    bad(r#"{"command":"SET","key":"k","value":1,"acked":1}"#, "together");
    bad(r#"{"command":"SET","key":"k","value":1,"ttl_ms":0}"#, "an integer from 1 to");
    bad(r#"{"command":"SET","key":"k","value":1,"if":{"absent":false}}"#, "one of {\"absent\":true}");
    bad(r#"{"command":"INCR","key":"k","amount":1.0}"#, "not 1.0");
    bad(
        r#"{"command":"INCR","key":"k","amount":9223372036854775808}"#,
        "an integer from -9223372036854775808",
    );
    bad(r#"{"command":"GET","key":"k","consistency":"strong"}"#, "one of \"linearizable\", \"local\"");
    bad(r#"{"command":"PING","timeout_ms":3600001}"#, "an integer from 1 to 3600000");
    bad(r#"{"command":"PING","id":1.5}"#, "a string or an integer, not a number");
    bad(r#"{"command":"SEMANTIC_SEARCH"}"#, "either \"query\" or \"vector\"");
    bad(r#"{"command":"SEMANTIC_SEARCH","vector":[1]}"#, "in \"model\"");
    bad(r#"{"command":"SEMANTIC_SEARCH","vector":[1,1e99],"model":"v"}"#, "vector[1]");
    bad(r#"{"command":"HYBRID_SEARCH","query":"q","alpha":1.5}"#, "a number from 0 to 1");
    bad(r#"{"command":"CREATE_INDEX","field":"v","kind":"vector"}"#, "needs \"dim\"");
    bad(r#"{"command":"CREATE_INDEX","field":"v","dim":3}"#, "vector only");
    bad(r#"{"command":"QUERY_INDEX","field":"a"}"#, "exactly one of");
    check_refused(r#"{"command":"GTE"}"#, Code::UnknownCommand, "did you mean GET?");
    assert!(refusal(&format!("{{\"command\":\"{}\"}}", "é".repeat(500))).message.len() < 200);
    assert!(
        parse(b"{\"command\":\"PING\xff\"}", &limits()).unwrap_err().message.contains("UTF-8 at byte 16")
    );
}

#[test]
fn limits_hold_at_their_edges() {
    let check = |limits: &Limits, fits: &str, exceeds: &str, limit: u64| {
        assert!(parse(fits.as_bytes(), limits).is_ok(), "{fits}");
        let refused = parse(exceeds.as_bytes(), limits).unwrap_err();
        assert_eq!((refused.code, refused.limit), (Code::TooLarge, Some(limit)), "{}", refused.message);
    };
    let small = Limits { key_bytes_max: 3, value_bytes_max: 4, depth_max: 2, batch_items_max: 2, ..limits() };
    let get = |key| format!(r#"{{"command":"GET","key":"{key}"}}"#);
    check(&small, &get("abc"), &get("abcd"), 3);
    check(&small, &get("\\u00e9a"), &get("\\u00e9\\u00e9"), 3);
    let set = |value| format!(r#"{{"command":"SET","key":"k","value":{value}}}"#);
    check(&small, &set("1234"), &set("12345"), 4);
    check(&small, &set("[[]]"), &set("[[[]]]"), 2);
    let bulk = |items| format!(r#"{{"command":"BULK_SET","items":{items}}}"#);
    check(&small, &bulk(r#"{"a":[[]]}"#), &bulk(r#"{"a":[[[]]]}"#), 2);
    check(&small, &bulk(r#"[["a",[[]]]]"#), &bulk(r#"[["a",[[[]]]]]"#), 2);
    check(&small, &bulk(r#"[{"key":"a","value":[[]]}]"#), &bulk(r#"[{"key":"a","value":[[[]]]}]"#), 2);
    check(&small, &bulk(r#"{"a":1234}"#), &bulk(r#"{"a":12345}"#), 4);
    check(&small, &bulk(r#"{"a":1,"a":2}"#), &bulk(r#"{"a":1,"a":2,"a":3}"#), 2);
    let keys = |keys| format!(r#"{{"command":"BULK_GET","keys":{keys}}}"#);
    check(&small, &keys(r#"["a","b"]"#), &keys(r#"["a","b","c"]"#), 2);
    let search = |top_k| format!(r#"{{"command":"SEARCH","query":"q","offset":9000,"top_k":{top_k}}}"#);
    check(&small, &search(1000), &search(1001), 10_000);
    let scan = |limit| format!(r#"{{"command":"SCAN","limit":{limit}}}"#);
    check(&small, &scan(10_000), &scan(10_001), 10_000);
    let line = r#"{"command":"PING"}"#;
    let short = Limits { line_bytes_max: line.len(), ..limits() };
    check(&short, line, r#"{"command":"PING" }"#, line.len() as u64);
    assert!(parse(b"{\"command\":\"PING\" }", &short).unwrap_err().close);
}

#[test]
fn the_last_number_that_can_be_remembered_is_the_largest_seq() {
    let set = |seq: u64| format!(r#"{{"command":"SET","key":"k","value":1,"client":"c","seq":{seq}}}"#);
    assert!(parse(set(u64::MAX - 1).as_bytes(), &limits()).is_ok());
    check_refused(&set(u64::MAX), Code::BadRequest, "from 0 to 18446744073709551614");
}

#[test]
fn refusals_carry_the_id_where_it_was_read() {
    let id = |line| refusal(line).id.map(|id| std::str::from_utf8(id).unwrap());
    assert_eq!(id(r#"{"id":7,"command":"SET","key":"#), None, "what is no JSON has no id");
    assert_eq!(id(r#"{"id":7,"command":"PING"} x"#), None);
    assert_eq!(id(r#"{"\ud800":1,"command":"PING","id":3}"#), Some("3"));
    let deep = format!(r#"{{"id":7,"command":"SET","key":"k","value":{}"#, "[".repeat(65));
    assert_eq!(id(&deep), Some("7"), "of what is nested too deep the rest is not read");
    assert_eq!(id(r#"{"command":"SET","key":,"id":7}"#), None);
    assert_eq!(id(r#"{"command":"FOO","id":"\u0061"}"#), Some(r#""\u0061""#));
    assert_eq!(id(r#"{"command":"PING","x":1,"x":2,"id":-5}"#), Some("-5"));
    assert_eq!(id(r#"{"command":"PING","id":null}"#), None);
    let mut out = Vec::new();
    refusal(r#"{"id":7,"command":"SEARCH","query":"q","top_k":10001}"#).write(&mut out);
    let said = "{\"status\":\"error\",\"id\":7,\"code\":\"TOO_LARGE\",\"error\":\"\\\"offset\\\" and \\\"top_k\\\" \
        together may be at most 10000\",\"retry\":\"never\",\"limit\":10000}\n";
    assert_eq!(String::from_utf8(out).unwrap(), said);
}

#[test]
fn too_many_fields_are_not_read_to_the_end() {
    let many: String = (0..100).map(|number| format!(",\"f{number}\":0")).collect();
    check_refused(&format!("{{\"command\":\"PING\"{many}}}"), Code::BadRequest, "at most 32 fields");
}

#[test]
fn the_fast_path_takes_the_common_shapes() {
    for place in [3, 4, 7, 8, 9, 11, 12, 13] {
        assert!(check_paths_agree(CORPUS[place].as_bytes(), &limits()), "{}", CORPUS[place]);
    }
    let session = r#"{"id":"x","command":"SET","key":"k","value":[1],"client":"c","seq":4,"acked":2}"#;
    assert!(check_paths_agree(session.as_bytes(), &limits()));
}

/// Members of the fast path's kind, sound and unsound, and some that it does not know.
fn any_member() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "1",
        "-1",
        "0",
        "01",
        "1.0",
        "null",
        "true",
        "\"\"",
        "\"k\"",
        "\"\\u006b\"",
        "\"\\ud800\"",
        "\"ä\"",
        "[]",
        "{\"a\":1}",
        "\"SET\"",
        "\"local\"",
        "\"fsync\"",
        "\"memory\"",
        "3600001",
        "18446744073709551615",
        "\"longer than sixteen bytes\"",
        "[[[[1]]]]",
    ]);
    let name = prop::sample::select(vec![
        "command",
        "key",
        "value",
        "id",
        "amount",
        "client",
        "seq",
        "acked",
        "timeout_ms",
        "ttl_ms",
        "consistency",
        "durability",
        "with_version",
        "\\u006bey",
        "x",
    ]);
    // Half of the members are sound in themselves, so that whole requests often are.
    let sound = prop::sample::select(vec![
        "\"id\":7",
        "\"id\":\"a\"",
        "\"amount\":-3",
        "\"client\":\"c\",\"seq\":1",
        "\"client\":\"c\",\"seq\":2,\"acked\":1",
        "\"ttl_ms\":5",
        "\"timeout_ms\":5",
        "\"consistency\":\"local\"",
        "\"durability\":\"memory\"",
        "\"with_version\":true",
    ]);
    prop_oneof![
        sound.prop_map(str::to_owned),
        (name, token).prop_map(|(name, token)| format!("\"{name}\":{token}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn fast_equals_general(
        name in prop::sample::select(vec!["SET", "GET", "DELETE", "EXISTS", "INCR", "set", "Get", "TTL"]),
        members in prop::collection::vec(any_member(), 0..4),
        sound in any::<bool>(),
        space in "[ \t]{0,2}",
        rotate in 0..6usize,
    ) {
        let mut members = members;
        members.push(format!("\"command\":{space}\"{name}\""));
        if sound {
            members.retain(|member| !member.starts_with("\"key\"") && !member.starts_with("\"value\""));
            members.push("\"key\":\"some key\"".to_owned());
            if name.eq_ignore_ascii_case("set") {
                members.push("\"value\":{\"a\":[1,\"b\"]}".to_owned());
            }
        }
        let middle = rotate % members.len();
        members.rotate_left(middle);
        let line = format!("{{{space}{}{space}}}{space}", members.join(&format!("{space},{space}")));
        for depth_max in [64, 2] {
            check_paths_agree(line.as_bytes(), &Limits { depth_max, key_bytes_max: 8, ..limits() });
        }
    }

    #[test]
    fn batches_equal_a_map(pairs in prop::collection::vec(("[a-c]{1,9}", 0..9u8), 0..40)) {
        let items: Vec<String> = pairs.iter().map(|(key, value)| format!("[\"{key}\",{value}]")).collect();
        let line = format!(r#"{{"command":"BULK_SET","items":[{}]}}"#, items.join(","));
        let Command::BulkSet(set) = command(&line) else { panic!() };
        let mut expected: Vec<(String, u8)> = Vec::new();
        for (key, value) in &pairs {
            match expected.iter_mut().find(|item| item.0 == *key) {
                Some(item) => item.1 = *value,
                None => expected.push((key.clone(), *value)),
            }
        }
        let items: Vec<(String, u8)> =
            set.items.iter().map(|(key, value)| (key.to_string(), value[0] - b'0')).collect();
        prop_assert_eq!(items, expected);
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes, &limits()).is_err());
    }
}
