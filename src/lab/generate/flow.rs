//! The stream of one flow, made on the fly in bounded memory: its share of the keys, split objects interleaved, journal
//! blobs between, compressed as the spec says.

use super::entry::Entry;
use super::journal::Journal;
use super::model::Model;
use super::object::ObjectWriter;
use super::spec::{Compression, Kind, Release, Spec};
use crate::lab::encode::{self, BlobCodec};
use crate::lab::flow::FlowWriter;
use crate::lab::master::FlowFeed;
use crate::lab::rng::Rng;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;

/// Records gathered before they are sent (as one blob, where compressed).
const FLUSH_BYTES: usize = 64 << 10;
/// A blob's content, as the master bounds it.
const BLOB_BYTES_MIN: usize = 256;
const BLOB_BYTES_MAX: usize = 1 << 20;
/// Split objects open at once.
const OPEN_OBJECTS_MAX: usize = 4;

/// One flow of one registration.
pub struct GeneratedFlow {
    spec: Arc<Spec>,
    model: Arc<Model>,
    flow: usize,
    eof_token: String,
    rng: Rng,
    journal: Journal,
    /// Next key to look at: group and index.
    cursor: (usize, u64),
    /// Split objects: chunk id, group, writer.
    open: Vec<(u32, usize, ObjectWriter)>,
    last_id: u32,
    db: Option<u32>,
    /// Records not sent yet.
    pending: Vec<u8>,
    strays_left: usize,
    omitted_left: usize,
    early_left: usize,
}

impl GeneratedFlow {
    pub fn new(spec: Arc<Spec>, model: Arc<Model>, flow: usize, eof_token: String) -> Self {
        model.reset_flow(flow);
        Self {
            rng: Rng::new(spec.seed ^ 0xf10f ^ (flow as u64) << 32),
            journal: Journal::new(flow),
            strays_left: spec.strays_count,
            omitted_left: spec.omitted_deletes_count,
            early_left: spec.early_writes_count,
            spec,
            model,
            flow,
            eof_token,
            cursor: (0, 0),
            open: Vec::new(),
            last_id: 0,
            db: None,
            pending: Vec::new(),
        }
    }

    /// The next key of this flow. On the way, keys of other flows may become strays.
    fn next_entry(&mut self) -> Option<(usize, Entry)> {
        loop {
            let (group, index) = self.cursor;
            let shape = self.spec.mix.get(group)?;
            if index >= shape.count {
                self.cursor = (group + 1, 0);
                continue;
            }
            self.cursor = (group, index + 1);
            // The owner depends on the name alone: do not make the rest of a key that is not ours.
            let key = Entry::key(shape.kind, group, index);
            if encode::owner(&key, self.spec.flows_count) == self.flow {
                return Some((group, Entry::new(&self.spec, group, index)));
            }
            if self.strays_left > 0 && shape.kind == Kind::String {
                self.strays_left -= 1;
                let entry = Entry::new(&self.spec, group, index);
                self.stray(&entry);
            }
        }
    }

    /// An old copy of another flow's key: as a snapshot record, or by the journal.
    fn stray(&mut self, entry: &Entry) {
        if self.strays_left.is_multiple_of(2) {
            self.select(entry.db);
            let attributes = encode::Attributes::default();
            encode::key_head(&mut self.pending, attributes, encode::types::STRING, &entry.key, false);
            encode::raw_string(&mut self.pending, b"HYLL stray");
            self.last_id += 1;
        } else {
            self.journal.stray(entry.db, &entry.key, &mut self.pending);
        }
    }

    fn select(&mut self, db: u32) {
        if self.db != Some(db) {
            encode::select_db(&mut self.pending, db);
            self.db = Some(db);
        }
    }

    fn begin(&mut self, group: usize, entry: Entry, out: &mut FlowWriter) -> io::Result<()> {
        self.last_id += 1;
        if self.early_left > 0 && entry.group.kind == Kind::String && entry.is_alive() {
            self.early_left -= 1;
            self.journal.early_write(&entry, &mut self.pending);
        }
        self.select(entry.db);
        let mut object = ObjectWriter::new(entry, self.spec.release, self.spec.compression == Compression::Lzf);
        if object.is_huge_string() {
            return self.huge_string(&object, out);
        }
        let mut first = Vec::new();
        if object.write(&mut first, self.spec.chunk_bytes) {
            self.pending.extend_from_slice(&first);
            self.journal.sent(group, &object.entry, &mut self.rng);
        } else if self.spec.tagged {
            encode::tagged_chunk(&mut self.pending, self.last_id, &first);
            self.open.push((self.last_id, group, object));
        } else {
            // The parts of one object follow each other, uncompressed (wire 2.6).
            self.flush(out, true)?;
            let mut done = false;
            while !done {
                out.write(&first)?;
                first.clear();
                done = object.write(&mut first, self.spec.chunk_bytes);
            }
            out.write(&first)?;
            self.journal.sent(group, &object.entry, &mut self.rng);
        }
        Ok(())
    }

