//! A source that goes away, or is let go, while the target is behind: everything that was read of it is applied, in order and
//! once, before a partial sync is asked for; so a source with a backlog of a few records loses no position.

mod common;

use common::job::{binary, stop, until};
use common::{Stopped, noise};
use df2redis::lab::encode::owner;
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::proxy::{Faulty, Proxy};
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, is_stable, wait_for};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const FLOWS: usize = 2;
/// Records that the source still has.
const BACKLOG: u64 = 8;

/// A live source of two flows, a target, and what was written between them.
struct World {
    live: Live,
    server: Arc<Server>,
    /// Positions and bytes sent before the first push.
    begin: Vec<u64>,
    sent: Vec<u64>,
}

impl World {
    fn new(backlog_records: Option<u64>) -> Self {
        let spec = Spec { seed: 5, flows_count: FLOWS, ..Spec::of("string:60B=20,list:6x9=5").unwrap() };
        let options = MasterOptions { backlog_records, ..MasterOptions::default() };
        let live = Live::start(spec, LiveOptions::default(), options).unwrap();
        let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
        Self { live, server, begin: Vec::new(), sent: Vec::new() }
    }

    /// Starts the tool; its report is in `report`, its spool file in the server's directory.
    fn start(&self, more: &[&str]) -> Tool {
        let (dir, log) = (self.server.dir(), self.server.dir().join("tool.log"));
        let report = dir.join("report");
        let mut args = vec!["--spool", dir.to_str().unwrap(), "--report", report.to_str().unwrap()];
        args.extend_from_slice(more);
        Tool::start(binary(), self.live.port(), self.server.port(), &log, &args).unwrap()
    }

    /// Starts the tool, waits for a good checkpoint, and stops the target.
    #[track_caller]
    fn start_and_stop_target(&mut self, more: &[&str]) -> (Tool, Stopped) {
        let mut tool = self.start(more);
        until(&mut tool, "no good checkpoint", || is_stable(&self.server) && self.live.is_acknowledged());
        self.begin = self.live.world().next_lsns();
        self.sent = self.live.master().unwrap().sent_bytes();
        (tool, Stopped::new(&self.server))
    }

    /// `count` records on each of `flows`: a number and a long text at the end of the flow's list.
    fn push(&self, flows: &[usize], count: usize) {
        let pad: String = noise(7, 1500).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        for i in 0..count {
            for flow in flows {
                self.run(&["RPUSH", &list_on(*flow), &format!("{i}:{pad}")]);
            }
        }
    }

    fn run(&self, args: &[&str]) {
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        self.live.world().run(0, &args);
    }

    /// Waits until the source got rid of every record of these flows.
    #[track_caller]
    fn wait_sent(&self, tool: &mut Tool, flows: &[usize]) {
        let bytes = |flow: usize| self.live.world().take(flow, self.begin[flow], usize::MAX, Default::default());
        let wanted: Vec<u64> =
            flows.iter().map(|flow| self.sent[*flow] + bytes(*flow).unwrap().bytes.len() as u64).collect();
        let sent = || self.live.master().unwrap().sent_bytes();
        until(tool, "the source is not read", || flows.iter().zip(&wanted).all(|(flow, all)| sent()[*flow] >= *all));
    }

    fn checkpoint(&self) -> Vec<u64> {
        let mut client = self.server.client().unwrap();
        let lsn = |flow| client.run(&format!("HGET df2redis:checkpoint lsn:{flow}")).unwrap().text().unwrap();
        (0..FLOWS).map(lsn).map(|text| text.parse().unwrap()).collect()
    }

    /// How many texts the flow's list holds: the right ones, in order, once.
    #[track_caller]
    fn list_len(&self, flow: usize) -> u64 {
        let reply = self.server.client().unwrap().run(&format!("LRANGE {} 0 -1", list_on(flow))).unwrap();
        let found = reply.array().unwrap().to_vec();
        for (i, item) in found.iter().enumerate() {
            assert!(item.text().unwrap().starts_with(&format!("{i}:")), "flow {flow}, {i}");
        }
        found.len() as u64
    }

