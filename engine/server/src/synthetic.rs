//! A model of true shape with drawn weights: to measure speed without a download. What it says is noise, and it says so.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use polder_backend_cuda::backend::CudaBackend;
use polder_chat::{ChatTemplate, Tokenizer};
use polder_model::drawn::{self, Drawing, Stored};
use polder_model::huggingface::parse_config;
use polder_model::{GgufTokenizer, Model, TokenizerSource};

use crate::EngineError;
use crate::load::{EngineOptions, Parts, cap, on_card, on_processor, ready};

/// What to draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synthetic {
    /// The text of a `config.json`: the model's shape, and how its matrices are stored.
    pub config: String,
    /// The same one gives the same answers.
    pub seed: u64,
}

/// Most bytes that are drawn for the processor: they go through the disk.
const MOST_FOR_THE_PROCESSOR: u64 = 4 << 30;

/// A turn is `<|im_start|>role`, its text, `<|im_end|>`.
const TEMPLATE: &str = "{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

pub(crate) fn load(
    options: &EngineOptions,
    synthetic: &Synthetic,
    progress: impl Fn(u32),
) -> Result<Parts, EngineError> {
    let refused = |why: String| EngineError::Synthetic { name: options.served_as.clone(), why };
    let stored = Stored::of(&synthetic.config).map_err(|error| refused(error.to_string()))?;
    let spec = parse_config(synthetic.config.as_bytes());
    let mut spec = spec.map_err(|error| refused(error.to_string()))?;
    log::warn!(
        model:% = options.served_as, seed = synthetic.seed;
        "THE WEIGHTS ARE DRAWN AT RANDOM, in the model's true shape: it is for measuring speed, and every answer is noise"
    );
    let words = tokenizer(spec.vocab, synthetic.seed);
    let tokenizer = words
        .ok_or_else(|| "its vocabulary is too small for bytes and a few marks".to_owned())
        .and_then(|words| Tokenizer::from_source(&words).map_err(|error| error.to_string()))
        .map_err(refused)?;
    let template = ChatTemplate::new(TEMPLATE).map_err(|error| error.to_string());
    cap(&mut spec, options);
    let drawn = on_card(options, &spec, &progress, |cuda, _| {
        CudaBackend::drawn(&spec, stored, cuda, synthetic.seed)
    })?;
    let (loaded, note) = match drawn {
        Ok(loaded) => (loaded, None),
        Err(note) => {
            let mut model = checkpoint(synthetic).map_err(refused)?;
            cap(&mut model.spec, options);
            (on_processor(options, &Arc::new(model))?, note)
        }
    };
    progress(1000);
    Ok(ready(options, loaded, (tokenizer, template), note))
}

/// Draws a whole checkpoint, and opens it. It lasts as long as it is open.
fn checkpoint(synthetic: &Synthetic) -> Result<Model, String> {
    let config = untied(&synthetic.config).map_err(|error| error.to_string())?;
    let bytes = drawn::bytes(&config).map_err(|error| error.to_string())?;
    if bytes > MOST_FOR_THE_PROCESSOR {
        return Err(format!(
            "there is no card that can run it, and for the processor it is too large ({} GiB, of up to {}); choose a smaller one",
            bytes >> 30,
            MOST_FOR_THE_PROCESSOR >> 30
        ));
    }
    // Everybody may make folders there: one that is there already is somebody else's.
    let path = std::env::temp_dir().join(format!("polder-drawn-{}", std::process::id()));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
    made.map_err(|error| format!("{} cannot be made: {error}", path.display()))?;
    let folder = Folder(path);
    let drawing = Drawing { seed: synthetic.seed, shard_bytes: 1 << 30 };
    drawn::write(&folder.0, &config, &drawing).map_err(|error| error.to_string())?;
    Model::open(&folder.0).map_err(|error| error.to_string())
}

