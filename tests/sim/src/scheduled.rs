//! What stands in the queue of a simulation: ordered by time, and by the order in which it was scheduled.

use crate::world::Happening;

/// Something that happens at a time, behind what was scheduled for that time before.
pub(crate) struct Scheduled {
    pub(crate) at: u64,
    pub(crate) order: u64,
    /// Apart, because the queue moves its elements about.
    pub(crate) happening: Box<Happening>,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
