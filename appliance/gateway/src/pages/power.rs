//! The power: how the battery is and what comes next, for the dashboard, and which UPS is watched, for stewards to choose.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use jiff::civil::Date;
use maud::{Markup, html};
use polder_control::{PowerPhase, Reply, Request, SecretText, Supply};
use polder_firstboot::{Chosen, Offers};
use polder_page::{Choice, Field, Page, Tone, badge, banner, facts, field, select};
use polder_power::around;
use polder_site::{PowerPlan, SiteChange, UpsAddressError, UpsLine, UpsLineError, UpsRole};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, piece, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    attached: String,
    #[serde(default)]
    line: String,
    #[serde(default)]
    ups: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    low_charge: String,
    #[serde(default)]
    start_charge: String,
    #[serde(default)]
    card_percent: String,
    /// What a form does not ask stays as it was: none is none of its fields.
    others: Option<String>,
    others_halt: Option<String>,
    battery_since: Option<String>,
}

/// Where else to look for one.
#[derive(Deserialize)]
pub(super) struct Asked {
    at: Option<String>,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(asked): Query<Asked>,
) -> Result<Response, Trouble> {
    let wish = now(&gateway);
    Ok(page(&gateway, &who, Shown { wish, at: asked.at, wrong: None }).await)
}

/// How things stand, again and again.
pub(super) async fn live(State(gateway): State<Arc<Gateway>>, Steward(_): Steward) -> Response {
    let status = gateway.status();
    piece(if status.site.power.is_some() {
        state(status.supply.as_ref())
    } else {
        html! {}
    })
}

/// One of the buttons beside what was found.
pub(super) async fn take(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(chosen): Form<Chosen>,
) -> Result<Response, Trouble> {
    match chosen.plan(gateway.status().site.power.clone()) {
        Ok(plan) => {
            if let Some(text) = chosen.password() {
                gateway.ask(Request::UpsPassword { text, by: who.actor() }).await?;
            }
            run(&gateway, &who, SiteChange::Power(plan)).await
        }
        Err(why) => {
            let shown = Shown { wrong: Some(why), wish: now(&gateway), at: None };
            Ok(with_status(StatusCode::BAD_REQUEST, page(&gateway, &who, shown).await))
        }
    }
}

