//! Word to systemd, where it started the program as a service of type `notify`.
//!
//! In: a state such as `READY=1`. Out: one datagram to the socket named in `NOTIFY_SOCKET`. Without that variable nothing
//! is sent; a socket that cannot be reached is logged and is no failure of the run.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells systemd that the target is in step.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, b"READY=1\nSTATUS=in step\n") {
        tracing::warn!("systemd cannot be told that the target is in step: {error}");
    }
}

/// `socket`: a path, or `@name` in the abstract namespace.
fn send(socket: &OsStr, state: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_a_socket_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("df2redis-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, listener) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ] {
            send(&socket, b"READY=1\n").unwrap();
            let mut received = [0; 64];
            let len = listener.recv(&mut received).unwrap();
            assert_eq!(&received[..len], b"READY=1\n");
        }
    }
}
