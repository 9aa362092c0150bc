//! A request/reply connection of the control plane, on tokio-uring. It never carries a data byte.
//!
//! In: an address, and TLS or not. Out: replies, one a request, parsed by the room that knows the peer; at the end the
//! socket, with its TLS session, and the bytes that were read too far, for a worker. Invariants: every wait is bounded by
//! a timeout; bytes that nobody asked for end the connection,
//! for every later reply would be taken for that to another request; where TLS was asked for, nothing is sent before the server's certificate was verified.

use super::lane::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, USER_TIMEOUT};
use super::resolve::resolve;
use super::tls::{Session, TlsClient};
use super::wire::Connected;
use crate::redis::topology::Address;
use crate::uring;
use std::io;
use std::time::Duration;
use tokio::time::Instant;
use tokio_uring::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the name {host} cannot be resolved: {cause}")]
    Resolve { host: String, cause: io::Error },
    #[error("cannot connect to {addr}: {cause}")]
    Connect { addr: String, cause: io::Error },
    #[error("no answer from {addr} to {what} within {after:?}{perhaps}")]
    Timeout { addr: String, what: String, after: Duration, perhaps: &'static str },
    #[error("{addr} closed the connection after {what}{perhaps}")]
    Closed { addr: String, what: String, perhaps: &'static str },
    #[error("the connection to {addr} broke: {cause}{perhaps}")]
    Io { addr: String, cause: io::Error, perhaps: &'static str },
    /// The bytes of this connection went wrong.
    #[error("no TLS with {addr}: {cause}")]
    Tls { addr: String, cause: String },
    /// One side does not accept the other, and will not at the next try.
    #[error("no TLS with {addr}: {cause}")]
    Untrusted { addr: String, cause: String },
    #[error("{addr} sent what nobody asked for, before {what}; is there a proxy in between that mixes connections?")]
    Unasked { addr: String, what: String },
    #[error("{addr} answered {what} with what is no RESP2 reply: {reason}")]
    Protocol { addr: String, what: String, reason: String },
}

pub struct Link {
    stream: TcpStream,
    addr: String,
    received: Vec<u8>,
    timeout: Duration,
    tls: Option<Box<Session>>,
    /// A whole reply came: the peer speaks as we do.
    answered: bool,
}

/// What may be behind a connection that ends without an answer.
const PERHAPS_TLS: &str = "; if this port is for TLS, begin the URL with rediss://, valkeys:// or dragonflys://";
const PERHAPS_PLAIN: &str =
    "; is this port for TLS? (A URL that begins with redis://, valkey:// or dragonfly:// is plain)";
const PERHAPS_CERTIFICATE: &str =
    "; a server that wants a certificate from its clients, or another one, may end like this";

const READ_BYTES: usize = 16 * 1024;
/// How long a refusal of the server's certificate may take to be sent.
const ALERT_TIME_MAX: Duration = Duration::from_millis(200);

impl Link {
    /// Connects to the first address of `host` that accepts, and shakes hands if `tls` is given.
    pub async fn connect(host: &str, port: u16, tls: Option<&TlsClient>, timeout: Duration) -> Result<Self, LinkError> {
        let mut link = Self::connect_plain(host, port, timeout).await?;
        if let Some(client) = tls {
            let session =
                client.session(host).map_err(|cause| LinkError::Untrusted { addr: link.addr.clone(), cause })?;
            link.shake_hands(session).await?;
        }
        Ok(link)
    }

    async fn connect_plain(host: &str, port: u16, timeout: Duration) -> Result<Self, LinkError> {
        let addrs =
            resolve(host, port, timeout).await.map_err(|cause| LinkError::Resolve { host: host.to_string(), cause })?;
        let name = Address::new(host, port).to_string();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for addr in addrs {
            match tokio::time::timeout(timeout, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => {
                    // A connection without TCP_NODELAY still works.
                    let _ = stream.set_nodelay(true);
                    return Ok(Self { stream, addr: name, received: Vec::new(), timeout, tls: None, answered: false });
                }
                Ok(Err(cause)) => last = cause,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")),
            }
        }
        Err(LinkError::Connect { addr: name, cause: last })
    }

    /// For requests that rightly take longer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Lets the kernel find out that the peer's machine is gone, also while a reply is waited for. Without the options (no
    /// TCP) nothing is lost but that.
    pub fn watch_life(&self) {
        if let Ok(fd) = uring::duplicate_fd(&self.stream) {
            let socket = uring::Socket::from(fd);
            let _ = socket.set_keepalive(KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES);
            let _ = socket.set_user_timeout(USER_TIMEOUT);
        }
    }

    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Sends `request` (RESP) and waits for one reply. `what` names the request in errors (no secrets). `parse` returns
    /// the reply and its length once it is complete.
    pub async fn request<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        request: Vec<u8>,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
    ) -> Result<T, LinkError> {
        self.nothing_unasked(what)?;
        let deadline = Instant::now() + self.timeout;
        self.send(request, what, deadline).await?;
        let mut parsed_bytes = 0;
        loop {
            // A parse begins at the first byte: while more is there to be read, it waits until twice as much was, so that a
            // long reply in many pieces costs no more than its length.
            let is_due = !self.has_more() || self.received.len() >= 2 * parsed_bytes;
            if !self.received.is_empty() && is_due {
                parsed_bytes = self.received.len();
                let parsed = parse(&self.received).map_err(|e| LinkError::Protocol {
                    addr: self.addr.clone(),
                    what: what.to_string(),
                    reason: match self.received.as_slice() {
                        // A TLS record: an alert or a handshake message, version 3.x.
                        [0x15 | 0x16, 0x03, ..] if self.tls.is_none() => format!("it is TLS{PERHAPS_TLS}"),
                        _ => e.to_string(),
                    },
                })?;
                if let Some((value, len)) = parsed {
                    self.answered = true;
                    self.received.drain(..len.min(self.received.len()));
                    return Ok(value);
                }
            }
            self.receive(what, deadline).await?;
        }
    }

    /// Before the first reply a server may say why it takes no client.
    fn nothing_unasked(&self, what: &str) -> Result<(), LinkError> {
        match self.answered && (self.has_more() || !self.received.is_empty()) {
            true => Err(LinkError::Unasked { addr: self.addr.clone(), what: what.to_string() }),
            false => Ok(()),
        }
    }

    /// Bytes came that were not read. (Over TLS they say nothing: the session has some of its own.)
    fn has_more(&self) -> bool {
        self.tls.is_none() && uring::unread_bytes(&self.stream).is_ok_and(|bytes| bytes > 0)
    }

    /// The connection, for a worker, and bytes that came after the last reply. It lives on in the returned descriptor.
    pub fn hand_over(self) -> Result<(Connected, Vec<u8>), LinkError> {
        let fd = uring::duplicate_fd(&self.stream).map_err(|cause| LinkError::Io {
            addr: self.addr.clone(),
            cause,
            perhaps: "",
        })?;
        Ok((Connected { fd, tls: self.tls }, self.received))
    }

    /// The connection, its TLS session, and bytes (decrypted) that came after the last reply, for who goes on here.
    pub fn into_parts(self) -> (TcpStream, Option<Box<Session>>, Vec<u8>) {
        (self.stream, self.tls, self.received)
    }

    /// Begins TLS. Before this is done nothing else is sent.
    async fn shake_hands(&mut self, session: Session) -> Result<(), LinkError> {
        const WHAT: &str = "the TLS handshake";
        let deadline = Instant::now() + self.timeout;
        self.tls = Some(Box::new(session));
        loop {
            self.flush(WHAT, deadline).await?;
            match &self.tls {
                Some(session) if session.is_handshaking() => self.receive(WHAT, deadline).await?,
                Some(session) => {
                    tracing::debug!(addr = self.addr, session = session.description(), "TLS");
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    async fn send(&mut self, request: Vec<u8>, what: &str, deadline: Instant) -> Result<(), LinkError> {
        let Some(session) = &mut self.tls else { return self.write(request, what, deadline).await };
        let (mut rest, mut sealed) = (&request[..], Vec::new());
        while !rest.is_empty() {
            let taken = session.seal(&[io::IoSlice::new(rest)], &mut sealed);
            if taken == 0 {
                return Err(self.closed(what));
            }
            rest = &rest[taken..];
        }
        self.write(sealed, what, deadline).await
    }

    /// Writes what the TLS session itself has to say.
    async fn flush(&mut self, what: &str, deadline: Instant) -> Result<(), LinkError> {
        let mut output = Vec::new();
        if let Some(session) = &mut self.tls {
            session.take_output(&mut output);
        }
        if output.is_empty() { Ok(()) } else { self.write(output, what, deadline).await }
    }

    async fn write(&mut self, bytes: Vec<u8>, what: &str, deadline: Instant) -> Result<(), LinkError> {
        match tokio::time::timeout_at(deadline, self.stream.write_all(bytes)).await {
            Ok((Ok(()), _)) => Ok(()),
            Ok((Err(cause), _)) => Err(LinkError::Io { addr: self.addr.clone(), cause, perhaps: self.perhaps() }),
            Err(_) => Err(self.timed_out(what)),
        }
    }

    /// Reads once and appends what came, decrypted, to `received`.
    async fn receive(&mut self, what: &str, deadline: Instant) -> Result<(), LinkError> {
        let read = tokio::time::timeout_at(deadline, self.stream.read(Vec::with_capacity(READ_BYTES)));
        let Ok((result, buffer)) = read.await else { return Err(self.timed_out(what)) };
        match result {
            Ok(0) => return Err(self.closed(what)),
            Ok(_) => {}
            Err(cause) => return Err(LinkError::Io { addr: self.addr.clone(), cause, perhaps: self.perhaps() }),
        }
        let Some(session) = &mut self.tls else {
            self.received.extend_from_slice(&buffer);
            return Ok(());
        };
        match decrypt(session, &buffer, &mut self.received) {
            Ok(()) if session.is_closed() && self.received.is_empty() => Err(self.closed(what)),
            Ok(()) => Ok(()),
            Err(cause) => {
                let is_refused = session.is_refused();
                // The server is told why, where that can be done at once.
                let _ = self.flush(what, deadline.min(Instant::now() + ALERT_TIME_MAX)).await;
                let addr = self.addr.clone();
                Err(if is_refused { LinkError::Untrusted { addr, cause } } else { LinkError::Tls { addr, cause } })
            }
        }
    }

    fn closed(&self, what: &str) -> LinkError {
        LinkError::Closed { addr: self.addr.clone(), what: what.to_string(), perhaps: self.perhaps() }
    }

    fn timed_out(&self, what: &str) -> LinkError {
        let (addr, what, after) = (self.addr.clone(), what.to_string(), self.timeout);
        LinkError::Timeout { addr, what, after, perhaps: self.perhaps() }
    }

    /// What may be behind a connection that ends before the first answer.
    fn perhaps(&self) -> &'static str {
        match &self.tls {
            _ if self.answered => "",
            None => PERHAPS_TLS,
            Some(session) if session.is_handshaking() => PERHAPS_PLAIN,
            Some(_) => PERHAPS_CERTIFICATE,
        }
    }
}

/// Appends the plaintext of `buffer` to `received`.
fn decrypt(session: &mut Session, buffer: &[u8], received: &mut Vec<u8>) -> Result<(), String> {
    let (mut rest, mut plain) = (buffer, [0; 4096]);
    loop {
        match session.open(&mut rest, &mut plain)? {
            0 => return Ok(()),
            bytes => received.extend_from_slice(&plain[..bytes]),
        }
    }
}
