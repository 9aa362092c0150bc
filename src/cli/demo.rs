//! `df2redis demo`: the main job with no server at hand, ending with the same report and a comparison of every key.
//!
//! In: the size and seed of a made-up key space. A simulated Dragonfly serves it, a redis-server or valkey-server child
//! takes it in (the built-in sink where no such binary is found). Both live exactly as long as the run: the child is also
//! killed when this process dies of a signal.

use super::settings::{Console, DemoSettings, UsageError, Values, resolve};
use super::{Mode, log_warnings, machine, migrate, print_out};
use crate::cli::settings::OutputForm;
use crate::engine::settings::{Endpoint, Secret};
use crate::lab::LabError;
use crate::lab::generate::model::Model;
use crate::lab::generate::verify::verify;
use crate::lab::generate::{Compression, Generator, Group, Kind, Spec};
use crate::lab::master::{Master, MasterOptions};
use crate::lab::servers::{Server, ServerOptions, find_any_server, servers_dir, version_of};
use crate::lab::sink::{Sink, SinkOptions};
use crate::operator::Screen;
use crate::report::ExitClass;
use std::sync::Arc;

/// Keys compared at the end; of more, every n-th.
const KEYS_COMPARED_MAX: u64 = 500_000;
const HOST: &str = "127.0.0.1";

pub fn run(values: &mut Values, console: &Console, screen: &Screen, mode: Mode) -> Result<ExitClass, UsageError> {
    let demo = resolve::demo_source(values)?;
    if mode == Mode::ResolveOnly {
        resolve::demo(values, endpoint(0), endpoint(0))?;
        return Ok(ExitClass::Done);
    }
    let say = |line: &str| {
        let _ = screen.write(format!("{line}\n").as_bytes());
    };
    let servers = match Servers::start(&demo) {
        Ok(servers) => servers,
        Err(error) => {
            say(&format!("df2redis: the demo's servers cannot be started: {error}"));
            return Ok(ExitClass::System);
        }
    };
    let mut settings = resolve::demo(values, endpoint(servers.source.port()), endpoint(servers.target.port()))?;
    machine::fit(values, &mut settings);
    log_warnings(values);
    say(&servers.description());
    let class = migrate::run_watched("demo", settings, console, screen, Vec::new());
    if class != ExitClass::Done {
        return Ok(class);
    }
    let (class, verdict) = servers.judge();
    match console.output {
        OutputForm::Text => print_out(&format!("\n{verdict}\n")),
        // Standard output holds one JSON document and nothing else.
        OutputForm::Json => say(&verdict),
    }
    Ok(class)
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint { host: HOST.into(), port, tls: None, user: Secret::default(), password: Secret::default() }
}

/// What takes the data in.
enum Target {
    Server { server: Server, version: String },
    Sink(Sink),
}

impl Target {
    fn start() -> Result<Self, LabError> {
        match find_any_server() {
            Ok(binary) => {
                let version = version_of(&binary).unwrap_or_default();
                let version = version.split(" sha=").next().unwrap_or_default().to_string();
                let server = Server::start(&binary, ServerOptions { dies_with_parent: true, ..Default::default() })?;
                Ok(Self::Server { server, version: format!("{} ({version})", binary.display()) })
            }
            Err(_) => Ok(Self::Sink(Sink::start(SinkOptions::default())?)),
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Server { server, .. } => server.port(),
            Self::Sink(sink) => sink.port(),
        }
    }
}

/// What the demo runs between; stopped on drop.
struct Servers {
    source: Master,
    target: Target,
    spec: Spec,
    model: Arc<Model>,
}

impl Servers {
    fn start(demo: &DemoSettings) -> Result<Self, LabError> {
        let spec = key_space(demo);
        let target = Target::start()?;
        let (source, model) = Generator::start(spec.clone(), MasterOptions::default())?;
        Ok(Self { source, target, spec, model })
    }

