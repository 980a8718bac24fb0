use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::MembersError;

/// Text that is shown or sent once and never logged: `Debug` hides it, dropping wipes it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes text in.
    pub fn new(text: String) -> Self {
        Self(text)
    }
    /// A new one of 256 random bits, letters and digits only.
    pub fn random() -> Result<Self, MembersError> {
        token()
    }
    /// The text itself, for the one place that shows or sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// SHA-256 of a secret with at least 70 random bits: all that is kept of it. (A slow hash would
/// add nothing: there is no dictionary of such secrets.)
#[derive(Clone, Copy)]
pub(crate) struct Digest(pub(crate) [u8; 32]);

impl Digest {
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
    /// Takes the same time wherever the two differ.
    pub(crate) fn same(&self, other: &[u8]) -> bool {
        self.0.as_slice().ct_eq(other).into()
    }
}

/// Without 0, 1, I, L, O and U: what a person reads from a screen is what they type.
const READABLE: &[u8; 30] = b"23456789ABCDEFGHJKMNPQRSTVWXYZ";
/// 32 signs, so that five random bits make one.
const DENSE: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A code for reading aloud: `K7M4P-XR9TD-3WHNF`, 15 signs of 30, 73 bits.
pub(crate) fn readable_code() -> Result<Secret, MembersError> {
    let mut code = String::with_capacity(17);
    let mut signs = 0;
    while signs < 15 {
        let mut bytes = [0; 32];
        random(&mut bytes)?;
        // 240 is the largest multiple of 30 that a byte holds: what is above would favour some.
        for byte in bytes.into_iter().filter(|b| *b < 240).take(15 - signs) {
            if signs > 0 && signs % 5 == 0 {
                code.push('-');
            }
            code.push(char::from(READABLE[usize::from(byte % 30)]));
            signs += 1;
        }
    }
    Ok(Secret(code))
}

/// A typed code as [`readable_code`] wrote it: case, spaces and dashes do not matter. Wrong
/// lengths give something that matches nothing.
pub(crate) fn normal_code(typed: &str) -> String {
    let signs: Vec<char> = typed
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(16)
        .map(|c| c.to_ascii_uppercase())
        .collect();
    let groups: Vec<String> = signs.chunks(5).map(|group| group.iter().collect()).collect();
    groups.join("-")
}

/// A token of 256 random bits in 52 signs that double-click as one word.
pub(crate) fn token() -> Result<Secret, MembersError> {
    Ok(Secret(dense::<32>()?))
}

/// A public name of 60 random bits in 12 signs.
pub(crate) fn short_id() -> Result<String, MembersError> {
    let mut id = dense::<8>()?;
    id.truncate(12);
    Ok(id)
}

fn dense<const BYTES: usize>() -> Result<String, MembersError> {
    let mut bytes = [0; BYTES];
    random(&mut bytes)?;
    let (mut text, mut held, mut bits) = (String::with_capacity(BYTES * 8 / 5 + 1), 0u32, 0u32);
    for byte in bytes {
        held = (held << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(DENSE[(held >> bits) as usize & 31]));
        }
    }
    if bits > 0 {
        text.push(char::from(DENSE[(held << (5 - bits)) as usize & 31]));
    }
    bytes.zeroize();
    Ok(text)
}

fn random(bytes: &mut [u8]) -> Result<(), MembersError> {
    getrandom::fill(bytes).map_err(|e| MembersError::Random(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_three_groups_of_five_unambiguous_signs() {
        let code = readable_code().unwrap();
        assert_eq!(code.expose().len(), 17);
        assert!(code.expose().split('-').all(|g| g.len() == 5));
        assert!(!code.expose().contains(['0', '1', 'I', 'L', 'O', 'U']));
        assert!((READABLE.len() as f64).log2() * 15.0 > 60.0);
    }

    #[test]
    fn a_code_typed_in_lower_case_without_dashes_is_the_same_code() {
        let code = readable_code().unwrap();
        let typed = format!(" {} ", code.expose().to_lowercase().replace('-', " "));
        assert_eq!(normal_code(&typed), code.expose());
        assert_ne!(normal_code(&format!("{typed}A")), code.expose());
    }

    #[test]
    fn tokens_have_256_bits_and_no_two_are_the_same() {
        let (a, b) = (token().unwrap(), token().unwrap());
        assert_eq!(a.expose().len(), 52);
        assert_ne!(a.expose(), b.expose());
        assert_eq!(short_id().unwrap().len(), 12);
    }

    #[test]
    fn debug_does_not_print_the_secret() {
        let token = token().unwrap();
        assert_eq!(format!("{token:?}"), "(hidden)");
    }
}
