//! A target that misbehaves by script: errors on order, a connection closed in mid-stream, slow reading, replies in
//! pieces. For the tests of reconnects and of error matching.
//!
//! It answers like [`super::sink`] otherwise, keeps nothing, and notes every request that it has read whole, in order, so that a
//! test can say which commands reached the target, and how often.

use super::LabError;
use super::answers::{Answers, TargetIdentity};
use super::request::{Request, read_request, upper};
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Requests kept for the test.
const REQUESTS_KEPT_MAX: usize = 1_000_000;

/// Requests that all scripted targets have received.
static ORDINALS: AtomicU64 = AtomicU64::new(0);

/// An error in place of the usual answer. The tool's lease is left alone, unless its key is named.
#[derive(Clone, Debug)]
pub struct ErrorRule {
    /// Upper case; empty: any command.
    pub command: String,
    /// First argument, where EXEC is named that of any command of its group. `None`: any.
    pub key: Option<Vec<u8>>,
    /// The reply's line, such as `-OOM command not allowed`.
    pub reply: String,
    /// Let so many matching requests pass first.
    pub after: u64,
    /// Then answer so many with the error.
    pub times: u64,
}

impl ErrorRule {
    /// Every request of this command gets this error.
    pub fn every(command: &str, reply: &str) -> Self {
        Self { command: command.to_owned(), key: None, reply: reply.to_owned(), after: 0, times: u64::MAX }
    }
}

/// What no honest target sends.
#[derive(Clone, Debug)]
pub enum Hostile {
    /// These bytes in place of the reply.
    Instead(Vec<u8>),
    /// The reply, and these bytes behind it.
    Behind(Vec<u8>),
    /// The same, but later.
    Later(Vec<u8>, Duration),
    /// The first bytes, and then the others again and again for as long as somebody reads.
    Endless(Vec<u8>, Vec<u8>),
    /// These bytes in place of the reply, one by one with pauses.
    Slowly(Vec<u8>, Duration),
    /// No reply, but one to everything else.
    Nothing,
    /// These bytes in place of the reply; then the connection is closed.
    Last(Vec<u8>),
}

/// When it is sent, every time: the command (upper case), and its first argument if that matters.
#[derive(Clone, Debug)]
pub struct HostileRule {
    pub command: String,
    pub key: Option<Vec<u8>>,
    pub what: Hostile,
}

/// What happens to one connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectionFault {
    /// Close after so many bytes of input were read; requests not complete by then are not answered.
    pub close_after_bytes: Option<u64>,
    /// Do not answer from this many bytes of input on (the requests count as received, their replies are lost).
    pub mute_after_bytes: Option<u64>,
}

/// The script.
#[derive(Clone, Debug)]
pub struct ScriptOptions {
    pub listen: String,
    pub identity: TargetIdentity,
    pub errors: Vec<ErrorRule>,
    pub hostile: Option<HostileRule>,
    /// For the n-th connection (from 0) that sends data commands; those beyond the list are served well.
    pub faults: Vec<ConnectionFault>,
    /// Bytes a second read, on each connection.
    pub read_bytes_per_s: Option<u64>,
    /// Replies are written in pieces of this many bytes.
    pub reply_piece_bytes: Option<usize>,
}

impl Default for ScriptOptions {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            identity: TargetIdentity::default(),
            errors: Vec::new(),
            hostile: None,
            faults: Vec::new(),
            read_bytes_per_s: None,
            reply_piece_bytes: None,
        }
    }
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its place among those of all scripted targets of the process.
    pub ordinal: u64,
    /// Number of the connection, from 0.
    pub connection: u64,
    pub request: Request,
    /// False: its reply was not sent.
    pub answered: bool,
    /// It was not answered with an error on order, nor was its group.
    pub executed: bool,
}

/// A running scripted target. Dropping it closes everything.
pub struct ScriptedTarget {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    options: ScriptOptions,
    identity: Arc<TargetIdentity>,
    stopping: AtomicBool,
    errors: Mutex<Vec<ErrorRule>>,
    received: Mutex<Vec<Received>>,
    streams: Mutex<Vec<TcpStream>>,
    /// Faults handed out.
    faulted: AtomicU64,
}

