//! `verify` while slots of the target's cluster move: every key of it is met, wherever it is by then, and told once; slots that
//! never stand still are told, for nothing is proven about them.

mod common;

use common::{Run, Running, program, server, start};
use df2redis::lab::LabError;
use df2redis::lab::client::Reply;
use df2redis::lab::cluster::Cluster;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::torture::wait_for;
use df2redis::redis::slot::slot;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// A source and a cluster of so many primaries. None: no such servers here.
fn pair(primaries: usize) -> Option<(Server, Cluster)> {
    let source = server(ServerKind::Redis7)?;
    match Cluster::start_kind(ServerKind::Redis7, primaries, false) {
        Err(LabError::NoServer { what, .. }) => {
            eprintln!("skipped: no {what} here");
            None
        }
        cluster => Some((source, cluster.unwrap())),
    }
}

/// A tag, the `n`th of those whose slot one of three primaries has at first.
fn tag_of(node: usize, n: usize) -> String {
    let is_there = |tag: &String| usize::from(slot(tag.as_bytes()).0) * 3 / 16384 == node;
    (0..).map(|i| format!("t{i}")).filter(is_there).nth(n).unwrap()
}

fn slot_of(tag: &str) -> u16 {
    slot(tag.as_bytes()).0
}

/// Sets so many keys `{tag}:<number>`.
fn fill(server: &Server, tag: &str, count: u32) {
    let script = "for i=1,ARGV[1] do redis.call('SET','{'..KEYS[1]..'}:'..i,'v') end return 1";
    let reply = server.client().unwrap().ask(&["EVAL", script, "1", tag, &count.to_string()]).unwrap();
    assert_eq!(reply, Reply::Int(1), "{tag}");
}

fn verify(source: &Server, cluster: &Cluster, rate: &str) -> Running {
    verify_with(source, cluster, &["--rate", rate])
}

fn verify_with(source: &Server, cluster: &Cluster, more: &[&str]) -> Running {
    let urls = [source.port(), cluster.port()].map(|port| format!("redis://127.0.0.1:{port}"));
    let mut command = program(&["verify", "--source", &urls[0], "--target", &urls[1], "--output", "json"]);
    command.args(["--progress", "off", "--connect-timeout", "60s", "--lag-max", "500ms"]).args(more);
    start(command)
}

/// How often each key was told, by key, kind and place.
fn found(run: &Run) -> BTreeMap<String, usize> {
    let lines = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.filter(|line: &Value| line["kind"].is_string()).collect();
    let mut found = BTreeMap::new();
    for line in lines {
        let [key, kind, place] = ["key", "kind", "where"].map(|name| line[name].as_str().unwrap_or_default());
        *found.entry(format!("{key} {kind} {place}").trim().to_owned()).or_default() += 1;
    }
    found
}

#[track_caller]
fn expect_extras(run: &Run, tags: &[&str], count: u32) {
    let wanted = tags.iter().flat_map(|tag| (1..=count).map(move |i| (format!("{{{tag}}}:{i} extra"), 1)));
    assert_eq!(found(run), wanted.collect(), "{}", run.stderr);
    run.expect_code(10);
}

/// Calls of a command that a server has counted.
fn calls(server: &Server, command: &str) -> u64 {
    let stats = server.client().unwrap().run("INFO commandstats").unwrap().text().unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    calls.and_then(|text| text.split(',').next()?.parse().ok()).unwrap_or(0)
}

