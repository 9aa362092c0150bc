//! What a TLS error means for the operator: cause, what to do about it, and whether another try may end otherwise.
//!
//! In: rustls' error, and the side, whose name the settings bear. Out: one sentence, without the peer's address, which the
//! caller knows. Names that a certificate holds are escaped before they are shown.

use rustls::{AlertDescription, CertificateError, Error};

/// Names of a certificate that are shown.
const NAMES_MAX: usize = 8;

pub fn explain(error: &Error, side: &str) -> String {
    match error {
        Error::InvalidCertificate(cause) => certificate(cause, side),
        Error::InvalidMessage(_) => format!(
            "what came is no TLS ({error}): the server speaks plain text on this port; give the port for TLS, or a URL \
             without TLS"
        ),
        Error::AlertReceived(alert) => refused(*alert, side),
        Error::PeerIncompatible(cause) => format!(
            "there is no common form of TLS ({cause:?}): TLS 1.2 or 1.3 is needed, with an ECDHE key exchange and AES-GCM or \
             ChaCha20-Poly1305"
        ),
        Error::DecryptError => "a record was forged or damaged on the way (its check failed)".into(),
        error => error.to_string(),
    }
}

/// One side does not accept the other, as it is configured: so will every later try end, until somebody changes a certificate
/// or a setting. Any other error is of this one connection. `handshaking`: the session had not begun.
pub fn is_verdict(error: &Error, handshaking: bool) -> bool {
    match error {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::PeerIncompatible(_) => true,
        // A port for plain text; later it is a record that was damaged.
        Error::InvalidMessage(_) => handshaking,
        Error::AlertReceived(alert) => matches!(
            alert,
            AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::AccessDenied
                | AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::UnrecognisedName
        ),
        _ => false,
    }
}

fn certificate(cause: &CertificateError, side: &str) -> String {
    match cause {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired (or this machine's clock is wrong): renew it at the server".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: look at the clocks of both machines".into()
        }
        CertificateError::UnknownIssuer => format!(
            "the server's certificate was signed by an unknown CA: give that CA's certificate with --{side}-tls-ca (if the \
             certificate is self-signed, that file itself)"
        ),
        CertificateError::NotValidForName => {
            format!("the server's certificate bears another name: see --{side}-tls-server-name")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().take(NAMES_MAX).map(|name| name.escape_debug().to_string().replace("\\\"", "\"")).collect();
            let names = if names.is_empty() { "no name at all".into() } else { names.join(", ") };
            format!(
                "the server's certificate is not for {:?} (it is for {names}): connect by that name, or give the right one \
                 with --{side}-tls-server-name",
                expected.to_str()
            )
        }
        CertificateError::Revoked => "the server's certificate was revoked".into(),
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server shows a CA's certificate as its own: give the server a certificate of its own, signed by that CA".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not meant for servers (extended key usage)".into()
        }
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

/// The server ended the session, and said why.
fn refused(alert: AlertDescription, side: &str) -> String {
    let own = format!("--{side}-tls-cert and --{side}-tls-key");
    match alert {
        AlertDescription::CertificateRequired => {
            format!("the server wants a certificate from its clients: give {own}")
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            format!("the server does not accept our certificate ({alert:?}): it trusts another CA; see {own}")
        }
        AlertDescription::CertificateExpired | AlertDescription::CertificateRevoked => {
            format!("the server says that our certificate has expired or was revoked: see {own}")
        }
        AlertDescription::HandshakeFailure => format!(
            "the server refused the handshake: it wants a client's certificate ({own}), or no form of TLS is common"
        ),
        AlertDescription::ProtocolVersion => "the server has neither TLS 1.2 nor 1.3".into(),
        AlertDescription::UnrecognisedName => {
            format!("the server does not know the name that was asked for: see --{side}-tls-server-name")
        }
        alert => format!("the server ended the TLS session ({alert:?}); its log may say why"),
    }
}
