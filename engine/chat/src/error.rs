//! What can go wrong between text and tokens.

/// Why text could not become tokens, or a conversation text.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model came without a tokenizer.
    #[error("the model has no tokenizer; import it together with its tokenizer.json")]
    NoTokenizer,
    /// A kind of tokenizer that Polder does not know.
    #[error("the model's tokenizer is of the kind \"{kind}\"; Polder knows {known}")]
    UnknownKind {
        /// What the file says.
        kind: String,
        /// What would work.
        known: &'static str,
    },
    /// The tokenizer contradicts itself.
    #[error("the model's tokenizer is broken: {0}; import the model again")]
    Broken(String),
    /// A file beside the model could not be read.
    #[error("reading {path} failed")]
    Read {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tokenizer refused a text.
    #[error("the text could not be turned into tokens: {0}")]
    Encode(String),
    /// The chat template cannot be compiled.
    #[error("the model's chat template cannot be used: {0}")]
    TemplateSyntax(String),
    /// The chat template refused the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {0}")]
    TemplateRefused(String),
    /// The chat template stumbled over the conversation.
    #[error("the model's chat template failed on this conversation: {0}")]
    TemplateFailed(String),
    /// A text so long that its tokens need not be counted.
    #[error("the text has at least {least} tokens, more than the {most} that fit; send less")]
    TooLong {
        /// Tokens that it has at least.
        least: usize,
        /// Tokens that would do.
        most: usize,
    },
    /// No character is left to mark a place with.
    #[error("the messages use every reserved Unicode character; remove U+FDD0 to U+FDEF from them")]
    NoMarkerLeft,
}
