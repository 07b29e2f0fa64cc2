//! How long a follower waits before it stands for election, without chance: raft-rs draws a random time, the engine must not.
//!
//! The voters of a group take turns: each has a slot of its own for each term, so two of them rarely stand at the same
//! time, and whoever lost a tie is not the first again. Within its slot a replica's time varies by a hash.

use crate::ids::GroupId;

/// Ticks without a word from the leader after which a follower may vote for another one.
pub const LEASE_TICKS: usize = 10;
/// The shortest wait. Longer than the lease by more than the ticks of two nodes can be apart, so that the first who stands
/// is not refused by followers that heard the leader a moment later.
pub const WAIT_TICKS_MIN: usize = 12;
/// Every wait is shorter.
pub const WAIT_TICKS_END: usize = 24;
/// Ticks between two heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;

/// Ticks that a replica waits in this term. `attempts` counts how often it has stood in vain.
pub fn wait_ticks(group: GroupId, replica: u64, voters: &[u64], term: u64, attempts: u64) -> usize {
    let span = WAIT_TICKS_END - WAIT_TICKS_MIN;
    let count = voters.len().clamp(1, span);
    let rank = voters.iter().filter(|voter| **voter < replica).count();
    let turn = (rank as u64).wrapping_add(term).wrapping_add(u64::from(group.0)) as usize % count;
    let slot = span / count;
    let noise = mix(u64::from(group.0) << 32 ^ replica, term << 16 ^ attempts) as usize % slot.max(1);
    WAIT_TICKS_MIN + turn * slot + noise
}

/// The finalizer of SplitMix64 over both numbers (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
fn mix(one: u64, two: u64) -> u64 {
    let mut z = one.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(two);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_never_tie_and_take_turns() {
        let voters = [1, 2, 3];
        let mut first = [0; 3];
        for term in 0..300 {
            let waits = voters.map(|voter| wait_ticks(GroupId(4), voter, &voters, term, term % 5));
            assert!(waits.iter().all(|wait| (WAIT_TICKS_MIN..WAIT_TICKS_END).contains(wait)), "{waits:?}");
            let (a, b, c) = (waits[0], waits[1], waits[2]);
            assert!(a != b && b != c && a != c, "{waits:?}");
            let shortest = waits.iter().min().unwrap();
            first[waits.iter().position(|wait| wait == shortest).unwrap()] += 1;
        }
        assert_eq!(first, [100; 3]);
    }

    #[test]
    fn any_number_of_voters_has_a_wait() {
        let voters: Vec<u64> = (1..40).collect();
        for count in 0..voters.len() {
            for term in 0..9 {
                let wait = wait_ticks(GroupId(0), 7, &voters[..count], term, 1);
                assert!((WAIT_TICKS_MIN..WAIT_TICKS_END).contains(&wait));
            }
        }
    }
}
