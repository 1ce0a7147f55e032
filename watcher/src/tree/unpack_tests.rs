#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const MANY: Limits = Limits { bytes: 1 << 30, entries: 1000 };

/// A directory to unpack into, in one where nothing else may appear.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.work()).unwrap();
        fs::create_dir(place.0.path().join("made")).unwrap();
        place
    }

    fn work(&self) -> std::path::PathBuf {
        self.0.path().join("work")
    }

    fn unpack(&self, archive: &Path, limits: Limits) -> Unpacked {
        let to = crate::tree::open_dir(&self.work()).unwrap();
        place(File::open(archive).unwrap(), to, true, b"", limits)
    }

    /// Unpacks these bytes, which have to fail by the archive's fault. Nothing may be outside of the directory.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], why: &str) {
        let archive = self.0.path().join("made/archive");
        fs::write(&archive, bytes).unwrap();
        let problem = self.unpack(&archive, MANY).problem.unwrap();
        assert!(problem.at_target.is_none() && problem.why.contains(why), "{problem:?}");
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2, "made/ and work/");
    }

    /// What a shell makes of a tree in `made/`: `archive`.
    fn make(&self, script: &str) -> std::path::PathBuf {
        let dir = self.0.path().join("made");
        let tree = "rm -rf t; mkdir -p t/deep/er; echo one >t/one; echo tool >t/deep/tool; chmod 4755 t/deep/tool; \
            ln -s ../one t/deep/link; touch -d @1000 t/one; ";
        let output = Command::new("sh").args(["-ec", &format!("{tree}{script}")]).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        dir.join("archive")
    }
}

type Entry<'a> = (&'a str, tar::EntryType, &'a str, &'a [u8]);

/// A tar archive with these entries: names are written as they are.
fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6777);
        header.set_mtime(7);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

const FILE: tar::EntryType = tar::EntryType::Regular;

#[test]
fn archives_of_all_forms_have_the_same_in_them() {
    for script in [
        "tar -cf archive -C t .",
        "tar -czf archive -C t .",
        "tar -cJf archive -C t .",
        "tar -cf plain -C t . && zstd -q plain -o archive",
        "tar -cf plain -C t . && split -b 4096 plain part. && for p in part.*; do zstd -q $p; done && cat part.*.zst >archive",
        "tar -cf plain -C t . && split -b 4096 plain part. && for p in part.*; do gzip $p; done && cat part.*.gz >archive",
        "tar --format=gnu -cf archive -C t .",
        "tar --format=posix -cf archive -C t .",
        "cd t && zip -qry ../archive.zip . && mv ../archive.zip ../archive",
    ] {
        let place = Place::new();
        let unpacked = place.unpack(&place.make(script), MANY);
        assert_eq!(unpacked.problem, None, "{script}");
        assert_eq!(unpacked.bytes, 9, "{script}");
        let work = place.work();
        assert_eq!(fs::read_to_string(work.join("deep/link")).unwrap(), "one\n", "{script}");
        let mode = |name: &str| fs::metadata(work.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("one"), mode("deep/tool"), mode("deep/er")), (0o644, 0o755, 0o755), "{script}");
        if !script.contains("zip ") {
            assert_eq!(fs::metadata(work.join("one")).unwrap().mtime(), 1000, "{script}");
        }
    }
}

#[test]
fn nothing_leads_out() {
    let link = tar::EntryType::Symlink;
    for name in ["../x", "/x", "a/../../x", "a/.."] {
        Place::new().refuses(&tar_of(&[(name, FILE, "", b"x")]), "leads out");
    }
    for target in ["/etc", "..", "../made", "a/../../made", "./../x"] {
        Place::new().refuses(&tar_of(&[("link", link, target, b"")]), "leads out");
    }
    // Each link for itself stays within; nothing is put through any.
    let place = Place::new();
    place.refuses(
        &tar_of(&[("d/", tar::EntryType::Directory, "", b""), ("l", link, "d", b""), ("l/x", FILE, "", b"")]),
        "directory has to be",
    );
    assert!(fs::read_dir(place.work().join("d")).unwrap().next().is_none());
    fs::write(place.0.path().join("made/secret"), "secret").unwrap();
    for of in ["../made/secret", "/etc/passwd", "none", "l", "d"] {
        place.refuses(&tar_of(&[("name", tar::EntryType::Link, of, b"")]), "not a file of the archive");
    }
    let zip = "ln -s ../../made t/out; cd t; zip -qry ../archive.zip out; mv ../archive.zip ../archive";
    let place = Place::new();
    let problem = place.unpack(&place.make(zip), MANY).problem.unwrap();
    assert!(problem.why.contains("leads out"), "{problem:?}");
}

