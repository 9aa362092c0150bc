//! Commands on several keys of one slot of which some have moved to another node and some have not: no node executes them
//! (`TRYAGAIN`) before the move goes on. They wait, with what follows them, and are executed once, whole.

mod common;

use common::clustered::{Clustered, node_of};
use common::job::until;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::servers::{ServerKind, ServerOptions};
use df2redis::redis::slot::slot;

/// What the source executes while the key `{t}a` is at one node and `{t}b` at another. The first ones may be applied twice, so the tool
/// sends them on to the other node, which cannot; the others it sends nowhere before the move has gone on (Redis 7 says ASK of them,
/// Valkey TRYAGAIN).
const COMMANDS: [&[&str]; 6] = [
    &["MSET {t}a 2 {t}b 2"],
    &["DEL {t}a {t}b"],
    &["DEL {t}a {t}b", "RPUSH {t}a x"],
    &["INCR {t}a", "MSET {t}b 7 {t}a 7", "INCR {t}b", "INCR {t}a"],
    &["RENAME {t}a {t}b", "APPEND {t}b x"],
    &["SUNIONSTORE {t}sum {t}s1 {t}s2", "INCR {t}a", "DEL {t}s1 {t}s2"],
];

#[test]
fn commands_on_a_half_moved_slot_wait_for_the_move() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let spec = Spec { flows_count: 1, ..Spec::of("string:10B=20").unwrap() };
        let Some(world) = Clustered::of(kind, false, ServerOptions::default(), spec, LiveOptions::default()) else {
            continue;
        };
        let (slot, ends) = (slot(b"t").0, [node_of("t"), (node_of("t") + 1) % 3]);
        let mut tool = world.start_by((ends[1] + 1) % 3, &["--log", "info"]);
        for (turn, commands) in COMMANDS.iter().enumerate() {
            // To and fro.
            let (from, to) = (ends[turn % 2], ends[1 - turn % 2]);
            for line in ["DEL {t}a {t}b", "SET {t}a 1", "SET {t}b 1", "SADD {t}s1 a b", "SADD {t}s2 b c"] {
                world.run(line);
            }
            world.wait_applied(&mut tool);
            world.cluster.half_move_key(slot, from, to, &["{t}a", "{t}s1"]).unwrap();
            world.cluster.forget_redirects().unwrap();
            commands.iter().for_each(|line| world.run(line));
            let codes: &[&str] = if turn < 2 { &["TRYAGAIN"] } else { &["TRYAGAIN", "ASK"] };
            until(&mut tool, "no node says that it cannot yet", || {
                codes.iter().any(|code| world.cluster.errors_of(code).unwrap() > 0)
            });
            assert!(!world.live.is_acknowledged(), "{commands:?}");
            world.cluster.move_slot(slot, from, to).unwrap();
            world.cluster.wait_agreed().unwrap();
            world.wait_applied(&mut tool);
        }
        world.finish(tool);
    }
}
