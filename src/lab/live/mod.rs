//! A live source: a simulated Dragonfly whose data changes while it is replicated.
//!
//! In: a [`Spec`] (the keys to begin with), writers: seeded ones ([`workload`]) and ordinary clients that connect. Out: a
//! [`Feed`](super::master::Feed) whose full sync and journals say at every moment what the data is, and rows for truth.py.
//! It answers `DFLY REPLICAOFFSET`, `CLIENT PAUSE`, `DFLY TAKEOVER` and plain commands truthfully, keeps a backlog, and
//! can be restarted under another id. Nothing of the tool's own code is used to make it.
//!
//! - [`world`]: the state; [`exec`]: commands on [`data`]; [`read`]: commands that change nothing.
//! - [`stage`]: a run of the tool against it, with faults; [`target`]: what it writes to; [`losses`]: what that loses.
//! - [`dump`]: values on the wire; [`feed`]: flows and connections; [`rows`]: the truth.

pub mod data;
mod dump;
pub mod exec;
mod feed;
mod losses;
mod read;
mod rows;
pub mod stage;
pub mod target;
pub mod value;
pub mod workload;
pub mod world;

pub use feed::ask;
pub use value::{Object, Value};
pub use workload::{Mix, Workload, WorkloadOptions};
pub use world::World;

use super::LabError;
use super::generate::model::entries;
use super::generate::{Compression, Spec};
use super::master::{Master, MasterOptions};
use super::rng::Rng;
use feed::LiveFeed;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How a live source behaves, besides its data and its [`MasterOptions`].
#[derive(Clone, Debug, Default)]
pub struct LiveOptions {
    /// Bytes a second of each flow's full sync.
    pub snapshot_bytes_per_s: Option<u64>,
    /// Each flow sends what it has after a seeded pause of at most this: so that barriers come in any order.
    pub jitter_max: Option<Duration>,
    /// Records of less than a segment are sent after this time, as a real master keeps them for 10 ms (wire 4.2).
    pub dispatch_after: Option<Duration>,
    /// Partial syncs go through DFLY SYNC and blobs, as from 1.24 to 1.34.
    pub partial_by_sync: bool,
    /// The first record of such blobs is left out, as releases before 1.24 left some records out.
    pub blob_left_out: bool,
    /// What INFO calls the release; `None`: one that fits the rest.
    pub version: Option<String>,
    /// Its flag `replication_timeout`, in milliseconds, for CONFIG GET.
    pub replication_timeout_ms: Option<u64>,
}

/// A running live source. Dropping it stops it.
pub struct Live {
    spec: Arc<Spec>,
    world: Arc<World>,
    options: LiveOptions,
    master_options: MasterOptions,
    address: SocketAddr,
    /// `None`: the process is dead.
    master: Option<Master>,
    /// Registrations and partial syncs of earlier processes.
    before: (u64, u64),
    expiring: Arc<AtomicBool>,
}

impl Live {
    /// Starts a source that begins with the keys of `spec` (those that commands can change: no filters).
    pub fn start(spec: Spec, options: LiveOptions, master_options: MasterOptions) -> Result<Self, LabError> {
        let mut rng = Rng::new(spec.seed ^ 0x11d);
        let master_id = (0..3).map(|_| format!("{:016x}", rng.next_u64())).collect::<String>()[..40].to_owned();
        let world = Arc::new(World::new(spec.flows_count, master_id, spec.compression == Compression::Lzf));
        for entry in entries(&spec) {
            if let Some(object) = Object::of(&entry) {
                world.begin_with(entry.db, &entry.key, object);
            }
        }
        let spec = Arc::new(spec);
        let master = start(&spec, &world, &options, master_options.clone())?;
        let expiring = Arc::new(AtomicBool::new(true));
        let (ticking, ticked) = (expiring.clone(), world.clone());
        std::thread::spawn(move || {
            while ticking.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(20));
                ticked.expire();
            }
        });
        let address = master.address();
        Ok(Self { spec, world, options, master_options, address, master: Some(master), before: (0, 0), expiring })
    }

    pub fn world(&self) -> Arc<World> {
        self.world.clone()
    }

    pub fn spec(&self) -> &Arc<Spec> {
        &self.spec
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The process; `None` while it is dead.
    pub fn master(&self) -> Option<&Master> {
        self.master.as_ref()
    }

    /// Registrations so far, of all processes.
    pub fn registrations_count(&self) -> u64 {
        self.before.0 + self.master.as_ref().map_or(0, Master::registrations_count)
    }

    /// Partial syncs so far, of all processes.
    pub fn partial_count(&self) -> u64 {
        self.before.1 + self.master.as_ref().map_or(0, Master::partial_count)
    }

    /// Every flow of the newest registration has acknowledged all there is.
    pub fn is_acknowledged(&self) -> bool {
        let wanted: Vec<Option<u64>> = self.world.next_lsns().into_iter().map(Some).collect();
        self.master.as_ref().is_some_and(|master| master.acks() == wanted)
    }

    /// Kills the process. The world stays as it was, and nobody listens.
    pub fn die(&mut self) {
        self.before = (self.registrations_count(), self.partial_count());
        drop(self.master.take());
    }

    /// Kills the process and starts another one on the same address, with the same data and another id.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.die();
        self.world.restart();
        let options = MasterOptions { listen: self.address.to_string(), ..self.master_options.clone() };
        self.master = Some(start(&self.spec, &self.world, &self.options, options)?);
        Ok(())
    }

    /// Writes what a target must hold now.
    pub fn write_truth(&self, path: &Path) -> Result<(), LabError> {
        let fail = |source| LabError::File { path: path.to_owned(), source };
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(fail)?);
        self.world.look(|data| rows::write(data, &mut file)).and_then(|()| file.flush()).map_err(fail)
    }

    /// Waits as long as the source runs: for the command line.
    pub fn wait(mut self) {
        if let Some(master) = self.master.take() {
            master.wait();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.expiring.store(false, Ordering::Release);
        // After a takeover everybody waits for ever: let the writers come to their end.
        self.world.unpause();
    }
}

fn start(
    spec: &Arc<Spec>,
    world: &Arc<World>,
    options: &LiveOptions,
    master_options: MasterOptions,
) -> Result<Master, LabError> {
    let mut rng = Rng::new(spec.seed ^ 0xe0f);
    let token = |_| (0..3).map(|_| format!("{:016x}", rng.next_u64())).collect::<String>()[..40].to_owned();
    let eof_tokens = (0..spec.flows_count).map(token).collect();
    let feed = LiveFeed { spec: spec.clone(), world: world.clone(), options: options.clone(), eof_tokens };
    Master::start(Arc::new(feed), master_options)
}

#[cfg(test)]
mod tests;
