//! The command line, as condor_starter (23.9, 25.14) and glideinWMS write it for singularity and apptainer.

use latebind_contract::bytes::ByteString;
use watcher::job::Bind;
use watcher::text::printable;

use super::known_options::{Kind, kind};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `--version`: a line with the program's name.
    Version,
    /// `version`: the number alone.
    Number,
    /// HTCondor tries out what the program can: `exec -C SANDBOX /exit_37`, `exec -C X.sif /exit_37`, `exec -C SANDBOX
    /// /get_user_ns`.
    Probe(Probe),
    /// `test`: whether a job could be run, asked while the starter does nothing else.
    Test,
    /// A job.
    Job(Box<Job>),
    /// `startd-cron`: not singularity's; what the startd has to know of held jobs.
    StartdCron,
}

/// What HTCondor tries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Ends with 37.
    Sandbox,
    /// Fails: images in files are not served.
    ImageFile,
    /// Prints the inode of the user namespace, ends with 37.
    UserNamespace,
}

/// A job, as far as the command line says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The image as it was written.
    pub image: String,
    /// Program and arguments; with `run` arguments for what the image runs by itself.
    pub argv: Vec<ByteString>,
    /// `run`: the program is the image's own.
    pub runs_image: bool,
    /// `--pwd`.
    pub cwd: Option<ByteString>,
    /// `--home`, as the job sees it.
    pub home: Option<String>,
    /// `-B` and `--home SRC:DST`: what is to be seen, and where.
    pub binds: Vec<Bind>,
    /// Whether the caller's own environment is left out.
    pub clean_env: bool,
    /// `--env NAME=VALUE`.
    pub env: Vec<(String, ByteString)>,
}

impl Job {
    /// `exec IMAGE cat /proc/self/uid_map`: glideinWMS looks whether the program works, and how it maps users.
    pub fn asks_for_uid_map(&self) -> bool {
        matches!(self.argv.as_slice(), [cat, map] if *cat == *"cat" && *map == *"/proc/self/uid_map")
    }
}

/// The words that are left.
type Words<'a> = std::slice::Iter<'a, ByteString>;

/// Reads a command line without the program's own name.
pub fn parse(words: &[ByteString]) -> Result<Call, String> {
    let mut words = words.iter();
    let mut job = Job::default();
    let verb = loop {
        let Some(word) = words.next() else { return Err("missing subcommand: exec, run, test or --version".into()) };
        match word.as_bytes() {
            b"--version" => return Ok(Call::Version),
            b"version" => return Ok(Call::Number),
            b"startd-cron" => return Ok(Call::StartdCron),
            b"exec" | b"run" | b"test" => break word.lossy(),
            [b'-', ..] => take_option(word, &mut words, &mut job)?,
            _ => return Err(format!("{}: no such verb; exec, run, test or --version", printable(&word.lossy()))),
        }
    };
    let image = loop {
        match words.next() {
            None => return Err(format!("{verb}: no image is given")),
            Some(option) if option.as_bytes().starts_with(b"-") => take_option(option, &mut words, &mut job)?,
            Some(image) => break text("the image", image.as_bytes())?,
        }
    };
    job.argv = words.cloned().collect();
    // A job has a working directory.
    let is_probe = job.cwd.is_none();
    let is_file = image.ends_with(".sif");
    job.image = image;
    match (&*verb, job.argv.first().map(ByteString::as_bytes)) {
        ("test", _) => Ok(Call::Test),
        ("run", _) => {
            job.runs_image = true;
            Ok(Call::Job(Box::new(job)))
        }
        (_, None) => Err("exec: no program is given".into()),
        (_, Some(b"/exit_37")) if is_probe && is_file => Ok(Call::Probe(Probe::ImageFile)),
        (_, Some(b"/exit_37")) if is_probe => Ok(Call::Probe(Probe::Sandbox)),
        (_, Some(b"/get_user_ns")) if is_probe => Ok(Call::Probe(Probe::UserNamespace)),
        (_, Some(_)) => Ok(Call::Job(Box::new(job))),
    }
}

fn text(what: &str, bytes: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(format!("{what} {} has to be UTF-8", printable(&String::from_utf8_lossy(bytes)))),
    }
}

