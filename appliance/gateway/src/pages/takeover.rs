//! Which of two boxes serves: taking over, giving back, and sending models to the spare; for stewards.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Plan, Reply, Request, Stand, TakeoverStatus, TakeoverWish};
use polder_page::{Field, Page, StepMark, Tone, badge, banner, field, hidden, steps};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// What is asked for, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    /// The main box's name, typed by somebody who says that it is dead.
    #[serde(default)]
    dead: String,
    /// That the main box never comes back, in a sentence.
    #[serde(default)]
    gone: String,
    /// The person has seen the steps.
    #[serde(default)]
    seen: String,
}

#[derive(Deserialize)]
pub(super) struct Silence {
    #[serde(default)]
    yields: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    page(&gateway, &who, html! {}).await
}

pub(super) async fn take(
    gateway: State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let dead = Some(wish.dead.trim().to_owned()).filter(|name| !name.is_empty());
    step(&gateway, &who, &wish, TakeoverWish::TakeOver { dead }, "/spare/takeover").await
}

pub(super) async fn back(
    gateway: State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    step(&gateway, &who, &wish, TakeoverWish::GiveBack, "/spare/takeover/back").await
}

/// The box that stands in is the main box, for good.
pub(super) async fn stay(
    gateway: State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let gone = Some(wish.gone.trim().to_owned());
    step(&gateway, &who, &wish, TakeoverWish::BecomeMain { gone }, "/spare/takeover/stay").await
}

pub(super) async fn send(
    gateway: State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    step(&gateway, &who, &wish, TakeoverWish::Send, "/spare/takeover/send").await
}

pub(super) async fn silence(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(silence): Form<Silence>,
) -> Result<Response, Trouble> {
    let yields = silence.yields == "yes";
    match gateway.ask(Request::Yield { yields, by: who.actor() }).await {
        Ok(_) => Ok(Redirect::to("/spare/takeover").into_response()),
        Err(why) => wrong(&gateway, &who, &why.to_string()).await,
    }
}

/// First the steps are shown, then they are done.
async fn step(
    gateway: &Gateway,
    who: &SignedIn,
    form: &Wish,
    wish: TakeoverWish,
    action: &str,
) -> Result<Response, Trouble> {
    if form.seen.is_empty() {
        return match gateway.ask(Request::PreviewTakeover(wish)).await {
            Ok(Reply::Preview { plan, .. }) => Ok(about_to(gateway, who, &plan, form, action)),
            Ok(_) => Err(Trouble::odd_answer()),
            Err(why) => wrong(gateway, who, &why.to_string()).await,
        };
    }
    match gateway.ask(Request::TakeOver { wish, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => wrong(gateway, who, &why.to_string()).await,
    }
}

async fn wrong(gateway: &Gateway, who: &SignedIn, why: &str) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top).await?))
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let status = match gateway.ask(Request::Takeover).await? {
        Reply::Takeover(status) => status,
        _ => return Err(Trouble::odd_answer()),
    };
    let body = html! {
        (top)
        @match &status {
            None => section.card {
                h2 { "No other box" }
                p { "This box is paired with no other. " a href="/spare" { "Pair it with one" } " first; then either can go on where the other stops." }
            },
            Some(status) if status.is_spare => (on_spare(status)),
            Some(status) => (on_main(status)),
        }
        p { a href="/spare" { "Back to the pair" } }
    };
    let page = Page {
        title: "Takeover",
        lead: Some(
            "Which of the two boxes serves the collective, and how the other one goes on in its place.",
        ),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/spare/takeover"), body))
}

fn on_spare(status: &TakeoverStatus) -> Markup {
    let other = &status.other;
    if status.stand != Stand::Own {
        return html! {
            section.card {
                div.row.spread { h2 { "This box serves for " (other) } (badge(Tone::Warn, "stands in")) }
                p { "Members, keys and names are those of " (other) ", and nobody had to change anything. While this lasts no backups are made elsewhere, unless you name a place on the page Backups." }
                @if status.main_is_there {
                    p { (other) " is there again, and serves nothing. Giving back hands it everything that happened here since; members see a pause of a minute or so." }
                    form method="post" action="/spare/takeover/back" { button type="submit" { "See what giving back would do" } }
                } @else {
                    p.soft { (other) " is away. When it is on again and reaches this box, you can give back here." }
                }
            }
            section.card {
                h2 { "The other machine is gone for good" }
                p { "It burnt, was stolen, or nobody will mend it. Then this box stays in its place, and can have a spare of its own:" }
                @if let Ok(sentences) = &status.outlook { ul { @for sentence in sentences { li { (sentence) } } } }
                form.stack method="post" action="/spare/takeover/stay" autocomplete="off" {
                    (field(&Field { name: "gone", label: "Type this sentence, if it is so", hint: &TakeoverWish::gone_for_good(other), required: true, ..Field::default() }))
                    button.danger type="submit" { "See what would be done" }
                }
            }
        };
    }
    html! {
        section.card {
            div.row.spread { h2 { (other) " serves" } (badge(Tone::Good, "this is its spare")) }
            @match &status.outlook {
                Ok(sentences) => {
                    p { "It is silent. This box can go on in its place:" }
                    ul { @for sentence in sentences { li { (sentence) } } }
                    form.stack method="post" action="/spare/takeover" autocomplete="off" {
                        (field(&Field { name: "dead", label: "Type its name: it is off, and stays off", hint: "leave it empty where it stops by itself", ..Field::default() }))
                        button type="submit" { "See what would be done" }
                    }
                },
                Err(why) => p { "No takeover now: " (why) "." },
            }
        }
    }
}

