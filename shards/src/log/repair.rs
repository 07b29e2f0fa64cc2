//! Tells a flipped bit from a torn write: is a bad batch exactly one bit from valid?
//!
//! Nothing is ever repaired here; the answer only decides between "never acknowledged" and "damaged". A CRC is linear:
//! flipping one bit changes it by a value that depends only on the distance of the bit from the end, so one walk over
//! the distances finds the bit without trying every flip. What is ambiguous counts as torn: a sector that reads as all
//! zeros was probably never written, even if it should hold a single set bit.

use super::header::{BatchHeader, HEADER_BYTES, SECTOR_BYTES};

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
/// match `payload_crc`, and the sector of that bit was surely written.
pub(super) fn one_bit_payload(covered: &[u8], payload_crc: u32) -> bool {
    let difference = crc32c::crc32c(&covered[HEADER_BYTES..]) ^ payload_crc;
    let bits = (covered.len() - HEADER_BYTES) * 8;
    let mut effect = POLYNOMIAL;
    for distance in 0..bits {
        if effect == difference {
            let byte = covered.len() - 1 - distance / 8;
            let sector = byte / SECTOR_BYTES * SECTOR_BYTES;
            return covered[sector..sector + SECTOR_BYTES].iter().any(|byte| *byte != 0);
        }
        effect = (effect >> 1) ^ (POLYNOMIAL & (effect & 1).wrapping_neg());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_flip_is_recognised_and_nothing_else() {
        let mut covered = vec![0x5a_u8; 1024];
        for (at, byte) in covered.iter_mut().enumerate() {
            *byte = byte.wrapping_add((at * 31) as u8);
        }
        let crc = crc32c::crc32c(&covered[HEADER_BYTES..]);
        assert!(!one_bit_payload(&covered, crc), "a valid payload is no flip");
        for bit in HEADER_BYTES * 8..covered.len() * 8 {
            covered[bit / 8] ^= 1 << (bit % 8);
            assert!(one_bit_payload(&covered, crc), "bit {bit}");
            covered[1000] ^= 0x31;
            assert!(!one_bit_payload(&covered, crc), "bit {bit} and three more");
            covered[1000] ^= 0x31;
            covered[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_sector_of_zeros_counts_as_unwritten() {
        let mut covered = vec![1; 1024];
        covered[512..].fill(0);
        covered[700] = 4;
        let crc = crc32c::crc32c(&covered[HEADER_BYTES..]);
        covered[700] = 0;
        assert!(!one_bit_payload(&covered, crc));
    }
}
