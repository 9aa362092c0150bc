//! A target that is cut off from the tool while nothing is closed: noticed within seconds by what the kernel knows of its machine,
//! and told from a server that only is slow, whose machine answers.
//!
//! The target's machine is a network namespace: what listens in it carries the bytes to a real server through its Unix socket. Cut
//! off, its frames and ours go to addresses that nobody has. That takes root and `ip`.

mod common;

use common::clustered::{Clustered, key_on};
use common::job::{binary, until};
use common::{Stopped, server_with};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a busy machine may take for what takes three seconds; before, it was ten and more.
const NOTICED_MAX: Duration = Duration::from_secs(8);
const PORT: u16 = 7000;

fn ip(line: &str) -> bool {
    let output = Command::new("ip").args(line.split(' ')).output();
    let done = output.as_ref().is_ok_and(|output| output.status.success());
    if !done {
        eprintln!("ip {line}: {output:?}");
    }
    done
}

/// A machine of its own, at the other end of a cable.
struct Island {
    name: String,
    net: String,
}

impl Island {
    const MACS: [&str; 2] = ["02:df:00:00:00:01", "02:df:00:00:00:02"];
    const NOBODY: &str = "02:df:00:00:00:99";

    /// `None`: no namespaces here.
    fn new() -> Option<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id().wrapping_mul(4).wrapping_add(LAST.fetch_add(1, Ordering::Relaxed));
        let net = format!("10.{}.{}", 128 + number / 250 % 120, number % 250);
        let this = Self { name: format!("df{}", number % 1_000_000), net };
        let (name, [ours, theirs]) = (&this.name, Self::MACS);
        let lines = [
            format!("netns add {name}"),
            format!("link add {name}a address {ours} type veth peer name {name}b address {theirs} netns {name}"),
            format!("addr add {}.1/24 dev {name}a", this.net),
            format!("link set {name}a up"),
            format!("-n {name} addr add {}.2/24 dev {name}b", this.net),
            format!("-n {name} link set {name}b up"),
        ];
        let made = lines.iter().all(|line| ip(line)) && this.join(Self::MACS);
        if !made {
            eprintln!("skipped: no network namespaces here");
        }
        made.then_some(this)
    }

    fn join(&self, macs: [&str; 2]) -> bool {
        let (name, net, [ours, theirs]) = (&self.name, &self.net, macs);
        ip(&format!("neigh replace {net}.2 lladdr {theirs} nud permanent dev {name}a"))
            && ip(&format!("-n {name} neigh replace {net}.1 lladdr {ours} nud permanent dev {name}b"))
    }

    fn cut_off(&self) {
        assert!(self.join([Self::NOBODY; 2]));
    }

    fn heal(&self) {
        assert!(self.join(Self::MACS));
    }

    fn address(&self) -> String {
        format!("{}.2:{PORT}", self.net)
    }

    /// Carries connections to the server's Unix socket, with little room for what it has not carried yet.
    fn carry_to(&self, server: &Server) {
        let (name, target) = (PathBuf::from("/run/netns").join(&self.name), server.unix_socket());
        let listener = std::thread::spawn(move || {
            enter(&name).unwrap();
            let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
            let room: libc::c_int = 4096;
            // SAFETY: the value is an int that lives through the call, and its size is given.
            let set = unsafe {
                let (value, len) = ((&raw const room).cast(), size_of_val(&room) as libc::socklen_t);
                libc::setsockopt(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, len)
            };
            assert_eq!(set, 0);
            listener
        });
        let listener = listener.join().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&target) else { continue };
                let (mut from, mut to) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    io::copy(&mut from, &mut to).ok();
                    to.shutdown(Shutdown::Both).ok();
                });
                let (mut from, mut to) = (server, stream);
                std::thread::spawn(move || {
                    io::copy(&mut from, &mut to).ok();
                    to.shutdown(Shutdown::Both).ok();
                });
            }
        });
    }

    /// Connections to it for which the kernel asks whether there is room again (timer 4 of `/proc/net/tcp`).
    fn full_connections(&self) -> usize {
        let address: SocketAddr = self.address().parse().unwrap();
        let SocketAddr::V4(address) = address else { unreachable!() };
        let wanted = format!("{:08X}:{PORT:04X}", u32::from_le_bytes(address.ip().octets()));
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| {
            row.get(2) == Some(&wanted.as_str()) && row.get(5).is_some_and(|timer| timer.starts_with("04"))
        })
        .count()
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

