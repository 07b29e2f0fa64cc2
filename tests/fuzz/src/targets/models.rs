//! Files of embedding models: `SEMB`, and the pair of a model2vec folder. One that is taken can embed.
//!
//! The first byte chooses the format. Of a pair the next two say how long the first file is.

use super::{Target, words_of};
use crate::engine::{behaviour, class_of};
use shards::index::embed::{DIMENSIONS_MAX, Model};
use shards::index::text::Embedder;
use std::borrow::Cow;

/// See the module's head.
pub(super) struct Models;

impl Models {
    /// The target.
    pub(super) fn new() -> Self {
        Self
    }
}

/// A model of four words in the format of the built-in one.
fn semb() -> Vec<u8> {
    let header = br#"{"dim":2,"vocab":4}"#;
    let mut bytes = [&b"SEMB"[..], &(header.len() as u32).to_le_bytes(), header].concat();
    for scale in [1.0f32, 0.5, 0.25, 0.0] {
        bytes.extend(scale.to_le_bytes());
    }
    bytes.extend([127, 0, 0, 127, 100, 156, 1, 1]);
    bytes.extend(b"river\nboat\n##s\nthe");
    bytes
}

const WORD_PIECES: &str = r###"{"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","vocab":{"[UNK]":0,"river":1,"##s":2}}}"###;
const UNIGRAM: &str =
    r#"{"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["▁river",-3.0],["s",-2.5]]}}"#;

/// A model2vec folder of three rows of two numbers.
fn pair(tokenizer: &str, mapping: bool) -> Vec<u8> {
    let mut header = r#"{"embeddings":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}"#.to_owned();
    let mut data: Vec<u8> = [1.0f32, 0.0, 0.5, 0.5, -1.0, 2.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    if mapping {
        header += r#","mapping":{"dtype":"I32","shape":[3],"data_offsets":[24,36]},"weights":{"dtype":"F16","shape":[3],"data_offsets":[36,42]}"#;
        data.extend([0i32, 2, 1].iter().flat_map(|n| n.to_le_bytes()));
        data.extend([0x3c00u16, 0x3800, 0x4000].iter().flat_map(|n| n.to_le_bytes()));
    }
    header += "}";
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    [&[1u8][..], &(weights.len() as u16).to_le_bytes(), &weights, tokenizer.as_bytes()].concat()
}

impl Target for Models {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![
            [&[0u8][..], &semb()].concat(),
            pair(WORD_PIECES, false),
            pair(WORD_PIECES, true),
            pair(UNIGRAM, false),
            pair(UNIGRAM, true),
        ]
    }

    fn words(&self) -> Vec<Vec<u8>> {
        words_of(&[
            "{\"dim\":2,\"vocab\":4}",
            "\"dim\":",
            "\"vocab\":",
            "SEMB",
            "\n",
            "##",
            "[UNK]",
            "F64",
            "F32",
            "F16",
            "BF16",
            "I64",
            "I32",
            "I8",
            "[3,2]",
            "[0,24]",
            "[24,0]",
            "[18446744073709551615,2]",
            "\"mapping\":",
            "\"weights\":",
            "\"embeddings\":",
            "__metadata__",
            "WordPiece",
            "Unigram",
            "null",
            "[]",
            "{}",
            "-1e308",
            "\u{2581}",
            "\\u0000",
            "\"unk_id\":7",
            "\"lowercase\":false",
            "\"normalizer\":null",
            "\"added_tokens\":[]",
        ])
    }

    fn bytes_max(&self) -> usize {
        900
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let Some((format, rest)) = input.split_first() else { return 0 };
        let read = if format & 1 == 0 {
            Model::from_semb(Cow::Owned(rest.to_vec()))
        } else {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else { return 1 };
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
            let (weights, tokenizer) = rest.split_at(length);
            Model::from_model2vec(weights, tokenizer)
        };
        match read {
            Ok(model) => {
                let dimensions = model.dimensions();
                assert!((1..=DIMENSIONS_MAX).contains(&dimensions), "dimensions have bounds");
                let document = model.embed(&mut ["rivers and a Boat", "\u{130}stanbul \u{df}"].into_iter());
                assert_eq!(document.len(), dimensions, "a vector has the model's dimensions");
                assert_eq!(model.embed_query("the rivers").len(), dimensions);
                let known = document.iter().filter(|number| **number != 0).count();
                behaviour(&[2, dimensions as u64, class_of(model.tokens()), class_of(known)])
            }
            Err(error) => {
                assert!(error.0.len() < 4096, "a reason is a sentence: {} bytes", error.0.len());
                // Figures aside, one sentence is one way of refusing.
                let letters = error.0.bytes().filter(|byte| byte.is_ascii_alphabetic() || *byte == b' ');
                behaviour(&letters.take(60).map(u64::from).collect::<Vec<_>>())
            }
        }
    }
}
