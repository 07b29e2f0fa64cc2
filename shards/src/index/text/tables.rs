//! What searches add up and look up in, kept from one to the next: to allocate and clear it would cost as much as a small query.

use super::conjunction::Meeting;
use super::maxscore::Sums;
use std::cell::RefCell;
use std::rc::Rc;

/// Tables that are kept for searches to come; more are only needed while more searches are under way.
const SPARE_MAX: usize = 4;

/// The tables of one search. Between two steps all that has to be zero is.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) sums: Sums,
    pub(super) meeting: Meeting,
}

/// Tables that no search uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spare(Rc<RefCell<Vec<Tables>>>);

impl Spare {
    /// Tables as good as new.
    pub(super) fn take(&self) -> Held {
        let mut tables = self.0.borrow_mut().pop().unwrap_or_default();
        tables.sums.begin();
        tables.meeting.begin();
        Held { tables, spare: self.clone() }
    }
}

/// Tables in use; they go back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) tables: Tables,
    spare: Spare,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut spare = self.spare.0.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(std::mem::take(&mut self.tables));
        }
    }
}
