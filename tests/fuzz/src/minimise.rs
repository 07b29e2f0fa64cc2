//! Makes a failing input small while it still fails.

/// Removes what can be removed and then blanks what can be blanked, at most `tries` runs of `fails`.
pub fn minimise(input: &[u8], mut tries: usize, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut chunk = best.len().div_ceil(2).max(1);
    loop {
        let (mut at, mut is_smaller) = (0, false);
        while at < best.len() {
            if tries == 0 {
                return best;
            }
            tries -= 1;
            let mut candidate = best.clone();
            candidate.drain(at..(at + chunk).min(best.len()));
            if fails(&candidate) {
                best = candidate;
                is_smaller = true;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && !is_smaller {
            break;
        }
        chunk = if is_smaller { chunk.min(best.len()).max(1) } else { (chunk / 2).max(1) };
    }
    for at in 0..best.len() {
        for plain in [0, b'a', b'0'] {
            if best[at] == plain || tries == 0 {
                break;
            }
            tries -= 1;
            let mut candidate = best.clone();
            candidate[at] = plain;
            if fails(&candidate) {
                best = candidate;
                break;
            }
        }
    }
    best
}
