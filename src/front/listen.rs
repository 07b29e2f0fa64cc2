//! Listening sockets. A server shares its ports with nobody: a second one on them must fail to start.
//!
//! Several fronts of one server share a port by `SO_REUSEPORT`, and the kernel deals connections out among them by a hash of
//! their addresses. (One socket that all of them accept from would not do: the kernel wakes who has waited longest, and an
//! accept that stays armed has always waited longest, so one front would get nearly all.) The first socket is bound without
//! the option, which fails if anybody holds the port in whatever way; only then it lets the others join, so a second server
//! is still refused.
//!
//! A port may be held for a while before anybody is listened for: whoever connects then is turned away at once and can go
//! to another node, where one that listens too early would have it wait for as long as the start takes.

use super::ring;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// How often a taken port is tried again, and the pause between: a second in all. After `kill -9` the kernel closes a
/// server's sockets only when it has torn down the rings that used them, a moment after the process is gone.
const BIND_TRIES_MAX: u32 = 100;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// How often the system may choose a port that one of several addresses does not have.
const CHOICES_MAX: u32 = 16;

/// What becomes of who connects before a front accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// It waits: there is no other server that it could go to.
    Waits,
    /// It is refused.
    IsRefused,
}

/// Bound sockets, made before the front's thread starts so that a taken port fails early.
#[derive(Debug)]
pub struct Listeners {
    list: Vec<TcpListener>,
    backlog: u32,
}

impl Listeners {
    /// Binds every address with `SO_REUSEADDR` and without `SO_REUSEPORT`.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(addresses: &[SocketAddr], backlog: u32) -> io::Result<Self> {
        Self::hold(addresses, backlog, Early::Waits)
    }

    fn hold(addresses: &[SocketAddr], backlog: u32, early: Early) -> io::Result<Self> {
        let list = addresses.iter().map(|address| match early {
            // The standard library sets SO_REUSEADDR, which lets a restarted server bind beside old connections, and
            // chooses the backlog itself; listening again only replaces that.
            Early::Waits => bind_patiently(address).and_then(|listener| {
                ring::listen_again(&listener, backlog)?;
                Ok(listener)
            }),
            Early::IsRefused => patiently(|| bound(address, false)),
        });
        Ok(Self { list: list.collect::<io::Result<_>>()?, backlog })
    }

    /// Listens, if it is not done yet.
    ///
    /// # Errors
    /// When another server has begun to listen meanwhile.
    pub fn open(&self) -> io::Result<()> {
        self.list.iter().try_for_each(|listener| ring::listen_again(listener, self.backlog))
    }

    /// The addresses in use, with the ports that the system chose for port 0.
    ///
    /// # Errors
    /// When the system will not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.list.iter().map(TcpListener::local_addr).collect()
    }

    /// Sockets on the same addresses for so many fronts; see the module's head.
    ///
    /// # Errors
    /// As for [`Listeners::bind`].
    pub fn bind_for(
        fronts: usize,
        addresses: &[SocketAddr],
        backlog: u32,
        early: Early,
    ) -> io::Result<Vec<Self>> {
        let first = Self::hold(addresses, backlog, early)?;
        if fronts > 1 {
            first.list.iter().try_for_each(|listener| sockopt::set_socket_reuseport(listener, true))?;
        }
        let addresses = first.addresses()?;
        let mut all = vec![first];
        for _ in 1..fronts {
            let list = addresses.iter().map(|address| {
                let joined = bound(address, true)?;
                if early == Early::Waits {
                    ring::listen_again(&joined, backlog)?;
                }
                Ok(joined)
            });
            all.push(Self { list: list.collect::<io::Result<_>>()?, backlog });
        }
        Ok(all)
    }

    /// Binds a port of one's own on each address, the same on all: `port`, or with 0 one that the system chooses.
    ///
    /// # Errors
    /// As for [`Listeners::bind`].
    pub fn bind_own(
        addresses: &[SocketAddr],
        port: u16,
        backlog: u32,
        early: Early,
    ) -> io::Result<(Self, u16)> {
        let mut tries = 0;
        loop {
            let first = addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
            let mut own = Self::hold(&[SocketAddr::new(first.ip(), port)], backlog, early)?;
            let bound = own.addresses()?.first().map_or(port, SocketAddr::port);
            let others: Vec<_> = addresses[1..].iter().map(|a| SocketAddr::new(a.ip(), bound)).collect();
            match Self::hold(&others, backlog, early) {
                Ok(others) => {
                    own.list.extend(others.list);
                    return Ok((own, bound));
                }
                // What the system chose for one address may be taken on another.
                Err(error) if port == 0 && is_taken(&error) && tries < CHOICES_MAX => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// With another's sockets too.
    pub fn extend(&mut self, other: Self) {
        self.list.extend(other.list);
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
    patiently(|| TcpListener::bind(address))
}

fn patiently(bind: impl Fn() -> io::Result<TcpListener>) -> io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        match bind() {
            Err(error) if is_taken(&error) && tries < BIND_TRIES_MAX => {
                tries += 1;
                std::thread::sleep(BIND_PAUSE);
            }
            result => return result,
        }
    }
}

/// Binds an address without listening there; `joins` the sockets on it that let others join, or wants none there that listens.
fn bound(address: &SocketAddr, joins: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if joins {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    net::bind(&socket, address)?;
    Ok(TcpListener::from(socket))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn fronts_share_a_port_and_a_second_server_is_refused() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(fronts) = Listeners::bind_for(3, &[address.parse().unwrap()], 64, Early::Waits) else {
                assert!(address.starts_with('['), "there is always IPv4");
                continue;
            };
            let bound = fronts[0].addresses().unwrap()[0];
            assert!(fronts.iter().all(|front| front.addresses().unwrap() == [bound]));
            let second = TcpListener::bind(bound).map(drop).unwrap_err();
            assert!(is_taken(&second), "{second}");
            let clients: Vec<_> = (0..60).map(|_| TcpStream::connect(bound).unwrap()).collect();
            let accepted = |front: &Listeners| {
                front.list[0].set_nonblocking(true).unwrap();
                std::iter::from_fn(|| front.list[0].accept().ok()).count()
            };
            let counts: Vec<usize> = fronts.iter().map(accepted).collect();
            assert_eq!(counts.iter().sum::<usize>(), clients.len(), "{counts:?}");
            assert!(counts.iter().all(|count| *count > 0), "each front has its part: {counts:?}");
        }
    }

    #[test]
    fn who_comes_early_is_refused_where_others_may_serve_it() {
        let address = "127.0.0.1:0".parse().unwrap();
        let fronts = Listeners::bind_for(2, &[address], 64, Early::IsRefused).unwrap();
        let bound = fronts[0].addresses().unwrap()[0];
        assert_eq!(fronts[1].addresses().unwrap(), [bound]);
        let refused = TcpStream::connect(bound).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        fronts.iter().for_each(|front| front.open().unwrap());
        TcpStream::connect(bound).unwrap();
        let second = Listeners::hold(&[bound], 64, Early::IsRefused).unwrap_err();
        assert!(is_taken(&second), "{second}");
    }

    #[test]
    fn a_port_of_ones_own_is_the_same_on_every_address() {
        let addresses = ["127.0.0.1:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap()];
        let (own, port) = Listeners::bind_own(&addresses, 0, 64, Early::Waits).unwrap();
        let ports: Vec<u16> = own.addresses().unwrap().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [port, port]);
        assert!(is_taken(&TcpListener::bind(("127.0.0.2", port)).map(drop).unwrap_err()));
    }
}
