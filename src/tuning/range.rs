//! What a knob may hold: the allowed values, how text from a flag or the environment becomes one, and how it is checked.
//!
//! Knows nothing of single knobs and nothing of where a value came from. Never reads the environment.

use super::kinds::WalSync;
use std::fmt;
use toml::Value;

/// The values that one knob accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// A whole number from `min` to `max`, both allowed.
    Integer {
        /// The smallest allowed value.
        min: u64,
        /// The largest allowed value.
        max: u64,
    },
    /// As [`Range::Integer`], and a power of two: the size of a ring.
    PowerOfTwo {
        /// The smallest allowed value.
        min: u64,
        /// The largest allowed value.
        max: u64,
    },
    /// `true` or `false`.
    Switch,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// Text of at most this many bytes.
    Text(usize),
    /// A list of texts, each of at most 512 bytes, at most this many.
    Texts(usize),
    /// A list of core numbers, each below [`CORES_MAX`].
    Cores,
    /// `"all"` or a list of core numbers.
    CoresOrAll,
    /// `"always"`, `"interval:MS"` or `"off"`.
    Sync,
}

/// Core numbers are below this; the size of the kernel's default CPU set.
pub const CORES_MAX: u64 = 1024;

/// The longest text in a [`Range::Texts`], in bytes.
const LISTED_TEXT_BYTES_MAX: usize = 512;

impl Range {
    /// Reads text from a flag or the environment as a value of this range; the range itself is checked by [`Range::check`].
    ///
    /// Lists may be written `0,1,2` (core lists also `0-3,6`) or as a TOML array. What does not parse stays text, so that the
    /// check reports it as it was given.
    pub fn value_of_text(self, text: &str) -> Value {
        let text = text.trim();
        let parsed = match self {
            Range::Integer { .. } | Range::PowerOfTwo { .. } => {
                text.replace('_', "").parse().ok().map(Value::Integer)
            }
            Range::Switch => switch_of_text(text).map(Value::Boolean),
            Range::Word(_) | Range::Text(_) | Range::Sync => None,
            Range::CoresOrAll if text == "all" => None,
            Range::Cores | Range::CoresOrAll => array_of_text(text).or_else(|| cores_of_text(text)),
            Range::Texts(_) => array_of_text(text).or_else(|| Some(texts_of_text(text))),
        };
        parsed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    /// Whether the value belongs to this range.
    pub fn check(self, value: &Value) -> bool {
        match self {
            Range::Integer { min, max } => whole_number(value).is_some_and(|n| (min..=max).contains(&n)),
            Range::PowerOfTwo { min, max } => {
                whole_number(value).is_some_and(|n| (min..=max).contains(&n) && n.is_power_of_two())
            }
            Range::Switch => value.is_bool(),
            Range::Word(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Range::Text(bytes_max) => value.as_str().is_some_and(|text| plain_text(text, bytes_max)),
            Range::Texts(count_max) => value.as_array().is_some_and(|list| {
                list.len() <= count_max
                    && list.iter().all(|v| v.as_str().is_some_and(|t| plain_text(t, LISTED_TEXT_BYTES_MAX)))
            }),
            Range::Cores => core_list(value),
            Range::CoresOrAll => {
                value.as_str() == Some("all")
                    || value.as_array().is_some_and(|l| !l.is_empty() && core_list(value))
            }
            Range::Sync => value.as_str().is_some_and(|text| text.parse::<WalSync>().is_ok()),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Integer { min, max } => write!(f, "{min} to {max}"),
            Range::PowerOfTwo { min, max } => write!(f, "a power of two from {min} to {max}"),
            Range::Switch => f.write_str("true or false"),
            Range::Word(words) => {
                for (position, word) in words.iter().enumerate() {
                    let before = if position == 0 { "" } else { ", " };
                    write!(f, "{before}\"{word}\"")?;
                }
                Ok(())
            }
            Range::Text(bytes_max) => write!(f, "text of at most {bytes_max} bytes"),
            Range::Texts(count_max) => write!(f, "a list of at most {count_max} texts"),
            Range::Cores => write!(f, "a list of different core numbers below {CORES_MAX}"),
            Range::CoresOrAll => write!(f, "\"all\", or a list of different core numbers below {CORES_MAX}"),
            Range::Sync => {
                write!(f, "\"always\", \"interval:MS\" (MS from 1 to {}), \"off\"", WalSync::INTERVAL_MS_MAX)
            }
        }
    }
}

fn whole_number(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|n| u64::try_from(n).ok())
}

fn plain_text(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.contains(|c: char| c.is_control())
}

fn core_list(value: &Value) -> bool {
    let Some(list) = value.as_array() else { return false };
    let mut seen = Vec::with_capacity(list.len());
    list.iter().all(|entry| match whole_number(entry) {
        Some(core) if core < CORES_MAX && !seen.contains(&core) => {
            seen.push(core);
            true
        }
        _ => false,
    })
}

fn switch_of_text(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn array_of_text(text: &str) -> Option<Value> {
    if !text.starts_with('[') {
        return None;
    }
    let document: toml::Table = format!("list = {text}").parse().ok()?;
    document.get("list").cloned()
}

/// Reads `0-3,6` as the kernel writes CPU lists.
fn cores_of_text(text: &str) -> Option<Value> {
    let mut cores = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CORES_MAX {
            return None;
        }
        cores.extend((first..=last).map(|core| Value::Integer(core as i64)));
    }
    Some(Value::Array(cores))
}

fn texts_of_text(text: &str) -> Value {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: Range, text: &str, allowed: bool) {
        assert_eq!(range.check(&range.value_of_text(text)), allowed, "{range:?} {text}");
    }

    #[test]
    fn numbers_keep_to_their_bounds() {
        let range = Range::Integer { min: 1, max: 65_535 };
        for (text, allowed) in [("1", true), ("65_535", true), ("0", false), ("65536", false), ("-1", false)]
        {
            check(range, text, allowed);
        }
        for text in ["", "8000x", "1.5", "true", "9223372036854775808"] {
            check(range, text, false);
        }
        check(Range::PowerOfTwo { min: 16, max: 64 }, "32", true);
        check(Range::PowerOfTwo { min: 16, max: 64 }, "48", false);
    }

    #[test]
    fn lists_are_read_in_both_notations() {
        assert_eq!(Range::Cores.value_of_text("0-2,5"), Range::Cores.value_of_text("[0, 1, 2, 5]"));
        check(Range::Cores, "", true);
        check(Range::CoresOrAll, "", false);
        check(Range::CoresOrAll, "all", true);
        check(Range::CoresOrAll, "3-1", false);
        check(Range::Cores, "all", false);
        check(Range::Cores, "1,1", false);
        check(Range::Cores, "1024", false);
        check(Range::Texts(2), "a:1,b:2", true);
        check(Range::Texts(2), "a:1,b:2,c:3", false);
    }

    #[test]
    fn words_switches_and_sync() {
        check(Range::Switch, "on", true);
        check(Range::Switch, "maybe", false);
        check(Range::Word(&["text", "json"]), "json", true);
        check(Range::Word(&["text", "json"]), "JSON", false);
        check(Range::Sync, "interval:100", true);
        check(Range::Sync, "interval:0", false);
        check(Range::Text(4), "abcde", false);
        check(Range::Text(4), "a\nb", false);
    }
}
