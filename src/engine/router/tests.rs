//! What goes out on which lane, with which markers; what is skipped after a restart; when positions are written; what is
//! kept of a batch that was partly rejected, and where it goes. Without a ring: batches are moved by hand as the kernel would.

use super::*;
use crate::convert::journal::GlobalCommand;
use crate::convert::{Class, CommandMeta, Out, Scope};
use crate::engine::again;
use crate::engine::batch::Batch;
use crate::engine::errors::judge_in_cluster;
use crate::engine::lane::{Fault, Verdict};
use crate::engine::messages::{LaneStart, NodeName};
use crate::engine::outlet::Outlet;
use crate::engine::own::{CHECKPOINT_KEY, position_key};
use crate::engine::writer::Source;
use crate::ids::DbIndex;
use crate::redis::resp;
use crate::redis::slot::{SLOTS, slot};
use crate::uring::{SlabLayout, tcp_pair};
use std::net::TcpStream;

mod lost;

const FLOW: FlowId = FlowId(3);
const READ_NS: u64 = 77;
/// What an earlier session may have sent ends here.
const SENT_BEFORE: Lsn = Lsn(20);
/// The answers to what stands before this were seen.
const HEARD_BEFORE: Lsn = Lsn(6);

struct World {
    router: Router,
    lanes: Vec<Lane>,
    slab: Slab,
    _peers: Vec<TcpStream>,
}

/// Two lanes; odd slots are the second one's.
fn world(resumed: Resumed) -> World {
    let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 64 };
    let start = RouterStart {
        lanes_by_slot: (0..SLOTS).map(|slot| slot % 2).collect(),
        journal_tag: "j".into(),
        snapshot_tag: "s".into(),
        job_tag: String::new(),
        checkpoint_key: CHECKPOINT_KEY.into(),
        resumed: Arc::new(resumed),
        sent_before: Arc::new([Lsn(0), Lsn(0), Lsn(0), SENT_BEFORE]),
        heard_before: Arc::new([Lsn(0), Lsn(0), Lsn(0), HEARD_BEFORE]),
        noted: Arc::new([]),
    };
    let mut peers = Vec::new();
    let lanes = (0..2)
        .map(|node| {
            let (ours, theirs) = tcp_pair().unwrap();
            peers.push(theirs);
            let checkpoint = String::new();
            let start = LaneStart {
                node,
                name: NodeName::new(node, &"h:1"),
                socket: std::os::fd::OwnedFd::from(ours).into(),
                marker: Vec::new(),
                checkpoint,
                client_id: 1,
                in_cluster: true,
            };
            Lane::new(usize::from(node), start)
        })
        .collect();
    let router = Router::new(start);
    let mut lanes: Vec<Lane> = lanes;
    lanes.iter_mut().for_each(|lane| lane.marks = router.marks.clone());
    World { router, lanes, slab: Slab::unregistered(layout).unwrap(), _peers: peers }
}

/// Keys on the first and the second lane, and one more on the first in another slot.
fn keys() -> [String; 3] {
    let of = |parity: u16, skip: usize| {
        let found = (0..).map(|i| format!("k{i}")).filter(|key| slot(key.as_bytes()).0 % 2 == parity);
        found.into_iter().nth(skip).unwrap()
    };
    [of(0, 0), of(1, 0), of(0, 1)]
}

impl World {
    /// One record: commands with their classes.
    fn record(&mut self, lsn: Option<u64>, commands: &[(Class, &[&str])]) -> Result<(), EngineError> {
        let settings = WriteSettings::copying(1 << 20, READ_NS);
        let record = (FLOW, lsn.map(Lsn));
        let Self { router, lanes, slab, .. } = self;
        let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, record, settings);
        for (class, words) in commands {
            let args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let db = if words.first() == Some(&"DB1") { DbIndex(1) } else { DbIndex(0) };
            let all_nodes = words.first() == Some(&"SCRIPT");
            let slot = slot(args.get(1).copied().unwrap_or_default());
            writer.begin(CommandMeta { slot, db, class: *class, all_nodes });
            let text = resp::command(&args);
            // In two pieces, the first with too much room.
            writer.space(text.len() + 10)[..3].copy_from_slice(&text[..3]);
            writer.advance(3);
            writer.put(&text[3..]);
            writer.end();
        }
        writer.record_done();
        self.router.take_refusal()
    }

    /// Closes what is open on a lane, and shows what waits there, as words, with the tags of markers left out.
    fn waiting(&mut self, lane: usize) -> String {
        let lane = &mut self.lanes[lane];
        lane.close_cluster(&mut self.slab);
        let bytes: Vec<u8> = lane.ready.iter().flat_map(|batch| batch.slices(&self.slab)).flatten().copied().collect();
        let commands: u32 = lane.ready.iter().map(|batch| batch.commands).sum();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'*').count(), commands as usize, "none has a * elsewhere");
        let text = String::from_utf8(bytes).unwrap();
        let words = text.split("\r\n").filter(|part| !part.is_empty() && !part.starts_with(['*', '$']));
        words.map(|word| if word.starts_with("df2redis:m:") { "MARK" } else { word }).collect::<Vec<_>>().join(" ")
    }

    fn send(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        lane.close_cluster(&mut self.slab);
        for mut batch in lane.ready.drain(..) {
            batch.sent_bytes = batch.bytes;
            lane.sent.push_back(batch);
        }
    }

    /// Replies to a lane: what starts with MOVED is a rejection, with OOM a refusal. Returns how many batches are done.
    fn reply(&mut self, lane: usize, bytes: &[u8]) -> usize {
        let mut acked = Vec::new();
        let lane = &mut self.lanes[lane];
        let judged = |text: &[u8]| match text.get(..3) {
            Some(b"MOV") => Verdict::Rejected,
            Some(b"OOM" | b"EXE") => Verdict::Refused,
            _ => Verdict::Done,
        };
        lane.replies(bytes, 0, |batch| acked.push(batch), |_, _, text| Ok(judged(text)), |_, _| {}).unwrap();
        let count = acked.len();
        acked.into_iter().for_each(|batch| drop(batch.release(&mut self.slab)));
        count
    }

    /// Sends what waits, and has all of it executed.
    fn answer_all(&mut self, lane: usize) {
        self.send(lane);
        let replies = |batch: &Batch| -> Vec<u8> {
            let reply = |command| match batch.groups.iter().find(|(exec, _)| *exec == command) {
                Some((exec, first)) => format!("*{}\r\n{}", exec - first, "+OK\r\n".repeat((exec - first) as usize)),
                None => "+OK\r\n".into(),
            };
            (0..batch.commands).map(reply).collect::<String>().into_bytes()
        };
        let replies: Vec<u8> = self.lanes[lane].sent.iter().flat_map(replies).collect();
        self.reply(lane, &replies);
    }

    /// What of a lane was not executed.
    fn unexecuted(&mut self, lane: usize) -> Vec<String> {
        let units = self.lanes[lane].take_unexecuted(&mut self.slab).unwrap();
        let shown = |unit: &crate::engine::units::Unit| {
            format!("{} {} {}", String::from_utf8_lossy(&unit.name), unit.unknown, unit.marker.is_some())
        };
        units.iter().map(shown).collect()
    }
}

