//! Where a job is found by operators, and where it is watched.

use super::servers::{SOURCE_SIDE, TARGET_SIDE, address};
use crate::cli::settings::error::UsageError;
use crate::cli::settings::layers::Values;
use crate::cli::settings::table;
use crate::engine::settings::{Endpoint, MigrateSettings};
use crate::engine::verify::VerifySettings;
use crate::operator::control::socket;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where a job is told what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlace {
    Off,
    /// Named by the operator: the job must not run without.
    Named(PathBuf),
    /// By source and target.
    Default(PathBuf),
}

/// The control socket of a job between these servers.
pub fn control_place(values: &Values, settings: &MigrateSettings) -> ControlPlace {
    match values.path(&table::CONTROL) {
        Some(path) if path.as_os_str() == "off" => ControlPlace::Off,
        Some(path) => ControlPlace::Named(path),
        None => ControlPlace::Default(default_socket(&settings.source, &settings.target)),
    }
}

/// The control socket of a job between the servers that are compared; none: it is not to be asked.
pub fn control_of_compared(values: &Values, settings: &VerifySettings) -> Option<PathBuf> {
    match values.path(&table::CONTROL) {
        Some(path) if path.as_os_str() == "off" => None,
        Some(path) => Some(path),
        None => Some(default_socket(&settings.source, &settings.target)),
    }
}

fn default_socket(source: &Endpoint, target: &Endpoint) -> PathBuf {
    socket::default_dir().join(socket::file_name(source, target))
}

/// Where metrics are served: a port of the loopback interface, unless told otherwise.
pub fn metrics(values: &Values) -> Result<Option<SocketAddr>, UsageError> {
    if !values.is_given(&table::METRICS) {
        return Ok(None);
    }
    values.parsed(&table::METRICS, |text| {
        let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
        match (port, text.parse::<SocketAddr>()) {
            (Ok(port), _) => Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
            (_, Ok(address)) => Ok(Some(address)),
            _ => Err("a port, or an address and a port such as 0.0.0.0:9121 or [::]:9121, is needed".into()),
        }
    })
}

/// The control socket of the job that the operator means.
pub fn control_of_job(values: &mut Values) -> Result<PathBuf, UsageError> {
    if let Some(path) = values.path(&table::CONTROL) {
        return Ok(path);
    }
    if values.is_given(&table::SOURCE) || values.is_given(&table::TARGET) {
        let ((source, _), (target, _)) = (address(values, &SOURCE_SIDE)?, address(values, &TARGET_SIDE)?);
        return Ok(default_socket(&source, &target));
    }
    match socket::found().as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(UsageError::Combination(format!(
            "no job is running (there is no control socket in {}); give --control PATH, or --source and --target of the job",
            socket::default_dir().display()
        ))),
        several => Err(UsageError::Combination(format!(
            "several jobs are running; give --control PATH with one of\n  {}",
            several.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n  ")
        ))),
    }
}