/// The form as the site would fill it in.
fn now(gateway: &Gateway) -> Wish {
    gateway.status().site.power.as_ref().map(Wish::of).unwrap_or_default()
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
        Ok(change) => {
            if !wish.password.trim().is_empty() {
                let text = SecretText::new(&wish.password);
                gateway.ask(Request::UpsPassword { text, by: who.actor() }).await?;
            }
            run(&gateway, &who, change).await
        }
        Err(why) => {
            let page = page(&gateway, &who, Shown { wrong: Some(why), wish, at: None }).await;
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
        let (attached, line) = match &plan.attached {
            None => ("", String::new()),
            Some(UpsLine::Usb) => ("usb", String::new()),
            Some(UpsLine::Serial(line)) => ("serial", line.clone()),
            Some(UpsLine::Snmp(address)) => ("snmp", address.to_string()),
        };
        Self {
            attached: attached.to_owned(),
            line,
            ups: match attached {
                "" => plan.ups.to_string(),
                _ => String::new(),
            },
            password: String::new(),
            role: if plan.role == UpsRole::Secondary { "secondary" } else { "primary" }.to_owned(),
            low_charge: plan.low_charge.to_string(),
            start_charge: plan.start_charge.to_string(),
            card_percent: plan.card_percent.map(|p| p.to_string()).unwrap_or_default(),
            others: Some(plan.others.to_string()),
            others_halt: Some(plan.others_halt.to_string()),
            battery_since: plan.battery_since.map(|day| day.to_string()),
        }
    }

    /// What they want; what the form does not ask stays as it was.
    fn plan(&self, before: Option<PowerPlan>) -> Result<PowerPlan, String> {
        let line = self.line.trim();
        let attached = match self.attached.as_str() {
            "" => None,
            "usb" => Some("usb".to_owned()),
            kind => Some(format!("{kind}:{line}")),
        };
        let fresh = match attached {
            Some(attached) => {
                PowerPlan::attached(attached.parse().map_err(|e: UpsLineError| e.to_string())?)
            }
            None => {
                PowerPlan::of(self.ups.trim().parse().map_err(|e: UpsAddressError| e.to_string())?)
            }
        };
        let mut plan = match before {
            Some(plan) => PowerPlan { ups: fresh.ups, attached: fresh.attached, ..plan },
            None => fresh,
        };
        plan.role = match self.role.as_str() {
            "secondary" if plan.attached.is_none() => UpsRole::Secondary,
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
        let seconds = |text: &Option<String>, usual: u32| match text.as_deref().map(str::trim) {
            None | Some("") => Ok(usual),
            Some(text) => text.parse().map_err(|_| {
                format!("{text:?} is no number of seconds; write a whole number such as 60")
            }),
        };
        plan.others = seconds(&self.others, plan.others)?;
        plan.others_halt = seconds(&self.others_halt, plan.others_halt)?;
        match self.battery_since.as_deref().map(str::trim) {
            None => {}
            Some("") => plan.battery_since = None,
            Some(text) => plan.battery_since = Some(day(text)?),
        }
        Ok(plan)
    }
}

/// A day that has begun somewhere.
fn day(text: &str) -> Result<Date, String> {
    let day: Date = text.parse().map_err(|_| {
        let text: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
        format!("{text:?} is no day; write it as year, month and day, such as 2026-03-01")
    })?;
    let tomorrow = jiff::Zoned::now().date().tomorrow();
    if tomorrow.is_ok_and(|tomorrow| day > tomorrow) {
        return Err(format!(
            "{day} has not come yet; write the day on which the battery was put in"
        ));
    }
    Ok(day)
}

/// What a steward may have asked, and what came of it.
#[derive(Default)]
struct Shown {
    wrong: Option<String>,
    wish: Wish,
    at: Option<String>,
}

async fn page(gateway: &Gateway, who: &SignedIn, shown: Shown) -> Response {
    let status = gateway.status();
    let Shown { wrong, wish, at } = shown;
    let offers = offers(gateway, at).await;
    let watched = status.site.power.as_ref();
    let user = watched.map_or("polder", |plan| &plan.user);
    let ways = [
        Choice { value: "usb", label: "into this machine, by USB" },
        Choice { value: "serial", label: "into this machine, by a serial cable" },
        Choice { value: "snmp", label: "into the network, by a card of its own (SNMP)" },
        Choice { value: "", label: "into another machine, or this one's NUT looks after it" },
    ];
    let body = html! {
        @if let Some(why) = &wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
        @if watched.is_some() {
            div.stack data-refresh="/power/live" data-every="3000" { (state(status.supply.as_ref())) }
        }
        section.card {
            h2 { @if watched.is_some() { "What happens when the mains is away" } @else { "Live off a UPS" } }
            p.soft { "Imports wait, then new long answers are refused, and before the battery is empty every answer comes to a proper end, everything is written down, and the machine turns itself off. When the mains is back and the battery charged, it goes on." }
            @match watched {
                None => { p { "No UPS is listened to: a power cut ends the box in the middle of what it does." } }
                Some(plan) => {
                    p { "The box listens to " strong { (plan.ups) } @if let Some(line) = &plan.attached { ", plugged in as " code { (line) } } "." }
                    form method="post" action="/power/remove" data-confirm="Listen to it no more? A power cut then cuts every answer off." {
                        button.danger type="submit" { "Listen to it no more" }
                    }
                    p.hint { "From then on a power cut ends the box without warning." }
                }
            }
        }
        @if watched.is_some() && wrong.is_none() && offers.asked.is_none() {
            details { summary { "Another UPS" } div.stack { (offers.render("/power", "/power/use")) } }
        } @else {
            (offers.render("/power", "/power/use"))
        }
        section.card {
            h2 { "By hand" }
            p.soft { "For what the box does not find by itself, and for when it stops." }
            form.stack method="post" action="/power" {
                div.fields {
                    (select("attached", "How it is plugged in", "The first three where Polder's own image runs; elsewhere set NUT up on the machine", &ways, &wish.attached))
                    (field(&Field { name: "line", label: "Which line, or which address", hint: "For a serial cable such as ttyS1; for a card in the network such as 10.0.0.9", value: &wish.line, ..Field::default() }))
                    (field(&Field { name: "ups", label: "Or which UPS elsewhere", hint: "Its name, and the machine whose upsd looks after it: ups@10.0.0.2", value: &wish.ups, ..Field::default() }))
                    (field(&Field { name: "password", label: "Password for upsd", kind: "password", hint: "This box's at the other machine; for a UPS of its own, what other machines on it say to be told. Empty leaves it as it is", autocomplete: "off", ..Field::default() }))
                    (select("role", "This box", "", &[
                        Choice { value: "primary", label: "looks after the UPS" },
                        Choice { value: "secondary", label: "is told by another machine" },
                    ], &wish.role))
                    (field(&Field { name: "low_charge", label: "Stop at this charge", hint: "Percent; usually 30", value: &wish.low_charge, ..Field::default() }))
                    (field(&Field { name: "start_charge", label: "Start engines from this charge on", hint: "Percent; usually 40", value: &wish.start_charge, ..Field::default() }))
                    (field(&Field { name: "battery_since", label: "Battery put in on", kind: "date", hint: "Year, month, day, as on the battery's label or the bill; a day that the UPS itself tells and that is later counts more", value: wish.battery_since.as_deref().unwrap_or_default(), ..Field::default() }))
                    (field(&Field { name: "others", label: "Other machines on the UPS have", hint: "Seconds to say goodbye once they are told; usually 60, at most 3600", value: wish.others.as_deref().unwrap_or_default(), ..Field::default() }))
                    (field(&Field { name: "others_halt", label: "And need to be off after that", hint: "Seconds from their goodbye until they draw no power; usually 20, at most 300. The battery has to last for it: the box begins to stop that much sooner", value: wish.others_halt.as_deref().unwrap_or_default(), ..Field::default() }))
                    (field(&Field { name: "card_percent", label: "Power of graphics cards on battery", hint: "Percent of the usual; empty leaves them alone", value: &wish.card_percent, ..Field::default() }))
                }
                div.row { button type="submit" { "Listen to it" } }
                p.hint { "The box looks whether it hears the UPS, and takes the change back if not." }
            }
            p.soft.small { "To upsd at another machine this box is " code { (user) } "; and that is what other machines call themselves at this one. Without a password a UPS elsewhere is heard and nobody is told, and a UPS of this box's own is for this box alone." }
        }
    };
    let page = Page {
        title: "Power",
        lead: Some("What the box does when its mains is away."),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/power"), body)
}

/// How the power is, or that nobody knows yet, where a UPS is listened to.
fn state(supply: Option<&Supply>) -> Markup {
    match supply {
        Some(supply) => card(supply),
        None => html! {
            section.card {
                div.row.spread { h2 { "The power" } (badge(Tone::Warn, "not heard yet")) }
                p { "The UPS has not said anything yet. After a start that takes a moment; where it stays so, look at its cable." }
            }
        },
    }
}

/// What there is, as in the wizard.
async fn offers(gateway: &Gateway, at: Option<String>) -> Offers {
    let asked = async {
        let place = at.filter(|place| !place.trim().is_empty())?;
        let heard = around::at(&place).await.map_err(|error| error.to_string());
        Some((place, heard))
    };
    let own = gateway.ask(Request::Preview(Offers::own_change()));
    let (around, own, asked) = tokio::join!(around::look(), own, asked);
    let own = match own {
        Ok(Reply::Preview { plan, .. }) => Ok(plan),
        Ok(_) => Err(Trouble::odd_answer().to_string()),
        Err(error) => Err(error.to_string()),
    };
    Offers { usb: around.usb, here: around.here, own, asked }
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
                    ("Battery in since", html! { (battery_since(supply)) }),
                ]))
            }
            @if supply.replace_battery {
                (banner(Tone::Warn, html! { p { "The UPS asks for a new battery: this one may not last as long as it says." } }))
            }
            @if let Some(failed) = &supply.test_failed {
                (banner(Tone::Warn, html! { p { "The battery failed its last test: the UPS says “" (failed) "”. It may not last as long as it says." } }))
            }
            @if let Some(test) = &supply.last_test { p.soft.small { "Last test of the battery, " (test) } }
            p.soft.small { a href="/power" { "Which UPS, and when the box stops" } }
        }
    }
}

