//! The wizard behind its address `/setup`: who may come in, where they are, and what is kept before
//! an answer is sent.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use polder_control::{RunId, RunState, SecretText};
use polder_site::{PowerPlan, RecipeName, SiteChange};
use tokio::sync::Mutex;

use crate::address::Door;
use crate::host::{ClaimToken, Distance, Host, Newcomer, SetupError, Visitor, Window};
use crate::import::View;
use crate::page;
use crate::stored::Stored;
use crate::wizard::{Event, Step, Wizard};
use crate::{
    address, battery, claim, disk, import, lines, machine, member, model, planner, restore,
};

/// A form of the wizard is a few hundred bytes; a password may be long.
const LONGEST_FORM: usize = 16 << 10;

/// The wizard of one box. Cheap to clone.
pub struct Setup<H>(Arc<Inner<H>>);

struct Inner<H> {
    host: H,
    /// Whoever changes the notes holds it: read, decide, keep is one act.
    turn: Mutex<()>,
}

impl<H> Clone for Setup<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H: Host> Setup<H> {
    /// The wizard of this box.
    pub fn new(host: H) -> Self {
        Self(Arc::new(Inner { host, turn: Mutex::new(()) }))
    }

    /// Everything under `/setup`. Every request needs a [`Visitor`] in its extensions.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/setup", get(doorstep))
            .route("/setup/", get(doorstep))
            .route(Step::Claim.path(), get(claim::show::<H>).post(claim::take::<H>))
            .route(Step::Machine.path(), get(machine::show::<H>).post(machine::seen::<H>))
            .route(restore::PATH, get(restore::show::<H>).post(restore::begin::<H>))
            .route(restore::GOING, get(restore::going::<H>))
            .route(disk::PATH, get(disk::show::<H>))
            .route(disk::SEAL, post(disk::seal::<H>))
            .route(disk::CONFIRM, post(disk::confirm::<H>))
            .route(disk::LEAVE, post(disk::leave::<H>))
            .route(Step::Model.path(), get(model::show::<H>).post(model::choose::<H>))
            .route("/setup/planner", get(planner::show::<H>))
            .route(Step::Import.path(), get(import::show::<H>).post(import::begin::<H>))
            .route("/setup/import/stop", post(import::stop::<H>))
            .route("/setup/import/progress", get(import::progress::<H>))
            .route(Step::Address.path(), get(address::show::<H>).post(address::decide::<H>))
            .route("/setup/address/opening", get(address::progress::<H>))
            .route(Step::Power.path(), get(battery::show::<H>).post(battery::choose::<H>))
            .route(battery::ON, post(battery::on::<H>))
            .route(battery::PROGRESS, get(battery::progress::<H>))
            .route(Step::Lines.path(), get(lines::show::<H>).post(lines::choose::<H>))
            .route(lines::ON, post(lines::on::<H>))
            .route(lines::CONFIRMED, post(lines::confirm::<H>))
            .route(lines::PROGRESS, get(lines::progress::<H>))
            .route(Step::Member.path(), get(member::show::<H>).post(member::make::<H>))
            .route("/setup/claim.js", get(|| script(include_str!("../assets/claim.js"))))
            .route("/setup/owner.js", get(|| script(include_str!("../assets/owner.js"))))
            .route("/setup/import.js", get(|| script(include_str!("../assets/import.js"))))
            .layer(DefaultBodyLimit::max(LONGEST_FORM))
            .with_state(self.clone())
    }

    /// True while the wizard has something to do: the box is unclaimed, or somebody opened the
    /// wizard again. Then `/` should lead to `/setup`.
    pub async fn is_open(&self) -> Result<bool, SetupError> {
        Ok(self.read().await?.wizard.step() != Step::Done)
    }

    pub(crate) fn host(&self) -> &H {
        &self.0.host
    }

    pub(crate) async fn read(&self) -> Result<Stored, SetupError> {
        let (notes, steward) = (self.host().load().await?, self.host().steward().await?);
        Ok(Stored::read(notes.as_deref(), steward.as_deref()))
    }

    /// Lets this happen, and keeps what comes of it before it returns.
    pub(crate) async fn happen(&self, event: Event) -> Result<Wizard, SetupError> {
        let _turn = self.0.turn.lock().await;
        let wizard = self.read().await?.wizard.next(event)?;
        self.keep(wizard, None).await
    }

    /// Makes the first member, which ends the wizard; of two at once the second is refused.
    pub(crate) async fn make_member(
        &self,
        by: ClaimToken,
        name: String,
        password: String,
        secure: bool,
    ) -> Result<Newcomer, SetupError> {
        let _turn = self.0.turn.lock().await;
        // Before the member is there: asked first, so that a refusal leaves no trace.
        let wizard = self.read().await?.wizard.next(Event::MemberMade(name.clone()))?;
        let newcomer = self.host().make_steward(by, name, password, secure).await?;
        // From here on the steward is there, which ends the wizard whatever its notes say: nothing
        // may keep the person from their key.
        if let Err(error) = self.keep(wizard, None).await {
            log::error!("the end of the set-up could not be noted: {error}");
        }
        Ok(newcomer)
    }

    /// Begins to bring the chosen model in, unless that is under way or done.
    pub(crate) async fn begin_import(&self) -> Result<(), SetupError> {
        let _turn = self.0.turn.lock().await;
        let wizard = self.read().await?.wizard;
        let (view, news) = self.looked(&wizard).await?;
        let mut wizard = match news {
            Some(event) => wizard.next(event)?,
            None => wizard,
        };
        if let (View::NotBegun | View::Failed(..), Some(recipe)) = (&view, wizard.recipe()) {
            let site = self.host().status().await?.site;
            let run = self.host().apply(import::change(&site, recipe.clone())).await?;
            wizard = wizard.next(Event::ImportBegan(run))?;
        }
        self.keep(wizard, None).await.map(drop)
    }

    /// How the import is, and what follows from that, noted.
    pub(crate) async fn look_at_import(&self) -> Result<(Wizard, View), SetupError> {
        let _turn = self.0.turn.lock().await;
        let Stored { wizard, notice } = self.read().await?;
        let (view, news) = self.looked(&wizard).await?;
        let wizard = match news {
            Some(event) => self.keep(wizard.next(event)?, notice).await?,
            None => wizard,
        };
        Ok((wizard, view))
    }

    /// How the import is, also one that a crash kept the wizard from noting.
    async fn looked(&self, wizard: &Wizard) -> Result<(View, Option<Event>), SetupError> {
        let runs = self.host().runs().await?;
        let (view, news) = import::look(wizard, &runs);
        if let (View::NotBegun, None, Some(recipe)) = (&view, &news, wizard.recipe())
            && runs.iter().any(|run| run.state == RunState::Running)
        {
            let title = import::preview(self, recipe.clone()).await?.title;
            if let Some((view, event)) = import::adopt(&runs, &title) {
                return Ok((view, Some(event)));
            }
        }
        Ok((view, news))
    }

    /// Does the next thing towards the name and addresses that the person wants, if something is
    /// left to do, and notes what follows.
    pub(crate) async fn open_door(&self) -> Result<(Wizard, Door), SetupError> {
        let _turn = self.0.turn.lock().await;
        let Stored { wizard, notice } = self.read().await?;
        let (site, runs) = (self.host().status().await?.site, self.host().runs().await?);
        let door = address::look(&wizard, &site, &runs);
        let event = match &door {
            // A failure stays noted until a page has shown it.
            Door::Closed | Door::Moving | Door::Stuck(_) => return Ok((wizard, door)),
            Door::Open => Event::Addressed,
            Door::Move(change) => Event::DoorMoves(self.host().apply(change.clone()).await?),
        };
        Ok((self.keep(wizard.next(event)?, notice).await?, door))
    }

    /// Has the box listen to this UPS, which it notes as begun.
    pub(crate) async fn live_off(
        &self,
        plan: PowerPlan,
        password: Option<SecretText>,
    ) -> Result<(), SetupError> {
        let _turn = self.0.turn.lock().await;
        let wizard = self.read().await?.wizard;
        // Asked first, so that a refusal leaves no trace.
        wizard.clone().next(Event::PowerBegan(RunId(0)))?;
        if let Some(password) = password {
            self.host().ups_password(password).await?;
        }
        let run = self.host().apply(SiteChange::Power(plan)).await?;
        self.keep(wizard.next(Event::PowerBegan(run))?, None).await.map(drop)
    }

    /// The box is to look after these lines to the internet.
    pub(crate) async fn go_out_by(&self, change: SiteChange) -> Result<(), SetupError> {
        let _turn = self.0.turn.lock().await;
        let wizard = self.read().await?.wizard;
        wizard.clone().next(Event::LinesBegan(RunId(0)))?;
        let run = self.host().apply(change).await?;
        self.keep(wizard.next(Event::LinesBegan(run))?, None).await.map(drop)
    }

    /// The person chose this model. One that is being brought in has to be stopped first; one
    /// whose import ended badly gives way.
    pub(crate) async fn choose(&self, recipe: RecipeName) -> Result<(), SetupError> {
        let _turn = self.0.turn.lock().await;
        let mut wizard = self.read().await?.wizard;
        if let Some(run) = wizard.run().filter(|_| wizard.recipe() != Some(&recipe)) {
            let (view, news) = import::look(&wizard, &self.host().runs().await?);
            let gave_way = matches!(view, View::Failed(..)).then_some(Event::ImportStopped(run));
            if let Some(event) = news.or(gave_way) {
                wizard = wizard.next(event)?;
            }
        }
        self.keep(wizard.next(Event::Chose(recipe))?, None).await.map(drop)
    }

    /// Somebody showed the code: the wizard begins, goes on where it was, or is opened again.
    pub(crate) async fn claimed(&self) -> Result<Wizard, SetupError> {
        let _turn = self.0.turn.lock().await;
        let Stored { mut wizard, notice } = self.read().await?;
        if wizard.step() == Step::Done {
            wizard = wizard.next(Event::Reopened)?;
        }
        // Nobody has seen the notice yet: it is for the page that comes now.
        self.keep(wizard.next(Event::Claimed)?, notice).await
    }

    async fn keep(&self, wizard: Wizard, notice: Option<String>) -> Result<Wizard, SetupError> {
        self.host().save(Stored { wizard: wizard.clone(), notice }.to_json()).await?;
        if wizard.step() == Step::Done {
            self.host().end().await?;
            log::info!("the set-up is finished");
        }
        Ok(wizard)
    }
}

