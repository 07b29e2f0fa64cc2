//! Vectors, models, filters and value indexes against the real server: right while they are built and changed, after restarts,
//! and clear about what they cannot take.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use support::random::Random;
use support::server::Setup;
use support::timed;

fn number(random: &mut Random) -> f64 {
    (random.next() % 2001) as f64 / 1000.0 - 1.0
}

fn vector(random: &mut Random) -> Vec<f64> {
    (0..8).map(|_| number(random)).collect()
}

/// The keys of the best ten by cosine.
fn exact(vectors: &[(String, Vec<f64>)], query: &[f64]) -> Vec<String> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let score = |vector: &Vec<f64>| dot(vector, query) / (dot(vector, vector) * dot(query, query)).sqrt();
    let mut all: Vec<(f64, &String)> = vectors.iter().map(|(key, vector)| (score(vector), key)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().take(10).map(|(_, key)| key.clone()).collect()
}

fn keys(reply: &Value) -> Vec<String> {
    assert_eq!(reply["status"], "success", "{reply}");
    let hits = reply["result"].as_array().expect("a list of hits");
    hits.iter().map(|hit| hit["key"].as_str().expect("a key").to_owned()).collect()
}

fn nearest(query: &[f64]) -> Value {
    json!({"command": "SEMANTIC_SEARCH", "model": "v", "vector": query})
}

#[test]
fn vectors_are_found_while_their_graph_is_built_and_after_a_restart() {
    let _timed = timed("a graph over live vectors");
    let setup = Setup::small("graph").with(&["--shards", "1"]).set(&["search.hnsw_from=1000"]);
    let mut random = Random::new(5);
    let vectors: Vec<(String, Vec<f64>)> =
        (0..5000).map(|n| (format!("k{n}"), vector(&mut random))).collect();
    let sets = |vectors: &[(String, Vec<f64>)]| -> Vec<Value> {
        let set = |(key, vector): &(String, Vec<f64>)| json!({"command": "SET", "key": key, "value": {"v": vector}});
        vectors.iter().map(set).collect()
    };
    let server = setup.start();
    let mut connection = server.connect();
    connection.pipeline(&sets(&vectors[..2500]));
    let create = json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": 8});
    let first = connection.pipeline(&[create, nearest(&vectors[0].1)]);
    assert_eq!(keys(&first[1]), exact(&vectors[..2500], &vectors[0].1), "usable at once, and in full");
    let mut met = 0;
    for (n, part) in vectors[2500..].chunks(100).enumerate() {
        let query = vector(&mut random);
        let own = &part[part.len() - 1];
        let mut requests = sets(part);
        requests.extend([nearest(&own.1), nearest(&query)]);
        let replies = connection.pipeline(&requests);
        assert_eq!(keys(&replies[part.len()])[0], own.0, "what was written is found at once");
        let expected = exact(&vectors[..2500 + (n + 1) * 100], &query);
        met += keys(&replies[part.len() + 1]).iter().filter(|key| expected.contains(key)).count();
    }
    assert!(met >= 240, "{met} of 250 were found while the graph was built");
    let deletes: Vec<Value> =
        vectors[..500].iter().map(|(key, _)| json!({"command": "DELETE", "key": key})).collect();
    connection.pipeline(&deletes);
    let check = |connection: &mut support::client::Connection, random: &mut Random| {
        let mut met = 0;
        for _ in 0..20 {
            let query = vector(random);
            let found = keys(&connection.pipeline(&[nearest(&query)])[0]);
            let expected = exact(&vectors[500..], &query);
            met += found.iter().filter(|key| expected.contains(key)).count();
        }
        assert!(met >= 190, "{met} of 200 were found");
    };
    check(&mut connection, &mut random);
    let snapshot = connection.pipeline(&[json!({"command": "SNAPSHOT"})]);
    assert_eq!(snapshot[0]["status"], "success", "{}", snapshot[0]);
    server.stop();
    let server = setup.start();
    let mut connection = server.connect();
    check(&mut connection, &mut random);
    let list = connection.pipeline(&[json!({"command": "LIST_INDEXES"})]);
    assert_eq!(list[0]["result"][0]["entries"], 4500, "{}", list[0]);
    server.stop();
}

/// A model with three words, in the format of the built-in one.
fn small_model() -> Vec<u8> {
    let header = br#"{"dim":2,"vocab":3}"#;
    let mut bytes = [&b"SEMB"[..], &(header.len() as u32).to_le_bytes(), header].concat();
    for _ in 0..3 {
        bytes.extend(1.0f32.to_le_bytes());
    }
    bytes.extend([127, 0, 0, 127, 127, 0]);
    bytes.extend(b"river\nboat\ndoctor");
    bytes
}

