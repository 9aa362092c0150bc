//! Style that can be checked is checked: layers, `unsafe`, clocks, module headers (design.md, style.md).

use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            all.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    all
}

fn src() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all: Vec<(String, String)> = sources(&root)
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(&root).unwrap().display().to_string(), text))
        .collect();
    all.sort();
    all
}

/// The text without comments and without what tests alone use.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod ").filter(|at| text[*at..].contains("tests {")).unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.ends_with("testing.rs")
}

/// Rooms that each room may name. Tests of a room may name the lab too.
const LAYERS: &[(&str, &[&str])] = &[
    ("dragonfly", &[]),
    ("redis", &[]),
    ("uring", &[]),
    ("convert", &["dragonfly", "redis"]),
    ("report", &[]),
    ("engine", &["dragonfly", "redis", "convert", "uring", "report"]),
    ("operator", &["report", "engine"]),
    ("lab", &["uring", "report", "engine"]),
    ("cli", &["convert", "engine", "operator", "report", "uring", "lab"]),
];
const ROOMS: &[&str] = &["dragonfly", "redis", "uring", "convert", "report", "engine", "operator", "lab", "cli"];

#[test]
fn rooms_name_only_those_below() {
    let mut wrong = Vec::new();
    for (path, text) in src() {
        let Some((_, allowed)) = LAYERS.iter().find(|(room, _)| path.starts_with(&format!("{room}/"))) else {
            continue;
        };
        if is_test(&path) {
            continue;
        }
        let own = path.split('/').next().unwrap();
        for (number, line) in code(&text).lines().enumerate() {
            for room in ROOMS {
                let named = line.contains(&format!("crate::{room}::")) || line.contains(&format!("crate::{room};"));
                if named && *room != own && !allowed.contains(room) {
                    wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The encoder that judges the decoder owes it nothing.
#[test]
fn the_lab_makes_its_bytes_alone() {
    for (path, text) in src() {
        if path.starts_with("lab/encode") || path.starts_with("lab/generate") {
            assert!(!code(&text).contains("crate::dragonfly"), "{path}");
        }
    }
}

#[test]
fn unsafe_stands_in_one_room_and_says_why() {
    let mut wrong = Vec::new();
    for (path, text) in src() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let bare = line.trim_start();
            let opens = bare.contains("unsafe {") || bare.contains("unsafe impl") || bare.contains("unsafe fn");
            if bare.starts_with("//") || !opens {
                continue;
            }
            let before = &lines[number.saturating_sub(12)..number];
            let says = before.iter().any(|line| line.contains("SAFETY") || line.contains("# Safety"));
            if !path.starts_with("uring/") || !says {
                wrong.push(format!("{path}:{}: {bare}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Time comes as an argument; only these read a clock.
#[test]
fn clocks_are_read_in_few_places() {
    const ALLOWED: &[&str] = &[
        "uring/",
        "engine/crew",
        "engine/crew/",
        "engine/job.rs",
        "engine/link.rs",
        "engine/migrate.rs",
        "engine/preflight.rs",
        "engine/replicate",
        "engine/verify/",
        "operator/",
        "lab/",
        "cli/",
        "report/counters.rs",
    ];
    let mut wrong = Vec::new();
    for (path, text) in src() {
        if is_test(&path) || ALLOWED.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in code(&text).lines().enumerate() {
            if line.contains("Instant::now") || line.contains("SystemTime::now") {
                wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whoever tries again after a pause comes from `engine/patience.rs`, so that many do not come back at one instant.
#[test]
fn pauses_have_jitter() {
    let mut wrong = Vec::new();
    for (path, text) in src() {
        if !path.starts_with("engine/") || is_test(&path) || path == "engine/patience.rs" {
            continue;
        }
        for (number, line) in code(&text).lines().enumerate() {
            let slept = line.split("sleep(").nth(1).map(str::to_lowercase);
            if slept.is_some_and(|slept| slept.contains("pause")) {
                wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The code of the product, without its tests and the lab.
fn product() -> Vec<(String, String)> {
    let all = src().into_iter().filter(|(path, _)| !is_test(path) && !path.starts_with("lab/"));
    all.map(|(path, text)| (path, code(&text))).collect()
}

/// Where these words are, and how often.
fn places<'a>(files: &'a [(String, String)], words: &str) -> Vec<(&'a str, usize)> {
    let counted = files.iter().map(|(path, text)| (path.as_str(), text.matches(words).count()));
    counted.filter(|(_, count)| *count > 0).collect()
}

/// A certificate is checked wherever `danger` was not asked for, and one room knows how.
#[test]
fn tls_stands_in_one_room_and_its_danger_in_one_line() {
    let files = product();
    for words in [".dangerous()", "impl ServerCertVerifier"] {
        assert_eq!(places(&files, words), [("engine/tls/danger.rs", 1)], "{words}");
    }
    assert_eq!(places(&files, "danger::accept_any_cert("), [("engine/tls.rs", 1)]);
    for words in ["rustls::", "webpki", "native_tls", "openssl"] {
        let mut found = places(&files, words);
        found.retain(|(path, _)| !path.starts_with("engine/tls"));
        assert_eq!(found, [], "{words}");
    }
}

/// Plain or over TLS, what goes to a server goes over a ring: the product has no other sockets for it.
#[test]
fn rings_carry_tls() {
    let files = product();
    // A session has no socket of its own: these three hold one, beside it.
    let holders: Vec<&str> = places(&files, "Box<Session>").into_iter().map(|(path, _)| path).collect();
    assert_eq!(holders, ["engine/link.rs", "engine/verify/wire.rs", "engine/wire.rs"]);
    let ring = "use tokio_uring::net::TcpStream;";
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with("engine/")) {
        let named = text.replace(ring, "");
        assert!(!named.contains("TcpStream") || text.contains(ring), "{path} has another kind of socket");
        for other in ["net::TcpStream", "tokio::net", "std::os::unix::net"] {
            assert!(!named.contains(other), "{path} has {other}");
        }
    }
    let wire = files.iter().find(|(path, _)| path == "engine/wire.rs").map(|(_, text)| text.as_str());
    assert!(wire.is_some_and(|text| text.contains("socket: Rc<Socket>") && !text.contains("TcpStream")));
}

#[test]
fn every_module_says_what_it_is() {
    let wrong: Vec<String> =
        src().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// `DF2REDIS_TOOL` runs another binary in place of the one that was built, but for what is said of this one.
#[test]
fn every_test_can_run_another_binary() {
    const OF_THIS_ONE: &[&str] = &["readme.rs", "tidy.rs"];
    let mut wrong = Vec::new();
    for (path, text) in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let built = text.lines().filter(|line| line.contains("CARGO_BIN_EXE") && !line.contains("tool_binary("));
        wrong.extend(built.filter(|_| !OF_THIS_ONE.contains(&name.as_str())).map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_to_do() {
    for (path, text) in src() {
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            assert!(!code(&text).contains(word), "{word} in {path}");
        }
    }
}
