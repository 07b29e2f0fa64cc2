//! Waking a parked thread: an eventfd beside a flag that says whether anybody waits for it.
//!
//! The consumer parks in this order: [`Doorbell::prepare_park`], look at every ring and completion queue again, then
//! [`Doorbell::wait`] or wait elsewhere for [`Doorbell::fd`] to become readable (or [`Doorbell::cancel_park`] when
//! something was found). A producer
//! publishes its item first and then calls [`Doorbell::ring`]. Each side has a sequentially consistent fence between its
//! own store and its look at the other's, so at least one of them sees the other: a wake-up cannot be lost. The flag is
//! taken by the ringer, so a parked thread costs its producers one system call, not one for each of them.
//!
//! The eventfd blocks on purpose: io_uring answers a read of a non-blocking one with EAGAIN at once instead of waiting.
//! Only [`Doorbell::wait`] and [`Doorbell::wait_beside`] block.
#![allow(unsafe_code, reason = "eventfd and its write have no safe wrapper in the dependencies")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

/// One thread's bell; shared by those who may have to wake it. On a cache line of its own, since every producer reads
/// the flag after every batch.
#[derive(Debug)]
#[repr(align(128))]
pub struct Doorbell {
    parked: AtomicBool,
    eventfd: OwnedFd,
}

impl Doorbell {
    /// A bell that nobody waits for yet.
    ///
    /// # Errors
    /// When the process or the system has no file descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        // SAFETY: eventfd takes no pointers; a result of -1 is checked before it is taken as a descriptor.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Arc::new(Self { parked: AtomicBool::new(false), eventfd }))
    }

    /// Wakes the owner if it is parked or about to park. To be called after the item was published; true when it took a
    /// system call.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        if !self.parked.load(Ordering::Relaxed) || !self.parked.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.signal();
        true
    }

    /// Announces that the owner is about to wait. Everything that could hold work must be looked at again after this.
    pub fn prepare_park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back, after a wait or instead of one. A ring that happened in between leaves the eventfd
    /// readable, which costs one idle round later and nothing else.
    pub fn cancel_park(&self) {
        self.parked.store(false, Ordering::SeqCst);
    }

    /// The eventfd: readable, eight bytes, once the bell was rung.
    pub fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Blocks until the bell was rung, or this time is over; whether it was rung. A time below a millisecond counts as one.
    ///
    /// # Errors
    /// What poll reports for an open descriptor: only a lack of memory.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        let timeout_ms = i32::try_from(at_most.as_millis().max(1)).unwrap_or(i32::MAX);
        let mut waited = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer names one pollfd that lives through the call.
        match unsafe { libc::poll(&raw mut waited, 1, timeout_ms) } {
            0 => Ok(false),
            1 => self.take_ring(),
            _ => interrupted_is_no_ring(io::Error::last_os_error()),
        }
    }

    /// As [`Doorbell::wait`], and also until `other` is readable, which is not read here.
    ///
    /// # Errors
    /// As [`Doorbell::wait`].
    pub fn wait_beside(&self, other: BorrowedFd<'_>, at_most: Duration) -> io::Result<bool> {
        let timeout_ms = i32::try_from(at_most.as_millis().max(1)).unwrap_or(i32::MAX);
        let mut waited =
            [self.fd(), other.as_raw_fd()].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: the pointer and count name the array, which lives through the call.
        match unsafe { libc::poll(waited.as_mut_ptr(), waited.len() as libc::nfds_t, timeout_ms) } {
            0 => Ok(false),
            1.. if waited[0].revents != 0 => self.take_ring(),
            1.. => Ok(false),
            _ => interrupted_is_no_ring(io::Error::last_os_error()),
        }
    }

    /// Reads the eventfd, which is known to be readable and which nobody else reads.
    fn take_ring(&self) -> io::Result<bool> {
        let mut count = [0; 8];
        // SAFETY: the pointer and length name `count`. The bell was rung and nobody else reads, so this does not wait.
        let read = unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
        if read == 8 { Ok(true) } else { interrupted_is_no_ring(io::Error::last_os_error()) }
    }

    fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        loop {
            // SAFETY: the pointer and length name `one`, which lives through the call.
            let written = unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
            if written == 8 {
                return;
            }
            let error = io::Error::last_os_error();
            // The flag is taken before each write, so the counter stays far below the value at which a write waits.
            assert!(
                error.kind() == io::ErrorKind::Interrupted,
                "an eventfd takes a write of eight bytes: {error}"
            );
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// A signal ends a wait early, which its caller meets by looking for work.
fn interrupted_is_no_ring(error: io::Error) -> io::Result<bool> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::thread;

    /// Waits for the bell as io_uring would: a read of eight bytes.
    fn wait(bell: &Doorbell) {
        let mut file = std::fs::File::from(bell.eventfd.try_clone().unwrap());
        file.read_exact(&mut [0; 8]).unwrap();
    }

    #[test]
    fn only_a_parked_owner_costs_a_system_call() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.ring());
        bell.prepare_park();
        assert!(bell.ring());
        assert!(!bell.ring(), "the first ring took the flag");
        wait(&bell);
        bell.prepare_park();
        bell.cancel_park();
        assert!(!bell.ring());
    }

    #[test]
    fn a_wait_ends_with_a_ring_or_its_time() {
        let bell = Doorbell::new().unwrap();
        bell.prepare_park();
        assert!(!bell.wait(Duration::from_millis(1)).unwrap());
        assert!(bell.ring());
        assert!(bell.wait(Duration::from_secs(60)).unwrap());
        assert!(!bell.wait(Duration::ZERO).unwrap(), "one ring ends one wait");
    }

    #[test]
    fn a_wait_ends_with_another_descriptor_too() {
        let (bell, other) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
        let beside = || other.eventfd.try_clone().unwrap();
        let began = std::time::Instant::now();
        assert!(!bell.wait_beside(beside().as_fd(), Duration::from_millis(1)).unwrap());
        other.prepare_park();
        other.ring();
        assert!(!bell.wait_beside(beside().as_fd(), Duration::from_secs(60)).unwrap(), "the other was it");
        bell.prepare_park();
        bell.ring();
        assert!(bell.wait_beside(beside().as_fd(), Duration::from_secs(60)).unwrap());
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn no_wake_up_is_lost() {
        let bell = Doorbell::new().unwrap();
        let (mut items, mut inbox) = rtrb::RingBuffer::<u32>::new(4);
        let ringer = Arc::clone(&bell);
        const ITEMS: u32 = 20_000;
        let producer = thread::spawn(move || {
            for item in 0..ITEMS {
                while items.push(item).is_err() {
                    thread::yield_now();
                }
                ringer.ring();
            }
        });
        let mut next = 0;
        while next < ITEMS {
            while let Ok(item) = inbox.pop() {
                assert_eq!(item, next);
                next += 1;
            }
            bell.prepare_park();
            if !inbox.is_empty() || next == ITEMS {
                bell.cancel_park();
                continue;
            }
            assert!(bell.wait(Duration::from_secs(60)).unwrap());
            bell.cancel_park();
        }
        producer.join().unwrap();
    }
}
