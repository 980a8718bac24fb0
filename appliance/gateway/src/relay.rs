//! Passes a request to an engine and its answer back, token by token, and counts what it used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use polder_control::{BoxStatus, PowerPhase};
use polder_members::{Admission, KeyGrant, MemberId, Members, MembersError, Share};
use polder_site::UpstreamName;
use polder_upstream::{AWAY, ELSEWHERE, Leave, Way, WhyNot};
use tokio_util::sync::CancellationToken;

use crate::Gateway;
use crate::elsewhere::{self, Model, Outcome};
use crate::engines::EngineAnswer;
use crate::errors::{ApiError, Dialect};
use crate::headers;
use crate::leash::{AnswerBody, Ending, Leash, MOST_TOKENS, Relayed};
use crate::supply;

/// To the engine: whose request it is, for fair shares. A number.
const MEMBER: HeaderName = HeaderName::from_static("x-polder-member");
/// To the engine: refuse unknown fields instead of naming them.
const STRICT: HeaderName = HeaderName::from_static("x-polder-strict");
/// To the engine: the member's share, in percent of the usual one.
const WEIGHT: HeaderName = HeaderName::from_static("x-polder-weight");
/// To the engine: most answers of the member at once.
const MOST_RUNNING: HeaderName = HeaderName::from_static("x-polder-most-running");
/// To the engine: the member's other requests go first.
const BACKGROUND: HeaderName = HeaderName::from_static("x-polder-background");
const TRUSTING: HeaderName = HeaderName::from_static("x-polder-trusting");
/// From the engine: tokens of the prompt.
const PROMPT_TOKENS: &str = "x-polder-prompt-tokens";
/// To the client: which box, and which of its engines, or which server elsewhere answered.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("x-polder-served-by");

/// On whose behalf an engine works.
pub struct Caller {
    member: MemberId,
    strict: bool,
    share: Share,
    background: bool,
    leave: Leave,
    /// How often it was passed on by boxes before it came here.
    hops: u8,
    revoked: CancellationToken,
    /// What they hear when `revoked` fires.
    ending: Ending,
    account: Account,
}

/// Where the tokens of an answer are counted.
enum Account {
    Key(Admission),
    Chat(Members),
}

impl Caller {
    /// The bearer of a key; takes a place among the key's requests, or says which limit is reached.
    pub fn key(members: &Members, grant: &Arc<KeyGrant>) -> Result<Self, ApiError> {
        Ok(Self {
            member: grant.member,
            strict: grant.strict,
            share: grant.share,
            background: grant.background,
            leave: leave(grant.stays_here),
            hops: 0,
            revoked: grant.revoked.clone(),
            ending: Ending::Revoked,
            account: Account::Key(members.admit(grant)?),
        })
    }

    /// A member on the chat page, or whom the verifier knows, if they may still use the box; the answer ends when they may no
    /// more.
    pub async fn chat(members: &Members, member: MemberId) -> Result<Self, ApiError> {
        let revoked = members.gone(member);
        // Looked up after that: who was disabled just before it was taken is never told by it.
        let found = members.ask(move |members| members.member(member)).await;
        match found {
            Ok(found) if !found.disabled => Ok(Self {
                member,
                strict: false,
                share: found.share,
                background: false,
                leave: leave(found.stays_here),
                hops: 0,
                revoked,
                ending: Ending::SentAway,
                account: Account::Chat(members.clone()),
            }),
            Ok(_) | Err(MembersError::NoMember) => Err(Ending::SentAway.to_error()),
            Err(error) => {
                log::error!("a member without a key could not be looked up: {error}");
                Err(ApiError::members_unreadable())
            }
        }
    }

    /// An app asks in their name: what it is told ends with this too, which is theirs to take back.
    pub(crate) fn ends_with(&mut self, ended: CancellationToken) {
        self.revoked = ended;
        self.ending = Ending::TakenBack;
    }

    /// What they ask now was passed on so often already; then it is for this box alone, whatever they said of it.
    pub(crate) fn was_passed_on(&mut self, hops: u8) {
        self.hops = hops;
        if hops > 0 && self.leave == Leave::Allowed {
            self.leave = Leave::PassedOn;
        }
    }

