//! A program that is ready to be executed: of the job, or beside it.
#![forbid(unsafe_code)]

use std::io;

use latebind_contract::environment::Environment;
use latebind_contract::exec_reason::{DEFAULT_PATH, candidates};
use latebind_linux::sys::{self, CStrings};

/// Everything that a process needs for its exec, so that it allocates nothing then.
pub struct Ready {
    /// Where the program is looked for, in order.
    pub candidates: CStrings,
    /// Program and arguments.
    pub argv: CStrings,
    /// The environment.
    pub env: CStrings,
    /// The resource limits.
    pub limits: Limits,
}

/// Resource limits: the kernel's number, soft and hard.
pub type Limits = Vec<(u32, u64, u64)>;

impl Ready {
    /// Sets the resource limits. Says which one cannot be set.
    pub fn set_limits(&self) -> Result<(), (usize, io::Error)> {
        let set = |((number, soft, hard), index): (&(u32, u64, u64), usize)| {
            sys::set_rlimit(*number, *soft, *hard).map_err(|e| (index, e))
        };
        self.limits.iter().zip(0..).try_for_each(set)
    }

    /// Executes the program. Returns only which candidate is why there was none, and its error.
    pub fn exec(&self) -> (usize, io::Error) {
        // As execvp(3) does: what is not there is passed over, what may not be run is remembered, all else ends the
        // search.
        let mut last = (0, io::Error::from_raw_os_error(nix::libc::ENOENT));
        for (n, candidate) in self.candidates.as_slice().iter().enumerate() {
            let error = sys::exec(candidate, &self.argv, &self.env);
            match error.raw_os_error() {
                Some(nix::libc::ENOENT | nix::libc::ENOTDIR) => {}
                Some(nix::libc::EACCES) => last = (n, error),
                _ => return (n, error),
            }
        }
        last
    }
}

/// Prepares the execution of `argv` with this environment and these limits.
pub fn prepare(argv: &[&[u8]], env: &Environment, limits: Limits) -> io::Result<Ready> {
    let program = argv.first().copied().unwrap_or_default();
    let path = env.get(b"PATH").filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH.as_bytes());
    let mut ready =
        Ready { candidates: CStrings::default(), argv: CStrings::default(), env: CStrings::default(), limits };
    candidates(program, path).try_for_each(|parts| ready.candidates.push(&parts))?;
    argv.iter().try_for_each(|argument| ready.argv.push(&[argument]))?;
    env.iter().try_for_each(|(name, value)| ready.env.push(&[name, b"=", value]))?;
    Ok(ready)
}
