//! `verify --repair` beside a running `replicate` into a cluster: the job copies keys again, each in its place among the
//! records, while the source is written to.

use df2redis::lab::client::Reply;
use df2redis::lab::live::{Workload, WorkloadOptions};
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::ServerKind;
use df2redis::operator::control::client::Client;
use df2redis::operator::control::{Request, hex};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

mod in_cluster;
mod repairing;

use in_cluster::{InCluster, TOOL};
use repairing::{AT_SOURCE, AT_TARGET, WRITTEN, mends_what_was_planted, writers};

fn verify(scene: &InCluster, more: &[&str]) -> Output {
    let source = format!("dragonfly://127.0.0.1:{}", scene.live.port());
    let target = format!("redis://127.0.0.1:{}", scene.cluster.port());
    let socket = scene.socket();
    let args = ["verify", "--source", &source, "--target", &target, "--lag-max", "4s", "--output", "json"];
    let control = ["--control", socket.to_str().unwrap()];
    Command::new(&*TOOL).args(args).args(control).args(more).output().unwrap()
}

/// Values that every repeated or missing record changes, written as fast as it goes, and copied again and again, while their
/// slots move.
#[test]
fn a_repair_is_in_order_with_the_journal_while_slots_move() {
    let Some(mut scene) = InCluster::with(ServerKind::Redis7, &[]) else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        writers(scope, [scene.source(), scene.source()], &stop);
        let mut job = Client::connect(&scene.socket()).unwrap();
        let mut rng = Rng::new(7);
        for round in 0..300 {
            let key = WRITTEN[rng.below(7) as usize];
            let answer = job.ask(&Request::Repair { db: 0, key: hex(key.as_bytes()) }).unwrap();
            assert!(answer.ok, "{answer:?}\n{}", scene.tool.said());
            if round % 60 == 0 {
                let slot = scene.cluster.nodes[0].client().unwrap().run(&format!("CLUSTER KEYSLOT {key}")).unwrap();
                let slot = slot.int().unwrap() as u16;
                let is_at = |node: &usize| {
                    let mut client = scene.cluster.nodes[*node].client().unwrap();
                    !matches!(client.run(&format!("EXISTS {key}")), Ok(Reply::Error(_)) | Err(_))
                };
                let from = (0..3).find(is_at).unwrap();
                scene.cluster.wait_agreed().unwrap();
                scene.cluster.move_slot(slot, from, (from + 1) % 3).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    scene.stops_equal();
}

/// What is planted while writers write is found, mended by the job, and nothing else is changed.
#[test]
fn what_differs_in_a_cluster_is_repaired_by_the_running_job() {
    let Some(mut scene) = InCluster::with(ServerKind::Redis8, &[]) else { return };
    let mut source = scene.source();
    for line in AT_SOURCE {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let options = WorkloadOptions { rate: Some(700), ..WorkloadOptions::default() };
    let mut workload = Workload::start(scene.live.world(), scene.live.spec(), options);
    for line in AT_TARGET {
        assert!(!matches!(scene.at_target(line), Reply::Error(_)), "{line}");
    }
    mends_what_was_planted(|args| verify(&scene, args), || scene.tool.said());
    workload.stop();
    assert_eq!(verify(&scene, &[]).status.code(), Some(0));
    scene.stops_equal();
}
