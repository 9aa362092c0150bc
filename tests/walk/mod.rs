//! Drives the decoder over one recorded flow, as the engine does, and keeps what comes out.

use bytes::Bytes;
use df2redis::dragonfly::blob::BlobReader;
use df2redis::dragonfly::journal::{JournalDecoder, JournalEvent, JournalProgress, LsnCounter};
use df2redis::dragonfly::stream::{Limits, Progress, StreamDecoder};
use df2redis::dragonfly::value::{
    Element, Scratch, StreamTail, WalkError, count_elements, for_each_element, for_each_entry, stream_tail,
    stream_tail_offset,
};
use df2redis::dragonfly::{DecodeError, Event, KeyMeta, ObjectId, ObjectType, Stage, Text};
use df2redis::ids::{FlowId, Lsn};
use std::collections::{BTreeMap, HashMap};

/// What one flow said.
#[derive(Default)]
pub struct Walk {
    pub keys: BTreeMap<(u32, Vec<u8>), Key>,
    pub token: Option<[u8; 40]>,
    pub snapshot_bytes: u64,
    pub journal_bytes: u64,
    /// LSN of the next record after all that were read.
    pub counter: Option<Lsn>,
    /// Records inside the full sync.
    pub blob_records: usize,
    /// Records after it: db and strings.
    pub journal: Vec<(u32, Vec<Vec<u8>>)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub expire_at_ms: Option<i64>,
    pub object_type: ObjectType,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Value {
    /// String, JSON text.
    pub bytes: Vec<u8>,
    /// List items; set members; fields and values; members and scores (as bits); ids, fields and values of a stream.
    pub parts: Vec<Vec<u8>>,
    /// Parts (fields, members) that carry an expiry.
    pub timed: Vec<Vec<u8>>,
    pub tail: Option<StreamTail>,
}

/// Walks over a whole flow; `piece` says how many bytes arrive next.
pub fn walk_flow(
    flow: usize,
    bytes: &[u8],
    limits: Limits,
    mut piece: impl FnMut() -> usize,
) -> Result<Walk, DecodeError> {
    let flow = FlowId(flow as u32);
    let mut decoder = StreamDecoder::new(flow, limits);
    let mut sink = Sink::new(flow, limits);
    let (mut at, mut given) = (0, 0);
    while !decoder.is_ended() {
        assert_eq!(decoder.offset_bytes(), at as u64);
        let (consumed, blob) = match decoder.next(&bytes[at..given])? {
            Progress::Event { event: Event::Compressed { codec, frame }, consumed } => {
                (consumed, Some((codec, Bytes::copy_from_slice(frame))))
            }
            Progress::Event { event, consumed } => {
                sink.take(event, at as u64)?;
                (consumed, None)
            }
            Progress::NeedMore { at_least } => {
                assert!(at_least > given - at && at_least <= limits.contiguous_bytes_max());
                if given == bytes.len() {
                    return Err(decoder.closed(&bytes[at..given]));
                }
                given = bytes.len().min(given.saturating_add(piece()));
                continue;
            }
        };
        let blob_at = at as u64;
        at += consumed;
        if let Some((codec, frame)) = blob {
            decoder.enter_blob()?;
            let wrong = |reason| DecodeError { flow, offset: blob_at, reason };
            let mut reader = BlobReader::new(codec, frame).map_err(wrong)?;
            let (mut plain, mut read) = (vec![0; 32 << 10], 0);
            loop {
                let mut done = 0;
                let at_least = loop {
                    match decoder.next(&plain[done..read])? {
                        Progress::Event { event, consumed } => {
                            sink.take(event, blob_at)?;
                            done += consumed;
                        }
                        Progress::NeedMore { at_least } => break at_least,
                    }
                };
                plain.copy_within(done..read, 0);
                read -= done;
                if plain.len() < at_least {
                    plain.resize(at_least.max(2 * plain.len()), 0);
                }
                match reader.read(&mut plain[read..]).map_err(wrong)? {
                    0 => break,
                    len => read += len,
                }
            }
            decoder.leave_blob(&plain[..read])?;
        }
    }
    sink.walk.snapshot_bytes = at as u64;
    walk_journal(&bytes[at..], sink, piece)
}

/// Where an event of the outer stream ends, at `bytes_min` or later: the next such place.
pub fn border(bytes: &[u8], bytes_min: usize, limits: Limits) -> usize {
    let mut decoder = StreamDecoder::new(FlowId(0), limits);
    let mut at = 0;
    while at < bytes_min {
        match decoder.next(&bytes[at..]).expect("the recording is good") {
            // A blob not entered is a record like any other.
            Progress::Event { consumed, .. } => at += consumed,
            Progress::NeedMore { .. } => panic!("the recording ends before such a place"),
        }
    }
    at
}

fn walk_journal(bytes: &[u8], mut sink: Sink, mut piece: impl FnMut() -> usize) -> Result<Walk, DecodeError> {
    let mut decoder = JournalDecoder::new(sink.flow, sink.limits.atom_bytes_max).starting_at(sink.walk.snapshot_bytes);
    let mut counter = LsnCounter::new(sink.walk.counter.expect("the decoder lets no EOF pass without JOURNAL_OFFSET"));
    let (mut at, mut given) = (0, 0);
    loop {
        let offset = decoder.offset_bytes();
        match decoder.next(&bytes[at..given])? {
            JournalProgress::Event { event, consumed } => {
                counter.observe(&event).map_err(|reason| DecodeError { flow: sink.flow, offset, reason })?;
                if let JournalEvent::Command(command) = event {
                    sink.walk.journal.push((command.db.0, command.args().map(<[u8]>::to_vec).collect()));
                }
                at += consumed;
            }
            JournalProgress::NeedMore { at_least } => {
                assert!(at_least > given - at);
                if given == bytes.len() {
                    break;
                }
                given = bytes.len().min(given.saturating_add(piece()));
            }
        }
    }
    sink.walk.journal_bytes = at as u64;
    sink.walk.counter = Some(counter.next());
    Ok(sink.walk)
}

/// Puts values together.
struct Sink {
    flow: FlowId,
    limits: Limits,
    walk: Walk,
    open: HashMap<ObjectId, (Name, Key)>,
    scratch: Scratch,
}

type Name = (u32, Vec<u8>);

impl Sink {
    fn new(flow: FlowId, limits: Limits) -> Self {
        Self { flow, limits, walk: Walk::default(), open: HashMap::new(), scratch: Scratch::default() }
    }

