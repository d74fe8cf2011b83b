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
