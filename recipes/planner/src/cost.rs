//! What it costs to buy and to keep, and what that is for each member.

use polder_recipes::{BoxSpec, Label};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::quantity::{Quantity, Span, Unit};
use crate::text;

/// What the box costs; amortisation is in here exactly once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// The machine; none where no price is known.
    pub purchase: Option<Span>,
    /// UPS and electrician.
    pub installation: Option<Span>,
    /// Trying models out before buying.
    pub audition: Span,
    /// Tuning a model once.
    pub tuning: Span,
    /// All one-time costs.
    pub one_time: Option<Span>,
    /// One-time costs spread over the months.
    pub amortisation: Option<Span>,
    /// Electricity; none where the watts are unknown.
    pub electricity: Option<Quantity>,
    /// Internet.
    pub network: Span,
    /// Electricity and internet.
    pub running: Option<Span>,
    /// Amortisation, electricity and internet.
    pub monthly: Option<Span>,
    /// That, for each member.
    pub per_member: Option<Span>,
    /// A support contract, for each member, if the collective wants one and there is one.
    pub support_per_member: Option<Span>,
}

pub(crate) fn cost(spec: &BoxSpec, members: u32, assumed: &Assumptions) -> Cost {
    let once = |range: (f64, f64), label, note: &str| Span::new(range, Unit::Aud, label, note);
    let priced = |range: &polder_recipes::Range| {
        once((range.low, range.high), range.label, range.note.as_deref().unwrap_or("as listed"))
    };
    let purchase = spec.price.as_ref().map(priced);
    let installation = spec.installation.as_ref().map(priced);
    let audition = once(assumed.audition, Label::Estimate, "rented machines, some weeks");
    let tuning = once(assumed.tuning, Label::Estimate, "rented machines, a few runs");
    let one_time = purchase.as_ref().map(|purchase| {
        let parts = [Some(purchase), installation.as_ref(), Some(&audition), Some(&tuning)];
        let parts: Vec<&Span> =
            parts.into_iter().flatten().filter(|part| part.high > 0.0).collect();
        sum(&parts, Unit::Aud, Label::Estimate)
    });
    let months = assumed.amortisation_months.max(1.0);
    let amortisation = one_time.as_ref().map(|all| {
        Span::new(
            (all.low / months, all.high / months),
            Unit::AudPerMonth,
            Label::Estimate,
            format!("{all} / {months} months"),
        )
    });
    let electricity = spec.power_watts.as_ref().map(|watts| {
        let kwh = watts.value / 1000.0 * assumed.hours_per_month;
        Quantity::new(
            kwh * assumed.kwh_price,
            Unit::AudPerMonth,
            Label::Estimate,
            format!(
                "{} W x {} h = {} kWh x A${:.2}",
                text::whole(watts.value),
                assumed.hours_per_month,
                text::whole(kwh),
                assumed.kwh_price
            ),
        )
    });
    let network = Span::new(
        assumed.network,
        Unit::AudPerMonth,
        Label::Estimate,
        "from a home line to a business line",
    );
    let running = electricity.as_ref().map(|electricity| {
        let power = as_span(electricity);
        let parts: Vec<&Span> =
            [&power, &network].into_iter().filter(|part| part.high > 0.0).collect();
        sum(&parts, Unit::AudPerMonth, Label::Estimate)
    });
    let monthly = amortisation
        .as_ref()
        .zip(running.as_ref())
        .map(|(once, running)| sum(&[once, running], Unit::AudPerMonth, Label::Estimate));
    let people = f64::from(members.max(1));
    let per_member = monthly.as_ref().map(|all| {
        Span::new(
            (all.low / people, all.high / people),
            Unit::AudPerMonth,
            Label::Estimate,
            format!("{all} / {members} members"),
        )
    });
    let support_per_member = spec.support_per_year.as_ref().map(|year| {
        Span::new(
            (year.low / 12.0 / people, year.high / 12.0 / people),
            Unit::AudPerMonth,
            year.label,
            format!("{} a year / 12 / {members} members", priced(year)),
        )
    });
    Cost {
        purchase,
        installation,
        audition,
        tuning,
        one_time,
        amortisation,
        electricity,
        network,
        running,
        monthly,
        per_member,
        support_per_member,
    }
}

fn as_span(quantity: &Quantity) -> Span {
    let both = (quantity.value, quantity.value);
    Span::new(both, quantity.unit, quantity.label, quantity.formula.clone())
}

fn sum(parts: &[&Span], unit: Unit, label: Label) -> Span {
    let low = parts.iter().map(|part| part.low).sum();
    let high = parts.iter().map(|part| part.high).sum();
    let write = |part: &&Span| {
        if part.low == part.high { part.to_string() } else { format!("({part})") }
    };
    let formula = parts.iter().map(write).collect::<Vec<_>>().join(" + ");
    Span::new((low, high), unit, label, formula)
}
