#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use super::super::open_dir;
use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

struct Trees {
    _top: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Trees {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        Self { _top: top, from, to }
    }

    /// Copies within a budget; what was left out is named.
    fn copy(&self, rules: Rules, budget: Budget) -> (Result<(), Problem>, Vec<String>, Budget) {
        let deadline = Deadline::within(Duration::from_secs(60));
        let mut skipped = Vec::new();
        let mut failed = |path: &str, e: io::Error| {
            skipped.push(format!("{path}: {e}"));
            Ok(())
        };
        let mut copier =
            Copier { rules, budget, deadline: &deadline, failed: &mut failed, at_target: false, known: None };
        let (from, to) = (open_dir(&self.from).unwrap(), open_dir(&self.to).unwrap());
        let copied = copier.content(from.as_fd(), to.as_fd(), "");
        let budget = copier.budget;
        skipped.sort();
        (copied, skipped, budget)
    }
}

const ANY: Rules = Rules { only_of: None, reader: None, owner: None, links: false };
const LARGE: Budget = Budget { bytes: 1 << 40, entries: 1 << 20, refused: 0 };

#[test]
fn root_reads_for_a_user_what_the_user_can_read_alone() {
    let trees = Trees::new();
    let put = |name: &str, uid: u32, mode: u32| {
        let path = trees.from.join(name);
        if name.ends_with("dir") {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
            std::os::unix::fs::chown(path.join("file"), Some(1000), None).unwrap();
        } else {
            fs::write(&path, "x").unwrap();
        }
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    put("a-own", 1000, 0);
    put("b-own-dir", 1000, 0o700);
    put("c-open", 1001, 0o604);
    put("d-closed", 1001, 0o660);
    put("e-roots", 0, 0o600);
    put("f-open-dir", 1001, 0o755);
    put("g-closed-dir", 1001, 0o711);
    let (copied, skipped, _) = trees.copy(Rules { reader: Some(1000), ..ANY }, LARGE);
    assert!(copied.is_ok());
    let skipped: Vec<_> = skipped.iter().filter_map(|s| s.split(": belongs to UID").next()).collect();
    assert_eq!(skipped, ["d-closed", "e-roots", "g-closed-dir"]);
    for reader in [None, Some(0)] {
        let again = Trees {
            to: trees.to.join(format!("{reader:?}")),
            from: trees.from.clone(),
            _top: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(&again.to).unwrap();
        let (_, skipped, _) = again.copy(Rules { reader, ..ANY }, LARGE);
        assert_eq!(skipped, Vec::<String>::new(), "{reader:?}");
    }
}

#[test]
fn copies_are_the_owners_and_links_are_refused() {
    let trees = Trees::new();
    fs::create_dir_all(trees.from.join("d")).unwrap();
    fs::write(trees.from.join("d/program"), "x").unwrap();
    fs::set_permissions(trees.from.join("d/program"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("/etc/passwd", trees.from.join("d/link")).unwrap();
    nix::unistd::mkfifo(&trees.from.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    let rules = Rules { owner: Some((20_000, 20_001)), ..ANY };
    let (copied, skipped, _) = trees.copy(rules, LARGE);
    assert!(copied.is_ok());
    let made = fs::metadata(trees.to.join("d/program")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (20_000, 20_001, 0o755));
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(
        skipped[0].starts_with("d/link: is a symbolic link, which is not followed")
            && skipped[1].starts_with("fifo: is neither"),
        "{skipped:?}"
    );
}

#[test]
fn any_name_is_copied_and_what_belongs_to_others_is_not() {
    use std::os::unix::ffi::OsStrExt;
    let trees = Trees::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
    fs::write(trees.from.join(odd), "x").unwrap();
    fs::write(trees.from.join("own"), "x").unwrap();
    std::os::unix::fs::chown(trees.from.join(odd), Some(20_000), None).unwrap();
    let (copied, skipped, _) = trees.copy(Rules { only_of: Some(20_000), ..ANY }, LARGE);
    assert!(copied.is_ok() && trees.to.join(odd).exists());
    assert_eq!(skipped, ["own: belongs to UID 0, not to 20000"]);
}

#[test]
fn what_is_sparse_stays_sparse_and_is_charged_whole() {
    let trees = Trees::new();
    let file = File::create(trees.from.join("s")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 512 << 20).unwrap();
    file.set_len(1 << 30).unwrap();
    let (copied, skipped, left) = trees.copy(ANY, LARGE);
    assert!(copied.is_ok() && skipped.is_empty(), "{skipped:?}");
    assert_eq!(LARGE.bytes - left.bytes, 1 << 30);
    let made = File::open(trees.to.join("s")).unwrap();
    let metadata = made.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 4 << 20, "{} blocks", metadata.blocks());
    let mut bytes = [0; 6];
    made.read_exact_at(&mut bytes, 512 << 20).unwrap();
    assert_eq!(&bytes, b"middle");
}

#[test]
fn a_file_that_is_too_large_costs_nothing_and_the_rest_is_copied() {
    let trees = Trees::new();
    let sparse = File::create(trees.from.join("large")).unwrap();
    sparse.set_len(8 << 40).unwrap();
    fs::write(trees.from.join("small"), "four").unwrap();
    let (copied, skipped, left) = trees.copy(ANY, Budget::new(1 << 20, 10));
    assert!(copied.is_ok() && trees.to.join("small").exists() && !trees.to.join("large").exists());
    assert!(skipped.len() == 1 && skipped[0].starts_with("large: has 8796093022208 bytes"), "{skipped:?}");
    assert_eq!(left, Budget { bytes: (1 << 20) - 4, entries: 8, refused: 8 << 40 });
}

#[test]
fn directories_are_entries_too() {
    let trees = Trees::new();
    for n in 0..20 {
        fs::create_dir(trees.from.join(n.to_string())).unwrap();
    }
    let (copied, skipped, left) = trees.copy(ANY, Budget::new(0, 12));
    assert!(matches!(copied, Err(Problem::Stop(_))) && skipped.is_empty());
    assert_eq!((left.entries, fs::read_dir(&trees.to).unwrap().count()), (0, 12));
}

#[test]
fn bytes_are_charged_where_the_copy_fails() {
    let trees = Trees::new();
    fs::write(trees.from.join("taken"), "four").unwrap();
    fs::write(trees.to.join("taken"), "in the way").unwrap();
    let (_, skipped, left) = trees.copy(ANY, Budget::new(10, 10));
    assert_eq!((skipped.len(), left.bytes), (1, 6));
}

#[test]
fn a_deep_tree_is_copied_as_far_as_it_may_be() {
    let trees = Trees::new();
    fs::create_dir_all(trees.from.join(["d"; 70].join("/"))).unwrap();
    let (copied, skipped, _) = trees.copy(ANY, LARGE);
    assert!(copied.is_ok());
    assert!(skipped.len() == 1 && skipped[0].ends_with("nested deeper than 64"), "{skipped:?}");
}

#[test]
fn copying_stops_when_its_time_is_over() {
    let trees = Trees::new();
    fs::write(trees.from.join("a"), "x").unwrap();
    let deadline = Deadline::within(Duration::ZERO);
    let mut failed = |_: &str, e| Err(e);
    let mut copier =
        Copier { rules: ANY, budget: LARGE, deadline: &deadline, failed: &mut failed, at_target: false, known: None };
    let (from, to) = (open_dir(&trees.from).unwrap(), open_dir(&trees.to).unwrap());
    assert!(matches!(copier.content(from.as_fd(), to.as_fd(), ""), Err(Problem::Stop(_))));
    assert_eq!(fs::read_dir(&trees.to).unwrap().count(), 0);
}

#[test]
fn links_are_kept_that_stay_within_and_others_are_named() {
    let top = tempfile::tempdir().unwrap();
    let (from, to) = (top.path().join("from"), top.path().join("to"));
    fs::create_dir_all(from.join("d/sub")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("d/file"), "x").unwrap();
    let links = [
        ("d/near", "file", true),
        ("d/self", ".", true),
        ("d/sub/up", "../file", true),
        ("d/sub/top", "..", true),
        ("d/dangling", "sub/not-there", true),
        ("d/out", "../other", false),
        ("d/sub/out", "../../other", false),
        ("d/absolute", "/etc/passwd", false),
        ("d/by-link", "sub/top/../../x", false),
    ];
    for (name, target, _) in links {
        symlink(target, from.join(name)).unwrap();
    }
    let deadline = Deadline::within(Duration::from_secs(60));
    let mut skipped = BTreeMap::new();
    let mut failed = |path: &str, e: io::Error| {
        skipped.insert(path.to_owned(), e.to_string());
        Ok(())
    };
    let rules = Rules { links: true, ..ANY };
    let mut copier =
        Copier { rules, budget: LARGE, deadline: &deadline, failed: &mut failed, at_target: false, known: None };
    let (opened, to_dir) = (open_dir(&from.join("d")).unwrap(), open_dir(&to).unwrap());
    copier.entry(opened, to_dir.as_fd(), c"d", "d").unwrap();
    for (name, target, kept) in links {
        if kept {
            assert_eq!(fs::read_link(to.join(name)).unwrap().to_str(), Some(target), "{name}");
        } else {
            assert!(skipped[name].contains("leads out of the output"), "{name}: {skipped:?}");
            assert!(to.join(name).symlink_metadata().is_err(), "{name}");
        }
    }
    assert_eq!(skipped.len(), 4, "{skipped:?}");
}

#[test]
fn a_file_of_several_names_is_copied_and_charged_once_and_times_and_execute_bits_are_kept() {
    let trees = Trees::new();
    fs::create_dir_all(trees.from.join("d")).unwrap();
    fs::write(trees.from.join("d/a"), [1; 1000]).unwrap();
    fs::set_permissions(trees.from.join("d/a"), fs::Permissions::from_mode(0o6711)).unwrap();
    for name in ["d/b", "c"] {
        fs::hard_link(trees.from.join("d/a"), trees.from.join(name)).unwrap();
    }
    let old = std::time::UNIX_EPOCH + Duration::new(978_307_200, 123_000_000);
    for name in ["d/a", "d"] {
        File::open(trees.from.join(name)).unwrap().set_modified(old).unwrap();
    }
    let deadline = Deadline::within(Duration::from_secs(60));
    let mut failed = |_: &str, e: io::Error| Err(e);
    let (from, to) = (open_dir(&trees.from).unwrap(), open_dir(&trees.to).unwrap());
    let known = Some(Known::new(open_dir(&trees.to).unwrap()));
    let mut copier =
        Copier { rules: ANY, budget: LARGE, deadline: &deadline, failed: &mut failed, at_target: false, known };
    copier.content(from.as_fd(), to.as_fd(), "").unwrap();
    assert_eq!((LARGE.bytes - copier.budget.bytes, LARGE.entries - copier.budget.entries), (1000, 4));
    let copies = ["d/a", "d/b", "c"].map(|name| fs::metadata(trees.to.join(name)).unwrap());
    assert!(copies.iter().all(|copy| copy.ino() == copies[0].ino() && copy.mode() & 0o7777 == 0o755));
    assert_eq!(copies[0].modified().unwrap(), old);
    assert_eq!(fs::metadata(trees.to.join("d")).unwrap().modified().unwrap(), old);
}