#[test]
fn a_model_by_path_takes_the_place_of_the_built_in_one() {
    let _timed = timed("a model by path");
    let mut setup = Setup::small("model");
    let folder = setup.data().parent().expect("the data lie in a folder").to_path_buf();
    let path = |name: &str| folder.join(name).to_str().expect("a plain path").to_owned();
    fs::write(path("small.semb"), small_model()).expect("the folder can be written");
    fs::write(path("cut.semb"), &small_model()[..40]).expect("the folder can be written");
    fs::write(path("text.txt"), "no model").expect("the folder can be written");
    let search = json!({"command": "SEMANTIC_SEARCH", "model": "embedding", "query": "river"});
    let set = |key: &str| json!({"command": "SET", "key": key, "value": key});
    let answer = |setup: &Setup, requests: &[Value]| {
        let server = setup.start();
        let replies = server.connect().pipeline(requests);
        server.stop();
        replies
    };
    let snapshot = json!({"command": "SNAPSHOT"});
    let first = answer(&setup, &[set("river"), set("boat"), set("doctor"), search.clone(), snapshot.clone()]);
    assert_eq!(keys(&first[3])[..2], ["river", "boat"], "{}", first[3]);
    setup = setup.set(&[&format!("search.model_path={}", path("small.semb"))]);
    let second = answer(&setup, &[search.clone(), snapshot]);
    let similar: Vec<(String, bool)> = keys(&second[0])
        .into_iter()
        .zip(second[0]["result"].as_array().into_iter().flatten().map(|hit| hit["similarity"] == 1.0))
        .collect();
    let wanted = [("doctor".to_owned(), true), ("river".to_owned(), true)];
    assert_eq!(similar[..2], wanted, "the stored embeddings are the new model's: {}", second[0]);
    for (name, reason) in [
        ("cut.semb", "cut short"),
        ("text.txt", "neither a .semb file nor a folder"),
        ("absent.semb", "No such file"),
        (".", "model.safetensors"),
    ] {
        setup = setup.set(&[&format!("search.model_path={}", path(name))]);
        let ended = setup.try_start().err().unwrap_or_else(|| panic!("{name} was taken for a model"));
        assert_eq!(ended.code(), Some(78), "{name}: {ended:#?}");
        assert!(ended.stderr.contains("search.model_path") && ended.stderr.contains(reason), "{ended:#?}");
    }
    setup = setup.set(&["search.model_path="]);
    assert_eq!(answer(&setup, &[search])[0], first[3], "and back again");
}

#[test]
fn bad_vectors_and_filters_are_told_what_is_wrong() {
    let _timed = timed("bad vectors and filters");
    let setup = Setup::small("badvectors");
    let server = setup.start();
    let mut connection = server.connect();
    let create = |dim: Value| json!({"command": "CREATE_INDEX", "field": "v", "kind": "vector", "dim": dim});
    let near = |vector: Value| json!({"command": "SEMANTIC_SEARCH", "model": "v", "vector": vector});
    let filtered = |filter: Value| json!({"command": "SEARCH", "query": "fox", "filter": filter});
    let nested = |depth: usize| {
        (0..depth).fold(json!({"field": "n", "value": 1}), |inner, n| match n % 3 {
            0 => json!({"and": [inner]}),
            1 => json!({"or": [inner]}),
            _ => json!({"not": inner}),
        })
    };
    let refused = [
        create(json!(0)),
        create(json!(100_000)),
        create(json!(-1)),
        create(json!("3")),
        near(json!([])),
        near(json!([1, 2])),
        near(json!([1, 2, 3, 4])),
        near(json!([1, "2", 3])),
        near(json!([1, null, 3])),
        near(json!([[1], 2, 3])),
        near(json!("1,2,3")),
        near(json!([1, 1e300, 3])),
        near(json!(vec![1; 100_000])),
        json!({"command": "SEMANTIC_SEARCH", "model": "w", "vector": [1, 2, 3]}),
        json!({"command": "SEMANTIC_SEARCH", "model": "v", "query": "words"}),
        filtered(json!({})),
        filtered(json!([])),
        filtered(json!({"field": "n"})),
        filtered(json!({"field": "n", "gte": 1, "lt": "x"})),
        filtered(json!({"field": "n", "value": {}})),
        filtered(json!({"and": {"field": "n", "value": 1}})),
        filtered(nested(40)),
        filtered(json!({"or": vec![json!({"field": "n", "value": 1}); 5000]})),
    ];
    let good = connection.pipeline(&[
        json!({"command": "SET", "key": "a", "value": {"t": "fox", "v": [1, 2, 3], "n": 1}}),
        json!({"command": "SET", "key": "b", "value": {"t": "fox", "v": [1, 2], "n": "1"}}),
        json!({"command": "SET", "key": "c", "value": {"t": "fox", "v": [1, "x", 1e40], "n": null}}),
        create(json!(3)),
    ]);
    assert!(good.iter().all(|reply| reply["status"] == "success"), "{good:?}");
    for (request, reply) in refused.iter().zip(connection.pipeline(&refused)) {
        let code = reply["code"].as_str().unwrap_or_default();
        assert!(["BAD_REQUEST", "TOO_LARGE", "NO_SUCH_INDEX"].contains(&code), "{request} -> {reply}");
        let text = reply["error"].as_str().unwrap_or_default();
        assert!(text.len() > 20 && text.len() < 600, "a sentence that says what is wrong: {reply}");
    }
    let answered = [
        (near(json!([1, 2, 3])), vec!["a"]),
        (near(json!([3e38, -3e38, 3e38])), vec!["a"]),
        (near(json!([0, 0, 0])), vec!["a"]),
        (filtered(json!({"field": "absent.field", "gt": 1})), vec![]),
        (filtered(json!({"not": {"field": "absent.field", "gt": 1}})), vec!["a", "b", "c"]),
        (filtered(json!({"and": []})), vec!["a", "b", "c"]),
        (filtered(json!({"or": []})), vec![]),
        (filtered(json!({"field": "n", "value": 1.0})), vec!["a"]),
        (filtered(json!({"field": "n", "value": null})), vec!["c"]),
        (filtered(nested(12)), vec!["a"]),
    ];
    for (request, expected) in answered {
        let mut found = keys(&connection.pipeline(std::slice::from_ref(&request))[0]);
        found.sort();
        assert_eq!(found, expected, "{request}");
    }
    server.stop();
}

