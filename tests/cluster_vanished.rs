//! Keys that the nodes of a cluster lose, behind the tool's back, are fetched again from the source as soon as it renews them:
//! whoever executed the renewal, and whoever did not hear the answer.

use df2redis::lab::client::Reply;
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::wait_for;
use std::sync::atomic::Ordering;
use std::time::Duration;

mod in_cluster;

use in_cluster::InCluster;

/// Keys in slots of all nodes.
const KEYS: usize = 12;

fn is_text(answer: &Reply, text: &str) -> bool {
    answer.text().as_deref() == Some(text)
}

/// Names that the checkpoint has of lost keys.
fn lost_names(scene: &InCluster) -> usize {
    let fields = scene.at_target("HKEYS df2redis:checkpoint");
    fields.array().unwrap_or_default().iter().filter(|field| field.text().unwrap().starts_with("lost:")).count()
}

/// Values and keys of all markers.
fn markers(scene: &InCluster) -> Vec<(String, String)> {
    let markers = scene.cluster.nodes.iter().map(|node| {
        let mut client = node.client().unwrap();
        let keys = client.run("KEYS df2redis:m:*").unwrap();
        let keys: Vec<String> = keys.array().unwrap().iter().map(|key| key.text().unwrap()).collect();
        // One may have moved.
        let value = |key: &String| client.ask(&["GET", key]).unwrap().text();
        keys.iter().map(value).zip(keys.clone()).filter_map(|(value, key)| Some((value?, key))).collect::<Vec<_>>()
    });
    let mut all: Vec<_> = markers.flatten().collect();
    all.sort();
    all
}

