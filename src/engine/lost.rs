//! Names of keys that the target may have lost, kept in the checkpoint until they are fetched again (wire 4.4, 6.34): they
//! outlive the tool.
//!
//! In: names. Out: fields of the checkpoint's hash. Two kinds, for a position passes a record before its answer is seen:
//! `watched:<flow>` holds the names of the flow's last transaction whose answers may say that a key was lost, written in that
//! transaction; `lost:<flow>:<db>:<name>` is a key of which an answer said so, written before the next transaction. Whoever
//! goes on from the checkpoint puts both in doubt. Bounded: the one by a batch, the other by what a flow may have in doubt.

use super::messages::Lost;
use crate::ids::{DbIndex, FlowId};

const LOST: &[u8] = b"lost:";
const WATCHED: &str = "watched:";

/// Field of a lost key.
pub fn lost_field(lost: &Lost) -> Vec<u8> {
    let mut field = LOST.to_vec();
    field.extend_from_slice(format!("{}:{}:", lost.flow, lost.db).as_bytes());
    field.extend_from_slice(&lost.key);
    field
}

/// Field of the names of a flow's last transaction.
pub fn watched_field(flow: FlowId) -> String {
    format!("{WATCHED}{flow}")
}

/// Appends a name to such a field's value.
pub fn push_watched(names: &mut Vec<u8>, db: DbIndex, key: &[u8]) {
    names.extend_from_slice(format!("{db}:{}:", key.len()).as_bytes());
    names.extend_from_slice(key);
}

/// What a field of the checkpoint says, if it is one of these.
pub fn parse(field: &[u8], value: &[u8]) -> Vec<Lost> {
    if let Some(rest) = field.strip_prefix(LOST) {
        let place = number(rest).and_then(|(flow, rest)| Some((flow, number(rest)?)));
        let lost = place.map(|(flow, (db, key))| Lost { flow: FlowId(flow), db: DbIndex(db), key: key.to_vec() });
        return lost.into_iter().collect();
    }
    let flow = field.strip_prefix(WATCHED.as_bytes()).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let Some(flow) = flow.map(FlowId) else { return Vec::new() };
    let mut names = Vec::new();
    let mut rest = value;
    while let Some((db, (len, left))) = number(rest).and_then(|(db, rest)| Some((db, number(rest)?))) {
        let Some((key, left)) = left.split_at_checked(len as usize) else { break };
        names.push(Lost { flow, db: DbIndex(db), key: key.to_vec() });
        rest = left;
    }
    names
}

/// A number with a colon behind it, and what follows.
fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let colon = memchr::memchr(b':', text)?;
    let digits = std::str::from_utf8(text.get(..colon)?).ok()?;
    Some((digits.parse().ok()?, text.get(colon + 1..)?))
}

/// What one flow has in its field at the target, and what it puts there next.
pub struct Watching {
    flow: FlowId,
    /// Names of the open batch.
    names: Vec<u8>,
    /// The field is not empty.
    stored: bool,
}

/// The same of all flows of a lane.
#[derive(Default)]
pub struct WatchedNames(Vec<Watching>);

impl WatchedNames {
    /// A command of the open batch may be answered that its key is lost.
    pub fn add(&mut self, flow: FlowId, db: DbIndex, key: &[u8]) {
        let at = self.0.iter().position(|of| of.flow == flow).unwrap_or_else(|| {
            self.0.push(Watching { flow, names: Vec::new(), stored: false });
            self.0.len() - 1
        });
        if let Some(of) = self.0.get_mut(at) {
            push_watched(&mut of.names, db, key);
        }
    }

    /// Calls `field` for each field that the transaction at hand, the next of these flows, has to set.
    pub fn take(&mut self, flows: impl Fn(FlowId) -> bool, mut field: impl FnMut(FlowId, &[u8])) {
        for of in &mut self.0 {
            if !of.names.is_empty() || of.stored && flows(of.flow) {
                field(of.flow, &of.names);
                of.stored = !of.names.is_empty();
                of.names.clear();
            }
        }
    }

    /// Some field at the target is not empty.
    pub fn is_stored(&self) -> bool {
        self.0.iter().any(|of| of.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(flow: u32, db: u32, key: &[u8]) -> Lost {
        Lost { flow: FlowId(flow), db: DbIndex(db), key: key.to_vec() }
    }

    #[test]
    fn names_of_any_bytes_come_back() {
        let keys: [&[u8]; 5] = [b"", b"a", b"a:b:3:c", &[0xff, 0, b':', b'\r', b'\n'], b"7:0:"];
        for key in keys {
            assert_eq!(parse(&lost_field(&lost(3, 15, key)), b""), [lost(3, 15, key)]);
        }
        let mut value = Vec::new();
        keys.iter().for_each(|key| push_watched(&mut value, DbIndex(2), key));
        let field = watched_field(FlowId(7));
        assert_eq!(parse(field.as_bytes(), &value), keys.map(|key| lost(7, 2, key)));
        // Garbage ends it, and never panics.
        for len in 0..value.len() {
            assert!(parse(field.as_bytes(), &value[..len]).len() <= keys.len());
        }
        for field in ["lost:", "lost:x:1:k", "lost:1", "lost:1:2", "lsn:3", "watched:x", ""] {
            assert_eq!(parse(field.as_bytes(), b"1:1:k"), [], "{field}");
        }
        assert_eq!(parse(b"watched:1", b"0:99999999999:k"), []);
    }

    #[test]
    fn a_field_holds_the_last_transaction_alone() {
        let mut names = WatchedNames::default();
        let take = |names: &mut WatchedNames, flows: &[u32]| {
            let mut taken = Vec::new();
            names.take(
                |flow| flows.contains(&flow.0),
                |flow, value| taken.push((flow.0, String::from_utf8_lossy(value).into_owned())),
            );
            taken
        };
        assert_eq!(take(&mut names, &[0, 1]), []);
        names.add(FlowId(1), DbIndex(0), b"a");
        names.add(FlowId(1), DbIndex(3), b"bc");
        assert_eq!(take(&mut names, &[0, 1]), [(1, "0:1:a3:2:bc".to_string())]);
        assert!(names.is_stored());
        assert_eq!(take(&mut names, &[0]), []);
        assert_eq!(take(&mut names, &[1]), [(1, String::new())]);
        assert!(!names.is_stored());
        assert_eq!(take(&mut names, &[1]), []);
    }
}