    fn take(&mut self, event: Event<'_>, at: u64) -> Result<(), DecodeError> {
        let flow = self.flow;
        let placed = |error: DecodeError| error.placed(flow, at);
        match event {
            Event::Whole { meta, body } => {
                let (name, mut key) = begin(&meta);
                let object_type = meta.object_type;
                if is_stream(object_type) {
                    let (tail_at, _) = stream_tail_offset(body).map_err(placed)?;
                    self.entries(&mut key.value, true, body).map_err(placed)?;
                    key.value.tail = Some(stream_tail(object_type, &body[tail_at..]).map_err(placed)?);
                } else if is_string(object_type) {
                    let text = df2redis::dragonfly::value::string_value(&meta, body).map_err(placed)?;
                    text.append_to(&mut key.value.bytes).map_err(placed)?;
                } else if !is_filter(object_type) {
                    self.elements(&mut key, true, body).map_err(placed)?;
                }
                self.keep(name, key);
            }
            Event::Begin { object, meta, .. } => {
                assert!(self.open.insert(object, begin(&meta)).is_none(), "{object:?} begun twice");
            }
            Event::Run { object, stage, count, body } => {
                let (name, mut key) = self.open.remove(&object).expect("a run belongs to an open object");
                let object_type = key.object_type;
                match stage {
                    Stage::StreamTail => key.value.tail = Some(stream_tail(object_type, body).map_err(placed)?),
                    Stage::Elements if is_stream(object_type) => {
                        self.entries(&mut key.value, false, body).map_err(placed)?;
                    }
                    Stage::Elements if object_type == ObjectType::String => {
                        assert_eq!(count, body.len() as u64);
                        key.value.bytes.extend_from_slice(body);
                    }
                    Stage::Elements if is_filter(object_type) => {}
                    Stage::Elements => self.elements(&mut key, false, body).map_err(placed)?,
                }
                self.open.insert(object, (name, key));
            }
            Event::End { object } => {
                let (name, key) = self.open.remove(&object).expect("only an open object ends");
                self.keep(name, key);
            }
            Event::JournalBlob { record } => {
                let mut decoder = JournalDecoder::new(self.flow, self.limits.atom_bytes_max);
                decoder.decode_blob(record, |event| {
                    self.walk.blob_records += usize::from(matches!(event, JournalEvent::Command(_)));
                    Ok(())
                })?;
            }
            Event::JournalOffset(lsn) => self.walk.counter = Some(lsn),
            Event::Eof { token } => self.walk.token = Some(token),
            Event::Aux { name, value } => {
                let mut text = Vec::new();
                name.append_to(&mut text).map_err(placed)?;
                value.append_to(&mut text).map_err(placed)?;
            }
            Event::FullSyncEnd | Event::Skipped { .. } => {}
            Event::Compressed { .. } => unreachable!("opened by the driver"),
        }
        Ok(())
    }

