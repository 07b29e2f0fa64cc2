//! Word embeddings from a static model: a text's vector is the sum of its word pieces' rows.
//!
//! The model is compiled into the program (`models/README.md` says where it comes from and how its file is laid out), so
//! vectors are the same on every shard and for ever. Document vectors are int8 and normalised by what they are; a query's are
//! 16-bit. Dot products are integers, so similarities do not depend on how they were summed.

mod pieces;
pub mod search;

use super::codec::{Corrupt, Reader};
use super::text::Embedder;
use pieces::Pieces;
use serde::Deserialize;
use std::sync::LazyLock;
use xxhash_rust::xxh3::xxh3_64;

static BUILT_IN: &[u8] = include_bytes!("../../../../models/static-minilm-128-i8.semb");

static MODEL: LazyLock<Model> =
    LazyLock::new(|| Model::load(BUILT_IN).expect("the compiled-in model is whole"));

/// The model that is compiled in. Parsed at the first use, in a few milliseconds.
pub fn built_in() -> &'static Model {
    &MODEL
}

/// Largest dimension that a model may have: dot products stay within 32 bits.
pub const DIMENSIONS_MAX: usize = 512;
/// Highest magnitude in a query's vector.
const QUERY_MAX: f32 = 16_383.0;
/// Highest magnitude in a document's vector.
const DOCUMENT_MAX: f32 = 127.0;
const _: () = assert!(DIMENSIONS_MAX * QUERY_MAX as usize * DOCUMENT_MAX as usize <= i32::MAX as usize);

/// A static embedding model.
#[derive(Debug)]
pub struct Model {
    fingerprint: u64,
    dimensions: usize,
    scales: Vec<f32>,
    rows: &'static [u8],
    pieces: Pieces,
}

#[derive(Deserialize)]
struct Header {
    dim: usize,
    vocab: usize,
}

impl Model {
    /// Reads a model's file.
    ///
    /// # Errors
    /// The bytes are no such model.
    pub fn load(bytes: &'static [u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != b"SEMB" {
            return Err(Corrupt("no embedding model"));
        }
        let length = reader.u32()? as usize;
        let header: Header =
            serde_json::from_slice(reader.take(length)?).map_err(|_| Corrupt("model header"))?;
        if header.dim == 0 || header.dim > DIMENSIONS_MAX || header.vocab > 1 << 24 {
            return Err(Corrupt("model dimensions"));
        }
        let scales = reader.take(header.vocab * 4)?;
        let scales = scales
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().expect("four bytes a chunk")));
        let scales: Vec<f32> = scales.collect();
        let rows = reader.take(header.vocab * header.dim)?;
        let tokens = std::str::from_utf8(reader.take(reader.left())?).map_err(|_| Corrupt("model tokens"))?;
        let pieces = Pieces::new(tokens);
        if pieces.len() != header.vocab || scales.iter().any(|scale| !scale.is_finite()) {
            return Err(Corrupt("model tokens"));
        }
        Ok(Self { fingerprint: xxh3_64(bytes), dimensions: header.dim, scales, rows, pieces })
    }

    /// Tells models apart: embeddings of another one mean nothing to this one.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The sum of the rows of a text's word pieces, not normalised.
    fn sum(&self, texts: &mut dyn Iterator<Item = &str>) -> Vec<f32> {
        let mut sum = vec![0.0f32; self.dimensions];
        for text in texts {
            self.pieces.each(text, |piece| {
                let scale = self.scales[piece];
                if scale != 0.0 {
                    let row = &self.rows[piece * self.dimensions..][..self.dimensions];
                    for (sum, byte) in sum.iter_mut().zip(row) {
                        *sum += scale * f32::from(*byte as i8);
                    }
                }
            });
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

    #[test]
    fn damaged_models_are_refused() {
        assert!(Model::load(b"SEMB").is_err());
        assert!(Model::load(&BUILT_IN[..BUILT_IN.len() / 2]).is_err());
        assert!(Model::load(b"SEMB\x02\0\0\0{}").is_err());
        assert!(Model::load(b"nonsense").is_err());
    }
}
