//! Makes things go wrong: one fault of a class that the plan has turned on, and its end.

use crate::fault::Fault;
use crate::machine::{Damage, Machine};
use crate::strand::directory;
use crate::world::{Happening, World};
use shards::ids::GroupId;
use shards::log::header::{BLOCK_BYTES, BatchHeader, BatchKind};
use shards::storage::manifest::MANIFEST_FILE;

/// A leader that is silent for so long has a successor.
const ELECTED_US: u64 = 1_300_000;

impl World {
    /// Injects one fault.
    pub(crate) fn inject(&mut self) {
        let classes: Vec<Fault> = self.plan.faults.iter().collect();
        if classes.is_empty() {
            return;
        }
        let fault = *self.rng.pick(&classes);
        let number = self.rng.place(self.machines.len());
        self.trace.note(&[5, number as u64, self.clock.get(), fault as u64]);
        let is_up = self.machines[number].is_up;
        match fault {
            Fault::Membership if self.plan.has_meta => {
                let has_begun = self.begin_wish();
                if has_begun {
                    self.report.faults.add(fault);
                }
            }
            Fault::LostDisk if is_up && self.plan.has_meta => {
                let is_lost = self.lose_a_disk(number);
                if is_lost {
                    self.report.faults.add(fault);
                }
            }
            Fault::Kill if is_up => {
                self.report.faults.add(fault);
                self.kill(number);
                self.boot_later(number);
            }
            Fault::PowerCut if is_up => {
                self.report.faults.add(fault);
                self.power_off(number);
                self.boot_later(number);
            }
            Fault::PowerCutAll => {
                self.report.faults.add(fault);
                for number in 0..self.machines.len() {
                    self.power_off(number);
                    self.boot_later(number);
                }
            }
            Fault::KillBetweenEffects if is_up => {
                self.machines[number].fuse.0 = Some(self.rng.below(60));
            }
            Fault::CutInsideFiles => {
                let operations = self.rng.below(120);
                self.machines[number].disk.cut_after(operations);
            }
            Fault::BitRot | Fault::Misdirected | Fault::LaterFormat if is_up => {
                if self.rng.chance(500) {
                    self.power_off(number);
                } else {
                    self.kill(number);
                }
                self.damage(number, fault);
                self.boot_later(number);
            }
            Fault::Stop if is_up => self.stop_in_order(number),
            Fault::Pause if is_up => {
                self.report.faults.add(fault);
                let until = self.now() + self.rng.below(2_000_000);
                self.machines[number].paused_until_us = until;
                if self.plan.generation > 1 && self.rng.chance(500) {
                    // What its peers sent meanwhile waits behind what its clients sent.
                    let deaf_until = until + self.rng.below(400_000);
                    let machines = self.machines.len();
                    self.net.deafen(number, machines, deaf_until);
                }
            }
            Fault::LoneLeader => self.leave_leader_alone(),
            Fault::ClockJump => {
                self.report.faults.add(fault);
                let by_ms = self.rng.below(4_000_000) as i64 - 1_000_000;
                self.machines[number].clock_off_ms += by_ms;
                if is_up && self.rng.chance(500) {
                    let now = self.now();
                    self.machines[number].follow_wall(now);
                }
            }
            Fault::ClockSkew => self.report.faults.add(fault),
            Fault::Loss | Fault::Duplicate | Fault::Delay => {
                self.weather(fault, true);
                let after = 10_000 + self.rng.around(1_000_000);
                self.schedule(after, Happening::Calm(number, fault));
            }
            Fault::Partition | Fault::OneWay | Fault::Bridge | Fault::Clog => {
                self.report.faults.add(fault);
                let (machines, now) = (self.machines.len(), self.now());
                self.net.cut(&mut self.rng, fault, machines, now);
                let after = 100_000 + self.rng.around(3_000_000);
                self.schedule(after, Happening::Calm(number, fault));
            }
            Fault::WriteError
            | Fault::ShortWrite
            | Fault::SyncError
            | Fault::FileError
            | Fault::ReadError
            | Fault::DiskFull
            | Fault::DiskStall => {
                self.switch(number, fault, true);
                let after = 10_000 + self.rng.around(300_000);
                self.schedule(after, Happening::Calm(number, fault));
            }
            _ => {}
        }
    }

