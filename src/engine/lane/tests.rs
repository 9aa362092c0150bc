//! What is sent again after a lost connection, without a ring: batches are moved by hand as the kernel would.

use super::losses::LOSSES_IN_A_ROW_MAX;
use super::*;
use crate::convert::{Class, CommandMeta, Out};
use crate::engine::batch::Watched;
use crate::ids::Slot;
use crate::redis::resp;
use crate::uring::{SlabLayout, tcp_pair};
use std::net::TcpStream;

struct World {
    lane: Lane,
    slab: Slab,
    lost: Vec<Watched>,
    _peers: Vec<TcpStream>,
}

impl World {
    fn new() -> Self {
        let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 64 };
        let (ours, theirs) = tcp_pair().unwrap();
        let start = LaneStart {
            node: 0,
            name: NodeName::new(0, &"h:1"),
            socket: std::os::fd::OwnedFd::from(ours).into(),
            marker: b"m".to_vec(),
            checkpoint: "c".into(),
            client_id: 1,
            in_cluster: false,
        };
        let slab = Slab::unregistered(layout).unwrap();
        Self { lane: Lane::new(0, start), slab, lost: Vec::new(), _peers: vec![theirs] }
    }

    fn write(&mut self, db: u16, class: Class, args: &[&[u8]]) {
        let mut writer = self.lane.plain_writer(&mut self.slab, usize::MAX, 0);
        writer.begin(CommandMeta { slot: Slot(0), db: DbIndex(db.into()), class, all_nodes: false });
        writer.put(&resp::command(args));
        writer.end();
    }

    fn close(&mut self) {
        self.lane.close_open(&mut self.slab, usize::MAX);
    }

    /// Everything ready goes out whole.
    fn send(&mut self) {
        for mut batch in self.lane.ready.drain(..) {
            batch.sent_bytes = batch.bytes;
            self.lane.sent.push_back(batch);
        }
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<usize, EngineError> {
        let (mut acked, lost) = (Vec::new(), &mut self.lost);
        self.lane.replies(
            bytes,
            0,
            |batch| acked.push(batch),
            |_, _, text| Err(EngineError::Target(String::from_utf8_lossy(text).into_owned())),
            |_, watched| lost.push(watched),
        )?;
        let count = acked.len();
        acked.into_iter().for_each(|batch| drop(batch.release(&mut self.slab)));
        Ok(count)
    }

    /// What is done once the kernel has told of a send.
    fn completed(&mut self) -> usize {
        let mut acked = Vec::new();
        self.lane.take_answered(|batch| acked.push(batch));
        let count = acked.len();
        acked.into_iter().for_each(|batch| drop(batch.release(&mut self.slab)));
        count
    }

    fn lose_and_resume(&mut self, applied: u64) -> usize {
        self.lane.lose();
        let (ours, theirs) = tcp_pair().unwrap();
        self._peers.push(theirs);
        let mut known = Vec::new();
        self.lane
            .resume(&mut self.slab, std::os::fd::OwnedFd::from(ours).into(), applied, |batch| known.push(batch))
            .unwrap();
        known.len()
    }

    /// What goes out next, as words.
    fn unsent(&self) -> String {
        let mut text = Vec::new();
        for batch in &self.lane.ready {
            let bytes: Vec<u8> = batch.slices(&self.slab).flatten().copied().collect();
            text.extend_from_slice(&bytes[batch.sent_bytes..]);
        }
        let text = String::from_utf8(text).unwrap();
        text.split("\r\n").filter(|part| !part.starts_with(['*', '$'])).collect::<Vec<_>>().join(" ").trim().to_owned()
    }
}

#[test]
fn a_connection_lost_again_before_its_first_reply() {
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.write(3, Class::Blind, &[b"SET", b"b", b"2"]);
    world.write(3, Class::Blind, &[b"SET", b"c", b"3"]);
    world.close();
    world.send();
    // SET, SELECT and SET.
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n+OK\r\n").unwrap(), 0);
    for _ in 0..3 {
        assert_eq!(world.lose_and_resume(0), 0);
        // Without its own database, or from its beginning, `a` would be written to database 3.
        assert_eq!(world.unsent(), "SELECT 3 SET c 3");
        world.send();
    }
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n").unwrap(), 2);
    assert!(world.lane.is_idle());
    assert_eq!((world.lane.unacked_bytes, world.lane.unacked_commands), (0, 0));
}

