//! Address of, and access to, one side: URL, user, password, TLS.
//!
//! In: the settings of a side. Out: an [`Endpoint`]. Passwords come from the environment, the file, a credential, or a file of
//! their own, never from the arguments.

use super::PORT_DEFAULT;
use crate::cli::settings::error::UsageError;
use crate::cli::settings::layers::{Origin, Values};
use crate::cli::settings::syntax;
use crate::cli::settings::table::{self, Setting};
use crate::cli::settings::tls;
use crate::engine::settings::{Endpoint, Secret};

/// The settings of one side's address and access.
pub(super) struct Side {
    url: &'static Setting,
    user: &'static Setting,
    password: &'static Setting,
    password_file: &'static Setting,
    schemes: &'static [&'static str],
    tls: tls::Side,
}

pub(super) static SOURCE_SIDE: Side = Side {
    url: &table::SOURCE,
    user: &table::SOURCE_USER,
    password: &table::SOURCE_PASSWORD,
    password_file: &table::SOURCE_PASSWORD_FILE,
    schemes: &["dragonfly"],
    tls: tls::SOURCE,
};

pub(super) static COMPARED_SOURCE_SIDE: Side = Side {
    url: &table::SOURCE,
    user: &table::SOURCE_USER,
    password: &table::SOURCE_PASSWORD,
    password_file: &table::SOURCE_PASSWORD_FILE,
    schemes: &["dragonfly", "redis", "valkey"],
    tls: tls::SOURCE,
};

pub(super) static TARGET_SIDE: Side = Side {
    url: &table::TARGET,
    user: &table::TARGET_USER,
    password: &table::TARGET_PASSWORD,
    password_file: &table::TARGET_PASSWORD_FILE,
    schemes: &["redis", "valkey"],
    tls: tls::TARGET,
};

/// One side's address alone, and whether it is to be reached over TLS.
pub(super) fn address(values: &Values, side: &Side) -> Result<(Endpoint, bool), UsageError> {
    let (host, port, over_tls) = values.parsed(side.url, |text| {
        let url = syntax::split_url(text)?;
        let scheme = url.scheme.to_ascii_lowercase();
        // As redis and rediss.
        let over_tls = !side.schemes.contains(&scheme.as_str());
        if over_tls && !scheme.strip_suffix('s').is_some_and(|plain| side.schemes.contains(&plain)) {
            let list = |tail: &str| {
                let known: Vec<_> = side.schemes.iter().map(|scheme| format!("{scheme}{tail}://")).collect();
                known.join(" or ")
            };
            return Err(format!("the URL must begin with {}, for TLS with {}", list(""), list("s")));
        }
        Ok((url.host.to_string(), url.port.unwrap_or(PORT_DEFAULT), over_tls))
    })?;
    let (user, password) = (Secret::default(), Secret::default());
    Ok((Endpoint { host, port, tls: None, user, password }, over_tls))
}

pub(super) fn endpoint(values: &mut Values, side: &Side) -> Result<Endpoint, UsageError> {
    let (address, over_tls) = address(values, side)?;
    let tls = tls::client(values, &side.tls, &address.host, over_tls)?;
    with_access(values, side, Endpoint { tls, ..address })
}

/// The address with its user and password.
pub(super) fn with_access(values: &mut Values, side: &Side, address: Endpoint) -> Result<Endpoint, UsageError> {
    let user = values.secret(side.user).map(|(text, _)| text.to_string());
    let password = password(values, side)?;
    if user.is_some() && password.is_none() {
        return Err(UsageError::Combination(format!(
            "{} is set without a password: set {} or {} too",
            side.user.name, side.password.name, side.password_file.name
        )));
    }
    Ok(Endpoint { user: Secret::new(user), password: Secret::new(password), ..address })
}

/// The password itself or its file, whichever layer is higher.
fn password(values: &mut Values, side: &Side) -> Result<Option<String>, UsageError> {
    /// Lower is stronger; two files are one layer.
    fn rank(origin: &Origin) -> u8 {
        match origin {
            Origin::Flag => 0,
            Origin::Environment => 1,
            Origin::Credential => 2,
            _ => 3,
        }
    }
    let direct = values.secret(side.password).map(|(text, origin)| (text.to_string(), rank(origin)));
    let file = values.path(side.password_file).zip(values.origin(side.password_file).map(rank));
    match (direct, file) {
        (Some((_, a)), Some((_, b))) if a == b => Err(UsageError::Combination(format!(
            "{} and {} are both set; set one",
            side.password.name, side.password_file.name
        ))),
        (Some((_, a)), Some((path, b))) if b < a => values.read_password_file(&path).map(Some),
        (Some((text, _)), _) => Ok(Some(text)),
        (None, Some((path, _))) => values.read_password_file(&path).map(Some),
        (None, None) => Ok(None),
    }
}
