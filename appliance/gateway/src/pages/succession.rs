//! Change the model: another one is tried by a few, its time is announced to all, one name is switched, and one press brings the
//! former model back; for stewards, and what everybody is told of it.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use polder_control::{Plan, Reply, Request};
use polder_members::{Member, MemberId};
use polder_page::{
    Choice, Field, Page, StepMark, Tone, badge, banner, facts, field, hidden, select, steps, tick,
    when,
};
use polder_recipes::Recipe;
use polder_site::{
    EngineName, EngineSlot, ModelAlias, Site, SiteChange, Stage, Succession, SuccessionStep,
    TrialHours,
};

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, now, sentence, with_status};
use crate::pages::models::title;
use crate::pages::who::{SignedIn, Steward};

/// Most hours from now on that something is announced for.
const FARTHEST: f64 = 60.0 * 24.0;

/// A form, in the order of its fields: one of them is there once for each member who is ticked.
type Fields = Vec<(String, String)>;

fn value<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.trim())
}

fn testers(fields: &Fields) -> Vec<MemberId> {
    let ids = fields.iter().filter(|(key, _)| key == "tester");
    ids.filter_map(|(_, id)| id.parse().ok().map(MemberId)).collect()
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    page(&gateway, &who, html! {}, &Fields::new()).await
}