    fn keep(&mut self, name: Name, key: Key) {
        self.walk.keys.insert(name, key);
    }

    fn elements(&mut self, key: &mut Key, whole: bool, body: &[u8]) -> Result<(), DecodeError> {
        let value = &mut key.value;
        let visited = for_each_element(key.object_type, whole, body, &mut self.scratch, |element| {
            match element {
                Element::Item(item) => value.parts.push(plain(item)?),
                Element::Member { member, expire_at_ms } => {
                    let member = plain(member)?;
                    value.timed.extend(expire_at_ms.map(|_| member.clone()));
                    value.parts.push(member);
                }
                Element::Field { field, value: text, expire_at_ms } => {
                    let field = plain(field)?;
                    value.timed.extend(expire_at_ms.map(|_| field.clone()));
                    value.parts.extend([field, plain(text)?]);
                }
                Element::Scored { member, score } => {
                    value.parts.extend([plain(member)?, score.to_bits().to_be_bytes().to_vec()]);
                }
            }
            Ok(())
        })
        .map_err(unwrap_walk)?;
        assert_eq!(count_elements(key.object_type, whole, body, &mut self.scratch)?, visited);
        Ok(())
    }

    fn entries(&mut self, value: &mut Value, whole: bool, body: &[u8]) -> Result<(), DecodeError> {
        for_each_entry(whole, body, &mut self.scratch, |id, fields| {
            value.parts.push(format!("{}-{}", id.ms, id.seq).into_bytes());
            for text in fields {
                value.parts.push(plain(*text)?);
            }
            Ok(())
        })
        .map(|_| ())
        .map_err(unwrap_walk)
    }
}

fn begin(meta: &KeyMeta<'_>) -> (Name, Key) {
    let key = Key { expire_at_ms: meta.expire_at_ms, object_type: meta.object_type, value: Value::default() };
    ((meta.db.0, meta.key.to_vec()), key)
}

fn plain(text: Text<'_>) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    text.append_to(&mut out)?;
    Ok(out)
}

fn unwrap_walk(error: WalkError<DecodeError>) -> DecodeError {
    match error {
        WalkError::Decode(error) | WalkError::Visitor(error) => error,
    }
}

fn is_stream(object_type: ObjectType) -> bool {
    matches!(object_type, ObjectType::StreamV1 | ObjectType::StreamV2 | ObjectType::StreamV3)
}

fn is_string(object_type: ObjectType) -> bool {
    matches!(object_type, ObjectType::String | ObjectType::Json | ObjectType::JsonOld)
}

pub fn is_filter(object_type: ObjectType) -> bool {
    matches!(object_type.byte(), 33..=37)
}
