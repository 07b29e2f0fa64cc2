//! JSON made to be read: indented and coloured, token by token, so that every number and text keeps its bytes.
//!
//! Takes only text that is known to be JSON. Short arrays and objects stay on one line.

/// Colours of the tokens, as terminal codes; empty when there are none.
struct Colours {
    key: &'static str,
    text: &'static str,
    number: &'static str,
    word: &'static str,
    end: &'static str,
}

const COLOURED: Colours =
    Colours { key: "\x1b[34m", text: "\x1b[32m", number: "\x1b[36m", word: "\x1b[35m", end: "\x1b[0m" };
const PLAIN: Colours = Colours { key: "", text: "", number: "", word: "", end: "" };

/// Longest array or object that stays on one line, in bytes.
const ONE_LINE_BYTES: usize = 76;

/// Indents and colours a JSON text.
pub(super) fn pretty(json: &str, coloured: bool) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut writer =
        Writer { json, at: 0, colours: if coloured { &COLOURED } else { &PLAIN }, out: &mut out };
    writer.value(0);
    out
}

struct Writer<'a> {
    json: &'a str,
    at: usize,
    colours: &'static Colours,
    out: &'a mut String,
}

impl Writer<'_> {
    fn peek(&mut self) -> u8 {
        let rest = &self.json.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.json.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn value(&mut self, depth: usize) {
        let first = self.peek();
        match first {
            b'{' | b'[' => self.group(first, depth),
            b'"' => self.coloured(self.colours.text),
            b'-' | b'0'..=b'9' => self.coloured(self.colours.number),
            _ => self.coloured(self.colours.word),
        }
    }

    /// Writes one token that is neither an array nor an object.
    fn coloured(&mut self, colour: &str) {
        let start = self.at;
        self.at = token_end(self.json, start);
        *self.out += colour;
        *self.out += &self.json[start..self.at];
        if !colour.is_empty() {
            *self.out += self.colours.end;
        }
    }

    fn group(&mut self, open: u8, depth: usize) {
        let close = if open == b'{' { b'}' } else { b']' };
        let on_one_line = group_end(self.json, self.at) - self.at <= ONE_LINE_BYTES;
        self.out.push(char::from(open));
        self.at += 1;
        let mut first = true;
        loop {
            match self.peek() {
                0 => return,
                byte if byte == close => break,
                b',' => self.at += 1,
                _ => {
                    if !first {
                        self.out.push(',');
                    }
                    self.gap(on_one_line, !first, depth + 1);
                    first = false;
                    if open == b'{' {
                        self.coloured(self.colours.key);
                        self.peek();
                        self.at += 1;
                        *self.out += ": ";
                        self.peek();
                    }
                    self.value(depth + 1);
                }
            }
        }
        self.at += 1;
        if !first && !on_one_line {
            self.gap(false, false, depth);
        }
        self.out.push(char::from(close));
    }

    fn gap(&mut self, on_one_line: bool, blank: bool, depth: usize) {
        if on_one_line {
            *self.out += if blank { " " } else { "" };
        } else {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n("  ", depth));
        }
    }
}

/// Where a text, number or word ends that begins at `start`.
fn token_end(json: &str, start: usize) -> usize {
    let bytes = json.as_bytes();
    if bytes.get(start) != Some(&b'"') {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b",:]}".contains(byte);
        return bytes[start..].iter().position(ends).map_or(bytes.len(), |length| start + length);
    }
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Where the array or object ends that begins at `start`.
fn group_end(json: &str, start: usize) -> usize {
    let bytes = json.as_bytes();
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at = token_end(json, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_stay_on_a_line_and_numbers_keep_their_bytes() {
        assert_eq!(pretty("1.50", false), "1.50");
        assert_eq!(
            pretty(r#"{"b":1e400,"a":[ ],"c":{"d":null}}"#, false),
            r#"{"b": 1e400, "a": [], "c": {"d": null}}"#
        );
    }

    #[test]
    fn long_values_are_indented() {
        let long = format!(r#"{{"a":"{}","b":[1,2]}}"#, "x".repeat(80));
        let expected = format!("{{\n  \"a\": \"{}\",\n  \"b\": [1, 2]\n}}", "x".repeat(80));
        assert_eq!(pretty(&long, false), expected);
    }

    #[test]
    fn brackets_in_texts_are_texts() {
        let json = r#"{"a":"]}\"{[","b":2}"#;
        assert_eq!(pretty(json, false), r#"{"a": "]}\"{[", "b": 2}"#);
        assert!(pretty(json, true).contains("\x1b[32m\"]}\\\"{[\"\x1b[0m"));
    }

    #[test]
    fn what_is_pretty_is_the_same_json() {
        let json = serde_json::json!({"a": [1, {"b": "é\u{1F600}\n"}, []], "long": "y".repeat(100), "e": {}});
        let back: serde_json::Value = serde_json::from_str(&pretty(&json.to_string(), false)).unwrap();
        assert_eq!(back, json);
    }
}
