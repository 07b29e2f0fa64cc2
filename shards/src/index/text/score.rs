//! Scores: BM25 and lnc.ltc cosine, in fixed point so that any order of summing agrees.
//!
//! A term's contribution to a document's score is computed in `f64` from the document's own integers and the query's
//! global figures, rounded to a multiple of 2^-24 and held as `i64`. Every shard therefore comes to the same sums. `ln` and
//! `sqrt` are `libm`'s or exact by IEEE 754, so every machine does too.
//!
//! BM25 is Robertson's with k1 = 1.2, b = 0.75, exact document lengths and Lucene's never negative
//! idf = ln(1 + (N - df + 0.5) / (df + 0.5)); N counts documents with at least one token in the field.
//! lnc.ltc (Salton's SMART notation): document (1 + ln tf) / norm, query (1 + ln tf) ln(1 + N / df) / norm.

use super::bounds::Bounds;
use super::part::Lengths;
use super::segment::BLOCK;
use std::sync::LazyLock;

/// Fraction bits of a score.
pub const SCORE_BITS: u32 = 24;
const ONE: f64 = (1u64 << SCORE_BITS) as f64;
const K1: f64 = 1.2;
const B: f64 = 0.75;

/// A score or similarity as clients see it.
pub fn to_float(score: i64) -> f64 {
    score as f64 / ONE
}

/// Rounds a value that is not negative to a fixed-point score.
#[inline]
pub(crate) fn to_fixed(value: f64) -> i64 {
    (value * ONE + 0.5) as i64
}

/// Lucene's idf.
pub(crate) fn bm25_idf(documents: u64, document_frequency: u64) -> f64 {
    let documents = documents.max(document_frequency) as f64;
    let frequency = document_frequency as f64;
    libm::log(1.0 + (documents - frequency + 0.5) / (frequency + 0.5))
}

/// ln(1 + N / df): the idf of the cosine. With one more than N / df a word that all documents hold weighs little, not
/// nothing, so that it finds them.
pub(crate) fn cosine_idf(documents: u64, document_frequency: u64) -> f64 {
    if document_frequency == 0 {
        return 0.0;
    }
    libm::log(1.0 + documents.max(document_frequency) as f64 / document_frequency as f64)
}

static LOGARITHMS: LazyLock<[f64; 256]> =
    LazyLock::new(|| std::array::from_fn(|n| 1.0 + libm::log(n.max(1) as f64)));

/// 1 + ln tf.
#[inline]
pub(crate) fn document_weight(frequency: u32) -> f64 {
    match LOGARITHMS.get(frequency as usize) {
        Some(weight) => *weight,
        None => 1.0 + libm::log(f64::from(frequency)),
    }
}

/// The Euclidean norm of a document's weights, from its term frequencies in any order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Norm {
    /// Sum of squares in units of 2^-24: integers, so that the order does not matter.
    squares: u64,
}

impl Norm {
    #[inline]
    pub(crate) fn add(&mut self, frequency: u32) {
        let weight = document_weight(frequency);
        self.squares += to_fixed(weight * weight) as u64;
    }

    pub(crate) fn value(self) -> f32 {
        (self.squares as f64 / ONE).sqrt() as f32
    }
}

/// The next `f32` at or above `value`.
pub(crate) fn round_up(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value { near.next_up() } else { near }
}

/// What a query term adds to a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weigher {
    /// BM25 with the idf, the boost, (k1 + 1) and 2^24 in `weight`; the length norm is `base + slope * length`.
    Bm25 {
        /// Upper limit of the contribution, in fixed point.
        weight: f64,
        base: f64,
        slope: f64,
    },
    /// Cosine with the query's normalised weight times 2^24.
    Cosine { weight: f64 },
}

impl Weigher {
    /// `weight` is boost times idf.
    pub(crate) fn bm25(weight: f64, documents: u64, total_length: u64) -> Self {
        let average = if documents == 0 { 1.0 } else { total_length as f64 / documents as f64 };
        let slope = if average > 0.0 { K1 * B / average } else { 0.0 };
        Self::Bm25 { weight: weight * (K1 + 1.0) * ONE, base: K1 * (1.0 - B), slope }
    }

    /// `weight` is the query's normalised weight of the term.
    pub(crate) fn cosine(weight: f64) -> Self {
        Self::Cosine { weight: weight * ONE }
    }

    pub(crate) fn is_cosine(self) -> bool {
        matches!(self, Self::Cosine { .. })
    }

