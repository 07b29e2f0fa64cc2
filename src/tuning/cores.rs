//! Deals shards and routers onto the cores that exist.
//!
//! A pure function of its arguments. The number of shards belongs to the data directory, the cores to the machine: any number
//! of one runs on any number of the other. Routers take the first cores; shards begin behind them and come round, so that a
//! router shares its core last. On two cores with two shards: router and shard 1 on the first, shard 0 on the second.

use super::kinds::{CoreSet, RouterMode};
use super::knobs::{Cores, Router};
use std::fmt;

/// Which core runs what; `None` where nothing is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deal {
    /// The core of each shard.
    pub shards: Vec<Option<u32>>,
    /// The core of each router thread; empty when shards' threads serve clients themselves.
    pub routers: Vec<Option<u32>>,
}

impl Deal {
    /// Whether a router and a shard, or two shards, have to share one core.
    pub fn shares_a_core(&self) -> bool {
        let mut pinned: Vec<u32> = self.shards.iter().chain(&self.routers).flatten().copied().collect();
        let threads = pinned.len();
        pinned.sort_unstable();
        pinned.dedup();
        pinned.len() < threads
    }
}

/// Why the cores cannot be dealt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DealError {
    /// `cores.allowed` and what the system gives have nothing in common.
    NoCore {
        /// What the system gives.
        available: Vec<u32>,
    },
    /// A list names a core that the process may not use.
    NotAvailable {
        /// The setting that names it.
        key: &'static str,
        /// The core.
        core: u32,
        /// What the process may use.
        usable: Vec<u32>,
    },
    /// A list has not one entry a thread.
    WrongCount {
        /// The setting.
        key: &'static str,
        /// Its length.
        listed: usize,
        /// The number of threads.
        needed: usize,
    },
}

impl fmt::Display for DealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DealError::NoCore { available } => write!(
                f,
                "none of the cores in cores.allowed is given to this process, which may use {available:?}: change \
                 cores.allowed (--cores), or the process's CPU set (taskset, the container's cpuset)."
            ),
            DealError::NotAvailable { key, core, usable } => {
                write!(f, "{key} names core {core}, but this process may use {usable:?}: change the list.")
            }
            DealError::WrongCount { key, listed, needed } => {
                write!(
                    f,
                    "{key} lists {listed} cores for {needed} threads: list one for each, or leave it empty."
                )
            }
        }
    }
}

/// The cores that both the system and `cores.allowed` give, in rising order.
///
/// # Errors
///
/// [`DealError::NoCore`] when there is none.
pub fn usable(available: &[u32], allowed: &CoreSet) -> Result<Vec<u32>, DealError> {
    let allows = |core: &u32| match allowed {
        CoreSet::All(_) => true,
        CoreSet::Listed(list) => list.contains(core),
    };
    let mut usable: Vec<u32> = available.iter().copied().filter(allows).collect();
    usable.sort_unstable();
    if usable.is_empty() { Err(DealError::NoCore { available: available.to_vec() }) } else { Ok(usable) }
}

/// How many shards a new data directory gets: `server.shards`, or the length of `cores.shard`, or one for each usable core.
pub fn shards_of_new_directory(shards: u32, cores: &Cores, usable: &[u32]) -> u32 {
    const SHARDS_MAX: usize = 256;
    match (shards, cores.shard.len()) {
        (0, 0) => usable.len().min(SHARDS_MAX) as u32,
        (0, listed) => listed.min(SHARDS_MAX) as u32,
        (stated, _) => stated,
    }
}

/// Deals `shards` shards and the routers onto `usable` cores.
///
/// # Errors
///
/// When an explicit list has not one entry a thread or names a core that cannot be used.
pub fn deal(usable: &[u32], shards: u32, cores: &Cores, router: &Router) -> Result<Deal, DealError> {
    assert!(!usable.is_empty(), "the caller found at least one usable core");
    assert!(shards > 0, "a server has at least one shard");
    let routers = match router.mode {
        RouterMode::Thread => router.threads as usize,
        RouterMode::Inline => 0,
    };
    let in_turn = |first: usize, count: usize| -> Vec<u32> {
        (first..first + count).map(|position| usable[position % usable.len()]).collect()
    };
    let router_cores = match listed("cores.router", &cores.router, routers, usable)? {
        Some(list) => list,
        None => in_turn(0, routers),
    };
    let shard_cores = match listed("cores.shard", &cores.shard, shards as usize, usable)? {
        Some(list) => list,
        None => dealt_around(usable, &router_cores, shards as usize),
    };
    let pinned = |list: Vec<u32>| list.into_iter().map(|core| cores.pin.then_some(core)).collect();
    Ok(Deal { shards: pinned(shard_cores), routers: pinned(router_cores) })
}

/// The explicit list, checked; `None` when there is none.
fn listed(
    key: &'static str,
    list: &[u32],
    needed: usize,
    usable: &[u32],
) -> Result<Option<Vec<u32>>, DealError> {
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() != needed {
        return Err(DealError::WrongCount { key, listed: list.len(), needed });
    }
    match list.iter().find(|core| !usable.contains(core)) {
        Some(&core) => Err(DealError::NotAvailable { key, core, usable: usable.to_vec() }),
        None => Ok(Some(list.to_vec())),
    }
}

