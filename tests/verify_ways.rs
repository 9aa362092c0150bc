//! `verify` beyond plain servers at rest: over TLS, beside a job that holds expiries back, from a live source that is
//! followed, and against a cluster.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::{Run, program, server, server_with, start};
use df2redis::convert::near::SHIFT_MS;
use df2redis::lab::client::Client;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(200);

/// Compares `source` with `target`, given as URLs.
fn verify(source: &str, target: &str, more: &[String]) -> Run {
    let mut command = program(&["verify", "--source", source, "--target", target, "--output", "json"]);
    command.args(["--progress", "off", "--rate", "off", "--on-unsupported", "skip", "--connect-timeout", "60s"]);
    if !more.iter().any(|arg| arg == "--lag-max") {
        command.args(["--lag-max", "1s"]);
    }
    command.args(more);
    start(command).wait_for(PATIENCE)
}

/// The lines of a run, but for the summary, which is the last.
#[track_caller]
fn lines(run: &Run) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}\n{}", run.stderr));
    let mut lines: Vec<Value> = run.stdout.lines().map(parse).collect();
    lines.pop().unwrap_or_else(|| panic!("no output\n{}", run.stderr));
    lines
}

/// `key kind` of each line.
#[track_caller]
fn found(run: &Run) -> BTreeSet<String> {
    let lines = lines(run);
    let name = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let found: BTreeSet<String> = lines.iter().map(|l| format!("{} {}", name(l, "key"), name(l, "kind"))).collect();
    assert_eq!(found.len(), lines.len(), "a key was told twice: {lines:#?}");
    found
}

#[track_caller]
fn expect_found(run: &Run, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|text| text.to_string()).collect();
    assert_eq!(found(run), wanted, "{:#?}\n{}", lines(run), run.stderr);
    run.expect_code(if wanted.is_empty() { 0 } else { 10 });
}

#[track_caller]
fn run_all(client: &mut Client, commands: &[&str]) {
    for command in commands {
        client.run(command).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| arg.to_string()).collect()
}

/// A redis-server with a TLS port that wants a certificate from its clients.
fn tls_server(certs: &Certs) -> Option<(Server, u16)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = ServerOptions::default()
        .config("tls-port", &port.to_string())
        .config("tls-cert-file", &certs.path("server.pem"))
        .config("tls-key-file", &certs.path("server.key"))
        .config("tls-ca-cert-file", &certs.path("ca.pem"));
    server_with(ServerKind::Redis7, options).map(|server| (server, port))
}

fn side_args(side: &str, certs: &Certs, ca: &str) -> Vec<String> {
    let files = [("ca", ca), ("cert", "client.pem"), ("key", "client.key")];
    files.iter().flat_map(|(name, file)| [format!("--{side}-tls-{name}"), certs.path(file)]).collect()
}

