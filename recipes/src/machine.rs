use serde::{Deserialize, Serialize};

use crate::check;
use crate::error::RecipeError;

/// A machine that a collective may have or buy, as the planner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxSpec {
    /// Its name on the command line: `dgx-station-gb300`.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Names by which a driver reports its graphics card; whole words, in this order.
    #[serde(default)]
    pub gpu: Vec<String>,
    /// Words that tell a slower sibling apart (`Laptop`).
    #[serde(default)]
    pub not_gpu: Vec<String>,
    /// Where weights and live conversations are: the graphics card's memory, or on a machine
    /// without one its main memory.
    pub fast: Tier,
    /// Where conversations wait that are not being answered. Unknown: this is one of many
    /// machines that the card may sit in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<Tier>,
    /// Bytes per second between main memory and the graphics card; bounds the slow tier where
    /// that is a machine's main memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<Figure>,
    /// Multiplications and additions per second, dense, 16-bit.
    pub compute: Figure,
    /// Watts at full work, the whole machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<Figure>,
    /// Australian dollars for the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Range>,
    /// Australian dollars to set it up: UPS, electrician.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Range>,
    /// Australian dollars a year for a support contract, which is optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub support_per_year: Option<Range>,
    /// What a person should know about these figures, a sentence each.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// One kind of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// `HBM3e`, `LPDDR5X`, `main memory`.
    pub kind: String,
    /// Bytes.
    pub bytes: Figure,
    /// Bytes read per second.
    pub bandwidth: Figure,
}

/// A number about a machine, and how it is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// In the unit of its field.
    pub value: f64,
    /// How it is known.
    pub label: Label,
    /// More about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// An amount between two bounds, and how it is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
    /// How it is known.
    pub label: Label,
    /// More about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a number is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// Follows from other numbers by the formula shown.
    Computed,
    /// The maker says so.
    Vendor,
    /// Someone measured it.
    Measured,
    /// A guess to plan with.
    Estimate,
}

impl Label {
    /// As one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Vendor => "vendor",
            Self::Measured => "measured",
            Self::Estimate => "estimate",
        }
    }
}

impl BoxSpec {
    /// The longest box description that is read.
    pub const MAX_TOML_BYTES: usize = 64 << 10;

    /// Reads and checks a box.
    ///
    /// # Errors
    /// One sentence that says which field is wrong and how.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let spec: Self = check::read("box", text, Self::MAX_TOML_BYTES)?;
        check::machine(&spec)?;
        Ok(spec)
    }

    /// Whether there is no graphics card in it that Polder knows.
    pub fn is_cpu(&self) -> bool {
        self.gpu.is_empty()
    }

    /// This machine as a box: the known one whose graphics card it has, with the memory that was
    /// found, or else the `cpu` box with this machine's memory.
    ///
    /// `gpus`: what the driver calls each card, and its memory in bytes if known.
    pub fn for_machine<S: AsRef<str>>(gpus: &[(S, Option<u64>)], memory_bytes: u64) -> Self {
        let known = |(name, bytes): &(S, Option<u64>)| {
            Self::builtin()
                .iter()
                .find(|spec| spec.has_card(name.as_ref()))
                .map(|spec| (spec, *bytes))
        };
        // The plan counts one card: the one with the most memory.
        let best = gpus
            .iter()
            .filter_map(known)
            .max_by_key(|(spec, bytes)| bytes.unwrap_or(spec.fast.bytes.value as u64));
        let Some((spec, bytes)) = best else {
            return Self::cpu(gpus, memory_bytes);
        };
        let mut spec = spec.clone();
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            spec.fast.bytes = found(bytes, "as the driver reports it");
        }
        // A box whose slow memory is part of it (GB300) keeps its own figures.
        if spec.slow.is_none() && memory_bytes > 0 {
            spec.slow = spec.host_link.clone().map(|bandwidth| Tier {
                kind: "main memory".into(),
                bytes: found(memory_bytes, "as the system reports it"),
                bandwidth,
            });
        }
        if gpus.len() > 1 {
            spec.remarks.push(format!(
                "This machine has {} graphics cards; the plan counts one of them.",
                gpus.len()
            ));
        }
        spec
    }

    fn cpu<S: AsRef<str>>(gpus: &[(S, Option<u64>)], memory_bytes: u64) -> Self {
        let mut spec = Self::find("cpu").expect("the cpu box is built in; a test reads it").clone();
        if memory_bytes > 0 {
            spec.fast.bytes = found(memory_bytes, "as the system reports it");
        }
        if let Some((name, _)) = gpus.first() {
            let name: String = name.as_ref().chars().filter(|c| !c.is_control()).take(60).collect();
            spec.remarks.push(format!(
                "The graphics card {name:?} is not one that Polder knows; the plan counts the processor alone."
            ));
        }
        spec
    }

    /// Whether this is the machine that a card sits in, by the name that the driver reports.
    pub fn has_card(&self, name: &str) -> bool {
        let words = words(name);
        let has = |wanted: &String| {
            let wanted = self::words(wanted);
            !wanted.is_empty() && words.windows(wanted.len()).any(|part| part == wanted)
        };
        self.gpu.iter().any(has) && !self.not_gpu.iter().any(has)
    }
}

