//! The front's io_uring: everything that the kernel reads or writes behind the compiler's back, behind safe calls.
//!
//! Memory named in a submission belongs to the ring until the operation's last completion: send jobs stand in a table by
//! connection, receive buffers in a shared pool, the doorbell's word in a box. Dropping the ring cancels what is under way
//! and waits for it; what the kernel would not give back is leaked rather than freed. The ring decides nothing: when to
//! receive, send or stop is the front's business.
#![allow(
    unsafe_code,
    reason = "io_uring hands memory and descriptors to the kernel; this module keeps them valid"
)]

mod buffers;
mod job;

use self::buffers::BufferPool;
pub(super) use self::job::SendJob;
use super::settings::{Completions, FrontSettings, Receive};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What happened, by operation. Completions arrive raw and are decoded one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept,
    Receive,
    /// The readiness poll of [`Receive::Readiness`].
    Poll,
    Send,
    Cancel,
    Bell,
    /// The poll of a descriptor beside the doorbell.
    Beside,
}

/// One completion: the operation, the connection or listener that it was for, and the kernel's answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) operation: Operation,
    pub(super) at: usize,
    /// A count or descriptor, or a negated error number.
    pub(super) result: i32,
    /// Whether more completions of the same operation follow.
    pub(super) more: bool,
    buffer: Option<u16>,
}

/// How long and how often dropping the ring waits for the kernel to let go of its memory.
const DROP_WAIT: Duration = Duration::from_millis(10);
const DROP_ROUNDS: usize = 50;

/// The ring with all the memory that it lends to the kernel.
pub(super) struct FrontRing {
    // Fields are dropped in this order: the ring before the memory.
    ring: IoUring,
    buffers: Option<BufferPool>,
    jobs: Vec<Option<Box<SendJob>>>,
    bell_word: Box<[u8; 8]>,
    scratch: Vec<u8>,
    receive: Receive,
    multishot_accept: bool,
    /// Operations whose last completion has not come.
    under_way: usize,
    pub(super) enters: u64,
}

impl std::fmt::Debug for FrontRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontRing")
            .field("receive", &self.receive)
            .field("under_way", &self.under_way)
            .finish()
    }
}

impl FrontRing {
    /// Sets up the ring for the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// When io_uring is missing, forbidden, or too old for any of the ways to complete.
    pub(super) fn open(settings: &FrontSettings) -> io::Result<Self> {
        let ring = build(settings)?;
        let mut receive = settings.receive;
        let mut buffers = None;
        if receive != Receive::Readiness {
            match BufferPool::register(&ring, settings.buffers, settings.buffer_bytes) {
                Ok(pool) => buffers = Some(pool),
                Err(_) => receive = Receive::Readiness,
            }
        }
        Ok(Self {
            ring,
            buffers,
            jobs: Vec::new(),
            bell_word: Box::new([0; 8]),
            scratch: vec![0; settings.buffer_bytes],
            receive,
            multishot_accept: true,
            under_way: 0,
            enters: 0,
        })
    }

    /// The way of receiving in use.
    pub(super) fn receive_mode(&self) -> Receive {
        self.receive
    }

    /// Steps down after the kernel refused the way of receiving in use.
    pub(super) fn receive_refused(&mut self) {
        self.receive = match self.receive {
            Receive::Multishot => Receive::Single,
            Receive::Single | Receive::Readiness => Receive::Readiness,
        };
    }

    /// Accepts from one listener, as often as the kernel can with one submission.
    pub(super) fn accept(&mut self, listener: usize, fd: RawFd) {
        let entry = if self.multishot_accept {
            opcode::AcceptMulti::new(types::Fd(fd)).flags(libc::SOCK_CLOEXEC).build()
        } else {
            let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
            opcode::Accept::new(types::Fd(fd), address, length).flags(libc::SOCK_CLOEXEC).build()
        };
        self.push(&entry.user_data(tag(Operation::Accept, listener)));
    }

    /// Steps down to single accepts; false when they are in use already.
    pub(super) fn accept_refused(&mut self) -> bool {
        std::mem::replace(&mut self.multishot_accept, false)
    }

