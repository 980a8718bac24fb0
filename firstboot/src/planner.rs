//! The planner's figures as a page, to look at while choosing or waiting: every number with how it
//! was worked out and how far to trust it.

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use polder_control::Machine;
use polder_page::{Choice, Field, Tone, banner, card, count, field, select, table};
use polder_planner::{
    Assumptions, Cost, DecodeRow, Estimate, Fit, Memory, PlanRequest, Quantity, Span, plan,
};
use polder_recipes::{BoxSpec, DEFAULT_RECIPE, Label, Recipe};
use polder_site::RecipeName;
use serde::Deserialize;

use crate::catalogue;
use crate::host::Host;
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, refuse};

/// Stands for the machine that the page is served by, as our engine uses it today.
const TODAY: &str = "this-processor";
/// The same with its graphics processor.
const WHOLE: &str = "this-machine";
/// A collective as the planner's page first assumes it.
const USUAL_MEMBERS: &str = "15";

#[derive(Deserialize)]
pub(crate) struct Question {
    #[serde(default)]
    model: String,
    #[serde(default)]
    members: String,
    #[serde(default, rename = "box")]
    spec: String,
}

/// The page.
pub(crate) async fn show<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Query(mut question): Query<Question>,
) -> Response {
    let machine = match setup.host().machine().await {
        Ok(machine) => machine,
        Err(error) => return refuse(error),
    };
    let or =
        |given: &str, usual: &str| if given.is_empty() { usual.to_owned() } else { given.into() };
    let chosen = who.wizard.recipe().map_or(DEFAULT_RECIPE, RecipeName::as_str);
    question.model = or(&question.model, chosen);
    question.members = or(&question.members, USUAL_MEMBERS);
    question.spec = or(&question.spec, TODAY);
    let result = match answer(&question, &machine) {
        Ok(estimate) => figures(&estimate),
        Err(why) => page::error(&why),
    };
    let body = html! {
        p { "What a box and a model would be for your collective. Nothing is changed by looking." }
        (form(&question, !machine.gpus.is_empty()))
        (result)
        p { a .button href="/setup" { "Back to the set-up" } }
    };
    Page::titled("The planner").wide().body(body).into_response()
}

fn answer(question: &Question, machine: &Machine) -> Result<Estimate, String> {
    let members: u32 = question.members.trim().parse().map_err(|_| {
        format!("the number of members has to be from 1 to {}", PlanRequest::MOST_MEMBERS)
    })?;
    let recipe = Recipe::find(&question.model).map_err(|error| error.to_string())?;
    let spec = match question.spec.as_str() {
        TODAY => catalogue::as_box_today(machine),
        WHOLE => catalogue::as_box(machine),
        name => BoxSpec::find(name).map_err(|error| error.to_string())?.clone(),
    };
    plan(&spec, recipe, members, &Assumptions::for_box(&spec)).map_err(|error| error.to_string())
}

fn form(question: &Question, has_gpu: bool) -> Markup {
    let models: Vec<_> = (Recipe::builtin().iter())
        .map(|recipe| Choice { value: &recipe.name, label: &recipe.title })
        .collect();
    let known = BoxSpec::builtin().iter().filter(|spec| !spec.is_cpu());
    let whole = Choice { value: WHOLE, label: "This machine, with its graphics processor" };
    let boxes: Vec<_> =
        std::iter::once(Choice { value: TODAY, label: "This machine, on its processor" })
            .chain(has_gpu.then_some(whole))
            .chain(known.map(|spec| Choice { value: &spec.name, label: in_short(&spec.title) }))
            .collect();
    let members = Field {
        name: "members",
        label: "Members",
        kind: "number",
        value: &question.members,
        required: true,
        ..Field::default()
    };
    html! {
        form .card method="get" action="/setup/planner" {
            div .fields {
                (select("model", "Model", "", &models, &question.model))
                (select("box", "Box", "", &boxes, &question.spec))
                (field(&members))
            }
            button type="submit" { "Work it out" }
        }
    }
}

