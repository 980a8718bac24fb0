//! A number that says what it is, where it comes from and how far to trust it.

use std::fmt;

use polder_recipes::Label;
use serde::{Serialize, Serializer};

use crate::text;

/// One number of an estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantity {
    /// In `unit`; always finite.
    pub value: f64,
    /// What it counts.
    pub unit: Unit,
    /// How it was worked out, with the actual numbers put in.
    pub formula: String,
    /// How it is known.
    pub label: Label,
}

/// A number that lies between two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// At least, in `unit`.
    pub low: f64,
    /// At most, in `unit`.
    pub high: f64,
    /// What it counts.
    pub unit: Unit,
    /// How it was worked out, with the actual numbers put in.
    pub formula: String,
    /// How it is known.
    pub label: Label,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Bytes per token of a conversation.
    BytesPerToken,
    /// Conversations of a given length.
    Conversations,
    /// Experts of one layer.
    Experts,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Tokens per second.
    TokensPerSecond,
    /// Floating-point operations per token.
    FlopPerToken,
    /// Australian dollars, once.
    Aud,
    /// Australian dollars per month.
    AudPerMonth,
}

impl Unit {
    /// As it is written behind a number, and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "B",
            Self::BytesPerToken => "B/token",
            Self::Conversations => "conversations",
            Self::Experts => "experts",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::TokensPerSecond => "tokens/s",
            Self::FlopPerToken => "FLOP/token",
            Self::Aud => "AUD",
            Self::AudPerMonth => "AUD/month",
        }
    }

    fn write(self, value: f64) -> String {
        match self {
            Self::Bytes => text::bytes(value),
            Self::BytesPerToken => format!("{} B", text::whole(value)),
            Self::Conversations => text::whole(value.floor()),
            Self::Experts => format!("{value:.1}"),
            Self::Milliseconds => format!("{} ms", text::short(value)),
            Self::Seconds => format!("{} s", text::short(value)),
            Self::TokensPerSecond => text::short(value),
            Self::FlopPerToken => format!("{:.1} GFLOP", value / 1e9),
            Self::Aud | Self::AudPerMonth => format!("A${}", text::whole(value)),
        }
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Quantity {
    pub(crate) fn new(value: f64, unit: Unit, label: Label, formula: impl Into<String>) -> Self {
        debug_assert!(value.is_finite(), "{unit:?} is {value}");
        Self { value, unit, formula: formula.into(), label }
    }

    pub(crate) fn computed(value: f64, unit: Unit, formula: impl Into<String>) -> Self {
        Self::new(value, unit, Label::Computed, formula)
    }
}

impl Span {
    pub(crate) fn new(
        (low, high): (f64, f64),
        unit: Unit,
        label: Label,
        formula: impl Into<String>,
    ) -> Self {
        Self { low, high, unit, formula: formula.into(), label }
    }
}

/// For people: `124.1 GB`, `582`, `A$5,000`.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.unit.write(self.value))
    }
}

/// For people: `A$87 to 142`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.unit.write(self.low), self.unit.write(self.high));
        if low == high {
            return f.pad(&low);
        }
        f.pad(&format!("{low} to {}", high.trim_start_matches("A$")))
    }
}
