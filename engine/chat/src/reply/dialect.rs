//! Which dialect a model speaks: how it calls tools, and how it marks what it thinks.

use std::sync::Arc;

use polder_backend::TokenId;

use super::call::NewReader;
use super::deepseek::{self, DeepSeekReader};
use super::function::FUNCTION;
use super::grammar::{
    DEEPSEEK, HERMES, LLAMA3_JSON, Layout, Layouts, MISTRAL, PYTHONIC, QWEN3_CODER, SEED,
};
use super::llama::LlamaReader;
use super::mistral::{self, MistralReader};
use super::pythonic::PythonicReader;
use super::tagged::TaggedReader;
use crate::tokenizer::Tokenizer;

/// How a model calls tools and marks its thoughts, as far as Polder knows it.
#[derive(Debug, Clone, Default)]
pub struct Dialect {
    pub(super) calls: Option<&'static Calls>,
    pub(super) thoughts: Option<&'static Thoughts>,
    /// Markers that are control tokens in this vocabulary: never text.
    pub(super) hidden: Arc<[&'static str]>,
    pub(super) shown: Arc<[TokenId]>,
    /// How calls are laid out.
    pub(super) layout: Option<&'static Layout>,
}

/// A way to call tools.
#[derive(Debug)]
pub(super) struct Calls {
    name: &'static str,
    /// What in a template shows that a model speaks so: all of one of these.
    signs: &'static [&'static [&'static str]],
    /// What announces calls.
    pub(super) openers: &'static [Opener],
    /// With what a whole reply may begin that is a call without any marker.
    pub(super) bare: Option<(char, NewReader)>,
    /// Further markers that stand in calls.
    others: &'static [&'static str],
    layouts: Layouts,
}

/// A marker, and who reads what follows it.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) marker: &'static str,
    pub(super) reader: NewReader,
}

/// A way to mark thoughts.
#[derive(Debug)]
pub(super) struct Thoughts {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

const TAG: &str = "<tool_call>";
const TAG_END: &str = "</tool_call>";
const SEED_TAG: &str = "<seed:tool_call>";
const SEED_TAG_END: &str = "</seed:tool_call>";
const PYTHON_TAG: &str = "<|python_tag|>";

const TAGGED: Opener =
    Opener { marker: TAG, reader: |tools| Box::new(TaggedReader::new(TAG_END, tools)) };

/// The first whose signs are there counts.
const CALLS: &[Calls] = &[
    Calls {
        name: "deepseek",
        signs: &[&[deepseek::CALL_BEGIN]],
        openers: &[
            Opener {
                marker: deepseek::CALLS_BEGIN,
                reader: |_| Box::new(DeepSeekReader::of_calls()),
            },
            Opener {
                marker: deepseek::CALL_BEGIN,
                reader: |_| Box::new(DeepSeekReader::of_call()),
            },
        ],
        bare: None,
        others: &[deepseek::CALLS_END, deepseek::CALL_END, deepseek::SEPARATOR],
        layouts: DEEPSEEK,
    },
    Calls {
        name: "seed",
        signs: &[&[SEED_TAG, FUNCTION]],
        openers: &[Opener {
            marker: SEED_TAG,
            reader: |tools| Box::new(TaggedReader::new(SEED_TAG_END, tools)),
        }],
        bare: None,
        others: &[SEED_TAG_END],
        layouts: SEED,
    },
    Calls {
        name: "qwen3-coder",
        signs: &[&[TAG, FUNCTION]],
        openers: &[
            TAGGED,
            Opener {
                marker: FUNCTION,
                reader: |tools| Box::new(TaggedReader::bare_function(TAG_END, tools)),
            },
        ],
        bare: None,
        others: &[TAG_END],
        layouts: QWEN3_CODER,
    },
    Calls {
        name: "hermes",
        signs: &[&[TAG]],
        openers: &[TAGGED],
        bare: None,
        others: &[TAG_END],
        layouts: HERMES,
    },
    Calls {
        name: "mistral",
        signs: &[&[mistral::CALLS]],
        openers: &[Opener { marker: mistral::CALLS, reader: |_| Box::new(MistralReader::new()) }],
        bare: None,
        others: &[mistral::ARGUMENTS, mistral::CALL_ID],
        layouts: MISTRAL,
    },
    Calls {
        name: "pythonic",
        signs: &[
            &["<|python_start|>"],
            &["<|tool_call_start|>"],
            &["<|tool_list_start|>"],
            &["[func_name1("],
        ],
        openers: &[
            Opener {
                marker: "<|python_start|>",
                reader: |_| Box::new(PythonicReader::announced(&["<|python_end|>"])),
            },
            Opener {
                marker: "<|tool_call_start|>",
                reader: |_| Box::new(PythonicReader::announced(&["<|tool_call_end|>"])),
            },
        ],
        bare: Some(('[', |tools| Box::new(PythonicReader::bare(tools)))),
        others: &["<|python_end|>", "<|tool_call_end|>"],
        layouts: PYTHONIC,
    },
    Calls {
        name: "llama3-json",
        signs: &[&[PYTHON_TAG], &["<|start_header_id|>", "{\"name\": ", "\"parameters\": "]],
        openers: &[Opener {
            marker: PYTHON_TAG,
            reader: |tools| Box::new(LlamaReader::tagged(tools)),
        }],
        bare: Some(('{', |tools| Box::new(LlamaReader::bare(tools)))),
        others: &[],
        layouts: LLAMA3_JSON,
    },
];

/// What shows that a model calls in a way that is not read here, though it has signs of one that is:
/// its calls would come out as text.
const FOREIGN: &[&[&str]] = &[
    &["<arg_key>"],
    &["<invoke"],
    &["<tool_calls>"],
    &["<|channel|>"],
    &["<|tool_call|>"],
    &["<|tool_calls_section"],
    &["<|START_ACTION|>"],
    &[PYTHON_TAG, FUNCTION],
];

/// The first counts that has a mark in the template or both in the vocabulary.
const THOUGHTS: &[Thoughts] = &[
    Thoughts { open: "<think>", close: "</think>" },
    Thoughts { open: "<seed:think>", close: "</seed:think>" },
    Thoughts { open: "[THINK]", close: "[/THINK]" },
];

impl Dialect {
    /// What a model speaks, by its chat template and its vocabulary.
    pub fn detect(template: &str, tokenizer: &Tokenizer) -> Self {
        let mut dialect = Self::find(template, |marker| tokenizer.has_word(marker));
        let control = |marker: &str| {
            let mut tokens = tokenizer.specials.controls();
            tokens.find(|token| token.text == marker).map(|token| token.id)
        };
        let hidden: Vec<_> =
            dialect.markers().filter_map(|marker| Some((marker, control(marker)?))).collect();
        dialect.hidden = hidden.iter().map(|(marker, _)| *marker).collect();
        dialect.shown = hidden.iter().map(|(_, token)| *token).collect();
        dialect
    }

