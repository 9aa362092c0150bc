//! What a replica asks its master: each request as a RESP array (wire 1.2, 1.5, 1.6, 1.8, 1.9).

use crate::ids::{FlowId, Lsn};

/// Name and password of an ACL user; without a name, the default user's password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    Auth(&'a Credentials),
    Ping,
    /// Port shown in the master's INFO; 0 is accepted.
    ListeningPort(u16),
    /// `REPLCONF capa dragonfly`: registers.
    Capability,
    /// The id under which clients of the source see us in CLUSTER NODES, if it plays a cluster (`cluster_mode=emulated`):
    /// without one they find a line that they cannot read.
    ClientId {
        sync_id: &'a str,
    },
    /// Only on a connection with a live registration: without one the master crashes.
    ClientVersion(u32),
    Flow {
        master_id: &'a str,
        sync_id: &'a str,
        flow: FlowId,
        from: Option<Lsn>,
    },
    Sync {
        sync_id: &'a str,
    },
    StartStable {
        sync_id: &'a str,
    },
    ReplicaOffset,
    /// The only thing that may be written to a flow after it was opened. Has no reply. `next`: LSN of the next record
    /// wanted.
    Ack {
        next: Lsn,
    },
    InfoServer,
}

impl Request<'_> {
    /// Appends the request as a RESP array.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Request::Auth(Credentials { user: Some(user), password }) => command(out, &["AUTH", user, password]),
            Request::Auth(Credentials { user: None, password }) => command(out, &["AUTH", password]),
            Request::Ping => command(out, &["PING"]),
            Request::ListeningPort(port) => command(out, &["REPLCONF", "listening-port", &port.to_string()]),
            Request::Capability => command(out, &["REPLCONF", "capa", "dragonfly"]),
            Request::ClientId { sync_id } => command(out, &["REPLCONF", "CLIENT-ID", &node_id(sync_id)]),
            Request::ClientVersion(version) => command(out, &["REPLCONF", "CLIENT-VERSION", &version.to_string()]),
            Request::Flow { master_id, sync_id, flow, from: None } => {
                command(out, &["DFLY", "FLOW", master_id, sync_id, &flow.to_string()]);
            }
            Request::Flow { master_id, sync_id, flow, from: Some(lsn) } => {
                command(out, &["DFLY", "FLOW", master_id, sync_id, &flow.to_string(), &lsn.to_string()]);
            }
            Request::Sync { sync_id } => command(out, &["DFLY", "SYNC", sync_id]),
            Request::StartStable { sync_id } => command(out, &["DFLY", "STARTSTABLE", sync_id]),
            Request::ReplicaOffset => command(out, &["DFLY", "REPLICAOFFSET"]),
            Request::Ack { next } => command(out, &["REPLCONF", "ACK", &next.to_string()]),
            Request::InfoServer => command(out, &["INFO", "SERVER"]),
        }
    }
}

/// 40 hexadecimal digits, as ids of nodes are: "df2redis", and the digits of the sync id, which no other replica has.
fn node_id(sync_id: &str) -> String {
    let digits: String = sync_id.chars().filter(char::is_ascii_digit).take(24).collect();
    format!("6466327265646973{digits:0>24}")
}

fn command(out: &mut Vec<u8>, args: &[&str]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(request: Request<'_>) -> String {
        let mut out = Vec::new();
        request.encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn requests_are_arrays() {
        let flow = Request::Flow { master_id: "m", sync_id: "SYNC1", flow: FlowId(12), from: None };
        assert_eq!(encoded(flow), "*5\r\n$4\r\nDFLY\r\n$4\r\nFLOW\r\n$1\r\nm\r\n$5\r\nSYNC1\r\n$2\r\n12\r\n");
        let flow = Request::Flow { master_id: "m", sync_id: "SYNC1", flow: FlowId(0), from: Some(Lsn(7)) };
        assert!(encoded(flow).ends_with("$1\r\n0\r\n$1\r\n7\r\n"));
        assert_eq!(encoded(Request::Ack { next: Lsn(17) }), "*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$2\r\n17\r\n");
        let named = "*3\r\n$8\r\nREPLCONF\r\n$9\r\nCLIENT-ID\r\n$40\r\n6466327265646973000000000000000000000017\r\n";
        assert_eq!(encoded(Request::ClientId { sync_id: "SYNC17" }), named);
        assert_eq!(encoded(Request::Capability), "*3\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$9\r\ndragonfly\r\n");
    }

    #[test]
    fn passwords_may_hold_blanks_and_are_not_printed() {
        let credentials = Credentials { user: Some("u".into()), password: "a b\r\n".into() };
        assert_eq!(encoded(Request::Auth(&credentials)), "*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$5\r\na b\r\n\r\n");
        assert_eq!(format!("{:?}", Request::Auth(&credentials)), "Auth(Credentials(..))");
        let credentials = Credentials { user: None, password: "p".into() };
        assert_eq!(encoded(Request::Auth(&credentials)), "*2\r\n$4\r\nAUTH\r\n$1\r\np\r\n");
    }
}
