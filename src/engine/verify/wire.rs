//! One pipelined connection to a server that is read from: many commands in one write, their replies in order.
//!
//! In: [`Commands`]. Out: as many [`Value`]s. Bounded: all replies of one exchange take at most `bytes_max` as they arrive.
//! Writing and reading go on at the same time, so that neither side waits for the other with full buffers. TLS is shaken
//! by [`Link`], before anything else is said. After any trouble the connection is of no more use: drop it.

use crate::engine::link::{Link, LinkError};
use crate::engine::tls::{Session, TlsClient};
use crate::ids::Slot;
use crate::redis::reply::ReplyError;
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::redis::value::{self, Value};
use crate::redis::value_reader::ValueReader;
use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;
use std::time::Duration;
use tokio_uring::net::TcpStream;

/// Commands to be sent together, each with the slot of its key.
#[derive(Debug, Default)]
pub struct Commands {
    bytes: Vec<u8>,
    ends: Vec<(usize, Slot)>,
    /// Where the keys stand, in order: command, and the bytes of the argument with its head.
    keys: Vec<(usize, Range<usize>)>,
}

impl Commands {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command whose key is its first argument, if it has one.
    pub fn push(&mut self, args: &[&[u8]]) {
        self.push_keyed(args, 1);
    }

    /// Adds a command whose key is `args[key_at]`.
    pub fn push_keyed(&mut self, args: &[&[u8]], key_at: usize) {
        resp::push_array_head(&mut self.bytes, args.len());
        for (at, arg) in args.iter().enumerate() {
            let start = self.bytes.len();
            resp::push_bulk(&mut self.bytes, arg);
            if at == key_at {
                self.keys.push((self.ends.len(), start..self.bytes.len()));
            }
        }
        self.ends.push((self.bytes.len(), args.get(key_at).map_or(Slot(0), |key| slot(key))));
    }

    /// The same commands on keys of other names. Those that came encoded keep theirs.
    pub fn renamed<E>(&self, mut name_of: impl FnMut(&[u8]) -> Result<Vec<u8>, E>) -> Result<Self, E> {
        let mut all = Self::new();
        let (mut keys, mut start) = (self.keys.iter().peekable(), 0);
        for (command, (end, own_slot)) in self.ends.iter().enumerate() {
            let mut slot_now = *own_slot;
            if let Some((_, range)) = keys.next_if(|(of, _)| *of == command) {
                let arg = self.bytes.get(range.clone()).unwrap_or_default();
                // `$len CRLF key CRLF`
                let head = arg.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let key = arg.get(head..arg.len().saturating_sub(2)).unwrap_or_default();
                let name = name_of(key)?;
                slot_now = slot(&name);
                all.bytes.extend_from_slice(self.bytes.get(start..range.start).unwrap_or_default());
                let begin = all.bytes.len();
                resp::push_bulk(&mut all.bytes, &name);
                all.keys.push((command, begin..all.bytes.len()));
                start = range.end;
            }
            all.bytes.extend_from_slice(self.bytes.get(start..*end).unwrap_or_default());
            all.ends.push((all.bytes.len(), slot_now));
            start = *end;
        }
        Ok(all)
    }

