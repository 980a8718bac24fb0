//! Numbers that look random and are not: the same in two builds, different in two images.

/// The first 16 bytes of a digest in the form of a random UUID, so that nobody takes it for another kind.
pub(crate) fn form(digest: &[u8; 32]) -> String {
    let hex = hex(digest);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
