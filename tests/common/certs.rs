//! Certificates, made anew for each test: a CA, a server's and a client's, and those that must be refused.
#![allow(dead_code)] // each test file uses a part

use df2redis::lab::servers::ServerOptions;
use df2redis::lab::tls_proxy::TlsProxyOptions;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use std::path::PathBuf;

/// PEM files in a directory of their own. `NAME.pem` and `NAME.key`.
pub struct Certs {
    dir: tempfile::TempDir,
    ca: Issuer<'static, KeyPair>,
}

impl Certs {
    /// `ca`; signed by it `server` (localhost, 127.0.0.1), `client`, `other-name`, `expired`; and `other-ca` with `stranger` and
    /// `impostor` (as `server`).
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(&dir, "ca");
        let other = authority(&dir, "other-ca");
        let certs = Self { dir, ca };
        certs.another("server", &["localhost", "127.0.0.1"]);
        certs.signed("client", &certs.ca, &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        certs.another("other-name", &["redis.example"]);
        certs.signed("expired", &certs.ca, &["localhost", "127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        certs.signed("stranger", &other, &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        certs.signed("impostor", &other, &["localhost", "127.0.0.1"], |_| {});
        certs
    }

    /// One more, signed by `ca`, for a server of these names.
    pub fn another<S: AsRef<str>>(&self, file: &str, names: &[S]) {
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        self.signed(file, &self.ca, &names, |_| {});
    }

    /// A server that listens for TLS too, shows `name`, and asks clients for a certificate, as is its default.
    pub fn server(&self, name: &str) -> ServerOptions {
        let files = [("cert", name, "pem"), ("key", name, "key"), ("ca-cert", "ca", "pem")];
        files.iter().fold(ServerOptions { tls: true, ..ServerOptions::default() }, |options, (what, name, end)| {
            options.config(&format!("tls-{what}-file"), &self.path(&format!("{name}.{end}")))
        })
    }

    /// A node of a cluster whose nodes speak TLS to each other, too.
    pub fn node(&self) -> ServerOptions {
        let (cert, key) = (self.path("client.pem"), self.path("client.key"));
        self.server("server").config("tls-client-cert-file", &cert).config("tls-client-key-file", &key)
    }

    /// Settings of TLS to the target: the right CA, and our certificate.
    pub fn to_target(&self) -> Vec<String> {
        self.to_side("target", "ca")
    }

    /// The same to either side, with a CA of this name.
    pub fn to_side(&self, side: &str, ca: &str) -> Vec<String> {
        let files = [("ca", format!("{ca}.pem")), ("cert", "client.pem".into()), ("key", "client.key".into())];
        files.iter().flat_map(|(name, file)| [format!("--{side}-tls-{name}"), self.path(file)]).collect()
    }

    pub fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_str().unwrap().to_owned()
    }

    /// A proxy that shows `name` and asks for no certificate.
    pub fn proxy(&self, name: &str) -> TlsProxyOptions {
        let path = |end: &str| PathBuf::from(self.path(&format!("{name}.{end}")));
        TlsProxyOptions { cert: path("pem"), key: path("key"), ..TlsProxyOptions::default() }
    }

    fn signed(
        &self,
        name: &str,
        issuer: &Issuer<'static, KeyPair>,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        write(&self.dir, name, &params.signed_by(&key, issuer).unwrap().pem(), &key);
    }
}

fn authority(dir: &tempfile::TempDir, name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    write(dir, name, &params.self_signed(&key).unwrap().pem(), &key);
    Issuer::new(params, key)
}

fn write(dir: &tempfile::TempDir, name: &str, certificate: &str, key: &KeyPair) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(dir.path().join(format!("{name}.pem")), certificate).unwrap();
    let key_path = dir.path().join(format!("{name}.key"));
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
