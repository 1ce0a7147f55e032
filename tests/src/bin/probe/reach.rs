//! What can be reached from elsewhere: sockets of the abstract name space, over which descriptors pass.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::say;

/// How often a socket without clients is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Accepts whoever connects to the abstract socket `name`, for so long.
pub fn serve(name: &str, within: Duration) -> Result<i32, String> {
    let listen = || -> io::Result<UnixListener> {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|e| e.to_string())?;
    let end = Instant::now() + within;
    while Instant::now() < end {
        if listener.accept().is_err() {
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(0)
}

/// Connects to the abstract socket `name`, and says whether it is there; exits with 1 where it is not.
pub fn connect(name: &str) -> Result<i32, String> {
    let connected = SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address));
    let error = connected.as_ref().err().map(ToString::to_string);
    say(&json!({"connected": connected.is_ok(), "error": error}));
    Ok(i32::from(connected.is_err()))
}
