//! Hot paths of the redis room, each beside its plain twin: slot hash, payload CRC, reply scan.
//! Run: `tools/bench micro --bench redis`.

use df2redis::redis::payload::Crc64;
use df2redis::redis::reply::{Reply, ReplyScanner};
use df2redis::redis::{slot, value};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const KEY_BYTES: [usize; 3] = [8, 16, 64];

fn key(len: usize) -> Vec<u8> {
    b"user:profile:0123456789".iter().copied().cycle().take(len).collect()
}

#[divan::bench(args = KEY_BYTES)]
fn slot_table16(bencher: Bencher, len: usize) {
    let key = key(len);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| slot::slot(black_box(&key)));
}

#[divan::bench(args = KEY_BYTES)]
fn slot_crc16_crate(bencher: Bencher, len: usize) {
    let key = key(len);
    bencher
        .counter(ItemsCount::new(1u32))
        .bench_local(|| crc16::State::<crc16::XMODEM>::calculate(black_box(&key)) & 16383);
}

const PAYLOAD_BYTES: [usize; 7] = [16, 64, 128, 256, 512, 1024, 65536];

#[divan::bench(args = PAYLOAD_BYTES)]
fn crc64_as_used(bencher: Bencher, len: usize) {
    let bytes = key(len);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let mut crc = Crc64::new();
        crc.update(black_box(&bytes));
        crc.value()
    });
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn crc64_table(bencher: Bencher, len: usize) {
    let bytes = key(len);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let mut crc = Crc64::new();
        crc.update_table(black_box(&bytes));
        crc.value()
    });
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn crc64_folding(bencher: Bencher, len: usize) {
    let bytes = key(len);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let mut crc = Crc64::new();
        crc.update_folding(black_box(&bytes));
        crc.value()
    });
}

const REPLIES: usize = 3000;

#[divan::bench]
fn replies_scanner(bencher: Bencher) {
    let bytes = b"+OK\r\n".repeat(REPLIES);
    let mut scanner = ReplyScanner::new();
    bencher.counter(ItemsCount::new(REPLIES)).bench_local(|| {
        let mut answered = 0;
        scanner.feed(black_box(&bytes), |reply: Reply<'_>| answered += reply.answers()).unwrap();
        answered
    });
}

#[divan::bench]
fn replies_plain_parser(bencher: Bencher) {
    let bytes = b"+OK\r\n".repeat(REPLIES);
    bencher.counter(ItemsCount::new(REPLIES)).bench_local(|| {
        let (mut at, mut answered) = (0, 0u64);
        while let Ok(Some((_, len))) = value::parse(black_box(&bytes[at..])) {
            at += len;
            answered += 1;
        }
        answered
    });
}
