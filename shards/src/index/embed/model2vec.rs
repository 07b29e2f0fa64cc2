//! Reads the models that model2vec writes: a safetensors file with `embeddings`, and a `tokenizer.json` with word pieces or unigrams.
//!
//! Optional tensors are taken too: `weights`, a factor for each token, and `mapping`, the row of each token. Rows become int8
//! with a scale each, as in the built-in format. Names, shapes and offsets are checked before anything is read.

use super::file::check_shape;
use super::pieces::{Folding, Pieces};
use super::unigram::Unigram;
use super::{DOCUMENT_MAX, Model, ModelError, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// A tensor's numbers, in the type that they were written in.
struct Tensor<'a> {
    dtype: &'a str,
    shape: &'a [usize],
    bytes: &'a [u8],
}

fn told<T>(text: impl Into<String>) -> Result<T, ModelError> {
    Err(ModelError(text.into()))
}

impl Model {
    /// Reads a model2vec model: the bytes of `model.safetensors` and of `tokenizer.json`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the bytes.
    pub fn from_model2vec(weights: &[u8], tokenizer: &[u8]) -> Result<Self, ModelError> {
        let tensors = header_of(weights)?;
        let find = |name: &str| tensor(&tensors.0, tensors.1, name);
        let Some(embeddings) = find("embeddings")? else {
            return told("its safetensors file has no tensor named embeddings");
        };
        let [rows, dimensions] = *embeddings.shape else {
            return told("its tensor embeddings has not two dimensions");
        };
        check_shape(dimensions, rows)?;
        let fingerprint = xxh3_64(weights) ^ xxh3_64(tokenizer).rotate_left(1);
        let row_of: Vec<u32> = match find("mapping")? {
            Some(mapping) => mapping.integers()?,
            None => Vec::new(),
        };
        let tokens = if row_of.is_empty() { rows } else { row_of.len() };
        check_shape(dimensions, tokens)?;
        let tokenizer = tokenizer_of(tokenizer, tokens)?;
        if row_of.iter().any(|row| *row as usize >= rows) {
            return told("its tensor mapping names a row that is not there");
        }
        let (bytes, row_scales) = quantise(&embeddings, rows, dimensions)?;
        let factors = match find("weights")? {
            Some(factors) => factors.floats()?,
            None => vec![1.0; tokens],
        };
        if factors.len() != tokens || !factors.iter().all(|factor| factor.is_finite()) {
            return told(format!("its tensor weights has not {tokens} finite numbers"));
        }
        let scale = |(token, factor): (usize, &f32)| {
            factor * row_scales[row_of.get(token).map_or(token, |row| *row as usize)]
        };
        let scales: Vec<f32> = factors.iter().enumerate().map(scale).collect();
        if !scales.iter().all(|scale| scale.is_finite()) {
            return told("its numbers are too large");
        }
        let rows = Cow::Owned(bytes);
        Ok(Self { fingerprint, dimensions, scales, row_of, rows, tokenizer })
    }
}

/// What a safetensors file says of its tensors, and their bytes.
fn header_of(file: &[u8]) -> Result<(BTreeMap<String, Described>, &[u8]), ModelError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return told("its safetensors file is empty or cut short");
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some((header, data)) = rest.split_at_checked(length) else {
        return told("its safetensors file ends within the header, or is none");
    };
    let told_json = |error| ModelError(format!("the header of its safetensors file cannot be read: {error}"));
    let mut all: BTreeMap<String, Value> = serde_json::from_slice(header).map_err(told_json)?;
    all.remove("__metadata__");
    let mut tensors = BTreeMap::new();
    for (name, described) in all {
        tensors.insert(name, Described::deserialize(described).map_err(told_json)?);
    }
    Ok((tensors, data))
}

