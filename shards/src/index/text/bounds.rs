//! What the postings of a block cannot exceed, whatever the figures of the query.
//!
//! A score rises with the frequency and falls with the length, and by how much depends on the collection, so neither can be
//! left out. The lowest length is kept for each of three classes of frequency: a long document with many occurrences and a
//! short one with a single one do not add up to a short document with many.

/// Classes of frequency: once, twice, more often.
pub(crate) const CLASSES: usize = 3;

/// Upper bounds of frequency and weight, lower bounds of length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) frequency_max: u32,
    /// Lowest length of the documents of each class; [`u32::MAX`] where there is none.
    pub(crate) lengths_min: [u32; CLASSES],
    /// Highest (1 + ln frequency) / norm.
    pub(crate) weight_max: f32,
}

/// Bounds of nothing, to be widened.
pub(crate) const NO_BOUNDS: Bounds =
    Bounds { frequency_max: 0, lengths_min: [u32::MAX; CLASSES], weight_max: 0.0 };
/// Bounds that hold for every posting.
pub(crate) const ANY_BOUNDS: Bounds =
    Bounds { frequency_max: u32::MAX, lengths_min: [1; CLASSES], weight_max: f32::INFINITY };

/// Bytes of [`Bounds::to_bytes`].
pub(crate) const BOUNDS_BYTES: usize = 1 + CLASSES;

impl Bounds {
    /// The bounds of one posting.
    pub(crate) fn of(frequency: u32, length: u32, weight_max: f32) -> Self {
        let mut lengths_min = [u32::MAX; CLASSES];
        lengths_min[(frequency.max(1) as usize - 1).min(CLASSES - 1)] = length;
        Self { frequency_max: frequency, lengths_min, weight_max }
    }

    pub(crate) fn widen(&mut self, other: Bounds) {
        self.frequency_max = self.frequency_max.max(other.frequency_max);
        for (own, other) in self.lengths_min.iter_mut().zip(other.lengths_min) {
            *own = (*own).min(other);
        }
        self.weight_max = self.weight_max.max(other.weight_max);
    }

    /// The lowest length of the documents of a class and those above it.
    pub(crate) fn length_from(&self, class: usize) -> u32 {
        self.lengths_min[class..].iter().copied().min().unwrap_or(u32::MAX)
    }

    /// Highest frequency (255: that or more), then by class the lowest length (0: no document; 255: that or more).
    pub(crate) fn to_bytes(self) -> [u8; BOUNDS_BYTES] {
        let mut bytes = [self.frequency_max.min(255) as u8, 0, 0, 0];
        for (byte, length) in bytes[1..].iter_mut().zip(self.lengths_min) {
            *byte = if length == u32::MAX { 0 } else { length.clamp(1, 255) as u8 };
        }
        bytes
    }

    /// Reads what [`Bounds::to_bytes`] wrote, with a bound of the weight from elsewhere.
    #[inline]
    pub(crate) fn from_bytes(bytes: [u8; BOUNDS_BYTES], weight_max: f32) -> Self {
        let [frequency, lengths @ ..] = bytes;
        Self {
            frequency_max: if frequency == 255 { u32::MAX } else { u32::from(frequency) },
            lengths_min: lengths.map(|length| if length == 0 { u32::MAX } else { u32::from(length) }),
            weight_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_what_is_a_bound() {
        let mut bounds = NO_BOUNDS;
        for (frequency, length) in [(1, 90), (1, 80), (2, 300), (7, 12)] {
            bounds.widen(Bounds::of(frequency, length, 0.5));
        }
        assert_eq!(bounds.lengths_min, [80, 300, 12]);
        assert_eq!((bounds.length_from(0), bounds.length_from(1)), (12, 12));
        assert_eq!(bounds.to_bytes(), [7, 80, 255, 12]);
        let back = Bounds::from_bytes(bounds.to_bytes(), 0.5);
        assert_eq!((back.frequency_max, back.lengths_min), (7, [80, 255, 12]));
        assert_eq!(
            Bounds::from_bytes(Bounds::of(300, 1000, 0.0).to_bytes(), 0.0).lengths_min,
            [u32::MAX, u32::MAX, 255]
        );
        assert_eq!(Bounds::of(300, 1000, 0.0).to_bytes()[0], 255);
    }
}
