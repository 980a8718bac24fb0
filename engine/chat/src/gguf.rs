//! A tokenizer from the keys of a GGUF file.

use polder_backend::TokenId;
use polder_model::GgufTokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::ChatError;
use crate::special::{SpecialToken, SpecialTokens};
use crate::spm::SentencePieces;
use crate::tokenizer::{ENDS, Encoder, Tokenizer};
use crate::vocabulary::{Vocabulary, byte_level, sentence_piece};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

const KNOWN_SPLITS: &str = "smollm, qwen2, llama-bpe and gpt-2";

/// How text is split before BPE, and what else comes with the family.
struct Family {
    /// Each splits what the one before left whole.
    patterns: &'static [&'static str],
    /// A whole word of the vocabulary is taken as it is, whatever the merges say.
    ignore_merges: bool,
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names are those that converters write into `tokenizer.ggml.pre`.
fn family(pre: Option<&str>) -> Option<Family> {
    let (patterns, ignore_merges): (&'static [&'static str], bool) = match pre {
        None | Some("default" | "gpt-2") => (&[GPT2], false),
        Some("smollm") => (&[r"\p{N}", GPT2], false),
        Some("qwen2" | "deepseek-r1-qwen") => (&[QWEN2], false),
        Some("llama-bpe" | "llama3" | "llama-v3") => (&[LLAMA3], true),
        Some(_) => return None,
    };
    Some(Family { patterns, ignore_merges, add_bos: ignore_merges })
}

pub(crate) fn build(keys: &GgufTokenizer) -> Result<Tokenizer, ChatError> {
    match keys.model.as_str() {
        "gpt2" => build_bpe(keys),
        "llama" => build_pieces(keys),
        other => Err(ChatError::UnknownKind {
            kind: other.to_owned(),
            known: "gpt2 (byte-level BPE) and llama (SentencePiece)",
        }),
    }
}

fn build_bpe(keys: &GgufTokenizer) -> Result<Tokenizer, ChatError> {
    let family = family(keys.pre.as_deref()).ok_or_else(|| ChatError::UnknownKind {
        kind: keys.pre.clone().unwrap_or_default(),
        known: KNOWN_SPLITS,
    })?;
    // Control tokens are no words: text must not reach them through the vocabulary.
    let vocabulary: Vocab = words(keys).map(|(id, word)| (word.to_owned(), id)).collect();
    // The library assumes that no merge is longer than the longest word.
    let longest = vocabulary.keys().map(String::len).max().unwrap_or(0);
    let merges = keys
        .merges
        .iter()
        .map(|merge| {
            // One byte of it is the space between the two parts.
            if merge.len() > longest + 1 {
                return Err(ChatError::Broken(format!("a merge makes no word: {merge:?}")));
            }
            // A part may itself begin with a space in files that do not use the byte alphabet.
            let cut = merge.char_indices().skip(1).find(|(_, character)| *character == ' ');
            cut.map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()))
                .ok_or_else(|| ChatError::Broken(format!("a merge is not a pair: {merge:?}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let broken = |error: tokenizers::Error| ChatError::Broken(error.to_string());
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(family.ignore_merges)
        .build()
        .map_err(broken)?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in family.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(broken)?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    let encoder = Encoder::Library { first: Box::new(tokenizer), later: None };
    finish(keys, encoder, family.add_bos, byte_level)
}

fn build_pieces(keys: &GgufTokenizer) -> Result<Tokenizer, ChatError> {
    if keys.scores.len() != keys.tokens.len() {
        return Err(ChatError::Broken("its words have no scores".into()));
    }
    let mut bytes = Box::new([None; 256]);
    let mut single = Vec::new();
    for (id, word) in words(keys) {
        single.clear();
        sentence_piece(word, &mut single);
        if let ([byte], true) = (single.as_slice(), word.starts_with("<0x")) {
            bytes[usize::from(*byte)] = Some(TokenId(id));
        }
    }
    let pieces = words(keys).map(|(id, word)| (TokenId(id), word, keys.scores[id as usize]));
    let pieces = SentencePieces::new(pieces, bytes, keys.unk.map(TokenId));
    let space_prefix = keys.add_space_prefix.unwrap_or(true);
    finish(keys, Encoder::Pieces { pieces, space_prefix }, true, sentence_piece)
}

fn finish(
    keys: &GgufTokenizer,
    encoder: Encoder,
    add_bos: bool,
    spell: fn(&str, &mut Vec<u8>),
) -> Result<Tokenizer, ChatError> {
    let mut vocabulary = Vocabulary::default();
    let mut specials = Vec::new();
    let mut ends: Vec<TokenId> =
        [keys.eos, keys.eot, keys.eom].into_iter().flatten().map(TokenId).collect();
    let mut spelled = Vec::new();
    for (index, word) in keys.tokens.iter().enumerate() {
        let id = TokenId(index as u32);
        let kind = kind(keys, index);
        let control = matches!(kind, CONTROL | UNKNOWN);
        spelled.clear();
        match kind {
            CONTROL | UNKNOWN | USER_DEFINED => spelled.extend_from_slice(word.as_bytes()),
            _ => spell(word, &mut spelled),
        }
        vocabulary.push(&spelled, control);
        if control || kind == USER_DEFINED {
            let text = word.clone();
            specials.push(SpecialToken {
                id,
                text,
                control,
                left_strip: false,
                right_strip: false,
            });
        }
        if control && ENDS.contains(&word.as_str()) {
            ends.push(id);
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(Tokenizer {
        encoder,
        specials: SpecialTokens::new(specials)?,
        vocabulary,
        bos: keys.bos.map(TokenId),
        eos: keys.eos.map(TokenId),
        add_bos: keys.add_bos.unwrap_or(add_bos),
        ends,
    })
}

/// A word's kind. Older files mark the tokens that end a turn as ordinary words.
fn kind(keys: &GgufTokenizer, index: usize) -> i32 {
    let told = keys.token_types.get(index).copied().unwrap_or(NORMAL);
    match ENDS.contains(&keys.tokens[index].as_str()) {
        true => CONTROL,
        false => told,
    }
}

/// The words that text can be made of, with their ids.
fn words(keys: &GgufTokenizer) -> impl Iterator<Item = (u32, &str)> {
    keys.tokens
        .iter()
        .enumerate()
        .filter(|(index, _)| !matches!(kind(keys, *index), CONTROL | UNKNOWN))
        .map(|(index, word)| (index as u32, word.as_str()))
}