#[test]
fn neither_devices_nor_fifos_nor_special_modes_come_out() {
    for kind in [tar::EntryType::Char, tar::EntryType::Block, tar::EntryType::Fifo] {
        let place = Place::new();
        place.refuses(&tar_of(&[("x", kind, "", b"")]), "neither a file");
        assert!(!place.work().join("x").exists());
    }
    let place = Place::new();
    let archive = place.0.path().join("made/a");
    fs::write(
        &archive,
        tar_of(&[("x", FILE, "", b"1"), ("y", tar::EntryType::Link, "x", b""), ("x", FILE, "", b"22")]),
    )
    .unwrap();
    assert_eq!(place.unpack(&archive, MANY), Unpacked { bytes: 3, entries: 3, problem: None });
    assert_eq!(fs::metadata(place.work().join("x")).unwrap().permissions().mode() & 0o7777, 0o755);
    let read = |name: &str| fs::read_to_string(place.work().join(name)).unwrap();
    assert_eq!(
        (read("x").as_str(), read("y").as_str()),
        ("22", "1"),
        "the later one, and the earlier one's other name"
    );
}

#[test]
fn a_bomb_goes_off_within_its_bounds() {
    let place = Place::new();
    for script in [
        "head -c 200000000 /dev/zero >big; tar -czf archive big",
        "head -c 200000000 /dev/zero >big; tar -cf plain big; zstd -q plain -o archive",
        "head -c 200000000 /dev/zero >big; zip -q archive.zip big; mv archive.zip archive",
        "head -c 200000000 /dev/zero | gzip >archive",
    ] {
        let problem = place.unpack(&place.make(&format!("rm -f archive plain; {script}")), MANY).problem.unwrap();
        assert!(problem.at_target.is_none(), "{script}: {problem:?}");
        let size = fs::metadata(place.work().join("big")).map_or(0, |found| found.len());
        assert!(size <= RATIO_FREE + RATIO_MAX * 200_000, "{script}: {size}");
    }
    let sparse = place.make("truncate -s 1T huge; tar -cSf archive huge; rm huge");
    let problem = place.unpack(&sparse, Limits { bytes: 1 << 20, entries: 9 }).problem.unwrap();
    assert!(problem.why.contains("more bytes"), "{problem:?}");
    let files = place.make("tar -cf archive -C t .");
    let few = place.unpack(&files, Limits { bytes: 1 << 20, entries: 2 });
    assert_eq!(few.entries, 2);
    assert!(few.problem.unwrap().why.contains("more entries"));
    let little = place.unpack(&files, Limits { bytes: 5, entries: 100 });
    assert!(little.problem.unwrap().why.contains("more bytes"));
    let deep = vec!["d"; DEPTH_MAX + 1].join("/");
    let place = Place::new();
    let problem = place.unpack(&place.make(&format!("mkdir -p {deep}; tar -cf archive d")), MANY).problem.unwrap();
    assert!(problem.why.contains("levels"), "{problem:?}");
}

#[test]
fn directories_that_have_no_entry_are_counted_too() {
    let names = ["a/b/c/1", "a/b/2", "a/b/c/d/3"].map(|name| (name, FILE, "", b"".as_slice()));
    let implied = |entries| {
        let place = Place::new();
        let archive = place.0.path().join("made/archive");
        fs::write(&archive, tar_of(&names)).unwrap();
        place.unpack(&archive, Limits { bytes: 1, entries })
    };
    assert_eq!(implied(7), Unpacked { bytes: 0, entries: 7, problem: None });
    assert!(implied(6).problem.unwrap().why.contains("more entries"));
    let place = Place::new();
    let explicit = place.unpack(&place.make("tar -cf archive t/deep/er"), Limits { bytes: 1, entries: 3 });
    assert_eq!((explicit.entries, explicit.problem), (3, None), "t and t/deep are made for it");
}

#[test]
fn what_is_not_an_archive_is_said_to_be_none() {
    let place = Place::new();
    for bytes in [
        &b"plain text that is longer than a block"[..],
        &[0x1f, 0x8b, 8, 0, 1, 2, 3],
        b"PK\x03\x04x",
        b"\x28\xb5\x2f\xfdx",
        b"\xfd7zXZ\0x",
    ] {
        let long: Vec<u8> = bytes.iter().copied().cycle().take(2000).collect();
        place.refuses(&long, "");
    }
    let whole = fs::read(place.make("tar -czf archive -C t .")).unwrap();
    place.refuses(&whole[..whole.len() - 10], "");
    let mut changed = whole.clone();
    let at = changed.len() - 6;
    changed[at] ^= 1; // of the checksum at its end
    place.refuses(&changed, "");
}
