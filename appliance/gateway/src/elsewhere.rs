//! Asks servers elsewhere where the box itself cannot answer: as far as members let their questions leave, and within the month's
//! budget. What is asked of whom is chosen by [`polder_upstream::whom_to_ask`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use polder_control::{BoxStatus, EngineStatus, SecretText};
use polder_members::{BudgetUsedUp, MembersError, Reserved, Trying, UsedElsewhere};
use polder_site::{
    EngineName, EngineSlot, RecipeName, Site, UpstreamModel, UpstreamName, UpstreamServer,
};
use polder_upstream::{
    Answered, Asked, Candidate, Ended, Fault, Here, Holder, Leave, Meter, Metered, Price,
    QuestionFault, Secrets, SecretsError, Situation, Usage, Way, WhyNot, Wire, WireBody, answered,
    prompt_estimate, speaks, whom_to_ask,
};

use crate::Gateway;
use crate::engines::{EngineRefusal, is_ready};
use crate::errors::ApiError;
use crate::leash::AnswerBody;
use crate::naming;
use crate::relay::{Begun, Question, Waiting};

/// A server that says nothing for so long in the middle of an answer has broken off.
const IDLE: Duration = Duration::from_secs(120);
/// One that was not reached is tried once more after this.
const AGAIN: Duration = Duration::from_millis(100);
/// A refusal is a sentence: no more of it is read, and no longer.
const LONGEST_REFUSAL: usize = 64 << 10;
const REFUSAL_WITHIN: Duration = Duration::from_secs(10);

/// A model that members of this box can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    /// The name that leads to it: the model's own, a name of the collective's, or a slot's where two serve the same.
    pub(crate) shown: String,
    /// What it is.
    pub(crate) name: RecipeName,
    /// The slot that serves it here, if one does.
    pub(crate) slot: Option<EngineName>,
    /// Who else has it.
    pub(crate) elsewhere: Vec<UpstreamName>,
}

impl Model {
    fn here(status: &BoxStatus, shown: String, engine: &EngineStatus) -> Self {
        let (name, slot) = (engine.recipe.clone(), Some(engine.name.clone()));
        let elsewhere = who_has(status, &name);
        Self { shown, name, slot, elsewhere }
    }

    fn only_elsewhere(status: &BoxStatus, name: &RecipeName) -> Self {
        let elsewhere = who_has(status, name);
        Self { shown: name.to_string(), name: name.clone(), slot: None, elsewhere }
    }
}

fn who_has(status: &BoxStatus, name: &RecipeName) -> Vec<UpstreamName> {
    let servers = status.site.upstreams.iter();
    let have = servers.filter(|(_, server)| server.models.contains_key(name));
    have.map(|(upstream, _)| upstream.clone()).collect()
}

/// Every model that somebody may name: those of the engines first, then those that live only elsewhere.
pub(crate) fn models(status: &BoxStatus, trying: Option<Trying>) -> Vec<Model> {
    let here = naming::names(status, trying).into_iter();
    let mut all: Vec<Model> =
        here.map(|(shown, engine)| Model::here(status, shown, engine)).collect();
    for name in status.site.upstreams.values().flat_map(|server| server.models.keys()) {
        // What an engine here serves, to whomever, is not asked for elsewhere under its name.
        let served = status.engines.iter().any(|engine| engine.recipe == *name);
        // Nor what was put aside here for the hours in which another one is tried.
        let parked = status.site.succession.as_ref().and_then(|now| now.parked.as_ref());
        let parked = parked.is_some_and(|slot| slot.recipe == *name);
        if !served && !parked && !all.iter().any(|model| model.shown == name.as_str()) {
            all.push(Model::only_elsewhere(status, name));
        }
    }
    all
}

/// Does the slot that serves it pass every question on to a server at another machine?
pub(crate) fn lives_on_another_machine(site: &Site, model: &Model) -> bool {
    let slot = model.slot.as_ref().and_then(|slot| site.engines.get(slot));
    slot.is_some_and(is_on_another_machine)
}

/// Why a question that was passed on so often already is not passed on to the server of this model's slot, if so. One elsewhere is asked by the first
/// box alone; one at this very machine by the second too, since it may be no box, but not by a third: then it is this one.
pub(crate) fn goes_no_further(site: &Site, model: &Model, hops: u8) -> Option<ApiError> {
    let slot = model.slot.as_ref().and_then(|slot| site.engines.get(slot))?;
    let served = slot.served.as_ref()?;
    let most = if served.url.is_this_machine() { 1 } else { 0 };
    (hops > most).then(|| {
        passed_on(format!(
            "this box has the model {} from another server, and this question was passed on by another box already; it goes no further, or it might go round for ever",
            model.name
        ))
    })
}

