//! Precedence, combinations, refusals; error texts as they are read.

use super::super::layers::{Environment, Flags};
use super::super::print::print_config;
use super::super::table::{MIGRATE, TABLE};
use super::*;
use crate::convert::{Action, Kind};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

fn flags(given: &[(&str, &str)]) -> Flags {
    let mut flags = Flags::default();
    for &(name, text) in given {
        let setting = TABLE.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no setting {name}"));
        flags.given.entry(setting.name).or_default().push(text.to_string());
    }
    flags
}

fn environment(given: &[(&str, &str)]) -> Environment {
    Environment::of(given.iter().map(|&(name, value)| (name.into(), value.into())))
}

const SERVERS: [(&str, &str); 2] = [("source", "dragonfly://a:1"), ("target", "redis://b")];

fn resolve(given: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<(MigrateSettings, Values), UsageError> {
    let mut all = SERVERS.to_vec();
    all.retain(|(name, _)| given.iter().all(|(other, _)| other != name));
    all.retain(|(name, _)| *name != "target" || variables.iter().all(|(other, _)| *other != "DF2REDIS_TARGET"));
    all.extend(given);
    let mut values = Values::merge(MIGRATE, &flags(&all), &environment(variables))?;
    let settings = migrate(&mut values)?;
    Ok((settings, values))
}

fn refusal(given: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
    match resolve(given, variables) {
        Ok(_) => panic!("{given:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    (dir, path.to_str().unwrap().to_string())
}

#[test]
fn defaults_are_those_of_the_rooms() {
    let (settings, values) = resolve(&[], &[]).unwrap();
    assert_eq!(settings.ring, RingSettings::default());
    assert_eq!((settings.memory_bytes, settings.connections, settings.batch_bytes), (256 << 20, 2, 512 << 10));
    assert_eq!(
        (settings.window_bytes, settings.borrow_bytes_min, settings.restore_bytes_max),
        (3 << 20, 2048, 128 << 10)
    );
    assert_eq!((settings.source.host.as_str(), settings.source.port), ("a", 1));
    assert_eq!((settings.target.host.as_str(), settings.target.port), ("b", 6379));
    assert!(settings.cores >= 1 && settings.pin_cpus.is_empty() && settings.rx_chunk_bytes.is_none());
    assert!(settings.on_unsupported.by_kind.is_empty() && !settings.on_unsupported.skip_all);
    assert!(values.warnings().is_empty());
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let (_dir, path) = file("connections = 5\ncores = 5\nmemory = \"64MiB\"\nlink = false\n");
    let (settings, values) =
        resolve(&[("config", &path), ("connections", "3")], &[("DF2REDIS_CONNECTIONS", "4"), ("DF2REDIS_CORES", "4")])
            .unwrap();
    assert_eq!(
        (settings.connections, settings.cores, settings.memory_bytes, settings.ring.link),
        (3, 4, 64 << 20, false)
    );
    assert_eq!(values.origin(&table::CONNECTIONS), Some(&Origin::Flag));
    assert_eq!(values.origin(&table::CORES), Some(&Origin::Environment));
    assert_eq!(values.origin(&table::MEMORY), Some(&Origin::File(PathBuf::from(&path))));
    assert_eq!(values.origin(&table::BATCH_BYTES), Some(&Origin::Default));
}

#[test]
fn the_file_may_be_named_in_the_environment_and_an_empty_variable_is_none() {
    let (_dir, path) = file("connections = 5\n");
    let (settings, _) = resolve(&[], &[("DF2REDIS_CONFIG", &path), ("DF2REDIS_CONNECTIONS", "")]).unwrap();
    assert_eq!(settings.connections, 5);
}

#[test]
fn golden_print_config() {
    let (_dir, path) =
        file("connections = 5\ntarget-password = \"hunter2\"\non-unsupported = [\"json=string\", \"skip\"]\n");
    let (_, values) = resolve(
        &[("config", &path), ("cores", "2"), ("sqpoll", "50")],
        &[("DF2REDIS_MEMORY", "64MiB"), ("DF2REDIS_SOURCE_PASSWORD", "hunter3")],
    )
    .unwrap();
    let text = print_config(&values, MIGRATE);
    assert!(!text.contains("hunter"));
    insta::assert_snapshot!(text.replace(&path, "/etc/df2redis.toml"));
    // What is printed is itself a file that can be read.
    let (_dir, again) = file(&text);
    let (settings, _) = resolve(&[("config", &again)], &[]).unwrap();
    assert_eq!((settings.memory_bytes, settings.connections, settings.cores), (64 << 20, 5, 2));
    assert!(settings.on_unsupported.skip_all);
}

#[test]
fn golden_refusals() {
    let (_dir, unknown) = file("conections = 5\n");
    let (_dir2, foreign) = file("[colours]\nred = 1\n");
    let (_dir3, garbled) = file("cores = 1\ntarget-password = \"hunter2\n");
    let (_dir4, table_value) = file("cores = 1.5\n");
    let (_dir5, empty) = file("\nsecond line\n");
    let flag_cases: Vec<Vec<(&str, &str)>> = vec![
        vec![("source", "redis://a:1")],
        vec![("source", "a:1")],
        vec![("target", "tls://b")],
        vec![("source", "rediss://a")],
        vec![("target-tls-ca", "/ca.pem")],
        vec![("target", "redis://b"), ("target-tls-danger-accept-any-cert", "on")],
        vec![("target", "rediss://b"), ("target-tls-ca", "/nonexistent/ca.pem")],
        vec![("target", "rediss://b"), ("target-tls-ca", &empty)],
        vec![("target", "rediss://b"), ("target-tls-ca", &empty), ("target-tls-danger-accept-any-cert", "on")],
        vec![("target", "valkeys://b"), ("target-tls-danger-accept-any-cert", "on"), ("target-tls-key", &empty)],
        vec![("source", "dragonflys://a_b*c"), ("source-tls-danger-accept-any-cert", "on")],
        vec![("target", "redis://me:hunter2@b")],
        vec![("target", "redis://a:1")],
        vec![("memory", "1MiB")],
        vec![("memory", "lots")],
        vec![("connect-timeout", "10")],
        vec![("on-existing", "merge")],
        vec![("on-unsupported", "jsn=skip")],
        vec![("on-unsupported", "json=drop")],
        vec![("on-unsupported", "member-expiry=skip")],
        vec![("on-unsupported", "perhaps")],
        vec![("taskrun", "defer"), ("sqpoll", "10")],
        vec![("read", "read-fixed"), ("registered-buffers", "off")],
        vec![("batch-bytes", "1MiB"), ("window-bytes", "64KiB")],
        vec![("pin", "0"), ("cores", "2")],
        vec![("pin", "0,0")],
        vec![("rx-chunk", "5000")],
        vec![("rx-chunk", "64MiB")],
        vec![("sq-entries", "100")],
        vec![("sq-entries", "32"), ("link-batches", "32")],
        vec![("config", &unknown)],
        vec![("config", &foreign)],
        vec![("config", &garbled)],
        vec![("config", &table_value)],
        vec![("config", "/nonexistent/df2redis.toml")],
        vec![("target-password-file", &empty)],
        vec![("target-password-file", "/nonexistent/password")],
    ];
    let variable_cases = [("DF2REDIS_TARGET", "redis://b:notaport"), ("DF2REDIS_TARGET_USER", "hunter2")];
    let mut text = String::new();
    let of_flags = flag_cases.iter().map(|given| refusal(given, &[]));
    let of_variables = variable_cases.iter().map(|variable| refusal(&[], &[*variable]));
    for refusal in of_flags.chain(of_variables) {
        assert!(!refusal.contains("hunter2"), "{refusal}");
        for line in [refusal.as_str(), ""] {
            text.push_str(line);
            text.push('\n');
        }
    }
    for path in [&unknown, &foreign, &garbled, &table_value, &empty] {
        text = text.replace(path.as_str(), "/tmp/file");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_missing_server_says_how_to_give_it() {
    let mut values = Values::merge(MIGRATE, &flags(&[]), &environment(&[])).unwrap();
    insta::assert_snapshot!(migrate(&mut values).unwrap_err().to_string(), @"source is missing: give --source URL, DF2REDIS_SOURCE in the environment, or source in the --config file");
}

#[test]
fn defaults_give_way_to_what_was_said() {
    let (settings, values) = resolve(&[("sqpoll", "50"), ("registered-buffers", "off"), ("pin", "1,3")], &[]).unwrap();
    assert_eq!(settings.ring.taskrun, TaskRun::Interrupt);
    assert_eq!((settings.ring.read, settings.ring.registered_buffers), (ReadMode::Recv, false));
    assert_eq!((settings.cores, settings.pin_cpus), (2, vec![1, 3]));
    assert_eq!(values.origin(&table::TASKRUN), Some(&Origin::Follows("sqpoll")));
}

#[test]
fn settings_without_effect_and_unknown_variables_are_warned_of() {
    let (_, values) = resolve(
        &[("link", "off"), ("link-batches", "4"), ("zero-copy-bytes", "1MiB")],
        &[("DF2REDIS_MEMROY", "1GiB"), ("PATH", "/bin")],
    )
    .unwrap();
    insta::assert_snapshot!(values.warnings().join("\n"), @r"
    the environment variable DF2REDIS_MEMROY is not known and has no effect; did you mean DF2REDIS_MEMORY?
    link-batches has no effect with --link off
    zero-copy-bytes has no effect without --write sendmsg-zc
    ");
}

#[test]
fn passwords_come_from_the_higher_layer_and_are_never_shown() {
    let (dir, path) = file("opensesame\nsecond\n");
    let (settings, values) = resolve(
        &[("target-password-file", &path)],
        &[
            ("DF2REDIS_TARGET_PASSWORD", "hunter2"),
            ("DF2REDIS_SOURCE_PASSWORD", "hunter2"),
            ("DF2REDIS_SOURCE_USER", "hunter2"),
        ],
    )
    .unwrap();
    assert_eq!(settings.target.password.expose(), Some("opensesame"));
    assert_eq!((settings.source.user.expose(), settings.source.password.expose()), (Some("hunter2"), Some("hunter2")));
    assert!(values.warnings().is_empty());
    let shown = format!("{settings:?} {}", serde_json::to_string(&settings).unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("opensesame"), "{shown}");

    let both = [("DF2REDIS_TARGET_PASSWORD", "x"), ("DF2REDIS_TARGET_PASSWORD_FILE", path.as_str())];
    assert_eq!(refusal(&[], &both), "target-password and target-password-file are both set; set one");

    std::fs::set_permissions(dir.path().join("config.toml"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, values) = resolve(&[("target-password-file", &path)], &[]).unwrap();
    assert_eq!(
        values.warnings(),
        [format!("{path} holds a secret and every user may read it; run: chmod o-rwx {path}")]
    );
}

#[test]
fn secrets_come_from_systemd_below_the_environment_and_above_the_file() {
    let (dir, path) = file("target-password = \"from-file\"\n");
    std::fs::write(dir.path().join("target-password"), "from-systemd\n").unwrap();
    std::fs::write(dir.path().join("source-user"), "me").unwrap();
    std::fs::write(dir.path().join("source-password"), "too").unwrap();
    // No secret: not looked for.
    std::fs::write(dir.path().join("memory"), "1GiB").unwrap();
    let credentials = ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap());
    let (settings, values) = resolve(&[("config", &path)], &[credentials]).unwrap();
    assert_eq!(settings.target.password.expose(), Some("from-systemd"));
    assert_eq!((settings.source.user.expose(), settings.source.password.expose()), (Some("me"), Some("too")));
    assert_eq!((settings.memory_bytes, values.warnings().len()), (256 << 20, 0));
    let text = print_config(&values, MIGRATE);
    assert!(text.contains("# target-password is set and not shown (systemd credential target-password)"), "{text}");
    let (settings, _) = resolve(&[], &[credentials, ("DF2REDIS_TARGET_PASSWORD", "from-environment")]).unwrap();
    assert_eq!(settings.target.password.expose(), Some("from-environment"));
    let (settings, _) = resolve(&[("target-password-file", &path)], &[credentials]).unwrap();
    assert_eq!(settings.target.password.expose(), Some("target-password = \"from-file\""));
}

#[test]
fn tls_follows_the_url_and_its_danger_is_warned_of() {
    let (settings, values) = resolve(
        &[("source", "dragonflys://a"), ("source-tls-danger-accept-any-cert", "on"), ("target", "valkey://b")],
        &[],
    )
    .unwrap();
    assert!(settings.target.tls.is_none());
    let tls = settings.source.tls.as_ref().unwrap();
    assert!(tls.files().danger_accept_any_cert && tls.side() == "source");
    insta::assert_snapshot!(values.warnings().join("\n"), @"source-tls-danger-accept-any-cert is on: the source's certificate is not checked, and whoever is in between can read and change everything");
    let shown = serde_json::to_value(&settings).unwrap();
    assert_eq!(shown["source"]["tls"]["danger_accept_any_cert"], true);
    assert!(shown["target"]["tls"].is_null());
}

#[test]
fn policies_are_read() {
    let (settings, _) =
        resolve(&[("on-unsupported", "skip,json=string"), ("on-unsupported", "filters=refuse")], &[]).unwrap();
    assert!(settings.on_unsupported.skip_all);
    assert_eq!(settings.on_unsupported.by_kind, [(Kind::Json, Action::AsString), (Kind::Filters, Action::Refuse)]);
}
