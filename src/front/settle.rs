//! After the lines and replies of a turn: what each changed connection needs of the ring, and the clocks.
//!
//! All sends, receives, cancels and closes start here, once a turn for each connection, so that the replies of a turn leave
//! in one send.

use super::connection::{Connection, Life, Receiving, Wants};
use super::ring::SendJob;
use super::settings::Receive;
use super::turn::{Front, SPARE_JOBS, SWEEP_MS};
use shards::ids::Millis;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;

/// Undispatched bytes from which on a connection that only waits for its turn is not read.
const BACKLOG_BYTES: usize = 64 * 1024;

/// A sweep looks for resting connections in one such part of all.
const IDLE_PARTS: usize = 16;

/// Memory that an output keeps between sends.
const OUTPUT_KEEP_BYTES: usize = 32 * 1024;

impl Front {
    /// Brings every touched connection in order.
    pub(super) fn settle(&mut self) {
        while let Some(at) = self.desk.connections.pop_touched() {
            self.settle_one(at);
        }
    }

    fn settle_one(&mut self, at: usize) {
        if self.desk.connections.list[at].life == Life::Free {
            return;
        }
        self.start_send(at);
        self.advance_life(at);
        self.adjust_receiving(at);
        let connection = &self.desk.connections.list[at];
        if connection.life == Life::Dead && !connection.sending && connection.receiving == Receiving::Idle {
            self.release(at);
        } else if needs_watch(connection) {
            self.desk.connections.watch(at);
        }
    }

    fn start_send(&mut self, at: usize) {
        let connection = &mut self.desk.connections.list[at];
        if connection.sending || connection.out.is_empty() {
            return;
        }
        let mut job = self.spare_jobs.pop().unwrap_or_default();
        std::mem::swap(&mut job.output, &mut connection.out);
        connection.write_since = self.desk.now;
        self.send(at, job);
    }

    /// Sends what is left of a job.
    pub(super) fn send(&mut self, at: usize, job: Box<SendJob>) {
        let connection = &mut self.desk.connections.list[at];
        connection.sending = true;
        connection.sending_bytes = job.left();
        self.desk.counters.sends += 1;
        self.ring.send(at, descriptor(connection), job);
    }

    /// Keeps a finished job for reuse.
    pub(super) fn spare(&mut self, mut job: Box<SendJob>) {
        job.output.clear(OUTPUT_KEEP_BYTES);
        job.sent = 0;
        if self.spare_jobs.len() < SPARE_JOBS {
            self.spare_jobs.push(job);
        }
    }

    fn advance_life(&mut self, at: usize) {
        let now = self.desk.now;
        let linger_ms_max = self.desk.settings.linger_ms_max;
        let connection = &mut self.desk.connections.list[at];
        match connection.life {
            Life::Open if connection.ended && connection.input.is_empty() && connection.is_settled() => {
                self.kill(at);
            }
            Life::Closing if connection.is_settled() && connection.ended => self.kill(at),
            Life::Closing if connection.is_settled() => {
                // Closing with unread input would reset the connection and take the last reply with it.
                let shut = connection.socket.as_ref().map(|socket| socket.shutdown(Shutdown::Write));
                connection.life = Life::Lingering;
                connection.linger_until = Millis(now.0 + linger_ms_max);
                if !matches!(shut, Some(Ok(()))) {
                    self.kill(at);
                }
            }
            Life::Lingering if connection.ended => self.kill(at),
            _ => {}
        }
    }

    fn adjust_receiving(&mut self, at: usize) {
        let connection = &mut self.desk.connections.list[at];
        let wanted = match connection.life {
            Life::Open => match connection.wants {
                Wants::Nothing => connection.unsent() < self.desk.settings.unsent_bytes_max,
                Wants::Turn => connection.input.len() < BACKLOG_BYTES,
                _ => false,
            },
            Life::Closing | Life::Lingering => true,
            Life::Free | Life::Dead => false,
        };
        if wanted && std::mem::take(&mut connection.paused) {
            // The clocks of an unfinished line ran against the client while it was not read.
            connection.heard = self.desk.now;
            connection.line_since = self.desk.now;
        }
        connection.paused |= !wanted;
        if wanted && !connection.ended && connection.receiving == Receiving::Idle {
            connection.receiving = Receiving::Armed;
            self.ring.receive(at, descriptor(connection));
        } else if !wanted && connection.receiving == Receiving::Armed {
            // A single receive brings one buffer at most, so it may stay unless the connection is to go.
            if connection.life == Life::Dead || self.ring.receive_mode() == Receive::Multishot {
                connection.receiving = Receiving::Stopping;
                self.ring.cancel(self.ring.receive_operation(), at);
            }
        }
    }

