//! Target `argv`: the command line, environment and image names that condor_starter and glideins give to
//! `latebind-singularity`.

// The program is not a library; these files of it need nothing else of it.
#[allow(missing_docs, dead_code, reason = "the program's own files, of which a part is used")]
#[path = "../../../watcher/singularity/src"]
mod singularity {
    pub mod arguments;
    pub mod environment;
    pub mod image;
    pub mod known_options;
}

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use latebind_contract::bytes::ByteString;
use watcher::job::Bind;
use watcher::reference::Reference;

use self::singularity::arguments::{Call, Job, parse};
use self::singularity::environment::of_job;
use self::singularity::image::Table;
use crate::input::Input;

/// The first byte says what the rest is: words with NUL bytes between them, or options that are written out here.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.below(2) == 0 {
        let words: Vec<ByteString> = input.rest().split(|byte| *byte == 0).map(ByteString::from).collect();
        let parsed = parse(&words);
        if let Ok(Call::Job(job)) = &parsed {
            is_made_of(job, &words);
            is_run(job);
        }
        changes_nothing(&words, &parsed);
    } else {
        written_out(input);
    }
}

/// Image, program and arguments are the last words, as they were given.
fn is_made_of(job: &Job, words: &[ByteString]) {
    assert!((job.runs_image || !job.argv.is_empty()) && words.ends_with(&job.argv));
    let before = &words[..words.len() - job.argv.len()];
    assert_eq!(before.last(), Some(&job.image.as_str().into()));
    assert!(!job.image.starts_with('-'), "an option was taken for the image");
    let verb = if job.runs_image { "run" } else { "exec" };
    assert!(before.iter().any(|word| *word == *verb));
    let given = |text: &[u8]| {
        text.is_empty() || before.iter().any(|word| word.as_bytes().windows(text.len()).any(|part| part == text))
    };
    assert!(job.cwd.iter().all(|path| given(path.as_bytes())) && job.home.iter().all(|path| given(path.as_bytes())));
    assert!(job.binds.iter().all(|bind| given(bind.source.as_bytes()) && given(bind.target.as_bytes())));
    // A quote within a value is written twice.
    let plain = |value: &ByteString| value.as_bytes().contains(&b'"') || given(value.as_bytes());
    assert!(job.env.iter().all(|(name, value)| name.contains('"') || given(name.as_bytes()) && plain(value)));
}

/// Options without a meaning here, and further arguments of the job's, change nothing else.
fn changes_nothing(words: &[ByteString], parsed: &Result<Call, String>) {
    let with = |before: &[&str], after: &[&str]| {
        let word = |word: &&str| ByteString::from(*word);
        parse(&before.iter().map(word).chain(words.iter().cloned()).chain(after.iter().map(word)).collect::<Vec<_>>())
    };
    assert_eq!(&with(&["-s", "--nv", "-W", "exec", "--hostname=x"], &[]), parsed);
    if let Ok(Call::Job(job)) = parsed {
        let longer =
            Job { argv: job.argv.iter().cloned().chain(["--pwd".into(), "/x".into()]).collect(), ..(**job).clone() };
        assert_eq!(with(&[], &["--pwd", "/x"]), Ok(Call::Job(Box::new(longer))));
    }
}