/// With a head of its own, which is read in each step as the embedding would be: a drawn embedding as the head says the last token again.
fn untied(config: &str) -> serde_json::Result<String> {
    let mut config: serde_json::Value = serde_json::from_str(config)?;
    config["tie_word_embeddings"] = false.into();
    Ok(config.to_string())
}

/// Goes when it is dropped: what is mapped stays readable.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Text is bytes: a token for each, whatever it says. What the model says is made-up words, one for each other token. None
/// where the vocabulary has no room.
fn tokenizer(vocab: u32, seed: u64) -> Option<TokenizerSource> {
    const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    let end = tokens.len() as u32 + 1;
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(MARKS.map(str::to_owned));
    token_types.extend([3; MARKS.len()]);
    let words = vocab.checked_sub(tokens.len() as u32)?;
    tokens.extend((0..words).map(|n| word(n, words, seed)));
    token_types.extend(vec![1; words as usize]);
    let model = "gpt2".to_owned();
    let keys =
        GgufTokenizer { model, tokens, token_types, eos: Some(end), ..GgufTokenizer::default() };
    Some(TokenizerSource::Gguf(Box::new(keys)))
}

/// How byte-level vocabularies write a byte: as itself where it can be seen, else as a letter from 256 on.
fn letter(byte: u8) -> char {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match seen(byte) {
        true => char::from(byte),
        false => {
            let hidden = (0..byte).filter(|byte| !seen(*byte)).count() as u32;
            char::from_u32(256 + hidden).expect("below 512 all are letters")
        }
    }
}

/// Word `n` of so many, all different: a space and syllables.
fn word(n: u32, words: u32, seed: u64) -> String {
    // Which word a number has, depends on the seed.
    let mut rest = (u64::from(n) + seed % u64::from(words)) % u64::from(words);
    let mut word = String::from(letter(b' '));
    loop {
        let syllable = (rest % 80) as usize;
        word.push(char::from(b"bdfgklmnprstvwzh"[syllable / 5]));
        word.push(char::from(b"aeiou"[syllable % 5]));
        rest /= 80;
        if rest == 0 {
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use polder_chat::Special;

    use super::*;

    #[test]
    fn a_drawn_models_text_is_its_bytes_and_every_other_token_is_a_word_of_its_own() {
        let source = tokenizer(5000, 7).unwrap();
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        assert_eq!(tokenizer.len(), 5000);
        let text = "Ça va? 1 + 1 = \u{1f600}\n\t";
        let tokens = tokenizer.encode(text, Special::Plain).unwrap();
        assert_eq!(tokens.len(), text.len());
        assert_eq!(tokenizer.decode(&tokens), text);
        let TokenizerSource::Gguf(keys) = source else { panic!("words") };
        let mut words = keys.tokens.clone();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), 5000);
        assert_eq!(tokenizer.ends().len(), 1);
        assert!(super::tokenizer(200, 7).is_none());
    }

    #[test]
    fn a_drawn_model_runs_on_the_processor_and_one_that_is_too_large_is_refused() {
        let config = r#"{"model_type":"qwen3","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":2,
            "num_key_value_heads":1,"head_dim":32,"intermediate_size":128,"vocab_size":1000,"max_position_embeddings":256,
            "rope_theta":10000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":true}"#;
        let synthetic = |config: String| Synthetic { config, seed: 1 };
        let mut options = EngineOptions::new("test", "/nowhere", "", "synthetic:small");
        options.card = None;
        options.context = Some(128);
        let heard = std::cell::Cell::new(0);
        let parts = load(&options, &synthetic(config.to_owned()), |now| heard.set(now)).unwrap();
        assert_eq!((heard.get(), parts.backend.limits().context), (1000, 128));
        assert!(parts.template.is_ok());
        let large = config.replace("\"hidden_size\":64", "\"hidden_size\":40960");
        let large = large.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":300");
        let refused = load(&options, &synthetic(large), |_| ()).err().unwrap().to_string();
        assert!(refused.contains("choose a smaller one"), "{refused}");
    }
}
