use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        // Below /var/lib: every parent has to be root's and closed to others, which /tmp is not.
        let path = std::path::PathBuf::from(format!("/var/lib/latebind-unit-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        assert!(std::fs::create_dir(&path).is_ok(), "the unit tests need root");
        let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700));
        Self(path)
    }

    fn dir(&self) -> Dir {
        Dir::open(&self.0.display().to_string()).unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_is_put_whole_and_read_back() {
    let scratch = Scratch::new("put");
    let dir = scratch.dir();
    assert!(dir.replace("a", b"one", 0o600).and_then(|()| dir.replace("a", b"two", 0o600)).is_ok());
    assert_eq!(dir.read_file("a", 10).ok().as_deref(), Some(&b"two"[..]));
    assert_eq!(dir.names().ok(), Some(vec!["a".to_owned()]));
    assert!(dir.remove("a").and_then(|()| dir.remove("a")).is_ok());
}

#[test]
fn what_is_not_roots_plain_file_is_refused() {
    let scratch = Scratch::new("refuse");
    let (dir, path) = (scratch.dir(), &scratch.0);
    let why = |name: &str| dir.read_file(name, 10).err().map(|e| e.to_string()).unwrap_or_default();
    let _ = std::fs::write(path.join("good"), "x");
    let _ = symlink("good", path.join("link"));
    assert!(why("link").contains("symbolic"), "{}", why("link"));
    let _ = std::fs::create_dir(path.join("dir"));
    assert!(why("dir").contains("no regular file"));
    let _ = nix::unistd::mkfifo(&path.join("fifo"), nix::sys::stat::Mode::S_IRUSR);
    assert!(why("fifo").contains("no regular file"), "and it does not wait for a writer");
    let _ = std::fs::write(path.join("big"), "12345678901");
    assert!(why("big").contains("11 bytes"));
    let _ = std::fs::write(path.join("twice"), "x");
    let _ = std::fs::hard_link(path.join("twice"), path.join("second"));
    assert!(why("twice").contains("2 names"));
    let _ = std::fs::write(path.join("open"), "x");
    let _ = std::fs::set_permissions(path.join("open"), std::fs::Permissions::from_mode(0o666));
    assert!(why("open").contains("root's alone"));
    let _ = std::fs::write(path.join("other"), "x");
    let _ = std::os::unix::fs::chown(path.join("other"), Some(20_000), None);
    assert!(why("other").contains("root's alone"));
    assert!(!why("missing").is_empty());
}

#[test]
fn a_parent_that_others_can_write_is_refused() {
    let scratch = Scratch::new("parent");
    let inner = scratch.0.join("inner");
    let _ = std::fs::create_dir(&inner);
    let open = |path: &std::path::Path| Dir::open(&path.display().to_string());
    assert!(open(&inner).is_ok());
    let _ = std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o777));
    assert!(open(&inner).is_err());
    let _ = std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o700));
    let link = scratch.0.join("link");
    let _ = symlink("inner", &link);
    assert!(open(&link).is_err());
}

#[test]
fn both_ways_to_open_beneath_refuse_the_same() {
    let scratch = Scratch::new("beneath");
    let (dir, path) = (scratch.dir(), &scratch.0);
    let _ = std::fs::create_dir(path.join("d"));
    let _ = std::fs::write(path.join("d/f"), "x");
    let _ = symlink("d", path.join("to-d"));
    let _ = symlink("/etc/passwd", path.join("d/out"));
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
