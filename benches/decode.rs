//! The decoder's hot paths, each beside a plain twin: a walk that looks at every byte of the same records once.
//!
//! `cargo bench --bench decode`. One iteration is one record (for LZ4, one record of the content). The walk is what any decoder
//! that touched each byte would cost at least; ours touches heads only, and hands the rest out as it lies.

use bytes::Bytes;
use df2redis::dragonfly::blob::BlobReader;
use df2redis::dragonfly::journal::JournalDecoder;
use df2redis::dragonfly::stream::{Limits, Progress, StreamDecoder};
use df2redis::dragonfly::{Codec, Event};
use df2redis::ids::FlowId;
use df2redis::lab::encode::packed::Listpack;
use df2redis::lab::encode::{self, Attributes};
use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};

/// Records of one sample.
const RECORDS: usize = 256;
const LIMITS: Limits = Limits {
    whole_bytes_max: 128 << 10,
    run_bytes_max: 16 << 10,
    atom_bytes_max: 1 << 20,
    key_bytes_max: 64 << 10,
    open_objects_max: 1024,
};

fn main() {
    divan::main();
}

fn key(out: &mut Vec<u8>, object_type: u8, index: usize) {
    encode::key_head(out, Attributes::default(), object_type, format!("key:{index:012}").as_bytes(), false);
}

/// Records with values of so many bytes.
fn strings(value_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for index in 0..RECORDS {
        key(&mut out, 0, index);
        encode::raw_string(&mut out, &vec![b'v'; value_bytes]);
    }
    out
}

/// Hashes of 20 small fields, as one listpack each (type 16).
fn hashes() -> Vec<u8> {
    let mut out = Vec::new();
    for index in 0..RECORDS {
        key(&mut out, 16, index);
        let mut pack = Listpack::default();
        for field in 0..20 {
            pack.push(format!("f{field:02}").as_bytes());
            pack.push(b"value");
        }
        encode::raw_string(&mut out, &pack.finish());
    }
    out
}

/// Lists of one node of 20 elements (type 18).
fn lists() -> Vec<u8> {
    let mut out = Vec::new();
    for index in 0..RECORDS {
        key(&mut out, 18, index);
        let mut pack = Listpack::default();
        (0..20).for_each(|_| pack.push(b"element"));
        encode::packed(&mut out, 1);
        encode::packed(&mut out, 2);
        encode::raw_string(&mut out, &pack.finish());
    }
    out
}

/// A decoder past the header, which stands in front of every stream.
fn decoder() -> StreamDecoder {
    let mut decoder = StreamDecoder::new(FlowId(0), LIMITS);
    let mut head = Vec::new();
    encode::header(&mut head);
    encode::aux(&mut head, "redis-bits", b"64");
    assert!(matches!(decoder.next(&head), Ok(Progress::Event { .. })));
    decoder
}

/// Decodes everything; the number of events.
fn drain(decoder: &mut StreamDecoder, mut bytes: &[u8]) -> usize {
    let mut events = 0;
    while !bytes.is_empty() {
        match decoder.next(bytes).unwrap() {
            Progress::Event { event, consumed } => {
                events += usize::from(matches!(black_box(event), Event::Whole { .. }));
                bytes = &bytes[consumed..];
            }
            Progress::NeedMore { .. } => panic!("all bytes are there"),
        }
    }
    events
}

fn decode(bencher: Bencher, bytes: Vec<u8>) {
    let mut decoder = decoder();
    bencher
        .counter(ItemsCount::new(RECORDS))
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| assert_eq!(drain(&mut decoder, black_box(&bytes)), RECORDS));
}

/// The plain twin: one byte at a time, with as little to do as keeps it from being left out.
fn walk(bencher: Bencher, bytes: Vec<u8>) {
    bencher.counter(ItemsCount::new(RECORDS)).counter(BytesCount::new(bytes.len())).bench_local(|| {
        let mut state = 0u32;
        for byte in black_box(&bytes) {
            state = state.rotate_left(5) ^ u32::from(*byte);
        }
        state
    });
}

#[divan::bench(args = [16, 100, 1024])]
fn strings_decode(bencher: Bencher, value_bytes: usize) {
    decode(bencher, strings(value_bytes));
}

#[divan::bench(args = [16, 100, 1024])]
fn strings_walk(bencher: Bencher, value_bytes: usize) {
    walk(bencher, strings(value_bytes));
}

#[divan::bench]
fn hashes_decode(bencher: Bencher) {
    decode(bencher, hashes());
}

#[divan::bench]
fn hashes_walk(bencher: Bencher) {
    walk(bencher, hashes());
}

#[divan::bench]
fn lists_decode(bencher: Bencher) {
    decode(bencher, lists());
}

#[divan::bench]
fn lists_walk(bencher: Bencher) {
    walk(bencher, lists());
}

/// The LZ4 frame of a blob, without the opcode and length before it.
fn lz4_frame(content: &[u8]) -> Bytes {
    let mut blob = Vec::new();
    encode::compressed_blob(&mut blob, encode::BlobCodec::Lz4, content).unwrap();
    let mut decoder = decoder();
    let frame = match decoder.next(&blob).unwrap() {
        Progress::Event { event: Event::Compressed { frame, .. }, .. } => Bytes::copy_from_slice(frame),
        other => panic!("a blob, not {other:?}"),
    };
    frame
}

#[divan::bench]
fn lz4_unpack_and_decode(bencher: Bencher) {
    let content = strings(100);
    let frame = lz4_frame(&content);
    let mut room = vec![0; content.len() + 1];
    let mut decoder = decoder();
    bencher.counter(ItemsCount::new(RECORDS)).counter(BytesCount::new(content.len())).bench_local(|| {
        let mut reader = BlobReader::new(Codec::Lz4, black_box(frame.clone())).unwrap();
        let mut filled = 0;
        loop {
            match reader.read(&mut room[filled..]).unwrap() {
                0 => break,
                unpacked => filled += unpacked,
            }
        }
        assert_eq!(drain(&mut decoder, &room[..filled]), RECORDS);
    });
}

#[divan::bench]
fn lz4_decode_alone(bencher: Bencher) {
    decode(bencher, strings(100));
}

/// Journal records `SET key value`, one after the other.
fn journal() -> Vec<Vec<u8>> {
    let record = |index: usize| {
        let mut out = Vec::new();
        let name = format!("key:{index:012}");
        let args: [&[u8]; 3] = [b"SET", name.as_bytes(), &[b'v'; 100]];
        encode::journal_command(&mut out, 0, index as u64 + 1, &args);
        out
    };
    (0..RECORDS).map(record).collect()
}

#[divan::bench]
fn journal_decode(bencher: Bencher) {
    let records = journal();
    let mut decoder = JournalDecoder::new(FlowId(0), 1 << 20);
    let bytes: usize = records.iter().map(Vec::len).sum();
    bencher.counter(ItemsCount::new(RECORDS)).counter(BytesCount::new(bytes)).bench_local(|| {
        for record in black_box(&records) {
            decoder
                .decode_blob(record, |event| {
                    black_box(&event);
                    Ok(())
                })
                .unwrap();
        }
    });
}

#[divan::bench]
fn journal_walk(bencher: Bencher) {
    walk(bencher, journal().concat());
}
