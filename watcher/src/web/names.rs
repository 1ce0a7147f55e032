//! Looks up the names of hosts for [`super::client`].
//!
//! ureq's own resolver makes a thread for each connection, also to an address, and ends the process where none can be
//! made: where another job has used up all process numbers, say. Here an address needs no thread, and a name that gets
//! none is an error like any other of a request.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Most lookups of one client at once. Nothing ends one that hangs but the C library's own patience with a name server.
const LOOKUPS_MAX: usize = 16;
/// Most addresses of a name, as ureq has it.
const ADDRESSES_MAX: usize = 16;

/// Looks up names in threads, which have a bound.
#[derive(Debug, Default)]
pub struct Names(Arc<Lookups>);

#[derive(Debug, Default)]
struct Lookups {
    /// How many are under way, among them those that nobody waits for any more.
    under_way: Mutex<usize>,
    ended: Condvar,
}

/// The right to one of them.
struct Lookup(Arc<Lookups>);

impl Lookup {
    /// Waits for it as long as too many are under way; an error after this time.
    fn begin(all: &Arc<Lookups>, within: Duration) -> io::Result<Self> {
        let under_way = all.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let free = all.ended.wait_timeout_while(under_way, within, |n| *n >= LOOKUPS_MAX);
        let (mut under_way, waited) = free.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *under_way += 1;
        Ok(Self(Arc::clone(all)))
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_one();
    }
}

impl Names {
    /// The addresses of `HOST:PORT`.
    fn addresses(&self, place: &str, within: Duration) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = place.parse() {
            return Ok(vec![address]);
        }
        let began = Instant::now();
        let lookup = Lookup::begin(&self.0, within)?;
        let (to, found) = mpsc::sync_channel(1);
        let wanted = place.to_owned();
        let look_up = move || {
            let _lookup = lookup;
            let _ = to.send(wanted.to_socket_addrs().map(Vec::from_iter));
        };
        let thread = thread::Builder::new().name("names".into()).spawn(look_up);
        thread.map_err(|e| io::Error::new(e.kind(), format!("no thread to look up {place}: {e}")))?;
        found.recv_timeout(within.saturating_sub(began.elapsed())).map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let parts = uri.scheme().zip(uri.authority());
        let place = parts.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let place = place.ok_or_else(|| Error::BadUri("a host or a port is missing".into()))?;
        let found = self.addresses(&place, *timeout.after).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
            _ => Error::Io(e),
        })?;
        let family = config.ip_family();
        let mut addresses = self.empty();
        family.keep_wanted(found.into_iter()).take(ADDRESSES_MAX).for_each(|address| addresses.push(address));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::no_threads;

    const MINUTE: Duration = Duration::from_secs(60);

    fn is_loopback(found: &[SocketAddr]) -> bool {
        !found.is_empty() && found.iter().all(|address| address.ip().is_loopback() && address.port() == 80)
    }

    #[test]
    fn a_name_is_looked_up_within_its_time_and_after_others() {
        let names = Names::default();
        assert!(is_loopback(&names.addresses("localhost:80", MINUTE).unwrap()));
        assert!(names.addresses(&format!("{}:80", "x".repeat(300)), MINUTE).is_err(), "longer than names can be");
        let mut hanging: Vec<Lookup> =
            (0..LOOKUPS_MAX).map(|_| Lookup::begin(&names.0, MINUTE)).collect::<io::Result<_>>().unwrap();
        let late = names.addresses("localhost:80", Duration::from_millis(10)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(names.addresses("127.0.0.1:80", Duration::ZERO).unwrap().len(), 1, "an address waits for nothing");
        hanging.pop();
        assert!(is_loopback(&names.addresses("localhost:80", MINUTE).unwrap()));
    }

    #[test]
    fn an_address_needs_no_thread_and_a_name_without_one_is_an_error() {
        no_threads::in_own_process(
            "web::names::tests::an_address_needs_no_thread_and_a_name_without_one_is_an_error",
            || {
                let names = Names::default();
                let lack = no_threads::Lack::new();
                for place in ["127.0.0.1:80", "[::1]:80"] {
                    assert!(is_loopback(&names.addresses(place, MINUTE).unwrap()), "{place}");
                }
                // More often than lookups can be under way: one that could not begin is not counted.
                for _ in 0..2 * LOOKUPS_MAX {
                    let refused = names.addresses("localhost:80", MINUTE).unwrap_err();
                    assert!(refused.to_string().contains("no thread to look up localhost:80"), "{refused}");
                }
                drop(lack);
                assert!(is_loopback(&names.addresses("localhost:80", MINUTE).unwrap()));
            },
        );
    }
}