use Class::{Blind, Guarded, Ordered};

#[test]
fn what_a_flow_does_in_a_slot_is_one_transaction_of_the_batch() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(7), &[(Blind, &["SET", &a, "1"]), (Guarded, &["INCR", &a]), (Guarded, &["INCR", &b])]).unwrap();
    world.record(Some(8), &[(Blind, &["SET", &c, "1"])]).unwrap();
    world.record(Some(9), &[(Guarded, &["INCR", &a]), (Blind, &["SET", &c, "2"])]).unwrap();
    world.record(Some(10), &[(Blind, &["SET", &a, "3"])]).unwrap();
    assert_eq!(
        world.waiting(0),
        format!("MULTI SET {a} 1 INCR {a} INCR {a} SET {a} 3 SET MARK j:10 EXEC SET {c} 1 SET {c} 2")
    );
    assert_eq!(world.waiting(1), format!("MULTI INCR {b} SET MARK j:7 EXEC"));
    assert!(world.lanes.iter().all(|lane| lane.ready.iter().all(Batch::is_fenced)));
    // The next batch has its own.
    world.record(Some(11), &[(Guarded, &["INCR", &b])]).unwrap();
    assert!(world.waiting(1).ends_with(&format!("MULTI INCR {b} SET MARK j:11 EXEC")));
    // In the full sync a number takes the place of the LSN, and a batch without such commands is left as it is.
    let mut world = self::world(Resumed::new());
    world.record(None, &[(Guarded, &["INCR", &b]), (Guarded, &["INCR", &b]), (Blind, &["SET", &a, "1"])]).unwrap();
    assert_eq!(world.waiting(1), format!("MULTI INCR {b} INCR {b} SET MARK s:1 EXEC"));
    assert_eq!(world.waiting(0), format!("SET {a} 1"));
    assert!(!world.lanes[0].ready[0].is_fenced() && world.router.marked.len() == 1);
}

/// Of keys of the full sync nothing is listed: beside them no transaction could be made of what must not be applied twice.
#[test]
fn what_is_not_listed_goes_out_before_what_must_be() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    world.record(None, &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &c, "1"])]).unwrap();
    assert!(!world.lanes[0].pieces.is_list());
    world.record(None, &[(Blind, &["DEL", &a]), (Guarded, &["RPUSH", &a, "2"]), (Blind, &["SET", &c, "2"])]).unwrap();
    world.record(None, &[(Blind, &["SET", &a, "3"])]).unwrap();
    let marked = format!("MULTI RPUSH {a} 2 SET {a} 3 SET MARK s:1 EXEC SET {c} 2");
    assert_eq!(world.waiting(0), format!("SET {a} 1 SET {c} 1 DEL {a} {marked}"));
    let fenced = |world: &World| world.lanes[0].ready.iter().map(Batch::is_fenced).collect::<Vec<_>>();
    assert_eq!(fenced(&world), [false, true]);
    // The next batch may be needed for the same, and is listed from its first command on; the one behind it is not.
    world.answer_all(0);
    world.record(None, &[(Blind, &["SET", &a, "4"]), (Guarded, &["RPUSH", &a, "5"])]).unwrap();
    assert_eq!(world.waiting(0), format!("MULTI SET {a} 4 RPUSH {a} 5 SET MARK s:2 EXEC"));
    world.record(None, &[(Blind, &["SET", &a, "6"])]).unwrap();
    world.answer_all(0);
    world.record(None, &[(Blind, &["SET", &a, "7"])]).unwrap();
    assert!(!world.lanes[0].pieces.is_list());
    // So is a command whose answer is watched.
    let write = WriteSettings::copying(1 << 20, READ_NS);
    let World { router, lanes, slab, .. } = &mut world;
    let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (FLOW, None), write);
    writer.watch(DbIndex(0), 0);
    writer.begin(CommandMeta { slot: slot(a.as_bytes()), db: DbIndex(0), class: Blind, all_nodes: false });
    writer.put(&resp::command(&[b"PEXPIREAT", a.as_bytes(), b"9"]));
    writer.end();
    assert_eq!(world.waiting(0), format!("SET {a} 7 PEXPIREAT {a} 9"));
    assert_eq!(world.lanes[0].ready[1].watched.len(), 1);
    world.answer_all(0);
    world.record(None, &[(Blind, &["SET", &a, "7"])]).unwrap();
    // A record of the journal is always listed: its marker must be known, and whether it was sent before.
    world.record(Some(9), &[(Blind, &["SET", &a, "8"])]).unwrap();
    assert_eq!(fenced(&world), [false]);
    assert_eq!(world.waiting(0), format!("SET {a} 7 SET {a} 8"));
    assert!(!world.lanes[0].ready[0].is_in_doubt(0) && world.lanes[0].ready[1].is_in_doubt(0));
}

