//! Every answer by which a scripted target says that it does not execute a command for the state that it is in: what becomes of the
//! command, of what stands behind it, of the positions, and what the operator is told.

mod common;

use common::job::{binary, reasons, stop, until};
use common::refusals::{NOAUTH, REFUSALS, Refusal, To};
use df2redis::lab::answers::{ClusterPorts, TargetIdentity};
use df2redis::lab::flow::{Faults, Gate};
use df2redis::lab::generate::Spec;
use df2redis::lab::live::{Live, LiveOptions};
use df2redis::lab::master::MasterOptions;
use df2redis::lab::script::{ErrorRule, Received, ScriptOptions, ScriptedTarget};
use df2redis::lab::torture::{Tool, wait_for};
use df2redis::redis::slot::slot;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    FullSync,
    Journal,
}

/// A record of the source.
struct Line {
    lsn: u64,
    words: String,
    key: String,
}

struct World {
    nodes: Vec<ScriptedTarget>,
    in_cluster: bool,
    live: Live,
    during: During,
    full_sync: Gate,
    tool: Tool,
    dir: tempfile::TempDir,
    lines: Vec<Line>,
}

/// A key of the first node.
fn key(family: &str) -> String {
    (0..).map(|i| format!("{family}:{i}")).find(|key| slot(key.as_bytes()).0 < 8192).unwrap()
}

fn rule(command: &str, key: &str, reply: &str, times: u64) -> ErrorRule {
    ErrorRule { key: Some(key.as_bytes().to_vec()), times, ..ErrorRule::every(command, reply) }
}

