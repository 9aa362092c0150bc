//! TLS to both sides: what arrives is equal, whatever the borders of records and buffers; a lost connection costs nothing;
//! whoever is not trusted gets nothing, and the message says why. The target is a real redis-server with OpenSSL, the
//! source a simulated one behind a TLS proxy.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::{program, server_with, start};
use df2redis::lab::flow::{Faults, Pieces};
use df2redis::lab::generate::{Generator, Spec, verify::verify};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::recordings;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::tls_proxy::{TlsProxy, TlsProxyOptions};
use df2redis::lab::truth;
use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A redis-server with a TLS port beside its plain one. It asks clients for a certificate, as is its default.
struct Target {
    server: Server,
}

impl Target {
    fn keys(&self) -> i64 {
        self.server.client().unwrap().run("DBSIZE").unwrap().int().unwrap()
    }

    fn empty(&self) {
        self.server.client().unwrap().run("FLUSHALL").unwrap();
    }
}

fn target(certs: &Certs, cert: &str, more: &[(&str, &str)]) -> Option<Target> {
    let mut options = certs.server(cert);
    for (directive, value) in more {
        options = options.config(directive, value);
    }
    match server_with(ServerKind::Redis7, options) {
        Some(server) => Some(Target { server }),
        None => {
            eprintln!("skipped: no redis-server that speaks TLS");
            None
        }
    }
}

fn job(job: &str, source: &str, target: &str, args: &[String]) -> Command {
    let mut command = program(&[job, "--source", source, "--target", target, "--output", "json", "--progress", "off"]);
    command.args(["--memory", "64MiB", "--on-unsupported", "skip", "--cores", "2"]).args(args);
    // The tests' machine may be busy with other things.
    if !args.iter().any(|arg| arg == "--connect-timeout") {
        command.args(["--connect-timeout", "60s"]);
    }
    command
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| arg.to_string()).collect()
}

fn plain_source(port: u16) -> String {
    format!("dragonfly://127.0.0.1:{port}")
}

fn tls_target(target: &Target) -> String {
    format!("rediss://127.0.0.1:{}", target.server.tls_port())
}

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(200);
const COMPARE: [&str; 3] = ["--skip-types", "json,opaque", "--no-field-ttl"];
const TINY: [&str; 6] = ["--rx-chunk", "64KiB", "--batch-bytes", "4KiB", "--borrow-bytes", "64"];

#[test]
fn recordings_arrive_whole_at_a_target_over_tls() {
    let certs = Certs::new();
    for protocols in ["TLSv1.3", "TLSv1.2"] {
        let Some(target) = target(&certs, "server", &[("tls-protocols", protocols)]) else { return };
        let names = recordings::recording_names().unwrap();
        for (i, name) in names.iter().filter(|name| name.starts_with("snapshot-")).enumerate() {
            target.empty();
            let recording = recordings::recording(name).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let truth_file = recording.write_truth(dir.path()).unwrap();
            let master = Replay::start(recording, MasterOptions::default()).unwrap();
            let mut args = certs.to_target();
            if i % 2 == 0 {
                args.extend(strings(&TINY));
            }
            let run = start(job("migrate", &plain_source(master.port()), &tls_target(&target), &args)).wait();
            run.expect_code(0);
            assert_eq!(master.violations(), [], "{name}");
            if let Err(differences) = truth::compare(target.server.port(), &truth_file, &COMPARE) {
                panic!("{name}, {protocols}:\n{differences}\n{}", run.stderr);
            }
        }
    }
}

fn spec() -> Spec {
    Spec {
        seed: 5,
        flows_count: 3,
        chunk_bytes: 4 << 10,
        databases: vec![0, 3],
        expire_fraction: 0.1,
        journal_ratio: 0.5,
        ..Spec::of(
            "string:100B=300,string:3000B=50,string:200KiB=10,string:9MiB=2,int=100,list:20x9000=3,list:5000x20=1,set:200x9=10,\
             hash:500x30=10,zset:500x30=5,stream:50x6=5",
        )
        .unwrap()
    }
}

