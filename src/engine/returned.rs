//! Names of held expiries that one flow gave back for a cutover: if it is rolled back, they are held again.
//!
//! In: what is given back while a cutover is under way. Out: the names, once more. Bounded in bytes: what finds no place stays
//! given back, as README.md says.

use crate::convert::names::{NAME_OVERHEAD_BYTES, Name};

#[derive(Debug)]
pub struct Returned {
    names: Vec<Name>,
    bytes_used: usize,
    bytes_max: usize,
    remembers: bool,
    /// They are being held again.
    begun: bool,
}

impl Returned {
    pub fn new(bytes_max: usize) -> Self {
        Self { names: Vec::new(), bytes_used: 0, bytes_max, remembers: false, begun: false }
    }

    /// A cutover is under way, or none is.
    pub fn remember(&mut self, on: bool) {
        // The end of one says nothing of what becomes of these: that is said by `begin`. Another one has its own.
        if on && !self.remembers && !self.begun {
            self.clear();
        }
        self.remembers = on;
    }

    pub fn add(&mut self, name: Name) {
        let bytes = name.key.len() + name.field.as_ref().map_or(0, |field| field.len()) + NAME_OVERHEAD_BYTES;
        if self.remembers && !self.begun && self.bytes_used + bytes <= self.bytes_max {
            self.bytes_used += bytes;
            self.names.push(name);
        }
    }

    /// They are to be held again.
    pub fn begin(&mut self) {
        self.begun = !self.names.is_empty();
    }

    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// The next one to be held again.
    pub fn next(&mut self) -> Option<Name> {
        let name = self.names.pop().filter(|_| self.begun);
        if self.names.is_empty() {
            self.clear();
        }
        name
    }

    fn clear(&mut self) {
        (self.names, self.bytes_used, self.begun) = (Vec::new(), 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DbIndex;

    fn name(key: &str) -> Name {
        Name { db: DbIndex(0), key: key.as_bytes().into(), field: None, at_ms: 1 }
    }

    #[test]
    fn only_what_a_cutover_gave_back_comes_again() {
        let mut returned = Returned::new(3 * (NAME_OVERHEAD_BYTES + 1));
        returned.add(name("before"));
        returned.remember(true);
        ["a", "b", "c", "d"].into_iter().for_each(|key| returned.add(name(key)));
        returned.remember(false);
        returned.begin();
        assert!(returned.is_begun());
        let again: Vec<Name> = std::iter::from_fn(|| returned.next()).collect();
        assert_eq!(again, ["c", "b", "a"].map(name), "bounded");
        assert!(!returned.is_begun());
        // Nothing of one that was never taken back comes into the next.
        returned.remember(true);
        returned.add(name("a"));
        returned.remember(false);
        returned.remember(true);
        returned.begin();
        assert!(!returned.is_begun() && returned.next().is_none());
    }
}
