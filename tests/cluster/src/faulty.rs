//! An image registry on this machine that answers every request in the same wrong way, or not at all.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a client may take to ask; one that is silent for longer is let go.
const ASKED_WITHIN: Duration = Duration::from_secs(10);

/// The first byte of a client that wants TLS: RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// What a faulty registry does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status, and these further header lines.
    Status(u16, Vec<String>),
    /// Takes requests, and never answers.
    Hang,
    /// Takes requests, and passes them on to the registry on this port once it is [released](Faulty::release).
    Late(u16),
}

impl Fault {
    /// `429 Too Many Requests`, with the seconds after which the client may ask again.
    pub fn too_many_requests(retry_after: u32) -> Self {
        Self::Status(429, vec![format!("Retry-After: {retry_after}")])
    }
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    asked: AtomicUsize,
    released: AtomicBool,
    // Of clients that wait for ever; closed at the end.
    open: Mutex<Vec<TcpStream>>,
}

/// A registry that does not work.
pub struct Faulty {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Faulty {
    /// Starts one on a port of its own.
    pub fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::<Shared>::default());
        let theirs = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                let (fault, shared) = (fault.clone(), theirs.clone());
                thread::spawn(move || serve(stream, &fault, &shared));
            }
        });
        Self { address, shared }
    }

    /// The name of an image in it.
    pub fn image(&self) -> String {
        format!("{}/x:1", self.address)
    }

    /// The name there of an image of `images/`, for a registry that is [late](Fault::Late).
    pub fn image_of(&self, name: &str) -> String {
        format!("{}/latebind/{name}:1", self.address)
    }

    /// Lets requests through from now on, those that wait too.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
    }

    /// How many requests there have been; of a registry that is late, connections.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Connects a client with the registry on this port, when it is let.
fn pass_on(client: &TcpStream, port: u16, shared: &Shared) -> io::Result<()> {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    while !shared.released.load(Ordering::SeqCst) {
        if shared.over.load(Ordering::SeqCst) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let server = TcpStream::connect(("127.0.0.1", port))?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        to.shutdown(Shutdown::Both)
    });
    io::copy(&mut &server, &mut &*client)?;
    client.shutdown(Shutdown::Both)
}

/// What a server without TLS says to a client that wants it. containerd 2 tries that first, also on loopback, and does
/// without it after such an answer.
fn refuse_tls(hello: &mut impl Read, stream: &mut TcpStream) -> io::Result<()> {
    // Read whole: with something unread, the end of the connection would be a reset, and the answer lost.
    let mut head = [0; 5];
    hello.read_exact(&mut head)?;
    let length = u16::from_be_bytes([head[3], head[4]]);
    io::copy(&mut hello.take(length.into()), &mut io::sink())?;
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn serve(stream: TcpStream, fault: &Fault, shared: &Shared) {
    if let Fault::Late(port) = fault {
        // A connection that breaks is the client's to notice.
        let _ = pass_on(&stream, *port, shared);
        return;
    }
    let _ = stream.set_read_timeout(Some(ASKED_WITHIN));
    let Ok(reader) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reader);
    let mut stream = stream;
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&TLS_HANDSHAKE)) {
        let _ = refuse_tls(&mut reader, &mut stream);
        return;
    }
    let mut lines = reader.lines();
    // One request after the other, as long as the client keeps the connection.
    while let Some(Ok(_request)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
        shared.asked.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Hang => {
                let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
                if !shared.over.load(Ordering::SeqCst) {
                    open.push(stream);
                }
                return;
            }
            Fault::Late(_) => return,
            Fault::Status(status, headers) => {
                let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
                let answer = format!("HTTP/1.1 {status} Faulty\r\nContent-Length: 0\r\n{headers}\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use latebind_tests::pod::eventually;

    use super::*;

    fn ask(faulty: &Faulty, wait: Duration) -> Option<String> {
        let mut stream = TcpStream::connect(faulty.address).unwrap();
        stream.set_read_timeout(Some(wait)).unwrap();
        stream.write_all(b"HEAD /v2/x/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 1000];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    #[test]
    fn every_request_has_the_same_answer() {
        let faulty = Faulty::start(Fault::too_many_requests(7));
        for n in 1..3 {
            let answer = ask(&faulty, Duration::from_secs(10)).unwrap();
            assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("\r\nRetry-After: 7\r\n"), "{answer}");
            assert_eq!(faulty.asked(), n);
        }
    }

    #[test]
    fn a_client_that_wants_tls_is_refused_and_has_not_asked() {
        let faulty = Faulty::start(Fault::Hang);
        let mut stream = TcpStream::connect(faulty.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&[TLS_HANDSHAKE, 3, 1, 0, 4, 1, 2, 3, 4]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(faulty.asked(), 0);
    }

    #[test]
    fn one_that_hangs_keeps_the_connection_until_it_ends() {
        let faulty = Faulty::start(Fault::Hang);
        assert_eq!(ask(&faulty, Duration::from_millis(300)), None);
        assert_eq!(faulty.asked(), 1);
        let mut stream = TcpStream::connect(faulty.address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        while faulty.asked() < 2 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(faulty);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0, "the end of the stream");
    }

    #[test]
    fn one_that_is_late_passes_everything_on() {
        let registry = Faulty::start(Fault::Status(404, vec![]));
        let late = Faulty::start(Fault::Late(registry.address.port()));
        assert_eq!(ask(&late, Duration::from_millis(300)), None);
        late.release();
        assert!(ask(&late, Duration::from_secs(10)).unwrap().starts_with("HTTP/1.1 404 "));
        // The request that had waited, too.
        eventually("both are passed on", Duration::from_secs(10), || (registry.asked() == 2).then_some(()));
        assert_eq!(late.asked(), 2);
    }
}
