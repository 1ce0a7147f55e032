//! A way to the API server whose connections can be cut, as a load balancer does that restarts.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    made: AtomicUsize,
    /// Bytes to the server, and from it.
    passed: [AtomicU64; 2],
    open: Mutex<Vec<TcpStream>>,
}

/// Passes connections on, until they are cut.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// One that leads to a port of this machine.
    pub fn to(port: u16) -> Self {
        Self::at(0, port)
    }

    /// The same, on a port of the caller's choice.
    pub fn at(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::<Shared>::default());
        let theirs = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    theirs.made.fetch_add(1, Ordering::SeqCst);
                    let _ = theirs.pass_on(&client, &server);
                }
            }
        });
        Self { address, shared }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections there have been.
    pub fn made(&self) -> usize {
        self.shared.made.load(Ordering::SeqCst)
    }

    /// How many bytes went to the server, and came from it.
    pub fn passed(&self) -> (u64, u64) {
        let [to, from] = &self.shared.passed;
        (to.load(Ordering::SeqCst), from.load(Ordering::SeqCst))
    }

    /// Cuts all connections; new ones are passed on. Returns how many there were.
    pub fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap_or_else(PoisonError::into_inner));
        // A half that has ended by itself is not a connection any more.
        open.iter().filter(|stream| stream.shutdown(Shutdown::Both).is_ok()).count() / 2
    }
}

impl Shared {
    fn pass_on(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (way, (from, to)) in [(client, server), (server, client)].into_iter().enumerate() {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            open.push(from.try_clone()?);
            let shared = self.clone();
            thread::spawn(move || {
                let mut bytes = [0; 16 << 10];
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    // First, so that what has arrived is counted.
                    shared.passed[way].fetch_add(n as u64, Ordering::SeqCst);
                    if to.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.cut();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_said_arrives_until_the_connection_is_cut() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::to(server.local_addr().unwrap().port());
        let mut client = TcpStream::connect(relay.address).unwrap();
        let mut taken = server.accept().unwrap().0;
        for stream in [&client, &taken] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let mut bytes = [0; 2];
        client.write_all(b"to").unwrap();
        taken.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to");
        taken.write_all(b"fr").unwrap();
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"fr");
        assert_eq!((relay.made(), relay.cut()), (1, 1));
        assert_eq!(relay.passed(), (2, 2));
        assert_eq!((client.read(&mut bytes).unwrap(), taken.read(&mut bytes).unwrap()), (0, 0));
        let _again = TcpStream::connect(relay.address).unwrap();
        server.accept().unwrap();
    }
}
