//! One flow's converter: every snapshot event to commands, by type to the forms.
//!
//! Replacement is always of the whole object (wire 2.10): SET and RESTORE REPLACE replace by themselves, everything else
//! begins with a DEL. A key that has expired, or has no element left, is sent as DEL.
//!
//! Objects that arrive in pieces are kept open by their id until their end: key, attributes and how far they have come,
//! never their elements (streams up to a size excepted). An error is final for the flow.

use super::chunk::{ChunkBuffers, ChunkScope};
use super::collection::Sent;
use super::emit::{Command, Counting, Key, delete, expire_at};
use super::near::Near;
use super::out::{Class, CommandMeta, Out};
use super::plan::Plan;
use super::policy::{Action, Kind};
use super::stream::OpenStream;
use super::tally::{Tally, TypeClass, What};
use super::{ConvertError, collection, escape, expiring, json, stream, string};
use crate::dragonfly::value::{Scratch, string_value};
use crate::dragonfly::{Event, KeyMeta, ObjectId, ObjectType, Stage, Text};
use crate::ids::{DbIndex, FlowId, Slot};
use std::sync::Arc;

/// Converts one flow's snapshot for one target. See the module's header.
pub struct Converter {
    flow: FlowId,
    plan: Arc<Plan>,
    tally: Tally,
    open: Vec<OpenObject>,
    scratch: Scratch,
    buffers: ChunkBuffers,
    payload: Vec<u8>,
    source_version: Option<String>,
    near: Near,
}

/// An object between its `Begin` and its `End`.
struct OpenObject {
    id: ObjectId,
    key: Vec<u8>,
    db: DbIndex,
    slot: Slot,
    expire_at_ms: Option<i64>,
    object_type: ObjectType,
    form: Form,
}

enum Form {
    /// Nothing of it is written: it has expired, is skipped, or belongs to another flow.
    Ignored,
    /// A SET whose value is still being written.
    Set {
        bytes_left: u64,
    },
    /// A string in pieces by SETRANGE.
    Ranges {
        offset: u64,
        len: u64,
    },
    Collection {
        elements: u64,
        expiries_dropped: u64,
    },
    Stream(OpenStream),
    /// Written and counted: only its end is missing.
    Finished,
}

impl Converter {
    pub fn new(flow: FlowId, plan: Arc<Plan>) -> Self {
        Self {
            flow,
            plan,
            tally: Tally::default(),
            open: Vec::new(),
            scratch: Scratch::default(),
            buffers: ChunkBuffers::default(),
            payload: Vec::new(),
            source_version: None,
            near: Near::AS_IS,
        }
    }

    /// Converts one event at the time `now_ms` (Unix, milliseconds).
    ///
    /// `Compressed`, `FullSyncEnd`, `JournalOffset`, `Eof` and `Skipped` are the engine's: nothing happens. Errors: what
    /// the target cannot hold and the policy refuses; values whose bytes are wrong; a journal blob.
    #[inline]
    pub fn event(&mut self, event: &Event<'_>, now_ms: i64, out: &mut impl Out) -> Result<(), ConvertError> {
        match event {
            Event::Whole { meta, body } => self.whole(meta, body, now_ms, out),
            Event::Begin { object, meta, count } => self.begin(*object, meta, *count, now_ms, out),
            Event::Run { object, stage, count, body } => self.run(*object, *stage, *count, body, now_ms, out),
            Event::End { object } => self.end(*object, out),
            Event::Aux { name, value } => self.aux(*name, *value, out),
            Event::JournalBlob { .. } => Err(ConvertError::JournalBlob { flow: self.flow }),
            Event::Compressed { .. }
            | Event::FullSyncEnd
            | Event::JournalOffset(_)
            | Event::Eof { .. }
            | Event::Skipped { .. } => Ok(()),
        }
    }

    /// Passes over an object that has begun at the decoder: its `Begin` is not given to `event`, its runs and its end
    /// may be. For keys that the flow does not own, or that the target is to keep.
    pub fn ignore(&mut self, object: ObjectId, meta: &KeyMeta<'_>) {
        self.open_object(object, meta, Form::Ignored);
    }

