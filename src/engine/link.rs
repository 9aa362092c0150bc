//! A request/reply connection of the control plane, on tokio-uring. It never carries a data byte.
//!
//! In: an address. Out: replies, one a request, parsed by the room that knows the peer; at the end the socket and the
//! bytes that were read too far, for a worker. Every wait is bounded by a timeout.

use crate::uring;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio_uring::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the name {host} cannot be resolved: {cause}")]
    Resolve { host: String, cause: io::Error },
    #[error("cannot connect to {addr}: {cause}")]
    Connect { addr: String, cause: io::Error },
    #[error("no answer from {addr} to {what} within {after:?}")]
    Timeout { addr: String, what: String, after: Duration },
    #[error("{addr} closed the connection after {what}")]
    Closed { addr: String, what: String },
    #[error("the connection to {addr} broke: {cause}")]
    Io { addr: String, cause: io::Error },
    #[error("{addr} answered {what} with what is no RESP2 reply: {reason}")]
    Protocol { addr: String, what: String, reason: String },
}

pub struct Link {
    stream: TcpStream,
    addr: String,
    received: Vec<u8>,
    timeout: Duration,
}

const READ_BYTES: usize = 16 * 1024;

impl Link {
    /// Connects to the first address of `host` that accepts.
    pub async fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, LinkError> {
        let addrs: Vec<SocketAddr> = (host, port)
            .to_socket_addrs()
            .map_err(|cause| LinkError::Resolve { host: host.to_string(), cause })?
            .collect();
        let name = format!("{host}:{port}");
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for addr in addrs {
            match tokio::time::timeout(timeout, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => {
                    // A connection without TCP_NODELAY still works.
                    let _ = stream.set_nodelay(true);
                    return Ok(Self { stream, addr: name, received: Vec::new(), timeout });
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
        let (sent, _) = self.stream.write_all(request).await;
        sent.map_err(|cause| LinkError::Io { addr: self.addr.clone(), cause })?;
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            if !self.received.is_empty() {
                let parsed = parse(&self.received).map_err(|e| LinkError::Protocol {
                    addr: self.addr.clone(),
                    what: what.to_string(),
                    reason: e.to_string(),
                })?;
                if let Some((value, len)) = parsed {
                    self.received.drain(..len.min(self.received.len()));
                    return Ok(value);
                }
            }
            let read = tokio::time::timeout_at(deadline, self.stream.read(Vec::with_capacity(READ_BYTES)));
            let Ok((result, buffer)) = read.await else {
                return Err(LinkError::Timeout {
                    addr: self.addr.clone(),
                    what: what.to_string(),
                    after: self.timeout,
                });
            };
            match result {
                Ok(0) => return Err(LinkError::Closed { addr: self.addr.clone(), what: what.to_string() }),
                Ok(_) => self.received.extend_from_slice(&buffer),
                Err(cause) => return Err(LinkError::Io { addr: self.addr.clone(), cause }),
            }
        }
    }

    /// The socket, for a worker, and bytes that came after the last reply. The connection lives on in the returned
    /// descriptor.
    pub fn hand_over(self) -> Result<(OwnedFd, Vec<u8>), LinkError> {
        let fd = uring::duplicate_fd(&self.stream).map_err(|cause| LinkError::Io { addr: self.addr.clone(), cause })?;
        Ok((fd, self.received))
    }
}
