//! Wires on a real ring and socket pair: plain, and over TLS with a server whose records are cut in odd places.

use super::*;
use crate::engine::tls::{TlsClient, TlsFiles};
use crate::uring::{Completion, RingSettings, SlabLayout, tcp_pair};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const CHUNK: usize = 64 * 1024;

fn ring() -> Ring {
    let layout = SlabLayout { rx_chunk_bytes: CHUNK, rx_chunks: 8, tx_chunk_bytes: 4096, tx_chunks: 8 };
    let settings =
        RingSettings { registered_buffers: false, read: crate::uring::ReadMode::Recv, ..RingSettings::default() };
    Ring::new(&settings, layout).unwrap()
}

/// A wire whose peer is `serve`, in a thread of its own, after the handshake.
fn secured(serve: impl FnOnce(ServerConnection, TcpStream) + Send + 'static) -> (Wire, std::thread::JoinHandle<()>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, certificate.pem()).unwrap();
    let client = TlsClient::new("target", TlsFiles { ca: Some(ca), ..TlsFiles::default() }).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let (mut ours, mut theirs) = tcp_pair().unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    server.set_buffer_limit(None);
    let (ended, handshake_ended) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        while server.is_handshaking() {
            server.complete_io(&mut theirs).unwrap();
        }
        ended.send(()).unwrap();
        serve(server, theirs);
    });
    let mut session = client.session("a.example").unwrap();
    while session.is_handshaking() {
        let mut output = Vec::new();
        session.take_output(&mut output);
        ours.write_all(&output).unwrap();
        if session.is_handshaking() {
            // Byte by byte, so that nothing of what follows the handshake is taken along.
            let mut byte = [0];
            ours.read_exact(&mut byte).unwrap();
            assert_eq!(session.open(&mut &byte[..], &mut [0; 1]), Ok(0));
        }
    }
    let mut output = Vec::new();
    session.take_output(&mut output);
    ours.write_all(&output).unwrap();
    // What a test sends must not be taken along by the server's last read of the handshake.
    handshake_ended.recv().unwrap();
    let connected = Connected { fd: ours.into(), tls: Some(Box::new(session)) };
    (Wire::new(connected, Class::Rx), serving)
}

fn turn(ring: &mut Ring) -> Vec<Completion> {
    let mut out = Vec::new();
    for _ in 0..200 {
        ring.turn(Duration::from_millis(100), &mut out).unwrap();
        if !out.is_empty() {
            return out;
        }
    }
    panic!("nothing completes");
}

/// Reads `len` bytes into chunks of which only `room` bytes are left.
fn read_all(ring: &mut Ring, wire: &mut Wire, len: usize, room: usize) -> (Vec<u8>, u32) {
    let (mut got, mut without_kernel) = (Vec::new(), 0);
    let fresh = |ring: &mut Ring| {
        let chunk = ring.slab_mut().take(Class::Rx).unwrap();
        ring.slab_mut().advance(chunk, CHUNK - room);
        chunk
    };
    while got.len() < len {
        let chunk = fresh(ring);
        let outcome = match wire.read(ring, chunk, usize::MAX, 1).unwrap() {
            Begun::Here(outcome) => {
                without_kernel += 1;
                outcome
            }
            Begun::NoMemory => panic!("the slab is large enough"),
            Begun::InKernel => loop {
                let done = turn(ring)[0];
                if let Some(outcome) = wire.received(ring, Some(chunk), 1, done.result).unwrap() {
                    break outcome;
                }
            },
        };
        let bytes = outcome.unwrap() as usize;
        assert!(bytes > 0, "the end after {} bytes", got.len());
        got.extend_from_slice(&ring.slab().filled(chunk)[CHUNK - room..][..bytes]);
        ring.slab_mut().release(chunk);
    }
    (got, without_kernel)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) >> 3) as u8).collect()
}

#[test]
fn what_does_not_fit_comes_with_the_next_read() {
    for (room, piece) in [(CHUNK, usize::MAX), (100, usize::MAX), (CHUNK, 1000), (5000, 17)] {
        let all = pattern(150_000);
        let sent = all.clone();
        let (mut wire, serving) = secured(move |mut server, mut stream| {
            server.writer().write_all(&sent).unwrap();
            let mut sealed = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut sealed).unwrap();
            }
            // Small pieces at the front only, or it takes long.
            let (slow, fast) = sealed.split_at(if piece < 1000 { 40_000 } else { sealed.len() });
            for piece in slow.chunks(piece.min(sealed.len())).chain([fast]) {
                stream.write_all(piece).unwrap();
            }
            server.send_close_notify();
            server.write_tls(&mut stream).unwrap();
            // Until the other end is gone.
            let _ = stream.read(&mut [0; 1]);
        });
        let mut ring = ring();
        let (got, without_kernel) = read_all(&mut ring, &mut wire, all.len(), room);
        assert!(got == all, "room {room}, pieces of {piece}");
        assert!(room > 100 || without_kernel > 1000, "{without_kernel}");
        let chunk = ring.slab_mut().take(Class::Rx).unwrap();
        let end = match wire.read(&mut ring, chunk, usize::MAX, 1).unwrap() {
            Begun::Here(outcome) => outcome,
            _ => {
                let done = turn(&mut ring)[0];
                wire.received(&mut ring, Some(chunk), 1, done.result).unwrap().unwrap()
            }
        };
        assert_eq!(end, Ok(0), "a proper end");
        ring.slab_mut().release(chunk);
        wire.close(&mut ring);
        drop(ring);
        drop(wire);
        serving.join().unwrap();
    }
}

