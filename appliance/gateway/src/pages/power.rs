//! The power: how the battery is and what comes next, for the dashboard, and which UPS is watched, for stewards to choose.

use std::path::Path;
use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{PowerPhase, Reply, Request, Supply};
use polder_page::{Choice, Field, Page, Tone, badge, banner, facts, field, select};
use polder_power::find::ups_below;
use polder_site::{PowerPlan, SiteChange, UpsRole};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    ups: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    low_charge: String,
    #[serde(default)]
    start_charge: String,
    #[serde(default)]
    card_percent: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let wish = gateway.status().site.power.as_ref().map(Wish::of).unwrap_or_default();
    Ok(page(&gateway, &who, html! {}, &wish).await)
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let before = gateway.status().site.power.clone();
    let change = wish.plan(before).map(SiteChange::Power);
    let checked = change.and_then(|change| {
        let site = change.applied_to(&gateway.status().site);
        site.check().map(|()| change).map_err(|error| error.to_string())
    });
    match checked {
        Ok(change) => run(&gateway, &who, change).await,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why)) } });
            let page = page(&gateway, &who, wrong, &wish).await;
            Ok(with_status(StatusCode::BAD_REQUEST, page))
        }
    }
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    run(&gateway, &who, SiteChange::RemovePower).await
}