/// A marker covers its record: with the rest of it in the next batch, a kill in between would lose that.
#[test]
fn no_batch_ends_behind_a_guarded_command_of_an_unfinished_record() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    let settings = WriteSettings::copying(1, READ_NS);
    let World { router, lanes, slab, .. } = &mut world;
    let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (FLOW, Some(Lsn(5))), settings);
    for (class, key) in [(Blind, &c), (Guarded, &a), (Blind, &a), (Blind, &c)] {
        let slot = slot(key.as_bytes());
        writer.begin(CommandMeta { slot, db: DbIndex(0), class, all_nodes: false });
        writer.put(&resp::command(&[b"INCR", key.as_bytes()]));
        writer.end();
    }
    writer.record_done();
    let commands: Vec<u32> = world.lanes[0].ready.iter().map(|batch| batch.commands).collect();
    assert_eq!(commands, [1, 3 + 3], "the one before may go first");
}

#[test]
fn what_the_markers_cover_is_skipped_after_a_restart() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::from([((FLOW, slot(a.as_bytes())), Lsn(10))]));
    for lsn in [9, 10, 11] {
        world.record(Some(lsn), &[(Blind, &["SET", &a, "1"]), (Guarded, &["INCR", &b])]).unwrap();
    }
    assert_eq!(world.waiting(0), format!("SET {a} 1"), "only the one behind the marker");
    assert_eq!(world.waiting(1).matches("INCR").count(), 3);
    // Another flow's keys are others.
    let mut other = self::world(Resumed::from([((FlowId(0), slot(a.as_bytes())), Lsn(10))]));
    other.record(Some(9), &[(Blind, &["SET", &a, "1"])]).unwrap();
    assert_eq!(other.waiting(0), format!("SET {a} 1"));
}

/// Once a later entry of a stream is there it takes no earlier one, so none is sent behind one that may be refused.
#[test]
fn entries_of_streams_go_as_what_must_not_be_applied_twice() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::from([((FLOW, slot(b.as_bytes())), Lsn(19))]));
    for lsn in [19, 20] {
        for key in [&a, &b] {
            world.record(Some(lsn), &[(Ordered, &["XADD", key, "5-1", "f", "v"])]).unwrap();
        }
    }
    assert_eq!(world.waiting(0), format!("MULTI XADD {a} 5-1 f v XADD {a} 5-1 f v SET MARK j:20 EXEC"));
    assert_eq!(world.waiting(1), format!("MULTI XADD {b} 5-1 f v SET MARK j:20 EXEC"), "the marker covers one");
    // An earlier tool may have sent it by itself.
    let batch = &world.lanes[0].ready[0];
    assert!(batch.is_fenced() && batch.is_in_doubt(1) && batch.is_in_doubt(2) && !batch.is_in_doubt(3));
}