/// Small and large values, from a source over TLS into a target over TLS; the source's bytes come in records of any length.
#[test]
fn everything_arrives_whole_over_tls_on_both_sides() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    let pieces = Faults { pieces_edge_bytes: Some(4_000), ..Faults::default() };
    for (tls12, faults, more) in [
        (false, Faults::default(), &[][..]),
        (true, pieces.clone().pieces(Pieces::Seeded { max: 40, seed: 3 }), &TINY[..]),
        (false, pieces.pieces(Pieces::Fixed(1)), &["--rx-chunk", "64KiB", "--write", "sendmsg-zc"]),
    ] {
        target.empty();
        let (master, model) = Generator::start(spec(), MasterOptions { faults, ..MasterOptions::default() }).unwrap();
        let options = TlsProxyOptions {
            client_ca: Some(PathBuf::from(certs.path("ca.pem"))),
            tls12,
            key_update_every: (!tls12).then_some(7),
            ..certs.proxy("server")
        };
        let proxy = TlsProxy::start(master.port(), &options).unwrap();
        let mut args = certs.to_target();
        args.extend(certs.to_target().iter().map(|arg| arg.replace("--target-", "--source-")));
        args.extend(strings(more));
        let source = format!("dragonflys://localhost:{}", proxy.port());
        let run = start(job("migrate", &source, &tls_target(&target), &args)).wait_for(PATIENCE);
        run.expect_code(0);
        assert_eq!(master.violations(), []);
        assert!(proxy.sessions_count() >= 4, "control and three flows");
        let verdict = verify(&spec(), &model, &mut target.server.client().unwrap(), u64::MAX).unwrap();
        assert!(verdict.is_same(), "TLS 1.2 {tls12}: {verdict:?}\n{}", run.stderr);
    }
}

/// Connections cut anywhere, in the middle of records too: made again, and nothing is lost or applied twice.
#[test]
fn cut_connections_are_made_again_and_cost_nothing() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    for replies in [false, true] {
        target.empty();
        let (master, model) = Generator::start(spec(), MasterOptions::default()).unwrap();
        // The first connections are those of the control plane.
        let proxy = Proxy::start(target.server.tls_port(), move |n| match (n, replies) {
            (0, _) | (9.., _) => Faulty::default(),
            (n, true) => Faulty::cut_replies(2500 + n * 777),
            (n, false) => Faulty::cut_requests(5_000 + n * n * 20_011),
        })
        .unwrap();
        let mut args = certs.to_target();
        args.extend(strings(&["--connections", "1"]));
        let url = format!("rediss://127.0.0.1:{}", proxy.port());
        let run = start(job("migrate", &plain_source(master.port()), &url, &args)).wait_for(PATIENCE);
        run.expect_code(0);
        assert!(proxy.cuts_count() > 2, "{} cuts", proxy.cuts_count());
        let verdict = verify(&spec(), &model, &mut target.server.client().unwrap(), u64::MAX).unwrap();
        assert!(verdict.is_same(), "{verdict:?}\n{}", run.stderr);
    }
}

