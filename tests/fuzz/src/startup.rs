//! Target `startup`: the startup file.

use latebind_contract::command::{self, Amount, Command, FIELDS, rlimit_number};
use latebind_contract::encoding::Bytes32;
use latebind_contract::layout::{ENV_FILES_MAX, Ids};
use latebind_contract::order::{self, GRACE_MAX, Invalid, KILL_MAX, Order, TIMEOUT_MAX};

/// Longest message of a refusal. It goes into the log and into `status.json`.
const MESSAGE_MAX: usize = 2048;

/// The input is a startup file.
pub fn run(data: &[u8]) {
    match order::parse(data) {
        Ok((order, rest)) => accepted(data, &order, rest),
        Err(refused) => {
            is_message(&refused);
            keeps_the_key(data);
        }
    }
}

fn accepted(data: &[u8], order: &Order, rest: &[u8]) {
    let first = data.strip_suffix(rest).and_then(|first| first.strip_suffix(b"\n")).expect("two lines");
    assert!(!first.contains(&b'\n'), "the order has more than one line");
    let written = serde_json::to_vec(order).unwrap();
    let file = [&written[..], b"\n", rest].concat();
    let (again, same) = order::parse(&file).unwrap();
    assert_eq!((&again, same), (order, rest), "what is written is not what is read back");
    has_the_fields_of(first, &written);

    let ids = Ids { uid: order.uid, gid: order.gid, kill_uid: 65_100 };
    match order.check(ids, &order.incarnation) {
        Ok(()) => checked(order, ids),
        Err(refused) => is_message(&refused),
    }
    let other = format!("{}x", order.incarnation);
    assert!(order.check(ids, &other).is_err(), "a startup file of another incarnation passed");
    for ids in [Ids { uid: ids.uid ^ 1, ..ids }, Ids { gid: ids.gid ^ 1, ..ids }, Ids { kill_uid: ids.uid, ..ids }] {
        assert!(order.check(ids, &order.incarnation).is_err(), "a startup file of another slot passed");
    }
    commanded(order, rest);
}

/// What stage two makes of the second line.
fn commanded(order: &Order, rest: &[u8]) {
    let command = match command::parse(rest) {
        Ok(command) => command,
        Err(refused) => return is_message(&refused),
    };
    let written = serde_json::to_vec(&command).unwrap();
    assert_eq!(command::parse(&written).unwrap(), command, "what is written is not what is read back");
    if rest.trim_ascii_start().starts_with(b"{") {
        has_the_fields_of(rest, &written);
    }
    match command.check(order.fifos, order.env_files.len()) {
        Ok(()) => {
            assert_eq!(command.env_formats.len(), order.env_files.len());
            checked_command(&command, order.fifos);
        }
        Err(refused) => {
            assert!(FIELDS.contains(&refused.field), "{} cannot be reported", refused.field);
            is_message(&refused);
        }
    }
}

/// Every field of the file, as a general JSON reader finds it, has the value that we read; and no field is left out.
fn has_the_fields_of(data: &[u8], written: &[u8]) {
    let file: serde_json::Map<_, _> = serde_json::from_slice(data).unwrap();
    let read: serde_json::Map<_, _> = serde_json::from_slice(written).unwrap();
    for (name, value) in &file {
        let ours = read.get(name).unwrap_or_else(|| panic!("the unknown field {name:?} was accepted"));
        assert!(means(value, ours), "{name}: {value} was read as {ours}");
    }
}

/// Whether `ours` says what `file` says, where `file` may leave out defaults and write numbers in its own way.
fn means(file: &serde_json::Value, ours: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Null, Number, Object, String};
    match (file, ours) {
        (Number(a), Number(b)) => a.as_f64() == b.as_f64(),
        (Number(a), String(b)) => b == "unlimited" && a.as_u64() == Some(u64::MAX),
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| means(a, b)),
        // Bytes that are UTF-8 are written as a text.
        (Array(a), String(b)) => a.iter().map(serde_json::Value::as_u64).eq(b.bytes().map(|byte| Some(byte.into()))),
        // serde also takes a limit or a stream as a list of its fields' values.
        (Array(a), Object(b)) => a.len() <= b.len().max(3) && a.iter().all(|a| !matches!(a, Object(_) | Array(_))),
        (Object(a), Object(b)) => a.iter().all(|(name, a)| match b.get(name) {
            Some(b) => means(a, b),
            // `"append": false` and `"file": null` are what a stream has without them.
            None => matches!(a, Null | serde_json::Value::Bool(false)),
        }),
        (a, b) => a == b,
    }
}

