//! How each dialect lays out calls, as the templates write those that were made earlier.

/// Calls as text: `open`, a call, further calls with `between` before each, `close`. A call holds the
/// places [`NAME`] and [`ARGUMENTS`], and [`ID`] where calls have one.
#[derive(Debug)]
pub(in crate::reply) struct Layout {
    pub(super) open: &'static str,
    pub(super) call: &'static str,
    pub(super) between: &'static str,
    pub(super) close: &'static str,
    pub(super) arguments: Notation,
}

/// How arguments are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// As one JSON object.
    Json,
    /// As elements, `<parameter=a>…</parameter>`.
    Elements,
    /// As Python does, `a=1, b="x"`.
    Python,
}

/// Where a call has the tool's name.
pub(super) const NAME: &str = "‹name›";
/// Where it has the arguments.
pub(super) const ARGUMENTS: &str = "‹arguments›";
/// Where it has nine letters and digits.
pub(super) const ID: &str = "‹id›";

impl Layout {
    /// All of it up to the first call's name.
    pub(super) fn beginning(&self) -> String {
        let call = self.call.split(NAME).next().unwrap_or_default();
        format!("{}{call}", self.open)
    }
}

/// Of each dialect those that there are: the first counts whose word is in the template.
pub(in crate::reply) type Layouts = &'static [(&'static str, Layout)];

pub(in crate::reply) const HERMES: Layouts = &[(
    "",
    Layout {
        open: "",
        call: "<tool_call>\n{\"name\": \"‹name›\", \"arguments\": ‹arguments›}\n</tool_call>",
        between: "\n",
        close: "",
        arguments: Notation::Json,
    },
)];

pub(in crate::reply) const QWEN3_CODER: Layouts = &[(
    "",
    Layout {
        open: "",
        call: "<tool_call>\n<function=‹name›>\n‹arguments›</function>\n</tool_call>",
        between: "\n",
        close: "",
        arguments: Notation::Elements,
    },
)];

pub(in crate::reply) const SEED: Layouts = &[(
    "",
    Layout {
        open: "",
        call: "<seed:tool_call>\n<function=‹name›>\n‹arguments›</function>\n</seed:tool_call>",
        between: "\n",
        close: "",
        arguments: Notation::Elements,
    },
)];

pub(in crate::reply) const DEEPSEEK: Layouts = &[
    (
        "```json",
        Layout {
            open: "<｜tool▁calls▁begin｜>",
            call: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>‹name›\n```json\n‹arguments›\n```\
                <｜tool▁call▁end｜>",
            between: "\n",
            close: "<｜tool▁calls▁end｜>",
            arguments: Notation::Json,
        },
    ),
    (
        "",
        Layout {
            open: "<｜tool▁calls▁begin｜>",
            call: "<｜tool▁call▁begin｜>‹name›<｜tool▁sep｜>‹arguments›<｜tool▁call▁end｜>",
            between: "",
            close: "<｜tool▁calls▁end｜>",
            arguments: Notation::Json,
        },
    ),
];

pub(in crate::reply) const MISTRAL: Layouts = &[
    (
        "[CALL_ID]",
        Layout {
            open: "",
            call: "[TOOL_CALLS]‹name›[CALL_ID]‹id›[ARGS]‹arguments›",
            between: "",
            close: "",
            arguments: Notation::Json,
        },
    ),
    (
        "[ARGS]",
        Layout {
            open: "",
            call: "[TOOL_CALLS]‹name›[ARGS]‹arguments›",
            between: "",
            close: "",
            arguments: Notation::Json,
        },
    ),
    (
        "",
        Layout {
            open: "[TOOL_CALLS][",
            call: "{\"name\": \"‹name›\", \"arguments\": ‹arguments›}",
            between: ", ",
            close: "]",
            arguments: Notation::Json,
        },
    ),
];

pub(in crate::reply) const PYTHONIC: Layouts = &[
    (
        "<|tool_call_start|>",
        Layout {
            open: "<|tool_call_start|>[",
            call: "‹name›(‹arguments›)",
            between: ", ",
            close: "]<|tool_call_end|>",
            arguments: Notation::Python,
        },
    ),
    (
        "<|python_start|>",
        Layout {
            open: "<|python_start|>[",
            call: "‹name›(‹arguments›)",
            between: ", ",
            close: "]<|python_end|>",
            arguments: Notation::Python,
        },
    ),
    (
        "",
        Layout {
            open: "[",
            call: "‹name›(‹arguments›)",
            between: ", ",
            close: "]",
            arguments: Notation::Python,
        },
    ),
];

pub(in crate::reply) const LLAMA3_JSON: Layouts = &[(
    "",
    Layout {
        open: "",
        call: "{\"name\": \"‹name›\", \"parameters\": ‹arguments›}",
        between: "; ",
        close: "",
        arguments: Notation::Json,
    },
)];
