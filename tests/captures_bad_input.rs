//! Every recorded flow, cut at every byte (large ones: at thousands of seeded places) and with thousands of seeded bytes
//! changed: a typed error, or another value where the format cannot tell; never a panic, never a success on a truncated
//! stream.
//!
//! A walk is kept as clones of the decoder at record borders, so that each case begins just before its place.

mod common;

use common::captures::captures;
use df2redis::dragonfly::blob::BlobReader;
use df2redis::dragonfly::stream::{Limits, Progress, StreamDecoder};
use df2redis::dragonfly::value::{self, Scratch};
use df2redis::dragonfly::{DecodeError, Event, KeyMeta, ObjectType, Reason};
use df2redis::ids::FlowId;

const LIMITS: Limits = Limits {
    whole_bytes_max: 64 << 10,
    run_bytes_max: 16 << 10,
    atom_bytes_max: 64 << 20,
    key_bytes_max: 1 << 20,
    open_objects_max: 64,
};

/// Flows up to this length are cut at every byte.
const SMALL_BYTES: usize = 150_000;
const SEEDED_CUTS: usize = 3000;
const CHANGES_A_FLOW: usize = 1000;
/// How far a damaged stream is read on.
const READ_ON_BYTES: usize = 64 << 10;

/// A decoder between two records of the outer stream.
#[derive(Clone)]
struct At {
    offset: usize,
    decoder: StreamDecoder,
}

/// What `run` met.
enum Met {
    /// All bytes are used up; so many are left over.
    Dry {
        left_over: usize,
    },
    Eof,
}

/// Decodes `bytes[at.offset..]`, taking values apart, and calls `border` between records.
fn run(at: &mut At, bytes: &[u8], mut border: impl FnMut(&At)) -> Result<Met, DecodeError> {
    let mut scratch = Scratch::default();
    loop {
        let (event, consumed) = match at.decoder.next(&bytes[at.offset..])? {
            Progress::NeedMore { .. } => return Ok(Met::Dry { left_over: bytes.len() - at.offset }),
            Progress::Event { event, consumed } => (event, consumed),
        };
        at.offset += consumed;
        match event {
            Event::Eof { .. } => return Ok(Met::Eof),
            Event::Compressed { codec, frame } => {
                let place = |reason| DecodeError { flow: FlowId(0), offset: at.offset as u64, reason };
                let mut reader = BlobReader::new(codec, bytes::Bytes::copy_from_slice(frame)).map_err(place)?;
                at.decoder.enter_blob()?;
                unpack(&mut at.decoder, &mut reader, &mut scratch)
                    .map_err(|e| e.placed(FlowId(0), at.offset as u64))?;
            }
            event => open(&event, &mut scratch),
        }
        border(at);
    }
}

fn unpack(decoder: &mut StreamDecoder, reader: &mut BlobReader, scratch: &mut Scratch) -> Result<(), DecodeError> {
    let mut plain = Vec::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        let in_value = |reason| DecodeError { flow: FlowId(0), offset: 0, reason };
        let n = reader.read(&mut piece).map_err(in_value)?;
        plain.extend_from_slice(&piece[..n]);
        let mut used = 0;
        while let Progress::Event { event, consumed } = decoder.next(&plain[used..])? {
            used += consumed;
            open(&event, scratch);
        }
        plain.drain(..used);
        if n == 0 {
            return decoder.leave_blob(&plain);
        }
    }
}

/// Takes a value apart. Errors are as good as values here: it must only not panic.
fn open(event: &Event<'_>, scratch: &mut Scratch) {
    if let Event::Whole { meta, body } = event {
        let _ = match meta.object_type {
            ObjectType::String | ObjectType::Json | ObjectType::JsonOld => string(meta, body),
            ObjectType::StreamV1 | ObjectType::StreamV2 | ObjectType::StreamV3 => {
                let _ = value::for_each_entry(true, body, scratch, |_, _| Ok::<_, ()>(()));
                value::stream_tail_offset(body)
                    .and_then(|(tail, _)| value::stream_tail(meta.object_type, &body[tail..]))
                    .map(drop)
            }
            ObjectType::Bloom
            | ObjectType::BloomPieces
            | ObjectType::CountMinSketch
            | ObjectType::TopK
            | ObjectType::Cuckoo => Ok(()),
            object_type => {
                let _ = value::for_each_element(object_type, true, body, scratch, |_| Ok::<_, ()>(()));
                value::count_elements(object_type, true, body, scratch).map(drop)
            }
        };
    }
}

