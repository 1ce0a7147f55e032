//! The pilot's name.

use std::io;
use std::path::Path;

use crate::job::is_id;
use crate::random::random_hex;

/// The name under which jobs are claimed: the same in every life of this pilot.
pub fn own_name(private: &Path, given: Option<&str>) -> io::Result<String> {
    if let Some(given) = given {
        let invalid = || io::Error::other(format!("--name {given:?}: use 1 to 128 letters, digits, '.', '_' or '-'"));
        return is_id(given).then(|| given.to_owned()).ok_or_else(invalid);
    }
    let path = private.join("name");
    match std::fs::read_to_string(&path) {
        Ok(name) if is_id(&name) => return Ok(name),
        Ok(bad) => tracing::error!("{}: {bad:?} is not a pilot's name; a new one is made", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => tracing::error!("{}: {e}", path.display()),
        Err(e) => return Err(e),
    }
    let name = format!("pilot-{}", random_hex::<6>()?);
    crate::store::put_file(&path, name.as_bytes(), 0o600)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use std::fs;

    #[test]
    fn a_pilot_keeps_its_name_and_makes_a_new_one_where_it_is_unreadable() {
        let scratch = tempfile::tempdir().unwrap();
        let private = scratch.path();
        let name = own_name(private, None).unwrap();
        assert_eq!(own_name(private, None).unwrap(), name);
        for bad in [&b""[..], b"../x", b"\xff"] {
            fs::write(private.join("name"), bad).unwrap();
            let new = own_name(private, None).unwrap();
            assert!(is_id(&new) && new != name, "{new}");
        }
        assert_eq!(own_name(private, Some("given")).unwrap(), "given");
        for bad in ["", "a/b", "..", ".hidden"] {
            assert!(own_name(private, Some(bad)).is_err(), "{bad}");
        }
    }
}