    /// The process of a leader stands still until another one leads, while clients are silent; then they ask much at once, and
    /// it hears them before it hears its peers.
    fn leave_leader_alone(&mut self) {
        if self.lone.is_some_and(|(_, until)| self.now() < until) {
            return;
        }
        let leads = |machine: &Machine| machine.is_up && machine.running().any(|one| one.shard.is_ready());
        let leaders: Vec<usize> = (0..self.machines.len()).filter(|at| leads(&self.machines[*at])).collect();
        if leaders.is_empty() {
            return;
        }
        self.report.faults.add(Fault::LoneLeader);
        let number = *self.rng.pick(&leaders);
        let elected = self.now() + ELECTED_US;
        let until = elected + 50_000 + self.rng.below(500_000);
        let deaf_until = until + 50_000 + self.rng.below(400_000);
        self.machines[number].paused_until_us = until;
        let machines = self.machines.len();
        self.net.deafen(number, machines, deaf_until);
        self.lone = Some((elected, deaf_until));
    }

    /// What was switched on ends.
    pub(crate) fn calm(&mut self, number: usize, fault: Fault) {
        match fault {
            Fault::Loss | Fault::Duplicate | Fault::Delay => self.weather(fault, false),
            Fault::Partition | Fault::OneWay | Fault::Bridge | Fault::Clog => self.net.join(),
            _ => self.switch(number, fault, false),
        }
    }

    fn weather(&mut self, fault: Fault, is_on: bool) {
        let rate = |per_mille: u64| if is_on { per_mille } else { 0 };
        match fault {
            Fault::Loss => self.net.loss = rate(100),
            Fault::Duplicate => self.net.double = rate(150),
            _ => self.net.late = rate(200),
        }
    }

    fn switch(&mut self, number: usize, fault: Fault, is_on: bool) {
        let rate = |per_mille: u64| if is_on { per_mille } else { 0 };
        self.machines[number].disk.set_faults(|faults| match fault {
            Fault::WriteError => faults.write_error = rate(60),
            Fault::ShortWrite => faults.short_write = rate(300),
            Fault::SyncError => faults.sync_error = rate(60),
            Fault::FileError => faults.file_error = rate(100),
            Fault::ReadError => faults.read_error = rate(60),
            Fault::DiskFull => faults.is_full = is_on,
            Fault::DiskStall => faults.stall_us = rate(400_000),
            _ => {}
        });
    }

    fn boot_later(&mut self, number: usize) {
        let after = 1000 + self.rng.around(300_000);
        self.schedule(after, Happening::Boot(number, self.machines[number].life));
    }

    /// The process dies; the machine goes on.
    pub(crate) fn kill(&mut self, number: usize) {
        if !self.machines[number].is_up {
            return;
        }
        self.end_process(number);
        self.machines[number].disk.orphan();
    }

    /// The machine loses its power.
    pub(crate) fn power_off(&mut self, number: usize) {
        self.end_process(number);
        self.machines[number].disk.cut();
    }

    fn end_process(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if !machine.is_up {
            return;
        }
        machine.is_up = false;
        machine.is_listening = false;
        let strands: Vec<_> = machine.strands.iter_mut().filter_map(Option::take).collect();
        for strand in strands {
            if let Err(text) = self.count_snapshots(&strand) {
                self.complaint.get_or_insert(text);
            }
        }
        self.hang_up(number);
        self.replicas.restarted(number);
        for other in 0..self.machines.len() {
            if other != number && self.machines[other].is_up {
                let (after, life) = (500 + self.rng.below(5_000), self.machines[other].life);
                self.schedule(after, Happening::LinkBroke(other, life, number));
            }
        }
    }

    /// The server is asked to stop: it drains, seals and closes. Clients that still wait lose their connections.
    fn stop_in_order(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if !machine.running().all(crate::strand::Strand::is_quiet) || machine.router.outstanding() > 0 {
            return;
        }
        self.report.faults.add(Fault::Stop);
        let strands: Vec<_> = self.machines[number].strands.iter_mut().filter_map(Option::take).collect();
        for strand in strands {
            // A failure while closing is one of the disk's faults; what is durable stays so.
            let _ = strand.close();
        }
        let is_cut = self.machines[number].disk.is_cut();
        self.end_process(number);
        if !is_cut {
            self.machines[number].disk.orphan();
        }
        self.boot_later(number);
    }