impl ScriptedTarget {
    pub fn start(options: ScriptOptions) -> Result<Self, LabError> {
        let fail = |source| LabError::Listen { address: options.listen.clone(), source };
        let listener = TcpListener::bind(&options.listen).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let shared = Arc::new(Shared {
            identity: Arc::new(options.identity.clone()),
            errors: Mutex::new(options.errors.clone()),
            options,
            stopping: AtomicBool::new(false),
            received: Mutex::default(),
            streams: Mutex::default(),
            faulted: AtomicU64::new(0),
        });
        let accepted = shared.clone();
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepted)));
        Ok(Self { shared, address, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on it answers with these errors, and with no others.
    pub fn set_errors(&self, errors: Vec<ErrorRule>) {
        *lock(&self.shared.errors) = errors;
    }

    /// Every request read whole so far, in order of arrival on each connection.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Requests of one command (upper case), on all connections.
    pub fn received_of(&self, command: &str) -> Vec<Request> {
        let received = lock(&self.shared.received);
        received.iter().filter(|r| upper(&r.request[0]) == command).map(|r| r.request.clone()).collect()
    }

    pub fn connections_count(&self) -> usize {
        lock(&self.shared.streams).len()
    }

    /// Closes the listener and all connections.
    pub fn stop(&mut self) {
        if self.shared.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
        for stream in lock(&self.shared.streams).iter() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for ScriptedTarget {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let Ok(second) = stream.try_clone() else { continue };
        let connection = {
            let mut streams = lock(&shared.streams);
            streams.push(second);
            streams.len() as u64 - 1
        };
        let shared = shared.clone();
        std::thread::spawn(move || {
            serve(&shared, &stream, connection).ok();
            stream.shutdown(Shutdown::Both).ok();
        });
    }
}

fn serve(shared: &Shared, stream: &TcpStream, connection: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let meter = Meter { stream, read_bytes: 0, limit: None, rate: shared.options.read_bytes_per_s };
    let mut reader = BufReader::with_capacity(16 << 10, meter);
    let mut answers = Answers::new(shared.identity.clone());
    let mut fault: Option<ConnectionFault> = None;
    // A MULTI is open, and one of its commands was answered with an error: then its EXEC executes none, as at a real server.
    let (mut in_group, mut aborted) = (false, false);
    // Its commands, by their places among all requests.
    let mut group: Vec<usize> = Vec::new();
    loop {
        let Some(request) = read_request(&mut reader)? else { return Ok(()) };
        if fault.is_none() && carries_data(&request) {
            let index = shared.faulted.fetch_add(1, Ordering::Relaxed) as usize;
            let due = shared.options.faults.get(index).cloned().unwrap_or_default();
            reader.get_mut().limit = due.close_after_bytes;
            fault = Some(due);
        }
        let used = reader.get_ref().read_bytes - reader.buffer().len() as u64;
        if reader.get_ref().limit.is_some_and(|limit| used > limit) {
            return Ok(());
        }
        let mute = fault.as_ref().and_then(|f| f.mute_after_bytes).is_some_and(|bytes| used >= bytes);
        let mut reply = Vec::new();
        let request_due = request.clone();
        let name = upper(&request[0]);
        let error = due_error(shared, &request, &group);
        let executed = error.is_none() && (!in_group || name == "EXEC" && !aborted);
        match error {
            Some(line) => {
                aborted |= in_group;
                if name == "EXEC" {
                    answers.answer(&[b"DISCARD".to_vec()], &mut Vec::new());
                }
                reply.extend_from_slice(format!("{line}\r\n").as_bytes());
            }
            None if name == "EXEC" && aborted => {
                answers.answer(&[b"DISCARD".to_vec()], &mut Vec::new());
                reply.extend_from_slice(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
            }
            None => answers.answer(&request, &mut reply),
        }
        {
            let mut received = lock(&shared.received);
            if in_group && name != "EXEC" {
                group.push(received.len());
            }
            if received.len() < REQUESTS_KEPT_MAX {
                let ordinal = ORDINALS.fetch_add(1, Ordering::Relaxed);
                received.push(Received { ordinal, connection, request, answered: !mute, executed });
            }
            if name == "EXEC" && executed {
                for at in &group {
                    received.get_mut(*at).into_iter().for_each(|of| of.executed = true);
                }
            }
        }
        if matches!(name.as_str(), "MULTI" | "EXEC" | "DISCARD") {
            (in_group, aborted) = (name == "MULTI", false);
            group.clear();
        }
        if let Some(what) = due_hostility(shared, &request_due) {
            play(what, stream, &reply)?;
            continue;
        }
        if !mute {
            let piece = shared.options.reply_piece_bytes.unwrap_or(usize::MAX).max(1);
            for bytes in reply.chunks(piece) {
                (&*stream).write_all(bytes)?;
            }
        }
    }
}

fn due_hostility<'a>(shared: &'a Shared, request: &Request) -> Option<&'a Hostile> {
    let rule = shared.options.hostile.as_ref()?;
    let due = rule.command == upper(&request[0])
        && rule.key.as_ref().map_or(!is_of_lease(request), |key| request.get(1) == Some(key));
    due.then_some(&rule.what)
}

fn play(what: &Hostile, mut stream: &TcpStream, reply: &[u8]) -> io::Result<()> {
    match what {
        Hostile::Instead(bytes) => stream.write_all(bytes),
        Hostile::Behind(bytes) => stream.write_all(&[reply, bytes].concat()),
        Hostile::Later(bytes, pause) => {
            stream.write_all(reply)?;
            let (mut stream, bytes, pause) = (stream.try_clone()?, bytes.clone(), *pause);
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                stream.write_all(&bytes).ok();
            });
            Ok(())
        }
        Hostile::Endless(first, again) => {
            stream.write_all(first)?;
            let again = again.repeat((64 << 10) / again.len().max(1) + 1);
            loop {
                stream.write_all(&again)?;
            }
        }
        Hostile::Slowly(bytes, pause) => bytes.chunks(1).try_for_each(|byte| {
            std::thread::sleep(*pause);
            stream.write_all(byte)
        }),
        Hostile::Nothing => Ok(()),
        Hostile::Last(bytes) => {
            stream.write_all(bytes)?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

/// `group`: places of the commands that an EXEC would execute.
fn due_error(shared: &Shared, request: &Request, group: &[usize]) -> Option<String> {
    let name = upper(&request[0]);
    let is_in_group = |key: &Vec<u8>| {
        let received = lock(&shared.received);
        name == "EXEC" && group.iter().filter_map(|at| received.get(*at)).any(|of| of.request.get(1) == Some(key))
    };
    let mut rules = lock(&shared.errors);
    let rule = rules.iter_mut().find(|rule| {
        rule.times > 0
            && (rule.command.is_empty() || rule.command == name)
            && rule.key.as_ref().map_or(!is_of_lease(request), |key| {
                request.get(1) == Some(key) || rule.command == "EXEC" && is_in_group(key)
            })
    })?;
    if rule.after > 0 {
        rule.after -= 1;
        return None;
    }
    rule.times -= 1;
    Some(rule.reply.clone())
}

/// It is taken before the first data, and renewed beside it.
fn is_of_lease(request: &Request) -> bool {
    request.iter().skip(1).any(|word| word.starts_with(b"df2redis:lease"))
}

/// Probing and handshake commands do not make a data connection.
fn carries_data(request: &Request) -> bool {
    const QUIET: [&str; 12] = [
        "PING", "AUTH", "HELLO", "INFO", "COMMAND", "CONFIG", "CLIENT", "SELECT", "CLUSTER", "DBSIZE", "MODULE", "ROLE",
    ];
    !QUIET.contains(&upper(&request[0]).as_str()) && !is_of_lease(request)
}

/// Counts, slows and limits what is read.
struct Meter<'a> {
    stream: &'a TcpStream,
    read_bytes: u64,
    limit: Option<u64>,
    rate: Option<u64>,
}

impl Read for Meter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut room = buffer.len();
        if let Some(rate) = self.rate {
            room = room.min((rate / 50).max(1) as usize);
            std::thread::sleep(Duration::from_secs_f64(room as f64 / rate.max(1) as f64));
        }
        if let Some(limit) = self.limit {
            room = room.min(limit.saturating_sub(self.read_bytes) as usize);
        }
        let count = self.stream.read(&mut buffer[..room])?;
        self.read_bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::client::{Address, Client, Reply};

    fn connect(target: &ScriptedTarget) -> Client {
        Client::connect(&Address::Tcp("127.0.0.1".into(), target.port())).unwrap()
    }

    #[test]
    fn errors_on_order() {
        let one = ErrorRule {
            command: "SET".into(),
            key: Some(b"bad".to_vec()),
            reply: "-OOM no memory".into(),
            after: 1,
            times: 1,
        };
        let options = ScriptOptions { errors: vec![one], reply_piece_bytes: Some(1), ..Default::default() };
        let target = ScriptedTarget::start(options).unwrap();
        let mut client = connect(&target);
        let replies: Vec<bool> =
            (0..4).map(|_| matches!(client.ask(&["SET", "bad", "v"]).unwrap(), Reply::Error(_))).collect();
        assert_eq!(replies, [false, true, false, false]);
        assert_eq!(client.run("SET good v").unwrap().text().unwrap(), "OK");
        assert_eq!(target.received_of("SET").len(), 5);
    }

    #[test]
    fn closes_and_mutes() {
        let close = ConnectionFault { close_after_bytes: Some(100), ..Default::default() };
        let mute = ConnectionFault { mute_after_bytes: Some(60), ..Default::default() };
        let options = ScriptOptions { faults: vec![close, mute], ..Default::default() };
        let target = ScriptedTarget::start(options).unwrap();
        // 29 bytes each: three fit into 100.
        let mut request = Vec::new();
        crate::lab::client::encode(&["SET", "k", "vv"], &mut request);
        assert_eq!(request.len(), 28);
        let mut client = connect(&target);
        client.send(&request.repeat(10)).unwrap();
        assert!((0..3).all(|_| client.reply().is_ok()));
        assert!(client.reply().is_err());
        let mut client = connect(&target);
        client.send(&request.repeat(10)).unwrap();
        assert!((0..2).all(|_| client.reply().is_ok()));
        while target.received().len() < 13 {
            std::thread::yield_now();
        }
        assert_eq!(target.received().iter().filter(|r| !r.answered).count(), 8);
    }
}
