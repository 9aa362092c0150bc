//! What keeps a session alive, and what ends it: a source that holds its commands for a while does not.

use df2redis::lab::servers::ServerKind;
use df2redis::lab::torture::wait_for;

mod in_step;

use in_step::InStep;

/// The answer to where the source stands comes later than any patience; the flows go on.
#[test]
fn a_source_that_holds_its_commands_does_not_end_the_session() {
    let Some(mut scene) = InStep::with(ServerKind::Redis7, &["--connect-timeout", "1s"]) else { return };
    let (mut source, mut target) = (scene.source(), scene.target());
    source.run("CLIENT PAUSE 8000 ALL").unwrap();
    // What is not known is not said.
    scene.wait(|status| status["in_step"] == false && status["lag"].is_null());
    scene.wait(|status| status["in_step"] == true && !status["lag"].is_null());
    source.run("SET x:after v").unwrap();
    scene.wait_acknowledged();
    assert_eq!(target.run("GET x:after").unwrap().text().as_deref(), Some("v"));
    assert_eq!(scene.live.registrations_count(), 1, "{}", scene.tool.said());
    // A connection that ends is noticed all the same, while an answer is owed too.
    source.run("CLIENT PAUSE 5000 ALL").unwrap();
    scene.wait(|status| status["in_step"] == false);
    scene.source_proxy.drop_all();
    let again = wait_for(|| (scene.live.registrations_count() == 2).then_some(()));
    assert!(again.is_some(), "{}", scene.tool.said());
    scene.stops_equal();
}
