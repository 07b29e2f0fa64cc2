//! A typed line into a command: quoting, positional words and named fields, by the protocol's own table.
//!
//! Invariant: what a word means depends only on the command's table entry and the words before it, so a value can never be
//! mistaken for a field before the required fields are there. The server checks everything again.

use serde_json::value::RawValue;
use strand_client::Command;
use strand_wire::commands::{COMMANDS, COMMON, CommandSpec, Field, FieldKind, find, nearest};

/// What the words after a command fill, in their order.
enum Rest {
    /// Nothing more.
    Nothing,
    /// This field, a list.
    List(&'static str),
    /// This field, key and value by turns.
    Pairs(&'static str),
    /// This field, joined with blanks.
    Joined(&'static str),
}

/// Fields that are filled by position, and what takes the words after them.
fn positions(name: &str) -> (&'static [&'static str], Rest) {
    match name {
        "SET" => (&["key", "value"], Rest::Nothing),
        "GET" | "DELETE" | "EXISTS" | "TTL" | "PERSIST" => (&["key"], Rest::Nothing),
        "INCR" => (&["key", "amount"], Rest::Nothing),
        "EXPIRE" => (&["key", "ttl_ms"], Rest::Nothing),
        "BULK_SET" => (&[], Rest::Pairs("items")),
        "BULK_GET" | "BULK_DELETE" => (&[], Rest::List("keys")),
        "SCAN" | "DELETE_PREFIX" => (&["prefix"], Rest::Nothing),
        "SEARCH" | "SEMANTIC_SEARCH" | "HYBRID_SEARCH" => (&[], Rest::Joined("query")),
        "CREATE_INDEX" | "DROP_INDEX" => (&["field", "kind"], Rest::Nothing),
        "QUERY_INDEX" => (&["field", "value"], Rest::Nothing),
        "ADD_NODE" => (&["node", "address"], Rest::Nothing),
        "REMOVE_NODE" => (&["node"], Rest::Nothing),
        "TRANSFER_LEADER" => (&["node", "shard"], Rest::Nothing),
        _ => (&[], Rest::Nothing),
    }
}

/// How a command is typed, such as `SET key value [--ttl-ms N] ...`.
pub(super) fn usage(spec: &CommandSpec) -> String {
    let (positions, rest) = positions(spec.name);
    let mut text = spec.name.to_owned();
    for name in positions {
        let required = spec.field(name).is_some_and(|(_, field)| field.required);
        text += &if required { format!(" {name}") } else { format!(" [{name}]") };
    }
    text += match rest {
        Rest::Nothing => "",
        Rest::List(_) => " key...",
        Rest::Pairs(_) => " key value...",
        Rest::Joined(_) => " words...",
    };
    let named = |field: &&Field| !is_positional(spec.name, field.name) && !is_the_clients(spec, field);
    for field in spec.fields.iter().filter(named) {
        text += &match field.kind {
            FieldKind::Flag => format!(" [--{}]", dashed(field.name)),
            kind => format!(" [--{} {}]", dashed(field.name), form(kind)),
        };
    }
    text
}

/// Whether a field belongs to the client, which fills it by itself. It may be given all the same.
pub(super) fn is_the_clients(spec: &CommandSpec, field: &Field) -> bool {
    spec.field("seq").is_some() && ["client", "seq", "acked"].contains(&field.name)
}

/// Whether a field is filled by position.
pub(super) fn is_positional(command: &str, field: &str) -> bool {
    let (positions, rest) = positions(command);
    let in_rest = matches!(rest, Rest::List(name) | Rest::Pairs(name) | Rest::Joined(name) if name == field);
    in_rest || positions.contains(&field)
}

/// A field's form in a few letters, for usage lines.
pub(super) fn form(kind: FieldKind) -> String {
    match kind {
        FieldKind::Key | FieldKind::Prefix | FieldKind::Text(_) | FieldKind::Query | FieldKind::Cursor => {
            "TEXT".into()
        }
        FieldKind::Any | FieldKind::Scalar => "JSON".into(),
        FieldKind::Integer(..) => "N".into(),
        FieldKind::Number(..) => "NUMBER".into(),
        FieldKind::Flag => "true|false".into(),
        FieldKind::Choice(choices) => choices.join("|"),
        FieldKind::Keys | FieldKind::Paths => "A,B,...".into(),
        FieldKind::Items | FieldKind::Filter | FieldKind::Vector => "JSON".into(),
        FieldKind::Condition => "absent|present|JSON".into(),
        FieldKind::Id => "ID".into(),
    }
}

pub(super) fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

/// Cuts a line into words: blanks separate, quotes of both kinds group, and brackets group up to their partner, so that JSON
/// needs no quotes of its own. A word that holds JSON keeps its quotes.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = next_word(rest)?;
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

fn next_word(text: &str) -> Result<(String, &str), String> {
    let mut word = String::new();
    let mut depth = 0_usize;
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            _ if depth == 0 && letter.is_whitespace() => return Ok((word, &text[at..])),
            '{' | '[' if depth > 0 || is_value_start(&word) => {
                depth += 1;
                word.push(letter);
            }
            '}' | ']' if depth > 0 => {
                depth -= 1;
                word.push(letter);
            }
            '"' if depth > 0 => {
                word.push('"');
                quoted(&mut letters, '"', true, &mut word)?;
                word.push('"');
            }
            // Quotes inside a word, as in a:"b c", belong to the word.
            '"' | '\'' if depth == 0 && is_value_start(&word) => {
                quoted(&mut letters, letter, false, &mut word)?;
            }
            _ => word.push(letter),
        }
    }
    if depth > 0 { Err("a bracket is not closed".into()) } else { Ok((word, "")) }
}

