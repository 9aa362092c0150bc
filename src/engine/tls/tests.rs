//! A session against rustls' server side, in memory: every way of cutting the bytes, and bytes that were tampered with.

use super::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, ServerConnection};

struct World {
    client: Session,
    server: ServerConnection,
}

fn world(tls12: bool) -> World {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, certificate.pem()).unwrap();
    let files = TlsFiles { ca: Some(ca), server_name: Some("a.example".into()), ..TlsFiles::default() };
    let client = TlsClient::new("target", files).unwrap();
    let version = if tls12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    server.set_buffer_limit(None);
    let mut world = World { client: client.session("10.0.0.1").unwrap(), server };
    while world.client.is_handshaking() || world.server.is_handshaking() {
        world.push_to_server().unwrap();
        let said = world.pull_from_server();
        let mut rest = &said[..];
        assert_eq!(world.client.open(&mut rest, &mut [0; 16]), Ok(0));
    }
    world
}

impl World {
    fn push_to_server(&mut self) -> Result<(), rustls::Error> {
        let mut bytes = Vec::new();
        self.client.take_output(&mut bytes);
        self.feed_server(&bytes)
    }

    fn feed_server(&mut self, bytes: &[u8]) -> Result<(), rustls::Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            self.server.process_new_packets()?;
        }
        Ok(())
    }

    fn pull_from_server(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn say(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.server.writer().write_all(bytes).unwrap();
        self.pull_from_server()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) >> 3) as u8).collect()
}

#[test]
fn plaintext_comes_out_whole_however_it_is_cut() {
    for tls12 in [false, true] {
        for (fed, room) in [(1, 16_384), (7, 1), (5000, 3000), (usize::MAX, 100_000), (16_406, 16_384), (usize::MAX, 5)]
        {
            let mut world = world(tls12);
            let all = pattern(70_000);
            let sealed = world.say(&all);
            let (mut got, mut out) = (Vec::new(), vec![0; room]);
            for piece in sealed.chunks(fed.min(sealed.len())) {
                let mut rest = piece;
                loop {
                    let bytes = world.client.open(&mut rest, &mut out).unwrap();
                    got.extend_from_slice(&out[..bytes]);
                    if bytes == 0 {
                        assert!(rest.is_empty(), "0 means that everything was taken");
                        break;
                    }
                }
            }
            assert!(got == all, "TLS 1.2 {tls12}, {fed} at once, room for {room}");
        }
    }
}

#[test]
fn what_is_sealed_is_bounded_and_arrives() {
    let mut world = world(false);
    let all = pattern(SEAL_BYTES_MAX * 2 + 77);
    let (head, tail) = all.split_at(1001);
    let mut sent = 0;
    let mut got = Vec::new();
    while sent < all.len() {
        let mut out = Vec::new();
        let slices = match sent {
            0 => vec![IoSlice::new(head), IoSlice::new(tail)],
            _ => vec![IoSlice::new(&all[sent..])],
        };
        let taken = world.client.seal(&slices, &mut out);
        assert!(
            taken > 0 && taken <= SEAL_BYTES_MAX && out.len() <= taken + taken / 128 + 512,
            "{taken} {}",
            out.len()
        );
        sent += taken;
        for piece in out.chunks(10_000) {
            world.feed_server(piece).unwrap();
            let _ = world.server.reader().read_to_end(&mut got);
        }
    }
    assert!(got == all);
}

#[test]
fn new_keys_are_followed_in_both_directions() {
    let mut world = world(false);
    for round in 0..20 {
        world.server.refresh_traffic_keys().unwrap();
        let sealed = world.say(&[round; 100]);
        let mut out = [0; 200];
        let mut rest = &sealed[..];
        assert_eq!(world.client.open(&mut rest, &mut out), Ok(100));
        assert_eq!(world.client.open(&mut rest, &mut out), Ok(0));
        let mut answer = Vec::new();
        assert_eq!(world.client.seal(&[IoSlice::new(&[round; 50])], &mut answer), 50);
        world.feed_server(&answer).unwrap();
        let mut got = [0; 50];
        world.server.reader().read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 50]);
    }
}

