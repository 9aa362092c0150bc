//! Generated sources: every form of new and old releases, every compression, writes during the sync, strays, silent
//! deletes, expiries, several databases. Migrated by the program, the target holds what the generator's model says.

mod common;

use common::{migrate, server};
use df2redis::lab::generate::{Compression, Generator, Release, Spec};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::ServerKind;
use df2redis::lab::truth;

const MIX: &str = "string:100B=200,string:3000B=20,string:200KiB=5,int=200,json:200B=20,list:5x8=30,list:500x20=10,list:20x9000=3,\
                   set:0x1=2,set:9x9=30,set:200x9=10,intset:50x1000=10,intset:50x1=5,intset:50x100000000=5,hash:20x8=30,hash:500x30=10,\
                   hash:0x0=2,zset:20x8=30,zset:500x30=10,stream:20x8=10,stream:500x30=3,stream:0x0=4,hashttl:100x8=10,setttl:100x8=10,\
                   hashttl:1x8=20,setttl:1x5=20,bloom=1,bloom:100x100=2,cms=1,topk=1,cuckoo=1,cuckoo:60x60=2";

fn check(kind: ServerKind, spec: Spec, more: &[&str]) {
    let label = format!("{kind:?} {:?} {:?} tagged {}", spec.compression, spec.release, spec.tagged);
    let Some(server) = server(kind) else { return };
    let dir = tempfile::tempdir().unwrap();
    let truth_file = dir.path().join("truth.jsonl");
    let (strays, deletes) = (spec.strays_count > 0, spec.omitted_deletes_count > 0);
    let (master, model) = Generator::start(spec, MasterOptions::default()).unwrap();
    let mut args = vec!["--on-unsupported", "skip"];
    args.extend_from_slice(more);
    let run = migrate(master.port(), server.port(), &args);
    assert_eq!(run.code(), 0, "{label}: {}\n{}", run.message(), run.stderr);
    assert_eq!(master.violations(), [], "{label}");
    // The model knows the end only when everything was generated.
    model.write_truth(&truth_file).unwrap();
    let mut compare = vec!["--skip-types", "json,opaque"];
    if matches!(kind, ServerKind::Redis7 | ServerKind::Valkey8) {
        compare.push("--no-field-ttl");
    }
    if let Err(differences) = truth::compare(server.port(), &truth_file, &compare) {
        panic!("{label}:\n{differences}\n{}", run.stderr);
    }
    assert!(!strays || run.report["counters"]["strays_dropped"].as_u64().unwrap() > 0, "{label}: no stray was dropped");
    assert!(!deletes || run.report["suspects"]["removed"].as_u64().unwrap() > 0, "{label}: no silent delete was found");
}

/// A source of everything.
fn all(seed: u64, compression: Compression, release: Release, tagged: bool) -> Spec {
    Spec {
        seed,
        flows_count: 3,
        compression,
        tagged,
        chunk_bytes: 4 << 10,
        databases: vec![0, 3, 15],
        expire_fraction: 0.2,
        expired_fraction: 0.05,
        sticky_fraction: 0.05,
        journal_ratio: 0.5,
        strays_count: 4,
        omitted_deletes_count: 3,
        early_writes_count: 5,
        release,
        ..Spec::of(MIX).unwrap()
    }
}

const COMPRESSIONS: [Compression; 4] = [Compression::None, Compression::Lzf, Compression::Zstd, Compression::Lz4];

#[test]
fn forms_of_new_releases() {
    for (seed, compression) in COMPRESSIONS.into_iter().enumerate() {
        check(ServerKind::Redis7, all(seed as u64, compression, Release::New, true), &[]);
    }
}

#[test]
fn forms_of_old_releases() {
    for (seed, compression) in COMPRESSIONS.into_iter().enumerate() {
        check(ServerKind::Redis7, all(10 + seed as u64, compression, Release::Old, false), &[]);
    }
}

#[test]
fn forms_of_both_into_newer_targets() {
    for kind in [ServerKind::Redis8, ServerKind::Valkey8, ServerKind::Valkey9] {
        check(kind, all(20, Compression::Lz4, Release::New, true), &[]);
        check(kind, all(21, Compression::None, Release::Old, false), &[]);
    }
}

#[test]
fn by_commands_and_in_tiny_buffers() {
    let tiny = ["--restore-bytes-max", "64", "--rx-chunk", "64KiB", "--batch-bytes", "4KiB", "--borrow-bytes", "64"];
    check(ServerKind::Redis7, all(30, Compression::Zstd, Release::New, true), &tiny);
    check(ServerKind::Redis7, all(31, Compression::Lzf, Release::Old, false), &tiny);
    check(ServerKind::Redis8, all(32, Compression::Lz4, Release::New, true), &tiny);
}
