//! Walks a recorded stable journal (wire 4.1) and says at which byte each LSN begins, for partial syncs of a replay.
//!
//! In: the bytes behind the token. Out: offsets. It shares nothing with `dragonfly::journal`, which it helps to judge.

/// Byte offsets of the entries that count as an LSN (with their SELECT prefix), in order. `None`: the bytes are no
/// journal that ends at an entry's end.
pub fn entry_starts(journal: &[u8]) -> Option<Vec<usize>> {
    let mut starts = Vec::new();
    let (mut at, mut begun) = (0, None);
    while at < journal.len() {
        let start = *begun.get_or_insert(at);
        let opcode = journal[at];
        at += 1;
        match opcode {
            // SELECT belongs to the entry behind it.
            6 => {
                packed(journal, &mut at)?;
                continue;
            }
            15 => {
                packed(journal, &mut at)?;
            }
            13 => starts.push(start),
            9..=12 => {
                packed(journal, &mut at)?;
                packed(journal, &mut at)?;
                if opcode != 12 {
                    let strings_count = packed(journal, &mut at)?;
                    packed(journal, &mut at)?;
                    for _ in 0..strings_count {
                        let len = packed(journal, &mut at)?;
                        at = at.checked_add(usize::try_from(len).ok()?).filter(|end| *end <= journal.len())?;
                    }
                }
                starts.push(start);
            }
            _ => return None,
        }
        begun = None;
    }
    begun.is_none().then_some(starts)
}

/// A marker entry: `lsn` is that of the record before it.
pub fn marker(lsn: u64) -> Vec<u8> {
    let mut bytes = vec![15];
    match lsn {
        0..=63 => bytes.push(lsn as u8),
        64..=16383 => bytes.extend_from_slice(&[0x40 | (lsn >> 8) as u8, lsn as u8]),
        _ if lsn <= u64::from(u32::MAX) => {
            bytes.push(0x80);
            bytes.extend_from_slice(&(lsn as u32).to_be_bytes());
        }
        _ => {
            bytes.push(0x81);
            bytes.extend_from_slice(&lsn.to_be_bytes());
        }
    }
    bytes
}

/// A COMMAND entry of database 0.
pub fn command(args: &[&str]) -> Vec<u8> {
    let mut bytes = vec![6, 0, 10, 0, 1];
    bytes.extend_from_slice(&marker(args.len() as u64)[1..]);
    bytes.extend_from_slice(&marker(args.iter().map(|arg| arg.len() as u64).sum())[1..]);
    for arg in args {
        bytes.extend_from_slice(&marker(arg.len() as u64)[1..]);
        bytes.extend_from_slice(arg.as_bytes());
    }
    bytes
}

/// A packed number (wire 0.1).
fn packed(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    let (value, len) = match first {
        0..=0x3f => (u64::from(first), 1),
        0x40..=0x7f => (u64::from(first & 0x3f) << 8 | u64::from(*bytes.get(*at + 1)?), 2),
        0x80 => (u64::from(u32::from_be_bytes(bytes.get(*at + 1..*at + 5)?.try_into().ok()?)), 5),
        0x81 => (u64::from_be_bytes(bytes.get(*at + 1..*at + 9)?.try_into().ok()?), 9),
        _ => return None,
    };
    *at += len;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_specification() {
        let mut journal = b"\x06\x00\x0a\x00\x01\x03\x05\x03SET\x01k\x01v".to_vec();
        journal.extend_from_slice(&marker(41));
        assert!(journal.starts_with(&command(&["SET", "k", "v"])));
        let second = journal.len();
        journal.extend_from_slice(b"\x06\x03\x0a\x80\x00\x01\x11\x70\x01\x05\x07\x04MSET\x01a\x011\x01b\x00");
        let third = journal.len();
        journal.push(13);
        assert_eq!(entry_starts(&journal), Some(vec![0, second, third]));
        assert_eq!(marker(41), [0x0f, 0x29]);
        for end in [1, 2, 5, second - 1, second + 3, third - 1] {
            assert_eq!(entry_starts(&journal[..end]), None, "{end}");
        }
        for lsn in [0, 63, 64, 300, 16383, 16384, u64::from(u32::MAX), 1 << 32] {
            assert_eq!(packed(&marker(lsn), &mut 1), Some(lsn));
        }
    }
}