/// All keys of a query, page by page; something may happen between the pages.
fn pages(
    connection: &mut support::client::Connection,
    query: &Value,
    mut between: impl FnMut(&mut support::client::Connection),
) -> Vec<String> {
    let mut found = Vec::new();
    let mut request = query.clone();
    loop {
        let reply = connection.pipeline(std::slice::from_ref(&request)).remove(0);
        assert_eq!(reply["status"], "success", "{request} -> {reply}");
        let page = reply["result"].as_array().expect("a list of keys");
        found.extend(page.iter().map(|key| key.as_str().expect("a key").to_owned()));
        match reply.get("cursor").filter(|cursor| !cursor.is_null()) {
            Some(cursor) => request["cursor"] = cursor.clone(),
            None => return found,
        }
        between(connection);
    }
}

#[test]
fn values_are_listed_in_their_order_whatever_changes_meanwhile() {
    let _timed = timed("values in order");
    let setup = Setup::small("values");
    let server = setup.start();
    let mut connection = server.connect();
    let set = |key: &str, value: Value| json!({"command": "SET", "key": key, "value": {"x": value}});
    let query = |with: Value| {
        let mut query = json!({"command": "QUERY_INDEX", "field": "x"});
        query.as_object_mut().expect("an object").extend(with.as_object().expect("an object").clone());
        query
    };
    connection.pipeline(&[
        json!({"command": "CREATE_INDEX", "field": "x"}),
        set("null", json!(null)),
        set("false", json!(false)),
        set("true", json!(true)),
        set("minus", json!(-5)),
        set("one", json!(1)),
        set("one.0", json!(1.0)),
        set("big", json!(9_007_199_254_740_993_i64)),
        set("empty", json!("")),
        set("apple", json!("apple")),
        set("apricot", json!("apricot")),
        set("b", json!("b")),
        set("list", json!([7, "apple", [3, true], {"y": 1}])),
        set("none", json!([])),
        set("object", json!({"x": 1})),
        json!({"command": "SET", "key": "missing", "value": {"y": 1}}),
        json!({"command": "SET", "key": "plain", "value": 1}),
    ]);
    let cases = [
        (json!({"value": null}), vec!["null"]),
        (json!({"value": true}), vec!["list", "true"]),
        (json!({"gte": false}), vec!["false", "list", "true"]),
        (json!({"value": 1}), vec!["one", "one.0"]),
        (json!({"gt": -100}), vec!["minus", "one", "one.0", "list", "big"]),
        (json!({"gt": -100, "order": "desc"}), vec!["big", "list", "one.0", "one", "minus"]),
        (json!({"gt": 9_007_199_254_740_992_i64}), vec!["big"]),
        (json!({"gte": 1, "lt": 7}), vec!["one", "one.0", "list"]),
        (json!({"gte": ""}), vec!["empty", "apple", "list", "apricot", "b"]),
        (json!({"gte": "", "order": "desc"}), vec!["b", "apricot", "list", "apple", "empty"]),
        (json!({"prefix": "ap"}), vec!["apple", "list", "apricot"]),
        (json!({"prefix": "ap", "order": "desc"}), vec!["apricot", "list", "apple"]),
        (json!({"lt": "apple"}), vec!["empty"]),
        (json!({"gt": 5, "lt": 1}), vec![]),
    ];
    for (with, expected) in cases {
        for limit in [1, 2, 100] {
            let mut with = with.clone();
            with["limit"] = json!(limit);
            assert_eq!(pages(&mut connection, &query(with.clone()), |_| {}), expected, "{with}");
        }
    }
    // Keys that are there throughout come once each and in order, though others come, go and move between the pages.
    let lasting: Vec<String> = (0..60).map(|n| format!("s{n:02}")).collect();
    let sets: Vec<Value> =
        lasting.iter().enumerate().map(|(n, key)| set(key, json!(1000 + n * 10))).collect();
    connection.pipeline(&sets);
    for order in ["asc", "desc"] {
        let mut random = Random::new(17);
        let between = |connection: &mut support::client::Connection| {
            let requests: Vec<Value> = (0..20)
                .map(|_| {
                    let key = format!("m{}", random.next() % 30);
                    match random.next() % 3 {
                        0 => json!({"command": "DELETE", "key": key}),
                        _ => set(&key, json!(1000 + random.next() % 600)),
                    }
                })
                .collect();
            connection.pipeline(&requests);
        };
        let all = query(json!({"gte": 1000, "lt": 2000, "limit": 7, "order": order}));
        let mut found = pages(&mut connection, &all, between);
        found.retain(|key| key.starts_with('s'));
        if order == "desc" {
            found.reverse();
        }
        assert_eq!(found, lasting, "{order}");
    }
    server.stop();
}

