//! TLS as a client, without I/O: what was configured, and one session that turns plaintext into records and back.
//!
//! In: certificate files and a server name; then received ciphertext, and plaintext to be sent. Out: plaintext, ciphertext,
//! and errors that name cause and remedy. Invariants: a certificate that is not checked against a CA and the server's name
//! is accepted only where the operator wrote `danger`; nothing that a peer sends makes a buffer grow beyond a few records;
//! every connection has a session of its own, verified anew.

mod danger;
mod explain;

use explain::{explain, is_verdict};

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore};
use std::io::{IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Plaintext sealed in one go, at most; rustls is told the same limit for what it keeps.
pub const SEAL_BYTES_MAX: usize = 256 * 1024;

/// What the operator said about one side's TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TlsFiles {
    /// Certificates of the authorities to trust; None: those of the system.
    pub ca: Option<PathBuf>,
    /// Our own certificate chain, and its key.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must bear, where it is not the host that is connected to.
    pub server_name: Option<String>,
    pub danger_accept_any_cert: bool,
}

/// Which of the settings is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPart {
    Ca,
    Cert,
    Key,
    ServerName,
}

/// A configuration that cannot be used. Never holds the contents of a file.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct TlsSetupError {
    pub part: TlsPart,
    pub reason: String,
}

/// TLS to one side: files read, keys matched. Shown and serialized as [`TlsFiles`] alone.
#[derive(Clone)]
pub struct TlsClient {
    side: &'static str,
    files: TlsFiles,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(f)
    }
}

impl serde::Serialize for TlsClient {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.files.serialize(s)
    }
}

impl TlsClient {
    /// Reads the files. `side` is `source` or `target`, for the names of settings in errors.
    pub fn new(side: &'static str, files: TlsFiles) -> Result<Self, TlsSetupError> {
        if let Some(name) = &files.server_name {
            server_name(name).map_err(|reason| TlsSetupError { part: TlsPart::ServerName, reason })?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsSetupError { part: TlsPart::Ca, reason: e.to_string() })?;
        let builder = if files.danger_accept_any_cert {
            danger::accept_any_cert(builder, provider)
        } else {
            builder.with_root_certificates(authorities(files.ca.as_deref())?)
        };
        let mut config = match (&files.cert, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert).map_err(|reason| TlsSetupError { part: TlsPart::Cert, reason })?;
                let key = private_key(key).map_err(|reason| TlsSetupError { part: TlsPart::Key, reason })?;
                builder.with_client_auth_cert(chain, key).map_err(|e| TlsSetupError {
                    part: TlsPart::Key,
                    reason: format!("the key and the certificate do not go together ({e})"),
                })?
            }
            (Some(_), None) => return Err(alone(TlsPart::Cert, "the certificate is of no use without its key")),
            (None, Some(_)) => return Err(alone(TlsPart::Key, "the key is of no use without its certificate")),
        };
        config.resumption = Resumption::disabled();
        Ok(Self { side, files, config: Arc::new(config) })
    }

    /// For a server whose certificate must bear this name, unless the operator said another.
    pub fn naming(&self, name: &str) -> Self {
        let mut this = self.clone();
        this.files.server_name.get_or_insert_with(|| name.to_string());
        this
    }

    /// `source` or `target`.
    pub fn side(&self) -> &'static str {
        self.side
    }

    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// A new session with the server at `host`, about to shake hands.
    pub fn session(&self, host: &str) -> Result<Session, String> {
        let name = server_name(self.files.server_name.as_deref().unwrap_or(host))?;
        let mut connection = ClientConnection::new(self.config.clone(), name).map_err(|e| explain(&e, self.side))?;
        connection.set_buffer_limit(Some(SEAL_BYTES_MAX));
        Ok(Session { connection, side: self.side, closed: false, failure: None })
    }
}

