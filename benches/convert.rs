//! Hot paths of the target's side, each beside its plain twin: conversion, slot, payload sum, reply scan.
//!
//! `cargo bench --bench convert`. One iteration is one key (one reply, for the scans).

use df2redis::convert::out::VecOut;
use df2redis::convert::{Converter, Limits, Plan, Policy};
use df2redis::dragonfly::{Event, KeyMeta, ObjectType};
use df2redis::ids::{DbIndex, FlowId};
use df2redis::redis::payload::Crc64;
use df2redis::redis::{Capabilities, Make, ReplyScanner, Version, slot, value};
use divan::{Bencher, black_box, counter::ItemsCount};
use std::sync::Arc;

const NOW_MS: i64 = 1_800_000_000_000;
const KEY: &[u8] = b"key:000000012345";
/// Keys of one sample; the output is cleared between two.
const KEYS: usize = 256;

fn main() {
    divan::main();
}

fn converter(cluster: bool) -> Converter {
    let mut capabilities = Capabilities::plain(Make::Redis, Version::new(7, 0, 15));
    capabilities.cluster = cluster;
    Converter::new(FlowId(0), Arc::new(Plan::new(capabilities, Policy::default(), Limits::default()).unwrap()))
}

fn convert(bencher: Bencher, object_type: ObjectType, body: &[u8], expire_at_ms: Option<i64>, cluster: bool) {
    let mut converter = converter(cluster);
    let mut out = VecOut::without_commands();
    let meta = KeyMeta { db: DbIndex(0), key: KEY, expire_at_ms, sticky: false, memcached_flags: None, object_type };
    bencher.counter(ItemsCount::new(KEYS)).bench_local(|| {
        out.clear();
        for _ in 0..KEYS {
            converter.event(black_box(&Event::Whole { meta, body }), NOW_MS, &mut out).unwrap();
        }
        out.bytes().len()
    });
}

fn string(len: usize) -> Vec<u8> {
    let mut body = Vec::new();
    df2redis::redis::reencode::push_raw_string(&mut body, &vec![b'v'; len]);
    body
}

/// `len` bytes of value.
#[divan::bench(args = [10, 100, 1000])]
fn set(bencher: Bencher, len: usize) {
    convert(bencher, ObjectType::String, &string(len), None, false);
}

#[divan::bench]
fn set_with_expiry(bencher: Bencher) {
    convert(bencher, ObjectType::String, &string(100), Some(NOW_MS + 1), false);
}

#[divan::bench]
fn set_for_a_cluster(bencher: Bencher) {
    convert(bencher, ObjectType::String, &string(100), None, true);
}

/// A hash of 20 small fields, about 300 bytes.
#[divan::bench]
fn restore_hash(bencher: Bencher) {
    let mut listpack = Vec::new();
    for field in 0..20 {
        for text in [format!("f{field:02}"), format!("value{field:02}")] {
            listpack.push(0x80 | text.len() as u8);
            listpack.extend(text.bytes());
            listpack.push(text.len() as u8 + 1);
        }
    }
    let mut value = ((listpack.len() + 7) as u32).to_le_bytes().to_vec();
    value.extend(40u16.to_le_bytes());
    value.extend(listpack);
    value.push(0xff);
    let mut body = Vec::new();
    df2redis::redis::reencode::push_raw_string(&mut body, &value);
    convert(bencher, ObjectType::HashListpack, &body, None, false);
}

#[divan::bench]
fn slot_table16(bencher: Bencher) {
    bencher.bench(|| slot::slot(black_box(KEY)));
}

#[divan::bench]
fn slot_bytewise_twin(bencher: Bencher) {
    bencher.bench(|| crc16::State::<crc16::XMODEM>::calculate(black_box(KEY)) % slot::SLOTS);
}

#[divan::bench(args = [32, 64, 128, 256, 512, 1024, 65536])]
fn sum_table(bencher: Bencher, len: usize) {
    let bytes = vec![7; len];
    bencher.bench(|| {
        let mut crc = Crc64::new();
        crc.update_table(black_box(&bytes));
        crc.value()
    });
}

#[divan::bench(args = [32, 64, 128, 256, 512, 1024, 65536])]
fn sum_folding(bencher: Bencher, len: usize) {
    let bytes = vec![7; len];
    bencher.bench(|| {
        let mut crc = Crc64::new();
        crc.update_folding(black_box(&bytes));
        crc.value()
    });
}

const REPLIES: usize = 3276;

#[divan::bench]
fn scan_replies(bencher: Bencher) {
    let bytes = b"+OK\r\n".repeat(REPLIES);
    let mut scanner = ReplyScanner::new();
    bencher.counter(ItemsCount::new(REPLIES)).bench_local(|| {
        let mut count = 0;
        scanner.feed(black_box(&bytes), |reply| count += reply.answers()).unwrap();
        count
    });
}

#[divan::bench]
fn scan_replies_twin(bencher: Bencher) {
    let bytes = b"+OK\r\n".repeat(REPLIES);
    bencher.counter(ItemsCount::new(REPLIES)).bench_local(|| {
        let mut rest = black_box(&bytes[..]);
        let mut count = 0;
        while let Ok(Some((_, len))) = value::parse(rest) {
            rest = &rest[len..];
            count += 1;
        }
        count
    });
}
