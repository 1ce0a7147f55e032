//! Inputs that a job names one by one: files that are put somewhere into `work/`, or unpacked there.

use std::path::PathBuf;

use latebind_contract::layout;
use serde::{Deserialize, Serialize};

use super::download::Download;
use crate::text::printable;

/// Most of them in a job.
pub const INPUTS_MAX: usize = 100;

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The file, in the pilot container; or a download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What to download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
    /// Whether it is an archive whose content is wanted.
    #[serde(default)]
    pub unpack: bool,
    /// Where it goes beneath `work/`: a file, or the directory to unpack into. Empty: `work/` itself.
    #[serde(default)]
    pub to: String,
}

impl Input {
    /// What messages call it.
    pub fn shown(&self) -> String {
        match (&self.path, &self.download) {
            (Some(path), _) => printable(&path.display().to_string()),
            (None, download) => download.as_ref().map_or_else(String::new, |from| printable(&from.url)),
        }
    }
}

/// Checks what can be checked before the job has a slot.
pub fn check(inputs: &[Input]) -> Result<(), String> {
    if inputs.len() > INPUTS_MAX {
        return Err(format!("{} inputs: at most {INPUTS_MAX}; put the files into inputs/ or an archive", inputs.len()));
    }
    for input in inputs {
        let shown = input.shown();
        match (&input.path, &input.download) {
            (Some(_), None) => {}
            (None, Some(download)) => download.check().map_err(|e| format!("input {shown}: {e}"))?,
            _ => return Err(format!("input {shown}: is either a file or a URL")),
        }
        let is_top = input.unpack && input.to.is_empty();
        if !is_top && !layout::is_beneath(&input.to) {
            let to = printable(&input.to);
            return Err(format!("input {shown}: to {to:?} is not a path beneath work/"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(unpack: bool, to: &str) -> Input {
        Input { path: Some("/x".into()), download: None, unpack, to: to.into() }
    }

    #[test]
    fn an_input_goes_to_a_place_beneath_work() {
        let checked = |unpack, to: &str| check(&[file(unpack, to)]).is_ok();
        for good in ["a", "a/b", ".hidden"] {
            assert!(checked(true, good) && checked(false, good), "{good}");
        }
        assert!(checked(true, "") && !checked(false, ""));
        for bad in ["/etc", "..", "a/../b", "a//b", "."] {
            assert!(!checked(true, bad) && !checked(false, bad), "{bad}");
        }
        let one = file(false, "a");
        assert!(check(&vec![one.clone(); INPUTS_MAX]).is_ok() && check(&vec![one; INPUTS_MAX + 1]).is_err());
    }
}
