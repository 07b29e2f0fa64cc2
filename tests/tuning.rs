//! The configuration as a user meets it: the files in `tuning/`, the flags, the environment and the exit codes of the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the binary without any setting from this process's environment.
fn strand(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let ours =
        std::env::vars_os().map(|(name, _)| name).filter(|n| n.to_string_lossy().starts_with("STRAND_"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
    ours.for_each(|name| {
        command.env_remove(name);
    });
    command.args(arguments).envs(environment.iter().copied()).current_dir(root());
    command.output().expect("the binary was built for this test")
}

fn stdout(arguments: &[&str]) -> String {
    let output = strand(arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// Checks the exit code and that stderr mentions each of the parts.
fn refused(arguments: &[&str], environment: &[(&str, &str)], code: i32, parts: &[&str]) {
    let output = strand(arguments, environment);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    for part in parts {
        assert!(told.contains(part), "{arguments:?}: {part:?} is missing in: {told}");
    }
}

fn profiles() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tuning")).expect("the folder is part of the tree");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn the_default_file_lists_every_knob_with_unit_range_and_reason() {
    let file = fs::read_to_string(root().join("tuning/default.toml")).expect("tuning/default.toml exists");
    let written = stdout(&["config", "--documented"]);
    assert!(file == written, "write it anew: strand config --documented > tuning/default.toml");
    let settings = file.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
    let documented = file.matches("# Unit: ").count();
    assert_eq!(settings, documented, "every setting has its unit and range");
    assert!(settings > 50, "the file is complete");
}

#[test]
fn the_readme_carries_the_list_of_knobs() {
    let readme = fs::read_to_string(root().join("tuning/README.md")).expect("tuning/README.md exists");
    let list = stdout(&["config", "--markdown"]);
    assert!(readme.ends_with(&list), "end it with the output of: strand config --markdown");
}

#[test]
fn every_profile_loads_and_says_what_it_changes() {
    let defaults = stdout(&["config"]);
    let profiles = profiles();
    assert!(profiles.len() >= 5, "{profiles:?}");
    for path in profiles {
        let path = path.to_str().expect("paths in the tree are UTF-8");
        let loaded = stdout(&["config", "--config", path]);
        let is_default = path.ends_with("default.toml");
        assert_eq!(loaded == defaults, is_default, "{path} changes something, unless it is the defaults");
    }
}

#[test]
fn profiles_for_production_refuse_faults() {
    for name in ["production", "throughput", "cache"] {
        let loaded = stdout(&["config", "--config", &format!("tuning/{name}.toml")]);
        assert!(loaded.contains("faults = false"), "{name}");
    }
}

#[test]
fn origins_are_shown_and_flags_win() {
    let environment = [("STRAND_SERVER__PORT", "7001"), ("STRAND_WAL__SYNC", "off")];
    let output =
        strand(&["config", "--origin", "--port", "7002", "--config", "tuning/dev-2core.toml"], &environment);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    for (name, parts) in [
        ("port =", ["7002", "# flag --port"]),
        ("sync =", ["\"off\"", "# environment STRAND_WAL__SYNC"]),
        ("segment_mib =", ["36", "# file tuning/dev-2core.toml"]),
        ("host =", ["127.0.0.1", "# default"]),
    ] {
        assert!(parts.iter().all(|part| line(name).contains(part)), "{name}: {}", line(name));
    }
}

#[test]
fn mistakes_in_the_configuration_end_with_78() {
    refused(&["config", "--port", "0"], &[], 78, &["server.port = 0", "1 to 65535", "flag --port"]);
    refused(&["config", "--set", "wal.snc=off"], &[], 78, &["did you mean wal.sync?"]);
    refused(&["config", "--set", "wal.sync"], &[], 78, &["--set section.key=value"]);
    refused(&["config"], &[("STRAND_WAL__SINC", "off")], 78, &["STRAND_WAL__SINC", "did you mean wal.sync?"]);
    refused(&["config", "--config", "no/such.toml"], &[], 78, &["no/such.toml"]);
    refused(&["serve", "--host", "0.0.0.0"], &[], 78, &["--insecure", "127.0.0.1"]);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    refused(&["serve", "--prot", "1"], &[], 2, &["--port"]);
    refused(&["frobnicate"], &[], 2, &["frobnicate"]);
    refused(&[], &[], 2, &["Usage"]);
    assert!(stdout(&["--help"]).contains("Exit codes"));
    assert!(stdout(&["serve", "--help"]).contains("--data-dir"));
    assert!(stdout(&["version"]).starts_with("strand "));
}

#[test]
fn peers_that_cannot_be_meant_are_refused_by_name() {
    let serve = |peers| ["serve", "--id", "node1", "--peers", peers];
    refused(&serve("127.0.0.1:8001,node1@[::1]:8002:9002"), &[], 78, &["this node itself"]);
    refused(&serve("[::1"), &[], 78, &["[ID@]HOST:PORT[:CLUSTER_PORT]"]);
    refused(&["serve", "--peers", "127.0.0.1:8001"], &[], 78, &["--id"]);
    refused(&["serve", "--id", "node1", "--peers", "a:1", "--wal-sync", "off"], &[], 78, &["\"always\""]);
}

#[test]
fn the_doctor_answers_in_both_forms() {
    let output = strand(&["doctor", "--json", "--shards", "1"], &[]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let names: Vec<&str> =
        checks.as_array().into_iter().flatten().filter_map(|check| check["name"].as_str()).collect();
    for name in ["kernel", "io_uring", "locked memory", "open files", "data directory", "free space"] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    let failed = checks.as_array().is_some_and(|list| list.iter().any(|check| check["verdict"] == "failure"));
    assert_eq!(output.status.code(), Some(if failed { 78 } else { 0 }));
    let table = strand(&["doctor", "--shards", "1"], &[]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("io_uring"));
}

#[test]
fn a_suggested_profile_can_be_used() {
    for purpose in ["production", "cache", "development"] {
        let path = std::env::temp_dir().join(format!("strand-tune-{purpose}-{}.toml", std::process::id()));
        fs::write(&path, stdout(&["tune", "--use", purpose])).expect("the temporary folder can be written");
        stdout(&["config", "--config", path.to_str().expect("the path is UTF-8")]);
        fs::remove_file(&path).expect("the file is there");
    }
}