/// Any bit: an error, never other bytes; what stood before it comes out first.
#[test]
fn a_changed_bit_is_an_error_that_stays() {
    for at in [0, 1, 3, 4, 5, 60, 1000] {
        let mut world = world(false);
        let mut sealed = world.say(&[1; 500]);
        let good = sealed.len();
        sealed.extend(world.say(&[2; 2000]));
        sealed[good + at] ^= 4;
        let mut rest = &sealed[..];
        let mut out = [0; 4000];
        assert_eq!(world.client.open(&mut rest, &mut out), Ok(500), "bit in byte {at}");
        assert_eq!(out[..500], [1; 500]);
        // A length that grew just waits for more.
        let more = [0x17; 20_000];
        let mut more = &more[..];
        let failure = world.client.open(&mut more, &mut out).unwrap_err();
        assert!(!failure.is_empty() && !world.client.is_refused());
        assert_eq!(world.client.open(&mut &b"x"[..], &mut out), Err(failure));
    }
}

/// What the next try would meet, too, is told from what went wrong on this connection.
#[test]
fn a_verdict_is_told_from_damage() {
    let (known, unknown) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate =
        |key: &KeyPair| CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, certificate(&known).pem()).unwrap();
    let client = TlsClient::new("target", TlsFiles { ca: Some(ca), ..TlsFiles::default() }).unwrap();
    let shown = certificate(&unknown).der().clone();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown], PrivateKeyDer::try_from(unknown.serialize_der()).unwrap())
        .unwrap();
    let server = ServerConnection::new(Arc::new(config)).unwrap();
    let mut world = World { client: client.session("a.example").unwrap(), server };
    world.push_to_server().unwrap();
    let said = world.pull_from_server();
    assert!(!world.client.is_refused());
    let error = world.client.open(&mut &said[..], &mut [0; 16]).unwrap_err();
    assert!(world.client.is_refused() && error.contains("certificate"), "{error}");

    let mut plain = client.session("a.example").unwrap();
    let error = plain.open(&mut &b"-ERR unknown command\r\n"[..], &mut [0; 16]).unwrap_err();
    assert!(plain.is_refused() && error.contains("no TLS"), "{error}");
    let internal = [0x15, 3, 3, 0, 2, 2, 80];
    let mut broken = client.session("a.example").unwrap();
    let error = broken.open(&mut &internal[..], &mut [0; 16]).unwrap_err();
    assert!(!broken.is_refused() && error.contains("InternalError"), "{error}");
}

#[test]
fn a_proper_end_is_told_from_silence() {
    let mut world = world(false);
    let mut sealed = world.say(b"last");
    world.server.send_close_notify();
    sealed.extend(world.pull_from_server());
    let mut rest = &sealed[..];
    let mut out = [0; 4];
    assert_eq!(world.client.open(&mut rest, &mut out), Ok(4));
    assert!(!world.client.is_closed());
    assert_eq!(world.client.open(&mut rest, &mut out), Ok(0));
    assert!(world.client.is_closed());
    // What comes behind it is nobody's.
    assert_eq!(world.client.open(&mut &b"more"[..], &mut out), Ok(0));
}

#[test]
fn wrong_files_are_told_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().pem();
    let other = KeyPair::generate().unwrap().serialize_pem();
    let cert = path("cert", &certificate);
    let files = TlsFiles { ca: cert.clone(), ..TlsFiles::default() };
    for (files, part, reason) in [
        (TlsFiles { ca: Some("/nonexistent".into()), ..files.clone() }, TlsPart::Ca, "cannot be read"),
        (TlsFiles { ca: path("empty", "secret text"), ..files.clone() }, TlsPart::Ca, "no certificate"),
        (TlsFiles { cert: cert.clone(), ..files.clone() }, TlsPart::Cert, "without its key"),
        (TlsFiles { key: cert.clone(), ..files.clone() }, TlsPart::Key, "without its certificate"),
        (TlsFiles { cert: cert.clone(), key: cert.clone(), ..files.clone() }, TlsPart::Key, "no private key"),
        (
            TlsFiles { cert: cert.clone(), key: path("other", &other), ..files.clone() },
            TlsPart::Key,
            "do not go together",
        ),
        (TlsFiles { server_name: Some("a b".into()), ..files.clone() }, TlsPart::ServerName, "neither"),
    ] {
        let error = TlsClient::new("target", files).map(drop).unwrap_err();
        assert_eq!(error.part, part, "{error}");
        assert!(error.reason.contains(reason) && !error.reason.contains("secret"), "{error}");
    }
    let client = TlsClient::new("target", files).unwrap();
    assert!(client.session("a b").is_err() && client.session("fe80::1%eth0").is_ok());
}
