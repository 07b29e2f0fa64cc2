//! Hybrid search: BM25 and a similarity, fused.
//!
//! Candidates are the global best `max(1,000, offset + top_k)` of either side, and both scores are exact for all of them. A
//! shard's own best of that number hold all the global ones it has, so each shard answers once ([`HybridSearch`]) and the
//! router cuts, fuses and ranks ([`fuse`]). Convex: (1 - alpha) bm25 / best bm25 + alpha similarity. RRF (Cormack, Clarke and
//! Büttcher, 2009): the sum of 1 / (60 + rank) over the sides in which the document is a candidate.

use super::Units;
use super::codec::{Corrupt, Reader, put_bytes, put_varint_u64};
use super::embed::search::EmbeddingSearch;
use super::text::score::to_float;
use super::text::search::Search;
use super::text::top::Hit;
use std::collections::BTreeMap;

/// Fewest candidates of either side.
pub const CANDIDATES_MIN: usize = 1000;
/// The constant of reciprocal rank fusion.
const RRF_K: f64 = 60.0;

/// Number of candidates of either side: the limit of both searches.
pub fn candidates(offset: usize, top_k: usize) -> usize {
    offset.saturating_add(top_k).max(CANDIDATES_MIN)
}

/// The side that is not BM25.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one stands in each hybrid search, which is boxed")]
pub enum SimilaritySearch {
    /// Built-in embedding.
    Embedding(EmbeddingSearch),
    /// lnc.ltc cosine.
    Cosine(Search),
}

/// A candidate with both scores, in units of 2^-24. No match counts as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The document's key.
    pub key: Box<[u8]>,
    /// BM25, if the query matches.
    pub bm25: Option<i64>,
    /// Similarity, if there is one.
    pub similarity: Option<i64>,
}

/// How to make one score of two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fusion {
    /// Weighted sum.
    Convex {
        /// Weight of the similarity, 0 to 1.
        alpha: f64,
    },
    /// Reciprocal ranks.
    Rrf,
}

/// A ranked result.
#[derive(Clone, Debug, PartialEq)]
pub struct HybridHit {
    /// The document's key.
    pub key: Box<[u8]>,
    /// Fused score.
    pub score: f64,
    /// BM25, 0 without a match.
    pub bm25: f64,
    /// Similarity, 0 without one.
    pub similarity: f64,
}

/// Both searches of one shard over one view, and the scores that each lacks.
#[derive(Debug)]
pub struct HybridSearch {
    bm25: Search,
    similarity: SimilaritySearch,
    stage: Stage,
    found: BTreeMap<(u32, u32), Candidate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Bm25,
    Similarity,
    Fill,
    Done,
}

impl HybridSearch {
    /// Both searches must be made of clones of one view, with [`candidates`] as their limit.
    pub fn new(bm25: Search, similarity: SimilaritySearch) -> Self {
        Self { bm25, similarity, stage: Stage::Bm25, found: BTreeMap::new() }
    }

    /// Goes on until the budget is spent; true when complete.
    pub fn step(&mut self, units: &mut Units, accept: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        while units.left() && self.stage != Stage::Done {
            match self.stage {
                Stage::Bm25 => {
                    if self.bm25.step(units, accept) {
                        for hit in self.bm25.take_hits() {
                            self.candidate(&hit).bm25 = Some(hit.score);
                        }
                        self.stage = Stage::Similarity;
                    }
                }
                Stage::Similarity => {
                    let is_done = match &mut self.similarity {
                        SimilaritySearch::Embedding(search) => search.step(units, accept),
                        SimilaritySearch::Cosine(search) => search.step(units, accept),
                    };
                    if is_done {
                        let hits = match &mut self.similarity {
                            SimilaritySearch::Embedding(search) => search.take_hits(),
                            SimilaritySearch::Cosine(search) => search.take_hits(),
                        };
                        for hit in hits {
                            self.candidate(&hit).similarity = Some(hit.score);
                        }
                        self.stage = Stage::Fill;
                    }
                }
                Stage::Fill => {
                    units.spend(self.found.len() as u64 * 8);
                    self.fill();
                    self.stage = Stage::Done;
                }
                Stage::Done => {}
            }
        }
        self.stage == Stage::Done
    }

    fn candidate(&mut self, hit: &Hit) -> &mut Candidate {
        self.found.entry(hit.place).or_insert_with(|| Candidate {
            key: hit.key[..].into(),
            bm25: None,
            similarity: None,
        })
    }