    /// Why they may have no more of an answer, if so.
    pub(crate) fn ending(&self) -> Option<Ending> {
        if self.revoked.is_cancelled() {
            return Some(self.ending);
        }
        match &self.account {
            Account::Key(admission) if admission.expired() => Some(Ending::Expired),
            _ => None,
        }
    }

    /// Does the key have a limit in tokens?
    pub(crate) fn counts_tokens(&self) -> bool {
        matches!(&self.account, Account::Key(admission) if admission.counts_tokens())
    }

    /// Sets aside what this question may use, if the key has a limit in tokens.
    pub(crate) fn reserve(&mut self, tokens: u64) -> Result<(), ApiError> {
        match &mut self.account {
            Account::Key(admission) => Ok(admission.reserve(tokens)?),
            Account::Chat(_) => Ok(()),
        }
    }

    pub(crate) fn count(&self, model: &str, prompt: u64, completion: u64) {
        match &self.account {
            Account::Key(admission) => admission.count(model, prompt, completion),
            Account::Chat(members) => members.count_chat(self.member, model, prompt, completion),
        }
    }
}

fn leave(stays_here: bool) -> Leave {
    if stays_here { Leave::Refused } else { Leave::Allowed }
}

/// What is asked of an engine.
pub struct Question {
    /// POST, or GET for an engine's own figures.
    pub method: Method,
    /// Path and query, as the engine knows it: `/v1/chat/completions`.
    pub path: PathAndQuery,
    /// The client's headers, as they came.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Question {
    /// A JSON question of our own, such as the chat page's.
    pub fn json(path: &'static str, body: &serde_json::Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let body = Bytes::from(body.to_string());
        let path = PathAndQuery::from_static(path);
        Self { method: Method::POST, path, headers, body }
    }

    /// Whose clients it comes from.
    pub(crate) fn dialect(&self) -> Dialect {
        Dialect::of(self.path.path())
    }
}

/// Asks whoever serves the model, its engine here (while it serves that model still) or a server elsewhere, and answers with what it says, as it
/// says it.
///
/// Dropping the answer stops the work; so does revoking the caller's key. What was used is
/// counted when the answer is over, however it ends.
pub(crate) async fn relay(
    gateway: &Arc<Gateway>,
    caller: Caller,
    model: &Model,
    question: Question,
) -> Response {
    let status = gateway.status();
    let tokens = || most_used(&question.body);
    let refusal = supply::refusal(status.supply.as_ref(), caller.background, tokens);
    // A box that turns itself off begins nothing, wherever it would be answered.
    let ends = status.supply.as_ref().is_some_and(|supply| supply.phase >= PowerPhase::Draining);
    if let Some(refusal) = refusal.as_ref().filter(|_| ends || model.elsewhere.is_empty()) {
        return refusal.clone().into_response();
    }
    let (revoked, ending, leave) = (caller.revoked.clone(), caller.ending, caller.leave);
    if leave == Leave::Refused && elsewhere::lives_on_another_machine(&status.site, model) {
        return ApiError::not_yours(
            "this model is served by another machine, and you let nothing leave the box",
        )
        .into_response();
    }
    if let Some(refusal) = elsewhere::goes_no_further(&status.site, model, caller.hops) {
        return refusal.into_response();
    }
    let way = elsewhere::way(gateway, &status, model, leave, &question, refusal.is_some()).await;
    let prompt = prompt_estimate(&question.body);
    let waiting = Waiting::of(caller, model.name.to_string(), prompt);
    let relaying = Relaying { gateway, status: &status, model, question: &question };
    tokio::select! {
        () = revoked.cancelled() => ending.to_error().into_response(),
        response = relaying.along(way, waiting, refusal) => response,
    }
}

/// One question on its way to whoever begins to answer it.
struct Relaying<'a> {
    gateway: &'a Arc<Gateway>,
    status: &'a BoxStatus,
    model: &'a Model,
    question: &'a Question,
}