fn found(bytes: u64, note: &str) -> Figure {
    Figure { value: bytes as f64, label: Label::Measured, note: Some(note.into()) }
}

/// A card's name in words, so that `GH200` is not taken for an `H200`.
fn words(name: &str) -> Vec<String> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(32)
        .map(str::to_ascii_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(gpu: &str, bytes: Option<u64>) -> BoxSpec {
        BoxSpec::for_machine(&[(gpu, bytes)], 64 << 30)
    }

    #[test]
    fn a_known_card_gives_its_box_with_the_memory_that_was_found() {
        let spec = named("NVIDIA H200", Some(150_754_820_096));
        assert_eq!(spec.name, "h200-141");
        assert_eq!(spec.fast.bytes.value, 150_754_820_096.0);
        assert_eq!(spec.fast.bytes.label, Label::Measured);
        assert_eq!(spec.slow.unwrap().bytes.value, (64_u64 << 30) as f64);
        assert_eq!(named("NVIDIA H100 80GB HBM3", None).name, "h100-80");
        assert_eq!(named("NVIDIA GeForce RTX 4090", None).name, "rtx-4090-24");
        assert_eq!(named("NVIDIA GeForce RTX 5090", None).name, "rtx-5090-32");
        assert_eq!(named("NVIDIA GB300", None).name, "dgx-station-gb300");
    }

    #[test]
    fn a_card_that_only_looks_alike_is_not_taken_for_a_known_one() {
        for other in ["NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 40900", ""] {
            let spec = named(other, Some(1 << 40));
            assert_eq!(spec.name, "cpu", "{other:?}");
            assert!(spec.remarks.iter().any(|line| line.contains(other)), "{:?}", spec.remarks);
        }
    }

    #[test]
    fn a_machine_without_a_card_is_a_cpu_box_with_its_own_memory() {
        let spec = BoxSpec::for_machine::<&str>(&[], 24 << 30);
        assert!(spec.is_cpu());
        assert_eq!(spec.fast.bytes.value, (24_u64 << 30) as f64);
        assert_eq!(spec.slow, None);
    }

    #[test]
    fn of_two_cards_the_larger_is_planned_with_and_that_is_said() {
        let cards = [("NVIDIA GeForce RTX 4090", None), ("NVIDIA GeForce RTX 5090", None)];
        let spec = BoxSpec::for_machine(&cards, 1 << 36);
        assert_eq!(spec.name, "rtx-5090-32");
        assert!(spec.remarks.iter().any(|line| line.contains("2 graphics cards")));
    }

    #[test]
    fn the_station_keeps_its_own_slow_memory() {
        assert_eq!(named("NVIDIA GB300", None).slow.unwrap().bytes.value, 496e9);
    }
}
