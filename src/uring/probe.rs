//! What this kernel can do, by trying: version, switches, and a functional self-test over a loopback connection.
//!
//! Version numbers lie in both directions (backports, bugs of single releases), so beyond the floor only what was tried
//! counts. The self-test is the body of `df2redis probe`.

use super::error::UringError;
use super::file::UnnamedFile;
use super::op::Segment;
use super::ring::{Completion, CompletionKind, Outgoing, Ring};
use super::settings::{ReadMode, RingSettings, SlabLayout, TaskRun, WriteMode};
use super::setup::ZeroCopy;
use super::slab::Class;
use super::socket::{Socket, tcp_pair};
use super::{clock, cpu};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

/// Oldest kernel that we run on: DEFER_TASKRUN and SENDMSG_ZC came with it.
pub const KERNEL_FLOOR: (u32, u32) = (6, 1);

/// As `uname -r` says; empty if /proc does not tell.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_string()).unwrap_or_default()
}

/// Whether a release such as `6.1.0-13-amd64` is older than a version. One that cannot be read is not.
pub fn is_older(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < than,
        _ => false,
    }
}

/// `kernel.io_uring_disabled` (0, 1 or 2); None before Linux 6.6.
pub fn io_uring_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// What zero-copy sends can do here.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZeroCopySupport {
    pub(super) report_usage: bool,
    pub(super) fixed: bool,
}

/// Tries zero-copy sends over loopback, once a process. The error says why there are none.
pub(super) fn zero_copy_support() -> Result<ZeroCopySupport, String> {
    static TRIED: OnceLock<Result<ZeroCopySupport, String>> = OnceLock::new();
    TRIED.get_or_init(try_zero_copy).clone()
}

fn try_zero_copy() -> Result<ZeroCopySupport, String> {
    let plain = try_zero_copy_with(false, false);
    plain?;
    Ok(ZeroCopySupport {
        report_usage: try_zero_copy_with(true, false).is_ok(),
        fixed: try_zero_copy_with(false, true).is_ok(),
    })
}

fn try_zero_copy_with(report_usage: bool, fixed: bool) -> Result<(), String> {
    let settings = RingSettings { registered_buffers: fixed, ..small_settings() };
    let mut bench = Bench::new(&settings)?;
    bench.ring.force_zero_copy(ZeroCopy { bytes_min: 0, report_usage, fixed });
    bench.send_one(b"zero copy")
}

/// Outcome of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passed,
    /// A migration with default settings would not run.
    Failed,
    /// Optional, and not there: something else is used instead.
    Absent,
}

/// One line of the self-test.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Check {
    pub name: &'static str,
    pub outcome: Outcome,
    pub detail: String,
}

/// Tries everything that a run relies on, or could use, on real sockets. Takes some milliseconds.
pub fn self_test() -> Vec<Check> {
    let mut checks = Vec::new();
    let release = kernel_release();
    checks.push(check("kernel", false, judge_kernel(release)));
    let switch = judge_switch(io_uring_disabled());
    checks.push(check("switch", false, switch));
    checks.push(check("locked-memory", false, Ok(memlock_text())));
    checks.push(check("ring-defer-taskrun", false, try_ring(TaskRun::Defer)));
    checks.push(check("ring-coop-taskrun", true, try_ring(TaskRun::Coop)));
    checks.push(check("ring-sqpoll", true, try_sqpoll()));
    checks.push(check("read-fixed", false, try_read(ReadMode::ReadFixed)));
    checks.push(check("recv", false, try_read(ReadMode::Recv)));
    checks.push(check("linked-sends", false, try_linked_sends()));
    checks.push(check("wake", false, try_wake()));
    checks.push(check("spool-file", true, try_file()));
    let zero_copy = zero_copy_support();
    checks.push(check("sendmsg-zc", true, zero_copy.clone().map(|_| "accepted".to_string())));
    let fixed = match zero_copy {
        Ok(ZeroCopySupport { fixed: true, .. }) => Ok("accepted".to_string()),
        Ok(_) => Err("needs Linux 6.15".to_string()),
        Err(e) => Err(e),
    };
    checks.push(check("sendmsg-zc-fixed", true, fixed));
    checks.push(check("huge-pages", true, try_huge_pages()));
    checks
}

