//! Keys that were found different, and when they are looked at again, until lag cannot explain them.
//!
//! Reads of the two sides are not of one moment, and the target lags. So: a key that is seen equal once is settled. A key
//! whose value at the source stood still for `lag_max` and that still differs is a difference. A key that changed at every
//! look is settled if the target was seen to go through the source's earlier values, and unsettled otherwise, when it was
//! watched for long. The time is an argument. Bounded in bytes: when it is full, the walk waits.

use super::difference::{Element, ITEMS_MAX, Item, Kind};
use super::look::{Found, State};
use std::time::Duration;

/// What a suspect costs beside its key, and an element beside its name.
const OVERHEAD_BYTES: usize = 1024;
const ELEMENT_OVERHEAD_BYTES: usize = 256;
/// Values of the source that are remembered of each suspect.
const HISTORY_MAX: usize = 16;
/// A key that never stands still is given up after so many times `lag_max`.
const GIVEN_UP_AFTER: u32 = 10;

/// A key under suspicion.
#[derive(Debug)]
pub struct Suspect {
    pub db: u32,
    pub key: Vec<u8>,
    pub type_name: String,
    /// What differs beside elements.
    items: Vec<Item>,
    /// Differing elements of a collection: only these are looked at again. Each is settled for itself, so that a collection
    /// that is written all the time can be settled.
    elements: Vec<Watched>,
    /// Nothing but `elements` was found to differ.
    complete: bool,
    since: Duration,
    looks: u32,
    due: Duration,
    source: State,
    /// Since when the source is known to have stood still.
    still_since: Duration,
    history: Vec<u64>,
    /// Values of the source that the target was seen to have later.
    followed: Vec<u64>,
}

#[derive(Debug)]
struct Watched {
    element: Element,
    still_since: Duration,
}

/// What another look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It differs.
    Confirmed,
    /// It never stood still, but the target follows.
    Follows,
    /// It never stood still, and nothing is proven.
    Unsettled,
    /// Look again.
    Wait,
}

impl Suspect {
    pub fn new(db: u32, key: Vec<u8>, found: Found, now: Duration, lag_max: Duration) -> Self {
        let complete = found.complete && found.items.is_empty();
        Self {
            db,
            key,
            type_name: found.type_name,
            items: found.items,
            elements: found.elements.into_iter().map(|element| Watched { element, still_since: now }).collect(),
            complete,
            since: now,
            looks: 1,
            due: now + pause(1, lag_max),
            source: found.source,
            still_since: now,
            history: found.source.print.into_iter().collect(),
            followed: Vec::new(),
        }
    }

    /// Names of the elements that are to be looked at; none: the whole key.
    pub fn element_names(&self) -> Vec<Vec<u8>> {
        let mut names: Vec<_> = self.elements.iter().map(|watched| watched.element.name.clone()).collect();
        names.dedup();
        names
    }

    pub fn has_elements(&self) -> bool {
        !self.elements.is_empty()
    }

    /// The elements were found equal. Whether there is nothing else to look at.
    pub fn elements_settled(&mut self, now: Duration) -> bool {
        self.elements = Vec::new();
        self.due = now;
        self.complete
    }

    /// It was found to differ again at `now`.
    pub fn differs_again(&mut self, found: Found, now: Duration, lag_max: Duration, tolerance_ms: i64) -> Ruling {
        self.looks += 1;
        self.due = now + pause(self.looks, lag_max);
        let whole = self.elements.is_empty();
        self.watch_elements(found.elements, now);
        let of_key = !found.items.is_empty();
        if of_key {
            self.watch_key(&found.items, found.source, found.target, now, tolerance_ms);
        }
        // A look at elements says nothing of the rest.
        if whole || of_key {
            self.complete = whole && found.complete && !of_key;
            (self.type_name, self.items) = (found.type_name, found.items);
        }
        let is_old = |still_since: Duration| now.saturating_sub(still_since) >= lag_max;
        if (of_key && is_old(self.still_since)) || self.elements.iter().any(|watched| is_old(watched.still_since)) {
            self.elements.retain(|watched| is_old(watched.still_since));
            return Ruling::Confirmed;
        }
        if now.saturating_sub(self.since) < lag_max * GIVEN_UP_AFTER {
            return Ruling::Wait;
        }
        // One value may be met by chance, or because the target stopped there.
        if self.followed.len() >= 2 { Ruling::Follows } else { Ruling::Unsettled }
    }

