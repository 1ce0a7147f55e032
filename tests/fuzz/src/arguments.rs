//! Target `argv`: the command line, environment and image names that condor_starter and glideins give to
//! `latebind-singularity`.

// The program is not a library; these files of it need nothing else of it.
#[allow(missing_docs, dead_code, reason = "the program's own files, of which a part is used")]
#[path = "../../../watcher/singularity/src"]
mod singularity {
    pub mod arguments;
    pub mod environment;
    pub mod image;
}

use std::path::Path;

use watcher::reference::Reference;

use self::singularity::arguments::{Call, Job, parse};
use self::singularity::environment::of_job;
use self::singularity::image::Table;
use crate::input::Input;

/// The first byte says what the rest is: words with NUL bytes between them, or options that are written out here.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.below(2) == 0 {
        let text = String::from_utf8_lossy(input.rest());
        let words: Vec<String> = text.split('\0').map(str::to_owned).collect();
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
fn is_made_of(job: &Job, words: &[String]) {
    assert!(!job.argv.is_empty() && words.ends_with(&job.argv));
    let before = &words[..words.len() - job.argv.len()];
    assert_eq!(before.last(), Some(&job.image));
    assert!(!job.image.starts_with('-'), "an option was taken for the image");
    assert!(before.iter().any(|word| word == "exec"));
    let given = |text: &str| before.iter().any(|word| word.contains(text));
    assert!(job.cwd.iter().chain(&job.home).all(|path| given(path)));
    assert!(job.binds.iter().all(|(source, target)| given(source) && given(target)));
    assert!(job.env.iter().all(|(name, value)| given(&format!("{name}={value}"))));
}

/// Options without a meaning here, and further arguments of the job's, change nothing else.
fn changes_nothing(words: &[String], parsed: &Result<Call, String>) {
    let with = |before: &[&str], after: &[&str]| {
        let word = |word: &&str| (*word).to_owned();
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
                wanted.binds.push((source, target));
                ("-B", "--bind", value)
            }
            1 => {
                let (one, two) = (word(&mut input, &[':', ',']), word(&mut input, &[':', ',']));
                let value = format!("{one},{two}:{two}:ro,");
                wanted.binds.extend([(one.clone(), one), (two.clone(), two)]);
                ("-B", "--bind", value)
            }
            2 => {
                let path = word(&mut input, &[':']);
                wanted.home = Some(path.clone());
                wanted.binds.push((path.clone(), path.clone()));
                ("-H", "--home", path)
            }
            3 => {
                let path = word(&mut input, &[]);
                wanted.cwd = Some(path.clone());
                ("--pwd", "--cwd", path)
            }
            4 => {
                let (name, value) = (word(&mut input, &['=', ',']), word(&mut input, &[',']));
                wanted.env.push((name.clone(), value.clone()));
                ("--env", "--env", format!("{name}={value}"))
            }
            5 => {
                wanted.clean_env = true;
                words.push(["-e", "--cleanenv", "-c", "--containall"][input.below(4)].into());
                continue;
            }
            6 => {
                words.push(["-s", "--contain", "--ipc", "--nv", "--no-home"][input.below(5)].into());
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
    wanted.argv = (0..=input.below(4)).map(|_| word(&mut input, &[])).collect();
    words.push(wanted.image.clone());
    words.extend(wanted.argv.iter().cloned());
    assert_eq!(parse(&words), Ok(Call::Job(Box::new(wanted.clone()))), "{words:?}");
    is_run(&wanted);
}

/// What becomes of a job that was read.
fn is_run(job: &Job) {
    // The caller's own environment: what says how the pilot's programs are found must not reach the job.
    let own = ["PATH", "LD_PRELOAD", "SINGULARITY_BIND", "_latebindHold", "C", "SINGULARITYENV_M", "APPTAINERENV_"];
    let env = of_job(job, own.iter().map(|name| ((*name).to_owned(), format!("pilot's {name}"))));
    for (name, value) in &env {
        assert!(!name.is_empty() && !name.contains(['=', '\0']), "a variable without a name: {name:?}={value:?}");
        if let Some(of) = value.strip_prefix("pilot's ") {
            let may = (of == "C" && !job.clean_env) || of == "SINGULARITYENV_M";
            assert!(may || job.env.iter().any(|(_, v)| v == value) || job.home.as_ref() == Some(value), "{of} leaks");
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
