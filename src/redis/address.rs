//! Where nodes of a cluster listen, as they write it, and where they are reached instead (`--target-nat`).
//!
//! In: `host:port` as nodes and operators write it. Out: [`Address`]es, and the [`NatMap`]. Invariants: a rule that cannot be
//! understood is refused, never ignored; of two rules the one with a port counts, whatever their order. No I/O.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Longest name of a host (RFC 1035 has 253).
const HOST_BYTES_MAX: usize = 255;
/// What a node is called that is to be known by its name, and has none (yet).
const UNNAMED: &str = "?";

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Of a node without a name: several may be called so.
    pub fn unnamed(port: u16) -> Self {
        Self::new(UNNAMED, port)
    }

    pub fn is_unnamed(&self) -> bool {
        self.host == UNNAMED
    }

    pub fn is_ip(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// `host:port` as nodes write it: an IPv6 address stands bare (`::1:7000`) or in brackets. An empty host is `None`: that of
    /// the node that was asked.
    pub fn parse(text: &str) -> Option<(Option<String>, u16)> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match host {
            "" => Some((None, port)),
            host if is_no_host(host) || host.contains(['[', ']']) => None,
            host => Some((Some(host.to_string()), port)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}

/// A host that says something: nodes write "" or "?" for what they do not know.
pub fn known_host(text: &str) -> Option<&str> {
    (!text.is_empty() && text != UNNAMED && text.len() <= HOST_BYTES_MAX).then_some(text)
}

/// A host that is to be a name, where there is none.
pub fn is_unnamed(host: &str) -> bool {
    host == UNNAMED
}

/// No name of a host is written so.
pub fn is_no_host(text: &str) -> bool {
    text.len() > HOST_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Announced addresses and what to connect to instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NatMap(Vec<(Place, Place)>);

/// One side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    /// None: whatever the port is.
    port: Option<u16>,
}

impl NatMap {
    /// Each entry is `HOST=HOST` or `HOST:PORT=HOST:PORT` (IPv6 in brackets).
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, String> {
        let mut rules: Vec<(Place, Place)> = Vec::new();
        for entry in entries {
            let entry = entry.as_ref();
            let (from, to) = entry.split_once('=').ok_or_else(|| format!("{entry} is not of the form FROM=TO"))?;
            let place = |text| Place::parse(text).map_err(|what| format!("{entry}: {what}"));
            let (from, to) = (place(from)?, place(to)?);
            if from.port.is_some() != to.port.is_some() {
                return Err(format!("{entry}: either both sides have a port or neither"));
            }
            if rules.iter().any(|(known, _)| *known == from) {
                return Err(format!("{entry}: there is another rule for {from}"));
            }
            rules.push((from, to));
        }
        Ok(Self(rules))
    }

    /// Where a node is that announces these addresses, the one that clients are to take first; `None`: no rule speaks of it.
    pub fn apply(&self, announced: &[Address]) -> Option<Address> {
        let rule = |address: &Address, with_port: bool| {
            let is_meant = |(from, _): &&(Place, Place)| {
                from.host.eq_ignore_ascii_case(&address.host)
                    && if with_port { from.port == Some(address.port) } else { from.port.is_none() }
            };
            self.0.iter().find(is_meant).map(|(_, to)| Address::new(&to.host, to.port.unwrap_or(address.port)))
        };
        announced.iter().find_map(|address| rule(address, true).or_else(|| rule(address, false)))
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
                let host: Ipv6Addr = host.parse().map_err(|_| "an IPv6 address belongs between the brackets")?;
                let port = match rest.strip_prefix(':') {
                    None if !rest.is_empty() => return Err("only :PORT may follow the bracket".into()),
                    port => port,
                };
                // As nodes write it.
                (host.to_string(), port)
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err("an IPv6 address is written in brackets: [::1] or [::1]:7000".into());
                }
                Some((host, port)) => (host.to_string(), Some(port)),
                None => (text.to_string(), None),
            },
        };
        if host.is_empty() || is_no_host(&host) || is_unnamed(&host) {
            return Err("a host is needed on both sides".into());
        }
        let number = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0);
        let port = match port.map(|text| number(text).ok_or("a port is a number from 1 to 65535")) {
            Some(port) => Some(port?),
            None => None,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl serde::Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_nodes_write_them() {
        let host = |text: &str| Some((Some(text.to_string()), 7000));
        for (text, parsed) in [
            ("127.0.0.1:7000", host("127.0.0.1")),
            ("::1:7000", host("::1")),
            ("[::1]:7000", host("::1")),
            ("fe80::1%eth0:7000", host("fe80::1%eth0")),
            ("n1.example:7000", host("n1.example")),
            ("?:7000", host("?")),
            (":7000", Some((None, 7000))),
            ("n1.example", None),
            ("n1.example:0", None),
            ("n1.example:70000", None),
            ("n 1:7000", None),
        ] {
            assert_eq!(Address::parse(text), parsed, "{text}");
        }
        assert_eq!(Address::new("::1", 7000).to_string(), "[::1]:7000");
    }

    #[test]
    fn nat_maps() {
        let rules = ["10.0.0.1=g", "10.0.0.1:7000=h:1", "[0::2]:7=[::3]:8", "[::4]=h", "N1.example=127.0.0.1"];
        let nat = NatMap::parse(&rules).unwrap();
        let apply = |host: &str, port| nat.apply(&[Address::new(host, port)]).map(|address| address.to_string());
        assert_eq!(apply("10.0.0.1", 7000).as_deref(), Some("h:1"));
        assert_eq!(apply("10.0.0.1", 7001).as_deref(), Some("g:7001"));
        assert_eq!(apply("::2", 7).as_deref(), Some("[::3]:8"));
        assert_eq!(apply("::4", 7).as_deref(), Some("h:7"));
        assert_eq!(apply("n1.example", 7).as_deref(), Some("127.0.0.1:7"));
        assert_eq!(apply("x", 7), None);
        // The name that is preferred counts first, then the others that the node announces.
        let both = |first: &str, second: &str| nat.apply(&[Address::new(first, 9), Address::new(second, 9)]);
        assert_eq!(both("n1.example", "10.0.0.1"), Some(Address::new("127.0.0.1", 9)));
        assert_eq!(both("n2.example", "10.0.0.1"), Some(Address::new("g", 9)));
        assert_eq!(
            serde_json::to_string(&nat).unwrap(),
            r#"[["10.0.0.1","g"],["10.0.0.1:7000","h:1"],["[::2]:7","[::3]:8"],["[::4]","h"],["N1.example","127.0.0.1"]]"#
        );
        for bad in [
            &["a"][..],
            &["=b"],
            &["a="],
            &["a:1=b"],
            &["a=b:1"],
            &["a:x=b:1"],
            &["a:1=b:99999"],
            &["a:0=b:1"],
            &["::1=b"],
            &["::1:7000=b:1"],
            &["[::1=b"],
            &["[::1]7=b:7"],
            &["[a]=b"],
            &["a b=c"],
            &["?=c"],
            &["a=b", "a=c"],
        ] {
            assert!(NatMap::parse(bad).is_err(), "{bad:?}");
        }
    }
}