fn signal(server: &Server, name: &str) {
    let pid = server.pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// While the source is stopped the comparison stands still, once it has begun at this node of the target.
fn while_it_stands(source: &Server, node: &Server, command: &str, act: impl FnOnce()) {
    assert!(wait_for(|| (calls(node, command) > 0).then_some(())).is_some(), "{command} was never sent");
    signal(source, "STOP");
    act();
    signal(source, "CONT");
}

/// From a node that is not gone through yet to one that is, and to one that joined; and from one that is to one that is not.
#[test]
fn keys_that_only_the_target_has_are_found_while_their_slots_move() {
    let Some((source, mut cluster)) = pair(3) else { return };
    let joined = cluster.join().unwrap();
    let [back, ahead, many, to_new] = [(2, 0), (0, 0), (1, 0), (2, 1)].map(|(node, n)| tag_of(node, n));
    // Long enough for what follows to be done while this node is gone through.
    fill(&source, &many, 1200);
    fill(&cluster.nodes[1], &many, 1200);
    [(2, &back), (0, &ahead), (2, &to_new)].iter().for_each(|(node, tag)| fill(&cluster.nodes[*node], tag, 20));
    let run = verify(&source, &cluster, "400");
    while_it_stands(&source, &cluster.nodes[1], "scan", || {
        for (tag, from, to) in [(&back, 2, 0), (&ahead, 0, 2), (&to_new, 2, joined)] {
            cluster.move_slot(slot_of(tag), from, to).unwrap();
            cluster.wait_agreed().unwrap();
        }
        assert_eq!(calls(&cluster.nodes[2], "scan"), 0, "the last node was gone through too soon");
    });
    expect_extras(&run.wait(), &[&back, &ahead, &to_new], 20);
    expect_extras(&verify(&source, &cluster, "off").wait(), &[&back, &ahead, &to_new], 20);
}

/// The state file says who had which slots.
#[test]
fn slots_that_moved_between_two_runs_are_gone_through_again() {
    let Some((source, cluster)) = pair(3) else { return };
    let [back, many] = [tag_of(2, 0), tag_of(1, 0)];
    fill(&source, &many, 1200);
    fill(&cluster.nodes[1], &many, 1200);
    fill(&cluster.nodes[2], &back, 20);
    let file = source.dir().join("state.json").display().to_string();
    let resume = ["--rate", "400", "--resume", &file];
    let run = verify_with(&source, &cluster, &resume);
    while_it_stands(&source, &cluster.nodes[1], "scan", || {
        run.signal("INT");
        let run = run.wait();
        run.expect_code(130);
        assert_eq!((found(&run), calls(&cluster.nodes[2], "scan")), (BTreeMap::new(), 0));
        cluster.move_slot(slot_of(&back), 2, 0).unwrap();
    });
    let run = verify_with(&source, &cluster, &resume).wait();
    expect_extras(&run, &[&back], 20);
    assert!(run.stdout.contains("\"resumed\":true"), "{}", run.stdout);
}

/// What was one node is asked like a cluster.
#[test]
fn a_cluster_of_one_node_may_grow_while_it_is_compared() {
    let Some((source, mut cluster)) = pair(1) else { return };
    let joined = cluster.join().unwrap();
    for server in [&source, &cluster.nodes[0]] {
        ["stays", "goes"].iter().for_each(|tag| fill(server, tag, 400));
    }
    let run = verify(&source, &cluster, "400");
    while_it_stands(&source, &cluster.nodes[0], "type", || cluster.move_slot(slot_of("goes"), 0, joined).unwrap());
    let run = run.wait();
    assert_eq!(found(&run), BTreeMap::new(), "{}", run.stderr);
    run.expect_code(0);
}

/// A move that was begun and never ended: some of its keys may be anywhere.
#[test]
fn slots_that_never_stand_still_are_not_compared() {
    let Some((source, cluster)) = pair(3) else { return };
    let tag = tag_of(0, 0);
    fill(&cluster.nodes[0], &tag, 3);
    let set = |node: usize, words: &str| {
        let reply = cluster.nodes[node].client().unwrap().run(&format!("CLUSTER SETSLOT {} {words}", slot_of(&tag)));
        assert_eq!(reply.unwrap().text().as_deref(), Some("OK"));
    };
    set(1, &format!("IMPORTING {}", cluster.id(0)));
    set(0, &format!("MIGRATING {}", cluster.id(1)));
    let run = verify(&source, &cluster, "off").wait();
    let number = slot_of(&tag);
    assert_eq!(found(&run).remove(&format!("not_compared slots {number}-{number}")), Some(1), "{}", run.stdout);
    run.expect_code(10);
    [0, 1].iter().for_each(|node| set(*node, "STABLE"));
    expect_extras(&verify(&source, &cluster, "off").wait(), &[&tag], 3);
}

/// Some keys of a slot are where it comes from, the others at a node that is given its first slot: all of them are compared.
#[test]
fn keys_of_a_slot_that_is_on_the_move_for_long_are_compared() {
    let Some((source, mut cluster)) = pair(1) else { return };
    let joined = cluster.join().unwrap();
    [&source, &cluster.nodes[0]].iter().for_each(|server| fill(server, "t", 6));
    cluster.half_move_key(slot_of("t"), 0, joined, &["{t}:1", "{t}:2", "{t}:3"]).unwrap();
    let mut importer = cluster.nodes[joined].client().unwrap();
    for line in ["SET {t}:2 other", "DEL {t}:3"] {
        importer.run("ASKING").unwrap();
        importer.run(line).unwrap();
    }
    let mut owner = cluster.nodes[0].client().unwrap();
    owner.run("SET {t}:4 other").unwrap();
    owner.run("DEL {t}:5").unwrap();
    let number = slot_of("t");
    let open = format!("not_compared slots {number}-{number}");
    let differing = ["{t}:2 value byte 0", "{t}:3 missing", "{t}:4 value byte 0", "{t}:5 missing"];
    let wanted = differing.into_iter().map(str::to_owned).chain([open]).map(|line| (line, 1));
    let run = verify(&source, &cluster, "off").wait();
    assert_eq!(found(&run), wanted.collect(), "{}", run.stderr);
    run.expect_code(10);
    cluster.move_slot(number, 0, joined).unwrap();
    let run = verify(&source, &cluster, "off").wait();
    assert_eq!(found(&run), differing.into_iter().map(|line| (line.to_owned(), 1)).collect(), "{}", run.stderr);
}
