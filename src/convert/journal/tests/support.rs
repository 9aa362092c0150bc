//! A target's capabilities by name, an [`Out`] that reads back what was written, and a payload writer that shows its input.

use super::super::*;
use crate::dragonfly::event::KeyMeta;
use crate::redis::{Make, Version};
use std::collections::HashSet;

pub const NOW_MS: i64 = 1_800_000_000_000;
pub const TARGETS: [&str; 8] = ["6.2", "7.0", "7.4", "8.0", "8.4", "v8.1", "v9.0", "stack"];

/// `6.2` (Redis), `v9.0` (Valkey), `stack` (Redis 7.4 with all modules); a `c` at the end: a cluster.
pub fn capabilities(target: &str) -> Capabilities {
    let (target, cluster) = target.strip_suffix('c').map_or((target, false), |target| (target, true));
    let (make, number) = match target.strip_prefix('v') {
        Some(number) => (Make::Valkey, number),
        None => (Make::Redis, if target == "stack" { "7.4" } else { target }),
    };
    let (major, minor) = number.split_once('.').unwrap();
    let version = Version { major: major.parse().unwrap(), minor: minor.parse().unwrap(), patch: 0 };
    let is_module = |name: &str| name.contains('.');
    let mut commands: HashSet<String> = HashSet::from(["EVAL".to_owned()]);
    for row in table::TABLE {
        let dragonfly_only =
            ["SADDEX", "FIELDEXPIRE", "PREPEND", "STICK", "SHRINK", "DFLYCLUSTER", "CL.THROTTLE", "BF.LOADCHUNK"];
        let new = row.name == "DELEX" && number != "8.4";
        if !dragonfly_only.contains(&row.name) && !new && (!is_module(row.name) || target == "stack") {
            commands.insert(row.name.to_owned());
        }
    }
    Capabilities {
        make,
        version,
        cluster,
        json: target == "stack",
        field_expiry: match make {
            Make::Redis => version >= Version { major: 7, minor: 4, patch: 0 },
            Make::Valkey => version.major >= 9,
        },
        import_mode: make == Make::Valkey,
        scripts_ask: true,
        scripts_add: true,
        scripts_claim: true,
        bulk_bytes_max: 64 << 20,
        memory_limited: false,
        commands,
    }
}

pub fn translator(target: &str, policy: Policy) -> JournalTranslator {
    JournalTranslator::new(FlowId(0), Arc::new(capabilities(target)), Arc::new(policy), 1 << 20)
}

pub fn skip_all() -> Policy {
    Policy { by_kind: Vec::new(), skip_all: true }
}

/// Splits a line at blanks; `''` is the empty string.
pub fn split(line: &str) -> Vec<&[u8]> {
    line.split(' ').map(|word| if word == "''" { b"".as_slice() } else { word.as_bytes() }).collect()
}

/// Keeps the bytes of each command.
#[derive(Default)]
pub struct Sent {
    pub commands: Vec<(CommandMeta, Vec<u8>)>,
    open: bool,
    space: Vec<u8>,
}

impl Out for Sent {
    fn begin(&mut self, meta: CommandMeta) {
        assert!(!std::mem::replace(&mut self.open, true));
        self.commands.push((meta, Vec::new()));
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= crate::convert::out::SPACE_MAX && self.open);
        self.space = vec![0; len];
        &mut self.space
    }

    fn advance(&mut self, len: usize) {
        let space = std::mem::take(&mut self.space);
        self.put(&space[..len]);
    }

    fn put(&mut self, bytes: &[u8]) {
        assert!(self.open);
        self.commands.last_mut().unwrap().1.extend_from_slice(bytes);
    }

    fn put_owned(&mut self, bytes: bytes::Bytes) {
        self.put(&bytes);
    }

    fn end(&mut self) {
        assert!(std::mem::replace(&mut self.open, false));
    }
}

impl Sent {
    /// Each command in one line: class (`B`, `O`, `G`), `@slot` if it is not 0, `*` if for all nodes, and the strings.
    pub fn lines(&self) -> Vec<String> {
        assert!(!self.open);
        self.commands.iter().map(|(meta, bytes)| line(meta, &strings(bytes))).collect()
    }
}

/// The strings of one RESP command, which must be exactly one.
pub fn strings(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let number = |kind: u8, bytes: &mut &[u8]| {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a line end");
        assert_eq!(bytes[0], kind);
        let number: usize = std::str::from_utf8(&bytes[1..end]).unwrap().parse().unwrap();
        *bytes = &bytes[end + 2..];
        number
    };
    let count = number(b'*', &mut bytes);
    let mut strings = Vec::new();
    for _ in 0..count {
        let length = number(b'$', &mut bytes);
        strings.push(bytes[..length].to_vec());
        assert_eq!(&bytes[length..length + 2], b"\r\n");
        bytes = &bytes[length + 2..];
    }
    assert!(bytes.is_empty(), "bytes behind the last string");
    strings
}