impl Relaying<'_> {
    async fn along(&self, way: Way, mut waiting: Waiting, refusal: Option<ApiError>) -> Response {
        let why = way.why_not.as_ref();
        let mut failed = match self.elsewhere(&way.first, &mut waiting).await {
            Ok(response) => return response,
            Err(error) => error,
        };
        if let Some(refusal) = refusal {
            return failed.unwrap_or(elsewhere::with_why(refusal, why)).into_response();
        }
        if !way.here {
            let nobody = || why.map_or_else(ApiError::members_unreadable, elsewhere::why_not_error);
            return failed.unwrap_or_else(nobody).into_response();
        }
        let Some(caller) = &waiting.caller else { unreachable!("nobody began to answer") };
        let request = towards_engine(caller, self.status.site.sharing.trusting, self.question);
        let name = self.model.name.as_str();
        let sent = waiting.at(name);
        // Where somebody else can answer, nobody waits for an engine that does not.
        let at_once = !way.if_down.is_empty();
        let slot = self.model.slot.as_ref();
        let asked = self.gateway.engines.ask(slot, Some(name), request, &sent, at_once);
        let refusal = match asked.await {
            Ok(answer) => {
                // What a slot passes questions on to may be gone before anybody has heard of it.
                let away = answer.response.headers().contains_key(AWAY);
                let others = match away {
                    true => &way.if_down[..],
                    false if elsewhere::is_full(answer.response.status()) => &way.if_full[..],
                    false => &[],
                };
                match self.elsewhere(others, &mut waiting).await {
                    Ok(response) => return response,
                    // Who asked hears too why nobody else answers.
                    Err(failed) if away && (failed.is_some() || why.is_some()) => {
                        waiting.caller = None;
                        return self.away(answer, failed, why).await;
                    }
                    Err(_) => return self.answered(answer, waiting),
                }
            }
            Err(refusal) => refusal,
        };
        match self.elsewhere(&way.if_down, &mut waiting).await {
            Ok(response) => return response,
            Err(error) => failed = error.or(failed),
        }
        // What the engine may have read of it is not counted: it said nothing.
        waiting.caller = None;
        let error = elsewhere::with_why(ApiError::from(refusal), why);
        match failed {
            Some(failed) => {
                let message = format!("{}; and {}", error.message, failed.message);
                ApiError { message, ..error }.into_response()
            }
            None => error.into_response(),
        }
    }

    /// Asks these one after the other, until one begins to answer. The error is the last one's, if any was asked.
    async fn elsewhere(
        &self,
        names: &[UpstreamName],
        waiting: &mut Waiting,
    ) -> Result<Response, Option<ApiError>> {
        let mut last = None;
        for name in names {
            let Self { gateway, status, model, question } = self;
            match elsewhere::ask(gateway, status, waiting, model, name, question).await {
                Outcome::Begun(response) => return Ok(response),
                Outcome::Refused(error) => {
                    waiting.caller = None;
                    return Ok(error.into_response());
                }
                Outcome::Failed(error) => last = Some(error),
            }
        }
        Err(last)
    }

    /// What the slot said of its server that is away, and what came of asking others.
    async fn away(
        &self,
        answer: EngineAnswer,
        failed: Option<ApiError>,
        why: Option<&WhyNot>,
    ) -> Response {
        /// Longer than anything that a stand-in, or a proxy, says of that.
        const LONGEST: usize = 64 << 10;
        let EngineAnswer { engine, response, .. } = answer;
        let status = response.status();
        let said = Limited::new(response.into_body(), LONGEST).collect().await;
        let said = said.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let said = serde_json::from_slice::<serde_json::Value>(&said).unwrap_or_default();
        let message = match said["error"]["message"].as_str() {
            Some(message) => message.trim_end_matches('.').to_owned(),
            None => format!("the server that {} stands for is away", self.model.name),
        };
        let retry_after = failed.as_ref().and_then(|failed| failed.retry_after);
        let message = match &failed {
            Some(failed) => format!("{message}; and {}", failed.message),
            None => message,
        };
        let error = ApiError::new(status, "server_error", "server_away", message);
        let error = elsewhere::with_why(ApiError { retry_after, ..error }, why);
        let mut response = error.into_response();
        let served_by = format!("{}/{engine}", self.status.site.name);
        if let Ok(served_by) = HeaderValue::try_from(served_by) {
            response.headers_mut().insert(SERVED_BY, served_by);
        }
        response
    }

    fn answered(&self, answer: EngineAnswer, mut waiting: Waiting) -> Response {
        let Some(caller) = waiting.take() else { unreachable!("the caller is taken once") };
        towards_client(self.gateway, caller, answer, self.question.dialect())
    }
}