/// Old enough to be refused at the start.
fn judge_kernel(release: String) -> Result<String, String> {
    if is_older(&release, KERNEL_FLOOR) { Err(text(UringError::KernelTooOld { release })) } else { Ok(release) }
}

/// With 1 it depends on who asks, which the checks of the ring find out.
fn judge_switch(value: Option<u32>) -> Result<String, String> {
    match value {
        None => Ok("no such switch on this kernel".to_string()),
        Some(0) => Ok("kernel.io_uring_disabled = 0".to_string()),
        Some(1) => Ok("kernel.io_uring_disabled = 1: only for kernel.io_uring_group and CAP_SYS_ADMIN".to_string()),
        Some(value) => Err(text(UringError::Disabled { value })),
    }
}

fn check(name: &'static str, optional: bool, result: Result<String, String>) -> Check {
    match result {
        Ok(detail) => Check { name, outcome: Outcome::Passed, detail },
        Err(detail) => Check { name, outcome: if optional { Outcome::Absent } else { Outcome::Failed }, detail },
    }
}

fn memlock_text() -> String {
    let memlock = cpu::memlock();
    let limit = memlock.limit_bytes.map_or("unlimited".to_string(), |bytes| format!("{bytes} bytes"));
    let exempt = if memlock.exempt { ", does not apply (CAP_IPC_LOCK)" } else { "" };
    format!("RLIMIT_MEMLOCK {limit}{exempt}")
}

const LAYOUT: SlabLayout =
    SlabLayout { rx_chunk_bytes: 64 << 10, rx_chunks: 4, tx_chunk_bytes: 64 << 10, tx_chunks: 8 };
/// How long a check may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

fn small_settings() -> RingSettings {
    RingSettings { sq_entries: 16, huge_pages: false, write: WriteMode::Sendmsg, ..RingSettings::default() }
}

/// A ring and a loopback connection.
struct Bench {
    ring: Ring,
    socket: Rc<Socket>,
    peer: TcpStream,
}

impl Bench {
    fn new(settings: &RingSettings) -> Result<Self, String> {
        let ring = Ring::new(settings, LAYOUT).map_err(text)?;
        let (ours, peer) = tcp_pair().map_err(|e| format!("no loopback connection: {e}"))?;
        peer.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        Ok(Self { ring, socket: Rc::new(Socket::from(ours)), peer })
    }

    /// Turns until `count` completions of a kind came; their results.
    fn completions(&mut self, count: usize, kind: CompletionKind) -> Result<Vec<u32>, String> {
        let begun_ns = clock::monotonic_ns();
        let mut all: Vec<Completion> = Vec::new();
        while all.iter().filter(|completion| completion.kind == kind).count() < count {
            if clock::monotonic_ns() - begun_ns > PATIENCE.as_nanos() as u64 {
                return Err("no completion".to_string());
            }
            self.ring.turn(Duration::from_millis(100), &mut all).map_err(text)?;
        }
        let results = all.iter().filter(|completion| completion.kind == kind).map(|completion| completion.result);
        results.collect::<Result<_, _>>().map_err(|errno| std::io::Error::from_raw_os_error(errno).to_string())
    }

    /// A send chunk with `bytes` in it, as a segment that holds it.
    fn segment(&mut self, bytes: &[u8]) -> Result<Segment, String> {
        let slab = self.ring.slab_mut();
        let chunk = slab.take(Class::Tx).ok_or("no free chunk")?;
        let len = slab.append(chunk, bytes) as u32;
        Ok(Segment::Chunk { chunk, start: 0, len })
    }

