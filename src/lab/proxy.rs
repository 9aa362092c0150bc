//! A byte proxy with faults, in front of a real server: connections cut after so many bytes in either direction, rates,
//! small pieces, pauses. It understands nothing of what it carries.
//!
//! In: connections of the tool. Out: the same bytes to and from the server, except what the [`Leg`]s say. The n-th
//! connection (from 0) suffers the n-th entry of the plan; those beyond it are carried faithfully. A cut closes both
//! sides at once, so that bytes already given to the server may or may not be executed, as with a broken network.

use super::LabError;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What happens to one direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leg {
    /// The connection is cut once so many bytes went this way; those beyond are lost.
    pub cut_after_bytes: Option<u64>,
    /// From so many bytes on, what comes is swallowed, and the connection stays open.
    pub swallow_after_bytes: Option<u64>,
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Largest piece passed on at once.
    pub piece_bytes: Option<usize>,
    /// Once so many bytes went this way, nothing does for a while.
    pub pause_after: Option<(u64, Duration)>,
}

/// Faults of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faulty {
    pub to_server: Leg,
    pub to_client: Leg,
}

impl Faulty {
    /// Cut after `bytes` of requests.
    pub fn cut_requests(bytes: u64) -> Self {
        Self { to_server: Leg { cut_after_bytes: Some(bytes), ..Leg::default() }, ..Self::default() }
    }

    /// Cut after `bytes` of replies: requests were executed, and their replies are lost.
    pub fn cut_replies(bytes: u64) -> Self {
        Self { to_client: Leg { cut_after_bytes: Some(bytes), ..Leg::default() }, ..Self::default() }
    }

    /// Requests pass at so many bytes a second.
    pub fn slow(rate: u64) -> Self {
        Self { to_server: Leg { rate: Some(rate), ..Leg::default() }, ..Self::default() }
    }
}

/// Faults of the n-th connection.
pub type Plan = Box<dyn Fn(u64) -> Faulty + Send + Sync>;

/// A running proxy. Dropping it closes everything.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    /// Of 127.0.0.1.
    server: AtomicU16,
    plan: Plan,
    stopping: AtomicBool,
    paused: AtomicBool,
    replies_paused: AtomicBool,
    accepted_count: AtomicU64,
    cuts_count: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// In front of the server on `port` of 127.0.0.1.
    pub fn start(port: u16, plan: impl Fn(u64) -> Faulty + Send + Sync + 'static) -> Result<Self, LabError> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: AtomicU16::new(port),
            plan: Box::new(plan),
            stopping: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            replies_paused: AtomicBool::new(false),
            accepted_count: AtomicU64::new(0),
            cuts_count: AtomicU64::new(0),
            streams: Mutex::default(),
        });
        let accepted = shared.clone();
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepted)));
        Ok(Self { shared, address, accepting })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections accepted so far.
    pub fn accepted_count(&self) -> u64 {
        self.shared.accepted_count.load(Ordering::Relaxed)
    }

    /// Connections cut by the plan so far.
    pub fn cuts_count(&self) -> u64 {
        self.shared.cuts_count.load(Ordering::Relaxed)
    }

    /// New connections go to the server on this port of 127.0.0.1: another one has the address now.
    pub fn set_server(&self, port: u16) {
        self.shared.server.store(port, Ordering::Release);
    }

    /// While paused nothing passes in either direction, and no connection is closed.
    pub fn set_paused(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Release);
    }

    /// While paused requests pass, and no reply.
    pub fn set_replies_paused(&self, paused: bool) {
        self.shared.replies_paused.store(paused, Ordering::Release);
    }

    /// Closes every connection that is open now; new ones are served.
    pub fn drop_all(&self) {
        for stream in self.shared.lock().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Closes everything, the listener too: the server is gone.
    pub fn stop(&mut self) {
        if self.shared.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
        self.drop_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept() else { continue };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let number = shared.accepted_count.fetch_add(1, Ordering::Relaxed);
        let faulty = (shared.plan)(number);
        let Ok(server) = TcpStream::connect(("127.0.0.1", shared.server.load(Ordering::Acquire))) else {
            client.shutdown(Shutdown::Both).ok();
            continue;
        };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        for (from, to, leg, is_reply) in
            [(&client, &server, faulty.to_server, false), (&server, &client, faulty.to_client, true)]
        {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let shared = shared.clone();
            std::thread::spawn(move || {
                carry(&shared, &from, &to, leg, is_reply);
                from.shutdown(Shutdown::Both).ok();
                to.shutdown(Shutdown::Both).ok();
            });
        }
        shared.lock().extend([client, server]);
    }
}

/// Until an end, an error or a cut.
fn carry(shared: &Shared, mut from: &TcpStream, mut to: &TcpStream, leg: Leg, is_reply: bool) {
    let mut buffer = vec![0u8; 64 << 10];
    let mut carried = 0u64;
    loop {
        let mut room = leg.piece_bytes.unwrap_or(buffer.len()).clamp(1, buffer.len());
        if let Some(rate) = leg.rate {
            room = room.min((rate / 50).max(1) as usize);
        }
        if let Some(cut) = leg.cut_after_bytes {
            if carried >= cut {
                shared.cuts_count.fetch_add(1, Ordering::Relaxed);
                return;
            }
            room = room.min((cut - carried).min(1 << 20) as usize);
        }
        if let Some((bytes, time)) = leg.pause_after {
            match bytes.checked_sub(carried) {
                Some(0) => std::thread::sleep(time),
                Some(left) => room = room.min(left.min(1 << 20) as usize),
                None => {}
            }
        }
        let Ok(count @ 1..) = from.read(&mut buffer[..room]) else { return };
        let is_paused =
            || shared.paused.load(Ordering::Acquire) || is_reply && shared.replies_paused.load(Ordering::Acquire);
        while is_paused() && !shared.stopping.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        carried += count as u64;
        if let Some(rate) = leg.rate {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / rate.max(1) as f64));
        }
        if leg.swallow_after_bytes.is_some_and(|bytes| carried > bytes) {
            continue;
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::client::{Address, Client};
    use crate::lab::sink::{Sink, SinkOptions};

    #[test]
    fn carries_and_cuts() {
        let sink = Sink::start(SinkOptions::default()).unwrap();
        let proxy =
            Proxy::start(sink.port(), |n| if n == 0 { Faulty::cut_requests(20) } else { Faulty::default() }).unwrap();
        let mut client = Client::connect(&Address::Tcp("127.0.0.1".into(), proxy.port())).unwrap();
        // 14 bytes each.
        assert!(client.run("PING").is_ok());
        assert!(client.run("PING").is_err());
        let mut client = Client::connect(&Address::Tcp("127.0.0.1".into(), proxy.port())).unwrap();
        assert!((0..10).all(|_| client.run("PING").is_ok()));
        assert_eq!((proxy.accepted_count(), proxy.cuts_count()), (2, 1));
        proxy.drop_all();
        assert!(client.run("PING").is_err());
    }
}