    /// BM25 of a document of `length` tokens that holds the term `frequency` times (a fraction for sloppy phrases).
    #[inline]
    pub(crate) fn by_length(self, frequency: f64, length: u32) -> i64 {
        match self {
            Self::Bm25 { weight, base, slope } => {
                (frequency * weight / (frequency + (base + slope * f64::from(length))) + 0.5) as i64
            }
            Self::Cosine { .. } => 0,
        }
    }

    /// Cosine part of a document with this norm.
    #[inline]
    pub(crate) fn by_norm(self, frequency: u32, norm: f32) -> i64 {
        match self {
            Self::Cosine { weight } if norm > 0.0 => {
                (weight * (document_weight(frequency) / f64::from(norm)) + 0.5) as i64
            }
            _ => 0,
        }
    }

    /// A score that no posting within `bounds` exceeds.
    #[inline]
    pub(crate) fn bound(self, bounds: &Bounds) -> i64 {
        match self {
            Self::Bm25 { weight, base, slope } => {
                let mut highest = 0.0f64;
                for pair in bounds.pairs() {
                    let frequency = f64::from(pair.frequency);
                    let score = frequency * weight / (frequency + (base + slope * f64::from(pair.length)));
                    highest = if score > highest { score } else { highest };
                }
                // One more than the rounded value: floating point may misplace the last unit between two postings.
                (highest.min(weight) + 0.5) as i64 + 1
            }
            // (1 + ln tf) / norm is at most 1: the norm is that of a vector with this component.
            Self::Cosine { weight } => {
                (weight * f64::from(bounds.weight_max).min(1.000_001) + 0.5) as i64 + 1
            }
        }
    }

    /// BM25 documents that hold the term so often reach `needed` if they have fewer tokens than this; up to `end`.
    ///
    /// Exact: scores fall with the length also as floating point rounds them.
    pub(crate) fn lengths_reaching(self, frequency: u32, needed: i64, end: u32) -> u32 {
        let Self::Bm25 { weight, base, slope } = self else { return end };
        // Solved for the length, and then corrected by the scores themselves.
        let frequency = f64::from(frequency);
        let near = (frequency * weight / (needed as f64 - 0.5) - frequency - base) / slope;
        let mut reaching = (near.clamp(0.0, f64::from(end)) as u32).min(end);
        while reaching > 0 && self.by_length(frequency, reaching - 1) < needed {
            reaching -= 1;
        }
        while reaching < end && self.by_length(frequency, reaching) >= needed {
            reaching += 1;
        }
        reaching
    }
}

/// Frequencies that a sieve has limits for.
const SIEVED: usize = 16;
/// Postings that a sieve notes in one word.
const RUN: usize = 32;
/// A limit that was not computed yet.
const UNKNOWN: u32 = u32::MAX;

/// Picks the postings that may reach a score, by comparing lengths: for each frequency there is one from which on
/// documents are too long. Where lengths that do not fit a byte may reach it, they are left to the score itself.
#[derive(Clone, Debug)]
pub(crate) struct Sieve {
    weigher: Weigher,
    needed: i64,
    /// By frequency: documents of at least this length fall through. Frequencies beyond those before have the last one.
    limits: [u32; SIEVED + 1],
}

impl Sieve {
    pub(crate) fn new(weigher: Weigher) -> Self {
        Self { weigher, needed: i64::MIN, limits: NO_LIMITS }
    }

    /// From now on so much is needed.
    #[inline]
    pub(crate) fn need(&mut self, needed: i64) {
        if self.needed != needed {
            self.needed = needed;
            self.limits = NO_LIMITS;
        }
    }

    /// Whether a posting may reach what is needed.
    #[inline]
    pub(crate) fn may(&mut self, document: u32, frequency: u32, lengths: Lengths<'_>) -> bool {
        match lengths {
            Lengths::Sealed(short, _) if !self.weigher.is_cosine() && self.needed > 0 => {
                u32::from(short[document as usize]) < self.limit(class_of(frequency))
            }
            _ => true,
        }
    }

    /// The limit of a class of frequencies.
    #[inline]
    fn limit(&mut self, class: usize) -> u32 {
        if self.limits[class] == UNKNOWN {
            self.limits[class] = self.weigher.lengths_reaching(class as u32, self.needed, 256);
        }
        self.limits[class]
    }

