//! Nodes that do not agree on who has which slot: the view with the latest epoch counts, whoever answers first, and a node that was cut
//! off takes nobody back to what it knows.

mod common;

use common::job::{binary, run, stop, until};
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, ScriptOptions, ScriptedTarget};
use df2redis::lab::torture::Tool;
use df2redis::redis::slot::slot;
use std::time::Duration;

/// Three nodes with a third of the slots each. Once the second third was the second node's, and now it is the third node's.
struct World {
    nodes: Vec<ScriptedTarget>,
    live: Live,
    tool: Tool,
    _dir: tempfile::TempDir,
}

impl World {
    /// By node: the epoch that it has heard of. Those of epoch 6 know who has the slots by now. `seed`: the one that the operator named.
    fn new(epochs: [u64; 3], seed: usize) -> Self {
        let views = epochs.map(|_| ClusterPorts::default());
        let start = |(epoch, view): (u64, &ClusterPorts)| {
            let identity = TargetIdentity { epoch, ..TargetIdentity::default() }.in_cluster(view);
            ScriptedTarget::start(ScriptOptions { identity, ..ScriptOptions::default() }).unwrap()
        };
        let nodes: Vec<ScriptedTarget> = epochs.into_iter().zip(&views).map(start).collect();
        for (epoch, view) in epochs.into_iter().zip(&views) {
            let order = if epoch == 6 { [0, 2, 1] } else { [0, 1, 2] };
            view.lock().unwrap().extend(order.map(|node| nodes[node].port()));
        }
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("tool.log");
        let tool = Tool::start(binary(), live.port(), nodes[seed].port(), &log, &["--log", "info"]).unwrap();
        let mut this = Self { nodes, live, tool, _dir: dir };
        this.wait_acknowledged();
        this
    }

    #[track_caller]
    fn wait_acknowledged(&mut self) {
        let Self { live, tool, .. } = self;
        until(tool, "not acknowledged", || live.is_acknowledged());
    }

    /// What each node received about a key.
    fn received(&self, key: &str) -> Vec<Vec<String>> {
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        let of = |node: &ScriptedTarget| {
            let all = node.received().into_iter().map(|received| received.request);
            let of = all.filter(|request| request.get(1).is_some_and(|first| first == key.as_bytes()));
            of.map(|request| request.iter().map(text).collect::<Vec<_>>().join(" ")).collect()
        };
        self.nodes.iter().map(of).collect()
    }
}

/// A key of this third of the slots.
fn key(third: u16) -> String {
    (0..).map(|i| format!("k{i}")).find(|key| slot(key.as_bytes()).0 / 5462 == third).unwrap()
}

#[test]
fn the_view_of_the_latest_epoch_counts_whoever_answers_first() {
    for (epochs, seed) in [([5, 5, 6], 0), ([6, 5, 5], 1), ([5, 6, 5], 2)] {
        let mut world = World::new(epochs, seed);
        let (moved, stays) = (key(1), key(0));
        for line in [format!("SET {moved} 1"), format!("INCR {moved}"), format!("SET {stays} 2")] {
            run(&world.live, &line);
        }
        world.wait_acknowledged();
        let said = world.tool.said();
        let wanted = [vec![], vec![], vec![format!("SET {moved} 1"), format!("INCR {moved}")]];
        assert_eq!(world.received(&moved), wanted, "{epochs:?} from node {seed}: {said}");
        assert_eq!(world.received(&stays), [vec![format!("SET {stays} 2")], vec![], vec![]], "{said}");
        stop(&mut world.tool);
    }
}

/// Its own slots are others' since, and it says the contrary while nobody else says anything.
#[test]
fn a_node_that_was_cut_off_takes_nobody_back() {
    let mut world = World::new([6, 5, 6], 0);
    let (moved, stays) = (key(1), key(0));
    run(&world.live, &format!("RPUSH {moved} 0"));
    world.wait_acknowledged();
    // From the second node's alone nothing is learnt; the first one has the tool ask.
    let silent = || ErrorRule::every("CLUSTER", "-LOADING Redis is loading the dataset in memory");
    let asks = ErrorRule {
        key: Some(stays.clone().into_bytes()),
        times: 3,
        ..ErrorRule::every("INCR", "-CLUSTERDOWN The cluster is down")
    };
    world.nodes[0].set_errors(vec![silent(), asks]);
    world.nodes[2].set_errors(vec![silent()]);
    let asked = world.nodes[1].received_of("CLUSTER").len();
    run(&world.live, &format!("INCR {stays}"));
    // By each round with what follows from the one before.
    until(&mut world.tool, "the old node is not asked", || world.nodes[1].received_of("CLUSTER").len() >= asked + 6);
    for n in 1..20 {
        run(&world.live, &format!("RPUSH {moved} {n}"));
    }
    // Whoever went by the old view would have done it by now.
    std::thread::sleep(Duration::from_millis(500));
    for node in [0, 2] {
        world.nodes[node].set_errors(Vec::new());
    }
    run(&world.live, &format!("RPUSH {moved} 20"));
    world.wait_acknowledged();
    let said = world.tool.said();
    let pushed: Vec<String> = (0..=20).map(|n| format!("RPUSH {moved} {n}")).collect();
    assert_eq!(world.received(&moved), [vec![], vec![], pushed], "{said}");
    stop(&mut world.tool);
}

/// The only one that had heard of an epoch is gone, and has told nobody.
#[test]
fn most_nodes_go_back_before_an_epoch_that_they_have_not_heard_of() {
    let mut world = World::new([6, 5, 5], 1);
    let (moved, stays) = (key(1), key(0));
    run(&world.live, &format!("RPUSH {moved} 0"));
    world.wait_acknowledged();
    let asks = ErrorRule { times: 3, ..ErrorRule::every("INCR", "-CLUSTERDOWN The cluster is down") };
    world.nodes[0]
        .set_errors(vec![ErrorRule::every("CLUSTER", "-LOADING Redis is loading the dataset in memory"), asks]);
    run(&world.live, &format!("INCR {stays}"));
    world.wait_acknowledged();
    run(&world.live, &format!("RPUSH {moved} 1"));
    world.wait_acknowledged();
    let wanted = [vec![], vec![format!("RPUSH {moved} 1")], vec![format!("RPUSH {moved} 0")]];
    assert_eq!(world.received(&moved), wanted, "{}", world.tool.said());
    stop(&mut world.tool);
}