/// The journal is followed and acknowledged over TLS on both sides, through new keys and a cut of every connection, to the
/// target in the full sync and to the source in the stable part.
#[test]
fn a_journal_is_followed_over_tls() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    for (name, cut) in [("follow-lz4", false), ("follow-plain", true), ("follow-flushall", false)] {
        target.empty();
        let recording = recordings::recording(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let truth_file = recording.write_truth(dir.path()).unwrap();
        let wanted: Vec<_> = recording.meta.replica_offset_at_end.iter().copied().map(Some).collect();
        let faults = if cut { Faults::default().slow(250_000) } else { Faults::default() };
        let master = Replay::start(recording, MasterOptions { faults, ..MasterOptions::default() }).unwrap();
        let options = TlsProxyOptions { key_update_every: Some(3), ..certs.proxy("server") };
        let source = TlsProxy::start(master.port(), &options).unwrap();
        let between = Proxy::start(target.server.tls_port(), |_| Faulty::default()).unwrap();
        let mut args = certs.to_target();
        args.extend(["--source-tls-ca".into(), certs.path("ca.pem")]);
        let (from, to) =
            (format!("dragonflys://127.0.0.1:{}", source.port()), format!("rediss://127.0.0.1:{}", between.port()));
        let mut tool = start(job("replicate", &from, &to, &args));
        let until = Instant::now() + PATIENCE;
        let (mut cut_target, mut cut_source) = (cut, cut);
        while master.acks() != wanted {
            assert!(Instant::now() < until && tool.is_running(), "{name}: {:?} of {wanted:?}", master.acks());
            if cut_target && target.keys() > 100 {
                between.drop_all();
                cut_target = false;
            }
            let is_stable = || target.server.client().unwrap().run("HGET df2redis:checkpoint phase").unwrap().text();
            if cut_source && is_stable().as_deref() == Some("stable") {
                source.drop_all();
                cut_source = false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        tool.signal("INT");
        let run = tool.wait_for(2 * PATIENCE);
        run.expect_code(130);
        assert!(!cut_target && !cut_source, "{name}: it was over before the cuts");
        assert!(!cut || master.partial_count() >= 1, "{name}: no partial sync");
        assert!(cut || master.violations().is_empty(), "{name}: {:?}", master.violations());
        let compare: Vec<&str> = COMPARE.iter().copied().chain(["--ignore", "df2redis:"]).collect();
        if let Err(differences) = truth::compare(target.server.port(), &truth_file, &compare) {
            panic!("{name}:\n{differences}\n{}", run.stderr);
        }
    }
}

/// Whoever is not trusted, or does not trust us: a clear word, and nothing was written.
#[test]
fn a_target_that_is_not_trusted_gets_nothing() {
    let certs = Certs::new();
    let ca = |file: &str| vec!["--target-tls-ca".to_string(), certs.path(file)];
    let own = |name: &str| {
        let (cert, key) = (certs.path(&format!("{name}.pem")), certs.path(&format!("{name}.key")));
        vec!["--target-tls-cert".into(), cert, "--target-tls-key".into(), key]
    };
    let any = || strings(&["--target-tls-danger-accept-any-cert", "on"]);
    let named = |name: &str| strings(&["--target-tls-server-name", name]);
    for protocols in ["TLSv1.3", "TLSv1.2"] {
        for (shown, args, code, text) in [
            (
                "server",
                vec![ca("other-ca.pem"), own("client")],
                5,
                "unknown CA: give that CA's certificate with --target-tls-ca",
            ),
            ("server", vec![own("client")], 5, "unknown CA"),
            ("other-name", vec![ca("ca.pem"), own("client")], 5, "it is for DnsName(\"redis.example\")"),
            ("other-name", vec![ca("ca.pem"), own("client"), named("redis.example")], 0, ""),
            ("other-name", vec![ca("ca.pem"), own("client"), named("other.example")], 5, "--target-tls-server-name"),
            ("expired", vec![ca("ca.pem"), own("client")], 5, "expired"),
            ("expired", vec![any(), own("client")], 0, ""),
            ("server", vec![ca("ca.pem")], 5, "certificate"),
            ("server", vec![ca("ca.pem"), own("stranger")], 5, "certificate"),
        ] {
            let Some(target) = target(&certs, shown, &[("tls-protocols", protocols)]) else { return };
            let (master, _) = Generator::start(Spec::of("string:100B=50").unwrap(), MasterOptions::default()).unwrap();
            let args: Vec<String> = args.into_iter().flatten().collect();
            let mut command = job("migrate", &plain_source(master.port()), &tls_target(&target), &args);
            let run = start({
                command.args(["--log", "warn"]);
                command
            })
            .wait();
            eprintln!("{protocols} {shown}: {}", run.message());
            run.expect_code(code);
            if code != 0 {
                run.expect_text(text);
                assert_eq!(target.keys(), 0, "{text}");
                assert_eq!(master.requests().len(), 0, "the source was asked in vain");
            }
            assert_eq!(run.stderr.contains("danger-accept-any-cert"), args.iter().any(|arg| arg.contains("danger")));
        }
    }
}

/// Without a CA of its own a side trusts those of the system, which SSL_CERT_FILE names here: both sides are reached if the right
/// one is among them, and refused if it is not.
#[test]
fn the_systems_authorities_are_trusted_where_no_other_is_named() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    let spec = || Spec::of("string:100B=50").unwrap();
    let own: Vec<String> = certs.to_target().into_iter().skip(2).collect();
    assert!(own.iter().all(|arg| !arg.contains("-ca")), "{own:?}");
    let target_ca = || certs.to_target()[..2].to_vec();
    let source_ca = || vec!["--source-tls-ca".to_string(), certs.path("ca.pem")];
    for (system, named, code, text) in [
        ("ca.pem", Vec::new(), 0, ""),
        // Each side by itself.
        ("ca.pem", source_ca(), 0, ""),
        ("ca.pem", target_ca(), 0, ""),
        ("other-ca.pem", source_ca(), 5, "unknown CA: give that CA's certificate with --target-tls-ca"),
        ("other-ca.pem", target_ca(), 4, "unknown CA: give that CA's certificate with --source-tls-ca"),
        ("other-ca.pem", [source_ca(), target_ca()].concat(), 0, ""),
        ("nothing.pem", Vec::new(), 2, "this system has no CA certificates"),
    ] {
        target.empty();
        let (master, model) = Generator::start(spec(), MasterOptions::default()).unwrap();
        let proxy = TlsProxy::start(master.port(), &certs.proxy("server")).unwrap();
        let args = [&own[..], &named].concat();
        let source = format!("dragonflys://127.0.0.1:{}", proxy.port());
        let mut command = job("migrate", &source, &tls_target(&target), &args);
        command.env("SSL_CERT_FILE", certs.path(system)).env_remove("SSL_CERT_DIR");
        let run = start(command).wait_for(PATIENCE);
        eprintln!("{system}, {named:?}: {}", run.message());
        run.expect_code(code).expect_text(text);
        if code == 0 {
            let verdict = verify(&spec(), &model, &mut target.server.client().unwrap(), u64::MAX).unwrap();
            assert!(verdict.is_same(), "{verdict:?}\n{}", run.stderr);
            assert!(proxy.sessions_count() > 1, "not over TLS");
        } else {
            assert_eq!((target.keys(), master.requests().len()), (0, 0), "{}", run.message());
        }
    }
}

#[test]
fn a_source_that_is_not_trusted_hears_nothing() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    let ca = |file: &str| vec!["--source-tls-ca".to_string(), certs.path(file)];
    for (shown, client_ca, args, text) in [
        ("server", false, ca("other-ca.pem"), "--source-tls-ca"),
        ("other-name", false, ca("ca.pem"), "redis.example"),
        ("expired", false, ca("ca.pem"), "expired"),
        ("server", true, ca("ca.pem"), "wants a certificate from its clients: give --source-tls-cert"),
    ] {
        let options = MasterOptions { password: Some("hidden".into()), ..MasterOptions::default() };
        let (master, _) = Generator::start(Spec::of("string:100B=50").unwrap(), options).unwrap();
        let client_ca = client_ca.then(|| PathBuf::from(certs.path("ca.pem")));
        let proxy = TlsProxy::start(master.port(), &TlsProxyOptions { client_ca, ..certs.proxy(shown) }).unwrap();
        let args: Vec<String> = args.into_iter().chain(certs.to_target()).collect();
        let source = format!("dragonflys://127.0.0.1:{}", proxy.port());
        let mut command = job("migrate", &source, &tls_target(&target), &args);
        command.env("DF2REDIS_SOURCE_PASSWORD", "hidden");
        start(command).wait().expect_code(4).expect_text(text);
        assert_eq!(master.requests().len(), 0);
        assert_eq!(target.keys(), 0);
    }
}