fn passed_on(message: String) -> ApiError {
    ApiError::new(StatusCode::LOOP_DETECTED, "server_error", "passed_on_already", message)
}

/// The same of a slot.
pub(crate) fn is_on_another_machine(slot: &EngineSlot) -> bool {
    slot.served.as_ref().is_some_and(|served| !served.url.is_this_machine())
}

/// The model that a request names: one here first; the only one if none is named.
pub(crate) fn find(
    status: &BoxStatus,
    trying: Option<Trying>,
    asked: Option<&str>,
) -> Result<Model, EngineRefusal> {
    let refusal = match naming::resolve(status, trying, asked, Timestamp::now()) {
        // Also where none is named and others live elsewhere: nothing leaves the house by an oversight.
        Ok(engine) => return Ok(Model::here(status, engine.recipe.to_string(), engine)),
        Err(refusal @ (EngineRefusal::NoEngine | EngineRefusal::UnknownModel { .. })) => refusal,
        Err(refusal) => return Err(refusal),
    };
    let mut all = models(status, trying);
    let have = || all.iter().map(|model| model.shown.as_str()).collect::<Vec<_>>().join(", ");
    match asked {
        None => match all.len() {
            0 => Err(refusal),
            1 => Ok(all.remove(0)),
            _ => Err(EngineRefusal::ModelNeeded { have: have() }),
        },
        Some(asked) => match all.iter().position(|model| model.shown == asked) {
            Some(at) => Ok(all.swap_remove(at)),
            None if all.is_empty() => Err(refusal),
            None => {
                let asked = asked.chars().take(80).collect();
                Err(EngineRefusal::UnknownModel { asked, have: have() })
            }
        },
    }
}

/// Whom this question is put to, in order. `refused`: the box would not begin it.
pub(crate) async fn way(
    gateway: &Gateway,
    status: &BoxStatus,
    model: &Model,
    leave: Leave,
    question: &Question,
    refused: bool,
) -> Way {
    if model.elsewhere.is_empty() {
        return Way { here: true, ..Way::default() };
    }
    let engine = status.engines.iter().find(|engine| Some(&engine.name) == model.slot.as_ref());
    let here = match engine {
        None => Here::Nowhere,
        Some(engine) if !is_ready(&engine.part.state, gateway.supervisor_answers()) => Here::Down,
        Some(_) if refused => Here::Refuses,
        Some(engine) => Here::Ready { waiting: gateway.engines.waiting(&engine.name) },
    };
    // A box that answers by itself looks nothing up in its books.
    let left = match here {
        Here::Ready { .. } => None,
        _ => left(gateway, status, model).await,
    };
    let path = question.path.path();
    let costs: Vec<(u64, Option<String>)> = model
        .elsewhere
        .iter()
        .map(|name| {
            let there = status.site.upstreams.get(name).and_then(|u| u.models.get(&model.name));
            match there.map(|there| Asked::paid(path, &question.body, there)) {
                Some(Ok((_, cost))) => (cost, None),
                Some(Err(QuestionFault::Unpriced(what))) => (0, Some(what)),
                // Whoever is asked says what is wrong with it.
                Some(Err(_)) | None => (0, None),
            }
        })
        .collect();
    let elsewhere: Vec<Candidate<'_>> = model
        .elsewhere
        .iter()
        .enumerate()
        .filter_map(|(at, name)| {
            let upstream = status.site.upstreams.get(name)?;
            let (cost, unpriced) = (costs[at].0, costs[at].1.as_deref());
            let left = left.as_ref().map_or(u64::MAX, |left| left[at]);
            let speaks = speaks(upstream.kind, path);
            Some(Candidate { name, upstream, speaks, unpriced, cost, left })
        })
        .collect();
    whom_to_ask(&Situation { here, leave, elsewhere: &elsewhere })
}

