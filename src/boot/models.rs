//! Reads the operator's embedding model, once for all shards. A file that is none stops the server before it opens its data.

use crate::fatal::Fatal;
use crate::tuning::Tuning;
use shards::index::embed::Model;
use shards::index::set::IndexSettings;
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest file of a model.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// Ending of the file of a model in the format of the built-in one.
const SEMB: &str = "semb";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";

/// What the configuration says of indexes, its model read.
pub(super) fn load(tuning: &Tuning) -> Result<IndexSettings, Fatal> {
    let search = &tuning.search;
    let hnsw_from = search.hnsw_from as usize;
    if search.model_path.is_empty() {
        return Ok(IndexSettings { hnsw_from, model: None });
    }
    let path = Path::new(&search.model_path);
    let model = read(path).map_err(|text| {
        let path = path.display();
        Fatal::Configuration(format!("search.model_path = \"{path}\" is no model that can be used: {text}."))
    })?;
    tracing::info!(path = %path.display(), tokens = model.tokens(), "embedding model read");
    // One for the process, and needed as long as it runs.
    Ok(IndexSettings { hnsw_from, model: Some(Box::leak(Box::new(model))) })
}

fn read(path: &Path) -> Result<Model, String> {
    let told = |error: shards::index::embed::ModelError| error.to_string();
    if path.extension().is_some_and(|ending| ending == SEMB) {
        return Model::from_semb(Cow::Owned(bytes_of(path)?)).map_err(told);
    }
    let folder = match path.is_dir() {
        true => path,
        false if path.extension().is_some_and(|ending| ending == "safetensors") => {
            path.parent().unwrap_or(Path::new("."))
        }
        false => {
            // Says first if the file is not there at all.
            File::open(path).map_err(|error| error.to_string())?;
            return Err(format!("it is neither a .{SEMB} file nor a folder with {WEIGHTS} and {TOKENIZER}"));
        }
    };
    let weights = if path.is_dir() { folder.join(WEIGHTS) } else { path.to_path_buf() };
    Model::from_model2vec(&bytes_of(&weights)?, &bytes_of(&folder.join(TOKENIZER))?).map_err(told)
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes)
}
