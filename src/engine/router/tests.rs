//! What goes out on which lane, with which markers; what is skipped after a restart; when positions are written; what is
//! kept of a batch that was partly rejected. Without a ring: batches are moved by hand as the kernel would.

use super::*;
use crate::engine::errors::judge_in_cluster;
use crate::engine::held::HeldState;
use crate::engine::lane::{Fault, Link, Verdict};
use crate::engine::messages::LaneStart;
use crate::engine::outlet::Outlet;
use crate::redis::resp;
use crate::redis::slot::{SLOTS, slot};
use crate::uring::{SlabLayout, tcp_pair};
use std::net::TcpStream;

const FLOW: FlowId = FlowId(3);
const READ_NS: u64 = 77;
/// What an earlier session may have sent ends here.
const SENT_BEFORE: Lsn = Lsn(20);

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
        resumed: Arc::new(resumed),
        sent_before: Arc::new([Lsn(0), Lsn(0), Lsn(0), SENT_BEFORE]),
    };
    let mut peers = Vec::new();
    let lanes = (0..2)
        .map(|node| {
            let (ours, theirs) = tcp_pair().unwrap();
            peers.push(theirs);
            let checkpoint = String::new();
            let start = LaneStart {
                node,
                socket: std::os::fd::OwnedFd::from(ours).into(),
                marker: Vec::new(),
                checkpoint,
                client_id: 1,
                in_cluster: true,
            };
            Lane::new(usize::from(node), start)
        })
        .collect();
    World { router: Router::new(start), lanes, slab: Slab::unregistered(layout).unwrap(), _peers: peers }
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

    /// What is open on a lane, as words, with the tags of markers left out.
    fn open(&self, lane: usize) -> String {
        let bytes: Vec<u8> = self.lanes[lane].encoder.batch.slices(&self.slab).flatten().copied().collect();
        let text = String::from_utf8(bytes).unwrap();
        let words = text.split("\r\n").filter(|part| !part.is_empty() && !part.starts_with(['*', '$']));
        words.map(|word| if word.starts_with("df2redis:m:") { "MARK" } else { word }).collect::<Vec<_>>().join(" ")
    }

    fn send(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        if !lane.encoder.batch.is_empty() {
            lane.close_cluster(&mut self.slab);
        }
        lane.sent.append(&mut lane.ready);
    }

    /// Replies to a lane; what starts with MOVED is a rejection.
    fn reply(&mut self, lane: usize, bytes: &[u8], held: &mut HeldState) {
        let mut acked = Vec::new();
        let lane = &mut self.lanes[lane];
        let judged = |text: &[u8]| if text.starts_with(b"MOVED") { Verdict::Rejected } else { Verdict::Done };
        lane.replies(bytes, |batch| acked.push(batch), |_, _, text| Ok(judged(text)), |_, _| {}).unwrap();
        for batch in acked {
            held.take_batch(lane, &batch, &self.slab).unwrap();
            batch.release(&mut self.slab);
        }
    }
}

use Class::{Blind, Guarded};

#[test]
fn a_record_leaves_one_marker_in_each_slot() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(7), &[(Blind, &["SET", &a, "1"]), (Guarded, &["INCR", &a]), (Guarded, &["INCR", &b])]).unwrap();
    assert_eq!(world.open(0), format!("SET {a} 1 MULTI INCR {a} SET MARK j:7 EXEC"));
    assert_eq!(world.open(1), format!("MULTI INCR {b} SET MARK j:7 EXEC"));
    // A value that goes in several guarded pieces is one group; another slot on the same lane ends it.
    let mut world = self::world(Resumed::new());
    let pieces: [(Class, &[&str]); 4] =
        [(Blind, &["DEL", &a]), (Guarded, &["RPUSH", &a, "1"]), (Guarded, &["RPUSH", &a, "2"]), (Blind, &["DEL", &c])];
    world.record(Some(8), &pieces).unwrap();
    assert_eq!(world.open(0), format!("DEL {a} MULTI RPUSH {a} 1 RPUSH {a} 2 SET MARK j:8 EXEC DEL {c}"));
    // In the full sync each has its own.
    world.record(None, &[(Guarded, &["INCR", &b]), (Guarded, &["INCR", &b])]).unwrap();
    assert_eq!(world.open(1), format!("MULTI INCR {b} SET MARK s:1 EXEC MULTI INCR {b} SET MARK s:2 EXEC"));
    assert_eq!(world.router.marked.len(), 2);
}

#[test]
fn what_the_markers_cover_is_skipped_after_a_restart() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::from([((FLOW, slot(a.as_bytes())), Lsn(10))]));
    for lsn in [9, 10, 11] {
        world.record(Some(lsn), &[(Blind, &["SET", &a, "1"]), (Guarded, &["INCR", &b])]).unwrap();
    }
    assert_eq!(world.open(0), format!("SET {a} 1"), "only the one behind the marker");
    assert_eq!(world.open(1).matches("INCR").count(), 3);
    // Another flow's keys are others.
    let mut other = self::world(Resumed::from([((FlowId(0), slot(a.as_bytes())), Lsn(10))]));
    other.record(Some(9), &[(Blind, &["SET", &a, "1"])]).unwrap();
    assert_eq!(other.open(0), format!("SET {a} 1"));
}

