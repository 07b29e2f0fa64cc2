//! Bad and extreme input for searches, against the real server: each is answered, or refused with a clear code, within bounded
//! time and memory, while another client goes on unharmed; and a search past its deadline is answered with TIMEOUT.

mod support;

use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::client::Connection;
use support::random::Random;
use support::server::{Server, Setup};
use support::{say, timed};

/// Documents beside the odd ones.
const DOCUMENTS: u64 = 12_000;
/// No request may take longer. Tests run the unoptimised server beside others; its own figures are below a tenth.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// No request of another client may take longer meanwhile.
const BYSTANDER_MAX: Duration = Duration::from_secs(2);
/// Memory that all of it may leave behind.
const GROWTH_BYTES_MAX: u64 = 400 << 20;

fn resident_bytes(server: &Server) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.child().id())).expect("it is alive");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    let kib: u64 =
        line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number of KiB");
    kib << 10
}

/// Documents of thirty words out of 20,000, low ones frequent.
fn documents() -> Vec<Value> {
    let mut random = Random::new(3);
    let document = |n| {
        let words: Vec<String> =
            (0..30).map(|_| format!("t{}", random.below(20_000).min(random.below(20_000)))).collect();
        json!({"command": "SET", "key": format!("doc{n}"), "value": {"n": n, "t": words.join(" ")}})
    };
    (0..DOCUMENTS).map(document).collect()
}

/// Values that are hard to index, each with a query that must find it.
fn odd_values() -> Vec<(Value, &'static str)> {
    vec![
        (json!("the quick brown fox"), "fox"),
        (json!("שלום עולם"), "עולם"),
        (json!("\u{202b}مرحبا بالعالم\u{202c}"), "مرحبا"),
        (json!("東京都 日本語"), "東京"),
        (json!("한국어 검색"), "검색"),
        (json!("e\u{301}te\u{301} 😀👩\u{200d}👩\u{200d}👧 👍🏽"), "e\u{301}te\u{301}"),
        (json!("z\u{335}\u{321}\u{322}a\u{301}\u{302}\u{303}lgo combined"), "combined"),
        // A megabyte of one word, of one word without an end, and of no word.
        (json!("megaword ".repeat((1 << 20) / 9)), "megaword"),
        (json!("w".repeat(1 << 20)), "w*"),
        (json!(format!("{} dotted", ".,;-".repeat(1 << 18))), "dotted"),
        (json!({"v": [1, 2, 3], "t": "vectorial"}), "vectorial"),
        (json!({"v": [1, 2], "t": "short"}), "short"),
        (json!({"v": [1, 2, "x"], "t": "mixed"}), "mixed"),
        (json!({"v": [1, 2, 1e300], "t": "overlong"}), "overlong"),
        (json!({"v": [1, 2, null], "t": "absent"}), "absent"),
    ]
}

fn queries() -> Vec<String> {
    let many: Vec<String> = (0..10_000).map(|n| format!("t{n}")).collect();
    let mut queries: Vec<String> = [
        "",
        " ",
        "\"",
        "\"fox",
        "fox\"",
        "\"\"\"",
        "((((",
        "))",
        "(fox",
        "fox)",
        ")(",
        "a* b* c*",
        "*",
        "**",
        "~9",
        "fox~9",
        "fox~",
        "~",
        "fox^",
        "^^^",
        "fox^999999999999",
        "fox^-1",
        "\"quick fox\"~99999999999",
        "+",
        "-",
        "+-+-fox",
        "AND OR NOT",
        "NOT",
        "AND",
        "NOT NOT fox",
        ":",
        "nofield:x",
        "n:(",
        "a:b:c:d",
        "\u{0}",
        "\\",
        "\u{feff}fox",
        "שלום",
        "東京",
        "😀",
        "e\u{301}",
        "\u{301}",
        "\u{200d}",
        "\"\"~",
        "w*",
        "-fox",
        "t1~2 t2~2 t3~2",
    ]
    .map(str::to_owned)
    .into();
    queries.extend([
        many.join(" "),
        many[..5000].join(" +"),
        many[..5000].join("* "),
        many[..4000].join("~2 "),
        format!("\"{}\"", many.join(" ")),
        many[..4000].join(" AND "),
        "(".repeat(10_000),
        "\"".repeat(10_001),
        "t1 ".repeat(20_000),
        "a.b,c;".repeat(10_000),
        "x".repeat(64 << 10),
        format!("{}t1{}", "(t2 ".repeat(10_000), ")".repeat(10_000)),
    ]);
    queries
}

