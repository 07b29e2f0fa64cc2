//! Seeded chance for the load: a generator and the distributions of keys.
//!
//! The same seed gives the same load. Not for secrets. Never reads a clock.

/// A small, fast generator: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`, which is not 0. The bias is below `bound / 2^64`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is a number below the bound");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to below 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something of this chance, from 0 to 1, happens.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the result.
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Ranks from 0 (the most frequent) to `count - 1`, where rank r is drawn in proportion to 1 / (r + 1)^theta.
///
/// Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994, as in the YCSB benchmark.
#[derive(Clone, Debug)]
pub(super) struct Zipfian {
    count: f64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

/// The skew of the YCSB benchmark.
pub(super) const YCSB_THETA: f64 = 0.99;

impl Zipfian {
    pub(super) fn new(count: u64, theta: f64) -> Self {
        assert!(count > 0 && theta > 0.0 && theta < 1.0, "the method holds for a skew below 1");
        let zeta = |upto: u64| (1..=upto).map(|rank| (rank as f64).powf(-theta)).sum::<f64>();
        let (zeta_count, zeta_two) = (zeta(count), zeta(2));
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta_two / zeta_count);
        Self { count: count as f64, theta, alpha: 1.0 / (1.0 - theta), zeta: zeta_count, eta }
    }

    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let scaled = unit * self.zeta;
        if scaled < 1.0 || self.count < 2.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let rank = self.count * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count as u64 - 1)
    }
}

/// Which key a request takes.
#[derive(Clone, Debug)]
pub(super) enum KeyChoice {
    /// Each equally often.
    Uniform,
    /// Few keys most often, spread over the whole key space.
    Zipfian(Zipfian),
    /// The newest most often (YCSB D).
    Latest(Zipfian),
}

impl KeyChoice {
    /// A key number below `count`, which is not below the count that the distribution was made for.
    pub(super) fn draw(&self, random: &mut Random, count: u64) -> u64 {
        match self {
            KeyChoice::Uniform => random.below(count),
            KeyChoice::Zipfian(zipfian) => mix(zipfian.draw(random)) % count,
            KeyChoice::Latest(zipfian) => count - 1 - zipfian.draw(random).min(count - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_load() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|drawn| *drawn < 1000));
    }

    #[test]
    fn zipfian_ranks_come_as_often_as_they_should() {
        let (count, draws) = (1000, 200_000);
        let zipfian = Zipfian::new(count, YCSB_THETA);
        let mut random = Random::new(1);
        let mut seen = vec![0u64; count as usize];
        for _ in 0..draws {
            seen[zipfian.draw(&mut random) as usize] += 1;
        }
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-YCSB_THETA)).sum();
        for rank in [0, 1] {
            let expected = f64::from(draws) * f64::from(rank + 1).powf(-YCSB_THETA) / zeta;
            let ratio = seen[rank as usize] as f64 / expected;
            assert!((0.95..1.05).contains(&ratio), "rank {rank}: {ratio}");
        }
        // Beyond the first two the method approximates; the whole first tenth is still close.
        let expected: f64 = (1..=100).map(|rank| f64::from(rank).powf(-YCSB_THETA)).sum::<f64>() / zeta;
        let share = seen[..100].iter().sum::<u64>() as f64 / f64::from(draws);
        assert!((share - expected).abs() < 0.05, "{share} of {expected}");
    }

    #[test]
    fn choices_stay_below_their_count() {
        let mut random = Random::new(3);
        for count in [1, 2, 1000] {
            let zipfian = Zipfian::new(count, YCSB_THETA);
            let choices =
                [KeyChoice::Uniform, KeyChoice::Zipfian(zipfian.clone()), KeyChoice::Latest(zipfian)];
            for choice in &choices {
                assert!((0..1000).all(|_| choice.draw(&mut random, count) < count), "{choice:?}");
            }
        }
        let latest = KeyChoice::Latest(Zipfian::new(1000, YCSB_THETA));
        let newest = (0..1000).filter(|_| latest.draw(&mut random, 2000) >= 1900).count();
        assert!(newest > 500, "{newest} of 1000 among the newest twentieth");
    }
}
