//! A real cluster on loopback as children of a test: primaries with one replica each, resharded and failed over by script.
//!
//! In: a binary, the number of primaries. Out: a cluster that says `cluster_state:ok` on every node. Slots are moved as
//! `redis-cli --cluster reshard` moves them (SETSLOT MIGRATING and IMPORTING, MIGRATE, SETSLOT NODE). What all nodes hold
//! can be gathered into a stand-alone server, where `truth.py` compares it.
//!
//! A node that takes its first slot from another gives itself a new epoch without asking anybody. Where two do so before
//! they heard of each other their epochs collide, one is raised again, and a node may take back, and empty, a slot that it
//! has given away. So the next node takes slots only when all nodes know all epochs ([`Cluster::wait_agreed`]).

use super::LabError;
use super::client::{Client, Reply};
use super::servers::{Server, ServerKind, ServerOptions, find_server, version_of};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod moving;

/// Slots of a cluster.
const SLOTS: u16 = 16384;
/// How long the nodes may take to agree. Debug builds on a busy machine are slow.
const READY_TIME_MAX: Duration = Duration::from_secs(100);
/// An attempt of a replica to take over, and a bit.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(6);
/// Of a cluster without replicas.
const NODE_TIMEOUT_MS: u32 = 15_000;

/// A running cluster. Dropping it kills every node.
pub struct Cluster {
    /// The primaries of the beginning, then their replicas in the same order.
    pub nodes: Vec<Server>,
    ids: Vec<String>,
    binary: PathBuf,
    options: ServerOptions,
}

impl Cluster {
    pub fn start_kind(kind: ServerKind, primaries: usize, replicas: bool) -> Result<Self, LabError> {
        Self::start(&find_server(kind)?, primaries, replicas, ServerOptions::default())
    }

    /// Starts the nodes and waits until all agree.
    pub fn start(binary: &Path, primaries: usize, replicas: bool, options: ServerOptions) -> Result<Self, LabError> {
        let count = if replicas { 2 * primaries } else { primaries };
        Self::start_each(binary, primaries, &vec![options; count])
    }

    /// A primary at each of these addresses of this machine.
    pub fn start_at(binary: &Path, hosts: &[&str], options: &ServerOptions) -> Result<Self, LabError> {
        let each: Vec<ServerOptions> = hosts.iter().map(|host| options.clone().at(host)).collect();
        Self::start_each(binary, hosts.len(), &each)
    }