/// Values of any size come through whole on both sides, and a repair goes the same way; whoever is not trusted is not read.
#[test]
fn both_sides_are_read_over_tls() {
    let certs = Certs::new();
    let (Some((source, source_port)), Some((target, target_port))) = (tls_server(&certs), tls_server(&certs)) else {
        eprintln!("skipped: no redis-server that speaks TLS");
        return;
    };
    let script = "for i=1,30000 do local v=string.rep(i,9) redis.call('HSET','H','f'..i,v) redis.call('SET','s'..i%4000,v) end \
                  redis.call('SET','S',string.rep('x',5000000)) return 1";
    for server in [&source, &target] {
        server.client().unwrap().ask(&["EVAL", script, "0"]).unwrap();
    }
    let urls = (format!("rediss://127.0.0.1:{source_port}"), format!("rediss://127.0.0.1:{target_port}"));
    let both = |more: &[&str]| {
        [side_args("source", &certs, "ca.pem"), side_args("target", &certs, "ca.pem"), strings(more)].concat()
    };
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &[]);

    run_all(&mut target.client().unwrap(), &["HSET H f29999 other", "SETRANGE S 4999999 y", "DEL s7", "SET new v"]);
    let wanted = ["H value", "S value", "s7 missing", "new extra"];
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &wanted);
    let run = verify(&urls.0, &urls.1, &both(&["--repair", "mirror"]));
    assert_eq!((run.code(), found(&run).len()), (0, wanted.len()), "{}", run.stderr);
    expect_found(&verify(&urls.0, &urls.1, &both(&[])), &[]);

    // One side alone; and without the trust, or what the server asks for.
    let plain_source = format!("redis://127.0.0.1:{}", source.port());
    expect_found(&verify(&plain_source, &urls.1, &side_args("target", &certs, "ca.pem")), &[]);
    let ca_only = vec!["--target-tls-ca".into(), certs.path("ca.pem")];
    for (source, args, code, text) in [
        (&urls.0, [side_args("source", &certs, "other-ca.pem"), ca_only.clone()].concat(), 4, "--source-tls-ca"),
        (&plain_source, side_args("target", &certs, "other-ca.pem"), 5, "--target-tls-ca"),
        (&plain_source, ca_only, 5, "certificate"),
        (&format!("redis://127.0.0.1:{source_port}"), side_args("target", &certs, "ca.pem"), 4, "rediss://"),
    ] {
        let run = verify(source, &urls.1, &args);
        assert_eq!(run.code(), code, "{}", run.stderr);
        assert!(run.stderr.contains(text), "{}", run.stderr);
    }
}

/// What a job that lags writes later than it is, is read as it is meant.
#[test]
fn held_expiries_are_no_differences() {
    for (kind, fields_expire) in [(ServerKind::Redis7, false), (ServerKind::Redis8, true), (ServerKind::Valkey9, true)]
    {
        let (Some(source), Some(target)) = (server(kind), server(kind)) else { continue };
        let urls = [&source, &target].map(|server| format!("redis://127.0.0.1:{}", server.port()));
        let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
        let near = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let near = near + 3_600_000;
        let held = near + SHIFT_MS;
        let set = |at: i64, wrong: i64| {
            vec![
                format!("SET held v PXAT {at}"),
                format!("SET wrong v PXAT {}", at + wrong),
                "RPUSH list a b".into(),
                format!("PEXPIREAT list {at}"),
                "HSET hash f 1 g 2".into(),
                "SET never v".into(),
            ]
        };
        let mut wanted = vec!["wrong expiry"];
        let (mut source_lines, mut target_lines) = (set(near, 0), set(held, 20_000));
        if fields_expire {
            source_lines.push(format!("HPEXPIREAT hash {near} FIELDS 1 f"));
            target_lines.push(format!("HPEXPIREAT hash {held} FIELDS 1 f"));
            source_lines.extend(["HSET bad f 1".into(), format!("HPEXPIREAT bad {near} FIELDS 1 f")]);
            target_lines.extend(["HSET bad f 1".into(), format!("HPEXPIREAT bad {} FIELDS 1 f", held - 20_000)]);
            wanted.push("bad field_expiry");
        }
        run_all(&mut at_source, &source_lines.iter().map(String::as_str).collect::<Vec<_>>());
        run_all(&mut at_target, &target_lines.iter().map(String::as_str).collect::<Vec<_>>());
        let run = verify(&urls[0], &urls[1], &[]);
        expect_found(&run, &wanted);
        // Told as it is meant.
        let line = lines(&run).into_iter().find(|line| line["key"] == "wrong").unwrap();
        assert_eq!(line["target"], (near + 20_000).to_string());
        // A source that has such an expiry means it.
        run_all(&mut at_source, &[&format!("SET far v PXAT {held}")]);
        run_all(&mut at_target, &[&format!("SET far v PXAT {held}")]);
        expect_found(&verify(&urls[0], &urls[1], &[]), &wanted);
    }
}
