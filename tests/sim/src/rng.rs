//! The only source of chance in a simulation: xoshiro256** seeded by splitmix64 (Blackman and Vigna, 2018).
//!
//! One seed gives one sequence, on every machine. Never seeded from anything but a plan's seed.

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed;
        let state = [(); 4].map(|()| {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = mixed;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        });
        Self { state }
    }

    /// A generator of its own for one purpose, so that drawing more here moves nothing there.
    pub fn fork(&mut self, purpose: u64) -> Self {
        Self::new(self.word() ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// As [`Rng::below`], for places.
    pub fn place(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.place(from.len())]
    }

    /// A duration around `mean`, mostly shorter, sometimes several times as long.
    pub fn around(&mut self, mean: u64) -> u64 {
        let shift = self.word().trailing_zeros().min(3);
        1 + self.below(mean.max(1)) * u64::from(shift.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn a_seed_is_a_sequence() {
        let (mut one, mut same, mut other) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let draw = |rng: &mut Rng| (0..50).map(|_| rng.below(1000)).collect::<Vec<_>>();
        let first = draw(&mut one);
        assert_eq!(first, draw(&mut same));
        assert_ne!(first, draw(&mut other));
        assert!(first.iter().any(|number| *number < 200) && first.iter().any(|number| *number > 800));
    }
}