/// Anybody on this machine's networks, whether they showed the code or not.
pub(crate) struct Neighbour {
    pub(crate) visitor: Visitor,
    pub(crate) token: Option<ClaimToken>,
}

impl<H: Host> FromRequestParts<Setup<H>> for Neighbour {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, setup: &Setup<H>) -> Result<Self, Response> {
        let Some(visitor) = parts.extensions.get::<Visitor>().copied() else {
            log::error!("a request reached the wizard without saying where it came from");
            return Err(page::foreign());
        };
        if visitor.distance == Distance::Foreign {
            return Err(page::foreign());
        }
        let given = token_in(&parts.headers, visitor.tls);
        let token = match given {
            Some(token) if setup.host().holds_claim(token.clone()).await.map_err(refuse)? => {
                Some(token)
            }
            _ => None,
        };
        Ok(Self { visitor, token })
    }
}

/// Somebody who showed the code, and how far they are.
pub(crate) struct Claimer {
    pub(crate) visitor: Visitor,
    pub(crate) token: ClaimToken,
    pub(crate) wizard: Wizard,
    /// Said once, on top of the page.
    pub(crate) notice: Option<String>,
    /// How they call this box: the `Host` header, which the gateway has checked.
    pub(crate) host: String,
}

impl<H: Host> FromRequestParts<Setup<H>> for Claimer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, setup: &Setup<H>) -> Result<Self, Response> {
        let Neighbour { visitor, token } = Neighbour::from_request_parts(parts, setup).await?;
        let Stored { mut wizard, notice } = setup.read().await.map_err(refuse)?;
        let Some(token) = token else {
            return Err(Redirect::to(entrance(setup, &wizard).await?).into_response());
        };
        match wizard.step() {
            Step::Done => return Err(Redirect::to("/").into_response()),
            // The notes were lost, the claim was not.
            Step::Claim => wizard = setup.claimed().await.map_err(refuse)?,
            _ => {}
        }
        let host = (parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()))
            .or(parts.uri.authority().map(|a| a.as_str()))
            .unwrap_or("localhost")
            .to_owned();
        Ok(Self { visitor, token, wizard, notice, host })
    }
}

