//! Tells a flipped bit from a torn write: is a bad batch exactly one bit from valid?
//!
//! Nothing is ever repaired here; the answer only decides between "never acknowledged" and "damaged". A CRC is linear:
//! flipping one bit changes it by a value that depends only on the distance of the bit from the end, so one walk over
//! the distances finds the bit without trying every flip. Of a long payload many bits come into question, so the CRC of a torn
//! one points at some bit now and then; the payload hash tells whether that bit is really it. What is ambiguous counts as torn: a sector that reads as all
//! zeros was probably never written, even if it should hold a single set bit.

use super::header::{BatchHeader, HEADER_BYTES, PayloadSums, SECTOR_BYTES};

/// The reflected CRC32C polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The header that `bytes` (at least one sector) would hold with one bit flipped, when there is one.
pub(super) fn one_bit_header(bytes: &[u8]) -> Option<(BatchHeader, u32)> {
    let mut copy: [u8; HEADER_BYTES] = *bytes.first_chunk().expect("the caller reads whole blocks");
    if bytes[..SECTOR_BYTES].iter().all(|byte| *byte == 0) {
        return None;
    }
    for bit in 0..HEADER_BYTES * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        if let Ok(found) = BatchHeader::decode(&copy) {
            return Some(found);
        }
        copy[bit / 8] ^= 1 << (bit % 8);
    }
    None
}

/// Whether flipping one bit of `covered` (header, payload and fill of a batch; the header is valid) makes the payload
/// match its sums, and the sector of that bit was surely written.
pub(super) fn one_bit_payload(covered: &[u8], sums: &PayloadSums) -> bool {
    let difference = crc32c::crc32c(&covered[HEADER_BYTES..]) ^ sums.crc;
    let bits = (covered.len() - HEADER_BYTES) * 8;
    let mut effect = POLYNOMIAL;
    for distance in 0..bits {
        if effect == difference {
            let byte = covered.len() - 1 - distance / 8;
            let sector = byte / SECTOR_BYTES * SECTOR_BYTES;
            let mut repaired = covered.to_vec();
            repaired[byte] ^= 0x80 >> (distance % 8);
            return covered[sector..sector + SECTOR_BYTES].iter().any(|byte| *byte != 0)
                && sums.fit(&repaired[HEADER_BYTES..]);
        }
        effect = (effect >> 1) ^ (POLYNOMIAL & (effect & 1).wrapping_neg());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::SegmentEpoch;
    use super::super::header::filler;
    use super::super::writer::fill;
    use super::*;
    use crate::ids::Sequence;

    #[test]
    fn every_single_flip_is_recognised_and_nothing_else() {
        let mut covered = vec![0x5a_u8; 1024];
        for (at, byte) in covered.iter_mut().enumerate() {
            *byte = byte.wrapping_add((at * 31) as u8);
        }
        let sums = &PayloadSums::of(&covered[HEADER_BYTES..]);
        assert!(!one_bit_payload(&covered, sums), "a valid payload is no flip");
        for bit in HEADER_BYTES * 8..covered.len() * 8 {
            covered[bit / 8] ^= 1 << (bit % 8);
            assert!(one_bit_payload(&covered, sums), "bit {bit}");
            covered[1000] ^= 0x31;
            assert!(!one_bit_payload(&covered, sums), "bit {bit} and three more");
            covered[1000] ^= 0x31;
            covered[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_torn_payload_whose_crc_points_at_a_bit_is_no_flipped_bit() {
        // The CRC of what is left is made to differ by what flipping one bit would change, as chance does it for one torn write of
        // 2^32 for each bit.
        let whole = vec![0x5a_u8; 1024];
        let mut torn = whole.clone();
        torn[512..].fill(0xa5);
        let mut flipped = torn.clone();
        flipped[300] ^= 0x10;
        let sums = PayloadSums {
            crc: crc32c::crc32c(&flipped[HEADER_BYTES..]),
            ..PayloadSums::of(&whole[HEADER_BYTES..])
        };
        assert!(!one_bit_payload(&torn, &sums));
        assert!(one_bit_payload(&torn, &PayloadSums { hash: None, ..sums }), "format 1 cannot tell");
    }

    #[test]
    fn a_sector_of_zeros_counts_as_unwritten() {
        let mut covered = vec![1; 1024];
        covered[512..].fill(0);
        covered[700] = 4;
        let sums = PayloadSums::of(&covered[HEADER_BYTES..]);
        covered[700] = 0;
        assert!(!one_bit_payload(&covered, &sums));
    }

    /// Seed 18783 of the simulator: of a batch that was cut short, the last sector was that of an earlier batch in the same place,
    /// and their payloads differed there in one bit. A sound disk was refused as damaged.
    #[test]
    fn a_sector_of_an_earlier_batch_is_no_flipped_bit() {
        let (mut before, mut after) = (vec![0; 4096], vec![0; 4096]);
        let mut payload = vec![7; 500];
        fill(&payload, filler(SegmentEpoch(3), Sequence(9)), &mut before);
        payload[499] ^= 4;
        let sums = fill(&payload, filler(SegmentEpoch(4), Sequence(9)), &mut after);
        after[512..].copy_from_slice(&before[512..]);
        assert!(!one_bit_payload(&after[..1024], &sums));
        fill(&payload, filler(SegmentEpoch(4), Sequence(9)), &mut after);
        after[627] ^= 4;
        assert!(one_bit_payload(&after[..1024], &sums), "a bit that rots there is still seen as such");
        let is_filled = |number| filler(SegmentEpoch(number), Sequence(number)).iter().all(|byte| *byte != 0);
        assert!((0..1000).all(is_filled), "a sector of zeros is one that was never written");
    }
}
