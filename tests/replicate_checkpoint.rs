//! Checkpoints that are not as a job leaves them at its end: torn ones, and very long ones.

mod in_step;

use df2redis::lab::servers::ServerKind;
use in_step::InStep;

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
