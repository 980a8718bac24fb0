//! A model's vocabulary, and what is compiled for it.

use std::sync::{Arc, OnceLock};

use llguidance::{Matcher, ParserFactory};
use polder_backend::TokenId;
use polder_chat::Tokenizer;
use polder_scheduler::Grammar;

use crate::error::GrammarError;
use crate::matcher::Compiled;
use crate::spec::GrammarSpec;
use crate::tree;

/// Compiling follows a grammar's nesting by calling itself. Memory is taken only as it is touched.
const STACK: usize = 64 << 20;

/// See the module. The tree over the vocabulary is built when the first grammar comes: a model
/// that never sees one starts no later for it.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocab: u32,
    factory: OnceLock<Option<ParserFactory>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model whose back end has a vocabulary of `vocab` tokens. The tokenizer may have fewer
    /// words: the others are never chosen.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: u32) -> Self {
        Self { tokenizer, vocab, factory: OnceLock::new() }
    }

    /// Compiles a form for answers, on a thread of its own. It takes as long as a long prompt takes
    /// to be read, so it has no place where others wait.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Arc<dyn Grammar>, GrammarError> {
        spec.check()?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("polder-grammar".into());
            let compiling =
                thread.stack_size(STACK).spawn_scoped(scope, || self.compile_here(spec));
            let failed = |_| GrammarError::Unusable("it cannot be read here; try again".into());
            compiling
                .map_err(|error| {
                    log::warn!(error:% = error; "a thread for a grammar cannot be started");
                    failed(())
                })?
                .join()
                .unwrap_or_else(|_| Err(failed(())))
        })
    }

    fn compile_here(&self, spec: &GrammarSpec) -> Result<Arc<dyn Grammar>, GrammarError> {
        let factory = self.factory().ok_or(GrammarError::Vocabulary)?;
        let parser = factory.create_parser(spec.to_library());
        let compiled = Compiled::new(Matcher::new(parser), self.vocab)?;
        Ok(Arc::new(compiled))
    }

    fn factory(&self) -> Option<&ParserFactory> {
        let build = || {
            let bytes = |token: TokenId| self.tokenizer.bytes(token).to_vec();
            tree::build(self.vocab, bytes, self.tokenizer.ends())
        };
        self.factory.get_or_init(build).as_ref()
    }
}
