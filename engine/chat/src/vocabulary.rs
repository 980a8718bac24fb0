//! What each token says: its bytes, and whether it is text at all.

use polder_backend::TokenId;

/// Bytes and kind of every token.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    control: Vec<bool>,
    longest: usize,
}

impl Vocabulary {
    pub(crate) fn push(&mut self, bytes: &[u8], control: bool) {
        self.longest = self.longest.max(bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.control.push(control);
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest word.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Nothing for a token that the vocabulary does not have (a model may have more rows than
    /// its tokenizer has words).
    pub(crate) fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token.0 as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    pub(crate) fn is_control(&self, token: TokenId) -> bool {
        self.control.get(token.0 as usize).copied().unwrap_or(true)
    }
}

/// The bytes of a byte-level BPE word: each character stands for one byte. Characters outside
/// that alphabet stand for themselves.
pub(crate) fn byte_level(word: &str, to: &mut Vec<u8>) {
    for character in word.chars() {
        match byte_of(character) {
            Some(byte) => to.push(byte),
            None => to.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The bytes of a SentencePiece word: `▁` is a space, `<0x0A>` one byte.
pub(crate) fn sentence_piece(word: &str, to: &mut Vec<u8>) {
    let hex = word.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => to.push(byte),
        None => to.extend_from_slice(word.replace('\u{2581}', " ").as_bytes()),
    }
}

/// GPT-2's table: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet().into_iter().filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        let mut word = Vec::new();
        byte_level("Ġhi\u{10a}漢", &mut word);
        assert_eq!(word, " hi\n漢".as_bytes());
    }

    #[test]
    fn sentence_pieces_are_spaces_text_or_single_bytes() {
        let mut word = Vec::new();
        for piece in ["▁a", "<0x0A>", "<0xZZ>", "<0x123>"] {
            sentence_piece(piece, &mut word);
        }
        assert_eq!(word, b" a\n<0xZZ><0x123>");
    }
}
