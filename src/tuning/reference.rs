//! Writes the configuration for people: effective values, the commented default file, the list of knobs in Markdown.
//!
//! All three come from the table of knobs, and a test compares them with the files in `tuning/`.

use super::knobs::{KNOBS, Knob, SECTIONS, Section, Tuning};
use super::layers::Origin;
use std::collections::BTreeMap;
use std::fmt::Write;
use toml::Value;

/// Comment lines end at this column, the `# ` included.
const COMMENT_COLUMNS: usize = 100;

/// What stands above the commented file.
const HEAD: &str = "Every setting with its value. What is left out of a file keeps its default. Written by `strand config \
    --documented`; a test compares. Precedence: flags, then STRAND_SECTION__KEY, then the file, then defaults; `strand config \
    --origin` shows which.";

/// The values as TOML, one section after another; with `origins`, each line ends with where its value came from.
pub fn effective(tuning: &Tuning, origins: Option<&BTreeMap<&'static str, Origin>>) -> String {
    let document = document(tuning);
    let mut out = String::new();
    for section in SECTIONS {
        let before = if out.is_empty() { "" } else { "\n" };
        line_of(&mut out, format_args!("{before}[{}]", section.name));
        for knob in knobs_of(section) {
            let line = format!("{} = {}", knob.name, value(&document, knob));
            match origins.and_then(|origins| origins.get(knob.key)) {
                Some(origin) => line_of(&mut out, format_args!("{line:<40} # {origin}")),
                None => line_of(&mut out, format_args!("{line}")),
            }
        }
    }
    out
}

/// The values as TOML with a comment on every knob: reason, unit, range. For the defaults this is `tuning/default.toml`.
pub fn documented(tuning: &Tuning) -> String {
    let document = document(tuning);
    let mut out = String::new();
    comment(&mut out, HEAD);
    for section in SECTIONS {
        out.push('\n');
        comment(&mut out, section.about);
        line_of(&mut out, format_args!("[{}]", section.name));
        for knob in knobs_of(section) {
            out.push('\n');
            comment(&mut out, knob.why);
            comment(&mut out, &format!("Unit: {}. Range: {}.", knob.unit, knob.range));
            line_of(&mut out, format_args!("{} = {}", knob.name, value(&document, knob)));
        }
    }
    out
}

/// The knobs as a Markdown table for each section, with the defaults: the list in `tuning/README.md`.
pub fn markdown() -> String {
    let document = document(&Tuning::default());
    let mut out = String::new();
    for section in SECTIONS {
        let before = if out.is_empty() { "" } else { "\n" };
        line_of(&mut out, format_args!("{before}### `[{}]`\n\n{}\n", section.name, one_line(section.about)));
        out.push_str("| knob | default | unit | range | why |\n|---|---|---|---|---|\n");
        for knob in knobs_of(section) {
            let default = value(&document, knob);
            let range = knob.range.to_string().replace('|', "\\|");
            let why = one_line(knob.why).replace('|', "\\|");
            line_of(
                &mut out,
                format_args!("| `{}` | `{default}` | {} | {range} | {why} |", knob.name, knob.unit),
            );
        }
    }
    out
}

fn document(tuning: &Tuning) -> Value {
    Value::try_from(tuning).expect("a tuning is plain data and serialises")
}

fn knobs_of(section: &'static Section) -> impl Iterator<Item = &'static Knob> {
    KNOBS.iter().filter(|knob| knob.section == section.name)
}

fn value<'a>(document: &'a Value, knob: &Knob) -> &'a Value {
    let value = document.get(knob.section).and_then(|section| section.get(knob.name));
    value.expect("the table of knobs made the struct, so it has the field")
}

fn line_of(out: &mut String, line: std::fmt::Arguments<'_>) {
    out.write_fmt(line).expect("writing to a String cannot fail");
    out.push('\n');
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds the text as comment lines, wrapped.
fn comment(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column > 0 && column + 1 + word.len() > COMMENT_COLUMNS {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push('#');
            column = 1;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::layers::{Sources, load};
    use super::*;

    fn read_back(text: String) -> Tuning {
        load(&Sources { file: Some(("written".to_owned(), text)), ..Sources::default() }).unwrap().tuning
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut tuning = Tuning::default();
        tuning.server.id = "a-node".to_owned();
        tuning.cores.allowed = super::super::CoreSet::Listed(vec![0, 1]);
        tuning.wal.sync = super::super::WalSync::Interval { ms: 20 };
        let origins = load(&Sources::default()).unwrap().origins;
        assert_eq!(read_back(effective(&tuning, None)), tuning);
        assert_eq!(read_back(effective(&tuning, Some(&origins))), tuning);
        assert_eq!(read_back(documented(&tuning)), tuning);
    }

    #[test]
    fn comments_are_wrapped_and_complete() {
        let text = documented(&Tuning::default());
        assert!(text.lines().filter(|line| line.starts_with('#')).all(|line| line.len() <= COMMENT_COLUMNS));
        let joined = one_line(&text.replace("\n#", " "));
        for knob in KNOBS {
            assert!(joined.contains(&one_line(knob.why)), "{} lost its reason", knob.key);
            assert!(markdown().contains(&format!("| `{}` |", knob.name)), "{} is not in the list", knob.key);
        }
    }
}
