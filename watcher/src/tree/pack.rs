//! Archives of what root has copied, and nobody else can change any more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::{Deadline, remove_tree};

/// What an archive of outputs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// tar.
    #[serde(rename = "tar")]
    Tar,
    /// tar, compressed by gzip.
    #[serde(rename = "tar.gz")]
    TarGz,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 2] = [Self::Tar, Self::TarGz];

    /// The archive of the directory `outputs`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Tar => "outputs.tar",
            Self::TarGz => "outputs.tar.gz",
        }
    }
}

/// Writes for as long as `check` lets it.
pub struct Checked<W, F> {
    /// What is written to.
    pub to: W,
    /// Fails once it must end.
    pub check: F,
}

impl<W: Write, F: Fn() -> io::Result<()>> Write for Checked<W, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.check)()?;
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Puts all that is in a directory into a tar archive, ordered by name; what is called `first` comes before the rest,
/// for whoever reads no further.
pub fn pack<W: Write>(from: &Path, first: &str, to: W) -> io::Result<W> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    let mut names = fs::read_dir(from)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(|name| (name != first, name.clone()));
    for name in names {
        let path = from.join(&name);
        if path.symlink_metadata()?.is_dir() {
            archive.append_dir_all(name, path)?;
        } else {
            archive.append_path_with_name(path, name)?;
        }
    }
    archive.into_inner()
}

/// Compresses for speed: most of the time somebody waits for it.
pub fn gzip<W: Write>(to: W) -> GzEncoder<W> {
    GzEncoder::new(to, Compression::fast())
}

/// Puts an archive into the place of the directory `outputs` of a result. Where that cannot be done, the directory stays
/// as it is.
pub fn replace_outputs(result: &Path, form: Form, deadline: &Deadline<'_>) -> io::Result<()> {
    let (outputs, file) = (result.join("outputs"), result.join(form.file_name()));
    let part = result.join(".outputs.part");
    remove_if_there(&part)?;
    let made = File::create_new(&part).and_then(|to| {
        let to = Checked { to: io::BufWriter::new(to), check: || deadline.check() };
        let mut packed = match form {
            Form::Tar => pack(&outputs, "", to)?,
            Form::TarGz => pack(&outputs, "", gzip(to))?.finish()?,
        };
        packed.flush()?;
        fs::rename(&part, &file)
    });
    if made.is_err() {
        let _ = remove_if_there(&part);
    }
    // Whoever finds both has them twice, and loses nothing.
    made.and_then(|()| remove_tree(&outputs, deadline))
}

/// Removes the archives that an earlier try has made.
pub fn remove_archives(result: &Path) -> io::Result<()> {
    Form::ALL.into_iter().try_for_each(|form| remove_if_there(&result.join(form.file_name())))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn result() -> tempfile::TempDir {
        let result = tempfile::tempdir().unwrap();
        let outputs = result.path().join("outputs");
        fs::create_dir_all(outputs.join("d/e")).unwrap();
        fs::write(outputs.join("d/e/file"), "text").unwrap();
        symlink("e/file", outputs.join("d/link")).unwrap();
        fs::write(outputs.join("b"), "").unwrap();
        result
    }

    #[test]
    fn an_archive_has_what_the_directory_had_and_takes_its_place() {
        for form in Form::ALL {
            let result = result();
            replace_outputs(result.path(), form, &Deadline::within(Duration::from_secs(60))).unwrap();
            assert_eq!(fs::read_dir(result.path()).unwrap().count(), 1, "the archive alone");
            let file = File::open(result.path().join(form.file_name())).unwrap();
            let plain: Box<dyn io::Read> = match form {
                Form::Tar => Box::new(file),
                Form::TarGz => Box::new(flate2::read::GzDecoder::new(file)),
            };
            let mut archive = tar::Archive::new(plain);
            let mut found = Vec::new();
            for entry in archive.entries().unwrap() {
                let entry = entry.unwrap();
                let link = entry.link_name().unwrap().map(|link| link.display().to_string());
                found.push((entry.path().unwrap().display().to_string(), entry.size(), link));
            }
            found.sort();
            let entry = |name: &str, size: u64, link: Option<&str>| (name.to_owned(), size, link.map(str::to_owned));
            let expected = [
                entry("b", 0, None),
                entry("d", 0, None),
                entry("d/e", 0, None),
                entry("d/e/file", 4, None),
                entry("d/link", 0, Some("e/file")),
            ];
            let plain = found.into_iter().map(|(name, size, link)| (name.trim_end_matches('/').to_owned(), size, link));
            assert_eq!(plain.collect::<Vec<_>>(), expected);
            remove_archives(result.path()).unwrap();
            assert_eq!(fs::read_dir(result.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_not_archived_in_time_stays_as_it_is() {
        let result = result();
        let late = replace_outputs(result.path(), Form::TarGz, &Deadline::within(Duration::ZERO));
        assert!(late.unwrap_err().to_string().contains("not done within"));
        assert_eq!(fs::read_dir(result.path()).unwrap().count(), 1, "nothing half made");
        assert_eq!(fs::read_to_string(result.path().join("outputs/d/e/file")).unwrap(), "text");
    }
}
