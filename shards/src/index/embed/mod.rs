//! Word embeddings from a static model: a text's vector is the sum of its word pieces' rows.
//!
//! One model is compiled into the program (`models/README.md` says where it comes from and how its file is laid out); the
//! operator may name another one, in the same format or in model2vec's. All shards of a server share it, and its fingerprint stands with
//! the embeddings that it made. Document vectors are int8 and normalised by what they are; a query's are
//! 16-bit. Dot products are integers, so similarities do not depend on how they were summed.

mod file;
mod model2vec;
mod pieces;
pub mod search;
mod unigram;

use super::text::Embedder;
use pieces::Pieces;
use std::borrow::Cow;
use std::sync::LazyLock;
use unigram::Unigram;

static BUILT_IN: &[u8] = include_bytes!("../../../../models/static-minilm-128-i8.semb");

static MODEL: LazyLock<Model> =
    LazyLock::new(|| Model::from_semb(Cow::Borrowed(BUILT_IN)).expect("the compiled-in model is whole"));

/// The model that is compiled in. Parsed at the first use, in a few milliseconds.
pub fn built_in() -> &'static Model {
    &MODEL
}

/// Largest dimension that a model may have: dot products stay within 32 bits.
pub const DIMENSIONS_MAX: usize = 1024;
/// Most tokens of a model.
const TOKENS_MAX: usize = 1 << 24;
/// Highest magnitude in a query's vector.
const QUERY_MAX: f32 = 16_383.0;
/// Highest magnitude in a document's vector.
const DOCUMENT_MAX: f32 = 127.0;
const _: () = assert!(DIMENSIONS_MAX * QUERY_MAX as usize * DOCUMENT_MAX as usize <= i32::MAX as usize);

/// Why bytes are no model, as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelError(pub String);

impl std::fmt::Display for ModelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ModelError {}

/// A static embedding model.
#[derive(Debug)]
pub struct Model {
    fingerprint: u64,
    dimensions: usize,
    /// What a unit of a token's row is worth, its weight included.
    scales: Vec<f32>,
    /// The row of each token; empty where rows stand in the order of tokens.
    row_of: Vec<u32>,
    /// int8, a row after the other.
    rows: Cow<'static, [u8]>,
    tokenizer: Tokenizer,
}

/// How text becomes tokens.
#[derive(Debug)]
enum Tokenizer {
    Pieces(Pieces),
    Unigram(Unigram),
}

impl Model {
    /// Tells models apart: embeddings of another one mean nothing to this one.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.scales.len()
    }

    /// The sum of the rows of a text's tokens, not normalised.
    fn sum(&self, texts: &mut dyn Iterator<Item = &str>) -> Vec<f32> {
        let mut sum = vec![0.0f32; self.dimensions];
        let mut add = |token: usize| {
            let scale = self.scales[token];
            if scale != 0.0 {
                let row = self.row_of.get(token).map_or(token, |row| *row as usize);
                let row = &self.rows[row * self.dimensions..][..self.dimensions];
                for (sum, byte) in sum.iter_mut().zip(row) {
                    *sum += scale * f32::from(*byte as i8);
                }
            }
        };
        for text in texts {
            match &self.tokenizer {
                Tokenizer::Pieces(pieces) => pieces.each(text, &mut add),
                Tokenizer::Unigram(unigram) => unigram.each(text, &mut add),
            }
        }
        sum
    }

    /// A query's vector for [`search::EmbeddingSearch`]; all zero if no word of it is known.
    pub fn embed_query(&self, text: &str) -> Vec<i16> {
        let sum = self.sum(&mut std::iter::once(text));
        quantise(&sum, QUERY_MAX).map(|value| value as i16).collect()
    }
}

impl Embedder for Model {
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn embed(&self, texts: &mut dyn Iterator<Item = &str>) -> Vec<i8> {
        let sum = self.sum(texts);
        quantise(&sum, DOCUMENT_MAX).map(|value| value as i8).collect()
    }
}

/// Scales a vector so that its largest component becomes `highest`, and rounds.
fn quantise(vector: &[f32], highest: f32) -> impl Iterator<Item = i32> {
    let largest = vector.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let factor = if largest > 0.0 { highest / largest } else { 0.0 };
    vector.iter().map(move |value| (value * factor).round().clamp(-highest, highest) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(left: &str, right: &str) -> f64 {
        let model = built_in();
        let query = model.embed_query(left);
        let document = model.embed(&mut std::iter::once(right));
        search::similarity(&query, &document).map_or(0.0, crate::index::text::score::to_float)
    }

    #[test]
    fn words_lie_near_their_kin() {
        assert!((similarity("doctor", "doctor") - 1.0).abs() < 1e-3);
        assert!(similarity("doctor", "physician") > 0.5);
        assert!(similarity("doctor", "physician") > similarity("doctor", "bicycle") + 0.2);
        assert!(similarity("Ünïcode", "unicode") > 0.99);
        assert!(similarity("the", "of").abs() < 1e-9, "stop words have no vector");
    }

    #[test]
    fn king_less_man_and_woman_is_queen() {
        let model = built_in();
        let vector = |word: &str| -> Vec<f32> {
            let sum = model.sum(&mut std::iter::once(word));
            let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
            sum.iter().map(|value| value / length).collect()
        };
        let (king, man, woman) = (vector("king"), vector("man"), vector("woman"));
        let sought: Vec<f32> = (0..king.len()).map(|n| king[n] - man[n] + woman[n]).collect();
        let near = |word: &str| vector(word).iter().zip(&sought).map(|(a, b)| a * b).sum::<f32>();
        for other in ["prince", "castle", "girl", "throne", "doctor", "lady"] {
            assert!(near("queen") > near(other), "{other}");
        }
    }
}