/// Shows what a step would do; when that was seen, does it.
pub(super) async fn step(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let site = gateway.status().site.clone();
    let step = match read(&site, &fields, Timestamp::now()) {
        Ok(step) => step,
        Err(why) => return wrong(&gateway, &who, &why, &fields).await,
    };
    let change = SiteChange::Succession(step.clone());
    if value(&fields, "seen").is_empty() {
        return match gateway.ask(Request::Preview(change)).await {
            Ok(Reply::Preview { plan, .. }) => {
                Ok(about_to(&gateway, &who, &plan, &step, &site, &fields))
            }
            Ok(_) => Err(Trouble::odd_answer()),
            Err(why) => wrong(&gateway, &who, &why.to_string(), &fields).await,
        };
    }
    if matches!(step, SuccessionStep::Begin { .. }) {
        choose(&gateway, &who, testers(&fields)).await?;
    }
    match gateway.ask(Request::Apply { change, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => wrong(&gateway, &who, &why.to_string(), &fields).await,
    }
}

/// Other members try the model that is on trial.
pub(super) async fn testing(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    choose(&gateway, &who, testers(&fields)).await?;
    Ok(Redirect::to("/models/change").into_response())
}

async fn choose(gateway: &Gateway, who: &SignedIn, chosen: Vec<MemberId>) -> Result<(), Trouble> {
    let names = gateway
        .members
        .ask(move |members| {
            members.choose_for_trial(&chosen)?;
            let all = members.members()?.into_iter().filter(|m| chosen.contains(&m.id));
            Ok::<_, polder_members::MembersError>(all.map(|m| m.name).collect::<Vec<_>>())
        })
        .await?;
    let on = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    who.record(gateway, "chose for the trial of a model:", &on).await;
    Ok(())
}

/// A member has the model on trial under the usual name too, or no more.
pub(super) async fn under_alias(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let (member, wanted) = (who.member.id, value(&fields, "under_alias") == "yes");
    gateway.members.ask(move |members| members.try_under_alias(member, wanted)).await?;
    Ok(Redirect::to("/").into_response())
}

/// What a form asks for.
fn read(site: &Site, fields: &Fields, now: Timestamp) -> Result<SuccessionStep, String> {
    use SuccessionStep as S;
    Ok(match value(fields, "step") {
        "begin" => begin(site, fields, now)?,
        "announce" => S::Announce { at: moment(fields, "hours", now)? },
        "withdraw" => S::Withdraw,
        "switch" => S::Switch,
        "return" => S::Return,
        "let-go" => S::LetGo,
        "call-off" => S::CallOff,
        _ => return Err("the form says nothing that the box could do; open the page anew".into()),
    })
}

fn begin(site: &Site, fields: &Fields, now: Timestamp) -> Result<SuccessionStep, String> {
    let from: EngineName =
        value(fields, "from").parse().map_err(|e: polder_site::NameError| e.to_string())?;
    if !site.engines.contains_key(&from) {
        return Err(format!("there is no engine {from} whose model could be replaced"));
    }
    let alias: ModelAlias =
        value(fields, "alias").parse().map_err(|e: polder_site::NameError| e.to_string())?;
    let recipe = Recipe::find(value(fields, "recipe")).map_err(|e| e.to_string())?;
    if let Some(lacks) = recipe.engine_lacks() {
        return Err(lacks);
    }
    let name = recipe.name.parse().map_err(|e: polder_site::NameError| e.to_string())?;
    let memory = match value(fields, "memory") {
        "" => None,
        typed => Some(typed.parse().map_err(|e: polder_site::BudgetError| e.to_string())?),
    };
    let slot = EngineSlot { memory, ..EngineSlot::serving(name) };
    let beside = value(fields, "how") != "hours";
    let hours = match beside {
        true => Vec::new(),
        false => {
            let first = moment(fields, "trial_in", now)?;
            let long = number(fields, "trial_for", 0.01, 24.0)?;
            let until = first.checked_add(hours_long(long)).map_err(|e| e.to_string())?;
            vec![TrialHours { from: first, until }]
        }
    };
    Ok(SuccessionStep::Begin { alias, from, slot, beside, hours })
}

/// So many hours from now; the same when a form that was seen comes back a little later.
fn moment(fields: &Fields, name: &str, now: Timestamp) -> Result<Timestamp, String> {
    let fixed = value(fields, &format!("{name}_at"));
    if !fixed.is_empty() {
        return fixed
            .parse()
            .map_err(|_| "the form's time cannot be read; open the page anew".into());
    }
    let hours = number(fields, name, 0.0, FARTHEST)?;
    let at = now.checked_add(hours_long(hours)).map_err(|e| e.to_string())?;
    Timestamp::from_second(at.as_second()).map_err(|e| e.to_string())
}

fn hours_long(hours: f64) -> SignedDuration {
    SignedDuration::from_secs((hours * 3600.0) as i64)
}

fn number(fields: &Fields, name: &str, least: f64, most: f64) -> Result<f64, String> {
    let typed = value(fields, name);
    let number: Option<f64> = typed.replace(',', ".").parse().ok();
    number.filter(|n| (least..=most).contains(n)).ok_or_else(|| {
        format!(
            "{typed:?} is no number of hours from {least} to {most}; write one, such as 24 or 0.5"
        )
    })
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    why: &str,
    fields: &Fields,
) -> Result<Response, Trouble> {
    let top = banner(
        Tone::Bad,
        html! {
            p { (sentence(why)) }
            @if why.contains("memory") { p { "If both do not fit beside each other, let the new one be tried in the place of the old one at certain hours, below." } }
        },
    );
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, fields).await?))
}

/// The steps, to be agreed to.
fn about_to(
    gateway: &Gateway,
    who: &SignedIn,
    plan: &Plan,
    step: &SuccessionStep,
    site: &Site,
    fields: &Fields,
) -> Response {
    let fixed: Vec<(&str, String)> = match step {
        SuccessionStep::Announce { at } => vec![("hours_at", at.to_string())],
        SuccessionStep::Begin { hours, .. } => {
            hours.iter().map(|h| ("trial_in_at", h.from.to_string())).collect()
        }
        _ => Vec::new(),
    };
    let body = html! {
        section.card {
            h2 { (plan.title) }
            @if plan.steps.is_empty() { p { "Nothing has to be done for that." } }
            @else {
                p.soft { "This is what will happen:" }
                (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>()))
            }
            @for line in meaning(step, site) { p { (line) } }
            form.row method="post" action="/models/change" {
                @for (name, value) in fields.iter().filter(|(name, _)| name != "seen") { (hidden(name, value)) }
                @for (name, value) in &fixed { (hidden(name, value)) }
                (hidden("seen", "yes"))
                button type="submit" { "Do it" }
                a.button.quiet href="/models/change" { "Back" }
            }
        }
    };
    let page = Page { title: "Change the model", narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/models/change"), body)
}