/// Whether a value begins after this much of a word: at once, or after `name=`.
fn is_value_start(word: &str) -> bool {
    word.is_empty() || word.ends_with('=')
}

/// Copies up to the closing quote. Inside JSON backslashes stay; outside double quotes know `\"`, `\\` and `\n`.
fn quoted(
    letters: &mut std::str::CharIndices<'_>,
    quote: char,
    in_json: bool,
    word: &mut String,
) -> Result<(), String> {
    while let Some((_, letter)) = letters.next() {
        match letter {
            _ if letter == quote => return Ok(()),
            '\\' if in_json || quote == '"' => {
                let (_, escaped) = letters.next().ok_or("a line cannot end in a backslash")?;
                match (in_json, escaped) {
                    (false, '"' | '\\') => word.push(escaped),
                    (false, 'n') => word.push('\n'),
                    _ => word.extend(['\\', escaped]),
                }
            }
            _ => word.push(letter),
        }
    }
    Err(format!("a {quote} is not closed"))
}

/// The command that a list of words means.
pub(super) fn command(words: &[String]) -> Result<Command, String> {
    let name = words.first().ok_or("there is no command")?;
    if name.starts_with('{') {
        return Command::from_json(&words.join(" ")).map_err(|error| error.to_string());
    }
    let spec = find(name).ok_or_else(|| match nearest(name, COMMANDS.iter().map(|spec| spec.name)) {
        Some(near) => format!("there is no command {name}; did you mean {near}?"),
        None => format!("there is no command {name}; `help` lists them"),
    })?;
    let mut parsed = Parsed { spec, given: Vec::new(), rest: Vec::new() };
    parsed.read(&words[1..])?;
    parsed.finish()
}

struct Parsed {
    spec: &'static CommandSpec,
    given: Vec<(&'static Field, String)>,
    rest: Vec<String>,
}

impl Parsed {
    fn read(&mut self, words: &[String]) -> Result<(), String> {
        let (positions, rest) = positions(self.spec.name);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let missing = positions.iter().find(|name| !self.has(name)).copied();
            let next = missing.filter(|name| self.field(name).is_ok_and(|field| field.required));
            if let Some((name, value)) =
                word.strip_prefix("--").map(|flag| flag.split_once('=').unwrap_or((flag, "")))
            {
                let field = self.field(&name.replace('-', "_"))?;
                let value = match (word.contains('='), field.kind) {
                    (true, _) => value.to_owned(),
                    (false, FieldKind::Flag) => "true".to_owned(),
                    _ => words.next().ok_or_else(|| format!("{word} needs a value"))?.clone(),
                };
                self.give(field, &value)?;
            } else if let (None, Some((field, value))) = (next, self.assignment(word)) {
                self.give(field, value)?;
            } else if let Some(name) = missing {
                self.give(self.field(name)?, word)?;
            } else if matches!(rest, Rest::Nothing) {
                return Err(format!("{word:?} is too much; usage: {}", usage(self.spec)));
            } else {
                self.rest.push(word.clone());
            }
        }
        Ok(())
    }

