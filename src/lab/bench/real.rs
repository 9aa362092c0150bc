//! The tool against a real redis-server on the peers' CPU, beside `redis-cli --pipe` and a blind writer.

use super::table::Results;
use super::{BenchArgs, direct, fast_spec, pin, tool};
use crate::lab::LabError;
use crate::lab::client::Client;
use crate::lab::servers::{Server, ServerOptions, find_any_server};

const KEYS: u64 = 2_000_000;
const VALUE_BYTES: usize = 100;

pub fn run(args: &BenchArgs, results: &mut Results) -> Result<(), LabError> {
    let options = ServerOptions { core: Some(args.peer_cpu), ..ServerOptions::default() };
    let server = Server::start(&find_any_server()?, options)?;
    let mut client = server.client()?;
    let keys = (KEYS as f64 * args.scale) as u64;
    let bytes = direct::encoded_sets(keys, VALUE_BYTES);
    let file = server.dir().join("sets");
    std::fs::write(&file, &bytes).map_err(|source| LabError::File { path: file.clone(), source })?;
    // Source and tool share the CPU that the server does not need.
    pin(args.tool_cpu)?;
    let mut by_flows: [Figures; 2] = Default::default();
    for round in 0..args.rounds {
        let pipe_s = clean(&mut client, |_| direct::redis_cli(&file, server.port(), args.tool_cpu))?;
        let blind_s = clean(&mut client, |_| direct::blind(&bytes, keys, server.port(), args.tool_cpu))?;
        for (flows, figures) in [1, 2].into_iter().zip(&mut by_flows) {
            let spec = fast_spec("string:100B", KEYS, flows, args.scale)?;
            let (run, server_cpu_s) = clean(&mut client, |client| {
                let before = cpu_s(client)?;
                let run = tool::migrate(args, &spec, server.port())?;
                Ok((run, cpu_s(client)? - before))
            })?;
            eprintln!(
                "redis, {flows} flows {}: {run:?} redis {server_cpu_s:.2} pipe {pipe_s:.2} blind {blind_s:.2}",
                round + 1
            );
            figures.of_pipe.push(pipe_s / run.transfer_s);
            figures.of_blind.push(blind_s / run.transfer_s);
            figures.cpu_share.push(run.cpu_s / server_cpu_s);
            figures.rates.push(run.keys as f64 / run.transfer_s / 1e6);
            figures.rss_mib.push(run.rss_bytes as f64 / f64::from(1 << 20));
        }
    }
    for (name, figures) in ["redis, 100 B, 1 flow", "redis, 100 B, 2 flows"].into_iter().zip(by_flows) {
        results.add(name, "rate, share of redis-cli --pipe", figures.of_pipe, Some(0.95), None);
        results.add(name, "rate, share of the blind writer", figures.of_blind, Some(0.95), None);
        results.add(name, "CPU of the tool by CPU of redis", figures.cpu_share, None, Some(1.0));
        results.add(name, "million keys a second", figures.rates, None, None);
        results.add(name, "peak memory, MiB", figures.rss_mib, None, Some(super::memory::RSS_MIB_MAX));
    }
    Ok(())
}

#[derive(Default)]
struct Figures {
    of_pipe: Vec<f64>,
    of_blind: Vec<f64>,
    cpu_share: Vec<f64>,
    rates: Vec<f64>,
    rss_mib: Vec<f64>,
}

/// Runs `load` on an empty server.
pub fn clean<T>(client: &mut Client, load: impl FnOnce(&mut Client) -> Result<T, LabError>) -> Result<T, LabError> {
    client.run("FLUSHALL SYNC")?;
    load(client)
}

/// CPU seconds that the server has used.
pub fn cpu_s(client: &mut Client) -> Result<f64, LabError> {
    let mut sum = 0.0;
    for field in ["used_cpu_user", "used_cpu_sys"] {
        sum += client.info(field)?.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(sum)
}