    /// Waits until everything is acknowledged, stops the tool and compares every key.
    #[track_caller]
    fn finish(&self, mut tool: Tool) {
        until(&mut tool, "not acknowledged", || self.live.is_acknowledged());
        stop(&mut tool);
        assert_eq!(self.live.master().unwrap().violations(), []);
        let truth = self.server.dir().join("truth.jsonl");
        self.live.write_truth(&truth).unwrap();
        compare(&self.server, ServerKind::Redis7, &truth).unwrap_or_else(|text| panic!("{text}\n{}", tool.said()));
    }

    fn report(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.server.dir().join("report/report.json")).unwrap()).unwrap()
    }
}

fn list_on(flow: usize) -> String {
    (0..).map(|i: u32| format!("drain:list:{i}")).find(|key| owner(key.as_bytes(), FLOWS) == flow).unwrap()
}

#[track_caller]
fn wait_said(tool: &mut Tool, words: &str) {
    let log = |tool: &Tool| tool.said();
    let said = wait_for(|| {
        assert_eq!(tool.ended(), None, "{}", log(tool));
        tool.said().contains(words).then_some(())
    });
    assert!(said.is_some(), "no \"{words}\" in\n{}", tool.said());
}

/// Bytes that the job says it has read.
fn read_bytes(socket: &str) -> u64 {
    let args = ["status", "--output", "json", "--control", socket];
    let status = std::process::Command::new(binary()).args(args).output().unwrap();
    let answer: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    answer["status"]["bytes_in"].as_u64().unwrap_or_default()
}

/// Bytes in files without a name that the process holds open: its spool.
fn spooled_bytes(tool: &Tool) -> u64 {
    let dir = std::fs::read_dir(format!("/proc/{}/fd", tool.pid())).unwrap();
    let is_unnamed = |path: &Path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().ends_with("(deleted)"));
    let files = dir.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_unnamed(path));
    files.filter_map(|path| Some(std::fs::metadata(path).ok()?.len())).sum()
}

#[test]
fn what_was_read_is_applied_before_a_source_that_went_away_is_asked_again() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 15_000);
    world.wait_sent(&mut tool, &[0, 1]);
    assert!(spooled_bytes(&tool) > 4 << 20, "{}", spooled_bytes(&tool));
    world.live.master().unwrap().cut_all();
    // What the source has for whoever comes back: not more than these.
    world.run(&["INCR", "drain:count"]);
    world.run(&["APPEND", "drain:text", "once"]);
    wait_said(&mut tool, "the source is gone: applying what was read");
    assert_eq!(world.live.registrations_count(), 1, "the source is asked when everything is applied");
    drop(stopped);
    until(&mut tool, "no second registration", || world.live.registrations_count() > 1);
    world.finish(tool);
    assert_eq!((world.live.registrations_count(), world.live.partial_count()), (2, 1));
    assert_eq!((world.list_len(0), world.list_len(1)), (15_000, 15_000));
    let gone = world.report()["source_gone"].clone();
    assert_eq!(gone["count"], 1, "{gone}");
    assert!(gone["records"].as_u64() > Some(10_000), "{gone}");
}

