//! Names that nobody has made before, and nobody can foresee.

use std::io;

use latebind_contract::encoding::hex;

/// `N` random bytes as lower-case hex. An error where the kernel gives none.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut random = [0; N];
    latebind_linux::sys::random(&mut random)?;
    Ok(hex(&random))
}
