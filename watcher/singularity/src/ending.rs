//! How this program ends, which is all that HTCondor learns of the job by itself.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, setrlimit};
use watcher::text::one_line;

/// condor_starter looks for it when the job has ended: the job is then given back to its queue, with this text.
const FAILURE_FILE: &str = ".job_wrapper_failure";
/// Wait before it is tried again to make it.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// An ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The job's own code.
    Code(i32),
    /// The signal that ended the job, or that asked for an end before there was a job.
    Signal(i32),
    /// Nobody's result: the job is to run again.
    Again(String),
}

impl Ending {
    /// Ends so.
    pub fn end(self) -> ExitCode {
        match self {
            Self::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
            Self::Signal(signal) => {
                // A core of this program would be taken for the job's.
                let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
                let _ = latebind_linux::sys::reset_signals();
                let _ = latebind_linux::sys::signal_process(std::process::id() as i32, signal);
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
            }
            Self::Again(why) => {
                let line = one_line(&why);
                complain(&line);
                // Without the file the starter would take the job for done: where there is no room for it, this waits
                // to be ended.
                while no_room_to_say(&line) {
                    std::thread::sleep(AGAIN_AFTER);
                }
                ExitCode::FAILURE
            }
        }
    }
}

/// Says it in each scratch directory; whether there was no room in any.
fn no_room_to_say(line: &str) -> bool {
    let (mut said, mut full) = (false, false);
    for dir in scratch_dirs() {
        match say_failure(&dir, line) {
            Ok(()) => said = true,
            Err(e) => {
                full |= matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                complain(&format!("{}: {e}", dir.display()));
            }
        }
    }
    full && !said
}

/// The job's scratch directory as the starter knows it, and where it started this program.
fn scratch_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::env::var_os("_CONDOR_SCRATCH_DIR").map(PathBuf::from).into_iter().collect();
    dirs.extend(std::env::current_dir());
    dirs.retain(|dir| dir.is_dir());
    dirs.dedup();
    dirs
}

/// Without the way in for others, the starter does not see the file and takes the job for done.
fn say_failure(dir: &Path, line: &str) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o711))?;
    let path = dir.join(FAILURE_FILE);
    let _ = fs::remove_file(&path);
    let flags = OFlag::O_NOFOLLOW.bits();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).custom_flags(flags).open(path)?;
    // That it is there is what counts.
    let _ = writeln!(file, "{line}");
    Ok(())
}

/// Into the job's standard error, behind what the job has written: this descriptor does not know how far that is.
pub fn complain(text: &str) {
    let mut whole = format!("latebind: {}\n", one_line(text));
    if let Ok(fd) = latebind_linux::sys::inherited(2).as_fd().try_clone_to_owned() {
        let mut file = fs::File::from(fd);
        let _ = file.seek(SeekFrom::End(0));
        let _ = file.write_all(std::mem::take(&mut whole).as_bytes());
    }
}
