//! Which flow owns a key, and how the source computes it (wire 1.1).
//!
//! PFMERGE leaves copies of its result on flows that do not own the key (strays), and every snapshot sends them. So the
//! rule is learned from the keys themselves: all but strays fit, and only HyperLogLogs can be strays. A rule is given up
//! at the first other key that does not fit it; if none is left, nothing is ever called a stray.
//! Shared by all workers: two atomics.

use crate::ids::FlowId;
use std::sync::atomic::{AtomicBool, Ordering};
use twox_hash::XxHash64;

/// Seed of the source's key hash, the same in every release.
const SEED: u64 = 120_577_240_643;

/// Whether a flow owns a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Own,
    Stray,
    /// No rule fits what was seen, or the rules that fit disagree.
    Unknown,
}

#[derive(Debug)]
pub struct OwnerRule {
    flows: u64,
    whole_key_fits: AtomicBool,
    hash_tag_fits: AtomicBool,
}

impl OwnerRule {
    pub fn new(flows: u32) -> Self {
        Self {
            flows: u64::from(flows.max(1)),
            whole_key_fits: AtomicBool::new(true),
            hash_tag_fits: AtomicBool::new(true),
        }
    }

    /// Learns from a key of the snapshot. HyperLogLogs teach nothing, because they may be strays.
    pub fn observe(&self, flow: FlowId, key: &[u8], is_hyll: bool) {
        if is_hyll || self.flows == 1 {
            return;
        }
        let tag = hash_tag(key);
        let whole = self.owner(key) == flow;
        if !whole {
            self.whole_key_fits.store(false, Ordering::Relaxed);
        }
        let tagged = if tag.len() == key.len() { whole } else { self.owner(tag) == flow };
        if !tagged {
            self.hash_tag_fits.store(false, Ordering::Relaxed);
        }
    }

    pub fn verdict(&self, flow: FlowId, key: &[u8]) -> Verdict {
        if self.flows == 1 {
            return Verdict::Own;
        }
        let fits = (self.whole_key_fits.load(Ordering::Relaxed), self.hash_tag_fits.load(Ordering::Relaxed));
        let of = |owner: FlowId| if owner == flow { Verdict::Own } else { Verdict::Stray };
        match fits {
            (true, false) => of(self.owner(key)),
            (false, true) => of(self.owner(hash_tag(key))),
            (true, true) => {
                let (whole, tagged) = (of(self.owner(key)), of(self.owner(hash_tag(key))));
                if whole == tagged { whole } else { Verdict::Unknown }
            }
            (false, false) => Verdict::Unknown,
        }
    }

    fn owner(&self, hashed: &[u8]) -> FlowId {
        FlowId((XxHash64::oneshot(SEED, hashed) % self.flows) as u32)
    }
}

/// What stands between the first `{` and the first `}` after it; the whole key if there is no such pair, or nothing in it.
fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else { return key };
    let rest = &key[open + 1..];
    match memchr::memchr(b'}', rest) {
        Some(close) if close > 0 => &rest[..close],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flow of a key by the rule under test.
    fn flow_of(rule: &OwnerRule, hashed: &[u8]) -> FlowId {
        rule.owner(hashed)
    }

    fn other(flow: FlowId, flows: u32) -> FlowId {
        FlowId((flow.0 + 1) % flows)
    }

    #[test]
    fn finds_strays_by_the_rule_that_all_other_keys_fit() {
        let rule = OwnerRule::new(3);
        for i in 0..50 {
            let key = format!("user:{{{i}}}:name").into_bytes();
            let flow = flow_of(&rule, format!("{i}").as_bytes());
            rule.observe(flow, &key, false);
        }
        let key = b"{7}:hll";
        let home = flow_of(&rule, b"7");
        assert_eq!(rule.verdict(home, key), Verdict::Own);
        assert_eq!(rule.verdict(other(home, 3), key), Verdict::Stray);
    }

    #[test]
    fn a_stray_does_not_refute_the_rule() {
        let rule = OwnerRule::new(3);
        let home = flow_of(&rule, b"h");
        rule.observe(other(home, 3), b"h", true);
        assert_eq!(rule.verdict(home, b"h"), Verdict::Own);
        assert_eq!(rule.verdict(other(home, 3), b"h"), Verdict::Stray);
    }

    #[test]
    fn drops_nothing_where_no_rule_fits() {
        let rule = OwnerRule::new(3);
        let home = flow_of(&rule, b"k");
        rule.observe(other(home, 3), b"k", false);
        for flow in 0..3 {
            assert_eq!(rule.verdict(FlowId(flow), b"anything"), Verdict::Unknown);
        }
    }

    #[test]
    fn one_flow_owns_everything() {
        assert_eq!(OwnerRule::new(1).verdict(FlowId(0), b"{a}b"), Verdict::Own);
    }

    #[test]
    fn hash_tags() {
        assert_eq!(hash_tag(b"a{b}c"), b"b");
        assert_eq!(hash_tag(b"a{}c"), b"a{}c");
        assert_eq!(hash_tag(b"a{bc"), b"a{bc");
        assert_eq!(hash_tag(b"a{{b}}"), b"{b");
    }
}