fn tensor<'a>(
    all: &'a BTreeMap<String, Described>,
    data: &'a [u8],
    name: &str,
) -> Result<Option<Tensor<'a>>, ModelError> {
    let Some(Described { dtype, shape, data_offsets: (start, end) }) = all.get(name) else { return Ok(None) };
    let Some(bytes) = data.get(*start..*end) else {
        return told(format!("its tensor {name} lies beyond the end of the file; it was cut short"));
    };
    let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let width = match dtype.as_str() {
        "F64" | "I64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" => 2,
        "I8" => 1,
        other => return told(format!("its tensor {name} has numbers of type {other}, which is not known")),
    };
    if count.and_then(|count| count.checked_mul(width)) != Some(bytes.len()) {
        return told(format!("its tensor {name} has another size than its shape says"));
    }
    Ok(Some(Tensor { dtype, shape, bytes }))
}

impl Tensor<'_> {
    fn floats(&self) -> Result<Vec<f32>, ModelError> {
        let bytes = self.bytes;
        Ok(match self.dtype {
            "F64" => bytes.as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight) as f32).collect(),
            "F32" => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|two| from_half(u16::from_le_bytes(*two))).collect(),
            "BF16" => {
                let number = |two: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*two)) << 16);
                bytes.as_chunks().0.iter().map(number).collect()
            }
            "I8" => bytes.iter().map(|byte| f32::from(*byte as i8)).collect(),
            other => return told(format!("a tensor of vectors has numbers of type {other}")),
        })
    }

    fn integers(&self) -> Result<Vec<u32>, ModelError> {
        let numbers: Vec<i64> = match self.dtype {
            "I64" => self.bytes.as_chunks().0.iter().map(|eight| i64::from_le_bytes(*eight)).collect(),
            "I32" => {
                self.bytes.as_chunks().0.iter().map(|four| i64::from(i32::from_le_bytes(*four))).collect()
            }
            other => return told(format!("its tensor mapping has numbers of type {other}")),
        };
        let told_row = |_| ModelError("its tensor mapping names a row that is not there".to_owned());
        numbers.into_iter().map(|number| u32::try_from(number).map_err(told_row)).collect()
    }
}

/// A number of 16 bits, IEEE 754.
fn from_half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0f32 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2.0f32.powi(-24),
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2.0f32.powi(exponent - 15),
    }
}

/// Rows as int8, and what a unit of each is worth.
fn quantise(
    embeddings: &Tensor<'_>,
    rows: usize,
    dimensions: usize,
) -> Result<(Vec<u8>, Vec<f32>), ModelError> {
    let floats = embeddings.floats()?;
    if !floats.iter().all(|number| number.is_finite()) {
        return told("its tensor embeddings has a number that is not finite");
    }
    let (mut bytes, mut scales) = (Vec::with_capacity(floats.len()), Vec::with_capacity(rows));
    for row in floats.chunks_exact(dimensions) {
        let largest = row.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
        let factor = if largest > 0.0 { DOCUMENT_MAX / largest } else { 0.0 };
        let byte = |number: &f32| (number * factor).round().clamp(-DOCUMENT_MAX, DOCUMENT_MAX) as i8 as u8;
        bytes.extend(row.iter().map(byte));
        scales.push(largest / DOCUMENT_MAX);
    }
    Ok((bytes, scales))
}

/// The tokenizer. There are vectors for `vectors` tokens, and memory is taken for no more: numbers in a file are not
/// believed before they are compared with bytes that came.
fn tokenizer_of(json: &[u8], vectors: usize) -> Result<Tokenizer, ModelError> {
    let json: Value = serde_json::from_slice(json)
        .map_err(|error| ModelError(format!("its tokenizer.json cannot be read: {error}")))?;
    let mut folding = Folding { lower_case: false, strip_accents: false, splits_ideographs: false };
    read_folding(&json["normalizer"], &mut folding);
    let model = &json["model"];
    match model["type"].as_str().unwrap_or("WordPiece") {
        "WordPiece" => {
            let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("##");
            if prefix != "##" {
                return told(format!("its word pieces go on with {prefix:?}; only \"##\" is known"));
            }
            let tokens = piece_tokens(&model["vocab"], model["unk_token"].as_str(), vectors)?;
            Ok(Tokenizer::Pieces(Pieces::new(tokens, folding)))
        }
        "Unigram" => {
            let tokens = scored_tokens(&model["vocab"])?;
            check_count(tokens.len(), vectors)?;
            let unknown = model["unk_id"].as_u64().and_then(|number| usize::try_from(number).ok());
            Ok(Tokenizer::Unigram(Unigram::new(tokens, unknown, folding)))
        }
        other => told(format!("its tokenizer is of type {other}; WordPiece and Unigram are known")),
    }
}