#[test]
fn a_guarded_group_is_sent_again_whole_or_not_at_all() {
    for (applied, text, known) in [
        (0, "SELECT 5 MULTI INCR n SET k v SET m 1 EXEC MULTI INCR n SET m 2 EXEC", 0),
        (1, "SELECT 5 MULTI INCR n SET m 2 EXEC", 1),
        (2, "SELECT 5", 2),
    ] {
        let mut world = World::new();
        world.write(5, Class::Blind, &[b"SET", b"n", b"1"]);
        world.write(5, Class::Guarded, &[b"INCR", b"n"]);
        world.write(5, Class::Blind, &[b"SET", b"k", b"v"]);
        world.close();
        world.write(5, Class::Guarded, &[b"INCR", b"n"]);
        world.close();
        world.send();
        // SELECT, SET, MULTI and the first QUEUED.
        assert_eq!(world.reply(b"+OK\r\n+OK\r\n+OK\r\n+QUEUED\r\n").unwrap(), 0);
        assert_eq!(world.lose_and_resume(applied), known);
        assert_eq!(world.unsent(), text, "applied {applied}");
    }
}

/// Only what was sent and not answered may have been applied before; a guard group is never executed twice.
#[test]
fn what_was_on_its_way_at_the_cut_is_known() {
    let mut world = World::new();
    for key in [b"a", b"b", b"c"] {
        world.write(0, Class::Blind, &[b"XADD", key, b"1-1", b"f", b"v"]);
    }
    world.write(0, Class::Guarded, &[b"INCR", b"n"]);
    world.close();
    world.send();
    for key in [b"d", b"e", b"f"] {
        world.write(0, Class::Blind, &[b"XADD", key, b"1-1", b"f", b"v"]);
    }
    world.close();
    // The kernel took the first of these three, and a part of the second.
    world.lane.ready[0].sent_bytes = world.lane.ready[0].bytes / 2;
    world.lane.cut_short = true;
    world.write(0, Class::Blind, &[b"XADD", b"g", b"1-1", b"f", b"v"]);
    world.close();
    assert_eq!(world.reply(b"$3\r\n1-1\r\n").unwrap(), 0);
    let expected = ["-++----", "++-", "-"];
    // Lost twice: what was not sent in between is as before.
    for _ in 0..2 {
        assert_eq!(world.lose_and_resume(0), 0);
        let shown = |batch: &Batch| -> String {
            (0..batch.commands).map(|command| if batch.is_in_doubt(command) { '+' } else { '-' }).collect()
        };
        assert_eq!(world.lane.ready.iter().map(shown).collect::<Vec<_>>(), expected);
    }
    assert!(!world.unsent().starts_with("XADD a"), "{}", world.unsent());
}

/// The names of lost keys go first, and what follows is written to its own database.
#[test]
fn lost_keys_are_remembered_before_anything_else() {
    let lost = [Lost { flow: FlowId(1), db: DbIndex(3), key: b"k".to_vec() }];
    let mut world = World::new();
    world.lane.remember_lost(&mut world.slab, &lost).unwrap();
    assert_eq!(world.unsent(), "HSET c lost:1:3:k");
    world.send();
    assert_eq!(world.reply(b":1\r\n").unwrap(), 1);
    world.write(3, Class::Blind, &[b"SET", b"a", b"1"]);
    world.close();
    world.send();
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n").unwrap(), 1);
    world.lane.remember_lost(&mut world.slab, &lost).unwrap();
    assert_eq!(world.unsent(), "SELECT 0 HSET c lost:1:3:k  SELECT 3");
    world.send();
    assert_eq!(world.reply(b"+OK\r\n:0\r\n+OK\r\n").unwrap(), 1);
    // The rest of a batch that began in database 3 goes on in 0.
    world.write(3, Class::Blind, &[b"SET", b"a", b"2"]);
    world.write(0, Class::Blind, &[b"SET", b"b", b"2"]);
    world.close();
    world.send();
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n").unwrap(), 0);
    world.lose_and_resume(0);
    world.lane.remember_lost(&mut world.slab, &lost).unwrap();
    assert_eq!(world.unsent(), "HSET c lost:1:3:k  SET b 2");
    world.send();
    assert_eq!(world.reply(b":0\r\n+OK\r\n").unwrap(), 2);
    assert!(world.lane.is_idle());
    assert_eq!((world.lane.unacked_bytes, world.lane.unacked_commands), (0, 0));
}

