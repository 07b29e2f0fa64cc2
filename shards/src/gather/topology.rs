//! Which group owns which slot: an explicit table, built evenly once and then only stored and moved.
//!
//! Invariant: every slot belongs to one of the groups. It never looks at nodes or leaders.

use crate::ids::{GroupId, KeyHash, SLOTS, Slot, hash_of, slot_of, slot_of_hashed};

/// The owner of each slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    groups: u16,
    owners: Box<[u16; SLOTS as usize]>,
}

/// Slots that follow one another and have one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The first.
    pub first: Slot,
    /// The last, included.
    pub last: Slot,
    /// The owner of all of them.
    pub group: GroupId,
}

/// The table names a group that does not exist, or is of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTable;

impl Topology {
    /// `groups` groups with as many slots each as can be, in ranges.
    ///
    /// # Panics
    /// Unless there are 1 to 4,096 groups.
    pub fn even(groups: u16) -> Self {
        assert!((1..=SLOTS).contains(&groups), "a group owns at least one slot");
        let mut owners = Box::new([0; SLOTS as usize]);
        for (slot, owner) in owners.iter_mut().enumerate() {
            let number = slot * usize::from(groups) / usize::from(SLOTS);
            *owner = u16::try_from(number).expect("fewer groups than slots");
        }
        Self { groups, owners }
    }

    /// A stored table.
    pub fn from_table(groups: u16, owners: &[u16]) -> Result<Self, BadTable> {
        let owners: Box<[u16; SLOTS as usize]> = Box::new(owners.try_into().map_err(|_| BadTable)?);
        let sound = groups <= SLOTS && owners.iter().all(|owner| *owner < groups);
        if sound { Ok(Self { groups, owners }) } else { Err(BadTable) }
    }

    /// The owner of each slot, to be stored.
    pub fn table(&self) -> &[u16] {
        self.owners.as_slice()
    }

    /// Number of groups; they are numbered from 0.
    pub fn groups(&self) -> usize {
        usize::from(self.groups)
    }

    /// Every group, ascending.
    pub fn each(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..u32::from(self.groups)).map(GroupId)
    }

    /// The group that owns a key.
    #[inline]
    pub fn group_of(&self, key: &[u8]) -> GroupId {
        self.owner(slot_of(key))
    }

    /// As [`Topology::group_of`] for a caller that has the key's hash.
    #[inline]
    pub fn group_of_hashed(&self, key: &[u8], hash: KeyHash) -> GroupId {
        debug_assert_eq!(hash, hash_of(key), "the hash is that of the whole key");
        if self.groups == 1 {
            return GroupId(0);
        }
        self.owner(slot_of_hashed(key, hash))
    }

    /// The group that owns a slot.
    #[inline]
    pub fn owner(&self, slot: Slot) -> GroupId {
        GroupId(u32::from(self.owners[usize::from(slot.0)]))
    }

    /// The table as ranges, ascending.
    pub fn ranges(&self) -> Vec<SlotRange> {
        let mut ranges: Vec<SlotRange> = Vec::new();
        for slot in (0..SLOTS).map(Slot) {
            let group = self.owner(slot);
            match ranges.last_mut() {
                Some(range) if range.group == group => range.last = slot,
                _ => ranges.push(SlotRange { first: slot, last: slot, group }),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dealt_evenly_and_survive_storage() {
        for groups in [1, 2, 3, 7, 64, 4096] {
            let topology = Topology::even(groups);
            let ranges = topology.ranges();
            assert_eq!(ranges.len(), usize::from(groups));
            let sizes: Vec<u16> = ranges.iter().map(|range| range.last.0 - range.first.0 + 1).collect();
            assert_eq!(sizes.iter().sum::<u16>(), SLOTS);
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            assert_eq!(Topology::from_table(groups, topology.table()), Ok(topology));
        }
        assert_eq!(Topology::from_table(1, &[0; 9]), Err(BadTable));
        assert_eq!(Topology::from_table(2, &[2; SLOTS as usize]), Err(BadTable));
    }

    #[test]
    fn tags_keep_keys_together() {
        let topology = Topology::even(8);
        assert_eq!(topology.group_of(b"{a}1"), topology.group_of(b"{a}2"));
        assert_eq!(topology.group_of(b"{a}1"), topology.group_of_hashed(b"{a}1", hash_of(b"{a}1")));
    }
}
