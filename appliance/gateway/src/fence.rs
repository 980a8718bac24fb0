//! The closed door of a box in whose place another one serves, or may: nobody is let in, and no key is looked at.
//!
//! What a box does in its collective's name, towards the relay and towards certificate authorities, rests as well.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use maud::html;
use polder_control::{BoxStatus, Closed, Stand};
use polder_page::{Nav, Page, Tone, banner};
use polder_takeover::{Heard, Side, Term};
use tokio::sync::watch;

use crate::errors::ApiError;
use crate::pages;

/// Until the supervisor has said how it is: what the state folder says. One that cannot be read is no permission.
pub(crate) fn before_anybody_says(state: &Path) -> Option<Closed> {
    let stand = match Term::read(state) {
        Ok(None) => return None,
        Ok(Some(term)) => match polder_takeover::stand(&term, &Heard::default()) {
            Stand::Serves if term.side == Side::Main => Stand::Asks,
            stand => stand,
        },
        Err(error) => {
            log::error!("{error}");
            Stand::Waits
        }
    };
    (!stand.is_open()).then(|| Closed { stand, other: String::new() })
}

/// To everybody, whatever they ask and bring.
pub(crate) fn answer(closed: &Closed, api: bool) -> Response {
    let seconds = closed.retry_after();
    let sentence = closed.sentence();
    if api {
        let code = match closed.stand {
            Stand::Fenced => "spare_serves",
            Stand::Retired => "retired",
            _ => "not_serving",
        };
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, sentence)
            .after(seconds)
            .into_response();
    }
    let page = Page {
        title: match closed.stand {
            Stand::Fenced => "The spare serves now",
            Stand::Retired => "This machine is out for good",
            _ => "This box serves nothing just now",
        },
        reload: Some(u32::try_from(seconds).unwrap_or(30)),
        narrow: true,
        ..Page::default()
    };
    let body = html! {
        (banner(Tone::Warn, html! { p { (pages::sentence(&sentence)) } }))
        @if closed.stand == Stand::Waits { (pages::anyway(&closed.other, true)) }
    };
    let mut response = pages::bare(&page, &Nav::default(), body);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Comes back when a door that is open now is closed; never where it is closed already.
pub(crate) async fn shuts(mut status: watch::Receiver<Arc<BoxStatus>>) {
    if status.borrow().closed.is_some() {
        return std::future::pending().await;
    }
    if status.wait_for(|status| status.closed.is_some()).await.is_err() {
        std::future::pending().await
    }
}

/// Does something whenever the door is open, from its beginning each time, and drops it when the door is closed.
pub(crate) async fn while_open<F: Future<Output = ()>>(
    mut status: watch::Receiver<Arc<BoxStatus>>,
    mut work: impl FnMut() -> F,
) {
    loop {
        if status.wait_for(|status| status.closed.is_none()).await.is_err() {
            return;
        }
        tokio::select! {
            () = work() => return,
            () = shuts(status.clone()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_box_is_closed_until_somebody_says_otherwise_and_so_is_one_whose_term_is_damaged() {
        let state = tempfile::tempdir().unwrap();
        let stand = || before_anybody_says(state.path()).map(|closed| closed.stand);
        assert_eq!(stand(), None);
        std::fs::create_dir(state.path().join("spare")).unwrap();
        Term::first(Side::Main).keep(state.path()).unwrap();
        assert_eq!(stand(), Some(Stand::Asks));
        let mut spare = Term::first(Side::Spare);
        spare.keep(state.path()).unwrap();
        assert_eq!(stand(), None);
        spare.raise();
        let mut standing_in = spare.serving();
        standing_in.keep(state.path()).unwrap();
        assert_eq!(stand(), None);
        standing_in.give("x".to_owned());
        standing_in.keep(state.path()).unwrap();
        assert_eq!(stand(), Some(Stand::Handed));
        let out = Term { retired: true, ..Term::first(Side::Main) };
        out.keep(state.path()).unwrap();
        assert_eq!(stand(), Some(Stand::Retired));
        std::fs::write(Term::path(state.path()), "{").unwrap();
        assert_eq!(stand(), Some(Stand::Waits));
    }

    #[test]
    fn a_program_gets_503_and_when_to_try_again_and_a_person_a_page() {
        let closed = Closed { stand: Stand::Fenced, other: "elm".to_owned() };
        for api in [true, false] {
            let response = answer(&closed, api);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[RETRY_AFTER], "30");
        }
    }

    #[tokio::test]
    async fn a_box_that_waits_tells_whoever_looks_after_it_what_to_type_and_what_that_may_cost() {
        for (stand, told) in [(Stand::Waits, true), (Stand::Fenced, false), (Stand::Asks, false)] {
            let response = answer(&Closed { stand, other: "elm".to_owned() }, false);
            let page = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let page = String::from_utf8(page.to_vec()).unwrap();
            let says = |text: &str| assert_eq!(page.contains(text), told, "{text}: {page}");
            says("For whoever looks after this box");
            says("you have seen with your own eyes that elm is off");
            assert!(!page.contains("<form"), "{page}");
        }
    }
}
