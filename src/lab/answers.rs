//! What a make-believe target answers: the replies of an empty Redis that believes everything it is told.
//!
//! Used by [`super::sink`] (at full speed) and [`super::script`] (with errors on order). Nothing is stored. In: the
//! strings of a request. Out: one RESP2 reply, or `+QUEUED` inside MULTI with the replies kept for EXEC.

use super::request::upper;

/// Who a make-believe target says it is.
#[derive(Clone, Debug)]
pub struct TargetIdentity {
    /// `redis_version` of INFO; where `valkey_version` is set, what Valkey says for compatibility (7.2.4).
    pub redis_version: String,
    pub valkey_version: Option<String>,
    /// Names for COMMAND LIST, lower case.
    pub commands: Vec<String>,
    /// CONFIG GET proto-max-bulk-len.
    pub bulk_bytes_max: u64,
    /// Reply to DBSIZE.
    pub keys_count: u64,
    /// `Some`: AUTH is needed before anything else.
    pub password: Option<String>,
    /// `Some`: a node of a cluster whose primaries listen on these ports of 127.0.0.1 and share the slots evenly, in this order.
    /// Filled once all of them are started. Nodes that do not agree on who has which slot have different ones.
    pub cluster: Option<ClusterPorts>,
    /// The `cluster_current_epoch` that this node has heard of.
    pub epoch: u64,
    /// Ports of nodes without slots that this one knows, too.
    pub newcomers: ClusterPorts,
    /// Hosts that these nodes announce; where there is none, 127.0.0.1.
    pub announced: Vec<String>,
}

/// Ports of the primaries of a make-believe cluster.
pub type ClusterPorts = std::sync::Arc<std::sync::Mutex<Vec<u16>>>;

impl TargetIdentity {
    /// A stand-alone Redis 7.0.
    pub fn redis(version: &str) -> Self {
        Self {
            redis_version: version.to_owned(),
            valkey_version: None,
            commands: COMMANDS.split_ascii_whitespace().map(str::to_owned).collect(),
            bulk_bytes_max: 512 << 20,
            keys_count: 0,
            password: None,
            cluster: None,
            epoch: 1,
            newcomers: ClusterPorts::default(),
            announced: Vec::new(),
        }
    }

    /// The same as a node of a cluster.
    pub fn in_cluster(self, ports: &ClusterPorts) -> Self {
        Self { cluster: Some(ports.clone()), ..self }
    }

    /// A stand-alone Valkey.
    pub fn valkey(version: &str) -> Self {
        Self { valkey_version: Some(version.to_owned()), ..Self::redis("7.2.4") }
    }

    /// The same, also knowing these commands (`json.set`, `hpexpireat` ...).
    pub fn with_commands(mut self, names: &[&str]) -> Self {
        self.commands.extend(names.iter().map(|name| name.to_ascii_lowercase()));
        self
    }

    fn info(&self) -> String {
        let valkey = self.valkey_version.as_ref();
        let mut text = format!("# Server\r\nredis_version:{}\r\n", self.redis_version);
        if let Some(version) = valkey {
            text.push_str(&format!("server_name:valkey\r\nvalkey_version:{version}\r\nserver_mode:standalone\r\n"));
        }
        text.push_str(
            "redis_mode:standalone\r\nos:Linux x86_64\r\narch_bits:64\r\nmultiplexing_api:epoll\r\nprocess_id:1\r\n\
             run_id:0123456789abcdef0123456789abcdef01234567\r\ntcp_port:6379\r\nuptime_in_seconds:100\r\n\r\n\
             # Memory\r\nused_memory:1000000\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n\r\n\
             # Persistence\r\nloading:0\r\nasync_loading:0\r\n\r\n\
             # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n\
             # CPU\r\nused_cpu_sys:1.000000\r\nused_cpu_user:1.000000\r\n\r\n# Modules\r\n\r\n\
             # Cluster\r\ncluster_enabled:0\r\n\r\n# Keyspace\r\n",
        );
        if self.cluster.is_some() {
            text = text.replace("redis_mode:standalone", "redis_mode:cluster");
            text = text.replace("cluster_enabled:0", "cluster_enabled:1");
        }
        if self.keys_count > 0 {
            text.push_str(&format!("db0:keys={},expires=0,avg_ttl=0\r\n", self.keys_count));
        }
        text
    }
}

