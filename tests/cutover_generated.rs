//! Seeded cutovers from a source that is hammered with writes, with faults at every step: each ends handed over with no
//! acknowledged write missing at the target, or rolled back with the source writable and the job following on. And what the
//! comparison behind the fence finds, and what rehearsals leave alone.
//! `DF2REDIS_SEEDS=200` runs more seeds than the few that fit into CI; `DF2REDIS_SEED` is the first.

mod common;

use common::job::{binary, seeds};
use df2redis::lab::live::stage::{Fault as StageFault, LiveStage, StageOptions};
use df2redis::lab::rng::Rng;
use df2redis::lab::servers::{Server, ServerKind, ServerOptions};
use df2redis::lab::torture::{Tool, compare, wait_for};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong in a cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    HookFails,
    HookHangs,
    /// SIGKILL while the source is fenced and nothing is switched.
    Killed,
    /// SIGSTOP for longer than the budget.
    Stopped,
    /// The source closes one flow, or everything, behind the fence.
    CutFlow,
    CutAll,
    /// The target closes the data connections behind the fence.
    KillLanes,
    /// The target answers nothing for a while; perhaps longer than the budget.
    StallTarget,
    /// The job is told to send slowly, so that the lag never reaches zero.
    Slow,
    /// Whoever asked is killed.
    ClientGone,
    Takeover,
}

const FAULTS: [Fault; 13] = [
    Fault::None,
    Fault::None,
    Fault::HookFails,
    Fault::HookHangs,
    Fault::Killed,
    Fault::Stopped,
    Fault::CutFlow,
    Fault::CutAll,
    Fault::KillLanes,
    Fault::StallTarget,
    Fault::Slow,
    Fault::ClientGone,
    Fault::Takeover,
];

/// Where it goes wrong: while this hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    BeforeFence,
    AfterFence,
    Drained,
    Switch,
}

const STEPS: [Step; 4] = [Step::BeforeFence, Step::AfterFence, Step::Drained, Step::Switch];

/// What is compared before the switch.
const COMPARISONS: [&[&str]; 4] = [&["none"], &["count"], &["sample", "--sample", "20%"], &["full"]];

#[test]
fn every_cutover_ends_handed_over_or_rolled_back() {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let (mut done, mut back) = (0, 0);
    for seed in seeds(FAULTS.len() as u64) {
        let fault = FAULTS[(seed as usize - 1) % FAULTS.len()];
        // Each fault comes at each step, with one seed after the other.
        let step = match fault {
            Fault::None | Fault::HookFails | Fault::HookHangs | Fault::Slow | Fault::Takeover => Step::Drained,
            _ => STEPS[(seed as usize - 1) / FAULTS.len() % STEPS.len()],
        };
        match cutover(server.clone(), seed, fault, step) {
            Ok(true) => done += 1,
            Ok(false) => back += 1,
            Err(reason) => panic!("seed {seed}, {fault:?} at {step:?}: {reason}"),
        }
        eprintln!("seed {seed}: {fault:?} at {step:?}");
    }
    eprintln!("{done} handed over, {back} rolled back");
}

