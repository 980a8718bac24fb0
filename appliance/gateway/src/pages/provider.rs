//! The box as the place where people of other apps sign in: OpenID Connect's addresses. What may be asked, and what is answered,
//! is `polder-oidc`'s; who is at which app is in the members' database.

use std::sync::Arc;

use axum::Form;
use axum::Json;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use polder_members::{ClientApp, Member, MembersError, NewVisit, Role, Visit};
use polder_oidc::{
    AppFacts, Asked, Given, OidcError, Person, TokenAsked, TokenRefused, Wanted, Wrong,
    credentials, description, judge, redeem, refresh, userinfo,
};
use polder_page::{Page, Tone, banner};

use crate::Gateway;
use crate::host::parse_host;
use crate::pages::agree;
use crate::pages::frame::{self, Trouble, answer, plain_nav};
use crate::pages::who::{Caller, LONGEST_PATH, percent};

/// How the box describes itself under the name that it is asked by.
pub(super) async fn describe(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
) -> Result<Response, Trouble> {
    in_use(&gateway).await?;
    Ok(Json(description(&issuer(&caller))).into_response())
}

/// What its signatures are checked with.
pub(super) async fn keys(State(gateway): State<Arc<Gateway>>) -> Result<Response, Trouble> {
    in_use(&gateway).await?;
    let identities = gateway.identities.clone();
    let public = tokio::task::spawn_blocking(move || identities.keys.public(frame::now()));
    let public = public.await.map_err(|_| broken("they could not be read"))?;
    Ok(Json(public.map_err(|error| broken(&error.to_string()))?).into_response())
}

/// An app sends somebody here to sign in.
pub(super) async fn authorize(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    uri: Uri,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Trouble> {
    let Query(asked) = asked.map_err(|_| shown("the app's question cannot be read"))?;
    let judging = Judging::of(&gateway, &caller, &headers);
    let tell = |wrong: Wrong| judging.tell(&wrong);
    let (app, wanted) = match judging.judge(&asked).await? {
        Ok(judged) => judged,
        Err(told) => return Ok(told),
    };
    let Some((member, since)) = signed_in(&gateway, &caller).await? else {
        return match wanted.silent {
            true => tell(wanted.without("login_required", "nobody is signed in on the box")),
            false => to_sign_in(uri.query(), None),
        };
    };
    if wanted.max_age.is_some_and(|most| frame::now() - since > most) {
        return match wanted.silent {
            true => {
                tell(wanted.without("login_required", "the sign-in on the box is too long ago"))
            }
            false => to_sign_in(uri.query(), Some(&wanted)),
        };
    }
    if app.for_stewards && !member.is_steward() {
        return tell(wanted.without("access_denied", "this app is for stewards"));
    }
    if !wanted.asks_them
        && let Some(on) =
            let_in(&gateway, &caller, &headers, &app, &wanted, &judging.issuer).await?
    {
        return Ok(on);
    }
    match wanted.silent {
        true => tell(wanted.without("consent_required", "they have not agreed to it yet")),
        false => {
            agree::ask(&gateway, &member, &app, &wanted, uri.query().unwrap_or_default()).await
        }
    }
}

/// Judges what an app asks through somebody's browser, and tells the app what is wrong where it may be told.
pub(super) struct Judging<'a> {
    gateway: &'a Gateway,
    headers: &'a HeaderMap,
    issuer: String,
}

impl<'a> Judging<'a> {
    pub(super) fn of(gateway: &'a Gateway, caller: &Caller, headers: &'a HeaderMap) -> Self {
        Self { gateway, headers, issuer: issuer(caller) }
    }

