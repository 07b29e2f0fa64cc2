//! Searches against the real server: the same replies over any number of shards, what was written is found at once, and
//! indexes outlive a restart. Bad input is in `search_limits.rs`, visibility beside other writers in `visibility.rs`.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::random::Random;
use support::server::Setup;
use support::{eventually, from_environment, timed};

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

/// Requests that write, rewrite and delete documents under a seed, one at a time and many at once.
fn history() -> Vec<Value> {
    let mut random = Random::new(from_environment("STRAND_SEED", 7));
    let mut below = |limit: usize| (random.next() % limit as u64) as usize;
    let mut requests = Vec::new();
    for n in 0..600 {
        let key = format!("doc{}", below(250));
        let mut document = || {
            let count = 1 + below(12);
            let text: Vec<&str> = (0..count).map(|_| WORDS[below(WORDS.len())]).collect();
            let vector: Vec<f64> = (0..3).map(|_| below(200) as f64 / 10.0 - 10.0).collect();
            json!({"title": text[0], "body": text.join(" "), "n": below(20), "v": vector})
        };
        requests.push(match n % 12 {
            5 => json!({"command": "DELETE", "key": key}),
            8 => {
                let items: Vec<Value> =
                    (0..5).map(|m| json!([format!("doc{}", n / 3 + m), document()])).collect();
                json!({"command": "BULK_SET", "items": items})
            }
            11 => json!({"command": "BULK_DELETE", "keys": [key, format!("doc{}", n / 4)]}),
            _ => json!({"command": "SET", "key": key, "value": document()}),
        });
    }
    requests
}

/// Every form of search.
fn searches() -> Vec<Value> {
    let mut requests = vec![
        json!({"command": "SEARCH", "query": "doctor river", "fields": ["body"]}),
        json!({"command": "SEARCH", "query": "title:fox +boat -tree", "offset": 3, "top_k": 7}),
        json!({"command": "SEARCH", "query": "run fox", "with_values": true, "highlight": true, "top_k": 20}),
        json!({"command": "SEARCH", "query": "doctor boat^3 \"river boat\"", "fields": ["title", "body"], "top_k": 50}),
        json!({"command": "SEARCH", "query": "physicain~2 teech~1 schoo*", "filter": {"not": {"field": "n", "value": 7}}}),
        json!({"command": "SEARCH", "query": "river", "filter": {"or": [{"field": "title", "value": "fox"}, {"field": "n", "lt": 3}]}}),
        json!({"command": "SEMANTIC_SEARCH", "query": "ran doctor", "filter": {"field": "n", "gte": 4, "lte": 9}, "top_k": 30}),
        json!({"command": "SEMANTIC_SEARCH", "query": "sailing a ship", "model": "embedding", "filter": {"field": "n", "gt": 12}}),
        json!({"command": "HYBRID_SEARCH", "query": "boat", "model": "tfidf", "fusion": "rrf", "filter": {"field": "n", "lt": 15}}),
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
    let _timed = timed("searches over 1, 2 and 8 shards");
    let setups = ["1", "2", "8"].map(|shards| with_shards("search", shards));
    let servers = setups.each_ref().map(Setup::start);
    let replies = servers.each_ref().map(|server| {
        let mut connection = server.connect();
        let history = history();
        // The index is there for most of the history, so that it lives through updates and deletes.
        let first = connection.pipeline(&history[..150]);
        connection.get(&json!({"command": "HYBRID_SEARCH", "query": "river"}));
        let rest = connection.pipeline(&history[150..]);
        assert!(first.iter().chain(&rest).all(|reply| reply["status"] == "success"));
        // Which fields a search without any looks at changes when an index is ready.
        eventually("every index is ready", Duration::from_secs(30), || {
            let listed = connection.get(&json!({"command": "LIST_INDEXES"}));
            listed.as_array().is_some_and(|all| all.iter().all(|index| index["state"] == "ready"))
        });
        let answer = |request: &Value| {
            connection.queue(request);
            connection.flush().expect("the server reads");
            connection.receive_line().expect("a reply")
        };
        searches().iter().map(answer).collect::<Vec<String>>()
    });
    let mut found = 0;
    for (n, request) in searches().iter().enumerate() {
        // As text, since reading a number may round it.
        let [one, two, eight] = replies.each_ref().map(|replies| &replies[n]);
        assert!(one.starts_with("{\"status\":\"success\""), "{request} -> {one}");
        assert_eq!(one, two, "{request}");
        assert_eq!(one, eight, "{request}");
        found += one.matches("\"key\"").count();
    }
    assert!(found > 500, "{found} hits in all");
    assert!(replies[0][2].contains("<em>") && replies[0][2].contains("</em>"), "{}", replies[0][2]);
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
