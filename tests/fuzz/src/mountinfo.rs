//! Target `mountinfo`: what decides whether a payload container has our mounts and no other.

use latebind_contract::layout;
use latebind_contract::mounts::{Mount, check, parse};

use crate::input::Input;

const SLOT: u32 = 1;
/// Places at, below and beside the shared volumes.
const PLACES: [&str; 14] = [
    "/shared/bin",
    "/shared/slot/1/ctl",
    "/shared/slot/1/data",
    "/",
    "/shared",
    "/shared/slot",
    "/shared/slot/1",
    "/shared/slot/0/ctl",
    "/shared/slot/1/data/work",
    "/shared/bin/glue",
    "/sharedx",
    "/shared\\040x",
    "/shared/",
    "/proc",
];

/// The first byte says what the rest is: a text, or mounts that are written as the kernel does.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.below(2) == 0 {
        let Ok(text) = str::from_utf8(input.rest()) else { return };
        let Ok(mounts) = parse(text) else { return };
        assert_eq!(mounts.len(), text.lines().count(), "a line was left out");
        decided_rightly(&mounts);
    } else {
        as_the_kernel_writes_it(input);
    }
}

fn as_the_kernel_writes_it(mut input: Input<'_>) {
    let (mut mounts, mut text) = (Vec::new(), String::new());
    while !input.is_empty() && mounts.len() < 32 {
        let (kind, place) = (input.byte(), input.below(PLACES.len() + 1));
        let point = match PLACES.get(place) {
            Some(place) => (*place).to_owned(),
            None => format!("/{}", String::from_utf8_lossy(input.string())),
        };
        let root = format!("/{}", String::from_utf8_lossy(input.string()));
        let (device, read_only) = (format!("{}:{}", kind >> 4, input.byte()), kind & 1 != 0);
        let mount = Mount { device, root: escaped(&root), point: escaped(&point), read_only };
        let tag = ["", " shared:7", " master:1 propagate_from:2"][usize::from(kind >> 1) % 3];
        text.push_str(&format!(
            "{} 1 {} {} {} {},relatime{tag} - ext4 /dev/vda rw\n",
            mounts.len() + 20,
            mount.device,
            mount.root,
            mount.point,
            if mount.read_only { "ro" } else { "rw" },
        ));
        mounts.push(mount);
    }
    assert_eq!(parse(&text).as_ref(), Ok(&mounts), "{text}");
    decided_rightly(&mounts);
}

/// As `show_mountinfo` in fs/proc_namespace.c does: blank, tab, line end, backslash and '#' in octal. A root that was
/// removed has `//deleted` behind it, which is not different from a directory of that name.
fn escaped(path: &str) -> String {
    let escape = |c: char| match c {
        ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(c)),
        c => c.to_string(),
    };
    path.chars().map(escape).collect()
}

/// [`check`] passes exactly where at and below `/shared` there are our three mounts, each once, each as it has to be.
fn decided_rightly(mounts: &[Mount]) {
    // The kernel writes one slash at the beginning of a path; `//shared` would be another's name.
    let within = |mount: &&Mount| mount.point.strip_prefix('/').and_then(|p| p.split('/').next()) == Some("shared");
    let mut found: Vec<(&str, bool)> = mounts.iter().filter(within).map(|m| (m.point.as_str(), m.read_only)).collect();
    found.sort_unstable();
    let (ctl, data) = (layout::ctl(SLOT), layout::data(SLOT));
    let right = found == [(layout::BIN, true), (ctl.as_str(), false), (data.as_str(), false)];
    let checked = check(mounts, SLOT);
    assert_eq!(checked.is_ok(), right, "{found:?}: {checked:?}");
    if let Ok(slot) = checked {
        let points = [&slot.bin, &slot.ctl, &slot.data].map(|m| m.point.as_str());
        assert_eq!(points, [layout::BIN, ctl.as_str(), data.as_str()]);
        assert!([&slot.bin, &slot.ctl, &slot.data].iter().all(|m| mounts.contains(m)));
    }
}
