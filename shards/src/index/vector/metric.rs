//! How vectors compare: closeness, which ranks, and similarity, which clients see.
//!
//! Closeness is made of a dot product and two lengths by basic IEEE operations in one order, so every machine gets the same
//! number. Both travel as integers whose order is the order of the numbers ([`sortable`]).

/// How vectors are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Cosine of the angle.
    Cosine,
    /// Dot product.
    Dot,
    /// 1 / (1 + squared Euclidean distance).
    L2,
}

impl Metric {
    /// The metric of a name in the protocol.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cosine" => Some(Self::Cosine),
            "dot" => Some(Self::Dot),
            "l2" => Some(Self::L2),
            _ => None,
        }
    }

    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::L2 => "l2",
        }
    }

    /// How close vectors with this dot product and these lengths are: higher is closer.
    #[inline]
    pub(super) fn closeness(self, dot: f64, left_length: f64, right_length: f64) -> f64 {
        match self {
            Self::Cosine => {
                let lengths = left_length * right_length;
                if lengths > 0.0 { dot / lengths } else { 0.0 }
            }
            Self::Dot => dot,
            Self::L2 => 2.0 * dot - left_length * left_length - right_length * right_length,
        }
    }

    /// The similarity of two vectors, exactly but for the last bits, which are rounded off.
    pub(super) fn similarity(self, left: &[f32], right: &[f32]) -> f64 {
        let pairs = || left.iter().zip(right).map(|(left, right)| (f64::from(*left), f64::from(*right)));
        let similarity = match self {
            Self::Cosine => {
                let (mut dot, mut lefts, mut rights) = (0.0, 0.0, 0.0);
                for (left, right) in pairs() {
                    dot += left * right;
                    lefts += left * left;
                    rights += right * right;
                }
                let lengths = f64::sqrt(lefts) * f64::sqrt(rights);
                if lengths > 0.0 { (dot / lengths).clamp(-1.0, 1.0) } else { 0.0 }
            }
            Self::Dot => pairs().map(|(left, right)| left * right).sum(),
            Self::L2 => {
                1.0 / (1.0 + pairs().map(|(left, right)| (left - right) * (left - right)).sum::<f64>())
            }
        };
        rounded(similarity)
    }
}

/// The distance of a query from vectors, told from their closeness: its square is `zero - slope * closeness`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distance {
    zero: f64,
    slope: f64,
}

impl Distance {
    /// Of a query of this length from vectors that are at most `length_max` long.
    ///
    /// For the cosine all vectors are taken as being of length one. For the dot product the query is taken as being as long as the
    /// longest vector, and all vectors are given one more dimension that makes them that long too (Bachrach and others, "Speeding up
    /// the Xbox recommender system using a Euclidean transformation for inner-product spaces", RecSys 2014).
    pub(super) fn new(metric: Metric, length: f64, length_max: f64) -> Self {
        match metric {
            Metric::Cosine => Self { zero: 2.0, slope: 2.0 },
            Metric::L2 => Self { zero: 0.0, slope: 1.0 },
            Metric::Dot if length > 0.0 && length_max > 0.0 => {
                Self { zero: 2.0 * length_max * length_max, slope: 2.0 * length_max / length }
            }
            // All are equally close.
            Metric::Dot => Self { zero: 1.0, slope: 1.0 },
        }
    }

    /// The closeness, in sortable form, of what is `times` as far as what has this closeness.
    pub(super) fn closeness_at(self, closeness: i64, times: f64) -> i64 {
        // Closeness comes from rounded copies: what is equal to the query may seem to be nearer than that.
        let square = (self.zero - self.slope * from_sortable(closeness)).max(0.0);
        sortable((self.zero - times * times * square) / self.slope)
    }
}

/// Bits of a fraction that rounding drops: 32 of 52 stay, far more than vectors of 32-bit numbers tell apart.
const DROPPED_BITS: u32 = 20;

fn rounded(number: f64) -> f64 {
    let half = 1u64 << (DROPPED_BITS - 1);
    let round = f64::from_bits((number.to_bits() + half) & !((1 << DROPPED_BITS) - 1));
    if round.is_finite() { round } else { number }
}

/// A finite number as an integer of the same order.
#[inline]
pub(crate) fn sortable(number: f64) -> i64 {
    let bits = (number + 0.0).to_bits() as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

/// The number that [`sortable`] was given.
pub(crate) fn from_sortable(sortable: i64) -> f64 {
    f64::from_bits((sortable ^ ((sortable >> 63) as u64 >> 1) as i64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn similarities_by_example() {
        assert_eq!(Metric::Cosine.similarity(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(Metric::Cosine.similarity(&[0.0, 0.0], &[6.0, 8.0]), 0.0);
        assert_eq!(Metric::Dot.similarity(&[3.0, 4.0], &[6.0, 8.0]), 50.0);
        assert_eq!(Metric::L2.similarity(&[3.0, 4.0], &[3.0, 5.0]), 0.5);
        let far = [Metric::L2.similarity(&[0.0], &[1000.0]), Metric::L2.similarity(&[0.0], &[1000.1])];
        assert!(sortable(far[0]) > sortable(far[1]), "far vectors are told apart");
    }

    /// The closeness at twice the distance, and what it must be.
    fn check_twice(metric: Metric, length: f64, length_max: f64, closeness: f64, expected: f64) {
        let at = Distance::new(metric, length, length_max).closeness_at(sortable(closeness), 2.0);
        assert!((from_sortable(at) - expected).abs() < 1e-9, "{metric:?}: {}", from_sortable(at));
    }

    #[test]
    fn distances_by_example() {
        check_twice(Metric::L2, 5.0, 9.0, -3.0, -12.0);
        // The chord of a cosine of 7/8 is 1/2; that of 1/2 is 1.
        check_twice(Metric::Cosine, 5.0, 9.0, 0.875, 0.5);
        // The same on a sphere of radius 9, for a query of length 5.
        check_twice(Metric::Dot, 5.0, 9.0, 0.875 * 45.0, 0.5 * 45.0);
        check_twice(Metric::Cosine, 5.0, 9.0, 1.001, 1.0);
        let nowhere = Distance::new(Metric::Dot, 0.0, 9.0);
        assert!(from_sortable(nowhere.closeness_at(sortable(0.0), 1.1)) < 0.0, "all are within reach");
    }

    proptest! {
        #[test]
        fn integers_keep_the_order(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(a.is_finite() && b.is_finite());
            prop_assert_eq!(from_sortable(sortable(a)), a);
            prop_assert_eq!(sortable(a).cmp(&sortable(b)), a.partial_cmp(&b).unwrap());
            let near = rounded(a);
            prop_assert!(a.abs() < 1e-290 || ((near - a) / a).abs() < 1e-9);
            prop_assert!(a >= b || rounded(a) <= rounded(b));
        }
    }
}