#[test]
fn completions_tell_of_plaintext_and_nothing_is_sent_twice() {
    let all = pattern(SEAL_BYTES_MAX * 2 + 12_345);
    let expected = all.clone();
    let (mut wire, serving) = secured(move |mut server, mut stream| {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            server.read_tls(&mut stream).unwrap();
            server.process_new_packets().unwrap();
            let _ = server.reader().read_to_end(&mut got);
        }
        assert!(got == expected);
    });
    let mut ring = ring();
    let segments = [
        Segment::Heap(Bytes::copy_from_slice(&all[..10])),
        Segment::Heap(Bytes::copy_from_slice(&all[10..20_000])),
        Segment::Heap(Bytes::copy_from_slice(&all[20_000..])),
    ];
    let (mut sent, mut outcomes) = (0, Vec::new());
    while sent < all.len() {
        let outgoing = Outgoing { segments: &segments, skip_bytes: sent, token: 9 };
        assert_eq!(wire.send(&mut ring, &[outgoing, outgoing]).unwrap(), 1);
        assert!(wire.is_sending());
        loop {
            let done = turn(&mut ring)[0];
            if let Some(outcome) = wire.sent(&mut ring, 9, done.result).unwrap() {
                sent += outcome.unwrap() as usize;
                outcomes.push(outcome.unwrap() as usize);
                break;
            }
        }
    }
    assert_eq!(outcomes, [SEAL_BYTES_MAX, SEAL_BYTES_MAX, 12_345]);
    assert!(!wire.is_sending() && wire.flush(&mut ring, 9).is_ok() && !wire.is_sending(), "nothing is left to be said");
    serving.join().unwrap();
}

#[test]
fn a_short_send_goes_on_with_the_same_ciphertext() {
    let (mut wire, serving) = secured(|_, mut stream| {
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw).unwrap();
        let (head, tail) = raw.split_at(raw.len() - 1000);
        assert!(head.len() > 5000 && head.ends_with(tail), "the same bytes, and no others");
    });
    let mut ring = ring();
    let segments = [Segment::Heap(Bytes::from_static(&[3; 5000]))];
    wire.send(&mut ring, &[Outgoing { segments: &segments, skip_bytes: 0, token: 9 }]).unwrap();
    let whole = turn(&mut ring)[0].result.unwrap();
    assert!(whole > 5000);
    // As if the kernel had not taken the last 1000 bytes: exactly these are sent again.
    assert_eq!(wire.sent(&mut ring, 9, Ok(whole - 1000)).unwrap(), None);
    assert_eq!(turn(&mut ring)[0].result, Ok(1000));
    assert_eq!(wire.sent(&mut ring, 9, Ok(1000)).unwrap(), Some(Ok(5000)));
    // Only this direction: what the server said and nobody read would reset the connection.
    wire.socket.shutdown_write();
    serving.join().unwrap();
}

#[test]
fn a_forged_record_is_an_error_with_a_reason() {
    let (mut wire, serving) = secured(|_, mut stream| {
        stream.write_all(&[0x17, 3, 3, 0, 40]).unwrap();
        stream.write_all(&[9; 40]).unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    let mut ring = ring();
    let chunk = ring.slab_mut().take(Class::Rx).unwrap();
    assert_eq!(wire.read(&mut ring, chunk, usize::MAX, 1).unwrap(), Begun::InKernel);
    let outcome = loop {
        let done = turn(&mut ring)[0];
        if let Some(outcome) = wire.received(&mut ring, Some(chunk), 1, done.result).unwrap() {
            break outcome;
        }
    };
    let Err(errno) = outcome else { panic!("{outcome:?}") };
    assert!(wire.reason(errno).starts_with("TLS: "), "{}", wire.reason(errno));
    drop(ring);
    drop(wire);
    serving.join().unwrap();
}

#[test]
fn a_plain_wire_is_the_ring_itself() {
    let (ours, mut theirs) = tcp_pair().unwrap();
    let mut wire = Wire::new(std::os::fd::OwnedFd::from(ours).into(), Class::Rx);
    let mut ring = ring();
    let chunk = ring.slab_mut().take(Class::Rx).unwrap();
    assert_eq!(wire.read(&mut ring, chunk, usize::MAX, 1).unwrap(), Begun::InKernel);
    theirs.write_all(b"abc").unwrap();
    let done = turn(&mut ring)[0];
    assert_eq!(wire.received(&mut ring, Some(chunk), 1, done.result).unwrap(), Some(Ok(3)));
    assert_eq!(ring.slab().filled(chunk), b"abc");
    let segments = [Segment::Heap(Bytes::from_static(b"xy"))];
    let outgoing = Outgoing { segments: &segments, skip_bytes: 0, token: 2 };
    assert_eq!(wire.send(&mut ring, &[outgoing, outgoing]).unwrap(), 2);
    let mut results = Vec::new();
    while results.len() < 2 {
        results.extend(turn(&mut ring).iter().map(|done| done.result));
    }
    assert_eq!(results, [Ok(2), Ok(2)]);
}
