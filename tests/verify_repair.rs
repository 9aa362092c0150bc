//! `verify --repair` beside a running `replicate`: the job copies keys again, each in its place among the records, while the
//! source is written to.

use df2redis::lab::live::{Workload, WorkloadOptions};
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::ServerKind;
use df2redis::operator::control::client::Client;
use df2redis::operator::control::{Request, hex};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

mod in_step;
mod repairing;

use in_step::{InStep, TOOL};
use repairing::{AT_SOURCE, AT_TARGET, WRITTEN, lines, mends_what_was_planted, told, writers};

fn verify(scene: &InStep, more: &[&str]) -> Output {
    let (source, target) =
        (format!("dragonfly://127.0.0.1:{}", scene.live.port()), format!("redis://127.0.0.1:{}", scene.server.port()));
    let args = ["verify", "--source", &source, "--target", &target, "--lag-max", "4s", "--output", "json"];
    Command::new(&*TOOL).args(args).args(more).output().unwrap()
}

/// Values that every repeated or missing record changes, written as fast as it goes, and copied again and again meanwhile.
#[test]
fn a_repair_is_in_order_with_the_journal() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        writers(scope, [scene.source(), scene.source()], &stop);
        let mut job = Client::connect(&scene.socket()).unwrap();
        let mut rng = Rng::new(7);
        for _ in 0..400 {
            let key = WRITTEN[rng.below(7) as usize];
            let answer = job.ask(&Request::Repair { db: 0, key: hex(key.as_bytes()) }).unwrap();
            assert!(answer.ok, "{answer:?}\n{}", scene.tool.said());
        }
        stop.store(true, Ordering::Relaxed);
    });
    scene.wait_acknowledged();
    scene.stops_equal();
}

/// What is planted while writers write is found, mended by the job, and nothing else is changed.
#[test]
fn what_differs_is_repaired_by_the_running_job() {
    let Some(mut scene) = InStep::with(ServerKind::Redis8, &[]) else { return };
    let mut source = scene.source();
    for line in AT_SOURCE {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let options = WorkloadOptions { rate: Some(1500), ..WorkloadOptions::default() };
    let mut workload = Workload::start(scene.live.world(), scene.live.spec(), options);
    let mut target = scene.target();
    for line in AT_TARGET {
        target.run(line).unwrap();
    }
    let socket = scene.socket();
    let control = ["--control", socket.to_str().unwrap()];
    let refused = verify(&scene, &["--repair", "copy", "--control", "off"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("It cannot be asked: --control is off"), "{refused:?}");
    let repair = |args: &[&str]| verify(&scene, &[args, &control].concat());
    mends_what_was_planted(repair, || scene.tool.said());
    assert_eq!(verify(&scene, &[]).status.code(), Some(0));
    workload.stop();
    scene.stops_equal();
}

/// The job gives keys other names and leaves some out; a repair goes by the source's names, as the comparison does.
#[test]
fn a_job_with_filters_and_other_names_repairs_what_it_carries() {
    let scope = [
        "--rewrite-prefix",
        "p:=q:",
        "--exclude-prefix",
        "no:",
        "--exclude-type",
        "stream",
        "--db-map",
        "0:3",
        "--db-map",
        "3:0",
    ];
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &scope) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    target.run("SELECT 3").unwrap();
    for line in ["SET p:value right", "RPUSH p:list a b", "SET other v", "SET no:1 v", "XADD p:stream 1-1 f v"] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    for line in ["SET q:value wrong", "DEL q:list", "APPEND other w", "SET q:extra v"] {
        target.run(line).unwrap();
    }
    let socket = scene.socket();
    let control = ["--control", socket.to_str().unwrap()];
    let alone = verify(&scene, &[&["--repair", "copy", "--control", "off"][..], &scope].concat());
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    let mirrored = verify(&scene, &[&["--repair", "mirror"][..], &control, &scope].concat());
    let found = lines(&mirrored);
    let wanted = ["other", "p:extra", "p:list", "p:value"].map(|key| (key, Some(true)));
    assert_eq!(told(&found), wanted, "{found:#?}\n{}", scene.tool.said());
    for (question, answer) in [("GET q:value", "right"), ("LINDEX q:list 1", "b"), ("GET other", "v")] {
        assert_eq!(target.run(question).unwrap().text().as_deref(), Some(answer), "{question}");
    }
    assert_eq!(target.run("EXISTS q:extra p:list p:value no:1 q:stream").unwrap().int(), Some(0));
    // What the job leaves out, by its name or its type, it does not bring by a repair either.
    let mut job = Client::connect(&scene.socket()).unwrap();
    let left_out = job.ask(&Request::Repair { db: 0, key: hex(b"no:1") }).unwrap();
    assert!(!left_out.ok, "{left_out:?}");
    assert!(job.ask(&Request::Repair { db: 0, key: hex(b"p:stream") }).unwrap().ok);
    scene.tool.signal("INT");
    assert_eq!(scene.tool.wait(), Some(130), "{}", scene.tool.said());
    assert_eq!(target.run("EXISTS q:stream").unwrap().int(), Some(0));
    assert_eq!(verify(&scene, &scope).status.code(), Some(0));
}