impl Claimer {
    /// Instead of a page that comes later: leads to where the person is.
    pub(crate) fn elsewhere_before(&self, step: Step) -> Option<Response> {
        let here = self.wizard.step();
        (here < step).then(|| go(here))
    }
}

/// Leads to a step's page.
pub(crate) fn go(step: Step) -> Response {
    Redirect::to(step.path()).into_response()
}

/// A page that says why something was not done.
pub(crate) fn refuse(error: SetupError) -> Response {
    let status = match &error {
        SetupError::NotNow(_) => StatusCode::CONFLICT,
        SetupError::Claim(_) => StatusCode::FORBIDDEN,
        SetupError::Notes(_) => StatusCode::INTERNAL_SERVER_ERROR,
        SetupError::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    page::problem(status, &error.to_string())
}

/// `/setup` itself: leads to where the person is.
async fn doorstep(claimer: Claimer) -> Response {
    go(claimer.wizard.step())
}

/// Where somebody without a claim is led: away from a box that is set up, unless a code would be
/// taken.
async fn entrance<H: Host>(setup: &Setup<H>, wizard: &Wizard) -> Result<&'static str, Response> {
    if wizard.step() == Step::Done && setup.host().window().await.map_err(refuse)? == Window::Closed
    {
        return Ok("/");
    }
    Ok(Step::Claim.path())
}

