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
        "engine/replicate.rs",
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

#[test]
fn every_module_says_what_it_is() {
    let wrong: Vec<String> =
        src().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn nothing_is_left_to_do() {
    for (path, text) in src() {
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            assert!(!code(&text).contains(word), "{word} in {path}");
        }
    }
}
