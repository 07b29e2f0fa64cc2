//! Reads documents: one JSON object a line.

use crate::Outcome;
use serde_json::Value;

/// A document as both engines take it.
pub struct Document {
    /// Its key.
    pub key: String,
    /// Title and text, what tantivy indexes.
    pub text: String,
    /// The same as a JSON string, what Strand indexes.
    pub value: String,
}

/// The documents of all files, in order.
pub fn read(files: &[String]) -> Outcome<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        let content = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        for line in content.lines() {
            let line: Value = serde_json::from_str(line)?;
            let part = |name: &str| line[name].as_str().unwrap_or("").to_owned();
            let text = format!("{} {}", part("title"), part("text")).trim().to_owned();
            let value = serde_json::to_string(&text)?;
            documents.push(Document { key: part("id"), text, value });
        }
    }
    Ok(documents)
}
