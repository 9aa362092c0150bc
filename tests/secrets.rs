//! Secrets show nowhere: not in a process's arguments, not in what its hooks inherit, not in logs, reports, answers, metrics, names
//! of connections or keys; and nobody of the same user looks into a process that holds them. Over TLS on both sides, in each
//! form in which secrets can be given.

#[path = "common/certs.rs"]
mod certs;
mod common;

use certs::Certs;
use common::{Running, program, server_with, start};
use df2redis::lab::master::{Master, MasterOptions};
use df2redis::lab::recordings::recording;
use df2redis::lab::replay::Replay;
use df2redis::lab::servers::{Server, ServerKind};
use df2redis::lab::tls_proxy::{TlsProxy, TlsProxyOptions};
use df2redis::lab::torture::wait_for;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Settings and their values.
const SECRETS: [(&str, &str); 4] = [
    ("source-user", "replicator-Kv7"),
    ("source-password", "s0urce-s3cret-Zq"),
    ("target-user", "loader-Jm3"),
    ("target-password", "t4rget-s3cret-Yp"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Environment,
    PasswordFiles,
    SettingsFile,
    Credentials,
}

fn private_file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Tells the command the secrets in this form.
fn tell(form: Form, dir: &Path, command: &mut Command) {
    match form {
        Form::Environment => {
            for (name, value) in SECRETS {
                command.env(format!("DF2REDIS_{}", name.to_uppercase().replace('-', "_")), value);
            }
        }
        // Users have no files of their own.
        Form::PasswordFiles => {
            let mut settings = String::new();
            for (name, value) in SECRETS {
                match name.ends_with("password") {
                    true => {
                        _ = command.arg(format!("--{name}-file")).arg(private_file(dir, name, &format!("{value}\n")))
                    }
                    false => settings.push_str(&format!("{name} = \"{value}\"\n")),
                }
            }
            command.arg("--config").arg(private_file(dir, "users.toml", &settings));
        }
        Form::SettingsFile => {
            let settings: String = SECRETS.iter().map(|(name, value)| format!("{name} = \"{value}\"\n")).collect();
            command.arg("--config").arg(private_file(dir, "df2redis.toml", &settings));
        }
        Form::Credentials => {
            let credentials = dir.join("credentials");
            std::fs::create_dir(&credentials).unwrap();
            for (name, value) in SECRETS {
                private_file(&credentials, name, &format!("{value}\n"));
            }
            command.env("CREDENTIALS_DIRECTORY", credentials);
        }
    }
}

/// What was seen, and where.
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, text: impl Into<Vec<u8>>) {
        let (place, text) = (place.into(), text.into());
        assert!(!text.is_empty(), "nothing was seen in {place}");
        self.0.push((place, text));
    }

    fn add_file(&mut self, path: &Path) {
        self.add(path.display().to_string(), std::fs::read(path).unwrap_or_default());
    }

    /// As they are, and as programs print bytes.
    #[track_caller]
    fn hold_none_of(&self, secrets: &[&str]) {
        for secret in secrets {
            let joined =
                |each: fn(&u8) -> String, by| secret.bytes().map(|byte| each(&byte)).collect::<Vec<_>>().join(by);
            let printed =
                [secret.to_string(), joined(|byte| byte.to_string(), ", "), joined(|byte| format!("{byte:02x}"), "")];
            for (place, text) in &self.0 {
                for form in &printed {
                    let found = memchr::memmem::find(text, form.as_bytes());
                    let around = found.map(|at| &text[at.saturating_sub(100)..text.len().min(at + 100)]);
                    assert!(
                        found.is_none(),
                        "{secret} in {place}: {}",
                        String::from_utf8_lossy(around.unwrap_or_default())
                    );
                }
            }
        }
    }
}