    /// The app and what it wants; or the answer to whoever may not want that.
    pub(super) async fn judge(
        &self,
        asked: &Asked,
    ) -> Result<Result<(ClientApp, Wanted), Response>, Trouble> {
        let id = asked.client_id.clone();
        let app = self.gateway.members.ask(move |m| m.client_app(&id)).await?;
        let facts = app
            .as_ref()
            .map(|app| AppFacts { redirects: &app.redirects, has_secret: app.has_secret });
        match (judge(asked, facts), app) {
            (Ok(wanted), Some(app)) => Ok(Ok((app, wanted))),
            (Err(wrong), _) => self.tell(&wrong).map(Err),
            (Ok(_), None) => Err(shown("the app is not known here")),
        }
    }

    pub(super) fn tell(&self, wrong: &Wrong) -> Result<Response, Trouble> {
        match wrong.told(&self.issuer) {
            Ok(to) => Ok(sent_on(self.gateway, self.headers, &to)),
            Err(why) => Err(shown(why)),
        }
    }
}

fn shown(why: &str) -> Trouble {
    Trouble::Say(StatusCode::BAD_REQUEST, why.to_owned())
}

/// On to the app with a code; nothing where they have not agreed to what it wants.
async fn let_in(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    headers: &HeaderMap,
    app: &ClientApp,
    wanted: &Wanted,
    issuer: &str,
) -> Result<Option<Response>, Trouble> {
    let Some(session) = caller.token.clone() else { return Err(MembersError::NoMember.into()) };
    let visit = NewVisit {
        app: app.id.clone(),
        issuer: issuer.to_owned(),
        redirect: wanted.redirect.clone(),
        challenge: wanted.challenge.clone(),
        nonce: wanted.nonce.clone(),
        scope: wanted.scope.clone(),
    };
    let code = gateway.members.ask(move |m| m.begin_visit(session.expose(), &visit)).await?;
    Ok(code.map(|code| sent_on(gateway, headers, &wanted.with_code(code.expose(), issuer))))
}

/// An app redeems a code, or what it got for one.
pub(super) async fn token(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    asked: Result<Form<TokenAsked>, FormRejection>,
) -> Response {
    let Ok(Form(asked)) = asked else { return refused(&TokenRefused::kind()) };
    match tokens(&gateway, &caller, &headers, asked).await {
        Ok(response) => response,
        Err(Failed::Refused(why)) => refused(&why),
        Err(Failed::Broken(why)) => {
            log::error!("an app got no tokens: {why}");
            let error = serde_json::json!({ "error": "server_error", "error_description": why });
            (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response()
        }
    }
}

enum Failed {
    Refused(TokenRefused),
    Broken(String),
}

impl From<TokenRefused> for Failed {
    fn from(why: TokenRefused) -> Self {
        Self::Refused(why)
    }
}

impl From<MembersError> for Failed {
    fn from(why: MembersError) -> Self {
        Self::Broken(why.to_string())
    }
}

impl From<OidcError> for Failed {
    fn from(why: OidcError) -> Self {
        Self::Broken(why.to_string())
    }
}

async fn tokens(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    headers: &HeaderMap,
    asked: TokenAsked,
) -> Result<Response, Failed> {
    let authorization = match headers.get(header::AUTHORIZATION).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(text)) => Some(text),
        Some(Err(_)) => return Err(TokenRefused::client().into()),
    };
    let client = credentials(authorization, &asked)?;
    let known = gateway.members.ask(move |m| {
        let app = m.client_app(&client.client)?;
        let Some(app) = app else { return Ok(None) };
        let good = match (app.has_secret, &client.secret) {
            (true, Some(secret)) => m.is_client_secret(&app.id, secret)?,
            (true, None) => false,
            // An empty one by Basic is none.
            (false, secret) => secret.as_deref().unwrap_or_default().is_empty(),
        };
        Ok::<_, MembersError>(good.then_some(app))
    });
    let app = known.await?.ok_or_else(TokenRefused::client)?;
    let issuer = issuer(caller);
    let (given, by_code) = match asked.grant_type.as_str() {
        "authorization_code" => (asked.code.clone(), true),
        "refresh_token" => (asked.refresh_token.clone(), false),
        _ => return Err(TokenRefused::kind().into()),
    };
    let visit = gateway.members.ask(move |m| match by_code {
        true => m.redeem_code(&given),
        false => m.take_refresh(&given),
    });
    let visit = visit.await?.ok_or_else(TokenRefused::grant)?;
    let good = match by_code {
        true => redeem(facts(&visit), &app.id, &issuer, &asked),
        false => refresh(facts(&visit), &app.id, &issuer),
    };
    let good = good.and_then(|()| match app.for_stewards && !visit.member.is_steward() {
        true => Err(TokenRefused::grant()),
        false => Ok(()),
    });
    if let Err(why) = good {
        // It is in wrong hands, or the app is broken: nothing comes of it any more.
        gateway.members.ask(move |m| m.end_visit(&visit.id)).await?;
        return Err(why.into());
    }
    let person = person(gateway, &visit).await?;
    let (id, scope) = (visit.id.clone(), visit.asked.scope.clone());
    let lasting = scope.split(' ').any(|word| word == "offline_access");
    let tokens = match gateway.members.ask(move |m| m.visit_tokens(&id, lasting)).await {
        // Signed out at this very moment.
        Err(MembersError::NoMember) => return Err(TokenRefused::grant().into()),
        tokens => tokens?,
    };
    let (identities, access) = (gateway.identities.clone(), tokens.access.clone());
    let proof = tokio::task::spawn_blocking(move || {
        // A new proof for a refreshed token has no nonce: there was no question.
        let nonce = visit.asked.nonce.as_deref().filter(|_| by_code);
        let (given, scope) = (facts(&visit), visit.asked.scope.as_str());
        identities.keys.prove(&person, given, nonce, scope, access.expose(), frame::now())
    });
    let proof = proof.await.map_err(|_| Failed::Broken("signing broke down".to_owned()))??;
    let mut said = serde_json::json!({
        "access_token": tokens.access.expose(),
        "token_type": "Bearer",
        "expires_in": tokens.seconds,
        "id_token": proof,
        "scope": scope,
    });
    if let Some(refresh) = &tokens.refresh {
        said["refresh_token"] = refresh.expose().into();
    }
    Ok(Json(said).into_response())
}