    fn find(template: &str, in_vocabulary: impl Fn(&str) -> bool) -> Self {
        let says = |word: &str| template.contains(word);
        let any = |signs: &[&[&str]]| signs.iter().any(|all| all.iter().all(|sign| says(sign)));
        let calls =
            CALLS.iter().find(|calls| any(calls.signs)).filter(|_| says("tools") && !any(FOREIGN));
        let thoughts = THOUGHTS.iter().find(|marks| {
            says(marks.open)
                || says(marks.close)
                || (in_vocabulary(marks.open) && in_vocabulary(marks.close))
        });
        let layout = calls.and_then(|calls| calls.layouts.iter().find(|(word, _)| says(word)));
        let layout = layout.map(|(_, layout)| layout);
        Self { calls, thoughts, layout, ..Self::default() }
    }

    pub(super) fn markers(&self) -> impl Iterator<Item = &'static str> + use<> {
        let calls = self.calls.into_iter().flat_map(|calls| {
            calls.openers.iter().map(|opener| opener.marker).chain(calls.others.iter().copied())
        });
        calls.chain(self.thoughts.into_iter().flat_map(|marks| [marks.open, marks.close]))
    }

    /// How the model calls tools, for the log; None where it does not, or in a way that Polder does
    /// not know.
    pub fn calls(&self) -> Option<&'static str> {
        self.calls.map(|calls| calls.name)
    }

    /// Whether the model may think before it answers.
    pub fn thinks(&self) -> bool {
        self.thoughts.is_some()
    }

    /// Whether a prompt that ends so has begun the model's thoughts already.
    pub fn begins_thinking(&self, prompt: &str) -> bool {
        self.thoughts.is_some_and(|marks| prompt.trim_end().ends_with(marks.open))
    }

    /// Whether a prompt that ends so has ended them too: this time the model is not to think.
    pub fn ends_thinking(&self, prompt: &str) -> bool {
        self.thoughts.is_some_and(|marks| prompt.trim_end().ends_with(marks.close))
    }

    /// Control tokens that a [`ReplyParser`](super::ReplyParser) must see by name
    /// ([`TextStream::showing`](crate::TextStream::showing)).
    pub fn shown(&self) -> Arc<[TokenId]> {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(template: &str) -> Option<&'static str> {
        Dialect::find(template, |_| false).calls()
    }

    #[test]
    fn a_dialect_is_known_by_what_its_template_writes() {
        for (template, name) in [
            ("{% if tools %}<tool_call>\n{\"name\": <function-name>}</tool_call>", Some("hermes")),
            ("{% if tools %}<tool_call>\n<function=f>", Some("qwen3-coder")),
            ("{% if tools %}<seed:tool_call>\n<function=f>", Some("seed")),
            ("{% if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", Some("deepseek")),
            ("{% if tools %}[TOOL_CALLS]", Some("mistral")),
            ("{% if tools %}[func_name1(params_name1=1)]", Some("pythonic")),
            (
                "{% if tools %}<|start_header_id|>{\"name\": function name, \"parameters\": x}",
                Some("llama3-json"),
            ),
            ("{% if tools %}<|python_tag|>{\"name\"", Some("llama3-json")),
            ("{% if tools %}<|python_tag|><function=f>{}</function>", None),
            ("{% if tools %}{\"name\": function name, \"parameters\": x}", None),
            ("{% if tools %}<tool_calls>[]</tool_calls> not <tool_call>", None),
            ("{% if tools %}<tool_call>f\n<arg_key>name</arg_key>\"name\"", None),
            ("{% if tools %}{{ tools | tojson }}", None),
            ("<tool_call>\n{\"name\": \"f\"}</tool_call>", None),
            ("{% for m in messages %}{{ m.content }}", None),
        ] {
            assert_eq!(calls(template), name, "{template}");
        }
    }

    #[test]
    fn a_model_thinks_if_its_template_or_its_vocabulary_says_so() {
        assert!(!Dialect::find("", |_| false).thinks());
        assert!(!Dialect::find("", |word| word == "<think>").thinks());
        assert!(Dialect::find("", |word| word.contains("think>")).thinks());
        let dialect = Dialect::find("{{ content.split('</think>')[-1] }}", |_| false);
        assert!(dialect.thinks());
        assert!(dialect.begins_thinking("<|assistant|>\n<think>\n"));
        assert!(!dialect.begins_thinking("<|assistant|>\n<think>\n\n</think>\n\n"));
        assert!(!dialect.begins_thinking("<|assistant|>\n"));
    }
}
