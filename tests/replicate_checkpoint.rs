//! Checkpoints that are not as a job leaves them at its end: torn ones, very long ones, and one that is being written by two.

mod common;
mod in_step;

use common::job::until;
use df2redis::lab::client::encode;
use df2redis::lab::encode::owner;
use df2redis::lab::proxy::{Faulty, Leg, Proxy};
use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::wait_for;
use in_step::InStep;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a run leaves whose transactions the target executed in part: it says that only a flush helps, and that does.
#[test]
fn a_torn_checkpoint_is_flushed_where_told_so() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    scene.stops_equal();
    let mut target = scene.target();
    assert_eq!(target.run("HDEL df2redis:checkpoint phase").unwrap().int(), Some(1));
    target.run("SET x:stale v").unwrap();
    scene.again(&[]);
    assert_eq!(scene.tool.wait(), Some(5), "{}", scene.tool.said());
    assert!(scene.tool.said().contains("--on-existing flush"), "{}", scene.tool.said());
    assert_eq!(target.run("EXISTS x:stale").unwrap().int(), Some(1));
    scene.again(&["--on-existing", "flush"]);
    scene.wait(|status| status["in_step"] == true);
    scene.stops_equal();
}

/// Longer than the control connection takes a reply: names of keys that wait to be fetched.
#[test]
fn a_checkpoint_of_very_many_names_is_read() {
    const NAMES: usize = 400_000;
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    scene.stops_equal();
    let mut stream = TcpStream::connect(("127.0.0.1", scene.server.port())).unwrap();
    for first in (0..NAMES).step_by(1000) {
        let names: Vec<String> =
            (first..first + 1000).map(|i| format!("lost:0:0:x:a-name-of-some-length:{i}")).collect();
        let mut command = vec!["HSET", "df2redis:checkpoint"];
        command.extend(names.iter().flat_map(|name| [name, ""]));
        let mut request = Vec::new();
        encode(&command, &mut request);
        stream.write_all(&request).unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b":1000\r\n");
    }
    scene.source().run("SET x:behind v").unwrap();
    // They are fetched a few at a time, so that is not waited for.
    scene.again(&[]);
    let mut target = scene.target();
    until(&mut scene.tool, "nothing is applied", || target.run("EXISTS x:behind").unwrap().int() == Some(1));
    assert_eq!(scene.live.partial_count(), 1, "{}", scene.tool.said());
    scene.tool.kill();
    scene.again(&["--on-existing", "flush"]);
    scene.wait(|status| status["in_step"] == true);
    scene.stops_equal();
}

/// A value that was fetched before a FLUSHDB of another database, and whose answer comes when its worker has said that nothing is
/// under way any more: the position that goes with it, of before the FLUSHDB, could be written behind the one that is written with
/// the FLUSHDB.
#[test]
fn what_was_fetched_is_not_written_once_a_global_command_may_be_executed() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &[]) else { return };
    scene.tool.kill();
    let key = (0..).map(|i: u32| format!("x:{i}")).find(|key| owner(key.as_bytes(), 2) == 0).unwrap();
    // If not 0, new connections stand still for a while after so many bytes.
    let late_after = Arc::new(AtomicU64::new(0));
    let plan = {
        let late_after = late_after.clone();
        move |_| {
            let bytes = late_after.load(Ordering::Acquire);
            let pause_after = (bytes > 0).then_some((bytes, Duration::from_secs(5)));
            Faulty { to_client: Leg { pause_after, ..Leg::default() }, ..Faulty::default() }
        }
    };
    scene.source_proxy = Proxy::start(scene.live.port(), plan).unwrap();
    scene.again(&["--cores", "2"]);
    scene.wait(|status| status["in_step"] == true);
    let (mut source, mut target) = (scene.source(), scene.target());
    source.run(&format!("SET {key} v")).unwrap();
    source.run("SELECT 1").unwrap();
    source.run("SET x:flushed v").unwrap();
    scene.wait_acknowledged();

    assert_eq!(target.run(&format!("DEL {key}")).unwrap().int(), Some(1));
    // The answer to INFO, that to SELECT, and a little of those that tell of the key.
    let mut plain = TcpStream::connect(("127.0.0.1", scene.live.port())).unwrap();
    plain.write_all(b"*1\r\n$4\r\nINFO\r\n").unwrap();
    let info_bytes = plain.read(&mut [0; 65536]).unwrap() as u64;
    late_after.store(info_bytes + 11, Ordering::Release);
    source.run("SELECT 0").unwrap();
    let requests = |scene: &InStep| scene.live.master().unwrap().requests();
    let before = requests(&scene).len();
    source.run(&format!("PEXPIRE {key} 5000000")).unwrap();
    // The key is asked for between two looks at the positions, beside those of every second.
    let asked = wait_for(|| {
        let requests = requests(&scene).split_off(before);
        let selected = requests.iter().position(|line| line == "SELECT 0")?;
        (requests[selected..].iter().filter(|line| *line == "DFLY REPLICAOFFSET").count() > 2).then_some(())
    });
    assert!(asked.is_some(), "{}", scene.tool.said());
    late_after.store(0, Ordering::Release);
    // The one worker has it all, the other one waits.
    scene.live.master().unwrap().stall_flow(1, Duration::from_secs(15));
    source.run("SELECT 1").unwrap();
    source.run("FLUSHDB").unwrap();
    scene.wait(|status| status["flows"][0]["state"] == "at barrier" && status["flows"][1]["state"] == "stable");
    let mut has = |db: u32, key: &str| {
        target.run(&format!("SELECT {db}")).unwrap();
        target.run(&format!("EXISTS {key}")).unwrap().int() == Some(1)
    };
    assert!(has(1, "x:flushed"), "this machine is too slow: {}", scene.tool.said());
    until(&mut scene.tool, "it does not come back", || has(0, &key));
    assert!(!has(1, "x:flushed"), "written before the FLUSHDB was executed");
    scene.stops_equal();
}
