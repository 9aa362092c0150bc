//! Nodes that redirect and refuse by script, in the stable journal and in the full sync: what was not executed is executed once, where
//! it belongs, and nothing behind it on its key before it; an address outside of the cluster is never connected to.

mod common;

use common::job::binary;
use common::migrate;
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::generate::{Generator, Spec};
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, Hostile, HostileRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

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
        Self::with(errors, LiveOptions::default(), &[])
    }

    fn with(errors: &[ErrorRule], options: LiveOptions, more: &[&str]) -> Self {
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
        let live = Live::start(spec, options, MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("tool.log");
        let tool =
            Tool::start(binary(), live.port(), first.port(), &log, &[&["--log", "info"], more].concat()).unwrap();
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

    /// Requests of a node about a key, but for whether it is there, and ASKINGs, as words.
    fn received(&self, node: usize, key: &str) -> Vec<String> {
        let text = |request: &Vec<Vec<u8>>| {
            request.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
        };
        let all = self.nodes[node].received();
        let of = all.iter().map(|received| &received.request).filter(|request| request[0] != b"PTTL");
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

/// A MIGRATE that failed halfway has left the marker, or the key, at both nodes: the old one's will be moved over the new one's.
#[test]
fn an_ask_is_not_followed_before_the_marker_has_moved() {
    let key = key();
    let ask = format!("-ASK {} {{other}}", slot(key.as_bytes()).0);
    // Three times that of the marker and that of the key.
    let has_marker = ErrorRule { times: 6, ..ErrorRule::every("PTTL", ":-1") };
    let mut world = World::new(&[rule("INCR", &key, &ask, 5), has_marker]);
    world.run(&format!("INCR {key}"));
    world.wait_acknowledged();
    let incr = format!("INCR {key}");
    assert_eq!(world.received(0, &key), vec![incr.clone(); 5], "{}", world.tool.said());
    assert_eq!(world.received(1, &key), ["ASKING", &incr], "{}", world.tool.said());
    let asked = world.nodes[0].received_of("PTTL").iter().filter(|asked| asked[1].starts_with(b"df2redis:m:")).count();
    assert_eq!(asked, 4);
    // What has no marker is not asked for.
    let mut world = World::new(&[rule("SET", &key, &ask, 2), ErrorRule::every("PTTL", ":-1")]);
    world.run(&format!("SET {key} 1"));
    world.wait_acknowledged();
    assert_eq!(world.received(1, &key), ["ASKING", &format!("SET {key} 1")], "{}", world.tool.said());
}

/// A node that does not tell whether the marker is still there has not said that it is gone.
#[test]
fn an_ask_is_not_followed_while_the_node_refuses_to_say_what_it_has() {
    let key = key();
    let ask = format!("-ASK {} {{other}}", slot(key.as_bytes()).0);
    for reply in [
        "-NOPERM this user has no permissions to run the 'pttl' command",
        "-LOADING Redis is loading the dataset in memory",
        "-ERR something else",
    ] {
        // Three times that of the marker and that of the key.
        let errors = [rule("INCR", &key, &ask, 5), ErrorRule { times: 6, ..ErrorRule::every("PTTL", reply) }];
        let mut world = World::new(&errors);
        world.run(&format!("INCR {key}"));
        world.wait_acknowledged();
        let incr = format!("INCR {key}");
        assert_eq!(world.received(0, &key), vec![incr.clone(); 5], "{reply}: {}", world.tool.said());
        assert_eq!(world.received(1, &key), ["ASKING", &incr], "{reply}: {}", world.tool.said());
    }
    // That it sends elsewhere for them says so.
    for reply in [&ask, &ask.replace("ASK", "MOVED")] {
        let mut world = World::new(&[rule("INCR", &key, &ask, 2), ErrorRule::every("PTTL", reply)]);
        world.run(&format!("INCR {key}"));
        world.wait_acknowledged();
        assert_eq!(world.received(1, &key), ["ASKING", &format!("INCR {key}")], "{reply}: {}", world.tool.said());
    }
    // It is not waited for without end.
    let errors = [rule("INCR", &key, &ask, u64::MAX), ErrorRule::every("PTTL", "-NOPERM no permissions")];
    let mut world = World::with(&errors, LiveOptions::default(), &["--retry-max", "2s"]);
    world.run(&format!("INCR {key}"));
    assert_eq!(world.tool.wait(), Some(5), "{}", world.tool.said());
    assert!(world.tool.said().contains("NOPERM"), "{}", world.tool.said());
    assert_eq!(world.received(1, &key), Vec::<String>::new());
    assert!(!world.live.is_acknowledged());
}

/// What a node refuses for its own state is in `refusals`.
#[test]
fn a_node_that_cannot_yet_is_asked_again_and_nothing_passes() {
    let key = key();
    for reply in [
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-CLUSTERDOWN The cluster is down",
        "-CLUSTERDOWN Hash slot not served",
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

/// Ids of the entries of a stream in the order in which they were executed.
fn executed(node: &ScriptedTarget, key: &str) -> Vec<String> {
    let received = node.received();
    let of = received.iter().filter(|received| received.executed && received.request[0] == b"XADD");
    let of = of.filter(|received| received.request[1] == key.as_bytes());
    of.map(|received| String::from_utf8_lossy(&received.request[2]).into_owned()).collect()
}

/// Once a later entry is there, a stream takes no earlier one.
#[test]
fn no_entry_of_a_stream_is_executed_before_an_earlier_one() {
    let key = key();
    let entries = 200;
    for reply in [
        "-CLUSTERDOWN The cluster is down",
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-LOADING Redis is loading the dataset in memory",
        "-OOM command not allowed when used memory > 'maxmemory'.",
    ] {
        // Several batches that come at once, and a node that cannot for a moment in the middle of one.
        let errors = [ErrorRule { after: 70, ..rule("XADD", &key, reply, 3) }];
        let options = LiveOptions { dispatch_after: Some(Duration::from_millis(300)), ..LiveOptions::default() };
        let mut world = World::with(&errors, options, &["--batch-bytes", "4KiB"]);
        for id in 1..=entries {
            world.run(&format!("XADD {key} {id}-1 field value-{id:060}"));
        }
        world.wait_acknowledged();
        let wanted: Vec<String> = (1..=entries).map(|id| format!("{id}-1")).collect();
        assert_eq!(executed(&world.nodes[0], &key), wanted, "{reply}: {}", world.tool.said());
        assert!(world.tool.said().contains("XADD") || !reply.starts_with("-OOM"), "{}", world.tool.said());
    }
}

/// The same of streams that are too large to be restored whole, in the full sync.
#[test]
fn no_entry_of_a_large_stream_is_executed_before_an_earlier_one() {
    let ports = ClusterPorts::default();
    let identity = TargetIdentity { bulk_bytes_max: 2000, ..TargetIdentity::default().in_cluster(&ports) };
    let flap = |after| ErrorRule { after, times: 3, ..ErrorRule::every("XADD", "-CLUSTERDOWN The cluster is down") };
    let start = |errors| {
        ScriptedTarget::start(ScriptOptions { identity: identity.clone(), errors, ..ScriptOptions::default() }).unwrap()
    };
    let nodes = [start(vec![flap(90), flap(400)]), start(vec![flap(300)])];
    ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
    let spec = Spec { seed: 5, flows_count: 2, ..Spec::of("stream:500x30=6").unwrap() };
    let (master, _model) = Generator::start(spec, MasterOptions::default()).unwrap();
    let run = migrate(master.port(), nodes[0].port(), &["--batch-bytes", "4KiB"]);
    run.expect_code(0);
    let keys: BTreeSet<_> = nodes
        .iter()
        .flat_map(|node| node.received_of("XADD"))
        .map(|add| String::from_utf8(add[1].clone()).unwrap())
        .collect();
    assert_eq!(keys.len(), 6);
    for key in keys {
        let done: Vec<String> = nodes.iter().flat_map(|node| executed(node, &key)).collect();
        let number = |id: &String| id.split('-').map(|part| part.parse().unwrap()).collect::<Vec<u64>>();
        let numbers: Vec<_> = done.iter().map(number).collect();
        assert!(numbers.len() > 100 && numbers.is_sorted_by(|a, b| a < b), "{key}: {done:?}\n{}", run.stderr);
    }
}

/// A command that fails because the one before it was not executed is executed behind that, and one that fails because of what was
/// executed behind it leaves that its place.
#[test]
fn an_error_behind_what_was_not_executed_says_nothing() {
    let key = key();
    let errors = [
        rule("DEL", &key, "-CLUSTERDOWN The cluster is down", 1),
        rule("HSET", &key, "-WRONGTYPE Operation against a key holding the wrong kind of value", 1),
    ];
    let options = LiveOptions { dispatch_after: Some(Duration::from_secs(1)), ..LiveOptions::default() };
    let mut world = World::with(&errors, options.clone(), &[]);
    // The source writes the first record that it finds by itself.
    let run = |world: &World, lines: &[String]| {
        for line in &[&lines[..1], &["SET pad 1".into()], &lines[1..]].concat() {
            world.run(line);
        }
    };
    let once = [format!("SET {key} v"), format!("DEL {key}"), format!("HSET {key} f v")];
    run(&world, &once);
    world.wait_acknowledged();
    assert_eq!(world.received(0, &key), [&once[..], &once[1..]].concat(), "{}", world.tool.said());

    let errors = [
        rule("HSET", &key, "-CLUSTERDOWN The cluster is down", 1),
        rule("HSET", &key, "-WRONGTYPE Operation against a key holding the wrong kind of value", 1),
    ];
    let mut world = World::with(&errors, options, &[]);
    let once = ["SET {key} u", "DEL {key}", "HSET {key} f v", "DEL {key}", "SET {key} v"];
    let once = once.map(|line| line.replace("{key}", &key));
    run(&world, &once);
    world.wait_acknowledged();
    assert_eq!(world.received(0, &key), [&once[..], &once[2..]].concat(), "{}", world.tool.said());
}

/// A primary of a moment ago that is a replica now.
#[test]
fn what_every_primary_is_told_is_told_again_after_a_takeover() {
    let ports = ClusterPorts::default();
    let start = |errors| {
        let identity = TargetIdentity { keys_count: 1, ..TargetIdentity::default() }.in_cluster(&ports);
        ScriptedTarget::start(ScriptOptions { identity, errors, ..ScriptOptions::default() }).unwrap()
    };
    let readonly =
        ErrorRule { times: 2, ..ErrorRule::every("FLUSHALL", "-READONLY You can't write against a replica.") };
    let nodes = [start(vec![readonly]), start(Vec::new())];
    ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
    let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
    let (master, _model) = Generator::start(spec, MasterOptions::default()).unwrap();
    let run = migrate(master.port(), nodes[0].port(), &["--on-existing", "flush"]);
    run.expect_code(0);
    for node in &nodes {
        let flushed =
            |request: &[Vec<u8>]| request[0] == b"FLUSHALL" && request.get(1).is_some_and(|of| of == b"ASYNC");
        let flushed = node.received().iter().filter(|of| of.executed && flushed(&of.request)).count();
        assert!(flushed >= 2, "{}", run.stderr);
    }
}

/// What settles waits no longer than the operator said.
#[test]
fn a_node_that_never_can_is_given_up_after_the_limit() {
    let key = key();
    let rules = [rule("INCR", &key, "-CLUSTERDOWN Hash slot not served", u64::MAX)];
    let mut world = World::with(&rules, LiveOptions::default(), &["--retry-max", "2s"]);
    let began = std::time::Instant::now();
    world.run(&format!("INCR {key}"));
    assert_eq!(world.tool.wait(), Some(5), "{}", world.tool.said());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let said = world.tool.said();
    assert!(said.contains("CLUSTERDOWN") && said.contains("--retry-max"), "{said}");
    assert!(!world.live.is_acknowledged());
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

/// News of a node that joins spread slowly: the one that gives it a slot knows it before the others do.
#[test]
fn a_node_that_only_the_one_that_redirects_knows_is_followed() {
    for hears_after in [Some(Duration::from_secs(3)), None] {
        let ports = ClusterPorts::default();
        let newcomers = [ClusterPorts::default(), ClusterPorts::default()];
        let start = |newcomers: &ClusterPorts, errors: Vec<ErrorRule>| {
            let identity =
                TargetIdentity { newcomers: newcomers.clone(), ..TargetIdentity::default() }.in_cluster(&ports);
            ScriptedTarget::start(ScriptOptions { identity, errors, ..ScriptOptions::default() }).unwrap()
        };
        let joined = start(&newcomers[1], Vec::new());
        // Of the second node.
        let key = (0..).map(|i| format!("k{i}")).find(|key| slot(key.as_bytes()).0 >= 8192).unwrap();
        let ask = format!("-ASK {} {}", slot(key.as_bytes()).0, joined.address());
        let nodes = [start(&newcomers[0], Vec::new()), start(&newcomers[1], vec![rule("INCR", &key, &ask, u64::MAX)])];
        ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("tool.log");
        let tool = Tool::start(binary(), live.port(), nodes[0].port(), &log, &["--log", "info"]).unwrap();
        let mut world = World { nodes, live, tool, _dir: dir };
        world.wait_acknowledged();
        // Either the node that redirects knows it already, or both hear of it later.
        match hears_after {
            None => newcomers[1].lock().unwrap().push(joined.port()),
            Some(after) => {
                let (newcomers, port) = (newcomers.clone(), joined.port());
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    newcomers.iter().for_each(|of| of.lock().unwrap().push(port));
                });
            }
        }
        world.run(&format!("INCR {key}"));
        world.wait_acknowledged();
        let received = joined.received_of("INCR");
        assert_eq!(received.len(), 1, "{}", world.tool.said());
        assert!(!world.received(1, &key).is_empty(), "nobody was sent on");
    }
}

/// A key that moves meanwhile from a node that was not emptied yet to one that was would outlive one round.
#[test]
fn a_cluster_is_emptied_twice() {
    let ports = ClusterPorts::default();
    let nodes = [(); 2].map(|()| {
        let identity = TargetIdentity { keys_count: 1, ..TargetIdentity::default() }.in_cluster(&ports);
        ScriptedTarget::start(ScriptOptions { identity, ..ScriptOptions::default() }).unwrap()
    });
    ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
    let spec = Spec::of("string:60B=5").unwrap();
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    migrate(live.port(), nodes[0].port(), &["--on-existing", "flush"]);
    for node in &nodes {
        let flushes = node.received_of("FLUSHALL");
        let emptied = flushes.iter().filter(|of| of.get(1).is_none_or(|option| option == b"ASYNC"));
        assert_eq!(emptied.count(), 2, "{flushes:?}");
    }
}

/// Two nodes, the second one as it is said here; nothing is to be written to either.
fn refused_for(identity: TargetIdentity, hostile: Option<HostileRule>, text: &str) {
    let ports = ClusterPorts::default();
    let first = TargetIdentity::default().in_cluster(&ports);
    let first = ScriptedTarget::start(ScriptOptions { identity: first, ..ScriptOptions::default() }).unwrap();
    let identity = identity.in_cluster(&ports);
    let second = ScriptedTarget::start(ScriptOptions { identity, hostile, ..ScriptOptions::default() }).unwrap();
    ports.lock().unwrap().extend([first.port(), second.port()]);
    let spec = Spec::of("string:60B=5").unwrap();
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let run = migrate(live.port(), first.port(), &[]);
    run.expect_code(3).expect_text(text).expect_text(&second.address().to_string());
    assert!(first.received_of("RESTORE").len() + second.received_of("RESTORE").len() <= 2);
}

#[test]
fn the_clock_of_every_node_counts() {
    let later = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 3600;
    let time = format!("*2\r\n$10\r\n{later}\r\n$1\r\n0\r\n").into_bytes();
    let rule = HostileRule { command: "TIME".into(), key: None, what: Hostile::Instead(time) };
    refused_for(TargetIdentity::default(), Some(rule), "the clocks of source and target are");
}

#[test]
fn nodes_of_several_makes_are_refused() {
    refused_for(TargetIdentity::valkey("9.0.1"), None, "are of several makes");
}
