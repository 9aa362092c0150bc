//! Keys that the target lost: what is watched, wherever it is executed; what an earlier session may not have heard; their names
//! in the checkpoint.

use super::*;
use crate::engine::units::Unit;
use crate::redis::value::Value;

/// One record that renews a key, watched. Returns whether an earlier session executed it and may not have heard the answer.
fn renew(world: &mut World, lsn: u64, class: Class, key: &str) -> bool {
    let World { router, lanes, slab, .. } = world;
    let settings = WriteSettings::copying(1 << 20, READ_NS);
    let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (FLOW, Some(Lsn(lsn))), settings);
    writer.watch(DbIndex(0), 0);
    writer.begin(CommandMeta { slot: slot(key.as_bytes()), db: DbIndex(0), class, all_nodes: false });
    writer.put(&resp::command(&[b"PERSIST", key.as_bytes()]));
    writer.end();
    writer.record_done();
    writer.is_unheard()
}

fn missed(world: &mut World, lane: usize, bytes: &[u8]) -> Vec<String> {
    let World { lanes, slab, .. } = world;
    let mut keys = Vec::new();
    let lost = |batch: &Batch, watched: crate::engine::batch::Watched| {
        let key = crate::engine::errors::key_of(batch, slab, watched.command).unwrap();
        keys.push(String::from_utf8(key).unwrap());
    };
    lanes[lane].replies(bytes, 0, |_| {}, |_, _, _| Ok(Verdict::Done), lost).unwrap();
    keys
}

#[test]
fn a_renewal_that_meets_no_key_is_told_by_its_key() {
    let [a, _, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(31), &[(Guarded, &["INCR", "k0"]), (Blind, &["SET", &c, "1"])]).unwrap();
    renew(&mut world, 32, Guarded, &c);
    renew(&mut world, 33, Guarded, &a);
    // By itself, as what a cutover that was rolled back holds again.
    let blind = format!("x{{{c}}}");
    world.record(Some(34), &[(Blind, &["PING", &a])]).unwrap();
    world.send(0);
    renew(&mut world, 35, Blind, &blind);
    world.send(0);
    let [first, second] = [0, 1].map(|at| world.lanes[0].sent[at].commands);
    // Groups of `a` (with what else it does there) and of `c`.
    let shown: Vec<_> = world.lanes[0].sent[0].groups.clone();
    let watched: Vec<u32> = world.lanes[0].sent[0].watched.iter().map(|watched| watched.command).collect();
    assert_eq!((shown.len(), watched.len(), second), (2, 2, 1), "{shown:?} {watched:?} {first}");
    let mut replies = Vec::new();
    for (exec, from) in &shown {
        (*from - 1..*exec)
            .for_each(|at| replies.extend(if at + 1 == *from { b"+OK\r\n".to_vec() } else { b"+QUEUED\r\n".to_vec() }));
        replies.extend(format!("*{}\r\n", exec - from).bytes());
        (*from..*exec - 1).for_each(|_| replies.extend(b":0\r\n"));
        replies.extend(b"+OK\r\n");
    }
    replies.extend(b":0\r\n");
    let mut told = missed(&mut world, 0, &replies);
    told.sort();
    let mut wanted = vec![a, c, blind];
    wanted.sort();
    assert_eq!(told, wanted);
}

