//! What tests of the other architecture share.

use std::fs;
use std::path::Path;

/// A program of `dist/aarch64/`.
///
/// # Panics
/// If it was not built.
pub fn program(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/aarch64").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: make build TARGET=aarch64-unknown-linux-musl", path.display()))
}
