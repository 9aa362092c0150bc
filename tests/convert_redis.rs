//! The converter's commands against a real `redis-server`: events made by hand in, values and positions read back.
//!
//! The server is a child on a unix socket in a temporary directory: `redis-server`, or what DF2REDIS_TEST_SERVER names
//! (another release, or Valkey). Without the binary the tests say so and pass.

use df2redis::convert::out::VecOut;
use df2redis::convert::{Converter, Limits, Plan, Policy};
use df2redis::dragonfly::{Event, KeyMeta, ObjectId, ObjectType, Stage};
use df2redis::ids::{DbIndex, FlowId};
use df2redis::redis::value::{self, Value};
use df2redis::redis::{Capabilities, resp};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The unit tests' builders of values, which name the library `crate`.
#[path = "../src/convert/tests/build.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use the rest")]
mod build;
mod redis {
    pub use df2redis::redis::*;
}
use build::{Group, list, listpack_value, stream_node, stream_tail, string, strings};

/// A `redis-server` child with one connection. Ends with the value.
struct Server {
    child: Child,
    stream: UnixStream,
    received: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("redis.sock");
        let binary = std::env::var("DF2REDIS_TEST_SERVER").unwrap_or_else(|_| "redis-server".into());
        let child = Command::new(&binary)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .arg("--unixsocket")
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: {binary} cannot be started");
            return None;
        };
        for _ in 0..200 {
            if let Ok(stream) = UnixStream::connect(&socket) {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                return Some(Self { child, stream, received: Vec::new(), _dir: dir });
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("redis-server did not open its socket");
    }

    fn reply(&mut self) -> Value {
        loop {
            if let Some((value, len)) = value::parse(&self.received).unwrap() {
                self.received.drain(..len);
                return value;
            }
            let mut buffer = [0; 64 * 1024];
            let read = self.stream.read(&mut buffer).unwrap();
            assert!(read > 0, "redis-server closed the connection");
            self.received.extend_from_slice(&buffer[..read]);
        }
    }

    fn ask(&mut self, args: &[&str]) -> Value {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        self.stream.write_all(&resp::command(&args)).unwrap();
        self.reply()
    }

    /// The reply in one line.
    fn show(&mut self, args: &[&str]) -> String {
        show(&self.ask(args))
    }

    fn capabilities(&mut self) -> Capabilities {
        let info = self.ask(&["INFO"]);
        let names = self.ask(&["COMMAND", "LIST"]);
        let names: Vec<&str> = names.array().unwrap().iter().filter_map(Value::text).collect();
        Capabilities::from_probe(info.text().unwrap(), names, None).unwrap()
    }

    /// Sends all commands; any error reply fails the test.
    fn apply(&mut self, out: &VecOut) {
        for (_, bytes) in out.commands() {
            self.stream.write_all(bytes).unwrap();
            let reply = self.reply();
            assert!(
                reply.error_text().is_none(),
                "{:?} to {}",
                reply,
                String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
            );
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Array(elements) => format!("[{}]", elements.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Integer(number) => number.to_string(),
        Value::Null => "nil".into(),
        Value::Error(text) => format!("error {}", String::from_utf8_lossy(text)),
        Value::Simple(text) | Value::Bulk(text) => String::from_utf8_lossy(text).into_owned(),
    }
}

fn expiry(expire_at_ms: i64) -> String {
    build::expiry(Some(expire_at_ms / 1000))
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn meta(key: &str, object_type: ObjectType, expire_at_ms: Option<i64>) -> KeyMeta<'_> {
    let key = key.as_bytes();
    KeyMeta { db: DbIndex(0), key, expire_at_ms, sticky: false, memcached_flags: None, object_type }
}

/// Runs values through a converter made for this server, then through the server.
fn migrate(server: &mut Server, policy: &str, limits: Limits, values: &[(KeyMeta<'_>, Vec<u8>)]) -> Converter {
    let policy = Policy::parse(Some(policy).filter(|text| !text.is_empty())).unwrap();
    let plan = Plan::new(server.capabilities(), policy, limits).unwrap();
    let mut converter = Converter::new(FlowId(0), Arc::new(plan));
    let mut out = VecOut::new();
    for (meta, body) in values {
        converter.event(&Event::Whole { meta: *meta, body }, now_ms(), &mut out).unwrap();
    }
    server.apply(&out);
    converter
}

#[test]
fn every_plain_type_arrives_by_restore_and_by_commands() {
    let Some(mut server) = Server::start() else { return };
    use ObjectType as T;
    let score = |score: f64| score.to_le_bytes().to_vec();
    let zset = [&[2][..], b"\x01m", &score(0.1), b"\x01n", &score(f64::INFINITY)].concat();
    let values = [
        (meta("string", T::String, None), string(b"value")),
        (meta("number", T::String, None), string(b"12345")),
        (meta("set", T::Set, None), strings(1, &["a", "b"])),
        (meta("hash", T::Hash, None), strings(2, &["f", "v"])),
        (meta("zset", T::Zset, None), zset),
        (meta("list", T::ListNodes, None), list(&[&["x", "y"], &["z"]])),
        (meta("small-hash", T::HashListpack, None), listpack_value(&["f", "v", "g", "w"])),
        (meta("small-zset", T::ZsetListpack, None), listpack_value(&["m", "1.5"])),
        (meta("ints", T::SetIntset, None), b"\x0c\x02\0\0\0\x02\0\0\0\x05\0\x07\0".to_vec()),
    ];
    for limits in [Limits::default(), Limits { restore_bytes_max: 0, ..Limits::default() }] {
        // Whatever stands under the key is replaced, of whichever type.
        for (meta, _) in &values {
            let key = std::str::from_utf8(meta.key).unwrap();
            server.ask(&["DEL", key]);
            let other = if key == "set" { ["HSET", key, "old", "1"] } else { ["SADD", key, "old", "1"] };
            server.ask(&other);
        }
        let converter = migrate(&mut server, "", limits, &values);
        assert_eq!(converter.tally().total().keys_written, values.len() as u64);
        assert_eq!(server.show(&["GET", "string"]), "value");
        assert_eq!(server.show(&["GET", "number"]), "12345");
        assert_eq!(server.show(&["SORT", "set", "ALPHA"]), "[a b]");
        assert_eq!(server.show(&["HGETALL", "hash"]), "[f v]");
        // Older servers print all 17 digits.
        let scores = server.show(&["ZRANGE", "zset", "0", "-1", "WITHSCORES"]).replace("0.10000000000000001", "0.1");
        assert_eq!(scores, "[m 0.1 n inf]");
        assert_eq!(server.show(&["LRANGE", "list", "0", "-1"]), "[x y z]");
        assert_eq!(server.show(&["HGETALL", "small-hash"]), "[f v g w]");
        assert_eq!(server.show(&["ZRANGE", "small-zset", "0", "-1", "WITHSCORES"]), "[m 1.5]");
        assert_eq!(server.show(&["SORT", "ints"]), "[5 7]");
    }
}

#[test]
fn expiries_are_absolute_and_past_ones_delete() {
    let Some(mut server) = Server::start() else { return };
    use ObjectType as T;
    let at = now_ms() + 100_000;
    let values = [
        (meta("string", T::String, Some(at)), b"\x01v".to_vec()),
        (meta("set", T::Set, Some(at)), strings(1, &["a"])),
        (meta("gone", T::Set, Some(now_ms() - 5)), strings(1, &["a"])),
        (meta("empty", T::Set, None), vec![0]),
    ];
    for limits in [Limits::default(), Limits { restore_bytes_max: 0, ..Limits::default() }] {
        for key in ["gone", "empty"] {
            server.ask(&["SET", key, "old"]);
        }
        migrate(&mut server, "", limits, &values);
        assert_eq!(server.show(&["PEXPIRETIME", "string"]), at.to_string());
        assert_eq!(server.show(&["PEXPIRETIME", "set"]), at.to_string());
        assert_eq!(server.show(&["EXISTS", "gone", "empty"]), "0");
    }
}

#[test]
fn hashes_and_sets_with_expiries_of_their_own() {
    let Some(mut server) = Server::start() else { return };
    let (later, past) = (expiry(now_ms() + 100_000), expiry(now_ms() - 100_000));
    let hash = strings(3, &["f", "v", &later, "g", "w", "-1", "old", "x", &past]);
    let set = strings(2, &["a", &later, "b", "-1", "c", &past]);
    let values = [(meta("h", ObjectType::HashExpiry, None), hash), (meta("s", ObjectType::SetExpiry, None), set)];
    for limits in [Limits::default(), Limits { restore_bytes_max: 0, ..Limits::default() }] {
        let converter = migrate(&mut server, "skip", limits, &values);
        assert_eq!(server.show(&["HGETALL", "h"]), "[f v g w]");
        assert_eq!(server.show(&["SORT", "s", "ALPHA"]), "[a b]");
        if converter.plan().capabilities.field_expiry {
            let times = server.show(&["HPEXPIRETIME", "h", "FIELDS", "2", "f", "g"]);
            assert!(times.ends_with("000 -1]"), "{times}");
        }
    }
}

/// Entries 10-1, 20-0, 30-0; 15-0 was deleted and is pending; group g with two consumers.
fn stream() -> ([Vec<u8>; 2], Vec<u8>) {
    let time = 1_700_000_000_000;
    let group = Group {
        name: "g",
        last: (20, 0),
        read: Some(2),
        consumers: &["c", "idle"],
        pending: &[((10, 1), time, 2, 0), ((15, 0), time, 2, 0), ((20, 0), time + 1, 3, 0)],
    };
    let nodes = [stream_node(&[(10, 1, false), (15, 0, true), (20, 0, false)]), stream_node(&[(30, 0, false)])];
    (nodes, stream_tail(3, (30, 0), (15, 0), 4, &[group]))
}

/// What a stream comes to at the server.
fn read_stream(server: &mut Server) -> Vec<String> {
    let info = server.show(&["XINFO", "STREAM", "s"]);
    let field = |name: &str| {
        let words: Vec<&str> = info.split(' ').collect();
        let at = words.iter().position(|word| word.ends_with(name)).unwrap();
        format!("{name} {}", words[at + 1])
    };
    vec![
        server.show(&["XRANGE", "s", "-", "+"]),
        field("last-generated-id"),
        field("max-deleted-entry-id"),
        field("entries-added"),
        server.show(&["XINFO", "GROUPS", "s"]),
        server.show(&["XPENDING", "s", "g"]),
        // The idle time of the rows differs between two reads.
        show(&server.ask(&["XPENDING", "s", "g", "-", "+", "9", "c"])).matches(" c ").count().to_string(),
    ]
}

#[test]
fn a_stream_is_the_same_by_restore_and_by_commands() {
    let Some(mut server) = Server::start() else { return };
    let (nodes, tail) = stream();
    let body = [&[2][..], &nodes.concat(), &tail].concat();
    let values = [(meta("s", ObjectType::StreamV3, None), body)];
    let converter = migrate(&mut server, "", Limits::default(), &values);
    assert_eq!(converter.tally().total().restores, 1);
    let restored = read_stream(&mut server);
    assert_eq!(restored[0], "[[10-1 [f v10]] [20-0 [f v20]] [30-0 [f v30]]]");
    assert_eq!(restored[6], "3");

    let by_commands = Limits { stream_restore_bytes_max: 0, ..Limits::default() };
    let converter = migrate(&mut server, "", by_commands, &values);
    assert_eq!(converter.tally().total().restores, 0);
    assert_eq!(read_stream(&mut server), restored);

    // In pieces, assembled.
    let plan = Plan::new(server.capabilities(), Policy::default(), Limits::default()).unwrap();
    let mut converter = Converter::new(FlowId(0), Arc::new(plan));
    let mut out = VecOut::new();
    let object = ObjectId(1);
    let mut event = |event: Event<'_>| converter.event(&event, now_ms(), &mut out).unwrap();
    event(Event::Begin { object, meta: meta("s", ObjectType::StreamV3, None), count: 2 });
    for node in &nodes {
        event(Event::Run { object, stage: Stage::Elements, count: 1, body: node });
    }
    event(Event::Run { object, stage: Stage::StreamTail, count: 1, body: &tail });
    event(Event::End { object });
    server.ask(&["DEL", "s"]);
    server.apply(&out);
    assert_eq!(read_stream(&mut server), restored);
}

#[test]
fn an_empty_stream_exists() {
    let Some(mut server) = Server::start() else { return };
    let body = [&[0][..], &stream_tail(0, (5, 0), (5, 0), 9, &[])].concat();
    let values = [(meta("s", ObjectType::StreamV3, None), body)];
    for stream_restore_bytes_max in [8 << 20, 0] {
        migrate(&mut server, "", Limits { stream_restore_bytes_max, ..Limits::default() }, &values);
        assert_eq!(server.show(&["TYPE", "s"]), "stream");
        let info = server.show(&["XINFO", "STREAM", "s"]);
        assert!(
            info.contains("length 0") && info.contains("last-generated-id 5-0") && info.contains("groups 0"),
            "{info}"
        );
    }
}

#[test]
fn split_values_arrive_whole() {
    let Some(mut server) = Server::start() else { return };
    for set_bytes_max in [4 << 20, 10] {
        let limits = Limits { set_bytes_max, ..Limits::default() };
        let plan = Plan::new(server.capabilities(), Policy::default(), limits).unwrap();
        let mut converter = Converter::new(FlowId(0), Arc::new(plan));
        let mut out = VecOut::new();
        let object = ObjectId(1);
        let at = now_ms() + 100_000;
        let mut event = |event: Event<'_>| converter.event(&event, now_ms(), &mut out).unwrap();
        event(Event::Begin { object, meta: meta("k", ObjectType::String, Some(at)), count: 200_000 });
        for byte in [b'a', b'b'] {
            event(Event::Run { object, stage: Stage::Elements, count: 100_000, body: &vec![byte; 100_000] });
        }
        event(Event::End { object });
        event(Event::Begin { object, meta: meta("l", ObjectType::ListNodes, None), count: 1000 });
        for number in 0..1000 {
            let node = [&[1][..], &string(format!("item {number}").as_bytes())].concat();
            event(Event::Run { object, stage: Stage::Elements, count: 1, body: &node });
        }
        event(Event::End { object });
        server.apply(&out);
        assert_eq!(server.show(&["GET", "k"]), "a".repeat(100_000) + &"b".repeat(100_000));
        assert_eq!(server.show(&["PEXPIRETIME", "k"]), at.to_string());
        assert_eq!(server.show(&["LLEN", "l"]), "1000");
        assert_eq!(server.show(&["LINDEX", "l", "-1"]), "item 999");
    }
}
