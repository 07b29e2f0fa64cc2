//! The known name that is closest to a misspelt one, for error messages.
//!
//! Damerau-Levenshtein distance in the "optimal string alignment" form (Boytsov 2011), over bytes; names are ASCII.

/// The candidate closest to `name`, if one is close enough to be meant: at most a third of its length away.
///
/// Between equally close candidates the first wins.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let measured =
        candidates.into_iter().map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate));
    let (edits, best) = measured.min_by_key(|(edits, _)| *edits)?;
    (edits <= best.len().max(name.len()) / 3).then_some(best)
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from one text to the other.
fn distance(from: &[u8], to: &[u8]) -> usize {
    let width = to.len() + 1;
    let mut before_last: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for i in 1..=from.len() {
        let mut row = vec![i; width];
        for j in 1..width {
            let replaced = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[width - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_known() {
        for (from, to, edits) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("prot", "port", 1)]
        {
            assert_eq!(distance(from.as_bytes(), to.as_bytes()), edits, "{from} {to}");
        }
    }

    #[test]
    fn only_close_names_are_offered() {
        let names = ["port", "host", "data_dir"];
        assert_eq!(nearest("prot", names), Some("port"));
        assert_eq!(nearest("DATADIR", names), Some("data_dir"));
        assert_eq!(nearest("colour", names), None);
    }
}
