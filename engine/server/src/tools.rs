//! Which tools a request offers to the model, whether the model can call them, how its replies are read,
//! and what they may be.

use std::sync::Arc;

use polder_backend::TokenId;
use polder_chat::reply::{Beside, Dialect, NoGrammar, ReplyRules, ThoughtsFirst, Tools};
use polder_grammar::GrammarSpec;
use serde_json::Value;

use crate::app::Engine;
use crate::reply::ReplyForm;
use crate::wire::error::ApiError;
use crate::wire::format::{Format, cannot_be_honoured};
use crate::wire::knobs::Knobs;
use crate::wire::tools::{ToolChoice, ToolUse};

/// The tools that the model may call; None where there are none.
pub(crate) fn offered(dialect: &Dialect, wanted: &ToolUse) -> Result<Option<Arc<Tools>>, ApiError> {
    if wanted.tools.is_empty() {
        return Ok(None);
    }
    if dialect.calls().is_none() {
        return Err(ApiError::bad_field(
            "tools",
            "\"tools\" is not supported by this model: it was not made to call tools, or does so in \
             a form that Polder does not know; send \"tool_choice\": \"none\" or leave them out.",
        )
        .code("unsupported_parameter"));
    }
    let mut tools = wanted.tools.clone();
    for index in &wanted.strict {
        tools[*index]["function"]["strict"] = true.into();
    }
    Ok(Some(Arc::new(Tools::new(&tools))))
}

/// How an endpoint speaks to its caller about what it cannot have.
pub(crate) struct Manners<'a> {
    /// How to ask a model not to think.
    pub(crate) think_not: &'static str,
    /// The caller wants no field ignored.
    pub(crate) strict: bool,
    /// Fields that had no effect.
    pub(crate) ignored: &'a mut Vec<String>,
}

/// How the replies to a prompt are read; None where all of a reply is content. What they must be
/// for the sake of tools is noted as their format.
pub(crate) fn reply_form(
    engine: &Engine,
    prompt: &[TokenId],
    wanted: &ToolUse,
    tools: Option<Arc<Tools>>,
    knobs: &mut Knobs,
    manners: Manners<'_>,
) -> Result<Option<ReplyForm>, ApiError> {
    let thoughts = thoughts_first(engine, prompt);
    let thinking = thoughts == ThoughtsFirst::Begun;
    let dialect = engine.dialect.clone();
    let Some(tools) = tools else {
        return match &knobs.format {
            // An answer of a certain form is content from its first word on.
            Some(format) if thinking => Err(thinks_first(&format.field, manners.think_not)),
            Some(_) => Ok(None),
            None if !dialect.thinks() => Ok(None),
            None => Ok(Some(ReplyForm { dialect, tools: None, thinking, one_call: false })),
        };
    };
    let one_call = !wanted.parallel || matches!(wanted.choice, ToolChoice::Named(_));
    if let Some(beside) = beside(&dialect, wanted, knobs, manners)? {
        knobs.format = Some(held(&dialect, wanted, &tools, one_call, beside, thoughts, knobs)?);
    }
    Ok(Some(ReplyForm { dialect, tools: Some(tools), thinking, one_call }))
}

/// What may stand beside calls, where that is not left to the model.
fn beside(
    dialect: &Dialect,
    wanted: &ToolUse,
    knobs: &Knobs,
    manners: Manners<'_>,
) -> Result<Option<Beside>, ApiError> {
    match (&wanted.choice, &knobs.format) {
        (ToolChoice::Required | ToolChoice::Named(_), _) => Ok(Some(Beside::Nothing)),
        (ToolChoice::Auto, Some(format)) => {
            let json = matches!(format.spec, GrammarSpec::JsonSchema(_) | GrammarSpec::JsonObject);
            match json && dialect.marks_calls() {
                true => Ok(Some(Beside::Form)),
                false => Err(no_form_beside_tools(&format.field, json)),
            }
        }
        (ToolChoice::Auto, None) if wanted.strict.is_empty() => Ok(None),
        (ToolChoice::Auto, None) if dialect.marks_calls() => Ok(Some(Beside::Text)),
        (ToolChoice::Auto, None) => {
            let field = format!("tools[].{}", wanted.parts.strict);
            if manners.strict {
                let message = format!(
                    "\"{field}\" cannot be honoured with this model, whose calls begin without a \
                     mark; leave it out, or make the model call with \"tool_choice\"."
                );
                return Err(ApiError::bad_field(&field, message).code("unsupported_parameter"));
            }
            manners.ignored.push(field);
            Ok(None)
        }
    }
}