/// TLS spoken to a plain port, and the reverse: said so. No password goes out where TLS was asked for.
#[test]
fn a_port_of_the_wrong_kind_is_told() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[]) else { return };
    let (master, _) = Generator::start(Spec::of("string:100B=50").unwrap(), MasterOptions::default()).unwrap();
    let plain_port = format!("rediss://127.0.0.1:{}", target.server.port());
    let timeout = strings(&["--connect-timeout", "2s"]);
    let args: Vec<String> = certs.to_target().into_iter().chain(timeout.clone()).collect();
    let run = start(job("migrate", &plain_source(master.port()), &plain_port, &args)).wait();
    eprintln!("{}", run.message());
    run.expect_code(5).expect_text("plain");
    let tls_port = format!("redis://127.0.0.1:{}", target.server.tls_port());
    let run = start(job("migrate", &plain_source(master.port()), &tls_port, &timeout)).wait();
    eprintln!("{}", run.message());
    run.expect_code(5).expect_text("rediss://");
    let source = format!("dragonflys://127.0.0.1:{}", master.port());
    let args: Vec<String> = args.into_iter().chain(["--source-tls-ca".into(), certs.path("ca.pem")]).collect();
    let run = start(job("migrate", &source, &tls_target(&target), &args)).wait();
    eprintln!("{}", run.message());
    run.expect_code(4).expect_text("plain");

    // A port that only listens: what it gets is a handshake, without the secret.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).ok();
        heard
    });
    let mut command = job("migrate", &plain_source(master.port()), &format!("rediss://localhost:{port}"), &args[..8]);
    command.env("DF2REDIS_TARGET_PASSWORD", "hunter2");
    start(command).wait().expect_code(5).expect_text("the TLS handshake");
    let heard = heard.join().unwrap();
    assert!(heard.starts_with(&[0x16, 0x03]) && !heard.windows(7).any(|part| part == b"hunter2"));
}

