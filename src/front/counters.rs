//! What the front counts. Plain fields of one thread; whoever publishes them copies the struct.

/// Counts since the front was opened, and the connections open now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontCounters {
    /// Connections open now, those that are being closed included.
    pub open: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused because there were `connections_max`.
    pub refused: u64,
    /// Accepts that failed, as when file descriptors ran out.
    pub accept_errors: u64,
    /// Connections closed.
    pub closed: u64,
    /// Lines handed to the handler and answered or taken by it.
    pub lines: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Send submissions.
    pub sends: u64,
    /// Replies to taken requests.
    pub replies: u64,
    /// Replies that came after their connection or request was gone.
    pub late_replies: u64,
    /// Times a line was held by the order of its connection.
    pub holds: u64,
    /// Times a line was held for want of room at a shard.
    pub holds_for_room: u64,
    /// Times a connection stopped for its requests in flight.
    pub holds_in_flight: u64,
    /// Times a connection stopped for its unsent output.
    pub holds_unsent: u64,
    /// Connections closed because they did not read their replies.
    pub slow_reader_closes: u64,
    /// Connections closed because of a line left unfinished or sent too slowly.
    pub slow_line_closes: u64,
    /// Connections closed because of a line over the limit.
    pub long_line_closes: u64,
    /// Connections closed because unfinished input exceeded its budget.
    pub input_budget_closes: u64,
    /// Connections closed because they rested too long.
    pub idle_closes: u64,
    /// Times no receive buffer was free.
    pub buffer_shortages: u64,
    /// Calls into the kernel to submit or wait.
    pub enters: u64,
    /// Turns.
    pub turns: u64,
    /// Turns that parked.
    pub parks: u64,
}
