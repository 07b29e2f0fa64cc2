//! The knobs of the client front, with their units and their bounds.

use super::order::IN_FLIGHT_LIMIT;
use std::io;

/// How the front receives from client sockets. The better ways need newer kernels; the front steps down by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receive {
    /// One submission per connection, a completion per arrival, into shared buffers (Linux 6.0).
    Multishot,
    /// One submission per arrival, into shared buffers (Linux 5.19).
    Single,
    /// One poll per arrival and a plain `recv` (Linux 5.15).
    Readiness,
}

/// How completions reach the front's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completions {
    /// When the thread asks for them (`DEFER_TASKRUN`, Linux 6.1).
    Deferred,
    /// At the thread's next system call (`COOP_TASKRUN`, Linux 5.19).
    Cooperative,
    /// By interrupting the thread.
    Plain,
}

/// Bounds and times of the front. [`Default`] is what the protocol promises.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Client connections; one more is told OVERLOADED and closed.
    pub connections_max: usize,
    /// Requests without a reply on one connection; reading stops there.
    pub in_flight_max: usize,
    /// Longest request line in bytes, without its line end.
    pub line_bytes_max: usize,
    /// Received and not yet dispatched bytes over all connections.
    pub unfinished_bytes_max: usize,
    /// Unsent reply bytes from which on a connection is neither read nor dispatched.
    pub unsent_bytes_max: usize,
    /// Lines of one connection dispatched in one turn.
    pub lines_per_turn_max: usize,
    /// Replies that may wait in the kernel's socket buffer without the client taking any, before it is closed.
    pub write_stall_ms_max: u64,
    /// Half a line and then nothing: how long until the connection is closed.
    pub line_idle_ms_max: u64,
    /// Slowest arrival of an unfinished line, in bytes a second, judged after `line_idle_ms_max`.
    pub line_bytes_per_s_min: u64,
    /// How long a connection may rest between requests; 0 for ever.
    pub idle_ms_max: u64,
    /// How long a closing connection's late input is read and thrown away, so that its last reply arrives.
    pub linger_ms_max: u64,
    /// Number of receive buffers that all connections share; a power of two up to 32,768.
    pub buffers: u16,
    /// Size of one receive buffer.
    pub buffer_bytes: usize,
    /// Submission queue entries; a power of two.
    pub ring_entries: u32,
    /// The best way of receiving to try.
    pub receive: Receive,
    /// The best way of completing to try.
    pub completions: Completions,
}

impl Default for FrontSettings {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            in_flight_max: 1_024,
            line_bytes_max: 16 << 20,
            unfinished_bytes_max: 256 << 20,
            unsent_bytes_max: 1 << 20,
            lines_per_turn_max: 256,
            write_stall_ms_max: 30_000,
            line_idle_ms_max: 10_000,
            line_bytes_per_s_min: 16 << 10,
            idle_ms_max: 0,
            linger_ms_max: 2_000,
            buffers: 512,
            buffer_bytes: 16 << 10,
            ring_entries: 1_024,
            receive: Receive::Multishot,
            completions: Completions::Deferred,
        }
    }
}

/// Connections that may exist at once, those being refused included.
pub(super) const CONNECTIONS_LIMIT: usize = 1 << 20;

impl FrontSettings {
    /// Checks what the settings must satisfy together.
    ///
    /// # Errors
    /// `InvalidInput` with the name of the setting.
    pub fn check(&self) -> io::Result<()> {
        let rules = [
            (self.connections_max > 0 && self.connections_max < CONNECTIONS_LIMIT / 2, "connections_max"),
            (self.in_flight_max > 0 && self.in_flight_max < IN_FLIGHT_LIMIT, "in_flight_max"),
            (self.line_bytes_max >= 256 && self.line_bytes_max <= 1 << 30, "line_bytes_max"),
            (self.unfinished_bytes_max >= self.line_bytes_max, "unfinished_bytes_max"),
            (self.unsent_bytes_max > 0, "unsent_bytes_max"),
            (self.lines_per_turn_max > 0, "lines_per_turn_max"),
            (self.write_stall_ms_max > 0, "write_stall_ms_max"),
            (self.line_idle_ms_max > 0, "line_idle_ms_max"),
            (self.linger_ms_max > 0, "linger_ms_max"),
            (self.buffers.is_power_of_two() && self.buffers >= 2 && self.buffers <= 1 << 15, "buffers"),
            (self.buffer_bytes >= 256 && self.buffer_bytes <= 1 << 24, "buffer_bytes"),
            (self.ring_entries.is_power_of_two() && self.ring_entries <= 1 << 15, "ring_entries"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, name)) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is out of its range")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_a_bad_value_is_named() {
        FrontSettings::default().check().unwrap();
        let bad = FrontSettings { buffers: 3, ..FrontSettings::default() };
        assert!(bad.check().unwrap_err().to_string().contains("buffers"));
    }
}
