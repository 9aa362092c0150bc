//! A cluster whose nodes speak TLS: to each other and to the tool, which reaches every one of them by TLS, also those that it is
//! redirected to; a node that is not trusted hears nothing.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::clustered::{Clustered, key_on};
use common::job::{binary, reasons, until};
use common::{program, start};
use df2redis::lab::LabError;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::generate::{Generator, Spec};
use df2redis::lab::live::stage::{LiveStage, StageOptions};
use df2redis::lab::live::target::Target;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions, find_server};
use df2redis::lab::torture::{Tool, wait_for};
use std::sync::Arc;

fn cluster(kind: ServerKind, certs: &Certs) -> Option<Cluster> {
    match find_server(kind).and_then(|binary| Cluster::start(&binary, 3, false, certs.node())) {
        Ok(cluster) => Some(cluster),
        Err(error @ (LabError::NoServer { .. } | LabError::ServerStart { .. })) => {
            eprintln!("skipped: no {kind:?} that speaks TLS here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn url(cluster: &Cluster) -> String {
    format!("rediss://127.0.0.1:{}", cluster.nodes[0].tls_port())
}

/// The tool's connections of all nodes, each of which must be one to a port for TLS.
fn encrypted(cluster: &Cluster) -> usize {
    let mut count = 0;
    for node in &cluster.nodes {
        let list = node.client().unwrap().run("CLIENT LIST").unwrap().text().unwrap();
        let tls = format!("laddr=127.0.0.1:{} ", node.tls_port());
        for line in list.lines().filter(|line| line.contains("name=df2redis")) {
            assert!(line.contains(&tls), "not encrypted: {line}");
            count += 1;
        }
    }
    count
}

/// A full sync and a journal, with slots that move all the time, and connections that are lost: once as soon as there are any.
#[test]
fn a_cluster_is_filled_and_followed_over_tls() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let certs = Certs::new();
        let Some(cluster) = cluster(kind, &certs) else { continue };
        let cluster = Arc::new(cluster);
        let judge = Arc::new(Server::start_kind(kind, ServerOptions::default()).unwrap());
        let target = Target::Cluster { cluster: cluster.clone(), judge };
        let tool_args = [vec!["--target".into(), url(&cluster)], certs.to_target()].concat();
        let options = StageOptions { slots_move: true, workload_rate: 500, tool_args, ..StageOptions::new(3) };
        let stage = LiveStage::new(binary(), target.clone(), kind, options).unwrap();
        let mut tool = stage.start().unwrap();
        let lose_some =
            || wait_for(|| (target.kill_lanes().unwrap() > 0).then_some(())).expect("connections to be lost");
        lose_some();
        stage.wait_stable(&mut tool).unwrap();
        for _ in 0..3 {
            lose_some();
            wait_for(|| (encrypted(&cluster) > 3).then_some(())).expect("its connections are made again");
        }
        let summary = stage.finish(tool).unwrap_or_else(|why| panic!("{kind:?}: {why}"));
        assert!(summary.slots_moved > 0 && summary.registrations == 1, "{summary:?}");
    }
}

/// What a node was told since the last call, but for what the tests tell it. TLS that was refused tells it nothing.
fn heard(node: &Server) -> Vec<String> {
    let mut client = node.client().unwrap();
    let stats = client.ask(&["INFO", "commandstats"]).unwrap().text().unwrap();
    client.run("CONFIG RESETSTAT").unwrap();
    let names = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next().map(str::to_owned));
    names
        .filter(|name| !["info", "ping", "config|resetstat", "config|set", "dbsize"].contains(&name.as_str()))
        .collect()
}

fn show(node: &Server, certs: &Certs, name: &str) {
    let (cert, key) = (certs.path(&format!("{name}.pem")), certs.path(&format!("{name}.key")));
    node.client().unwrap().run(&format!("CONFIG SET tls-cert-file {cert} tls-key-file {key}")).unwrap();
}

