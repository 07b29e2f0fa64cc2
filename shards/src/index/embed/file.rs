//! Reads models of the format that the built-in one has: `SEMB`, header, scales, rows, tokens (`models/README.md`).

use super::pieces::{Folding, Pieces};
use super::{DIMENSIONS_MAX, Model, ModelError, TOKENS_MAX, Tokenizer};
use serde::Deserialize;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"SEMB";

#[derive(Deserialize)]
struct Header {
    dim: usize,
    vocab: usize,
}

/// Refuses dimensions and numbers of tokens that a model cannot have.
pub(super) fn check_shape(dimensions: usize, tokens: usize) -> Result<(), ModelError> {
    if dimensions == 0 || dimensions > DIMENSIONS_MAX {
        return Err(ModelError(format!(
            "its vectors have {dimensions} numbers; 1 to {DIMENSIONS_MAX} are possible"
        )));
    }
    if tokens == 0 || tokens > TOKENS_MAX {
        return Err(ModelError(format!("it has {tokens} tokens; 1 to {TOKENS_MAX} are possible")));
    }
    Ok(())
}

impl Model {
    /// Reads a model in the format of the built-in one.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the bytes.
    pub fn from_semb(bytes: Cow<'static, [u8]>) -> Result<Self, ModelError> {
        let told = |text: &str| ModelError(text.to_owned());
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| told("it does not begin with SEMB, so it is no embedding model"))?;
        let (length, rest) =
            rest.split_first_chunk::<4>().ok_or_else(|| told("it ends within its header"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let header = rest.get(..length).ok_or_else(|| told("it ends within its header"))?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| ModelError(format!("its header is not JSON with dim and vocab: {error}")))?;
        check_shape(header.dim, header.vocab)?;
        let start = MAGIC.len() + 4 + length;
        let (scales_end, rows_end) = (start + header.vocab * 4, start + header.vocab * (4 + header.dim));
        let Some(tokens) = bytes.get(rows_end..) else {
            return Err(ModelError(format!(
                "it has {} bytes, but {} tokens of {} numbers need {rows_end} and their names; it was cut short",
                bytes.len(),
                header.vocab,
                header.dim
            )));
        };
        let (fours, _) = bytes[start..scales_end].as_chunks::<4>();
        let scales: Vec<f32> = fours.iter().map(|four| f32::from_le_bytes(*four)).collect();
        if !scales.iter().all(|scale| scale.is_finite()) {
            return Err(told("a scale is not a finite number"));
        }
        let tokens = std::str::from_utf8(tokens).map_err(|_| told("its tokens are not UTF-8"))?;
        let tokens: Vec<Box<str>> = tokens.split('\n').map(Box::from).collect();
        if tokens.len() != header.vocab {
            let text = format!("its header tells {} tokens, but {} are named", header.vocab, tokens.len());
            return Err(ModelError(text));
        }
        let pieces = Pieces::new(tokens, Folding::PLAIN);
        let fingerprint = xxh3_64(&bytes);
        let rows = match bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[scales_end..rows_end]),
            Cow::Owned(bytes) => Cow::Owned(bytes[scales_end..rows_end].to_vec()),
        };
        let (dimensions, row_of, tokenizer) = (header.dim, Vec::new(), Tokenizer::Pieces(pieces));
        Ok(Self { fingerprint, dimensions, scales, row_of, rows, tokenizer })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::index::text::Embedder;
    use proptest::prelude::*;

    /// A model of three words.
    pub(in crate::index) fn small() -> Vec<u8> {
        let header = br#"{"dim":2,"vocab":4}"#;
        let mut bytes = [&MAGIC[..], &(header.len() as u32).to_le_bytes(), header].concat();
        for scale in [1.0f32, 0.5, 0.25, 0.0] {
            bytes.extend(scale.to_le_bytes());
        }
        bytes.extend([127, 0, 0, 127, 100, 156, 1, 1]);
        bytes.extend(b"river\nboat\n##s\nthe");
        bytes
    }

    fn load(bytes: &[u8]) -> Result<Model, ModelError> {
        Model::from_semb(Cow::Owned(bytes.to_vec()))
    }

    #[test]
    fn a_small_model_embeds() {
        let model = load(&small()).unwrap();
        assert_eq!(model.embed(&mut ["river"].into_iter()), [127, 0]);
        assert_eq!(model.embed(&mut ["The Boat"].into_iter()), [0, 127]);
        assert_eq!(model.embed(&mut ["unknown"].into_iter()), [0, 0]);
        assert_ne!(model.fingerprint(), super::super::built_in().fingerprint());
    }

    #[test]
    fn damaged_models_are_refused_with_a_reason() {
        let whole = small();
        let check = |bytes: &[u8], reason: &str| {
            let error = load(bytes).unwrap_err();
            assert!(error.0.contains(reason), "{error} instead of {reason}");
        };
        check(b"nonsense", "does not begin with SEMB");
        check(b"SEMB\x02", "within its header");
        check(b"SEMB\x02\0\0\0{}", "dim and vocab");
        check(&whole[..40], "cut short");
        check(&whole[..whole.len() - 4], "4 tokens, but 3 are named");
        check(b"SEMB\x13\0\0\0{\"dim\":0,\"vocab\":1}", "0 numbers");
        check(b"SEMB\x18\0\0\0{\"dim\":100000,\"vocab\":1}", "100000 numbers");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            changes in prop::collection::vec((0usize..70, any::<u8>()), 0..4), length in 0usize..80, text in "\\PC{0,20}",
        ) {
            let mut bytes = small();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(length.max(8));
            if let Ok(model) = load(&bytes) {
                model.embed(&mut [text.as_str(), "rivers boats"].into_iter());
                model.embed_query(&text);
            }
        }
    }
}
