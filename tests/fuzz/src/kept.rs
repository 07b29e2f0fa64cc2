//! Inputs that failed once, as files by target. They are run by every test; none is ever removed.

use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Where they are.
pub const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kept");

/// The inputs of a target with their names, in the order of these.
pub fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(Path::new(DIRECTORY).join(target)) else { return Vec::new() };
    let mut found: Vec<(String, Vec<u8>)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_string_lossy().into_owned(), std::fs::read(&path).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// The file name of an input: a hash of it.
pub fn file_name(input: &[u8]) -> String {
    format!("{:016x}", xxh3_64(input))
}
