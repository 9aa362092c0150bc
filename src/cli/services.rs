//! What serves operators beside a job: the control socket, and metrics over HTTP.

use super::settings::resolve::{ControlPlace, control_place, metrics};
use super::settings::{UsageError, Values};
use crate::engine::Service;
use crate::engine::settings::MigrateSettings;
use crate::operator::control::server;
use crate::operator::control::socket::{self, ClaimError};
use crate::operator::http;

/// The services of a job with these settings.
pub fn of_job(values: &Values, settings: &MigrateSettings) -> Result<Vec<Service>, UsageError> {
    let mut services = vec![control_socket(control_place(values, settings))];
    if let Some(address) = metrics(values)? {
        services.push(Box::new(move |control| {
            let bound = http::serve(address, control)?;
            tracing::info!(%bound, "metrics");
            Ok(())
        }));
    }
    Ok(services)
}

fn control_socket(place: ControlPlace) -> Service {
    Box::new(move |control| {
        let (path, named) = match place {
            ControlPlace::Off => return Ok(()),
            ControlPlace::Named(path) => (path, true),
            ControlPlace::Default(path) => (path, false),
        };
        match socket::claim(&path) {
            Ok((listener, file)) => {
                tracing::info!(path = %path.display(), "control socket");
                server::serve(listener, file, control);
                Ok(())
            }
            // Where nobody asked for a socket, the data matters more than it.
            Err(error @ ClaimError::Failed { .. }) if !named => {
                tracing::warn!("{error}; the run goes on without (--control PATH names another place)");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    })
}
