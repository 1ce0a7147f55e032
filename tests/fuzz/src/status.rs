//! Target `status`: glue's status file. Before the mount proof, root of an image can have written it.

use latebind_contract::status::Status;

/// The input is a status file.
pub fn run(data: &[u8]) {
    let Ok(status) = serde_json::from_slice::<Status>(data) else { return };
    let written = serde_json::to_vec(&status).unwrap();
    let again: Status = serde_json::from_slice(&written).unwrap();
    assert_eq!(again, status, "what is written is not what is read back");
    assert_eq!(serde_json::to_vec(&again).unwrap(), written, "there are two ways to write the same file");
}