    fn start_each(binary: &Path, primaries: usize, each: &[ServerOptions]) -> Result<Self, LabError> {
        let (count, replicas) = (each.len(), each.len() > primaries);
        // Where nobody can take over, a node that a busy machine keeps waiting must not count as dead.
        let is_patient = each.iter().any(|options| options.patient_nodes);
        let node_timeout_ms = if replicas && !is_patient { 3000 } else { NODE_TIMEOUT_MS };
        let mut nodes = Vec::new();
        let mut bus_ports = Vec::new();
        for options in each {
            let (server, bus) = start_node(binary, options, node_timeout_ms)?;
            nodes.push(server);
            bus_ports.push(bus);
        }
        let mut ids = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            let mut client = node.client()?;
            client.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))?;
            if number < primaries {
                let first = usize::from(SLOTS) * number / primaries;
                let last = usize::from(SLOTS) * (number + 1) / primaries - 1;
                // Redis 6.2 knows no ranges.
                let slots: Vec<String> = (first..=last).map(|slot| slot.to_string()).collect();
                client.run(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")))?;
            }
            ids.push(client.run("CLUSTER MYID")?.text().unwrap_or_default());
        }
        let mut first = nodes[0].client()?;
        for (node, bus) in nodes.iter().zip(&bus_ports).skip(1) {
            first.run(&format!("CLUSTER MEET {} {} {bus}", node.host(), peer_port(node)))?;
        }
        let options = each.first().cloned().unwrap_or_default();
        let cluster = Self { nodes, ids, binary: binary.to_owned(), options };
        cluster.wait("every node knows every node", |client| {
            Ok(cluster_info(client, "cluster_known_nodes")? == count.to_string())
        })?;
        for (number, node) in cluster.nodes.iter().enumerate().skip(primaries) {
            let id = &cluster.ids[number - primaries];
            let mut client = node.client()?;
            let until = Instant::now() + READY_TIME_MAX;
            while let Err(error) = client.run(&format!("CLUSTER REPLICATE {id}")) {
                if Instant::now() > until {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        cluster.wait_ok()?;
        cluster.wait_replicas_fed(primaries)?;
        Ok(cluster)
    }

    /// A replica says that its link is up before its primary feeds it: that waits for its first REPLCONF ACK, up to a second later, and
    /// a replica that takes over before has nothing of what was written meanwhile. The nodes are empty still.
    fn wait_replicas_fed(&self, primaries: usize) -> Result<(), LabError> {
        for node in self.nodes.iter().take(self.nodes.len() - primaries) {
            let mut client = node.client()?;
            // The one write of any slot that always goes to the replicas.
            client.run("FLUSHALL")?;
            let fed = client.run(&format!("WAIT 1 {}", READY_TIME_MAX.as_millis()))?;
            if fed.int() != Some(1) {
                return Err(LabError::Reply {
                    peer: node.address().to_string(),
                    reason: "its replica is not fed".into(),
                });
            }
        }
        Ok(())
    }

    /// One more node, without slots. Returns its place.
    pub fn join(&mut self) -> Result<usize, LabError> {
        let (server, bus) = start_node(&self.binary, &self.options, NODE_TIMEOUT_MS)?;
        self.ids.push(server.client()?.run("CLUSTER MYID")?.text().unwrap_or_default());
        let meet = format!("CLUSTER MEET {} {} {bus}", server.host(), peer_port(&server));
        self.nodes[0].client()?.run(&meet)?;
        self.nodes.push(server);
        let count = self.nodes.len().to_string();
        self.wait("every node knows the new one", |client| Ok(cluster_info(client, "cluster_known_nodes")? == count))?;
        self.wait_ok()?;
        Ok(self.nodes.len() - 1)
    }

    /// The node that came last, without slots now, leaves as by `redis-cli --cluster del-node`: nobody knows it, it knows nobody.
    pub fn leave(&mut self) -> Result<Option<Server>, LabError> {
        let (Some(server), Some(id)) = (self.nodes.pop(), self.ids.pop()) else { return Ok(None) };
        // A primary that has given away its last slot becomes a replica, which may be forgotten, too.
        for node in &self.nodes {
            insist(&mut node.client()?, &["CLUSTER", "FORGET", &id])?;
        }
        insist(&mut server.client()?, &["CLUSTER", "RESET", "SOFT"])?;
        Ok(Some(server))
    }

    /// The shard of a node: a primary of the beginning and its replica.
    pub fn shard_of(&self, node: usize) -> usize {
        node % self.nodes.len().div_ceil(2).max(1)
    }

    /// The port of a node.
    pub fn port(&self) -> u16 {
        self.nodes.first().map_or(0, Server::port)
    }

    pub fn id(&self, node: usize) -> &str {
        self.ids.get(node).map_or("", String::as_str)
    }

    /// Waits until every living node calls the cluster complete, and every replica has its data.
    pub fn wait_ok(&self) -> Result<(), LabError> {
        self.wait("the cluster is complete", |client| {
            let linked = match client.info("role")?.as_deref() {
                Some("slave") => client.info("master_link_status")?.as_deref() == Some("up"),
                _ => true,
            };
            Ok(linked && cluster_info(client, "cluster_state")? == "ok")
        })
    }

    fn wait(&self, what: &str, done: impl Fn(&mut Client) -> Result<bool, LabError>) -> Result<(), LabError> {
        let until = Instant::now() + READY_TIME_MAX;
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            let mut client = node.client()?;
            while !done(&mut client)? {
                if Instant::now() > until {
                    let view = client.run("CLUSTER NODES")?.text().unwrap_or_default();
                    let peer = node.address().to_string();
                    return Err(LabError::Reply { peer, reason: format!("waited in vain until {what}:\n{view}") });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Living nodes that are primaries now, with their place in `nodes`.
    pub fn primaries(&self) -> Vec<usize> {
        let is_primary = |node: &Server| {
            let role = node.client().and_then(|mut client| client.info("role"));
            node.pid().is_some() && role.ok().flatten().as_deref() == Some("master")
        };
        (0..self.nodes.len()).filter(|at| is_primary(&self.nodes[*at])).collect()
    }

    /// Waits until every living node knows the same epoch of every node, each its own.
    pub fn wait_agreed(&self) -> Result<(), LabError> {
        let until = Instant::now() + READY_TIME_MAX;
        loop {
            let mut views = Vec::new();
            for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
                let view = node.client()?.run("CLUSTER NODES")?.text().unwrap_or_default();
                views.push(epochs(&view));
            }
            let mut own: Vec<&str> = views.first().into_iter().flatten().map(|(_, epoch)| epoch.as_str()).collect();
            own.sort_unstable();
            let count = own.len();
            own.dedup();
            if own.len() == count && views.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(());
            }
            if Instant::now() > until {
                let peer = self.nodes.first().map(|node| node.address().to_string()).unwrap_or_default();
                return Err(LabError::Reply { peer, reason: format!("the nodes do not agree on epochs: {views:?}") });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many answers of all living nodes were `MOVED`, and `ASK`, since [`Self::forget_redirects`].
    pub fn redirects(&self) -> Result<(u64, u64), LabError> {
        Ok((self.errors_of("MOVED")?, self.errors_of("ASK")?))
    }

    /// How many answers of all living nodes began with this word.
    pub fn errors_of(&self, code: &str) -> Result<u64, LabError> {
        let living = self.nodes.iter().filter(|node| node.pid().is_some());
        living.map(|node| node.errors_of(code)).sum()
    }

    pub fn forget_redirects(&self) -> Result<(), LabError> {
        let mut living = self.nodes.iter().filter(|node| node.pid().is_some());
        living.try_for_each(|node| node.client()?.run("CONFIG RESETSTAT").map(drop))
    }

    /// The replica at this place takes over.
    pub fn fail_over(&self, replica: usize) -> Result<(), LabError> {
        if self.try_fail_over(replica, READY_TIME_MAX)? {
            return Ok(());
        }
        let peer = self.nodes[replica].address().to_string();
        Err(LabError::Reply { peer, reason: "the replica did not take over".into() })
    }

    /// The same, if the primaries vote for it in this time: they do not where one knows of a slot that has moved since.
    pub fn try_fail_over(&self, replica: usize, within: Duration) -> Result<bool, LabError> {
        let until = Instant::now() + within;
        let mut ask_at = Instant::now();
        let primaries = self.primaries().len();
        // Done when the old primary has become a replica.
        while self.primaries().len() != primaries || !self.primaries().contains(&replica) {
            // An attempt ends by itself after 5 s, and none is to go on behind this; a replica that is not in step yet refuses it.
            if Instant::now() >= ask_at && ask_at + ATTEMPT_TIME_MAX <= until {
                self.nodes[replica].client()?.ask(&["CLUSTER", "FAILOVER"])?;
                ask_at = Instant::now() + ATTEMPT_TIME_MAX;
            }
            if Instant::now() > until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Every key of every living primary.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, LabError> {
        let mut all = Vec::new();
        for at in self.primaries() {
            let keys = self.nodes[at].client()?.run("KEYS *")?;
            all.extend(keys.array().unwrap_or_default().iter().filter_map(|key| key.bytes().map(<[u8]>::to_vec)));
        }
        Ok(all)
    }

    /// Copies everything into a stand-alone server of the same kind. Errors: a living node was told a command over several slots,
    /// whoever sent it and whatever became of it.
    pub fn gather(&self, server: &Server) -> Result<u64, LabError> {
        let crossed = self.errors_of("CROSSSLOT")?;
        if crossed > 0 {
            let reason = format!("CROSSSLOT was answered {crossed} times");
            return Err(LabError::Reply { peer: "the cluster".into(), reason });
        }
        let mut into = server.client()?;
        into.run("FLUSHALL")?;
        let mut count = 0;
        for at in self.primaries() {
            let mut node = self.nodes[at].client()?;
            let keys = node.run("KEYS *")?;
            for key in keys.array().unwrap_or_default().iter().filter_map(Reply::bytes) {
                let expiry = expiry_ms(&mut node, key)?.to_string();
                let dump = node.ask(&[b"DUMP".as_slice(), key])?;
                let Some(payload) = dump.bytes() else { continue };
                let args: [&[u8]; 6] = [b"RESTORE", key, expiry.as_bytes(), payload, b"REPLACE", b"ABSTTL"];
                if let Reply::Error(error) = into.ask(&args)? {
                    let peer = server.address().to_string();
                    return Err(LabError::Refused { peer, command: "RESTORE".into(), error });
                }
                count += 1;
            }
        }
        Ok(count)
    }
}

/// When a key expires; 0: never.
fn expiry_ms(node: &mut Client, key: &[u8]) -> Result<i64, LabError> {
    if let Some(at_ms) = node.ask(&[b"PEXPIRETIME".as_slice(), key])?.int() {
        return Ok(at_ms.max(0));
    }
    // Redis 6.2 tells only what is left.
    let left_ms = node.ask(&[b"PTTL".as_slice(), key])?.int().unwrap_or(-1);
    Ok(if left_ms < 0 { 0 } else { super::unix_time().as_millis() as i64 + left_ms })
}

/// Id and epoch of each primary in an answer to CLUSTER NODES, in the order of the ids.
fn epochs(view: &str) -> Vec<(String, String)> {
    let words = view.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let primaries = words.filter(|words| words.get(2).is_some_and(|flags| flags.contains("master")));
    let mut epochs: Vec<(String, String)> =
        primaries.filter_map(|words| Some((words.first()?.to_string(), words.get(6)?.to_string()))).collect();
    epochs.sort();
    epochs
}

/// Asks again while the cluster is down: on a busy machine nodes lose sight of each other for moments.
fn insist<A: AsRef<[u8]>>(client: &mut Client, args: &[A]) -> Result<(), LabError> {
    insist_for(client, args, READY_TIME_MAX)
}

fn insist_for<A: AsRef<[u8]>>(client: &mut Client, args: &[A], time: Duration) -> Result<(), LabError> {
    let until = Instant::now() + time;
    loop {
        match client.ask(args)? {
            Reply::Error(error) if Instant::now() > until => {
                let command = args.iter().take(4).map(|arg| String::from_utf8_lossy(arg.as_ref()).into_owned());
                let command = command.collect::<Vec<_>>().join(" ");
                return Err(LabError::Refused { peer: "a node".into(), command, error });
            }
            Reply::Error(_) => std::thread::sleep(Duration::from_millis(50)),
            _ => return Ok(()),
        }
    }
}

/// Where other nodes reach it: they speak TLS to each other if they can.
fn peer_port(node: &Server) -> u16 {
    if node.tls_port() > 0 { node.tls_port() } else { node.port() }
}

/// A node on free ports.
fn start_node(binary: &Path, options: &ServerOptions, node_timeout_ms: u32) -> Result<(Server, u16), LabError> {
    let has_bus_port = version_of(binary).is_none_or(|version| !version.contains("v=6."));
    let mut tries = 0;
    loop {
        let bus = TcpListener::bind((options.host(), 0))?.local_addr()?.port();
        let options = match has_bus_port {
            true => options.clone().config("cluster-port", &bus.to_string()),
            false => options.clone(),
        };
        // Loopback connections say all that they come from 127.0.0.1.
        let host = options.host().to_owned();
        let options = options
            .config("cluster-enabled", "yes")
            .config("cluster-announce-ip", &host)
            .config("cluster-node-timeout", &node_timeout_ms.to_string())
            .config("cluster-config-file", "nodes.conf")
            .config("repl-diskless-sync-delay", "0");
        let options = match options.tls {
            true => options.config("tls-cluster", "yes").config("tls-replication", "yes"),
            false => options,
        };
        match Server::start(binary, options) {
            // The bus of Redis 6.2 has the port 10000 above, which a free port may be too high for.
            Err(LabError::ServerStart { log, .. })
                if tries < 20 && (log.contains("in use") || log.contains("too high")) =>
            {
                tries += 1
            }
            Err(error) => return Err(error),
            Ok(server) if has_bus_port => return Ok((server, bus)),
            Ok(server) => {
                let bus = peer_port(&server) + 10_000;
                return Ok((server, bus));
            }
        }
    }
}

/// A field of CLUSTER INFO.
fn cluster_info(client: &mut Client, field: &str) -> Result<String, LabError> {
    let text = client.run("CLUSTER INFO")?.text().unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(found.unwrap_or_default().trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_move_and_replicas_take_over() {
        let cluster = match Cluster::start_kind(ServerKind::Redis7, 3, true) {
            Err(LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what}"),
            cluster => cluster.unwrap(),
        };
        let mut client = cluster.nodes[2].client().unwrap();
        client.run("SET foo 1").unwrap();
        cluster.move_slot(12182, 2, 0).unwrap();
        assert!(client.run("GET foo").unwrap_err().to_string().contains("MOVED"));
        cluster.fail_over(3).unwrap();
        assert_eq!(cluster.primaries(), [1, 2, 3]);
        assert_eq!(cluster.keys().unwrap(), [b"foo"]);
        assert!(client.run("DEL foo bar").unwrap_err().to_string().contains("CROSSSLOT"));
        assert!(cluster.gather(&cluster.nodes[0]).unwrap_err().to_string().contains("CROSSSLOT"));
        assert_eq!(cluster.keys().unwrap(), [b"foo"]);
    }
}