/// Somebody whose question is being worked on, without a word of the answer yet. If they
/// leave, or their key is revoked, nobody ever says what was read: an estimate is counted.
pub(crate) struct Waiting {
    caller: Option<Caller>,
    model: String,
    prompt: u64,
    sent: Arc<AtomicBool>,
}

impl Waiting {
    fn of(caller: Caller, model: String, prompt: u64) -> Self {
        Self { caller: Some(caller), model, prompt, sent: Arc::default() }
    }

    /// Now at this one, which has not seen the question; says when it may have.
    pub(crate) fn at(&mut self, model: &str) -> Arc<AtomicBool> {
        model.clone_into(&mut self.model);
        self.sent = Arc::default();
        self.sent.clone()
    }

    /// An answer begins, and they have it from now on.
    pub(crate) fn take(&mut self) -> Option<Caller> {
        self.caller.take()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.take()
            && self.sent.load(Ordering::Relaxed)
        {
            caller.count(&self.model, self.prompt, 0);
        }
    }
}

/// Tokens of a question: four bytes of it make one.
fn prompt_estimate(question: &[u8]) -> u64 {
    question.len() as u64 / 4
}

/// An estimate of the tokens that a question and its answer use: the answer is as long as it may be,
/// within reason.
pub(crate) fn most_used(question: &[u8]) -> u64 {
    /// Where nothing is said of the answer's length.
    const USUAL: u64 = 1024;
    const LONG: u64 = 8192;
    /// As many as any server gives to one question.
    const MOST_ANSWERS: u64 = 128;
    // Which of them counts is the server's to say, so the largest is set aside; what is not used is given back.
    let wish = serde_json::from_slice::<Wish>(question).unwrap_or_default();
    let answers = wish.answers.unwrap_or(1).clamp(1, MOST_ANSWERS);
    prompt_estimate(question) + wish.most.unwrap_or(USUAL).min(LONG) * answers
}

/// How long the answer may be by any of the fields that say so, and how many there may be. One that is no number hides no other, and one that
/// comes twice counts as the larger: which of the two an engine takes is its own affair.
#[derive(Default)]
struct Wish {
    most: Option<u64>,
    answers: Option<u64>,
}

impl<'de> serde::Deserialize<'de> for Wish {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = Wish;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a question")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Wish, A::Error> {
                let mut wish = Wish::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    let field = match &*name {
                        "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                            &mut wish.most
                        }
                        "n" => &mut wish.answers,
                        _ => {
                            map.next_value::<serde::de::IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = map.next_value::<serde_json::Value>()?.as_u64().max(*field);
                }
                Ok(wish)
            }
        }
        from.deserialize_map(Fields)
    }
}

fn towards_engine(caller: &Caller, trusting: bool, question: &Question) -> http::Request<Bytes> {
    let mut request = http::Request::new(question.body.clone());
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = http::Uri::from(question.path.clone());
    *request.headers_mut() = headers::towards_engine(&question.headers);
    let headers = request.headers_mut();
    headers.insert(MEMBER, HeaderValue::from(caller.member.0));
    headers.insert(STRICT, HeaderValue::from_static(if caller.strict { "1" } else { "0" }));
    headers.insert(WEIGHT, HeaderValue::from(caller.share.percent));
    if let Some(most) = caller.share.answers_at_once {
        headers.insert(MOST_RUNNING, HeaderValue::from(most));
    }
    headers.insert(BACKGROUND, HeaderValue::from_static(if caller.background { "1" } else { "0" }));
    headers.remove(ELSEWHERE);
    if caller.hops > 0 {
        headers.insert(ELSEWHERE, HeaderValue::from(u16::from(caller.hops)));
    }
    headers.insert(TRUSTING, HeaderValue::from_static(if trusting { "1" } else { "0" }));
    // The engine tells what it used in a trailer, after the last token.
    headers.insert(TE, HeaderValue::from_static("trailers"));
    request
}