/// What the replies must be.
fn held(
    dialect: &Dialect,
    wanted: &ToolUse,
    tools: &Tools,
    one_call: bool,
    beside: Beside,
    thoughts: ThoughtsFirst,
    knobs: &Knobs,
) -> Result<Format, ApiError> {
    if knobs.ignore_eos {
        let message = "\"ignore_eos\" is not supported here; an answer that must be calls ends with \
                       them, leave it out.";
        return Err(ApiError::bad_field("ignore_eos", message).code("unsupported_parameter"));
    }
    let only = match &wanted.choice {
        ToolChoice::Named(name) => Some(name.as_str()),
        ToolChoice::Auto | ToolChoice::Required => None,
    };
    let schema_field = |index: usize| format!("tools[{index}].{}", wanted.parts.schema);
    let rules = ReplyRules { tools, only, one_call, beside, thoughts };
    let grammar = dialect.grammar(&rules).map_err(|error| match error {
        NoGrammar::Schema { tool, why } => cannot_be_honoured(&schema_field(tool), &why),
        other => cannot_be_honoured("tools", &other),
    })?;
    let form = knobs.format.clone().filter(|_| beside == Beside::Form);
    let schemas = wanted.tools.iter().map(|tool| &tool["function"]["parameters"]);
    let schemas = schemas.enumerate().filter(|(_, schema)| schema.is_object());
    let part = |(index, schema): (usize, &Value)| {
        Format::new(schema_field(index), GrammarSpec::JsonSchema(schema.clone()))
    };
    let made_of = form.iter().cloned().chain(schemas.map(part)).collect();
    let form = form.map(|form| Box::new(form.spec));
    Ok(Format { field: "tools".into(), spec: GrammarSpec::Reply { grammar, form }, made_of })
}

fn no_form_beside_tools(field: &str, json: bool) -> ApiError {
    let why = match json {
        true => "with this model, whose calls begin without a mark",
        false => "unless it asks for JSON",
    };
    let message =
        format!("\"{field}\" cannot be honoured beside \"tools\" {why}; send one of them.");
    ApiError::bad_field(field, message).code("unsupported_parameter")
}

fn thinks_first(field: &str, think_not: &str) -> ApiError {
    let message = format!(
        "\"{field}\" cannot be honoured where the model thinks first; send {think_not} with it."
    );
    ApiError::bad_field(field, message).code("unsupported_parameter")
}

/// Whether replies to this prompt begin with thoughts.
fn thoughts_first(engine: &Engine, prompt: &[TokenId]) -> ThoughtsFirst {
    let end = end(engine, prompt);
    match engine.dialect.begins_thinking(&end) {
        true => ThoughtsFirst::Begun,
        false if !engine.dialect.thinks() || engine.dialect.ends_thinking(&end) => {
            ThoughtsFirst::No
        }
        false => ThoughtsFirst::Perhaps,
    }
}

/// Whether the prompt ends with the mark that begins the model's thoughts.
pub(crate) fn begins_thinking(engine: &Engine, prompt: &[TokenId]) -> bool {
    engine.dialect.begins_thinking(&end(engine, prompt))
}

/// The last words of a prompt, as far as marks of thoughts may reach.
fn end(engine: &Engine, prompt: &[TokenId]) -> String {
    /// Tokens that such a mark and the white space after it may take.
    const MARK: usize = 32;
    engine.tokenizer.decode(&prompt[prompt.len().saturating_sub(MARK)..])
}
