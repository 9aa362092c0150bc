//! A name server that does not answer: the job goes on with everything else, and the lookup is given up after the connect timeout.
//!
//! The tool runs with an `/etc/resolv.conf` of its own (a mount namespace), which names a server of this test. That takes root.

mod common;

use common::job::{binary, reasons, until};
use common::server_with;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const NAME: &str = "target.test";

/// Answers each question for an address with 127.0.0.1, or nothing at all.
struct NameServer {
    address: String,
    silent: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

impl NameServer {
    /// `None`: the port is not to be had.
    fn start() -> Option<Self> {
        let address = format!("127.53.{}.{}", std::process::id() / 250 % 250, 1 + std::process::id() % 250);
        let socket = match UdpSocket::bind((address.as_str(), 53)) {
            Ok(socket) => socket,
            Err(error) => {
                eprintln!("skipped: no name server can listen here: {error}");
                return None;
            }
        };
        let (silent, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let this = Self { address, silent: silent.clone(), asked: asked.clone() };
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question) {
                asked.fetch_add(1, Ordering::Relaxed);
                if !silent.load(Ordering::Relaxed) {
                    socket.send_to(&answer(&question[..len]), from).ok();
                }
            }
        });
        Some(this)
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// To one question (RFC 1035): of type A, or of another with no answer to it.
fn answer(question: &[u8]) -> Vec<u8> {
    let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let is_a = question[name_end..name_end + 2] == [0, 1];
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(&question[12..name_end + 4]);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    answer
}

/// A program that runs the tool with this name server. `None`: there are no mount namespaces here.
fn program(server: &Server, names: &NameServer) -> Option<PathBuf> {
    let (resolv, script) = (server.dir().join("resolv.conf"), server.dir().join("tool.sh"));
    // One lookup hangs for longer than any part of this test may take.
    std::fs::write(&resolv, format!("nameserver {}\noptions timeout:30 attempts:5\n", names.address)).unwrap();
    let tool = binary().display();
    let mount = format!("mount --bind {} /etc/resolv.conf && exec {tool} \"$@\"", resolv.display());
    std::fs::write(&script, format!("#!/bin/sh\nexec unshare --mount sh -c '{mount}' sh \"$@\"\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    match Command::new(&script).arg("--version").output() {
        Ok(output) if output.status.success() => Some(script),
        output => {
            eprintln!("skipped: the tool cannot get a resolv.conf of its own: {output:?}");
            None
        }
    }
}

fn time_left_ms(server: &Server) -> i64 {
    server.client().unwrap().run("PTTL df2redis:lease").unwrap().int().unwrap()
}

#[test]
fn a_name_server_that_hangs_stops_nothing_but_the_lookup() {
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default()) else { return };
    let Some(names) = NameServer::start() else { return };
    let Some(program) = program(&server, &names) else { return };
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let socket = server.dir().join("control.sock");
    let target = format!("redis://{NAME}:{}", server.port());
    let mut args = vec!["--target", &target, "--control", socket.to_str().unwrap(), "--log", "info"];
    args.extend(["--connect-timeout", "2s"]);
    let start = || Tool::start(&program, live.port(), server.port(), &server.dir().join("tool.log"), &args).unwrap();
    let mut tool = start();
    let run = |line: &str| common::job::run(&live, line);
    until(&mut tool, "stable", || is_stable(&server));
    assert!(names.asked() > 0, "the name was not asked for");
    let mut client = server.client().unwrap();
    let mut clients = || client.run("CLIENT LIST").unwrap().text().unwrap();
    until(&mut tool, "the lease has no connection", || clients().contains("name=df2redis-lease"));

    // The connections for data are gone, and to make them again takes the name.
    names.silent.store(true, Ordering::Relaxed);
    let asked = names.asked();
    let list = clients();
    for line in list.lines().filter(|line| line.contains("name=df2redis-lane")) {
        let id = line.split(' ').find_map(|word| word.strip_prefix("id=")).unwrap();
        client.run(&format!("CLIENT KILL ID {id}")).unwrap();
    }
    (0..50).for_each(|_| run("INCR n"));
    until(&mut tool, "the name is not asked for again", || names.asked() > asked);
    // Each of these waits for the thread that looked the name up, if that is the control plane's.
    let begun = Instant::now();
    until(&mut tool, "it does not say why", || reasons(&socket).contains("the name target.test cannot be resolved"));
    let mut renewals = 0;
    let mut left_ms = time_left_ms(&server);
    until(&mut tool, "the lease is not renewed", || {
        let now_ms = time_left_ms(&server);
        renewals += u32::from(now_ms > left_ms);
        left_ms = now_ms;
        renewals >= 3
    });
    eprintln!("{:?} without a name server", begun.elapsed());
    assert!(!live.is_acknowledged());
    names.silent.store(false, Ordering::Relaxed);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    assert_eq!(client.run("GET n").unwrap().text().as_deref(), Some("50"));

    // In the middle of a lookup it ends at once.
    names.silent.store(true, Ordering::Relaxed);
    let asked = names.asked();
    client.run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    run("INCR n");
    until(&mut tool, "the name is not asked for again", || names.asked() > asked);
    tool.signal("INT");
    tool.signal("INT");
    let ended = wait_for(|| {
        // The second one may have come too early to be told from the first.
        tool.signal("INT");
        tool.ended()
    });
    assert_eq!(ended, Some(130), "{}", tool.said());
    names.silent.store(false, Ordering::Relaxed);

    let mut tool = start();
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
}
