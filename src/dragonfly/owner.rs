//! Which flow owns a key, so that strays can be dropped (wire 1.1).
//!
//! A master places a key by XXH64 of the key, or of its hash tag if so configured; the stream does not say which. An
//! [`OwnerRule`] is shared by all flows and starts with both rules alive. Each key that [`OwnerRule::observe`] is shown can
//! refute a rule by standing on a flow where that rule does not put it; only HyperLogLogs cannot, because strays are made
//! by PFMERGE alone. [`OwnerRule::verdict`] says `Stray` only if every rule that is still alive says so.
//!
//! Flags such as `locktag_delimiter` make rules that are not known here: then both are refuted and the verdict is
//! `Unknown` for good. Keys judged `Stray` before that were judged by a wrong rule: [`OwnerRule::strays_in_doubt`] counts
//! them, and a sync in which it is not 0 must not be called a success.

use crate::ids::FlowId;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use twox_hash::XxHash64;

/// Seed of the hash that places keys; the same in every release examined.
const SEED: u64 = 120_577_240_643;

/// Flow of a key by the hash of the whole key.
pub fn flow_of_key(key: &[u8], flows: u32) -> FlowId {
    FlowId((XxHash64::oneshot(SEED, key) % u64::from(flows.max(1))) as u32)
}

/// What is hashed under `lock_on_hashtags` and in cluster mode: what stands between the first `{` and the first `}` after
/// it, or the whole key if there is nothing.
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let after = key.get(open + 1..)?;
        after.get(..memchr::memchr(b'}', after)?)
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// What can be said about a key on a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Own,
    /// The flow does not own the key: what it says about it is not true.
    Stray,
    /// The rules do not agree, or none fits: keep the key.
    Unknown,
}

/// Learns from keys which rule the master follows. Shared by all flows.
#[derive(Debug)]
pub struct OwnerRule {
    flows: u32,
    /// Rules that no key has refuted.
    alive: AtomicU8,
    /// Verdicts `Stray` given.
    strays: AtomicU64,
}

const PLAIN: u8 = 1;
const HASH_TAG: u8 = 2;
const BOTH: u8 = PLAIN | HASH_TAG;

impl OwnerRule {
    /// `flows`: number of shards of the master.
    pub fn new(flows: u32) -> Self {
        Self { flows, alive: AtomicU8::new(BOTH), strays: AtomicU64::new(0) }
    }

    /// Number of shards of the master.
    pub fn flows(&self) -> u32 {
        self.flows
    }

    /// Takes a snapshot key into account. `is_hyll`: its value is a string beginning `HYLL`. It is enough to show the
    /// first few thousand keys and every key that contains `{`, each before its verdict is asked for.
    pub fn observe(&self, flow: FlowId, key: &[u8], is_hyll: bool) {
        let alive = self.alive.load(Ordering::Relaxed);
        if is_hyll || alive == 0 || self.flows <= 1 {
            return;
        }
        let misfits = BOTH & !self.fitting(flow, key);
        if alive & misfits != 0 {
            self.alive.fetch_and(!misfits, Ordering::Relaxed);
        }
    }

    /// Whether the flow owns the key, as far as is known.
    pub fn verdict(&self, flow: FlowId, key: &[u8]) -> Verdict {
        if self.flows <= 1 {
            return Verdict::Own;
        }
        let alive = self.alive.load(Ordering::Relaxed);
        if alive == 0 {
            return Verdict::Unknown;
        }
        match self.fitting(flow, key) & alive {
            0 => {
                self.strays.fetch_add(1, Ordering::Relaxed);
                Verdict::Stray
            }
            fitting if fitting == alive => Verdict::Own,
            _ => Verdict::Unknown,
        }
    }

    /// The flow that owns the key under every rule that is left; none: it is not known.
    pub fn owner(&self, key: &[u8]) -> Option<FlowId> {
        let alive = self.alive.load(Ordering::Relaxed);
        let mut flows = (0..self.flows).map(FlowId);
        flows.find(|flow| self.flows <= 1 || alive != 0 && self.fitting(*flow, key) & alive == alive)
    }

    /// Whether the master follows a rule that is not known here.
    pub fn is_refuted(&self) -> bool {
        self.alive.load(Ordering::Relaxed) == 0
    }