/// What a job is made of, chosen by the input and written in one of the ways there are, is what is read.
fn written_out(mut input: Input<'_>) {
    fn bind(source: String, target: String, read_only: bool) -> Bind {
        Bind { source, target, read_only }
    }
    fn word(input: &mut Input<'_>, without: &[char]) -> String {
        let text = String::from_utf8_lossy(input.string()).replace(|c| c == '\0' || without.contains(&c), "");
        if text.is_empty() { "x".into() } else { text }
    }
    let (mut wanted, mut words) = (Job::default(), Vec::new());
    let verb_at = input.below(6);
    for n in 0..6 {
        if n == verb_at {
            words.push("exec".to_owned());
        }
        let joined = input.below(2) == 0;
        let (short, long, value) = match input.below(8) {
            0 => {
                let (source, target) = (word(&mut input, &[':', ',']), word(&mut input, &[':', ',']));
                let value = format!("{source}:{target}");
                wanted.binds.push(bind(source, target, false));
                ("-B", "--bind", value)
            }
            1 => {
                let (one, two) = (word(&mut input, &[':', ',']), word(&mut input, &[':', ',']));
                let value = format!("{one},{two}:{two}:ro,");
                wanted.binds.extend([bind(one.clone(), one, false), bind(two.clone(), two, true)]);
                ("-B", "--bind", value)
            }
            2 => {
                let path = word(&mut input, &[':']);
                wanted.home = Some(path.clone());
                wanted.binds.push(bind(path.clone(), path.clone(), false));
                ("-H", "--home", path)
            }
            3 => {
                let path = word(&mut input, &[]);
                wanted.cwd = Some(path.as_str().into());
                ("--pwd", "--cwd", path)
            }
            4 => {
                let (name, value) = (word(&mut input, &['=', '"']), word(&mut input, &['=', '"']));
                wanted.env.push((name.clone(), value.as_str().into()));
                ("--env", "--env", format!("{name}={value}"))
            }
            5 => {
                wanted.clean_env = true;
                words.push(["-e", "--cleanenv", "-sC", "--containall"][input.below(4)].into());
                continue;
            }
            6 => {
                words.push(["-vvv", "-c", "--ipc", "--nv", "--no-home"][input.below(5)].into());
                continue;
            }
            _ => ("-S", "--scratch", word(&mut input, &[])),
        };
        if joined {
            words.push(format!("{long}={value}"));
        } else {
            words.extend([short.to_owned(), value]);
        }
    }
    wanted.cwd = wanted.cwd.or_else(|| {
        words.push("--pwd=/w".into());
        Some("/w".into())
    });
    wanted.image = format!("i{}", word(&mut input, &[]));
    wanted.argv = (0..=input.below(4)).map(|_| word(&mut input, &[]).into()).collect();
    words.push(wanted.image.clone());
    let words: Vec<ByteString> = words.into_iter().map(ByteString::from).chain(wanted.argv.iter().cloned()).collect();
    assert_eq!(parse(&words), Ok(Call::Job(Box::new(wanted.clone()))), "{words:?}");
    is_run(&wanted);
}

/// What becomes of a job that was read.
fn is_run(job: &Job) {
    // The caller's own environment: what says how the pilot's programs are found must not reach the job.
    let own = ["PATH", "LD_PRELOAD", "SINGULARITY_BIND", "_latebindHold", "C", "SINGULARITYENV_M", "APPTAINERENV_"];
    let own = own.iter().map(|name| (OsString::from(name), OsString::from_vec(format!("pilot's {name}").into_bytes())));
    let (env, _) = of_job(job, own);
    for (name, value) in &env {
        let value = &*value.lossy();
        assert!(!name.is_empty() && !name.contains(['=', '\0']), "a variable without a name: {name:?}={value:?}");
        if let Some(of) = value.strip_prefix("pilot's ") {
            let may = (of == "C" && !job.clean_env) || of == "SINGULARITYENV_M";
            assert!(
                may || job.env.iter().any(|(_, v)| v.lossy() == value)
                    || [&job.home, &Some(job.image.clone())].iter().any(|given| given.as_deref() == Some(value)),
                "{of} leaks"
            );
        }
    }
    let table = Table::open(Path::new("/nonexistent/table")).unwrap();
    match table.resolve(&job.image) {
        Ok(full) => {
            assert_eq!(
                table.resolve(&full).as_ref(),
                Ok(&full),
                "the full name of {:?} means something else",
                job.image
            );
            let reference = Reference::parse_full(&full).unwrap();
            assert!(reference.registry().is_some());
            assert!(full.len() <= 1024 && full.bytes().all(|b| b.is_ascii_graphic()), "{full:?}");
        }
        Err(why) => assert!(!why.contains(char::is_control), "{why:?}"),
    }
}
