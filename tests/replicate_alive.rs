//! What keeps a session alive, and what ends it: a source that holds its commands for a while does not.

use df2redis::lab::client::{Client, encode};
use df2redis::lab::encode::owner;
use df2redis::lab::flow::Faults;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::{AckSeen, MasterOptions};
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::wait_for;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

mod in_step;

use in_step::InStep;

/// The answer to where the source stands comes later than any patience; the flows go on.
#[test]
fn a_source_that_holds_its_commands_does_not_end_the_session() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &["--connect-timeout", "1s"]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    source.run("CLIENT PAUSE 8000 ALL").unwrap();
    // What is not known is not said.
    scene.wait(|status| status["in_step"] == false && status["lag"].is_null());
    scene.wait(|status| status["in_step"] == true && !status["lag"].is_null());
    source.run("SET x:after v").unwrap();
    scene.wait_acknowledged();
    assert_eq!(target.run("GET x:after").unwrap().text().as_deref(), Some("v"));
    assert_eq!(scene.live.registrations_count(), 1, "{}", scene.tool.said());
    // A connection that ends is noticed all the same, while an answer is owed too.
    source.run("CLIENT PAUSE 5000 ALL").unwrap();
    scene.wait(|status| status["in_step"] == false);
    scene.source_proxy.drop_all();
    let again = wait_for(|| (scene.live.registrations_count() == 2).then_some(()));
    assert!(again.is_some(), "{}", scene.tool.said());
    scene.stops_equal();
}

/// Both started by one service manager: the source is not there yet, and the checkpoint is good.
#[test]
fn regression_the_first_contact_of_a_job_that_goes_on_waits_for_the_source() {
    const CUT: u64 = 3;
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    scene.tool.kill();
    scene.source().run("SET x:meanwhile v").unwrap();
    // It closes the first connections before it answers.
    scene.source_proxy =
        Proxy::start(scene.live.port(), |n| if n < CUT { Faulty::cut_replies(0) } else { Faulty::default() }).unwrap();
    scene.again(&[]);
    scene.wait(|status| status["in_step"] == true);
    assert!(scene.source_proxy.cuts_count() == CUT && scene.live.partial_count() == 1, "{}", scene.tool.said());
    scene.wait_acknowledged();

    // It refuses them. Another process comes back: that is what the run ends with.
    scene.tool.kill();
    scene.live.die();
    scene.source_proxy = Proxy::start(scene.live.port(), |_| Faulty::default()).unwrap();
    scene.again(&[]);
    let waits = wait_for(|| scene.tool.said().contains("the source cannot be reached").then_some(()));
    assert!(waits.is_some(), "{}", scene.tool.said());
    scene.live.restart().unwrap();
    assert_eq!(scene.tool.wait(), Some(8), "{}", scene.tool.said());

    // Where nothing was begun an address that is wrong is said at once.
    scene.live.die();
    scene.target().run("FLUSHALL").unwrap();
    scene.again(&[]);
    assert_eq!(scene.tool.wait(), Some(4), "{}", scene.tool.said());
}