    /// Which expiries are written later than they are, from now on: of fields here; of keys by whoever makes the `KeyMeta`.
    pub fn set_near(&mut self, near: Near) {
        self.near = near;
    }

    /// Fields whose expiry was shifted since the last call.
    pub fn take_shifted_fields(&mut self) -> u64 {
        std::mem::take(&mut self.buffers.shifted)
    }

    #[inline]
    fn has_expired(&self, meta: &KeyMeta<'_>, now_ms: i64) -> bool {
        meta.expire_at_ms.is_some_and(|at_ms| self.near.is_past(at_ms, now_ms))
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// For taking the list, and for what the journal's translation counts.
    pub fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// The source's release (`df-v1.40.1`), once its AUX field has come.
    pub fn source_version(&self) -> Option<&str> {
        self.source_version.as_deref()
    }

    /// Objects begun and not ended. Must be 0 when the snapshot ends.
    pub fn objects_open(&self) -> usize {
        self.open.len()
    }

    #[inline]
    fn whole(&mut self, meta: &KeyMeta<'_>, body: &[u8], now_ms: i64, out: &mut impl Out) -> Result<(), ConvertError> {
        let class = self.key_read(meta);
        let key = Key::of(meta, &self.plan);
        let mut out = Counting::new(out);
        let sent = if self.has_expired(meta, now_ms) {
            delete(&mut out, &key);
            Sent::Empty
        } else {
            self.whole_by_type(meta, key, body, now_ms, &mut out)?
        };
        let (bytes, commands) = (out.bytes, out.commands);
        let counts = self.tally.of_mut(class);
        counts.bytes_read += body.len() as u64;
        counts.bytes_written += bytes;
        counts.commands += commands;
        self.sent(class, sent);
        Ok(())
    }

    #[inline]
    fn whole_by_type(
        &mut self,
        meta: &KeyMeta<'_>,
        key: Key<'_>,
        body: &[u8],
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<Sent, ConvertError> {
        let Self { flow, plan, tally, scratch, buffers, payload, near, .. } = self;
        let (flow, plan, near) = (*flow, &**plan, *near);
        let KeyMeta { expire_at_ms, object_type, .. } = *meta;
        let scope = ChunkScope { flow, plan, key, object_type, event: body, now_ms, near };
        match object_type {
            ObjectType::String => {
                if let Some(value) = short_raw(body).filter(|value| value.len() < plan.limits.inline_bytes_max) {
                    string::set_short(out, &key, value, expire_at_ms);
                    return Ok(Sent::ByCommands { elements: 0 });
                }
                let value = string_value(meta, body)?;
                if let Some(sent) = too_long(scope, value.plain_len() as u64, out, tally)? {
                    return Ok(sent);
                }
                string::set(out, &key, value, expire_at_ms, plan, &mut buffers.unpacked)?;
                Ok(Sent::ByCommands { elements: 0 })
            }
            ObjectType::Json | ObjectType::JsonOld => {
                let text = string_value(meta, body)?;
                if let Some(sent) = too_long(scope, text.plain_len() as u64, out, tally)? {
                    return Ok(sent);
                }
                json::document(flow, plan, &key, text, body, expire_at_ms, out, tally, &mut buffers.unpacked)
            }
            ObjectType::HashExpiry | ObjectType::SetExpiry => {
                expiring::whole(scope, expire_at_ms, out, scratch, buffers, tally, payload)
            }
            ObjectType::StreamV1 | ObjectType::StreamV2 | ObjectType::StreamV3 => {
                stream::whole(scope, expire_at_ms, out, scratch, &mut buffers.unpacked)
            }
            _ if TypeClass::of(object_type) == TypeClass::Filter => json::filter(flow, plan, &key, out, tally),
            _ => collection::whole(scope, expire_at_ms, out, scratch, buffers, tally),
        }
    }

    fn begin(
        &mut self,
        object: ObjectId,
        meta: &KeyMeta<'_>,
        count: u64,
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<(), ConvertError> {
        let class = self.key_read(meta);
        let key = Key::of(meta, &self.plan);
        let mut out = Counting::new(out);
        let form = if self.has_expired(meta, now_ms) {
            delete(&mut out, &key);
            self.sent(class, Sent::Empty);
            Form::Ignored
        } else {
            self.begin_form(meta, key, count, now_ms, &mut out)?
        };
        let counts = self.tally.of_mut(class);
        counts.bytes_written += out.bytes;
        counts.commands += out.commands;
        self.open_object(object, meta, form);
        Ok(())
    }

    fn begin_form(
        &mut self,
        meta: &KeyMeta<'_>,
        key: Key<'_>,
        count: u64,
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<Form, ConvertError> {
        let Self { flow, plan, tally, .. } = self;
        let (flow, plan) = (*flow, &**plan);
        let object_type = meta.object_type;
        let scope = ChunkScope { flow, plan, key, object_type, event: &[], now_ms, near: self.near };
        let class = TypeClass::of(object_type);
        let skipped = match class {
            TypeClass::String => too_long(scope, count, out, tally)?,
            TypeClass::Filter => Some(json::filter(flow, plan, &key, out, tally)?),
            _ => None,
        };
        if let Some(sent) = skipped {
            self.sent(class, sent);
            return Ok(Form::Ignored);
        }
        Ok(match class {
            TypeClass::String if count <= plan.limits.set_bytes_max => {
                string::begin_set(out, &key, count, meta.expire_at_ms);
                Form::Set { bytes_left: count }
            }
            TypeClass::String => {
                string::begin_ranges(out, &key, count);
                Form::Ranges { offset: 0, len: count }
            }
            TypeClass::Stream => Form::Stream(OpenStream::new(count)),
            TypeClass::Json | TypeClass::Filter => return Err(unexpected(flow, ObjectId(0))),
            _ => {
                delete(out, &key);
                Form::Collection { elements: 0, expiries_dropped: 0 }
            }
        })
    }

    fn run(
        &mut self,
        object: ObjectId,
        stage: Stage,
        count: u64,
        body: &[u8],
        now_ms: i64,
        out: &mut impl Out,
    ) -> Result<(), ConvertError> {
        let flow = self.flow;
        let kept_in_all: usize = self.open.iter().map(OpenObject::bytes_kept).sum();
        let near = self.near;
        let Self { plan, tally, open, scratch, buffers, .. } = self;
        let found = open.iter_mut().find(|open| open.id == object).ok_or_else(|| unexpected(flow, object))?;
        let key = Key { bytes: &found.key, db: found.db, slot: found.slot };
        let class = TypeClass::of(found.object_type);
        let scope = ChunkScope { flow, plan, key, object_type: found.object_type, event: body, now_ms, near };
        let mut out = Counting::new(out);
        let mut sent = None;
        match (&mut found.form, stage) {
            (Form::Ignored, _) => {}
            (Form::Set { bytes_left }, Stage::Elements) => {
                *bytes_left = bytes_left
                    .checked_sub(body.len() as u64)
                    .ok_or_else(|| wrong_length(scope, -(body.len() as i64)))?;
                out.put(body);
            }
            (Form::Ranges { offset, len }, Stage::Elements) => {
                let end = offset.saturating_add(body.len() as u64);
                if end > *len {
                    return Err(wrong_length(scope, -(body.len() as i64)));
                }
                if !body.is_empty() {
                    string::set_range(&mut out, &key, *offset, body);
                }
                *offset = end;
            }
            (Form::Collection { elements, expiries_dropped }, Stage::Elements) => {
                let run = collection::run(scope, false, &mut out, scratch, buffers, tally)?;
                *elements += run.elements;
                *expiries_dropped += run.expiries_dropped;
            }
            (Form::Stream(stream), Stage::Elements) => {
                let max = plan.limits.stream_restore_bytes_max;
                // Each may grow to the limit, and all others together to once more as much.
                let kept_by_others = kept_in_all - stream.bytes_kept();
                let room = max.min((2 * max).saturating_sub(kept_by_others));
                stream.run(scope, room, &mut out, scratch, &mut buffers.unpacked)?;
                let _ = count;
            }
            (form @ Form::Stream(_), Stage::StreamTail) => {
                if let Form::Stream(stream) = std::mem::replace(form, Form::Finished) {
                    sent = Some(stream.finish(scope, found.expire_at_ms, &mut out, tally)?);
                }
            }
            _ => return Err(unexpected(flow, object)),
        }
        let counts = tally.of_mut(class);
        counts.bytes_read += body.len() as u64;
        counts.bytes_written += out.bytes;
        counts.commands += out.commands;
        if let Some(sent) = sent {
            self.sent(class, sent);
        }
        Ok(())
    }

    fn end(&mut self, object: ObjectId, out: &mut impl Out) -> Result<(), ConvertError> {
        let at = self.open.iter().position(|open| open.id == object).ok_or_else(|| unexpected(self.flow, object))?;
        let ended = self.open.swap_remove(at);
        let key = Key { bytes: &ended.key, db: ended.db, slot: ended.slot };
        let class = TypeClass::of(ended.object_type);
        let scope = ChunkScope {
            flow: self.flow,
            plan: &self.plan,
            key,
            object_type: ended.object_type,
            event: &[],
            now_ms: 0,
            near: self.near,
        };
        let mut out = Counting::new(out);
        let sent = match ended.form {
            Form::Ignored | Form::Finished => None,
            Form::Set { bytes_left: 0 } => {
                string::end_set(&mut Command::resume(&mut out), ended.expire_at_ms);
                Some(Sent::ByCommands { elements: 0 })
            }
            Form::Set { bytes_left } => return Err(wrong_length(scope, bytes_left as i64)),
            Form::Ranges { offset, len } if offset == len => {
                expire_at(&mut out, &key, ended.expire_at_ms);
                Some(Sent::ByCommands { elements: 0 })
            }
            Form::Ranges { offset, len } => return Err(wrong_length(scope, (len - offset) as i64)),
            Form::Collection { elements: 0, .. } => Some(Sent::Empty),
            Form::Collection { elements, expiries_dropped: dropped } => {
                expire_at(&mut out, &key, ended.expire_at_ms);
                expiries_dropped(&mut self.tally, &key, ended.object_type, dropped);
                Some(Sent::ByCommands { elements })
            }
            Form::Stream(_) => return Err(unexpected(self.flow, object)),
        };
        let counts = self.tally.of_mut(class);
        counts.bytes_written += out.bytes;
        counts.commands += out.commands;
        if let Some(sent) = sent {
            self.sent(class, sent);
        }
        Ok(())
    }

    fn aux(&mut self, name: Text<'_>, value: Text<'_>, out: &mut impl Out) -> Result<(), ConvertError> {
        let mut field = Vec::new();
        name.append_to(&mut field)?;
        let mut text = Vec::new();
        match field.as_slice() {
            b"lua" => {
                value.append_to(&mut text)?;
                let meta = CommandMeta { slot: Slot(0), db: DbIndex(0), class: Class::Blind, all_nodes: true };
                Command::begin(out, meta, 3, b"$6\r\nSCRIPT\r\n").bulk(b"LOAD").bulk(&text).end();
                self.tally.scripts_loaded += 1;
            }
            b"search-index" | b"search-synonyms" => {
                value.append_to(&mut text)?;
                let what = if field == b"search-index" { What::SearchIndex } else { What::SearchSynonyms };
                self.tally.list_not_carried(DbIndex(0), &text, what, Action::Skip, 1);
            }
            b"df-ver" => {
                value.append_to(&mut text)?;
                self.source_version = Some(escape::for_message(&text));
            }
            // Unknown fields are to be ignored (wire 2.4).
            _ => {}
        }
        Ok(())
    }

    fn open_object(&mut self, id: ObjectId, meta: &KeyMeta<'_>, form: Form) {
        let slot = Key::of(meta, &self.plan).slot;
        let KeyMeta { db, expire_at_ms, object_type, .. } = *meta;
        self.open.push(OpenObject { id, key: meta.key.to_vec(), db, slot, expire_at_ms, object_type, form });
    }

    #[inline]
    fn key_read(&mut self, meta: &KeyMeta<'_>) -> TypeClass {
        let class = TypeClass::of(meta.object_type);
        let counts = self.tally.of_mut(class);
        counts.keys_read += 1;
        counts.bytes_read += meta.key.len() as u64;
        self.tally.sticky_dropped += u64::from(meta.sticky);
        self.tally.memcached_flags_dropped += u64::from(meta.memcached_flags.is_some());
        class
    }

    #[inline]
    fn sent(&mut self, class: TypeClass, sent: Sent) {
        let counts = self.tally.of_mut(class);
        match sent {
            Sent::Restored { elements } => {
                counts.keys_written += 1;
                counts.restores += 1;
                counts.elements_written += elements;
            }
            Sent::ByCommands { elements } => {
                counts.keys_written += 1;
                counts.elements_written += elements;
            }
            Sent::Empty => counts.keys_expired += 1,
            Sent::Skipped => counts.keys_skipped += 1,
        }
    }
}

impl OpenObject {
    fn bytes_kept(&self) -> usize {
        match &self.form {
            Form::Stream(stream) => stream.bytes_kept(),
            _ => 0,
        }
    }
}

/// The string of a body in the two shortest raw forms (wire 0.2), which nearly all strings have: a quarter of the time of
/// a short SET would go into the general way. Anything else, malformed or not, is `None` and goes that way.
#[inline]
fn short_raw(body: &[u8]) -> Option<&[u8]> {
    let (len, text) = match body {
        [len @ 0x00..=0x3f, text @ ..] => (usize::from(*len), text),
        [high @ 0x40..=0x7f, low, text @ ..] => (usize::from(high & 0x3f) << 8 | usize::from(*low), text),
        _ => return None,
    };
    (text.len() == len).then_some(text)
}

/// A string beyond what the target takes: by policy an error, or left out. `None`: it fits.
#[inline]
fn too_long(
    scope: ChunkScope<'_>,
    len: u64,
    out: &mut impl Out,
    tally: &mut Tally,
) -> Result<Option<Sent>, ConvertError> {
    if len <= scope.plan.capabilities.bulk_bytes_max {
        return Ok(None);
    }
    match scope.plan.action(Kind::LargeString) {
        Action::Refuse => Err(unsupported(scope.flow, &scope.key, Kind::LargeString, scope.plan)),
        action => Ok(Some(json::skip(&scope.key, Kind::LargeString, action, out, tally))),
    }
}

/// Counts and lists expiries of fields or members that were dropped.
pub(super) fn expiries_dropped(tally: &mut Tally, key: &Key<'_>, object_type: ObjectType, count: u64) {
    if count > 0 {
        let kind = if object_type == ObjectType::SetExpiry { Kind::MemberExpiry } else { Kind::FieldExpiry };
        tally.list_not_carried(key.db, key.bytes, What::Kind(kind), Action::Drop, count);
    }
}

/// The error for a thing that the policy refuses.
#[cold]
pub(super) fn unsupported(flow: FlowId, key: &Key<'_>, kind: Kind, plan: &Plan) -> ConvertError {
    let target = &plan.capabilities;
    let detail = match kind {
        Kind::Json => format!("{target} has no JSON.SET"),
        Kind::Filters => "its bits mean nothing to another implementation".to_string(),
        Kind::FieldExpiry => format!("{target} has no HPEXPIREAT; Redis 7.4 and Valkey 9.0 have it"),
        Kind::MemberExpiry => "no Redis or Valkey has expiries of set members".to_string(),
        Kind::LargeString => {
            let bytes = target.bulk_bytes_max;
            format!("{target} takes strings of {bytes} bytes, by its proto-max-bulk-len or client-query-buffer-limit")
        }
        Kind::Command => format!("{target} has nothing like it"),
        Kind::DanglingPending => "it is too large for RESTORE, and XCLAIM needs the message".to_string(),
    };
    ConvertError::Unsupported { kind, db: key.db, key: key.for_message(), flow, detail: detail.into() }
}

#[cold]
fn unexpected(flow: FlowId, object: ObjectId) -> ConvertError {
    ConvertError::UnexpectedRun { flow, object: object.0 }
}

#[cold]
fn wrong_length(scope: ChunkScope<'_>, missing: i64) -> ConvertError {
    ConvertError::WrongLength { flow: scope.flow, db: scope.key.db, key: scope.key.for_message(), missing }
}
