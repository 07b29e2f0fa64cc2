//! When a request is sent again, and after how long. Decides only; it neither sleeps nor draws random numbers.
//!
//! Invariant: a request that may have taken effect is sent again only if it is repeatable or carries its old sequence number.

use crate::command::Nature;
use std::time::Duration;
use strand_wire::code::Retry;

/// Bounds of retrying one call. The call's overall deadline bounds it too.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// How often a request is sent at most, the first time included. 1 turns retries off.
    pub attempts_max: u32,
    /// Longest pause before the second attempt; it doubles from there.
    pub pause_first: Duration,
    /// Longest pause before any attempt.
    pub pause_max: Duration,
}

/// A shard has another leader about a second after it lost one: a longest pause of a quarter of that is not noticed, and the
/// attempts last for the default deadline of a call.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 64,
            pause_first: Duration::from_millis(10),
            pause_max: Duration::from_millis(250),
        }
    }
}

impl RetryPolicy {
    /// Whether a request may be sent again after `attempts` tries ended in an error reply of this class.
    pub fn after_reply(&self, nature: Nature, class: Retry, attempts: u32) -> bool {
        let allowed = match class {
            Retry::Never => false,
            Retry::Safe => true,
            Retry::SameSeq => nature != Nature::Once,
        };
        allowed && attempts < self.attempts_max
    }

    /// Whether a request may be sent again after the connection broke; `sent` says whether any byte of it left.
    pub fn after_break(&self, nature: Nature, sent: bool, attempts: u32) -> bool {
        (!sent || nature != Nature::Once) && attempts < self.attempts_max
    }

    /// The pause before attempt `attempts + 1`: between half and the whole of the doubled bound, by a random number.
    pub fn pause(&self, attempts: u32, random: u64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(20);
        let bound = self.pause_first.saturating_mul(1 << doublings).min(self.pause_max);
        let half = bound / 2;
        let share =
            f64::from(u32::try_from(random >> 32).expect("the upper half fits")) / f64::from(u32::MAX);
        half + half.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_happened_is_never_sent_twice_bare() {
        let policy = RetryPolicy::default();
        assert!(!policy.after_break(Nature::Once, true, 1));
        assert!(policy.after_break(Nature::Once, false, 1));
        assert!(policy.after_break(Nature::Sequenced, true, 1));
        assert!(!policy.after_reply(Nature::Once, Retry::SameSeq, 1));
        assert!(policy.after_reply(Nature::Once, Retry::Safe, 1));
        assert!(!policy.after_reply(Nature::Sequenced, Retry::Never, 1));
        assert!(!policy.after_reply(Nature::Sequenced, Retry::Safe, policy.attempts_max));
    }

    #[test]
    fn pauses_grow_and_stay_in_bounds() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(1, 0), Duration::from_millis(5));
        assert_eq!(policy.pause(1, u64::MAX), Duration::from_millis(10));
        assert_eq!(policy.pause(3, u64::MAX), Duration::from_millis(40));
        for attempts in 0..100 {
            assert!(policy.pause(attempts, u64::MAX) <= policy.pause_max);
        }
    }
}
