//! `df2redis replicate`: the main job, and then every later write.

use super::settings::{Console, UsageError, Values, resolve};
use super::{Mode, log_warnings, migrate};
use crate::operator::Screen;
use crate::report::ExitClass;

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let settings = resolve::replicate(values)?;
    log_warnings(values);
    match mode {
        Mode::ResolveOnly => Ok(ExitClass::Done),
        Mode::Run => Ok(migrate::run_watched("replicate", settings, console, screen)),
    }
}
