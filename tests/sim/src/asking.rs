//! Clients: they ask, hear how it ended, ask again, and lose their connections.

use crate::client::Pending;
use crate::fault::Fault;
use crate::router::{Answer, AskId};
use crate::work::Outcome;
use crate::world::{Happening, PAUSES_PER_MILLE, World};

impl World {
    pub(crate) fn client_of(&self, ask: AskId) -> Option<usize> {
        self.clients.iter().position(|client| client.pending.as_ref().is_some_and(|p| p.ask == Some(ask)))
    }

    /// A client asks, or asks again.
    pub(crate) fn go_on(&mut self, number: usize) {
        if self.clients[number].pending.is_none() {
            if self.asked >= self.plan.requests {
                return;
            }
            self.asked += 1;
            let tick = self.next_tick();
            let now = self.now();
            let client = &mut self.clients[number];
            let ask = self.works[client.work].ask(number, &mut client.rng);
            client.pending = Some(Pending::new(ask, tick, now));
        }
        let machine = self.rng.place(self.machines.len());
        self.next_ask += 1;
        let ask = self.next_ask;
        let (is_up, life) = {
            let machine = &self.machines[machine];
            (machine.is_up && machine.is_listening, machine.life)
        };
        let client = &mut self.clients[number];
        let pending = client.pending.as_mut().expect("there is something to ask");
        if !is_up {
            // Nobody listens: nothing was asked.
            let after = 2_000 + client.rng.below(20_000);
            return self.schedule(after, Happening::Next(number));
        }
        pending.ask = Some(ask);
        pending.machine = machine;
        let line = pending.line.clone();
        let after = 20 + client.rng.below(100);
        self.schedule(after, Happening::Line(machine, life, ask, line));
        if self.plan.faults.has(Fault::Hangup) && !self.is_healed && self.rng.chance(15) {
            self.report.faults.add(Fault::Hangup);
            let after = self.rng.below(2_000);
            self.schedule(after, Happening::Hear(number, ask, None));
        }
    }

    /// A client hears how its request ended.
    pub(crate) fn hear(&mut self, number: usize, ask: AskId, answer: Option<&Answer>) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(number) else { return Ok(()) };
        let Some(pending) = client.pending.as_mut().filter(|pending| pending.ask == Some(ask)) else {
            return Ok(());
        };
        pending.ask = None;
        let is_last = client.is_last;
        let forgets = self.plan.faults.has(Fault::ClockJump) || self.plan.faults.has(Fault::ClockSkew);
        let outcome = pending.judge(answer, forgets)?;
        let Some(outcome) = outcome else {
            // Not over: the same again, after a pause.
            let after = 1_000 + client.rng.below(50_000);
            self.schedule(after, Happening::Next(number));
            return Ok(());
        };
        let pending = client.pending.take().expect("just seen");
        let is_burst = !client.rng.chance(PAUSES_PER_MILLE);
        let mut pause = client.rng.around(if is_burst { 200 } else { self.plan.pause_us });
        if let Some((from, until)) =
            self.lone.filter(|(_, until)| self.clock.get() < *until && !self.is_healed)
        {
            // Nobody asks a leader that stands still; when another one leads, everybody asks.
            pause =
                from.saturating_sub(self.clock.get()) + client.rng.around(until.saturating_sub(from) / 20);
        }
        self.report.answered += 1;
        match &outcome {
            Outcome::Done(_) => self.report.succeeded += 1,
            Outcome::Unknown => self.report.unknown += 1,
            Outcome::Refused(reply) => {
                if is_last {
                    return Err(format!("refused in the quiet at the end: {} -> {reply}", pending.line));
                }
            }
        }
        let span = pending.span(self.next_tick(), self.now());
        let work = &mut self.works[self.clients[number].work];
        let name = work.name();
        let ended = work.end(number, pending.tag, span, &outcome);
        ended.map_err(|text| format!("{name}: {text}; asked {}", pending.line))?;
        if !is_last {
            self.schedule(pause, Happening::Next(number));
        }
        Ok(())
    }

    /// Everyone whose connection went to this machine hears that it is gone.
    pub(crate) fn hang_up(&mut self, machine: usize) {
        let lost: Vec<(usize, AskId)> = self
            .clients
            .iter()
            .enumerate()
            .filter_map(|(number, client)| {
                let pending = client.pending.as_ref().filter(|pending| pending.machine == machine)?;
                pending.ask.map(|ask| (number, ask))
            })
            .collect();
        for (number, ask) in lost {
            let after = 100 + self.rng.below(1000);
            self.schedule(after, Happening::Hear(number, ask, None));
        }
    }
}
