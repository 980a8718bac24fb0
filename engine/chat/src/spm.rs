//! SentencePiece vocabularies with scores, as GGUF calls "llama".
//!
//! The text's characters are joined pair by pair, the pair whose joint piece has the best score
//! first (the leftmost of equals), until no pair is a piece. What is then no piece is written
//! byte by byte.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use polder_backend::TokenId;

/// Pieces and their scores.
#[derive(Debug, Clone)]
pub(crate) struct SentencePieces {
    pieces: HashMap<Box<str>, (TokenId, f32)>,
    bytes: Box<[Option<TokenId>; 256]>,
    unknown: Option<TokenId>,
}

/// A stretch of the text; `len` 0 when it was joined to its left neighbour.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    before: usize,
    after: usize,
}

const NONE: usize = usize::MAX;

#[derive(Debug)]
struct Pair {
    left: usize,
    right: usize,
    score: f32,
    /// Length of both together, by which a stale pair is known.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

impl SentencePieces {
    /// From the pieces that may appear in text.
    pub(crate) fn new<'a>(
        pieces: impl Iterator<Item = (TokenId, &'a str, f32)>,
        bytes: Box<[Option<TokenId>; 256]>,
        unknown: Option<TokenId>,
    ) -> Self {
        let pieces = pieces.map(|(id, piece, score)| (piece.into(), (id, score))).collect();
        Self { pieces, bytes, unknown }
    }

    /// Appends the tokens of a text whose spaces are `▁` already.
    pub(crate) fn encode(&self, text: &str, to: &mut Vec<TokenId>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                before: index.wrapping_sub(1),
                after: index + 1,
            })
            .collect();
        let Some(last) = symbols.last_mut() else { return };
        last.after = NONE;
        let mut pairs = BinaryHeap::new();
        for left in 0..symbols.len() - 1 {
            self.consider(text, &symbols, left, left + 1, &mut pairs);
        }
        while let Some(pair) = pairs.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].after = right.after;
            symbols[pair.right].len = 0;
            if right.after != NONE {
                symbols[right.after].before = pair.left;
                self.consider(text, &symbols, pair.left, right.after, &mut pairs);
            }
            if left.before != NONE {
                self.consider(text, &symbols, left.before, pair.left, &mut pairs);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.pieces.get(piece) {
                Some((id, _)) => to.push(*id),
                None => to.extend(
                    piece.bytes().filter_map(|byte| self.bytes[byte as usize].or(self.unknown)),
                ),
            }
        }
    }

    fn consider(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some((_, score)) = self.pieces.get(&text[start..start + len]) {
            pairs.push(Pair { left, right, score: *score, len });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_score_joins_first_and_strangers_become_bytes() {
        let words =
            [("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("abc", -5.0)];
        let mut bytes = Box::new([None; 256]);
        bytes[0xc3] = Some(TokenId(100));
        bytes[0xa9] = Some(TokenId(101));
        let pieces = words.iter().zip(0..).map(|((word, score), id)| (TokenId(id), *word, *score));
        let spm = SentencePieces::new(pieces, bytes, None);
        let encode = |text: &str| {
            let mut tokens = Vec::new();
            spm.encode(text, &mut tokens);
            tokens.into_iter().map(|token| token.0).collect::<Vec<_>>()
        };
        assert_eq!(encode("abc"), [5]); // b+c first, then a+bc.
        assert_eq!(encode("abab"), [3, 3]);
        assert_eq!(encode("aé"), [0, 100, 101]);
        assert_eq!(encode(""), [0u32; 0]);
    }
}
