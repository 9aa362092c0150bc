//! `df2redis cutover` against a replayed source and a real target: handed over with everything at the target, or rolled
//! back with the source released and the job following on; with faults at every step.

use df2redis::lab::LabError;
use df2redis::lab::client::Client;
use df2redis::lab::master::MasterOptions;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Stage, Tool, tool_binary, wait_for};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static TOOL: LazyLock<PathBuf> = LazyLock::new(|| tool_binary(env!("CARGO_BIN_EXE_df2redis")));

/// A source, a target, a job between them, and its socket.
struct Scene {
    stage: Stage,
    tool: Tool,
    path: PathBuf,
    hooks: usize,
}

impl Scene {
    /// In step with a source whose journal is at its end.
    fn in_step(more: &[&str]) -> Self {
        let mut scene = Self::begin(100, more);
        scene.wait_phase("in step");
        scene
    }

    fn begin(stable_ms: u64, more: &[&str]) -> Self {
        let server = Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap();
        Self::begin_on(server, stable_ms, more)
    }

    fn begin_on(server: Server, stable_ms: u64, more: &[&str]) -> Self {
        let server = Arc::new(server);
        let times = (Duration::from_millis(50), Duration::from_millis(stable_ms));
        let options = MasterOptions::default();
        let stage = Stage::new(&TOOL, "follow-lz4", server, ServerKind::Redis7, times, options).unwrap();
        let path = stage.dir.join("job.sock");
        let tool = start(&stage, &path, more);
        Self { stage, tool, path, hooks: 0 }
    }

    fn again(&mut self) {
        self.tool = start(&self.stage, &self.path, &[]);
    }

    fn wait_phase(&mut self, phase: &str) {
        let Self { tool, path, .. } = self;
        let reached = wait_for(|| {
            assert_eq!(tool.ended(), None, "{}", tool.said());
            status(path).filter(|status| status["phase"] == phase)
        });
        assert!(reached.is_some(), "never {phase}:\n{}", self.tool.said());
    }