fn line(meta: &CommandMeta, strings: &[Vec<u8>]) -> String {
    let class = match meta.class {
        Class::Blind => "B",
        Class::Ordered => "O",
        Class::Guarded => "G",
    };
    let slot = if meta.slot == Slot(0) { String::new() } else { format!("@{}", meta.slot) };
    let all = if meta.all_nodes { "*" } else { "" };
    let shown = strings.iter().map(|string| match string.as_slice() {
        b"" => "''".to_owned(),
        script if script.len() > 60 => "<script>".to_owned(),
        text => text.escape_ascii().to_string(),
    });
    format!("{class}{slot}{all} {}", shown.collect::<Vec<_>>().join(" "))
}

/// Writes what it was given as a command of its own, and leaves filters out.
pub struct Shown;

impl RestorePayload for Shown {
    fn restore<O: Out>(
        &mut self,
        meta: KeyMeta<'_>,
        body: &[u8],
        _now_ms: i64,
        out: &mut O,
    ) -> Result<Restored, Box<dyn std::error::Error + Send + Sync>> {
        if meta.object_type >= crate::dragonfly::event::ObjectType::Bloom {
            return Ok(Restored::LeftOut { kind: Kind::Filters, commands: 0 });
        }
        let command_meta = CommandMeta { slot: Slot(0), db: meta.db, class: Class::Blind, all_nodes: false };
        let mut request = Request::open(out, command_meta, 5, "WHOLE");
        request.text(format!("{:?}", meta.object_type).as_bytes());
        request.text(meta.key);
        request.text(format!("{:?}", meta.expire_at_ms).as_bytes());
        request.text(body);
        request.close();
        Ok(Restored::Written { commands: 1 })
    }
}

/// Translates one record and checks what holds for every record.
pub fn run(translator: &mut JournalTranslator, txid: u64, args: &[&[u8]]) -> (Result<Outcome, TranslateError>, Sent) {
    run_in(translator, DbIndex(0), txid, args)
}

pub fn run_in(
    translator: &mut JournalTranslator,
    db: DbIndex,
    txid: u64,
    args: &[&[u8]],
) -> (Result<Outcome, TranslateError>, Sent) {
    let mut sent = Sent::default();
    let result = translator.command(db, txid, args, NOW_MS, &mut Shown, &mut sent);
    let lines = sent.lines();
    let announced = match &result {
        Ok(Outcome::Written { commands }) => {
            assert!(*commands > 0);
            *commands
        }
        Ok(Outcome::LeftOut { commands, .. }) => *commands,
        Ok(_) | Err(_) => 0,
    };
    assert_eq!(announced as usize, lines.len(), "{result:?} {lines:?}");
    for (at, (meta, _)) in sent.commands.iter().enumerate() {
        let is_last = sent.commands[at + 1..].iter().all(|(later, _)| later.slot != meta.slot);
        assert!(meta.class != Class::Guarded || is_last, "a Guarded command must be the last of its slot: {lines:?}");
    }
    (result, sent)
}

/// Translates `line` for `target` under `policy`; the commands, or the outcome in angle brackets.
pub fn shown(target: &str, policy: &Policy, line: &str) -> String {
    let (result, sent) = run(&mut translator(target, policy.clone()), 0, &split(line));
    let mut lines = sent.lines();
    match result {
        Ok(Outcome::Written { .. }) => {}
        Ok(Outcome::Dropped(reason)) => lines.push(format!("<{reason:?}>")),
        Ok(Outcome::LeftOut { kind, .. }) => lines.push(format!("<left out {kind:?}>")),
        Ok(Outcome::Global(global)) => lines.push(format!("<{global:?}>")),
        Ok(Outcome::NotCarried { kind }) => lines.push(format!("<{kind:?}>")),
        Err(error) => lines.push(match error.reason {
            TranslateReason::Unsupported { kind, .. } => format!("<refused {kind:?}>"),
            reason => format!("<error: {reason}>"),
        }),
    }
    lines.join(" | ")
}

/// What each line becomes on each of the targets.
pub fn check(targets: &[&str], rows: &[(&str, &str)]) {
    for target in targets {
        for (line, expected) in rows {
            assert_eq!(shown(target, &Policy::default(), line), *expected, "{line} on {target}");
        }
    }
}

/// As [`check`], where what the target cannot hold is left out.
pub fn check_skip(targets: &[&str], rows: &[(&str, &str)]) {
    for target in targets {
        for (line, expected) in rows {
            assert_eq!(shown(target, &skip_all(), line), *expected, "{line} on {target}, skip");
        }
    }
}
