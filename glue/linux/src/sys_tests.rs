use super::payload::close_listed;
use super::*;

/// What the child of a test ends with, once it has lowered its limit on descriptors below one that it has open, closed
/// or marked all from 3 on, and looked at that one again.
fn after_lowering(close: fn(RawFd, RawFd, bool) -> io::Result<()>, only_mark: bool) -> i32 {
    const HIGH: RawFd = 700;
    let Ok(pid) = fork() else { return -1 };
    let child = match pid {
        Fork::Child => {
            // Nothing here allocates: the test's other threads do not exist in this process.
            let nofile = 7; // RLIMIT_NOFILE of asm-generic/resource.h
            let ready = duplicate_to(inherited(2), HIGH).is_ok() && set_rlimit(nofile, 64, 64).is_ok();
            let closed = ready && close(3, RawFd::MAX, only_mark).is_ok();
            // SAFETY: the call takes numbers only.
            let flags = unsafe { libc::fcntl(HIGH, libc::F_GETFD) };
            exit_now(if closed { flags + 2 } else { 0 })
        }
        Fork::Parent(pid) => pid,
    };
    loop {
        match reap(child) {
            Ok(Some(ended)) => return ended.status.code().unwrap_or(-1),
            Ok(None) => std::thread::yield_now(),
            Err(_) => return -1,
        }
    }
}

#[test]
fn a_descriptor_above_a_lowered_limit_is_closed_too() {
    const GONE: i32 = 1; // F_GETFD answered -1
    const CLOSE_ON_EXEC: i32 = libc::FD_CLOEXEC + 2;
    for close in [close_range, close_listed] {
        assert_eq!(after_lowering(close, false), GONE);
        assert_eq!(after_lowering(close, true), CLOSE_ON_EXEC);
    }
}
