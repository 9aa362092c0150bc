//! Recorded journals replayed into real servers, compared with what the source held.

use super::super::*;
use super::server::{Server, binaries, now_ms};
use super::support::*;
use crate::dragonfly::event::KeyMeta;
use std::process::Command;

/// Writes a value as RESTORE, as a stand-in for the converter: types that the server takes, the rest is left out.
struct AsRestore(Capabilities);

impl RestorePayload for AsRestore {
    fn restore<O: Out>(
        &mut self,
        meta: KeyMeta<'_>,
        body: &[u8],
        _now_ms: i64,
        out: &mut O,
    ) -> Result<Restored, Box<dyn std::error::Error + Send + Sync>> {
        let type_byte = meta.object_type as u8;
        if !self.0.restores(type_byte) {
            return Ok(Restored::LeftOut { kind: Kind::Command, commands: 0 });
        }
        let payload = [&[type_byte], body, &crate::redis::payload::footer(&[&[type_byte], body])].concat();
        let meta_of = CommandMeta { slot: Slot(0), db: meta.db, class: Class::Blind, all_nodes: false };
        let mut request = Request::open(out, meta_of, 6, "RESTORE");
        request.text(meta.key);
        request.number(meta.expire_at_ms.unwrap_or(0));
        request.text(&payload);
        request.word("REPLACE");
        request.word("ABSTTL");
        request.close();
        Ok(Restored::Written { commands: 1 })
    }
}

/// The journal workload of two recordings makes keys of its own (`j:...`): replayed alone, they must end as the source held
/// them. Needs the recordings, and `truth.py` beside them.
#[test]
fn recorded_journals_end_at_the_truth() {
    for (folder, flows) in super::captures::all_records() {
        let truth_py = folder.join("../../tools/truth.py");
        if !folder.ends_with("follow-lz4") && !folder.ends_with("follow-plain") || !truth_py.is_file() {
            continue;
        }
        for binary in binaries() {
            let mut server = Server::start(&binary);
            let capabilities = server.capabilities();
            replay(&mut server, &capabilities, &flows);
            let truth = std::fs::read_to_string(folder.join("truth.jsonl")).unwrap();
            let wanted: Vec<&str> = truth.lines().filter(|line| line.contains("\"key\": \"j:")).collect();
            let wanted_file = server.dir.path().join("truth.jsonl");
            std::fs::write(&wanted_file, wanted.join("\n")).unwrap();
            let mut compare = Command::new("python3");
            compare.arg(&truth_py).args([
                "--port",
                &server.port.to_string(),
                "--skip-types",
                "opaque,json",
                "--compare",
            ]);
            compare.arg(&wanted_file);
            if !capabilities.field_expiry {
                compare.arg("--no-field-ttl");
            }
            let output = compare.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            eprintln!("{} on {capabilities}: {text}{}", folder.display(), String::from_utf8_lossy(&output.stderr));
            let wrong: Vec<&str> = text.lines().filter(|line| line.contains(" j:")).collect();
            assert!(wrong.is_empty() && text.contains("keys wanted"), "{wrong:#?}");
        }
    }
}

/// All flows, up to each global command in turn.
fn replay(server: &mut Server, capabilities: &Capabilities, flows: &[Vec<super::captures::Recorded>]) {
    let mut payloads = AsRestore(capabilities.clone());
    let new = |flow| {
        let flow = FlowId(u32::try_from(flow).unwrap());
        JournalTranslator::new(flow, Arc::new(capabilities.clone()), Arc::new(skip_all()), 1 << 20)
    };
    let mut flows: Vec<_> = flows.iter().enumerate().map(|(flow, records)| (new(flow), flow, records.iter())).collect();
    let count = flows.len() as u64;
    loop {
        let mut global = None;
        for (translator, flow, records) in &mut flows {
            for record in records {
                let args: Vec<&[u8]> = record.args.iter().map(Vec::as_slice).collect();
                let owner = |key: &[u8]| twox_hash::XxHash64::oneshot(120_577_240_643, key) % count;
                if stray_candidate(&args).is_some_and(|key| owner(key) != *flow as u64) {
                    continue;
                }
                let mut sent = Sent::default();
                let outcome =
                    translator.command(record.db, record.txid, &args, now_ms(), &mut payloads, &mut sent).unwrap();
                server.ask(&format!("SELECT {}", record.db));
                for (_, bytes) in &sent.commands {
                    let reply = server.send(bytes);
                    let name = &strings(bytes)[0];
                    if let Some(error) = reply.strip_prefix('-') {
                        let meaning = replies::error_meaning(name, error.as_bytes(), false);
                        let shown = String::from_utf8_lossy(bytes);
                        assert_ne!(meaning, replies::ErrorMeaning::Unexpected, "{error}: {shown}");
                    }
                }
                if let Outcome::Global(command) = outcome {
                    global = Some(command);
                    break;
                }
            }
        }
        match global {
            None => return,
            Some(GlobalCommand::FlushDb(db)) => {
                server.ask(&format!("SELECT {db}"));
                server.ask("FLUSHDB");
            }
            Some(_) => drop(server.ask("FLUSHALL")),
        }
    }
}