fn split_at(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// Takes one word of options: a long one, perhaps with its value after an equals sign; or letters, of which the last
/// may have its value behind it or in the next word.
fn take_option(word: &ByteString, words: &mut Words<'_>, job: &mut Job) -> Result<(), String> {
    let bytes = word.as_bytes();
    let mut next = |name: &str| words.next().map(ByteString::as_bytes).ok_or(format!("{name}: its value is missing"));
    if bytes.starts_with(b"--") {
        let (name, joined) = split_at(bytes, b'=').map_or((bytes, None), |(name, value)| (name, Some(value)));
        let name = text("the option", name)?;
        return match (kind(&name)?, joined) {
            (Kind::Flag, None | Some(b"true")) => take_flag(&name, job),
            (Kind::Flag, Some(_)) => Err(format!("{name} takes no value but true")),
            (Kind::Valued, Some(value)) => take_value(&name, value, job),
            (Kind::Valued, None) => take_value(&name, next(&name)?, job),
        };
    }
    let mut letters = bytes.get(1..).unwrap_or_default();
    if letters.is_empty() {
        return Err("- is not an option".into());
    }
    while let [letter, rest @ ..] = letters {
        let name = format!("-{}", char::from(*letter));
        match kind(&name)? {
            Kind::Flag => take_flag(&name, job)?,
            Kind::Valued if rest.is_empty() => return take_value(&name, next(&name)?, job),
            Kind::Valued => return take_value(&name, rest.strip_prefix(b"=").unwrap_or(rest), job),
        }
        letters = rest;
    }
    Ok(())
}

fn take_flag(name: &str, job: &mut Job) -> Result<(), String> {
    job.clean_env |= matches!(name, "-e" | "--cleanenv" | "-C" | "--containall" | "--compat");
    Ok(())
}

fn take_value(name: &str, value: &[u8], job: &mut Job) -> Result<(), String> {
    match name {
        "-B" | "--bind" => {
            for one in text(name, value)?.split(',').filter(|one| !one.is_empty()) {
                job.binds.push(bind(one)?);
            }
        }
        "--pwd" | "--cwd" => job.cwd = Some(value.into()),
        "-H" | "--home" => {
            let wanted = bind(&text(name, value)?)?;
            job.home = Some(wanted.target.clone());
            job.binds.push(wanted);
        }
        "--env" => {
            for pair in variables(value)? {
                let (name, value) = split_at(&pair, b'=').unwrap_or((&pair, b""));
                if name.is_empty() {
                    return Err("--env: a variable has no name".into());
                }
                job.env.push((text("--env: the name", name)?, value.into()));
            }
        }
        // Scratch directories, host name and network are the container's own.
        _ => {}
    }
    Ok(())
}

/// `SRC[:DST[:ro|rw]]`.
fn bind(one: &str) -> Result<Bind, String> {
    let mut parts = one.split(':');
    let source = parts.next().unwrap_or_default().to_owned();
    let target = parts.next().filter(|target| !target.is_empty()).unwrap_or(&source).to_owned();
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw" | ""), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(format!("the bind {} is not SOURCE[:TARGET[:ro]]", printable(one))),
    };
    Ok(Bind { source, target, read_only })
}

/// What `--env` sets, as apptainer reads it: with one equals sign the whole value, else a line of CSV.
fn variables(value: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let shown = || printable(&String::from_utf8_lossy(value));
    let pairs = match value.iter().filter(|byte| **byte == b'=').count() {
        0 => Vec::new(),
        1 => {
            let quote = |byte: &u8| *byte != b'"';
            let first = value.iter().position(quote).unwrap_or(0);
            let end = value.iter().rposition(quote).map_or(0, |last| last + 1);
            vec![value.get(first..end).unwrap_or_default().to_vec()]
        }
        _ => csv(value).ok_or_else(|| format!("--env: {} is not a list with commas; quote it as CSV", shown()))?,
    };
    match pairs.iter().all(|pair| pair.contains(&b'=')) {
        true if !pairs.is_empty() => Ok(pairs),
        _ => Err(format!(
            "--env: {} is not NAME=VALUE, or a list of these; a value with commas and equals signs is quoted as in \
             '\"A=b,c=d\",E=f'",
            shown()
        )),
    }
}

/// The fields of one line of CSV (RFC 4180). `None` where it is not that.
fn csv(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let mut field = Vec::new();
        if let Some(mut quoted) = rest.strip_prefix(b"\"") {
            loop {
                let at = quoted.iter().position(|byte| *byte == b'"')?;
                field.extend_from_slice(quoted.get(..at)?);
                quoted = quoted.get(at + 1..)?;
                match quoted.strip_prefix(b"\"") {
                    Some(more) => {
                        field.push(b'"');
                        quoted = more;
                    }
                    None => break,
                }
            }
            rest = quoted;
        } else {
            let end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
            let (plain, more) = rest.split_at_checked(end)?;
            if plain.iter().any(|byte| b"\"\r\n".contains(byte)) {
                return None;
            }
            field.extend_from_slice(plain);
            rest = more;
        }
        fields.push(field);
        match rest.split_first() {
            None => return Some(fields),
            Some((b',', more)) => rest = more,
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