/// Tells a thread of the same scope to end.
struct StopsWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopsWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_result_speaks_of_one_version_of_its_record() {
    let _timed = timed("hits and values of one version");
    let setup = Setup::small("versions").with(&["--shards", "1"]);
    let server = setup.start();
    let (fox, dog) =
        (json!({"t": "red fox", "n": 1}), json!({"t": "blue dog and a long tail of words", "n": 2}));
    let set = |n: usize, value: &Value| json!({"command": "SET", "key": format!("k{n}"), "value": value});
    let steady: Vec<Value> = (1000..1200).map(|n| set(n, &json!({"t": "fox that stays", "n": 1}))).collect();
    let mut connection = server.connect();
    connection.pipeline(&steady);
    // A word that every document has weighs nothing by ln(N/df), and finds nothing by TF-IDF.
    connection.pipeline(&[json!({"command": "SET", "key": "other", "value": {"t": "cat", "n": 1}})]);
    let filter = json!({"field": "n", "value": 1});
    let search = json!({"command": "SEARCH", "query": "fox", "with_values": true, "highlight": true, "top_k": 1000, "filter": filter});
    let tfidf = json!({"command": "SEMANTIC_SEARCH", "query": "fox", "top_k": 1000, "filter": filter});
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = server.connect();
            let mut turn = 0;
            while !stop.load(Ordering::Acquire) {
                turn += 1;
                let values = [&fox, &dog];
                let flips: Vec<Value> = (0..100).map(|n| set(n, values[(n + turn) % 2])).collect();
                writer.pipeline(&flips);
            }
        });
        // Also when something below is not as it must be: the writer would go on for ever, and the test with it.
        let _stops = StopsWhenDropped(&stop);
        let mut flipping = 0;
        for round in 0..150 {
            if round == 50 {
                connection.pipeline(&[json!({"command": "CREATE_INDEX", "field": "n"})]);
            }
            let replies = connection.pipeline(&[search.clone(), tfidf.clone()]);
            let hits = replies[0]["result"].as_array().unwrap_or_else(|| panic!("{}", replies[0]));
            for hit in hits {
                assert_eq!(hit["value"]["n"], 1, "{hit}");
                assert!(hit["highlight"].as_str().is_some_and(|text| text.contains("<em>fox</em>")), "{hit}");
            }
            let stays = |hit: &&Value| hit["value"]["t"] == "fox that stays";
            assert_eq!(hits.iter().filter(stays).count(), 200, "what stays is always found");
            flipping += hits.len() - 200;
            let ordered = hits.windows(2).all(|pair| pair[0]["score"].as_f64() >= pair[1]["score"].as_f64());
            assert!(ordered, "best first");
            let similar = keys(&replies[1]);
            assert!(
                similar.len() >= 200,
                "round {round}, {} keys: {:.400}",
                similar.len(),
                replies[1].to_string()
            );
        }
        assert!(flipping > 0, "changing records are found too");
    });
    server.stop();
}
