//! The house rules, held by a test: who may depend on whom, where `unsafe` may stand, how long a file may be, and that the
//! documents say what the code does.

mod transcript;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use strand_wire::commands::COMMANDS;

/// Lines beyond which a file has to be named in [`LONG_FILES`].
const LINES_MAX: usize = 600;

/// Files that are longer, with the length they have. The list and its numbers may only shrink.
const LONG_FILES: &[(&str, usize)] = &[];

/// Files and folders in which `unsafe` may stand, each with a reason in its head.
const UNSAFE_ROOMS: &[&str] =
    &["src/sys.rs", "src/doorbell.rs", "src/front/", "src/disk/", "shards/src/index/vector/"];

/// Settings that only the checks of the configuration read: the word that opens the address. The list may only shrink.
const UNREAD_KNOBS: &[&str] = &["server.insecure"];

/// What the engine must not depend on: kernel, executors, sockets, chance.
const BANNED_IN_ENGINE: &[&str] = &[
    "glommio",
    "io-uring",
    "libc",
    "nix",
    "rustix",
    "tokio",
    "mio",
    "socket2",
    "rand",
    "getrandom",
    "rtrb",
    "stranddb",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file of the tree below `folder`, as paths from the root; built things, data and hidden folders are passed over.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("the tree can be read").path()) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let hidden = name.starts_with('.') && name != ".ci" && name != ".gitignore";
            if hidden || ["target", "data", "__pycache__", "node_modules"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() { open.push(path) } else { found.push(from_root(&path)) }
        }
    }
    found.sort();
    found
}

fn from_root(path: &Path) -> String {
    let relative = path.strip_prefix(root()).expect("the walk starts at the root");
    relative.to_str().expect("paths in the tree are UTF-8").to_owned()
}

fn rust_files() -> Vec<String> {
    let found: Vec<String> = files(".").into_iter().filter(|path| path.ends_with(".rs")).collect();
    assert!(found.len() > 20, "the walk finds the tree");
    found
}

/// Whether the whole file is a test or a benchmark.
fn is_test_file(path: &str) -> bool {
    let folders: Vec<&str> = path.split('/').collect();
    let name = folders.last().copied().unwrap_or_default();
    folders.iter().any(|part| ["tests", "benches", "sim", "fuzz", "examples"].contains(part))
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
        || name.ends_with("_test.rs")
}

/// The lines of code before the file's test module, with their numbers, comments left out.
fn lines_that_ship(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let code = numbered.take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The crates that a manifest names in any of its dependency tables, target tables included; test-only ones apart.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(manifest).parse().expect("a manifest is TOML");
    let of = |table: &toml::Table| -> Vec<String> {
        let tables =
            ["dependencies", "build-dependencies"].map(|kind| table.get(kind).and_then(|t| t.as_table()));
        tables.into_iter().flatten().flat_map(|table| table.keys().cloned()).collect()
    };
    let mut found: BTreeSet<String> = of(&manifest).into_iter().collect();
    let targets = manifest.get("target").and_then(|target| target.as_table());
    let targets =
        targets.into_iter().flat_map(|targets| targets.values()).filter_map(|target| target.as_table());
    found.extend(targets.flat_map(of));
    found
}

#[test]
fn the_engine_depends_on_nothing_that_performs() {
    let found = dependencies("shards/Cargo.toml");
    assert!(found.contains("strand-wire"), "the manifest is read");
    for banned in BANNED_IN_ENGINE {
        assert!(!found.contains(*banned), "shards depends on {banned}: the engine decides, src/ performs");
    }
}

#[test]
fn the_wire_depends_on_no_other_room() {
    let found = dependencies("shards/wire/Cargo.toml");
    for banned in BANNED_IN_ENGINE.iter().chain(&["shards", "strand-client", "raft", "rkyv"]) {
        assert!(!found.contains(*banned), "strand-wire depends on {banned}: clients would carry it too");
    }
    let client = dependencies("clients/rust/Cargo.toml");
    for banned in ["shards", "stranddb", "glommio", "io-uring"] {
        assert!(!client.contains(banned), "the client depends on {banned}");
    }
}

#[test]
fn every_file_opens_with_its_duty() {
    let silent: Vec<String> =
        rust_files().into_iter().filter(|path| !read(path).starts_with("//! ")).collect();
    assert!(silent.is_empty(), "these do not begin with `//!` and what they are for: {silent:?}");
}

