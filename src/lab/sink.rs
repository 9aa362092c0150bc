//! A RESP target that answers at full speed and keeps nothing: for measuring the tool alone.
//!
//! One thread a connection: read a block, walk it ([`super::walk`]), write all replies at once. Counts commands, bytes
//! and the threads' own CPU time. A malformed request closes the connection and is kept for the test to see.

use super::LabError;
use super::answers::{Answers, TargetIdentity};
use super::cpu::ThreadCpu;
use super::walk::{Malformed, Walker};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// How a sink listens and who it says it is.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    pub listen: String,
    pub identity: TargetIdentity,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self { listen: "127.0.0.1:0".to_owned(), identity: TargetIdentity::default() }
    }
}

/// Figures of a sink since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkCounts {
    pub connections: u64,
    pub commands: u64,
    pub received_bytes: u64,
    /// CPU time of the connections' threads.
    pub cpu_ns: u64,
}

/// A running sink. Dropping it closes everything.
pub struct Sink {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    connections: Mutex<Vec<Connection>>,
    malformed: Mutex<Vec<Malformed>>,
}

struct Connection {
    stream: TcpStream,
    figures: Arc<Figures>,
}

#[derive(Default)]
struct Figures {
    commands: AtomicU64,
    received_bytes: AtomicU64,
    /// While the thread runs: where to ask.
    cpu: Mutex<Option<ThreadCpu>>,
    /// Once it has ended.
    cpu_ns: AtomicU64,
}

impl Sink {
    /// Listens and serves on threads of its own.
    pub fn start(options: SinkOptions) -> Result<Self, LabError> {
        let fail = |source| LabError::Listen { address: options.listen.clone(), source };
        let listener = TcpListener::bind(&options.listen).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let shared = Arc::new(Shared::default());
        let accepted = shared.clone();
        let identity = Arc::new(options.identity);
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepted, &identity)));
        Ok(Self { shared, address, accepting })
    }

    /// The primaries of a make-believe cluster.
    pub fn start_cluster(primaries: usize) -> Result<Vec<Self>, LabError> {
        let ports = super::answers::ClusterPorts::default();
        let identity = TargetIdentity::default().in_cluster(&ports);
        let start = |_| Self::start(SinkOptions { identity: identity.clone(), ..SinkOptions::default() });
        let sinks = (0..primaries).map(start).collect::<Result<Vec<_>, _>>()?;
        *lock(&ports) = sinks.iter().map(Self::port).collect();
        Ok(sinks)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn counts(&self) -> SinkCounts {
        let connections = lock(&self.shared.connections);
        let sum = |of: fn(&Figures) -> u64| connections.iter().map(|c| of(&c.figures)).sum();
        SinkCounts {
            connections: connections.len() as u64,
            commands: sum(|f| f.commands.load(Ordering::Relaxed)),
            received_bytes: sum(|f| f.received_bytes.load(Ordering::Relaxed)),
            cpu_ns: sum(|f| {
                let running = lock(&f.cpu).as_ref().and_then(ThreadCpu::nanos);
                running.unwrap_or_else(|| f.cpu_ns.load(Ordering::Acquire))
            }),
        }
    }

    /// What was wrong with requests, one for each connection that was closed for it.
    pub fn malformed(&self) -> Vec<Malformed> {
        lock(&self.shared.malformed).clone()
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
        for connection in lock(&self.shared.connections).iter() {
            connection.stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Waits as long as the sink runs: for the command line.
    pub fn wait(mut self) {
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, identity: &Arc<TargetIdentity>) {
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let Ok(second) = stream.try_clone() else { continue };
        let figures = Arc::new(Figures::default());
        lock(&shared.connections).push(Connection { stream: second, figures: figures.clone() });
        let (shared, answers) = (shared.clone(), Answers::new(identity.clone()));
        std::thread::spawn(move || {
            let cpu = ThreadCpu::current();
            *lock(&figures.cpu) = Some(cpu.clone());
            if let Err(malformed) = serve(&stream, answers, &figures) {
                lock(&shared.malformed).push(malformed);
            }
            figures.cpu_ns.store(cpu.nanos().unwrap_or_default(), Ordering::Release);
            *lock(&figures.cpu) = None;
            stream.shutdown(Shutdown::Both).ok();
        });
    }
}

fn serve(mut stream: &TcpStream, answers: Answers, figures: &Figures) -> Result<(), Malformed> {
    stream.set_nodelay(true).ok();
    let mut walker = Walker::new(answers);
    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    let mut out = Vec::with_capacity(64 << 10);
    loop {
        // The walk leaves at most two length lines and a name, so there is always room.
        let Ok(count @ 1..) = stream.read(&mut buffer[filled..]) else { return Ok(()) };
        filled += count;
        out.clear();
        let used = walker.walk(&buffer[..filled], &mut out)?;
        figures.commands.store(walker.commands_count, Ordering::Relaxed);
        figures.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        buffer.copy_within(used..filled, 0);
        filled -= used;
        if stream.write_all(&out).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    #[test]
    fn counts_everything() {
        let sink = Sink::start(SinkOptions::default()).unwrap();
        let stream = TcpStream::connect(sink.address()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let one = b"*3\r\n$3\r\nSET\r\n$5\r\nkey:1\r\n$5\r\nvalue\r\n";
            let block = one.repeat(1000);
            (0..100).for_each(|_| writer.write_all(&block).unwrap());
            // One value far longer than the read buffer.
            writer.write_all(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$2000000\r\n").unwrap();
            writer.write_all(&[b'x'; 2_000_002]).unwrap();
            (one.len() * 100_000 + 2_000_002 + 32) as u64
        });
        let mut replies = vec![0; 5 * 100_001];
        BufReader::new(&stream).read_exact(&mut replies).unwrap();
        assert!(replies.chunks(5).all(|r| r == b"+OK\r\n"));
        let counts = sink.counts();
        assert_eq!((counts.connections, counts.commands), (1, 100_001));
        assert_eq!(counts.received_bytes, thread.join().unwrap());
        assert!(counts.cpu_ns > 0);
        (&stream).write_all(b"nonsense\r\n").unwrap();
        assert_eq!((&stream).read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(sink.malformed().len(), 1);
    }

    #[test]
    #[ignore = "a measurement: cargo test --release --lib sink -- --ignored --nocapture"]
    fn speed() {
        for len in [20, 100, 1000] {
            let sink = Sink::start(SinkOptions::default()).unwrap();
            let stream = TcpStream::connect(sink.address()).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let count = 10_000_000 / (1 + len / 100) / 1000 * 1000;
            let reader = std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                let mut left = count * 5;
                while left > 0 {
                    left -= (&stream).read(&mut buffer).unwrap();
                }
            });
            let value = "v".repeat(len);
            let block = format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n${len}\r\n{value}\r\n").repeat(1000);
            (0..count / 1000).for_each(|_| writer.write_all(block.as_bytes()).unwrap());
            reader.join().unwrap();
            let counts = sink.counts();
            let (commands, ns) = (counts.commands as f64, counts.cpu_ns as f64);
            println!("{len} bytes: {:.1} M commands a CPU-second", commands / ns * 1e3);
        }
    }
}
