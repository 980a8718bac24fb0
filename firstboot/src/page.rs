//! How every page of the wizard looks: one idea, where you are, what comes next.

use axum::response::{Html, IntoResponse, Response};
use http::{StatusCode, header};
use maud::{Markup, html};
use polder_page::{Nav, StepMark, Tone, banner, steps};

use crate::wizard::Step;

/// One page.
pub(crate) struct Page {
    title: &'static str,
    step: Option<Step>,
    notice: Option<String>,
    body: Markup,
    next: Option<&'static str>,
    script: Option<&'static str>,
    reload: Option<u32>,
    wide: bool,
}

impl Page {
    /// The page of a step.
    pub(crate) fn new(step: Step) -> Self {
        Self { step: Some(step).filter(|s| s.number().is_some()), ..Self::titled(step.title()) }
    }
    /// A page of its own that belongs to a step.
    pub(crate) fn beside(step: Step, title: &'static str) -> Self {
        Self { title, ..Self::new(step) }
    }
    /// A page beside the steps.
    pub(crate) fn titled(title: &'static str) -> Self {
        Self {
            title,
            step: None,
            notice: None,
            body: html! {},
            next: None,
            script: None,
            reload: None,
            wide: false,
        }
    }
    /// A sentence above everything else.
    pub(crate) fn notice(mut self, notice: Option<&str>) -> Self {
        self.notice = notice.map(str::to_owned);
        self
    }
    pub(crate) fn body(mut self, body: Markup) -> Self {
        self.body = body;
        self
    }
    /// What happens after this page; continues "Next: ".
    pub(crate) fn next(mut self, next: &'static str) -> Self {
        self.next = Some(next);
        self
    }
    /// A script of ours that makes the page nicer; it has to work without.
    pub(crate) fn script(mut self, path: &'static str) -> Self {
        self.script = Some(path);
        self
    }
    /// For tables.
    pub(crate) fn wide(mut self) -> Self {
        self.wide = true;
        self
    }
    /// Without scripts the page loads itself again after so many seconds.
    pub(crate) fn reload(mut self, seconds: u32) -> Self {
        self.reload = Some(seconds);
        self
    }

    fn markup(&self) -> Markup {
        let scripts: Vec<&str> = self.script.into_iter().collect();
        let shell = polder_page::Page {
            title: self.title,
            scripts: &scripts,
            reload: self.reload,
            narrow: !self.wide,
            bare: true,
            ..polder_page::Page::default()
        };
        shell.render(
            &Nav::default(),
            html! {
                @if let Some(step) = self.step { (progress(step)) }
                h1 { (self.title) }
                @if let Some(notice) = &self.notice { (banner(Tone::Warn, html! { p { (notice) } })) }
                (self.body)
                @if let Some(next) = self.next { p .soft { strong { "Next: " } (next) } }
                @if let Some(before) = self.step.and_then(before) {
                    p { a href=(before.path()) { "Back to: " (before.title()) } }
                }
            },
        )
    }
}

/// Where one is among the steps.
fn progress(step: Step) -> Markup {
    let mark = |other: Step| match other.cmp(&step) {
        std::cmp::Ordering::Less => StepMark::Done,
        std::cmp::Ordering::Equal => StepMark::Now,
        std::cmp::Ordering::Greater => StepMark::Later,
    };
    let all: Vec<_> =
        Step::NUMBERED.into_iter().map(|other| (mark(other), other.in_short())).collect();
    html! {
        @if let Some(number) = step.number() {
            p .soft { "Step " (number) " of " (Step::NUMBERED.len()) }
        }
        (steps("The steps of the set-up", &all))
    }
}

/// The page to go back to: not the claim, whose code is used up.
fn before(step: Step) -> Option<Step> {
    Step::NUMBERED.into_iter().rfind(|other| *other < step && *other > Step::Claim)
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        // A page of the wizard shows what is so now, and one of them a key.
        ([(header::CACHE_CONTROL, "no-store")], Html(self.markup().into_string())).into_response()
    }
}

/// A page that says why nothing was done.
pub(crate) fn problem(status: StatusCode, why: &str) -> Response {
    let body = html! {
        (error(why))
        p { a .button href="/setup" { "Go back to where you were" } }
    };
    (status, Page::titled("That did not work").body(body)).into_response()
}

/// For somebody who is not on a network of this machine.
pub(crate) fn foreign() -> Response {
    let why = "a box can only be set up from its own network; \
               go to the machine, or to a computer on the same network, and open this page there";
    (StatusCode::FORBIDDEN, Page::titled("Not from here").body(error(why))).into_response()
}

/// Why something was not done, above the form that may be sent again.
pub(crate) fn error(why: &str) -> Markup {
    banner(Tone::Bad, html! { p { (sentence(why)) } })
}

/// Errors are written to be part of a longer line; alone they are a sentence.
pub(crate) fn sentence(why: &str) -> String {
    let mut letters = why.trim().chars();
    let mut text: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    text.push_str(letters.as_str());
    if !text.ends_with(['.', '!', '?', ':']) {
        text.push('.');
    }
    text
}
