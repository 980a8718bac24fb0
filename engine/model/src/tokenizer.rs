//! Where a model's own tokenizer is, for `polder-chat` to build.

use std::path::PathBuf;

use crate::error::ModelError;
use crate::gguf::Gguf;

/// Where a model's tokenizer comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The vocabulary inside a GGUF file.
    Gguf(Box<GgufTokenizer>),
    /// Files beside a safetensors checkpoint.
    HuggingFace {
        /// `tokenizer.json`; it exists.
        tokenizer_json: PathBuf,
        /// `tokenizer_config.json`, if there.
        tokenizer_config: Option<PathBuf>,
        /// `generation_config.json`, if there.
        generation_config: Option<PathBuf>,
    },
    /// The model came without one (a checkpoint for tests, or raw bytes).
    Missing,
}

/// The `tokenizer.ggml.*` keys of a GGUF file, as they stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), and others.
    pub model: String,
    /// Which pre-tokenizer splits the text before BPE, for example `smollm` or `qwen2`.
    pub pre: Option<String>,
    /// The vocabulary: token `i` is entry `i`. Never empty.
    pub tokens: Vec<String>,
    /// BPE merges, best first, each `left right`. Empty for SentencePiece.
    pub merges: Vec<String>,
    /// SentencePiece scores; empty, or one per token.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty, or one per token.
    pub token_types: Vec<i32>,
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message.
    pub eom: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Put `bos` first; None when the file does not say.
    pub add_bos: Option<bool>,
    /// Put `eos` last; None when the file does not say.
    pub add_eos: Option<bool>,
    /// Put a space before the text (SentencePiece); None when the file does not say.
    pub add_space_prefix: Option<bool>,
    /// Collapse runs of spaces (SentencePiece); None when the file does not say.
    pub remove_extra_whitespaces: Option<bool>,
}

impl GgufTokenizer {
    /// Reads the keys; `None` when the file holds no vocabulary. Special ids are below the number
    /// of tokens.
    pub fn read(gguf: &Gguf) -> Result<Option<Self>, ModelError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let bad = |name: &str| ModelError::Metadata { key: key(name) };
        let Some(model) = gguf.string(&key("model")) else { return Ok(None) };
        if model == "no_vocab" || model == "none" {
            return Ok(None);
        }
        let tokens = gguf.strings(&key("tokens")).ok_or_else(|| bad("tokens"))?.to_vec();
        if tokens.is_empty() || tokens.len() > u32::MAX as usize {
            return Err(bad("tokens"));
        }
        let count = tokens.len();
        let id = |name: &str| match gguf.value(&key(name)) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(id) if id < count as u64 => Ok(Some(id as u32)),
                // Minus one stands for "none" in files by older converters.
                Some(id) if id == u64::from(u32::MAX) => Ok(None),
                None if v.as_i64() == Some(-1) => Ok(None),
                _ => Err(bad(name)),
            },
        };
        let scores = gguf.floats(&key("scores")).unwrap_or_default().to_vec();
        let token_types = gguf.ints(&key("token_type")).unwrap_or_default();
        if !scores.is_empty() && scores.len() != count {
            return Err(bad("scores"));
        }
        if !token_types.is_empty() && token_types.len() != count {
            return Err(bad("token_type"));
        }
        Ok(Some(Self {
            model: model.to_owned(),
            pre: gguf.string(&key("pre")).map(str::to_owned),
            merges: gguf.strings(&key("merges")).unwrap_or_default().to_vec(),
            scores,
            token_types,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            unk: id("unknown_token_id")?,
            pad: id("padding_token_id")?,
            add_bos: gguf.bool(&key("add_bos_token")),
            add_eos: gguf.bool(&key("add_eos_token")),
            add_space_prefix: gguf.bool(&key("add_space_prefix")),
            remove_extra_whitespaces: gguf.bool(&key("remove_extra_whitespaces")),
            tokens,
        }))
    }
}
