//! Checkpoints that are not as a job leaves them at its end: torn ones, and very long ones.

mod common;
mod in_step;

use common::job::until;
use df2redis::lab::client::encode;
use df2redis::lab::servers::ServerKind;
use in_step::InStep;
use std::io::{Read, Write};
use std::net::TcpStream;

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
