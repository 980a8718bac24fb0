//! Schemas as somebody sends them, and the first tokens of answers under them.

use std::sync::{Arc, LazyLock};

use polder_backend::TokenId;
use polder_chat::Tokenizer;
use polder_chat::reply::{Beside, Dialect, ReplyRules, ThoughtsFirst, Tools};
use polder_grammar::{GrammarSpec, Grammars};
use polder_model::{GgufTokenizer, TokenizerSource};
use polder_scheduler::Next;
use serde_json::{Value, json};

/// Single bytes and an end.
static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let tokens: Vec<String> =
        (0..=255).map(|byte: u8| format!("<0x{byte:02X}>")).chain(["</s>".into()]).collect();
    let keys = GgufTokenizer {
        model: "llama".into(),
        token_types: (0..257).map(|id| if id < 256 { 6 } else { 3 }).collect(),
        scores: vec![0.0; 257],
        eos: Some(256),
        tokens,
        ..GgufTokenizer::default()
    };
    let tokenizer = Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys)));
    Arc::new(tokenizer.expect("a vocabulary of bytes is one"))
});

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(TOKENIZER.clone(), 257));

/// Each way to write arguments.
static DIALECTS: LazyLock<Vec<Dialect>> = LazyLock::new(|| {
    let templates =
        ["tools <tool_call> </think>", "tools <tool_call><function=", "tools <|python_start|>"];
    templates.iter().map(|template| Dialect::detect(template, &TOKENIZER)).collect()
});

/// A schema for an answer.
pub(crate) fn json_schema(bytes: &[u8]) {
    let Ok(schema) = serde_json::from_slice(bytes) else { return };
    answer(&GrammarSpec::JsonSchema(schema));
}

/// A schema of a tool's arguments; the first byte chooses how they are written, and whether text may
/// stand beside calls.
pub(crate) fn tool_schema(bytes: &[u8]) {
    let [how, schema @ ..] = bytes else { return };
    let Ok(schema) = serde_json::from_slice::<Value>(schema) else { return };
    let function = json!({"name": "f", "parameters": schema, "strict": true});
    let tools = Tools::new(&[json!({"type": "function", "function": function})]);
    let dialect = &DIALECTS[usize::from(*how) % DIALECTS.len()];
    let beside = if how & 0x80 == 0 { Beside::Nothing } else { Beside::Text };
    let (only, one_call, thoughts) = (None, true, ThoughtsFirst::No);
    let rules = ReplyRules { tools: &tools, only, one_call, beside, thoughts };
    let Ok(grammar) = dialect.grammar(&rules) else { return };
    answer(&GrammarSpec::Reply { grammar, form: None });
}

/// Each token is the first or the last that is allowed.
fn answer(spec: &GrammarSpec) {
    let Ok(grammar) = GRAMMARS.compile(spec) else { return };
    let mut mask = grammar.first_mask();
    let mut matcher = grammar.begin();
    // Beyond the beginning of a call, which is always the same.
    for step in 0..60 {
        let mut allowed =
            (0..256_u32).filter(|token| mask[*token as usize / 32] >> (token % 32) & 1 == 1);
        let token = if step % 2 == 0 { allowed.next() } else { allowed.next_back() };
        let Some(token) = token else { return };
        let Next::Mask(next) = matcher.after(TokenId(token)) else { return };
        mask = next;
    }
}