    fn send_one(&mut self, bytes: &[u8]) -> Result<(), String> {
        let segments = [self.segment(bytes)?];
        self.ring.send(&self.socket, &[Outgoing { segments: &segments, skip_bytes: 0, token: 1 }]).map_err(text)?;
        self.completions(1, CompletionKind::Send)?;
        let mut received = vec![0; bytes.len()];
        self.peer.read_exact(&mut received).map_err(text)?;
        if received == bytes { Ok(()) } else { Err("other bytes arrived".to_string()) }
    }
}

fn try_ring(taskrun: TaskRun) -> Result<String, String> {
    let mut bench = Bench::new(&RingSettings { taskrun, ..small_settings() })?;
    bench.send_one(b"one batch")?;
    let features = bench.ring.features();
    Ok(format!("{} entries, {} completions", features.sq_entries, features.cq_entries))
}

fn try_sqpoll() -> Result<String, String> {
    let settings = RingSettings { taskrun: TaskRun::Interrupt, sqpoll_idle_ms: Some(1), ..small_settings() };
    Bench::new(&settings)?.send_one(b"one batch")?;
    Ok("works; it keeps a core busy".to_string())
}

fn try_read(read: ReadMode) -> Result<String, String> {
    let registered_buffers = read == ReadMode::ReadFixed;
    let mut bench = Bench::new(&RingSettings { read, registered_buffers, ..small_settings() })?;
    let chunk = bench.ring.slab_mut().take(Class::Rx).ok_or("no free chunk")?;
    let words: [&[u8]; 2] = [b"to be ", b"continued"];
    for word in words {
        bench.ring.read(&bench.socket, chunk, 1).map_err(text)?;
        bench.peer.write_all(word).map_err(text)?;
        bench.completions(1, CompletionKind::Read)?;
    }
    let read = bench.ring.slab().filled(chunk) == words.concat();
    if read { Ok("bytes arrive behind one another in one chunk".to_string()) } else { Err("other bytes".to_string()) }
}

/// Four linked batches through socket buffers that hold a fraction of one, to a reader who begins late.
fn try_linked_sends() -> Result<String, String> {
    let mut bench = Bench::new(&small_settings())?;
    bench.socket.set_send_buffer(4096).map_err(text)?;
    let parts: Vec<Vec<u8>> = (1..=4u8).map(|i| vec![i; LAYOUT.tx_chunk_bytes]).collect();
    let segments: Vec<[Segment; 1]> =
        parts.iter().map(|part| bench.segment(part).map(|segment| [segment])).collect::<Result<_, String>>()?;
    let chain: Vec<Outgoing<'_>> =
        segments.iter().map(|segments| Outgoing { segments, skip_bytes: 0, token: 0 }).collect();
    let mut peer = bench.peer.try_clone().map_err(text)?;
    let expected = parts.concat();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        let mut received = vec![0; expected.len()];
        peer.read_exact(&mut received).map(|()| received == expected)
    });
    bench.ring.send(&bench.socket, &chain).map_err(text)?;
    let sent = bench.completions(chain.len(), CompletionKind::Send)?;
    match reader.join() {
        Ok(Ok(true)) if sent.iter().all(|n| *n as usize == LAYOUT.tx_chunk_bytes) => {
            Ok("whole and in order".to_string())
        }
        Ok(Ok(true)) => Err(format!("sends came out short: {sent:?}")),
        Ok(Ok(false)) => Err("the bytes arrived in another order".to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the reader panicked".to_string()),
    }
}

fn try_wake() -> Result<String, String> {
    let mut bench = Bench::new(&small_settings())?;
    let waker = bench.ring.waker();
    let other = std::thread::spawn(move || waker.wake());
    bench.completions(1, CompletionKind::Wake)?;
    other.join().map(|()| "from another thread".to_string()).map_err(|_| "the waking thread panicked".to_string())
}

