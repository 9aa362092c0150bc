//! A connected stream socket that reads and sends of a ring refer to.
//!
//! The ring's operations hold it (through `Rc`), so its descriptor stays open until the last of them has completed, even
//! if its owner has let it go: then `shutdown` makes them complete. It is always in blocking mode: on a socket with
//! O_NONBLOCK io_uring would answer EAGAIN instead of waiting.

use std::cell::Cell;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A stream socket, TCP or Unix.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    tcp: bool,
    /// A read is in flight.
    pub(super) reading: Cell<bool>,
    /// Sends in flight (of one chain), not counting those that only wait for a zero-copy notification.
    pub(super) sending: Cell<u32>,
}

/// What the kernel knows of the machine at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSigns {
    /// It owes an acknowledgement: bytes were sent again, or a probe was sent, and nothing at all has come since. A machine whose
    /// server is busy, or takes no more bytes, acknowledges these at once.
    pub owes: bool,
    /// Since it acknowledged anything.
    pub quiet: Duration,
}

impl Socket {
    /// Whether it is TCP; only then zero-copy sends and the TCP options exist.
    pub fn is_tcp(&self) -> bool {
        self.tcp
    }

    /// Sends small segments at once (TCP_NODELAY). Nothing to do on a Unix socket.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.set_tcp(libc::TCP_NODELAY, on as libc::c_int)
    }

    /// Asks the peer for a sign of life after `idle` of silence, then each `interval`; after `probes_max` unanswered ones
    /// the connection is dead.
    pub fn set_keepalive(&self, idle: Duration, interval: Duration, probes_max: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        self.set_tcp(libc::TCP_KEEPIDLE, seconds(idle))?;
        self.set_tcp(libc::TCP_KEEPINTVL, seconds(interval))?;
        self.set_tcp(libc::TCP_KEEPCNT, probes_max.min(127) as libc::c_int)
    }

    /// The connection is dead when sent bytes stay unacknowledged for so long (TCP_USER_TIMEOUT).
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_tcp(libc::TCP_USER_TIMEOUT, timeout.as_millis().min(i32::MAX as u128) as libc::c_int)
    }

    /// What is known of the peer's machine (TCP_INFO); `None` where it is this one.
    pub fn peer_signs(&self) -> Option<PeerSigns> {
        if !self.tcp {
            return None;
        }
        let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: `info` is writable for `len` bytes, and `len` for itself.
        let outcome = unsafe {
            libc::getsockopt(self.raw(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len)
        };
        if outcome != 0 {
            return None;
        }
        // SAFETY: it holds integers alone, for which zero, of what an older kernel leaves out, is a value.
        let info = unsafe { info.assume_init() };
        // Any acknowledgement takes the count of probes back.
        let sent_again = info.tcpi_unacked > 0 && info.tcpi_retransmits > 0;
        let unanswered = info.tcpi_last_ack_recv > info.tcpi_last_data_sent;
        Some(PeerSigns {
            owes: info.tcpi_probes > 0 || sent_again && unanswered,
            quiet: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        })
    }

    /// Size of the kernel's send buffer (SO_SNDBUF; the kernel doubles it). By default the kernel tunes it.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_SNDBUF, bytes.min(i32::MAX as usize) as libc::c_int)
    }

    /// Size of the kernel's receive buffer (SO_RCVBUF; the kernel doubles it). By default the kernel tunes it.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes.min(i32::MAX as usize) as libc::c_int)
    }

    /// Ends both directions, so that everything in flight completes. An error means that the connection is gone already.
    pub fn shutdown(&self) {
        // SAFETY: the descriptor is open for as long as `self` lives.
        unsafe {
            libc::shutdown(self.raw(), libc::SHUT_RDWR);
        }
    }

    /// Ends our direction only: the peer sees the end of the stream and may still answer.
    pub fn shutdown_write(&self) {
        // SAFETY: the descriptor is open for as long as `self` lives.
        unsafe {
            libc::shutdown(self.raw(), libc::SHUT_WR);
        }
    }

    /// Whether sends are in flight: the next chain has to wait.
    pub fn is_sending(&self) -> bool {
        self.sending.get() > 0
    }

    /// Whether a read is in flight.
    pub fn is_reading(&self) -> bool {
        self.reading.get()
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Resets a TCP connection and drops what it still wanted to send, so that the kernel lets go of zero-copy memory.
    pub(super) fn reset(&self) {
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
        // SAFETY: the address is a valid sockaddr of the length given; connecting to AF_UNSPEC disconnects.
        unsafe {
            libc::connect(self.raw(), &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t);
        }
    }

    fn set_tcp(&self, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        if self.tcp { self.set(libc::IPPROTO_TCP, option, value) } else { Ok(()) }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is a valid int and `len` its size.
        let outcome = unsafe { libc::setsockopt(self.raw(), level, option, (&raw const value).cast(), len) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl From<OwnedFd> for Socket {
    /// Takes a connected stream socket over and puts it into blocking mode.
    fn from(fd: OwnedFd) -> Self {
        make_blocking(&fd);
        let tcp = matches!(option(&fd, libc::SO_DOMAIN), libc::AF_INET | libc::AF_INET6);
        Self { fd, tcp, reading: Cell::new(false), sending: Cell::new(0) }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn seconds(duration: Duration) -> libc::c_int {
    duration.as_secs().clamp(1, 32_767) as libc::c_int
}

/// An integer option of the socket level; -1 if there is none.
fn option(fd: &OwnedFd, option: libc::c_int) -> libc::c_int {
    let mut value: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes, and `len` for itself.
    unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &mut len);
    }
    value
}

fn make_blocking(fd: &OwnedFd) {
    // SAFETY: reading and setting the status flags of an open descriptor; no memory is involved.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags >= 0 && flags & libc::O_NONBLOCK != 0 {
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK);
        }
    }
}