/// What a step means for members and their conversations, said plainly.
fn meaning(step: &SuccessionStep, site: &Site) -> Vec<&'static str> {
    use SuccessionStep as S;
    let beside = match step {
        S::Begin { beside, .. } => *beside,
        _ => site.succession.as_ref().is_some_and(|s| s.beside),
    };
    let pause = match beside {
        true => {
            "Both models run, so nobody waits: answers under way are finished by the model that began them."
        }
        false => {
            "Only one of the two fits, so the old one finishes its answers and stops before the new one is loaded. Meanwhile questions wait for half a minute, and are then asked to come back."
        }
    };
    let read_again = "What the old model has read of conversations is of no use to the new one: the first question in each is read from its beginning, which takes longer once. The words are where they were, with the members.";
    match step {
        S::Begin { beside: true, .. } => vec![
            "The old model serves everybody as before. If the engines have no memory budgets of their own, it is started again once, with less memory: the steps above say so.",
            "Only the members whom you ticked reach the new one, by its own name. Each of them can have it under the usual name too, on their first page.",
        ],
        S::Begin { .. } => vec![
            "In those hours the old model is away, for everybody: members are told so, with when it is back. Only those whom you ticked reach the new one.",
            "What either model has read of conversations is erased whenever it makes room.",
        ],
        S::Announce { .. } => vec![
            "All members see it on their first page, on the page Status and in the chat. Stewards are told as of everything else.",
            pause,
            read_again,
        ],
        S::Switch => vec![pause, read_again],
        S::Return => vec![
            pause,
            "The former model has what it had read where it went on running; otherwise it reads each conversation once more.",
        ],
        S::LetGo => vec![
            "Its files stay on the disk. What it has read of conversations is erased, keys first. After that there is no way back with one press.",
        ],
        S::CallOff => vec![
            "The new model stops, and what it has read of conversations is erased, keys first. Its files stay on the disk.",
        ],
        S::Withdraw | S::HoursBegin { .. } | S::HoursEnd { .. } => Vec::new(),
    }
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    fields: &Fields,
) -> Result<Response, Trouble> {
    let site = gateway.status().site.clone();
    let members = gateway.members.ask(|members| members.members()).await?;
    let chosen = gateway.members.all_trying();
    let body = html! {
        (top)
        @match &site.succession {
            Some(under_way) => {
                (how_far(gateway, &site, under_way))
                @if under_way.stage != Stage::Switched { (who_tries(&members, &chosen)) }
            },
            None if site.engines.is_empty() => p { "This box serves no model yet. " a href="/models" { "Choose one" } " first." },
            None => (begin_form(&site, &members, fields)),
        }
        (names(&site))
        p { a href="/models" { "To the models" } }
    };
    let page = Page {
        title: "Change the model",
        lead: Some(
            "Another model is tried by a few, everybody hears when it comes, and one press brings the former one back. Programs keep the name that they use.",
        ),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/models/change"), body))
}

fn begin_form(site: &Site, members: &[Member], fields: &Fields) -> Markup {
    let or = |name: &str, usual: &str| match value(fields, name) {
        "" => usual.to_owned(),
        typed => typed.to_owned(),
    };
    let engines: Vec<(String, String)> = site
        .engines
        .iter()
        .map(|(name, slot)| (name.to_string(), format!("{} ({name})", title(&slot.recipe))))
        .collect();
    let engines: Vec<Choice<'_>> =
        engines.iter().map(|(value, label)| Choice { value, label }).collect();
    let first = engines.first().map_or("", |choice| choice.value);
    let usual_alias = match site.aliases.iter().next() {
        Some((alias, _)) => alias.to_string(),
        None => first.to_owned(),
    };
    let can: Vec<Choice<'_>> = Recipe::builtin()
        .iter()
        .filter(|recipe| recipe.engine_lacks().is_none())
        .map(|recipe| Choice { value: &recipe.name, label: &recipe.title })
        .collect();
    let how = [
        Choice { value: "beside", label: "beside the old one: both run" },
        Choice { value: "hours", label: "in its place, at certain hours: only one fits" },
    ];
    let chosen = testers(fields);
    html! {
        form.stack method="post" action="/models/change" {
            (hidden("step", "begin"))
            section.card {
                h2 { "Which model, in the place of which" }
                div.fields {
                    (select("recipe", "The new model", "", &can, &or("recipe", "")))
                    (select("from", "In the place of", "", &engines, &or("from", first)))
                }
                (field(&Field { name: "alias", label: "The name that members' programs use",
                    hint: "It stays the same. The old model has it until you switch; members write it where their program asks for a model.",
                    value: &or("alias", &usual_alias), required: true, ..Field::default() }))
                (field(&Field { name: "memory", label: "Memory for the new model", hint: "Such as 24 GiB or 40 %. Empty: an equal part of what is left.",
                    value: &or("memory", ""), ..Field::default() }))
            }
            section.card {
                h2 { "The trial" }
                (select("how", "It runs", "", &how, &or("how", "beside")))
                div.fields {
                    (field(&Field { name: "trial_in", label: "At certain hours: it begins in so many hours", value: &or("trial_in", "24"), ..Field::default() }))
                    (field(&Field { name: "trial_for", label: "and lasts so many hours", value: &or("trial_for", "2"), ..Field::default() }))
                }
                (boxes(members, &chosen))
            }
            button type="submit" { "Show the steps" }
        }
    }
}

/// A box to tick for each member.
fn boxes(members: &[Member], chosen: &[MemberId]) -> Markup {
    html! {
        fieldset {
            legend { "Who tries it" }
            @for member in members.iter().filter(|member| !member.disabled) {
                @let id = format!("tester-{}", member.id);
                div.field.tick {
                    input id=(id) name="tester" type="checkbox" value=(member.id.0) checked[chosen.contains(&member.id)];
                    label for=(id) { (member.name) }
                }
            }
        }
    }
}

fn who_tries(members: &[Member], chosen: &[MemberId]) -> Markup {
    html! {
        section.card {
            h2 { "Who tries it" }
            form.stack method="post" action="/models/change/testers" {
                (boxes(members, chosen))
                button.quiet type="submit" { "Let these try it, and nobody else" }
            }
        }
    }
}

/// The two models of a change: what people call them.
fn titles(site: &Site, under_way: &Succession) -> (String, String) {
    let of = |slot: &EngineName| {
        let slot = site.engines.get(slot).or(under_way.parked.as_ref());
        slot.map_or_else(|| "a model".to_owned(), |slot| title(&slot.recipe))
    };
    (of(&under_way.from), of(&under_way.to))
}

fn how_far(gateway: &Gateway, site: &Site, under_way: &Succession) -> Markup {
    let (old, new) = titles(site, under_way);
    let runs = |slot: &EngineName| match site.engines.contains_key(slot) {
        true => "runs",
        false => "does not run now",
    };
    let word = match under_way.stage {
        Stage::Trial => "on trial",
        Stage::Announced => "announced",
        Stage::Switched => "switched",
    };
    let failed = gateway.status().engines.iter().any(|engine| {
        engine.name == under_way.to
            && matches!(engine.part.state, polder_control::PartState::GaveUp(_))
    });
    html! {
        section.card {
            div.row.spread { h2 { (old) " → " (new) } (badge(Tone::Warn, word)) }
            @if failed { (banner(Tone::Bad, html! { p { "The new model does not start; the dashboard says why." } })) }
            (facts(&[
                ("Name that is switched", html! { code { (under_way.alias) } " leads to " @if under_way.stage == Stage::Switched { (new) } @else { (old) } }),
                ("Old model", html! { (old) ", slot " code { (under_way.from) } ", " (runs(&under_way.from)) }),
                ("New model", html! { (new) ", slot " code { (under_way.to) } ", " (runs(&under_way.to)) }),
                ("Trial", html! { @if under_way.beside { "both run beside each other" } @else if under_way.hours.is_empty() { "no hours are announced" }
                    @else { @for h in &under_way.hours { div { (when(h.from.as_second(), now())) " until " (h.until.strftime("%H:%M UTC").to_string()) } } } }),
                ("Switch", html! { @match under_way.at { Some(at) => { (when(at.as_second(), now())) ", at " (at.strftime("%-d %b %H:%M UTC").to_string()) }, None => "not announced" } }),
            ]))
            @match under_way.stage {
                Stage::Trial | Stage::Announced => {
                    form.row method="post" action="/models/change" {
                        (hidden("step", "announce"))
                        (field(&Field { name: "hours", label: "Announce it for so many hours from now", value: "24", ..Field::default() }))
                        button type="submit" { "Announce" }
                    }
                    div.row {
                        @if under_way.stage == Stage::Announced { (press("withdraw", "Take the announcement back")) }
                        (press("switch", "Switch now"))
                        (press("call-off", "Call the change off"))
                    }
                },
                Stage::Switched => div.row {
                    (press("return", "Return to the former model"))
                    (press("let-go", "Let the former model go"))
                },
            }
        }
    }
}

fn press(step: &str, label: &str) -> Markup {
    html! {
        form method="post" action="/models/change" { (hidden("step", step)) button.quiet type="submit" { (label) } }
    }
}

/// The names that lead to models, and another one.
fn names(site: &Site) -> Markup {
    let engines: Vec<String> = site.engines.keys().map(ToString::to_string).collect();
    let engines: Vec<Choice<'_>> =
        engines.iter().map(|name| Choice { value: name, label: name }).collect();
    html! {
        section.card {
            h2 { "Names that members' programs use" }
            @if site.aliases.is_empty() { p.soft { "None yet. Every model is known by its own name and by its slot's." } }
            @for (alias, slot) in &site.aliases {
                div.row.spread {
                    span { code { (alias) } " leads to the slot " code { (slot) } }
                    form method="post" action="/models/names/remove" { (hidden("alias", alias.as_str())) button.quiet type="submit" aria-label=(format!("Remove the name {alias}")) { "Remove" } }
                }
            }
            @if !engines.is_empty() {
                form.stack method="post" action="/models/names" {
                    div.fields {
                        (field(&Field { name: "called", label: "Name", value: "", ..Field::default() }))
                        (select("to", "Leads to the slot", "", &engines, ""))
                    }
                    button.quiet type="submit" { "Keep the name" }
                }
            }
        }
    }
}

/// Has a name lead to a slot.
pub(super) async fn name(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let bad = |e: polder_site::NameError| Trouble::Say(StatusCode::BAD_REQUEST, e.to_string());
    let name = value(&fields, "called").parse().map_err(bad)?;
    let to = value(&fields, "to").parse().map_err(bad)?;
    super::apps::change_site(&gateway, &who, SiteChange::Alias { name, to }).await?;
    Ok(Redirect::to("/models/change").into_response())
}

/// Has a name lead nowhere.
pub(super) async fn remove_name(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let bad = |e: polder_site::NameError| Trouble::Say(StatusCode::BAD_REQUEST, e.to_string());
    let name = value(&fields, "alias").parse().map_err(bad)?;
    super::apps::change_site(&gateway, &who, SiteChange::RemoveAlias(name)).await?;
    Ok(Redirect::to("/models/change").into_response())
}

/// What every member is told of a change that is announced, and of hours in which their model is away.
pub(super) fn told(gateway: &Gateway, member: &Member) -> Markup {
    let status = gateway.status();
    let Some(under_way) = &status.site.succession else { return html! {} };
    let (old, new) = titles(&status.site, under_way);
    let away = under_way.parked_name(&status.site) == Some(&under_way.from)
        && under_way.stage != Stage::Switched;
    html! {
        @if let Some(at) = under_way.at {
            (banner(Tone::Warn, html! {
                p { strong { (old) " makes room for " (new) " " (when(at.as_second(), now())) } " (" (at.strftime("%-d %B, %H:%M UTC").to_string()) "). Your programs go on under the name " code { (under_way.alias) } "." }
                @if under_way.beside { p { "Nobody has to wait for it. The first question in each conversation takes longer once." } }
                @else { p { "Answers under way are finished. Then questions wait, or are asked to come back, until the new model is loaded." } }
                @if member.is_steward() { a href="/models/change" { "Change the model" } }
            }))
        }
        @if away {
            (banner(Tone::Warn, html! { p { (old) " is away: " (new) " is tried in its place"
                @if let Some(until) = under_way.hours_until(Timestamp::now()) { ", until " (until.strftime("%H:%M UTC").to_string()) } "." } }))
        } @else if let Some(next) = under_way.hours.iter().find(|h| h.from > Timestamp::now()) {
            (banner(Tone::Plain, html! { p { (old) " is away " (when(next.from.as_second(), now())) " (" (next.from.strftime("%-d %B, %H:%M").to_string()) " to " (next.until.strftime("%H:%M UTC").to_string()) "), while " (new) " is tried in its place." } }))
        }
    }
}

/// What a member is told who was chosen to try a model.
pub(super) fn trial(gateway: &Gateway, member: &Member) -> Markup {
    let status = gateway.status();
    let (Some(under_way), Some(trying)) =
        (&status.site.succession, gateway.members.trying(member.id))
    else {
        return html! {};
    };
    if under_way.on_trial().is_none() {
        return html! {};
    }
    let (_, new) = titles(&status.site, under_way);
    let named = crate::naming::names(&status, Some(trying));
    let name = named
        .iter()
        .find(|(name, engine)| engine.name == under_way.to && *name != under_way.alias.as_str());
    html! {
        section.card {
            h2 { "You try " (new) }
            @match name {
                Some((name, _)) => p { "Your keys reach it under the name " code { (name) } ", and so does your chat." },
                None => p { "It runs at the hours above, and your keys reach it then." },
            }
            form.stack method="post" action="/trial" {
                (tick("under_alias", &format!("Let me have it under the usual name {} too", under_way.alias), "Your programs then ask the new model without a change of theirs. Everybody else has the old one.", trying.under_alias))
                button.quiet type="submit" { "Save" }
            }
        }
    }
}

/// On the page of models.
pub(super) fn card(site: &Site) -> Markup {
    html! {
        section.card {
            div.row.spread {
                h2 { "Change the model" }
                @if site.succession.is_some() { (badge(Tone::Warn, "under way")) }
            }
            p { "Try another model with a few members first, announce when it comes, and keep the way back." }
            a.button.quiet href="/models/change" { "Change the model" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_time_is_so_many_hours_from_now_and_stays_what_was_seen() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let site = Site::unclaimed(8443);
        let at = |pairs: &[(&str, &str)]| match read(&site, &fields(pairs), now) {
            Ok(SuccessionStep::Announce { at }) => Ok(at.as_second() - 1_000_000),
            Ok(_) => panic!(),
            Err(why) => Err(why),
        };
        assert_eq!(at(&[("step", "announce"), ("hours", "0,5")]), Ok(1800));
        let seen = [("step", "announce"), ("hours", "24"), ("hours_at", "1970-01-12T13:46:41Z")];
        assert_eq!(at(&seen), Ok(1));
        for bad in ["", "-1", "nan", "1e9", "tomorrow"] {
            let why = at(&[("step", "announce"), ("hours", bad)]).unwrap_err();
            assert!(why.contains("no number of hours"), "{bad}: {why}");
        }
    }
}