impl Default for TargetIdentity {
    fn default() -> Self {
        Self::redis("7.0.15")
    }
}

/// How a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `+OK`.
    Ok,
    /// `:1`.
    One,
    /// Needs its arguments.
    Special,
}

/// Class of a command by its name, in any letter case.
#[inline]
pub(super) fn class(name: &[u8]) -> Class {
    match name {
        b"SET" | b"RESTORE" | b"HMSET" | b"MSET" => Class::Ok,
        b"HSET" | b"RPUSH" | b"SADD" | b"ZADD" | b"DEL" | b"UNLINK" | b"PEXPIREAT" | b"LPUSH" => Class::One,
        _ => class_slow(name),
    }
}

fn class_slow(name: &[u8]) -> Class {
    match upper(name).as_str() {
        "SET" | "RESTORE" | "HMSET" | "MSET" | "SELECT" | "FLUSHALL" | "FLUSHDB" | "RENAME" | "LSET" | "LTRIM"
        | "XSETID" | "JSON.SET" | "JSON.MSET" | "ASKING" | "READWRITE" | "READONLY" | "WATCH" | "UNWATCH" => Class::Ok,
        "HSET" | "RPUSH" | "LPUSH" | "SADD" | "ZADD" | "DEL" | "UNLINK" | "PEXPIREAT" | "PERSIST" | "HDEL" | "SREM"
        | "ZREM" | "INCR" | "DECR" | "INCRBY" | "DECRBY" | "APPEND" | "SETRANGE" | "SETBIT" | "RPUSHX" | "LPUSHX"
        | "LREM" | "LINSERT" | "SETNX" | "HSETNX" | "HINCRBY" | "PFADD" | "XDEL" | "XACK" | "EXPIREAT" | "MOVE"
        | "COPY" | "RENAMENX" | "GEOADD" | "XTRIM" => Class::One,
        _ => Class::Special,
    }
}

/// State of one connection: authentication and MULTI.
pub(super) struct Answers {
    identity: std::sync::Arc<TargetIdentity>,
    authed: bool,
    /// Inside MULTI: how many commands were queued, and their replies.
    queued: Option<(u64, Vec<u8>)>,
}

impl Answers {
    pub fn new(identity: std::sync::Arc<TargetIdentity>) -> Self {
        Self { authed: identity.password.is_none(), identity, queued: None }
    }