/// Secrets from systemd's credentials: they work over TLS, and show nowhere.
#[test]
fn credentials_work_and_show_nowhere() {
    let certs = Certs::new();
    let Some(target) = target(&certs, "server", &[("requirepass", "t4rget-s3cret-Yp")]) else { return };
    let options = MasterOptions {
        user: Some("replicator".into()),
        password: Some("s0urce-s3cret-Zq".into()),
        faults: Faults::default().slow(60_000),
        ..MasterOptions::default()
    };
    let (master, _) = Generator::start(Spec::of("string:1KiB=50").unwrap(), options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("source-user", "replicator"),
        ("source-password", "s0urce-s3cret-Zq\n"),
        ("target-password", "t4rget-s3cret-Yp"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut command = job("migrate", &plain_source(master.port()), &tls_target(&target), &certs.to_target());
    command.args(["--log", "trace"]).env("CREDENTIALS_DIRECTORY", dir.path());
    let running = start(command);
    std::thread::sleep(Duration::from_millis(300));
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", running.pid())).unwrap_or_default();
    let (cmdline, environment) = (read("cmdline"), read("environ"));
    let run = running.wait();
    run.expect_code(0);
    let key = std::fs::read_to_string(certs.path("client.key")).unwrap();
    let key_line = key.lines().nth(1).unwrap();
    for (place, text) in
        [("cmdline", &cmdline), ("environment", &environment), ("report", &run.stdout), ("log", &run.stderr)]
    {
        for secret in ["t4rget-s3cret-Yp", "s0urce-s3cret-Zq", "replicator", key_line] {
            assert!(!text.contains(secret), "{secret} in {place}");
        }
    }
    assert!(!cmdline.is_empty() && run.stderr.contains("TLSv1.3"), "{}", run.stderr);
}
