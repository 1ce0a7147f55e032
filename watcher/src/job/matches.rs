//! Which files a job's patterns for outputs mean, such as `out*.csv` and `**/log`: by bytes, without following links,
//! within bounds of entries, matches and time.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobMatcher};
use latebind_linux::volume::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::tree::Deadline;
use crate::tree::copy::DEPTH_MAX;
use crate::tree::listing::{Kind, Listing};

/// Most names that all patterns of a job may match.
pub const MATCHES_MAX: usize = 10_000;
/// Most bytes of these.
pub const MATCHED_NAMES_MAX: usize = 512 << 10;
/// Most names that are looked at for that.
pub const LOOKED_AT_MAX: usize = 200_000;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

fn has_wildcards(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// A pattern for outputs, ready to be matched.
#[derive(Debug)]
pub struct Pattern<'a> {
    text: &'a str,
    matcher: GlobMatcher,
}

impl<'a> Pattern<'a> {
    /// An output that is a pattern, and not a name. What cannot be one, `a[1`, is a name.
    pub fn of(output: &'a str) -> Option<Self> {
        let build = || {
            GlobBuilder::new(&output.replace('{', "[{]").replace('}', "[}]"))
                .literal_separator(true)
                .backslash_escape(true)
                .build()
        };
        let glob = has_wildcards(output).then(build)?.ok()?;
        Some(Self { text: output, matcher: glob.compile_matcher() })
    }
}

/// What all patterns of a job have matched so far.
#[derive(Debug, Default)]
pub struct Matches {
    /// Paths beneath `work/`. What is in a directory comes with it, and is not listed.
    pub paths: BTreeSet<Vec<u8>>,
    bytes: usize,
    looked_at: usize,
}

impl Matches {
    /// Adds what `pattern` matches in `work`, and says how many names that is.
    ///
    /// # Errors
    ///
    /// Where a directory cannot be read, or a bound is reached: then none of its names is added that came later.
    pub fn add(&mut self, work: &Dir, pattern: &Pattern<'_>, deadline: &Deadline<'_>) -> io::Result<usize> {
        let Pattern { text: pattern, matcher } = pattern;
        // Where no name can differ, nothing is looked for.
        let parts = pattern.split('/').take_while(|part| !has_wildcards(part) && !part.contains('\\'));
        let prefix = parts.collect::<Vec<_>>().join("/");
        let any_depth = pattern.split('/').any(|part| part == "**");
        let depth = if any_depth { DEPTH_MAX } else { pattern.split('/').count() };
        let top = match prefix.as_str() {
            "" => openat(work.as_fd(), c".", DIRECTORY, Mode::empty()).map_err(io::Error::from),
            prefix => work.open_beneath(prefix, DIRECTORY, 0),
        };
        let top = match top {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            top => top?,
        };
        let used = if prefix.is_empty() { 0 } else { prefix.split('/').count() };
        let mut path = prefix.into_bytes();
        self.look(top.as_fd(), &mut path, depth.saturating_sub(used), matcher, deadline)
    }

    fn look(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &mut Vec<u8>,
        depth: usize,
        matcher: &GlobMatcher,
        deadline: &Deadline<'_>,
    ) -> io::Result<usize> {
        let mut found = 0;
        let mut listing = Listing::default();
        let above = path.len();
        while let Some(entry) = listing.next(dir)? {
            deadline.check()?;
            self.looked_at += 1;
            if self.looked_at > LOOKED_AT_MAX {
                return Err(io::Error::other(format!("more than {LOOKED_AT_MAX} names to be looked at")));
            }
            path.truncate(above);
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name.to_bytes());
            if matcher.is_match(OsStr::from_bytes(path)) {
                found += 1;
                self.take(path)?;
            } else if depth > 1
                && entry.kind != Kind::Other
                && let Some(below) = open_dir(dir, entry.name)
            {
                found += self.look(below.as_fd(), path, depth - 1, matcher, deadline)?;
            }
        }
        path.truncate(above);
        Ok(found)
    }

    fn take(&mut self, path: &[u8]) -> io::Result<()> {
        if self.paths.contains(path) {
            return Ok(());
        }
        self.bytes += path.len();
        if self.paths.len() >= MATCHES_MAX || self.bytes > MATCHED_NAMES_MAX {
            let most = format!("more than {MATCHES_MAX} names or {MATCHED_NAMES_MAX} bytes of them");
            return Err(io::Error::other(format!("matches {most}: name a directory")));
        }
        self.paths.insert(path.to_vec());
        Ok(())
    }
}

/// The directory of this name, if it is one that can be read.
fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    openat(dir, name, DIRECTORY, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::fs;
    use std::time::Duration;

    struct Work(tempfile::TempDir);

    impl Work {
        /// Not below /tmp: a volume that others could exchange is refused.
        fn new(files: &[&[u8]]) -> Self {
            let work = Self(tempfile::tempdir_in("/run").unwrap());
            for file in files {
                let path = work.0.path().join(OsStr::from_bytes(file));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            work
        }

        fn look(&self, matches: &mut Matches, pattern: &str) -> io::Result<usize> {
            let dir = Dir::open(self.0.path().to_str().unwrap()).unwrap();
            matches.add(&dir, &Pattern::of(pattern).unwrap(), &Deadline::within(Duration::from_secs(60)))
        }

        fn found(&self, pattern: &str) -> Vec<String> {
            let mut matches = Matches::default();
            self.look(&mut matches, pattern).unwrap();
            matches.paths.iter().map(|path| path.escape_ascii().to_string()).collect()
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let files: [&[u8]; 9] =
            [b"out1.csv", b"out2.csv", b"out.txt", b"log", b"a/log", b"a/b/log", b"a/b/x", b"br[1]", b"caf\xe9.csv"];
        let work = Work::new(&files);
        std::os::unix::fs::symlink("a", work.0.path().join("link")).unwrap();
        for (pattern, wanted) in [
            ("out*.csv", vec!["out1.csv", "out2.csv"]),
            ("out?.csv", vec!["out1.csv", "out2.csv"]),
            ("out[2-9].csv", vec!["out2.csv"]),
            ("*.csv", vec!["caf\\xe9.csv", "out1.csv", "out2.csv"]),
            ("**/log", vec!["a/b/log", "a/log", "log"]),
            ("a/**", vec!["a/b", "a/log"]),
            ("a/*/x", vec!["a/b/x"]),
            ("*/log", vec!["a/log"]),
            ("nothing/*", vec![]),
            ("br[[]1]", vec!["br[1]"]),
            ("{a,log}*", vec![]),
        ] {
            assert_eq!(work.found(pattern), wanted, "{pattern}");
        }
        assert!(work.look(&mut Matches::default(), "link/*").is_err(), "a link is not followed");
        let is_pattern = |output| Pattern::of(output).is_some();
        assert!(is_pattern("a[1]") && !is_pattern("[a") && !is_pattern("a[z-a]") && !is_pattern("plain"));
    }

    #[test]
    fn matches_are_bounded() {
        let work = Work::new(&[]);
        for n in 0..=MATCHES_MAX {
            fs::write(work.0.path().join(n.to_string()), "").unwrap();
        }
        let mut matches = Matches::default();
        let error = work.look(&mut matches, "*").unwrap_err().to_string();
        assert!(error.contains("more than 10000 names"), "{error}");
        assert_eq!(matches.paths.len(), MATCHES_MAX);
        let mut matches = Matches::default();
        assert!((0..100).any(|_| work.look(&mut matches, "x*").is_err()), "names that do not match are bounded too");
    }
}
