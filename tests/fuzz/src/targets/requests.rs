//! Request lines: our parser beside `serde_json`, the short way beside the general one, and records there and back.
//!
//! What our parser takes must be JSON to `serde_json`, with the same command and the same bytes in every field that is
//! compared; what `serde_json` and the command table call a plain request must be taken; white space decides nothing.

use super::{Target, words_of};
use crate::engine::{behaviour, class_of};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use shards::command::encode;
use shards::command::record::Record;
use strand_wire::code::Code;
use strand_wire::commands::{self, CommandSpec, FieldKind};
use strand_wire::limits::Limits;
use strand_wire::request::{Command, Request, parse};

/// See the module's head.
pub(super) struct Requests {
    limits: Limits,
    tight: Limits,
}

impl Requests {
    /// The target.
    pub(super) fn new() -> Self {
        let tight = Limits {
            line_bytes_max: 120,
            key_bytes_max: 5,
            value_bytes_max: 12,
            depth_max: 3,
            batch_items_max: 2,
            query_bytes_max: 6,
            page_items_max: 9,
            ..Limits::default()
        };
        Self { limits: Limits::default(), tight }
    }
}

/// The members of an object as they came, repeated ones too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Gather;
        impl<'de> Visitor<'de> for Gather {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Gather)
    }
}

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.get())
    }

    fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    fn integer(&self, name: &str) -> Option<i128> {
        self.get(name)?.parse().ok()
    }

    fn session(&self) -> Option<(String, i128, Option<i128>)> {
        Some((self.text("client")?, self.integer("seq")?, self.integer("acked")))
    }
}

