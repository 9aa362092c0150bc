//! Parse, run, exit code: the only place that ends the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    let class = df2redis::cli::run(std::env::args_os(), std::env::vars_os());
    ExitCode::from(df2redis::cli::exit::code(class))
}