    /// Shuts a connection at once; it is released when the ring has let go.
    pub(super) fn kill(&mut self, at: usize) {
        let connection = &mut self.desk.connections.list[at];
        if matches!(connection.life, Life::Free | Life::Dead) {
            return;
        }
        connection.life = Life::Dead;
        if let Some(socket) = &connection.socket {
            // Ends a send under way. Fails only when the client was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.desk.connections.void(at);
        self.desk.connections.touch(at);
    }

    fn release(&mut self, at: usize) {
        if !self.desk.connections.list[at].refused {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
        self.desk.counters.open -= 1;
        self.desk.counters.closed += 1;
        self.desk.connections.release(at);
    }

    /// Looks at the clocks of all connections that have one running.
    pub(super) fn sweep(&mut self) {
        let now = self.desk.now;
        self.next_sweep = Millis(now.0 + SWEEP_MS);
        let mut watched = std::mem::take(&mut self.desk.connections.watched);
        std::mem::swap(&mut watched, &mut self.swept);
        self.desk.connections.watched = watched;
        for position in 0..self.swept.len() {
            let at = self.swept[position] as usize;
            self.desk.connections.list[at].watched = false;
            self.judge(at);
            let connection = &mut self.desk.connections.list[at];
            if needs_watch(connection) || !connection.trim(now) {
                self.desk.connections.watch(at);
            }
        }
        self.swept.clear();
        if self.desk.settings.idle_ms_max > 0 {
            self.close_idle();
        }
    }

    fn judge(&mut self, at: usize) {
        let now = self.desk.now.0;
        let settings = &self.desk.settings;
        let connection = &self.desk.connections.list[at];
        let past = |since: Millis, limit: u64| now.saturating_sub(since.0) >= limit;
        if connection.sending && past(connection.write_since, settings.write_stall_ms_max) {
            if connection.life != Life::Dead {
                self.desk.counters.slow_reader_closes += 1;
                self.kill(at);
            }
            return;
        }
        match connection.life {
            Life::Lingering if now >= connection.linger_until.0 => self.kill(at),
            Life::Open
                if !connection.input.is_empty()
                    && !connection.paused
                    && connection.wants == Wants::Nothing =>
            {
                let idle_limit = settings.line_idle_ms_max;
                let elapsed = now.saturating_sub(connection.line_since.0);
                let due = settings.line_bytes_per_s_min.saturating_mul(elapsed) / 1000;
                let too_slow = elapsed >= idle_limit && (connection.input.len() as u64) < due;
                if past(connection.heard, idle_limit) || too_slow {
                    self.refuse_slow_line(at);
                }
            }
            _ => {}
        }
    }

    fn close_idle(&mut self) {
        let (now, limit) = (self.desk.now.0, self.desk.settings.idle_ms_max);
        let places = self.desk.connections.list.len();
        for _ in 0..places.div_ceil(IDLE_PARTS) {
            let at = self.idle_cursor % places;
            self.idle_cursor = at + 1;
            let connection = &self.desk.connections.list[at];
            let resting =
                connection.life == Life::Open && connection.input.is_empty() && connection.is_settled();
            if resting && now.saturating_sub(connection.heard.0) >= limit {
                self.desk.counters.idle_closes += 1;
                self.desk.close_after_replies(at);
            }
        }
    }
}

/// Whether a clock runs for the connection.
fn needs_watch(connection: &Connection) -> bool {
    match connection.life {
        Life::Free | Life::Dead => false,
        Life::Lingering => true,
        Life::Open | Life::Closing => connection.sending || !connection.input.is_empty(),
    }
}

fn descriptor(connection: &Connection) -> RawFd {
    connection.socket.as_ref().expect("a living connection has a socket").as_raw_fd()
}
