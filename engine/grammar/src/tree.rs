//! A vocabulary as the library wants it: a tree over the bytes of its tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{earley::SlicedBiasComputer, toktrie::INVALID_TOKEN};
use polder_backend::TokenId;

/// Longest token that the tree can hold, bytes. Longer ones, long runs of spaces, are never chosen
/// under a grammar: shorter ones say the same.
const LONGEST_TOKEN: usize = 512;

/// What compiling and computing masks may take. The numbers are the library's units; measured
/// bounds are in this crate's README.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // Each running answer has its own, at one or two kilobytes a state.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        // The text of an answer has no place in errors, which are logged and sent.
        verbose_errors: false,
    }
}

/// Builds the tree. `bytes` says what a token adds to an answer, nothing for a control token;
/// tokens from `ends` end an answer, whatever else they might stand for.
pub(crate) fn build(
    vocab: u32,
    bytes: impl Fn(TokenId) -> Vec<u8>,
    ends: &[TokenId],
) -> Option<ParserFactory> {
    let ends: Vec<u32> = ends.iter().map(|token| token.0).filter(|id| *id < vocab).collect();
    let words: Vec<Vec<u8>> = (0..vocab)
        .map(|id| if ends.contains(&id) { Vec::new() } else { bytes(TokenId(id)) })
        // The byte FF stands in no text; the library marks tokens with it that are none.
        .map(|word| if word.len() > LONGEST_TOKEN || word.contains(&0xff) { vec![] } else { word })
        .collect();
    let info = TokRxInfo::new(vocab, ends.first().copied().unwrap_or(INVALID_TOKEN));
    // The library checks what it is given by assertions.
    catch_unwind(AssertUnwindSafe(|| {
        let trie = TokTrie::from(&info, &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let caps = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&env, caps, &slices).ok()?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Some(factory)
    }))
    .ok()
    .flatten()
}
