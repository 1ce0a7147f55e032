//! A directory on the node, for hostPath volumes: spools and homes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use latebind_tests::pod::{Scratch, unique};

use super::Node;
use crate::access::cluster;

/// A directory on the node that goes with the value.
pub struct Directory {
    path: PathBuf,
    /// Copies of it on this machine; what was found in one of them may still be read.
    copies: Mutex<Vec<Scratch>>,
}

impl Node {
    /// A new, empty one.
    #[track_caller]
    pub fn directory(&self) -> Directory {
        let path = PathBuf::from(format!("/tmp/{}", unique("latebind-test")));
        self.shell().ask("mkdir -m 755 \"$1\"", &[&text(&path)]);
        Directory { path, copies: Mutex::default() }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Directory {
    /// Where it is, on the node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it.
    #[track_caller]
    pub fn make(&self, directory: &str) {
        cluster().node().shell().ask("mkdir -p \"$1\"", &[&text(&self.path.join(directory))]);
    }

    /// Puts a directory with these files in it at `place`, in one step, with this owner.
    #[track_caller]
    pub fn put(&self, place: &str, owner: u32, files: &[(&str, &[u8])]) {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let making = format!(".{}", unique("being-put"));
        let script = "mkdir \"$1/$2\" && cd \"$1/$2\" && tar -xmf - && chown -R \"$4:$4\" . && mv ../\"$2\" ../\"$3\"";
        let arguments = [&text(&self.path), making.as_str(), place, &owner.to_string()];
        cluster().node().shell().ask_with_input(script, &arguments, bytes);
    }

    /// A file of it; `None` where there is none.
    pub fn read(&self, file: &str) -> Option<Vec<u8>> {
        let ran = cluster().node().shell().call("cat \"$1\"", &[&text(&self.path.join(file))], Vec::new());
        (ran.code == Some(0)).then_some(ran.stdout)
    }

    /// What is in it now, to be read on this machine: itself where the node is this machine, else a copy, which is
    /// there as long as this value.
    #[track_caller]
    pub fn now(&self) -> PathBuf {
        let shell = cluster().node().shell();
        if shell.is_here() {
            return self.path.clone();
        }
        // What goes away in the meantime is left out.
        let archive = shell.call("tar -C \"$1\" -cf - .", &[&text(&self.path)], Vec::new()).stdout;
        let copy = Scratch::new();
        let mut archive = tar::Archive::new(archive.as_slice());
        // FIFOs and sockets are nothing to be read.
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let kind = entry.header().entry_type();
            if kind.is_file() || kind.is_dir() {
                entry.unpack_in(copy.path()).unwrap();
            }
        }
        let path = copy.path().to_owned();
        let mut copies = self.copies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        copies.push(copy);
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(|| {
            cluster().node().shell().call("rm -rf \"$1\"", &[&text(&self.path)], Vec::new());
        });
    }
}