/// A machine as one of a list; its title is worded for the middle of a sentence.
fn in_short(title: &str) -> &str {
    title.strip_prefix("a machine with one ").unwrap_or(title)
}

fn figures(estimate: &Estimate) -> Markup {
    let (tone, answer) = match estimate.verdict.fit {
        Fit::Fits => (Tone::Good, "It fits."),
        Fit::FitsTightly => (Tone::Warn, "It fits, but tightly."),
        Fit::FitsWithSlowExperts => (Tone::Warn, "It fits, but slowly."),
        Fit::DoesNotFit => (Tone::Bad, "It does not fit."),
    };
    let title = format!("{} on {}", estimate.model_title, estimate.box_title);
    html! {
        (card(&title, html! {
            (banner(tone, html! { p { strong { (answer) } " " (estimate.verdict.why) } }))
            @if !estimate.in_short.is_empty() {
                ul { @for line in &estimate.in_short { li { (line) } } }
            }
        }))
        (card("Memory", numbers("Memory", &memory(&estimate.memory, estimate))))
        @if !estimate.sessions.is_empty() && estimate.verdict.fit != Fit::DoesNotFit {
            (card("How many conversations stay in memory", sessions(estimate)))
        }
        @if !estimate.steps.is_empty() { (card("What is read for each step", steps(estimate))) }
        @if !estimate.decode.is_empty() { (card("How fast an answer is written", decode(&estimate.decode))) }
        @if !estimate.prefill.is_empty() { (card("How fast a new prompt is read", prefill(estimate))) }
        (card("What it costs (Australian dollars)", numbers("Cost", &cost(&estimate.cost))))
        @if !estimate.notes.is_empty() {
            (card("Where the published guide differs", html! {
                ul { @for note in &estimate.notes {
                    li { "It says: " (note.guide) " Here: " (worked_out(note.here.clone(), &note.formula, note.label)) }
                } }
            }))
        }
        details {
            summary { "Taken for granted" }
            ul { @for line in estimate.assumed.iter().chain(&estimate.remarks) { li { (line) } } }
            p {
                "Computed: by the formula shown. Vendor: the maker says so. Measured: someone measured it. "
                "Estimate: a guess to plan with."
            }
        }
    }
}

/// A number's name, itself, its formula and how it is known.
struct Row {
    name: &'static str,
    value: String,
    formula: String,
    label: Label,
}

impl Row {
    fn of(name: &'static str, q: &Quantity) -> Self {
        Self { name, value: q.to_string(), formula: q.formula.clone(), label: q.label }
    }
    fn between(name: &'static str, s: &Span) -> Self {
        Self { name, value: s.to_string(), formula: s.formula.clone(), label: s.label }
    }
}

fn numbers(caption: &str, rows: &[Row]) -> Markup {
    let rows: Vec<Vec<Markup>> = rows
        .iter()
        .map(|row| {
            vec![
                html! { (row.name) },
                html! { (row.value) },
                html! { span .small { (row.formula) } },
                html! { span .soft { (row.label.as_str()) } },
            ]
        })
        .collect();
    table(caption, &["What", "How much", "Worked out", "Known"], &rows)
}

fn memory(memory: &Memory, estimate: &Estimate) -> Vec<Row> {
    let rows = [
        Some(Row::of("Fast memory", &memory.fast)),
        Some(Row::of("Of which we use", &memory.usable)),
        Some(Row::of("The model's weights", &memory.weights)),
        memory.weights_in_slow.as_ref().map(|q| Row::of("Of which in slow memory", q)),
        Some(Row::of("Working space", &memory.workspace)),
        Some(Row::of("Left for conversations", &memory.conversations)),
        memory.slow.as_ref().map(|q| Row::of("Slow memory", q)),
        memory.waiting.as_ref().map(|q| Row::of("Of which for those waiting", q)),
        Some(Row::of("One token, in 16 bits", &estimate.kv.bits16)),
        Some(Row::of("One token, in 8 bits", &estimate.kv.bits8)),
        Some(Row::of("And per conversation", &estimate.kv.per_conversation))
            .filter(|_| estimate.kv.per_conversation.value > 0.0),
    ];
    rows.into_iter().flatten().collect()
}

