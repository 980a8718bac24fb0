//! Text to tokens and back.

use polder_backend::TokenId;
use polder_model::TokenizerSource;

use crate::error::ChatError;
use crate::special::{Fragment, SpecialTokens};
use crate::spm::SentencePieces;
use crate::vocabulary::Vocabulary;
use crate::{gguf, huggingface};

/// Tokens that end an answer in every family that has them, whatever else the files say.
pub(crate) const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<seed:eos>",
];

/// Whether text may name control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Control tokens written in the text become control tokens.
    Parse,
    /// They stay text.
    Plain,
}

/// A model's own tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) encoder: Encoder,
    pub(crate) specials: SpecialTokens,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    pub(crate) add_bos: bool,
    pub(crate) ends: Vec<TokenId>,
}

/// How ordinary text becomes tokens.
#[derive(Debug)]
pub(crate) enum Encoder {
    /// BPE, built from a GGUF file or read from `tokenizer.json`.
    Library {
        first: Box<tokenizers::Tokenizer>,
        /// For text after a special token, where that differs.
        later: Option<Box<tokenizers::Tokenizer>>,
    },
    /// SentencePiece with scores.
    Pieces { pieces: SentencePieces, space_prefix: bool },
}

impl Tokenizer {
    /// Builds the tokenizer that a model came with.
    pub fn from_source(source: &TokenizerSource) -> Result<Self, ChatError> {
        match source {
            TokenizerSource::Gguf(keys) => gguf::build(keys),
            TokenizerSource::HuggingFace {
                tokenizer_json,
                tokenizer_config,
                generation_config,
            } => huggingface::open(
                tokenizer_json,
                tokenizer_config.as_deref(),
                generation_config.as_deref(),
            ),
            TokenizerSource::Missing => Err(ChatError::NoTokenizer),
        }
    }

    /// Builds one from the text of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, ChatError> {
        huggingface::build(json, &serde_json::Value::Null, &serde_json::Value::Null)
    }

    /// The tokens of a text, nothing added.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<TokenId>, ChatError> {
        self.encode_marked(text, special, None)
    }

    /// The tokens of a prompt as it is fed to the model: control tokens in it count, and the
    /// token that begins every text comes first where the model has one.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, ChatError> {
        let tokens = self.encode(text, Special::Parse)?;
        Ok(self.with_bos(tokens))
    }

    /// Refuses a text of which it is certain, without reading it, that it has more tokens than
    /// `most`: reading many megabytes only to refuse them would keep others waiting.
    pub fn check_length(&self, text: &str, most: usize) -> Result<(), ChatError> {
        // A token is at most as long as the longest word, or one stretch of white space that a
        // control token swallows.
        let bytes = text.chars().filter(|character| !character.is_whitespace()).map(char::len_utf8);
        let least = bytes.sum::<usize>() / self.vocabulary.longest().max(1);
        match least > most {
            true => Err(ChatError::TooLong { least, most }),
            false => Ok(()),
        }
    }

    /// As [`encode`](Self::encode), but `marker` is taken out once the text has been cut at its
    /// special tokens.
    pub(crate) fn encode_marked(
        &self,
        text: &str,
        special: Special,
        marker: Option<char>,
    ) -> Result<Vec<TokenId>, ChatError> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        for (index, fragment) in
            self.specials.cut(text, special == Special::Parse).into_iter().enumerate()
        {
            match (fragment, marker) {
                (Fragment::Token(token), _) => tokens.push(token),
                (Fragment::Text(text), Some(marker)) if text.contains(marker) => {
                    self.encode_text(&text.replace(marker, ""), index == 0, &mut tokens)?;
                }
                (Fragment::Text(text), _) => self.encode_text(text, index == 0, &mut tokens)?,
            }
        }
        Ok(tokens)
    }

    pub(crate) fn with_bos(&self, mut tokens: Vec<TokenId>) -> Vec<TokenId> {
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    fn encode_text(
        &self,
        text: &str,
        is_first: bool,
        to: &mut Vec<TokenId>,
    ) -> Result<(), ChatError> {
        match &self.encoder {
            Encoder::Library { first, later } => {
                let tokenizer = later.as_ref().filter(|_| !is_first).unwrap_or(first);
                let encoding = tokenizer
                    .encode_fast(text, false)
                    .map_err(|error| ChatError::Encode(error.to_string()))?;
                to.extend(encoding.get_ids().iter().copied().map(TokenId));
            }
            Encoder::Pieces { pieces, space_prefix } => {
                let prefix = if *space_prefix { "\u{2581}" } else { "" };
                pieces.encode(&format!("{prefix}{}", text.replace(' ', "\u{2581}")), to);
            }
        }
        Ok(())
    }

    /// The bytes that a token adds to an answer; none for a control token.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        match self.vocabulary.is_control(token) {
            true => &[],
            false => self.vocabulary.bytes(token),
        }
    }

    /// The bytes that a token stands for, the names of control tokens included.
    pub fn name(&self, token: TokenId) -> &[u8] {
        self.vocabulary.bytes(token)
    }

    /// The text of some tokens, the names of control tokens included.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|token| self.vocabulary.bytes(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether one token stands for this text, control token or not.
    pub(crate) fn has_word(&self, text: &str) -> bool {
        (0..self.vocabulary.len() as u32)
            .any(|id| self.vocabulary.bytes(TokenId(id)) == text.as_bytes())
    }

    /// Sampling one of these ends an answer.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Words in the vocabulary.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// It has no words at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of the token that begins every text, as chat templates want it.
    pub fn bos_text(&self) -> Option<String> {
        self.bos.map(|token| self.decode(&[token]))
    }

    /// The text of the token that ends a text, as chat templates want it.
    pub fn eos_text(&self) -> Option<String> {
        self.eos.map(|token| self.decode(&[token]))
    }
}
