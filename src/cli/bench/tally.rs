//! What a thread counts while it loads, and what all threads counted together.

use super::dialect::Kind;
use super::plan::{Phase, Until};
use hdrhistogram::Histogram;
use std::time::Duration;

/// Latencies are kept apart by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Group {
    Read,
    Write,
    Modify,
    Search,
}

impl Group {
    pub(super) const ALL: [Group; 4] = [Group::Read, Group::Write, Group::Modify, Group::Search];

    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Get | Kind::ReadToModify => Group::Read,
            Kind::Set | Kind::BulkSet => Group::Write,
            Kind::ModifyRead => Group::Modify,
            Kind::Range | Kind::Search => Group::Search,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Group::Read => "read",
            Group::Write => "write",
            Group::Modify => "read-modify-write",
            Group::Search => "query",
        }
    }
}

/// Length of one point of the course over time.
pub(super) const SLOT: Duration = Duration::from_millis(100);

/// Points of the course that are kept at most; a day of load is longer than that, and its rest is not drawn.
const SLOTS_MAX: usize = 36_000;

/// Latency beyond which the histogram says no more than "at least this".
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// One point of the course over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    /// Replies in it.
    pub(super) replies: u64,
    /// The slowest of them, in nanoseconds.
    pub(super) slowest_ns: u64,
}

/// What was counted in one phase.
#[derive(Debug)]
pub(super) struct Tally {
    /// From when to when replies count, in nanoseconds since the phase began.
    window_ns: (u64, u64),
    /// Open loop: a latency counts if its request was due in the window, however late the reply; else if the reply came in it.
    by_due_time: bool,
    histograms: [Option<Histogram<u64>>; Group::ALL.len()],
    /// The course of the whole phase, warm-up included.
    pub(super) slots: Vec<Slot>,
    /// Replies in the window.
    pub(super) replies: u64,
    /// Keys read or written by them.
    pub(super) items: u64,
    /// Reads of keys that were not there.
    pub(super) absent: u64,
    /// Replies that refused, over the whole phase.
    pub(super) errors: u64,
    /// Values that were not what the key must have, over the whole phase.
    pub(super) wrong: u64,
    /// Values compared.
    pub(super) compared: u64,
    /// Requests without a reply at the end.
    pub(super) unanswered: u64,
    /// Requests of an open loop that were due and never sent, because all connections were full.
    pub(super) unsent: u64,
    /// The first thing that went wrong.
    pub(super) first_problem: Option<String>,
    /// Bytes sent and received over the whole phase.
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// When the last reply came, in nanoseconds since the phase began.
    pub(super) last_reply_ns: u64,
}

impl Tally {
    pub(super) fn new(phase: &Phase) -> Self {
        let window_ns = match phase.until {
            Until::Requests(_) => (0, u64::MAX),
            Until::Time { warm_up, measured } => {
                (nanos(warm_up), nanos(warm_up).saturating_add(nanos(measured)))
            }
        };
        Self {
            window_ns,
            by_due_time: phase.rate.is_some(),
            histograms: Default::default(),
            slots: Vec::new(),
            replies: 0,
            items: 0,
            absent: 0,
            errors: 0,
            wrong: 0,
            compared: 0,
            unanswered: 0,
            unsent: 0,
            first_problem: None,
            sent_bytes: 0,
            received_bytes: 0,
            last_reply_ns: 0,
        }
    }

    /// When the measured time is over, in nanoseconds since the phase began.
    pub(super) fn end_ns(&self) -> u64 {
        self.window_ns.1
    }

    /// So many requests of one group that were due at one time were answered at another.
    pub(super) fn replied(&mut self, group: Group, due_ns: u64, now_ns: u64, count: u64, items: u64) {
        let latency_ns = now_ns.saturating_sub(due_ns);
        self.last_reply_ns = self.last_reply_ns.max(now_ns);
        let slot = usize::try_from(now_ns / nanos(SLOT)).unwrap_or(usize::MAX);
        if slot < SLOTS_MAX {
            if self.slots.len() <= slot {
                self.slots.resize(slot + 1, Slot::default());
            }
            let slot = &mut self.slots[slot];
            slot.replies += count;
            slot.slowest_ns = slot.slowest_ns.max(latency_ns);
        }
        let window_ns = self.window_ns.0..self.window_ns.1;
        if window_ns.contains(&now_ns) {
            self.replies += count;
            self.items += items;
        }
        if window_ns.contains(if self.by_due_time { &due_ns } else { &now_ns }) {
            let histogram = self.histograms[group as usize].get_or_insert_with(histogram);
            histogram.saturating_record_n(latency_ns.max(1), count);
        }
    }

    /// Keeps the first problem of a kind that is counted elsewhere.
    pub(super) fn problem(&mut self, told: impl FnOnce() -> String) {
        if self.first_problem.is_none() {
            self.first_problem = Some(told());
        }
    }

