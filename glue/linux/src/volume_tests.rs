use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

/// Below /var/lib: every parent has to be root's and closed to others, which /tmp is not.
fn scratch() -> tempfile::TempDir {
    assert!(nix::unistd::geteuid().is_root(), "run the unit tests as root: they test which files are root's alone");
    let scratch = tempfile::tempdir_in("/var/lib").unwrap();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    scratch
}

fn dir_of(scratch: &tempfile::TempDir) -> Dir {
    Dir::open(&scratch.path().display().to_string()).unwrap()
}

#[test]
fn a_file_is_put_whole_and_read_back() {
    let scratch = scratch();
    let dir = dir_of(&scratch);
    assert!(dir.replace("a", b"one", 0o600).and_then(|()| dir.replace("a", b"two", 0o600)).is_ok());
    assert_eq!(dir.read_file("a", 10).ok().as_deref(), Some(&b"two"[..]));
    assert_eq!(dir.names().ok(), Some(vec!["a".to_owned()]));
    assert!(dir.remove("a").and_then(|()| dir.remove("a")).is_ok());
}

#[test]
fn what_is_not_roots_plain_file_is_refused() {
    let scratch = scratch();
    let (dir, path) = (dir_of(&scratch), scratch.path());
    let why = |name: &str| dir.read_file(name, 10).err().map(|e| e.to_string()).unwrap_or_default();
    std::fs::write(path.join("good"), "x").unwrap();
    symlink("good", path.join("link")).unwrap();
    // C libraries have different words for it.
    assert!(why("link").to_lowercase().contains("symbolic"), "{}", why("link"));
    std::fs::create_dir(path.join("dir")).unwrap();
    assert!(why("dir").contains("not a regular file"));
    nix::unistd::mkfifo(&path.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(why("fifo").contains("not a regular file"), "and it does not wait for a writer");
    std::fs::write(path.join("big"), "12345678901").unwrap();
    assert!(why("big").contains("11 bytes"));
    std::fs::write(path.join("twice"), "x").unwrap();
    std::fs::hard_link(path.join("twice"), path.join("second")).unwrap();
    assert!(why("twice").contains("2 names"));
    std::fs::write(path.join("open"), "x").unwrap();
    std::fs::set_permissions(path.join("open"), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(why("open").contains("root's alone"));
    std::fs::write(path.join("other"), "x").unwrap();
    std::os::unix::fs::chown(path.join("other"), Some(20_000), None).unwrap();
    assert!(why("other").contains("root's alone"));
    assert!(!why("missing").is_empty());
}

#[test]
fn a_parent_that_others_can_write_is_refused() {
    let scratch = scratch();
    let inner = scratch.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let open = |path: &std::path::Path| Dir::open(&path.display().to_string());
    assert!(open(&inner).is_ok());
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(open(&inner).is_err());
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let link = scratch.path().join("link");
    symlink("inner", &link).unwrap();
    assert!(open(&link).is_err());
}

#[test]
fn both_ways_to_open_beneath_refuse_the_same() {
    let scratch = scratch();
    let (dir, path) = (dir_of(&scratch), scratch.path());
    std::fs::create_dir(path.join("d")).unwrap();
    std::fs::write(path.join("d/f"), "x").unwrap();
    symlink("d", path.join("to-d")).unwrap();
    symlink("/etc/passwd", path.join("d/out")).unwrap();
    let flags = OFlag::O_RDONLY;
    for (name, good) in [
        ("d/f", true),
        ("to-d/f", false),
        ("d/out", false),
        ("../x", false),
        ("/etc/passwd", false),
        ("d/../d/f", false),
    ] {
        assert_eq!(open_by_components(dir.as_fd(), name, flags, 0).is_ok(), good, "components: {name}");
        if name != "d/../d/f" {
            assert_eq!(dir.open_beneath(name, flags, 0).is_ok(), good, "openat2: {name}");
        }
    }
    let root = Dir::open("/").unwrap_or_else(|e| panic!("{e}"));
    for open in [open_by_components, open_beneath] {
        let other = open(root.as_fd(), "proc/version", flags, 0).err();
        assert_eq!(other.and_then(|e| e.raw_os_error()), Some(libc::EXDEV));
    }
}
