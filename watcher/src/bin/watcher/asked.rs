//! What `run` and `exec` ask for, from their arguments.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use latebind_contract::bytes::ByteString;
use latebind_contract::startup::{EnvFormat, Object};
use latebind_contract::verify::from_base64url;
use watcher::job::{EnvSource, Request, plain_path};
use watcher::random::random_hex;
use watcher::serve::protocol;
use watcher::{docker_options, run};

use crate::OUR_FAILURE;
use crate::arguments::{ExecArgs, RunArgs};

/// Starts a command beside a job; says its exit code.
pub fn exec(args: &ExecArgs) -> io::Result<ExitCode> {
    let (job, argv) = docker_options::image_and_command(&args.words).map_err(io::Error::other)?;
    if argv.is_empty() {
        return Err(io::Error::other("no command is given after the job"));
    }
    let mut env = Vec::new();
    for given in &args.env {
        let (name, value) = variable(given)?;
        env.push([name.as_bytes(), b"=", value.as_bytes()].concat());
    }
    let command = run::Command {
        job: &job,
        argv: argv.iter().map(|word| word.as_bytes()).collect(),
        env,
        cwd: args.workdir.as_ref().map(|dir| dir.as_bytes()).unwrap_or_default(),
    };
    let code = run::exec(&args.private.private.join(protocol::SOCKET), &command, args.streams)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(OUR_FAILURE)))
}

/// A bare name has to be set here: a job that lacks it would be harder to understand.
fn variable(given: &OsStr) -> io::Result<(String, ByteString)> {
    let (name, value) = docker_options::variable(given).map_err(io::Error::other)?;
    let value = value.ok_or_else(|| io::Error::other(format!("--env {name}: no such variable is set here")))?;
    Ok((name, value.as_slice().into()))
}

/// `NAME=VALUE` with the value in base64url.
fn encoded_variable(given: &str) -> io::Result<(String, ByteString)> {
    let value = given.split_once('=').and_then(|(name, value)| Some((name, from_base64url(value)?)));
    let (name, value) = value.ok_or_else(|| io::Error::other("--env-base64: write NAME=BASE64URL"))?;
    Ok((name.to_owned(), value.as_slice().into()))
}

fn words_of(args: &RunArgs) -> io::Result<(String, Vec<ByteString>)> {
    let (image, argv) = docker_options::image_and_command(&args.words).map_err(io::Error::other)?;
    let plain = |word: &OsString| Some(word.as_bytes().into());
    let encoded = |word: &OsString| from_base64url(word.to_str()?).map(|bytes| bytes.as_slice().into());
    let argv: Option<_> = argv.iter().map(|word| if args.argv_base64 { encoded(word) } else { plain(word) }).collect();
    Ok((image, argv.ok_or_else(|| io::Error::other("--argv-base64: the command is not base64url"))?))
}

/// `FORMAT:FILE`, or a file of shell assignments.
fn env_source(given: &Path) -> EnvSource {
    let (format, path) = EnvFormat::of_prefix(given.as_os_str().as_bytes());
    EnvSource { path: OsStr::from_bytes(path).into(), format }
}

/// The job that `watcher run` asks for.
pub fn request_of(args: &RunArgs) -> io::Result<Request> {
    let random = random_hex::<8>()?;
    let (image, argv) = words_of(args)?;
    let mut request: Request = serde_json::from_value(serde_json::json!({
        "id": args.name.clone().unwrap_or_else(|| format!("run-{random}")),
        "image": image,
    }))
    .map_err(io::Error::other)?;
    let docker_options::Program { args: are_args, entrypoint } = &args.program;
    let program = entrypoint.iter().filter(|program| !program.is_empty());
    let words: Vec<ByteString> = program.map(|program| program.as_bytes().into()).chain(argv).collect();
    match (entrypoint, words.is_empty()) {
        (Some(_), true) => {
            return Err(io::Error::other(
                "--entrypoint \"\" leaves the image's own out: give a command after the image",
            ));
        }
        (None, true) if *are_args => {
            return Err(io::Error::other("--args: give the arguments for the image's ENTRYPOINT after the image"));
        }
        _ if *are_args => request.args = words,
        _ => request.argv = words,
    }
    let encoded = args.env_base64.iter().map(|given| encoded_variable(given));
    request.env = args.env.iter().map(|given| variable(given)).chain(encoded).collect::<io::Result<_>>()?;
    request.rlimits = Object(args.ulimit.clone());
    request.env_files = args.env_file.iter().map(|given| env_source(given)).collect();
    if args.clean_env {
        request.env_mode = latebind_contract::startup::EnvMode::Clear;
    }
    request.cwd = args.workdir.as_ref().map(|dir| dir.as_bytes().into());
    request.inputs = args.inputs.clone();
    request.outputs = args.output.iter().map(|path| plain_path(path)).collect();
    request.results = args.results.clone();
    request.timeout_s = args.timeout;
    request.grace_s = args.grace;
    request.stop = args.stop;
    // A watcher that serves already has maxima of its own, of which the smaller ones hold.
    request.limits = args.core.most.limits()?;
    request.owner = args.owner.clone();
    request.sandbox = args.sandbox.clone();
    request.terminal = args.streams.size();
    request.relay = request.terminal.is_none();
    request.exec = args.exec;
    request.pilot_job = args.pilot_job;
    Ok(request)
}
