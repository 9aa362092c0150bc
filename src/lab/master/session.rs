//! One connection at a master: requests in, replies out, until it becomes a flow or closes.

use super::registration::Registration;
use super::{ClientState, Shared, Violation};
use crate::lab::encode;
use crate::lab::request::{Request, read_request, upper};
use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const REQUESTS_KEPT_MAX: usize = 10_000;
const SYNTAX: &str = "-ERR syntax error\r\n";
const NOT_A_NUMBER: &str = "-ERR value is not an integer or out of range\r\n";
const INVALID_STATE: &str = "-ERR invalid state\r\n";
const IS_REPLICA: &str = "-ERR Replicating a replica is unsupported\r\n";
const LOADING: &str = "-LOADING Dragonfly is loading the dataset in memory\r\n";

/// Serves a connection until it closes.
pub(super) fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let Ok(reader) = stream.try_clone() else { return };
    stream.set_nodelay(true).ok();
    let mut session = Session {
        shared,
        stream,
        authed: shared.options.password.is_none(),
        client: ClientState::default(),
        registration: None,
        flow: None,
    };
    let mut reader = BufReader::new(reader);
    loop {
        // Connections of replicas are spared.
        let idle_max = shared.options.idle_max.filter(|_| session.registration.is_none());
        session.stream.set_read_timeout(idle_max).ok();
        match read_request(&mut reader) {
            Ok(Some(request)) if session.flow.is_some() => session.on_flow(&request),
            Ok(Some(request)) => {
                if !session.answer(&request) {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    shared.violation(Violation::Malformed { reason: error.to_string() });
                }
                break;
            }
        }
    }
    if let Some(registration) = &session.registration {
        shared.cancel(registration);
    }
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    stream: TcpStream,
    authed: bool,
    client: ClientState,
    registration: Option<Arc<Registration>>,
    /// Set once this connection belongs to a stream.
    flow: Option<usize>,
}

/// What to do after a request.
enum Answer {
    Reply(Vec<u8>),
    Close,
    /// The reply has been written.
    Done,
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::Reply(text.as_bytes().to_vec())
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self::Reply(text.into_bytes())
    }
}