/// Until the place where the source stood when the session began; what must not be applied twice is told by its marker.
#[test]
fn what_an_earlier_session_may_have_sent_is_known() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    let xadd = |key| ["XADD", key, "5-1", "f", "v"];
    world.record(Some(20), &[(Blind, &xadd(&c)), (Blind, &xadd(&a))]).unwrap();
    world.record(Some(20), &[(Guarded, &["INCR", &a]), (Guarded, &["INCR", &b])]).unwrap();
    world.record(Some(21), &[(Blind, &xadd(&a)), (Blind, &xadd(&c))]).unwrap();
    world.record(None, &[(Blind, &xadd(&c))]).unwrap();
    let group = format!("MULTI XADD {a} 5-1 f v INCR {a} XADD {a} 5-1 f v SET MARK j:21 EXEC");
    let [before, behind] = [format!("XADD {c} 5-1 f v"), format!("XADD {c} 5-1 f v XADD {c} 5-1 f v")];
    assert_eq!(world.waiting(0), format!("{before} {group} {behind}"));
    let judged = |world: &World, command, element, text: &str| {
        let (batch, fault) = (&world.lanes[0].ready[0], Fault { command, element });
        judge_in_cluster(batch, &world.slab, fault, &NodeName::new(0, &"h:1"), text.as_bytes())
            .map_err(|e| e.to_string())
    };
    let repeated = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
    let wrong = "WRONGTYPE Operation";
    for again in [false, true] {
        assert_eq!(judged(&world, 0, None, repeated), Ok(Verdict::Done));
        assert_eq!(judged(&world, 6, Some(0), repeated), Ok(Verdict::Done));
        assert!(judged(&world, 6, Some(1), wrong).unwrap_err().contains("INCR"));
        assert!(judged(&world, 6, Some(2), repeated).is_err());
        assert!(judged(&world, 7, None, repeated).is_err() && judged(&world, 8, None, repeated).is_err());
        if !again {
            // The same where all of it was refused, and is sent again.
            world.send(0);
            let refused: Vec<&[u8]> =
                vec![b"-OOM\r\n+OK\r\n", b"-OOM\r\n-OOM\r\n-OOM\r\n-OOM\r\n-EXECABORT\r\n", b"-OOM\r\n-OOM\r\n"];
            assert_eq!(world.reply(0, &refused.concat()), 0);
            let done = world.lanes[0].put_back_refused(&mut world.slab).unwrap();
            done.into_iter().for_each(|batch| drop(batch.release(&mut world.slab)));
            assert_eq!(world.waiting(0), format!("{before} {group} {behind}"));
        }
    }
}

#[test]
fn scripts_go_to_every_node_and_other_databases_nowhere() {
    let [a, ..] = keys();
    let mut world = world(Resumed::new());
    world.record(None, &[(Blind, &["SCRIPT", "LOAD", "return 1"])]).unwrap();
    let read_ns = |world: &World| world.lanes.iter().map(|lane| lane.ready[0].first_read_ns).collect::<Vec<_>>();
    assert_eq!(read_ns(&world), [READ_NS, READ_NS], "the lag would be that since boot");
    assert_eq!(
        (world.waiting(0).as_str(), world.waiting(1).as_str()),
        ("SCRIPT LOAD return 1", "SCRIPT LOAD return 1")
    );
    let error = world.record(Some(5), &[(Blind, &["DB1", "k"])]).unwrap_err();
    assert!(error.to_string().contains("LSN 4: the source has keys in database 1"), "{error}");
    assert_eq!(world.waiting(0), "SCRIPT LOAD return 1");
    assert!(world.router.take_refusal().is_ok());
    // No transaction is brought in front of it.
    world.record(Some(6), &[(Guarded, &["INCR", &a])]).unwrap();
    world.record(None, &[(Blind, &["SCRIPT", "LOAD", "return 2"])]).unwrap();
    world.record(Some(7), &[(Guarded, &["INCR", &a])]).unwrap();
    let group = |lsn: u64| format!("MULTI INCR {a} SET MARK j:{lsn} EXEC");
    let wanted = format!("SCRIPT LOAD return 1 {} SCRIPT LOAD return 2 {}", group(6), group(7));
    assert_eq!(world.waiting(0), wanted);
}

#[test]
fn positions_wait_for_every_lane() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    world.record(Some(5), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
    world.router.cut(&world.lanes, vec![(FLOW, Lsn(5))]);
    (0..2).for_each(|lane| world.send(lane));
    let other = 1 - checkpoint;
    let mut now_ns = 0;
    let mut note = |world: &mut World, lsn: u64| {
        now_ns += 1_000_000_000;
        world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn))]);
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_ns, true, None);
    };
    world.reply(checkpoint, b"+OK\r\n");
    note(&mut world, 5);
    assert_eq!(world.waiting(checkpoint), "", "the other lane has not answered");
    world.reply(other, b"+OK\r\n");
    note(&mut world, 5);
    let position = |lsn: u64| format!("HSET df2redis:checkpoint lsn:3 {lsn}");
    assert!(world.waiting(checkpoint).ends_with(&position(5)));
    let positions: Vec<_> = world.lanes[checkpoint].ready.iter().flat_map(|of| of.positions.clone()).collect();
    assert_eq!(positions, [(FLOW, Lsn(5))]);
    assert!(world.router.is_noted(&[(FLOW, Lsn(5))]) && !world.router.is_noted(&[(FLOW, Lsn(6))]));
    // After a new slot map it is written again: it may have been rejected. What is queued is not confirmed by that.
    world.record(Some(6), &[(Blind, &["SET", &b, "1"])]).unwrap();
    world.router.cut(&world.lanes, vec![(FLOW, Lsn(6))]);
    world.router.reroute((0..SLOTS).map(|slot| slot % 2).collect());
    world.router.forget_cuts();
    world.router.forget_noted();
    note(&mut world, 6);
    assert_eq!(world.waiting(checkpoint).matches(&position(5)).count(), 2);
    assert_eq!(world.waiting(checkpoint).matches(&position(6)).count(), 0);
    (0..2).for_each(|lane| world.answer_all(lane));
    note(&mut world, 6);
    assert!(world.waiting(checkpoint).contains(&position(6)));
}

