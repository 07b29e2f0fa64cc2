//! The terms of one shard: (field, term) to a dense id, with exact live document frequencies.
//!
//! Invariants: `df` counts live documents only, whatever the history; an id with no reference from any part of the index
//! is given back and used again, unless somebody holds the ids (a snapshot being written). Ids in frequent use are small,
//! because they are handed out in order of first appearance, and that keeps the documents' term lists short.
//! The ids depend on history, so they never reach an answer.

use super::ordered::Ordered;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Names a field of the text index; 0 is the whole value, `*`. Never used twice in an index's life.
pub(crate) type FieldId = u16;

/// Sub-tables, so that no growth of the hash table moves more than a small part of it.
const TABLES: usize = 256;
/// In `start`: the term lies in the second arena.
const SECOND: u32 = 1 << 31;
const HEADER_BYTES: usize = 3;
/// `start` of an id that is not in use.
const FREE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Dictionary {
    tables: Vec<HashTable<u32>>,
    /// Where a term's bytes lie, by id: length, field (two bytes), term.
    start: Vec<u32>,
    document_frequency: Vec<u32>,
    /// Number of parts (tails, segments) that hold postings of the term.
    references: Vec<u16>,
    free: Vec<u32>,
    /// Ids to be freed when nobody holds them any more.
    deferred: Vec<u32>,
    holders: u32,
    arenas: [Vec<u8>; 2],
    /// Which arena takes new terms.
    current: usize,
    wasted_bytes: usize,
    /// Next id to move while terms move from the other arena to the current one.
    moving: Option<usize>,
    ordered: Ordered,
    /// How many ids were given back: before the first, all ordered terms are in use.
    freed: u64,
}

impl Default for Dictionary {
    fn default() -> Self {
        Self {
            tables: (0..TABLES).map(|_| HashTable::new()).collect(),
            start: Vec::new(),
            document_frequency: Vec::new(),
            references: Vec::new(),
            free: Vec::new(),
            deferred: Vec::new(),
            holders: 0,
            arenas: [Vec::new(), Vec::new()],
            current: 0,
            wasted_bytes: 0,
            moving: None,
            ordered: Ordered::default(),
            freed: 0,
        }
    }
}

fn hash_of(field: FieldId, term: &[u8]) -> u64 {
    xxh3_64_with_seed(term, u64::from(field))
}

