//! What the postings of a block cannot exceed, whatever the figures of the query.
//!
//! A score rises with the frequency and falls with the length, and by how much depends on the collection, which moves. So a
//! block keeps the pairs of frequency and length that no other posting of it beats in both: the best of these is the best
//! of all, for any figures, and a bound is as good as the score itself. Only where a block has more such pairs than fit
//! are two of them replaced by one that beats both. The idea is that of Lucene's impacts.
//!
//! Tails and short lists keep [`Coarse`] bounds, four bytes that can be brought up to date with each posting.

use super::super::codec::u32_at;

/// Pairs that bounds keep.
const PAIRS_MAX: usize = 6;
/// In bytes: a frequency of so many or more.
const FREQUENCY_OPEN: u8 = u8::MAX;
/// Bytes of a pair: the frequency, and the length in two.
const PAIR_BYTES: usize = 3;

/// A frequency and a length: of a posting, or better than some posting in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) frequency: u32,
    pub(crate) length: u32,
}

/// Pairs, at least one of which beats or equals each posting; frequencies and lengths rise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pairs: [Pair; PAIRS_MAX],
    count: usize,
    /// Highest (1 + ln frequency) / norm.
    pub(crate) weight_max: f32,
}

const NO_PAIR: Pair = Pair { frequency: 0, length: 0 };
/// Bounds of nothing, to be widened.
pub(crate) const NO_BOUNDS: Bounds = Bounds { pairs: [NO_PAIR; PAIRS_MAX], count: 0, weight_max: 0.0 };
/// Bounds that hold for every posting.
pub(crate) const ANY_BOUNDS: Bounds = Bounds {
    pairs: [Pair { frequency: u32::MAX, length: 1 }, NO_PAIR, NO_PAIR, NO_PAIR, NO_PAIR, NO_PAIR],
    count: 1,
    weight_max: f32::INFINITY,
};

impl Bounds {
    /// The bounds of one posting.
    pub(crate) fn of(frequency: u32, length: u32, weight_max: f32) -> Self {
        let mut bounds = NO_BOUNDS;
        bounds.widen_by(Pair { frequency, length });
        bounds.weight_max = weight_max;
        bounds
    }

    #[inline]
    pub(crate) fn pairs(&self) -> &[Pair] {
        &self.pairs[..self.count]
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn frequency_max(&self) -> u32 {
        self.pairs().last().map_or(0, |pair| pair.frequency)
    }

    /// The lowest length of a posting of at least this frequency; [`u32::MAX`] if there is none.
    pub(crate) fn length_from(&self, frequency: u32) -> u32 {
        let pair = self.pairs().iter().find(|pair| pair.frequency >= frequency);
        pair.map_or(u32::MAX, |pair| pair.length)
    }

    pub(crate) fn widen(&mut self, other: &Bounds) {
        other.pairs().iter().for_each(|pair| self.widen_by(*pair));
        self.weight_max = self.weight_max.max(other.weight_max);
    }

    /// Takes a posting in.
    #[inline]
    pub(crate) fn widen_by(&mut self, new: Pair) {
        if self.pairs().iter().any(|pair| pair.frequency >= new.frequency && pair.length <= new.length) {
            return;
        }
        self.insert(new);
    }

    fn insert(&mut self, new: Pair) {
        let mut pairs = [NO_PAIR; PAIRS_MAX + 1];
        let mut count = 0;
        let is_beaten = |pair: &&Pair| pair.frequency <= new.frequency && pair.length >= new.length;
        let kept = self.pairs().iter().filter(|pair| !is_beaten(pair)).copied();
        let mut is_in = false;
        for pair in kept {
            if !is_in && pair.frequency > new.frequency {
                pairs[count] = new;
                count += 1;
                is_in = true;
            }
            pairs[count] = pair;
            count += 1;
        }
        if !is_in {
            pairs[count] = new;
            count += 1;
        }
        if count > PAIRS_MAX {
            join_nearest(&mut pairs);
            count -= 1;
        }
        self.pairs.copy_from_slice(&pairs[..PAIRS_MAX]);
        self.count = count;
    }

    /// Appends the bytes; the weight goes elsewhere.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.count as u8);
        for pair in self.pairs() {
            out.push(u8::try_from(pair.frequency).unwrap_or(FREQUENCY_OPEN));
            out.extend_from_slice(&u16::try_from(pair.length).unwrap_or(u16::MAX).to_le_bytes());
        }
    }

    /// Reads what [`Bounds::encode`] wrote at a place of trusted bytes, with a bound of the weight from elsewhere.
    #[inline]
    pub(crate) fn decode(bytes: &[u8], at: usize, weight_max: f32) -> Self {
        let mut bounds = Self { weight_max, ..NO_BOUNDS };
        let count = usize::from(bytes[at]).min(PAIRS_MAX);
        let read = bytes[at + 1..][..count * PAIR_BYTES].as_chunks::<PAIR_BYTES>().0;
        for (pair, [frequency, low, high]) in bounds.pairs.iter_mut().zip(read) {
            let frequency = if *frequency == FREQUENCY_OPEN { u32::MAX } else { u32::from(*frequency) };
            *pair = Pair { frequency, length: u32::from(u16::from_le_bytes([*low, *high])) };
        }
        bounds.count = count;
        bounds
    }
}