impl World {
    /// A job that is where it should be: the first keys are there.
    fn new(in_cluster: bool, during: During, more: &[&str]) -> Self {
        let ports = ClusterPorts::default();
        let identity = TargetIdentity { password: Some("secret".into()), ..TargetIdentity::default() };
        let identity = if in_cluster { identity.in_cluster(&ports) } else { identity };
        let start = |_| {
            ScriptedTarget::start(ScriptOptions { identity: identity.clone(), ..ScriptOptions::default() }).unwrap()
        };
        let nodes: Vec<ScriptedTarget> = (0..if in_cluster { 2 } else { 1 }).map(start).collect();
        ports.lock().unwrap().extend(nodes.iter().map(ScriptedTarget::port));
        let full_sync = Gate::default();
        if during == During::Journal {
            full_sync.open();
        }
        let faults = Faults { full_sync_gate: Some(full_sync.clone()), ..Faults::default() };
        let spec = Spec { seed: 5, flows_count: 1, ..Spec::of("string:60B=5").unwrap() };
        let live =
            Live::start(spec, LiveOptions::default(), MasterOptions { faults, ..MasterOptions::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [password, socket, log] = ["password", "control.sock", "log"].map(|name| dir.path().join(name));
        std::fs::write(&password, "secret").unwrap();
        let files = ["--target-password-file", password.to_str().unwrap(), "--control", socket.to_str().unwrap()];
        let batch_bytes = BATCH_BYTES.to_string();
        let few = ["--log", "info", "--cores", "1", "--connections", "1", "--batch-bytes", &batch_bytes];
        let args = [&files[..], &few, more].concat();
        let tool = Tool::start(binary(), live.port(), nodes[0].port(), &log, &args).unwrap();
        let mut this = Self { nodes, in_cluster, live, during, full_sync, tool, dir, lines: Vec::new() };
        let keys: Vec<Vec<u8>> = this.live.world().look(|data| data.iter().map(|(_, key, _)| key.clone()).collect());
        until(&mut this.tool, "the first keys do not come", || {
            let received: Vec<Received> = this.nodes.iter().flat_map(ScriptedTarget::received).collect();
            keys.iter().all(|key| received.iter().any(|of| of.executed && of.request.get(1) == Some(key)))
                && (during == During::FullSync || this.live.is_acknowledged())
        });
        this
    }

    fn say(&mut self, words: String) {
        let lsn = self.live.world().next_lsns()[0];
        common::job::run(&self.live, &words);
        let key = words.split(' ').nth(1).unwrap().to_owned();
        self.lines.push(Line { lsn, words, key });
    }

    fn say_all<const N: usize>(&mut self, key: &str, lines: [&str; N]) {
        let long = "x".repeat(BATCH_BYTES);
        lines.iter().for_each(|line| self.say(line.replace("{key}", key).replace("{long}", &long)));
    }

    /// The commands that the nodes executed, in order: those of a transaction when it was.
    fn executed(&self) -> Vec<String> {
        let mut done = Vec::new();
        for node in &self.nodes {
            let mut open: BTreeMap<u64, Vec<String>> = BTreeMap::new();
            for received in node.received() {
                match received.request[0].as_slice() {
                    b"MULTI" => drop(open.insert(received.connection, Vec::new())),
                    b"EXEC" => {
                        let group = open.remove(&received.connection).unwrap_or_default();
                        done.extend(group.into_iter().map(|words| (received.ordinal, words)));
                    }
                    _ if !received.executed => {}
                    _ => match open.get_mut(&received.connection) {
                        Some(group) => group.push(words(&received)),
                        None => done.push((received.ordinal, words(&received))),
                    },
                }
            }
        }
        done.sort_by_key(|(ordinal, _)| *ordinal);
        done.into_iter().map(|(_, words)| words).collect()
    }

    /// How often this was answered with an error.
    fn refused(&self, words: &str) -> usize {
        let received = self.nodes.iter().flat_map(ScriptedTarget::received);
        received.filter(|of| !of.executed && self::words(of) == words).count()
    }

    #[track_caller]
    fn wait_executed(&mut self) {
        let executed = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            std::thread::sleep(Duration::from_millis(15));
            let done: BTreeSet<String> = self.executed().into_iter().collect();
            self.lines.iter().all(|line| done.contains(&line.words)).then_some(())
        });
        assert!(executed.is_some(), "not all is executed\n{}", self.tool.said());
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// What holds the job back, as `df2redis status` says it; the server's words as they were.
    fn reasons(&self) -> String {
        reasons(&self.socket()).replace(r"\\'", "'")
    }

    #[track_caller]
    fn wait_told(&mut self, text: &str) {
        let told = wait_for(|| {
            assert_eq!(self.tool.ended(), None, "{}", self.tool.said());
            self.reasons().contains(text).then_some(())
        });
        assert!(told.is_some(), "no \"{text}\" in {}\n{}", self.reasons(), self.tool.said());
    }

    /// Each record was executed as often as it may be, behind those before it on its key.
    #[track_caller]
    fn check(&self) {
        let executed = self.executed();
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        executed.iter().enumerate().for_each(|(at, words)| places.entry(words).or_default().push(at));
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for line in &self.lines {
            let at = places.get(&line.words[..]).cloned().unwrap_or_default();
            // What may be repeated is, where a node refuses something before it and then takes it.
            let once = !line.key.starts_with(BLIND) || !self.in_cluster && self.during == During::Journal;
            assert!(at.len() == 1 || !once && !at.is_empty(), "{:.80}: {at:?}\n{}", line.words, self.tool.said());
            let before = last.insert(&line.key, at[at.len() - 1]);
            assert!(before < at.last().copied(), "{:.80} came before what it stands behind", line.words);
        }
        assert!(self.check_notes(&executed) > 0, "nothing was noted");
    }

    /// No note of a position passes a record that was not executed before it. Returns how many there are.
    #[track_caller]
    fn check_notes(&self, executed: &[String]) -> usize {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        executed.iter().enumerate().rev().for_each(|(at, words)| _ = first.insert(words, at));
        let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
        let mut notes = 0;
        for (note_at, words) in executed.iter().enumerate() {
            let Some(note) = Note::of(words) else { continue };
            notes += 1;
            if note.is_position(self.during) {
                let passed = self.lines.iter().filter(|line| line.lsn < note.number && note.covers(&line.key));
                let is_missing = |line: &&Line| first.get(&line.words[..]).is_none_or(|at| *at > note_at);
                let missing: Vec<&str> = passed.filter(is_missing).map(|line| &line.key[..]).collect();
                assert!(missing.is_empty(), "{words} passes {missing:?}\n{}", self.tool.said());
            } else {
                // Those of the full sync count its transactions.
                let before = numbers.insert(note.key, note.number).unwrap_or(0);
                assert!(note.number >= before, "{words} behind {before}");
            }
        }
        notes
    }

    /// A refused command is tried again with growing pauses, told with its reason, and executed once; nothing behind it on its key is
    /// executed meanwhile, and no position passes it.
    #[track_caller]
    fn waits_out(&mut self, refusal: &Refusal) {
        let code = refusal.code;
        let [held, queued, discarded, blind] =
            ["held", "queued", "discarded", BLIND].map(|family| key(&format!("{family}:{code}")));
        self.nodes[0].set_errors(refuses(refusal, &held));
        let began = Instant::now();
        let lsn = self.live.world().next_lsns()[0];
        self.say_all(&held, LINES);
        self.say_all(&key("other"), [&format!("APPEND {{key}} {code}")]);
        // Whatever stands in an answer to AUTH is not shown.
        let answer = refusal.answer("INCR");
        self.wait_told(if refusal.to == To::Login { code } else { &answer[1..] });
        if code == "OOM" {
            // It has another reason now.
            let next = REFUSALS.iter().find(|other| other.code == "NOPERM").unwrap();
            self.nodes[0].set_errors(refuses(next, &held));
            self.wait_told(&next.answer("INCR")[1..]);
        }
        if self.during == During::Journal {
            let acked = self.live.master().unwrap().acks()[0];
            assert!(acked <= Some(lsn), "{code}: {acked:?} is acknowledged, {lsn} not executed");
        }
        let tries = |world: &Self| match refusal.to {
            To::Login => world.logins_refused(),
            _ => world.refused(&format!("INCR {held}")),
        };
        assert!(wait_for(|| (tries(self) > 1).then_some(())).is_some(), "{code}: it does not try again");
        let again = tries(self);
        assert!((2..=60 + 16 * began.elapsed().as_secs() as usize).contains(&again), "{code}: {again} times");
        // A few times this command alone, and not what stands behind it.
        let queued_rule = rule("INCR", &queued, &refusal.answer("INCR"), 2);
        let blind_rule = rule("SET", &blind, &refusal.answer("SET"), 3);
        let exec_rule = refusal.answer_to_exec().map(|answer| rule("EXEC", &discarded, &answer, 2));
        let rules = if refusal.to == To::Login { vec![] } else { vec![queued_rule, blind_rule] };
        self.nodes[0].set_errors(rules.into_iter().chain(exec_rule).collect());
        self.wait_executed();
        self.say_all(&queued, LINES);
        self.say_all(&blind, ["SET {key} 1", "SET {key} 2", "SET {key} 3"]);
        self.say_all(&discarded, LINES);
        self.wait_executed();
        if refusal.to != To::Login {
            assert!(self.refused(&format!("INCR {queued}")) == 2, "{code}");
            assert!(self.refused(&format!("SET {blind} 1")) > 0, "{code}");
        }
        assert!(refusal.answer_to_exec().is_none() || self.refused(&format!("INCR {discarded}")) == 2, "{code}");
    }

    fn logins_refused(&self) -> usize {
        let received: Vec<Received> = self.nodes.iter().flat_map(ScriptedTarget::received).collect();
        received.iter().filter(|of| !of.executed && of.request[0] == b"AUTH").count()
    }
}

/// What the tool keeps at the target of how far it is.
struct Note<'a> {
    key: &'a str,
    number: u64,
}

