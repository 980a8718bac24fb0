//! A tokenizer from `tokenizer.json` and the files beside it.

use std::path::Path;

use polder_backend::TokenId;
use serde_json::Value;
use tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use crate::error::ChatError;
use crate::special::{SpecialToken, SpecialTokens};
use crate::tokenizer::{ENDS, Encoder, Tokenizer};
use crate::vocabulary::{Vocabulary, byte_level, sentence_piece};

/// Largest `tokenizer.json` that is read.
const MAX_FILE: u64 = 256 << 20;

pub(crate) fn open(
    tokenizer: &Path,
    config: Option<&Path>,
    generation: Option<&Path>,
) -> Result<Tokenizer, ChatError> {
    let json = |path: Option<&Path>| match path {
        None => Ok(Value::Null),
        Some(path) => serde_json::from_slice(&read(path)?)
            .map_err(|error| ChatError::Broken(format!("{}: {error}", path.display()))),
    };
    build(&read(tokenizer)?, &json(config)?, &json(generation)?)
}

fn read(path: &Path) -> Result<Vec<u8>, ChatError> {
    let failed = |source| ChatError::Read { path: path.to_owned(), source };
    let size = path.metadata().map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(ChatError::Broken(format!("{} has {size} bytes", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

pub(crate) fn build(
    tokenizer: &[u8],
    config: &Value,
    generation: &Value,
) -> Result<Tokenizer, ChatError> {
    let broken = |error: tokenizers::Error| ChatError::Broken(error.to_string());
    // The library panics on some contradictions, such as a merge longer than any word.
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(tokenizer));
    let mut first = read
        .map_err(|_| ChatError::Broken("its tokenizer.json contradicts itself".into()))?
        .map_err(broken)?;
    first.with_padding(None);
    first.with_truncation(None).map_err(broken)?;
    let spell = spelling(&first)?;
    let added = first.get_added_tokens_decoder();
    let count = (0..).take_while(|id| first.id_to_token(*id).is_some()).count();
    let last = added.keys().max().map_or(0, |id| *id as usize + 1).max(count);
    if last > count + MAX_HOLES {
        return Err(ChatError::Broken(format!("token {} is far beyond the others", last - 1)));
    }

    let mut vocabulary = Vocabulary::default();
    let mut specials = Vec::new();
    let mut ends = Vec::new();
    let mut spelled = Vec::new();
    for id in 0..last as u32 {
        spelled.clear();
        let extra = added.get(&id);
        let control = extra.is_some_and(|token| token.special);
        match (extra, first.id_to_token(id)) {
            (Some(token), _) => spelled.extend_from_slice(token.content.as_bytes()),
            (None, Some(word)) => spell(&word, &mut spelled),
            (None, None) => {}
        }
        vocabulary.push(&spelled, control);
        // The library finds the others by itself.
        if let Some(token) = extra.filter(|token| token.special) {
            if ENDS.contains(&token.content.as_str()) {
                ends.push(TokenId(id));
            }
            specials.push(SpecialToken {
                id: TokenId(id),
                text: token.content.clone(),
                control: true,
                left_strip: token.lstrip,
                right_strip: token.rstrip,
            });
        }
    }

    let named = |key: &str| {
        let text = match &config[key] {
            Value::String(text) => text.as_str(),
            other => other["content"].as_str()?,
        };
        first.token_to_id(text).map(TokenId)
    };
    let begins = first.encode_fast("", true).map_err(broken)?;
    let begins = begins.get_ids().first().copied().map(TokenId);
    let bos = named("bos_token").or(begins);
    let eos = named("eos_token");
    ends.extend(eos);
    ends.extend(ids(&generation["eos_token_id"], last));
    ends.sort_unstable();
    ends.dedup();
    first.set_encode_special_tokens(true);
    Ok(Tokenizer {
        specials: SpecialTokens::new(specials)?,
        vocabulary,
        bos,
        eos: eos.or(ends.first().copied()),
        add_bos: bos.is_some() && begins == bos,
        ends,
        encoder: Encoder::Library { later: later(&first), first: Box::new(first) },
    })
}

/// Token ids that no word has, between those that have one.
const MAX_HOLES: usize = 1 << 16;

/// One id or several.
fn ids(value: &Value, count: usize) -> Vec<TokenId> {
    let one = |value: &Value| {
        let id = u32::try_from(value.as_u64()?).ok()?;
        ((id as usize) < count).then_some(TokenId(id))
    };
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

/// How the words of this tokenizer are spelled, by what its decoder undoes.
fn spelling(tokenizer: &tokenizers::Tokenizer) -> Result<fn(&str, &mut Vec<u8>), ChatError> {
    let decoder = serde_json::to_value(tokenizer.get_decoder())
        .map_err(|error| ChatError::Broken(error.to_string()))?;
    let steps: Vec<&str> = match decoder["decoders"].as_array() {
        Some(list) => list.iter().filter_map(|step| step["type"].as_str()).collect(),
        None => decoder["type"].as_str().into_iter().collect(),
    };
    if steps.contains(&"ByteLevel") {
        Ok(byte_level)
    } else if steps.iter().any(|step| matches!(*step, "Metaspace" | "ByteFallback")) {
        Ok(sentence_piece)
    } else {
        Err(ChatError::UnknownKind {
            kind: steps.first().copied().unwrap_or("none").to_owned(),
            known: "the decoders ByteLevel, Metaspace and ByteFallback",
        })
    }
}

/// Some tokenizers put a space before the first word only. Text after a special token is not
/// first.
fn later(first: &tokenizers::Tokenizer) -> Option<Box<tokenizers::Tokenizer>> {
    match first.get_pre_tokenizer()? {
        PreTokenizerWrapper::Metaspace(space)
            if space.get_prepend_scheme() == PrependScheme::First =>
        {
            let mut space = space.clone();
            space.set_prepend_scheme(PrependScheme::Never);
            let mut later = first.clone();
            later.with_pre_tokenizer(Some(space));
            Some(Box::new(later))
        }
        _ => None,
    }
}