/// A second descriptor of what `owner` has open: the connection lives on in it when the first is closed.
pub fn duplicate_fd(owner: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: `owner` is borrowed, so its descriptor stays open while it is duplicated.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }.try_clone_to_owned()
}

/// Bytes that were received and not read yet.
pub fn unread_bytes(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `count` is one that lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut count) } {
        0 => Ok(count.max(0) as usize),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A pair of connected TCP sockets over the loopback interface, for probes and tests.
pub fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let own_address = ours.local_addr()?;
    // Somebody else may have connected to the port first.
    loop {
        let (theirs, address) = listener.accept()?;
        if address == own_address {
            return Ok((ours, theirs));
        }
    }
}

/// An eventfd with close-on-exec, in blocking mode.
pub(super) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_answers_owes_nothing() {
        use std::io::Write;
        let (mut tcp, _peer) = tcp_pair().unwrap();
        tcp.set_nonblocking(true).unwrap();
        // Its buffer is full, and nobody reads: probes are answered all the same.
        while tcp.write(&[0; 64 << 10]).is_ok() {}
        let tcp = Socket::from(tcp);
        std::thread::sleep(Duration::from_millis(700));
        // One may be on its way at this moment.
        let owes = |_| tcp.peer_signs().is_some_and(|signs| signs.owes);
        assert!(!(0..100).all(owes), "{:?}", tcp.peer_signs());
        assert!(tcp.peer_signs().unwrap().quiet < Duration::from_secs(60));
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert_eq!(Socket::from(unix).peer_signs(), None);
    }

    #[test]
    fn options_fit_the_kind_of_socket() {
        let (tcp, _peer) = tcp_pair().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = Socket::from(tcp);
        assert!(tcp.is_tcp());
        let (unix, _peer) = UnixStream::pair().unwrap();
        let unix = Socket::from(unix);
        assert!(!unix.is_tcp());
        for socket in [&tcp, &unix] {
            socket.set_nodelay(true).unwrap();
            socket.set_keepalive(Duration::from_secs(300), Duration::from_secs(30), 4).unwrap();
            socket.set_user_timeout(Duration::from_secs(30)).unwrap();
            socket.set_send_buffer(64 * 1024).unwrap();
            // SAFETY: reads the status flags of an open descriptor.
            let flags = unsafe { libc::fcntl(socket.raw(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0);
        }
        let mut idle: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `idle` and `len` are writable.
        unsafe {
            libc::getsockopt(tcp.raw(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, (&raw mut idle).cast(), &mut len);
        }
        assert_eq!(idle, 300);
    }
}