/// This thread, and its sockets from now on, are in that namespace.
fn enter(name: &Path) -> io::Result<()> {
    let namespace = std::fs::File::open(name)?;
    // SAFETY: the descriptor is open; no memory is involved.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How often the tool lost a connection.
fn losses(tool: &Tool) -> usize {
    tool.said().matches("lost a connection to the target").count()
}

/// Waits for the loss of one.
#[track_caller]
fn expect_noticed(tool: &mut Tool, losses_before: usize) {
    let begun = Instant::now();
    loop {
        assert_eq!(tool.ended(), None, "{}", tool.said());
        let elapsed = begun.elapsed();
        if losses(tool) > losses_before {
            eprintln!("noticed within {elapsed:?}");
            break;
        }
        assert!(elapsed < NOTICED_MAX, "it does not notice:\n{}", tool.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(tool.said().contains("its machine acknowledges nothing"), "{}", tool.said());
}

fn live() -> Live {
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap()
}

#[test]
fn a_server_that_is_cut_off_is_noticed_and_a_slow_one_is_not() {
    let Some(server) = server_with(ServerKind::Redis7, ServerOptions::default()) else { return };
    let Some(island) = Island::new() else { return };
    island.carry_to(&server);
    let live = live();
    let (log, target) = (server.dir().join("tool.log"), format!("redis://{}", island.address()));
    // The patience for a slow server is three times as long.
    let args = ["--target", &target, "--connect-timeout", "60s", "--log", "info"];
    let mut tool = Tool::start(binary(), live.port(), server.port(), &log, &args).unwrap();
    let run = |line: &str| common::job::run(&live, line);
    until(&mut tool, "stable", || is_stable(&server));
    until(&mut tool, "acknowledged", || live.is_acknowledged());

    // Its machine answers: it has no room.
    let stopped = Stopped::new(&server);
    for key in ["a", "b", "c", "d"] {
        live.world().run(0, &[b"SET".to_vec(), key.into(), vec![b'x'; 2 << 20]]);
    }
    until(&mut tool, "nothing is full", || island.full_connections() > 0);
    std::thread::sleep(Duration::from_secs(6));
    assert!(island.full_connections() > 0);
    assert_eq!(losses(&tool), 0, "{}", tool.said());
    drop(stopped);
    until(&mut tool, "acknowledged", || live.is_acknowledged());
    assert_eq!(losses(&tool), 0, "{}", tool.said());

    for round in 1..=2 {
        let before = losses(&tool);
        island.cut_off();
        (0..50).for_each(|_| run("INCR n"));
        expect_noticed(&mut tool, before);
        assert!(!live.is_acknowledged());
        island.heal();
        until(&mut tool, "acknowledged", || live.is_acknowledged());
        let count = server.client().unwrap().run("GET n").unwrap().text();
        assert_eq!(count, Some((50 * round).to_string()), "{}", tool.said());
    }
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let truth = server.dir().join("truth.jsonl");
    live.write_truth(&truth).unwrap();
    compare(&server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
}

#[test]
fn a_node_that_is_cut_off_is_noticed() {
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let Some(island) = Island::new() else { return };
    let node = &world.cluster.nodes[1];
    island.carry_to(node);
    let nat = format!("127.0.0.1:{}={}", node.port(), island.address());
    let mut tool = world.start_by(0, &["--target-nat", &nat, "--log", "info"]);
    let numbers = [0, 1, 2].map(|node| key_on(node, "n"));
    for round in 1..=2 {
        world.wait_applied(&mut tool);
        let before = losses(&tool);
        island.cut_off();
        (0..50).for_each(|_| numbers.iter().for_each(|number| world.run(&format!("INCR {number}"))));
        expect_noticed(&mut tool, before);
        island.heal();
        world.wait_applied(&mut tool);
        for (node, number) in numbers.iter().enumerate() {
            let count = world.client(node).run(&format!("GET {number}")).unwrap().text();
            assert_eq!(count, Some((50 * round).to_string()), "{}", tool.said());
        }
    }
    world.finish(tool);
}
