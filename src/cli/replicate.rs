//! `df2redis replicate`: the main job, and then every later write.

use super::settings::{Console, UsageError, Values, resolve};
use super::{Mode, log_warnings, machine, migrate, services};
use crate::operator::Screen;
use crate::report::ExitClass;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let mut settings = resolve::replicate(values)?;
    if mode == Mode::ResolveOnly {
        log_warnings(values);
        return Ok(ExitClass::Done);
    }
    machine::fit(values, &mut settings);
    log_warnings(values);
    let services = services::of_job(values, &settings)?;
    Ok(migrate::run_watched("replicate", settings, console, screen, services))
}
