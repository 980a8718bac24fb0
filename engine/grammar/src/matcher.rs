//! The scheduler's view of the library's matcher.

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use polder_backend::TokenId;
use polder_scheduler::{Grammar, Next};

use crate::error::{GrammarError, sentence};

/// A grammar before its first token.
pub(crate) struct Compiled {
    matcher: Matcher,
    first: Vec<u32>,
    vocab: u32,
}

/// One answer under it.
struct Running {
    matcher: Matcher,
    vocab: u32,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Compiled {
    /// Refuses what failed to compile, and what allows no answer.
    pub(crate) fn new(matcher: Matcher, vocab: u32) -> Result<Self, GrammarError> {
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::from_library(&error));
        }
        // The lexer's states that the first mask finds are not kept: whatever comes before, an
        // answer's masks must cost the same.
        let first = next(&mut matcher.deep_clone(), vocab);
        match first {
            Next::Mask(first) => Ok(Self { matcher, first, vocab }),
            Next::Complete => Err(GrammarError::Unusable("it allows the empty answer only".into())),
            Next::Stuck(why) => Err(GrammarError::Unusable(why)),
        }
    }
}

impl Grammar for Compiled {
    fn first_mask(&self) -> Vec<u32> {
        self.first.clone()
    }

    fn begin(&self) -> Box<dyn polder_scheduler::Matcher> {
        // Not a clone: those share what they learn, and its bounds with it, so that one answer
        // would end for another's sake, now and then.
        Box::new(Running { matcher: self.matcher.deep_clone(), vocab: self.vocab })
    }
}

impl polder_scheduler::Matcher for Running {
    fn after(&mut self, token: TokenId) -> Next {
        match self.matcher.consume_token(token.0) {
            Ok(()) => next(&mut self.matcher, self.vocab),
            Err(error) => Next::Stuck(sentence(&error.to_string())),
        }
    }
}

fn next(matcher: &mut Matcher, vocab: u32) -> Next {
    if matcher.is_stopped() && !matcher.is_error() {
        return match matcher.stop_reason().is_ok() {
            true => Next::Complete,
            false => Next::Stuck(stopped(matcher)),
        };
    }
    // Asked before: a matcher that allows nothing forgets.
    let may_end = matcher.is_accepting().unwrap_or(false);
    match matcher.compute_mask() {
        Ok(mask) => words(mask, vocab),
        Err(_) if may_end && matcher.stop_reason().is_ok() => Next::Complete,
        Err(error) => Next::Stuck(sentence(&error.to_string())),
    }
}

fn stopped(matcher: &Matcher) -> String {
    format!("it became too complex ({})", matcher.stop_reason())
}

/// One bit for each token of the vocabulary, and no more.
fn words(mask: SimpleVob, vocab: u32) -> Next {
    let mut words: Vec<u32> = mask.into();
    words.resize(vocab.div_ceil(32) as usize, 0);
    let beyond = words.len() as u32 * 32 - vocab;
    if let Some(last) = words.last_mut() {
        *last &= u32::MAX.checked_shr(beyond).unwrap_or(0);
    }
    match words.iter().any(|word| *word != 0) {
        true => Next::Mask(words),
        false => Next::Stuck("no token of this model can go on".into()),
    }
}