fn on_main(status: &TakeoverStatus) -> Markup {
    let other = &status.other;
    html! {
        section.card {
            @match status.stand {
                Stand::Waits => div.row.spread { h2 { "This box does not serve" } (badge(Tone::Warn, "it cannot hear its spare")) },
                _ => div.row.spread { h2 { "This box serves" } (badge(Tone::Good, "it has a spare")) },
            }
            p { "If it stops, " (other) " can go on in its place: a steward says so there, on the page Takeover of that box, at its own name. When this box comes back it asks " (other) " before it lets anybody in." }
        }
        (anyway(other, status.stand == Stand::Waits))
        section.card {
            h2 { "Models on the spare" }
            p { "The spare serves this box's models where it has them and they fit, and its own smaller one where not. They are sent by their fingerprints: what is there is not sent again, what was cut goes on where it was, and over a metered way out it waits." }
            form method="post" action="/spare/takeover/send" { button type="submit" { "See what would be sent" } }
        }
        section.card {
            h2 { "When the spare cannot be heard" }
            @if status.yields {
                p { "This box stops after a minute. Then two can never serve at once, and nobody has to type a name; but where the spare or the network between the two fails, this box serves nobody until they are back." }
                form method="post" action="/spare/takeover/silence" { (hidden("yields", "no")) button.quiet type="submit" { "Go on serving instead" } }
            } @else {
                p { "This box goes on. A takeover then needs a steward at the spare who says that this box is off." }
                form method="post" action="/spare/takeover/silence" { (hidden("yields", "yes")) button.quiet type="submit" { "Stop serving instead" } }
            }
        }
    }
}

/// How somebody at the machine lets a box serve that waits for its spare, and what that may cost. A page only tells: whoever reaches it from elsewhere
/// has not seen the other machine.
pub(crate) fn anyway(other: &str, waits: bool) -> Markup {
    let other = if other.is_empty() { "its spare" } else { other };
    html! {
        section.card {
            h2 { @if waits { "For whoever looks after this box" } @else { "If this box ever waits for its spare" } }
            p { "When it comes back it asks " (other) " who serves, and lets nobody in before it has heard. If that machine is broken, is away, or a cable is out, the box waits. First look there: turn " (other) " on, and see that its cable is in." }
            p { "If " (other) " is certainly not serving, somebody who stands at this machine can let it serve all the same, at its own screen and keyboard:" }
            pre { code { "polder spare serve-anyway" } }
            p { "Be sure before you type it: you have seen with your own eyes that " (other) " is off, or its own page Takeover says that it is at rest. If both serve, it is like two people who keep the same books without knowing of each other. Members get answers from both, what one of them writes down the other lacks, a key that was taken away on one still opens the other, and in the end one of the two is thrown away with everything in it." }
            p.soft { "It is written into the audit trail. A box that had promised to stop in a silence takes that back with it. It holds until the machine was off for a minute; then it asks again." }
        }
    }
}

fn about_to(gateway: &Gateway, who: &SignedIn, plan: &Plan, form: &Wish, action: &str) -> Response {
    let body = html! {
        section.card {
            h2 { (plan.title) }
            div.stack { (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>())) }
            form method="post" action=(action) {
                (hidden("dead", &form.dead))
                (hidden("gone", &form.gone))
                (hidden("seen", "yes"))
                button type="submit" { "Do it" }
            }
            p.soft { "While the boxes change places this page may be gone for a minute; then look at the other one, or sign in here again." }
            p { a href="/spare/takeover" { "Back" } }
        }
    };
    let page = Page { title: "Takeover", narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/spare/takeover"), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(is_spare: bool, stand: Stand) -> TakeoverStatus {
        let outlook = Ok(vec!["elm becomes <oak>.".to_owned()]);
        let main_is_there = true;
        TakeoverStatus {
            is_spare,
            other: "oak".into(),
            stand,
            term: 1,
            yields: false,
            outlook,
            main_is_there,
        }
    }

    #[test]
    fn a_spare_shows_what_a_takeover_means_and_one_that_serves_how_to_give_back() {
        let text = on_spare(&status(true, Stand::Own)).into_string();
        assert!(text.contains("becomes &lt;oak&gt;") && text.contains("name=\"dead\""), "{text}");
        let text = on_spare(&status(true, Stand::Serves)).into_string();
        assert!(text.contains("/spare/takeover/back") && !text.contains("name=\"dead\""), "{text}");
        assert!(text.contains("oak is gone for good") && text.contains("/spare/takeover/stay"));
        let away = TakeoverStatus { main_is_there: false, ..status(true, Stand::Serves) };
        assert!(!on_spare(&away).into_string().contains("/spare/takeover/back"));
        let text = on_main(&status(false, Stand::Serves)).into_string();
        assert!(text.contains("/spare/takeover/send") && text.contains("silence"), "{text}");
        // The page names the command and what it may cost, and has no button for it.
        assert!(text.contains("polder spare serve-anyway") && text.contains("asks oak"), "{text}");
        assert!(text.contains("a key that was taken away") && !text.contains("takeover/serve"));
        assert!(text.contains("If this box ever waits"), "{text}");
        let waits = on_main(&status(false, Stand::Waits)).into_string();
        assert!(waits.contains("For whoever looks after") && waits.contains("does not serve"));
    }
}
