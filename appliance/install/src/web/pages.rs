//! What a browser shows: the code, the disks, one disk, and what is being written.

use axum::extract::{DefaultBodyLimit, Extension, Form, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use http::{HeaderMap, StatusCode, header};
use maud::{Markup, html};
use polder_control::{Run, RunState, StepState};
use polder_gateway::Peer;
use polder_gateway::host::request_host;
use polder_gateway::origin::check_origin;
use polder_members::ClaimRefused;
use polder_page::{
    ASSETS, CONTENT_SECURITY_POLICY, Field, Nav, Page, StepMark, Tone, banner, field, steps,
};
use serde::Deserialize;

use super::Face;
use crate::disks::Disk;
use crate::installer::sentence;
use crate::paint::{View, figures};

/// Forms here are a few words.
const LONGEST_FORM: usize = 4 << 10;
/// `__Host-`: only over TLS, only for this host, only on all of it.
const COOKIE: &str = "__Host-polder-install";

/// Everything that is served.
pub(super) fn routes(face: Face) -> Router {
    let mut router = Router::new()
        .route("/", get(home))
        .route("/progress", get(progress))
        .route("/disk/{name}", get(disk).post(begin))
        .route("/dismiss", post(dismiss))
        .route("/power", post(power))
        .layer(from_fn_with_state(face.clone(), only_with_the_code))
        .route("/code", get(|| async { Redirect::to("/") }).post(code));
    for asset in ASSETS.iter() {
        let answer = ([(header::CONTENT_TYPE, asset.kind)], asset.body);
        router = router.route(&asset.path, get(move || async move { answer }));
    }
    router
        .fallback(|| async { (StatusCode::NOT_FOUND, Redirect::to("/")) })
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .layer(from_fn_with_state(face.clone(), only_neighbours))
        .layer(middleware::map_response(locked_up))
        .with_state(face)
}

/// Browsers on local networks, which came by one of the machine's own names, from pages of ours.
async fn only_neighbours(State(face): State<Face>, request: Request, next: Next) -> Response {
    let refuse = |why: String| (StatusCode::FORBIDDEN, why + "\n").into_response();
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return refuse("it is not known where this request comes from".to_owned());
    };
    if !peer.is_local_network() {
        return refuse("Polder is installed from the machine's own network only".to_owned());
    }
    let headers = request.headers();
    let host = match request_host(request.uri(), headers) {
        Ok(host) => host,
        Err(error) => return refuse(error.to_string()),
    };
    if let Err(error) = host.is_known(&face.0.site, peer.local.ip()) {
        return refuse(error.to_string());
    }
    match check_origin(request.method(), headers, &host, true, true) {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(error.to_string()),
    }
}

/// Everybody else sees where to type it.
async fn only_with_the_code(
    State(face): State<Face>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let holds = match cookie(&headers) {
        Some(cookie) => face.holds(cookie).await,
        None => false,
    };
    match holds {
        true => next.run(request).await,
        false => ask_for_the_code(&face, None).into_response(),
    }
}

async fn locked_up(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, header::HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::CACHE_CONTROL, "no-store");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "same-origin");
    response
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then(|| value.to_owned()))
}

fn page(title: &str, reload: Option<u32>, body: Markup) -> Html<String> {
    let page = Page { title, narrow: true, reload, ..Page::default() };
    Html(page.render(&Nav::default(), body).into_string())
}

fn ask_for_the_code(face: &Face, error: Option<&str>) -> Html<String> {
    let view = face.0.installer.view().borrow().clone();
    let open = view.web.as_ref().is_some_and(|web| web.code.is_some());
    let code = Field {
        name: "code",
        label: "Code",
        hint: "Three groups of five letters and digits, as the machine shows them. \
               Capitals, spaces and dashes do not matter.",
        error: error.unwrap_or_default(),
        required: true,
        autofocus: true,
        ..Field::default()
    };
    page(
        "Install Polder",
        None,
        html! {
            @if open {
                p { "This machine runs from a stick and can put Polder onto one of its disks. Whoever shows the code from its screen may do that." }
                form .stack method="post" action="/code" {
                    (field(&code))
                    button type="submit" { "Go on" }
                }
            } @else {
                p { "The code was used, or its time is over. On the machine itself press c for a new one, then load this page again." }
            }
        },
    )
}

#[derive(Deserialize)]
struct Code {
    #[serde(default)]
    code: String,
}