/// The cookie of the claim. `__Host-` keeps a neighbour under the same domain from planting one,
/// and needs TLS.
const fn cookie_name(tls: bool) -> &'static str {
    if tls { "__Host-polder-claim" } else { "polder-claim" }
}

pub(crate) fn cookie(token: &ClaimToken, tls: bool) -> HeaderValue {
    set_cookie(&token.0, if tls { "; Secure" } else { "" }, tls)
}

pub(crate) fn no_cookie(tls: bool) -> HeaderValue {
    set_cookie("", if tls { "; Secure; Max-Age=0" } else { "; Max-Age=0" }, tls)
}

fn set_cookie(value: &str, more: &str, tls: bool) -> HeaderValue {
    let text = format!("{}={value}; Path=/; HttpOnly; SameSite=Strict{more}", cookie_name(tls));
    HeaderValue::from_str(&text).expect("a claim token is letters and digits")
}

fn token_in(headers: &HeaderMap, tls: bool) -> Option<ClaimToken> {
    let pairs = headers
        .get_all(header::COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    let mut named = pairs.filter_map(|pair| pair.trim().split_once('=')).filter(|(name, value)| {
        *name == cookie_name(tls) && !value.is_empty() && value.len() <= 256
    });
    let (_, value) = named.next()?;
    Some(ClaimToken(value.to_owned()))
}

async fn script(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text).into_response()
}
