//! Searches against the real server: the same replies over any number of shards, what was written is found at once, indexes
//! outlive a restart, and bad input is answered and harms nobody.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::random::Random;
use support::server::Setup;
use support::{eventually, timed};

const WORDS: &[&str] = &[
    "river",
    "boat",
    "doctor",
    "physician",
    "piano",
    "music",
    "teacher",
    "school",
    "engine",
    "tree",
    "bear",
    "fox",
    "running",
    "ran",
    "größe",
    "東京",
    "😀",
];

fn with_shards(name: &str, shards: &str) -> Setup {
    Setup::small(name).with(&["--shards", shards])
}

/// Requests that write, rewrite and delete documents under a seed.
fn history() -> Vec<Value> {
    let mut random = Random::new(7);
    let mut below = |limit: usize| (random.next() % limit as u64) as usize;
    let mut requests = Vec::new();
    for n in 0..600 {
        let key = format!("doc{}", below(250));
        if n % 6 == 5 {
            requests.push(json!({"command": "DELETE", "key": key}));
            continue;
        }
        let count = 1 + below(12);
        let text: Vec<&str> = (0..count).map(|_| WORDS[below(WORDS.len())]).collect();
        let vector: Vec<f64> = (0..3).map(|_| below(200) as f64 / 10.0 - 10.0).collect();
        let value = json!({"title": text[0], "body": text.join(" "), "n": below(20), "v": vector});
        requests.push(json!({"command": "SET", "key": key, "value": value}));
    }
    requests
}

/// Every form of search.
fn searches() -> Vec<Value> {
    let mut requests = vec![
        json!({"command": "SEARCH", "query": "doctor river", "fields": ["body"]}),
        json!({"command": "SEARCH", "query": "title:fox +boat -tree", "offset": 3, "top_k": 7}),
        json!({"command": "SEARCH", "query": "run fox", "with_values": true, "highlight": true, "top_k": 20}),
        json!({"command": "SEMANTIC_SEARCH", "query": "medical people", "model": "embedding"}),
        json!({"command": "HYBRID_SEARCH", "query": "doctor on a boat", "top_k": 30}),
        json!({"command": "HYBRID_SEARCH", "query": "doctor on a boat", "fusion": "rrf", "offset": 5}),
        json!({"command": "HYBRID_SEARCH", "query": "+engine music", "model": "tfidf", "alpha": 0.5}),
        json!({"command": "HYBRID_SEARCH", "query": "piano", "filter": {"field": "n", "gte": 10}}),
    ];
    for field in ["cosine", "dot", "l2"] {
        requests.push(
            json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 3, "metric": field}),
        );
        requests
            .push(json!({"command": "SEMANTIC_SEARCH", "vector": [1, -2.5, 0], "model": "v", "top_k": 25}));
        let filter = json!({"field": "n", "lt": 5});
        requests
            .push(json!({"command": "SEMANTIC_SEARCH", "vector": [1, 0, 1], "model": "v", "filter": filter}));
        requests.push(json!({"command": "DROP_INDEX", "field": "v", "kind": "vector"}));
    }
    for query in
        ["doctor", "\"piano teacher\"~3", "ri* bot~1", "bear AND (fox OR boat)", "東京 😀", "size größe"]
    {
        for command in ["SEARCH", "SEMANTIC_SEARCH", "HYBRID_SEARCH"] {
            requests.push(json!({"command": command, "query": query, "top_k": 40}));
            requests.push(json!({"command": command, "query": query, "consistency": "local"}));
        }
    }
    requests
}

#[test]
fn every_search_answers_the_same_over_any_number_of_shards() {
    let _timed = timed("searches over 1 and 3 shards");
    let setups = [with_shards("search", "1"), with_shards("search", "3")];
    let servers = setups.each_ref().map(Setup::start);
    let replies = servers.each_ref().map(|server| {
        let mut connection = server.connect();
        assert!(connection.pipeline(&history()).iter().all(|reply| reply["status"] == "success"));
        connection.pipeline(&searches())
    });
    let mut found = 0;
    for ((request, one), three) in searches().iter().zip(&replies[0]).zip(&replies[1]) {
        assert_eq!(one["status"], "success", "{request} -> {one}");
        assert_eq!(one, three, "{request}");
        found += one["result"].as_array().map_or(0, Vec::len);
    }
    assert!(found > 500, "{found} hits in all");
    let marked = replies[0][2]["result"][0]["highlight"].as_str().expect("a snippet");
    assert!(marked.contains("<em>") && marked.contains("</em>"), "{marked}");
    servers.into_iter().for_each(|server| drop(server.stop()));
}

#[test]
fn a_search_sees_what_another_connection_wrote() {
    let _timed = timed("write, then search elsewhere");
    let setup = with_shards("visible", "3");
    let server = setup.start();
    let (mut writer, mut reader) = (server.connect(), server.connect());
    writer.get(&json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 2}));
    for n in 0..200 {
        let (key, word) = (format!("key{n}"), format!("word{n}"));
        let value = json!({"text": format!("{word} doctor"), "v": [n, 1000 - n]});
        writer.get(&json!({"command": "SET", "key": key, "value": value}));
        let requests = [
            json!({"command": "SEARCH", "query": word}),
            json!({"command": "HYBRID_SEARCH", "query": word, "model": "tfidf"}),
            json!({"command": "SEMANTIC_SEARCH", "vector": [n, 1000 - n], "model": "v", "top_k": 1}),
            json!({"command": "SEMANTIC_SEARCH", "query": "physician", "model": "embedding", "top_k": 1000}),
        ];
        for request in requests {
            let hits = reader.get(&request);
            let hits = hits.as_array().expect("hits");
            assert!(hits.iter().any(|hit| hit["key"] == *key), "{request} -> {hits:?}");
        }
        if n % 2 == 0 {
            writer.get(&json!({"command": "DELETE", "key": key}));
            assert_eq!(reader.get(&json!({"command": "SEARCH", "query": word})), json!([]));
        }
    }
    server.stop();
}