/// Writes down all that it was given, and what it can see of the job.
fn hook(dir: &Path) -> PathBuf {
    let text = format!(
        "#!/bin/sh\n{{ echo \"$0 $*\"; env; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' ' ' < \
         /proc/$PPID/cmdline; cat; }} > {}/hook.$DF2REDIS_EVENT\n",
        dir.display()
    );
    let path = dir.join("hook");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn get(port: u16, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Both sides, over TLS, with users and passwords.
struct World {
    certs: Certs,
    server: Server,
    master: Master,
    proxy: TlsProxy,
}

impl World {
    fn start() -> Option<Self> {
        let certs = Certs::new();
        let server = server_with(ServerKind::Redis7, certs.server("server").config("rdbcompression", "no"))?;
        let rule = ["ACL", "SETUSER", SECRETS[2].1, "on", &format!(">{}", SECRETS[3].1), "~*", "&*", "+@all"];
        server.client().unwrap().ask(&rule).unwrap();
        let mut replay = Replay::new(recording("follow-lz4").unwrap()).unwrap();
        let times = (Duration::from_millis(50), Duration::from_millis(100));
        (replay.snapshot_time, replay.stable_time) = (Some(times.0), Some(times.1));
        let options = MasterOptions {
            user: Some(SECRETS[0].1.into()),
            password: Some(SECRETS[1].1.into()),
            ..MasterOptions::default()
        };
        let master = Master::start(Arc::new(replay), options).unwrap();
        let tls = TlsProxyOptions { client_ca: Some(PathBuf::from(certs.path("ca.pem"))), ..certs.proxy("server") };
        let proxy = TlsProxy::start(master.port(), &tls).unwrap();
        Some(Self { certs, server, master, proxy })
    }

    fn job(&self, job: &str) -> Command {
        let (source, target) = (
            format!("dragonflys://localhost:{}", self.proxy.port()),
            format!("rediss://127.0.0.1:{}", self.server.tls_port()),
        );
        let mut command = program(&[job, "--source", &source, "--target", &target, "--memory", "64MiB"]);
        command.args(["--on-unsupported", "skip", "--connect-timeout", "60s", "--log", "trace", "--progress", "off"]);
        command.args(self.certs.to_side("target", "ca")).args(self.certs.to_side("source", "ca"));
        command
    }

    /// The lines of our certificate's key.
    fn key_lines(&self) -> Vec<String> {
        let key = std::fs::read_to_string(self.certs.path("client.key")).unwrap();
        let lines: Vec<String> = key.lines().filter(|line| !line.starts_with("---")).map(str::to_owned).collect();
        assert!(lines.iter().all(|line| line.len() > 20) && !lines.is_empty(), "{lines:?}");
        lines
    }
}

/// A job from its start to its handing over, with all that it shows on the way.
fn show_everything(form: Form) {
    let Some(world) = World::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (socket, report) = (path("job.sock"), path("report"));
    let (hook, mut seen) = (hook(dir.path()), Seen(Vec::new()));
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    let mut command = world.job("replicate");
    tell(form, dir.path(), &mut command);
    let mut print = Command::new(command.get_program());
    print.args(command.get_args()).args(["--print-config"]);
    print.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    seen.add("--print-config", print.output().unwrap().stdout);
    command.args(["--control", &socket, "--report", &report, "--output", "json", "--metrics", &metrics.to_string()]);
    for event in ["in-step", "before-fence", "after-fence", "drained", "handed-over", "aborted"] {
        command.arg(format!("--hook-{event}")).arg(&hook);
    }
    let mut job = start(command);
    let ask = |args: &[&str]| program(args).args(["--control", &socket]).output().unwrap();
    wait_in_step(&mut job, || String::from_utf8_lossy(&ask(&["status", "--output", "json"]).stdout).into_owned());

    let proc = |file: &str| std::fs::read(format!("/proc/{}/{file}", job.pid())).unwrap();
    seen.add("cmdline", proc("cmdline"));
    if form != Form::Environment {
        seen.add("environ", proc("environ"));
    }
    seen.add("status", ask(&["status"]).stdout);
    seen.add("status in JSON", ask(&["status", "--output", "json"]).stdout);
    seen.add("metrics", [get(metrics, "/metrics"), get(metrics, "/healthz"), get(metrics, "/readyz")].concat());
    let mut admin = world.server.client().unwrap();
    let clients = admin.run("CLIENT LIST").unwrap().text().unwrap();
    assert!(clients.contains("name=df2redis"), "{clients}");
    // Who is logged in is said there by the server itself.
    seen.add("names of connections", clients.replace(&format!("user={}", SECRETS[2].1), ""));
    assert_eq!(admin.run("SAVE").unwrap().text().as_deref(), Some("OK"));
    let saved = std::fs::read(world.server.dir().join("dump.rdb")).unwrap();
    for own in ["df2redis:checkpoint", "df2redis:lease"] {
        assert!(memchr::memmem::find(&saved, own.as_bytes()).is_some(), "{own}");
    }
    seen.add("keys of the target", saved);

    // The recorded source does not answer what is read then, which is told.
    let mut compare = world.job("verify");
    std::fs::create_dir(dir.path().join("verify")).unwrap();
    tell(form, &dir.path().join("verify"), &mut compare);
    let run = start(compare).wait();
    run.expect_code(4);
    assert!(run.stderr.contains("SCAN was answered with"), "{}", run.stderr);
    seen.add("verify", run.stdout + &run.stderr);

    let cutover = ask(&["cutover", "--rehearse", "1", "--budget", "20s", "--log", "trace"]);
    assert_eq!(cutover.status.code(), Some(0), "{cutover:?}");
    seen.add("rehearsal", [cutover.stdout, cutover.stderr].concat());
    // One that is vetoed, one that is done.
    for (switch, code) in [(Path::new("/bin/false"), 9), (&hook, 0)] {
        let switch = switch.to_str().unwrap();
        let cutover = ask(&["cutover", "--execute", "--budget", "20s", "--log", "trace", "--hook", switch]);
        assert_eq!(cutover.status.code(), Some(code), "{cutover:?}");
        seen.add("cutover", [cutover.stdout, cutover.stderr].concat());
    }
    let run = job.wait();
    run.expect_code(0);
    assert!(run.stderr.contains("DEBUG TLS"), "{}", run.stderr);
    seen.add("log", run.stderr);
    seen.add("report", run.stdout);
    seen.add("requests to the source", world.master.requests().join("\n"));
    for event in ["in-step", "before-fence", "after-fence", "drained", "switch", "handed-over", "aborted"] {
        seen.add_file(&dir.path().join(format!("hook.{event}")));
    }
    for file in std::fs::read_dir(&report).unwrap().flatten().filter(|file| file.metadata().unwrap().len() > 0) {
        seen.add_file(&file.path());
    }
    let keys = world.key_lines();
    let secrets: Vec<&str> = SECRETS.iter().map(|(_, value)| *value).chain(keys.iter().map(String::as_str)).collect();
    seen.hold_none_of(&secrets);
}

#[track_caller]
fn wait_in_step(job: &mut Running, status: impl Fn() -> String) {
    let reached = wait_for(|| {
        assert!(job.is_running(), "it has ended");
        status().contains("\"in_step\":true").then_some(())
    });
    assert!(reached.is_some(), "{}", status());
}

#[test]
fn secrets_of_the_environment_show_nowhere() {
    show_everything(Form::Environment);
}

#[test]
fn secrets_of_password_files_show_nowhere() {
    show_everything(Form::PasswordFiles);
}

#[test]
fn secrets_of_the_settings_file_show_nowhere() {
    show_everything(Form::SettingsFile);
}

#[test]
fn secrets_of_credentials_show_nowhere() {
    show_everything(Form::Credentials);
}

/// `nobody`, whom the tests' machine has in any case.
const NOBODY: u32 = 65534;

/// Who has secrets in memory forbids dumps, and then /proc shows neither memory nor environment to others of the same user.
#[test]
fn a_process_that_holds_secrets_cannot_be_looked_into() {
    let am_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let tool = dir.path().join("df2redis");
    std::fs::copy(common::job::binary(), &tool).unwrap();
    let certs = Certs::new();
    for (name, mode) in [("ca.pem", 0o644), ("client.pem", 0o644), ("client.key", 0o644)] {
        let path = dir.path().join(name);
        std::fs::copy(certs.path(name), &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for job in ["migrate", "replicate", "verify"] {
        for secret in ["source-password", "target-password", "source-key", "target-key", ""] {
            // They take what is sent and never answer.
            let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let [source, target] = [&silent[0], &silent[1]].map(|listener| listener.local_addr().unwrap().port());
            let tls = |side: &str| if secret == format!("{side}-key") { "s" } else { "" };
            let mut command = Command::new(&tool);
            command.env_clear().env("TMPDIR", "/tmp").current_dir("/").arg(job);
            command.args(["--source", &format!("dragonfly{}://127.0.0.1:{source}", tls("source"))]);
            command.args(["--target", &format!("redis{}://127.0.0.1:{target}", tls("target"))]);
            command.args(["--connect-timeout", "60s", "--memory", "32MiB"]);
            if job != "verify" {
                command.args(["--control", "off"]);
            }
            match secret.split_once('-') {
                Some((side, "password")) => _ = command.env(format!("DF2REDIS_{}_PASSWORD", side.to_uppercase()), "x"),
                Some((side, _)) => {
                    for (what, name) in [("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")] {
                        command.arg(format!("--{side}-tls-{what}")).arg(file(name));
                    }
                }
                None => {}
            }
            if am_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            let mut running = start(command);
            let environ = PathBuf::from(format!("/proc/{}/environ", running.pid()));
            let owner = || std::fs::metadata(&environ).unwrap().uid();
            let is_hidden = || {
                let mut cat = Command::new("cat");
                if am_root {
                    cat.uid(NOBODY).gid(NOBODY);
                }
                let read = cat.arg(&environ).output().unwrap();
                owner() == 0 && !read.status.success() && read.stdout.is_empty()
            };
            // It has read its settings once it connects. What is accepted stays open.
            let mut accepted = Vec::new();
            let mut connected = || {
                for listener in &silent {
                    listener.set_nonblocking(true).unwrap();
                    accepted.extend(listener.accept().ok());
                }
                !accepted.is_empty()
            };
            let what = format!("{job} with {secret:?}");
            let reached = wait_for(|| {
                assert!(running.is_running(), "{what} has ended");
                connected().then_some(())
            });
            assert!(reached.is_some(), "{what} connects to nobody");
            assert_eq!(is_hidden(), !secret.is_empty(), "{what}: owner {}", owner());
            assert!(running.is_running(), "{what} has ended");
            running.signal("KILL");
            running.wait();
        }
    }
}