/// The sub-table of a hash: bits that hashbrown uses for neither its tag nor its place.
fn table_of(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

fn entry_at(arenas: &[Vec<u8>; 2], start: u32) -> (FieldId, &[u8]) {
    let arena = &arenas[usize::from(start & SECOND != 0)];
    let at = (start & !SECOND) as usize;
    let length = usize::from(arena[at]);
    let field = u16::from_be_bytes([arena[at + 1], arena[at + 2]]);
    (field, &arena[at + HEADER_BYTES..][..length])
}

impl Dictionary {
    /// The id of a term, if it has one.
    pub(crate) fn find(&self, field: FieldId, term: &[u8]) -> Option<u32> {
        let hash = hash_of(field, term);
        let same = |id: &u32| entry_at(&self.arenas, self.start[*id as usize]) == (field, term);
        self.tables[table_of(hash)].find(hash, same).copied()
    }

    /// The id of a term, given out if it had none; `None` when 2 GiB of terms are held.
    #[inline]
    pub(crate) fn intern(&mut self, field: FieldId, term: &[u8]) -> Option<u32> {
        let hash = hash_of(field, term);
        let same = |id: &u32| entry_at(&self.arenas, self.start[*id as usize]) == (field, term);
        match self.tables[table_of(hash)].find(hash, same) {
            Some(id) => Some(*id),
            None => self.add(field, term, hash),
        }
    }

    #[cold]
    fn add(&mut self, field: FieldId, term: &[u8], hash: u64) -> Option<u32> {
        let start = self.append(field, term)?;
        let id = match self.free.pop() {
            Some(id) => {
                self.start[id as usize] = start;
                id
            }
            None => {
                let id = u32::try_from(self.start.len()).expect("2 GiB of terms are fewer than 2^32");
                if self.start.len() == self.start.capacity() {
                    let more = self.start.len() / 8 + 256;
                    self.start.reserve_exact(more);
                    self.document_frequency.reserve_exact(more);
                    self.references.reserve_exact(more);
                }
                self.start.push(start);
                self.document_frequency.push(0);
                self.references.push(0);
                id
            }
        };
        let (arenas, starts) = (&self.arenas, &self.start);
        self.tables[table_of(hash)].insert_unique(hash, id, |id| {
            let (field, term) = entry_at(arenas, starts[*id as usize]);
            hash_of(field, term)
        });
        self.ordered.insert(field, term);
        Some(id)
    }

    /// Gives the next id, of a snapshot, to a term or to nothing; false if that cannot be.
    pub(crate) fn load(&mut self, term: Option<(FieldId, &[u8])>) -> bool {
        let Some((field, term)) = term else {
            self.start.push(FREE);
            self.document_frequency.push(0);
            self.references.push(0);
            return self.start.len() < SECOND as usize;
        };
        if term.len() > 255 || self.find(field, term).is_some() {
            return false;
        }
        self.add(field, term, hash_of(field, term)).is_some_and(|id| id as usize + 1 == self.start.len())
    }

    /// Completes a load: gives back the ids that nothing refers to.
    pub(crate) fn finish_load(&mut self) {
        for id in (0..self.id_end()).rev() {
            if self.start[id as usize] == FREE {
                self.free.push(id);
            } else if self.references[id as usize] == 0 {
                self.reclaim(id);
            }
        }
    }

    fn append(&mut self, field: FieldId, term: &[u8]) -> Option<u32> {
        let arena = &mut self.arenas[self.current];
        if arena.capacity() - arena.len() < HEADER_BYTES + term.len() {
            // Doubling would leave a quarter of the arena empty on average.
            arena.reserve_exact(arena.len() / 8 + 1024);
        }
        let at = u32::try_from(arena.len()).ok().filter(|at| *at < SECOND - 1024)?;
        arena.push(u8::try_from(term.len()).expect("analyzers cut terms to 255 bytes"));
        arena.extend_from_slice(&field.to_be_bytes());
        arena.extend_from_slice(term);
        Some(if self.current == 0 { at } else { at | SECOND })
    }

    /// The field and bytes of a term in use.
    pub(crate) fn term(&self, id: u32) -> (FieldId, &[u8]) {
        entry_at(&self.arenas, self.start[id as usize])
    }

    /// Field and bytes of an id, or `None` if it is not in use.
    pub(crate) fn get(&self, id: u32) -> Option<(FieldId, &[u8])> {
        let start = *self.start.get(id as usize)?;
        (start != FREE).then(|| entry_at(&self.arenas, start))
    }

    /// One more than the highest id.
    pub(crate) fn id_end(&self) -> u32 {
        self.start.len() as u32
    }

    /// Number of live documents that hold the term.
    pub(crate) fn document_frequency(&self, id: u32) -> u32 {
        self.document_frequency[id as usize]
    }

    /// A live document with the term has come.
    #[inline]
    pub(crate) fn count_document(&mut self, id: u32) {
        self.document_frequency[id as usize] += 1;
    }

    /// A live document with the term has gone.
    #[inline]
    pub(crate) fn uncount_document(&mut self, id: u32) {
        let count = &mut self.document_frequency[id as usize];
        *count = count.checked_sub(1).expect("a document is counted once and uncounted once");
    }

    /// A part of the index has begun to hold postings of the term.
    pub(crate) fn retain(&mut self, id: u32) {
        let count = &mut self.references[id as usize];
        *count = count.checked_add(1).expect("there are far fewer than 65,536 parts");
    }

    /// A part of the index holds postings of the term no more.
    pub(crate) fn release(&mut self, id: u32) {
        let count = &mut self.references[id as usize];
        *count = count.checked_sub(1).expect("a part releases what it retained");
        if *count == 0 {
            if self.holders > 0 {
                self.deferred.push(id);
            } else {
                self.reclaim(id);
            }
        }
    }

    fn reclaim(&mut self, id: u32) {
        let start = self.start[id as usize];
        if self.references[id as usize] > 0 || start == FREE {
            return;
        }
        assert!(self.document_frequency[id as usize] == 0, "no live document outlives its postings");
        let (field, term) = entry_at(&self.arenas, start);
        let hash = hash_of(field, term);
        self.wasted_bytes += HEADER_BYTES + term.len();
        match self.tables[table_of(hash)].find_entry(hash, |other| *other == id) {
            Ok(entry) => entry.remove(),
            Err(_) => unreachable!("an id in use is in its table"),
        };
        self.start[id as usize] = FREE;
        self.free.push(id);
        self.freed += 1;
    }

    /// How many ids were given back so far: while this stays, every id stands for the term that it stood for.
    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    /// Keeps every id in use until [`Dictionary::unhold`].
    pub(crate) fn hold(&mut self) {
        self.holders += 1;
    }

    pub(crate) fn unhold(&mut self) {
        self.holders -= 1;
        if self.holders == 0 {
            for id in std::mem::take(&mut self.deferred) {
                self.reclaim(id);
            }
        }
    }

    /// Whether [`Dictionary::work`] has something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.moving.is_some()
            || self.wasted_bytes > self.arenas[self.current].len() / 2 + (64 << 10)
            || self.ordered.has_work()
    }

    /// Goes on with closing the gaps of the arena and with the ordered terms, about `units` terms far.
    pub(crate) fn work(&mut self, units: u32) {
        if self.moving.is_none() && self.wasted_bytes > self.arenas[self.current].len() / 2 + (64 << 10) {
            self.current ^= 1;
            self.wasted_bytes = 0;
            self.moving = Some(0);
        }
        if let Some(from) = self.moving {
            self.move_terms(from, units);
        } else {
            let Self { ordered, tables, start, arenas, freed, .. } = self;
            ordered.work(units, |field, term| {
                if *freed == 0 {
                    return true;
                }
                let hash = hash_of(field, term);
                tables[table_of(hash)]
                    .find(hash, |id| entry_at(arenas, start[*id as usize]) == (field, term))
                    .is_some()
            });
        }
    }

    fn move_terms(&mut self, from: usize, units: u32) {
        let end = self.start.len().min(from + units as usize);
        for id in from..end {
            let start = self.start[id];
            if start == FREE || usize::from(start & SECOND != 0) == self.current {
                continue;
            }
            let (field, term) = entry_at(&self.arenas, start);
            let term: smallvec::SmallVec<[u8; 64]> = term.into();
            match self.append(field, &term) {
                Some(moved) => self.start[id] = moved,
                None => unreachable!("live terms of one arena fit another"),
            }
        }
        self.moving = Some(end);
        if end == self.start.len() {
            self.moving = None;
            self.arenas[self.current ^ 1] = Vec::new();
        }
    }

    /// The first `limit` live terms of `field` that begin with `prefix`, in byte order.
    pub(crate) fn with_prefix(&self, field: FieldId, prefix: &[u8], limit: usize) -> Vec<(Vec<u8>, u32)> {
        self.ordered.with_prefix(field, prefix, limit, |term| self.live(field, term))
    }

    /// The `limit` live terms of `field` nearest to `word`, by (edits, bytes): term, edits and id.
    pub(crate) fn near(
        &self,
        field: FieldId,
        word: &str,
        edits_max: u8,
        limit: usize,
    ) -> Vec<(Vec<u8>, u8, u32)> {
        self.ordered.near(field, word, edits_max, limit, |term| self.live(field, term))
    }

    fn live(&self, field: FieldId, term: &[u8]) -> Option<u32> {
        self.find(field, term).filter(|id| self.document_frequency(*id) > 0)
    }

    pub(crate) fn bytes(&self) -> usize {
        let tables: usize = self.tables.iter().map(|table| table.allocation_size()).sum();
        let lists = (self.start.capacity() + self.document_frequency.capacity() + self.free.capacity()) * 4;
        tables
            + lists
            + self.references.capacity() * 2
            + self.arenas[0].capacity()
            + self.arenas[1].capacity()
            + self.ordered.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_after_their_last_reference() {
        let mut dictionary = Dictionary::default();
        let first = dictionary.intern(0, b"alpha").unwrap();
        let other = dictionary.intern(1, b"alpha").unwrap();
        assert_ne!(first, other, "fields have terms of their own");
        assert_eq!(dictionary.intern(0, b"alpha"), Some(first));
        dictionary.retain(first);
        dictionary.release(first);
        assert_eq!(dictionary.find(0, b"alpha"), None);
        assert_eq!(dictionary.intern(0, b"beta"), Some(first), "the id is used again");
        assert_eq!(dictionary.term(first), (0, &b"beta"[..]));
        dictionary.retain(first);
        dictionary.hold();
        dictionary.release(first);
        assert_eq!(dictionary.find(0, b"beta"), Some(first), "held ids stay");
        dictionary.unhold();
        assert_eq!(dictionary.find(0, b"beta"), None);
    }

    #[test]
    fn the_arena_closes_its_gaps_in_slices() {
        let mut dictionary = Dictionary::default();
        for n in 0..20_000 {
            let id = dictionary.intern(0, format!("term{n}").as_bytes()).unwrap();
            dictionary.retain(id);
        }
        for n in 0..20_000u32 {
            if n % 10 != 0 {
                let id = dictionary.find(0, format!("term{n}").as_bytes()).unwrap();
                dictionary.release(id);
            }
        }
        let before = dictionary.arenas[0].len();
        assert!(dictionary.has_work());
        let mut steps = 0;
        while dictionary.has_work() {
            dictionary.work(500);
            steps += 1;
            let id = dictionary.intern(2, format!("new{steps}").as_bytes()).unwrap();
            dictionary.retain(id);
            assert!(steps < 1000);
        }
        assert!(dictionary.arenas[0].len() + dictionary.arenas[1].len() < before / 2);
        for n in (0..20_000).step_by(10) {
            let term = format!("term{n}");
            let id = dictionary.find(0, term.as_bytes()).unwrap();
            assert_eq!(dictionary.term(id), (0, term.as_bytes()));
        }
    }
}
