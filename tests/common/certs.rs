//! Certificates, made anew for each test: a CA, a server's and a client's, and those that must be refused.
#![allow(dead_code)] // each test file uses a part

use df2redis::lab::tls_proxy::TlsProxyOptions;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use std::path::PathBuf;

/// PEM files in a directory of their own. `NAME.pem` and `NAME.key`.
pub struct Certs {
    dir: tempfile::TempDir,
}

impl Certs {
    /// `ca`; signed by it `server` (localhost, 127.0.0.1), `client`, `other-name`, `expired`; and `other-ca` with `stranger`.
    pub fn new() -> Self {
        let certs = Self { dir: tempfile::tempdir().unwrap() };
        let ca = certs.authority("ca");
        certs.signed("server", &ca, &["localhost", "127.0.0.1"], |_| {});
        certs.signed("client", &ca, &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        certs.signed("other-name", &ca, &["redis.example"], |_| {});
        certs.signed("expired", &ca, &["localhost", "127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let other = certs.authority("other-ca");
        certs.signed("stranger", &other, &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        certs
    }

    pub fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_str().unwrap().to_owned()
    }

    /// A proxy that shows `name` and asks for no certificate.
    pub fn proxy(&self, name: &str) -> TlsProxyOptions {
        let path = |end: &str| PathBuf::from(self.path(&format!("{name}.{end}")));
        TlsProxyOptions { cert: path("pem"), key: path("key"), ..TlsProxyOptions::default() }
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        self.write(name, &params.self_signed(&key).unwrap().pem(), &key);
        Issuer::new(params, key)
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
        self.write(name, &params.signed_by(&key, issuer).unwrap().pem(), &key);
    }

    fn write(&self, name: &str, certificate: &str, key: &KeyPair) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
        let key_path = self.path(&format!("{name}.key"));
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}