/// Each node keeps the positions in some of its slots, and the checkpoint names these only once they are there.
#[test]
fn every_node_keeps_the_positions() {
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    let mut now_ns = 0;
    let mut note = |world: &mut World, lsn: u64| {
        now_ns += 1_000_000_000;
        world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn))]);
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_ns, true, None);
    };
    note(&mut world, 5);
    for lane in 0..2 {
        let homes = [2048, 6144, 10238, 14334].map(|slot| Slot(slot + lane as u16));
        let written: Vec<String> = homes
            .iter()
            .map(|slot| format!("SET {} j:5", String::from_utf8(position_key("", FLOW, *slot)).unwrap()))
            .collect();
        assert!(world.waiting(lane).starts_with(&written.join(" ")), "{lane}: {}", world.waiting(lane));
        assert!(homes.iter().all(|slot| world.router.noted.contains(&(FLOW, *slot))));
    }
    assert!(!world.waiting(checkpoint).contains("homes"));
    world.answer_all(checkpoint);
    note(&mut world, 5);
    assert_eq!(world.waiting(checkpoint), "", "the other node has not answered");
    world.answer_all(1 - checkpoint);
    note(&mut world, 5);
    let named = "HSET df2redis:checkpoint homes:3 2048,6144,10238,14334,2049,6145,10239,14335:3";
    assert_eq!(world.waiting(checkpoint), named);
    note(&mut world, 5);
    assert_eq!(world.waiting(checkpoint), named, "once");
    // After a flush they are gone. A position from before it must not come behind it.
    world.record(Some(6), &[(Blind, &["SET", &keys()[1], "1"])]).unwrap();
    note(&mut world, 6);
    (0..2).for_each(|lane| world.answer_all(lane));
    world.router.passed(vec![(FLOW, Lsn(7))], &Emptied::All);
    world.record(Some(8), &[(Blind, &["SET", &keys()[1], "1"])]).unwrap();
    note(&mut world, 8);
    (0..2).for_each(|lane| {
        assert!(world.waiting(lane).contains("j:7") && !world.waiting(lane).contains("j:6"), "{lane}")
    });
    assert!(world.waiting(checkpoint).contains("lsn:3 7") && !world.waiting(checkpoint).contains("homes"));
}

/// Positions in a slot that is on the move would hold the worker again and again.
#[test]
fn no_positions_are_kept_where_something_was_not_executed() {
    let mut world = world(Resumed::new());
    let homes = |world: &mut World, lsn: u64| -> Vec<u16> {
        world.router.noted.clear();
        world.router.forget_noted();
        world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn)), (FlowId(1), Lsn(lsn))]);
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, lsn * 1_000_000_000, true, None);
        let sent = (0..2).map(|lane| world.waiting(lane)).collect::<String>();
        // One key a command: of several a node says TRYAGAIN.
        assert!(sent.contains("SET df2redis:p:") && !sent.contains("MSET"), "{sent}");
        (0..2).for_each(|lane| world.answer_all(lane));
        let mut slots: Vec<u16> = world.router.noted.iter().map(|(_, slot)| slot.0).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    };
    let before = homes(&mut world, 5);
    assert_eq!(before.len(), 8);
    assert!(![0, 1, SLOTS - 1, SLOTS - 2].iter().any(|slot| before.contains(slot)), "{before:?}");
    before.iter().for_each(|slot| world.router.avoid(Slot(*slot)));
    let avoiding = homes(&mut world, 6);
    assert_eq!(avoiding.len(), 8);
    assert!(!avoiding.iter().any(|slot| before.contains(slot)), "{before:?} {avoiding:?}");
    world.router.reroute((0..SLOTS).map(|slot| slot % 2).collect());
    assert_eq!(homes(&mut world, 7), before, "until the next map");
}

/// Answers take longer than it takes until the next positions are written.
#[test]
fn homes_are_named_though_positions_are_always_under_way() {
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    let [a, b, _] = keys();
    let mut lsn = 0;
    let mut named_within = |world: &mut World, rounds: u64| -> bool {
        let mut named = false;
        for _ in 0..rounds {
            lsn += 1;
            world.record(Some(lsn), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
            world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn))]);
            // Of the round before.
            let under_way = [0, 1].map(|lane| world.lanes[lane].sent.len());
            world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, lsn * 11_000_000, false, None);
            named |= world.waiting(checkpoint).contains(" homes:3 ");
            for (lane, under_way) in under_way.into_iter().enumerate() {
                world.send(lane);
                let commands = |batch: &Batch| "+OK\r\n".repeat(batch.commands as usize);
                let replies: String = world.lanes[lane].sent.iter().take(under_way).map(commands).collect();
                assert_eq!(world.reply(lane, replies.as_bytes()), under_way);
                assert!(!world.lanes[lane].sent.is_empty(), "all is answered");
            }
        }
        named
    };
    assert!(named_within(&mut world, 50));
    assert!(!named_within(&mut world, 50), "once");
    // A slot moves.
    world.router.forget_noted();
    world.router.reroute((0..SLOTS).map(|slot| if slot == 0 { 1 } else { slot % 2 }).collect());
    assert!(named_within(&mut world, 50));
}