/// Everything that was read is proven to be at the target, by positions, although nobody is left to ask.
#[test]
fn a_source_that_is_gone_for_good_leaves_the_target_at_the_last_position_read() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 4_000);
    world.wait_sent(&mut tool, &[0, 1]);
    let end = world.live.world().next_lsns();
    world.live.die();
    wait_said(&mut tool, "the source is gone: applying what was read");
    drop(stopped);
    until(&mut tool, "not drained", || world.checkpoint() == end);
    let truth = world.server.dir().join("truth.jsonl");
    world.live.write_truth(&truth).unwrap();
    compare(&world.server, ServerKind::Redis7, &truth).unwrap();
    // It goes on trying; told to stop, it says how far the target is.
    wait_said(&mut tool, "lost the source: going on from the checkpoint");
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    let positions = format!("flow 0 up to LSN {}, flow 1 up to LSN {}", end[0] - 1, end[1] - 1);
    let state = world.report()["outcome"]["target_state"].as_str().unwrap().to_owned();
    assert!(state.contains(&positions), "{state}");
    // Another process in its place is a lost position, and the message says the same.
    world.live.restart().unwrap();
    let mut tool = world.start(&[]);
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert!(tool.said().contains(&positions), "{}", tool.said());
}

/// Told to stop while it applies what is left of a source that is gone for good: nobody else has it.
#[test]
fn a_stop_applies_what_was_read_of_a_source_that_is_gone() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&["--log", "info"]);
    world.push(&[0, 1], 15_000);
    world.wait_sent(&mut tool, &[0, 1]);
    assert!(spooled_bytes(&tool) > 4 << 20, "{}", spooled_bytes(&tool));
    let end = world.live.world().next_lsns();
    world.live.die();
    wait_said(&mut tool, "the source is gone: applying what was read");
    tool.signal("INT");
    wait_said(&mut tool, "stopping:");
    // An order to decode nothing more would have been given by then.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    drop(stopped);
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    assert_eq!(world.checkpoint(), end, "{}", tool.said());
    assert_eq!((world.list_len(0), world.list_len(1)), (15_000, 15_000));
}

/// The source lives, but does not have any more what was read of it. It is left at once, and then waits for nobody.
#[test]
fn a_stop_applies_what_was_read_and_the_next_start_goes_on() {
    let mut world = World::new(Some(BACKLOG));
    let socket = world.server.dir().join("job.sock").to_str().unwrap().to_owned();
    let (mut tool, stopped) = world.start_and_stop_target(&["--control", &socket]);
    let before = read_bytes(&socket);
    world.push(&[0, 1], 15_000);
    world.wait_sent(&mut tool, &[0, 1]);
    // What was sent may be on its way still.
    let sent: u64 = world.live.master().unwrap().sent_bytes().iter().sum::<u64>() - world.sent.iter().sum::<u64>();
    until(&mut tool, "not read", || read_bytes(&socket) - before >= sent);
    assert!(spooled_bytes(&tool) > 4 << 20, "{}", spooled_bytes(&tool));
    let end = world.live.world().next_lsns();
    tool.signal("INT");
    until(&mut tool, "the registration lives", || world.live.master().unwrap().replicas_count() == 0);
    world.push(&[0, 1], BACKLOG as usize / 2);
    drop(stopped);
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    assert_eq!(world.checkpoint(), end, "{}", tool.said());
    let tool = world.start(&[]);
    world.finish(tool);
    assert_eq!((world.live.registrations_count(), world.live.partial_count()), (2, 1));
    assert_eq!(world.live.world().next_lsns(), world.checkpoint());
}

#[test]
fn past_the_cap_what_was_read_is_applied_before_the_source_is_asked_again() {
    let mut world = World::new(None);
    let (mut tool, stopped) = world.start_and_stop_target(&["--spool-max", "4MiB"]);
    world.push(&[0, 1], 20_000);
    wait_said(&mut tool, "The source is let go");
    // At once, for all flows: nobody waits for the target any more.
    until(&mut tool, "the registration lives", || world.live.master().unwrap().replicas_count() == 0);
    assert_eq!(world.live.registrations_count(), 1);
    drop(stopped);
    world.finish(tool);
    assert!(world.live.partial_count() >= 1);
    assert_eq!((world.list_len(0), world.list_len(1)), (20_000, 20_000));
}

