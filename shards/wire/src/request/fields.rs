//! One command's fields as raw tokens, and the checks that turn them into typed values.
//!
//! Types and ranges come from the command table; asking for a field that the table does not list, or as another type, is
//! a defect and panics (every command is exercised in tests, so it cannot depend on input).

use super::refusal::Problem;
use crate::commands::{CommandSpec, FIELDS_MAX, Field, FieldKind};
use crate::json::{self, Scanner};
use crate::limits::Limits;
use std::borrow::Cow;

/// The fields that one request gives.
pub(super) struct Fields<'a, 'l> {
    pub(super) spec: &'static CommandSpec,
    /// The tokens, at the positions of the table.
    pub(super) values: [Option<&'a [u8]>; FIELDS_MAX],
    pub(super) limits: &'l Limits,
    pub(super) line: &'a [u8],
}

/// Where a token, which must be a part of the line, begins in it.
pub(super) fn at_of(line: &[u8], token: &[u8]) -> usize {
    token.as_ptr().addr().saturating_sub(line.as_ptr().addr())
}

/// A client's text for a message: quoted, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 64;
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((cut, _)) => format!("\"{}...\"", &text[..cut]),
        None => format!("\"{text}\""),
    }
}

/// The text of a string token; `what` names it in a refusal.
pub(super) fn text_of<'a>(token: &'a [u8], what: &str) -> Result<Cow<'a, str>, Problem> {
    let Ok(text) = Scanner::new(token).string() else {
        return Err(Problem::bad(format!("{what} must be a string, not {}", json::kind_of(token))));
    };
    text.decode()
        .map_err(|_| Problem::bad(format!("{what} must not hold a lone surrogate (half of a \\u pair)")))
}

/// As [`text_of`], for a key.
pub(super) fn key_of<'a>(token: &'a [u8], what: &str, limits: &Limits) -> Result<Cow<'a, str>, Problem> {
    let key = text_of(token, what)?;
    check_key(&key, what, limits)?;
    Ok(key)
}

/// A key has 1 to `key_bytes_max` bytes.
pub(super) fn check_key(key: &str, what: &str, limits: &Limits) -> Result<(), Problem> {
    if key.is_empty() {
        return Err(Problem::bad(format!("{what} must not be empty")));
    }
    check_bytes(key, what, limits.key_bytes_max)
}

/// A value has at most `value_bytes_max` bytes.
pub(super) fn check_value(token: &[u8], what: &str, limits: &Limits) -> Result<(), Problem> {
    if token.len() > limits.value_bytes_max {
        return Err(Problem::too_large(what, limits.value_bytes_max, "bytes"));
    }
    Ok(())
}

pub(super) fn check_bytes(text: &str, what: &str, bytes_max: usize) -> Result<(), Problem> {
    if text.len() > bytes_max {
        return Err(Problem::too_large(what, bytes_max, "bytes"));
    }
    Ok(())
}

pub(super) fn name_of(field: &str) -> String {
    format!("field \"{field}\"")
}

impl<'a> Fields<'a, '_> {
    /// The token of a field and its line in the table.
    pub(super) fn raw(&self, name: &str) -> (Option<&'a [u8]>, &'static Field) {
        let (position, field) = self.spec.field(name).expect("the parser asks for fields of the table");
        (self.values[position], field)
    }

    /// The token of a field that the table requires.
    pub(super) fn needed(&self, name: &str) -> &'a [u8] {
        self.raw(name).0.expect("required fields are checked before commands are read")
    }

    pub(super) fn key(&self) -> Result<Cow<'a, str>, Problem> {
        key_of(self.needed("key"), "field \"key\"", self.limits)
    }

    /// A text within the table's bound. Text that names something has at least one byte.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Problem> {
        let (Some(token), field) = self.raw(name) else { return Ok(None) };
        let (bytes_min, bytes_max) = match field.kind {
            FieldKind::Text(bytes_max) => (1, bytes_max),
            FieldKind::Prefix => (0, self.limits.key_bytes_max),
            FieldKind::Query => (0, self.limits.query_bytes_max),
            FieldKind::Cursor => (0, crate::commands::CURSOR_BYTES_MAX),
            _ => unreachable!("field {name} is no text in the table"),
        };
        if field.kind == FieldKind::Cursor && token == b"null" {
            return Ok(None);
        }
        let text = text_of(token, &name_of(name))?;
        if text.len() < bytes_min {
            return Err(Problem::bad(format!("field \"{name}\" must not be empty")));
        }
        check_bytes(&text, &name_of(name), bytes_max)?;
        Ok(Some(text))
    }

    pub(super) fn needed_text(&self, name: &str) -> Result<Cow<'a, str>, Problem> {
        let text = self.text(name)?;
        Ok(text.expect("required fields are checked before commands are read"))
    }

    /// A flag; false when absent.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.optional_flag(name)?.unwrap_or(false))
    }

    pub(super) fn optional_flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.raw(name).0 {
            None => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(token) => Err(ill_typed(name, "true or false", token)),
        }
    }

    /// An integer of the table's range whose least is 0 or more.
    pub(super) fn unsigned(&self, name: &str) -> Result<Option<u64>, Problem> {
        let (Some(token), field) = self.raw(name) else { return Ok(None) };
        let FieldKind::Integer(min, max) = field.kind else {
            unreachable!("field {name} is no integer in the table")
        };
        let min = u64::try_from(min).expect("the table's range is not negative");
        let given = json::unsigned(token).filter(|number| (min..=max).contains(number));
        given.map(Some).ok_or_else(|| ill_typed(name, &format!("an integer from {min} to {max}"), token))
    }

    /// An integer that must fit `max` as well.
    pub(super) fn unsigned_up_to(&self, name: &str, max: u64) -> Result<Option<u64>, Problem> {
        match self.unsigned(name)? {
            Some(number) if number > max => {
                let message = format!("field \"{name}\" may be at most {max}");
                Err(Problem { code: crate::code::Code::TooLarge, message, limit: Some(max) })
            }
            number => Ok(number),
        }
    }

    /// An integer of 64 bits with sign.
    pub(super) fn signed(&self, name: &str) -> Result<Option<i64>, Problem> {
        let Some(token) = self.raw(name).0 else { return Ok(None) };
        let expected = || format!("an integer from {} to {}", i64::MIN, i64::MAX);
        json::signed(token).map(Some).ok_or_else(|| ill_typed(name, &expected(), token))
    }

    /// One of the table's texts, in the same order as `values`.
    pub(super) fn choice<T: Copy>(&self, name: &str, values: &[T]) -> Result<Option<T>, Problem> {
        let (Some(token), field) = self.raw(name) else { return Ok(None) };
        let FieldKind::Choice(names) = field.kind else {
            unreachable!("field {name} is no choice in the table")
        };
        assert_eq!(names.len(), values.len(), "every choice of the table has its value");
        let text = Scanner::new(token).string().ok().and_then(|text| text.decode().ok());
        let chosen = text.and_then(|text| names.iter().position(|name| *name == text));
        chosen.map(|position| Some(values[position])).ok_or_else(|| {
            let listed: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            Problem::bad(format!("field \"{name}\" must be one of {}", listed.join(", ")))
        })
    }
}

/// A refusal that says what the field must be and what it is.
pub(super) fn ill_typed(name: &str, expected: &str, token: &[u8]) -> Problem {
    let given = match token.len() {
        0..=24 => String::from_utf8_lossy(token).into_owned(),
        _ => json::kind_of(token).to_owned(),
    };
    Problem::bad(format!("field \"{name}\" must be {expected}, not {given}"))
}
