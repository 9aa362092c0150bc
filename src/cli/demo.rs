//! `df2redis demo`: the main job with no server at hand, ending with the same report.

use super::settings::{Console, DemoSettings, UsageError, Values, resolve};
use super::{Mode, log_warnings, migrate};
use crate::engine::settings::{Endpoint, Secret};
use crate::operator::Screen;
use crate::report::ExitClass;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let demo = resolve::demo_source(values)?;
    if mode == Mode::ResolveOnly {
        resolve::demo(values, nowhere(), nowhere())?;
        return Ok(ExitClass::Done);
    }
    let servers = match start_servers(&demo) {
        Ok(servers) => servers,
        Err(message) => {
            let _ = screen.write(format!("df2redis: {message}\n").as_bytes());
            return Ok(ExitClass::Internal);
        }
    };
    let settings = resolve::demo(values, servers.source.clone(), servers.target.clone())?;
    log_warnings(values);
    let _ = screen.write(format!("{}\n", servers.description).as_bytes());
    Ok(migrate::run_watched("demo", settings, console, screen))
}

/// What the demo runs between; stops with its last handle.
struct Servers {
    source: Endpoint,
    target: Endpoint,
    /// One line for the user: what was started, and where.
    description: String,
}

fn nowhere() -> Endpoint {
    Endpoint { host: "127.0.0.1".into(), port: 0, user: Secret::default(), password: Secret::default() }
}

/// Starts the simulated source, and redis-server or the sink.
fn start_servers(demo: &DemoSettings) -> Result<Servers, String> {
    // Filled in when the lab's room is merged.
    let DemoSettings { keys, flows, seed } = demo;
    Err(format!("the simulated servers are not part of this build ({keys} keys, {flows} flows, seed {seed})"))
}
