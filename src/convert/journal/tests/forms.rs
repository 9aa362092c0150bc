//! Every form that this room makes, taken by real servers with the effect it should have.

use super::super::*;
use super::server::{Server, binaries, now_ms};
use super::support::*;

/// A server and the translator for it.
struct World {
    server: Server,
    translator: JournalTranslator,
    now_ms: i64,
}

impl World {
    /// Translates a record and applies it; the replies.
    fn apply(&mut self, line: &str) -> String {
        let mut sent = Sent::default();
        let result = self.translator.command(DbIndex(0), 0, &split(line), self.now_ms, &mut Shown, &mut sent);
        assert!(!matches!(result, Err(_) | Ok(Outcome::NotCarried { .. })), "{line}: {result:?}");
        sent.commands.iter().map(|(_, bytes)| self.server.send(bytes)).collect::<Vec<_>>().join(" | ")
    }

    fn check(&mut self, records: &[&str], question: &str, expected: &str) {
        for record in records {
            let reply = self.apply(record);
            assert!(!reply.starts_with('-'), "{record}: {reply}");
        }
        assert_eq!(self.server.ask(question), expected, "{question} after {records:?}");
    }
}

#[test]
fn real_servers_take_every_form() {
    for binary in binaries() {
        let mut server = Server::start(&binary);
        let capabilities = server.capabilities();
        eprintln!("{:?} {:?}", capabilities.make, capabilities.version);
        let field_expiry = capabilities.field_expiry;
        let translator = JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(skip_all()), 1 << 20);
        let mut world = World { server, translator, now_ms: now_ms() };
        check_strings(&mut world);
        check_fields(&mut world, field_expiry);
        check_streams(&mut world);
        check_every_good_record(&mut world);
    }
}

