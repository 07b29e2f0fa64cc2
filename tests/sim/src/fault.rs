//! What can go wrong: the classes of faults, which of them a plan turns on, and how often each was injected.

use std::fmt;

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// A process dies; the machine goes on, so whatever was handed to the kernel arrives.
    Kill,
    /// A process dies between two effects of one step.
    KillBetweenEffects,
    /// A machine loses its power: any subset of what was not synced is there afterwards.
    PowerCut,
    /// A machine loses its power inside a sequence of file operations.
    CutInsideFiles,
    /// Every machine loses its power at the same moment.
    PowerCutAll,
    /// A write of the log fails.
    WriteError,
    /// A write of the log comes back short, or is to be tried again.
    ShortWrite,
    /// A sync of the log fails.
    SyncError,
    /// An operation on a snapshot or segment file fails.
    FileError,
    /// Nothing new can be stored for a while.
    DiskFull,
    /// The disk answers late.
    DiskStall,
    /// A bit flips in a file while its machine is down; a good copy is kept for the repair.
    BitRot,
    /// A sector that was durable turns up elsewhere, over another one; a good copy is kept.
    Misdirected,
    /// A machine's clock is wrong from the start.
    ClockSkew,
    /// A machine's clock jumps.
    ClockJump,
    /// A process stands still for a while.
    Pause,
    /// A snapshot loses records on its way to the file (`"debug": true`).
    LostRecord,
    /// A client loses its connection while a request is under way.
    Hangup,
    /// The server is stopped in good order and started again.
    Stop,
    /// Messages between machines are lost.
    Loss,
    /// Messages arrive twice.
    Duplicate,
    /// Messages are late, and overtake one another.
    Delay,
    /// Two parts of the cluster do not hear one another.
    Partition,
    /// One machine hears another and is not heard.
    OneWay,
    /// Two machines hear a third and not one another.
    Bridge,
    /// A link takes nothing for a while and then delivers all.
    Clog,
    /// The operator adds or removes a node, or wishes another one to lead.
    Membership,
    /// A machine loses its disk and comes back as another node.
    LostDisk,
    /// What is on a disk was written by a later version; the good copy comes back when the process refuses it by name.
    LaterFormat,
    /// A file cannot be read.
    ReadError,
    /// A machine dies just when it has told whom it votes for, and is back at once; requests for votes are late.
    VoterDies,
    /// A message between groups arrives once more, up to seconds later, whatever became of its transaction.
    Echo,
    /// The process of a leader stands still until another one leads, and then hears its clients before its peers.
    LoneLeader,
    /// The power goes while the directory of a dismissed replica is emptied.
    CutInsideEmptying,
}

impl Fault {
    /// Every class.
    pub const ALL: [Self; 34] = [
        Self::Kill,
        Self::KillBetweenEffects,
        Self::PowerCut,
        Self::CutInsideFiles,
        Self::PowerCutAll,
        Self::WriteError,
        Self::ShortWrite,
        Self::SyncError,
        Self::FileError,
        Self::DiskFull,
        Self::DiskStall,
        Self::BitRot,
        Self::Misdirected,
        Self::ClockSkew,
        Self::ClockJump,
        Self::Pause,
        Self::LostRecord,
        Self::Hangup,
        Self::Stop,
        Self::Loss,
        Self::Duplicate,
        Self::Delay,
        Self::Partition,
        Self::OneWay,
        Self::Bridge,
        Self::Clog,
        Self::Membership,
        Self::LostDisk,
        Self::LaterFormat,
        Self::ReadError,
        Self::VoterDies,
        Self::Echo,
        Self::LoneLeader,
        Self::CutInsideEmptying,
    ];

    /// So many of the first classes are drawn as they were before there were others, so that kept seeds keep their plans.
    pub const OLD: usize = 26;

    /// Whether it needs several machines.
    pub fn needs_cluster(self) -> bool {
        self >= Self::Loss && !matches!(self, Self::LaterFormat | Self::ReadError | Self::Echo)
    }

    /// The class of a name as [`fmt::Display`] writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.to_string() == name)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, letter) in format!("{self:?}").char_indices() {
            if letter.is_uppercase() && place > 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// Some classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSet(u64);

impl FaultSet {
    /// Whether a class is in it.
    pub fn has(self, fault: Fault) -> bool {
        self.0 & 1 << fault as u8 != 0
    }

    /// With a class.
    #[must_use]
    pub fn with(self, fault: Fault) -> Self {
        Self(self.0 | 1 << fault as u8)
    }

    /// Without a class.
    #[must_use]
    pub fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u8))
    }

    /// The classes in it.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |fault| self.has(*fault))
    }
}

/// How often each class was injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    /// Counts one more.
    pub fn add(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// Adds what another run counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// How often a class was injected.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
