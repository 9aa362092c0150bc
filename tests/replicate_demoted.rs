//! A source that is not any more what it was: made a replica of another server, back without its data, or loading. Whatever it
//! records, and whatever was said of lost positions, the target keeps what may be the last copy.

mod common;
mod in_step;

use common::job::{binary, run, until};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{MasterOptions, Scripted};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable};
use in_step::InStep;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const OTHER: Option<(&str, u16)> = Some(("b.example", 6380));
const RESYNC: &[&str] = &["--on-lost-position", "resync"];

/// A live source of two flows, and a target.
struct Scene {
    live: Live,
    server: Server,
}

impl Scene {
    fn new(options: LiveOptions, master: MasterOptions) -> Self {
        let spec = Spec { seed: 7, flows_count: 2, ..Spec::of("string:60B=200,list:6x9=20").unwrap() };
        let live = Live::start(spec, options, master).unwrap();
        let server = Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap();
        Self { live, server }
    }

    fn start(&self, more: &[&str]) -> Tool {
        Tool::start(binary(), self.live.port(), self.server.port(), &self.server.dir().join("tool.log"), more).unwrap()
    }

    /// Starts the tool, and waits until everything is acknowledged.
    fn follow(&self, more: &[&str]) -> Tool {
        let mut tool = self.start(more);
        // An earlier run has not acknowledged it.
        run(&self.live, "INCR followed");
        until(&mut tool, "no good checkpoint", || is_stable(&self.server) && self.live.is_acknowledged());
        tool
    }

    fn truth(&self) -> PathBuf {
        let path = self.server.dir().join("truth.jsonl");
        self.live.write_truth(&path).unwrap();
        path
    }

    #[track_caller]
    fn assert_holds(&self, truth: &std::path::Path, tool: &Tool) {
        compare(&self.server, ServerKind::Redis7, truth).unwrap_or_else(|why| panic!("{why}\n{}", tool.said()));
    }

    #[track_caller]
    fn ends(&self, tool: &mut Tool, code: i32, words: &[&str]) {
        assert_eq!(tool.wait(), Some(code), "{}", tool.said());
        for words in words {
            assert!(tool.said().contains(words), "{words}\n{}", tool.said());
        }
    }

    /// Stops the tool, which is in step.
    #[track_caller]
    fn stops_equal(&self, mut tool: Tool) {
        until(&mut tool, "not in step", || is_stable(&self.server) && self.live.is_acknowledged());
        common::job::stop(&mut tool);
        self.assert_holds(&self.truth(), &tool);
    }

    fn keys_count(&self) -> i64 {
        self.server.client().unwrap().run("DBSIZE").unwrap().int().unwrap()
    }
}

/// `REPLICAOF` at the source: the FLUSHALL of its own full sync is in its journal, what it loads is not, what follows is again.
#[test]
fn a_source_that_becomes_a_replica_does_not_empty_the_target() {
    for policy in [&[][..], RESYNC] {
        let scene = Scene::new(LiveOptions::default(), MasterOptions::default());
        let mut tool = scene.follow(policy);
        let truth = scene.truth();
        scene.live.world().set_replica_of(OTHER);
        scene.live.world().replace_all(&[("b:1", "of the other")]);
        run(&scene.live, "SET b:2 of-the-other");
        scene.ends(&mut tool, 8, &["replica of b.example:6380", "--on-existing flush"]);
        scene.assert_holds(&truth, &tool);
        // A replica is no source.
        scene.ends(&mut scene.start(policy), 3, &["replica of b.example:6380"]);
        // It is promoted again, under the id and with the positions that it had before, whatever it holds now.
        scene.live.world().set_replica_of(None);
        let mut tool = scene.start(policy);
        scene.ends(&mut tool, 8, &["replica of b.example:6380"]);
        scene.assert_holds(&truth, &tool);
        scene.stops_equal(scene.start(&["--on-existing", "flush"]));
        assert!(scene.live.master().unwrap().violations().is_empty());
    }
}

/// What it answers to an acknowledgement stands in the middle of the journal, and may come before any flush.
#[test]
fn the_words_of_a_source_that_became_a_replica_are_understood() {
    let scene = Scene::new(LiveOptions::default(), MasterOptions::default());
    let mut tool = scene.follow(&[]);
    run(&scene.live, "SET a:1 own");
    until(&mut tool, "not acknowledged", || scene.live.is_acknowledged());
    let truth = scene.truth();
    scene.live.world().set_replica_of(OTHER);
    scene.ends(&mut tool, 8, &["replica of b.example:6380"]);
    scene.assert_holds(&truth, &tool);
}