    /// Takes another thread's figures in.
    pub(super) fn add(&mut self, other: Tally) {
        for (mine, theirs) in self.histograms.iter_mut().zip(other.histograms) {
            if let Some(theirs) = theirs {
                let mine = mine.get_or_insert_with(histogram);
                mine.add(&theirs).expect("all histograms have the same bounds");
            }
        }
        if self.slots.len() < other.slots.len() {
            self.slots.resize(other.slots.len(), Slot::default());
        }
        for (mine, theirs) in self.slots.iter_mut().zip(&other.slots) {
            mine.replies += theirs.replies;
            mine.slowest_ns = mine.slowest_ns.max(theirs.slowest_ns);
        }
        self.replies += other.replies;
        self.items += other.items;
        self.absent += other.absent;
        self.errors += other.errors;
        self.wrong += other.wrong;
        self.compared += other.compared;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.last_reply_ns = self.last_reply_ns.max(other.last_reply_ns);
        if let Some(problem) = other.first_problem {
            self.problem(|| problem);
        }
    }

    /// Seconds that the counted replies took.
    pub(super) fn seconds(&self) -> f64 {
        let end_ns = self.window_ns.1.min(self.last_reply_ns.max(1));
        // A window that is not open-ended counts in full: a server that stopped answering is not measured shorter.
        let end_ns = if self.window_ns.1 == u64::MAX { end_ns } else { self.window_ns.1 };
        (end_ns - self.window_ns.0) as f64 / 1e9
    }

    /// From when to when replies count, in seconds since the phase began.
    pub(super) fn window_s(&self) -> (f64, f64) {
        let end_ns = if self.window_ns.1 == u64::MAX { self.last_reply_ns } else { self.window_ns.1 };
        (self.window_ns.0 as f64 / 1e9, end_ns as f64 / 1e9)
    }

    /// The latencies of the groups that occurred, in nanoseconds.
    pub(super) fn latencies(&self) -> impl Iterator<Item = (Group, &Histogram<u64>)> {
        let pairs = Group::ALL.into_iter().zip(&self.histograms);
        pairs.filter_map(|(group, histogram)| Some((group, histogram.as_ref()?)))
    }

    /// Whether everything was as it should be.
    pub(super) fn is_sound(&self) -> bool {
        self.errors == 0 && self.wrong == 0 && self.unanswered == 0
    }
}

/// Three significant digits from a nanosecond to an hour.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are in order")
}

/// Nanoseconds of a time that a benchmark takes.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::plan::Mix;
    use super::*;

    /// A phase of one second after half a second of warm-up.
    pub(crate) fn phase() -> Phase {
        Phase {
            name: "test",
            connections: 1,
            depth: 1,
            mix: Mix::Each(Kind::Set),
            until: Until::Time { warm_up: Duration::from_millis(500), measured: Duration::from_secs(1) },
            rate: None,
            before: None,
        }
    }

    #[test]
    fn only_the_window_counts() {
        let mut tally = Tally::new(&phase());
        for now_ms in [100, 499, 500, 1499, 1500, 1600] {
            tally.replied(Group::Write, 0, now_ms * 1_000_000, 2, 2);
        }
        assert_eq!((tally.replies, tally.seconds()), (4, 1.0));
        let (group, histogram) = tally.latencies().next().unwrap();
        assert_eq!((group, histogram.len()), (Group::Write, 4));
        assert_eq!(tally.slots[5], Slot { replies: 2, slowest_ns: 500_000_000 });
        assert_eq!(tally.slots.len(), 17);
    }

    #[test]
    fn an_open_loop_charges_what_was_due_in_the_window() {
        let mut tally = Tally::new(&Phase { rate: Some(1.0), ..phase() });
        tally.replied(Group::Read, 499_000_000, 600_000_000, 1, 1);
        tally.replied(Group::Read, 1_400_000_000, 9_000_000_000, 1, 1);
        let (_, histogram) = tally.latencies().next().unwrap();
        // The second came too late to be throughput, and is the latency that a client would have seen.
        assert_eq!((tally.replies, histogram.len()), (1, 1));
        assert!(histogram.max() > 7_500_000_000);
    }

    #[test]
    fn threads_add_up() {
        let mut one = Tally::new(&phase());
        let mut two = Tally::new(&phase());
        one.replied(Group::Read, 0, 600_000_000, 1, 1);
        two.replied(Group::Read, 599_000_000, 600_000_000, 3, 3);
        two.replied(Group::Write, 0, 700_000_000, 1, 1);
        two.errors = 1;
        two.problem(|| "first".to_owned());
        one.add(two);
        assert_eq!((one.replies, one.errors, one.first_problem.as_deref()), (5, 1, Some("first")));
        assert_eq!(one.latencies().map(|(_, histogram)| histogram.len()).sum::<u64>(), 5);
        assert!(!one.is_sound());
    }
}