    fn watch_elements(&mut self, elements: Vec<Element>, now: Duration) {
        let before = std::mem::take(&mut self.elements);
        let same = |a: &Element, b: &Element| a.name == b.name && a.print == b.print && a.item.kind == b.item.kind;
        let still_since = |element: &Element| {
            before.iter().find(|watched| same(&watched.element, element)).map_or(now, |watched| watched.still_since)
        };
        self.elements =
            elements.into_iter().map(|element| Watched { still_since: still_since(&element), element }).collect();
    }

    fn watch_key(&mut self, items: &[Item], source: State, target: State, now: Duration, tolerance_ms: i64) {
        let expiry_moved = match (self.source.expire_at_ms, source.expire_at_ms) {
            (Some(a), Some(b)) => a.abs_diff(b) > tolerance_ms.unsigned_abs(),
            (a, b) => a != b,
        };
        let still = match (self.source.print, source.print) {
            (Some(before), Some(now)) => before == now && !expiry_moved,
            // Not read as a whole: what was seen to differ must be the same.
            (None, None) => self.items == items && !expiry_moved,
            _ => false,
        };
        if !still {
            self.still_since = now;
        }
        if let Some(print) = target.print
            && self.history.contains(&print)
            && !self.followed.contains(&print)
        {
            self.followed.push(print);
        }
        if let Some(print) = source.print
            && !self.history.contains(&print)
        {
            if self.history.len() == HISTORY_MAX {
                self.history.remove(0);
            }
            self.history.push(print);
        }
        self.source = source;
    }

    /// Everything to tell.
    pub fn all_items(&self) -> Vec<Item> {
        let elements = self.elements.iter().map(|watched| watched.element.item.clone());
        elements.chain(self.items.iter().cloned()).take(ITEMS_MAX).collect()
    }

    /// Whether only the target has the key.
    pub fn is_extra(&self) -> bool {
        self.items.first().is_some_and(|item| item.kind == Kind::Extra)
    }

    fn bytes(&self) -> usize {
        let elements = self.elements.iter().map(|watched| watched.element.name.len() + ELEMENT_OVERHEAD_BYTES);
        OVERHEAD_BYTES + self.key.len() + elements.sum::<usize>()
    }
}

/// Time to the next look: short at first, for lag is mostly short.
fn pause(looks: u32, lag_max: Duration) -> Duration {
    let first = (lag_max / 40).max(Duration::from_millis(5));
    (first * 2u32.saturating_pow(looks.min(10) - 1)).min((lag_max / 4).max(first))
}

/// All suspects.
#[derive(Debug)]
pub struct Suspects {
    waiting: Vec<Suspect>,
    bytes: usize,
    bytes_max: usize,
}