    /// A word of the form `field=value` for a field that the command has.
    fn assignment<'w>(&self, word: &'w str) -> Option<(&'static Field, &'w str)> {
        let (name, value) = word.split_once('=')?;
        Some((self.field(name).ok()?, value))
    }

    fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(field, _)| field.name == name)
    }

    fn field(&self, name: &str) -> Result<&'static Field, String> {
        let own = self.spec.fields.iter().chain(COMMON).find(|field| field.name == name);
        own.ok_or_else(|| match nearest(name, self.spec.field_names()) {
            Some(near) => format!("{} has no field {name}; did you mean {near}?", self.spec.name),
            None => format!("{} has no field {name}; see `help {}`", self.spec.name, self.spec.name),
        })
    }

    fn give(&mut self, field: &'static Field, value: &str) -> Result<(), String> {
        if self.has(field.name) {
            return Err(format!("{} is given twice", field.name));
        }
        self.given.push((field, value.to_owned()));
        Ok(())
    }

    fn finish(self) -> Result<Command, String> {
        let mut command = Command::new(self.spec.name);
        for (field, value) in &self.given {
            command =
                if field.kind == FieldKind::Key { command.key(value) } else { typed(command, field, value)? };
        }
        let (_, rest) = positions(self.spec.name);
        let filled = match rest {
            Rest::List(name) | Rest::Pairs(name) | Rest::Joined(name) if !self.rest.is_empty() => {
                command = with_rest(command, name, &rest, &self.rest)?;
                name
            }
            _ => "",
        };
        let missing = |field: &&Field| field.required && field.name != filled && !self.has(field.name);
        match self.spec.fields.iter().find(missing) {
            Some(field) => Err(format!("{} is missing; usage: {}", field.name, usage(self.spec))),
            None => Ok(command),
        }
    }
}

fn with_rest(command: Command, name: &str, rest: &Rest, words: &[String]) -> Result<Command, String> {
    let added = match rest {
        Rest::Joined(_) => command.field(name, &words.join(" ")),
        _ if words.len() == 1 && words[0].starts_with(['[', '{']) => command.field(name, &raw(&words[0])?),
        Rest::Pairs(_) => {
            if !words.len().is_multiple_of(2) {
                return Err("keys and values come in pairs".into());
            }
            let pairs: Vec<(&String, Box<RawValue>)> =
                words.chunks_exact(2).map(|pair| (&pair[0], json_or_text(&pair[1]))).collect();
            command.field(name, &pairs)
        }
        _ => command.field(name, &words),
    };
    added.map_err(|error| error.to_string())
}

/// Adds a field whose text is read as its type says.
fn typed(command: Command, field: &Field, text: &str) -> Result<Command, String> {
    let is_json = text.starts_with(['[', '{']);
    let wrong = |what: &str| format!("{} is {what}, not {text:?}", field.name);
    let added = match field.kind {
        FieldKind::Any | FieldKind::Scalar => command.field(field.name, &json_or_text(text)),
        FieldKind::Integer(..) => {
            let number: i128 = text.parse().map_err(|_| wrong("an integer"))?;
            command.field(field.name, &raw(&number.to_string())?)
        }
        FieldKind::Number(..) => {
            command.field(field.name, &text.parse::<f64>().map_err(|_| wrong("a number"))?)
        }
        FieldKind::Flag => {
            command.field(field.name, &text.parse::<bool>().map_err(|_| wrong("true or false"))?)
        }
        FieldKind::Keys | FieldKind::Paths if !is_json => {
            command.field(field.name, &text.split(',').map(str::trim).collect::<Vec<_>>())
        }
        FieldKind::Condition if matches!(text, "absent" | "present") => {
            command.field(field.name, &serde_json::json!({text: true}))
        }
        FieldKind::Keys
        | FieldKind::Paths
        | FieldKind::Items
        | FieldKind::Condition
        | FieldKind::Filter
        | FieldKind::Vector => {
            command.field(field.name, &raw(text).map_err(|error| wrong(&format!("JSON ({error})")))?)
        }
        FieldKind::Id if text.parse::<i64>().is_ok() => command.field(field.name, &raw(text)?),
        FieldKind::Key
        | FieldKind::Prefix
        | FieldKind::Text(_)
        | FieldKind::Query
        | FieldKind::Cursor
        | FieldKind::Choice(_)
        | FieldKind::Id => command.field(field.name, text),
    };
    added.map_err(|error| error.to_string())
}

fn raw(text: &str) -> Result<Box<RawValue>, String> {
    RawValue::from_string(text.trim().to_owned()).map_err(|error| error.to_string())
}