/// What each of them may still cost this month.
async fn left(gateway: &Gateway, status: &BoxStatus, model: &Model) -> Option<Vec<u64>> {
    let budgets: Vec<(UpstreamName, u64)> = model
        .elsewhere
        .iter()
        .map(|name| {
            let budget =
                status.site.upstreams.get(name).map_or(0, |server| server.budget.millionths());
            (name.clone(), budget)
        })
        .collect();
    let looked_up = gateway
        .members
        .ask(move |members| {
            let left = budgets.iter().map(|(name, budget)| {
                let month = members.month_elsewhere(name.as_str())?;
                Ok(budget.saturating_sub(month.spent).saturating_sub(month.reserved))
            });
            left.collect::<Result<Vec<u64>, MembersError>>()
        })
        .await;
    match looked_up {
        Ok(left) => Some(left),
        Err(error) => {
            // Whoever asks then hears of it when the money is to be set aside.
            log::error!("what servers elsewhere cost this month could not be looked up: {error}");
            None
        }
    }
}

/// What came of asking one server.
pub(crate) enum Outcome {
    /// It answers.
    Begun(Response),
    /// It, or the box, refuses the question itself: nobody else is asked.
    Refused(ApiError),
    /// It does not answer; another one may.
    Failed(ApiError),
}

/// Puts a question to one server. Whoever waits is given to the answer when it begins.
pub(crate) async fn ask(
    gateway: &Arc<Gateway>,
    status: &BoxStatus,
    waiting: &mut Waiting,
    model: &Model,
    name: &UpstreamName,
    question: &Question,
) -> Outcome {
    let Some((server, there)) = status.site.upstreams.get(name).and_then(|server| {
        let there = server.models.get(&model.name)?;
        Some((server, there))
    }) else {
        return Outcome::Failed(gone(name));
    };
    let (asked, most) = match Asked::paid(question.path.path(), &question.body, there) {
        Ok(asked) => asked,
        Err(error) => {
            let code = match error {
                QuestionFault::Json(_) => "invalid_json",
                QuestionFault::Limit(_) => "invalid_limit",
                QuestionFault::Unpriced(_) => "unpriced_elsewhere",
            };
            return Outcome::Refused(ApiError::bad_request(code, error.to_string()));
        }
    };
    let price = Price::of(there);
    let (reserved, key) = match set_aside(gateway, server, name, &model.name, most).await {
        Ok(ready) => ready,
        Err(error) => return Outcome::Failed(error),
    };
    let wire = match Wire::to(&server.url, server.authority.as_deref(), key.as_ref()) {
        Ok(wire) => wire,
        Err(error) => {
            reserved.settle(UsedElsewhere::default());
            return Outcome::Failed(unreachable(name, &error.to_string()));
        }
    };
    let prompt = prompt_estimate(question.body.len());
    let sent = waiting.at(&label(&model.name, name));
    let mut spending = Spending { reserved: Some(reserved), price, prompt, most, sent };
    let answer = bounded(&wire, question, &asked, &spending.sent).await;
    let answer = match answer {
        Ok(Heard::Begins(answer)) => answer,
        Ok(Heard::Refuses(parts, body)) => {
            // It costs nobody anything.
            waiting.at(model.name.as_str());
            return refused(name, there, &parts, &body, key.as_ref(), spending);
        }
        Err(error) => {
            log::warn!(upstream:% = name; "a server elsewhere gave no answer: {error}");
            // What it may have read it may answer to its end, and charge: then the most is booked.
            if error.unseen() {
                spending.over(None);
            }
            drop(spending);
            return Outcome::Failed(unreachable(name, &error.to_string()));
        }
    };
    begin(gateway, waiting, model, name, question, &asked, answer, key, spending)
}

/// What a server says first.
enum Heard {
    /// An answer.
    Begins(http::Response<WireBody>),
    /// No, and why.
    Refuses(http::response::Parts, Bytes),
}

/// Puts the question; once more by the newer name of an answer's limit, to a server that refuses the older one, which only we had written.
async fn bounded(
    wire: &Wire,
    question: &Question,
    asked: &Asked,
    sent: &AtomicBool,
) -> Result<Heard, polder_upstream::WireError> {
    let answer = put(wire, question, asked, sent).await?;
    if answer.status().is_success() {
        return Ok(Heard::Begins(answer));
    }
    // Nobody charges for a refusal, also where whoever asked does not wait for its sentence; but for an answer that is late.
    sent.store(late(answer.status()), Ordering::Relaxed);
    let (parts, body) = answer.into_parts();
    let body = short(body).await;
    let again = match parts.status {
        StatusCode::BAD_REQUEST => asked.by_the_newer_name(&body),
        _ => None,
    };
    let Some(again) = again else { return Ok(Heard::Refuses(parts, body)) };
    let answer = put(wire, question, &again, sent).await?;
    if answer.status().is_success() {
        return Ok(Heard::Begins(answer));
    }
    sent.store(late(answer.status()), Ordering::Relaxed);
    let (parts, body) = answer.into_parts();
    Ok(Heard::Refuses(parts, short(body).await))
}