/// What is refused, and how.
fn refusals() -> Vec<(Value, &'static str)> {
    let search = |more: Value| {
        let mut request = json!({"command": "SEARCH", "query": "x"});
        request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        request
    };
    let vector = |vector: Value| json!({"command": "SEMANTIC_SEARCH", "vector": vector, "model": "v"});
    vec![
        (search(json!({"top_k": 10_001})), "TOO_LARGE"),
        (search(json!({"top_k": 1, "offset": 10_000})), "TOO_LARGE"),
        (search(json!({"top_k": u64::MAX})), "BAD_REQUEST"),
        (search(json!({"top_k": -1})), "BAD_REQUEST"),
        (search(json!({"top_k": 1.5})), "BAD_REQUEST"),
        (search(json!({"query": "x".repeat(200_000)})), "TOO_LARGE"),
        (search(json!({"query": 7})), "BAD_REQUEST"),
        (search(json!({"filter": {"field": "a"}})), "BAD_REQUEST"),
        (search(json!({"filter": {"and": {}}})), "BAD_REQUEST"),
        (search(json!({"filter": []})), "BAD_REQUEST"),
        (vector(json!([1, 2])), "BAD_REQUEST"),
        (vector(json!([1, 2, 3, 4])), "BAD_REQUEST"),
        (vector(json!([1, 2, "3"])), "BAD_REQUEST"),
        (vector(json!([1, 2, null])), "BAD_REQUEST"),
        (vector(json!([1, 2, [3]])), "BAD_REQUEST"),
        (vector(json!([])), "BAD_REQUEST"),
        (vector(json!("1,2,3")), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "w"}), "NO_SUCH_INDEX"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "embedding"}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "query": "x", "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "HYBRID_SEARCH", "query": "x", "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "HYBRID_SEARCH", "query": "x", "alpha": 2}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "w", "kind": "vector", "dim": 0}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "w", "kind": "vector", "dim": 1_000_000}), "TOO_LARGE"),
        (json!({"command": "CREATE_INDEX", "field": "w", "kind": "vector"}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 4}), "INDEX_EXISTS"),
    ]
}

/// Another client: reads and searches until it is told to stop; returns its longest wait and how often it asked.
fn bystander(mut connection: Connection, done: &AtomicBool) -> (Duration, u64) {
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        match count % 3 {
            0 => assert_eq!(connection.get(&json!({"command": "GET", "key": "doc7"}))["n"], 7),
            1 => {
                assert_eq!(connection.get(&json!({"command": "SET", "key": "beside", "value": count})), "OK");
            }
            _ => {
                let hits = connection.get(&json!({"command": "SEARCH", "query": "fox", "top_k": 1}));
                assert_eq!(hits[0]["key"], "odd0");
            }
        }
        longest = longest.max(began.elapsed());
        count += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    (longest, count)
}

/// A reply within the time allowed.
fn ask_in_time(connection: &mut Connection, request: &Value, longest: &mut (Duration, String)) -> Value {
    let began = Instant::now();
    let reply = connection.ask(request);
    let took = began.elapsed();
    let mut text = request.to_string();
    text.truncate(text.floor_char_boundary(100));
    assert!(took < ANSWER_MAX, "{took:?} for {text}");
    if took > longest.0 {
        *longest = (took, text);
    }
    reply
}