/// Gathers what a normalizer, or a sequence of them, does.
fn read_folding(normalizer: &Value, folding: &mut Folding) {
    let list = normalizer["normalizers"].as_array();
    list.into_iter().flatten().for_each(|part| {
        // A sequence within a sequence has no use, so one level is enough.
        read_one(part, folding);
    });
    read_one(normalizer, folding);
}

fn read_one(normalizer: &Value, folding: &mut Folding) {
    match normalizer["type"].as_str() {
        Some("Lowercase") => folding.lower_case = true,
        Some("StripAccents") => folding.strip_accents = true,
        Some("BertNormalizer") => {
            let lower = normalizer["lowercase"].as_bool().unwrap_or(true);
            folding.lower_case |= lower;
            folding.strip_accents |= normalizer["strip_accents"].as_bool().unwrap_or(lower);
            folding.splits_ideographs |= normalizer["handle_chinese_chars"].as_bool().unwrap_or(true);
        }
        _ => {}
    }
}

fn check_count(names: usize, vectors: usize) -> Result<(), ModelError> {
    check_shape(1, names)?;
    if names > vectors {
        return told(format!("its tokenizer has {names} tokens, but there are vectors for {vectors}"));
    }
    Ok(())
}

fn piece_tokens(
    vocabulary: &Value,
    unknown: Option<&str>,
    vectors: usize,
) -> Result<Vec<Box<str>>, ModelError> {
    let Some(vocabulary) = vocabulary.as_object() else {
        return told("its tokenizer.json has no vocabulary of word pieces");
    };
    let count =
        vocabulary.values().filter_map(Value::as_u64).max().map_or(0, |number| number.saturating_add(1));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    check_count(count, vectors)?;
    let mut tokens = vec![Box::<str>::default(); count];
    for (token, number) in vocabulary {
        let Some(number) = number.as_u64() else {
            return told(format!("the number of its token {token:?} is none"));
        };
        // The unknown token keeps an empty name, which no text has.
        if Some(token.as_str()) != unknown {
            tokens[number as usize] = token.as_str().into();
        }
    }
    Ok(tokens)
}