fn is_integer(token: &str) -> bool {
    let digits = token.strip_prefix('-').unwrap_or(token);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// How deep brackets nest outside of strings.
fn depth_of(text: &str) -> usize {
    let (mut depth, mut deepest, mut is_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Whether the members are surely a request; none when this judge cannot tell.
fn is_request(members: &Members<'_>, limits: &Limits) -> Option<&'static CommandSpec> {
    let names: Vec<&str> = members.0.iter().map(|(name, _)| name.as_str()).collect();
    if names.len() > 20 || names.iter().enumerate().any(|(place, name)| names[..place].contains(name)) {
        return None;
    }
    let command = members.text("command")?;
    let spec = commands::COMMANDS.iter().find(|spec| spec.name.eq_ignore_ascii_case(&command))?;
    for (name, value) in &members.0 {
        let sound = match (name.as_str(), spec.field(name)) {
            (_, Some((_, field))) => is_sound(field.kind, value.get(), limits)?,
            ("id", None) => {
                (value.get().starts_with('"') || is_integer(value.get())) && value.get().len() <= 256
            }
            ("timeout_ms", None) => value.get().parse().is_ok_and(|ms: u32| (1..=3_600_000).contains(&ms)),
            ("command", None) => true,
            _ => false,
        };
        if !sound {
            return None;
        }
    }
    let has = |name: &str| members.get(name).is_some();
    let is_whole = spec.fields.iter().all(|field| !field.required || has(field.name));
    let is_session = has("client") == has("seq") && (has("seq") || !has("acked"));
    (is_whole && is_session).then_some(spec)
}

/// Whether a field's token is of its kind; none for kinds that this judge does not know.
fn is_sound(kind: FieldKind, token: &str, limits: &Limits) -> Option<bool> {
    let text = || serde_json::from_str::<String>(token).ok();
    Some(match kind {
        FieldKind::Key => text().is_some_and(|key| (1..=limits.key_bytes_max).contains(&key.len())),
        FieldKind::Prefix => text().is_some_and(|key| key.len() <= limits.key_bytes_max),
        FieldKind::Text(bytes_max) => text().is_some_and(|text| (1..=bytes_max).contains(&text.len())),
        FieldKind::Any => token.len() <= limits.value_bytes_max,
        FieldKind::Integer(min, max) => {
            let number = token.parse::<i128>().ok().filter(|_| is_integer(token) && token != "-0");
            number.is_some_and(|number| (i128::from(min)..=i128::from(max)).contains(&number))
        }
        FieldKind::Flag => token == "true" || token == "false",
        FieldKind::Choice(names) => text().is_some_and(|text| names.contains(&text.as_str())),
        FieldKind::Keys => {
            let keys: Option<Vec<String>> = serde_json::from_str(token).ok();
            keys.is_some_and(|keys| {
                keys.iter().all(|key| !key.is_empty() && key.len() <= limits.key_bytes_max)
            })
        }
        FieldKind::Items => match serde_json::from_str::<Members<'_>>(token) {
            Ok(items) => items.0.iter().all(|(key, _)| !key.is_empty() && key.len() <= limits.key_bytes_max),
            Err(_) => return None,
        },
        _ => return None,
    })
}

/// Commands whose fields need nothing of one another beyond what [`is_request`] looks at.
const PLAIN: &[&str] = &[
    "PING",
    "GET",
    "SET",
    "DELETE",
    "EXISTS",
    "INCR",
    "BULK_SET",
    "BULK_GET",
    "BULK_DELETE",
    "EXPIRE",
    "TTL",
    "PERSIST",
    "DELETE_PREFIX",
    "LIST_INDEXES",
    "INFO",
    "SNAPSHOT",
];

/// Compares a request with the members it was read from.
fn compare(request: &Request<'_>, members: &Members<'_>) {
    let name = members.text("command").expect("a request names its command");
    assert!(name.eq_ignore_ascii_case(request.command.name()), "another command: {name}");
    assert_eq!(request.id, members.get("id").map(str::as_bytes), "the id");
    assert_eq!(request.timeout_ms.map(i128::from), members.integer("timeout_ms"), "the deadline");
    let key = || members.text("key");
    let session = |given: Option<&strand_wire::request::Session<'_>>| {
        let given = given.map(|s| (s.client.to_string(), i128::from(s.seq), s.acked.map(i128::from)));
        assert_eq!(given, members.session(), "the session");
    };
    match &request.command {
        Command::Set(set) => {
            assert_eq!(Some(&*set.key), key().as_deref());
            assert_eq!(Some(set.value), members.get("value").map(str::as_bytes), "the value, byte for byte");
            assert_eq!(set.ttl_ms.map(i128::from), members.integer("ttl_ms"));
            assert_eq!((set.debug, set.with_version), (members.flag("debug"), members.flag("with_version")));
            assert_eq!(set.condition.is_some(), members.get("if").is_some());
            session(set.session.as_ref());
        }
        Command::Get(get) => {
            assert_eq!(Some(&*get.key), key().as_deref());
            assert_eq!(get.with_version, members.flag("with_version"));
        }
        Command::Delete(delete) => {
            assert_eq!(Some(&*delete.key), key().as_deref());
            session(delete.session.as_ref());
        }
        Command::Exists(read) | Command::Ttl(read) => assert_eq!(Some(&*read.key), key().as_deref()),
        Command::Incr(incr) => {
            assert_eq!(Some(&*incr.key), key().as_deref());
            assert_eq!(i128::from(incr.amount), members.integer("amount").unwrap_or(1));
            session(incr.session.as_ref());
        }
        Command::Expire(expire) => {
            assert_eq!(Some(i128::from(expire.ttl_ms)), members.integer("ttl_ms"));
            session(expire.session.as_ref());
        }
        Command::Persist(persist) => session(persist.session.as_ref()),
        Command::BulkSet(bulk) => {
            session(bulk.session.as_ref());
            if let Ok(items) = serde_json::from_str::<Members<'_>>(members.get("items").unwrap_or_default()) {
                for (key, value) in &bulk.items {
                    let last = items.0.iter().rev().find(|(name, _)| name == key);
                    assert_eq!(
                        last.map(|(_, raw)| raw.get().as_bytes()),
                        Some(*value),
                        "the last value wins"
                    );
                }
                assert!(items.0.iter().all(|(name, _)| bulk.items.iter().any(|(key, _)| key == name)));
            }
        }
        Command::BulkGet(strand_wire::request::BulkGet { keys, .. })
        | Command::BulkDelete(strand_wire::request::BulkDelete { keys, .. }) => {
            let mut named: Vec<String> = serde_json::from_str(members.get("keys").unwrap_or_default())
                .expect("keys that were taken are an array of strings");
            let mut seen = std::collections::HashSet::new();
            named.retain(|key| seen.insert(key.clone()));
            assert!(named.iter().eq(keys.iter().map(|key| &**key)), "distinct keys in order");
        }
        Command::DeletePrefix(delete) => assert_eq!(Some(delete.prefix.to_string()), members.text("prefix")),
        Command::Search(search) => assert_eq!(Some(search.query.to_string()), members.text("query")),
        _ => {}
    }
}

/// The record of a command is read back as it was written.
fn round(command: &Command<'_>) {
    if let Some(record) = encode::one_key(command) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let read =
            Record::decode(&bytes).unwrap_or_else(|malformed| panic!("our own record: {}", malformed.0));
        // The flags of what came along tell how to read the rest; they are there once it is written.
        let plain = |record: &Record<'_>| format!("{:?}", Record { flags: 0, ..*record });
        assert_eq!(plain(&read), plain(&record), "a record there and back");
        assert_eq!(read.flags & record.flags, record.flags, "no flag is lost");
        let mut again = Vec::new();
        read.encode(&mut again);
        assert_eq!(again, bytes, "a record has one form");
    }
}