    /// True: plain `+OK` and `:1` may be given without asking.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.authed && self.queued.is_none()
    }

    /// Appends the reply to a request, whose first string is the command's name.
    pub fn answer(&mut self, args: &[Vec<u8>], out: &mut Vec<u8>) {
        let name = args.first().map(|name| upper(name)).unwrap_or_default();
        match (name.as_str(), &mut self.queued) {
            ("MULTI", None) => {
                self.queued = Some((0, Vec::new()));
                out.extend_from_slice(b"+OK\r\n");
            }
            ("EXEC", queued @ Some(_)) => {
                let (count, replies) = queued.take().unwrap_or_default();
                out.extend_from_slice(format!("*{count}\r\n").as_bytes());
                out.extend_from_slice(&replies);
            }
            ("DISCARD", queued @ Some(_)) => {
                *queued = None;
                out.extend_from_slice(b"+OK\r\n");
            }
            (_, Some(_)) => {
                let mut reply = Vec::new();
                self.answer_now(&name, args, &mut reply);
                if let Some((count, replies)) = &mut self.queued {
                    *count += 1;
                    replies.extend_from_slice(&reply);
                }
                out.extend_from_slice(b"+QUEUED\r\n");
            }
            (_, None) => self.answer_now(&name, args, out),
        }
    }

    fn answer_now(&mut self, name: &str, args: &[Vec<u8>], out: &mut Vec<u8>) {
        let arg = |i: usize| args.get(i).map(|a| upper(a)).unwrap_or_default();
        if name == "AUTH" {
            let right = self.identity.password.as_ref().is_some_and(|p| args.last().is_some_and(|a| a == p.as_bytes()));
            self.authed |= right;
            let reply: &[u8] = match (&self.identity.password, right) {
                (None, _) => b"-ERR AUTH <password> called without any password configured for the default user.\r\n",
                (_, true) => b"+OK\r\n",
                _ => b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
            };
            return out.extend_from_slice(reply);
        }
        if !self.authed {
            return out.extend_from_slice(b"-NOAUTH Authentication required.\r\n");
        }
        match class(name.as_bytes()) {
            Class::Ok => return out.extend_from_slice(b"+OK\r\n"),
            Class::One => return out.extend_from_slice(b":1\r\n"),
            Class::Special => {}
        }
        let first = arg(1);
        match (name, first.as_str()) {
            ("PING", "") => out.extend_from_slice(b"+PONG\r\n"),
            ("PING" | "ECHO", _) => bulk(args.get(1).map_or(b"", |a| a.as_slice()), out),
            ("HELLO", _) => out.extend_from_slice(b"-ERR unknown command 'HELLO', with args beginning with: \r\n"),
            ("INFO", _) => bulk(self.identity.info().as_bytes(), out),
            ("COMMAND", "LIST") => {
                array(self.identity.commands.len(), out);
                self.identity.commands.iter().for_each(|command| bulk(command.as_bytes(), out));
            }
            ("COMMAND", "COUNT") => int(self.identity.commands.len() as u64, out),
            ("COMMAND", "DOCS") => array(0, out),
            ("COMMAND", "INFO") => {
                array(args.len().saturating_sub(2), out);
                args.iter().skip(2).for_each(|name| self.command_info(&name.to_ascii_lowercase(), out));
            }
            ("COMMAND", "") => {
                array(self.identity.commands.len(), out);
                self.identity.commands.iter().for_each(|name| self.command_info(name.as_bytes(), out));
            }
            ("CONFIG", "GET") => {
                let value = match arg(2).as_str() {
                    "PROTO-MAX-BULK-LEN" => Some(self.identity.bulk_bytes_max.to_string()),
                    "MAXMEMORY" => Some("0".to_owned()),
                    "MAXMEMORY-POLICY" => Some("noeviction".to_owned()),
                    "DATABASES" => Some("16".to_owned()),
                    _ => None,
                };
                array(if value.is_some() { 2 } else { 0 }, out);
                if let Some(value) = value {
                    bulk(arg(2).to_ascii_lowercase().as_bytes(), out);
                    bulk(value.as_bytes(), out);
                }
            }
            ("DBSIZE", _) => int(self.identity.keys_count, out),
            ("CLIENT", "ID") => int(1, out),
            ("CLIENT", "LIST" | "INFO" | "GETNAME") => bulk(b"", out),
            ("MODULE", "LIST") => array(0, out),
            ("ROLE", _) => out.extend_from_slice(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
            ("TIME", _) => out.extend_from_slice(&super::target_time_reply()),
            ("SCAN", _) => out.extend_from_slice(b"*2\r\n$1\r\n0\r\n*0\r\n"),
            ("CLUSTER", "SHARDS") if self.identity.cluster.is_some() => self.shards(out),
            ("CLUSTER", "INFO") if self.identity.cluster.is_some() => {
                let info = format!("cluster_state:ok\r\ncluster_current_epoch:{}\r\n", self.identity.epoch);
                bulk(info.as_bytes(), out);
            }
            ("CLUSTER", _) => out.extend_from_slice(b"-ERR This instance has cluster support disabled\r\n"),
            ("SCRIPT", "LOAD") => bulk(&[b'0'; 40], out),
            ("SCRIPT", "EXISTS") => out.extend_from_slice(b"*1\r\n:1\r\n"),
            ("GET" | "GETDEL" | "GETSET" | "HGET" | "LPOP" | "RPOP" | "EVAL" | "EVALSHA" | "DUMP", _) => {
                out.extend_from_slice(b"$-1\r\n");
            }
            ("TYPE", _) => out.extend_from_slice(b"+none\r\n"),
            ("XADD", _) => bulk(b"1-1", out),
            ("MGET" | "HGETALL" | "HPEXPIREAT" | "XCLAIM" | "KEYS", _) => array(0, out),
            ("EXISTS" | "LLEN" | "SCARD" | "HLEN" | "ZCARD" | "XLEN" | "STRLEN" | "WAIT", _) => int(0, out),
            ("PTTL" | "TTL" | "PEXPIRETIME", _) => out.extend_from_slice(b":-2\r\n"),
            ("EXEC" | "DISCARD", _) => out.extend_from_slice(format!("-ERR {name} without MULTI\r\n").as_bytes()),
            _ => out.extend_from_slice(b"+OK\r\n"),
        }
    }

    fn shards(&self, out: &mut Vec<u8>) {
        let ports = self
            .identity
            .cluster
            .as_ref()
            .map(|ports| ports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone());
        let ports = ports.unwrap_or_default();
        let newcomers = self.identity.newcomers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        array(ports.len() + newcomers.len(), out);
        for (number, port) in ports.iter().chain(&newcomers).enumerate() {
            array(4, out);
            bulk(b"slots", out);
            if number < ports.len() {
                array(2, out);
                int((16384 * number / ports.len()) as u64, out);
                int((16384 * (number + 1) / ports.len() - 1) as u64, out);
            } else {
                array(0, out);
            }
            bulk(b"nodes", out);
            array(1, out);
            array(10, out);
            let host = self.identity.announced.get(number).cloned().unwrap_or_else(|| "127.0.0.1".into());
            for (name, value) in [("id", format!("{port:040}")), ("endpoint", host), ("role", "master".into())] {
                bulk(name.as_bytes(), out);
                bulk(value.as_bytes(), out);
            }
            bulk(b"port", out);
            int(u64::from(*port), out);
            bulk(b"health", out);
            bulk(b"online", out);
        }
    }

    fn command_info(&self, name: &[u8], out: &mut Vec<u8>) {
        if !self.identity.commands.iter().any(|known| known.as_bytes() == name) {
            return out.extend_from_slice(b"*-1\r\n");
        }
        array(6, out);
        bulk(name, out);
        out.extend_from_slice(b":-1\r\n*0\r\n:1\r\n:1\r\n:1\r\n");
    }
}

