//! Names by which the reference plugins find again what they made
//! (containernetworking/plugins pkg/utils/utils.go).

use sha2::{Digest, Sha512};

/// The first digits of a text's SHA-512.
pub fn hash(text: &str, digits: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

/// The iptables chain of a container in a network: 28 characters that begin
/// with `CNI-` and the kind.
pub fn chain(kind: &str, network: &str, container_id: &str) -> String {
    const LENGTH: usize = 28;
    let prefix = format!("CNI-{kind}");
    let digits = LENGTH - prefix.len();
    prefix + &hash(&format!("{network}{container_id}"), digits)
}

/// One attachment: the network's part, then the interface's of the container.
pub fn attachment(network: &str, ifname: &str, container_id: &str) -> String {
    network_part(network) + &hash(&format!("{ifname}:{container_id}"), 16)
}

/// What the names of all attachments of a network begin with.
pub fn network_part(network: &str) -> String {
    hash(network, 16) + "-"
}