/// A flush that is executed again, for another node, takes what stands behind it and was applied.
#[test]
fn markers_found_say_nothing_of_what_was_emptied_since() {
    let [a, b, _] = keys();
    let (of_a, of_b) = (slot(a.as_bytes()), slot(b.as_bytes()));
    let command = |command| Emptied::by(&command, &Scope::everything().within(1));
    let only_a = GlobalCommand::FlushSlots([(of_a, of_a)].into());
    for (emptied, applied) in [
        (Emptied::Nothing, [false, false]),
        (command(GlobalCommand::FlushAll), [true, true]),
        (command(GlobalCommand::FlushDb(DbIndex(0))), [true, true]),
        (command(GlobalCommand::FlushDb(DbIndex(5))), [false, false]),
        (command(only_a), [true, false]),
    ] {
        let mut world = world([((FLOW, of_a), Lsn(9)), ((FLOW, of_b), Lsn(9))].into());
        world.router.passed(vec![(FLOW, Lsn(7))], &emptied);
        world.record(Some(8), &[(Guarded, &["INCR", &a])]).unwrap();
        world.record(Some(9), &[(Guarded, &["INCR", &b])]).unwrap();
        assert_eq!([0, 1].map(|lane| world.waiting(lane).contains("INCR")), applied, "{emptied:?}");
    }
}

#[test]
fn rejected_and_unanswered_commands_are_kept_in_order() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(1), &[(Blind, &["SET", &a, "1"])]).unwrap();
    world.record(Some(2), &[(Blind, &["XADD", &c, "1-1", "f", "v"])]).unwrap();
    world.send(0);
    world.record(Some(3), &[(Blind, &["SET", &a, "2"])]).unwrap();
    world.record(Some(4), &[(Blind, &["SET", &c, "2"])]).unwrap();
    world.record(Some(5), &[(Blind, &["XADD", &a, "1-1", "f", "v"])]).unwrap();
    world.send(0);
    // Behind something that must not be done twice; only sent here to see what is kept of it.
    world.record(Some(6), &[(Guarded, &["INCR", &c])]).unwrap();
    world.send(0);
    // The first SET is rejected; then the slot is back, and the connection is lost in the middle of the transaction.
    assert_eq!(world.reply(0, b"-MOVED 1 h:1\r\n+OK\r\n"), 0);
    assert_eq!(world.reply(0, b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+QUEUED\r\n"), 0);
    assert!(world.lanes[0].has_rejected() && !world.lanes[0].is_quiet());
    world.lanes[0].lose();
    let units = world.unexecuted(0);
    // What stood behind it on its key is sent again; the group cut off in its middle has an unknown outcome.
    assert_eq!(units, ["SET false false", "SET false false", "XADD false false", "INCR true true"]);
    let lane = &world.lanes[0];
    assert!(lane.is_idle() && lane.unacked_bytes == 0 && lane.acked_batches == lane.queued_batches);
}

#[test]
fn nothing_is_sent_behind_what_was_not_executed() {
    let [a, _, c] = keys();
    let layout = crate::uring::SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 8 };
    let Ok(mut ring) = crate::uring::Ring::new(&Default::default(), layout) else {
        return eprintln!("skipped: no io_uring here");
    };
    let mut world = world(Resumed::new());
    let submit = |world: &mut World, ring: &mut crate::uring::Ring| world.lanes[0].submit(ring, 16, 1, 5).unwrap();
    let close = |world: &mut World| world.lanes[0].close_cluster(&mut world.slab);
    let sent = |world: &mut World, ring: &mut crate::uring::Ring| {
        let mut completions = Vec::new();
        while world.lanes[0].in_kernel > 0 {
            completions.clear();
            ring.turn(std::time::Duration::from_secs(1), &mut completions).unwrap();
            completions.iter().for_each(|done| assert_eq!(world.lanes[0].sent_completion(done.result), None));
        }
    };
    // Two batches of blind commands go together, one with a transaction waits for them, and all behind it for that one.
    for (lsn, class, key) in [(1, Blind, &a), (2, Blind, &c), (3, Guarded, &a), (4, Blind, &c)] {
        world.record(Some(lsn), &[(class, &["SET", key, "1"])]).unwrap();
        // From the heap, for the ring has a slab of its own.
        close(&mut world);
        let lane = &mut world.lanes[0];
        let batch = lane.ready.pop_back().unwrap();
        let bytes: Vec<u8> = batch.slices(&world.slab).flatten().copied().collect();
        lane.ready.push_back(crate::engine::layout::batch_of(bytes, batch.commands, batch.fenced));
    }
    assert_eq!(submit(&mut world, &mut ring), 2);
    sent(&mut world, &mut ring);
    assert_eq!(world.reply(0, b"+OK\r\n"), 1);
    assert_eq!(submit(&mut world, &mut ring), 0, "one is not answered");
    assert_eq!(world.reply(0, b"-OOM no memory\r\n"), 0);
    assert_eq!(submit(&mut world, &mut ring), 0, "one was not executed");
    world.lanes[0].put_back_refused(&mut world.slab).unwrap();
    assert_eq!(submit(&mut world, &mut ring), 1, "it goes first");
    sent(&mut world, &mut ring);
    assert_eq!(world.reply(0, b"+OK\r\n"), 1);
    assert_eq!(submit(&mut world, &mut ring), 1);
    sent(&mut world, &mut ring);
    assert_eq!(submit(&mut world, &mut ring), 0, "behind a transaction");
    assert_eq!(world.reply(0, b"+OK\r\n+QUEUED\r\n-OOM no memory\r\n-EXECABORT\r\n"), 0);
    assert_eq!(submit(&mut world, &mut ring), 0, "it was not executed");
    world.lanes[0].put_back_refused(&mut world.slab).unwrap();
    assert_eq!(submit(&mut world, &mut ring), 1);
    sent(&mut world, &mut ring);
    assert_eq!(world.reply(0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n"), 1);
    assert_eq!(submit(&mut world, &mut ring), 1);
}

/// Batches count as acknowledged only when all of them was executed.
#[test]
fn what_was_refused_holds_positions_back() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    for key in [&a, &c, &a, &a] {
        world.record(Some(1), &[(Blind, &["SET", key, "1"])]).unwrap();
        world.send(0);
    }
    assert_eq!(world.reply(0, b"+OK\r\n+OK\r\n-OOM no memory\r\n"), 2);
    assert_eq!(world.lanes[0].acked_batches, 2);
    assert_eq!(world.reply(0, b"+OK\r\n"), 0);
    let done = world.lanes[0].put_back_refused(&mut world.slab).unwrap();
    assert_eq!(done.len(), 2);
    done.into_iter().for_each(|batch| drop(batch.release(&mut world.slab)));
    let lane = &world.lanes[0];
    assert_eq!((lane.queued_batches, lane.acked_batches), (4, 2));
    assert_eq!(world.waiting(0), format!("SET {a} 1 SET {a} 1"), "the later one behind the refused one, again");
    world.send(0);
    assert_eq!(world.reply(0, b"+OK\r\n+OK\r\n"), 1);
    let lane = &world.lanes[0];
    assert_eq!((lane.acked_batches, lane.unacked_bytes, lane.unacked_commands), (4, 0, 0));
}

/// What waits for the first of several batches that were refused waits until that is executed.
#[test]
fn no_position_passes_the_first_of_several_batches_that_were_refused() {
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    let other = 1 - checkpoint;
    let key = &keys()[other];
    for lsn in [5, 6] {
        world.record(Some(lsn), &[(Blind, &["SET", key, "1"])]).unwrap();
        world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn))]);
        world.send(other);
    }
    let refused = |world: &mut World| {
        assert_eq!(world.reply(other, b"-OOM no memory\r\n".repeat(2).as_slice()), 0);
        let done = world.lanes[other].put_back_refused(&mut world.slab).unwrap();
        done.into_iter().for_each(|batch| drop(batch.release(&mut world.slab)));
        assert_eq!(world.waiting(other), format!("SET {key} 1 SET {key} 1"));
    };
    let note = |world: &mut World, now_s: u64| {
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_s * 1_000_000_000, false, None);
        world.waiting(checkpoint)
    };
    refused(&mut world);
    assert_eq!(note(&mut world, 1), "");
    world.send(other);
    // The one that stands for both, too.
    refused(&mut world);
    assert_eq!(note(&mut world, 2), "");
    world.send(other);
    assert_eq!(world.reply(other, b"+OK\r\n+OK\r\n"), 1);
    let lane = &world.lanes[other];
    assert_eq!((lane.queued_batches, lane.acked_batches), (2, 2));
    assert!(note(&mut world, 3).contains("lsn:3 6"));
}

