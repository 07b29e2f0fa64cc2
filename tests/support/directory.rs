//! Data directories of tests: temporary ones, copies, and what lies in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of one test's own, removed with the value; kept when the test fails.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    /// Makes one beside the built binaries, on the disk that holds them: a data directory needs a real file system.
    pub(crate) fn new(name: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("the folder for tests can be written");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::say(&format!("kept for a look: {}", self.0.display()));
        } else {
            // A directory left behind harms nothing.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Every file below a directory with its length, sorted by path.
pub(crate) fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("the directory can be read") {
            let path = entry.expect("the entry can be read").path();
            // A server at work renames and removes files meanwhile.
            let Ok(about) = fs::metadata(&path) else { continue };
            if about.is_dir() { open.push(path) } else { found.push((path, about.len())) }
        }
    }
    found.sort();
    found
}

/// A directory's files in memory, to be put back as often as needed.
#[derive(Debug)]
pub(crate) struct Picture(Vec<(PathBuf, Vec<u8>)>);

impl Picture {
    pub(crate) fn take(directory: &Path) -> Self {
        let read = |(path, _): (PathBuf, u64)| {
            let bytes = fs::read(&path).expect("the file can be read");
            (path.strip_prefix(directory).expect("it lies below").to_path_buf(), bytes)
        };
        Self(files(directory).into_iter().map(read).collect())
    }

    /// The files: path below the directory, and bytes.
    pub(crate) fn files(&self) -> &[(PathBuf, Vec<u8>)] {
        &self.0
    }

    /// Makes the directory hold these files and nothing else.
    pub(crate) fn restore(&self, directory: &Path) {
        for (path, _) in files(directory) {
            let known = path.strip_prefix(directory).expect("it lies below");
            if !self.0.iter().any(|(path, _)| path == known) {
                fs::remove_file(&path).expect("the file can be removed");
            }
        }
        for (path, bytes) in &self.0 {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("it can be made");
            // Most files are as they were, and reading is cheaper than writing.
            if fs::read(&path).is_ok_and(|now| now == *bytes) {
                continue;
            }
            fs::write(&path, bytes).expect("the file can be written");
        }
    }
}