fn towards_client(
    gateway: &Arc<Gateway>,
    caller: Caller,
    answer: EngineAnswer,
    dialect: Dialect,
) -> Response {
    let EngineAnswer { engine, recipe, response } = answer;
    let (parts, upstream) = response.into_parts();
    let prompt = parts
        .headers
        .get(PROMPT_TOKENS)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0)
        .min(MOST_TOKENS);
    let events = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let begun = Begun {
        status: parts.status,
        headers: parts.headers,
        prompt,
        model: recipe.to_string(),
        served_by: format!("{}/{engine}", gateway.status().site.name),
        events,
    };
    begun.towards_client(gateway, caller, AnswerBody::Engine(upstream), dialect)
}

/// An answer that begins.
pub(crate) struct Begun {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Tokens of the question.
    pub(crate) prompt: u64,
    /// As it is counted.
    pub(crate) model: String,
    pub(crate) served_by: String,
    pub(crate) events: bool,
}

impl Begun {
    pub(crate) fn towards_client(
        self,
        gateway: &Arc<Gateway>,
        caller: Caller,
        body: AnswerBody,
        dialect: Dialect,
    ) -> Response {
        let leash = Leash::new(body, caller, self.model, self.prompt);
        gateway.watchman.watch(&leash);
        let body = Relayed::new(leash, self.events.then_some(dialect), gateway.tally.stream());
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = known_status(self.status);
        *response.headers_mut() = headers::towards_client(&self.headers);
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(self.served_by) {
            headers.insert(SERVED_BY, value);
        }
        // What somebody was told is nobody else's, whatever keeps answers on the way.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.events {
            // nginx in front of us would otherwise hold tokens back.
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        }
        response
    }
}

/// An engine has no business with redirects, upgrades or sign-in.
pub(crate) fn known_status(status: StatusCode) -> StatusCode {
    match status.as_u16() {
        200..=299 | 400 | 402..=599 => status,
        _ => StatusCode::BAD_GATEWAY,
    }
}

#[cfg(test)]
mod tests {
    use super::most_used;

    #[test]
    fn what_is_set_aside_is_the_longest_answer_that_any_field_allows_as_often_as_it_is_asked_for() {
        let most = |question: &str| most_used(question.as_bytes()) - question.len() as u64 / 4;
        // A field that comes twice.
        assert_eq!(most("{\"max_tokens\":5,\"max_tokens\":700,\"n\":3,\"n\":2}"), 2100);
        assert_eq!(most("{\"max_tokens\":700,\"max\\u005ftokens\":5,\"other\":{\"n\":9}}"), 700);
        assert_eq!(most(r#"{"max_tokens":7}"#), 7);
        // A small one in the newer field hides no large one in the older, whichever the server goes by.
        let both = r#"{"max_completion_tokens":1,"max_output_tokens":5,"max_tokens":4000}"#;
        assert_eq!(most(both), 4000);
        assert_eq!(most(r#"{"max_completion_tokens":4000,"max_tokens":1}"#), 4000);
        assert_eq!(most(r#"{"max_tokens":10,"n":3}"#), 30);
        assert_eq!(most(r#"{"max_tokens":4000,"max_output_tokens":-1,"n":"x"}"#), 4000);
        assert_eq!(most(r#"{"max_tokens":99999999999,"n":0}"#), 8192);
        assert_eq!(most(r#"{"n":99999999999}"#), 1024 * 128);
        assert_eq!(
            (most("{}"), most("no JSON"), most(r#"{"max_tokens":"x"}"#)),
            (1024, 1024, 1024)
        );
    }
}