/// Replaces two neighbours of a full set by one that beats both: those where a score of a usual collection grows least.
fn join_nearest(pairs: &mut [Pair; PAIRS_MAX + 1]) {
    const USUAL_LENGTH: f32 = 64.0;
    let score = |frequency: u32, length: u32| {
        frequency as f32 / (frequency as f32 + 0.3 + 0.9 * length as f32 / USUAL_LENGTH)
    };
    let growth = |n: usize| {
        let (low, high) = (pairs[n], pairs[n + 1]);
        score(high.frequency, low.length)
            - score(low.frequency, low.length).max(score(high.frequency, high.length))
    };
    let nearest = (0..PAIRS_MAX).min_by(|a, b| growth(*a).total_cmp(&growth(*b))).unwrap_or(0);
    pairs[nearest + 1].length = pairs[nearest].length;
    pairs.copy_within(nearest + 1.., nearest);
}

/// Classes of frequency in [`Coarse`]: once, twice, more often.
const CLASSES: usize = 3;

/// Bounds in four bytes: the highest frequency (255: that or more), then by class of frequency the lowest length (0: no
/// document; 255: that or more).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coarse([u8; COARSE_BYTES]);

/// Bytes of [`Coarse`].
pub(crate) const COARSE_BYTES: usize = 1 + CLASSES;

impl Coarse {
    /// Takes a posting in.
    #[inline]
    pub(crate) fn widen_by(&mut self, posting: Pair) {
        let [frequency_max, lengths @ ..] = &mut self.0;
        *frequency_max = (*frequency_max).max(posting.frequency.min(255) as u8);
        let lowest = &mut lengths[(posting.frequency.max(1) as usize - 1).min(CLASSES - 1)];
        let length = posting.length.clamp(1, 255) as u8;
        *lowest = if *lowest == 0 { length } else { length.min(*lowest) };
    }

    /// Of what [`Bounds`] hold.
    #[cfg(test)]
    pub(crate) fn of(bounds: &Bounds) -> Self {
        let mut coarse = Self::default();
        bounds.pairs().iter().for_each(|pair| coarse.widen_by(*pair));
        coarse
    }

    pub(crate) fn to_bytes(self) -> [u8; COARSE_BYTES] {
        self.0
    }

    /// At a place of trusted bytes.
    pub(crate) fn at(bytes: &[u8], at: usize) -> Self {
        Self(u32_at(bytes, at).to_le_bytes())
    }

    /// As bounds of any weight.
    #[inline]
    pub(crate) fn bounds(self) -> Bounds {
        let [frequency_max, lengths @ ..] = self.0;
        let open = |frequency: u8| if frequency == 255 { u32::MAX } else { u32::from(frequency) };
        let mut bounds = Bounds { weight_max: f32::INFINITY, ..NO_BOUNDS };
        for (class, length) in lengths.into_iter().enumerate().filter(|(_, length)| *length > 0) {
            let frequency = if class + 1 == CLASSES { open(frequency_max) } else { class as u32 + 1 };
            bounds.widen_by(Pair { frequency, length: u32::from(length) });
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(frequency: u32, length: u32) -> Pair {
        Pair { frequency, length }
    }

    #[test]
    fn what_is_beaten_goes() {
        let mut bounds = NO_BOUNDS;
        for (frequency, length) in [(1, 90), (1, 80), (2, 300), (7, 120), (3, 121), (1, 85)] {
            bounds.widen(&Bounds::of(frequency, length, 0.5));
        }
        assert_eq!(bounds.pairs(), [pair(1, 80), pair(7, 120)]);
        assert_eq!(
            (bounds.length_from(1), bounds.length_from(2), bounds.length_from(8)),
            (80, 120, u32::MAX)
        );
        let mut bytes = vec![9];
        bounds.encode(&mut bytes);
        assert_eq!(bytes, [9, 2, 1, 80, 0, 7, 120, 0]);
        assert_eq!(Bounds::decode(&bytes, 1, 0.5), bounds);
        assert_eq!(Coarse::of(&bounds).to_bytes(), [7, 80, 0, 120]);
        assert_eq!(Coarse::at(&[0, 7, 80, 0, 120], 1).bounds().pairs(), bounds.pairs());
        bytes.clear();
        Bounds::of(300, 100_000, 0.0).encode(&mut bytes);
        assert_eq!(Bounds::decode(&bytes, 0, 0.0).pairs(), [pair(u32::MAX, 65_535)]);
    }

    proptest! {
        /// Whatever was taken in is beaten or equalled by a pair, also after a trip through bytes; and where all fit, each pair
        /// is a posting's.
        #[test]
        fn every_posting_is_beaten(postings in prop::collection::vec((1u32..300, 1u32..70_000), 1..60), low in 1u32..5) {
            let mut bounds = NO_BOUNDS;
            let postings: Vec<Pair> = postings.iter().map(|(f, l)| pair(f % (low * 60) + 1, *l)).collect();
            postings.iter().for_each(|posting| bounds.widen_by(*posting));
            let mut bytes = Vec::new();
            bounds.encode(&mut bytes);
            for bounds in [bounds, Bounds::decode(&bytes, 0, 0.0), Coarse::of(&bounds).bounds()] {
                prop_assert!(bounds.pairs().is_sorted_by(|a, b| a.frequency <= b.frequency && a.length <= b.length));
                for posting in &postings {
                    prop_assert!(bounds.length_from(posting.frequency) <= posting.length);
                    prop_assert!(bounds.frequency_max() >= posting.frequency);
                }
            }
            if postings.len() <= PAIRS_MAX {
                prop_assert!(bounds.pairs().iter().all(|pair| postings.contains(pair)));
            }
        }
    }
}