/// The connection was lost before anything was heard of it.
#[test]
fn a_source_that_is_a_replica_when_it_is_back_is_not_followed_up() {
    let scene = Scene::new(LiveOptions::default(), MasterOptions::default());
    let mut tool = scene.follow(RESYNC);
    let truth = scene.truth();
    scene.live.world().set_replica_of(OTHER);
    scene.live.master().unwrap().cut_all();
    scene.ends(&mut tool, 8, &["replica of b.example:6380"]);
    scene.live.world().set_replica_of(None);
    let mut tool = scene.start(RESYNC);
    scene.ends(&mut tool, 8, &["replica of b.example:6380"]);
    scene.assert_holds(&truth, &tool);
}

/// Its user may not ask for INFO: then it is registered with, which a replica refuses.
#[test]
fn a_source_that_does_not_tell_its_role_is_asked_otherwise() {
    let no_info =
        Scripted { request: "INFO".into(), reply: b"-NOPERM no ACL permissions\r\n".to_vec(), times: u32::MAX };
    let scene =
        Scene::new(LiveOptions::default(), MasterOptions { scripted: vec![no_info], ..MasterOptions::default() });
    let tool = scene.follow(&[]);
    run(&scene.live, "FLUSHALL");
    run(&scene.live, "SET a:1 own");
    scene.stops_equal(tool);
    let mut tool = scene.follow(&[]);
    let truth = scene.truth();
    scene.live.world().set_replica_of(OTHER);
    scene.live.world().replace_all(&[("b:1", "of the other")]);
    scene.ends(&mut tool, 8, &["replica"]);
    scene.assert_holds(&truth, &tool);
}

/// The same inside of a full sync, which a flush voids: the part that was copied is not deleted for another one.
#[test]
fn a_full_sync_is_not_begun_anew_for_a_replica() {
    for job in ["replicate", "migrate"] {
        let slow = LiveOptions { snapshot_bytes_per_s: Some(8_000), ..LiveOptions::default() };
        let scene = Scene::new(slow, MasterOptions::default());
        let mut child = Command::new(binary());
        child.args([job, "--progress", "off", "--source", &format!("dragonfly://127.0.0.1:{}", scene.live.port())]);
        child.args(["--target", &format!("redis://127.0.0.1:{}", scene.server.port()), "--control", "off"]);
        let child = child.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        assert!(df2redis::lab::torture::wait_for(|| (scene.keys_count() > 30).then_some(())).is_some());
        scene.live.world().set_replica_of(OTHER);
        scene.live.world().replace_all(&[("b:1", "of the other")]);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{job}: {said}");
        assert!(said.contains("replica of b.example:6380"), "{job}: {said}");
        assert!(scene.keys_count() > 20, "{job}: {} keys, {said}", scene.keys_count());
    }
}

/// The flush comes while writers are held for a cutover.
#[test]
fn a_source_that_becomes_a_replica_inside_the_fence_is_not_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let drained = dir.path().join("drained");
    in_step::write_hook(&drained, 0);
    let more = ["--hook-drained", drained.to_str().unwrap(), "--hook-timeout", "100s"];
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &more) else { return };
    let switch = scene.hook("switch", 0);
    let args = ["cutover", "--execute", "--budget", "300s", "--hook", &switch, "--verify", "none"];
    let cutover = scene.begin(&args);
    assert!(df2redis::lab::torture::wait_for(|| dir.path().join("drained.called").exists().then_some(())).is_some());
    let truth = scene.dir.path().join("truth.jsonl");
    scene.live.write_truth(&truth).unwrap();
    scene.live.world().set_replica_of(OTHER);
    // What a replica loads is held by no pause.
    scene.live.world().unpause();
    scene.live.world().replace_all(&[("b:1", "of the other")]);
    std::fs::write(dir.path().join("drained.go-on"), "").unwrap();
    let done = cutover.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(9), "{done:?}");
    assert_eq!(scene.tool.wait(), Some(8), "{}", scene.tool.said());
    compare(&scene.server, scene.kind, &truth).unwrap_or_else(|why| panic!("{why}\n{}", scene.tool.said()));
}

/// A source that lost everything is no reason to delete the copy, whatever was said of lost positions.
#[test]
fn a_source_that_comes_back_empty_costs_no_copy() {
    let mut scene = Scene::new(LiveOptions::default(), MasterOptions::default());
    let mut tool = scene.follow(RESYNC);
    let truth = scene.truth();
    scene.live.die();
    scene.live.world().forget_all();
    scene.live.restart().unwrap();
    scene.ends(&mut tool, 4, &["holds no key", "--on-existing flush"]);
    scene.assert_holds(&truth, &tool);
    let mut tool = scene.start(RESYNC);
    scene.ends(&mut tool, 4, &["holds no key", "--on-existing flush"]);
    scene.assert_holds(&truth, &tool);
    run(&scene.live, "SET a:1 new");
    scene.stops_equal(scene.start(RESYNC));
}