    fn fill(&mut self) {
        let places: Vec<(u32, u32)> = self.found.keys().copied().collect();
        for part in places.chunk_by(|a, b| a.0 == b.0) {
            let documents: Vec<u32> = part.iter().map(|place| place.1).collect();
            let bm25 = self.bm25.score_documents(part[0].0, &documents);
            let similarity: Vec<Option<i64>> = match &self.similarity {
                SimilaritySearch::Embedding(search) => {
                    part.iter().map(|place| search.score_at(*place)).collect()
                }
                SimilaritySearch::Cosine(search) => search.score_documents(part[0].0, &documents),
            };
            for (place, scores) in part.iter().zip(bm25.into_iter().zip(similarity)) {
                if let Some(candidate) = self.found.get_mut(place) {
                    (candidate.bm25, candidate.similarity) = scores;
                }
            }
        }
    }

    /// The shard's candidates, in no particular order. What [`fuse`] takes.
    pub fn into_candidates(self) -> Vec<Candidate> {
        self.found.into_values().collect()
    }
}

/// Ranks the candidates of all shards and returns the page from `offset` on.
pub fn fuse(lists: Vec<Vec<Candidate>>, fusion: Fusion, offset: usize, top_k: usize) -> Vec<HybridHit> {
    let all: Vec<Candidate> = lists.into_iter().flatten().collect();
    let limit = candidates(offset, top_k);
    let ranks = |score: &dyn Fn(&Candidate) -> Option<i64>| -> Vec<Option<usize>> {
        let mut order: Vec<usize> = (0..all.len()).filter(|n| score(&all[*n]).is_some()).collect();
        order.sort_unstable_by(|a, b| {
            score(&all[*b]).cmp(&score(&all[*a])).then_with(|| all[*a].key.cmp(&all[*b].key))
        });
        let mut ranks = vec![None; all.len()];
        order.iter().take(limit).enumerate().for_each(|(rank, n)| ranks[*n] = Some(rank));
        ranks
    };
    let by_bm25 = ranks(&|candidate| candidate.bm25);
    let by_similarity = ranks(&|candidate| candidate.similarity);
    let best = all.iter().filter_map(|candidate| candidate.bm25).max().unwrap_or(0);
    let mut hits = Vec::new();
    for (n, candidate) in all.into_iter().enumerate() {
        if by_bm25[n].is_none() && by_similarity[n].is_none() {
            continue;
        }
        let bm25 = to_float(candidate.bm25.unwrap_or(0));
        let similarity = to_float(candidate.similarity.unwrap_or(0));
        let score = match fusion {
            Fusion::Convex { alpha } => {
                let share = if best > 0 { bm25 / to_float(best) } else { 0.0 };
                (1.0 - alpha) * share + alpha * similarity
            }
            Fusion::Rrf => {
                let part = |rank: Option<usize>| rank.map_or(0.0, |rank| 1.0 / (RRF_K + rank as f64 + 1.0));
                part(by_bm25[n]) + part(by_similarity[n])
            }
        };
        hits.push(HybridHit { key: candidate.key, score, bm25, similarity });
    }
    hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.key.cmp(&b.key)));
    hits.into_iter().skip(offset).take(top_k).collect()
}

/// Writes a shard's candidates for the router.
pub fn encode_candidates(candidates: &[Candidate], out: &mut Vec<u8>) {
    put_varint_u64(out, candidates.len() as u64);
    for candidate in candidates {
        put_bytes(out, &candidate.key);
        for score in [candidate.bm25, candidate.similarity] {
            out.push(u8::from(score.is_some()));
            out.extend_from_slice(&score.unwrap_or(0).to_le_bytes());
        }
    }
}

/// Reads what [`encode_candidates`] wrote.
///
/// # Errors
/// The bytes are something else.
pub fn decode_candidates(bytes: &[u8]) -> Result<Vec<Candidate>, Corrupt> {
    let mut reader = Reader::new(bytes);
    let mut candidates = Vec::new();
    for _ in 0..reader.count(19)? {
        let key = reader.bytes()?.into();
        let mut score = || -> Result<Option<i64>, Corrupt> {
            let is_there = reader.u8()? == 1;
            let score = reader.u64()? as i64;
            Ok(is_there.then_some(score))
        };
        candidates.push(Candidate { key, bm25: score()?, similarity: score()? });
    }
    if reader.is_empty() { Ok(candidates) } else { Err(Corrupt("bytes after candidates")) }
}

#[cfg(test)]
mod tests {
    use super::super::analyze::AnalyzerKind;
    use super::super::embed::built_in;
    use super::super::query::{CompiledQuery, parse};
    use super::super::text::search::{Model, Stats, View};
    use super::super::text::{TextIndex, WHOLE};
    use super::*;

    const ONE: i64 = 1 << 24;

    fn candidate(key: &str, bm25: Option<i64>, similarity: Option<i64>) -> Candidate {
        Candidate { key: key.as_bytes().into(), bm25, similarity }
    }

