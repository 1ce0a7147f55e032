//! Names of error numbers and signals, as Linux numbers them on x86_64 and aarch64 (`asm-generic/errno*.h`, signal(7)).
//!
//! Each list is one text: a table of texts costs a relocation for each entry, several KB of a binary that has 200.
#![forbid(unsafe_code)]

/// From 1 up; `-` where there is no such number.
const ERRNOS: &str = "\
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV \
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK \
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT \
    EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV \
    ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX \
    ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT \
    ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET \
    ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH \
    EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY \
    EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON";

/// From 1 up.
const SIGNALS: &str = "\
    SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM SIGTERM \
    SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO \
    SIGPWR SIGSYS";

fn nth(names: &'static str, number: i32) -> Option<&'static str> {
    let n = usize::try_from(number).ok()?.checked_sub(1)?;
    names.split(' ').nth(n).filter(|name| *name != "-")
}

/// `ENOENT` and so on; `None` for a number that is none of Linux's.
pub fn errno(number: i32) -> Option<&'static str> {
    nth(ERRNOS, number)
}

/// `SIGTERM` and so on; `None` for real-time signals and what is no signal.
pub fn signal(number: i32) -> Option<&'static str> {
    nth(SIGNALS, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::sys::signal::Signal;

    #[test]
    fn names_are_those_that_nix_has() {
        for number in -1..200 {
            let known = Some(Errno::from_raw(number)).filter(|e| *e != Errno::UnknownErrno);
            assert_eq!(errno(number).map(str::to_owned), known.map(|e| format!("{e:?}")), "{number}");
            let known = Signal::try_from(number).ok();
            assert_eq!(signal(number), known.map(Signal::as_str), "{number}");
        }
    }
}
