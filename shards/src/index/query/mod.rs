//! The query language: [`parse`] makes a tree of what a client wrote, [`compile`] makes it terms of analysed fields.
//!
//! Both depend on the text and the index definitions alone, so every shard arrives at the same query with the same
//! numbering of its terms, and statistics can be added up position by position.

pub mod compile;
pub mod parse;

pub use compile::{CompiledQuery, QueryField};
pub use parse::parse;

/// Longest query text that is read, in bytes; the rest is passed over.
pub const QUERY_BYTES_MAX: usize = 1 << 20;
/// Operands (words, phrases, groups) that are read; the rest is passed over. Router and shards read a query in one step,
/// so this, [`WORDS_MAX`] and [`TERMS_MAX`] keep the longest one below a millisecond.
pub const OPERANDS_MAX: usize = 4096;
/// Words of a query that are analysed, about, over all fields; further ones are passed over.
pub const WORDS_MAX: usize = 4096;
/// Distinct terms that a query may have; further ones are passed over.
pub const TERMS_MAX: usize = 2048;
/// Nesting of parentheses that is understood; deeper ones are passed over.
pub const DEPTH_MAX: usize = 32;
/// Terms that a prefix stands for: the first in byte order over all shards.
pub const PREFIX_TERMS_MAX: usize = 1024;
/// Terms that a fuzzy word stands for: the nearest over all shards, ties in byte order.
pub const FUZZY_TERMS_MAX: usize = 50;
/// Prefixes and fuzzy words in one query; further ones are taken as words.
pub const EXPANSIONS_MAX: usize = 32;
/// Words in a phrase; further ones are passed over.
pub const PHRASE_TERMS_MAX: usize = 256;
/// Highest boost and slop.
pub const BOOST_MAX: f64 = 1000.0;
/// Highest slop.
pub const SLOP_MAX: u32 = 1000;

/// What a client wrote, as a tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Ast {
    /// Words, any of which may match.
    Words(String),
    /// Words in order, with `slop` positions of play.
    Phrase {
        /// The words.
        text: String,
        /// Positions that the words may be off in all.
        slop: u32,
    },
    /// Every word that begins so.
    Prefix(String),
    /// Every word within so many edits.
    Fuzzy {
        /// The word.
        word: String,
        /// One or two.
        edits: u8,
    },
    /// The inner query on the text at a path; `name:` is taken as a word where no text index has that path.
    Field(String, Box<Ast>),
    /// The inner query's score times a factor.
    Boost(Box<Ast>, f64),
    /// Clauses: all of `must`, none of `must_not`, at least one of `should` where `must` is empty.
    Bool {
        /// Required clauses.
        must: Vec<Ast>,
        /// Optional clauses, or alternatives where nothing is required.
        should: Vec<Ast>,
        /// Excluding clauses.
        must_not: Vec<Ast>,
    },
}
