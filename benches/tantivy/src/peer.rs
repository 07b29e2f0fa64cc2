//! tantivy's side: an index in memory, one indexing thread, one field with positions.

use crate::Outcome;
use crate::corpus::Document;
use tantivy::collector::TopDocs;
use tantivy::directory::RamDirectory;
use tantivy::query::QueryParser;
use tantivy::schema::{IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{
    Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter, TextAnalyzer,
};
use tantivy::{Index, IndexSettings, IndexWriter, Searcher, TantivyDocument};

/// Room for the whole corpus, so that tantivy writes one segment and merges nothing.
const WRITER_BYTES: usize = 400_000_000;

/// Which words it leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// None: tantivy's `en_stem`.
    All,
    /// `en_stem` after tantivy's English stop words, the 33 of Lucene.
    NoStopWords,
}

/// When it commits, and so when documents can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// Once, at the end.
    AtTheEnd,
    /// Each time that so many documents are in.
    Every(usize),
}

/// A tantivy index that is open for searches.
pub struct Peer {
    searcher: Searcher,
    parser: QueryParser,
    /// Bytes of its files, all in memory.
    pub bytes: usize,
    /// Its segments.
    pub segments: usize,
}

/// Indexes all documents with one thread.
pub fn fill(documents: &[Document], words: Words, commits: Commits) -> Outcome<Peer> {
    let mut schema = Schema::builder();
    let tokenizer = match words {
        Words::All => "en_stem",
        Words::NoStopWords => "en_stem_no_stop_words",
    };
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(tokenizer)
        .set_index_option(IndexRecordOption::WithFreqsAndPositions);
    let key = schema.add_text_field("key", STRING | STORED);
    let text = schema.add_text_field("text", TextOptions::default().set_indexing_options(indexing));
    let directory = RamDirectory::create();
    let index = Index::create(directory.clone(), schema.build(), IndexSettings::default())?;
    let stop_words = StopWordFilter::new(Language::English).ok_or("tantivy has English stop words")?;
    let analyzer = TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(40))
        .filter(LowerCaser)
        .filter(stop_words)
        .filter(Stemmer::new(Language::English))
        .build();
    index.tokenizers().register("en_stem_no_stop_words", analyzer);
    let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
    for (n, document) in documents.iter().enumerate() {
        let mut fields = TantivyDocument::default();
        fields.add_text(key, &document.key);
        fields.add_text(text, &document.text);
        writer.add_document(fields)?;
        if let Commits::Every(count) = commits
            && (n + 1) % count == 0
        {
            writer.commit()?;
        }
    }
    writer.commit()?;
    writer.wait_merging_threads()?;
    let reader = index.reader()?;
    reader.reload()?;
    let searcher = reader.searcher();
    let parser = QueryParser::for_index(&index, vec![text]);
    let segments = searcher.segment_readers().len();
    Ok(Peer { searcher, parser, bytes: bytes_of(&directory), segments })
}

impl Peer {
    /// How many of the best `limit` documents a query finds.
    pub fn search(&self, text: &str, limit: usize) -> Outcome<usize> {
        let query = self.parser.parse_query(text)?;
        Ok(self.searcher.search(&query, &TopDocs::with_limit(limit).order_by_score())?.len())
    }
}

fn bytes_of(directory: &RamDirectory) -> usize {
    directory.total_mem_usage()
}
