//! Records of older releases that do not say what became of a key, or say something else than what the source did: the target
//! holds what the source holds all the same.

use df2redis::lab::client::Client;
use df2redis::lab::live::LiveOptions;
use df2redis::lab::live::world::now_ms;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::wait_for;
use std::sync::atomic::Ordering;

mod in_step;

use in_step::InStep;

/// In step with a source that says that it is 1.30.
fn with_old_source() -> Option<InStep> {
    let live = LiveOptions { partial_by_sync: true, ..LiveOptions::default() };
    InStep::with_source(ServerKind::Redis7, &[], live, MasterOptions::default())
}

fn range(client: &mut Client, key: &str) -> String {
    let reply = client.run(&format!("ZRANGE {key} 0 -1 WITHSCORES")).unwrap();
    let texts = reply.array().unwrap().iter().map(|text| text.text().unwrap()).collect::<Vec<_>>();
    texts.join(" ")
}

#[test]
fn regression_reads_that_are_recorded_as_expiries_delete_nothing() {
    let Some(mut scene) = with_old_source() else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    let world = scene.live.world();
    for line in ["SET x:read v", "SET x:short v", "SET x:for-ever v PX 3000000"] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let now = now_ms().to_string();
    // A GETEX without options, and a SPOP of nothing.
    world.record(0, &["PEXPIREAT", "x:read", &now], 0);
    world.record(0, &["SREM", "x:set"], 0);
    // An expiry that has passed: the source tells the end of the key.
    world.record(0, &["PEXPIREAT", "x:short", &now], 0);
    source.run("DEL x:short").unwrap();
    // GAT with 0.
    source.run("PERSIST x:for-ever").unwrap();
    world.record(0, &["PEXPIREAT", "x:for-ever", "0"], 0);
    scene.wait_acknowledged();
    assert_eq!(target.run("GET x:read").unwrap().text().as_deref(), Some("v"), "{}", scene.tool.said());
    let kept = wait_for(|| (target.run("PTTL x:for-ever").unwrap().int() == Some(-1)).then_some(()));
    assert!(kept.is_some(), "{}", scene.tool.said());
    scene.stops_equal();
}

/// Each shard records only its own keys of a ZUNIONSTORE, and nothing of what it stored.
#[test]
fn regression_what_a_truncated_record_wrote_is_fetched() {
    for killed in [false, true] {
        let Some(mut scene) = with_old_source() else { return };
        let (mut source, mut target) = (scene.source(), scene.target());
        let world = scene.live.world();
        for line in ["ZADD x:from 1 a 2 b", "ZADD x:to 5 old"] {
            source.run(line).unwrap();
        }
        scene.wait_acknowledged();
        scene.source_stalls.store(killed, Ordering::Release);
        let stored = world.look(|data| data.get(0, b"x:from").cloned()).unwrap();
        world.begin_with(0, b"x:to", stored);
        world.record(0, &["ZUNIONSTORE", "x:to"], 77);
        world.record(0, &["ZUNIONSTORE", "x:from"], 77);
        source.run("ZADD x:to 9 later").unwrap();
        if killed {
            // The positions have passed the records, and nothing is fetched yet.
            scene.wait_acknowledged();
            scene.tool.kill();
            scene.source_stalls.store(false, Ordering::Release);
            scene.again(&[]);
        }
        let fetched = wait_for(|| (range(&mut target, "x:to") == "a 1 b 2 later 9").then_some(()));
        assert!(fetched.is_some(), "{}\n{}", range(&mut target, "x:to"), scene.tool.said());
        scene.stops_equal();
    }
}

/// Dragonfly takes `GET foo` for the name of a key; a target, without a `*` in it, for nothing.
#[test]
fn regression_what_the_source_sorts_otherwise_is_fetched() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    let world = scene.live.world();
    for line in ["SET x:foo bar", "RPUSH x:l 1 2", "RPUSH x:bars bar bar"] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let stored = world.look(|data| data.get(0, b"x:bars").cloned()).unwrap();
    world.begin_with(0, b"x:d", stored);
    world.record(0, &["SORT", "x:l", "GET", "x:foo", "STORE", "x:d"], 0);
    let stored =
        |target: &mut Client| target.run("LRANGE x:d 0 -1").unwrap() == target.run("LRANGE x:bars 0 -1").unwrap();
    assert!(wait_for(|| stored(&mut target).then_some(())).is_some(), "{}", scene.tool.said());
    scene.stops_equal();
}

/// What a ZUNIONSTORE stored is recorded with scores of six digits, from 1.34 to 1.40.
#[test]
fn regression_scores_that_were_rounded_are_fetched() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    let world = scene.live.world();
    source.run("ZADD x:from 0.1234567 a 1700000001 b").unwrap();
    scene.wait_acknowledged();
    let stored = world.look(|data| data.get(0, b"x:from").cloned()).unwrap();
    world.begin_with(0, b"x:to", stored);
    world.record(0, &["DEL", "x:to"], 77);
    world.record(0, &["ZADD", "x:to", "0.123457", "a", "1.7e+09", "b"], 77);
    let fetched = wait_for(|| (range(&mut target, "x:to") == range(&mut target, "x:from")).then_some(()));
    assert!(fetched.is_some(), "{}\n{}", range(&mut target, "x:to"), scene.tool.said());
    scene.stops_equal();
}