    /// Damages a file of a machine that is down, and keeps the good copy.
    fn damage(&mut self, number: usize, fault: Fault) {
        let group = GroupId(self.rng.below(u64::from(self.plan.shards)) as u32);
        let place = directory(group);
        let files = self.machines[number].disk.durable_files(&place.to_string_lossy());
        if files.is_empty() {
            return;
        }
        let found = match fault {
            Fault::BitRot => self.flip(number, &files),
            Fault::LaterFormat => self.make_later(number, &files),
            _ => self.misdirect(number, &files),
        };
        let Some(damage) = found else { return };
        self.report.faults.add(fault);
        let disk = &self.machines[number].disk;
        disk.damage(&damage.file, damage.offset, &damage.bad);
        self.machines[number].damage.push(damage);
    }

    fn flip(&mut self, number: usize, files: &[(String, usize)]) -> Option<Damage> {
        let (file, bytes) = self.rng.pick(files).clone();
        if bytes == 0 {
            return None;
        }
        let disk = &self.machines[number].disk;
        // Most of a segment is zeros that nobody needs: aim at what was written.
        for _ in 0..20 {
            let offset = self.rng.place(bytes);
            let good = disk.peek(&file, offset, 1);
            if good[0] != 0 || self.rng.chance(50) {
                let bad = vec![good[0] ^ 1 << self.rng.below(8)];
                return Some(Damage { file, offset, good, bad, is_later_format: false });
            }
        }
        None
    }

    /// Writes the number of a later format into the head of a file, with the checksum that it would have.
    fn make_later(&mut self, number: usize, files: &[(String, usize)]) -> Option<Damage> {
        let (file, _) = self.rng.pick(files).clone();
        /// No format has this number yet.
        const LATER: u8 = 0x7f;
        // Where the number stands, how many bytes the checksum covers, which stands behind them: the byte maps of manifest,
        // snapshot and segment.
        let (format_at, covered) = match file.rsplit('/').next()? {
            name if name.ends_with(".seg") => (8, 124),
            name if name.starts_with("snap-") && !name.ends_with(".tmp") => (8, 576),
            MANIFEST_FILE => (8, BLOCK_BYTES - 4),
            _ => return None,
        };
        let disk = &self.machines[number].disk;
        let good = disk.peek(&file, 0, covered + 4);
        if good.len() < covered + 4 || good[..8].iter().all(|byte| *byte == 0) || good[format_at] == LATER {
            return None;
        }
        let mut bad = good.clone();
        bad[format_at] = LATER;
        let crc = crc32c::crc32c(&bad[..covered]);
        bad[covered..].copy_from_slice(&crc.to_le_bytes());
        Some(Damage { file, offset: 0, good, bad, is_later_format: true })
    }

    /// Puts a sector of one place over a batch that is known to have been durable.
    fn misdirect(&mut self, number: usize, files: &[(String, usize)]) -> Option<Damage> {
        let disk = &self.machines[number].disk;
        let (mut durable, mut batches) = (0, Vec::new());
        for (file, bytes) in files.iter().filter(|(file, _)| file.ends_with(".seg")) {
            for offset in (0..*bytes).step_by(BLOCK_BYTES) {
                let block = disk.peek(file, offset, BLOCK_BYTES);
                if let Ok((header, _)) = BatchHeader::decode(&block) {
                    durable = durable.max(header.durable_upto.0);
                    if header.kind == BatchKind::Entries {
                        batches.push((file.clone(), offset, header.sequence.0));
                    }
                }
            }
        }
        batches.retain(|(_, _, sequence)| *sequence <= durable);
        if batches.is_empty() {
            return None;
        }
        let (file, offset, _) = self.rng.pick(&batches).clone();
        let (from, from_offset, _) = self.rng.pick(&batches).clone();
        let good = disk.peek(&file, offset, 512);
        let bad = disk.peek(&from, from_offset, 512);
        (good != bad).then_some(Damage { file, offset, good, bad, is_later_format: false })
    }
}