/// A chunk written to a file without a name, and read back from there.
fn try_file() -> Result<String, String> {
    let dir = std::env::temp_dir();
    let file = UnnamedFile::open(&dir).map(Rc::new).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut bench = Bench::new(&small_settings())?;
    let Segment::Chunk { chunk: written, len, .. } = bench.segment(b"spooled")? else {
        return Err("no free chunk".to_string());
    };
    bench.ring.write_file(&file, written, (0, len), 4096, 1).map_err(text)?;
    bench.completions(1, CompletionKind::FileWrite)?;
    let read = bench.ring.slab_mut().take(Class::Rx).ok_or("no free chunk")?;
    bench.ring.read_file(&file, read, len as usize, 4096, 1).map_err(text)?;
    bench.completions(1, CompletionKind::FileRead)?;
    if bench.ring.slab().filled(read) != b"spooled" {
        return Err("other bytes".to_string());
    }
    bench.ring.punch_file(&file, 0, 8192, 1).map_err(text)?;
    let punched = bench.completions(1, CompletionKind::FilePunch).is_ok();
    let note = if punched { "" } else { "; space is given back at the end only" };
    Ok(format!("written and read back in {}{note}", dir.display()))
}

fn try_huge_pages() -> Result<String, String> {
    let settings = RingSettings { huge_pages: true, ..small_settings() };
    let layout = SlabLayout { rx_chunk_bytes: 1 << 20, rx_chunks: 4, tx_chunk_bytes: 0, tx_chunks: 0 };
    let bytes = Ring::new(&settings, layout).map_err(text)?.features().huge_page_bytes;
    match bytes {
        Some(bytes @ 1..) => Ok(format!("{bytes} of {} bytes", layout.rx_chunk_bytes * layout.rx_chunks)),
        Some(0) => Err("none (see /sys/kernel/mm/transparent_hugepage/enabled)".to_string()),
        None => Err("/proc does not tell".to_string()),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (release, older) in [
            ("6.1.0-13-amd64", false),
            ("6.0.19", true),
            ("5.15.0-91-generic", true),
            ("6.18.44-fc-v657", false),
            ("10.0", false),
            ("6.10-rc1", false),
            ("strange", false),
            ("", false),
        ] {
            assert_eq!(is_older(release, KERNEL_FLOOR), older, "{release}");
        }
    }

    #[test]
    fn what_keeps_the_tool_from_starting_comes_with_its_remedy() {
        assert!(judge_kernel("5.15.0-91-generic".into()).unwrap_err().contains("6.1 or newer"));
        assert!(judge_switch(Some(2)).unwrap_err().contains("sysctl kernel.io_uring_disabled=0"));
        assert!(judge_switch(Some(1)).is_ok() && judge_switch(None).is_ok());
    }

    #[test]
    fn the_self_test_passes_where_these_tests_run() {
        let checks = self_test();
        for check in &checks {
            println!("{:20} {:?} {}", check.name, check.outcome, check.detail);
            assert_ne!(check.outcome, Outcome::Failed, "{check:?}");
        }
        assert!(checks.len() > 10);
    }

    #[test]
    fn errors_of_set_up_are_told_apart() {
        use crate::uring::setup::setup_error;
        let told = |errno| setup_error(std::io::Error::from_raw_os_error(errno), "6.1.0", "DEFER_TASKRUN");
        assert!(matches!(told(libc::ENOSYS), UringError::Missing { .. }));
        assert!(matches!(told(libc::EINVAL), UringError::FlagsRefused { .. }));
        assert!(matches!(told(libc::EMFILE), UringError::System { .. }));
        if io_uring_disabled().unwrap_or(0) == 0 {
            assert!(matches!(told(libc::EPERM), UringError::Forbidden { .. }));
        }
        let text = UringError::Disabled { value: 2 }.to_string();
        assert!(text.contains("for everybody") && text.contains("sysctl"), "{text}");
        let text = UringError::MemoryLocked { needed_bytes: 64 << 20, limit_bytes: Some(8 << 20) }.to_string();
        for word in
            ["RLIMIT_MEMLOCK", "8388608", "67108864", "ulimit -l 65536", "LimitMEMLOCK", "--registered-buffers off"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