/// Shards in turn over the cores, those without a router first.
fn dealt_around(usable: &[u32], taken: &[u32], shards: usize) -> Vec<u32> {
    let free = usable.iter().filter(|core| !taken.contains(core));
    let shared = usable.iter().filter(|core| taken.contains(core));
    let order: Vec<u32> = free.chain(shared).copied().collect();
    (0..shards).map(|shard| order[shard % order.len()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Deals with one router thread and checks the cores of shards and router.
    fn check(usable: &[u32], shards: u32, expected: &[u32], router: u32) {
        let dealt = deal(usable, shards, &Cores::default(), &Router::default()).unwrap();
        let expected: Vec<_> = expected.iter().copied().map(Some).collect();
        assert_eq!((dealt.shards, dealt.routers), (expected, vec![Some(router)]), "{shards} on {usable:?}");
    }

    #[test]
    fn more_cores_than_shards_leave_the_router_alone() {
        check(&[0, 1, 2, 3], 1, &[1], 0);
        check(&[0, 1, 2, 3], 3, &[1, 2, 3], 0);
        check(&[4, 6, 8], 2, &[6, 8], 4);
    }

    #[test]
    fn as_many_shards_as_cores_share_the_routers_core_last() {
        check(&[0, 1], 2, &[1, 0], 0);
        check(&[0, 1, 2, 3], 4, &[1, 2, 3, 0], 0);
    }

    #[test]
    fn more_shards_than_cores_come_round() {
        check(&[0, 1], 5, &[1, 0, 1, 0, 1], 0);
        check(&[7], 3, &[7, 7, 7], 7);
    }

    #[test]
    fn without_router_threads_shards_take_the_cores_in_turn() {
        let router = Router { mode: RouterMode::Inline, threads: 3, ..Router::default() };
        let dealt = deal(&[0, 1, 2], 4, &Cores::default(), &router).unwrap();
        assert_eq!(dealt, Deal { shards: [0, 1, 2, 0].map(Some).to_vec(), routers: Vec::new() });
    }

    #[test]
    fn explicit_lists_are_kept_or_refused() {
        let cores = Cores { shard: vec![3, 3], router: vec![0], ..Cores::default() };
        let dealt = deal(&[0, 1, 3], 2, &cores, &Router::default()).unwrap();
        assert_eq!(dealt, Deal { shards: vec![Some(3), Some(3)], routers: vec![Some(0)] });
        assert!(dealt.shares_a_core());
        let error = deal(&[0, 1, 3], 4, &cores, &Router::default());
        assert_eq!(error, Err(DealError::WrongCount { key: "cores.shard", listed: 2, needed: 4 }));
        let error = deal(&[0, 1], 2, &cores, &Router::default());
        assert_eq!(error, Err(DealError::NotAvailable { key: "cores.shard", core: 3, usable: vec![0, 1] }));
    }

    #[test]
    fn no_pin_means_no_core() {
        let unpinned = Cores { pin: false, ..Cores::default() };
        let dealt = deal(&[0, 1], 2, &unpinned, &Router::default()).unwrap();
        assert_eq!(dealt, Deal { shards: vec![None, None], routers: vec![None] });
    }

    #[test]
    fn a_containers_cpu_set_is_respected() {
        assert_eq!(usable(&[5, 3], &CoreSet::ALL), Ok(vec![3, 5]));
        assert_eq!(usable(&[3, 5], &CoreSet::Listed(vec![0, 5])), Ok(vec![5]));
        let none = usable(&[3, 5], &CoreSet::Listed(vec![0, 1]));
        assert_eq!(none, Err(DealError::NoCore { available: vec![3, 5] }));
    }

    #[test]
    fn a_new_directory_gets_a_shard_for_each_core() {
        let listed = Cores { shard: vec![1, 1, 1], ..Cores::default() };
        assert_eq!(shards_of_new_directory(0, &Cores::default(), &[0, 1]), 2);
        assert_eq!(shards_of_new_directory(0, &listed, &[0, 1]), 3);
        assert_eq!(shards_of_new_directory(7, &Cores::default(), &[0, 1]), 7);
        let many: Vec<u32> = (0..1000).collect();
        assert_eq!(shards_of_new_directory(0, &Cores::default(), &many), 256);
    }

    proptest! {
        #[test]
        fn every_deal_is_even_and_uses_given_cores(count in 1_u32..64, shards in 1_u32..256, threads in 1_u32..5) {
            let cores: Vec<u32> = (0..count).map(|core| core * 2).collect();
            let router = Router { threads, ..Router::default() };
            let dealt = deal(&cores, shards, &Cores::default(), &router).unwrap();
            prop_assert_eq!(dealt.shards.len(), shards as usize);
            prop_assert_eq!(dealt.routers.len(), threads as usize);
            let load = |core: u32| dealt.shards.iter().filter(|shard| **shard == Some(core)).count();
            let loads: Vec<usize> = cores.iter().map(|core| load(*core)).collect();
            prop_assert_eq!(loads.iter().sum::<usize>(), shards as usize);
            let most = loads.iter().max().copied().unwrap_or(0);
            let least = loads.iter().min().copied().unwrap_or(0);
            prop_assert!(most - least <= 1);
        }
    }
}
