//! Peak memory with giants among the data.

use super::table::Results;
use super::{BenchArgs, pin, tool};
use crate::lab::LabError;
use crate::lab::generate::Spec;
use crate::lab::servers::{Server, ServerOptions, find_any_server};

/// `--memory` by default, and what may come on top.
pub const RSS_MIB_MAX: f64 = 256.0 + 64.0;
const FLOWS: usize = 2;
/// A list of ten million elements, a string of the greatest length there is, and what else may be large.
const MIX: &str = "list:10000000x16=1,string:512MiB=1,string:1MiB=200,hash:1000000x20=1,set:500000x20=1,\
                   zset:500000x20=1,string:100B=500000,hash:20x8=100000,json:100KiB=20";

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    let spec = |mix: &str| Spec::of(mix).map(|spec| Spec { flows_count: FLOWS, ..spec });
    let rounds = args.rounds.min(2);
    let (mut sink, mut redis) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let skipped = ["--on-unsupported=json=string".to_owned()];
        let args = BenchArgs { tool_arg: args.tool_arg.iter().chain(&skipped).cloned().collect(), ..args.clone() };
        let run = tool::against_sink(&args, &spec(MIX)?)?;
        eprintln!("memory, sink: {run:?}");
        sink.push(run.rss_bytes as f64 / f64::from(1 << 20));
        pin(args.tool_cpu)?;
        let server = Server::start(
            &find_any_server()?,
            ServerOptions { core: Some(args.peer_cpu), ..ServerOptions::default() },
        )?;
        let run = tool::migrate(&args, &spec(MIX)?, server.port())?;
        eprintln!("memory, redis: {run:?}");
        redis.push(run.rss_bytes as f64 / f64::from(1 << 20));
    }
    results.add("giants, 2 flows", "peak memory into the sink, MiB", sink, None, Some(RSS_MIB_MAX));
    results.add("giants, 2 flows", "peak memory into redis, MiB", redis, None, Some(RSS_MIB_MAX));
    Ok(())
}
