//! Clients shared by many threads.
//!
//! Invariants: at most `size_max` clients exist; one is in the hands of at most one caller; a client whose connection is
//! broken, or on which something unexpected waits, is given to nobody again.

use crate::client::Client;
use crate::error::Error;
use crate::options::ClientOptions;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A connection idle for this long is asked for a sign of life before it is handed out.
const PING_AFTER: Duration = Duration::from_secs(30);

/// How large a pool is and how long a caller waits for it.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Clients at most, in use and idle together.
    pub size_max: usize,
    /// Longest wait for a client.
    pub wait_max: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { size_max: 16, wait_max: Duration::from_secs(5) }
    }
}

/// A bounded pool; clones share it.
///
/// ```no_run
/// use strand_client::{ClientOptions, Pool, PoolOptions};
///
/// let pool = Pool::new(&["127.0.0.1:8000"], ClientOptions::default(), PoolOptions::default())?;
/// std::thread::scope(|threads| {
///     for _ in 0..8 {
///         threads.spawn(|| pool.get()?.incr("visits", 1));
///     }
/// });
/// # Ok::<(), strand_client::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    addresses: Vec<String>,
    client_options: ClientOptions,
    options: PoolOptions,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Client>,
    /// Clients that exist or are being made.
    open: usize,
}

/// A client on loan; it goes back when dropped.
#[derive(Debug)]
pub struct PooledClient {
    client: Option<Client>,
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool for the nodes of one server or cluster. Connects to nothing yet.
    pub fn new<A: AsRef<str>>(
        addresses: &[A],
        client: ClientOptions,
        options: PoolOptions,
    ) -> Result<Self, Error> {
        client.check()?;
        if options.size_max == 0 || addresses.is_empty() {
            return Err(Error::Config("a pool needs room for one client and one address".into()));
        }
        let addresses = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        let (state, returned) = (Mutex::default(), Condvar::new());
        Ok(Self { shared: Arc::new(Shared { addresses, client_options: client, options, state, returned }) })
    }

    /// A client in working order: an idle one, a new one, or the next that is returned in time.
    pub fn get(&self) -> Result<PooledClient, Error> {
        let deadline = Instant::now() + self.shared.options.wait_max;
        loop {
            // From here the loan owns the place in the pool, so every way out gives it back.
            let mut loan = self.reserve(deadline)?;
            let Some(client) = &mut loan.client else {
                let fresh = Client::connect_with(&self.shared.addresses, self.shared.client_options.clone())?;
                loan.client = Some(fresh);
                return Ok(loan);
            };
            if client.is_healthy() && (client.core.idle() < PING_AFTER || client.ping().is_ok()) {
                return Ok(loan);
            }
            // Broken while it was idle: dropping it makes room for another.
            loan.client = None;
        }
    }

    /// Clients that exist, in use and idle.
    pub fn size(&self) -> usize {
        self.shared.lock().open
    }

    /// A place in the pool, with an idle client if there is one.
    fn reserve(&self, deadline: Instant) -> Result<PooledClient, Error> {
        let shared = &self.shared;
        let mut state = shared.lock();
        loop {
            let idle = state.idle.pop();
            if idle.is_some() || state.open < shared.options.size_max {
                state.open += usize::from(idle.is_none());
                return Ok(PooledClient { client: idle, shared: Arc::clone(shared) });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::PoolExhausted { after: shared.options.wait_max });
            }
            state = shared.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    /// The state is whole after every statement, so a caller's panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PooledClient {
    fn drop(&mut self) {
        let healthy = self.client.take().filter(Client::is_healthy);
        let mut state = self.shared.lock();
        match healthy {
            Some(client) => state.idle.push(client),
            None => state.open -= 1,
        }
        drop(state);
        self.shared.returned.notify_one();
    }
}

impl Deref for PooledClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("a loan holds its client until it is dropped")
    }
}

impl DerefMut for PooledClient {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("a loan holds its client until it is dropped")
    }
}
