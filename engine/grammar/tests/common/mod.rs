//! A small vocabulary, and answers that are drawn at random under a grammar.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

pub mod judge;

use std::sync::Arc;

use polder_backend::TokenId;
use polder_chat::Tokenizer;
use polder_grammar::{Grammar, Grammars};
use polder_model::{GgufTokenizer, TokenizerSource};
use polder_scheduler::Next;

/// Words of several bytes beside the 256 single ones, as the vocabulary writes them.
const WORDS: [&str; 12] =
    ["{\"", "\":", "\",\"", "\"}", "Ġ\"", "true", "null", "ĊĊ", "ĠĠĠĠ", "},{", "12", "na"];

/// 256 bytes, some words, `<|im_start|>` and `<|im_end|>`.
pub fn tokenizer() -> Arc<Tokenizer> {
    tokenizer_with(&["<|im_start|>"])
}

/// 256 bytes, some words, these control tokens and `<|im_end|>`, the last.
pub fn tokenizer_with(controls: &[&str]) -> Arc<Tokenizer> {
    let mut tokens: Vec<String> = (0x21..=0x7e_u32)
        .chain(0xa1..=0xac)
        .chain(0xae..=0xff)
        .chain(0x100..=0x143)
        .filter_map(char::from_u32)
        .map(String::from)
        .chain(WORDS.map(String::from))
        .collect();
    let mut token_types = vec![1; tokens.len()];
    for control in controls.iter().chain(&["<|im_end|>"]) {
        tokens.push((*control).into());
        token_types.push(3);
    }
    let keys = GgufTokenizer {
        model: "gpt2".into(),
        eos: Some(tokens.len() as u32 - 1),
        tokens,
        token_types,
        ..GgufTokenizer::default()
    };
    Arc::new(Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys))).unwrap())
}

/// The model has some more rows than its tokenizer has words.
pub const VOCAB: u32 = 256 + 12 + 2 + 5;

pub fn grammars() -> Grammars {
    Grammars::new(tokenizer(), VOCAB)
}

pub fn allowed(mask: &[u32]) -> Vec<TokenId> {
    let is = |token: &u32| mask[*token as usize / 32] >> (token % 32) & 1 == 1;
    (0..mask.len() as u32 * 32).filter(is).map(TokenId).collect()
}

/// An answer, token by token: `draw` chooses among those that are allowed. None where it became
/// longer than `most`.
pub fn answer(
    grammar: &dyn Grammar,
    tokenizer: &Tokenizer,
    most: usize,
    mut draw: impl FnMut(&[TokenId], usize) -> TokenId,
) -> Option<String> {
    let mut mask = grammar.first_mask();
    let mut matcher = grammar.begin();
    let mut said = Vec::new();
    for at in 0..most {
        let allowed = allowed(&mask);
        assert_eq!(mask.len(), VOCAB.div_ceil(32) as usize);
        assert!(!allowed.is_empty() && allowed.iter().all(|token| token.0 < VOCAB));
        let token = draw(&allowed, at);
        assert!(allowed.contains(&token));
        if tokenizer.ends().contains(&token) {
            return Some(tokenizer.decode(&said));
        }
        said.push(token);
        match matcher.after(token) {
            Next::Mask(next) => mask = next,
            Next::Complete => return Some(tokenizer.decode(&said)),
            Next::Stuck(why) => panic!("{why} after {:?}", tokenizer.decode(&said)),
        }
    }
    None
}

/// Draws by these numbers, and once they are used up whatever comes to an end soonest.
pub fn draw<'a>(
    tokenizer: &'a Tokenizer,
    numbers: &'a [u16],
) -> impl FnMut(&[TokenId], usize) -> TokenId + 'a {
    let closing: Vec<TokenId> = tokenizer
        .ends()
        .iter()
        .copied()
        .chain(tokenizer.encode("\"}],:-10ae", polder_chat::Special::Plain).unwrap())
        .collect();
    move |allowed, at| match numbers.get(at) {
        Some(number) => allowed[usize::from(*number) % allowed.len()],
        None => {
            let soon = closing.iter().find(|token| allowed.contains(token));
            soon.copied().unwrap_or(allowed[at % allowed.len()])
        }
    }
}
