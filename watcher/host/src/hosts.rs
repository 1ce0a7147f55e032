//! `/etc/hosts` of a pod's containers: what every container of docker, podman and Kubernetes has there.

use crate::container::Network;
use crate::failure::{Context, Failure};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Bytes of the machine's own list that are taken over.
const MOST: usize = 1 << 20;

/// Writes the list for the pod `name`. With the host's network it begins with the host's own list.
pub fn write(path: &Path, name: &str, network: Network) -> Result<(), Failure> {
    let of_host = match network {
        Network::None => Vec::new(),
        // A machine may have none.
        Network::Host => fs::read("/etc/hosts").unwrap_or_default(),
    };
    fs::write(path, list(&of_host, name))
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
        .context(|| format!("cannot write {}", path.display()))
}

fn list(of_host: &[u8], name: &str) -> String {
    let of_host = of_host.get(..MOST).unwrap_or(of_host);
    let mut list = String::from_utf8_lossy(of_host).into_owned();
    if !list.is_empty() && !list.ends_with('\n') {
        list.push('\n');
    }
    // The first address of a name counts: what the host says of localhost stays.
    list.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t");
    list + name + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_and_the_own_name_are_there() {
        let text = list(b"", "pod-1");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with("\n127.0.0.1\tpod-1\n"), "{text}");
    }

    #[test]
    fn the_hosts_own_list_comes_first() {
        let text = list(b"10.0.0.1 store", "pod-1");
        assert!(text.starts_with("10.0.0.1 store\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(list(&vec![b'a'; 2 * MOST], "pod-1").len() < MOST + 200);
    }
}
