//! The handshake as recorded, every refusal of wire 1.11, and the order of the phases.

use super::*;

const ID: &str = "edd7d5e2fc2b3bab5ad824bebbe3cc07e6888c12";

fn reply(text: &str) -> Reply {
    let (reply, len) = parse_reply(text.as_bytes()).unwrap().unwrap();
    assert_eq!(len, text.len());
    reply
}

fn capability(flows: &str) -> String {
    format!("*5\r\n+{ID}\r\n+SYNC1\r\n:{flows}\r\n:5\r\n+{ID}\r\n")
}

fn registration() -> Registration {
    Registration::from_reply(&reply(&capability("2"))).unwrap()
}

fn token(digit: u8) -> [u8; 40] {
    [digit; 40]
}

fn opened(digit: u8) -> FlowOpened {
    FlowOpened { directive: Directive::Full, eof_token: token(digit) }
}

#[test]
fn the_handshake_registers_and_only_then_tells_its_version() {
    let credentials = Credentials { user: None, password: "p".into() };
    let mut handshake = Handshake::new(Some(credentials.clone()));
    let capability = capability("3");
    let script = [
        (Request::Auth(&credentials), "+OK\r\n"),
        (Request::Ping, "+PONG\r\n"),
        (Request::ListeningPort(0), "+OK\r\n"),
        (Request::Capability, capability.as_str()),
        (Request::ClientId { sync_id: "SYNC1" }, "-ERR syntax error\r\n"),
        (Request::ClientVersion(4), "+OK\r\n"),
    ];
    for (request, answer) in script {
        assert_eq!(handshake.request(), Some(request));
        handshake.reply(&reply(answer)).unwrap();
    }
    assert_eq!(handshake.request(), None);
    assert!(handshake.reply(&reply("+OK\r\n")).is_err());
    let expected = Registration {
        master_id: ID.into(),
        sync_id: "SYNC1".into(),
        flows: 3,
        version: 5,
        lineage_id: Some(ID.into()),
    };
    assert_eq!(handshake.finish(), Some(expected));
    assert_eq!(Handshake::new(None).request(), Some(Request::Ping));
    assert_eq!(Handshake::new(None).finish(), None);
}

#[test]
fn registrations_of_old_masters_and_of_liars() {
    let parse = |text: String| Registration::from_reply(&reply(&text));
    let old = parse(format!("*3\r\n+{ID}\r\n+SYNC7\r\n:1\r\n")).unwrap();
    assert_eq!((old.version, old.flows, old.lineage_id), (0, 1, None));
    assert!(parse(format!("*6\r\n+{ID}\r\n+SYNC7\r\n:1024\r\n:9\r\n+x\r\n+more\r\n")).is_ok());
    let bad = |text: String| match parse(text).unwrap_err() {
        SessionError::BadRegistration { what } => what,
        other => panic!("{other}"),
    };
    bad(format!("*2\r\n+{ID}\r\n+SYNC7\r\n"));
    bad(format!("*3\r\n+{}\r\n+SYNC7\r\n:1\r\n", ID.to_uppercase()));
    bad(format!("*3\r\n+{}\r\n+SYNC7\r\n:1\r\n", &ID[1..]));
    for sync_id in ["SYNC", "7", "SYNCx", "SYNC123456789012345678901", "SYNC1 2"] {
        bad(format!("*3\r\n+{ID}\r\n+{sync_id}\r\n:1\r\n"));
    }
    for flows in [":0", ":-1", ":1025", ":65535", "+3"] {
        bad(format!("*3\r\n+{ID}\r\n+SYNC7\r\n{flows}\r\n"));
    }
    bad(format!("*4\r\n+{ID}\r\n+SYNC7\r\n:1\r\n:-5\r\n"));
    assert_eq!(parse("+OK\r\n".into()), Err(SessionError::NotDragonfly));
}