/// One of three nodes shows a certificate of another name, or of another CA: the start is refused, by the node's address, at once
/// and not after the five minutes for which a node that is away is waited for, and that node hears nothing at all.
#[test]
fn a_node_that_is_not_trusted_ends_the_run_and_hears_nothing() {
    let certs = Certs::new();
    let Some(cluster) = cluster(ServerKind::Redis7, &certs) else { return };
    let node = &cluster.nodes[1];
    for (name, word) in [("other-name", "redis.example"), ("impostor", "unknown CA"), ("expired", "expired")] {
        show(node, &certs, name);
        heard(node);
        let (master, _) = Generator::start(Spec::of("string:100B=50").unwrap(), MasterOptions::default()).unwrap();
        let source = format!("dragonfly://127.0.0.1:{}", master.port());
        for job in ["migrate", "replicate"] {
            let mut command = program(&[job, "--source", &source, "--target", &url(&cluster), "--output", "json"]);
            command
                .args(["--progress", "off", "--connect-timeout", "2s", "--retry-max", "300s"])
                .args(certs.to_target());
            // Any password is good enough for a user without one.
            command.env("DF2REDIS_TARGET_USER", "default").env("DF2REDIS_TARGET_PASSWORD", "hunter2");
            let run = start(command).wait();
            eprintln!("{job}, {name}: {}", run.message());
            run.expect_code(5).expect_text(word).expect_text(&node.tls_port().to_string());
            assert!(!run.message().contains("tried again"), "{}", run.message());
            assert_eq!(heard(node), [""; 0], "{name}");
            let keys = cluster.nodes.iter().map(|node| node.client().unwrap().run("DBSIZE").unwrap().int().unwrap());
            assert_eq!(keys.sum::<i64>(), 0, "something was written");
        }
    }
}

/// A handshake that breaks in its middle is no verdict: the node is tried again.
#[test]
fn a_handshake_that_breaks_is_tried_again() {
    let certs = Certs::new();
    let Some(cluster) = cluster(ServerKind::Redis7, &certs) else { return };
    let node = cluster.nodes[1].tls_port();
    let proxy = Proxy::start(node, |n| if n < 3 { Faulty::cut_replies(200) } else { Faulty::default() }).unwrap();
    let (master, _) = Generator::start(Spec::of("string:100B=50").unwrap(), MasterOptions::default()).unwrap();
    let source = format!("dragonfly://127.0.0.1:{}", master.port());
    let mut command = program(&["migrate", "--source", &source, "--target", &url(&cluster), "--output", "json"]);
    command.args(["--target-nat", &format!("127.0.0.1:{node}=127.0.0.1:{}", proxy.port())]);
    command.args(["--progress", "off"]).args(certs.to_target());
    start(command).wait().expect_code(0);
    assert_eq!(proxy.cuts_count(), 3);
    assert_eq!(cluster.keys().unwrap().len(), 50);
}

/// Later, whoever gave a node another certificate may mend that: it is waited for and named, and hears nothing meanwhile.
#[test]
fn a_node_that_shows_another_certificate_in_a_run_is_named_and_waited_for() {
    let certs = Certs::new();
    let Some(cluster) = cluster(ServerKind::Redis7, &certs) else { return };
    let spec = Spec { flows_count: 2, ..Spec::of("string:60B=30").unwrap() };
    let live = Live::start(spec, LiveOptions::default(), MasterOptions::default()).unwrap();
    let world = Clustered { kind: ServerKind::Redis7, cluster, live, dir: tempfile::tempdir().unwrap() };
    let socket = world.dir.path().join("control.sock");
    let (url, to_target) = (url(&world.cluster), certs.to_target());
    let mut args = vec!["--target", url.as_str(), "--control", socket.to_str().unwrap()];
    args.extend(to_target.iter().map(String::as_str));
    let mut tool: Tool = world.start_by(0, &args);
    let node = &world.cluster.nodes[1];
    for (name, word) in [("impostor", "unknown CA"), ("other-name", "redis.example"), ("expired", "expired")] {
        world.wait_applied(&mut tool);
        show(node, &certs, name);
        node.client().unwrap().run("CLIENT KILL TYPE normal SKIPME yes").unwrap();
        heard(node);
        for at in 0..3 {
            (0..20).for_each(|_| world.run(&format!("INCR {}", key_on(at, name))));
        }
        let place = format!("127.0.0.1:{}", node.tls_port());
        until(&mut tool, "it does not say why", || {
            let reasons = reasons(&socket);
            reasons.contains(word) && reasons.contains(&place)
        });
        assert!(!world.live.is_acknowledged(), "{}", tool.said());
        assert_eq!(heard(node), [""; 0], "{name}");
        show(node, &certs, "server");
        world.wait_applied(&mut tool);
        until(&mut tool, "it still says so", || !reasons(&socket).contains(word));
        let count = node.client().unwrap().run(&format!("GET {}", key_on(1, name))).unwrap();
        assert_eq!(count.text().as_deref(), Some("20"), "{name}");
    }
    world.finish(tool);
}