/// What an order that passed all checks promises to the code that acts on it as root.
fn checked(order: &Order, ids: Ids) {
    let printable = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
    assert!((1..=128).contains(&order.job.len()) && printable(&order.job));
    for id in [order.uid, order.gid].iter().chain(&order.groups) {
        assert!(![0, u32::MAX, ids.kill_uid].contains(id), "the payload would have the ID {id}");
    }
    assert!(order.groups.len() <= 64);
    // One field each of a line in passwd and group.
    assert!((1..=32).contains(&order.account.len()) && !order.account.contains([':', '\n', '\0', '/']));
    assert!(order.home.iter().all(|home| home.starts_with('/') && !home.contains([':', '\n', '\0'])));
    assert!(order.env_files.len() <= ENV_FILES_MAX);
    for name in &order.env_files {
        assert!(name.starts_with("env.") && !name.contains(['/', '\0']) && !name.ends_with(".tmp"));
    }
    for (path, target) in &order.links {
        assert!(path.starts_with('/') && !path.contains('\0'));
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        assert!(parts.iter().all(|part| !matches!(*part, "" | "." | "..")), "{path:?} is not in its plain form");
        assert_ne!(parts.first(), Some(&"shared"), "{path:?} is within the shared volumes");
        assert!(!target.is_empty() && !target.contains('\0') && target.len() < 4096);
    }
    for (value, most) in [(order.timeout_s, TIMEOUT_MAX), (order.grace_s, GRACE_MAX), (order.kill_s, KILL_MAX)] {
        assert!((0.0..=most).contains(&value));
    }
}

/// What a command that passed all checks promises to stage two.
fn checked_command(command: &Command, fifos: [bool; 3]) {
    assert!(command.argv.first().is_some_and(|program| !program.as_bytes().is_empty()));
    assert!(command.argv.iter().all(|argument| !argument.has_nul()));
    assert!(
        command.cwd.iter().all(|cwd| cwd.as_bytes().starts_with(b"/") && !cwd.has_nul() && cwd.as_bytes().len() < 4096)
    );
    for (name, value) in &command.env.0 {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.has_nul());
    }
    for ((stream, fifo), is_fifo) in command.streams().into_iter().zip(["in", "out", "err"]).zip(fifos) {
        assert_eq!(stream.as_ref().is_some_and(|stream| stream.fifo.is_some()), is_fifo);
        let Some(stream) = stream else { continue };
        assert_ne!(stream.file.is_some(), stream.fifo.is_some());
        assert!(!stream.append || (stream.file.is_some() && fifo != "in"));
        assert!(stream.fifo.as_deref().is_none_or(|name| name == fifo));
        if let Some(file) = &stream.file {
            let stays = file.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
            assert!(stays && !file.contains('\0'), "{file:?} leads out of data/");
        }
    }
    assert!(command.umask_bits().is_some_and(|bits| bits <= 0o777));
    for (name, limit) in &command.rlimits.0 {
        assert!(rlimit_number(name).is_some());
        let amount = |amount| if let Amount::Of(n) = amount { n } else { u64::MAX };
        assert!(amount(limit.soft) <= amount(limit.hard));
    }
}

fn is_message(refused: &Invalid) {
    let text = refused.to_string();
    assert!(text.len() <= MESSAGE_MAX, "a message of {} bytes: {text:.200}", text.len());
    assert!(!text.contains(char::is_control), "control characters in a message: {text:?}");
}

/// The input behind the beginning of a file that has its key already: whatever is wrong there, the key is not in the
/// message.
fn keeps_the_key(data: &[u8]) {
    let key = Bytes32::new([0xa7; 32]).text();
    if data.windows(8).any(|part| key.as_bytes().starts_with(part)) {
        return;
    }
    for (before, after) in [("{\"version\":2,\"key\":\"", "\""), ("{\"key\":\"", "\\u0041\""), ("{\"key\":\"A", "\"")] {
        let text = [before.as_bytes(), key.as_bytes(), after.as_bytes(), data, b"\n{}"].concat();
        let Err(refused) = order::parse(&text) else { continue };
        is_message(&refused);
        let text = refused.to_string();
        assert!(!text.contains(&key[..8]), "the key is in the message: {text}");
    }
}
