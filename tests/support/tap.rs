//! A wire between a caller and a node that is listened to: every connection is passed on and recorded, and what the node said can
//! be played to later callers in its place.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of one direction that are recorded at most.
const RECORDED_MAX: usize = 4 << 20;

/// One connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    /// What the caller said.
    pub(crate) said: Vec<u8>,
    /// What the node answered.
    pub(crate) answered: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    recordings: Mutex<Vec<Arc<Mutex<Recording>>>>,
    /// Both ends of what is open.
    open: Mutex<Vec<TcpStream>>,
    /// What callers get instead of the node.
    played: Mutex<Option<Vec<u8>>>,
    is_over: AtomicBool,
}

/// See the module's head.
pub(crate) struct Tap {
    shared: Arc<Shared>,
    listens: (Ipv4Addr, u16),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    /// Listens at one address of this machine for a node at another one.
    pub(crate) fn start(listens: (Ipv4Addr, u16), node: (Ipv4Addr, u16)) -> Self {
        let listener = TcpListener::bind(listens).expect("an address of the loopback network is free");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::Acquire) {
                    return;
                }
                pass_on(caller, node, &accepting);
            }
        });
        Self { shared, listens }
    }

    /// What was said so far, by connection.
    pub(crate) fn recordings(&self) -> Vec<Recording> {
        lock(&self.shared.recordings).iter().map(|recording| lock(recording).clone()).collect()
    }

    /// From now on callers hear this instead of the node, and those that were connected must call again; with `None` they reach
    /// the node.
    pub(crate) fn play(&self, answer: Option<Vec<u8>>) {
        *lock(&self.shared.played) = answer;
        for stream in lock(&self.shared.open).drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.play(None);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.listens));
    }
}

fn pass_on(mut caller: TcpStream, node: (Ipv4Addr, u16), shared: &Arc<Shared>) {
    if let Some(answer) = lock(&shared.played).clone() {
        std::thread::spawn(move || {
            let _ = caller.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = caller.read(&mut [0; 4096]);
            let _ = caller.write_all(&answer);
            let _ = caller.read(&mut [0; 4096]);
        });
        return;
    }
    let Ok(server) = TcpStream::connect(node) else { return };
    let recording = Arc::new(Mutex::new(Recording::default()));
    lock(&shared.recordings).push(Arc::clone(&recording));
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
    lock(&shared.open).extend([clone(&caller), clone(&server)]);
    let ways = [(clone(&caller), clone(&server), true), (server, caller, false)];
    for (mut from, mut to, is_callers) in ways {
        let recording = Arc::clone(&recording);
        std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                let mut recording = lock(&recording);
                let kept = if is_callers { &mut recording.said } else { &mut recording.answered };
                if kept.len() + bytes <= RECORDED_MAX {
                    kept.extend_from_slice(&buffer[..bytes]);
                }
                drop(recording);
                if to.write_all(&buffer[..bytes]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
}