    #[test]
    fn fusions_by_example() {
        let all = vec![
            candidate("a", Some(4 * ONE), Some(ONE / 2)),
            candidate("b", Some(2 * ONE), Some(ONE)),
            candidate("c", None, Some(ONE / 4)),
        ];
        let hits = fuse(vec![all.clone()], Fusion::Convex { alpha: 0.2 }, 0, 10);
        let shown: Vec<(&[u8], f64)> = hits.iter().map(|hit| (&hit.key[..], hit.score)).collect();
        assert_eq!(shown[0], (&b"a"[..], 0.8 + 0.2 * 0.5));
        assert_eq!(shown[1].0, b"b");
        assert_eq!(shown[2], (&b"c"[..], 0.2 * 0.25));
        let hits = fuse(vec![all.clone()], Fusion::Rrf, 0, 10);
        assert_eq!(hits[0].score, 1.0 / 61.0 + 1.0 / 62.0);
        assert_eq!((&hits[0].key[..], &hits[1].key[..]), (&b"a"[..], &b"b"[..]), "ties go by key");
        assert_eq!(fuse(vec![all.clone()], Fusion::Rrf, 1, 1).len(), 1);
        let mut bytes = Vec::new();
        encode_candidates(&all, &mut bytes);
        assert_eq!(decode_candidates(&bytes), Ok(all));
        assert!(decode_candidates(&bytes[..bytes.len() - 1]).is_err());
    }

    fn shard() -> TextIndex {
        let mut index = TextIndex::new();
        index.add_field(WHOLE, AnalyzerKind::English);
        index.set_embedder(built_in());
        index
    }

    fn search(
        shards: &[TextIndex],
        text: &str,
        with_cosine: bool,
        fusion: Fusion,
        budget: u32,
    ) -> Vec<HybridHit> {
        let fields = shards[0].query_fields();
        let query = CompiledQuery::new(&parse(text, &|_| false), &fields, &fields);
        let words = CompiledQuery::words(text, &fields[0]);
        let gather = |query: &CompiledQuery| -> (Vec<View>, Stats) {
            let pinned: Vec<(View, Stats)> = shards.iter().map(|shard| shard.pin(query)).collect();
            let mut stats = pinned[0].1.clone();
            pinned[1..].iter().for_each(|(_, more)| stats.merge(more, query).unwrap());
            (pinned.into_iter().map(|(view, _)| view).collect(), stats)
        };
        let (views, stats) = gather(&query);
        let (word_views, word_stats) = gather(&words);
        let limit = candidates(0, 20);
        let lists = views.into_iter().zip(word_views).map(|(view, word_view)| {
            let bm25 = Search::new(view.clone(), &query, &stats, Model::Bm25, limit).unwrap();
            let similarity = if with_cosine {
                SimilaritySearch::Cosine(
                    Search::new(word_view, &words, &word_stats, Model::Cosine, limit).unwrap(),
                )
            } else {
                SimilaritySearch::Embedding(EmbeddingSearch::new(view, built_in().embed_query(text), limit))
            };
            let mut hybrid = HybridSearch::new(bm25, similarity);
            while !hybrid.step(&mut Units::new(budget), &mut |_| true) {}
            hybrid.into_candidates()
        });
        fuse(lists.collect(), fusion, 0, 20)
    }

    #[test]
    fn several_shards_give_what_one_gives() {
        let words =
            ["doctor", "physician", "river", "boat", "tree", "music", "piano", "teacher", "school", "engine"];
        let mut single = vec![shard()];
        let mut several: Vec<TextIndex> = (0..3).map(|_| shard()).collect();
        for n in 0..400usize {
            let text: Vec<&str> =
                (0..n % 5 + 1).map(|m| words[(n * 7 + m * m * 3 + n / 11) % words.len()]).collect();
            let (key, value) = (format!("k{n}"), format!("\"{}\"", text.join(" ")));
            for index in [&mut single[0], &mut several[n % 3]] {
                index.put(key.as_bytes(), value.as_bytes(), &mut Units::unlimited());
                if n % 5 == 0 {
                    index.remove(format!("k{}", n / 2).as_bytes(), &mut Units::unlimited());
                }
                index.work(&mut Units::new(500));
            }
            several.iter_mut().for_each(|index| {
                if n % 5 == 0 {
                    index.remove(format!("k{}", n / 2).as_bytes(), &mut Units::unlimited());
                }
            });
        }
        for text in ["medical doctor on a boat", "\"piano teacher\" school", "+engine river"] {
            for fusion in [Fusion::Convex { alpha: 0.2 }, Fusion::Rrf] {
                for with_cosine in [false, true] {
                    let one = search(&single, text, with_cosine, fusion, 1_000_000);
                    assert_eq!(one.len(), 20);
                    assert_eq!(search(&several, text, with_cosine, fusion, 100), one, "{text}");
                }
            }
        }
    }
}