impl Session<'_> {
    /// False: close.
    fn answer(&mut self, request: &Request) -> bool {
        let words: Vec<String> = request.iter().map(|word| upper(word)).collect();
        let line = words.join(" ");
        let secret = words.first().is_some_and(|w| w == "AUTH");
        let refusal = if self.authed { self.shared.refusal(&words[0]) } else { None };
        let plain = refusal.is_none()
            && self.authed
            && !["REPLCONF", "DFLY"].contains(&words[0].as_str())
            && self.shared.scripted_count() == 0;
        if plain && let Some(reply) = self.shared.feed.command(&mut self.client, request) {
            return self.stream.write_all(&reply).is_ok();
        }
        {
            let mut state = self.shared.state();
            if state.requests.len() < REQUESTS_KEPT_MAX {
                let text = request.iter().map(|w| String::from_utf8_lossy(w)).collect::<Vec<_>>().join(" ");
                state.requests.push(if secret { "AUTH".to_owned() } else { text });
            }
        }
        let answer = match self.shared.scripted(&line) {
            Some(reply) if reply.is_empty() => Answer::Close,
            Some(reply) => Answer::Reply(reply),
            None => refusal.map_or_else(|| self.dispatch(request, &words), Answer::from),
        };
        match answer {
            Answer::Reply(bytes) => self.stream.write_all(&bytes).is_ok(),
            Answer::Close => false,
            Answer::Done => true,
        }
    }

    fn dispatch(&mut self, request: &Request, words: &[String]) -> Answer {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words[0] == "AUTH" {
            return self.auth(request);
        }
        if !self.authed && words[0] != "QUIT" {
            return "-NOAUTH Authentication required.\r\n".into();
        }
        match words.as_slice() {
            ["PING"] => "+PONG\r\n".into(),
            ["PING" | "ECHO", _] => bulk(&request[1]),
            ["QUIT"] => Answer::Close,
            ["REPLCONF", ..] if self.shared.feed.replica_of().is_some() => IS_REPLICA.into(),
            ["REPLCONF", rest @ ..] => self.replconf(rest),
            ["DFLY", "FLOW" | "SYNC" | "STARTSTABLE", ..] if self.shared.feed.is_loading() => LOADING.into(),
            ["DFLY", rest @ ..] => self.dfly(rest, request),
            ["TIME"] => Answer::Reply(crate::lab::source_time_reply()),
            // Only when it is asked for by name.
            ["INFO", "PERSISTENCE"] if self.shared.feed.is_silent_on_loading() => "-ERR not now\r\n".into(),
            ["INFO", "PERSISTENCE"] => {
                bulk(format!("# Persistence\r\nloading:{}\r\n", u8::from(self.shared.feed.is_loading())).as_bytes())
            }
            ["INFO", ..] => bulk(self.info().as_bytes()),
            ["SELECT", index] => match index.parse() {
                Ok(db) if db < 16 => {
                    self.client.db = db;
                    "+OK\r\n".into()
                }
                _ => "-ERR invalid DB index\r\n".into(),
            },
            ["EXISTS", _, ..] => {
                let count =
                    request[1..].iter().filter(|key| self.shared.feed.held(self.client.db, key).is_some()).count();
                format!(":{count}\r\n").into()
            }
            ["TYPE", _] => {
                let held = self.shared.feed.held(self.client.db, &request[1]);
                format!("+{}\r\n", held.map_or("none".to_owned(), |h| h.type_name)).into()
            }
            ["GET", _] => match self.shared.feed.held(self.client.db, &request[1]) {
                None => "$-1\r\n".into(),
                Some(held) if held.type_name != "string" => {
                    "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".into()
                }
                Some(held) => held.string.map_or("-ERR value is not kept by this simulation\r\n".into(), |v| bulk(&v)),
            },
            ["DUMP", _] => match self.shared.feed.held(self.client.db, &request[1]) {
                None => "$-1\r\n".into(),
                Some(held) => match held.string {
                    Some(text) => bulk(&dump_of_string(&text)),
                    None => "-ERR value is not kept by this simulation\r\n".into(),
                },
            },
            ["PEXPIRETIME", _] => {
                let time =
                    self.shared.feed.held(self.client.db, &request[1]).map_or(-2, |h| h.expire_at_ms.unwrap_or(-1));
                format!(":{time}\r\n").into()
            }
            ["DBSIZE"] => format!(":{}\r\n", self.shared.feed.keys_count(self.client.db)).into(),
            ["CLIENT", "SETNAME" | "SETINFO" | "PAUSE" | "UNPAUSE", ..] => "+OK\r\n".into(),
            ["CLIENT", "ID"] => ":1\r\n".into(),
            ["HELLO", ..] => "-NOPROTO unsupported protocol version\r\n".into(),
            ["ROLE"] => "*2\r\n$6\r\nmaster\r\n*0\r\n".into(),
            _ => format!("-ERR unknown command `{}`\r\n", words[0].escape_default()).into(),
        }
    }

    fn auth(&mut self, request: &Request) -> Answer {
        let options = &self.shared.options;
        let Some(password) = &options.password else {
            return "-ERR AUTH <password> called without any password configured for admin port. Are you sure your \
                    configuration is correct?\r\n"
                .into();
        };
        let user = options.user.as_deref().unwrap_or("default").as_bytes();
        let right = match request.as_slice() {
            [_, given] => given == password.as_bytes() && user == b"default",
            [_, name, given] => given == password.as_bytes() && name == user,
            _ => return SYNTAX.into(),
        };
        if !right {
            return "-WRONGPASS invalid username-password pair or user is disabled.\r\n".into();
        }
        self.authed = true;
        "+OK\r\n".into()
    }

    fn replconf(&mut self, rest: &[&str]) -> Answer {
        match rest {
            ["CAPA", "DRAGONFLY"] => {
                if let Some(old) = self.registration.take() {
                    self.shared.cancel(&old);
                }
                let registration = self.shared.register();
                let answer = self.capa(registration.sync_id);
                self.registration = Some(registration);
                answer
            }
            ["CLIENT-VERSION", number] => {
                if self.registration.as_ref().is_none_or(|r| r.cancelled()) {
                    self.shared.violation(Violation::VersionBeforeCapa);
                    return Answer::Close;
                }
                if number.parse::<u32>().is_err() { NOT_A_NUMBER.into() } else { "+OK\r\n".into() }
            }
            // Only logged by a real master.
            ["ACK", _] => Answer::Done,
            [] => SYNTAX.into(),
            pairs if pairs.len() % 2 == 0 => {
                let known = ["LISTENING-PORT", "IP-ADDRESS", "CAPA", "CLIENT-ID"];
                if !pairs.chunks(2).all(|pair| known.contains(&pair[0])) {
                    return SYNTAX.into();
                }
                if let (Some(registration), ["CLIENT-ID", _]) = (&self.registration, pairs) {
                    registration.named.store(true, Ordering::Release);
                }
                if pairs.chunks(2).any(|pair| pair[0] == "LISTENING-PORT" && pair[1].parse::<u16>().is_err()) {
                    return NOT_A_NUMBER.into();
                }
                "+OK\r\n".into()
            }
            _ => SYNTAX.into(),
        }
    }

    fn capa(&self, sync_id: u64) -> Answer {
        let identity = &self.shared.identity;
        let master_id = self.shared.master_id(sync_id);
        let mut elements =
            vec![format!("+{master_id}"), format!("+SYNC{sync_id}"), format!(":{}", identity.flows_count)];
        elements.extend(identity.version.map(|version| format!(":{version}")));
        elements.extend(identity.lineage_id.as_ref().map(|id| format!("+{id}")));
        format!("*{}\r\n{}\r\n", elements.len(), elements.join("\r\n")).into()
    }

    fn dfly(&mut self, rest: &[&str], request: &Request) -> Answer {
        match rest {
            ["FLOW", _, sync_id, flow] | ["FLOW", _, sync_id, flow, _] | ["FLOW", _, sync_id, flow, _, _] => {
                let registration = match self.find(sync_id) {
                    Ok(registration) => registration,
                    Err(answer) => return answer,
                };
                if request[2] != self.shared.master_id(registration.sync_id).as_bytes() {
                    return "-ERR bad master id\r\n".into();
                }
                let lsn = match rest {
                    [_, _, _, _, lsn] => match lsn.parse::<u64>() {
                        Ok(lsn) => Some(lsn),
                        Err(_) => return NOT_A_NUMBER.into(),
                    },
                    _ => None,
                };
                if !registration.named.swap(true, Ordering::AcqRel) {
                    self.shared.violation(Violation::Nameless);
                }
                match flow.parse::<usize>() {
                    Ok(flow) if flow < self.shared.identity.flows_count => self.open_flow(registration, flow, lsn),
                    _ => NOT_A_NUMBER.into(),
                }
            }
            ["SYNC", sync_id] => self.find(sync_id).map_or_else(
                |answer| answer,
                |registration| match registration.sync(self.shared) {
                    Ok(()) => "+OK\r\n".into(),
                    Err(violation) => self.invalid_state(violation),
                },
            ),
            ["STARTSTABLE", sync_id] => self.find(sync_id).map_or_else(
                |answer| answer,
                |registration| match registration.start_stable(self.shared) {
                    Ok(true) => "+OK\r\n".into(),
                    Ok(false) => "-ERR syncid not found\r\n".into(),
                    Err(violation) => self.invalid_state(violation),
                },
            ),
            ["REPLICAOFFSET"] => {
                let offsets = self.shared.feed.replica_offsets();
                let lines: String = offsets.iter().map(|offset| format!(":{offset}\r\n")).collect();
                format!("*{}\r\n{lines}", offsets.len()).into()
            }
            ["EXPIRE"] => {
                self.shared.feed.expire();
                "+OK\r\n".into()
            }
            ["TAKEOVER", seconds, sync_id] | ["TAKEOVER", seconds, "SAVE", sync_id] => self.takeover(seconds, sync_id),
            _ => SYNTAX.into(),
        }
    }

    /// Waits for the ACKs of everything journaled; then the process ends.
    fn takeover(&self, seconds: &str, sync_id: &str) -> Answer {
        let registration = match self.find(sync_id) {
            Ok(registration) => registration,
            Err(answer) => return answer,
        };
        let Ok(seconds) = seconds.parse::<f64>() else { return NOT_A_NUMBER.into() };
        if seconds < 0.0 {
            return "-ERR timeout is negative\r\n".into();
        }
        if !registration.is_stable() {
            return INVALID_STATE.into();
        }
        let Some(wanted) = self.shared.feed.begin_takeover() else { return "-ERR Takeover failed!\r\n".into() };
        let wanted: Vec<Option<u64>> = wanted.into_iter().map(Some).collect();
        let until = Instant::now() + Duration::from_secs_f64(seconds.ceil().min(3600.0));
        while !registration.cancelled() && Instant::now() < until {
            if registration.acks() == wanted {
                // The reply goes out first: closing all connections is what the end of the process looks like.
                (&self.stream).write_all(b"+OK\r\n").ok();
                self.shared.die();
                return Answer::Close;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.feed.end_takeover();
        "-ERR Takeover failed!\r\n".into()
    }

    fn find(&self, sync_id: &str) -> Result<Arc<Registration>, Answer> {
        let number = sync_id.strip_prefix("SYNC").and_then(|n| n.parse().ok()).ok_or("-ERR bad sync id\r\n")?;
        self.shared.registration(number).ok_or_else(|| "-ERR syncid not found\r\n".into())
    }

    fn invalid_state(&self, violation: Option<Violation>) -> Answer {
        if let Some(violation) = violation {
            self.shared.violation(violation);
        }
        INVALID_STATE.into()
    }

    fn open_flow(&mut self, registration: Arc<Registration>, flow: usize, lsn: Option<u64>) -> Answer {
        let Ok(stream) = self.stream.try_clone() else { return Answer::Close };
        self.shared.in_use(&registration);
        let sync_id = registration.sync_id;
        let master_id = self.shared.master_id(sync_id);
        let partial = lsn.and_then(|lsn| self.shared.partial(flow, sync_id, master_id.as_bytes(), lsn));
        let directive = if partial.is_some() { "PARTIAL" } else { "FULL" };
        let reply = format!("*2\r\n+{directive}\r\n+{}\r\n", self.shared.identity.eof_tokens[flow]);
        if !registration.open_flow(flow, stream, reply.as_bytes(), partial) {
            return INVALID_STATE.into();
        }
        self.registration = Some(registration);
        self.flow = Some(flow);
        Answer::Done
    }

    fn on_flow(&self, request: &Request) {
        let (Some(flow), Some(registration)) = (self.flow, &self.registration) else { return };
        let number = || std::str::from_utf8(request.get(2)?).ok()?.parse::<u64>().ok();
        let is_ack = request.len() == 3 && upper(&request[0]) == "REPLCONF" && upper(&request[1]) == "ACK";
        match number() {
            // Into the journal, as a real master does.
            Some(_) if is_ack && self.shared.feed.replica_of().is_some() => {
                (&self.stream).write_all(IS_REPLICA.as_bytes()).ok();
            }
            // Told nowhere.
            Some(_) if is_ack && self.shared.refusal("REPLCONF").is_some() => self.shared.cancel(registration),
            Some(lsn) if is_ack => registration.ack(flow, lsn),
            _ => {
                let text: Vec<_> = request.iter().map(|w| String::from_utf8_lossy(w)).collect();
                self.shared.violation(Violation::NoAckOnFlow { flow, request: text.join(" ") });
            }
        }
    }

    fn info(&self) -> String {
        let mut info = self.shared.identity.info.clone();
        if let Some((host, port)) = self.shared.feed.replica_of() {
            let other = "b".repeat(40);
            info.push_str(&format!(
                "\r\n# Replication\r\nrole:replica\r\nmaster_host:{host}\r\nmaster_port:{port}\r\nmaster_replid:{other}\r\n"
            ));
            self.push_keyspace(&mut info);
            return info;
        }
        info.push_str("\r\n# Replication\r\nrole:master\r\n");
        let replicas = self.shared.registrations();
        info.push_str(&format!("connected_slaves:{}\r\n", replicas.len()));
        let offsets = self.shared.feed.replica_offsets();
        for (i, replica) in replicas.iter().enumerate() {
            // As far as the flow that is furthest behind.
            let lags = offsets.iter().zip(replica.acks()).map(|(next, acked)| next - acked.unwrap_or(0).min(*next));
            let (state, lag) = (replica.state_name(), lags.max().unwrap_or(0));
            info.push_str(&format!("slave{i}:ip=127.0.0.1,port=0,state={state},lag={lag}\r\n"));
        }
        let process = self.shared.process_now();
        info.push_str(&format!("master_replid:{process}\r\n"));
        self.push_keyspace(&mut info);
        info
    }

    fn push_keyspace(&self, info: &mut String) {
        info.push_str("\r\n# Keyspace\r\n");
        for db in 0..16 {
            let (count, expires) = (self.shared.feed.keys_count(db), self.shared.feed.expiring_count(db));
            // Database 0 is always told.
            if count > 0 || db == 0 {
                info.push_str(&format!("db{db}:keys={count},expires={expires},avg_ttl=-1\r\n"));
            }
        }
    }
}

/// The payload of a string, as DUMP gives it.
fn dump_of_string(text: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    encode::raw_string(&mut body, text);
    encode::dump_payload(0, &body, 9)
}

fn bulk(bytes: &[u8]) -> Answer {
    let mut reply = format!("${}\r\n", bytes.len()).into_bytes();
    reply.extend_from_slice(bytes);
    reply.extend_from_slice(b"\r\n");
    Answer::Reply(reply)
}