/// A UPS has to be heard; the run's page shows whether it is.
async fn run(gateway: &Gateway, who: &SignedIn, change: SiteChange) -> Result<Response, Trouble> {
    match gateway.ask(Request::Apply { change, by: who.actor() }).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

impl Wish {
    fn of(plan: &PowerPlan) -> Self {
        Self {
            ups: plan.ups.to_string(),
            role: if plan.role == UpsRole::Secondary { "secondary" } else { "primary" }.to_owned(),
            low_charge: plan.low_charge.to_string(),
            start_charge: plan.start_charge.to_string(),
            card_percent: plan.card_percent.map(|p| p.to_string()).unwrap_or_default(),
        }
    }

    /// What they want; what the form does not ask stays as it was.
    fn plan(&self, before: Option<PowerPlan>) -> Result<PowerPlan, String> {
        let ups =
            self.ups.trim().parse().map_err(|e: polder_site::UpsAddressError| e.to_string())?;
        let mut plan = match before {
            Some(plan) => PowerPlan { ups, ..plan },
            None => PowerPlan::of(ups),
        };
        plan.role = match self.role.as_str() {
            "secondary" => UpsRole::Secondary,
            _ => UpsRole::Primary,
        };
        let percent = |text: &str, usual: u8| match text.trim() {
            "" => Ok(usual),
            text => text
                .parse()
                .map_err(|_| format!("{text:?} is no percentage; write a whole number such as 30")),
        };
        plan.low_charge = percent(&self.low_charge, plan.low_charge)?;
        plan.start_charge = percent(&self.start_charge, plan.start_charge)?;
        plan.card_percent = match self.card_percent.trim() {
            "" => None,
            text => Some(percent(text, 100)?),
        };
        Ok(plan)
    }
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup, wish: &Wish) -> Response {
    let status = gateway.status();
    let look = || ups_below(Path::new("/sys/bus/usb/devices"));
    let found = tokio::task::spawn_blocking(look).await.unwrap_or_default();
    let body = html! {
        (top)
        @if let Some(supply) = &status.supply { (card(supply)) }
        section.card {
            h2 { @if status.site.power.is_some() { "The UPS" } @else { "Live off a UPS" } }
            p.soft { "When the mains is away, the box lives off this UPS: imports wait, then new long answers are refused, and before the battery is empty every answer comes to a proper end, everything is written down, and the machine turns itself off. When the mains is back and the battery charged, it goes on." }
            @for ups in &found {
                p { "Plugged in here: " (ups.name) " (" code { (ups.id) } "), for which NUT's driver is " code { (ups.driver) } "." }
            }
            form.stack method="post" action="/power" {
                div.fields {
                    (field(&Field { name: "ups", label: "Which UPS", hint: "Its name, and the machine whose upsd looks after it: ups@localhost", value: &wish.ups, required: true, ..Field::default() }))
                    (select("role", "This box", "", &[
                        Choice { value: "primary", label: "looks after the UPS" },
                        Choice { value: "secondary", label: "is told by another machine" },
                    ], &wish.role))
                    (field(&Field { name: "low_charge", label: "Stop at this charge", hint: "Percent; usually 30", value: &wish.low_charge, ..Field::default() }))
                    (field(&Field { name: "start_charge", label: "Start engines from this charge on", hint: "Percent; usually 40", value: &wish.start_charge, ..Field::default() }))
                    (field(&Field { name: "card_percent", label: "Power of graphics cards on battery", hint: "Percent of the usual; empty leaves them alone", value: &wish.card_percent, ..Field::default() }))
                }
                div.row { button type="submit" { "Listen to it" } }
            }
            p.soft.small { "If upsd wants a name and a password before other machines are told, the name is power.user of site.toml (usually polder) and the password the first line of " code { "power/password" } " in the box's state folder." }
            @if status.site.power.is_some() {
                form method="post" action="/power/remove" data-confirm="Watch it no more? A power cut then cuts every answer off." {
                    button.danger type="submit" { "Watch it no more" }
                }
            }
        }
    };
    let page = Page {
        title: "Power",
        lead: Some("What the box does when its mains is away."),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/dashboard"), body)
}

/// How the power is: on the dashboard, and above its settings.
pub(super) fn card(supply: &Supply) -> Markup {
    let (tone, word) = match (supply.phase, supply.on_mains) {
        (PowerPhase::Mains, Some(true)) => (Tone::Good, "on mains"),
        (PowerPhase::Mains, _) => (Tone::Warn, "not heard"),
        (PowerPhase::OnBattery, _) => (Tone::Warn, "on battery"),
        (PowerPhase::Saving, _) => (Tone::Warn, "on battery, saving"),
        (_, _) => (Tone::Bad, "stopping"),
    };
    let or = |value: Option<String>| html! { (value.unwrap_or_else(|| "the UPS does not say".to_owned())) };
    html! {
        section.card {
            div.row.spread { h2 { "The power" } (badge(tone, word)) }
            p { (supply.words) }
            div.row {
                (picture(supply.charge))
                (facts(&[
                    ("Battery", or(supply.charge.map(|charge| format!("{charge} %")))),
                    ("Lasts", or(supply.runtime.map(|seconds| format!("{} minutes", seconds / 60)))),
                    ("Load", or(supply.load.map(|load| format!("{load} %")))),
                ]))
            }
            @if supply.replace_battery {
                (banner(Tone::Warn, html! { p { "The UPS asks for a new battery: this one may not last as long as it says." } }))
            }
            @if let Some(test) = &supply.last_test { p.soft.small { "Last test of the battery, " (test) } }
            p.soft.small { a href="/power" { "Which UPS, and when the box stops" } }
        }
    }
}

/// A battery, as full as it is.
fn picture(charge: Option<u8>) -> Markup {
    let width = charge.map_or(0, |charge| u32::from(charge.min(100)) * 36 / 100);
    let words = charge.map_or("Battery".to_owned(), |charge| format!("Battery at {charge} %"));
    html! {
        svg role="img" aria-label=(words) viewBox="0 0 48 24" width="96" height="48" {
            rect x="1" y="3" width="40" height="18" rx="3" fill="none" stroke="currentColor" stroke-width="2" {}
            rect x="43" y="9" width="4" height="6" rx="1" fill="currentColor" {}
            rect x="3" y="5" width=(width) height="14" rx="1" fill="currentColor" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_form_does_not_ask_stays_as_it_was() {
        let mut before = PowerPlan::of("ups@localhost".parse().unwrap());
        before.margin = 300;
        let wish = Wish { low_charge: "35".into(), ..Wish::of(&before) };
        let plan = wish.plan(Some(before)).unwrap();
        assert_eq!((plan.margin, plan.low_charge, plan.start_charge), (300, 35, 40));
        for (ups, low_charge) in [("here", "30"), ("ups@h", "many"), ("ups@h", "300")] {
            let wish = Wish { ups: ups.into(), low_charge: low_charge.into(), ..Wish::default() };
            assert!(wish.plan(None).is_err(), "{ups} {low_charge}");
        }
    }

    #[test]
    fn a_battery_is_drawn_as_full_as_it_is_and_what_comes_next_is_said() {
        let supply = Supply {
            phase: PowerPhase::Saving,
            on_mains: Some(false),
            charge: Some(50),
            runtime: Some(725),
            words: "It saves.".into(),
            replace_battery: true,
            ..Supply::default()
        };
        let shown = card(&supply).into_string();
        for wanted in [
            "on battery, saving",
            "It saves.",
            "Battery at 50 %",
            "width=\"18\"",
            "12 minutes",
            "new battery",
            "the UPS does not say",
        ] {
            assert!(shown.contains(wanted), "no {wanted:?} in {shown}");
        }
    }
}