    fn hook(&mut self, text: &str) -> String {
        self.hooks += 1;
        hook(&self.stage.dir, &format!("hook-{}", self.hooks), text)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&*TOOL);
        command.arg("cutover").args(args).args(["--output", "json", "--control", self.path.to_str().unwrap()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn begin_cutover(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    fn cutover(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// How often the source was asked something that begins so.
    fn asked(&self, request: &str) -> usize {
        self.stage.master.requests().iter().filter(|asked| asked.starts_with(request)).count()
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.stage.dir.join(name)).ok()
    }

    /// Rolled back: the source is released, and the job follows to the end.
    #[track_caller]
    fn follows_on(self) {
        let fences = self.asked("CLIENT PAUSE");
        assert!(fences == 0 || self.asked("CLIENT UNPAUSE") >= 1, "{:?}", self.stage.master.requests());
        self.stage.finish(self.tool).unwrap();
    }

    /// Handed over: the job has ended well, and everything is at the target but nothing of the tool's.
    #[track_caller]
    fn handed_over(mut self) {
        assert_eq!(self.tool.wait(), Some(0), "{}", self.tool.said());
        self.stage.compare().unwrap();
        let mut client = self.stage.server.client().unwrap();
        for db in 0..16 {
            client.run(&format!("SELECT {db}")).unwrap();
            let own = client.run("KEYS df2redis:*").unwrap();
            assert_eq!(own.array().map(|keys| keys.len()), Some(0), "database {db}: {own:?}");
        }
        assert_eq!(self.stage.master.violations(), []);
    }
}

fn start(stage: &Stage, path: &Path, more: &[&str]) -> Tool {
    let mut args = vec!["--control", path.to_str().unwrap(), "--log", "info"];
    args.extend(more);
    stage.start(&args).unwrap()
}

fn hook(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}\n", dir.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_string()
}

fn status(path: &Path) -> Option<Value> {
    let output = Command::new(&*TOOL)
        .args(["status", "--output", "json", "--control", path.to_str().unwrap()])
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(answer["status"].clone())
}

/// What `df2redis cutover` said.
struct Done {
    code: i32,
    report: Value,
    said: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let last: Value = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let said = format!("{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
        Self { code: output.status.code().unwrap_or(-1), report: last["cutover"]["ended"].clone(), said }
    }

    #[track_caller]
    fn not_done(&self, why: &str) {
        self.not_done_with(9, why);
    }

    #[track_caller]
    fn not_done_with(&self, code: i32, why: &str) {
        assert_eq!((self.code, &self.report["outcome"]), (code, &"not-done".into()), "{}", self.said);
        let message = self.report["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "no {why:?} in {message:?}\n{}", self.said);
    }
}

#[test]
fn without_execute_nothing_is_changed() {
    let scene = Scene::in_step(&[]);
    let done = scene.cutover(&["--hook", "/bin/true"]);
    assert_eq!((done.code, &done.report["outcome"]), (0, &"planned".into()), "{}", done.said);
    let names: Vec<_> = done.report["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    for name in ["positions", "fence", "proven equal", "verify", "switch", "end of the job", "on any miss"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(scene.asked("CLIENT PAUSE"), 0);
    scene.follows_on();
}

#[test]
fn a_cutover_hands_over() {
    let dir = tempfile::tempdir().unwrap();
    let event = |name: &str| hook(dir.path(), name, "echo $DF2REDIS_EVENT >> events");
    let (before, after, drained) = (event("b"), event("a"), event("d"));
    let (over, aborted, in_step) = (event("o"), event("x"), event("i"));
    let mut scene = Scene::in_step(&[
        "--hook-in-step",
        &in_step,
        "--hook-before-fence",
        &before,
        "--hook-after-fence",
        &after,
        "--hook-drained",
        &drained,
        "--hook-handed-over",
        &over,
        "--hook-aborted",
        &aborted,
        "--report",
        dir.path().join("report").to_str().unwrap(),
    ]);
    let switch = scene.hook("env > env; cat > facts");
    let done = scene.cutover(&["--execute", "--hook", &switch, "--budget", "20s"]);
    assert_eq!((done.code, &done.report["outcome"]), (0, &"handed-over".into()), "{}", done.said);
    let facts: Value = serde_json::from_str(&scene.file("facts").unwrap()).unwrap();
    assert_eq!(facts["event"], "switch");
    assert_eq!(facts["positions"], done.report["positions"]);
    assert!(facts["fence_left_ms"].as_u64().unwrap() <= 20_000);
    let env = scene.file("env").unwrap();
    assert!(env.contains("DF2REDIS_EVENT=switch") && !env.contains("CARGO"), "{env}");
    assert_eq!((scene.asked("CLIENT PAUSE 20000 WRITE"), scene.asked("CLIENT UNPAUSE")), (1, 0));
    let report = dir.path().join("report/report.json");
    scene.handed_over();
    let events = std::fs::read_to_string(dir.path().join("events")).unwrap();
    assert_eq!(
        events.lines().collect::<Vec<_>>(),
        ["in-step", "before-fence", "after-fence", "drained", "handed-over"]
    );
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["cutover"]["outcome"], "handed-over");
}

/// The target has its traffic by then, and in that mode it expires nothing: not for as long as a hook takes, nor behind a kill.
#[test]
fn import_mode_has_ended_when_the_hook_of_the_end_is_called() {
    let server = match Server::start_kind(ServerKind::Valkey9, ServerOptions::default()) {
        Err(LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what}"),
        server => server.unwrap(),
    };
    let dir = tempfile::tempdir().unwrap();
    let kills = hook(dir.path(), "kills", "kill -9 $PPID");
    let mut scene = Scene::begin_on(server, 100, &["--hook-handed-over", &kills]);
    scene.wait_phase("in step");
    let mut target = scene.stage.server.client().unwrap();
    let mode = |target: &mut Client| target.run("CONFIG GET import-mode").unwrap().array().unwrap()[1].text().unwrap();
    assert_eq!(mode(&mut target), "yes");
    scene.cutover(&["--execute", "--budget", "20s"]);
    assert_eq!(scene.tool.wait(), Some(-1), "not killed:\n{}", scene.tool.said());
    assert_eq!(
        (mode(&mut target).as_str(), target.run("KEYS df2redis:*").unwrap().array().map(|keys| keys.len())),
        ("no", Some(0))
    );
}

/// What the target refuses there is told to whoever cuts over.
#[test]
fn import_mode_that_cannot_be_ended_is_told() {
    let server = match Server::start_kind(ServerKind::Valkey9, ServerOptions::default()) {
        Err(LabError::NoServer { what, .. }) => return eprintln!("skipped: no {what}"),
        server => server.unwrap(),
    };
    let mut scene = Scene::begin_on(server, 100, &[]);
    scene.wait_phase("in step");
    let mut target = scene.stage.server.client().unwrap();
    target.run("ACL SETUSER default -config|set").unwrap();
    let done = scene.cutover(&["--execute", "--budget", "20s"]);
    assert_eq!(done.report["outcome"], "handed-over", "{}", done.said);
    assert!(done.report["message"].as_str().unwrap_or_default().contains("import mode"), "{}", done.said);
    // It stays for the next job to know whose the mode is.
    assert_eq!(target.run("EXISTS df2redis:import-mode").unwrap().int(), Some(1));
}

#[test]
fn a_hook_that_fails_or_hangs_is_rolled_back() {
    let mut scene = Scene::in_step(&[]);
    let failing = scene.hook("exit 7");
    scene.cutover(&["--execute", "--hook", &failing, "--budget", "20s"]).not_done("exit status: 7");
    let hanging = scene.hook("sleep 600");
    scene.cutover(&["--execute", "--hook", &hanging, "--budget", "20s", "--hook-timeout", "300ms"]).not_done("killed");
    scene.cutover(&["--execute", "--hook", &hanging, "--budget", "1s"]).not_done("killed");
    assert_eq!(scene.asked("CLIENT UNPAUSE"), 3);
    // And then it works.
    let done = scene.cutover(&["--execute", "--budget", "20s"]);
    assert_eq!(done.code, 0, "{}", done.said);
    scene.handed_over();
}

/// Writers are not held for a hook that cannot be called.
#[test]
fn a_hook_that_is_no_program_is_known_before_the_fence() {
    let scene = Scene::in_step(&[]);
    let text = scene.stage.dir.join("no-program");
    std::fs::write(&text, "").unwrap();
    for (hook, why) in [("/nonexistent/hook", "cannot be called"), (text.to_str().unwrap(), "no executable file")] {
        scene.cutover(&["--hook", hook]).not_done(why);
        scene.cutover(&["--execute", "--hook", hook]).not_done(why);
    }
    assert_eq!(scene.asked("CLIENT PAUSE"), 0);
    scene.follows_on();
}

#[test]
fn a_before_fence_hook_may_veto() {
    let dir = tempfile::tempdir().unwrap();
    let (veto, aborted) = (hook(dir.path(), "veto", "exit 1"), hook(dir.path(), "aborted-hook", "cat > reason"));
    let scene = Scene::in_step(&["--hook-before-fence", &veto, "--hook-aborted", &aborted]);
    scene.cutover(&["--execute"]).not_done("vetoed");
    assert_eq!(scene.asked("CLIENT PAUSE"), 0);
    assert!(std::fs::read_to_string(dir.path().join("reason")).unwrap().contains("vetoed"));
    scene.follows_on();
}

#[test]
fn a_target_that_is_not_in_step_is_not_fenced() {
    let mut scene = Scene::begin(3000, &[]);
    scene.wait_phase("catching up");
    scene.cutover(&["--execute", "--wait", "100ms"]).not_done("in step");
    assert_eq!(scene.asked("CLIENT PAUSE"), 0);
    scene.follows_on();
}

#[test]
fn a_difference_in_counts_is_rolled_back() {
    let scene = Scene::in_step(&[]);
    let mut client = scene.stage.server.client().unwrap();
    for i in 0..5000 {
        client.run(&format!("SET extra:{i} 1")).unwrap();
    }
    scene.cutover(&["--execute", "--budget", "20s"]).not_done_with(10, "database 0 has");
    for i in 0..5000 {
        client.run(&format!("DEL extra:{i}")).unwrap();
    }
    scene.follows_on();
}

#[test]
fn a_source_cut_after_the_fence_is_rolled_back_and_followed_again() {
    let dir = tempfile::tempdir().unwrap();
    let after = hook(dir.path(), "after", "touch fenced; sleep 1");
    let scene = Scene::in_step(&["--hook-after-fence", &after]);
    let cutover = scene.begin_cutover(&["--execute", "--budget", "30s"]);
    wait_for(|| dir.path().join("fenced").exists().then_some(())).unwrap();
    scene.stage.master.cut_all();
    Done::of(cutover.wait_with_output().unwrap()).not_done("session with the source ended");
    wait_for(|| (scene.stage.master.partial_count() > 0).then_some(())).unwrap();
    scene.follows_on();
}

#[test]
fn a_tool_killed_between_fence_and_switch_leaves_the_source_alone() {
    let dir = tempfile::tempdir().unwrap();
    let drained = hook(dir.path(), "drained-hook", "touch drained; sleep 5; touch survived");
    let mut scene = Scene::in_step(&["--hook-drained", &drained]);
    let switch = scene.hook("touch switched");
    let cutover = scene.begin_cutover(&["--execute", "--hook", &switch, "--budget", "30s"]);
    wait_for(|| dir.path().join("drained").exists().then_some(())).unwrap();
    scene.tool.kill();
    let done = Done::of(cutover.wait_with_output().unwrap());
    assert_eq!(done.code, 9, "{}", done.said);
    assert!(scene.file("switched").is_none());
    scene.again();
    scene.wait_phase("in step");
    assert!(!dir.path().join("survived").exists(), "the hook died with the job");
    let Scene { stage, tool, .. } = scene;
    stage.finish(tool).unwrap();
}

/// A stopped process wakes up when the fence is over.
#[test]
fn a_tool_stopped_for_longer_than_the_budget_never_switches() {
    let dir = tempfile::tempdir().unwrap();
    let drained = hook(dir.path(), "drained-hook", "touch drained; sleep 2");
    let mut scene = Scene::in_step(&["--hook-drained", &drained]);
    let switch = scene.hook("touch switched");
    let cutover = scene.begin_cutover(&["--execute", "--hook", &switch, "--budget", "6s"]);
    wait_for(|| dir.path().join("drained").exists().then_some(())).unwrap();
    scene.tool.signal("STOP");
    std::thread::sleep(Duration::from_millis(6500));
    scene.tool.signal("CONT");
    Done::of(cutover.wait_with_output().unwrap()).not_done("within the budget");
    assert!(scene.file("switched").is_none());
    scene.follows_on();
}

#[test]
fn a_stop_or_a_client_that_goes_rolls_back() {
    let dir = tempfile::tempdir().unwrap();
    let after = hook(dir.path(), "after", "touch fenced; sleep 1");
    let mut scene = Scene::in_step(&["--hook-after-fence", &after]);
    let mut cutover = scene.begin_cutover(&["--execute", "--budget", "30s"]);
    wait_for(|| dir.path().join("fenced").exists().then_some(())).unwrap();
    cutover.kill().unwrap();
    cutover.wait().unwrap();
    wait_for(|| (scene.asked("CLIENT UNPAUSE") == 1).then_some(())).unwrap();
    std::fs::remove_file(dir.path().join("fenced")).unwrap();
    wait_for(|| scene.tool.said().contains("cutover not done").then_some(())).unwrap();
    let cutover = scene.begin_cutover(&["--execute", "--budget", "30s"]);
    wait_for(|| dir.path().join("fenced").exists().then_some(())).unwrap();
    // A second one is refused meanwhile.
    let second = scene.cutover(&["--execute"]);
    assert!(second.code == 9 && second.said.contains("under way"), "{}", second.said);
    scene.tool.signal("INT");
    Done::of(cutover.wait_with_output().unwrap()).not_done("told to stop");
    assert_eq!(scene.tool.wait(), Some(130), "{}", scene.tool.said());
    assert_eq!(scene.asked("CLIENT UNPAUSE"), 2);
    scene.again();
    scene.follows_on();
}

#[test]
fn a_paused_job_is_not_cut_over() {
    let scene = Scene::in_step(&[]);
    let tell = |what: &str| {
        Command::new(&*TOOL).args([what, "--control", scene.path.to_str().unwrap()]).output().unwrap().status.success()
    };
    assert!(tell("pause"));
    scene.cutover(&["--execute"]).not_done("paused");
    assert!(tell("resume"));
    scene.follows_on();
}

#[test]
fn rehearsals_release_every_time() {
    let rounds = std::env::var("DF2REDIS_REHEARSALS").unwrap_or("10".into());
    let scene = Scene::in_step(&[]);
    let done = scene.cutover(&["--rehearse", &rounds, "--budget", "20s"]);
    assert_eq!((done.code, &done.report["outcome"]), (0, &"rehearsed".into()), "{}", done.said);
    let rehearsal = &done.report["rehearsal"];
    eprintln!("held {}, drained {}", rehearsal["held"], rehearsal["drained"]);
    let count: usize = rounds.parse().unwrap();
    assert_eq!((&rehearsal["rounds"], &rehearsal["missed"]), (&count.into(), &0.into()));
    assert_eq!((scene.asked("CLIENT PAUSE"), scene.asked("CLIENT UNPAUSE")), (count, count));
    scene.follows_on();
}
