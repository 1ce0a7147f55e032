//! Target `proc`: what the kernel says of processes and control groups, which has names that a payload chooses.

use latebind_linux::cgroup::{number_after, whole};
use latebind_linux::processes::{Process, parse_status};
use procfs::FromRead;
use procfs::process::Stat;
use watcher::bind::proof::is_of_container;

use crate::input::Input;

/// The first byte says what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => {
            let text = String::from_utf8_lossy(input.rest());
            let _ = parse_status(1, &text);
            counters(&text);
        }
        1 => a_process_with_any_name(input),
        2 => {
            let name = String::from_utf8_lossy(input.until_nul()).into_owned();
            counter(&String::from_utf8_lossy(input.rest()), &name);
        }
        _ => containers(input),
    }
}

/// A process may call itself what it likes (prctl(2), PR_SET_NAME: 15 bytes): the rest of its files is read all the
/// same.
fn a_process_with_any_name(mut input: Input<'_>) {
    let (state, threads) = (['R', 'S', 'D', 'T', 't', 'Z', 'X', 'I'][input.below(8)], u32::from(input.byte()));
    let uid = u32::from_be_bytes(<[u8; 4]>::try_from(input.bytes(4)).unwrap_or_default());
    let name: Vec<u8> = input.rest().iter().copied().take(15).take_while(|b| *b != 0).collect();

    // fs/proc/array.c escapes line ends and backslashes in `status`, and nothing in `stat`.
    let escape = |byte: &u8| match *byte {
        b'\n' => b"\\n".to_vec(),
        b'\\' => b"\\\\".to_vec(),
        byte => vec![byte],
    };
    let mut status = b"Name:\t".to_vec();
    status.extend(name.iter().flat_map(escape));
    let rest = format!(
        "\nUmask:\t0022\nState:\t{state} (word)\nTgid:\t9\nNgid:\t0\nPid:\t9\nPPid:\t1\nTracerPid:\t0\n\
         Uid:\t{uid}\t6\t7\t8\nGid:\t5\t5\t5\t5\nFDSize:\t64\nGroups:\t1 2\nThreads:\t{threads}\nSigQ:\t0/1\n"
    );
    status.extend(rest.as_bytes());
    let read = parse_status(9, &String::from_utf8_lossy(&status));
    assert_eq!(read, Some(Process { pid: 9, uid, state, threads }), "{}", status.escape_ascii());

    let mut stat = b"9 (".to_vec();
    stat.extend(&name);
    let numbers = (14..=52).map(|n| format!(" {n}")).collect::<String>();
    stat.extend(format!(") {state} 1 5 6 0 8 9 10 11 12 13{numbers}\n").as_bytes());
    let read = Stat::from_read(stat.as_slice()).unwrap();
    let numbers =
        (read.pid, read.state, read.utime, read.stime, read.cutime, read.num_threads, read.starttime, read.rss);
    assert_eq!(numbers, (9, state, 14, 15, 16, 20, 22, 24), "{}", stat.escape_ascii());
}

fn counters(text: &str) {
    assert_eq!(whole(text), text.trim_ascii().parse().ok());
    for name in ["usage_usec", "oom_kill", "total_inactive_file", "inactive_file"] {
        counter(text, name);
    }
}

/// The first line with exactly this name counts.
fn counter(text: &str, name: &str) {
    if name.contains([' ', '\n', '\r']) {
        return;
    }
    let line = text.lines().find(|line| line.split(' ').next() == Some(name) && line.len() > name.len());
    let number = line.and_then(|line| line[name.len()..].trim_ascii().parse::<u64>().ok());
    assert_eq!(number_after(text, name), number, "{name:?} in {text:?}");
}

/// Only a container's own ID, in one of the last two parts of a line's path, ties a process to it.
fn containers(mut input: Input<'_>) {
    let id: String = (0..64).map(|_| char::from(b"0123456789abcdef"[input.below(16)])).collect();
    let text = String::from_utf8_lossy(input.rest()).replace('@', &id);
    if is_of_container(&text, &id) {
        let has = |line: &str| line.split('/').rev().take(2).any(|part| part.contains(&id));
        assert!(text.lines().any(has), "{text:?}");
    }
    for short in ["", &id[..31]] {
        assert!(!is_of_container(&text, short), "{short:?} is not an ID");
    }
    assert!(is_of_container(&format!("{text}\n0::/a/x-{id}.scope/container\n"), &id));
}
