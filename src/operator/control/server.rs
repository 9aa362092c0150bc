//! The job's side of the control socket.
//!
//! In: connections and requests of operators. Out: answers, and what they change in the job's [`Control`]. Everything is
//! bounded: connections, the length of a request, the time that a peer may take.

use super::socket::{self, SocketFile};
use super::{Answer, REQUEST_BYTES_MAX, Request, bytes_of_hex};
use crate::engine::control::{Control, CutoverAsked};
use crate::engine::cutover::Plan;
use crate::ids::DbIndex;
use crate::operator::{logging, progress};
use crate::report::cutover::CutoverEvent;
use crate::report::status::Knob;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::unbounded_channel;

/// Connections served at the same time; further ones are told so and closed.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take to read an answer.
const WRITE_MAX: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 4096;
/// How long the job may take to take up a repair.
const REPAIR_MAX: Duration = Duration::from_secs(5);
/// Bounds of `progress-interval`.
const PROGRESS_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;

/// Serves operators until the runtime ends; the socket's file goes away with it.
pub fn serve(listener: UnixListener, file: SocketFile, control: Arc<Control>) {
    tokio_uring::spawn(async move {
        let _file = file;
        let open = Rc::new(Cell::new(0usize));
        loop {
            match listener.accept().await {
                Ok((mut stream, _)) => {
                    let (control, open) = (control.clone(), open.clone());
                    open.set(open.get() + 1);
                    tokio_uring::spawn(async move {
                        connection(&mut stream, &control, open.get()).await;
                        open.set(open.get() - 1);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
}

async fn connection(stream: &mut UnixStream, control: &Arc<Control>, open: usize) {
    let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
    if uid != socket::own_uid() && uid != 0 {
        tracing::warn!(uid, "another user asked at the control socket and was refused");
        answer(stream, &Answer::error("only the user of the job is answered")).await;
        return;
    }
    if open > CONNECTIONS_MAX {
        answer(stream, &Answer::error("too many connections to the control socket")).await;
        return;
    }
    let mut received = Vec::new();
    loop {
        let Some(line) = next_line(stream, &mut received).await else { return };
        let reply = match line {
            Line::Request(text) => match serde_json::from_slice::<Request>(&text) {
                Ok(Request::Cutover(plan)) => {
                    if !cutover(stream, control, plan).await {
                        return;
                    }
                    continue;
                }
                Ok(Request::Repair { db, key }) => repair(control, db, &key).await,
                Ok(request) => act(control, request),
                Err(error) => Answer::error(format!("this is no request: {error}")),
            },
            Line::TooLong => {
                let text = format!("a request is at most {REQUEST_BYTES_MAX} bytes long");
                answer(stream, &Answer::error(text)).await;
                return;
            }
        };
        if !answer(stream, &reply).await {
            return;
        }
    }
}

/// Has a cutover done and tells its events. False: the peer has gone.
async fn cutover(stream: &mut UnixStream, control: &Control, plan: Plan) -> bool {
    let asked = plan.check().and_then(|()| {
        let (events, told) = unbounded_channel();
        control.ask_cutover(CutoverAsked { plan, events }).map(|()| told).map_err(str::to_string)
    });
    let mut told = match asked {
        Ok(told) => told,
        Err(why) => return answer(stream, &Answer::error(why)).await,
    };
    let mut listens = true;
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            event = told.recv() => {
                let Some(event) = event else {
                    return answer(stream, &Answer::error("the job ended before the cutover did")).await;
                };
                let ended = matches!(event, CutoverEvent::Ended(_));
                if listens && !answer(stream, &Answer::cutover(event)).await {
                    listens = false;
                    control.cancel_cutover("whoever asked for the cutover does not listen any more");
                }
                if ended {
                    return listens;
                }
            }
            // Nothing more is expected; only that somebody is there.
            read = stream.read(&mut ignored), if listens => {
                if !matches!(read, Ok(1..)) {
                    listens = false;
                    control.cancel_cutover("whoever asked for the cutover has gone");
                }
            }
        }
    }
}

/// Has a key copied again. Answered once it is on its way.
async fn repair(control: &Control, db: u32, key: &str) -> Answer {
    let Some(key) = bytes_of_hex(key) else { return Answer::error("the key is to be told in hexadecimal digits") };
    let answer = match control.ask_repair(DbIndex(db), key) {
        Ok(answer) => answer,
        Err(why) => return Answer::error(why),
    };
    match tokio::time::timeout(REPAIR_MAX, answer).await {
        Ok(Ok(Ok(()))) => Answer::done("it is fetched from the source and written in its order"),
        Ok(Ok(Err(why))) => Answer::error(why),
        Ok(Err(_)) => Answer::error("the job ended, or its session did"),
        Err(_) => Answer::error("the job is busy"),
    }
}

enum Line {
    Request(Vec<u8>),
    TooLong,
}

/// The next line; `None`: the peer has gone, or is silent for too long.
async fn next_line(stream: &mut UnixStream, received: &mut Vec<u8>) -> Option<Line> {
    loop {
        if let Some(end) = memchr::memchr(b'\n', received) {
            let rest = received.split_off(end + 1);
            let mut line = std::mem::replace(received, rest);
            line.pop();
            return Some(Line::Request(line));
        }
        if received.len() > REQUEST_BYTES_MAX {
            return Some(Line::TooLong);
        }
        received.reserve(READ_BYTES);
        match tokio::time::timeout(SILENCE_MAX, stream.read_buf(received)).await {
            Ok(Ok(1..)) => {}
            _ => return None,
        }
    }
}

/// Sends one answer. False: the peer does not take it.
async fn answer(stream: &mut UnixStream, answer: &Answer) -> bool {
    let Ok(mut line) = serde_json::to_vec(answer) else { return false };
    line.push(b'\n');
    matches!(tokio::time::timeout(WRITE_MAX, stream.write_all(&line)).await, Ok(Ok(())))
}

/// Does what is asked.
fn act(control: &Control, request: Request) -> Answer {
    if !matches!(request, Request::Status {}) {
        tracing::info!(?request, "told by an operator");
    }
    match request {
        Request::Status {} => {
            let mut status = control.status();
            status.knobs.extend(own_knobs());
            Answer::status(status)
        }
        Request::Set { key, value } => match set(control, &key, &value) {
            Ok(()) => Answer::done(format!("{key} = {value}")),
            Err(reason) => Answer::error(reason),
        },
        Request::Pause {} => {
            control.throttle.pause(true);
            Answer::done("paused: nothing more is sent to the target")
        }
        Request::Resume {} => {
            control.throttle.pause(false);
            Answer::done("resumed")
        }
        Request::Throttle { bytes_per_s, entries_per_s } => {
            if [bytes_per_s, entries_per_s].contains(&Some(0)) {
                return Answer::error("a limit of 0 would stop everything: use pause");
            }
            control.throttle.set_bytes_per_s(bytes_per_s);
            control.throttle.set_entries_per_s(entries_per_s);
            let limit = |limit: Option<u64>| limit.map_or("off".to_string(), |n| n.to_string());
            Answer::done(format!("rate-bytes = {}, rate-entries = {}", limit(bytes_per_s), limit(entries_per_s)))
        }
        // Answered by several lines, in its own function.
        Request::Cutover(_) => Answer::error("a cutover cannot be asked for here"),
        Request::Repair { .. } => Answer::error("a repair cannot be asked for here"),
        Request::Stop {} => {
            control.ask_stop();
            Answer::done("stopping: what was read is applied")
        }
    }
}

/// Knobs that are not the engine's.
fn own_knobs() -> Vec<Knob> {
    let knob = |key: &str, value: String, what: &str| Knob { key: key.into(), value, what: what.into() };
    vec![
        knob("log", logging::filter().unwrap_or_else(|| "off".into()), "what is logged to standard error"),
        knob(
            "progress-interval",
            format!("{}ms", progress::line_every().as_millis()),
            "time between two lines of progress",
        ),
    ]
}

fn set(control: &Control, key: &str, value: &str) -> Result<(), String> {
    let number = || value.parse::<u64>().map_err(|_| format!("{key} needs a number, not {value:?}"));
    let size = || number().and_then(|n| usize::try_from(n).map_err(|_| format!("{value} is too large")));
    let limit = || match value {
        "off" => Ok(None),
        _ => number().and_then(|n| if n > 0 { Ok(Some(n)) } else { Err(format!("{key} = 0: use pause, or off")) }),
    };
    let time = || {
        let ms = value.strip_suffix("ms").unwrap_or(value).parse();
        ms.map(Duration::from_millis).map_err(|_| format!("{key} needs milliseconds, not {value:?}"))
    };
    match key {
        "batch-bytes" => control.set_batch_bytes(size()?),
        "window-bytes" => control.set_window_bytes(size()?),
        "rate-bytes" => limit().map(|limit| control.throttle.set_bytes_per_s(limit)),
        "rate-entries" => limit().map(|limit| control.throttle.set_entries_per_s(limit)),
        "hold-expiries-within" => control.set_hold_within(time()?),
        "log" => logging::set_filter(value),
        "progress-interval" => {
            let every = time()?;
            if !PROGRESS_MS.contains(&(every.as_millis() as u64)) {
                return Err(format!("{key} must lie between {}ms and {}ms", PROGRESS_MS.start(), PROGRESS_MS.end()));
            }
            progress::set_line_every(every);
            Ok(())
        }
        _ => {
            let mut known: Vec<_> =
                control.status().knobs.into_iter().chain(own_knobs()).map(|knob| knob.key).collect();
            known.sort();
            Err(format!("{key} cannot be set while the job runs; what can: {}", known.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_keep_their_bounds() {
        let control = Control::default();
        control.set_window_bytes(1 << 20).unwrap();
        for (key, value, good) in [
            ("batch-bytes", "65536", true),
            ("batch-bytes", "2097152", false),
            ("batch-bytes", "1", false),
            ("batch-bytes", "-1", false),
            ("batch-bytes", "99999999999999999999", false),
            ("window-bytes", "32768", false),
            ("rate-bytes", "1000", true),
            ("rate-bytes", "0", false),
            ("rate-bytes", "off", true),
            ("progress-interval", "250ms", true),
            ("progress-interval", "5000", true),
            ("progress-interval", "1", false),
            ("memory", "1", false),
        ] {
            assert_eq!(set(&control, key, value).is_ok(), good, "{key}={value}");
        }
        // Only a job that follows holds anything while it is in step.
        assert!(set(&control, "hold-expiries-within", "60000ms").is_err());
        assert!(set(&control, "memory", "1").unwrap_err().contains("rate-entries"));
        let answer = act(&control, Request::Throttle { bytes_per_s: Some(0), entries_per_s: None });
        assert!(!answer.ok);
        assert!(act(&control, Request::Pause {}).ok && control.throttle.is_paused());
    }
}
