//! Names that the watcher uses in a slot's data volume, beside the contract's own.

use latebind_contract::layout;

/// Directory for the files of the standard streams; root's, so that the payload cannot exchange them.
pub const IO: &str = "io";

/// Directory for what is to be removed: root's, and closed to everybody else.
pub const TRASH: &str = ".trash";

/// Where the next `work/` is made before it takes the place of the last one.
pub const NEXT: &str = ".work";

/// All directories in `data/` that no client may have.
pub const OURS: [&str; 4] = [layout::WORK, IO, TRASH, NEXT];
