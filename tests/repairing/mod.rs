//! What tests of `verify --repair` beside a running job plant, and what must become of it.

use df2redis::lab::client::Client;
use df2redis::lab::rng::Rng;
use serde_json::Value;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

/// What [`writers`] write to, and a key that nobody has.
pub const WRITTEN: [&str; 7] = ["x:count", "x:list", "x:text", "x:hash", "x:set", "x:plain", "x:never"];

/// Values that every repeated or missing record changes, written as fast as it goes until `stop`.
pub fn writers<'scope>(scope: &'scope Scope<'scope, '_>, sources: [Client; 2], stop: &'scope AtomicBool) {
    const COMMANDS: [&str; 7] = [
        "INCR x:count",
        "RPUSH x:list {}",
        "APPEND x:text {}",
        "HINCRBY x:hash f 1",
        "SPOP x:set",
        "SADD x:set {}",
        "HSET x:plain f {}",
    ];
    for (seed, mut source) in sources.into_iter().enumerate() {
        scope.spawn(move || {
            let mut rng = Rng::new(seed as u64);
            while !stop.load(Ordering::Relaxed) {
                // One in a hundred starts the list anew.
                let command = if rng.below(100) == 0 { "DEL x:list" } else { COMMANDS[rng.below(7) as usize] };
                source.run(&command.replace("{}", &rng.below(1000).to_string())).unwrap();
            }
        });
    }
}

/// Keys of the source. Each must be at the target before anything of [`AT_TARGET`] is done: a record that comes later would
/// mend what was planted.
pub const AT_SOURCE: [&str; 9] = [
    "SET p:value right",
    "SET p:missing v",
    "RPUSH p:type a b",
    "ZADD p:score 0.1 m",
    "SET p:expiry v PX 5000000",
    "HSET p:hash f 1 g 2",
    "RPUSH p:list a b c",
    "XADD p:stream 1-1 f v",
    "XGROUP CREATE p:stream g 0",
];

/// One difference of each kind.
pub const AT_TARGET: [&str; 10] = [
    "SET p:value wrong",
    "DEL p:missing",
    "DEL p:type",
    "SET p:type string",
    "ZADD p:score 0.10000000000000002 m",
    "PERSIST p:expiry",
    "HSET p:hash g 3",
    "LSET p:list 1 c",
    "XGROUP DESTROY p:stream g",
    "SET p:extra v",
];

/// What `verify --output json` says: a line each difference, and the report.
pub fn lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The keys that differ, and whether they were repaired.
pub fn told(lines: &[Value]) -> Vec<(&str, Option<bool>)> {
    let (_, differences) = lines.split_last().unwrap();
    let mut keys: Vec<_> =
        differences.iter().map(|line| (line["key"].as_str().unwrap(), line["repaired"].as_bool())).collect();
    keys.sort_unstable();
    keys
}

/// All that is planted is found and nothing else; `copy` mends all but the key that only the target has, `mirror` deletes it.
#[track_caller]
pub fn mends_what_was_planted(verify: impl Fn(&[&str]) -> Output, said: impl Fn() -> String) {
    let copied = verify(&["--repair", "copy"]);
    let repaired = ["p:expiry", "p:hash", "p:list", "p:missing", "p:score", "p:stream", "p:type", "p:value"];
    let mut wanted: Vec<_> = repaired.iter().map(|key| (*key, Some(true))).collect();
    wanted.push(("p:extra", None));
    wanted.sort_unstable();
    let found = lines(&copied);
    assert_eq!(told(&found), wanted, "{found:#?}\n{}", said());
    assert_eq!(copied.status.code(), Some(10), "only mirror deletes");
    let mirrored = verify(&["--repair", "mirror"]);
    assert_eq!((mirrored.status.code(), lines(&mirrored).len()), (Some(0), 2), "{mirrored:?}");
}