fn facts(visit: &Visit) -> Given<'_> {
    Given {
        app: &visit.asked.app,
        issuer: &visit.asked.issuer,
        redirect: &visit.asked.redirect,
        challenge: visit.asked.challenge.as_deref(),
    }
}

fn refused(why: &TokenRefused) -> Response {
    let status = StatusCode::from_u16(why.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = (status, Json(why.json())).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"polder\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// An app asks who somebody is now.
pub(super) async fn who(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Trouble> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|text| text.split_once(' '));
    let token = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = token.map(|(_, token)| token.trim().to_owned()).unwrap_or_default();
    let visit = gateway.members.ask(move |m| m.visit_behind(&token)).await?;
    let issuer = issuer(&caller);
    let Some(visit) = visit.filter(|visit| visit.asked.issuer == issuer) else {
        let error = serde_json::json!({ "error": "invalid_token",
            "error_description": "this token is too old, or its member has signed out" });
        let mut response = (StatusCode::UNAUTHORIZED, Json(error)).into_response();
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return Ok(response);
    };
    let person = person(&gateway, &visit).await?;
    Ok(Json(userinfo(&person, &visit.asked.scope)).into_response())
}

/// An app says that somebody signed out there. Whether also here they say themselves.
pub(super) async fn end(State(gateway): State<Arc<Gateway>>) -> Response {
    let body = html! {
        (banner(Tone::Plain, html! { p { "You signed out of an app. On this box, and at every other app that you went to from here, you are still signed in." } }))
        form method="post" action="/sign-out" { button type="submit" { "Sign out of all of them" } }
        p { a.button.quiet href="/" { "Stay signed in" } }
    };
    let page = Page { title: "Signed out of an app", narrow: true, ..Page::default() };
    answer(&page, &plain_nav(&gateway), body)
}

async fn person(gateway: &Gateway, visit: &Visit) -> Result<Person, MembersError> {
    let member = &visit.member;
    let (email, email_verified) = address(gateway, member).await?;
    Ok(Person {
        subject: format!("member-{}", member.id),
        name: member.name.clone(),
        email_verified,
        email,
        groups: match member.role {
            Role::Steward => vec!["stewards", "members"],
            Role::Member => vec!["members"],
        },
        signed_in_at: visit.signed_in_at,
    })
}

/// The address that apps are told, and whether it is proven.
pub(super) async fn address(
    gateway: &Gateway,
    member: &Member,
) -> Result<(String, bool), MembersError> {
    let proven = gateway.proven_email(member.id).await?;
    let is_proven = proven.is_some();
    let own = || format!("member-{}@{}.local", member.id, gateway.status().site.name);
    Ok((proven.unwrap_or_else(own), is_proven))
}

async fn signed_in(
    gateway: &Gateway,
    caller: &Caller,
) -> Result<Option<(Member, i64)>, MembersError> {
    let Some(token) = caller.token.clone() else { return Ok(None) };
    gateway
        .members
        .ask(move |m| {
            let since = m.signed_in_since(token.expose())?;
            Ok(m.session(token.expose())?.zip(since))
        })
        .await
}

/// To the sign-in page, and then here again with the same question. A question that wants somebody to sign in anew does not
/// want it a second time; what else it wants of them is still to come.
fn to_sign_in(query: Option<&str>, again: Option<&Wanted>) -> Result<Response, Trouble> {
    let kept = |part: &&str| {
        again.is_none() || !(part.starts_with("prompt=") || part.starts_with("max_age="))
    };
    let mut parts: Vec<&str> = query.unwrap_or_default().split('&').filter(kept).collect();
    if again.is_some_and(|wanted| wanted.asks_them) {
        parts.push("prompt=consent");
    }
    let next = format!("/oidc/authorize?{}", parts.join("&"));
    if next.len() > LONGEST_PATH {
        let why = "the app sends more along than the box can remember while you sign in; sign in here first, and then go to the app";
        return Err(Trouble::Say(StatusCode::BAD_REQUEST, why.to_owned()));
    }
    let again = if again.is_some() { "&again=yes" } else { "" };
    Ok(Redirect::to(&format!("/sign-in?next={}{again}", percent(&next))).into_response())
}

/// To an app. Straight from our own sign-in form a redirect would be stopped by browsers: such a form may lead to no other
/// site. Then a page goes on by itself.
pub(super) fn sent_on(gateway: &Gateway, headers: &HeaderMap, to: &str) -> Response {
    let from_our_form = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    if !from_our_form {
        return Redirect::to(to).into_response();
    }
    let body = html! { p { a href=(to) { "Go on to the app" } } };
    let page = Page { title: "On the way", narrow: true, ..Page::default() };
    let mut response = answer(&page, &plain_nav(gateway), body);
    if let Ok(refresh) = HeaderValue::try_from(format!("0; url={to}")) {
        response.headers_mut().insert(HeaderName::from_static("refresh"), refresh);
    }
    response
}

/// The address under which somebody asks, always written in the same way. The door has checked that it is one of the box's.
pub(super) fn issuer(caller: &Caller) -> String {
    let Some((scheme, host)) = caller.base.split_once("://") else { return caller.base.clone() };
    let usual = if scheme == "https" { 443 } else { 80 };
    match parse_host(host.as_bytes()) {
        Ok(mut host) => {
            host.port = host.port.filter(|port| *port != usual);
            format!("{scheme}://{host}")
        }
        Err(_) => caller.base.clone(),
    }
}

/// As long as no app is written down there is nothing here to be asked.
async fn in_use(gateway: &Gateway) -> Result<(), Trouble> {
    match gateway.members.ask(|m| m.client_apps()).await?.is_empty() {
        true => Err(Trouble::not_found("no app lets people sign in with this box")),
        false => Ok(()),
    }
}

fn broken(why: &str) -> Trouble {
    Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, format!("the keys of the box: {why}"))
}