fn attack(server: &Server) -> (Duration, String) {
    let mut connection = server.connect();
    let mut longest = (Duration::ZERO, String::new());
    for query in queries() {
        for command in ["SEARCH", "SEMANTIC_SEARCH", "HYBRID_SEARCH"] {
            for top_k in [0, 10, 10_000] {
                let request = json!({"command": command, "query": query, "top_k": top_k});
                let reply = ask_in_time(&mut connection, &request, &mut longest);
                let hits = reply["result"].as_array();
                assert!(hits.is_some_and(|hits| hits.len() <= top_k), "{command} {query:.99} -> {reply}");
            }
        }
    }
    let mut wrong = Vec::new();
    for (request, code) in refusals() {
        let reply = ask_in_time(&mut connection, &request, &mut longest);
        if support::client::code_of(&reply).as_deref() != Some(code) {
            wrong.push(format!("{code} expected: {request:.200} -> {reply}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let absent = json!({"field": "no.such", "value": 1});
    for (filter, expected) in
        [(absent.clone(), 0), (json!({"not": absent}), 1), (json!({"or": []}), 0), (json!({"and": []}), 1)]
    {
        let request = json!({"command": "SEARCH", "query": "fox", "filter": filter});
        let reply = ask_in_time(&mut connection, &request, &mut longest);
        assert_eq!(reply["result"].as_array().map(Vec::len), Some(expected), "{request} -> {reply}");
    }
    longest
}

#[test]
fn bad_input_is_answered_in_time_and_harms_nobody() {
    let _timed = timed("bad input for searches");
    let limits = ["limits.line_bytes_max=4194304", "limits.value_bytes_max=2097152"];
    let setup = Setup::bare("search-limits").with(&["--shards", "2"]).set(&limits);
    let server = setup.start();
    let mut connection = server.connect();
    connection.pipeline(&documents());
    let odd = odd_values();
    for (n, (value, _)) in odd.iter().enumerate() {
        connection.get(&json!({"command": "SET", "key": format!("odd{n}"), "value": value}));
    }
    // The budget of a search ends with its deadline: the index cannot be built in a millisecond.
    let began = Instant::now();
    assert_eq!(connection.refusal(&json!({"command": "SEARCH", "query": "fox", "timeout_ms": 1})), "TIMEOUT");
    assert!(began.elapsed() < ANSWER_MAX);
    connection.get(&json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 3}));
    connection.get(&json!({"command": "HYBRID_SEARCH", "query": "fox"}));
    for (n, (value, query)) in odd.iter().enumerate() {
        let hits = connection.get(&json!({"command": "SEARCH", "query": query, "highlight": true}));
        let found =
            hits.as_array().is_some_and(|hits| hits.iter().any(|hit| hit["key"] == format!("odd{n}")));
        assert!(found, "{query} finds {:.60} -> {hits}", value.to_string());
    }
    let vectors = json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "v"});
    assert_eq!(connection.get(&vectors).as_array().map(Vec::len), Some(1), "the others are no such vectors");

    let before = resident_bytes(&server);
    let done = AtomicBool::new(false);
    let (longest, (waited, asked)) = std::thread::scope(|scope| {
        let beside = server.connect();
        let beside = scope.spawn(|| bystander(beside, &done));
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&server)));
        done.store(true, Ordering::Relaxed);
        let beside = beside.join().expect("the other client is served");
        (attacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), beside)
    });
    let grown = resident_bytes(&server).saturating_sub(before);
    say(&format!(
        "longest answer {:?} ({}); another client asked {asked} times and waited {waited:?} at most; {} MiB more memory",
        longest.0,
        longest.1,
        grown >> 20
    ));
    assert!(waited < BYSTANDER_MAX, "another client waited {waited:?}");
    assert!(grown < GROWTH_BYTES_MAX, "{} MiB more", grown >> 20);
    assert_eq!(connection.get(&json!({"command": "PING"})), "PONG");
    server.stop();
}