/// A UPS that says when it was made says nothing of its battery.
fn battery_since(supply: &Supply) -> String {
    match (supply.battery_since, supply.ups_made) {
        (Some(since), _) => month(since),
        (None, Some(made)) => format!("nobody has said; the UPS was made in {}", month(made)),
        (None, None) => "nobody has said".to_owned(),
    }
}

/// As precise as people remember it.
fn month(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "nobody knows".to_owned(), |at| at.strftime("%B %Y").to_string())
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
        let since = |text: &str| {
            let wish = Wish { battery_since: Some(text.into()), ..Wish::of(&plan) };
            wish.plan(Some(plan.clone())).map(|plan| Wish::of(&plan).battery_since)
        };
        assert_eq!(since("2023-05-01"), Ok(Some("2023-05-01".into())));
        assert_eq!(since(""), Ok(None));
        assert!(since("last spring").unwrap_err().contains("2026-03-01"));
        assert!(since("2199-01-01").unwrap_err().contains("has not come yet"));
        let halt = |text: &str| {
            let wish = Wish { others_halt: Some(text.into()), ..Wish::of(&plan) };
            wish.plan(Some(plan.clone())).map(|plan| plan.others_halt)
        };
        assert_eq!((halt("90"), halt("")), (Ok(90), Ok(20)));
        assert!(halt("soon").unwrap_err().contains("no number of seconds"));
        let own = |attached: &str, line: &str| {
            let wish = Wish { attached: attached.into(), line: line.into(), ..Wish::default() };
            wish.plan(None).map(|plan| (plan.ups.to_string(), Wish::of(&plan).line))
        };
        assert_eq!(own("usb", "ttyS9"), Ok(("ups@localhost".into(), String::new())));
        assert_eq!(own("serial", " ttyS1 "), Ok(("ups@localhost".into(), "ttyS1".into())));
        assert_eq!(own("snmp", "10.0.0.9"), Ok(("ups@localhost".into(), "10.0.0.9".into())));
        for (attached, line) in [("serial", "sda"), ("snmp", ""), ("parallel", "lp0")] {
            assert!(own(attached, line).unwrap_err().contains("serial:ttyS1"), "{attached} {line}");
        }
        for (ups, low_charge) in [("here", "30"), ("ups@h", "many"), ("ups@h", "300")] {
            let wish = Wish { ups: ups.into(), low_charge: low_charge.into(), ..Wish::default() };
            assert!(wish.plan(None).is_err(), "{ups} {low_charge}");
        }
    }

    #[test]
    fn a_ups_that_has_not_said_anything_is_not_passed_over() {
        assert!(state(None).into_string().contains("not heard yet"));
        let heard = Supply { on_mains: Some(true), ..Supply::default() };
        assert!(state(Some(&heard)).into_string().contains("on mains"));
    }

    #[test]
    fn the_day_on_which_a_ups_was_made_is_not_said_to_be_its_batterys() {
        let made = Supply { ups_made: Some(1_496_232_000), ..Supply::default() };
        assert!(
            card(&made).into_string().contains("nobody has said; the UPS was made in May 2017")
        );
        let said = Supply { battery_since: Some(1_700_000_000), ..made };
        let shown = card(&said).into_string();
        assert!(shown.contains("November 2023") && !shown.contains("2017"));
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
