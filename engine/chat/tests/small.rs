//! Tokenizers and templates made up for the purpose.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

use std::sync::Arc;

use polder_backend::TokenId;
use polder_chat::{ChatError, ChatTemplate, Conversation, Special, TextStream, Tokenizer};
use polder_model::{GgufTokenizer, TokenizerSource};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Every byte is a word; then `<|a|>` and `<|b|>` (control), `<think>` (text).
fn bytes() -> GgufTokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    tokens.extend(["<|a|>", "<|b|>", "<think>", "<|im_end|>"].map(String::from));
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3, 4, 1]);
    GgufTokenizer {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        bos: Some(256),
        eos: Some(257),
        ..GgufTokenizer::default()
    }
}

fn build(keys: GgufTokenizer) -> Result<Tokenizer, ChatError> {
    Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys)))
}

/// The same vocabulary as Hugging Face writes it.
fn json_tokenizer() -> String {
    let keys = bytes();
    let vocab: Map<String, Value> =
        keys.tokens[..256].iter().zip(0..).map(|(word, id)| (word.clone(), json!(id))).collect();
    let added: Vec<Value> = [("<|a|>", true), ("<|b|>", true), ("<think>", false)]
        .iter()
        .zip(256..)
        .map(|((content, special), id)| {
            json!({"id": id, "content": content, "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer":
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|a|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|a|>": {"id": "<|a|>", "ids": [256], "tokens": ["<|a|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
    .to_string()
}

fn user(content: Value) -> Conversation {
    Conversation {
        messages: vec![json!({"role": "user", "content": content}).as_object().unwrap().clone()],
        add_generation_prompt: true,
        variables: Map::new(),
    }
}

fn render(template: &str, conversation: &Conversation) -> Result<String, ChatError> {
    let tokenizer = build(bytes()).unwrap();
    let tokens = ChatTemplate::new(template)?.encode(conversation, &tokenizer, 9999)?;
    Ok(tokenizer.decode(&tokens))
}

#[test]
fn a_tokenizer_json_says_the_same_as_the_gguf_of_the_same_vocabulary() {
    let gguf = build(bytes()).unwrap();
    let json = Tokenizer::from_json(json_tokenizer().as_bytes()).unwrap();
    for text in ["", "Grüße 👋", "a<|a|>b<think>c<|b|>", "  x\n"] {
        for special in [Special::Parse, Special::Plain] {
            assert_eq!(
                gguf.encode(text, special).unwrap(),
                json.encode(text, special).unwrap(),
                "{text:?} {special:?}"
            );
        }
        let tokens = json.encode(text, Special::Parse).unwrap();
        assert_eq!(json.decode(&tokens), text);
    }
    assert_eq!(json.encode_prompt("x").unwrap()[0], TokenId(256));
    assert_eq!(json.encode_prompt("<|a|>x").unwrap().len(), 2);
}

#[test]
fn a_tokenizer_json_with_a_merge_longer_than_any_word_is_refused() {
    let good = json_tokenizer();
    let bad = good.replace(r#""merges":[]"#, r#""merges":[["Ġ","Ġ"]]"#);
    assert_ne!(good, bad);
    assert!(matches!(Tokenizer::from_json(bad.as_bytes()), Err(ChatError::Broken(_))));
}

#[test]
fn more_messages_than_tokens_that_fit_are_refused_before_the_template_runs() {
    let tokenizer = build(bytes()).unwrap();
    let mut many = user(json!("a"));
    many.messages = vec![many.messages[0].clone(); 11];
    // A template that would fail if it ran.
    let template = ChatTemplate::new("{{ raise_exception('it ran') }}").unwrap();
    let refused = template.encode(&many, &tokenizer, 10);
    assert!(matches!(refused, Err(ChatError::TooLong { least: 11, most: 10 })));
}

#[test]
fn a_turn_ending_token_that_a_file_calls_ordinary_still_ends_the_answer() {
    let tokenizer = build(bytes()).unwrap();
    assert_eq!(tokenizer.ends(), [TokenId(257), TokenId(259)]);
    assert!(tokenizer.bytes(TokenId(259)).is_empty());
    assert_eq!(tokenizer.name(TokenId(259)), b"<|im_end|>");
    assert!(tokenizer.bytes(TokenId(1_000_000)).is_empty());
}

#[test]
fn tokenizers_that_cannot_be_built_are_refused_in_words() {
    let refused = |keys| build(keys).unwrap_err().to_string();
    let kind = refused(GgufTokenizer { model: "bert".into(), ..bytes() });
    assert!(kind.contains("\"bert\"") && kind.contains("gpt2"), "{kind}");
    let pre = refused(GgufTokenizer { pre: Some("martian".into()), ..bytes() });
    assert!(pre.contains("martian") && pre.contains("smollm"), "{pre}");
    let merge = refused(GgufTokenizer { merges: vec!["ab".into()], ..bytes() });
    assert!(merge.contains("not a pair"), "{merge}");
    refused(GgufTokenizer { merges: vec!["漢 字".into()], ..bytes() });
    refused(GgufTokenizer { model: "llama".into(), ..bytes() });
    assert!(Tokenizer::from_json(b"{}").is_err());
    assert!(Tokenizer::from_source(&TokenizerSource::Missing).is_err());
}

#[test]
fn a_character_in_several_tokens_is_held_back_until_it_is_whole() {
    let tokenizer = Arc::new(build(bytes()).unwrap());
    let tokens = tokenizer.encode("a👋b", Special::Plain).unwrap();
    let mut stream = TextStream::new(tokenizer.clone());
    let pieces: Vec<String> = tokens.iter().map(|token| stream.push(*token)).collect();
    assert_eq!(pieces, ["a", "", "", "", "👋", "b"]);
    // A character that never becomes whole is not lost without a sign.
    stream.push(tokens[1]);
    assert_eq!(stream.push(tokens[0]), "\u{fffd}a");
    stream.push(tokens[1]);
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn templates_speak_the_python_that_their_authors_wrote() {
    let python = "{%- for m in messages %}{% if m.content is string and m['content'].strip().startswith('hi') %}\n\
        {{ m.content.upper() | trim }}\n{% endif %}{% endfor %}{{ {'a': [1, 'ü<']} | tojson }}\
        {% generation %}!{% endgeneration %}";
    assert_eq!(render(python, &user(json!(" hi "))).unwrap(), "HI\n{\"a\": [1, \"ü<\"]}!");
    let year = render("{{ strftime_now('%Y') }}", &user(json!(""))).unwrap();
    assert_eq!(year.len(), 4);
    assert_eq!(render("{{ nothing }}{{ messages[0].nothing }}|", &user(json!(""))).unwrap(), "|");
}

#[test]
fn a_template_that_refuses_is_quoted_and_one_that_fails_is_named() {
    let refused = render("{{ raise_exception('roles must alternate') }}", &user(json!("")));
    assert!(
        matches!(&refused, Err(ChatError::TemplateRefused(why)) if why == "roles must alternate")
    );
    let failed = render("{{ nothing.at.all }}", &user(json!("secret words"))).unwrap_err();
    assert!(matches!(failed, ChatError::TemplateFailed(_)));
    assert!(!failed.to_string().contains("secret"));
    assert!(matches!(ChatTemplate::new("{% if %}"), Err(ChatError::TemplateSyntax(_))));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
        {% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &user(json!(""))), Err(ChatError::TemplateFailed(_))));
    let long = format!("{{% for a in range(9999) %}}{}{{% endfor %}}", "x".repeat(20_000));
    let failed = render(&long, &user(json!(""))).unwrap_err();
    assert!(
        matches!(&failed, ChatError::TemplateFailed(why) if why.contains("64 MiB")),
        "{failed}"
    );
}

#[test]
fn words_around_the_template_s_own_cannot_complete_a_control_token() {
    let tokenizer = build(bytes()).unwrap();
    let template = ChatTemplate::new("<|{{ messages[0].content | trim }}|>").unwrap();
    for content in ["a", " a|>", "a|><|b|>", "<|a|>", "|><|a"] {
        let tokens = template.encode(&user(json!(content)), &tokenizer, 9999).unwrap();
        let control = tokens.iter().filter(|token| (256..258).contains(&token.0)).count();
        // The first is the template's own mistake: it puts a bare name between its brackets.
        assert_eq!(control, usize::from(content == "a"), "{content:?}");
        assert_eq!(tokenizer.decode(&tokens), format!("<|{}|>", content.trim()));
    }
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_read() {
    let tokenizer = build(bytes()).unwrap();
    let longest = "<|im_end|>".len();
    let text = "x".repeat(longest * 10 + longest);
    assert!(tokenizer.check_length(&text, 11).is_ok());
    assert!(matches!(
        tokenizer.check_length(&text, 10),
        Err(ChatError::TooLong { least: 11, most: 10 })
    ));
    let template = ChatTemplate::new("{{ messages[0].content }}").unwrap();
    let refused = template.encode(&user(json!(text)), &tokenizer, 10);
    assert!(matches!(refused, Err(ChatError::TooLong { .. })));
}

proptest! {
    #[test]
    fn any_text_survives_the_way_to_tokens_and_back(text in "\\PC{0,40}") {
        let tokenizer = build(bytes()).unwrap();
        let tokens = tokenizer.encode(&text, Special::Plain).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens), text);
    }

    #[test]
    fn no_vocabulary_makes_the_builder_panic(
        tokens in prop::collection::vec("[ab<▁ ]{0,3}", 1..12),
        merges in prop::collection::vec("[ab ]{0,4}", 0..6),
        token_types in prop::collection::vec(0i32..8, 0..12),
        spm in any::<bool>(),
        text in "[ab <]{0,12}",
    ) {
        let count = tokens.len();
        let keys = GgufTokenizer {
            model: if spm { "llama" } else { "gpt2" }.into(),
            tokens,
            merges,
            scores: vec![f32::NAN; count],
            token_types,
            ..GgufTokenizer::default()
        };
        if let Ok(tokenizer) = build(keys) {
            let _ = tokenizer.encode(&text, Special::Parse);
        }
    }
}
