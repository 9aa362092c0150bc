//! For tests of this room: an encoder that owes nothing to the decoder, and a driver that feeds a decoder in pieces and
//! puts what comes out together again.

use super::event::{Event, ObjectId, ObjectType};
use super::stream::{Limits, Progress, StreamDecoder};
use super::{DecodeError, Stage};
use crate::ids::FlowId;
use std::collections::HashMap;

pub const LIMITS: Limits = Limits {
    whole_bytes_max: 64 << 10,
    run_bytes_max: 16 << 10,
    atom_bytes_max: 1 << 20,
    key_bytes_max: 64 << 10,
    open_objects_max: 8,
};

/// Wire 0.1.
pub fn packed(value: u64) -> Vec<u8> {
    match value {
        0..=63 => vec![value as u8],
        64..=16383 => vec![0x40 | (value >> 8) as u8, value as u8],
        16384..=0xffff_ffff => [&[0x80][..], &(value as u32).to_be_bytes()].concat(),
        _ => [&[0x81][..], &value.to_be_bytes()].concat(),
    }
}

/// A string in raw form.
pub fn raw(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [packed(bytes.as_ref().len() as u64), bytes.as_ref().to_vec()].concat()
}

/// A string in LZF form.
pub fn lzf(bytes: &[u8]) -> Vec<u8> {
    let short = super::lzf::tests::pack(bytes);
    [vec![0xc3], packed(short.len() as u64), packed(bytes.len() as u64), short].concat()
}

pub fn chunk(id: u32, payload: &[u8]) -> Vec<u8> {
    [&[0xe0][..], &id.to_le_bytes(), &(payload.len() as u32).to_le_bytes(), payload].concat()
}

pub const HEADER: &[u8] = b"REDIS0009";
pub const FULL_SYNC_END: &[u8] = &[0xc8, 0, 0, 0, 0, 0, 0, 0, 0];
pub const JOURNAL_OFFSET_42: &[u8] = &[0xd3, 42, 0, 0, 0, 0, 0, 0, 0];
pub const TOKEN: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";

pub fn eof() -> Vec<u8> {
    [&[0xff, 0, 0, 0, 0, 0, 0, 0, 0][..], TOKEN].concat()
}

/// Header, body and a correct end.
pub fn stream(body: &[u8]) -> Vec<u8> {
    [HEADER, body, FULL_SYNC_END, JOURNAL_OFFSET_42, &eof()].concat()
}

/// A key and its value as in a stream that was not cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub db: u32,
    pub key: Vec<u8>,
    pub expire_at_ms: Option<i64>,
    pub sticky: bool,
    pub memcached_flags: Option<u32>,
    pub object_type: ObjectType,
    pub body: Vec<u8>,
}

/// What a stream said, with split objects put together (at the place where they ended).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Aux(Vec<u8>, Vec<u8>),
    Key(Key),
    Journal(Vec<u8>),
    FullSyncEnd,
    JournalOffset(u64),
    Eof([u8; 40]),
    Skipped(u8),
}

#[derive(Default)]
pub struct Collector {
    pub said: Vec<Said>,
    open: HashMap<ObjectId, Key>,
    pub begun: usize,
    pub runs: usize,
}

