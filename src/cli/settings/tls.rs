//! From the TLS settings of one side to what the engine connects with.
//!
//! In: the values, the URL's host, and whether the URL asks for TLS. Out: a [`TlsClient`] with its files read, or none.
//! Invariant: TLS settings without a URL for TLS are refused, so that nobody believes a plain connection to be safe.

use super::error::UsageError;
use super::layers::Values;
use super::table::{self, Setting};
use crate::engine::tls::{TlsClient, TlsFiles, TlsPart, TlsSetupError};

/// The settings of one side.
pub struct Side {
    name: &'static str,
    url: &'static Setting,
    ca: &'static Setting,
    cert: &'static Setting,
    key: &'static Setting,
    server_name: &'static Setting,
    danger: &'static Setting,
}

pub const SOURCE: Side = Side {
    name: "source",
    url: &table::SOURCE,
    ca: &table::SOURCE_TLS_CA,
    cert: &table::SOURCE_TLS_CERT,
    key: &table::SOURCE_TLS_KEY,
    server_name: &table::SOURCE_TLS_SERVER_NAME,
    danger: &table::SOURCE_TLS_DANGER,
};

pub const TARGET: Side = Side {
    name: "target",
    url: &table::TARGET,
    ca: &table::TARGET_TLS_CA,
    cert: &table::TARGET_TLS_CERT,
    key: &table::TARGET_TLS_KEY,
    server_name: &table::TARGET_TLS_SERVER_NAME,
    danger: &table::TARGET_TLS_DANGER,
};

/// Reads the files of one side.
pub fn client(values: &mut Values, side: &Side, host: &str, over_tls: bool) -> Result<Option<TlsClient>, UsageError> {
    if !over_tls {
        let files =
            [side.ca, side.cert, side.key, side.server_name].into_iter().filter(|setting| values.is_given(setting));
        let danger = values.switch(side.danger)?.then_some(side.danger);
        return match files.chain(danger).next() {
            Some(setting) => Err(UsageError::Combination(format!(
                "{} has no effect on a plain connection; for TLS begin {} with {}",
                setting.name,
                side.url.name,
                if side.name == "source" { "dragonflys://" } else { "rediss:// or valkeys://" },
            ))),
            None => Ok(None),
        };
    }
    let danger_accept_any_cert = values.switch(side.danger)?;
    if danger_accept_any_cert && values.is_given(side.ca) {
        return Err(UsageError::Combination(format!(
            "{} makes {} useless; leave one of them out",
            side.danger.name, side.ca.name
        )));
    }
    if danger_accept_any_cert {
        values.warn(format!(
            "{} is on: the {}'s certificate is not checked, and whoever is in between can read and change everything",
            side.danger.name, side.name
        ));
    }
    let files = TlsFiles {
        ca: values.path(side.ca),
        cert: values.path(side.cert),
        key: values.path(side.key),
        server_name: values.texts(side.server_name).first().cloned(),
        danger_accept_any_cert,
    };
    if let Some(key) = &files.key {
        values.warn_if_readable(key);
    }
    let client = TlsClient::new(side.name, files).map_err(|error| wrong(values, side, error))?;
    // A name that no certificate can bear is better found now than at the first connection.
    if let Err(reason) = client.session(host) {
        return Err(UsageError::Combination(format!("{}: {reason}; see {}", side.url.name, side.server_name.name)));
    }
    Ok(Some(client))
}

fn wrong(values: &Values, side: &Side, error: TlsSetupError) -> UsageError {
    let setting = match error.part {
        TlsPart::Ca => side.ca,
        TlsPart::Cert => side.cert,
        TlsPart::Key => side.key,
        TlsPart::ServerName => side.server_name,
    };
    values.wrong(setting, &error.reason)
}
