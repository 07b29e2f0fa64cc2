//! Mutations of bytes that know nothing of what the bytes mean, and a few that know what text and numbers look like.

use strand_sim::rng::Rng;

/// Numbers at which length checks and conversions go wrong.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    15,
    16,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    4095,
    4096,
    4097,
    32_767,
    32_768,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 48,
    (1 << 53) + 1,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX - 1,
    u64::MAX,
];
/// Bytes that begin, end or spoil something in text and UTF-8.
const BYTES: &[u8] = b"\0\t\n\r \"'()*+,-./0189:;<=>?[\\]^_`{|}~\x7f\x80\xbf\xc0\xc2\xe2\xed\xf0\xf4\xff";

/// Changes `input` once, within `bytes_max`. `words` are texts of the format, `other` is another input.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, words: &[Vec<u8>], other: &[u8], bytes_max: usize) {
    match rng.below(16) {
        0 | 1 => flip(rng, input),
        2 | 3 => set(rng, input),
        4 => write_number(rng, input),
        5 => {
            let byte = *rng_byte(rng);
            insert(rng, input, &[byte]);
        }
        6 => remove(rng, input),
        7 => repeat(rng, input),
        8 => copy_within(rng, input),
        9 => splice(rng, input, other),
        10..13 if !words.is_empty() => {
            let word = rng.pick(words).clone();
            if rng.chance(300) { overwrite(rng, input, &word) } else { insert(rng, input, &word) }
        }
        13 => text_number(rng, input),
        14 => swap(rng, input),
        _ => input.truncate(rng.place(input.len() + 1)),
    }
    input.truncate(bytes_max);
}

fn rng_byte(rng: &mut Rng) -> &'static u8 {
    rng.pick(BYTES)
}

fn flip(rng: &mut Rng, input: &mut [u8]) {
    if !input.is_empty() {
        let at = rng.place(input.len());
        input[at] ^= 1 << rng.below(8);
    }
}

fn set(rng: &mut Rng, input: &mut [u8]) {
    if input.is_empty() {
        return;
    }
    let at = rng.place(input.len());
    input[at] = match rng.below(3) {
        0 => *rng_byte(rng),
        1 => input[at].wrapping_add(rng.below(9) as u8).wrapping_sub(4),
        _ => rng.word() as u8,
    };
}

/// Overwrites 1, 2, 4 or 8 bytes with a number of note, little-endian or big-endian.
fn write_number(rng: &mut Rng, input: &mut [u8]) {
    let width = 1 << rng.below(4);
    if input.len() < width {
        return;
    }
    let at = rng.place(input.len() - width + 1);
    let number = rng.pick(NUMBERS).wrapping_add(rng.below(3)).wrapping_sub(1);
    let mut bytes = number.to_le_bytes();
    if rng.chance(200) {
        bytes[..width].reverse();
    }
    input[at..at + width].copy_from_slice(&bytes[..width]);
}

fn insert(rng: &mut Rng, input: &mut Vec<u8>, piece: &[u8]) {
    let at = rng.place(input.len() + 1);
    input.splice(at..at, piece.iter().copied());
}

fn overwrite(rng: &mut Rng, input: &mut Vec<u8>, piece: &[u8]) {
    let at = rng.place(input.len() + 1);
    let end = (at + piece.len()).min(input.len());
    input.splice(at..end, piece.iter().copied());
}

fn stretch(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let from = rng.place(length + 1);
    let longest = if rng.chance(700) { 16 } else { length };
    from..(from + rng.place(longest + 1)).min(length)
}

fn remove(rng: &mut Rng, input: &mut Vec<u8>) {
    let range = stretch(rng, input.len());
    input.drain(range);
}

/// A stretch several times over: depth, repeats, long runs.
fn repeat(rng: &mut Rng, input: &mut Vec<u8>) {
    let range = stretch(rng, input.len());
    let piece = input[range.clone()].to_vec();
    let times = if rng.chance(800) { rng.place(4) } else { rng.place(200) };
    let at = range.end;
    input.splice(at..at, piece.repeat(times));
}

fn copy_within(rng: &mut Rng, input: &mut Vec<u8>) {
    let range = stretch(rng, input.len());
    let piece = input[range].to_vec();
    overwrite(rng, input, &piece);
}

fn splice(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    let piece = &other[stretch(rng, other.len())];
    if rng.chance(500) {
        insert(rng, input, piece);
    } else {
        input.truncate(rng.place(input.len() + 1));
        input.extend_from_slice(&other[rng.place(other.len() + 1)..]);
    }
}

/// Puts another number where one stands as text.
fn text_number(rng: &mut Rng, input: &mut Vec<u8>) {
    let digits: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
    if digits.is_empty() {
        return;
    }
    let from = *rng.pick(&digits);
    let end = (from..input.len()).find(|at| !input[*at].is_ascii_digit()).unwrap_or(input.len());
    let number = *rng.pick(NUMBERS);
    let text = match rng.below(6) {
        0 => format!("-{number}"),
        1 => format!("{number}.5"),
        2 => format!("{number}e{}", rng.below(400)),
        3 => format!("0{number}"),
        _ => number.to_string(),
    };
    input.splice(from..end, text.bytes());
}

fn swap(rng: &mut Rng, input: &mut [u8]) {
    if input.len() > 1 {
        let (a, b) = (rng.place(input.len()), rng.place(input.len()));
        input.swap(a, b);
    }
}
