//! A machine: its disk, its clock, and the process on it while it lives.

use crate::disk::SimDisk;
use crate::fault::Fault;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::router::Router;
use crate::strand::{Fuse, Moment, Stop, Strand};
use crate::world::BEGINNING_US;
use shards::ids::{GroupId, Millis};
use std::cell::Cell;
use std::rc::Rc;

/// A place that was damaged, and how it was before.
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: usize,
    /// What stood there.
    pub good: Vec<u8>,
    /// What stands there since.
    pub bad: Vec<u8>,
}

/// See the module's head.
pub struct Machine {
    /// Its disk.
    pub disk: SimDisk,
    /// Counts the processes: what belongs to an earlier one is dropped.
    pub life: u32,
    /// Whether a process runs.
    pub is_up: bool,
    /// Whether it takes requests.
    pub is_listening: bool,
    /// Its shards, while it is up.
    pub strands: Vec<Strand>,
    /// Its router.
    pub router: Router,
    /// When it dies between two effects.
    pub fuse: Fuse,
    /// It does nothing before this time.
    pub paused_until_us: u64,
    /// Damage that a good copy can mend.
    pub damage: Vec<Damage>,
    /// How far its wall clock is off, in ms.
    pub clock_off_ms: i64,
    shards: u32,
    started_us: u64,
    started_wall_ms: u64,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(plan: &Plan, disk: SimDisk, rng: &mut Rng) -> Self {
        for number in 0..plan.shards {
            crate::strand::make_directory(&disk, GroupId(number));
        }
        let skewed = plan.faults.has(Fault::ClockSkew);
        let clock_off_ms = if skewed { rng.below(20_000_000) as i64 - 10_000_000 } else { 0 };
        Self {
            disk,
            life: 0,
            is_up: false,
            is_listening: false,
            strands: Vec::new(),
            router: Router::new(plan.shards),
            fuse: Fuse::default(),
            paused_until_us: 0,
            damage: Vec::new(),
            clock_off_ms,
            shards: plan.shards,
            started_us: BEGINNING_US,
            started_wall_ms: 0,
        }
    }

    /// Whether the process of this life runs.
    pub fn is_alive(&self, life: u32) -> bool {
        self.is_up && self.life == life
    }

    /// The time as its process sees it.
    pub fn moment(&self, now_us: u64) -> Moment {
        let elapsed_us = now_us - self.started_us;
        Moment { wall: Millis(self.started_wall_ms + elapsed_us / 1000), elapsed_ns: elapsed_us * 1000 }
    }

    /// The running process follows its machine's clock, forwards only.
    pub fn follow_wall(&mut self, now_us: u64) {
        let wall_ms = self.wall_ms(now_us);
        let shown = self.moment(now_us).wall.0;
        self.started_wall_ms += wall_ms.saturating_sub(shown);
    }

    fn wall_ms(&self, now_us: u64) -> u64 {
        ((now_us / 1000) as i64 + self.clock_off_ms) as u64
    }

    /// Starts a process: every shard comes back from the disk.
    pub fn boot(&mut self, plan: &Plan, clock: &Rc<Cell<u64>>, is_healed: bool) -> Result<(), Stop> {
        assert!(!self.is_up, "a machine runs one process");
        self.life += 1;
        self.fuse = Fuse::default();
        self.disk.power_on();
        self.router = Router::new(plan.shards);
        self.is_listening = false;
        self.started_us = clock.get();
        self.started_wall_ms = self.wall_ms(clock.get());
        let now = self.moment(clock.get());
        // It counts as up from here on, so that a death on the way is one.
        self.is_up = true;
        for number in 0..self.shards {
            self.strands.push(Strand::recover(plan, GroupId(number), &self.disk, clock, now, is_healed)?);
        }
        Ok(())
    }

    /// Puts good copies back where damage stands; false when there was none.
    pub fn repair(&mut self) -> bool {
        let mut mended = false;
        for Damage { file, offset, good, bad } in self.damage.drain(..) {
            let is_there =
                self.disk.durable_files(crate::strand::parent(&file)).iter().any(|(name, _)| *name == file);
            if is_there && self.disk.peek(&file, offset, bad.len()) == bad {
                self.disk.damage(&file, offset, &good);
                mended = true;
            }
        }
        mended
    }

    /// Its faults end; the operator gives its logs the room that they want.
    pub fn heal(&mut self, lies: bool) {
        self.disk.set_faults(|faults| *faults = crate::disk::DiskFaults { lies, ..Default::default() });
        self.fuse = Fuse::default();
        self.paused_until_us = 0;
        for strand in &self.strands {
            strand.lift_quota();
        }
    }

    /// Whether it serves and nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.is_up
            && self.is_listening
            && self.router.outstanding == 0
            && self.router.gathers() == 0
            && self.strands.iter().all(Strand::is_quiet)
    }

    /// What it is at, for complaints.
    pub fn describe(&self) -> String {
        let quiet: Vec<bool> = self.strands.iter().map(Strand::is_quiet).collect();
        format!(
            "up {} listening {} outstanding {} gathers {} shards quiet {quiet:?}",
            self.is_up,
            self.is_listening,
            self.router.outstanding,
            self.router.gathers()
        )
    }
}