/// The control plane hears the answers to what it executes; where nobody heard one, the key may be lost.
#[test]
fn what_is_watched_stays_watched_wherever_it_is_executed() {
    let [a, b, c] = keys();
    let mut world = world(Resumed::new());
    world.record(Some(31), &[(Blind, &["SET", &b, "1"])]).unwrap();
    renew(&mut world, 32, Guarded, &b);
    world.send(1);
    world.lanes[1].lose();
    let units = world.lanes[1].take_unexecuted(&mut world.slab).unwrap();
    let [unit] = units.as_slice() else { panic!("{units:?}") };
    let ok = || Value::Simple(b"OK".to_vec());
    let answers = |number: Value| vec![ok(), ok(), ok(), ok(), Value::Array(vec![ok(), number, ok()])];
    let keys = |unit: &Unit, answers: Option<&[Value]>| -> Vec<Vec<u8>> {
        unit.missed(answers).map(|(_, key)| key.unwrap()).collect()
    };
    assert_eq!(keys(unit, Some(&answers(Value::Integer(0)))), [b.as_bytes()]);
    assert!(keys(unit, Some(&answers(Value::Integer(1)))).is_empty());
    assert_eq!(keys(unit, None), [b.as_bytes()]);
    // A field in several.
    let fields = Value::Array(vec![Value::Integer(1), Value::Integer(0)]);
    assert_eq!(keys(unit, Some(&answers(fields))), [b.as_bytes()]);
    // Refused and put back, it is told by the lane, as if nothing had been.
    world.record(Some(33), &[(Blind, &["SET", &c, "1"])]).unwrap();
    renew(&mut world, 34, Guarded, &a);
    world.send(0);
    let replies = world.lanes[0].sent[0].commands;
    let at_group = if world.lanes[0].sent[0].groups[0].1 == 1 { 0 } else { 1 };
    let text = match at_group {
        0 => "-OOM\r\n-OOM\r\n-OOM\r\n-OOM\r\n+OK\r\n",
        _ => "+OK\r\n-OOM\r\n-OOM\r\n-OOM\r\n-OOM\r\n",
    };
    assert_eq!(replies, 5);
    world.reply(0, text.as_bytes());
    world.lanes[0].put_back_refused(&mut world.slab).unwrap();
    let batch = world.lanes[0].ready.pop_front().unwrap();
    assert_eq!((batch.commands, batch.groups.clone(), batch.watched[0].command), (4, vec![(3, 1)], 1));
    world.lanes[0].sent.push_back(batch);
    assert_eq!(missed(&mut world, 0, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n+OK\r\n"), [a]);
}

/// The checkpoint's position says that an answer was heard, a marker does not.
#[test]
fn a_renewal_of_an_earlier_session_whose_answer_may_not_have_been_heard_is_known() {
    let [a, b, _] = keys();
    let mut resumed = Resumed::new();
    resumed.insert((FLOW, slot(a.as_bytes())), Lsn(9));
    let mut world = world(resumed);
    assert!(!renew(&mut world, HEARD_BEFORE.0, Guarded, &a), "heard");
    assert!(renew(&mut world, HEARD_BEFORE.0 + 1, Guarded, &a), "executed");
    assert!(!renew(&mut world, 10, Guarded, &a), "not executed");
    assert!(!renew(&mut world, 8, Guarded, &b), "not executed");
    assert_eq!(
        (world.waiting(0), world.waiting(1).matches("PERSIST").count()),
        (format!("MULTI PERSIST {a} SET MARK j:10 EXEC"), 1)
    );
}

/// Names of lost keys stand in front of the positions that pass them, and go when the keys are there.
#[test]
fn lost_keys_are_named_in_the_checkpoint_until_they_are_there_again() {
    let [a, b, _] = keys();
    let lane = usize::from(slot(CHECKPOINT_KEY.as_bytes()).0 % 2);
    let lost = |key: &str| Lost { flow: FLOW, db: DbIndex(0), key: key.as_bytes().to_vec() };
    let mut world = world(Resumed::new());
    let World { router, lanes, slab, .. } = &mut world;
    router.remember_lost(lanes, slab, 1 << 20, READ_NS, &[lost(&a), lost(&b)]);
    assert_eq!(
        world.waiting(lane),
        format!("HSET {CHECKPOINT_KEY} lost:3:0:{a}  lost:3:0:{b} ").trim_end().replace("  ", " ")
    );
    world.answer_all(lane);
    // `a` is being written, on whichever lane.
    world.record(None, &[(Blind, &["RESTORE", &a, "0", "v"])]).unwrap();
    world.router.found_again(&lost(&a), READ_NS);
    let forget = |world: &mut World, all: bool| {
        let World { router, lanes, slab, .. } = world;
        router.forget_found(lanes, slab, 1 << 20, READ_NS, all);
    };
    forget(&mut world, true);
    assert!(!world.waiting(lane).contains("HDEL"), "it is not there");
    let at = usize::from(slot(a.as_bytes()).0 % 2);
    world.answer_all(at);
    forget(&mut world, false);
    assert!(!world.waiting(lane).contains("HDEL"), "it was there only just now");
    forget(&mut world, true);
    assert!(world.waiting(lane).ends_with(&format!("HDEL {CHECKPOINT_KEY} lost:3:0:{a}")));
}

/// A value that was fetched again is no record: what a marker says of records says nothing of it, and it never lowers one, nor puts
/// a number of the full sync in its place, so that records would be applied twice after a kill.
#[test]
fn regression_a_value_fetched_again_leaves_the_position_of_its_slot() {
    let [a, ..] = keys();
    let mut resumed = Resumed::new();
    resumed.insert((FLOW, slot(a.as_bytes())), SENT_BEFORE);
    let mut world = world(resumed);
    let World { router, lanes, slab, .. } = &mut world;
    // It takes no more than a byte to fill a batch.
    let settings = WriteSettings::copying(1, READ_NS);
    let place = (FLOW, Some(SENT_BEFORE));
    let mut writer =
        ClusterWriter::new(router, lanes, slab, &Source::None, place, settings).between_records(DbIndex(0));
    for (class, name) in [(Blind, "DEL"), (Guarded, "RPUSH"), (Guarded, "RPUSH")] {
        writer.begin(CommandMeta { slot: slot(a.as_bytes()), db: DbIndex(0), class, all_nodes: false });
        writer.put(&resp::command(&[name.as_bytes(), a.as_bytes()]));
        writer.end();
    }
    writer.record_done();
    let wanted = format!("MULTI DEL {a} RPUSH {a} RPUSH {a} SET MARK j:{SENT_BEFORE} EXEC");
    assert_eq!(world.waiting(0), wanted);
    // The marker may stand there without it: then nobody knows.
    world.send(0);
    world.lanes[0].lose();
    let units = world.lanes[0].take_unexecuted(&mut world.slab).unwrap();
    let [unit] = units.as_slice() else { panic!("{units:?}") };
    let numbers = Value::Array(vec![Value::Integer(0), Value::Integer(1), Value::Integer(2)]);
    assert_eq!((unit.missed(None).count(), unit.missed(Some(&[numbers])).count()), (1, 0));
}
