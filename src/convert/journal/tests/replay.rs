//! Recorded flows, snapshot and journal, replayed into real servers and compared with what the source held.
//!
//! Decoder, converter and translator together, without the engine: one command at a time.

use super::super::*;
use super::captures::{Recorded, all_records, flow_bytes, records};
use super::server::{Server, binaries, now_ms};
use super::support::*;
use crate::convert::{Converter, Limits, Plan};
use crate::dragonfly::event::{Codec, Event};
use crate::dragonfly::stream::{self, Progress, StreamDecoder};
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// A flow's converter and translator, and what they write to.
struct Flow {
    number: u64,
    flows: u64,
    converter: Converter,
    translator: JournalTranslator,
    suspects: Suspects,
    blobs: u64,
}

impl Flow {
    fn owns(&self, key: &[u8]) -> bool {
        twox_hash::XxHash64::oneshot(120_577_240_643, key) % self.flows == self.number
    }

    fn record(&mut self, server: &mut Server, record: &Recorded) -> Outcome {
        let args: Vec<&[u8]> = record.args.iter().map(Vec::as_slice).collect();
        if stray_candidate(&args).is_some_and(|key| !self.owns(key)) {
            return Outcome::Dropped(DropReason::NoEffect);
        }
        let mut sent = Sent::default();
        let Self { translator, converter, .. } = self;
        let outcome = translator.command(record.db, record.txid, &args, now_ms(), converter, &mut sent).unwrap();
        send(server, &sent);
        outcome
    }

    fn event(&mut self, server: &mut Server, event: &Event<'_>) {
        let mut sent = Sent::default();
        match event {
            Event::JournalBlob { record } => {
                self.blobs += 1;
                for record in records(record) {
                    let args: Vec<&[u8]> = record.args.iter().map(Vec::as_slice).collect();
                    self.suspects.record(record.db, &args, false).unwrap();
                    self.record(server, &record);
                }
            }
            Event::Whole { meta, .. } if !self.owns(meta.key) => {}
            Event::Begin { object, meta, .. } if !self.owns(meta.key) => self.converter.ignore(*object, meta),
            event => {
                if let Event::Whole { meta, .. } | Event::Begin { meta, .. } = event {
                    self.suspects.settled(meta.db, meta.key);
                }
                self.converter.event(event, now_ms(), &mut sent).unwrap();
            }
        }
        send(server, &sent);
    }

    fn snapshot(&mut self, server: &mut Server, bytes: &[u8]) {
        let limits = stream::Limits {
            whole_bytes_max: 64 << 20,
            run_bytes_max: 1 << 20,
            atom_bytes_max: 64 << 20,
            key_bytes_max: 1 << 20,
            open_objects_max: 1000,
        };
        let mut decoder = StreamDecoder::new(FlowId(0), limits);
        let mut rest = bytes;
        loop {
            let (blob, consumed, ended) = match decoder.next(rest).unwrap() {
                Progress::NeedMore { .. } => panic!("the recording ends inside the snapshot"),
                Progress::Event { event: Event::Compressed { codec, frame }, consumed } => {
                    (Some(unpack(codec, frame)), consumed, false)
                }
                Progress::Event { event, consumed } => {
                    self.event(server, &event);
                    (None, consumed, matches!(event, Event::Eof { .. }))
                }
            };
            rest = &rest[consumed..];
            if let Some(content) = blob {
                decoder.enter_blob().unwrap();
                let mut inner = content.as_slice();
                while let Progress::Event { event, consumed } = decoder.next(inner).unwrap() {
                    self.event(server, &event);
                    inner = &inner[consumed..];
                }
                decoder.leave_blob(inner).unwrap();
            }
            if ended {
                return;
            }
        }
    }
}

fn unpack(codec: Codec, frame: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    match codec {
        Codec::Zstd => content = zstd::decode_all(frame).unwrap(),
        Codec::Lz4 => drop(lz4_flex::frame::FrameDecoder::new(frame).read_to_end(&mut content).unwrap()),
    }
    content
}

fn send(server: &mut Server, sent: &Sent) {
    for (meta, bytes) in &sent.commands {
        server.select(meta.db);
        if let Some(error) = server.send(bytes).strip_prefix('-') {
            let meaning = replies::error_meaning(&strings(bytes)[0], error.as_bytes(), false);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
            assert_ne!(meaning, replies::ErrorMeaning::Unexpected, "{error}: {shown}");
        }
    }
}

/// Every recording ends as its `truth.jsonl`, as far as the server can hold it. Needs the recordings, and `truth.py` beside them.
#[test]
fn recordings_end_at_the_truth() {
    for (folder, journals) in all_records() {
        let truth_py = folder.join("../../tools/truth.py");
        if !truth_py.is_file() {
            continue;
        }
        for binary in binaries() {
            let mut server = Server::start(&binary);
            let capabilities = server.capabilities();
            replay(&mut server, &capabilities, &folder, &journals);
            let mut compare = Command::new("python3");
            compare.arg(&truth_py).args([
                "--port",
                &server.port.to_string(),
                "--skip-types",
                "opaque,json",
                "--compare",
            ]);
            compare.arg(folder.join("truth.jsonl"));
            if !capabilities.field_expiry {
                compare.arg("--no-field-ttl");
            }
            let output = compare.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            eprintln!("{} on {capabilities}: {text}{}", folder.display(), String::from_utf8_lossy(&output.stderr));
            assert!(text.contains(" 0 wrong"), "{text}");
        }
    }
}

/// All snapshots, then all journals up to each global command in turn.
fn replay(server: &mut Server, capabilities: &Capabilities, folder: &Path, journals: &[Vec<Recorded>]) {
    let plan = Arc::new(Plan::new(capabilities.clone(), skip_all(), Limits::default()).unwrap());
    let new = |number| Flow {
        number,
        flows: journals.len() as u64,
        converter: Converter::new(FlowId(0), plan.clone()),
        translator: JournalTranslator::new(FlowId(0), Arc::new(capabilities.clone()), Arc::new(skip_all()), 1 << 20),
        suspects: Suspects::new(1 << 24, None),
        blobs: 0,
    };
    let mut flows: Vec<Flow> = (0..journals.len() as u64).map(new).collect();
    for (flow, bytes) in flows.iter_mut().zip(flow_bytes(folder)) {
        flow.snapshot(server, &bytes);
        eprintln!("flow {}: {} journal blobs, {} suspects", flow.number, flow.blobs, flow.suspects.drain().len());
    }
    let mut rest: Vec<_> = journals.iter().map(|records| records.iter()).collect();
    loop {
        let mut global = None;
        for (flow, records) in flows.iter_mut().zip(&mut rest) {
            for record in records {
                if let Outcome::Global(command) = flow.record(server, record) {
                    global = Some(command);
                    break;
                }
            }
        }
        match global {
            None => return,
            Some(GlobalCommand::FlushDb(db)) => {
                server.select(db);
                server.ask("FLUSHDB");
            }
            Some(_) => drop(server.ask("FLUSHALL")),
        }
    }
}