    /// Number of verdicts `Stray` that were given under a rule that turned out not to be the master's. If it is not 0 at
    /// the end of the snapshot, keys may have been dropped wrongly.
    pub fn strays_in_doubt(&self) -> u64 {
        if self.is_refuted() { self.strays.load(Ordering::Relaxed) } else { 0 }
    }

    /// The rules that put the key on this flow.
    fn fitting(&self, flow: FlowId, key: &[u8]) -> u8 {
        let fits = |hashed: &[u8]| flow_of_key(hashed, self.flows) == flow;
        let tag = hash_tag(key);
        // Without a tag one hash answers for both rules.
        if tag.len() == key.len() {
            return if fits(key) { BOTH } else { 0 };
        }
        (u8::from(fits(key)) * PLAIN) | (u8::from(fits(tag)) * HASH_TAG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (key, tag) in [
            ("plain", "plain"),
            ("{user}:1", "user"),
            ("a{b}c{d}", "b"),
            ("a{}b{c}", "a{}b{c}"),
            ("a{b", "a{b"),
            ("a}b{c}", "c"),
            ("a{{b}}", "{b"),
            ("", ""),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }

    /// A key `prefix<i>` that the rule given puts on the flow given.
    fn key_on(flow: u32, flows: u32, make: impl Fn(u32) -> String, hashed: fn(&[u8]) -> &[u8]) -> String {
        (0..).map(make).find(|key| flow_of_key(hashed(key.as_bytes()), flows) == FlowId(flow)).unwrap()
    }

    fn whole(key: &[u8]) -> &[u8] {
        key
    }

    #[test]
    fn one_flow_owns_everything() {
        let rule = OwnerRule::new(1);
        rule.observe(FlowId(0), b"k", false);
        assert_eq!(rule.verdict(FlowId(0), b"k"), Verdict::Own);
    }

    #[test]
    fn keys_without_a_tag_are_judged_at_once() {
        let rule = OwnerRule::new(3);
        let key = key_on(1, 3, |i| format!("k{i}"), whole);
        assert_eq!(rule.verdict(FlowId(1), key.as_bytes()), Verdict::Own);
        assert_eq!(rule.verdict(FlowId(2), key.as_bytes()), Verdict::Stray);
        // A HyperLogLog proves nothing.
        rule.observe(FlowId(2), key.as_bytes(), true);
        assert_eq!(rule.verdict(FlowId(2), key.as_bytes()), Verdict::Stray);
        assert_eq!(rule.strays_in_doubt(), 0);
        // Another value there refutes all rules, and brings the verdicts given into doubt.
        rule.observe(FlowId(2), key.as_bytes(), false);
        assert_eq!(rule.verdict(FlowId(2), key.as_bytes()), Verdict::Unknown);
        assert!(rule.is_refuted());
        assert_eq!(rule.strays_in_doubt(), 2);
    }

    #[test]
    fn keys_with_a_tag_wait_until_one_rule_is_refuted() {
        let flows = 4;
        // On flow 0 by their tag, elsewhere by the whole key.
        let make = |i: u32| format!("{{tag}}{i}");
        let tag_flow = flow_of_key(b"tag", flows);
        let elsewhere: Vec<_> =
            (0..50).map(make).filter(|key| flow_of_key(key.as_bytes(), flows) != tag_flow).take(2).collect();
        let (first, second) = (elsewhere[0].as_bytes(), elsewhere[1].as_bytes());
        let rule = OwnerRule::new(flows);
        assert_eq!(rule.verdict(tag_flow, first), Verdict::Unknown);
        let neither = (0..flows).map(FlowId).find(|f| *f != tag_flow && *f != flow_of_key(first, flows)).unwrap();
        assert_eq!(rule.verdict(neither, first), Verdict::Stray);
        rule.observe(tag_flow, first, false);
        assert_eq!(rule.verdict(tag_flow, second), Verdict::Own);
        assert_eq!(rule.verdict(flow_of_key(second, flows), second), Verdict::Stray);
        // The other way round.
        let rule = OwnerRule::new(flows);
        rule.observe(flow_of_key(first, flows), first, false);
        assert_eq!(rule.verdict(tag_flow, second), Verdict::Stray);
        assert_eq!(rule.verdict(flow_of_key(second, flows), second), Verdict::Own);
    }
}