    /// Takes the socket out of a successful accept.
    pub(super) fn accepted(&self, event: &Event) -> TcpStream {
        assert!(event.operation == Operation::Accept && event.result >= 0, "an accept that succeeded");
        // SAFETY: the kernel made this descriptor for this completion, which is decoded once; nothing else owns it.
        TcpStream::from(unsafe { OwnedFd::from_raw_fd(event.result) })
    }

    /// Receives for a connection, once or many times.
    pub(super) fn receive(&mut self, at: usize, fd: RawFd) {
        let entry = match self.receive {
            Receive::Multishot => opcode::RecvMulti::new(types::Fd(fd), buffers::GROUP).build(),
            Receive::Single => opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), 0)
                .buf_group(buffers::GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            Receive::Readiness => opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build(),
        };
        let operation = if self.receive == Receive::Readiness { Operation::Poll } else { Operation::Receive };
        self.push(&entry.user_data(tag(operation, at)));
    }

    /// Ends a receive or an accept; its last completion still comes.
    pub(super) fn cancel(&mut self, operation: Operation, at: usize) {
        let entry = opcode::AsyncCancel::new(tag(operation, at)).build();
        self.push(&entry.user_data(tag(Operation::Cancel, at)));
    }

    /// The operation under which [`FrontRing::receive`] runs now.
    pub(super) fn receive_operation(&self) -> Operation {
        if self.receive == Receive::Readiness { Operation::Poll } else { Operation::Receive }
    }

    /// What a receive brought, if it brought a buffer. [`FrontRing::give_back`] follows.
    pub(super) fn received(&self, event: &Event) -> Option<&[u8]> {
        let id = event.buffer?;
        let pool = self.buffers.as_ref().expect("a buffer comes from the pool");
        Some(pool.received(id, usize::try_from(event.result).unwrap_or(0)))
    }

    /// Gives a receive's buffer back to the kernel.
    pub(super) fn give_back(&mut self, event: &Event) {
        if let (Some(id), Some(pool)) = (event.buffer, self.buffers.as_mut()) {
            pool.give(id);
        }
    }

    /// Reads from a connection that a poll found readable; an empty slice is its end.
    ///
    /// # Errors
    /// `WouldBlock` when there was nothing after all, or the connection's error.
    pub(super) fn read_ready(&mut self, fd: RawFd) -> io::Result<&[u8]> {
        let buffer = &mut self.scratch;
        // SAFETY: pointer and length name the scratch buffer, which lives through the call.
        let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(count) {
            Ok(count) => Ok(&self.scratch[..count]),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Sends what is left of a job. One at a time for each connection; [`FrontRing::take_job`] follows its completion.
    pub(super) fn send(&mut self, at: usize, fd: RawFd, job: Box<SendJob>) {
        if self.jobs.len() <= at {
            self.jobs.resize_with(at + 1, || None);
        }
        let place = &mut self.jobs[at];
        assert!(place.is_none(), "one send under way for each connection");
        // The entry points into the box's memory, which stays where it is until `take_job`.
        let entry = place.insert(job).entry(fd);
        self.push(&entry.user_data(tag(Operation::Send, at)));
    }

    /// The job of a send that completed.
    pub(super) fn take_job(&mut self, event: &Event) -> Box<SendJob> {
        assert!(event.operation == Operation::Send && !event.more, "the kernel is done with the job");
        self.jobs[event.at].take().expect("a send has a job")
    }

    /// Reads the doorbell's eventfd, so that a ring wakes a wait.
    pub(super) fn arm_bell(&mut self, fd: RawFd) {
        let entry = opcode::Read::new(types::Fd(fd), self.bell_word.as_mut_ptr(), 8).build();
        self.push(&entry.user_data(tag(Operation::Bell, 0)));
    }

    /// Polls a descriptor beside the doorbell once, so that a wait ends when it is readable.
    pub(super) fn arm_beside(&mut self, fd: RawFd) {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        self.push(&entry.user_data(tag(Operation::Beside, 0)));
    }

    /// Appends the completions that have come to `events`. Buffers given back so far are free for the kernel from here on.
    pub(super) fn reap(&mut self, events: &mut Vec<Event>) {
        let before = events.len();
        events.extend(self.ring.completion().map(|entry| decode(&entry)));
        let finished = events[before..].iter().filter(|event| !event.more).count();
        assert!(finished <= self.under_way, "each operation ends once");
        self.under_way -= finished;
    }

    /// Shows the kernel the buffers given back.
    pub(super) fn publish_buffers(&mut self) {
        if let Some(pool) = &mut self.buffers {
            pool.publish();
        }
    }

    /// Whether completions wait to be reaped, or would after asking the kernel.
    pub(super) fn has_completions(&mut self) -> bool {
        if !self.ring.completion().is_empty() {
            return true;
        }
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Submits what was pushed and lets deferred completions happen, without waiting. No system call when there is
    /// neither.
    ///
    /// # Errors
    /// When the kernel refuses; the ring is then of no more use.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let idle = {
            let queue = self.ring.submission();
            queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
        };
        if idle {
            return Ok(());
        }
        self.enters += 1;
        forgive(self.ring.submit())
    }

    /// Submits and waits for a completion, at most as long as given.
    ///
    /// # Errors
    /// As for [`FrontRing::submit`].
    pub(super) fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.enters += 1;
        let timespec = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        forgive(self.ring.submitter().submit_with_args(1, &arguments))
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.under_way += 1;
        loop {
            // SAFETY: every entry is made in this module from memory that the ring's fields own until the operation's last
            // completion, and from descriptors that their owner keeps open until then.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enters += 1;
            // A full queue empties by submitting; a refusal shows again, and as an error, at the end of the turn.
            if let Err(error) = forgive(self.ring.submit()) {
                panic!("the front's ring accepts no submissions: {error}");
            }
        }
    }
}