impl<'a> Note<'a> {
    fn of(words: &'a str) -> Option<Self> {
        let mut words = words.split(' ');
        let (name, key) = (words.next()?, words.next()?);
        let value = match name {
            "HSET" if key == "df2redis:checkpoint" => words.skip_while(|word| *word != "lsn:0").nth(1)?,
            "SET" if key.starts_with("df2redis:m") || key.starts_with("df2redis:p:") => words.next()?,
            _ => return None,
        };
        Some(Self { key, number: value.rsplit(':').next()?.parse().ok()? })
    }

    /// Not the number of a transaction.
    fn is_position(&self, during: During) -> bool {
        !self.key.starts_with("df2redis:m") || self.key.starts_with("df2redis:m:") && during == During::Journal
    }

    /// A marker is one of its slot.
    fn covers(&self, key: &str) -> bool {
        !self.key.starts_with("df2redis:m:") || slot(self.key.as_bytes()) == slot(key.as_bytes())
    }
}

/// Records of a key, the first of which must not be executed twice. With the last one another batch begins.
const LINES: [&str; 3] = ["INCR {key}", "APPEND {key} {long}", "SET {key} 1"];
const BATCH_BYTES: usize = 4096;

/// Until the test says otherwise whatever comes for a key is refused; or the connection that is made anew.
fn refuses(refusal: &Refusal, key: &str) -> Vec<ErrorRule> {
    match refusal.to {
        To::Login => {
            vec![rule("INCR", key, &NOAUTH.answer("INCR"), 1), ErrorRule::every("AUTH", &refusal.answer("AUTH"))]
        }
        _ => vec![rule("", key, &refusal.answer("INCR"), u64::MAX)],
    }
}

