//! The lab from the command line.

use clap::{Parser, Subcommand};
use df2redis::lab::bench::{self, BenchArgs};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "dfly-sim", version, about = "Peers and measurements for df2redis")]
struct Cli {
    #[command(subcommand)]
    command: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Measure df2redis beside others, side by side
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Loads into a sink and into a real server; exit code 1 where a figure is not reached
    Load(BenchArgs),
}

fn main() -> ExitCode {
    let Cli { command: Job::Bench { what: Bench::Load(args) } } = Cli::parse();
    match bench::run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("dfly-sim: {error}");
            ExitCode::from(2)
        }
    }
}