#[test]
fn keys_that_nodes_lost_are_there_again_once_they_are_renewed() {
    // Lists are put together out of commands that must not be applied twice, or are restored whole.
    for (kind, more) in [(ServerKind::Redis7, &["--restore-bytes-max", "0"][..]), (ServerKind::Valkey9, &[])] {
        let Some(mut scene) = InCluster::with(kind, more) else { continue };
        let mut source = scene.source();
        for i in 0..KEYS {
            source.run(&format!("RPUSH x:{i} a b")).unwrap();
            source.run(&format!("PEXPIRE x:{i} 90000000")).unwrap();
            source.run(&format!("HSET x:h:{i} f 1 g 2")).unwrap();
            source.run(&format!("SET x:s:{i} v PX 5000000")).unwrap();
        }
        scene.wait_acknowledged();
        for i in 0..KEYS {
            assert_eq!(scene.at_target(&format!("DEL x:{i}")).int(), Some(1));
            // By the node's own clock.
            assert_eq!(scene.at_target(&format!("PEXPIRE x:h:{i} 1")).int(), Some(1));
            assert_eq!(scene.at_target(&format!("PEXPIRE x:s:{i} 1")).int(), Some(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        for i in 0..KEYS {
            source.run(&if i % 2 == 0 { format!("PEXPIRE x:{i} 5000000") } else { format!("PERSIST x:{i}") }).unwrap();
            source.run(&format!("PEXPIRE x:h:{i} 5000000")).unwrap();
            source.run(&format!("PERSIST x:s:{i}")).unwrap();
            // What is built on them at once must not hide that they were gone.
            source.run(&format!("RPUSH x:{i} c")).unwrap();
            source.run(&format!("HSET x:h:{i} g 3")).unwrap();
        }
        for i in 0..KEYS {
            scene.wait_at_target(&format!("LLEN x:{i}"), |answer| answer.int() == Some(3));
            scene.wait_at_target(&format!("HLEN x:h:{i}"), |answer| answer.int() == Some(2));
            scene.wait_at_target(&format!("GET x:s:{i}"), |answer| is_text(answer, "v"));
        }
        // Positions in the journal, all of them: after a kill, records behind any other would be applied twice.
        let tags: std::collections::BTreeSet<String> =
            markers(&scene).into_iter().filter_map(|(value, _)| Some(value.rsplit_once(':')?.0.to_string())).collect();
        assert_eq!(tags.len(), 1, "{tags:?}");
        scene.stops_equal();
        assert_eq!(lost_names(&scene), 0);
    }
}

/// Over slots and within one, on top of another key: what the source has by the new name is fetched.
#[test]
fn what_is_renamed_from_a_lost_key_is_fetched_by_its_new_name() {
    let Some(mut scene) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let mut source = scene.source();
    for i in 0..KEYS {
        for key in [format!("x:{i}"), format!("{{x:{i}}}"), format!("y:{i}"), format!("{{x:{i}}}y")] {
            source.run(&format!("RPUSH {key} {key}")).unwrap();
        }
    }
    scene.wait_acknowledged();
    for i in 0..KEYS {
        assert_eq!(scene.at_target(&format!("DEL x:{i}")).int(), Some(1));
        assert_eq!(scene.at_target(&format!("DEL {{x:{i}}}")).int(), Some(1));
    }
    for i in 0..KEYS {
        source.run(&format!("RENAME x:{i} y:{i}")).unwrap();
        source.run(&format!("RENAME {{x:{i}}} {{x:{i}}}y")).unwrap();
    }
    for i in 0..KEYS {
        scene.wait_at_target(&format!("LINDEX y:{i} 0"), |answer| is_text(answer, &format!("x:{i}")));
        scene.wait_at_target(&format!("LINDEX {{x:{i}}}y 0"), |answer| is_text(answer, &format!("{{x:{i}}}")));
    }
    scene.stops_equal();
    assert_eq!(lost_names(&scene), 0);
}

/// Why the answer that a key is gone led to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unheard {
    /// It was lost with the connections.
    Cut,
    /// The tool died before it came.
    Killed,
    /// The tool died before the key was fetched.
    KilledWhileFetching,
}

fn a_lost_key_is_not_forgotten(unheard: Unheard) {
    let Some(mut scene) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let mut source = scene.source();
    for i in 0..KEYS {
        source.run(&format!("HSET x:{i} f 1 g 2")).unwrap();
        // The slot has a marker.
        source.run(&format!("PEXPIRE x:{i} 6000000")).unwrap();
    }
    scene.wait_acknowledged();
    for i in 0..KEYS {
        assert_eq!(scene.at_target(&format!("DEL x:{i}")).int(), Some(1));
    }
    let before = markers(&scene);
    match unheard {
        // Then an answer is waited for that does not come.
        Unheard::KilledWhileFetching => scene.source_stalls.store(true, Ordering::Release),
        _ => scene.proxies.iter().for_each(|proxy| proxy.set_replies_paused(true)),
    }
    for i in 0..KEYS {
        source.run(&format!("PEXPIRE x:{i} 5000000")).unwrap();
    }
    let executed = wait_for(|| {
        let now = markers(&scene);
        let moved = now.iter().filter(|marker| !before.contains(marker)).count();
        // Behind a batch that was not answered nothing is sent: some of them at least.
        (moved >= 2).then_some(())
    });
    assert!(executed.is_some(), "{}", scene.tool.said());
    match unheard {
        Unheard::Cut => {
            scene.proxies.iter().for_each(|proxy| proxy.drop_all());
            scene.proxies.iter().for_each(|proxy| proxy.set_replies_paused(false));
        }
        Unheard::Killed => {
            scene.tool.kill();
            scene.proxies.iter().for_each(|proxy| proxy.set_replies_paused(false));
            // What is built meanwhile must not hide that they are gone.
            (0..KEYS).for_each(|i| drop(source.run(&format!("HSET x:{i} g 3")).unwrap()));
            scene.again();
        }
        Unheard::KilledWhileFetching => {
            let told = wait_for(|| (lost_names(&scene) == KEYS).then_some(()));
            assert!(told.is_some(), "{}", scene.tool.said());
            // All positions pass.
            source.run("SET x:other v").unwrap();
            scene.wait_acknowledged();
            scene.tool.kill();
            scene.source_stalls.store(false, Ordering::Release);
            scene.again();
        }
    }
    for i in 0..KEYS {
        scene.wait_at_target(&format!("HLEN x:{i}"), |answer| answer.int() == Some(2));
    }
    scene.stops_equal();
    assert_eq!(lost_names(&scene), 0);
}

#[test]
fn a_lost_key_whose_answer_was_cut_off_is_fetched_again() {
    a_lost_key_is_not_forgotten(Unheard::Cut);
}

#[test]
fn a_lost_key_whose_answer_never_came_before_a_kill_is_fetched_again() {
    a_lost_key_is_not_forgotten(Unheard::Killed);
}

#[test]
fn a_lost_key_that_was_not_fetched_before_a_kill_is_fetched_by_the_next_process() {
    a_lost_key_is_not_forgotten(Unheard::KilledWhileFetching);
}

/// The renewal is sent elsewhere: the control plane executes it, and hears the answer.
#[test]
fn a_lost_key_whose_slot_has_moved_is_fetched_again() {
    let Some(mut scene) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let mut source = scene.source();
    for i in 0..KEYS {
        source.run(&format!("HSET x:{i} f 1 g 2")).unwrap();
    }
    scene.wait_acknowledged();
    for i in 0..KEYS {
        assert_eq!(scene.at_target(&format!("DEL x:{i}")).int(), Some(1));
        let slot = scene.cluster.nodes[0].client().unwrap().run(&format!("CLUSTER KEYSLOT x:{i}")).unwrap();
        let slot = slot.int().unwrap() as u16;
        let from = usize::from(slot) * 3 / 16384;
        scene.cluster.move_slot(slot, from, (from + 1) % 3).unwrap();
        source.run(&format!("PEXPIRE x:{i} 5000000")).unwrap();
        scene.wait_at_target(&format!("HLEN x:{i}"), |answer| answer.int() == Some(2));
    }
    scene.stops_equal();
    assert_eq!(lost_names(&scene), 0);
}

/// What was given back for a cutover is held again when the hook has failed, and what a node has lost meanwhile is fetched again.
#[test]
fn a_rollback_fetches_what_a_node_has_lost_behind_the_fence() {
    let Some(mut scene) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let mut source = scene.source();
    for i in 0..KEYS {
        source.run(&format!("SET x:{i} v PX {}", 600_000 + i)).unwrap();
    }
    scene.wait_acknowledged();
    let is_held = |scene: &InCluster, i: usize| scene.at_target(&format!("PTTL x:{i}")).int() > Some(1 << 41);
    assert!((0..KEYS).all(|i| is_held(&scene, i)), "{}", scene.tool.said());
    let hook = scene.dir.path().join("switch");
    std::fs::write(&hook, "#!/bin/sh\ntouch $0.called; while [ ! -e $0.go-on ]; do sleep 0.02; done\nexit 1\n")
        .unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cutover = std::thread::scope(|scope| {
        let told = &scene;
        let args =
            ["cutover", "--execute", "--budget", "300s", "--hook-timeout", "100s", "--hook", hook.to_str().unwrap()];
        let cutover = scope.spawn(move || told.ask(&args));
        let called = hook.with_extension("called");
        assert!(wait_for(|| called.exists().then_some(())).is_some(), "{}", scene.tool.said());
        // Behind the fence all is as it is at the source. Every second one goes as if by a clock that is ahead.
        assert!((0..KEYS).all(|i| !is_held(&scene, i)), "{}", scene.tool.said());
        for i in (0..KEYS).step_by(2) {
            assert_eq!(scene.at_target(&format!("DEL x:{i}")).int(), Some(1));
        }
        std::fs::write(hook.with_extension("go-on"), "").unwrap();
        cutover.join().unwrap()
    });
    assert_eq!(cutover.status.code(), Some(9), "{cutover:?}");
    for i in 0..KEYS {
        scene.wait_at_target(&format!("PTTL x:{i}"), |answer| answer.int() > Some(1 << 41));
    }
    scene.stops_equal();
}
