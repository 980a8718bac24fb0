use std::net::IpAddr;

use polder_site::{InterfaceName, UplinkName};
use serde::{Deserialize, Serialize};

/// To the part that looks after the uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WanRequest {
    /// → [`WanReply::Status`].
    Status,
}

/// From it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WanReply {
    /// How the uplinks are.
    Status(WanStatus),
}

/// The ways out of the box, and which one is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WanStatus {
    /// In the order in which they are preferred. Empty where the site names none.
    pub uplinks: Vec<UplinkStatus>,
    /// Why the one that is used is used, in words.
    pub why: String,
    /// To which one the box goes back, and in how many seconds at most, if all stays as it is.
    pub back: Option<(UplinkName, u64)>,
    /// What could not be done, and what to do about it.
    pub trouble: Option<String>,
}

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// Its name in the site.
    pub name: UplinkName,
    /// Its interface.
    pub interface: InterfaceName,
    /// Somebody pays for what goes through it.
    pub metered: bool,
    /// What is sent goes out here.
    pub in_use: bool,
    /// How it is.
    pub state: UplinkState,
    /// For how many seconds.
    pub for_seconds: u64,
    /// Lost of the last probes, in percent.
    pub loss_percent: u32,
    /// How long an answer takes, on average of the last probes.
    pub delay_ms: Option<u32>,
    /// How often it was lost within the last hour.
    pub lost_lately: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Targets that never answer while others do.
    pub silent_targets: Vec<String>,
}

/// How an uplink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkState {
    /// Its cable is out, or its interface is not there.
    NoCable,
    /// It has no address, or nobody who passes on.
    NoAddress,
    /// Nobody answers.
    Silent,
    /// Answers came again, not yet for long.
    Returning,
    /// Too much is lost or late.
    Poor,
    /// It works.
    Good,
}

impl WanStatus {
    /// The uplink that is used.
    pub fn in_use(&self) -> Option<&UplinkStatus> {
        self.uplinks.iter().find(|uplink| uplink.in_use)
    }

    /// One sentence for everybody: how the box reaches the internet.
    pub fn sentence(&self) -> String {
        match self.in_use() {
            None => "The box uses the network as this machine has it.".to_owned(),
            Some(uplink) if uplink.state == UplinkState::Good => {
                format!("The box reaches the internet through {}.", uplink.name)
            }
            Some(uplink) if uplink.state == UplinkState::Poor => format!(
                "The box reaches the internet through {}, which is slow or loses much; there is no better way just now.",
                uplink.name
            ),
            Some(_) => "The box does not reach the internet: none of its uplinks works.".to_owned(),
        }
    }
}

impl UplinkState {
    /// How it is, in the words of whoever has to look at the cable.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoCable => "no cable, or the device at its other end is off",
            Self::NoAddress => "cable is in, but no address came from the router",
            Self::Silent => "connected, but nobody out there answers",
            Self::Returning => "answers again; being watched before it is trusted",
            Self::Poor => "works badly: much is lost or late",
            Self::Good => "works",
        }
    }
}

impl UplinkStatus {
    /// Whether it works, for how long, and how well.
    pub fn sentence(&self) -> String {
        let mut said = format!("{}, for {}", self.state.words(), time(self.for_seconds));
        if matches!(self.state, UplinkState::Good | UplinkState::Poor) {
            said += &format!("; {} % lost", self.loss_percent);
            if let Some(delay) = self.delay_ms {
                said += &format!(", {delay} ms to answer");
            }
        }
        match self.lost_lately {
            0 => {}
            1 => said += "; lost once in the last hour",
            n => said += &format!("; lost {n} times in the last hour"),
        }
        if !self.silent_targets.is_empty() {
            said += &format!("; {} never answers", self.silent_targets.join(" and "));
        }
        said
    }
}

/// A time as people say it.
fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(state: UplinkState) -> UplinkStatus {
        UplinkStatus {
            name: "fibre".parse().unwrap(),
            interface: "enp1s0".parse().unwrap(),
            metered: false,
            in_use: true,
            state,
            for_seconds: 7300,
            loss_percent: 0,
            delay_ms: Some(12),
            lost_lately: 2,
            addresses: Vec::new(),
            silent_targets: Vec::new(),
        }
    }

    #[test]
    fn an_uplink_is_told_in_words_that_say_where_to_look() {
        assert_eq!(
            uplink(UplinkState::Good).sentence(),
            "works, for 2 hours; 0 % lost, 12 ms to answer; lost 2 times in the last hour"
        );
        assert_eq!(
            UplinkStatus { lost_lately: 0, ..uplink(UplinkState::NoCable) }.sentence(),
            "no cable, or the device at its other end is off, for 2 hours"
        );
        let status = |state| WanStatus { uplinks: vec![uplink(state)], ..WanStatus::default() };
        assert!(status(UplinkState::Good).sentence().ends_with("through fibre."));
        assert!(status(UplinkState::Silent).sentence().contains("does not reach the internet"));
        assert!(WanStatus::default().sentence().contains("as this machine has it"));
    }
}