/// The source was let go, and its backlog does not reach back: what was read is there, and the message says up to where.
#[test]
fn past_the_cap_a_position_that_is_lost_is_the_last_one_read() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&["--spool-max", "4MiB"]);
    world.push(&[0, 1], 20_000);
    wait_said(&mut tool, "The source is let go");
    drop(stopped);
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    let lsns = world.checkpoint();
    let held: Vec<u64> = (0..FLOWS).map(|flow| world.list_len(flow)).collect();
    for flow in 0..FLOWS {
        assert_eq!(world.begin[flow] + held[flow], lsns[flow], "flow {flow}");
        assert!(tool.said().contains(&format!("flow {flow} up to LSN {}", lsns[flow] - 1)), "{}", tool.said());
    }
    // Far more than the window that was under way when the target stopped: the spool, too.
    assert!(held.iter().sum::<u64>() * 1500 > 4 << 20, "{held:?}");
}

/// One flow has brought a flush, the other one has not: it is not executed, and the other one is applied to its end.
#[test]
fn a_barrier_that_was_half_read_is_not_executed() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 3_000);
    world.wait_sent(&mut tool, &[0, 1]);
    let before_flush = world.live.world().next_lsns();
    world.live.master().unwrap().stall_flow(1, std::time::Duration::from_secs(600));
    world.run(&["FLUSHALL"]);
    world.push(&[0], 3);
    world.wait_sent(&mut tool, &[0]);
    world.live.die();
    wait_said(&mut tool, "the source is gone: applying what was read");
    drop(stopped);
    until(&mut tool, "not drained", || world.checkpoint() == before_flush);
    wait_said(&mut tool, "lost the source: going on from the checkpoint");
    assert_eq!((world.list_len(0), world.list_len(1)), (3_000, 3_000));
    assert_eq!(world.checkpoint(), before_flush);
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
}

/// The same with a source that comes back: it is executed once, when both flows have brought it.
#[test]
fn a_barrier_that_was_half_read_is_executed_by_the_next_session() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 3_000);
    world.wait_sent(&mut tool, &[0, 1]);
    world.live.master().unwrap().stall_flow(1, std::time::Duration::from_secs(600));
    world.run(&["FLUSHALL"]);
    world.push(&[0], 3);
    world.wait_sent(&mut tool, &[0]);
    world.live.master().unwrap().cut_all();
    world.push(&[1], 3);
    drop(stopped);
    world.finish(tool);
    assert_eq!((world.live.partial_count(), world.list_len(0), world.list_len(1)), (1, 3, 3));
}

/// A flush that every flow has brought is executed while the rest is applied, and what follows it too.
#[test]
fn a_barrier_that_was_read_whole_is_executed_on_the_way() {
    let mut world = World::new(Some(BACKLOG));
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 2_000);
    world.run(&["FLUSHALL"]);
    world.push(&[0, 1], 2_500);
    world.run(&["FLUSHDB"]);
    world.push(&[0, 1], 3_000);
    world.wait_sent(&mut tool, &[0, 1]);
    let end = world.live.world().next_lsns();
    world.live.master().unwrap().cut_all();
    wait_said(&mut tool, "the source is gone: applying what was read");
    drop(stopped);
    until(&mut tool, "not drained", || world.checkpoint() == end);
    assert_eq!((world.list_len(0), world.list_len(1)), (3_000, 3_000));
}

/// The same of a source that nobody can ask whether it is still the master: it may have been made a replica. What stood before
/// the flush is applied, and the flush by whoever can ask.
#[test]
fn a_barrier_of_a_source_that_cannot_be_asked_is_not_executed() {
    let mut world = World::new(None);
    let (mut tool, stopped) = world.start_and_stop_target(&[]);
    world.push(&[0, 1], 2_000);
    world.wait_sent(&mut tool, &[0, 1]);
    let before_flush = world.live.world().next_lsns();
    world.run(&["FLUSHALL"]);
    world.push(&[0, 1], 2_500);
    world.wait_sent(&mut tool, &[0, 1]);
    world.live.die();
    wait_said(&mut tool, "the source is gone: applying what was read");
    drop(stopped);
    wait_said(&mut tool, "nobody says whether it is still the master");
    assert_eq!((world.list_len(0), world.list_len(1)), (2_000, 2_000));
    assert_eq!(world.checkpoint(), before_flush);
    // It comes back as another process, of which nothing is known.
    world.live.restart().unwrap();
    assert_eq!(tool.wait(), Some(8), "{}", tool.said());
    assert_eq!((world.list_len(0), world.list_len(1)), (2_000, 2_000));
}

