//! The scripts and forms of this room against real servers: the `redis-server` of the machine, and those whose paths stand
//! in `DF2REDIS_TEST_SERVERS`, separated by colons. Skipped with a word where there is none.

use super::super::*;
use super::support::*;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A server of our own on a socket in a directory of its own; gone at the end.
struct Server {
    child: Child,
    stream: UnixStream,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(binary: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let child = Command::new(binary)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", binary.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { child, stream, _dir: dir }
    }

    /// Sends one RESP command and reads its reply as flat text: elements of arrays stand in a row.
    fn send(&mut self, request: &[u8]) -> String {
        self.stream.write_all(request).unwrap();
        self.reply()
    }

    fn ask(&mut self, line: &str) -> String {
        let words = split(line);
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.send(&request)
    }

    fn reply(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
        match line[0] {
            b'$' if text == "-1" => "nil".to_owned(),
            b'$' => {
                let mut bytes = vec![0; text.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned()
            }
            b'*' => {
                let count = text.parse::<i64>().unwrap();
                (0..count).map(|_| self.reply()).collect::<Vec<_>>().join(" ")
            }
            b'-' => format!("-{text}"),
            _ => text,
        }
    }

    fn capabilities(&mut self) -> Capabilities {
        let info = self.ask("INFO server");
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        let (make, version) = match field("valkey_version") {
            Some(version) => (Make::Valkey, version),
            None => (Make::Redis, field("redis_version").unwrap()),
        };
        let mut numbers = version.split('.').map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        let version = Version { major: next(), minor: next(), patch: next() };
        // Big enough for any name that is asked for: a command that is missing answers nil.
        let mut known = |name: &str| !self.ask(&format!("COMMAND INFO {name}")).starts_with("nil");
        let names = table::TABLE.iter().map(|row| row.name).chain(["EVAL"]);
        let commands: HashSet<String> = names.filter(|name| known(name)).map(str::to_owned).collect();
        let field_expiry = known("HPEXPIREAT");
        Capabilities {
            make,
            version,
            cluster: false,
            json: commands.contains("JSON.SET"),
            field_expiry,
            import_mode: false,
            bulk_bytes_max: 512 << 20,
            commands,
        }
    }
}

fn binaries() -> Vec<PathBuf> {
    let listed = std::env::var_os("DF2REDIS_TEST_SERVERS").unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|binary| binary.exists());
    std::env::split_paths(&listed).filter(|path| path.exists()).chain(on_path).collect()
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

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
    let binaries = binaries();
    if binaries.is_empty() {
        eprintln!("skipped: no redis-server on the PATH");
    }
    for binary in binaries {
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
    let later = (world.now_ms + 1_000_000).to_string();
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
    world.check(&[], "HPEXPIRETIME h FIELDS 1 e", &(world.now_ms + 2_000_000).to_string());
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
