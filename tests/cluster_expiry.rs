//! Near expiries that were held back in a cluster and have no name in memory any more: at the end every key is looked at, but for
//! those of a slot that never stands still. That ends no run: they are told, and stay held until the job goes on. What is put right at a
//! primary that was replaced meanwhile is not lost: the next start looks again.

mod common;

use common::clustered::{Clustered, node_of};
use common::job::{stop, until};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::ServerOptions;
use df2redis::redis::slot::slot;

/// So many names of this length are more than a flow has memory for.
const KEYS: usize = 2300;
const NAME_BYTES: usize = 4000;
/// Less than the horizon of what is held.
const LIFE_MS: i64 = 1_800_000;

/// Keys of these, held or right, by how far their expiry is ahead.
fn held(world: &Clustered, names: &[String]) -> usize {
    let far = |name: &String| {
        let primaries = world.cluster.primaries().into_iter();
        let lives = primaries.filter_map(|node| world.client(node).ask(&["PTTL", name]).ok()?.int());
        lives.max().is_some_and(|ms| ms > 10 * LIFE_MS)
    };
    names.iter().filter(|name| far(name)).count()
}

fn is_held(world: &Clustered) -> bool {
    let field = |node: usize| world.client(node).ask(&["HGET", "df2redis:checkpoint", "held"]).ok()?.text();
    world.cluster.primaries().into_iter().any(|node| field(node).as_deref() == Some("1"))
}

#[test]
fn expiries_in_a_slot_that_never_rests_stay_held_and_are_told() {
    let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
    let Some(world) = Clustered::new(false, ServerOptions::default(), spec, LiveOptions::default()) else { return };
    let mut tool = world.start_by(0, &["--retry-max", "3s"]);
    world.wait_applied(&mut tool);
    let name = |tag: &str, number: usize| format!("{{{tag}}}{number:0width$}", width = NAME_BYTES);
    let number = slot(b"restless").0;
    for at in 0..KEYS {
        world.run(&format!("SET {} v PX {LIFE_MS}", name(&format!("k{}", at % 50), at)));
    }
    // These find no place among the names.
    let last = |tag: &str| (0..5).map(|at| name(tag, at)).collect::<Vec<_>>();
    let [restless, others] = [last("restless"), last("settled")];
    restless.iter().chain(&others).for_each(|key| world.run(&format!("SET {key} v PX {LIFE_MS}")));
    world.wait_applied(&mut tool);
    assert_eq!((held(&world, &restless), held(&world, &others)), (5, 5), "{}", tool.said());

    let from = node_of("{restless}");
    let to = (from + 1) % 3;
    world.client(to).run(&format!("CLUSTER SETSLOT {number} IMPORTING {}", world.cluster.id(from))).unwrap();
    world.client(from).run(&format!("CLUSTER SETSLOT {number} MIGRATING {}", world.cluster.id(to))).unwrap();
    stop(&mut tool);
    let said = tool.said();
    assert!(said.contains(&format!("keys in {number}-{number} may still expire")), "{said}");
    assert_eq!(held(&world, &others), 0, "{said}");
    assert!(is_held(&world), "{said}");

    for node in [from, to] {
        world.client(node).run(&format!("CLUSTER SETSLOT {number} STABLE")).unwrap();
    }
    let mut tool = world.start_by(0, &["--log", "info"]);
    until(&mut tool, "not in step", || std::fs::read_to_string(world.log()).is_ok_and(|text| text.contains("in step")));
    stop(&mut tool);
    assert_eq!((held(&world, &restless), held(&world, &others)), (0, 0), "{}", tool.said());
    assert!(!is_held(&world), "{}", tool.said());
}

/// Its replica lacks nothing of which a position tells.
#[test]
fn expiries_put_right_at_a_primary_that_was_replaced_stay_held() {
    let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
    let nodes = ServerOptions { patient_nodes: true, ..ServerOptions::default() };
    let Some(world) = Clustered::new(true, nodes, spec, LiveOptions::default()) else { return };
    let with_checkpoint = node_of("df2redis:checkpoint");
    let [node, slow] = [1, 2].map(|more| (with_checkpoint + more) % 3);
    let names = |node: usize| {
        let names = (0..).map(|at| format!("k:{at}")).filter(|name| node_of(name) == node);
        names.take(20).collect::<Vec<_>>()
    };
    let [lost, late] = [node, slow].map(names);
    let mut tool = world.start_by(with_checkpoint, &["--log", "info"]);
    lost.iter().chain(&late).for_each(|key| world.run(&format!("SET {key} v PX {LIFE_MS}")));
    world.wait_applied(&mut tool);
    assert_eq!((held(&world, &lost), held(&world, &late)), (20, 20), "{}", tool.said());
    let (mut primary, mut replica) = (world.client(node), world.client(3 + node));
    until(&mut tool, "the replica lags", || {
        let [of_primary, of_replica] =
            [&mut primary, &mut replica].map(|client| client.info("master_repl_offset").unwrap());
        of_primary == of_replica
    });
    primary.run("ACL SETUSER default -psync -sync").unwrap();
    primary.run("CLIENT KILL TYPE replica").unwrap();
    until(&mut tool, "the replica is still linked", || {
        replica.info("master_link_status").unwrap().as_deref() == Some("down")
    });
    // For as long as this one takes no writes the stop is not over, and its first look at the nodes is.
    world.client(slow).run("CLIENT PAUSE 60000 WRITE").unwrap();
    tool.signal("INT");
    until(&mut tool, "nothing is put right", || held(&world, &lost) == 0);
    assert_eq!(held(&world, &late), 20, "{}", tool.said());
    replica.run("CLUSTER FAILOVER TAKEOVER").unwrap();
    until(&mut tool, "nobody takes over", || {
        let primaries = world.cluster.primaries();
        primaries.contains(&(3 + node)) && !primaries.contains(&node)
    });
    world.client(slow).run("CLIENT UNPAUSE").unwrap();
    assert_eq!(tool.wait(), Some(5), "{} still held\n{}", held(&world, &lost), tool.said());
    assert!(tool.said().contains("took over from") && is_held(&world), "{}", tool.said());

    let mut tool = world.start_by(with_checkpoint, &["--log", "info"]);
    until(&mut tool, "not in step", || std::fs::read_to_string(world.log()).is_ok_and(|text| text.contains("in step")));
    stop(&mut tool);
    assert_eq!((held(&world, &lost), held(&world, &late)), (0, 0), "{}", tool.said());
    assert!(!is_held(&world), "{}", tool.said());
}
