//! The stable part of every recording, translated record by record: nothing unexpected may be refused.
//!
//! The recordings lie in `DF2REDIS_CAPTURES`, or where the project keeps them; skipped with a word where they are not. The
//! reader of journal bytes below is this test's own, written from wire 4.1, so that it owes nothing to the decoder.

use super::super::*;
use super::support::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn captures() -> Vec<PathBuf> {
    let listed = std::env::var_os("DF2REDIS_CAPTURES").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let known = [root.join("tests/data/captures"), root.join("../../shared/captures")];
    let dir = listed.into_iter().chain(known).find(|dir| dir.is_dir());
    let entries = dir.into_iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("meta.json").is_file()).collect();
    folders.sort();
    folders
}

/// One record of a flow's stable part.
pub struct Recorded {
    pub db: DbIndex,
    pub txid: u64,
    pub args: Vec<Vec<u8>>,
}

/// The commands behind the token of `flow-N.bin`.
fn stable_records(bytes: &[u8], token: &str) -> Vec<Recorded> {
    let at = memchr::memmem::rfind(bytes, token.as_bytes()).unwrap() + token.len();
    records(&bytes[at..])
}

/// The commands of a piece of journal.
pub fn records(mut rest: &[u8]) -> Vec<Recorded> {
    let mut records = Vec::new();
    let mut db = DbIndex(0);
    while let Some((opcode, after)) = rest.split_first() {
        rest = after;
        match opcode {
            6 => db = DbIndex(u32::try_from(packed(&mut rest)).unwrap()),
            9..=11 => {
                let txid = packed(&mut rest);
                packed(&mut rest);
                let count = packed(&mut rest);
                packed(&mut rest);
                let args = (0..count).map(|_| {
                    let length = usize::try_from(packed(&mut rest)).unwrap();
                    let (arg, after) = rest.split_at(length);
                    rest = after;
                    arg.to_vec()
                });
                let args = args.collect();
                records.push(Recorded { db, txid, args });
            }
            12 => {
                packed(&mut rest);
                packed(&mut rest);
            }
            13 => {}
            15 => drop(packed(&mut rest)),
            other => panic!("opcode {other}"),
        }
    }
    records
}

/// The bytes of each flow.
pub fn flow_bytes(folder: &Path) -> Vec<Vec<u8>> {
    (0..).map_while(|flow| std::fs::read(folder.join(format!("flow-{flow}.bin"))).ok()).collect()
}

fn packed(rest: &mut &[u8]) -> u64 {
    let first = rest[0];
    let (length, number) = match first >> 6 {
        0 => (1, u64::from(first)),
        1 => (2, u64::from(first & 0x3f) << 8 | u64::from(rest[1])),
        _ if first == 0x80 => (5, u64::from(u32::from_be_bytes(rest[1..5].try_into().unwrap()))),
        _ => (9, u64::from_be_bytes(rest[1..9].try_into().unwrap())),
    };
    *rest = &rest[length..];
    number
}

/// Folder and records of each flow.
pub fn all_records() -> Vec<(PathBuf, Vec<Vec<Recorded>>)> {
    let of = |folder: PathBuf| {
        let meta = std::fs::read_to_string(folder.join("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let tokens = meta["flows"].as_array().unwrap().iter().map(|of| of["eof_token"].as_str().unwrap());
        let records =
            flow_bytes(&folder).iter().zip(tokens).map(|(bytes, token)| stable_records(bytes, token)).collect();
        (folder, records)
    };
    captures().into_iter().map(of).collect()
}

#[test]
fn every_recorded_command_is_translated() {
    let recordings = all_records();
    if recordings.is_empty() {
        eprintln!("skipped: no recordings");
    }
    for target in ["6.2", "7.0", "8.0", "v9.0", "7.0c", "stack"] {
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for (folder, flows) in &recordings {
            for (flow, records) in flows.iter().enumerate() {
                let flow = FlowId(u32::try_from(flow).unwrap());
                let mut translator =
                    JournalTranslator::new(flow, Arc::new(capabilities(target)), Arc::new(skip_all()), 1 << 24);
                for record in records {
                    let args: Vec<&[u8]> = record.args.iter().map(Vec::as_slice).collect();
                    let (result, sent) = run_in(&mut translator, record.db, record.txid, &args);
                    let shown = || args.iter().map(|arg| arg.escape_ascii().to_string()).collect::<Vec<_>>().join(" ");
                    let outcome = result.unwrap_or_else(|error| panic!("{}: {error}: {}", folder.display(), shown()));
                    let what = match outcome {
                        Outcome::Written { .. } if sent.commands.len() == 1 => "written".to_owned(),
                        Outcome::Written { commands } => format!("written as {commands}"),
                        Outcome::NotCarried { .. } if !target.ends_with('c') => panic!("{}", shown()),
                        other => format!("{other:?}"),
                    };
                    *seen.entry(format!("{} {what}", String::from_utf8_lossy(args[0]))).or_default() += 1;
                }
                assert_eq!(translator.notes().left_out(), 0);
            }
        }
        if std::env::var_os("DF2REDIS_SHOW").is_some() {
            eprintln!("{target}: {seen:#?}");
        }
        let not_as_sent = |what: &String| what.contains("LeftOut") && !what.contains("JSON.") && !what.contains("BF.");
        let unexpected: Vec<&String> = seen.keys().filter(|what| not_as_sent(what)).collect();
        eprintln!("{target}: {} records; left out: {unexpected:?}", seen.values().sum::<u64>());
    }
}