/// Found while the connection is lost: behind what may be applied, and each batch in its own database whatever is lost again.
#[test]
fn lost_keys_found_while_the_connection_is_lost() {
    let lost = [Lost { flow: FlowId(1), db: DbIndex(3), key: b"k".to_vec() }];
    let begun = || {
        let mut world = World::new();
        world.write(0, Class::Guarded, &[b"INCR", b"n"]);
        world.write(1, Class::Guarded, &[b"INCR", b"n"]);
        world.close();
        world.send();
        // MULTI, INCR and SELECT: the next command would be queued in database 1.
        assert_eq!(world.reply(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n").unwrap(), 0);
        world.lane.lose();
        world.lane.remember_lost(&mut world.slab, &lost).unwrap();
        world
    };
    let group = "MULTI INCR n SELECT 1 INCR n SET m 1 EXEC";
    let names = "SELECT 0 HSET c lost:1:3:k  SELECT 1";
    let mut world = begun();
    assert_eq!(world.lose_and_resume(0), 0);
    assert_eq!(world.unsent(), format!("{group} {names}"));
    world.send();
    assert_eq!(world.reply(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n").unwrap(), 0);
    assert_eq!(world.lose_and_resume(0), 0);
    assert_eq!(world.unsent(), format!("{group} {names}"));
    // Applied, and only the answer was lost: the names were not sent.
    let mut world = begun();
    assert_eq!(world.lose_and_resume(1), 1);
    assert_eq!(world.unsent(), format!("SELECT 1 {names}"));
    world.send();
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n:1\r\n+OK\r\n").unwrap(), 2);
    assert!(world.lane.is_idle());
    assert_eq!((world.lane.unacked_bytes, world.lane.unacked_commands), (0, 0));
}

/// Found before the rest of a batch, with its SELECT, has left again.
#[test]
fn lost_keys_in_front_of_what_is_sent_again() {
    let lost = [Lost { flow: FlowId(1), db: DbIndex(3), key: b"k".to_vec() }];
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.write(3, Class::Blind, &[b"SET", b"b", b"2"]);
    world.write(3, Class::Blind, &[b"SET", b"c", b"3"]);
    world.close();
    world.send();
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n").unwrap(), 0);
    assert_eq!(world.lose_and_resume(0), 0);
    world.lane.remember_lost(&mut world.slab, &lost).unwrap();
    assert_eq!(world.unsent(), "HSET c lost:1:3:k  SELECT 3 SET b 2 SET c 3");
    for names_leave in [false, true, false] {
        if names_leave && let Some(mut names) = world.lane.ready.pop_front() {
            names.sent_bytes = names.bytes;
            world.lane.sent.push_back(names);
        }
        // From its beginning `a` would be written anew, over what came behind it.
        assert_eq!(world.lose_and_resume(0), 0);
        assert_eq!(world.unsent(), "HSET c lost:1:3:k  SELECT 3 SET b 2 SET c 3");
    }
    world.send();
    assert_eq!(world.reply(b":1\r\n+OK\r\n+OK\r\n+OK\r\n").unwrap(), 3);
    assert!(world.lane.is_idle());
    assert_eq!((world.lane.unacked_bytes, world.lane.unacked_commands), (0, 0));
}

#[test]
fn a_watched_command_tells_what_the_target_lost() {
    let mut world = World::new();
    let flow = FlowId(3);
    for (key, lost_if) in [(b"a", 0), (b"b", 0), (b"c", -2)] {
        world.write(0, Class::Guarded, &[b"PEXPIREAT", key, b"5"]);
        let batch = &mut world.lane.encoder.batch;
        batch.watched.push(Watched { command: batch.commands - 1, flow, db: DbIndex(0), lost_if });
        // Answers 0 without being watched.
        world.write(0, Class::Guarded, &[b"HDEL", key, b"f"]);
    }
    world.close();
    world.send();
    // MULTI, six commands, the marker.
    let queued = b"+QUEUED\r\n".repeat(7);
    let exec = b"*7\r\n:0\r\n:0\r\n:1\r\n:0\r\n*1\r\n:-2\r\n:0\r\n+OK\r\n";
    assert_eq!(world.reply(&[&b"+OK\r\n"[..], &queued, exec].concat()).unwrap(), 1);
    let lost: Vec<_> = world.lost.iter().map(|watched| (watched.command, watched.lost_if)).collect();
    assert_eq!(lost, [(1, 0), (5, -2)]);
}

#[test]
fn replies_to_a_batch_whose_send_was_cut_short() {
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.write(0, Class::Blind, &[b"SET", b"b", b"2"]);
    world.close();
    world.lane.sent.append(&mut world.lane.ready);
    world.lane.in_kernel = 1;
    assert_eq!(world.lane.sent_completion(Ok(30)), None);
    assert_eq!(world.reply(b"+OK\r\n").unwrap(), 0);
    assert!(world.reply(b"+OK\r\n+OK\r\n").is_err(), "more replies than commands are nobody's");
    let mut world = World::new();
    assert!(world.reply(b"+OK\r\n").is_err());
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
}

/// The kernel tells of a send after the reply to it was read: the lane goes on, in any order of the two.
#[test]
fn replies_may_come_before_the_completion_of_their_send() {
    let mut world = World::new();
    for key in [b"a", b"b", b"c"] {
        world.write(0, Class::Blind, &[b"SET", key, b"1"]);
        world.close();
    }
    let bytes = world.lane.ready[0].bytes as u32;
    world.lane.sent.append(&mut world.lane.ready);
    world.lane.in_kernel = 3;
    assert_eq!(world.reply(b"+OK\r\n+OK\r\n").unwrap(), 0, "the kernel may still read them");
    assert_eq!(world.lane.sent_completion(Ok(bytes)), None);
    assert_eq!(world.completed(), 1);
    assert_eq!(world.lane.sent_completion(Ok(bytes)), None);
    assert_eq!(world.lane.sent_completion(Ok(bytes)), None);
    assert_eq!((world.completed(), world.lane.in_kernel), (1, 0));
    assert_eq!(world.reply(b"+OK\r\n").unwrap(), 1);
    assert!(world.lane.is_idle());
    assert!(world.reply(b"+OK\r\n").is_err());
    // Lost before the completion: what was answered is not sent again.
    let mut world = World::new();
    for key in [b"a", b"b"] {
        world.write(0, Class::Blind, &[b"SET", key, b"1"]);
        world.close();
    }
    world.lane.sent.append(&mut world.lane.ready);
    world.lane.in_kernel = 2;
    assert_eq!(world.reply(b"+OK\r\n").unwrap(), 0);
    assert_eq!(world.lose_and_resume(0), 1);
    assert_eq!(world.unsent(), "SET b 1");
    // Answered, and then cut short: that is no server.
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.close();
    world.lane.sent.append(&mut world.lane.ready);
    world.lane.in_kernel = 1;
    assert_eq!(world.reply(b"+OK\r\n").unwrap(), 0);
    assert_eq!(world.lane.sent_completion(Ok(5)), Some(libc::EPROTO));
}

#[test]
fn a_nil_before_a_group_is_no_discarded_exec() {
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"XADD", b"x", b"NOMKSTREAM", b"1-1", b"f", b"v"]);
    world.write(0, Class::Guarded, &[b"INCR", b"n"]);
    world.close();
    world.send();
    assert_eq!(world.reply(b"$-1\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n").unwrap(), 0);
    assert!(world.reply(b"*-1\r\n").is_err(), "but one in place of EXEC's array is");
}

#[test]
fn an_exec_is_answered_by_as_many_as_it_executed() {
    for (reply, good) in [
        (&b"*2\r\n:1\r\n+OK\r\n"[..], true),
        (b"*1\r\n:1\r\n", false),
        (b"*3\r\n:1\r\n+OK\r\n:1\r\n", false),
        (b"*0\r\n", false),
        (b"+OK\r\n", false),
        (b"+QUEUED\r\n", false),
        (b":2\r\n", false),
        (b"$2\r\nOK\r\n", false),
    ] {
        let mut world = World::new();
        world.write(0, Class::Guarded, &[b"INCR", b"n"]);
        world.close();
        world.send();
        assert_eq!(world.reply(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n").unwrap(), 0);
        let replied = world.reply(reply);
        let torn = matches!(replied, Err(EngineError::Torn(_)));
        assert!(if good { matches!(replied, Ok(1)) } else { torn }, "{}: {replied:?}", reply.escape_ascii());
    }
}

/// A batch of a cluster may have several transactions, and commands beside them.
#[test]
fn each_exec_of_a_cluster_is_answered_by_as_many_as_it_executed() {
    for (reply, good) in [
        (&b"*2\r\n:1\r\n+OK\r\n"[..], true),
        (b"*1\r\n:1\r\n", false),
        (b"*0\r\n", false),
        (b"*-1\r\n", false),
        (b"+OK\r\n", false),
        (b"+QUEUED\r\n", false),
        (b":2\r\n", false),
    ] {
        let mut world = World::new();
        world.lane.in_cluster = true;
        let mut bytes = resp::command(&[b"SET", b"a", b"1"]);
        for (key, marker) in [(b"n", b"m"), (b"o", b"p")] {
            let group: [&[&[u8]]; 4] = [&[b"MULTI"], &[b"INCR", key], &[b"SET", marker, b"j:1"], &[b"EXEC"]];
            group.iter().for_each(|args| resp::push_command(&mut bytes, args));
        }
        let mut batch = crate::engine::layout::batch_of(bytes, 9, true);
        batch.groups = vec![(4, 2), (8, 6)];
        world.lane.sent.push_back(batch);
        let before = b"+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n";
        assert_eq!(world.reply(before).unwrap(), 0);
        let replied = world.reply(reply);
        assert!(
            if good { matches!(replied, Ok(1)) } else { replied.is_err() },
            "{}: {replied:?}",
            reply.escape_ascii()
        );
    }
}

/// One that sends a byte now and then, and no reply, would else hold a lane for ever.
#[test]
fn only_whole_replies_are_a_sign_of_life() {
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.close();
    world.send();
    for (now_ns, byte) in (100..).zip(b"+OK\r\n".chunks(1)) {
        assert_eq!(world.lane.heard_ns, 0);
        let replies = world.lane.replies(byte, now_ns, |_| {}, |_, _, _| Ok(Verdict::Done), |_, _| {});
        replies.unwrap();
    }
    assert_eq!(world.lane.heard_ns, 104);
}

#[test]
fn losing_every_connection_is_hopeless() {
    let mut world = World::new();
    world.write(0, Class::Blind, &[b"SET", b"a", b"1"]);
    world.close();
    for _ in 0..=LOSSES_IN_A_ROW_MAX {
        assert!(!world.lane.is_hopeless());
        world.send();
        world.lose_and_resume(0);
    }
    assert!(world.lane.is_hopeless());
    world.send();
    assert_eq!(world.reply(b"+OK\r\n").unwrap(), 1);
    assert!(!world.lane.is_hopeless());
}

/// A machine that owes an acknowledgement is told from one that answers between two looks, and from one that was only quiet.
#[test]
fn a_machine_owes_from_the_first_look_that_finds_it_owing() {
    let mut lane = World::new().lane;
    let signs = |owes, quiet_ms| Some(PeerSigns { owes, quiet: Duration::from_millis(quiet_ms) });
    const MS: u64 = 1_000_000;
    let mut look = |signs, at_ms| lane.owes_ns(signs, at_ms * MS) / MS;
    assert_eq!(look(None, 10_000), 0);
    // It was quiet for long, as nothing was said; then it owes.
    assert_eq!(look(signs(false, 9_000), 10_200), 0);
    assert_eq!(look(signs(true, 9_300), 10_500), 0);
    assert_eq!(look(signs(true, 9_500), 10_700), 200);
    assert_eq!(look(signs(true, 11_700), 12_900), 2_400);
    // It has answered, and owes another one.
    assert_eq!(look(signs(true, 100), 13_100), 0);
    assert_eq!(look(signs(true, 300), 13_300), 200);
    assert_eq!(look(signs(false, 10), 13_500), 0);
    assert_eq!(look(signs(true, 210), 13_700), 0);
}