/// The same, killed inside the full sync that follows: the next start finds a part, and a source without any key.
#[test]
fn a_part_is_not_deleted_for_a_source_without_any_key() {
    let slow = LiveOptions { snapshot_bytes_per_s: Some(8_000), ..LiveOptions::default() };
    let mut scene = Scene::new(slow, MasterOptions::default());
    let mut tool = scene.start(&[]);
    until(&mut tool, "nothing is copied", || scene.keys_count() > 20);
    tool.kill();
    scene.live.world().forget_all();
    scene.live.restart().unwrap();
    let mut tool = scene.start(&[]);
    scene.ends(&mut tool, 4, &["holds no key"]);
    assert!(scene.keys_count() > 20);
}

/// A source that is still loading is waited for, and the target emptied only then.
#[test]
fn a_source_that_is_loading_is_waited_for() {
    for again in [false, true] {
        let mut scene = Scene::new(LiveOptions::default(), MasterOptions::default());
        let mut tool = scene.follow(RESYNC);
        let truth = scene.truth();
        let world = scene.live.world();
        if again {
            tool.kill();
        }
        scene.live.die();
        world.forget_all();
        world.set_loading(true);
        scene.live.restart().unwrap();
        if again {
            tool = scene.start(RESYNC);
        }
        until(&mut tool, "nobody waits", || tool_says(&scene, "is loading its data set"));
        std::thread::sleep(Duration::from_secs(2));
        scene.assert_holds(&truth, &tool);
        run(&scene.live, "SET a:1 loaded");
        world.set_loading(false);
        scene.stops_equal(tool);
    }
}

fn tool_says(scene: &Scene, words: &str) -> bool {
    std::fs::read_to_string(scene.server.dir().join("tool.log")).is_ok_and(|text| text.contains(words))
}

/// `DFLY LOAD`: the FLUSHALL before it is recorded, what it loads is not.
#[test]
fn a_source_that_loads_a_snapshot_does_not_empty_the_target() {
    let scene = Scene::new(LiveOptions::default(), MasterOptions::default());
    let mut tool = scene.follow(&[]);
    let truth = scene.truth();
    scene.live.world().set_loading(true);
    scene.live.world().replace_all(&[("a:1", "loaded")]);
    scene.ends(&mut tool, 8, &["DFLY LOAD", "--on-existing flush"]);
    scene.assert_holds(&truth, &tool);
    scene.live.world().set_loading(false);
    let mut tool = scene.start(&[]);
    scene.ends(&mut tool, 8, &["DFLY LOAD"]);
    scene.assert_holds(&truth, &tool);
    scene.stops_equal(scene.start(&["--on-existing", "flush"]));
}

/// No answer is no "no": a source that answers the question whether it loads with an error has its flush executed by nobody.
#[test]
fn a_source_that_does_not_say_whether_it_loads_does_not_empty_the_target() {
    let scene = Scene::new(LiveOptions::default(), MasterOptions::default());
    let mut tool = scene.follow(&[]);
    let truth = scene.truth();
    let world = scene.live.world();
    world.set_silent_on_loading(true);
    world.set_loading(true);
    world.replace_all(&[("a:1", "loaded")]);
    until(&mut tool, "nobody asks", || tool_says(&scene, "nobody says whether it is still the master"));
    scene.assert_holds(&truth, &tool);
    world.set_silent_on_loading(false);
    until(&mut tool, "nobody waits", || tool_says(&scene, "is loading its data set"));
    scene.assert_holds(&truth, &tool);
}

/// A release that crashes once it has a replica is not registered with.
#[test]
fn a_source_that_being_replicated_may_crash_is_refused() {
    let version = |version: &str| LiveOptions { version: Some(version.into()), ..LiveOptions::default() };
    let scene = Scene::new(version("df-v1.37.0"), MasterOptions::default());
    scene.ends(&mut scene.start(&[]), 3, &["XREAD", "1.37.2", "--source-danger-blocked-xread"]);
    assert_eq!(scene.live.master().unwrap().registrations_count(), 0);
    let mut tool = scene.follow(&["--source-danger-blocked-xread", "on"]);
    assert!(tool_says(&scene, "crashes when a blocked XREAD is served"), "{}", tool.said());
    common::job::stop(&mut tool);
    let scene = Scene::new(version("df-v1.37.2"), MasterOptions::default());
    scene.stops_equal(scene.follow(&[]));
}

/// A source that drops slow replicas sooner than a waiting snapshot is read is warned of.
#[test]
fn a_source_that_drops_replicas_early_is_warned_of() {
    for (ms, warned) in [(5_000, true), (30_000, false)] {
        let options = LiveOptions { replication_timeout_ms: Some(ms), ..LiveOptions::default() };
        let scene = Scene::new(options, MasterOptions::default());
        let tool = scene.follow(&[]);
        assert_eq!(tool_says(&scene, "replication_timeout"), warned, "{}", tool.said());
        scene.stops_equal(tool);
    }
}
