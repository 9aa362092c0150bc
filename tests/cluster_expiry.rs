//! Near expiries that were held back in a cluster and have no name in memory any more: at the end every key is looked at, but for
//! those of a slot that never stands still. That ends no run: they are told, and stay held until the job goes on.

mod common;

use common::clustered::Clustered;
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
        let lives = (0..3).filter_map(|node| world.client(node).ask(&["PTTL", name]).ok()?.int());
        lives.max().is_some_and(|ms| ms > 10 * LIFE_MS)
    };
    names.iter().filter(|name| far(name)).count()
}

fn is_held(world: &Clustered) -> bool {
    let field = |node: usize| world.client(node).ask(&["HGET", "df2redis:checkpoint", "held"]).ok()?.text();
    (0..3).any(|node| field(node).as_deref() == Some("1"))
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

    let from = common::clustered::node_of("{restless}");
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