    /// Never cut, never compressed: sent block by block.
    fn huge_string(&mut self, object: &ObjectWriter, out: &mut FlowWriter) -> io::Result<()> {
        self.flush(out, true)?;
        object.huge_string_head(&mut self.pending);
        self.flush(out, false)?;
        let mut left = object.entry.group.element_bytes;
        let block = object.entry.block(left);
        while left > 0 {
            let take = left.min(block.len() as u64);
            out.write(&block[..take as usize])?;
            left -= take;
        }
        Ok(())
    }

    /// One more chunk of one of the open objects.
    fn go_on(&mut self) {
        let at = self.rng.below(self.open.len() as u64) as usize;
        let Some((id, group, object)) = self.open.get_mut(at) else { return };
        let mut chunk = Vec::new();
        let done = object.write(&mut chunk, self.spec.chunk_bytes);
        encode::tagged_chunk(&mut self.pending, *id, &chunk);
        if done {
            self.journal.sent(*group, &object.entry, &mut self.rng);
            self.open.swap_remove(at);
        }
    }

    fn journal_records(&mut self) {
        if self.rng.chance(self.spec.journal_ratio) {
            self.journal.some_write(&self.spec, &self.model, &mut self.rng, &mut self.pending);
        }
        if self.omitted_left > 0 && self.rng.chance(0.2) {
            self.omitted_left -= 1;
            self.journal.omitted_delete(&self.spec, &mut self.pending);
        }
    }

    /// Sends the gathered records, as a blob where that gains 5 percent.
    fn flush(&mut self, out: &mut FlowWriter, compress: bool) -> io::Result<()> {
        let compression = if compress { self.spec.compression } else { Compression::None };
        let sent = out.write(&packed_for(compression, &self.pending)?);
        self.pending.clear();
        sent
    }
}

/// Records as they are sent: as a blob where the compression mode asks for one and that gains 5 percent.
pub(in crate::lab) fn packed_for(compression: Compression, records: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    let codec = match compression {
        Compression::Zstd => BlobCodec::Zstd,
        Compression::Lz4 => BlobCodec::Lz4,
        Compression::None | Compression::Lzf => return Ok(records.into()),
    };
    if !(BLOB_BYTES_MIN..=BLOB_BYTES_MAX).contains(&records.len()) {
        return Ok(records.into());
    }
    let mut blob = Vec::new();
    encode::compressed_blob(&mut blob, codec, records)?;
    Ok(if blob.len() * 100 <= records.len() * 95 { blob.into() } else { records.into() })
}

/// Header and AUX fields of a flow.
pub(in crate::lab) fn prelude(spec: &Spec, flow: usize, out: &mut Vec<u8>) {
    encode::header(out);
    let old = spec.release == Release::Old;
    encode::aux(out, "redis-ver", if old { b"999.999.999" } else { b"6.2.11" });
    if !old {
        encode::aux(out, "df-ver", b"df-v1.40.1");
    }
    encode::aux(out, "redis-bits", b"64");
    encode::aux(out, "ctime", b"1767225600");
    encode::aux(out, "used-mem", b"123456789");
    encode::aux(out, "aof-preamble", b"0");
    if flow == 0 {
        encode::aux(out, "lua", b"return redis.call('GET', KEYS[1])");
        encode::aux(out, "search-index", b"idx ON HASH PREFIX 1 doc: SCHEMA title TEXT");
        if !old {
            encode::aux(out, "shard-count", spec.flows_count.to_string().as_bytes());
            encode::aux(out, "table-mem", b"1000000");
        }
    }
    if !old {
        encode::aux(out, "shard-id", flow.to_string().as_bytes());
    }
}

impl FlowFeed for GeneratedFlow {
    fn snapshot(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        prelude(&self.spec, self.flow, &mut self.pending);
        self.flush(out, false)?;
        let mut exhausted = false;
        while !exhausted || !self.open.is_empty() {
            let full = self.open.len() >= OPEN_OBJECTS_MAX || exhausted;
            if full || (!self.open.is_empty() && self.rng.chance(0.5)) {
                self.go_on();
            } else {
                match self.next_entry() {
                    Some((group, entry)) => self.begin(group, entry, out)?,
                    None => exhausted = true,
                }
            }
            self.journal_records();
            if self.pending.len() >= FLUSH_BYTES {
                self.flush(out, true)?;
            }
        }
        while self.omitted_left > 0 {
            self.omitted_left -= 1;
            self.journal.omitted_delete(&self.spec, &mut self.pending);
        }
        out.announce_full_sync_end();
        encode::full_sync_end(&mut self.pending);
        self.flush(out, true)
    }

    fn finish(&mut self, out: &mut FlowWriter) -> io::Result<()> {
        // Writes that came between FULLSYNC_END and STARTSTABLE.
        let count = if self.spec.journal_ratio > 0.0 { 20 } else { 0 };
        for _ in 0..count {
            self.journal.some_write(&self.spec, &self.model, &mut self.rng, &mut self.pending);
        }
        encode::journal_offset(&mut self.pending, self.journal.next_lsn);
        self.flush(out, true)?;
        encode::eof(&mut self.pending);
        self.pending.extend_from_slice(self.eof_token.as_bytes());
        self.flush(out, false)
    }

    fn stable(&mut self, _: &mut FlowWriter) -> io::Result<()> {
        Ok(())
    }
}