/// Each second on a flow that is idle, and each 1024 records on one that is busy; a replica that says nothing looks dead.
#[test]
fn acknowledgements_keep_their_cadence() {
    let Some(scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let master = scene.live.master().unwrap();
    let of_flow = |flow: usize| -> Vec<AckSeen> {
        master.acks_log().into_iter().filter(|ack| ack.flow == flow).collect::<Vec<_>>()
    };
    let begun = of_flow(0).len();
    let repeated = wait_for(|| (of_flow(0).len() >= begun + 4).then_some(()));
    assert!(repeated.is_some(), "{}", scene.tool.said());
    let idle = of_flow(0);
    let idle = &idle[begun..];
    assert!(idle.iter().all(|ack| ack.lsn == idle[0].lsn), "{idle:?}");
    let gaps: Vec<Duration> = idle.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    // The source's network may hold one up and let the next through; together they are as far apart as they should be.
    assert!(gaps.iter().sum::<Duration>() >= Duration::from_millis(900) * gaps.len() as u32, "too many: {gaps:?}");

    // As many records as are written in next to no time.
    const RECORDS: u64 = 20_000;
    let mut source = scene.source();
    let key = (0..).map(|i| format!("x:{i}")).find(|key| owner(key.as_bytes(), 2) == 0).unwrap();
    let (first, before) = (idle[0].lsn, of_flow(0).len());
    let mut pipelined = Vec::new();
    (0..500).for_each(|_| encode(&["INCR", &key], &mut pipelined));
    for _ in 0..RECORDS / 500 {
        source.send(&pipelined).unwrap();
        (0..500).for_each(|_| drop(source.reply().unwrap()));
    }
    let all = wait_for(|| (of_flow(0).last()?.lsn == first + RECORDS).then_some(()));
    assert!(all.is_some(), "{}", scene.tool.said());
    let busy = of_flow(0).split_off(before);
    assert!(busy.windows(2).all(|pair| pair[0].lsn <= pair[1].lsn), "{busy:?}");
    let took = busy.last().unwrap().at - busy[0].at;
    let for_records =
        busy.windows(2).filter(|pair| pair[1].at - pair[0].at < Duration::from_millis(900)).count() as u64;
    // A batch that is confirmed may overshoot the border by its own records; a slow machine sends some each second.
    let seconds = took.as_secs() + 1;
    assert!(for_records + seconds >= RECORDS / 1024 / 3, "{} in {took:?}", busy.len());
    assert!((busy.len() as u64) <= RECORDS / 1024 + seconds + 2, "{} in {took:?}", busy.len());
}

/// An idle source says nothing for hours: only the kernel can notice that its machine is gone, on every connection to it.
#[test]
fn connections_to_the_source_have_a_keep_alive() {
    let Some(scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let port = format!(":{:04X}", scene.source_proxy.port());
    // Of each connection to that port its timer; 2 is that of the keep-alive, 1 that of bytes which are on their way.
    let timers = || -> Vec<String> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let to_source = rows.filter(|row| row.get(2).is_some_and(|remote| remote.ends_with(&port)) && row[3] == "01");
        to_source.map(|row| row[5][..2].to_string()).collect()
    };
    // Two flows and the control connection.
    let all = wait_for(|| (timers() == ["02"; 3]).then_some(()));
    assert!(all.is_some(), "{:?}", timers());
}

/// Pops of many elements go as commands whose answers are short; what is left is the same.
#[test]
fn pops_of_many_elements_leave_what_the_source_has() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    let mut source = scene.source();
    for line in [
        "RPUSH x:l 1 2 3 4 5 6 7 8 9",
        "LPOP x:l 3",
        "RPOP x:l 2",
        "RPUSH x:gone 1 2 3",
        "RPOP x:gone 100",
        "ZADD x:z 1 a 1 b 2 c 2 d 3 e 3 f",
        "ZPOPMIN x:z 1",
        "ZPOPMAX x:z 3",
        "ZADD x:none 1 a",
        "ZPOPMAX x:none 50",
    ] {
        source.run(line).unwrap();
    }
    scene.wait_acknowledged();
    let mut target = scene.target();
    let mut all = |line: &str| -> Vec<String> {
        target.run(line).unwrap().array().unwrap().iter().map(|item| item.text().unwrap()).collect()
    };
    assert_eq!(all("LRANGE x:l 0 -1"), ["4", "5", "6", "7"]);
    assert_eq!(all("ZRANGE x:z 0 -1"), ["b", "c"]);
    assert_eq!(all("KEYS x:*none"), [] as [&str; 0]);
    scene.stops_equal();
}