/// As much of a refusal as is read.
async fn short(body: WireBody) -> Bytes {
    let body = Limited::new(body, LONGEST_REFUSAL).collect();
    let body = tokio::time::timeout(REFUSAL_WITHIN, body).await;
    body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default()
}

/// The first byte of an answer is not there yet, so that one who was not reached may be tried again, once.
async fn put(
    wire: &Wire,
    question: &Question,
    asked: &Asked,
    sent: &AtomicBool,
) -> Result<http::Response<WireBody>, polder_upstream::WireError> {
    let path = question.path.as_str();
    for last in [false, true] {
        let body = asked.body.clone();
        let answer = wire.ask(question.method.clone(), path, &question.headers, body, sent).await;
        match answer {
            Err(error) if error.unseen() && !last => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
    unreachable!("the last try is returned")
}

#[expect(clippy::too_many_arguments, reason = "called once, by the one who has all of these")]
fn begin(
    gateway: &Arc<Gateway>,
    waiting: &mut Waiting,
    model: &Model,
    name: &UpstreamName,
    question: &Question,
    asked: &Asked,
    answer: http::Response<WireBody>,
    key: Option<SecretText>,
    mut spending: Spending,
) -> Outcome {
    let (parts, body) = answer.into_parts();
    let events = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let prompt = spending.prompt;
    let meter = Meter {
        events,
        hide_usage: asked.hide_usage,
        prompt,
        secret: key.map(|key| key.expose().to_owned()),
        price: spending.price,
        idle: IDLE,
        over: Box::new(move |ended: Ended| spending.ended(&ended)),
    };
    let body = Metered::new(body, meter);
    let Some(caller) = waiting.take() else {
        return Outcome::Failed(gone(name));
    };
    let begun = Begun {
        status: parts.status,
        headers: parts.headers,
        prompt,
        model: label(&model.name, name),
        served_by: name.to_string(),
        events,
    };
    Outcome::Begun(begun.towards_client(
        gateway,
        caller,
        AnswerBody::Elsewhere(Box::new(body)),
        question.dialect(),
    ))
}

/// How usage of an answer from elsewhere is counted, beside that of the box itself.
fn label(model: &RecipeName, upstream: &UpstreamName) -> String {
    format!("{model} at {upstream}")
}

/// Sets the money aside and fetches the key.
async fn set_aside(
    gateway: &Gateway,
    server: &UpstreamServer,
    name: &UpstreamName,
    model: &RecipeName,
    most: u64,
) -> Result<(Reserved, Option<SecretText>), ApiError> {
    let (budget, state) = (server.budget.millionths(), gateway.state.clone());
    let (upstream, model) = (name.clone(), model.clone());
    let ready = gateway.members.ask(move |members| {
        let key = Secrets::of(&state).get(Holder::Upstream(&upstream));
        let reserved = members.reserve_elsewhere(upstream.as_str(), model.as_str(), budget, most);
        (key, reserved)
    });
    let (key, reserved): (Result<_, SecretsError>, _) = ready.await;
    let reserved: Result<Reserved, BudgetUsedUp> = reserved.map_err(|error| {
        log::error!("the money for a question could not be set aside: {error}");
        ApiError::members_unreadable()
    })?;
    let reserved = reserved.map_err(|used_up| used_up_error(name, used_up.seconds))?;
    match key {
        Ok(key) => Ok((reserved, key)),
        Err(error) => {
            log::error!("the key for {name} could not be read: {error}");
            reserved.settle(UsedElsewhere::default());
            Err(unreachable(name, "the box cannot read its key; a steward can put it in again"))
        }
    }
}

/// Whether somebody between the box and the server stopped waiting: the server may be at work on the answer, and charge for it.
fn late(status: StatusCode) -> bool {
    matches!(status.as_u16(), 504 | 524)
}

/// A head that says no: judged by it, and by the sentence that comes with it.
fn refused(
    name: &UpstreamName,
    there: &UpstreamModel,
    parts: &http::response::Parts,
    body: &Bytes,
    key: Option<&SecretText>,
    mut spending: Spending,
) -> Outcome {
    // Nobody charges for a refusal; what may still be answered is booked when this is dropped.
    if !late(parts.status) {
        spending.over(None);
    }
    drop(spending);
    let secret = key.map(SecretText::expose);
    let judged = answered(name.as_str(), &there.called, parts.status, &parts.headers, body, secret);
    match judged {
        Answered::Refused(fault) => Outcome::Refused(fault.into()),
        // Another one would be paid for the same.
        Answered::Failed(fault) if late(parts.status) => Outcome::Refused(fault.into()),
        Answered::Failed(fault) => {
            log::warn!(upstream:% = name, status = parts.status.as_u16(); "{}", fault.message);
            Outcome::Failed(fault.into())
        }
        Answered::Well => unreachable!("only other heads are judged here"),
    }
}

/// Money that is set aside, until it is known what the answer used. Where that is never known, all of it is booked.
struct Spending {
    reserved: Option<Reserved>,
    price: Price,
    prompt: u64,
    /// What was set aside.
    most: u64,
    sent: Arc<AtomicBool>,
}

impl Spending {
    /// An answer is over. Where its server did not say what it read, the most that it may have read is booked: it may charge that, and who only
    /// listens to the first word of each answer would otherwise go past the budget.
    fn ended(&mut self, ended: &Ended) {
        if ended.told_prompt {
            return self.over(Some(ended.usage));
        }
        let Some(reserved) = self.reserved.take() else { return };
        // What was set aside is for a token in each byte, four times the estimate.
        let read = Usage { prompt: self.prompt.saturating_mul(4).saturating_add(4), ..ended.usage };
        reserved.settle(UsedElsewhere {
            prompt: ended.usage.prompt,
            completion: ended.usage.completion,
            cost: self.price.most(&read, true).min(self.most),
            answered: true,
        });
    }

    /// The first call counts; `None` costs nothing.
    fn over(&mut self, usage: Option<Usage>) {
        let Some(reserved) = self.reserved.take() else { return };
        if let Some(cost) = usage.map(|usage| self.price.cost(&usage)).filter(|c| *c > self.most) {
            // It did not keep to its limit, or reads more into a question than there is in it.
            log::warn!(
                "a server elsewhere says that an answer cost {cost} millionths, and {} were the most by what it was asked",
                self.most
            );
        }
        reserved.settle(match usage {
            None => UsedElsewhere::default(),
            Some(usage) => UsedElsewhere {
                prompt: usage.prompt,
                completion: usage.completion,
                cost: self.price.cost(&usage),
                answered: true,
            },
        });
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        match self.sent.load(Ordering::Relaxed) {
            // It may be at work on the whole answer: what was set aside is booked.
            true => drop(self.reserved.take()),
            false => self.over(None),
        }
    }
}

/// Why nobody elsewhere is asked, where nobody here can be either.
pub(crate) fn why_not_error(why: &WhyNot) -> ApiError {
    match why {
        WhyNot::StaysHere(_) => ApiError::not_yours(why.to_string()),
        WhyNot::PassedOn(_) => passed_on(why.to_string()),
        WhyNot::BudgetUsedUp(name) => used_up_error(name, 0),
        WhyNot::Unpriced(..) => ApiError::bad_request("unpriced_elsewhere", why.to_string()),
        WhyNot::NotSpoken(_) => ApiError::bad_request("not_elsewhere", why.to_string()),
    }
}

fn used_up_error(name: &UpstreamName, seconds: u64) -> ApiError {
    let why = WhyNot::BudgetUsedUp(name.clone()).to_string();
    let error =
        ApiError::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", "budget_used_up", why);
    if seconds > 0 { error.after(seconds) } else { error }
}

fn unreachable(name: &UpstreamName, why: &str) -> ApiError {
    let message =
        format!("{name}, which was to be asked instead of this box, gave no answer: {why}");
    ApiError::new(StatusCode::BAD_GATEWAY, "server_error", "elsewhere_away", message).after(30)
}

fn gone(name: &UpstreamName) -> ApiError {
    unreachable(name, "the box was just told to ask it no more")
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let kind = match fault.status.is_server_error() {
            true => "server_error",
            false => "invalid_request_error",
        };
        let error = Self::new(fault.status, kind, fault.code, fault.message);
        match fault.retry_after {
            Some(seconds) => error.after(seconds),
            None => error,
        }
    }
}

/// The same error, saying too why nobody elsewhere was asked.
pub(crate) fn with_why(error: ApiError, why: Option<&WhyNot>) -> ApiError {
    match why {
        Some(why) => ApiError { message: format!("{}; {why}", error.message), ..error },
        None => error,
    }
}

/// Whether an engine says by this that it has no room.
pub(crate) fn is_full(status: StatusCode) -> bool {
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status)
}