async fn code(
    State(face): State<Face>,
    Extension(peer): Extension<Peer>,
    Form(Code { code }): Form<Code>,
) -> Response {
    match face.claim(code, peer.remote.ip()).await {
        Ok(token) => {
            let cookie =
                format!("{COOKIE}={}; Path=/; Secure; HttpOnly; SameSite=Strict", token.expose());
            ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
        }
        Err(ClaimRefused::Wrong) => {
            let why = "That is not the code, or it was used already.";
            (StatusCode::FORBIDDEN, ask_for_the_code(&face, Some(why))).into_response()
        }
        Err(ClaimRefused::TooMany { seconds }) => {
            let why = format!("Too many wrong codes. Wait {seconds} seconds.");
            (StatusCode::TOO_MANY_REQUESTS, ask_for_the_code(&face, Some(&why))).into_response()
        }
        Err(ClaimRefused::Failed(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

async fn home(State(face): State<Face>) -> Html<String> {
    let view = face.0.installer.view().borrow().clone();
    match &view.run {
        Some(run) => {
            let reload = (run.state == RunState::Running).then_some(2);
            page(
                "Install Polder",
                reload,
                html! {
                    div data-refresh="/progress" data-every="1000" { (running(&view, run)) }
                },
            )
        }
        None => page("Install Polder", None, disks(&view)),
    }
}

async fn progress(State(face): State<Face>) -> Response {
    let view = face.0.installer.view().borrow().clone();
    match &view.run {
        Some(run) => Html(running(&view, run).into_string()).into_response(),
        None => ([("x-polder-next", "/")], "").into_response(),
    }
}

fn notes(view: &View) -> Markup {
    let seed = view.bad_seed.as_ref().filter(|_| view.run.is_none());
    html! { @for note in seed.into_iter().chain(&view.note) { (banner(Tone::Warn, html! { p { (note) } })) } }
}

fn disks(view: &View) -> Markup {
    html! {
        (notes(view))
        p { "Polder goes onto a disk inside this machine. Everything on that disk is lost." }
        @if view.disks().iter().all(|disk| disk.refusal.is_some()) {
            p { "There is no disk here that Polder could go onto. Put one in, then load this page again." }
        }
        @for disk in view.disks() {
            section.card {
                h2 { (disk.title()) }
                @match &disk.refusal {
                    Some(why) => p .soft { "Not this one: " (why) "." },
                    None => {
                        p { "On it: " (disk.holds()) "." }
                        p { a .button href=(format!("/disk/{}", disk.name)) { "Choose " (disk.name) } }
                    },
                }
            }
        }
        (power_buttons("The machine"))
    }
}

fn power_buttons(title: &str) -> Markup {
    html! {
        section.card {
            h2 { (title) }
            form method="post" action="/power" {
                button .quiet type="submit" name="how" value="restart" { "Start it again" }
                " "
                button .quiet type="submit" name="how" value="off" { "Turn it off" }
            }
        }
    }
}

fn running(view: &View, run: &Run) -> Markup {
    let mark = |state: &StepState| match state {
        StepState::Done => StepMark::Done,
        StepState::Running(_) => StepMark::Now,
        StepState::Failed(_) => StepMark::Failed,
        StepState::Waiting => StepMark::Later,
    };
    let all: Vec<(StepMark, String)> = run
        .plan
        .steps
        .iter()
        .zip(&run.steps)
        .map(|(step, state)| {
            let figures = match state {
                StepState::Running(Some(progress)) => figures(progress),
                _ => String::new(),
            };
            (mark(state), format!("{}{figures}", step.title))
        })
        .collect();
    let lines: Vec<_> = all.iter().map(|(mark, text)| (*mark, text.as_str())).collect();
    html! {
        p { (run.plan.title) }
        (notes(view))
        (steps("What is done", &lines))
        @match &run.state {
            RunState::Running => p { "Leave the machine on and the stick in." },
            RunState::Failed(why) => {
                (banner(Tone::Bad, html! { p { "Polder is not installed: " (why) "." } }))
                form method="post" action="/dismiss" data-done { button type="submit" { "Back to the disks" } }
            },
            _ => {
                div data-done {
                    (banner(Tone::Good, html! { p { "Polder is on the disk, and what was read back is right." } }))
                    p { "Start the machine again, and take the stick out while it does. Then open " code { "https://polder.local/" } "." }
                    (power_buttons("Now"))
                }
            },
        }
    }
}

async fn disk(State(face): State<Face>, Path(name): Path<String>) -> Response {
    let view = face.0.installer.view().borrow().clone();
    confirm(&view, &name, None)
}

fn confirm(view: &View, name: &str, error: Option<&str>) -> Response {
    let disk = view.disks().iter().find(|disk| disk.name == name && disk.refusal.is_none());
    let Some(disk) = disk.filter(|_| view.run.is_none()) else {
        return Redirect::to("/").into_response();
    };
    page("All of it will be lost", None, question(disk, error)).into_response()
}

fn question(disk: &Disk, error: Option<&str>) -> Markup {
    let label = format!("To go on, type the disk's name, {}", disk.name);
    let typed = Field {
        name: "name",
        label: &label,
        error: error.unwrap_or_default(),
        required: true,
        autofocus: true,
        ..Field::default()
    };
    html! {
        section.card {
            h2 { (disk.title()) }
            p { "On it:" }
            ul {
                @for line in &disk.content { li { (line) } }
                @if disk.content.is_empty() { li { "nothing that this machine knows" } }
            }
        }
        form .stack method="post" action=(format!("/disk/{}", disk.name)) {
            (field(&typed))
            button .danger type="submit" { "Wipe " (disk.name) " and put Polder on it" }
        }
        p { a href="/" { "Back to the disks" } }
    }
}

#[derive(Deserialize)]
struct Typed {
    #[serde(default)]
    name: String,
}

async fn begin(
    State(face): State<Face>,
    Path(name): Path<String>,
    Form(typed): Form<Typed>,
) -> Response {
    let view = face.0.installer.view().borrow().clone();
    if typed.name.trim() != name {
        return confirm(&view, &name, Some("That was another name."));
    }
    let installer = face.0.installer.clone();
    match tokio::task::spawn_blocking(move || installer.begin(&name)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => face.0.installer.say(Some(sentence(&error))),
        Err(error) => log::error!("{error}"),
    }
    Redirect::to("/").into_response()
}

async fn dismiss(State(face): State<Face>) -> Redirect {
    let installer = face.0.installer.clone();
    let _ = tokio::task::spawn_blocking(move || installer.dismiss()).await;
    Redirect::to("/")
}

#[derive(Deserialize)]
struct Power {
    how: String,
}

async fn power(State(face): State<Face>, Form(Power { how }): Form<Power>) -> Response {
    let installer = face.0.installer.clone();
    let off = how == "off";
    // The answer leaves before the machine does.
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let _ = tokio::task::spawn_blocking(move || installer.power(off)).await;
    });
    let words =
        if off { "It turns itself off." } else { "It starts again. Take the stick out now." };
    page("The machine", None, html! { p { (words) } }).into_response()
}