fn alone(part: TlsPart, reason: &str) -> TlsSetupError {
    TlsSetupError { part, reason: reason.into() }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    // A zone (`fe80::1%eth0`) is our own business, and in no certificate.
    let bare = name.split_once('%').map_or(name, |(address, _)| address);
    ServerName::try_from(bare.to_string())
        .map_err(|_| format!("{name:?} is neither a DNS name nor an IP address that a certificate could bear"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = |e: rustls::pki_types::pem::Error| match e {
        rustls::pki_types::pem::Error::Io(cause) => format!("it cannot be read: {cause}"),
        e => format!("it is no PEM file: {e}"),
    };
    let all: Vec<_> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if all.is_empty() { Err("it holds no certificate in PEM form".into()) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| match e {
        rustls::pki_types::pem::Error::Io(cause) => format!("it cannot be read: {cause}"),
        // The error's own text might show a line of the file.
        _ => "it holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1, without a passphrase)".into(),
    })
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, TlsSetupError> {
    let wrong = |reason: String| TlsSetupError { part: TlsPart::Ca, reason };
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            for certificate in certificates(path).map_err(wrong)? {
                roots.add(certificate).map_err(|e| wrong(format!("a certificate in it cannot be used: {e}")))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // Some that cannot be parsed are usual, and no harm.
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(wrong(
                    "this system has no CA certificates (package ca-certificates, or SSL_CERT_FILE); name a file with the \
                     CA that signed the server's certificate"
                        .into(),
                ));
            }
        }
    }
    Ok(roots)
}

/// One TLS connection's state. No socket: bytes in, bytes out.
pub struct Session {
    connection: ClientConnection,
    side: &'static str,
    /// The peer ended the stream in proper form, and everything before that was given out.
    closed: bool,
    failure: Option<Failure>,
}

#[derive(Clone)]
struct Failure {
    text: String,
    is_verdict: bool,
}

impl Session {
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Something waits to be written that is no data: handshake, alerts.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// The peer said that nothing more will come.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// It failed because one side does not accept the other: another try ends alike until somebody changes that.
    pub fn is_refused(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.is_verdict)
    }

    /// As `TLSv1.3, TLS13_AES_256_GCM_SHA384`, once the handshake is done.
    pub fn description(&self) -> String {
        let version = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "?",
        };
        let suite = self.connection.negotiated_cipher_suite().map(|suite| suite.suite());
        format!("{version}, {}", suite.and_then(|suite| suite.as_str()).unwrap_or("?"))
    }

    /// Decrypts from the front of `received`, which is moved forward, into `out`. Returns the bytes written; 0 means that
    /// `received` is used up, that the peer closed, or that `out` is empty. What does not fit comes at the next call.
    /// After an error, whose text names cause and remedy, it stays an error.
    pub fn open(&mut self, received: &mut &[u8], out: &mut [u8]) -> Result<usize, String> {
        let mut written = 0;
        loop {
            while written < out.len() && !self.closed {
                match self.connection.reader().read(&mut out[written..]) {
                    Ok(0) => self.closed = true,
                    Ok(bytes) => written += bytes,
                    Err(_) => break,
                }
            }
            // What was decrypted before a failure comes out first.
            if written == out.len() || self.closed {
                return Ok(written);
            }
            if let Some(failure) = &self.failure {
                return if written > 0 { Ok(written) } else { Err(failure.text.clone()) };
            }
            if received.is_empty() {
                return Ok(written);
            }
            let handshaking = self.is_handshaking();
            let broken = |e: std::io::Error| Failure { text: e.to_string(), is_verdict: false };
            let taken = self.connection.read_tls(received).map_err(broken);
            let processed = taken.and_then(|_| {
                let side = self.side;
                self.connection.process_new_packets().map(drop).map_err(|error| Failure {
                    text: explain(&error, side),
                    is_verdict: is_verdict(&error, handshaking),
                })
            });
            if let Err(failure) = processed {
                self.failure = Some(failure);
                *received = &[];
            }
        }
    }

    /// Encrypts the front of `plain`, at most [`SEAL_BYTES_MAX`], and appends the records, and what else waits, to `out`.
    /// Returns the plaintext bytes taken; none are if the session is at its end.
    pub fn seal(&mut self, plain: &[IoSlice<'_>], out: &mut impl Write) -> usize {
        let taken = self.connection.writer().write_vectored(plain).unwrap_or(0);
        self.take_output(out);
        taken
    }

    /// Appends what waits to be written to `out`.
    pub fn take_output(&mut self, out: &mut impl Write) {
        while self.connection.wants_write() {
            // Writing to memory cannot fail.
            if self.connection.write_tls(out).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
