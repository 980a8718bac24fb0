//! Chat templates with tools against Python's Jinja. `goldens/make_chats.py` made the expected texts.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

use std::path::Path;

use polder_chat::{ChatError, ChatTemplate, Conversation, Tokenizer};
use polder_model::{GgufTokenizer, TokenizerSource};
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Every byte is a word; then what begins and ends a text.
fn tokenizer() -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    tokens.extend(["<s>".into(), "</s>".into()]);
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3]);
    let keys = GgufTokenizer {
        model: "gpt2".into(),
        tokens,
        token_types,
        bos: Some(256),
        eos: Some(257),
        add_bos: Some(false),
        ..GgufTokenizer::default()
    };
    Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys))).unwrap()
}

fn conversation(golden: &Value) -> Conversation {
    let mut variables = Map::new();
    for name in ["tools", "enable_thinking"] {
        if let Some(value) = golden.get(name) {
            variables.insert(name.into(), value.clone());
        }
    }
    Conversation {
        messages: serde_json::from_value(golden["messages"].clone()).unwrap(),
        add_generation_prompt: true,
        variables,
    }
}

#[test]
fn templates_with_tools_write_what_python_writes() {
    let tokenizer = tokenizer();
    let goldens: Vec<Value> = serde_json::from_str(include_str!("../goldens/tools.json")).unwrap();
    assert!(goldens.len() > 30);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/templates");
    for golden in &goldens {
        let name = golden["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source).unwrap();
        let written = template.encode(&conversation(golden), &tokenizer, 1 << 20);
        match (written, golden["refused"].as_str()) {
            (Ok(tokens), None) => {
                assert_eq!(tokenizer.decode(&tokens), golden["text"].as_str().unwrap(), "{name}");
            }
            (Err(ChatError::TemplateRefused(said)), Some(refused)) => assert_eq!(said, refused),
            (written, _) => panic!("{name}: {written:?} for {golden}"),
        }
    }
}

#[test]
fn words_in_json_of_any_layout_are_no_control_tokens() {
    let tokenizer = tokenizer();
    let user = conversation(&json!({"messages": [{"role": "user", "content": "é<s>"}]}));
    for options in ["", "ensure_ascii=true", "indent=1", "sort_keys=true, separators=(',', ':')"] {
        let source =
            format!("{{{{ bos_token }}}}{{{{ [messages[0].content] | tojson({options}) }}}}");
        let template = ChatTemplate::new(&source).unwrap();
        let tokens = template.encode(&user, &tokenizer, 99).unwrap();
        assert_eq!(tokens.iter().filter(|token| token.0 == 256).count(), 1, "{options}");
        let text = tokenizer.decode(&tokens);
        let read: Value = serde_json::from_str(text.strip_prefix("<s>").unwrap()).unwrap();
        assert_eq!(read, json!(["é<s>"]), "{options}");
    }
}

#[test]
fn each_template_shows_its_dialect_and_the_variables_it_reads() {
    let tokenizer = tokenizer();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/templates");
    for (name, calls, thinks) in [
        ("hermes", Some("hermes"), true),
        ("elements", Some("qwen3-coder"), false),
        ("llama3", Some("llama3-json"), false),
        ("deepseek", Some("deepseek"), true),
        ("mistral", Some("mistral"), false),
        ("helpers", None, false),
    ] {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source).unwrap();
        let dialect = template.dialect(&tokenizer);
        assert_eq!((dialect.calls(), dialect.thinks()), (calls, thinks), "{name}");
        assert!(template.reads("tools") && template.reads("messages"), "{name}");
        assert_eq!(template.reads("enable_thinking"), name == "hermes");
    }
}

#[test]
fn what_python_has_and_the_engine_has_not_is_refused_in_words() {
    let tokenizer = tokenizer();
    let conversation =
        conversation(&json!({"messages": [{"role": "user", "content": "private words"}]}));
    for (source, word) in [
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ messages[0].content.encode('utf8') }}", "encode"),
        ("{{ no_such_function(1) }}", "no_such_function"),
        ("{{ messages | tojson(default=1) }}", "default"),
        ("{{ messages | sort(attribute=0) }}", "line 1"),
        ("{% include 'elsewhere' %}", "line 1"),
    ] {
        let refused = match ChatTemplate::new(source) {
            Err(error) => error.to_string(),
            Ok(template) => template.encode(&conversation, &tokenizer, 99).unwrap_err().to_string(),
        };
        assert!(refused.contains(word), "{source}: {refused}");
        assert!(!refused.contains("private words"), "{refused}");
    }
}
