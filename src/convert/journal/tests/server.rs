//! Real servers for the tests beside: the `redis-server` of the machine, and those whose paths stand in
//! `DF2REDIS_TEST_SERVERS`, separated by colons. With none of them the tests are skipped with a word.

use super::super::*;
use super::support::*;
use crate::redis::{Make, Version};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A server of our own on a socket in a directory of its own; gone at the end.
pub struct Server {
    child: Child,
    stream: UnixStream,
    pub port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start(binary: &Path) -> Self {
        Self::start_with(binary, &[])
    }

    pub fn start_with(binary: &Path, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(binary)
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(dir.path())
            .args(more)
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
        Self { child, stream, port, _dir: dir }
    }

    pub fn select(&mut self, db: DbIndex) {
        assert_eq!(self.ask(&format!("SELECT {db}")), "OK");
    }

    /// Sends one RESP command and reads its reply as flat text: elements of arrays stand in a row.
    pub fn send(&mut self, request: &[u8]) -> String {
        self.stream.write_all(request).unwrap();
        self.reply()
    }

    pub fn ask(&mut self, line: &str) -> String {
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

    pub fn capabilities(&mut self) -> Capabilities {
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
            scripts_ask: true,
            scripts_add: true,
            scripts_claim: true,
            bulk_bytes_max: 512 << 20,
            memory_limited: false,
            commands,
        }
    }
}

pub fn binaries() -> Vec<PathBuf> {
    let listed = std::env::var_os("DF2REDIS_TEST_SERVERS").unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|binary| binary.exists());
    let found: Vec<PathBuf> = std::env::split_paths(&listed).filter(|path| path.exists()).chain(on_path).collect();
    if found.is_empty() {
        eprintln!("skipped: no redis-server on the PATH");
    }
    found
}

pub fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