#[test]
fn what_was_not_sent_follows_its_slots() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(1), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
    (0..2).for_each(|lane| world.lanes[lane].close_cluster(&mut world.slab));
    world.record(Some(2), &[(Guarded, &["INCR", &c])]).unwrap();
    world.record(Some(3), &[(Guarded, &["INCR", &a])]).unwrap();
    // The slot of `a` moves to the other node.
    let moved = slot(a.as_bytes());
    let lanes_by_slot = (0..SLOTS).map(|slot| if Slot(slot) == moved { 1 } else { slot % 2 }).collect::<Box<[u16]>>();
    assert!(!world.router.has_routes(&lanes_by_slot));
    let waiting: Vec<Vec<Batch>> = world.lanes.iter_mut().map(|lane| lane.take_waiting(&mut world.slab)).collect();
    assert!(world.lanes.iter().all(|lane| lane.is_idle() && lane.unacked_bytes == 0));
    world.router.reroute(lanes_by_slot);
    for (from, waiting) in waiting.into_iter().enumerate() {
        again::reroute(&mut world.lanes, &world.router, &mut world.slab, from, waiting).unwrap();
    }
    assert_eq!(world.waiting(0), format!("MULTI INCR {c} SET MARK j:2 EXEC"));
    let other = format!("SET {b} 1");
    let moved = format!("SET {a} 1 MULTI INCR {a} SET MARK j:3 EXEC");
    assert_eq!(world.waiting(1), format!("{moved} {other}"));
    let fenced: Vec<bool> = world.lanes[1].ready.iter().map(Batch::is_fenced).collect();
    assert_eq!(fenced, [false, true, false]);
    let lane = &world.lanes[1];
    assert_eq!(lane.queued_batches - lane.acked_batches, 3);
}