/// The text as JSON when it is JSON, as a JSON text otherwise.
fn json_or_text(text: &str) -> Box<RawValue> {
    raw(text).unwrap_or_else(|_| {
        let quoted = serde_json::to_string(text).expect("a text is always JSON");
        RawValue::from_string(quoted).expect("what was written as JSON is JSON")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let command =
            split(line).and_then(|words| command(&words)).unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut bytes = Vec::new();
        strand_client::codec::encode(&command, None, None, &mut bytes);
        assert_eq!(String::from_utf8(bytes).unwrap().trim_end(), expected, "{line}");
    }

    #[test]
    fn lines_become_commands() {
        check("get foo", r#"{"command":"GET","key":"foo"}"#);
        check("SET foo bar", r#"{"command":"SET","key":"foo","value":"bar"}"#);
        check("SET foo 1.50", r#"{"command":"SET","key":"foo","value":1.50}"#);
        check(
            r#"SET foo {"a": "b c"} --ttl-ms 5"#,
            r#"{"command":"SET","key":"foo","value":{"a": "b c"},"ttl_ms":5}"#,
        );
        check(
            "SET 'a b' ttl_ms=5 if=absent",
            r#"{"command":"SET","key":"a b","value":"ttl_ms=5","if":{"absent":true}}"#,
        );
        check(r#"SET k "two \"words\"""#, r#"{"command":"SET","key":"k","value":"two \"words\""}"#);
        check("INCR n -5", r#"{"command":"INCR","key":"n","amount":-5}"#);
        check("INCR n", r#"{"command":"INCR","key":"n"}"#);
        check("BULK_SET a 1 b two", r#"{"command":"BULK_SET","items":[["a",1],["b","two"]]}"#);
        check(r#"BULK_SET {"a":1}"#, r#"{"command":"BULK_SET","items":{"a":1}}"#);
        check("BULK_GET a b", r#"{"command":"BULK_GET","keys":["a","b"]}"#);
    }

    #[test]
    fn searches_take_free_words_and_named_fields() {
        check("SEARCH quick fox top_k=5", r#"{"command":"SEARCH","top_k":5,"query":"quick fox"}"#);
        check(
            r#"SEARCH "quick fox" --with-values --fields title,body"#,
            r#"{"command":"SEARCH","with_values":true,"fields":["title","body"],"query":"quick fox"}"#,
        );
        check(r#"SEARCH title:"quick fox""#, r#"{"command":"SEARCH","query":"title:\"quick fox\""}"#);
        check(r#"SEARCH '"quick fox"~2'"#, r#"{"command":"SEARCH","query":"\"quick fox\"~2"}"#);
        check(
            r#"SEARCH fox filter={"field":"n","gte":1}"#,
            r#"{"command":"SEARCH","filter":{"field":"n","gte":1},"query":"fox"}"#,
        );
        check(
            "QUERY_INDEX price gte=10 lt=20",
            r#"{"command":"QUERY_INDEX","field":"price","gte":10,"lt":20}"#,
        );
        check("QUERY_INDEX city Paris", r#"{"command":"QUERY_INDEX","field":"city","value":"Paris"}"#);
        check(
            "CREATE_INDEX v vector dim=3",
            r#"{"command":"CREATE_INDEX","field":"v","kind":"vector","dim":3}"#,
        );
    }

    #[test]
    fn json_lines_go_as_they_are() {
        check(r#"{"command":"SET","key":"k","value":1.50}"#, r#"{"command":"SET","key":"k","value":1.50}"#);
    }

    #[test]
    fn mistakes_say_what_to_do() {
        for (line, part) in [
            ("GTE foo", "did you mean GET?"),
            ("GET", "key is missing; usage: GET key"),
            ("GET a b", "too much"),
            ("SET k v --tll-ms 5", "did you mean ttl_ms?"),
            ("SET k v --ttl-ms", "needs a value"),
            ("INCR n many", "an integer"),
            ("SEARCH fox top_k=1 top_k=2", "given twice"),
            ("BULK_SET a", "in pairs"),
            ("SET k 'open", "not closed"),
            ("SET k {\"a\":", "not closed"),
            ("SEARCH", "query is missing"),
        ] {
            let error = split(line).and_then(|words| command(&words)).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn every_command_of_the_protocol_has_a_usage() {
        for spec in COMMANDS {
            assert!(usage(spec).starts_with(spec.name));
            let (positions, _) = positions(spec.name);
            assert!(positions.iter().all(|name| spec.field(name).is_some()), "{}", spec.name);
        }
    }
}