fn cost(cost: &Cost) -> Vec<Row> {
    let span = |name, s: &Option<Span>| s.as_ref().map(|s| Row::between(name, s));
    let rows = [
        span("The machine", &cost.purchase),
        span("Setting it up", &cost.installation),
        cost.purchase.as_ref().map(|_| Row::between("Trying models out, once", &cost.audition)),
        cost.purchase.as_ref().map(|_| Row::between("Tuning a model, once", &cost.tuning)),
        span("All of that, once", &cost.one_time),
        span("Its share, each month", &cost.amortisation),
        cost.electricity.as_ref().map(|q| Row::of("Electricity, each month", q)),
        Some(Row::between("Internet, each month", &cost.network))
            .filter(|_| cost.network.high > 0.0),
        span("All of that, each month", &cost.monthly),
        span("For each member, each month", &cost.per_member),
        span("A support contract, for each", &cost.support_per_member),
    ];
    rows.into_iter().flatten().collect()
}

fn sessions(estimate: &Estimate) -> Markup {
    let rows: Vec<Vec<Markup>> = estimate
        .sessions
        .iter()
        .map(|row| {
            vec![
                length(row.tokens, row.beyond_context),
                quantity(&row.each),
                quantity(&row.ready),
                row.waiting.as_ref().map_or_else(|| html! { "not known" }, quantity),
                row.bring_back.as_ref().map_or_else(|| html! { "-" }, quantity),
            ]
        })
        .collect();
    let head = ["Tokens in each", "Takes", "Stay ready", "More can wait", "Back in"];
    table("How many conversations stay in memory", &head, &rows)
}

fn steps(estimate: &Estimate) -> Markup {
    let rows: Vec<Vec<Markup>> = estimate
        .steps
        .iter()
        .map(|row| {
            vec![
                html! { (row.together) },
                row.distinct_experts.as_ref().map_or_else(|| html! { "-" }, quantity),
                quantity(&row.weights_read),
                quantity(&row.time),
            ]
        })
        .collect();
    let head = ["Answered at once", "Experts in a layer", "Weights read", "At least"];
    table("What is read for each step", &head, &rows)
}

fn decode(rows: &[DecodeRow]) -> Markup {
    let rows: Vec<Vec<Markup>> = rows
        .iter()
        .map(|row| {
            let likely = &row.likely;
            vec![
                html! { (row.together) },
                length(row.context, row.beyond_context),
                html! {
                    div {
                        (quantity(&row.ceiling))
                        @if !row.all_ready {
                            div .small { "They do not all stay in fast memory: they take turns." }
                        }
                    }
                },
                worked_out(likely.to_string(), &likely.formula, likely.label),
                quantity(&row.read),
            ]
        })
        .collect();
    let head =
        ["Answered at once", "Tokens so far", "Tokens a second each, at most", "Likely", "Read"];
    table("How fast an answer is written", &head, &rows)
}

fn prefill(estimate: &Estimate) -> Markup {
    let rows: Vec<Vec<Markup>> = estimate
        .prefill
        .iter()
        .map(|row| {
            vec![
                length(row.tokens, row.beyond_context),
                quantity(&row.work),
                quantity(&row.speed),
                quantity(&row.wait),
            ]
        })
        .collect();
    table(
        "How fast a new prompt is read",
        &["Tokens in it", "Work a token", "Tokens a second", "Answer begins after"],
        &rows,
    )
}

fn length(tokens: u32, beyond: bool) -> Markup {
    html! {
        div {
            (count(tokens.into()))
            @if beyond { div .small.soft { "longer than the model was made for" } }
        }
    }
}

/// A number in a table: itself, and below it how it was worked out.
fn quantity(q: &Quantity) -> Markup {
    worked_out(q.to_string(), &q.formula, q.label)
}

fn worked_out(value: String, formula: &str, label: Label) -> Markup {
    html! { div { (value) div .small.soft { (formula) " (" (label.as_str()) ")" } } }
}
