//! What every server must do: runs against `STRAND_TEST_ADDRESS` when set, and against the fake one otherwise.

mod support;

use serde_json::{Value, json, value::RawValue};
use strand_client::{Client, Code, ErrorCode, If, ScanOptions, SetOptions};
use support::{any_server, own_prefix};

fn client() -> Client {
    Client::connect(&any_server()).expect("a server is there")
}

#[test]
fn values_come_back_as_they_were_stored() {
    let (mut client, prefix) = (client(), own_prefix("values"));
    for (n, value) in
        [json!(null), json!(1.5), json!("é\n\u{1F600}\""), json!({"a": [1, {"b": null}]})].iter().enumerate()
    {
        let key = format!("{prefix}{n} \"quoted\"");
        client.set(&key, value).unwrap();
        assert_eq!(client.get(&key).unwrap().as_ref(), Some(value));
        assert!(client.exists(&key).unwrap());
        assert!(client.delete(&key).unwrap());
        assert_eq!(client.get(&key).unwrap(), None);
        assert!(!client.delete(&key).unwrap());
    }
}

#[test]
fn a_stored_null_is_not_an_absent_key() {
    let (mut client, prefix) = (client(), own_prefix("null"));
    client.set(&prefix, &Value::Null).unwrap();
    assert_eq!(client.get(&prefix).unwrap(), Some(Value::Null));
    assert_eq!(client.get_raw(&prefix).unwrap().unwrap().get(), "null");
}

#[test]
fn counters_count_and_refuse() {
    let (mut client, key) = (client(), own_prefix("incr"));
    assert_eq!(client.incr(&key, 5).unwrap(), 5);
    assert_eq!(client.incr(&key, -7).unwrap(), -2);
    assert_eq!(client.incr(&key, i64::MAX).unwrap(), i64::MAX - 2);
    assert_eq!(client.incr(&key, 3).unwrap_err().code(), Some(&ErrorCode::Known(Code::Overflow)));
    client.set(&key, "text").unwrap();
    assert_eq!(client.incr(&key, 1).unwrap_err().code(), Some(&ErrorCode::Known(Code::WrongType)));
}

#[test]
fn conditions_hold() {
    let (mut client, key) = (client(), own_prefix("if"));
    assert!(client.set_if_absent(&key, &1).unwrap());
    assert!(!client.set_if_absent(&key, &2).unwrap());
    let seen = client.get_versioned(&key).unwrap().unwrap();
    assert_eq!(seen.value.get(), "1");
    let on_seen = SetOptions::default().condition(If::version(seen.version.as_str())).with_version(true);
    let version = client.set_with(&key, &3, &on_seen).unwrap().expect("it was asked for");
    assert_ne!(version, seen.version);
    let error = client.set_with(&key, &4, &on_seen).unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::Known(Code::Conflict)));
    assert_eq!(error.server().unwrap().version(), Some(version.as_str()));
}

#[test]
fn bulks_take_the_last_of_repeated_keys() {
    let (mut client, prefix) = (client(), own_prefix("bulk"));
    let key = |n: usize| format!("{prefix}{n}");
    assert_eq!(client.bulk_set([(key(1), 1), (key(2), 2), (key(1), 3)]).unwrap(), 2);
    let got = client.bulk_get(&[key(1), key(2), key(3)]).unwrap();
    assert_eq!((&got[&key(1)], &got[&key(2)], &got[&key(3)]), (&json!(3), &json!(2), &Value::Null));
}

#[test]
fn pipelines_answer_in_order() {
    let (mut client, key) = (client(), own_prefix("pipeline"));
    // More than the window, so that sending and receiving interleave.
    let count = 3_000;
    let mut pipeline = client.pipeline();
    for _ in 0..count {
        pipeline.incr(&key, 1);
    }
    let replies = pipeline.send();
    assert_eq!(replies.len(), count);
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.unwrap().result::<usize>().unwrap(), n + 1);
    }
}

#[test]
fn large_values_pass_both_ways_at_once() {
    let (mut client, prefix) = (client(), own_prefix("large"));
    let big = "x".repeat(1_000_000);
    let mut pipeline = client.pipeline();
    for n in 0..20 {
        pipeline.set(&format!("{prefix}{n}"), &big).unwrap();
        pipeline.get(&format!("{prefix}{n}"));
    }
    for (n, reply) in pipeline.send().into_iter().enumerate() {
        let length = reply.unwrap().result_text().len();
        assert_eq!(length, if n % 2 == 0 { "\"OK\"".len() } else { big.len() + 2 });
    }
}

#[test]
fn scans_give_every_key_once() {
    let (mut client, prefix) = (client(), own_prefix("scan"));
    let expected: Vec<String> = (0..25).map(|n| format!("{prefix}{n:02}")).collect();
    client.bulk_set(expected.iter().map(|key| (key, 7))).unwrap();
    let options = ScanOptions::default().prefix(prefix.as_str()).page(10);
    let mut keys: Vec<String> = client.scan(options.clone()).map(|item| item.unwrap().key).collect();
    keys.sort();
    assert_eq!(keys, expected);
    assert!(client.scan(options.with_values(true)).all(|item| item.unwrap().value.unwrap().get() == "7"));
}

#[test]
fn raw_commands_give_raw_replies() {
    let (mut client, key) = (client(), own_prefix("raw"));
    let reply = client.send_command(&json!({"command": "set", "key": key, "value": 1, "id": "x"})).unwrap();
    assert_eq!(
        (&reply["status"], &reply["result"], &reply["id"]),
        (&json!("success"), &json!("OK"), &json!("x"))
    );
    let reply = client.send_command(&json!({"command": "NO_SUCH"})).unwrap();
    assert_eq!((&reply["status"], &reply["code"]), (&json!("error"), &json!("UNKNOWN_COMMAND")));
    let spaced = RawValue::from_string("{ \"a\" :\n 1.50 }".into()).unwrap();
    client.set(&key, &spaced).unwrap();
    assert_eq!(client.get(&key).unwrap(), Some(json!({"a": 1.5})));
}
