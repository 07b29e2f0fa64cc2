//! A small Strand of its own for the client's tests: real sockets, a map for a store, and faults on demand.
//!
//! It speaks the part of the protocol that the tests use, and remembers `client` and `seq` as a server must, so that a
//! retry that would apply twice is seen. It is no model of the server's speed or durability.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    dead_code,
    unreachable_pub,
    reason = "test support, shared by several test binaries"
)]

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What to do, once, with the next request of a command.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Apply it and close the connection instead of answering.
    CloseAfter,
    /// Close the connection without applying it.
    CloseBefore,
    /// Answer with this instead of applying it.
    Answer(Value),
    /// Apply it and answer after this time.
    Slow(Duration),
    /// Answer with bytes that are no reply.
    Nonsense,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<String, (Value, u64)>,
    remembered: HashMap<(String, u64), Value>,
    faults: HashMap<String, VecDeque<Fault>>,
    requests: Vec<Value>,
    /// When each request was taken, by its command.
    arrivals: Vec<(String, Instant)>,
    connections: Vec<TcpStream>,
    accepted: usize,
    applied: u64,
}

pub struct FakeServer {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl FakeServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let state = Arc::clone(&shared);
                {
                    let mut state = state.lock().unwrap();
                    state.accepted += 1;
                    state.connections.push(stream.try_clone().unwrap());
                }
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { address, state }
    }

    pub fn inject(&self, command: &str, fault: Fault) {
        self.state.lock().unwrap().faults.entry(command.into()).or_default().push_back(fault);
    }

    /// How many writes took effect.
    pub fn applied(&self) -> u64 {
        self.state.lock().unwrap().applied
    }

    pub fn accepted(&self) -> usize {
        self.state.lock().unwrap().accepted
    }

    /// Every request so far of one command.
    pub fn requests(&self, command: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|request| request["command"] == command).cloned().collect()
    }

    /// When each request of one command was taken.
    pub fn arrivals(&self, command: &str) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        state.arrivals.iter().filter(|(name, _)| name == command).map(|(_, at)| *at).collect()
    }

    pub fn value(&self, key: &str) -> Option<Value> {
        self.state.lock().unwrap().keys.get(key).map(|(value, _)| value.clone())
    }

    pub fn close_connections(&self) {
        for stream in self.state.lock().unwrap().connections.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// An address to test against: the one in `STRAND_TEST_ADDRESS`, or that of a fake server that lives as long as the tests.
pub fn any_server() -> String {
    std::env::var("STRAND_TEST_ADDRESS").unwrap_or_else(|_| {
        let server = FakeServer::start();
        server.address.clone()
    })
}

/// A key prefix that no other test and no other run uses.
pub fn own_prefix(test: &str) -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!("client-test:{test}:{nanos}:")
}

fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream.try_clone().unwrap();
    let mut ordered = true;
    let mut held: Option<Vec<u8>> = None;
    let mut line = String::new();
    loop {
        // In unordered mode every second reply overtakes the one before it, as far as more requests wait.
        if reader.buffer().is_empty()
            && let Some(bytes) = held.take()
            && writer.write_all(&bytes).is_err()
        {
            return;
        }
        line.clear();
        if !matches!(reader.read_line(&mut line), Ok(1..)) {
            return;
        }
        let request: Value = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(_) => json!({"command": "(unreadable)"}),
        };
        let name = request["command"].as_str().unwrap_or_default().to_ascii_uppercase();
        let fault = state.lock().unwrap().faults.get_mut(&name).and_then(VecDeque::pop_front);
        if matches!(fault, Some(Fault::CloseBefore)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let mut reply = match fault.clone() {
            Some(Fault::Answer(reply)) => {
                state.lock().unwrap().requests.push(request.clone());
                reply
            }
            _ => answer(&mut state.lock().unwrap(), &name, &request),
        };
        if name == "HELLO" {
            ordered = request["ordered"] != json!(false);
        }
        if let Some(id) = request.get("id") {
            reply["id"] = id.clone();
        }
        match fault {
            Some(Fault::CloseAfter) => {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            Some(Fault::Slow(pause)) => std::thread::sleep(pause),
            _ => {}
        }
        let mut bytes = reply.to_string().into_bytes();
        if matches!(fault, Some(Fault::Nonsense)) {
            bytes = b"+PONG".to_vec();
        }
        bytes.push(b'\n');
        if !ordered && held.is_none() && name != "HELLO" {
            held = Some(bytes);
            continue;
        }
        bytes.extend(held.take().into_iter().flatten());
        if writer.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn success(result: Value) -> Value {
    json!({"status": "success", "result": result})
}

pub fn error(code: &str, retry: &str) -> Value {
    json!({"status": "error", "code": code, "error": "as the test asked", "retry": retry})
}

fn answer(state: &mut State, name: &str, request: &Value) -> Value {
    state.requests.push(request.clone());
    state.arrivals.push((name.to_owned(), Instant::now()));
    let pair =
        request["client"].as_str().zip(request["seq"].as_u64()).map(|(client, seq)| (client.to_owned(), seq));
    if let Some(reply) = pair.as_ref().and_then(|pair| state.remembered.get(pair)) {
        return reply.clone();
    }
    let reply = apply(state, name, request);
    if let Some(pair) = pair {
        state.remembered.insert(pair, reply.clone());
    }
    reply
}

fn apply(state: &mut State, name: &str, request: &Value) -> Value {
    let key = request["key"].as_str().unwrap_or_default().to_owned();
    match name {
        "PING" => success(json!("PONG")),
        "HELLO" => success(json!({"protocol": 1})),
        "SET" => set(state, key, request),
        "GET" => match state.keys.get(&key) {
            None => json!({"status": "success", "result": null, "found": false}),
            Some((value, version)) if request["with_version"] == json!(true) => {
                json!({"status": "success", "result": value, "version": version.to_string()})
            }
            Some((value, _)) => success(value.clone()),
        },
        "DELETE" => {
            state.applied += 1;
            success(json!(state.keys.remove(&key).is_some()))
        }
        "EXISTS" => success(json!(state.keys.contains_key(&key))),
        "INCR" => {
            let before = state.keys.get(&key).map_or(Some(0), |(value, _)| value.as_i64());
            let Some(before) = before else { return error("WRONG_TYPE", "never") };
            let Some(after) = before.checked_add(request["amount"].as_i64().unwrap_or(1)) else {
                return error("OVERFLOW", "never");
            };
            state.applied += 1;
            let version = state.applied;
            state.keys.insert(key, (json!(after), version));
            success(json!(after))
        }
        "BULK_SET" => {
            let items: Vec<(String, Value)> = serde_json::from_value(request["items"].clone()).unwrap();
            state.applied += 1;
            let version = state.applied;
            let distinct: BTreeMap<String, Value> = items.into_iter().collect();
            let count = distinct.len();
            state.keys.extend(distinct.into_iter().map(|(key, value)| (key, (value, version))));
            success(json!(count))
        }
        "BULK_GET" => {
            let keys: Vec<String> = serde_json::from_value(request["keys"].clone()).unwrap();
            let found: Map<String, Value> = keys
                .into_iter()
                .map(|key| {
                    (key.clone(), state.keys.get(&key).map_or(Value::Null, |(value, _)| value.clone()))
                })
                .collect();
            success(Value::Object(found))
        }
        "SCAN" => scan(state, request),
        "QUERY_INDEX" => query_index(state, request),
        "" => error("BAD_REQUEST", "never"),
        _ => error("UNKNOWN_COMMAND", "never"),
    }
}

fn set(state: &mut State, key: String, request: &Value) -> Value {
    let current = state.keys.get(&key).map(|(_, version)| version.to_string());
    let condition = &request["if"];
    let met = match (condition["absent"].as_bool(), condition["version"].as_str()) {
        (Some(true), _) => current.is_none(),
        (_, Some(version)) => current.as_deref() == Some(version),
        _ => true,
    };
    if !met {
        let mut reply = error("CONFLICT", "never");
        reply["version"] = json!(current);
        return reply;
    }
    state.applied += 1;
    let version = state.applied;
    state.keys.insert(key, (request["value"].clone(), version));
    json!({"status": "success", "result": "OK", "version": version.to_string()})
}

/// Pages of `limit` keys after the cursor, and an empty one at first, since a client must bear those.
fn scan(state: &State, request: &Value) -> Value {
    let prefix = request["prefix"].as_str().unwrap_or_default();
    let limit = usize::try_from(request["limit"].as_u64().unwrap_or(100)).unwrap();
    let Some(cursor) = request["cursor"].as_str() else {
        return success(json!({"keys": [], "cursor": "="}));
    };
    let rest = state.keys.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > &cursor[1..]);
    let page: Vec<(&String, &Value)> = rest.take(limit).map(|(key, (value, _))| (key, value)).collect();
    let keys: Vec<&String> = page.iter().map(|(key, _)| *key).collect();
    let next = (page.len() == limit).then(|| format!("={}", keys[limit - 1]));
    let mut result = json!({"keys": keys, "cursor": next});
    if request["with_values"] == json!(true) {
        result["values"] = page.iter().map(|(_, value)| (*value).clone()).collect();
    }
    success(result)
}

/// Equality on a top level field, in pages, by looking at every value.
fn query_index(state: &State, request: &Value) -> Value {
    let field = request["field"].as_str().unwrap_or_default();
    let limit = usize::try_from(request["limit"].as_u64().unwrap_or(10_000)).unwrap();
    let after = request["cursor"].as_str().unwrap_or_default();
    let all = state
        .keys
        .iter()
        .filter(|(key, (value, _))| value[field] == request["value"] && key.as_str() > after);
    let keys: Vec<&String> = all.map(|(key, _)| key).take(limit).collect();
    let mut reply = success(json!(keys));
    if keys.len() == limit {
        reply["cursor"] = json!(keys[limit - 1]);
    }
    reply
}
