//! Best documents of a single term in a sealed part: only blocks whose bounds reach the threshold are unpacked.
//!
//! Bounds of blocks are next to exact, so the blocks with the best bounds hold the best documents. A few of these are
//! looked at first, which brings the threshold to about its end; the others follow in order, and most are passed over by
//! one comparison. A bound equal to the threshold does not rule a block out, for ties go by key.

use super::cursor::END;
use super::maxscore::{TermPlan, contribution};
use super::offering::Offering;
use super::score::Sieve;
use super::segment::{BLOCK, SealedList};
use bitpacking::{BitPacker, BitPacker4x};
use smallvec::SmallVec;

/// Blocks that are looked at first.
const PRIMED: usize = 16;
/// Longer lists are only searched in order: to choose among so many blocks is no small step.
const BLOCKS_MAX: u32 = 16_384;

/// What a search remembers of the part that it is in.
#[derive(Clone, Debug, Default)]
pub(super) struct Primed {
    /// By block, with the rest as the last one.
    bounds: Vec<i64>,
    /// The blocks that were looked at first.
    blocks: SmallVec<[u32; PRIMED]>,
}

/// Offers the documents of a list from `from` on, until the budget is spent; returns where to go on, or [`END`].
pub(super) fn search(
    list: &SealedList<'_>,
    term: &TermPlan,
    from: u32,
    primed: &mut Primed,
    offering: &mut Offering<'_, '_, '_>,
) -> u32 {
    let mut unpacked = Unpacked {
        list,
        term,
        packer: BitPacker4x::new(),
        sieve: Sieve::new(term.weigher),
        documents: [0; BLOCK],
        frequencies: [0; BLOCK],
    };
    if from == 0 {
        primed.begin(list, term, offering);
        for block in &primed.blocks {
            // The others have lower bounds still.
            if primed.bounds[*block as usize] < offering.best.threshold() {
                break;
            }
            unpacked.judge(*block, offering);
        }
    }
    let mut block = list.block_of(from);
    // One block is always looked at, so that a search with a small budget comes to its end too.
    loop {
        let is_possible = match primed.bounds.get(block as usize) {
            Some(bound) => *bound >= offering.best.threshold(),
            None => {
                offering.units.spend(1);
                term.weigher.bound(&list.bounds(block)) >= offering.best.threshold()
            }
        };
        if is_possible && !primed.blocks.contains(&block) {
            unpacked.judge(block, offering);
        }
        if block >= list.blocks {
            return END;
        }
        block += 1;
        if !offering.units.left() {
            return list.last_document(block - 1) + 1;
        }
    }
}

impl Primed {
    /// Forgets the part before; bounds the blocks of this one, and while there is no threshold chooses those to look at
    /// first.
    fn begin(&mut self, list: &SealedList<'_>, term: &TermPlan, offering: &mut Offering<'_, '_, '_>) {
        self.blocks.clear();
        self.bounds.clear();
        if list.blocks == 0 || list.blocks > BLOCKS_MAX {
            return;
        }
        let bound = |block| term.weigher.bound(&list.bounds(block));
        self.bounds.extend((0..=list.blocks).map(bound));
        offering.units.spend(u64::from(list.blocks) / 2 + 1);
        if offering.best.threshold() > i64::MIN {
            return;
        }
        let mut order: Vec<(i64, u32)> = self.bounds.iter().map(|bound| -bound).zip(0..).collect();
        if order.len() > PRIMED {
            order.select_nth_unstable(PRIMED - 1);
            order.truncate(PRIMED);
        }
        order.sort_unstable();
        self.blocks.extend(order.into_iter().map(|(_, block)| block));
    }
}

/// A list and the block of it that was unpacked last.
struct Unpacked<'l, 's> {
    list: &'l SealedList<'s>,
    term: &'l TermPlan,
    packer: BitPacker4x,
    sieve: Sieve,
    documents: [u32; BLOCK],
    frequencies: [u32; BLOCK],
}

impl Unpacked<'_, '_> {
    /// Offers the documents of a block.
    fn judge(&mut self, block: u32, offering: &mut Offering<'_, '_, '_>) {
        let Self { list, term, packer, sieve, documents, frequencies } = self;
        let count = list.block_length(block);
        offering.units.spend(count as u64 / 2 + 1);
        if let Some(packed) = list.read_block(*packer, block, documents, frequencies) {
            list.read_frequencies(*packer, packed, frequencies);
        }
        let (lengths, norms) = (offering.open.lengths(term.field), offering.open.norms());
        let threshold = offering.best.threshold();
        let mut scored: SmallVec<[(u32, i64); BLOCK]> = SmallVec::new();
        sieve.need(threshold);
        let mut passed = [0; BLOCK];
        let count = sieve.pass(&documents[..count], &frequencies[..count], lengths, &mut passed);
        for n in &passed[..count] {
            let (document, frequency) = (documents[usize::from(*n)], frequencies[usize::from(*n)]);
            let score = contribution(term.weigher, lengths, norms, document, frequency);
            if score >= threshold {
                scored.push((document, score));
            }
        }
        offering.offer_best_first(&mut scored);
    }
}