#[test]
fn refusals_of_wire_1_11() {
    let error = |line: &str| SessionError::of_reply("DFLY FLOW", &Reply::Error(line.as_bytes().to_vec()));
    let what = "DFLY FLOW";
    for (line, expected, retry) in [
        ("NOAUTH Authentication required.", SessionError::NoAuth { what }, Retry::No),
        ("WRONGPASS invalid username-password pair or user is disabled.", SessionError::WrongPassword, Retry::No),
        ("ERR Cannot execute restricted command (admin only)", SessionError::Restricted { what }, Retry::No),
        ("ERR Replicating a replica is unsupported", SessionError::SourceIsReplica, Retry::No),
        ("LOADING Dragonfly is loading the dataset in memory", SessionError::Loading, Retry::Later),
        ("ERR Can not execute during SHUTTING_DOWN", SessionError::ShuttingDown, Retry::Later),
        ("ERR bad master id", SessionError::BadMasterId, Retry::NewSession),
        ("ERR bad sync id", SessionError::BadSyncId { what }, Retry::No),
        ("ERR syncid not found", SessionError::SyncIdNotFound { what }, Retry::NewSession),
        ("ERR invalid state", SessionError::InvalidState { what }, Retry::NewSession),
        ("ERR max number of clients reached", SessionError::MaxClients, Retry::Later),
    ] {
        assert_eq!(error(line), expected);
        assert_eq!(expected.retry(), retry, "{line}");
    }
    assert!(matches!(error("NOPERM u has no ACL permissions"), SessionError::NoPermission { .. }));
    let admin = "ERR AUTH <password> called without any password configured for admin port. Are you sure?";
    assert!(matches!(error(admin), SessionError::PasswordNotWanted { .. }));
    for reply in [&b"ERR unknown command 'AUTH', with args beginning with: 's3cr3t'"[..], b"NOPERM s3cr3t"] {
        let shown = SessionError::of_reply("AUTH", &Reply::Error(reply.to_vec())).to_string();
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
    let shown = SessionError::of_reply("AUTH", &Reply::Simple(b"s3cr3t".to_vec())).to_string();
    assert!(!shown.contains("s3cr3t"), "{shown}");
    assert!(matches!(error("ERR value is not an integer or out of range"), SessionError::Refused { .. }));
    // A peer's text is repeated in part and without control characters.
    let SessionError::Refused { text, .. } = error(&format!("ERR \x1b[2J{}", "x".repeat(1000))) else { panic!() };
    assert!(text.len() < 300 && !text.contains('\x1b'));
    // Redis does not know the command at all.
    let unknown = Reply::Error(b"ERR unknown command 'REPLCONF'".to_vec());
    assert_eq!(SessionError::of_reply("REPLCONF listening-port", &unknown), SessionError::NotDragonfly);
}

#[test]
fn a_flow_is_opened_after_auth() {
    let credentials = Credentials { user: None, password: "p".into() };
    let mut flow = FlowHandshake::new(Some(credentials.clone()), &registration(), FlowId(1), None);
    assert_eq!(flow.request(), Some(Request::Auth(&credentials)));
    flow.reply(&reply("+OK\r\n")).unwrap();
    let request = Request::Flow { master_id: ID, sync_id: "SYNC1", flow: FlowId(1), from: None };
    assert_eq!(flow.request(), Some(request));
    assert_eq!(flow.finish(), None);
    flow.reply(&reply(&format!("*2\r\n+FULL\r\n+{}\r\n", "a".repeat(40)))).unwrap();
    assert_eq!(flow.finish(), Some(opened(b'a')));
    assert_eq!(flow.request(), None);
    for bad in ["*1\r\n+FULL\r\n", "*2\r\n+HALF\r\n+x\r\n", "*2\r\n+FULL\r\n+short\r\n", "+OK\r\n"] {
        assert!(FlowOpened::from_reply(&reply(bad)).is_err());
    }
}

#[test]
fn phases_in_order() {
    let ok = reply("+OK\r\n");
    let (a, b) = (FlowId(0), FlowId(1));
    let mut session = Session::new();
    assert_eq!(session.on(Signal::Registered(registration())), Ok(Some(Action::OpenFlows { flows: 2 })));
    assert_eq!(session.on(Signal::FlowOpened { flow: b, opened: opened(b'b') }), Ok(None));
    assert_eq!(session.phase(), Phase::Flows);
    let sync = session.on(Signal::FlowOpened { flow: a, opened: opened(b'a') }).unwrap().unwrap();
    assert_eq!(sync, Action::SendSync);
    assert_eq!(session.request(&sync), Some(Request::Sync { sync_id: "SYNC1" }));
    // A small snapshot can end before SYNC's reply is read.
    assert_eq!(session.on(Signal::FullSyncEnd(a)), Ok(None));
    assert_eq!(session.on(Signal::FullSyncEnd(b)), Ok(None));
    assert_eq!(session.flows_in_snapshot(), 0);
    assert_eq!(session.on(Signal::SyncReply(&ok)), Ok(Some(Action::SendStartStable)));
    assert_eq!(session.phase(), Phase::StartingStable);
    assert_eq!(session.on(Signal::JournalOffset { flow: a, lsn: Lsn(5) }), Ok(None));
    assert_eq!(session.on(Signal::Eof { flow: a, token: token(b'a') }), Ok(None));
    // One flow may end after STARTSTABLE's reply.
    assert_eq!(session.on(Signal::StartStableReply(&ok)), Ok(None));
    assert_eq!(session.journal_offsets(), None);
    assert_eq!(session.on(Signal::JournalOffset { flow: b, lsn: Lsn(9) }), Ok(None));
    assert_eq!(session.on(Signal::Eof { flow: b, token: token(b'b') }), Ok(Some(Action::Finish)));
    assert_eq!(session.phase(), Phase::Done);
    assert_eq!(session.journal_offsets(), Some(vec![Lsn(5), Lsn(9)]));
}

#[test]
fn nothing_ends_early() {
    let ok = reply("+OK\r\n");
    let (a, b) = (FlowId(0), FlowId(1));
    let started = || {
        let mut session = Session::new();
        session.on(Signal::Registered(registration())).unwrap();
        session.on(Signal::FlowOpened { flow: a, opened: opened(b'a') }).unwrap();
        session.on(Signal::FlowOpened { flow: b, opened: opened(b'b') }).unwrap();
        session
    };
    let out_of_order = |result: Result<Option<Action>, SessionError>| {
        assert!(matches!(result, Err(SessionError::OutOfOrder { .. })), "{result:?}");
    };
    let mut session = started();
    assert_eq!(session.on(Signal::SyncReply(&ok)), Ok(None));
    assert_eq!(session.on(Signal::FullSyncEnd(a)), Ok(None));
    out_of_order(session.on(Signal::StartStableReply(&ok)));
    out_of_order(session.on(Signal::Eof { flow: a, token: token(b'a') }));
    out_of_order(session.on(Signal::FullSyncEnd(FlowId(2))));
    assert_eq!(session.on(Signal::FullSyncEnd(b)), Ok(Some(Action::SendStartStable)));
    out_of_order(session.on(Signal::Eof { flow: a, token: token(b'a') }));
    session.on(Signal::JournalOffset { flow: a, lsn: Lsn(1) }).unwrap();
    let swapped = session.on(Signal::Eof { flow: a, token: token(b'b') });
    assert_eq!(swapped, Err(SessionError::TokenMismatch { flow: a }));
    let mut session = started();
    let refused = session.on(Signal::SyncReply(&reply("-ERR syncid not found\r\n")));
    assert_eq!(refused, Err(SessionError::SyncIdNotFound { what: "DFLY SYNC" }));
    let mut session = Session::new();
    out_of_order(session.on(Signal::FlowOpened { flow: a, opened: opened(b'a') }));
    session.on(Signal::Registered(registration())).unwrap();
    out_of_order(session.on(Signal::Registered(registration())));
    session.on(Signal::FlowOpened { flow: a, opened: opened(b'a') }).unwrap();
    let partial = FlowOpened { directive: Directive::Partial, ..opened(b'b') };
    assert_eq!(session.on(Signal::FlowOpened { flow: b, opened: partial }), Err(SessionError::PartialInFullSync));
}

#[test]
fn offsets_of_all_flows() {
    assert_eq!(replica_offsets(&reply("*2\r\n:0\r\n:17\r\n"), 2), Ok(vec![Lsn(0), Lsn(17)]));
    for bad in ["*1\r\n:0\r\n", "*2\r\n:0\r\n:-1\r\n", "*2\r\n:0\r\n+x\r\n", "-ERR syntax error\r\n", "*-1\r\n"] {
        assert!(replica_offsets(&reply(bad), 2).is_err());
    }
}