fn string(meta: &KeyMeta<'_>, body: &[u8]) -> Result<(), DecodeError> {
    let mut plain = Vec::new();
    value::string_value(meta, body)?.append_to(&mut plain)
}

/// The walk of a whole flow: where each record ends.
fn borders(bytes: &[u8]) -> (Vec<At>, usize) {
    let mut at = At { offset: 0, decoder: StreamDecoder::new(FlowId(0), LIMITS) };
    let mut borders = vec![at.clone()];
    let met = run(&mut at, bytes, |at| {
        // Not at every record of a stretch of small ones: a clone costs more than they do.
        if at.offset - borders.last().unwrap().offset > 256 {
            borders.push(at.clone());
        }
    });
    assert!(matches!(met, Ok(Met::Eof)), "a recording is good");
    (borders, at.offset)
}

fn before(borders: &[At], offset: usize) -> At {
    borders[borders.partition_point(|at| at.offset <= offset) - 1].clone()
}

fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below.max(1) as u64) as usize
    }
}

/// Each flow of each recording, with a seed.
fn for_each_flow(mut case: impl FnMut(&str, u64, &[u8])) {
    let mut seed = 1;
    for capture in captures() {
        for (flow, bytes) in capture.flows().iter().enumerate() {
            seed += 0x9e37_79b9;
            case(&format!("{} flow {flow}", capture.name), seed, bytes);
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for_each_flow(|name, seed, bytes| {
        let (borders, end) = borders(bytes);
        let mut random = random(seed);
        let cuts: Vec<usize> = if end <= SMALL_BYTES {
            (0..end).collect()
        } else {
            (0..SEEDED_CUTS).map(|_| random(end)).chain(end - 100..end).collect()
        };
        for len in cuts {
            let mut at = before(&borders, len);
            match run(&mut at, &bytes[..len], |_| {}) {
                Ok(Met::Dry { left_over }) => {
                    let error = at.decoder.closed(&bytes[len - left_over..len]);
                    assert!(
                        matches!(error.reason, Reason::Truncated { .. } | Reason::ClosedBeforeEof),
                        "{name} cut at {len}: {error}"
                    );
                    assert!(error.to_string().starts_with("flow 0, offset "), "{name} cut at {len}: {error}");
                }
                Ok(Met::Eof) => panic!("{name}: success on the first {len} of {end} bytes"),
                Err(error) => panic!("{name} cut at {len}: a good prefix is called wrong: {error}"),
            }
        }
    });
}

#[test]
fn every_changed_byte_is_an_error_or_another_value() {
    let (mut errors, mut values) = (0, 0);
    for_each_flow(|name, seed, bytes| {
        let (borders, end) = borders(bytes);
        let mut random = random(seed);
        let mut damaged = bytes[..end].to_vec();
        for _ in 0..CHANGES_A_FLOW {
            let place = random(end);
            let change = 1 + random(255) as u8;
            damaged[place] ^= change;
            let mut at = before(&borders, place);
            let read_on = (place + READ_ON_BYTES).min(end);
            match run(&mut at, &damaged[..read_on], |_| {}) {
                Ok(_) => values += 1,
                Err(error) => {
                    assert!(error.to_string().starts_with("flow 0, offset "), "{name} changed at {place}: {error}");
                    errors += 1;
                }
            }
            damaged[place] ^= change;
        }
    });
    assert!(errors > 1000 && values > 1000, "{errors} errors, {values} other values");
}