/// Family of keys whose commands may be repeated.
const BLIND: &str = "blind";

fn words(received: &Received) -> String {
    received.request.iter().map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn every_refusal_is_waited_out(in_cluster: bool, during: During) {
    let mut world = World::new(in_cluster, during, &[]);
    for refusal in &REFUSALS {
        world.waits_out(refusal);
    }
    world.full_sync.open();
    until(&mut world.tool, "not acknowledged", || world.live.is_acknowledged());
    let socket = world.socket();
    until(&mut world.tool, "it still says so", || {
        let reasons = reasons(&socket);
        reasons != "null" && REFUSALS.iter().all(|refusal| !reasons.contains(refusal.code))
    });
    stop(&mut world.tool);
    world.check();
}

/// One server, and a node of a cluster.
fn of_both(test: impl Fn(bool) + Sync) {
    std::thread::scope(|scope| {
        for in_cluster in [false, true] {
            let test = &test;
            scope.spawn(move || test(in_cluster));
        }
    });
}

#[test]
fn every_refusal_is_waited_out_in_the_full_sync() {
    of_both(|in_cluster| every_refusal_is_waited_out(in_cluster, During::FullSync));
}

#[test]
fn every_refusal_is_waited_out_in_the_journal() {
    of_both(|in_cluster| every_refusal_is_waited_out(in_cluster, During::Journal));
}

/// Records of which the first is refused as `rules` say: the run ends with exit code 5. Returns what it said, the server's words as
/// they were. Nothing behind the first one on its key is executed, and nothing passes it.
#[track_caller]
fn ends(in_cluster: bool, during: During, lines: [&str; 3], rules: &dyn Fn(&str) -> Vec<ErrorRule>) -> String {
    let mut world = World::new(in_cluster, during, &["--retry-max", "1s"]);
    let key = key("refused");
    world.nodes[0].set_errors(rules(&key));
    world.say_all(&key, lines);
    let ended = world.tool.wait();
    let said = world.tool.said().replace(r"\\'", "'").replace(r"\'", "'");
    assert_eq!(ended, Some(5), "{lines:?}: {said}");
    assert!(!world.live.is_acknowledged());
    let executed = world.executed();
    assert!(!executed.iter().any(|words| words.contains(&key)), "{lines:?}: {said}");
    world.check_notes(&executed);
    said
}

/// Not beyond `--retry-max`: then the run ends with the server's words, and what is to be looked after.
#[test]
fn no_refusal_is_waited_out_for_ever() {
    for (in_cluster, during) in [(false, During::FullSync), (true, During::Journal)] {
        let ends = |refusal: &Refusal| {
            let said = ends(in_cluster, during, LINES, &|key| refuses(refusal, key));
            let (code, answer) = (refusal.code, refusal.answer("INCR"));
            let words = if refusal.to == To::Login { code } else { &answer[1..] };
            assert!(said.contains(words) && said.contains("--retry-max"), "{code}: {said}");
            // Who settles for a cluster's worker has only the node's words.
            let is_rejection = ["LOADING", "READONLY", "MASTERDOWN"].contains(&code);
            assert!(said.contains(refusal.remedy) || in_cluster && is_rejection, "{code}: {said}");
        };
        std::thread::scope(|scope| {
            for refusal in &REFUSALS {
                scope.spawn(move || ends(refusal));
            }
        });
    }
}

/// Keys of several slots in one command, or one transaction, are a defect of the tool's: no waiting mends it.
#[test]
fn a_command_over_several_slots_ends_the_run() {
    let answer = "-CROSSSLOT Keys in request don't hash to the same slot";
    let of_full_sync = ["SET", "INCR", "EXEC"].map(|command| (During::FullSync, command));
    let of_journal = ["SET", "INCR", "EXEC"].map(|command| (During::Journal, command));
    std::thread::scope(|scope| {
        for (during, command) in of_full_sync.into_iter().chain(of_journal) {
            scope.spawn(move || {
                let lines = if command == "SET" { ["SET {key} 1", "SET {key} 2", "SET {key} 3"] } else { LINES };
                let said = ends(true, during, lines, &|key| vec![rule(command, key, answer, u64::MAX)]);
                assert!(said.contains(&answer[1..]) && said.contains("please report it"), "{said}");
                assert!(!said.contains("holding") && !said.contains("--retry-max"), "{said}");
            });
        }
    });
}
