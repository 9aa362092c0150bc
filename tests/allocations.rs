//! The steady state allocates nothing per key: decoding and converting small strings, numbers and hashes into an output
//! that is used again asks the allocator for nothing, once everything has its size.

use df2redis::convert::out::VecOut;
use df2redis::convert::{Converter, Limits as ConvertLimits, Plan, Policy};
use df2redis::dragonfly::stream::{Limits, Progress, StreamDecoder};
use df2redis::ids::FlowId;
use df2redis::lab::encode::{self, Attributes};
use df2redis::redis::{Capabilities, Make, Version};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

/// Counts what the current thread asks for, and leaves the work to the system's allocator.
struct Counting;

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    REQUESTS.with(|requests| requests.set(requests.get() + 1));
}

// SAFETY: every call is handed on unchanged to the system's allocator; counting in a thread-local without a destructor
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn requests() -> u64 {
    REQUESTS.with(Cell::get)
}

const NOW_MS: i64 = 1_800_000_000_000;
const KEYS: u64 = 500;

/// Records of small keys of several kinds.
fn records() -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..KEYS {
        let key = format!("key:{i:012}").into_bytes();
        let expire_at_ms = (i % 3 == 0).then_some(NOW_MS + 1_000_000);
        let attributes = Attributes { expire_at_ms, ..Attributes::default() };
        match i % 4 {
            0 => {
                encode::key_head(&mut out, attributes, 0, &key, false);
                encode::raw_string(&mut out, &[b'v'; 100]);
            }
            1 => {
                encode::key_head(&mut out, attributes, 0, &key, false);
                encode::string(&mut out, i.to_string().as_bytes(), false);
            }
            2 => {
                encode::key_head(&mut out, attributes, 4, &key, false);
                encode::packed(&mut out, 20);
                for field in 0..20 {
                    encode::string(&mut out, format!("field{field}").as_bytes(), false);
                    encode::string(&mut out, format!("value of {field}").as_bytes(), false);
                }
            }
            _ => {
                encode::key_head(&mut out, attributes, 0, i.to_string().as_bytes(), false);
                encode::raw_string(&mut out, &[b'v'; 1000]);
            }
        }
    }
    out
}

/// Decodes and converts everything; the keys seen.
fn pass(decoder: &mut StreamDecoder, converter: &mut Converter, mut input: &[u8], out: &mut VecOut) -> u64 {
    out.clear();
    let before = converter_keys(converter);
    while let Progress::Event { event, consumed } = decoder.next(input).unwrap() {
        converter.event(&event, NOW_MS, out).unwrap();
        input = &input[consumed..];
    }
    assert!(input.is_empty());
    converter_keys(converter) - before
}

fn converter_keys(converter: &Converter) -> u64 {
    df2redis::convert::TypeClass::ALL.iter().map(|class| converter.tally().of(*class).keys_written).sum()
}

#[test]
fn nothing_is_allocated_per_key() {
    for version in [Version::new(6, 2, 0), Version::new(8, 2, 0)] {
        let capabilities = Capabilities::plain(Make::Redis, version);
        let plan = Plan::new(capabilities, Policy::default(), ConvertLimits::default()).unwrap();
        let mut converter = Converter::new(FlowId(0), Arc::new(plan));
        let limits = Limits {
            whole_bytes_max: 64 << 10,
            run_bytes_max: 16 << 10,
            atom_bytes_max: 1 << 20,
            key_bytes_max: 64 << 10,
            open_objects_max: 1024,
        };
        let mut decoder = StreamDecoder::new(FlowId(0), limits);
        let mut out = VecOut::without_commands();
        let mut header = Vec::new();
        encode::header(&mut header);
        encode::select_db(&mut header, 0);
        pass(&mut decoder, &mut converter, &header, &mut out);

        let input = records();
        // The first pass lets buffers grow to their size.
        assert_eq!(pass(&mut decoder, &mut converter, &input, &mut out), KEYS);
        let before = requests();
        for _ in 0..3 {
            assert_eq!(pass(&mut decoder, &mut converter, &input, &mut out), KEYS);
        }
        assert_eq!(requests() - before, 0, "requests to the allocator for {} keys, target {version}", 3 * KEYS);
    }
}

#[test]
fn the_allocator_counts() {
    let before = requests();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(requests() > before);
}