fn array(count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{count}\r\n").as_bytes());
}

fn int(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(format!(":{value}\r\n").as_bytes());
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// What a Redis 7.0 knows, as far as the tool may want to know.
const COMMANDS: &str = "append asking auth bitcount bitfield bitop client cluster command config copy dbsize decr decrby \
    del discard dump echo eval evalsha exec exists expire expireat expiretime flushall flushdb function geoadd geosearch \
    get getdel getex getrange getset hdel hello hexists hget hgetall hincrby hincrbyfloat hkeys hlen hmget hmset hscan \
    hset hsetnx incr incrby incrbyfloat info keys lindex linsert llen lmove lmpop lpop lpush lpushx lrange lrem lset \
    ltrim memory mget module move mset msetnx multi object persist pexpire pexpireat pexpiretime pfadd pfcount pfmerge \
    ping psetex pttl rename renamenx replicaof restore role rpop rpoplpush rpush rpushx sadd scan scard script sdiff \
    sdiffstore select set setbit setex setnx setrange sinter sinterstore sismember smembers smove sort spop srem sscan \
    strlen sunion sunionstore swapdb time touch ttl type unlink unwatch wait watch xack xadd xautoclaim xclaim xdel \
    xgroup xinfo xlen xpending xrange xread xreadgroup xrevrange xsetid xtrim zadd zcard zdiff zdiffstore zincrby zinter \
    zinterstore zmpop zpopmax zpopmin zrange zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zscan \
    zscore zunion zunionstore";