#[test]
fn files_stay_short_and_the_list_of_long_ones_shrinks() {
    for path in rust_files() {
        let lines = read(&path).lines().count();
        let allowed = LONG_FILES.iter().find(|(long, _)| *long == path).map(|(_, lines)| *lines);
        match allowed {
            None => assert!(lines <= LINES_MAX, "{path} has {lines} lines: does it have one duty?"),
            Some(allowed) => {
                assert!(lines <= allowed, "{path} grew from {allowed} to {lines} lines: split it");
                assert!(
                    lines == allowed && lines > LINES_MAX,
                    "{path} shrank to {lines}: lower its number in LONG_FILES"
                );
            }
        }
    }
    for (path, _) in LONG_FILES {
        assert!(root().join(path).exists(), "{path} is gone: take it off LONG_FILES");
    }
}

#[test]
fn nothing_unwraps_outside_tests() {
    for path in rust_files().into_iter().filter(|path| !is_test_file(path)) {
        for (number, line) in lines_that_ship(&read(&path)) {
            assert!(
                !line.contains(".unwrap()"),
                "{path}:{number} unwraps: use `expect` with the invariant, or an error"
            );
        }
    }
}

#[test]
fn unsafe_stands_in_its_rooms_only() {
    let mut used = false;
    for path in rust_files().into_iter().filter(|path| !is_test_file(path)) {
        let text = read(&path);
        let room =
            UNSAFE_ROOMS.iter().any(|room| path == *room || (room.ends_with('/') && path.starts_with(room)));
        // A room's lint exception may stand in the file or in the room's `mod.rs`; elsewhere there is none at all.
        for (number, line) in lines_that_ship(&text) {
            let opens =
                line.contains("unsafe {") || line.contains("unsafe fn ") || line.contains("unsafe impl ");
            assert!(room || !opens, "{path}:{number} is unsafe: its rooms are {UNSAFE_ROOMS:?}");
            assert!(
                room || !line.contains("allow(unsafe_code"),
                "{path}:{number} allows what only {UNSAFE_ROOMS:?} may"
            );
            used |= opens;
        }
    }
    assert!(used, "the search finds src/sys.rs");
}

#[test]
fn time_and_chance_come_from_the_clock_only() {
    let sources = ["Instant::now", "SystemTime::now", "getrandom", "RandomState"];
    let allowed = ["src/clock.rs", "src/sys.rs"];
    // Subcommands are clients or tools of their own; the rule is the server's.
    let server =
        |path: &String| path.starts_with("src/") && !path.starts_with("src/cli/") && !is_test_file(path);
    for path in rust_files().into_iter().filter(server).filter(|path| !allowed.contains(&path.as_str())) {
        for (number, line) in lines_that_ship(&read(&path)) {
            let found = sources.iter().find(|source| line.contains(**source));
            assert!(found.is_none(), "{path}:{number} uses {found:?}: ask src/clock.rs");
        }
    }
}

/// The code without comments and text in quotes, and with no white space but between two names: what is left names fields as
/// `section.name`.
fn bare_code(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n").replace("'\"'", "").replace("\\\"", "");
    let mut bare = String::new();
    for word in code.split('"').step_by(2).flat_map(str::split_whitespace) {
        if bare.ends_with(is_name) && word.starts_with(is_name) {
            bare.push(' ');
        }
        bare.push_str(word);
    }
    bare
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn every_knob_is_read_by_some_room() {
    let knobs: toml::Table = read("tuning/default.toml").parse().expect("the default file is TOML");
    // The rooms that make and check the settings name them all; that is no use of them.
    let makers = ["knobs", "layers", "reference", "relations"].map(|room| format!("src/tuning/{room}.rs"));
    let rooms = rust_files().into_iter().filter(|path| path.starts_with("src/") && !is_test_file(path));
    let code: String =
        rooms.filter(|path| !makers.contains(path)).map(|path| bare_code(&read(&path))).collect();
    let read_somewhere = |key: &str| {
        code.match_indices(key)
            .any(|(at, _)| !code[..at].ends_with(is_name) && !code[at + key.len()..].starts_with(is_name))
    };
    let sections = knobs.iter().filter_map(|(section, knobs)| Some((section, knobs.as_table()?)));
    let keys =
        sections.flat_map(|(section, knobs)| knobs.keys().map(move |name| format!("{section}.{name}")));
    let unread: BTreeSet<String> = keys.filter(|key| !read_somewhere(key)).collect();
    let known: BTreeSet<String> = UNREAD_KNOBS.iter().map(|key| (*key).to_owned()).collect();
    let idle: Vec<_> = unread.difference(&known).collect();
    assert!(idle.is_empty(), "these settings change nothing, take them out or use them: {idle:?}");
    let used: Vec<_> = known.difference(&unread).collect();
    assert!(used.is_empty(), "these settings are read now, take them off UNREAD_KNOBS: {used:?}");
}

