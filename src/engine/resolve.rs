//! Names to addresses, without standing still.
//!
//! In: a host and a port. Out: its addresses, or why there are none within the time given. The C library's resolver blocks for
//! as long as a name server is silent, half a minute and more, and cannot be stopped. So each lookup has a thread of its own,
//! for which nobody waits longer than that time, not the end of the process either. Whoever asks for a name that is being looked
//! up waits for the same answer; one that has not come in time is not waited for again. Invariant: few such threads at once.

use crate::uring;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Lookups of one name that hang at once, at most: whoever comes then is told so.
const LOOKUPS_MAX: usize = 32;

/// What a lookup found; an error as its kind and text, for all who wait.
type Found = Result<Vec<IpAddr>, (io::ErrorKind, String)>;

struct Lookup {
    begun_ns: u64,
    /// None: it hangs still. Closed: its thread is gone.
    found: watch::Receiver<Option<Found>>,
}

/// By name: those that are not over.
static LOOKUPS: Mutex<Option<HashMap<String, Vec<Lookup>>>> = Mutex::new(None);

/// The addresses of `host`. May be dropped at any time.
pub async fn resolve(host: &str, port: u16, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    let found = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => {
            let mut lookup = join_or_begin(host, timeout, uring::clock::monotonic_ns())?;
            match tokio::time::timeout(timeout, lookup.wait_for(Option::is_some)).await {
                Ok(Ok(found)) => match found.clone() {
                    Some(Ok(addresses)) => addresses,
                    Some(Err((kind, text))) => return Err(io::Error::new(kind, text)),
                    None => Vec::new(),
                },
                Ok(Err(_)) => return Err(io::Error::other("the lookup ended without a word")),
                Err(_) => {
                    let text = format!("no answer of a name server within {timeout:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        }
    };
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// The lookup of this name that was begun within `timeout`, or another one.
fn join_or_begin(host: &str, timeout: Duration, now_ns: u64) -> io::Result<watch::Receiver<Option<Found>>> {
    let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
    let of_name = lookups.get_or_insert_default().entry(host.to_string()).or_default();
    of_name.retain(|lookup| lookup.found.has_changed().is_ok() && lookup.found.borrow().is_none());
    let age = |lookup: &Lookup| Duration::from_nanos(now_ns.saturating_sub(lookup.begun_ns));
    if let Some(running) = of_name.last().filter(|running| age(running) < timeout) {
        return Ok(running.found.clone());
    }
    if of_name.len() >= LOOKUPS_MAX {
        let text = format!("{LOOKUPS_MAX} lookups of it wait for a name server");
        return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
    }
    let (done, found) = watch::channel(None);
    let name = host.to_string();
    std::thread::Builder::new().name("resolver".into()).spawn(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs();
        let addresses = addresses.map(|all| all.map(|address| address.ip()).collect());
        // Whoever asked may have given up.
        let _ = done.send(Some(addresses.map_err(|cause| (cause.kind(), cause.to_string()))));
    })?;
    of_name.push(Lookup { begun_ns: now_ns, found: found.clone() });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn names_and_addresses_are_found() {
        let found = |host: &'static str| run(resolve(host, 7, Duration::from_secs(20)));
        assert_eq!(found("10.0.0.1").unwrap(), ["10.0.0.1:7".parse().unwrap()]);
        assert_eq!(found("::1").unwrap(), ["[::1]:7".parse().unwrap()]);
        for _ in 0..2 * LOOKUPS_MAX {
            let addresses = found("localhost").unwrap();
            assert!(addresses.iter().all(|at| at.ip().is_loopback() && at.port() == 7) && !addresses.is_empty());
        }
        assert!(found("no name at all").is_err());
    }

    /// One that hangs is joined for as long as it may take, and then left alone.
    #[test]
    fn lookups_that_hang_are_few() {
        let name = "hangs.test";
        let (done, found) = watch::channel(None);
        let hang = |begun_ns| Lookup { begun_ns, found: found.clone() };
        let put = |lookups: Vec<Lookup>| {
            let mut all = LOOKUPS.lock().unwrap();
            all.get_or_insert_default().insert(name.into(), lookups);
        };
        let second = Duration::from_secs(1);
        put(vec![hang(5_000)]);
        assert!(join_or_begin(name, second, 6_000).unwrap().same_channel(&found));
        put((0..LOOKUPS_MAX as u64).map(hang).collect());
        let error = join_or_begin(name, second, 2_000_000_000).unwrap_err();
        assert!(error.to_string().contains("wait for a name server"), "{error}");
        drop(done);
        assert!(!join_or_begin(name, second, 2_000_000_000).unwrap().same_channel(&found));
    }
}
