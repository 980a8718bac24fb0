//! What is around every page: where one can go, what was done, what went wrong.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use polder_members::{Member, MembersError};
use polder_page::{Nav, NavGroup, NavLink, Page, Tone, banner};

use crate::{AskError, Gateway};

/// Of everybody: what they came for.
const FIRST: &[(&str, &str)] = &[("/", "Home"), ("/chat", "Chat")];
/// Of every member: the rest. Stewards, who have more than a line holds, find it by what it is about.
const EVERYONE: &[(&str, &str)] = &[
    ("/connect", "Connect"),
    ("/usage", "Usage"),
    ("/money", "Money"),
    ("/collective", "Collective"),
    ("/handbook", "Handbook"),
    ("/status", "Status"),
];
/// Of stewards, by what somebody looks for who does not know our words.
const GROUPS: &[(&str, &[(&str, &str)])] = &[
    (
        "Yours",
        &[
            ("/connect", "Connect your programs"),
            ("/usage", "Usage"),
            ("/account", "Your account"),
            ("/handbook", "Handbook"),
        ],
    ),
    (
        "People",
        &[
            ("/members", "Members and invites"),
            ("/collective", "The collective"),
            ("/collective/stewards", "Stewards"),
            ("/collective/sheets", "Sheets to get back in"),
            ("/identity", "Sign in elsewhere"),
            ("/apps", "Apps beside the box"),
        ],
    ),
    (
        "Models",
        &[
            ("/models", "Models"),
            ("/models/change", "Change the model"),
            ("/elsewhere", "Servers elsewhere"),
            ("/registries", "Registries of images"),
        ],
    ),
    (
        "Machine",
        &[
            ("/dashboard", "How the box is"),
            ("/issues", "Health"),
            ("/versions", "Updates"),
            ("/audit", "Who did what"),
            ("/status", "What members see"),
            ("/shell", "Help from afar"),
            ("/moving", "Moving house"),
            ("/collective/end", "The end of the box"),
        ],
    ),
    (
        "Network and power",
        &[
            ("/uplinks", "Lines to the internet"),
            ("/outside", "Reaching it from outside"),
            ("/certificate", "Certificate"),
            ("/power", "Power and UPS"),
        ],
    ),
    (
        "Backups",
        &[
            ("/backup", "Backups"),
            ("/spare", "The spare"),
            ("/spare/takeover", "The spare takes over"),
        ],
    ),
    ("Money", &[("/money", "Money")]),
];

/// What is above the pages of somebody who is signed in.
pub(super) fn nav(gateway: &Gateway, member: &Member, here: &str) -> Nav {
    let links = |places: &'static [(&str, &str)]| {
        places.iter().map(|&(href, label)| NavLink { href, label, current: href == here })
    };
    let mut nav =
        Nav { box_name: box_name(gateway), who: Some(member.name.clone()), ..Nav::default() };
    nav.links.extend(links(FIRST));
    if member.is_steward() {
        for &(label, places) in GROUPS {
            match places {
                // A list of one would be a press more for nothing.
                [_] => nav.links.extend(links(places)),
                _ => nav.groups.push(NavGroup { label, links: links(places).collect() }),
            }
        }
    } else {
        nav.links.extend(links(EVERYONE));
    }
    nav
}

/// What is above the pages of a stranger: the box's name.
pub(super) fn plain_nav(gateway: &Gateway) -> Nav {
    Nav { box_name: box_name(gateway), ..Nav::default() }
}

fn box_name(gateway: &Gateway) -> String {
    gateway.status().site.name.to_string()
}

/// A whole page as an answer.
pub(crate) fn answer(page: &Page<'_>, nav: &Nav, body: Markup) -> Response {
    Html(page.render(nav, body).into_string()).into_response()
}

/// A piece of a page, for `data-refresh`.
pub(super) fn piece(body: Markup) -> Response {
    Html(body.into_string()).into_response()
}

/// The same answer, under another status.
pub(super) fn with_status(status: StatusCode, mut response: Response) -> Response {
    *response.status_mut() = status;
    response
}

/// Why nothing was done, when there is no better page to say it on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Something about members.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// The supervisor is away or said no.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Another sentence.
    #[error("{1}")]
    Say(StatusCode, String),
}

impl Trouble {
    pub(super) fn not_found(what: &str) -> Self {
        Self::Say(StatusCode::NOT_FOUND, what.to_owned())
    }
    /// The two sides are of different versions.
    pub(super) fn odd_answer() -> Self {
        Self::Say(
            StatusCode::BAD_GATEWAY,
            "the supervisor answered something else than was asked; restart the box".to_owned(),
        )
    }
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Members(error) => members_status(error),
            Self::Ask(AskError::Away(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Ask(AskError::Refused(_)) => StatusCode::BAD_REQUEST,
            Self::Say(status, _) => *status,
        }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        if self.status().is_server_error() {
            log::error!("a page could not be made: {self}");
        }
        problem(self.status(), &self.to_string())
    }
}

