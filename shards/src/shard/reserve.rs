//! Reserves the keys of a large PREPARE in slices, before it is proposed.
//!
//! Requests that come in between are let through for keys that are not reserved yet: they stand before the PREPARE in the
//! log. A key that another transaction holds ends the reservation: what was reserved is given back first, so that nobody
//! waits for a lock while holding another's, and then the PREPARE waits for that key or is refused. One reservation is
//! under way at a time, in the order in which the PREPAREs were heard.

use super::Shard;
use super::admit::LockWaiter;
use crate::command::items;
use crate::effect::Effects;
use crate::index::Units;
use crate::txn::TxnId;
use crate::txn::message::{GroupMessage, Message};

/// Bytes of items from which a PREPARE is reserved in slices.
pub(super) const LARGE_BYTES: usize = 64 << 10;

/// A PREPARE whose keys are being reserved.
pub(super) struct Reservation {
    pub(super) message: GroupMessage,
    walked: usize,
    pass: Pass,
}

enum Pass {
    Take,
    /// Gives back what was taken in the first `upto` bytes.
    GiveBack {
        upto: usize,
        then: Then,
    },
}

#[derive(Clone)]
enum Then {
    /// Wait for this key, or be refused.
    WaitFor(Vec<u8>),
    /// The coordinator has given the transaction up.
    TellFinished {
        /// The try that is given up.
        attempt: u32,
    },
}

impl Reservation {
    /// Nothing is reserved yet.
    pub(super) fn new(message: GroupMessage) -> Self {
        Self { message, walked: 0, pass: Pass::Take }
    }

    /// Whether it is of this transaction.
    pub(super) fn is_of(&self, wanted: TxnId) -> bool {
        matches!(&self.message.body, Message::Prepare { txn, .. } if *txn == wanted)
    }

    /// Whether a FINISH of this try ends it.
    pub(super) fn is_ended_by(&self, txn: TxnId, attempt: u32) -> bool {
        self.message.body.is_prepare_of(txn, attempt)
    }

    /// The coordinator has given the transaction up: what is reserved is given back.
    pub(super) fn cancel(&mut self, attempt: u32) {
        let told = Then::TellFinished { attempt };
        if matches!(self.pass, Pass::Take) {
            self.pass = Pass::GiveBack { upto: self.walked, then: told };
            self.walked = 0;
        } else if let Pass::GiveBack { then, .. } = &mut self.pass {
            *then = told;
        }
    }
}

impl Shard {
    /// Goes on reserving while units are left.
    pub(super) fn reserve_some(&mut self, units: &mut Units, effects: &mut Effects) {
        while units.left()
            && let Some(mut reservation) = self.slices.reservations.pop_front()
        {
            if !self.reserve_slice(&mut reservation, units, effects) {
                return self.slices.reservations.push_front(reservation);
            }
            self.end_reservation(reservation, effects);
        }
    }

    /// Takes or gives back some keys; whether the present pass and with it the reservation has ended.
    fn reserve_slice(
        &mut self,
        reservation: &mut Reservation,
        units: &mut Units,
        effects: &mut Effects,
    ) -> bool {
        let Reservation { message, walked, pass } = reservation;
        let Message::Prepare { txn, items, .. } = &message.body else { return true };
        let locks = &mut self.locks;
        if matches!(pass, Pass::Take) {
            locks.begin(*txn);
            let mut held = None;
            let is_through = items::walk(items, walked, |key, _| {
                units.spend(2);
                if locks.is_held_by_other(key, *txn) {
                    held = Some(key.to_vec());
                } else {
                    locks.hold_key(*txn, key);
                }
                held.is_none() && units.left()
            });
            match held {
                Some(key) => *pass = Pass::GiveBack { upto: *walked, then: Then::WaitFor(key) },
                None => return is_through.expect("the router and this process encode items soundly"),
            }
            *walked = 0;
        }
        let Pass::GiveBack { upto, .. } = pass else { return true };
        let mut freed = Vec::new();
        let is_through = items::walk(&items[..*upto], walked, |key, _| {
            units.spend(1);
            locks.release_key(*txn, key, &mut freed);
            units.left()
        });
        for waiter in freed {
            self.admit_freed(waiter, effects);
        }
        is_through.expect("these items were walked before")
    }

    fn end_reservation(&mut self, reservation: Reservation, effects: &mut Effects) {
        let Reservation { message, pass, .. } = reservation;
        let Message::Prepare { txn, attempt, wait, deadline, .. } = &message.body else { return };
        let (txn, attempt) = (*txn, *attempt);
        let Pass::GiveBack { then, .. } = pass else { return self.propose_prepare(&message) };
        self.locks.end(txn);
        match then {
            Then::TellFinished { attempt } => {
                self.tell(message.from, Message::Finished { txn, attempt }, effects);
            }
            Then::WaitFor(key) if *wait && *deadline > self.now => {
                if self.locks.is_held(&key) {
                    self.waiting_prepares.insert((txn, attempt));
                    self.locks.wait(&key, LockWaiter::Prepare(message));
                } else {
                    // It was given back meanwhile: from the beginning again.
                    self.slices.reservations.push_back(Reservation::new(message));
                }
            }
            Then::WaitFor(_) => self.refuse_prepare(&message, effects),
        }
        self.release_scans(effects);
    }
}