struct Scene {
    stage: LiveStage,
    tool: Tool,
    dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Scene {
    /// What is called at `step` waits to be told to go on.
    fn new(server: Arc<Server>, seed: u64, step: Step) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let socket = dir.path().join("job.sock");
        let fenced = script(dir.path(), "fenced-hook", "touch fenced; while [ ! -e go-on ]; do sleep 0.02; done");
        let mut tool_args = vec!["--control", socket.to_str().unwrap(), "--hook-timeout", "60s"];
        match step {
            Step::BeforeFence => tool_args.extend(["--hook-before-fence", &fenced]),
            Step::AfterFence => tool_args.extend(["--hook-after-fence", &fenced]),
            Step::Drained => tool_args.extend(["--hook-drained", &fenced]),
            Step::Switch => {}
        }
        let tool_args = tool_args.into_iter().map(str::to_owned).collect();
        let options = StageOptions { tool_args, ..StageOptions::new(seed) };
        let stage = LiveStage::new(binary(), server, ServerKind::Redis7, options).map_err(|e| e.to_string())?;
        let tool = stage.start()?;
        Ok(Self { stage, tool, dir, socket })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn wait_file(&mut self, name: &str) -> Result<(), String> {
        let path = self.path(name);
        wait_for(|| path.exists().then_some(())).ok_or_else(|| format!("no {name}:\n{}", self.tool.said()))
    }

    fn wait_in_step(&mut self) -> Result<(), String> {
        let (socket, tool) = (self.socket.clone(), &mut self.tool);
        let reached = wait_for(|| match tool.ended() {
            Some(code) => Some(Err(format!("the tool ended with {code}:\n{}", tool.said()))),
            None => (status(&socket)?["in_step"] == true).then_some(Ok(())),
        });
        reached.unwrap_or_else(|| Err(format!("never in step:\n{}", self.tool.said())))
    }

    fn begin(&self, args: &[&str]) -> Child {
        Command::new(binary())
            .args(["cutover", "--output", "json", "--control", self.socket.to_str().unwrap()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn script(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}\n", dir.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn tell(socket: &Path, args: &[&str]) -> Vec<u8> {
    let args = args.iter().copied().chain(["--output", "json", "--control", socket.to_str().unwrap()]);
    Command::new(binary()).args(args).output().unwrap().stdout
}

fn status(socket: &Path) -> Option<Value> {
    let answer: Value = serde_json::from_slice(&tell(socket, &["status"])).ok()?;
    Some(answer["status"].clone())
}

#[allow(clippy::zombie_processes)] // where it is not waited for, the test fails and the process ends
/// One cutover. `Ok(true)`: handed over, `Ok(false)`: rolled back; each proven to be whole.
fn cutover(server: Arc<Server>, seed: u64, fault: Fault, step: Step) -> Result<bool, String> {
    let mut rng = Rng::new(seed ^ 0xc07);
    let mut scene = Scene::new(server, seed, step)?;
    scene.wait_in_step()?;
    // The switch waits until the source's data, as it is behind the fence, is written down.
    let switch = match fault {
        Fault::HookFails => script(scene.dir.path(), "switch", "touch switching; exit 1"),
        Fault::HookHangs => script(scene.dir.path(), "switch", "touch switching; sleep 600"),
        _ => script(scene.dir.path(), "switch", "touch switching; while [ ! -e written ]; do sleep 0.02; done"),
    };
    let (budget, budget_ms) = match fault {
        Fault::Stopped => ("4s", 4000),
        Fault::Slow => ("1s", 1000),
        // Nobody releases it: it ends by itself.
        Fault::Killed => ("8s", 8000),
        _ => ("40s", 40_000),
    };
    let mut args = vec!["--execute", "--hook", &switch, "--budget", budget, "--lag-entries-max", "1000000000"];
    if fault != Fault::Takeover {
        args.push("--verify");
        args.extend(COMPARISONS[rng.below(COMPARISONS.len() as u64) as usize]);
    }
    match fault {
        Fault::HookHangs => args.extend(["--hook-timeout", "300ms"]),
        Fault::Takeover => args.push("--takeover"),
        Fault::Slow => {
            tell(&scene.socket, &["throttle", "50entries/s"]);
            std::thread::sleep(Duration::from_millis(300));
        }
        _ => {}
    }
    let mut client = scene.begin(&args);
    if step != Step::Switch && !matches!(fault, Fault::Takeover | Fault::Slow) {
        scene.wait_file("fenced")?;
        disturb(&mut scene, fault, budget_ms, &mut rng, &mut client)?;
        scene.touch("go-on");
        if matches!(fault, Fault::Killed | Fault::ClientGone) {
            client.wait().map_err(|error| error.to_string())?;
            return rolled_back(scene, fault);
        }
    }
    // Until it switches or ends.
    let switching = scene.path("switching");
    wait_for(|| (switching.exists() || client.try_wait().ok().flatten().is_some()).then_some(()));
    let truth = scene.path("truth.jsonl");
    if switching.exists() && !matches!(fault, Fault::HookFails | Fault::HookHangs) {
        scene.stage.live.write_truth(&truth).map_err(|error| error.to_string())?;
        if step == Step::Switch {
            disturb(&mut scene, fault, budget_ms, &mut rng, &mut client)?;
        }
        scene.touch("written");
        match fault {
            Fault::Killed => {
                client.wait().map_err(|error| error.to_string())?;
                return rolled_back(scene, fault);
            }
            // The traffic is being switched: there is no way back because somebody went away.
            Fault::ClientGone => {
                client.wait().map_err(|error| error.to_string())?;
                return handed_over(scene, &truth).map(|()| true);
            }
            _ => {}
        }
    }
    let output = client.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => handed_over(scene, &truth).map_err(|reason| format!("{reason}\n{said}")).map(|()| true),
        Some(9) => rolled_back(scene, fault).map_err(|reason| format!("{reason}\n{said}")),
        code => Err(format!("the cutover ended with {code:?}: {said}\n{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The fault, while a hook runs.
fn disturb(scene: &mut Scene, fault: Fault, budget_ms: u64, rng: &mut Rng, client: &mut Child) -> Result<(), String> {
    std::thread::sleep(Duration::from_micros(rng.below(50_000)));
    let do_fault = |scene: &mut Scene, fault| scene.stage.do_fault(fault, &mut scene.tool);
    match fault {
        Fault::Killed => scene.tool.kill(),
        Fault::Stopped => {
            scene.tool.signal("STOP");
            std::thread::sleep(Duration::from_millis(budget_ms + 300));
            scene.tool.signal("CONT");
        }
        Fault::CutFlow => do_fault(scene, StageFault::CutFlow)?,
        Fault::CutAll => do_fault(scene, StageFault::CutAll)?,
        Fault::KillLanes => do_fault(scene, StageFault::KillLanes)?,
        Fault::StallTarget => do_fault(scene, StageFault::StallTarget)?,
        Fault::ClientGone => client.kill().map_err(|error| error.to_string())?,
        Fault::None | Fault::HookFails | Fault::HookHangs | Fault::Slow | Fault::Takeover => {}
    }
    Ok(())
}

/// The job has ended well; the target holds what the source held behind the fence, and nothing of the tool's.
fn handed_over(mut scene: Scene, truth: &Path) -> Result<(), String> {
    let ended = scene.tool.wait();
    // Only now: the fence must stand until the job has ended. A source that was taken over would hold its writers for ever,
    // and they could not be stopped.
    scene.stage.live.world().unpause();
    match ended {
        Some(0) => {}
        code => return Err(format!("the job ended with {code:?}:\n{}", scene.tool.said())),
    }
    if scene.path("switching").exists() && !scene.path("written").exists() {
        return Err("handed over although the hook did not end".into());
    }
    compare(&scene.stage.server, ServerKind::Redis7, truth)
        .map_err(|differences| format!("an acknowledged write is missing: {differences}\n{}", scene.tool.said()))?;
    let mut client = scene.stage.server.client().map_err(|error| error.to_string())?;
    for db in [0, 2] {
        client.run(&format!("SELECT {db}")).map_err(|error| error.to_string())?;
        let own = client.run("KEYS df2redis:*").map_err(|error| error.to_string())?;
        if own.array().is_none_or(|keys| !keys.is_empty()) {
            return Err(format!("keys of the tool are left in database {db}: {own:?}"));
        }
    }
    Ok(())
}

/// The source takes writes, and the job (or the next one) follows to the end.
fn rolled_back(mut scene: Scene, fault: Fault) -> Result<bool, String> {
    let before = scene.stage.workload.done();
    // After a SIGKILL the fence ends by itself.
    wait_for(|| (scene.stage.workload.done() > before + 10).then_some(()))
        .ok_or_else(|| format!("the source takes no writes:\n{}", scene.tool.said()))?;
    match fault {
        Fault::Killed => {
            let _ = std::fs::remove_file(scene.path("fenced"));
            scene.tool = scene.stage.start()?;
        }
        Fault::Slow => drop(tell(&scene.socket, &["throttle", "off"])),
        _ => {}
    }
    let Scene { stage, tool, .. } = scene;
    stage.finish(tool).map(|_| false)
}

/// A scene of its own, in step, and its target.
fn in_step(seed: u64) -> (Scene, Arc<Server>) {
    let server = Arc::new(Server::start_kind(ServerKind::Redis7, ServerOptions::default()).unwrap());
    let mut scene = Scene::new(server.clone(), seed, Step::Switch).unwrap();
    scene.wait_in_step().unwrap();
    (scene, server)
}

/// Exit code, and every line of the answer.
fn asked(scene: &Scene, args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = scene.begin(args).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn what_differs_behind_the_fence_is_told_and_rolled_back() {
    let (scene, server) = in_step(1);
    let mut client = server.client().unwrap();
    client.run("SET planted:extra 1").unwrap();
    for how in [&["full"][..], &["sample", "--sample", "100%"]] {
        let args = [&["--execute", "--budget", "40s", "--verify"], how].concat();
        let (code, lines) = asked(&scene, &args);
        let ended = &lines.last().unwrap()["cutover"]["ended"];
        assert_eq!((code, &ended["outcome"]), (Some(10), &"not-done".into()), "{lines:?}");
        let told: Vec<&Value> = lines.iter().filter_map(|line| line["cutover"].get("difference")).collect();
        assert!(told.len() == 1 && told[0]["key"] == "planted:extra" && told[0]["kind"] == "extra", "{told:?}");
        assert_eq!(ended["differences"].as_array().unwrap().len(), 1);
        assert!(ended["message"].as_str().unwrap().contains("not the same"), "{ended}");
    }
    client.run("DEL planted:extra").unwrap();
    // A sample that does not take the key does not see it; and one that finds nothing lets the cutover be done.
    let (code, lines) = asked(&scene, &["--execute", "--budget", "40s", "--verify", "sample", "--sample", "10%"]);
    assert_eq!(code, Some(0), "{lines:?}");
    let ended = &lines.last().unwrap()["cutover"]["ended"];
    assert!(ended["verified"].as_str().unwrap().starts_with("sample: "), "{ended}");
}

#[test]
fn a_comparison_that_is_not_finished_in_time_is_rolled_back() {
    let (scene, _server) = in_step(2);
    let args = ["--execute", "--budget", "3s", "--hook", "/bin/true", "--verify", "full", "--verify-rate", "20"];
    let (code, lines) = asked(&scene, &args);
    let ended = &lines.last().unwrap()["cutover"]["ended"];
    let message = ended["message"].as_str().unwrap();
    assert!(code == Some(9) && message.contains("was not finished within") && message.contains("750 ms"), "{message}");
    assert_eq!(ended["switched"], false);
    // The hook's part of the budget was not used up.
    assert!(ended["held_us"].as_u64().unwrap() < 3_000_000, "{ended}");
    rolled_back(scene, Fault::None).unwrap();
}

/// Held expiries were given back in each round, although the source goes on and renews: keys vanished, and the job died of a
/// command on one of them.
#[test]
fn regression_rehearsals_give_no_held_expiry_back() {
    let (scene, _server) = in_step(3);
    let (code, lines) = asked(&scene, &["--rehearse", "150", "--budget", "20s"]);
    assert_eq!(code, Some(0), "{:?}", lines.last());
    rolled_back(scene, Fault::None).unwrap();
}