/// Until the place where the source stood when the session began, and never in a group, whose marker tells.
#[test]
fn what_an_earlier_session_may_have_sent_is_known() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::new());
    let xadd = ["XADD", &a, "5-1", "f", "v"];
    world.record(Some(20), &[(Blind, &xadd)]).unwrap();
    world.record(Some(20), &[(Guarded, &["INCR", &a]), (Guarded, &["INCR", &b])]).unwrap();
    world.record(Some(21), &[(Blind, &xadd)]).unwrap();
    world.record(None, &[(Blind, &xadd)]).unwrap();
    let batch = &world.lanes[0].encoder.batch;
    let judged = |command, element, text: &str| {
        judge_in_cluster(batch, &world.slab, Fault { command, element }, 0, text.as_bytes()).map_err(|e| e.to_string())
    };
    let repeated = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
    assert_eq!(judged(0, None, repeated), Ok(Verdict::Done));
    // Behind it stand MULTI, INCR, the marker and EXEC.
    assert!(judged(5, None, repeated).is_err() && judged(6, None, repeated).is_err());
    assert!(judged(4, Some(0), "WRONGTYPE Operation").unwrap_err().contains("INCR"));
}

#[test]
fn scripts_go_to_every_node_and_other_databases_nowhere() {
    let mut world = world(Resumed::new());
    world.record(None, &[(Blind, &["SCRIPT", "LOAD", "return 1"])]).unwrap();
    assert_eq!((world.open(0).as_str(), world.open(1).as_str()), ("SCRIPT LOAD return 1", "SCRIPT LOAD return 1"));
    assert_eq!(world.lanes[1].encoder.batch.commands, 1);
    assert!(
        world.lanes.iter().all(|lane| lane.encoder.batch.first_read_ns == READ_NS),
        "the lag would be that since boot"
    );
    let error = world.record(Some(5), &[(Blind, &["DB1", "k"])]).unwrap_err();
    assert!(error.to_string().contains("LSN 4: the source has keys in database 1"), "{error}");
    assert_eq!(world.open(0), "SCRIPT LOAD return 1");
    assert!(world.router.take_refusal().is_ok());
}

#[test]
fn positions_wait_for_every_lane() {
    let [a, b, _] = keys();
    let mut world = world(Resumed::new());
    let mut held = HeldState::default();
    let checkpoint = world.router.lane_of(slot(b"df2redis:checkpoint"));
    world.record(Some(5), &[(Blind, &["SET", &a, "1"]), (Blind, &["SET", &b, "1"])]).unwrap();
    world.router.cut(&world.lanes, vec![(FLOW, Lsn(5))]);
    (0..2).for_each(|lane| world.send(lane));
    let other = 1 - checkpoint;
    let mut now_ns = 0;
    let mut note = |world: &mut World| {
        now_ns += 1_000_000_000;
        world.router.note_positions(&mut world.lanes, &mut world.slab, 1 << 20, now_ns);
    };
    world.reply(checkpoint, b"+OK\r\n", &mut held);
    note(&mut world);
    assert_eq!(world.open(checkpoint), "", "the other lane has not answered");
    world.reply(other, b"+OK\r\n", &mut held);
    note(&mut world);
    assert_eq!(world.open(checkpoint), "HSET df2redis:checkpoint lsn:3 5");
    assert_eq!(world.lanes[checkpoint].encoder.batch.positions, [(FLOW, Lsn(5))]);
    assert!(world.router.is_noted(&[(FLOW, Lsn(5))]) && !world.router.is_noted(&[(FLOW, Lsn(6))]));
    // After a new slot map it is written again: it may have been rejected.
    world.router.reroute((0..SLOTS).map(|_| 0).collect());
    note(&mut world);
    assert!(world.open(0).ends_with("HSET df2redis:checkpoint lsn:3 5"));
}

#[test]
fn rejected_and_unanswered_commands_are_kept_in_order() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    let mut held = HeldState::default();
    world.record(Some(1), &[(Blind, &["SET", &a, "1"])]).unwrap();
    world.record(Some(2), &[(Guarded, &["INCR", &c])]).unwrap();
    world.send(0);
    world.record(Some(3), &[(Blind, &["SET", &a, "2"])]).unwrap();
    world.record(Some(4), &[(Guarded, &["APPEND", &a, "x"])]).unwrap();
    world.record(Some(5), &[(Guarded, &["INCR", &c])]).unwrap();
    world.send(0);
    // The first SET is rejected, all others of the first batch are accepted; then the slot is back.
    world.reply(0, b"-MOVED 1 h:1\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n", &mut held);
    world.reply(0, b"+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:2\r\n+OK\r\n+OK\r\n+QUEUED\r\n", &mut held);
    let lane = &mut world.lanes[0];
    lane.link = Link::Down;
    for batch in lane.take_unanswered(&mut world.slab) {
        held.take_batch(lane, &batch, &world.slab).unwrap();
        batch.release(&mut world.slab);
    }
    let units = held.take_units();
    let shown: Vec<String> = units
        .iter()
        .map(|unit| format!("{} {} {}", String::from_utf8_lossy(&unit.name), unit.unknown, unit.marker.is_some()))
        .collect();
    // The second SET is sent again behind the first; the group cut off in its middle has an unknown outcome.
    assert_eq!(shown, ["SET false false", "SET false false", "INCR true true"]);
    assert_eq!(held.doubtful.len(), 1, "the APPEND came before the SET that was rejected");
    assert_eq!(held.doubtful[0].key, a.as_bytes());
    assert!(lane.is_idle());
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
        ("s:9", "j:5", false),
        ("j:x", "j:5", false),
        ("", "j:5", false),
    ] {
        assert_eq!(says_applied(found.as_bytes(), wanted.as_bytes()), applied, "{found} {wanted}");
    }
    assert_eq!(slot(&marker_key(FlowId(12), Slot(77))), Slot(77));
}
