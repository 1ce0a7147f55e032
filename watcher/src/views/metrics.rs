//! `--metrics`: what the core counts, over HTTP.
//!
//! Off unless an address is given. Containers of a pod share their network, so the payload can ask too.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};

use crate::serve::Core;

/// How long a connection may take, from its first byte to the last one of the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How many connections are served at once: from the pod's own addresses, where payloads are, and from elsewhere. Each
/// has its own share, so that payloads keep nobody else away.
const LOCAL_MAX: usize = 4;
const REMOTE_MAX: usize = 8;

/// Longest request.
const REQUEST_MAX: usize = 8 << 10;

/// Listens until the process ends; returns the address, which has a port where 0 was asked for.
pub fn listen(core: Core, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .map_err(|e| io::Error::new(e.kind(), format!("--metrics {address}: {e}: choose another address or port")))?;
    let local = listener.local_addr()?;
    let open: [Arc<AtomicUsize>; 2] = Default::default();
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for stream in listener.incoming() {
            let accepted = stream.and_then(|stream| Ok((stream.peer_addr()?.ip(), stream)));
            let (peer, stream) = match accepted {
                Ok(accepted) => accepted,
                // Gone again, or no descriptors are left: not a loop that takes a whole processor.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            let [remote, local] = &open;
            let (share, most) = if is_local(peer) { (local, LOCAL_MAX) } else { (remote, REMOTE_MAX) };
            if share.fetch_add(1, Ordering::Relaxed) >= most {
                share.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (core, done) = (core.clone(), share.clone());
            let served = std::thread::Builder::new().name("metrics-ask".into()).spawn(move || {
                let text = || {
                    let (slots, queued) = core.top();
                    core.metrics().text(&slots, queued).map_err(io::Error::other)
                };
                if let Err(e) = answer(stream, ANSWER_WITHIN, text) {
                    tracing::debug!("metrics: {e}");
                }
                done.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                share.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(local)
}

/// Whether this address is one of the pod's own. Where that is not known, it counts as one.
fn is_local(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() {
        return true;
    }
    let own = |interface: InterfaceAddress| {
        let at = interface.address?;
        let v4 = at.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        v4.or_else(|| at.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
    };
    getifaddrs().map_or(true, |mut all| all.any(|interface| own(interface) == Some(address)))
}

/// One request, one answer (RFC 9112), and the connection is closed.
fn answer(mut stream: TcpStream, within: Duration, text: impl FnOnce() -> io::Result<String>) -> io::Result<()> {
    let give_up = Instant::now() + within;
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return Err(io::Error::other("no whole request in time"));
        }
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Ok(());
        }
        request.extend(part.get(..n).unwrap_or_default());
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line {
        line if line.starts_with(b"GET /metrics ") => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text()?)
        }
        line if line.starts_with(b"GET ") => ("404 Not Found", "text/plain", "there is only /metrics\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let mut unsent = answer.as_slice();
    while !unsent.is_empty() {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("the answer was not read in time"));
        }
        stream.set_write_timeout(Some(left))?;
        let n = stream.write(unsent)?;
        unsent = unsent.get(n..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;

    #[test]
    fn a_client_that_is_slow_to_ask_or_to_read_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(600));
        let big = || Ok("x".repeat(64 << 20));
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        assert!(answer(ours, short, big).is_err(), "half a request");
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        assert!(answer(ours, short, big).is_err(), "an answer that is not read");
        let (mut client, ours) = connect();
        let asked = std::thread::spawn(move || {
            client.write_all(&[b"GET /metrics HTTP/1.1\r\n".as_slice(), &[b'x'; 2 * REQUEST_MAX]].concat()).is_ok()
        });
        assert!(answer(ours, long, big).is_err(), "a request without end");
        asked.join().unwrap();
        let (mut client, ours) = connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        answer(ours, long, || Ok("the text".into())).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nthe text"), "{said}");
    }

    #[test]
    fn a_payload_and_a_collector_are_told_apart() {
        for own in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_local(own.parse().unwrap()), "{own}");
        }
        // TEST-NET-3 of RFC 5737, and the documentation prefix of RFC 3849.
        for other in ["203.0.113.7", "2001:db8::7"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }
}