impl Drop for FrontRing {
    fn drop(&mut self) {
        let (mut events, mut rounds) = (Vec::new(), 0);
        let everything = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        while self.under_way > 0 && rounds < DROP_ROUNDS {
            rounds += 1;
            self.push(&everything.clone().user_data(tag(Operation::Cancel, 0)));
            if self.submit_and_wait(DROP_WAIT).is_err() {
                break;
            }
            events.clear();
            self.reap(&mut events);
            for event in &events {
                if event.operation == Operation::Accept && event.result >= 0 {
                    drop(self.accepted(event));
                }
            }
        }
        if self.under_way > 0 {
            // The kernel may still read or write these: better lost than reused.
            std::mem::forget(self.buffers.take());
            std::mem::forget(std::mem::take(&mut self.jobs));
            std::mem::forget(std::mem::take(&mut self.bell_word));
        }
    }
}

/// Replaces the backlog of a listening socket.
///
/// # Errors
/// When the socket does not listen.
pub(super) fn listen_again(listener: &TcpListener, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: the descriptor is open for as long as the listener is borrowed.
    match unsafe { libc::listen(listener.as_raw_fd(), backlog) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tries the ways to complete from the one asked for down to the plain one.
fn build(settings: &FrontSettings) -> io::Result<IoUring> {
    let ways: &[Completions] = match settings.completions {
        Completions::Deferred => &[Completions::Deferred, Completions::Cooperative, Completions::Plain],
        Completions::Cooperative => &[Completions::Cooperative, Completions::Plain],
        Completions::Plain => &[Completions::Plain],
    };
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for way in ways {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(settings.ring_entries * 4);
        match way {
            Completions::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            Completions::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            Completions::Plain => {}
        }
        match builder.build(settings.ring_entries) {
            Ok(ring) => return Ok(ring),
            Err(error) => refused = error,
        }
    }
    Err(io::Error::new(refused.kind(), format!("cannot set up io_uring for client connections: {refused}")))
}

/// What is no failure of the ring: a wait that ended early, or a completion queue that wants reaping first.
fn forgive(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

const OPERATIONS: [Operation; 7] = [
    Operation::Accept,
    Operation::Receive,
    Operation::Poll,
    Operation::Send,
    Operation::Cancel,
    Operation::Bell,
    Operation::Beside,
];

fn tag(operation: Operation, at: usize) -> u64 {
    (operation as u64) << 32 | at as u64
}

fn decode(entry: &cqueue::Entry) -> Event {
    let tag = entry.user_data();
    Event {
        operation: OPERATIONS[(tag >> 32) as usize],
        at: tag as u32 as usize,
        result: entry.result(),
        more: cqueue::more(entry.flags()),
        buffer: cqueue::buffer_select(entry.flags()),
    }
}
