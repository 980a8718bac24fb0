use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use polder_site::{InterfaceName, UplinkName};
use serde::{Deserialize, Serialize};

use crate::{Client, Sockets};

/// To the part that looks after the uplinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WanRequest {
    /// → [`WanReply::Status`].
    Status,
    /// By which address somebody outside sees what leaves through these interfaces → [`WanReply::Status`].
    Seen(BTreeMap<InterfaceName, IpAddr>),
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
    /// Who was told where the box is, or why they could not be; nothing where nobody is to be told.
    #[serde(default)]
    pub told: Option<String>,
}

/// How the uplinks are, as whoever looks after them says within a second; nothing where nobody does.
pub async fn wan_status(sockets: &Sockets) -> Option<WanStatus> {
    wan_asked(sockets, &WanRequest::Status).await
}

/// The same, as an answer to this.
pub async fn wan_asked(sockets: &Sockets, request: &WanRequest) -> Option<WanStatus> {
    let asking = async {
        let mut client: Client<WanRequest, WanReply> =
            Client::connect(&sockets.wan()).await.ok()?;
        let WanReply::Status(status) = client.ask(request).await.ok()?;
        Some(status)
    };
    tokio::time::timeout(Duration::from_secs(1), asking).await.ok().flatten()
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
    /// What came of asking its router for a port; nothing where it is not asked.
    #[serde(default)]
    pub port: Option<PortState>,
    /// From whom nobody answers here while the other family is well.
    #[serde(default)]
    pub dead: Option<Family>,
    /// What goes out here although another uplink is in use: it is dead there.
    #[serde(default)]
    pub stands_in: Option<Family>,
}

/// One of the two kinds of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// By whether it is IPv6.
    pub const fn of(six: bool) -> Self {
        if six { Self::V6 } else { Self::V4 }
    }

    /// As it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What a router made of the question for a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// It is being asked.
    Asking,
    /// It passes callers on.
    Mapped {
        /// In which protocol it said so.
        by: String,
        /// Its address outside.
        address: Ipv4Addr,
        /// The port there.
        port: u16,
    },
    /// It passes callers on, and yet nobody on the internet is one: its address outside is private, or its provider's.
    Useless {
        /// The address.
        address: Ipv4Addr,
        /// The port there.
        port: u16,
    },
    /// It does not, or nobody could ask it.
    Refused {
        /// One sentence.
        why: String,
    },
    /// The uplink has a public address itself: there is no router to ask.
    NotNeeded,
    /// The uplink has no IPv4 address, or no router.
    NoRouter,
}

impl PortState {
    /// One sentence for people.
    pub fn sentence(&self) -> String {
        match self {
            Self::Asking => "its router is being asked for a port".to_owned(),
            Self::Mapped { by, address, port } => format!(
                "its router passes callers at {address}:{port} on to this box ({by}); whether they come through is told by a relay"
            ),
            Self::Useless { address, port } => format!(
                "its router gave port {port}, but at {address}, where nobody on the internet can call: another router or the provider's is before it; members outside need the relay"
            ),
            Self::Refused { why } => why.clone(),
            Self::NotNeeded => {
                "it has a public address of its own, so that no router is asked".to_owned()
            }
            Self::NoRouter => {
                "there is no router to ask: it has no IPv4 address, or nobody passes on".to_owned()
            }
        }
    }
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

    /// Uplinks that anything goes out by: the one in use, and one that stands in for what is dead there.
    pub fn used(&self) -> impl Iterator<Item = &UplinkStatus> {
        self.uplinks.iter().filter(|uplink| uplink.in_use || uplink.stands_in.is_some())
    }

    /// Why a large transfer (an import, a backup) waits, and what to do about it; nothing where it may run now.
    pub fn transfers_wait(&self) -> Option<String> {
        let uplink = self.used().find(|uplink| uplink.metered)?;
        let name = &uplink.name;
        let free = self.uplinks.iter().find(|other| !other.metered);
        Some(match free {
            Some(free) => format!(
                "waiting: {name} is metered, and {} does not work just now; bring it on a disk, or say on the page Uplinks that {name} is not metered",
                free.name
            ),
            None => format!(
                "waiting: {name} is metered; bring it on a disk, or say on the page Uplinks that it is not metered"
            ),
        })
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
        if let Some(family) = self.dead {
            said += &format!("; nobody answers over {}", family.name());
        }
        if let Some(family) = self.stands_in {
            said +=
                &format!("; {} goes out here, because it is dead on the one in use", family.name());
        }
        if let Some(port) = &self.port {
            said += &format!("; {}", port.sentence());
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
            port: None,
            dead: None,
            stands_in: None,
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
        let metered = |metered| UplinkStatus { metered, ..uplink(UplinkState::Good) };
        let all = |uplinks| WanStatus { uplinks, ..WanStatus::default() }.transfers_wait();
        assert_eq!(all(vec![metered(false)]), None);
        assert!(all(vec![metered(true)]).unwrap().contains("bring it on a disk"));
        let spare = UplinkStatus { in_use: false, name: "dsl".parse().unwrap(), ..metered(false) };
        assert!(all(vec![metered(true), spare]).unwrap().contains("dsl does not work"));
        let stands_in = Some(Family::V6);
        let beside = UplinkStatus { stands_in, in_use: false, ..metered(true) };
        assert!(
            beside.sentence().ends_with("IPv6 goes out here, because it is dead on the one in use")
        );
        assert!(all(vec![metered(false), beside]).is_some(), "half of it may go where it costs");
        let dead = UplinkStatus { dead: Some(Family::V4), ..metered(false) };
        assert!(dead.sentence().ends_with("nobody answers over IPv4"));
        let status = |state| WanStatus { uplinks: vec![uplink(state)], ..WanStatus::default() };
        assert!(status(UplinkState::Good).sentence().ends_with("through fibre."));
        assert!(status(UplinkState::Silent).sentence().contains("does not reach the internet"));
        assert!(WanStatus::default().sentence().contains("as this machine has it"));
    }
}