/// What Dragonfly does to documents, done to those of a module that does it otherwise.
#[test]
fn documents_become_what_they_are_at_the_source() {
    let (Ok(module), Some(binary)) = (crate::lab::servers::find_module("rejson.so"), binaries().pop()) else { return };
    let mut server = Server::start_with(&binary, &["--loadmodule", module.to_str().unwrap()]);
    let capabilities = server.capabilities();
    let translator = JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(skip_all()), 1 << 20);
    let mut world = World { server, translator, now_ms: now_ms() };
    let later = (world.now_ms + 1_000_000).to_string();
    let expires = format!("PEXPIREAT d {later}");
    let whole = [r#"JSON.SET d $ {"a":1}"#, "JSON.SET d . 2 XX", "JSON.MSET d $ 3"];
    for (record, text) in whole.into_iter().zip([r#"{"a":1}"#, "2", "3"]) {
        world.check(&["JSON.SET d $ 0", &expires, record], "TTL d", "-1");
        world.check(&["SET d text", record], "JSON.GET d", text);
    }
    world.check(&["DEL d", "JSON.SET d $ 1 XX"], "EXISTS d", "0");
    world.check(
        &["JSON.SET d $ 1 NX", &expires, r#"JSON.MERGE d $ {"s":"x","l":[1]}"#, "JSON.SET d $ 5 NX"],
        "PEXPIRETIME d",
        &later,
    );
    // Each of these changes nothing at the source, and is recorded.
    let idle = [
        "JSON.NUMINCRBY d .s 1",
        "JSON.NUMMULTBY d .no 2",
        "JSON.TOGGLE d .s",
        "JSON.STRAPPEND d .l \"x\"",
        "JSON.ARRAPPEND d .s 1",
        "JSON.ARRINSERT d .s 0 1",
        "JSON.ARRPOP d .no",
        "JSON.ARRTRIM d .s 0 1",
        "JSON.SET d $.l[9] 1",
        "JSON.SET d $..no 1",
    ];
    for record in idle {
        let reply = world.apply(record);
        let name = record.split(' ').next().unwrap();
        let meaning = replies::error_meaning(name.as_bytes(), reply.trim_start_matches('-').as_bytes(), false);
        assert!(reply.starts_with('-') && meaning == replies::ErrorMeaning::NothingChanged, "{record}: {reply}");
    }
    world.check(&["SET t text"], "GET t", "text");
    world.check(&["JSON.SET t $ 1 NX"], "GET t", "text");
    for (record, name) in [("JSON.DEL t $.a", "JSON.DEL"), ("JSON.FORGET t $.a", "JSON.FORGET")] {
        let wrong = world.apply(record);
        assert_eq!(
            replies::error_meaning(name.as_bytes(), wrong.trim_start_matches('-').as_bytes(), false),
            replies::ErrorMeaning::NothingChanged,
            "{record}: {wrong}"
        );
    }
    let missing = world.apply("JSON.TOGGLE nosuch $");
    assert_eq!(
        replies::error_meaning(b"JSON.TOGGLE", &missing.as_bytes()[1..], false),
        replies::ErrorMeaning::KeyMissing
    );
}

/// Changes of filters that the snapshot left out, where the target has the module.
#[test]
fn filters_that_were_left_out_are_missed_by_nobody() {
    let (Ok(module), Some(binary)) = (crate::lab::servers::find_module("redisbloom.so"), binaries().pop()) else {
        return;
    };
    let mut server = Server::start_with(&binary, &["--loadmodule", module.to_str().unwrap()]);
    let capabilities = server.capabilities();
    let translator = JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(skip_all()), 1 << 20);
    let mut world = World { server, translator, now_ms: now_ms() };
    let changes =
        ["CF.DEL k x", "CF.COMPACT k", "CMS.INCRBY k a 1", "CMS.MERGE k 1 l", "TOPK.ADD k a", "TOPK.INCRBY k a 1"];
    for record in changes {
        let reply = world.apply(record);
        let name = record.split(' ').next().unwrap();
        let meaning = replies::error_meaning(name.as_bytes(), reply.trim_start_matches('-').as_bytes(), false);
        assert!(reply.starts_with('-') && meaning == replies::ErrorMeaning::KeyMissing, "{record}: {reply}");
    }
    world.check(&["SET k text"], "GET k", "text");
    let wrong = world.apply("CMS.INCRBY k a 1");
    assert_eq!(replies::error_meaning(b"CMS.INCRBY", &wrong.as_bytes()[1..], false), replies::ErrorMeaning::Unexpected);
    // These did nothing at the source, and are recorded.
    world.check(&["CMS.INITBYDIM d 10 5", "CMS.INITBYDIM wide 20 5", "CMS.INCRBY d a 3"], "CMS.QUERY d a", "3");
    for record in ["CMS.MERGE d 1 wide", "CMS.MERGE d 1 k", "CMS.MERGE k 1 d"] {
        let reply = world.apply(record);
        let meaning = replies::error_meaning(b"CMS.MERGE", reply.trim_start_matches('-').as_bytes(), false);
        assert!(reply.starts_with('-') && meaning == replies::ErrorMeaning::NothingChanged, "{record}: {reply}");
    }
    world.check(&[], "CMS.QUERY d a", "3");
}

fn check_strings(world: &mut World) {
    let later = world.now_ms + 1_000_000;
    world.check(&["PREPEND p b", "PREPEND p a"], "GET p", "ab");
    world.check(&[&format!("PEXPIREAT p {later}"), "PREPEND p _"], "GET p", "_ab");
    world.check(&[], "PEXPIRETIME p", &later.to_string());
    world.check(&["SET d v", "DELEX d IFEQ w"], "GET d", "v");
    world.check(&["DELEX d IFNE v"], "GET d", "v");
    world.check(&["DELEX d IFEQ v"], "EXISTS d", "0");
    world.check(&["DELEX d IFNE v"], "EXISTS d", "0");
    world.check(&["SET d v", "DELEX d IFNE w"], "EXISTS d", "0");
    world.check(&["SET d v", "DELEX d"], "EXISTS d", "0");
    world.check(&["SET d v EX 1000 NX STICK"], "PEXPIRETIME d", &(world.now_ms + 1_000_000).to_string());
    world.check(&["GETSET d w"], "TTL d", "-1");
    world.check(&["SET d v PXAT -5"], "EXISTS d", "0");
}

fn check_fields(world: &mut World, field_expiry: bool) {
    let second = world.now_ms / 1000 * 1000;
    let later = (second + 1_000_000).to_string();
    world.check(&["HSET h a 0", "HSETEX h NX 1000 a 1 b 2"], "HMGET h a b", "0 2");
    world.check(&["HSETEX h FXX EX 2000 FIELDS 2 a 5 x 6"], "HMGET h a x", "0 nil");
    world.check(&["HSETEX h FNX EX 2000 FIELDS 2 a 5 x 6"], "HMGET h a x", "0 nil");
    world.check(&["HSETEX h FXX EX 1000 FIELDS 2 a 5 b 6"], "HMGET h a b", "5 6");
    world.check(&["HSETEX h 1000 c 7 d 8"], "HMGET h c d", "7 8");
    world.check(&["HSETEX h KEEPTTL 2000 d 9 e 10"], "HMGET h d e", "9 10");
    if !field_expiry {
        world.check(&["HEXPIRE h 0 FIELDS 1 e"], "HEXISTS h e", "0");
        return;
    }
    world.check(&[], "HPEXPIRETIME h FIELDS 4 a b c d", &[later.as_str(); 4].join(" "));
    world.check(&[], "HPEXPIRETIME h FIELDS 1 e", &(second + 2_000_000).to_string());
    world.check(&["HSET h plain 1", "HSETEX h KEEPTTL 10 plain 2"], "HPEXPIRETIME h FIELDS 1 plain", "-1");
    world.check(&["HSETEX fresh KEEPTTL 1000 f 1"], "HPEXPIRETIME fresh FIELDS 1 f", &later);
    world.check(&["HSETEX h FXX KEEPTTL FIELDS 1 a 11"], "HPEXPIRETIME h FIELDS 1 a", &later);
    world.check(&["HGETEX h PERSIST FIELDS 1 a"], "HPEXPIRETIME h FIELDS 1 a", "-1");
    world.check(&["HGETEX h EX 1000 FIELDS 1 a"], "HPEXPIRETIME h FIELDS 1 a", &later);
    world.check(&["FIELDEXPIRE h 1000 plain"], "HPEXPIRETIME h FIELDS 1 plain", &later);
    world.check(&["HEXPIRE h 0 FIELDS 1 plain"], "HEXISTS h plain", "0");
    world.check(&["HEXPIRE h 5000 LT FIELDS 1 a"], "HPEXPIRETIME h FIELDS 1 a", &later);
    world.check(&["SADD s m"], "TYPE s", "set");
    let wrong = world.apply("FIELDEXPIRE s 10 m");
    assert_eq!(
        replies::error_meaning(b"HPEXPIREAT", &wrong.as_bytes()[1..], false),
        replies::ErrorMeaning::MemberExpiry
    );
}

fn check_streams(world: &mut World) {
    world.check(&["XADD x 5-1 f v", "XGROUP CREATE x g 0 ENTRIESREAD 1", "XGROUP CREATECONSUMER x g c"], "XLEN x", "1");
    world.check(&["XCLAIM x g c 0 5-1 TIME 1 RETRYCOUNT 1 FORCE JUSTID LASTID 5-1"], "XPENDING x g", "1 5-1 5-1 c 1");
    world.check(&["XCLAIM x g d 60000 5-1 JUSTID"], "XPENDING x g", "1 5-1 5-1 d 1");
    world.check(&["XAUTOCLAIM x g e 0 - COUNT 1"], "XPENDING x g", "1 5-1 5-1 e 1");
    world.check(&["XAUTOCLAIM x g f 60000 - COUNT 1"], "XPENDING x g", "1 5-1 5-1 e 1");
    world.check(&["XGROUP SETID x g 5-1 ENTRIESREAD 1", "XADD x MINID 6-0 6-1 f v"], "XLEN x", "1");
    let repeated = world.apply("XADD x 6-1 f v");
    assert_eq!(replies::error_meaning(b"XADD", &repeated.as_bytes()[1..], true), replies::ErrorMeaning::AppliedBefore);
    let missing = world.apply("RENAME nosuch other");
    assert_eq!(replies::error_meaning(b"RENAME", &missing.as_bytes()[1..], false), replies::ErrorMeaning::KeyMissing);
}

/// No form that is made may be unknown to the server or of wrong syntax.
fn check_every_good_record(world: &mut World) {
    for line in super::robust::GOOD.iter().filter(|line| !line.starts_with("RESTORE") && !line.starts_with("FT.")) {
        world.server.ask("FLUSHALL");
        let reply = world.apply(line);
        for complaint in ["syntax", "unknown command", "wrong number", "invalid expire", "@user_script"] {
            assert!(!reply.contains(complaint), "{line}: {reply}");
        }
    }
}