    /// Adds a command that is encoded already.
    pub fn push_encoded(&mut self, bytes: &[u8], slot: Slot) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push((self.bytes.len(), slot));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Every command's slot and bytes, in order.
    pub fn each(&self) -> impl Iterator<Item = (Slot, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        self.ends
            .iter()
            .zip(starts)
            .map(|((end, slot), start)| (*slot, self.bytes.get(start..*end).unwrap_or_default()))
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub enum Trouble {
    /// More bytes than the caller allowed.
    TooLarge,
    /// The connection is lost, or could not be made; it may be tried again.
    Lost(String),
    /// The peer speaks no RESP2.
    Protocol(String),
}

const READ_BYTES: usize = 64 * 1024;

pub struct Conn {
    stream: TcpStream,
    /// Lent to the writing or to the reading half for as long as neither waits.
    tls: Option<RefCell<Box<Session>>>,
    reader: ValueReader,
    buffer: Vec<u8>,
    /// The database selected.
    pub db: u32,
}

impl Conn {
    /// Connects to the first address of `host` that accepts, over TLS if `tls` is given, and waits for a first answer, so
    /// that whoever speaks another protocol is told apart. `reply_bytes_max`: memory that one reply may take.
    pub async fn connect(
        host: &str,
        port: u16,
        tls: Option<&TlsClient>,
        timeout: Duration,
        reply_bytes_max: usize,
    ) -> Result<Self, Trouble> {
        let mut link = Link::connect(host, port, tls, timeout).await?;
        let mut ping = Vec::new();
        resp::push_command(&mut ping, &[b"PING"]);
        // An error is an answer, too: whoever has a password wants it first.
        link.request("PING", ping, value::parse).await?;
        let (stream, tls, received) = link.into_parts();
        let mut reader = ValueReader::new(reply_bytes_max);
        reader.push(&received);
        let buffer = Vec::with_capacity(READ_BYTES);
        Ok(Self { stream, tls: tls.map(RefCell::new), reader, buffer, db: 0 })
    }

    /// Sends `bytes`, which hold `count` commands, and waits for as many replies. Gives the bytes received, too.
    pub async fn exchange(
        &mut self,
        bytes: Vec<u8>,
        count: usize,
        bytes_max: usize,
        silence_max: Duration,
    ) -> Result<(Vec<Value>, usize), Trouble> {
        let Self { stream, tls, reader, buffer, .. } = self;
        let (stream, tls) = (&*stream, tls.as_ref());
        let write = write(stream, tls, bytes);
        let read = async {
            let (mut replies, mut received) = (Vec::with_capacity(count), 0);
            while replies.len() < count {
                match reader.take() {
                    Ok(Some(value)) => replies.push(value),
                    Ok(None) => {
                        let read = stream.read(std::mem::take(buffer));
                        let Ok((result, filled)) = tokio::time::timeout(silence_max, read).await else {
                            return Err(Trouble::Lost(format!("no answer within {silence_max:?}")));
                        };
                        *buffer = filled;
                        match result {
                            Ok(0) => return Err(Trouble::Lost("the server closed the connection".into())),
                            Ok(n) => received += n,
                            Err(cause) => return Err(Trouble::Lost(format!("the connection broke: {cause}"))),
                        }
                        if received > bytes_max {
                            return Err(Trouble::TooLarge);
                        }
                        match tls {
                            None => reader.push(buffer),
                            Some(tls) => decrypt(&mut tls.borrow_mut(), buffer, reader)?,
                        }
                        buffer.clear();
                    }
                    Err(ReplyError::TooLong { .. }) => return Err(Trouble::TooLarge),
                    Err(error) => return Err(Trouble::Protocol(error.to_string())),
                }
            }
            Ok((replies, received))
        };
        let ((), outcome) = tokio::try_join!(write, read)?;
        Ok(outcome)
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Tls { .. } | LinkError::Untrusted { .. } | LinkError::Protocol { .. } => {
                Self::Protocol(error.to_string())
            }
            _ => Self::Lost(error.to_string()),
        }
    }
}

async fn write(stream: &TcpStream, tls: Option<&RefCell<Box<Session>>>, bytes: Vec<u8>) -> Result<(), Trouble> {
    let broke = |cause: std::io::Error| Trouble::Lost(format!("the connection broke: {cause}"));
    let Some(tls) = tls else { return stream.write_all(bytes).await.0.map_err(broke) };
    let (mut rest, mut sealed) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let taken = tls.borrow_mut().seal(&[IoSlice::new(rest)], &mut sealed);
        rest = rest.get(taken..).filter(|_| taken > 0).ok_or_else(|| Trouble::Lost("the TLS session ended".into()))?;
        let (sent, buffer) = stream.write_all(sealed).await;
        sent.map_err(broke)?;
        sealed = buffer;
        sealed.clear();
    }
    Ok(())
}

/// Gives the plaintext of `received` to the reader.
fn decrypt(session: &mut Session, received: &[u8], reader: &mut ValueReader) -> Result<(), Trouble> {
    let (mut rest, mut plain) = (received, vec![0; READ_BYTES]);
    loop {
        match session.open(&mut rest, &mut plain).map_err(|cause| Trouble::Protocol(format!("TLS: {cause}")))? {
            0 => return Ok(()),
            bytes => reader.push(plain.get(..bytes).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_again_with_their_slots() {
        let mut commands = Commands::new();
        commands.push(&[b"GET", b"foo"]);
        commands.push(&[b"PING"]);
        commands.push_keyed(&[b"XINFO", b"STREAM", b"123456789"], 2);
        let each: Vec<_> = commands.each().map(|(slot, bytes)| (slot.0, bytes.len())).collect();
        assert_eq!(each, [(12182, 22), (0, 14), (0x31c3, 42)]);
        assert_eq!(each.iter().map(|(_, len)| len).sum::<usize>(), commands.bytes().len());
    }
}