/// Stopped, stopped twice or killed while what was read is being applied: the next start goes on from where that was.
#[test]
fn an_end_in_the_middle_of_it_loses_nothing() {
    for signals in [&["KILL"][..], &["INT"], &["TERM", "TERM"]] {
        let mut world = World::new(None);
        let (mut tool, stopped) = world.start_and_stop_target(&[]);
        world.push(&[0, 1], 6_000);
        world.wait_sent(&mut tool, &[0, 1]);
        world.live.master().unwrap().cut_all();
        wait_said(&mut tool, "the source is gone: applying what was read");
        drop(stopped);
        let begin = world.begin[0];
        until(&mut tool, "nothing is applied", || world.checkpoint()[0] > begin + 100);
        signals.iter().for_each(|name| tool.signal(name));
        let code = tool.wait();
        assert!(code == Some(if signals == ["KILL"] { -1 } else { 130 }), "{code:?}: {}", tool.said());
        let tool = world.start(&[]);
        world.finish(tool);
        assert_eq!((world.list_len(0), world.list_len(1)), (6_000, 6_000));
    }
}

/// What the target says it lost of a source that is gone is for the next session to ask: its name is in the checkpoint. Whoever stops
/// the job meanwhile waits for no answer.
#[test]
fn a_stop_waits_for_no_key_of_a_source_that_is_gone() {
    const KEY: &str = "drain:lost";
    let mut world = World::new(None);
    world.run(&["SET", KEY, "v", "PX", "9000000"]);
    // What was read takes half a minute.
    let proxy = Proxy::start(world.server.port(), |_| Faulty::slow(1 << 20)).unwrap();
    let target = format!("redis://127.0.0.1:{}", proxy.port());
    let (mut tool, stopped) = world.start_and_stop_target(&["--target", &target]);
    drop(stopped);
    assert_eq!(world.server.client().unwrap().ask(&["DEL", KEY]).unwrap().int(), Some(1));
    let stopped = Stopped::new(&world.server);
    world.run(&["PERSIST", KEY]);
    world.push(&[0, 1], 10_000);
    world.wait_sent(&mut tool, &[0, 1]);
    world.live.master().unwrap().cut_all();
    wait_said(&mut tool, "the source is gone: applying what was read");
    drop(stopped);
    let field = format!("lost:{}:0:{KEY}", owner(KEY.as_bytes(), FLOWS));
    let is_named = || {
        let named = world.server.client().unwrap().ask(&["HEXISTS", "df2redis:checkpoint", &field]).unwrap();
        named.int() == Some(1)
    };
    until(&mut tool, "it is not named", is_named);
    assert!(world.list_len(0) < 10_000, "it was drained before it was stopped");
    tool.signal("INT");
    assert_eq!(tool.wait(), Some(130), "{}", tool.said());
    assert_eq!((world.list_len(0), world.list_len(1)), (10_000, 10_000));
    assert!(is_named(), "{}", tool.said());
    let mut tool = world.start(&[]);
    // Nothing else is missing, and a stop would not wait for it either.
    let mut client = world.server.client().unwrap();
    until(&mut tool, "it is not fetched", || client.ask(&["EXISTS", KEY]).unwrap().int() == Some(1));
    world.finish(tool);
    assert_eq!(client.ask(&["GET", KEY]).unwrap().text().as_deref(), Some("v"));
}
