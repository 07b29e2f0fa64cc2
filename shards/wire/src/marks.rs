//! Finds bytes sixteen at a time and notes them as the bits of one word for each block of sixty-four.
//!
//! A word of marks is then taken apart by counting zeros, so that a line of several short strings costs a look at each
//! block and a few instructions for each string. Vectors come from `wide`, which uses what the target always has (SSE2,
//! NEON) and has a plain loop for anything else.

use wide::i8x16;

/// Bytes of a block, a bit of its word each.
const BLOCK: usize = 64;
/// Bytes of a vector.
const VECTOR: usize = 16;

/// Walks over the ends of lines: the positions of `\n`, ascending.
#[derive(Clone, Debug)]
pub struct LineEnds<'a> {
    bytes: &'a [u8],
    /// Where the block of `marks` begins.
    from: usize,
    /// Ends in this block that were not given out.
    marks: u64,
}

impl<'a> LineEnds<'a> {
    /// The line ends of `bytes` at `from` and behind.
    ///
    /// # Panics
    /// When `from` lies beyond the end.
    #[inline]
    pub fn new(bytes: &'a [u8], from: usize) -> Self {
        Self { bytes, from, marks: block(bytes, from, is_line_end) }
    }
}

impl Iterator for LineEnds<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.marks == 0 {
            self.from += BLOCK;
            if self.from >= self.bytes.len() {
                // Stays at the end, where there is nothing, however often it is asked.
                self.from = self.bytes.len();
                return None;
            }
            self.marks = block(self.bytes, self.from, is_line_end);
        }
        let position = self.from + self.marks.trailing_zeros() as usize;
        self.marks &= self.marks - 1;
        Some(position)
    }
}

/// Where plain strings may end: quotes, and whatever makes a string other than plain (a backslash, a control character,
/// a byte above 127). Asked for rising positions.
#[derive(Clone, Debug)]
pub(crate) struct StringEnds<'a> {
    bytes: &'a [u8],
    /// Where the block of `marks` begins.
    from: usize,
    marks: u64,
}

impl<'a> StringEnds<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, from: 0, marks: string_marks(bytes, 0) }
    }

    /// The first such byte at `at` or behind it, or the length of the input. `at` must not lie before a position given out.
    #[inline]
    pub(crate) fn next(&mut self, at: usize) -> usize {
        let offset = at - self.from;
        if offset < BLOCK {
            let rest = self.marks >> offset;
            if rest != 0 {
                return at + rest.trailing_zeros() as usize;
            }
        }
        self.next_far(at.max(self.from + BLOCK))
    }

    /// The same for a position whose block was not looked at yet.
    #[inline(never)]
    fn next_far(&mut self, at: usize) -> usize {
        for from in (at..self.bytes.len()).step_by(BLOCK) {
            self.from = from;
            self.marks = string_marks(self.bytes, from);
            if self.marks != 0 {
                return from + self.marks.trailing_zeros() as usize;
            }
        }
        self.bytes.len()
    }
}

/// Position of the next quote, backslash, control character or byte above 127 at `at` or behind it, or the input's end.
#[inline]
pub(crate) fn next_syntax_or_wide(bytes: &[u8], at: usize) -> usize {
    next_marked(bytes, at, is_no_plain_text)
}

/// The same for quotes, backslashes and control characters alone.
#[inline]
pub(crate) fn next_syntax(bytes: &[u8], at: usize) -> usize {
    next_marked(bytes, at, |bytes| is_no_plain_text(bytes) & !bytes.simd_lt(i8x16::splat(0)))
}

#[inline]
fn next_marked(bytes: &[u8], at: usize, mark: impl Fn(i8x16) -> i8x16) -> usize {
    let mut at = at;
    while let Some(vector) = bytes.get(at..).and_then(|rest| rest.first_chunk::<VECTOR>()) {
        let marks = word(vector, &mark);
        if marks != 0 {
            return at + marks.trailing_zeros() as usize;
        }
        at += VECTOR;
    }
    let left = bytes.len().saturating_sub(at);
    let marks = if left > 0 { word_at_end(bytes, left, &mark) } else { 0 };
    if marks != 0 { at + marks.trailing_zeros() as usize } else { bytes.len() }
}

/// The marks of a block; what lies beyond the input is marked too.
#[inline]
fn string_marks(bytes: &[u8], from: usize) -> u64 {
    let left = bytes.len() - from;
    let beyond = if left < BLOCK { u64::MAX << left } else { 0 };
    block(bytes, from, is_no_plain_text) | beyond
}