pub(super) fn members_status(error: &MembersError) -> StatusCode {
    use MembersError as E;
    match error {
        E::Field(_) | E::NameTaken(_) | E::LastSteward | E::WrongPassword | E::Claimed => {
            StatusCode::BAD_REQUEST
        }
        E::NoMember | E::NoKey => StatusCode::NOT_FOUND,
        E::InviteGone => StatusCode::GONE,
        E::SetupOver => StatusCode::FORBIDDEN,
        E::NeedsTwo(_) => StatusCode::FORBIDDEN,
        E::Busy => StatusCode::TOO_MANY_REQUESTS,
        E::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        E::Open { .. } | E::Newer { .. } | E::Database(_) | E::Random(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// A page with one sentence.
pub(crate) fn problem(status: StatusCode, why: &str) -> Response {
    let body = html! {
        (banner(Tone::Bad, html! { p { (sentence(why)) } }))
        p { a.button.quiet href="/" { "Back to the first page" } }
    };
    let page = Page { title: "That did not work", narrow: true, ..Page::default() };
    with_status(status, answer(&page, &Nav::default(), body))
}

/// The same under another host's name, where the box's own page and its style are at `own`.
pub(crate) fn problem_elsewhere(own: &str, why: &str) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                base href=(own);
                title { "That did not work" }
                link rel="stylesheet" href=(polder_page::style_path());
            }
            body {
                main.narrow {
                    div.heading { h1 { "That did not work" } }
                    (banner(Tone::Bad, html! { p { (sentence(why)) } }))
                    p { a.button.quiet href="/" { "To the box's own page" } }
                }
            }
        }
    };
    page.into_string()
}

/// What was just done, from the `said` of a redirect: only sentences that are written here.
pub(super) fn said(code: &str) -> Markup {
    let text = match code {
        "key-revoked" => {
            "The key is revoked. It opens nothing any more, and what it was running has ended."
        }
        "password" => "Your password is changed. You were signed out everywhere else.",
        "password-set" => "The new password is set. They were signed out everywhere.",
        "share" => "The new share counts from their next question on.",
        "withdrawn" => "The invite is withdrawn. Its link leads nowhere now.",
        "role" => "Done. They are a steward, or a member, as you chose.",
        "disabled" => {
            "They cannot sign in and their keys do not work, until you let them in again."
        }
        "enabled" => "They can sign in again, and their keys work again.",
        "removed" => {
            "They are removed, with everything that was kept about them; a model that does not run now forgets when it starts."
        }
        "policy" => "The box counts, and shows, as you chose.",
        "sharing" => "Members have together in the engine what you chose.",
        "conversations" => {
            "Forgotten. The keys to what was kept of your conversations are destroyed."
        }
        "conversations-soon" => {
            "Noted. Not every model could do it at once; what is left of your conversations goes as soon as it can."
        }
        "forgotten" => "What was counted about you is deleted.",
        "cancelled" => {
            "It stops. What was fetched so far stays, so that doing it again goes on from there."
        }
        "registry" => {
            "Images of this registry are fetched with that user and password from now on."
        }
        "registry-forgotten" => "Forgotten. Images of this registry are fetched as by a stranger.",
        "engine-removed" => {
            "The model is no longer served. Its files stay, so that it can be used again at once."
        }
        "app" => "The app is open. Its pages ask for the box's sign-in from now on.",
        "app-removed" => "The app is closed. The box passes nothing on to it any more.",
        "client-removed" => "Nobody signs in there with this box any more.",
        "identity" => "People can sign in there from now on. See whether it answers.",
        "identity-removed" => "People sign in with the box's own passwords only.",
        "app-back" => {
            "Taken back. What the app had of you opens nothing any more, and what it was asking in your name has ended."
        }
        "linked" => "You can sign in there from now on.",
        "unlinked" => "You sign in with your password only.",
        "verifier" => "The box asks that service from now on.",
        "verifier-removed" => "The box asks no other service any more.",
        "certificate" => {
            "The box gets its certificate by itself from now on. What it is doing is below."
        }
        "certificate-again" => "The box tries at once.",
        "certificate-removed" => {
            "The box has only its own certificate now. The names stay, and the other one is kept."
        }
        "updates" => "Updates are looked for there from now on.",
        "spare-hidden" => "The code is good no more.",
        "spare-unpaired" => "This box has forgotten the main box. Its backups are still here.",
        "spare-removed" => "The backups of former main boxes are removed.",
        "kit" => "The key is on paper. Now say where backups go.",
        "no-backup" => "No backups are made any more. Those there are stay.",
        "confirmed" => "It stays.",
        "alerts" => "Kept. Send a test to see whether it arrives.",
        "groups" => "The groups count again from their next sign-in on, and everybody is told.",
        "announced" => "Everybody sees it on their first page.",
        "proposed" => "It is proposed, and everybody is told. Another steward has to agree.",
        "replaced" => "It is done, and everybody is told.",
        "refused" => "It does not happen, and everybody is told.",
        "sheets" => "The three are told. Each of them finds their sheet on this page.",
        "sheet" => "It is on paper. The sheets are in force when all three are.",
        "sheets-whole" => "All three are on paper and in force. Earlier ones are good for nothing.",
        "end-asked" => {
            "It is asked for, and everybody is told. Nothing is erased until another steward agrees."
        }
        "end-back" => "It is taken back. Nothing was erased.",
        "money" => "Written down.",
        "money-name" => "The name is off the books. The entries stay under a number.",
        "leaving" => "Kept. It holds from your next question on.",
        "upstream" => "Kept. Press its test to see whether it answers.",
        "upstream-removed" => "The box asks it no more, and its key is forgotten.",
        "welcome" => "Welcome. This is your page of the box.",
        _ => return html! {},
    };
    banner(Tone::Good, html! { p { (text) } })
}

/// Errors are written to be part of a longer line; alone they are a sentence.
pub(crate) fn sentence(why: &str) -> String {
    let why = why.trim();
    let first = why.split(' ').next().unwrap_or_default();
    // A file's or a model's name stays what it is.
    let mut text = match first.contains(['_', '.', '/', '@', '-']) {
        true => why.to_owned(),
        false => {
            let mut letters = why.chars();
            let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
            first + letters.as_str()
        }
    };
    if !text.ends_with(['.', '!', '?', ':', '…']) {
        text.push('.');
    }
    text
}

/// Seconds since 1970, for "how long ago".
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
