//! The shell: reading lines with history, completion, hints, and JSON over several lines.
//!
//! History is kept in the user's state directory; where that cannot be written the shell works without. Tokens are not part
//! of lines, so none reach the history, unless HELLO is typed with one: such lines are left out.

use super::session::Session;
use super::{Ended, words};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use strand_wire::commands::{COMMANDS, COMMON, FieldKind, find};

/// Lines of history that are kept.
const HISTORY_LINES: usize = 10_000;

/// Reads and runs lines until the user ends.
pub(super) fn run(session: &mut Session) -> Ended {
    if let Err(error) = session.connect() {
        session.printer.failure(
            &error.to_string(),
            "Start a server with `strand serve`, or name one with -a HOST:PORT.",
        );
        return Ended::Failed;
    }
    let mut editor = match editor(session.printer.is_coloured()) {
        Ok(editor) => editor,
        Err(error) => {
            session.printer.failure(&format!("cannot read from the terminal: {error}"), "");
            return Ended::Failed;
        }
    };
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        let _ = editor.load_history(path);
    }
    session.printer.line("Connected. `help` lists commands, Tab completes, Ctrl-D ends.");
    loop {
        let prompt = format!("{}> ", session.address());
        match editor.readline(&prompt) {
            Ok(line) => {
                if !line.trim().is_empty() && !line.to_ascii_lowercase().contains("token") {
                    // A history that cannot be kept is no reason to stop.
                    let _ = editor.add_history_entry(line.as_str());
                    if let Some(path) = &history {
                        let _ = editor.append_history(path);
                    }
                }
                session.lines(&statements(&line));
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => {
                session.printer.failure(&format!("cannot read from the terminal: {error}"), "");
                return Ended::Failed;
            }
        }
        if session.is_over() {
            break;
        }
    }
    Ended::Well
}

fn editor(coloured: bool) -> rustyline::Result<Editor<Assistant, FileHistory>> {
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Assistant { coloured }));
    Ok(editor)
}

/// `$XDG_STATE_HOME/strand/history`, or the place that stands for it.
fn history_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let folder = state.or_else(home)?.join("strand");
    fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// Completion, hints and the question whether a line is whole.
struct Assistant {
    coloured: bool,
}

impl Helper for Assistant {}

impl Highlighter for Assistant {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.coloured { Cow::Owned(format!("\x1b[1;36m{prompt}\x1b[0m")) } else { Cow::Borrowed(prompt) }
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        if self.coloured { Cow::Owned(format!("\x1b[2m{hint}\x1b[0m")) } else { Cow::Borrowed(hint) }
    }
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let whole = is_whole(context.input());
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// Whether every bracket and quote is closed. An empty line at the end gives up waiting for the rest.
fn is_whole(input: &str) -> bool {
    input.ends_with("\n\n") || words::split(input).is_ok()
}

/// The commands in what was entered: several lines may have been pasted at once, and one command may have several lines.
fn statements(input: &str) -> Vec<String> {
    let mut whole = Vec::new();
    let mut begun = String::new();
    for line in input.lines() {
        begun.push_str(line);
        if words::split(&begun).is_ok() {
            whole.push(std::mem::take(&mut begun));
        } else {
            begun.push('\n');
        }
    }
    // What is left open is told as what it is.
    whole.extend((!begun.is_empty()).then_some(begun));
    whole
}

impl Hinter for Assistant {
    type Hint = String;

    /// What the command still takes, when a command and a blank stand there.
    fn hint(&self, line: &str, position: usize, _context: &Context<'_>) -> Option<String> {
        if position < line.len() {
            return None;
        }
        let (name, rest) = line.trim_start().split_once(' ')?;
        let spec = find(name).filter(|_| rest.trim().is_empty())?;
        let usage = words::usage(spec);
        usage.split_once(' ').map(|(_, takes)| takes.to_owned())
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..position];
        let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let candidates = candidates(before[..start].trim(), &before[start..]);
        let pairs = candidates
            .into_iter()
            .map(|text| Pair { display: text.trim_end().to_owned(), replacement: text });
        Ok((start, pairs.collect()))
    }
}

/// What `begun`, the word at the cursor, may become after the words `before` it.
fn candidates(before: &str, begun: &str) -> Vec<String> {
    let begins = |text: &str| {
        text.len() >= begun.len()
            && text.is_char_boundary(begun.len())
            && text[..begun.len()].eq_ignore_ascii_case(begun)
    };
    let name = before.split_whitespace().next();
    let Some(name) = name.filter(|name| !name.eq_ignore_ascii_case("help")) else {
        let own = if before.is_empty() { &["help", "exit"][..] } else { &[] };
        let names = COMMANDS.iter().map(|spec| spec.name).chain(own.iter().copied());
        return names.filter(|name| begins(name)).map(|name| format!("{name} ")).collect();
    };
    let Some(spec) = find(name) else { return Vec::new() };
    let fields = || spec.fields.iter().chain(COMMON).filter(|field| !words::is_the_clients(spec, field));
    let mut found = Vec::new();
    for field in fields() {
        let assigned = format!("{}=", field.name);
        match field.kind {
            FieldKind::Choice(choices) if begun.starts_with(&assigned) => {
                found.extend(choices.iter().map(|choice| format!("{assigned}{choice} ")));
            }
            FieldKind::Flag => {
                found.extend([format!("--{} ", words::dashed(field.name)), format!("{assigned}true ")]);
            }
            _ => found.extend([format!("--{} ", words::dashed(field.name)), assigned]),
        }
    }
    found.retain(|text| begins(text) && !begun.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_completed_by_their_place() {
        assert_eq!(candidates("", "pe"), ["PERSIST "]);
        assert_eq!(candidates("help", "semantic"), ["SEMANTIC_SEARCH "]);
        assert_eq!(candidates("SEARCH fox", "--top"), ["--top-k "]);
        assert_eq!(candidates("SEARCH fox", "top"), ["top_k="]);
        assert_eq!(candidates("CREATE_INDEX f", "kind=t"), ["kind=text "]);
        assert!(candidates("NOTHING", "x").is_empty());
        assert!(candidates("GET", "é").is_empty());
    }

    #[test]
    fn open_brackets_and_quotes_ask_for_more() {
        assert!(is_whole("GET foo"));
        assert!(!is_whole("SET foo {\"a\":"));
        assert!(is_whole("SET foo {\"a\":\n1}"));
        assert!(!is_whole("SEARCH 'open"));
        assert!(is_whole("SEARCH 'open\n\n"));
        assert_eq!(statements("GET a\nSET b {\n1}\n"), ["GET a", "SET b {\n1}"]);
        assert_eq!(statements("SEARCH 'open\n\n"), ["SEARCH 'open\n\n"]);
    }
}
