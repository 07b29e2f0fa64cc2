//! Listening sockets. They share their port with nobody: a second server on it must fail to start.

use super::ring;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// How often a taken port is tried again, and the pause between: a second in all. After `kill -9` the kernel closes a
/// server's sockets only when it has torn down the rings that used them, a moment after the process is gone.
const BIND_TRIES_MAX: u32 = 100;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// Bound listening sockets, made before the front's thread starts so that a taken port fails early.
#[derive(Debug)]
pub struct Listeners {
    list: Vec<TcpListener>,
}

impl Listeners {
    /// Binds every address with `SO_REUSEADDR` and without `SO_REUSEPORT`.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(addresses: &[SocketAddr], backlog: u32) -> io::Result<Self> {
        let list = addresses.iter().map(|address| {
            // The standard library sets SO_REUSEADDR, which lets a restarted server bind beside old connections, and
            // chooses the backlog itself; listening again only replaces that.
            bind_patiently(address).and_then(|listener| {
                ring::listen_again(&listener, backlog)?;
                Ok(listener)
            })
        });
        Ok(Self { list: list.collect::<io::Result<_>>()? })
    }

    /// The addresses in use, with the ports that the system chose for port 0.
    ///
    /// # Errors
    /// When the system will not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.list.iter().map(TcpListener::local_addr).collect()
    }

    /// The same sockets for several fronts: each accepts from them, and the kernel hands every connection to one.
    ///
    /// # Errors
    /// When the process or the system has no file descriptor left.
    pub fn split(self, fronts: usize) -> io::Result<Vec<Self>> {
        let copies = (1..fronts).map(|_| {
            let list = self.list.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
            Ok(Self { list })
        });
        let mut all = copies.collect::<io::Result<Vec<_>>>()?;
        all.push(self);
        Ok(all)
    }

    pub(super) fn fd(&self, listener: usize) -> RawFd {
        self.list[listener].as_raw_fd()
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }
}

/// Binds an address, trying again for a moment while it is taken.
pub(crate) fn bind_patiently(address: &SocketAddr) -> io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES_MAX => {
                tries += 1;
                std::thread::sleep(BIND_PAUSE);
            }
            result => return result,
        }
    }
}