/// A bit for each of the sixty-four bytes from `from` on that `mark` sets; none for what lies beyond the input.
#[inline]
fn block(bytes: &[u8], from: usize, mark: impl Fn(i8x16) -> i8x16) -> u64 {
    let rest = &bytes[from..];
    if let Some(whole) = rest.first_chunk::<BLOCK>() {
        let (vectors, _) = whole.as_chunks::<VECTOR>();
        return word(&vectors[0], &mark)
            | word(&vectors[1], &mark) << VECTOR
            | word(&vectors[2], &mark) << (2 * VECTOR)
            | word(&vectors[3], &mark) << (3 * VECTOR);
    }
    let (vectors, last) = rest.as_chunks::<VECTOR>();
    let (mut marks, mut shift) = (0, 0);
    for vector in vectors {
        marks |= word(vector, &mark) << shift;
        shift += VECTOR;
    }
    if last.is_empty() { marks } else { marks | word_at_end(bytes, last.len(), &mark) << shift }
}

/// A bit for each byte of a vector that `mark` sets.
#[inline]
fn word(vector: &[u8; VECTOR], mark: &impl Fn(i8x16) -> i8x16) -> u64 {
    u64::from(mark(i8x16::new(vector.map(u8::cast_signed))).to_bitmask())
}

/// The same for the last `left` bytes of the input, fewer than a vector has and at least one.
#[inline]
fn word_at_end(bytes: &[u8], left: usize, mark: &impl Fn(i8x16) -> i8x16) -> u64 {
    // The vector ends with the input and begins with bytes that were looked at already, where there are as many.
    match bytes.last_chunk::<VECTOR>() {
        Some(vector) => word(vector, mark) >> (VECTOR - left),
        None => {
            let mut vector = [0; VECTOR];
            vector[..left].copy_from_slice(&bytes[bytes.len() - left..]);
            word(&vector, mark) & !(u64::MAX << left)
        }
    }
}

#[inline]
fn is_line_end(bytes: i8x16) -> i8x16 {
    bytes.simd_eq(splat(b'\n'))
}

#[inline]
fn is_no_plain_text(bytes: i8x16) -> i8x16 {
    // As a signed number a byte above 127 is below every control character, so one comparison covers both.
    bytes.simd_eq(splat(b'"')) | bytes.simd_eq(splat(b'\\')) | bytes.simd_lt(splat(b' '))
}

#[inline]
fn splat(byte: u8) -> i8x16 {
    i8x16::splat(byte.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn marks_are_what_a_loop_finds(
            bytes in proptest::collection::vec(prop_oneof![8 => Just(b'a'), 1 => any::<u8>(), 1 => Just(b'"'), 1 => Just(b'\n')], 0..300),
            from in 0..300usize,
        ) {
            let from = from.min(bytes.len());
            let ends: Vec<usize> = LineEnds::new(&bytes, from).collect();
            let plain = (from..bytes.len()).filter(|at| bytes[*at] == b'\n');
            prop_assert_eq!(ends, plain.collect::<Vec<_>>());

            let is_syntax = |byte: u8| byte == b'"' || byte == b'\\' || byte < b' ';
            let first = |is: &dyn Fn(u8) -> bool| (from..bytes.len()).find(|at| is(bytes[*at])).unwrap_or(bytes.len());
            prop_assert_eq!(next_syntax(&bytes, from), first(&is_syntax));
            prop_assert_eq!(next_syntax_or_wide(&bytes, from), first(&|byte| is_syntax(byte) || byte > 127));

            let is_end = |byte: u8| byte == b'"' || byte == b'\\' || byte < b' ' || byte > 127;
            let mut marks = StringEnds::new(&bytes);
            let mut at = from;
            while at < bytes.len() {
                let expected = (at..bytes.len()).find(|at| is_end(bytes[*at])).unwrap_or(bytes.len());
                prop_assert_eq!(marks.next(at), expected);
                prop_assert_eq!(marks.next(expected), expected, "asked again");
                at = expected + 1 + at % 3 * 40;
            }
        }
    }

    #[test]
    fn an_exhausted_walk_stays_so() {
        let mut ends = LineEnds::new(b"a\n", 0);
        assert_eq!((ends.next(), ends.next(), ends.next()), (Some(1), None, None));
        assert_eq!(LineEnds::new(b"", 0).next(), None);
        assert_eq!(StringEnds::new(b"").next(0), 0);
    }
}