/// With `--wait-replicas`: first every node keeps the position, then the replicas of all confirm, then the checkpoint is told; else
/// one that takes over would stand before the checkpoint.
#[test]
fn the_checkpoint_waits_for_the_replicas_of_every_node() {
    let replicas = Replicas::default();
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    let mut now_ns = 0;
    let mut note = |world: &mut World, lsn: u64| {
        now_ns += 1_000_000_000;
        world.router.cut(&world.lanes, vec![(FLOW, Lsn(lsn))]);
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_ns, true, Some(&replicas));
    };
    let told = |world: &mut World| world.waiting(checkpoint).contains("HSET df2redis:checkpoint");
    note(&mut world, 5);
    assert!((0..2).all(|lane| world.waiting(lane).contains("SET df2redis:p:")) && !told(&mut world));
    // A round that began before the nodes had answered covers nothing of it.
    let early = replicas.begin();
    (0..2).for_each(|lane| world.answer_all(lane));
    note(&mut world, 6);
    replicas.end(early);
    note(&mut world, 6);
    assert!(!told(&mut world) && world.waiting(checkpoint).is_empty(), "one position after the other");
    replicas.end(replicas.begin());
    note(&mut world, 6);
    let sent = world.waiting(checkpoint);
    let wanted = "HSET df2redis:checkpoint lsn:3 5 homes:3 2048,6144,10238,14334,2049,6145,10239,14335:3";
    assert!(sent.ends_with(wanted), "{sent}");
    assert!(world.router.is_noted(&[(FLOW, Lsn(5))]) && !world.router.is_noted(&[(FLOW, Lsn(6))]));
    // What was on its way when the slot map changed is written, and asked for, anew.
    (0..2).for_each(|lane| world.answer_all(lane));
    world.router.forget_noted();
    note(&mut world, 6);
    assert!((0..2).all(|lane| world.waiting(lane).contains("SET df2redis:p:")) && !told(&mut world));
}

/// Answered, but sent elsewhere: until it is executed there, no position passes it, whatever comes behind it.
#[test]
fn no_position_passes_what_a_node_sent_elsewhere() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::new());
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    let (mine, theirs) = if checkpoint == 0 { (&a, &b) } else { (&b, &a) };
    world.record(Some(5), &[(Blind, &["SET", theirs, "1"])]).unwrap();
    world.record(Some(6), &[(Blind, &["SET", mine, "1"])]).unwrap();
    world.router.cut(&world.lanes, vec![(FLOW, Lsn(6))]);
    (0..2).for_each(|lane| world.send(lane));
    assert_eq!(world.reply(1 - checkpoint, b"-MOVED 1 h:1\r\n"), 0);
    assert_eq!(world.reply(checkpoint, b"+OK\r\n"), 1);
    let note = |world: &mut World, now_s: u64| {
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_s * 1_000_000_000, false, None);
    };
    note(&mut world, 1);
    assert_eq!(world.waiting(checkpoint), "");
    // Executed elsewhere by the control plane.
    let units = world.lanes[1 - checkpoint].take_unexecuted(&mut world.slab).unwrap();
    assert_eq!(units.len(), 1);
    note(&mut world, 2);
    assert!(world.waiting(checkpoint).contains("lsn:3 6"), "{}", world.waiting(checkpoint));
}

/// What is looked at after an event instead of every lane (`Outlet::still_has_room`).
#[test]
fn lanes_written_to_are_known() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    assert_eq!(world.router.take_touched(), Touched::Nothing);
    world.record(Some(7), &[(Blind, &["SET", &b, "1"])]).unwrap();
    assert_eq!(world.router.take_touched(), Touched::One(1));
    world.record(Some(8), &[(Guarded, &["INCR", &a]), (Blind, &["SET", &c, "1"])]).unwrap();
    assert_eq!(world.router.take_touched(), Touched::One(0));
    world.record(Some(9), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
    assert_eq!(world.router.take_touched(), Touched::Several);
    world.record(None, &[(Blind, &["SCRIPT", "LOAD", "return 1"])]).unwrap();
    assert_eq!(world.router.take_touched(), Touched::Several);
    assert_eq!(world.router.take_touched(), Touched::Nothing);
}

#[test]
fn a_full_window_of_any_lane_stops_the_flow() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::new());
    let room = |world: &mut World, behind: bool, window_bytes| {
        let mut outlet = Outlet::Cluster { lanes: &mut world.lanes, router: &mut world.router };
        if behind {
            outlet.still_has_room(&world.slab, window_bytes)
        } else {
            outlet.has_room(&world.slab, window_bytes)
        }
    };
    world.record(Some(7), &[(Blind, &["SET", &b, "1"])]).unwrap();
    assert!(room(&mut world, true, 1000));
    world.record(Some(8), &[(Blind, &["SET", &b, "2"])]).unwrap();
    assert!(!room(&mut world, true, 20), "the second lane's is used up");
    world.record(Some(9), &[(Blind, &["SET", &a, "1"])]).unwrap();
    assert!(!room(&mut world, false, 1000), "and stays so until half of it is answered");
    world.record(Some(10), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
    assert!(!room(&mut world, true, 1000));
}

#[test]
fn markers_say_what_was_applied() {
    for (found, wanted, applied) in [
        ("j:5", "j:5", true),
        ("j:6", "j:5", true),
        ("j:4", "j:5", false),
        ("j:+5", "j:5", true),
        ("j:+4", "j:5", false),
        ("s:9", "j:5", false),
        ("j:x", "j:5", false),
        ("", "j:5", false),
    ] {
        assert_eq!(says_applied(found.as_bytes(), wanted.as_bytes()), applied, "{found} {wanted}");
    }
    assert_eq!(slot(&marker_key("", FlowId(12), Slot(77))), Slot(77));
    assert_eq!(super::taken(b"a:b:17"), b"a:b:+17");
}
