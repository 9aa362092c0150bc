//! Nodes of a cluster that are full: what takes the room is deleted all the same, where it is to be deleted.

mod common;

use common::clustered::{Clustered, key_on, node_of};
use common::job::until;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions};
use df2redis::redis::slot::slot;

const CHECKPOINT: &str = "df2redis:checkpoint";

/// Makes every node hold this much, and leaves it no room for more.
fn fill(world: &Clustered) {
    for node in 0..3 {
        let mut client = world.client(node);
        client.run("CONFIG SET maxmemory 0").unwrap();
        client.ask(&[b"SET".as_slice(), key_on(node, "filler").as_bytes(), &vec![b'x'; 48 << 20]]).unwrap();
        client.run("CONFIG SET maxmemory 32mb").unwrap();
        assert!(client.run(&format!("SET {} v", key_on(node, "more"))).is_err(), "it has room");
    }
}

fn is_full(world: &Clustered, node: usize) -> bool {
    world.client(node).run(&format!("EXISTS {}", key_on(node, "filler"))).unwrap().int() == Some(1)
}

/// A full node takes no lease, and queues nothing for a transaction, not even a FLUSHALL.
#[test]
fn full_nodes_are_emptied_before_the_start_and_as_the_source_is() {
    for kind in [ServerKind::Redis6, ServerKind::Valkey9] {
        let spec = Spec { flows_count: 2, ..Spec::of("string:60B=20").unwrap() };
        let options = (ServerOptions::default(), LiveOptions::default());
        let Some(world) = Clustered::of(kind, false, options.0, spec, options.1) else { continue };
        let own = node_of(CHECKPOINT);
        let mut client = world.client(own);
        let mut has = |key: &str| client.run(&format!("EXISTS {key}")).unwrap().int() == Some(1);
        fill(&world);
        let mut tool = world.start_by(0, &["--control", "off", "--retry-max", "10s", "--on-existing", "flush"]);
        until(&mut tool, "not emptied", || (0..3).all(|node| !is_full(&world, node)));
        world.wait_applied(&mut tool);
        fill(&world);
        world.run("FLUSHALL");
        world.run("SET behind v");
        world.wait_applied(&mut tool);
        assert!((0..3).all(|node| !is_full(&world, node)), "{}", tool.said());
        assert!(has(CHECKPOINT) && has("df2redis:lease:{df2redis:checkpoint}"));
        // What fails in the middle would leave no checkpoint.
        fill(&world);
        let ends = [own, (own + 1) % 3];
        let slot = slot(CHECKPOINT.as_bytes());
        let ids = ends.map(|node| world.client(node).run("CLUSTER MYID").unwrap().text().unwrap());
        let say =
            |end: usize, what: &str| world.client(ends[end]).run(&format!("CLUSTER SETSLOT {slot} {what}")).unwrap();
        say(1, &format!("IMPORTING {}", ids[0]));
        say(0, &format!("MIGRATING {}", ids[1]));
        world.run("FLUSHALL");
        let told =
            |node: usize| world.client(node).run("INFO errorstats").unwrap().text().unwrap().contains("TRYAGAIN");
        until(&mut tool, "nothing is tried", || ends.into_iter().any(told));
        assert!(has(CHECKPOINT) && is_full(&world, own));
        [0, 1].into_iter().for_each(|end| drop(say(end, "STABLE")));
        world.finish(tool);
    }
}
