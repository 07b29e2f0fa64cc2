//! Walks a JSON token and yields its scalars with their paths, without building a tree.
//!
//! Arrays are transparent: `{"a":[{"b":1}]}` has `1` at `a.b`. A dot or backslash inside a name is escaped, `a\.b`. The
//! scalar of a value that is no object has the empty path. Containers deeper than [`DEPTH_MAX`] and whatever follows a
//! syntax error are passed over in silence: the front has checked the value, so this is only a belt against foreign bytes.
//! The walk keeps its own stack, so no input can exhaust the thread's.

use memchr::{memchr, memchr2};
use smallvec::SmallVec;

/// Deepest nesting that is looked into.
pub const DEPTH_MAX: usize = 64;

/// Positions between the strings of one value, so that no phrase spans two.
pub const STRING_GAP: u32 = 100;

/// A JSON value that is neither array nor object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// `null`
    Null,
    /// `false` or `true`
    Bool(bool),
    /// A number's token, as written.
    Number(&'a str),
    /// A string, unescaped; a lone surrogate becomes U+FFFD.
    String(&'a str),
}

/// The buffers of a walk, to be used again.
#[derive(Clone, Debug, Default)]
pub struct Walker {
    path: Vec<u8>,
    text: String,
}

#[derive(Clone, Copy)]
struct Frame {
    is_object: bool,
    path_length: usize,
}

impl Walker {
    /// Calls `each(path, scalar)` for every scalar of `value` in order.
    pub fn walk(&mut self, value: &[u8], mut each: impl FnMut(&[u8], Scalar<'_>)) {
        // `None` only ends the walk early: there is nothing to report.
        let _ = self.try_walk(value, &mut each);
    }

    fn try_walk(&mut self, value: &[u8], each: &mut impl FnMut(&[u8], Scalar<'_>)) -> Option<()> {
        let mut stack: SmallVec<[Frame; 8]> = SmallVec::new();
        let mut objects = 0usize;
        let mut at = 0;
        self.path.clear();
        loop {
            skip_space(value, &mut at);
            match *value.get(at)? {
                open @ (b'{' | b'[') => {
                    if stack.len() == DEPTH_MAX {
                        at = skip_container(value, at)?;
                    } else {
                        at += 1;
                        let is_object = open == b'{';
                        stack.push(Frame { is_object, path_length: self.path.len() });
                        objects += usize::from(is_object);
                        skip_space(value, &mut at);
                        if !matches!(*value.get(at)?, b'}' | b']') {
                            if is_object {
                                self.name(value, &mut at, objects)?;
                            }
                            continue;
                        }
                    }
                }
                b'"' => {
                    let text = string_token(value, &mut at)?;
                    let text = unescape(text, &mut self.text)?;
                    each(&self.path, Scalar::String(text));
                }
                b't' => each(&self.path, literal(value, &mut at, b"true", Scalar::Bool(true))?),
                b'f' => each(&self.path, literal(value, &mut at, b"false", Scalar::Bool(false))?),
                b'n' => each(&self.path, literal(value, &mut at, b"null", Scalar::Null)?),
                b'-' | b'0'..=b'9' => each(&self.path, Scalar::Number(number_token(value, &mut at)?)),
                _ => return None,
            }
            // A value has ended: close what ends with it, up to the next comma.
            loop {
                let frame = *stack.last()?;
                skip_space(value, &mut at);
                let byte = *value.get(at)?;
                at += 1;
                match byte {
                    b',' => {
                        if frame.is_object {
                            self.path.truncate(frame.path_length);
                            self.name(value, &mut at, objects)?;
                        }
                        break;
                    }
                    b'}' | b']' => {
                        self.path.truncate(frame.path_length);
                        objects -= usize::from(frame.is_object);
                        stack.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    /// Reads `"name":` and appends the escaped name to the path.
    fn name(&mut self, value: &[u8], at: &mut usize, objects: usize) -> Option<()> {
        skip_space(value, at);
        let name = unescape(string_token(value, at)?, &mut self.text)?;
        if objects > 1 {
            self.path.push(b'.');
        }
        if memchr2(b'.', b'\\', name.as_bytes()).is_none() {
            self.path.extend_from_slice(name.as_bytes());
        } else {
            for byte in name.bytes() {
                if matches!(byte, b'.' | b'\\') {
                    self.path.push(b'\\');
                }
                self.path.push(byte);
            }
        }
        skip_space(value, at);
        (*value.get(*at)? == b':').then(|| *at += 1)
    }
}

/// Whether text at `path` belongs to `field`: the path itself or one below it.
pub fn is_within(path: &[u8], field: &[u8]) -> bool {
    path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest[0] == b'.')
}

#[inline]
fn skip_space(value: &[u8], at: &mut usize) {
    while let Some(b' ' | b'\t' | b'\r' | b'\n') = value.get(*at) {
        *at += 1;
    }
}

/// The bytes between the quotes of the string at `*at`, which moves past it.
fn string_token<'a>(value: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    if *value.get(*at)? != b'"' {
        return None;
    }
    let start = *at + 1;
    let mut end = start;
    loop {
        end += memchr2(b'"', b'\\', value.get(end..)?)?;
        if value[end] == b'"' {
            *at = end + 1;
            return Some(&value[start..end]);
        }
        end += 2;
    }
}

fn number_token<'a>(value: &'a [u8], at: &mut usize) -> Option<&'a str> {
    let start = *at;
    while matches!(value.get(*at), Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
        *at += 1;
    }
    std::str::from_utf8(&value[start..*at]).ok()
}

fn literal<'a>(value: &[u8], at: &mut usize, word: &[u8], scalar: Scalar<'a>) -> Option<Scalar<'a>> {
    value[*at..].starts_with(word).then(|| {
        *at += word.len();
        scalar
    })
}

/// The position after the container that opens at `at`.
fn skip_container(value: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match *value.get(at)? {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                string_token(value, &mut at)?;
                continue;
            }
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// The text of a string token: the token itself where nothing is escaped, else its decoded form in `buffer`.
pub(crate) fn unescape<'a>(token: &'a [u8], buffer: &'a mut String) -> Option<&'a str> {
    let token = std::str::from_utf8(token).ok()?;
    let Some(first) = memchr(b'\\', token.as_bytes()) else {
        return Some(token);
    };
    buffer.clear();
    buffer.push_str(&token[..first]);
    let mut rest = &token[first..];
    while let Some(escape) = rest.strip_prefix('\\') {
        let mut used = 1;
        match *escape.as_bytes().first()? {
            b'n' => buffer.push('\n'),
            b't' => buffer.push('\t'),
            b'r' => buffer.push('\r'),
            b'b' => buffer.push('\u{8}'),
            b'f' => buffer.push('\u{c}'),
            plain @ (b'"' | b'\\' | b'/') => buffer.push(char::from(plain)),
            b'u' => {
                let (letter, length) = unicode_escape(&escape.as_bytes()[1..])?;
                buffer.push(letter);
                used += length;
            }
            _ => return None,
        }
        let tail = &escape[used..];
        let next = memchr(b'\\', tail.as_bytes()).unwrap_or(tail.len());
        buffer.push_str(&tail[..next]);
        rest = &tail[next..];
    }
    Some(buffer)
}

/// The character of `XXXX` or of the pair `XXXX\uXXXX`, and the bytes it took after the `u`.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| -> Option<u32> {
        let digits = bytes.get(at..at + 4)?;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    };
    let high = unit(0)?;
    if !(0xd800..0xe000).contains(&high) {
        return Some((char::from_u32(high)?, 4));
    }
    if high < 0xdc00
        && bytes.get(4..6) == Some(b"\\u")
        && let Some(low @ 0xdc00..0xe000) = unit(6)
    {
        let letter = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        return Some((char::from_u32(letter)?, 10));
    }
    Some((char::REPLACEMENT_CHARACTER, 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn scalars(value: &[u8]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        Walker::default().walk(value, |path, scalar| {
            let shown = match scalar {
                Scalar::Null => "null".to_owned(),
                Scalar::Bool(truth) => truth.to_string(),
                Scalar::Number(token) => token.to_owned(),
                Scalar::String(text) => format!("{text:?}"),
            };
            found.push((String::from_utf8(path.to_vec()).unwrap(), shown));
        });
        found
    }

    fn check(value: &str, expected: &[(&str, &str)]) {
        let found = scalars(value.as_bytes());
        let found: Vec<(&str, &str)> = found.iter().map(|(p, s)| (p.as_str(), s.as_str())).collect();
        assert_eq!(found, expected, "{value}");
    }

    #[test]
    fn paths_by_example() {
        check(r#""hi""#, &[("", "\"hi\"")]);
        check(r#" -1.5e3 "#, &[("", "-1.5e3")]);
        check(r#"{"a":{"b":[1,{"c":"x"}]},"d":null}"#, &[("a.b", "1"), ("a.b.c", "\"x\""), ("d", "null")]);
        check(r#"{"a.b":true,"c\\d":false}"#, &[("a\\.b", "true"), ("c\\\\d", "false")]);
        check(r#"{"a":{"":{"b":1}},"e":[[],{},[{}]]}"#, &[("a..b", "1")]);
        check(r#"["\u00e9\ud83d\ude00\ud800x\n\"", "a"]"#, &[("", "\"é😀\u{fffd}x\\n\\\"\""), ("", "\"a\"")]);
        assert!(is_within(b"a.b", b"a") && is_within(b"a", b"a") && !is_within(b"ab", b"a"));
    }

    #[test]
    fn depth_is_bounded_and_what_follows_is_seen() {
        let deep = format!("[{}1{},\"after\"]", "[".repeat(100_000), "]".repeat(100_000));
        check(&deep, &[("", "\"after\"")]);
    }

    fn tree(value: &Value, path: &str, top: bool, out: &mut Vec<(String, String)>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| tree(item, path, top, out)),
            Value::Object(members) => {
                for (name, member) in members {
                    let name = name.replace('\\', "\\\\").replace('.', "\\.");
                    let path = if top { name } else { format!("{path}.{name}") };
                    tree(member, &path, false, out);
                }
            }
            Value::String(text) => out.push((path.to_owned(), format!("{text:?}"))),
            other => out.push((path.to_owned(), other.to_string())),
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}|[\"\\\\\n\u{1}]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a.\\\\\"]{0,3}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_walk_agrees_with_a_tree(value in json()) {
            let mut expected = Vec::new();
            tree(&value, "", true, &mut expected);
            let written = value.to_string();
            prop_assert_eq!(scalars(written.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\",:\\\\u0-9a-f ]{0,64}") {
            scalars(&bytes);
            scalars(text.as_bytes());
        }
    }
}