/// The commands that the tables of docs/PROTOCOL.md name: rows whose first cell is one or more names in capitals.
fn documented_commands(text: &str) -> Vec<String> {
    let is_name = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let mut found = Vec::new();
    let mut in_commands = false;
    for line in text.lines() {
        if !line.starts_with('|') {
            in_commands = false;
            continue;
        }
        let first = line.trim_matches('|').split('|').next().unwrap_or_default().trim();
        in_commands |= first == "command";
        if in_commands {
            let names = first.split('/').map(|name| name.trim().trim_matches('`'));
            found.extend(names.filter(|name| is_name(name)).map(str::to_owned));
        }
    }
    found
}

#[test]
fn the_protocol_page_lists_the_commands_of_the_code() {
    let documented = documented_commands(&read("docs/PROTOCOL.md"));
    let unique: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    assert_eq!(unique.len(), documented.len(), "a command is documented twice");
    let known: BTreeSet<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let missing: Vec<_> = known.difference(&unique).collect();
    let unknown: Vec<_> = unique.difference(&known).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not in the page: {missing:?}; not in the code: {unknown:?}"
    );
}

#[test]
fn the_protocol_page_names_every_field_and_every_code() {
    let text = read("docs/PROTOCOL.md");
    for command in COMMANDS {
        for field in command.fields {
            assert!(
                text.contains(field.name),
                "{} takes {}, which the page never names",
                command.name,
                field.name
            );
        }
    }
    for code in strand_wire::code::Code::ALL {
        assert!(text.contains(&format!("`{code}`")), "the page does not explain {code}");
    }
}

#[test]
fn the_protocol_page_shows_every_command() {
    let blocks = transcript::blocks(&read("docs/PROTOCOL.md"));
    let mut shown = BTreeSet::new();
    for exchange in blocks.iter().flatten() {
        let request: serde_json::Value = serde_json::from_str(&exchange.request)
            .unwrap_or_else(|error| panic!("line {}: {error}", exchange.line));
        shown.insert(request["command"].as_str().unwrap_or_default().to_ascii_uppercase());
        let status = &exchange.reply["status"];
        assert!(status == "success" || status == "error", "line {}: no reply has this status", exchange.line);
    }
    let missing: Vec<_> =
        COMMANDS.iter().map(|command| command.name).filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "without an example: {missing:?}");
}

#[test]
fn examples_are_compared_strictly_enough() {
    let check = |shown: &str, reply: &str, same: bool| {
        let read = |text: &str| serde_json::from_str(text).expect("the test's own JSON");
        assert_eq!(transcript::matches(&read(shown), &read(reply)), same, "{shown} {reply}");
    };
    check(r#"{"a":1}"#, r#"{"b":2,"a":1}"#, true);
    check(r#"{"a":"..."}"#, r#"{"a":[1,2]}"#, true);
    check(r#"{"a":"..."}"#, r#"{"b":1}"#, false);
    check(r#"[{"a":1}]"#, r#"[{"a":1},{"a":1}]"#, false);
    check(r#"{"a":1}"#, r#"{"a":"1"}"#, false);
}

#[test]
fn every_profile_is_in_the_tuning_readme() {
    let readme = read("tuning/README.md");
    for path in files("tuning") {
        let name = path.strip_prefix("tuning/").unwrap_or(&path);
        assert!(
            name == "README.md" || readme.contains(&format!("`{name}`")),
            "tuning/README.md does not mention {name}"
        );
    }
}

#[test]
fn ci_runs_the_command_of_the_readme() {
    let readme = read("README.md");
    assert!(readme.contains("make test") && readme.contains("make run"), "the README has the two commands");
    let script = read(".ci/run");
    assert!(script.lines().any(|line| line == "make test"), "CI runs what the README says");
    assert!(script.contains("set -euo pipefail"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files(".").into_iter().filter(|path| path.ends_with(".md")) {
        let folder = root().join(&path).parent().map(PathBuf::from).unwrap_or_default();
        for target in
            read(&path).split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned))
        {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.contains(char::is_whitespace);
            assert!(elsewhere || folder.join(file).exists(), "{path} links to {target}, which is not there");
        }
    }
}

#[test]
fn nothing_names_a_place_on_somebodys_machine() {
    // Put together here, so that this file does not contain them.
    let places = [["/ho", "me/"], ["/ro", "ot/"], ["/wo", "rk/"], ["/Use", "rs/"], ["C:", "\\"]]
        .map(|parts| parts.concat());
    for path in files(".") {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (index, line) in text.lines().enumerate() {
            let found = places.iter().find(|place| names_a_place(line, place));
            assert!(found.is_none(), "{path}:{} names {found:?}: {line}", index + 1);
        }
    }
}

/// Whether the place stands at the beginning of a path, not in the middle of a longer one such as `https://a/home/`.
fn names_a_place(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "/._-".contains(c)))
    })
}