fn scored_tokens(vocabulary: &Value) -> Result<Vec<(Box<str>, f64)>, ModelError> {
    let Some(vocabulary) = vocabulary.as_array() else {
        return told("its tokenizer.json has no list of tokens with scores");
    };
    let token = |entry: &Value| Some((entry[0].as_str()?.into(), entry[1].as_f64()?));
    let tokens: Option<Vec<_>> = vocabulary.iter().map(token).collect();
    tokens.ok_or_else(|| ModelError("a token of its tokenizer.json is not a name with a score".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::text::Embedder;
    use proptest::prelude::*;

    const PIECES: &str = r####"{"normalizer":{"type":"BertNormalizer","lowercase":true,"handle_chinese_chars":true},
        "model":{"type":"WordPiece","unk_token":"[UNK]","vocab":{"[UNK]":0,"river":1,"boat":2,"##s":3}}}"####;
    const UNIGRAMS: &str = r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"Lowercase"}]},
        "model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["\u2581river",-1],["\u2581boat",-2.5],["s",-3]]}}"#;

    /// The rows of four tokens of two numbers, with what else there may be.
    fn weights(dtype: &str, more: &[(&str, &str, Vec<u8>)]) -> Vec<u8> {
        let rows = [9.0f32, 9.0, 1.0, 0.0, 0.0, 2.0, -1.0, 1.0];
        let first: Vec<u8> = match dtype {
            "F32" => rows.iter().flat_map(|number| number.to_le_bytes()).collect(),
            "F64" => rows.iter().flat_map(|number| f64::from(*number).to_le_bytes()).collect(),
            "BF16" => {
                rows.iter().flat_map(|number| ((number.to_bits() >> 16) as u16).to_le_bytes()).collect()
            }
            "F16" => [0x4880u16, 0x4880, 0x3c00, 0, 0, 0x4000, 0xbc00, 0x3c00]
                .iter()
                .flat_map(|half| half.to_le_bytes())
                .collect(),
            _ => rows.iter().map(|number| *number as i8 as u8).collect(),
        };
        let mut data = first.clone();
        let mut header = format!(
            "{{\"embeddings\":{{\"dtype\":\"{dtype}\",\"shape\":[4,2],\"data_offsets\":[0,{}]}}",
            data.len()
        );
        for (name, described, bytes) in more {
            let start = data.len();
            data.extend(bytes);
            header += &format!(",\"{name}\":{{{described},\"data_offsets\":[{start},{}]}}", data.len());
        }
        header += ",\"__metadata__\":{\"format\":\"pt\"}}";
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    #[test]
    fn models_of_every_kind_embed() {
        for dtype in ["F32", "F64", "F16", "BF16", "I8"] {
            for tokenizer in [PIECES, UNIGRAMS] {
                let model = Model::from_model2vec(&weights(dtype, &[]), tokenizer.as_bytes()).unwrap();
                assert_eq!(model.embed(&mut ["River"].into_iter()), [127, 0], "{dtype}");
                assert_eq!(model.embed(&mut ["river boat"].into_iter()), [64, 127], "{dtype}");
                assert_eq!(model.embed(&mut ["rivers"].into_iter())[1], 127, "{dtype}");
                assert_eq!(model.embed(&mut ["xyz"].into_iter()), [0, 0], "{dtype}");
            }
        }
        let more = [
            (
                "weights",
                "\"dtype\":\"F32\",\"shape\":[4]",
                [1.0f32, 4.0, 1.0, 0.0].iter().flat_map(|n| n.to_le_bytes()).collect(),
            ),
            (
                "mapping",
                "\"dtype\":\"I64\",\"shape\":[4]",
                [0i64, 2, 1, 3].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>(),
            ),
        ];
        let model = Model::from_model2vec(&weights("F32", &more), PIECES.as_bytes()).unwrap();
        assert_eq!(model.embed(&mut ["river boats"].into_iter()), [16, 127], "rows are mapped and weighted");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |weights: &[u8], tokenizer: &str, reason: &str| {
            let error = Model::from_model2vec(weights, tokenizer.as_bytes()).unwrap_err();
            assert!(error.0.contains(reason), "{error} instead of {reason}");
        };
        let good = weights("F32", &[]);
        check(b"", PIECES, "empty");
        check(b"not a model at all", PIECES, "ends within the header");
        check(&good[..good.len() - 1], PIECES, "cut short");
        check(&weights("Q7", &[]), PIECES, "type Q7");
        check(&good, "{", "tokenizer.json cannot be read");
        check(&good, "{}", "no vocabulary");
        check(&good, r#"{"model":{"type":"BPE"}}"#, "type BPE");
        check(
            &good,
            r#"{"model":{"type":"WordPiece","vocab":{"a":99}}}"#,
            "100 tokens, but there are vectors for 4",
        );
        check(&good, r#"{"model":{"type":"Unigram","vocab":[["a"]]}}"#, "name with a score");
        let more = [("mapping", "\"dtype\":\"I32\",\"shape\":[1]", 7i32.to_le_bytes().to_vec())];
        check(&weights("F32", &more), r#"{"model":{"vocab":{"a":0}}}"#, "a row that is not there");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            changes in prop::collection::vec((0usize..400, any::<u8>()), 0..4), in_tokenizer in any::<bool>(),
            unigrams in any::<bool>(), length in 0usize..500,
        ) {
            let mut files = [weights("F32", &[]), if unigrams { UNIGRAMS } else { PIECES }.as_bytes().to_vec()];
            let file = &mut files[usize::from(in_tokenizer)];
            for (at, byte) in changes {
                let at = at % file.len();
                file[at] = byte;
            }
            if length < 400 {
                file.truncate(length);
            }
            if let Ok(model) = Model::from_model2vec(&files[0], &files[1]) {
                model.embed(&mut ["rivers boats \u{6cb3}"].into_iter());
            }
        }
    }
}
