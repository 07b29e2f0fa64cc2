//! Dot products of small integers: AVX2 where the processor has it, found out at run time, else plain loops.
//!
//! Both give the same numbers, bit for bit, so answers do not depend on the machine. Callers keep the sums within 32 bits
//! by bounding dimension and magnitudes. Of slices that differ in length the shorter one counts.

#![allow(unsafe_code, reason = "AVX2 loads, and calls of functions compiled for AVX2 after it was found")]

/// The best way of this processor to multiply vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// True only where `avx2` was detected.
    has_avx2: bool,
}

impl Kernel {
    /// The fastest that this processor can run.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let has_avx2 = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let has_avx2 = false;
        Self { has_avx2 }
    }

    /// Plain loops, for comparison.
    pub fn scalar() -> Self {
        Self { has_avx2: false }
    }

    /// Whether the processor's wide registers are used.
    pub fn is_wide(self) -> bool {
        self.has_avx2
    }

    /// Dot product of 16-bit and 8-bit numbers.
    #[inline]
    pub fn dot(self, query: &[i16], document: &[i8]) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2 {
            // SAFETY: `has_avx2` is set only where the processor has AVX2.
            return unsafe { wide::dot(query, document) };
        }
        dot(query, document)
    }

    /// Dot product of 8-bit numbers.
    #[inline]
    pub fn dot_bytes(self, left: &[i8], right: &[i8]) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2 {
            // SAFETY: `has_avx2` is set only where the processor has AVX2.
            return unsafe { wide::dot_bytes(left, right) };
        }
        dot_bytes(left, right)
    }

    /// Dot product with a query, and the square of the document's length.
    #[inline]
    pub fn dot_and_square(self, query: &[i16], document: &[i8]) -> (i32, i32) {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2 {
            // SAFETY: `has_avx2` is set only where the processor has AVX2.
            return unsafe { wide::dot_and_square(query, document) };
        }
        (dot(query, document), dot_bytes(document, document))
    }
}

fn dot(query: &[i16], document: &[i8]) -> i32 {
    query.iter().zip(document).map(|(left, right)| i32::from(*left) * i32::from(*right)).sum()
}

fn dot_bytes(left: &[i8], right: &[i8]) -> i32 {
    left.iter().zip(right).map(|(left, right)| i32::from(*left) * i32::from(*right)).sum()
}

/// Sixteen numbers at a time; what is left over is done by the plain loops.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    const LANES: usize = 16;

    #[target_feature(enable = "avx2")]
    pub(super) fn dot(query: &[i16], document: &[i8]) -> i32 {
        let (queries, documents) = (query.as_chunks::<LANES>().0, document.as_chunks::<LANES>().0);
        let mut sum = _mm256_setzero_si256();
        for (left, right) in queries.iter().zip(documents) {
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words(left), widened(right)));
        }
        let done = queries.len().min(documents.len()) * LANES;
        total(sum) + super::dot(&query[done..], &document[done..])
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dot_bytes(left: &[i8], right: &[i8]) -> i32 {
        let (lefts, rights) = (left.as_chunks::<LANES>().0, right.as_chunks::<LANES>().0);
        let mut sum = _mm256_setzero_si256();
        for (left, right) in lefts.iter().zip(rights) {
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(widened(left), widened(right)));
        }
        let done = lefts.len().min(rights.len()) * LANES;
        total(sum) + super::dot_bytes(&left[done..], &right[done..])
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dot_and_square(query: &[i16], document: &[i8]) -> (i32, i32) {
        let (queries, documents) = (query.as_chunks::<LANES>().0, document.as_chunks::<LANES>().0);
        let (mut sum, mut squares) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for (left, right) in queries.iter().zip(documents) {
            let right = widened(right);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words(left), right));
            squares = _mm256_add_epi32(squares, _mm256_madd_epi16(right, right));
        }
        let done = queries.len().min(documents.len()) * LANES;
        let rest = &document[done..];
        (total(sum) + super::dot(&query[done..], rest), total(squares) + super::dot_bytes(rest, rest))
    }

    #[target_feature(enable = "avx2")]
    fn words(numbers: &[i16; LANES]) -> __m256i {
        // SAFETY: the array has the 32 bytes that an unaligned load reads.
        unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn widened(numbers: &[i8; LANES]) -> __m256i {
        // SAFETY: the array has the 16 bytes that an unaligned load reads.
        _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(numbers.as_ptr().cast()) })
    }

    /// The sum of the eight lanes.
    #[target_feature(enable = "avx2")]
    fn total(sums: __m256i) -> i32 {
        let halves = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let pairs = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b00_00_11_10>(halves));
        _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<0b00_00_00_01>(pairs)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wide_and_plain_give_the_same(
            query in prop::collection::vec(prop_oneof![-16_383i16..=16_383, Just(16_383), Just(-16_383)], 0..300),
            document in prop::collection::vec(prop_oneof![-127i8..=127, Just(127), Just(-127)], 0..300),
            equal in any::<bool>(),
        ) {
            let length = if equal { query.len().min(document.len()) } else { usize::MAX };
            let (query, document) = (&query[..query.len().min(length)], &document[..document.len().min(length)]);
            let (wide, plain) = (Kernel::detect(), Kernel::scalar());
            prop_assert_eq!(wide.dot(query, document), plain.dot(query, document));
            let (_, square) = plain.dot_and_square(document.iter().map(|_| 0).collect::<Vec<i16>>().as_slice(), document);
            prop_assert_eq!(wide.dot_bytes(document, document), square);
            if equal {
                prop_assert_eq!(wide.dot_and_square(query, document), plain.dot_and_square(query, document));
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        let (query, document) = (vec![16_383i16; 1024], vec![-127i8; 1024]);
        assert_eq!(Kernel::detect().dot(&query, &document), -16_383 * 127 * 1024);
        let (query, document) = (vec![2047i16; 4096], vec![127i8; 4096]);
        assert_eq!(Kernel::detect().dot(&query, &document), 2047 * 127 * 4096);
        assert_eq!(Kernel::detect().dot_bytes(&document, &document), 127 * 127 * 4096);
    }
}
