//! What vectors are compared with: a query, or a vector of the index, as 16-bit numbers.

use super::metric::{Distance, Metric, sortable};
use super::slots::Slots;

/// Highest magnitude of a query's number.
const QUERY_MAX: f64 = 2047.0;
const _: () = assert!(super::VECTOR_DIMENSIONS_MAX * 2047 * 127 <= i32::MAX as usize);

/// A vector to compare with.
#[derive(Debug)]
pub(super) struct Probe {
    coarse: Vec<i16>,
    /// What one unit of `coarse` is worth.
    scale: f64,
    length: f64,
}

impl Probe {
    /// Of finite numbers.
    pub(super) fn of_query(query: &[f32]) -> Self {
        let largest = query.iter().fold(0.0f64, |largest, number| largest.max(f64::from(number.abs())));
        let factor = if largest > 0.0 { QUERY_MAX / largest } else { 0.0 };
        let coarse = query.iter().map(|number| (f64::from(*number) * factor).round() as i16).collect();
        let square: f64 = query.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
        Self { coarse, scale: largest / QUERY_MAX, length: square.sqrt() }
    }

    /// Of the int8 copy in a slot.
    pub(super) fn of_slot(slots: &Slots, slot: u32) -> Self {
        let head = slots.head(slot);
        let coarse = slots.bytes(slot).iter().map(|byte| i16::from(*byte)).collect();
        Self { coarse, scale: head.scale, length: head.length }
    }

    /// Its distance from vectors that are at most `length_max` long.
    pub(super) fn distance(&self, metric: Metric, length_max: f64) -> Distance {
        Distance::new(metric, self.length, length_max)
    }

    /// How close the vector in a slot is, by its int8 copy.
    #[inline]
    pub(super) fn closeness(&self, slots: &Slots, slot: u32) -> i64 {
        let head = slots.head(slot);
        let dot = f64::from(slots.kernel.dot(&self.coarse, slots.bytes(slot)));
        let dot = dot * head.scale * self.scale;
        sortable(slots.metric.closeness(dot, self.length, head.length))
    }
}
