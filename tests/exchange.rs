//! `strand export`, `strand import` and `strand top` against running servers: what goes out of one comes into another unchanged.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::directory::TemporaryDirectory;
use support::eventually;
use support::server::{Server, Setup};
use support::timed;

/// Runs a subcommand against a server.
fn strand(server: &Server, words: &[&str], input: Option<&[u8]>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
    let address = format!("127.0.0.1:{}", server.port());
    command.args(words).args(["--address", &address]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("it was piped");
    // A subcommand that refuses its input early does not read it to the end.
    let _ = stdin.write_all(input.unwrap_or_default());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn refused(output: &Output, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains(expected), "{expected} is not in: {told}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// 2,500 keys over all shards: of every kind of value, byte for byte, some for a while only, and two indexes.
fn fill(server: &Server) -> Vec<(String, String)> {
    let mut items: Vec<(String, String)> =
        (0..2490).map(|n| (format!("n:{n}"), format!("{{\"n\": {n}.50,\"t\":\"word{n}\"}}"))).collect();
    for value in ["null", "1e2", "\"\\u00e9\\ud83d\\ude00\"", "[ ]", "-0", "true", "\"a\\nb\"", "{}"] {
        items.push((format!("k\"\u{e9}\n{}", items.len()), value.to_owned()));
    }
    items.push(("long".into(), format!("\"{}\"", "x".repeat(60_000))));
    items.push(("brief".into(), "1".into()));
    let mut connection = server.connect();
    for (key, value) in &items {
        let ttl = if key == "brief" { ",\"ttl_ms\":600000" } else { "" };
        connection
            .queue_line(&format!("{{\"command\":\"SET\",\"key\":{},\"value\":{value}{ttl}}}", json!(key)));
    }
    connection.flush().expect("the server reads");
    for _ in &items {
        let reply = connection.receive().expect("a reply");
        assert_eq!(reply["status"], "success", "{reply}");
    }
    server.get(&json!({"command": "CREATE_INDEX", "field": "n"}));
    server.get(&json!({"command": "CREATE_INDEX", "field": "t", "kind": "text", "analyzer": "standard"}));
    items
}

/// The value of each key as it comes over the wire.
fn raw(server: &Server, keys: impl Iterator<Item = String>) -> Vec<String> {
    let mut connection = server.connect();
    let values = keys.map(|key| {
        connection.queue_line(&json!({"command": "GET", "key": key}).to_string());
        connection.flush().expect("the server reads");
        connection.receive_line().expect("a reply")
    });
    values.collect()
}

#[test]
fn an_export_comes_back_byte_for_byte_in_another_server() {
    let _timed = timed("export and import");
    let room = TemporaryDirectory::new("exchange");
    let file = room.path().join("all.jsonl");
    let (setup_from, setup_to) =
        (Setup::small("exchange-from").with(&["--shards", "3"]), Setup::small("exchange-to"));
    let from = setup_from.start();
    let items = fill(&from);
    done(&strand(&from, &["export", path(&file)], None));
    refused(&strand(&from, &["export", path(&file)], None), "is there already");
    done(&strand(&from, &["export", "--force", path(&file)], None));
    let users = done(&strand(&from, &["export", "--prefix", "n:24"], None));
    assert_eq!(users.lines().filter(|line| line.starts_with("{\"key\":\"n:24")).count(), 101);

    let to = setup_to.start();
    // A file that is not whole changes nothing.
    let bytes = fs::read(&file).expect("it was written");
    let broken = room.path().join("broken.jsonl");
    let mut damaged = bytes.clone();
    let at = bytes.windows(5).position(|bytes| bytes == b"word7").expect("a value");
    damaged[at + 4] = b'8';
    for (content, expected) in
        [(&bytes[..bytes.len() - 200], "Nothing was stored"), (&damaged, "the export is damaged")]
    {
        fs::write(&broken, content).expect("there is room");
        refused(&strand(&to, &["import", path(&broken)], None), expected);
        assert_eq!(to.get(&json!({"command": "INFO"}))["keys"], 0);
    }

    to.get(&json!({"command": "SET", "key": "n:1", "value": "mine"}));
    let told = done(&strand(&to, &["import", "--json", "--keep", path(&file)], None));
    let told: Value = serde_json::from_str(&told).expect("one object");
    assert_eq!(
        (&told["keys"], &told["kept"], &told["indexes"]),
        (&json!(items.len() - 1), &json!(1), &json!(2))
    );
    assert_eq!(to.get(&json!({"command": "GET", "key": "n:1"})), "mine");
    // And from a pipe, over what is there.
    let told = done(&strand(&to, &["import", "-"], Some(&bytes)));
    assert!(told.starts_with(&format!("Imported {} keys and 2 indexes", items.len())), "{told}");
    let keys = || items.iter().map(|(key, _)| key.clone());
    assert_eq!(raw(&to, keys()), raw(&from, keys()));
    let ttl = to.get(&json!({"command": "TTL", "key": "brief"})).as_i64().expect("a number");
    assert!((1..=600_000).contains(&ttl), "{ttl}");
    assert_eq!(to.get(&json!({"command": "TTL", "key": "long"})), -1);
    eventually("the indexes are built", std::time::Duration::from_secs(20), || {
        to.get(&json!({"command": "QUERY_INDEX", "field": "n", "value": 7.5})) == json!(["n:7"])
            && to.get(&json!({"command": "SEARCH", "query": "t:word7"}))[0]["key"] == "n:7"
    });
    from.stop();
    to.stop();
}

#[test]
fn lines_of_another_program_are_taken_and_bad_ones_named() {
    let _timed = timed("import of other lines");
    let setup = Setup::small("exchange-lines");
    let server = setup.start();
    let lines = b"{\"key\":\"a\",\"value\":[1, 2]}\n\n{\"value\":null,\"key\":\"b\",\"ttl_ms\":60000}";
    done(&strand(&server, &["import", "-"], Some(lines)));
    assert_eq!(server.get(&json!({"command": "GET", "key": "a"})), json!([1, 2]));
    let bad = b"{\"key\":\"c\",\"value\":1}\n{\"key\":\"d\",\"vlaue\":1}\n";
    refused(&strand(&server, &["import", "-"], Some(bad)), "line 2: not a line of an export");
    let long = format!("{{\"key\":\"{}\",\"value\":1}}", "k".repeat(100_000));
    refused(&strand(&server, &["import", "-"], Some(long.as_bytes())), "is not stored");
    refused(&strand(&server, &["import", "/nowhere/at/all"], None), "Cannot read /nowhere/at/all");
    server.stop();
}

#[test]
fn top_shows_the_shards_and_what_they_do() {
    let _timed = timed("top");
    let setup = Setup::small("exchange-top");
    let server = setup.start();
    server.get(&json!({"command": "SET", "key": "a", "value": 1}));
    let drawn = done(&strand(&server, &["top", "--count", "1"], None));
    assert!(drawn.contains("1 keys") && drawn.matches("leader").count() == 2, "{drawn}");
    let lines = done(&strand(&server, &["top", "--count", "2", "--json"], None));
    for line in lines.lines() {
        let look: Value = serde_json::from_str(line).expect("one object a line");
        assert_eq!(look["rates"]["shards"].as_array().map(Vec::len), Some(2), "{line}");
    }
    assert_eq!(lines.lines().count(), 2);
    server.stop();
}
