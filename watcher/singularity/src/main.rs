//! What HTCondor's condor_starter calls for singularity: the job runs in the slot's payload container instead.
//!
//! It has the payload's UID and runs beside the pilot's files, so it must never be dumpable: installed root:root 0711,
//! it is not from its first instruction on. It holds no key, and believes and writes nothing that root would rely on.
#![forbid(unsafe_code)]

mod ads;
mod arguments;
mod ending;
mod environment;
mod image;
mod job;
mod known_options;
mod signals;

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use arguments::{Call, Probe};
use latebind_contract::bytes::ByteString;

/// The version of singularity whose options are understood, with our own.
const VERSION: &str = concat!("3.11.5-latebind-", env!("CARGO_PKG_VERSION"));
/// What HTCondor's own test program ends with.
const PROBED: u8 = 37;
/// Singularity's own failure.
const FAILED: u8 = 255;

fn main() -> ExitCode {
    latebind_linux::sys::protect_relocations();
    // Once more, for a copy that somebody installed with other rights.
    let _ = nix::sys::prctl::set_dumpable(false);
    let words: Vec<ByteString> = std::env::args_os().skip(1).map(|word| word.into_vec().into()).collect();
    match arguments::parse(&words) {
        // HTCondor takes a name with "apptainer" in it for another environment prefix; the number, for what a program
        // can.
        Ok(Call::Version) => say(&format!("singularity version {VERSION}\n")),
        Ok(Call::Number) => say(&format!("{VERSION}\n")),
        Ok(Call::Probe(Probe::Sandbox)) => ExitCode::from(PROBED),
        Ok(Call::Probe(Probe::ImageFile)) => ExitCode::FAILURE,
        Ok(Call::Probe(Probe::UserNamespace)) => match std::fs::metadata("/proc/self/ns/user") {
            Ok(namespace) => {
                say(&format!("{}\n", namespace.ino()));
                ExitCode::from(PROBED)
            }
            Err(e) => failed(&format!("/proc/self/ns/user: {e}")),
        },
        // The starter waits meanwhile and does nothing else.
        Ok(Call::Test) => ExitCode::SUCCESS,
        Ok(Call::StartdCron) => match ads::print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => failed(&e.to_string()),
        },
        // glideinWMS validates a node before there is a job, and so outside of any slot.
        Ok(Call::Job(job)) if job.asks_for_uid_map() && !job::is_in_slot() => {
            match std::fs::read_to_string("/proc/self/uid_map") {
                Ok(map) => say(&map),
                Err(e) => failed(&format!("/proc/self/uid_map: {e}")),
            }
        }
        Ok(Call::Job(job)) => job::run(Ok(*job)).end(),
        // A job that cannot be understood would be no better the next time.
        Err(why) if std::env::var_os("_CONDOR_SCRATCH_DIR").is_some() => job::run(Err(why)).end(),
        Err(why) => failed(&why),
    }
}

fn say(text: &str) -> ExitCode {
    match watcher::text::say(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn failed(why: &str) -> ExitCode {
    watcher::text::complain(&format!("latebind-singularity: {why}"));
    ExitCode::from(FAILED)
}