    /// Notes the places of the postings that may reach what is needed, and perhaps of others; returns how many these are.
    /// There are no more postings than a block has.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        documents: &[u32],
        frequencies: &[u32],
        lengths: Lengths<'_>,
        passed: &mut [u8; BLOCK],
    ) -> usize {
        assert!(documents.len() <= BLOCK && documents.len() == frequencies.len(), "a run of one block");
        let lengths = match lengths {
            Lengths::Sealed(short, _) if !self.weigher.is_cosine() && self.needed > 0 => short,
            _ => {
                passed.iter_mut().zip(0..).for_each(|(place, n)| *place = n);
                return documents.len();
            }
        };
        let mut classes = 0u32;
        frequencies.iter().for_each(|frequency| classes |= 1 << class_of(*frequency));
        while classes != 0 {
            self.limit(classes.trailing_zeros() as usize);
            classes &= classes - 1;
        }
        // Without branches, for which posting passes cannot be foretold; and those that do are few, so they are noted as bits.
        let mut count = 0;
        let runs = documents.chunks(RUN).zip(frequencies.chunks(RUN));
        for (from, (documents, frequencies)) in (0u8..).step_by(RUN).zip(runs) {
            let mut bits = 0u32;
            for (document, frequency) in documents.iter().zip(frequencies).rev() {
                let limit = self.limits[class_of(*frequency)];
                bits = bits << 1 | u32::from(u32::from(lengths[*document as usize]) < limit);
            }
            while bits != 0 {
                passed[count % BLOCK] = from + bits.trailing_zeros() as u8;
                count += 1;
                bits &= bits - 1;
            }
        }
        count
    }
}

/// Frequencies of each term that a sieve of pairs has limits for, with those below.
const PAIRED: usize = 8;
/// A limit that no length in a byte reaches.
const NO_LIMIT: u32 = 256;

/// As [`Sieve`], for documents that hold two terms of one field: for each pair of frequencies there is a length from which on
/// documents are too long.
#[derive(Clone, Debug)]
pub(crate) struct PairSieve {
    weighers: [Weigher; 2],
    needed: i64,
    /// By the frequencies of both; where not fresh, of something lower that was needed before.
    limits: [[u32; PAIRED]; PAIRED],
    /// A bit for each limit.
    fresh: u64,
}

impl PairSieve {
    /// `None` for scores that do not go by length.
    pub(crate) fn new(weighers: [Weigher; 2]) -> Option<Self> {
        let has_lengths = !weighers.iter().any(|weigher| weigher.is_cosine());
        let limits = [[NO_LIMIT; PAIRED]; PAIRED];
        has_lengths.then_some(Self { weighers, needed: i64::MIN, limits, fresh: u64::MAX })
    }

    /// From now on so much is needed: more than before, or a search begins again.
    pub(crate) fn need(&mut self, needed: i64) {
        if needed < self.needed {
            self.limits = [[NO_LIMIT; PAIRED]; PAIRED];
        }
        if needed != self.needed {
            self.needed = needed;
            self.fresh = 0;
        }
    }

    /// Whether a document of this length in a byte that holds the terms so often may reach what is needed.
    #[inline]
    pub(crate) fn may(&mut self, frequencies: [u32; 2], length: u8) -> bool {
        let [first, second] = frequencies.map(|frequency| frequency as usize);
        if first >= PAIRED || second >= PAIRED {
            return true;
        }
        if self.fresh >> (first * PAIRED + second) & 1 == 0 {
            self.refresh(first, second);
        }
        u32::from(length) < self.limits[first][second]
    }