/// Claims are decided by the source's time: what was not idle enough there is not claimed at the target, which executes them
/// later; consumers, delivery times and counts are the source's.
#[test]
fn claims_in_consumer_groups_are_the_sources() {
    for kind in [ServerKind::Redis7, ServerKind::Valkey9] {
        let Some(mut scene) = InStep::with(kind, &[]) else { return };
        let (mut source, mut target) = (scene.source(), scene.target());
        for i in 1..=6 {
            source.run(&format!("XADD x:s {i}-0 f v")).unwrap();
        }
        source.run("XGROUP CREATE x:s g 0").unwrap();
        source.run("XREADGROUP GROUP g first COUNT 6 STREAMS x:s >").unwrap();
        scene.wait_acknowledged();
        // All of these are 0 s idle at the source when they are claimed, and 3 s when the target hears of it.
        scene.proxy.set_paused(true);
        source.run("XCLAIM x:s g second 2000 1-0 2-0").unwrap();
        source.run("XAUTOCLAIM x:s g third 2000 0 COUNT 2").unwrap();
        source.run("XCLAIM x:s g forced 0 3-0 TIME 77 RETRYCOUNT 9 JUSTID").unwrap();
        source.run("XCLAIM x:s g idle 0 4-0 IDLE 5000").unwrap();
        source.run("XDEL x:s 5-0").unwrap();
        source.run("XAUTOCLAIM x:s g auto 0 4-0 COUNT 3 JUSTID").unwrap();
        source.run("XCLAIM x:s g force 0 5-0 6-0 FORCE").unwrap();
        std::thread::sleep(Duration::from_secs(3));
        scene.proxy.set_paused(false);
        scene.wait_acknowledged();
        let pending = |client: &mut Client| -> Vec<(String, String, i64, i64)> {
            let reply = client.run("XPENDING x:s g - + 10").unwrap();
            let rows = reply.array().unwrap().iter().map(|row| row.array().unwrap());
            rows.map(|row| {
                // Two servers are asked one after the other: whole tens of seconds tell the times apart here.
                let idle = row[2].int().unwrap() / 10_000;
                (row[0].text().unwrap(), row[1].text().unwrap(), idle, row[3].int().unwrap())
            })
            .collect()
        };
        let found = pending(&mut target);
        assert_eq!(found, pending(&mut source), "{kind:?}");
        let consumers: Vec<&str> = found.iter().map(|row| row.1.as_str()).collect();
        assert_eq!(consumers, ["first", "first", "forced", "auto", "force"], "{found:?}");
        let names = |client: &mut Client| -> Vec<String> {
            let reply = client.run("XINFO CONSUMERS x:s g").unwrap();
            let mut names: Vec<_> =
                reply.array().unwrap().iter().map(|row| row.array().unwrap()[1].text().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&mut target), names(&mut source));
        assert!(names(&mut target).contains(&"second".to_string()), "made, though it claimed nothing");
        scene.stops_equal();
    }
}

/// A service manager starts what depends on the target then: not with the full sync, and not before.
#[test]
fn readiness_is_told_once_the_target_is_in_step() {
    let server = Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap();
    // The second flow's snapshot takes its time.
    let faults = Faults::default().stall(1, 300, Duration::from_secs(2));
    let options = MasterOptions { faults, ..MasterOptions::default() };
    let live = Live::start(Spec::of("string:10B=2000").unwrap(), LiveOptions::default(), options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (socket, notify) = (dir.path().join("job.sock"), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut tool = Command::new(&*in_step::TOOL)
        .args(["replicate", "--source", &format!("dragonfly://127.0.0.1:{}", live.port())])
        .args(["--target", &format!("redis://127.0.0.1:{}", server.port()), "--memory", "64MiB", "--progress", "off"])
        .args(["--control", socket.to_str().unwrap()])
        .env("NOTIFY_SOCKET", &notify)
        .spawn()
        .unwrap();
    let mut text = [0; 64];
    let said = manager.recv(&mut text).map(|len| String::from_utf8_lossy(&text[..len]).into_owned());
    let status = Command::new(&*in_step::TOOL).args(["status", "--output", "json", "--control"]).arg(&socket).output();
    let told = manager.set_nonblocking(true).and_then(|()| manager.recv(&mut text));
    tool.kill().unwrap();
    tool.wait().unwrap();
    assert!(said.as_ref().is_ok_and(|said| said.starts_with("READY=1\n")), "{said:?}");
    let status: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap();
    assert_eq!(status["status"]["in_step"], true, "{status}");
    assert!(told.is_err(), "told twice");
}