impl Collector {
    pub fn take(&mut self, event: Event<'_>) {
        let plain = |text: super::Text<'_>| {
            let mut out = Vec::new();
            text.append_to(&mut out).unwrap();
            out
        };
        let key = |meta: super::KeyMeta<'_>, body: Vec<u8>| Key {
            db: meta.db.0,
            key: meta.key.to_vec(),
            expire_at_ms: meta.expire_at_ms,
            sticky: meta.sticky,
            memcached_flags: meta.memcached_flags,
            object_type: meta.object_type,
            body,
        };
        match event {
            Event::Aux { name, value } => self.said.push(Said::Aux(plain(name), plain(value))),
            Event::Whole { meta, body } => self.said.push(Said::Key(key(meta, body.to_vec()))),
            Event::Begin { object, meta, count } => {
                self.begun += 1;
                let is_filter = matches!(meta.object_type.byte(), 33..=37);
                let begun = key(meta, if is_filter { Vec::new() } else { packed(count) });
                assert!(self.open.insert(object, begun).is_none(), "object begun twice");
            }
            Event::Run { object, stage, count, body } => {
                self.runs += 1;
                assert!(!body.is_empty());
                let open = self.open.get_mut(&object).expect("run of an object that is not open");
                if stage == Stage::StreamTail {
                    assert_eq!(count, 1);
                }
                open.body.extend_from_slice(body);
            }
            Event::End { object } => {
                let key = self.open.remove(&object).expect("end of an object that is not open");
                self.said.push(Said::Key(key));
            }
            Event::JournalBlob { record } => self.said.push(Said::Journal(record.to_vec())),
            Event::Compressed { .. } => unreachable!("the driver opens blobs"),
            Event::FullSyncEnd => self.said.push(Said::FullSyncEnd),
            Event::JournalOffset(lsn) => self.said.push(Said::JournalOffset(lsn.0)),
            Event::Eof { token } => self.said.push(Said::Eof(token)),
            // Where SELECTDB shows depends on how the stream is cut.
            Event::Skipped { opcode: 0xfe } => {}
            Event::Skipped { opcode } => self.said.push(Said::Skipped(opcode)),
        }
    }
}

/// Feeds `bytes` in pieces whose lengths `piece` gives. In these tests a blob's frame is its plain content.
/// Returns what was said and the bytes after EOF.
pub fn drive(
    bytes: &[u8],
    limits: Limits,
    mut piece: impl FnMut() -> usize,
) -> Result<(Collector, Vec<u8>), DecodeError> {
    let mut decoder = StreamDecoder::new(FlowId(3), limits);
    let mut collector = Collector::default();
    let (mut buffer, mut fed, mut dropped) = (Vec::new(), 0, 0u64);
    loop {
        assert_eq!(decoder.offset_bytes(), dropped);
        if decoder.is_ended() {
            assert_eq!(dropped + buffer.len() as u64, fed as u64);
            return Ok((collector, [&buffer[..], &bytes[fed..]].concat()));
        }
        let (consumed, frame) = match decoder.next(&buffer)? {
            Progress::Event { event: Event::Compressed { frame, .. }, consumed } => (consumed, Some(frame.to_vec())),
            Progress::Event { event, consumed } => {
                collector.take(event);
                (consumed, None)
            }
            Progress::NeedMore { at_least } => {
                assert!(at_least > buffer.len(), "asks for {at_least}, has {}", buffer.len());
                assert!(at_least <= limits.contiguous_bytes_max());
                if fed == bytes.len() {
                    return Err(decoder.closed(&buffer));
                }
                let len = piece().clamp(1, bytes.len() - fed);
                buffer.extend_from_slice(&bytes[fed..fed + len]);
                fed += len;
                continue;
            }
        };
        buffer.drain(..consumed);
        dropped += consumed as u64;
        if let Some(frame) = frame {
            decoder.enter_blob()?;
            let mut rest = &frame[..];
            let mut given = rest.len().min(piece());
            loop {
                match decoder.next(&rest[..given])? {
                    Progress::Event { event, consumed } => {
                        collector.take(event);
                        rest = &rest[consumed..];
                        given -= consumed;
                    }
                    Progress::NeedMore { .. } if given == rest.len() => break,
                    Progress::NeedMore { .. } => given = rest.len().min(given + piece().max(1)),
                }
            }
            decoder.leave_blob(rest)?;
        }
    }
}

/// As `drive`, in one piece.
pub fn decode(bytes: &[u8]) -> Result<Vec<Said>, DecodeError> {
    drive(bytes, LIMITS, || usize::MAX).map(|(collector, _)| collector.said)
}
