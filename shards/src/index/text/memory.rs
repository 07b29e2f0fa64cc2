//! How much memory a text index holds, and where. Counts; changes nothing.

use super::TextIndex;
use super::part::Body;

impl TextIndex {
    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let parts: usize = self.parts.list.iter().map(|part| part.body.bytes() + part.dead.bytes()).sum();
        let forwards: usize =
            self.parts.forwards.iter().map(|forward| forward.documents.capacity() * 4).sum();
        self.dictionary.bytes() + self.locations.bytes() + parts + forwards
    }

    /// Where the bytes are, for people.
    pub fn report(&self) -> String {
        let mut sums = [0usize; 7];
        for part in &self.parts.list {
            match &part.body {
                Body::Tail(tail) => sums[0] += tail.borrow().bytes(),
                Body::Sealed(segment) => {
                    sums[1] += segment.records.capacity() + segment.record_at.capacity() * 4;
                    sums[2] += segment.postings.capacity();
                    sums[3] += segment.positions.capacity();
                    sums[4] += segment.entries.capacity() * 8;
                }
            }
        }
        sums[5] = self.dictionary.bytes();
        sums[6] = self.locations.bytes();
        let [tails, records, postings, positions, entries, dictionary, locations] = sums;
        format!(
            "bytes: tails {tails}, records {records}, postings {postings}, positions {positions}, entries {entries}, dictionary {dictionary}, locations {locations}, all {}",
            self.bytes()
        )
    }
}