    /// What was started, and where.
    fn description(&self) -> String {
        let (source, target) = (self.source.address(), self.target.port());
        let target = match &self.target {
            Target::Server { version, .. } => format!("{version} on {HOST}:{target}"),
            Target::Sink(_) => format!(
                "the built-in sink on {HOST}:{target}, which keeps nothing: there is no redis-server or valkey-server (7.0 or \
                 newer) in PATH or {}",
                servers_dir().display()
            ),
        };
        format!(
            "Started a simulated Dragonfly with {} keys in {} flows (seed {}) on {source},\nand {target}.\nBoth end with \
             this run.",
            self.spec.keys_count(),
            self.spec.flows_count,
            self.spec.seed
        )
    }

    /// Whether the target holds what the generator's model says, in words.
    fn judge(&self) -> (ExitClass, String) {
        let server = match &self.target {
            Target::Server { server, .. } => server,
            Target::Sink(sink) => {
                let counts = sink.counts();
                let (commands, bytes) = (counts.commands, counts.received_bytes);
                let text = format!("The sink took {commands} commands in {bytes} bytes; it keeps nothing to compare.");
                return (ExitClass::Done, text);
            }
        };
        let verdict =
            server.client().and_then(|mut client| verify(&self.spec, &self.model, &mut client, KEYS_COMPARED_MAX));
        match verdict {
            Ok(verdict) if verdict.is_same() => (
                ExitClass::Done,
                format!(
                    "Verified: the target holds exactly {} keys, as it must; value and expiry of {} generated keys were \
                     compared (of streams only the presence), and none differs.\nThe CPU time of this tool above includes that \
                     of the simulated source, which runs in the same process.",
                    verdict.keys_expected, verdict.keys_compared
                ),
            ),
            Ok(verdict) => (
                ExitClass::Differs,
                format!(
                    "NOT the same: {} differences; the first are\n  {}\nThis is a bug: please report it with the seed.",
                    verdict.differences_count,
                    verdict.differences.join("\n  ")
                ),
            ),
            Err(error) => (ExitClass::Target, format!("The target cannot be compared: {error}")),
        }
    }
}

/// A bit of everything that any target can hold, mostly small strings, about `keys` in all.
fn key_space(demo: &DemoSettings) -> Spec {
    /// Kind, elements, bytes of each, share in thousandths.
    const MIX: [(Kind, u64, u64, u64); 10] = [
        (Kind::String, 1, 100, 0),
        (Kind::String, 1, 4096, 20),
        (Kind::Int, 1, 1, 100),
        (Kind::Hash, 10, 12, 100),
        (Kind::List, 12, 12, 40),
        (Kind::Set, 12, 10, 40),
        (Kind::Intset, 20, 1, 10),
        (Kind::Zset, 12, 10, 40),
        (Kind::Stream, 8, 10, 5),
        (Kind::Hash, 500, 24, 1),
    ];
    let group = |kind, elements, element_bytes, count| Group { kind, elements, element_bytes, count };
    let mut mix: Vec<Group> =
        MIX.iter().map(|&(k, n, bytes, share)| group(k, n, bytes, demo.keys * share / 1000)).collect();
    if demo.keys >= 1000 {
        // Two that no single command may carry.
        mix.push(group(Kind::List, 200_000, 16, 1));
        mix.push(group(Kind::String, 1, 16 << 20, 1));
    }
    let others: u64 = mix.iter().map(|group| group.count).sum();
    if let Some(strings) = mix.first_mut() {
        strings.count = demo.keys.saturating_sub(others);
    }
    Spec {
        mix,
        seed: demo.seed,
        flows_count: demo.flows as usize,
        compression: Compression::Lz4,
        databases: vec![0, 1],
        expire_fraction: 0.1,
        expired_fraction: 0.01,
        sticky_fraction: 0.01,
        journal_ratio: 0.02,
        strays_count: 2,
        omitted_deletes_count: 2,
        early_writes_count: 2,
        ..Spec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_space_has_the_keys_asked_for() {
        for keys in [1, 10, 999, 1000, 300_000] {
            assert_eq!(key_space(&DemoSettings { keys, flows: 2, seed: 1 }).keys_count(), keys);
        }
    }
}
