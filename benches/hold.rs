//! What holding expiries back costs a journal record, beside the same records with nothing held.
//!
//! `cargo bench --bench hold`, or, where the machine is not quiet, in instructions: `benches/RESULTS.md` says how. One
//! iteration is one record.

use df2redis::convert::Policy;
use df2redis::convert::hold::{Held, LAGGING_HORIZON_MS};
use df2redis::convert::journal::{JournalTranslator, RestorePayload, Restored};
use df2redis::convert::out::{Out, VecOut};
use df2redis::dragonfly::KeyMeta;
use df2redis::ids::{DbIndex, FlowId};
use df2redis::redis::{Capabilities, Make, Version};
use divan::{Bencher, black_box, counter::ItemsCount};
use std::sync::Arc;

const NOW_MS: i64 = 1_800_000_000_000;
/// Records of one sample, each of another key.
const RECORDS: usize = 1024;
const NAMES_BYTES_MAX: usize = 8 << 20;

fn main() {
    divan::main();
}

/// No record here is a RESTORE.
struct NoPayload;

impl RestorePayload for NoPayload {
    fn restore<O: Out>(
        &mut self,
        _: KeyMeta<'_>,
        _: &[u8],
        _: i64,
        _: &mut O,
    ) -> Result<Restored, Box<dyn std::error::Error + Send + Sync>> {
        Err("no payload is expected".into())
    }
}

/// As the engine does it for each record (`engine::handle`).
fn translate(bencher: Bencher, held: Held, records: &[Vec<String>]) {
    let mut capabilities = Capabilities::plain(Make::Redis, Version::new(7, 0, 15));
    capabilities.commands.extend(["SET", "PEXPIREAT"].map(str::to_owned));
    let mut translator =
        JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(Policy::default()), 1 << 20);
    let mut held = held;
    let records: Vec<Vec<&[u8]>> =
        records.iter().map(|record| record.iter().map(|word| word.as_bytes()).collect()).collect();
    let mut out = VecOut::without_commands();
    bencher.counter(ItemsCount::new(records.len())).bench_local(|| {
        out.clear();
        held.turn(NOW_MS, NOW_MS, LAGGING_HORIZON_MS);
        translator.set_near(held.near());
        for args in &records {
            held.record(DbIndex(0), args);
            translator.command(DbIndex(0), 1, black_box(args), NOW_MS, &mut NoPayload, &mut out).unwrap();
            if let Some(at_ms) = translator.take_shifted_ms() {
                held.hold(DbIndex(0), args[1], None, at_ms);
            }
        }
        out.bytes().len()
    });
}

fn records(of_key: impl Fn(String) -> Vec<String>) -> Vec<Vec<String>> {
    (0..RECORDS).map(|i| of_key(format!("session:{i:012}"))).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn sets() -> Vec<Vec<String>> {
    records(|key| words(&["SET", &key, "value"]))
}

fn sets_that_expire() -> Vec<Vec<String>> {
    let at = (NOW_MS + 600_000).to_string();
    records(|key| words(&["SET", &key, "value", "PXAT", &at]))
}

fn renewals() -> Vec<Vec<String>> {
    let at = (NOW_MS + 600_000).to_string();
    records(|key| words(&["PEXPIREAT", &key, &at]))
}

/// Some other key's expiry is held, so each record is looked at.
fn holding() -> Held {
    let mut held = Held::new(NAMES_BYTES_MAX);
    held.turn(NOW_MS, NOW_MS, LAGGING_HORIZON_MS);
    held.hold(DbIndex(0), b"other", None, NOW_MS + 1);
    held
}

#[divan::bench]
fn set_held(bencher: Bencher) {
    translate(bencher, holding(), &sets());
}

#[divan::bench]
fn set_twin(bencher: Bencher) {
    translate(bencher, Held::nothing(false), &sets());
}

#[divan::bench]
fn set_that_expires_held(bencher: Bencher) {
    translate(bencher, holding(), &sets_that_expire());
}

#[divan::bench]
fn set_that_expires_twin(bencher: Bencher) {
    translate(bencher, Held::nothing(false), &sets_that_expire());
}

#[divan::bench]
fn renewal_held(bencher: Bencher) {
    translate(bencher, holding(), &renewals());
}

#[divan::bench]
fn renewal_twin(bencher: Bencher) {
    translate(bencher, Held::nothing(false), &renewals());
}
