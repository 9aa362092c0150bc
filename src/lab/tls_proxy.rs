//! TLS in front of a plain server, as `stunnel` would: for simulated sources, which speak plain text themselves.
//!
//! In: a server's port, and the certificate files to show. Each connection gets two threads that share one session: one
//! decrypts what the client sends, the other encrypts what the server answers. Blocking, and not made to be fast. The
//! session is rustls' server side, so it is not what the tool's own side runs on.

use super::LabError;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the proxy shows, and asks for.
#[derive(Clone, Debug, Default)]
pub struct TlsProxyOptions {
    /// PEM files.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate signed by one of these.
    pub client_ca: Option<PathBuf>,
    /// TLS 1.2 alone; else 1.3 alone.
    pub tls12: bool,
    /// The server renews its keys after so many records (TLS 1.3), and asks the client to do the same.
    pub key_update_every: Option<u64>,
}

/// A running proxy. Dropping it closes everything.
pub struct TlsProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    config: Arc<ServerConfig>,
    key_update_every: Option<u64>,
    stopping: AtomicBool,
    sessions_count: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl TlsProxy {
    /// In front of the server on `port` of 127.0.0.1.
    pub fn start(port: u16, options: &TlsProxyOptions) -> Result<Self, LabError> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            config: Arc::new(config(options)?),
            key_update_every: options.key_update_every,
            stopping: AtomicBool::new(false),
            sessions_count: AtomicU64::new(0),
            streams: Mutex::default(),
        });
        let accepted = shared.clone();
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepted)));
        Ok(Self { shared, address, accepting })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sessions whose handshake was completed.
    pub fn sessions_count(&self) -> u64 {
        self.shared.sessions_count.load(Ordering::Relaxed)
    }

    /// Closes every connection that is open now; new ones are served.
    pub fn drop_all(&self) {
        for stream in lock(&self.shared.streams).drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
        self.drop_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn config(options: &TlsProxyOptions) -> Result<ServerConfig, LabError> {
    let wrong = |path: &Path, e: String| LabError::File { path: path.to_owned(), source: io::Error::other(e) };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, LabError> {
        let all = CertificateDer::pem_file_iter(path).and_then(|all| all.collect::<Result<Vec<_>, _>>());
        all.map_err(|e| wrong(path, e.to_string()))
    };
    let provider = Arc::new(ring::default_provider());
    let versions = [if options.tls12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 }];
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|e| wrong(&options.cert, e.to_string()))?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| wrong(path, e.to_string()))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&options.key).map_err(|e| wrong(&options.key, e.to_string()))?;
    builder.with_single_cert(certificates(&options.cert)?, key).map_err(|e| wrong(&options.cert, e.to_string()))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept() else { continue };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // The tool sees a connection that ends; what it makes of it is what tests look at.
            let _ = serve(&shared, &client);
            client.shutdown(Shutdown::Both).ok();
        });
    }
}

fn serve(shared: &Arc<Shared>, client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    lock(&shared.streams).push(client.try_clone()?);
    let mut session = ServerConnection::new(shared.config.clone()).map_err(io::Error::other)?;
    session.set_buffer_limit(None);
    let mut wire = client;
    while session.is_handshaking() {
        session.complete_io(&mut wire)?;
    }
    shared.sessions_count.fetch_add(1, Ordering::Relaxed);
    let server = TcpStream::connect(shared.server)?;
    server.set_nodelay(true)?;
    lock(&shared.streams).push(server.try_clone()?);
    let session = Arc::new(Mutex::new(session));
    let (theirs, answers, to_client) = (session.clone(), server.try_clone()?, client.try_clone()?);
    let every = shared.key_update_every;
    let encrypting = std::thread::spawn(move || {
        let _ = encrypt(&theirs, &answers, &to_client, every);
        to_client.shutdown(Shutdown::Both).ok();
    });
    let result = decrypt(&session, client, &server);
    server.shutdown(Shutdown::Both).ok();
    encrypting.join().ok();
    result
}

/// From the client to the server, until an end.
fn decrypt(session: &Mutex<ServerConnection>, mut client: &TcpStream, mut server: &TcpStream) -> io::Result<()> {
    let (mut buffer, mut plain) = (vec![0; 64 << 10], Vec::new());
    let mut count = 0;
    loop {
        let mut rest = &buffer[..count];
        let mut locked = lock(session);
        // At first for what came with the end of the handshake.
        loop {
            let state = locked.process_new_packets().map_err(io::Error::other);
            while locked.wants_write() {
                locked.write_tls(&mut client)?;
            }
            let from = plain.len();
            plain.resize(from + state?.plaintext_bytes_to_read(), 0);
            locked.reader().read_exact(&mut plain[from..])?;
            if rest.is_empty() {
                break;
            }
            locked.read_tls(&mut rest)?;
        }
        drop(locked);
        server.write_all(&plain)?;
        plain.clear();
        count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// From the server to the client, until an end.
fn encrypt(
    session: &Mutex<ServerConnection>,
    mut server: &TcpStream,
    mut client: &TcpStream,
    key_update_every: Option<u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut records = 0u64;
    loop {
        let count = server.read(&mut buffer)?;
        let mut session = lock(session);
        if count == 0 {
            session.send_close_notify();
        } else {
            records += 1;
            if key_update_every.is_some_and(|every| records.is_multiple_of(every)) {
                session.refresh_traffic_keys().map_err(io::Error::other)?;
            }
            session.writer().write_all(&buffer[..count])?;
        }
        while session.wants_write() {
            session.write_tls(&mut client)?;
        }
        if count == 0 {
            return Ok(());
        }
    }
}