impl Requests {
    fn judge(&self, line: &[u8]) -> u64 {
        let ours = parse(line, &self.limits);
        let text = std::str::from_utf8(line).ok();
        let is_json = text.is_some_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        let members = text.and_then(|text| serde_json::from_str::<Members<'_>>(text).ok());
        match &ours {
            Ok(request) => {
                assert!(is_json, "taken, and no JSON");
                let members = members.unwrap_or_else(|| panic!("taken, and no object of plain names"));
                compare(request, &members);
                round(&request.command);
                let shape = format!("{:?}", std::mem::discriminant(&request.command));
                let given = members
                    .0
                    .iter()
                    .fold(0, |sum, (name, _)| sum ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
                behaviour(&[1, xxhash_rust::xxh3::xxh3_64(shape.as_bytes()), given])
            }
            Err(refusal) => {
                let mut reply = Vec::new();
                refusal.write(&mut reply);
                let reply: serde_json::Value =
                    serde_json::from_slice(&reply).expect("a refusal is a line of JSON");
                assert_eq!(reply["status"], "error");
                if let Some(id) = refusal.id {
                    let id: Result<serde_json::Value, _> = serde_json::from_slice(id);
                    assert!(id.is_ok() || !is_json, "an id is a token");
                }
                if let (Some(text), Some(members)) = (text, &members)
                    && depth_of(text) <= 60
                    && is_request(members, &self.limits).is_some_and(|spec| PLAIN.contains(&spec.name))
                {
                    panic!("a sound request is refused: {}", refusal.message);
                }
                if !is_json {
                    assert!(matches!(refusal.code, Code::BadRequest | Code::TooLarge), "{}", refusal.message);
                }
                let letters = refusal.message.bytes().filter(|byte| byte.is_ascii_alphabetic());
                let told: Vec<u8> = letters.take(48).collect();
                behaviour(&[2, xxhash_rust::xxh3::xxh3_64(&told), class_of(told.len())])
            }
        }
    }

    /// White space after the brace sends a line the general way, and changes nothing.
    fn judge_spaced(&self, line: &[u8]) {
        let Some(rest) = line.strip_prefix(b"{") else { return };
        let spaced = [b"{ \t", rest].concat();
        match (parse(line, &self.limits), parse(&spaced, &self.limits)) {
            (Ok(short), Ok(general)) => assert_eq!(short, general, "two ways, two requests"),
            (Err(short), Err(general)) => assert_eq!(short.code, general.code, "two ways, two refusals"),
            (short, general) => panic!("two ways: {short:?} and {general:?}"),
        }
    }

    /// Tighter limits only refuse more, but for a page whose size is not given: it is never beyond its limit.
    fn judge_tight(&self, line: &[u8]) {
        if let Ok(request) = parse(line, &self.tight) {
            assert!(line.len() <= self.tight.line_bytes_max);
            let wide = Limits { page_items_max: self.tight.page_items_max, ..self.limits };
            assert_eq!(parse(line, &wide).as_ref(), Ok(&request), "tight limits change a request");
            if let Some(record) = encode::one_key(&request.command) {
                assert!(record.key.len() <= self.tight.key_bytes_max, "a key beyond its limit");
                assert!(record.value.len() <= self.tight.value_bytes_max, "a value beyond its limit");
            }
        }
    }
}

impl Target for Requests {
    fn seeds(&self) -> Vec<Vec<u8>> {
        words_of(&[
            r#"{"command":"SET","key":"foo","value":"bar"}"#,
            r#"{"command":"GET","key":"foo"}"#,
            r#"{"command":"set","key":"k","value":{"a":[1,-2.5e3,null]},"ttl_ms":50,"if":{"absent":true},"id":7}"#,
            r#"{"command":"SET","key":"\u00e9\ud83d\ude00","value":"\ud800","client":"c","seq":1,"acked":1}"#,
            r#"{"command":"INCR","key":"n","amount":-3,"durability":"fsync","timeout_ms":100}"#,
            r#"{"command":"DELETE","key":"k","if":{"version":"0-1-2"}}"#,
            r#"{"command":"BULK_SET","items":{"a":1,"b":[2],"a":3},"debug":true}"#,
            r#"{"command":"BULK_SET","items":[["a",1],["b",2]],"client":"c","seq":2}"#,
            r#"{"command":"BULK_SET","items":[{"key":"a","value":1}]}"#,
            r#"{"command":"BULK_GET","keys":["a","b","a"],"consistency":"local"}"#,
            r#"{"command":"BULK_DELETE","keys":["a"]}"#,
            r#"{"command":"SCAN","prefix":"p","cursor":null,"limit":10,"with_values":true}"#,
            r#"{"command":"SEARCH","query":"a b","top_k":3,"offset":1,"fields":["t","a.b"],"filter":{"and":[{"field":"n","gte":1},{"not":{"field":"m","value":null}}]},"highlight":true}"#,
            r#"{"command":"SEMANTIC_SEARCH","vector":[1,0.5,-2],"model":"v","top_k":2}"#,
            r#"{"command":"HYBRID_SEARCH","query":"x","alpha":0.5,"fusion":"rrf"}"#,
            r#"{"command":"CREATE_INDEX","field":"v","kind":"vector","dim":3,"metric":"l2"}"#,
            r#"{"command":"QUERY_INDEX","field":"n","gt":1,"lte":9,"order":"desc","limit":5}"#,
            r#"{"command":"EXPIRE","key":"k","ttl_ms":1}"#,
            r#"{"command":"HELLO","ordered":false,"client":"x"}"#,
            r#" { "id" : "a" , "command" : "PING" } "#,
            r#"{"command":"DELETE_PREFIX","prefix":""}"#,
        ])
    }

    fn words(&self) -> Vec<Vec<u8>> {
        let mut words = words_of(&[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u0041",
            "\\ud800",
            "\\udc00",
            "\\ud83d\\ude00",
            "\\n",
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1e5",
            "1.5",
            "-1",
            "18446744073709551616",
            "9223372036854775808",
            "\"\"",
            "{}",
            "[]",
            "\t",
            "\u{feff}",
            "\u{e9}",
            "\u{1f600}",
            "\"if\":{\"present\":true}",
            "\"if\":{\"value\":1}",
            ",\"key\":\"a\"",
            "\"id\":\"x\",",
            "\"id\":1,",
            "\"command\":\"GET\"",
            "[[[[",
            "]]]]",
            "{\"a\":",
            "[1,2]",
            "\"a\":1,",
        ]);
        for spec in commands::COMMANDS {
            words.push(format!("\"{}\"", spec.name).into_bytes());
            for field in spec.fields {
                words.push(format!(",\"{}\":", field.name).into_bytes());
            }
        }
        words.sort();
        words.dedup();
        words
    }

    fn bytes_max(&self) -> usize {
        600
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let told = self.judge(input);
        self.judge_spaced(input);
        self.judge_tight(input);
        told
    }
}
