//! A small blocking RESP2 client for tests and the demo: one command at a time or a pipeline, bounded replies.

use super::LabError;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const BULK_BYTES_MAX: u64 = 1 << 30;
const ELEMENTS_MAX: u64 = 1 << 24;
const LINE_BYTES_MAX: u64 = 64 << 10;
const DEPTH_MAX: u32 = 8;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One reply. An error reply is a value, not an `Err`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Status(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    pub fn int(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }

    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) => Some(bytes),
            Self::Status(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub fn array(&self) -> Option<&[Reply]> {
        if let Self::Array(replies) = self { Some(replies) } else { None }
    }
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// One connection.
pub struct Client {
    peer: Address,
    wire: BufReader<Box<dyn Wire>>,
}

impl Client {
    /// Connects; calls time out after 60 s of silence.
    pub fn connect(address: &Address) -> Result<Self, LabError> {
        let fail = |source| LabError::Connection { peer: address.to_string(), source };
        let wire: Box<dyn Wire> = match address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).map_err(fail)?;
                stream.set_nodelay(true).map_err(fail)?;
                stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(fail)?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(fail)?;
                stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(fail)?;
                Box::new(stream)
            }
        };
        Ok(Self { peer: address.clone(), wire: BufReader::new(wire) })
    }

    /// One command, any reply.
    pub fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Reply, LabError> {
        let mut request = Vec::new();
        encode(args, &mut request);
        self.send(&request)?;
        self.reply()
    }

    /// One command given as words; an error reply is an error.
    pub fn run(&mut self, command: &str) -> Result<Reply, LabError> {
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        match self.ask(&words)? {
            Reply::Error(error) => {
                Err(LabError::Refused { peer: self.peer.to_string(), command: command.to_owned(), error })
            }
            reply => Ok(reply),
        }
    }

    /// Raw request bytes.
    pub fn send(&mut self, request: &[u8]) -> Result<(), LabError> {
        let peer = &self.peer;
        self.wire.get_mut().write_all(request).map_err(|source| LabError::Connection { peer: peer.to_string(), source })
    }

    /// The next reply.
    pub fn reply(&mut self) -> Result<Reply, LabError> {
        read_reply(&mut self.wire, 0).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => LabError::Reply { peer: self.peer.to_string(), reason: source.to_string() },
            _ => LabError::Connection { peer: self.peer.to_string(), source },
        })
    }

    /// The value of `field:` in INFO.
    pub fn info(&mut self, field: &str) -> Result<Option<String>, LabError> {
        let text = self.run("INFO everything")?.text().unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.map(|value| value.trim_end().to_owned()))
    }
}

/// Appends one command as a RESP array.
pub fn encode<A: AsRef<[u8]>>(args: &[A], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn read_reply(wire: &mut impl BufRead, depth: u32) -> io::Result<Reply> {
    let mut line = Vec::new();
    wire.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let text = line.strip_suffix(b"\r\n").ok_or_else(|| bad("a line does not end"))?;
    let (mark, rest) = text.split_first().ok_or_else(|| bad("an empty line"))?;
    let rest = String::from_utf8_lossy(rest).into_owned();
    let number = || rest.parse::<i64>().map_err(|_| bad("no number"));
    match mark {
        b'+' => Ok(Reply::Status(rest)),
        b'-' => Ok(Reply::Error(rest)),
        b':' => Ok(Reply::Int(number()?)),
        b'$' => match u64::try_from(number()?) {
            Err(_) => Ok(Reply::Nil),
            Ok(len) if len > BULK_BYTES_MAX => Err(bad("a string of more than 1 GiB")),
            Ok(len) => {
                let mut bytes = Vec::new();
                wire.take(len + 2).read_to_end(&mut bytes)?;
                if bytes.len() as u64 != len + 2 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes.truncate(len as usize);
                Ok(Reply::Bulk(bytes))
            }
        },
        b'*' => match u64::try_from(number()?) {
            Err(_) => Ok(Reply::Nil),
            Ok(count) if count > ELEMENTS_MAX || depth >= DEPTH_MAX => Err(bad("an array too large or too deep")),
            Ok(count) => (0..count).map(|_| read_reply(wire, depth + 1)).collect::<io::Result<_>>().map(Reply::Array),
        },
        _ => Err(bad("an unknown reply type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::sink::{Sink, SinkOptions};

    #[test]
    fn asks_a_sink() {
        let sink = Sink::start(SinkOptions::default()).unwrap();
        let mut client = Client::connect(&Address::Tcp("127.0.0.1".into(), sink.port())).unwrap();
        assert_eq!(client.run("PING").unwrap(), Reply::Status("PONG".into()));
        assert_eq!(client.info("redis_version").unwrap().unwrap(), "7.0.15");
        assert!(client.run("COMMAND LIST").unwrap().array().unwrap().contains(&Reply::Bulk(b"restore".to_vec())));
        let limit = client.run("CONFIG GET proto-max-bulk-len").unwrap();
        assert_eq!(limit.array().unwrap()[1].text().unwrap(), "536870912");
        assert!(matches!(client.run("CLUSTER INFO"), Err(LabError::Refused { .. })));
        assert_eq!(client.run("MULTI").unwrap().text().unwrap(), "OK");
        assert_eq!(client.run("GET k").unwrap().text().unwrap(), "QUEUED");
        assert_eq!(client.run("EXEC").unwrap(), Reply::Array(vec![Reply::Nil]));
        assert_eq!(client.ask(&[b"DEL".as_slice(), b"a b"]).unwrap().int(), Some(1));
    }

    #[test]
    fn hostile_replies() {
        for reply in ["$99999999999\r\n", "*99999999999\r\n", "?\r\n", "\r\n", "*1\r\n".repeat(20).as_str()] {
            assert!(read_reply(&mut reply.as_bytes(), 0).is_err(), "{reply}");
        }
    }
}
