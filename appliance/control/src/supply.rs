use serde::{Deserialize, Serialize};

/// How far the box has gone towards turning itself off, because its mains is away.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PowerPhase {
    /// Nothing is wrong.
    #[default]
    Mains,
    /// The battery carries the box: stewards are told, imports and batch work wait.
    OnBattery,
    /// It lasts: less power for graphics cards, no new long answers.
    Saving,
    /// It will not last: nothing new, answers come to a proper end, parts write down what they have and stop.
    Draining,
    /// The UPS is told that its power will go, and with it everybody who lives off it. From here there is no way back.
    TellSecondaries,
    /// The machine is turned off.
    PowerOff,
}

impl PowerPhase {
    /// The UPS was told; that the mains is back does not change anything any more.
    pub fn is_final(self) -> bool {
        self >= Self::TellSecondaries
    }
    /// Whether imports and batch work wait.
    pub fn pauses_work(self) -> bool {
        self >= Self::OnBattery
    }
    /// Whether long answers are begun.
    pub fn refuses_long_work(self) -> bool {
        self >= Self::Saving
    }
    /// Whether anything is begun.
    pub fn refuses_all_work(self) -> bool {
        self >= Self::Draining
    }
}

/// To the part that watches the UPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerRequest {
    /// Is it up? → [`PowerReply::Ready`].
    Ready,
}

/// From it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerReply {
    /// It is up. How the power is, it tells the supervisor.
    Ready,
}

/// The box's power at one moment, as the part that watches the UPS tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supply {
    /// How far things have gone.
    pub phase: PowerPhase,
    /// What the UPS is fed by; none while nobody knows.
    pub on_mains: Option<bool>,
    /// Percent of its battery.
    pub charge: Option<u8>,
    /// Seconds that it lasts by its own count.
    pub runtime: Option<u64>,
    /// Percent of what it can carry.
    pub load: Option<u8>,
    /// Seconds since it was last heard of, or since it was first listened for in vain, where that is too long ago.
    pub silent: Option<u64>,
    /// It asks for a new battery.
    pub replace_battery: bool,
    /// Engines may start: after a power cut the battery is charged first.
    pub may_start: bool,
    /// What is and what comes next, as one or two sentences for people.
    pub words: String,
    /// The last test of the battery, in words.
    #[serde(default)]
    pub last_test: Option<String>,
    /// When the battery that is in it was last tested, Unix seconds.
    #[serde(default)]
    pub tested: Option<i64>,
    /// What the UPS said of that battery's last test, where it failed.
    #[serde(default)]
    pub test_failed: Option<String>,
    /// Since when the battery is in it, Unix seconds, as the UPS or a steward says.
    #[serde(default)]
    pub battery_since: Option<i64>,
    /// When the UPS itself was made, Unix seconds, where it says so. Its battery may be another one by now.
    #[serde(default)]
    pub ups_made: Option<i64>,
}
