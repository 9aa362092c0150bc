//! "Did you mean": the known name nearest to what was written.

/// The nearest of `names`, if it is near enough to be meant.
pub fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A name longer than any of ours is nobody's typing error, and comparing it would take quadratic time.
    const LENGTH_MAX: usize = 64;
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let written = plain(written);
    if written.len() > LENGTH_MAX {
        return None;
    }
    names
        .into_iter()
        .map(|name| (distance(&written, &plain(name)), name))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, name)| distance <= (name.len() / 3).max(1))
        .map(|(_, name)| name)
}

/// Least number of letters to insert, delete or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cb, above) in b.iter().zip(&mut row[1..]) {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = *above;
            left = replaced.min(*above + 1).min(left + 1);
            *above = left;
        }
        row[0] = i + 1;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_understood() {
        assert_eq!(
            [distance("", "abc"), distance("abc", ""), distance("kitten", "sitting"), distance("a", "a")],
            [3, 3, 3, 0]
        );
        let names = ["batch-bytes", "memory", "cores"];
        assert_eq!(nearest("batch_bytes", names), Some("batch-bytes"));
        assert_eq!(nearest("memroy", names), Some("memory"));
        assert_eq!(nearest("colour-scheme", names), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), names), None);
    }
}
