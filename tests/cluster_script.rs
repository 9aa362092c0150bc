//! Nodes that redirect and refuse by script, in the stable journal: what was not executed is executed once, where it belongs, and
//! nothing behind it on its key before it; an address outside of the cluster is never connected to.

mod common;

use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::net::TcpListener;
use std::path::Path;

/// A key on the first of two nodes.
fn key() -> String {
    (0..).map(|i| format!("k{i}")).find(|key| slot(key.as_bytes()).0 < 8192).unwrap()
}

struct World {
    nodes: [ScriptedTarget; 2],
    live: Live,
    tool: Tool,
    _dir: tempfile::TempDir,
}

impl World {
    /// Two nodes; the first one answers with `errors`, in which `{other}` is the second one's address.
    fn new(errors: &[ErrorRule]) -> Self {
        let ports = ClusterPorts::default();
        let start = |errors: Vec<ErrorRule>| {
            let identity = TargetIdentity::default().in_cluster(&ports);
            ScriptedTarget::start(ScriptOptions { identity, errors, ..ScriptOptions::default() }).unwrap()
        };
        let second = start(Vec::new());
        let mut errors = errors.to_vec();
        for error in &mut errors {
            error.reply = error.reply.replace("{other}", &second.address().to_string());
        }
        let first = start(errors);
        ports.lock().unwrap().extend([first.port(), second.port()]);
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("tool.log");
        let binary = Path::new(env!("CARGO_BIN_EXE_df2redis"));
        let tool = Tool::start(binary, live.port(), first.port(), &log, &["--log", "info"]).unwrap();
        let mut this = Self { nodes: [first, second], live, tool, _dir: dir };
        this.wait_acknowledged();
        this
    }

    fn run(&self, line: &str) {
        let args: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        self.live.world().run(0, &args);
    }

    #[track_caller]
    fn wait_acknowledged(&mut self) {
        let done = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            self.live.is_acknowledged().then_some(())
        });
        assert!(done.is_some(), "{}", self.tool.said());
    }

    /// Requests of a node about a key, and ASKINGs, as words.
    fn received(&self, node: usize, key: &str) -> Vec<String> {
        let text = |request: &Vec<Vec<u8>>| {
            request.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
        };
        let all = self.nodes[node].received();
        let of = all.iter().map(|received| &received.request);
        of.filter(|r| r[0] == b"ASKING" || r.get(1).is_some_and(|arg| arg == key.as_bytes())).map(text).collect()
    }
}

fn rule(command: &str, key: &str, reply: &str, times: u64) -> ErrorRule {
    ErrorRule { key: Some(key.as_bytes().to_vec()), times, ..ErrorRule::every(command, reply) }
}

/// Once to the worker, and once more to who settles it, who follows.
#[test]
fn an_ask_is_followed_with_asking() {
    let key = key();
    let ask = format!("-ASK {} {{other}}", slot(key.as_bytes()).0);
    for (command, first) in [("SET", format!("SET {key} 1")), ("INCR", format!("INCR {key}"))] {
        let mut world = World::new(&[rule(command, &key, &ask, 2)]);
        world.run(&first);
        world.wait_acknowledged();
        world.run(&format!("APPEND {key} x"));
        world.wait_acknowledged();
        assert_eq!(world.received(1, &key), ["ASKING", first.as_str()], "{}", world.tool.said());
        assert_eq!(world.received(0, &key), [&first[..], &first, &format!("APPEND {key} x")], "{}", world.tool.said());
    }
}

#[test]
fn a_node_that_cannot_yet_is_asked_again_and_nothing_passes() {
    let key = key();
    for reply in [
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-CLUSTERDOWN The cluster is down",
        "-CLUSTERDOWN Hash slot not served",
        "-READONLY You can't write against a read only replica.",
    ] {
        let mut world = World::new(&[rule("INCR", &key, reply, 3)]);
        world.run(&format!("INCR {key}"));
        world.wait_acknowledged();
        world.run(&format!("INCR {key}"));
        world.run(&format!("APPEND {key} x"));
        world.wait_acknowledged();
        let received = world.received(0, &key);
        // Three times in vain, then once; the next transaction behind it.
        let once = format!("INCR {key}");
        let wanted = [&once, &once, &once, &once, &once, &format!("APPEND {key} x")];
        assert!(received.iter().eq(wanted), "{reply}: {received:?}\n{}", world.tool.said());
        assert_eq!(world.received(1, &key), Vec::<String>::new());
    }
}

#[test]
fn a_node_outside_of_the_cluster_is_never_connected_to() {
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    outside.set_nonblocking(true).unwrap();
    let elsewhere = outside.local_addr().unwrap();
    let key = key();
    for kind in ["MOVED", "ASK"] {
        let reply = format!("-{kind} {} {elsewhere}", slot(key.as_bytes()).0);
        let mut world = World::new(&[rule("INCR", &key, &reply, u64::MAX)]);
        world.run(&format!("INCR {key}"));
        assert_eq!(world.tool.wait(), Some(5), "{}", world.tool.said());
        assert!(world.tool.said().contains("no node of the cluster"), "{}", world.tool.said());
        assert!(outside.accept().is_err(), "an address outside of the cluster was connected to");
        // What was not executed is not acknowledged.
        assert!(!world.live.is_acknowledged());
    }
}