    #[cold]
    fn refresh(&mut self, first: usize, second: usize) {
        let [left, right] = self.weighers;
        let reaches = |length: u32| {
            left.by_length(first as f64, length) + right.by_length(second as f64, length) >= self.needed
        };
        let (mut low, mut high) = (0, self.limits[first][second]);
        while low < high {
            let middle = low + (high - low) / 2;
            if reaches(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.limits[first][second] = low;
        self.fresh |= 1 << (first * PAIRED + second);
    }
}

/// Frequencies with one limit.
#[inline]
fn class_of(frequency: u32) -> usize {
    frequency.min(SIEVED as u32) as usize
}

/// No limit is known but that of frequencies beyond those sieved: all of them pass.
const NO_LIMITS: [u32; SIEVED + 1] = {
    let mut limits = [UNKNOWN; SIEVED + 1];
    limits[SIEVED] = UNKNOWN - 1;
    limits
};

#[cfg(test)]
mod tests {
    use super::super::bounds::{ANY_BOUNDS, Bounds, Coarse, NO_BOUNDS, Pair};
    use super::super::segment::Packed;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn textbook_values() {
        let weigher = Weigher::bm25(bm25_idf(1000, 10), 1000, 50_000);
        let idf = (1.0f64 + 990.5 / 10.5).ln();
        let expected = idf * 3.0 * 2.2 / (3.0 + 1.2 * (0.25 + 0.75 * 80.0 / 50.0));
        assert!((to_float(weigher.by_length(3.0, 80)) - expected).abs() < 1e-6);
        assert!((cosine_idf(100, 10) - 11f64.ln()).abs() < 1e-12);
        assert!(cosine_idf(1, 1) > 0.0, "a word that all documents hold finds them");
        let mut norm = Norm::default();
        norm.add(1);
        norm.add(3);
        assert!((f64::from(norm.value()) - (1.0 + (1.0 + 3f64.ln()).powi(2)).sqrt()).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn a_sieve_keeps_what_reaches_and_its_order(
            postings in prop::collection::vec((0u32..300, 1u32..20), 0..=BLOCK), lengths in prop::collection::vec(1u8..60, 300),
            needed in 0i64..(20 << SCORE_BITS),
        ) {
            let weigher = Weigher::bm25(7.0, 100, 2000);
            let (documents, frequencies): (Vec<u32>, Vec<u32>) = postings.iter().copied().unzip();
            let packed = Packed::One(lengths.clone());
            let (mut sieve, mut passed) = (Sieve::new(weigher), [0; BLOCK]);
            sieve.need(needed);
            let count = sieve.pass(&documents, &frequencies, Lengths::Sealed(&lengths, &packed), &mut passed);
            let passed: Vec<usize> = passed[..count].iter().map(|n| usize::from(*n)).collect();
            prop_assert!(passed.is_sorted_by(|a, b| a < b));
            for (n, (document, frequency)) in postings.iter().enumerate() {
                let score = weigher.by_length(f64::from(*frequency), u32::from(lengths[*document as usize]));
                prop_assert!(score < needed || passed.contains(&n), "what reaches the score passes");
                let is_sieved = (*frequency as usize) < SIEVED && needed > 0;
                prop_assert!(score >= needed || !passed.contains(&n) || !is_sieved, "and of the others few");
            }
        }

        /// What is needed rises from one question to the next.
        #[test]
        fn a_sieve_of_pairs_keeps_what_reaches(
            asked in prop::collection::vec((1u32..12, 1u32..12, 1u8..=255, 0i64..1 << SCORE_BITS), 1..200), other in 0.1f64..9.0,
        ) {
            let weighers = [Weigher::bm25(7.0, 100, 2000), Weigher::bm25(other, 100, 2000)];
            let mut sieve = PairSieve::new(weighers).unwrap();
            let mut needed = 0;
            for (first, second, length, more) in asked {
                needed += more / 16;
                sieve.need(needed);
                let score: i64 = weighers.iter().zip([first, second]).map(|(w, f)| w.by_length(f64::from(f), length.into())).sum();
                let is_paired = (first.max(second) as usize) < PAIRED;
                prop_assert_eq!(sieve.may([first, second], length), score >= needed || !is_paired);
            }
            prop_assert!(PairSieve::new([weighers[0], Weigher::cosine(1.0)]).is_none());
        }

        #[test]
        fn bounds_hold(weight in 0.0f64..20.0, average in 1u64..2000, frequency in 1u32..400, length in 1u32..5000, more in 0u32..300, less in 0u32..5000) {
            let weigher = Weigher::bm25(weight, 10, average * 10);
            let score = weigher.by_length(f64::from(frequency), length);
            let mut bounds = NO_BOUNDS;
            bounds.widen_by(Pair { frequency, length: length.saturating_sub(less).max(1) });
            bounds.widen_by(Pair { frequency: frequency + more, length });
            prop_assert!(score <= weigher.bound(&bounds));
            let mut bytes = Vec::new();
            bounds.encode(&mut bytes);
            prop_assert!(score <= weigher.bound(&Bounds::decode(&bytes, 0, 0.0)));
            prop_assert!(score <= weigher.bound(&Coarse::of(&bounds).bounds()));
            prop_assert!(score <= weigher.bound(&ANY_BOUNDS));
            prop_assert!(weigher.bound(&Bounds::of(frequency, length, 0.0)) <= score + 1, "a bound of one posting is its score");
            let reaching = weigher.lengths_reaching(frequency, score, 6000);
            prop_assert!(reaching > length);
            prop_assert!(weigher.by_length(f64::from(frequency), reaching) < score || reaching == 6000);
            let weigher = Weigher::cosine(weight);
            let norm = (document_weight(frequency) * (1.0 + f64::from(more) / 7.0)) as f32;
            let weight_max = round_up(document_weight(frequency) / f64::from(norm));
            let bounds = Bounds::of(1, 1, weight_max);
            prop_assert!(weigher.by_norm(frequency, norm) <= weigher.bound(&bounds));
            prop_assert!(weigher.by_norm(frequency, norm) <= weigher.bound(&ANY_BOUNDS));
        }
    }
}
