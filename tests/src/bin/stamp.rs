//! `stamp FILE [wait]`: the job of `make bench`. Its first act is to read the monotonic clock, its last but one too;
//! both times go into FILE, which has to exist. With `wait` it writes the first time at once, and then waits for a
//! signal.
//!
//! The monotonic clock is the same in all containers of a machine, so the times can be set against those of other
//! processes.

// Without the Rust runtime's start, which would be a part of what is measured.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]
#![allow(unsafe_code)]

#[cfg(test)]
fn main() {}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    // Wrapping, since the text of a panic would make this program three times as large.
    part(time.tv_sec).wrapping_mul(1_000_000_000).wrapping_add(part(time.tv_nsec))
}

#[cfg(not(test))]
// SAFETY: the C library looks for a function of this name and form, and there is no other.
#[unsafe(no_mangle)]
extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    let first = now();
    if argc < 2 {
        return 2;
    }
    // SAFETY: argv has argc strings, terminated; the array that is written lives until the call returns; no other
    // thread.
    unsafe {
        let file = libc::open(*argv.add(1), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return 3;
        }
        if argc > 2 {
            libc::write(file, [first, 0].as_ptr().cast(), 16);
            loop {
                libc::pause();
            }
        }
        libc::write(file, [first, now()].as_ptr().cast(), 16);
        libc::_exit(0)
    }
}