impl Suspects {
    pub fn new(bytes_max: usize) -> Self {
        Self { waiting: Vec::new(), bytes: 0, bytes_max }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing more should be put in.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    pub fn put(&mut self, suspect: Suspect) {
        self.bytes += suspect.bytes();
        self.waiting.push(suspect);
    }

    /// Takes out at most `count` of one database that are due.
    pub fn take_due(&mut self, now: Duration, count: usize) -> Vec<Suspect> {
        let Some(db) = self.waiting.iter().find(|suspect| suspect.due <= now).map(|suspect| suspect.db) else {
            return Vec::new();
        };
        let mut due = Vec::new();
        let mut at = 0;
        while let Some(suspect) = self.waiting.get(at) {
            if due.len() < count && suspect.db == db && suspect.due <= now {
                let suspect = self.waiting.swap_remove(at);
                self.bytes -= suspect.bytes().min(self.bytes);
                due.push(suspect);
            } else {
                at += 1;
            }
        }
        due
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.iter().map(|suspect| suspect.due).min()
    }

    /// Databases and keys of all, for the state file.
    pub fn keys(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.waiting.iter().map(|suspect| (suspect.db, suspect.key.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG_MAX: Duration = Duration::from_secs(10);

    fn found(source: u64, target: u64) -> Found {
        let mut found = *Found::new("string", vec![Item::new(Kind::Value)]);
        (found.source.print, found.target.print) = (Some(source), Some(target));
        found
    }

    /// Looks when due, at source and target values by time; how it ends and when.
    fn watch(values: impl Fn(Duration) -> (u64, u64)) -> (Ruling, Duration) {
        let first = values(Duration::ZERO);
        let mut suspects = Suspects::new(1 << 20);
        suspects.put(Suspect::new(0, b"k".to_vec(), found(first.0, first.1), Duration::ZERO, LAG_MAX));
        loop {
            let now = suspects.next_due().unwrap();
            let mut suspect = suspects.take_due(now, 10).pop().unwrap();
            assert!(suspects.len() == 0 && suspects.bytes == 0);
            let (source, target) = values(now);
            match suspect.differs_again(found(source, target), now, LAG_MAX, 0) {
                Ruling::Wait => suspects.put(suspect),
                ruling => return (ruling, now),
            }
        }
    }

    #[test]
    fn a_value_that_stands_still_and_differs_is_a_difference_after_the_lag() {
        let (ruling, at) = watch(|_| (1, 2));
        assert_eq!(ruling, Ruling::Confirmed);
        assert!(at >= LAG_MAX && at < LAG_MAX * 2, "{at:?}");
        // From its last change on.
        let (ruling, at) = watch(|now| (if now < Duration::from_secs(7) { 1 } else { 5 }, 2));
        assert_eq!(ruling, Ruling::Confirmed);
        assert!(at >= Duration::from_secs(17), "{at:?}");
    }

    #[test]
    fn a_value_that_never_stands_still_needs_a_target_that_follows() {
        let ms = |now: Duration| now.as_millis() as u64;
        assert_eq!(watch(|now| (ms(now) + 9, 2)).0, Ruling::Unsettled);
        // The target has what the source had at some earlier look: the pauses between late looks are equal.
        let (ruling, at) = watch(|now| (ms(now), ms(now).saturating_sub(2500)));
        assert_eq!(ruling, Ruling::Follows);
        assert!(at >= LAG_MAX * GIVEN_UP_AFTER);
        // It stopped at one of them.
        assert_eq!(watch(|now| (ms(now), 0)).0, Ruling::Unsettled);
    }

    #[test]
    fn elements_are_settled_one_by_one() {
        let element = |name: &str, print| Element { name: name.into(), print, item: Item::new(Kind::Value).at(name) };
        let found = |elements: &[(&str, u64)]| {
            let mut found = *Found::new("hash", Vec::new());
            found.elements = elements.iter().map(|(name, print)| element(name, *print)).collect();
            found
        };
        let at = Duration::from_secs;
        let mut suspect = Suspect::new(0, vec![], found(&[("hot", 1), ("wrong", 2), ("late", 3)]), at(0), LAG_MAX);
        assert_eq!(suspect.differs_again(found(&[("hot", 4), ("wrong", 2)]), at(5), LAG_MAX, 0), Ruling::Wait);
        assert_eq!(suspect.element_names(), [b"hot".to_vec(), b"wrong".to_vec()]);
        assert_eq!(suspect.differs_again(found(&[("hot", 5), ("wrong", 2)]), at(10), LAG_MAX, 0), Ruling::Confirmed);
        assert_eq!(suspect.all_items(), [Item::new(Kind::Value).at("wrong")]);

        let mut suspect = Suspect::new(0, vec![], found(&[("hot", 1)]), at(0), LAG_MAX);
        assert_eq!(suspect.differs_again(found(&[("hot", 2)]), at(9), LAG_MAX, 0), Ruling::Wait);
        assert!(suspect.elements_settled(at(10)));
        // What was missing at first and is only behind now.
        let missing = *Found::new("zset", vec![Item::new(Kind::Missing)]);
        let mut suspect = Suspect::new(0, vec![], missing, at(0), LAG_MAX);
        assert_eq!(suspect.differs_again(found(&[("hot", 2)]), at(1), LAG_MAX, 0), Ruling::Wait);
        assert!(suspect.has_elements() && suspect.elements_settled(at(2)));
        // With another thing that differed, the key is looked at as a whole.
        let mut both = found(&[("hot", 1)]);
        both.items.push(Item::new(Kind::Expiry));
        assert!(!Suspect::new(0, vec![], both, at(0), LAG_MAX).elements_settled(at(1)));
    }

    #[test]
    fn fullness_is_in_bytes() {
        let mut suspects = Suspects::new(3 * OVERHEAD_BYTES);
        for i in 0..3u8 {
            assert!(!suspects.is_full());
            suspects.put(Suspect::new(u32::from(i % 2), vec![i], found(1, 2), Duration::ZERO, LAG_MAX));
        }
        assert!(suspects.is_full());
        assert_eq!(suspects.take_due(LAG_MAX, 10).len(), 2);
        assert_eq!(suspects.take_due(LAG_MAX, 10).len(), 1);
        assert_eq!(suspects.take_due(LAG_MAX, 10).len(), 0);
    }
}