#[test]
fn indexes_outlive_a_restart() {
    let _timed = timed("indexes after a restart");
    let setup = with_shards("restart", "3");
    let server = setup.start();
    let mut connection = server.connect();
    connection.pipeline(&history());
    let vector = json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 3, "metric": "l2"});
    connection.get(&vector);
    let requests = [
        json!({"command": "SEARCH", "query": "river", "top_k": 100}),
        json!({"command": "HYBRID_SEARCH", "query": "river", "top_k": 100}),
        json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "v", "top_k": 100}),
    ];
    let list = json!({"command": "LIST_INDEXES"});
    let before = requests.each_ref().map(|request| connection.get(request));
    eventually("all indexes are ready", Duration::from_secs(20), || {
        let list = connection.get(&list);
        list.as_array()
            .is_some_and(|list| list.len() == 3 && list.iter().all(|line| line["state"] == "ready"))
    });
    connection.get(&json!({"command": "SNAPSHOT"}));
    server.stop();

    let server = setup.start();
    let mut connection = server.connect();
    for line in connection.get(&list).as_array().expect("indexes") {
        assert_eq!((&line["state"], &line["progress"]), (&json!("ready"), &json!(1)), "{line}");
    }
    assert_eq!(requests.each_ref().map(|request| connection.get(request)), before);
    let other = json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 4, "metric": "l2"});
    assert_eq!(connection.refusal(&other), "INDEX_EXISTS");
    assert_eq!(connection.get(&vector), "OK");
    server.stop();
}

#[test]
fn bad_input_is_answered_and_harms_nobody() {
    let _timed = timed("bad input for searches");
    let setup = with_shards("bad", "2");
    let server = setup.start();
    let mut connection = server.connect();
    connection.get(&json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 3}));
    let values = [
        json!("the quick brown fox"),
        json!("שלום עולם"),
        json!("東京都 日本語"),
        json!("e\u{301}te\u{301} 😀👩‍👩‍👧"),
        json!("word ".repeat(80_000)),
        json!("w".repeat(400_000)),
        json!({"v": [1, 2]}),
        json!({"v": [1, 2, "x"]}),
        json!({"v": [1, 2, 1e300]}),
        json!({"v": [1, 2, 3]}),
    ];
    for (n, value) in values.iter().enumerate() {
        connection.get(&json!({"command": "SET", "key": format!("k{n}"), "value": value}));
    }
    let many: Vec<String> = (0..10_000).map(|n| format!("t{n}")).collect();
    let queries = [
        "",
        " ",
        "\"",
        "\"fox",
        "((((",
        "))",
        "a* b* c*",
        "~9",
        "fox~9",
        "fox^",
        "^^^",
        "+",
        "-",
        "AND OR NOT",
        ":",
        "nofield:x",
        "*",
        "\u{0}",
        "שלום",
        "東京",
        "😀",
        "e\u{301}",
        "\"\"~",
        "w*",
        &many.join(" "),
        &many[..5000].join("* "),
        &"(".repeat(10_000),
    ];
    for query in queries {
        for command in ["SEARCH", "SEMANTIC_SEARCH", "HYBRID_SEARCH"] {
            for top_k in [0, 10, 10_000] {
                let request =
                    json!({"command": command, "query": query, "top_k": top_k, "timeout_ms": 20_000});
                let hits = connection.get(&request);
                assert!(hits.as_array().is_some_and(|hits| hits.len() <= top_k), "{command} {hits}");
            }
        }
    }
    assert_eq!(connection.get(&json!({"command": "SEARCH", "query": "שלום"}))[0]["key"], "k1");
    let vectors = json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "v"});
    assert_eq!(connection.get(&vectors).as_array().map(Vec::len), Some(1), "the others are no such vectors");
    for (request, code) in [
        (json!({"command": "SEARCH", "query": "x", "top_k": 10_001}), "TOO_LARGE"),
        (json!({"command": "SEARCH", "query": "x".repeat(200_000)}), "TOO_LARGE"),
        (json!({"command": "SEARCH", "query": "x", "filter": {"field": "a"}}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2], "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, "3"], "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [], "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "w"}), "NO_SUCH_INDEX"),
        (json!({"command": "SEMANTIC_SEARCH", "vector": [1, 2, 3], "model": "embedding"}), "BAD_REQUEST"),
        (json!({"command": "SEMANTIC_SEARCH", "query": "x", "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "HYBRID_SEARCH", "query": "x", "model": "v"}), "BAD_REQUEST"),
        (json!({"command": "HYBRID_SEARCH", "query": "x", "alpha": 2}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "w", "kind": "vector", "dim": 0}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "w", "kind": "vector"}), "BAD_REQUEST"),
        (json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 4}), "INDEX_EXISTS"),
    ] {
        assert_eq!(connection.refusal(&request), code, "{request}");
    }
    let absent = json!({"command": "SEARCH", "query": "fox", "filter": {"field": "no.such", "value": 1}});
    assert_eq!(connection.get(&absent), json!([]));
    assert_eq!(connection.get(&json!({"command": "PING"})), "PONG");
    server.stop();
}
