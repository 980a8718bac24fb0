//! Where a UPS of the box's may be: on this machine's USB, at NUT on this machine, at NUT on another one. What the wizard and the
//! page Power offer, in words for people.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use polder_site::UpsAddress;

use crate::find::{Found, ups_below};
use crate::upsd::{Upsd, UpsdError};
use crate::words::say;

/// Where the kernel shows what is plugged in by USB.
const USB: &str = "/sys/bus/usb/devices";
/// Nobody's upsd has more of them; one that says so is not believed.
const MOST: usize = 16;
/// All of them together are waited for so long; one that is not heard by then is named all the same.
const WITHIN: Duration = Duration::from_secs(10);
/// Letters of a name that a UPS gives itself.
const LONGEST_NAME: usize = 80;

/// What was found without anybody saying where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    /// Plugged in by USB. Nobody listens to it yet, so that only its name is known.
    pub usb: Vec<Found>,
    /// What NUT on this machine listens to.
    pub here: Vec<Heard>,
}

/// A UPS that somebody's upsd listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub address: UpsAddress,
    /// What it is, in its own words.
    pub name: String,
    /// Whether the mains is there; none where upsd does not hear it just now.
    pub on_mains: Option<bool>,
    /// Percent of its battery.
    pub charge: Option<u8>,
    /// How long it lasts, by its own count.
    pub runtime: Option<Duration>,
}

/// There is nothing to be offered at that place.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Not a place.
    #[error("{0:?} is no address; write one such as 10.0.0.2, or the other machine's name")]
    Place(String),
    /// Nobody there, or nobody who speaks of UPSes.
    #[error("no machine at {place} listens to a UPS: {source}")]
    Upsd {
        /// Where.
        place: String,
        /// Why.
        source: UpsdError,
    },
    /// Somebody, but without a UPS.
    #[error("upsd at {0} answers, and has no UPS; look at its ups.conf")]
    None(String),
}

/// Looks where a UPS of this machine's own would be.
pub async fn look() -> Around {
    let usb = tokio::task::spawn_blocking(|| ups_below(Path::new(USB)));
    let (usb, here) = tokio::join!(usb, at("localhost"));
    Around { usb: usb.unwrap_or_default(), here: here.unwrap_or_default() }
}

/// Asks NUT at this place, which is an address or a name and perhaps a port, what it listens to.
pub async fn at(place: &str) -> Result<Vec<Heard>, LookError> {
    let asked = parse(place)?;
    let shown = shown(&asked);
    let fail = |source| LookError::Upsd { place: shown.clone(), source };
    let mut upsd = Upsd::connect(&asked).await.map_err(fail)?;
    let listed = upsd.list_ups().await.map_err(fail)?;
    let (mut heard, until) = (Vec::new(), tokio::time::Instant::now() + WITHIN);
    for (name, description) in listed.into_iter().take(MOST) {
        // Names that could not be written down are no use to anybody.
        let Ok(address) = with_name(&asked, &name) else { continue };
        heard.push(one(address, &description, until).await);
    }
    if heard.is_empty() { Err(LookError::None(shown)) } else { Ok(heard) }
}

/// How it is just now, as far as it says.
async fn one(address: UpsAddress, description: &str, until: tokio::time::Instant) -> Heard {
    let told = async {
        let mut upsd = Upsd::connect(&address).await.ok()?;
        let reading = upsd.reading().await.ok();
        let variables = upsd.variables().await.ok()?;
        Some((reading, variables))
    };
    let told = tokio::time::timeout_at(until, told).await.ok().flatten();
    let (reading, variables) = told.unwrap_or_default();
    let get = |name: &str| variables.get(name).map(|text| clean(text)).filter(|t| !t.is_empty());
    let maker = get("device.mfr").or(get("ups.mfr"));
    let model = get("device.model").or(get("ups.model"));
    let name = [maker, model].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let description = Some(clean(description)).filter(|text| *text != "Description unavailable");
    let name = Some(name).filter(|name| !name.is_empty()).or(description).unwrap_or_default();
    let name = if name.is_empty() { format!("UPS called {}", address.name()) } else { name };
    Heard {
        name,
        on_mains: reading.as_ref().map(|reading| !reading.flags.needs_battery()),
        charge: reading.as_ref().and_then(|reading| reading.charge),
        runtime: reading.as_ref().and_then(|reading| reading.runtime),
        address,
    }
}

impl Found {
    /// That it is there.
    pub fn words(&self) -> String {
        format!("{} is plugged in, by USB.", with_article(&self.name))
    }
}

impl Heard {
    /// That it is there, and how long it lasts.
    pub fn words(&self) -> String {
        let name = with_article(&self.name);
        let place = match self.is_here() {
            true => "NUT on this machine listens to it".to_owned(),
            false => format!("{} listens to it", self.address.host()),
        };
        let holds = match (self.charge, self.runtime) {
            (Some(charge), Some(time)) => {
                format!("its battery has {charge} % and holds {} by its own count", say(time))
            }
            (None, Some(time)) => format!("it holds {} by its own count", say(time)),
            (Some(charge), None) => {
                format!("its battery has {charge} %; how long it holds, it does not say")
            }
            (None, None) => "how long it holds, it does not say".to_owned(),
        };
        match self.on_mains {
            Some(true) => format!("{name} is there: {place}, and {holds}."),
            Some(false) => format!("{name} is there, on battery just now: {place}, and {holds}."),
            None => format!("{name} is named there, but not heard just now: is its cable in?"),
        }
    }

    /// Whether this very machine listens to it.
    pub fn is_here(&self) -> bool {
        is_here(&self.address)
    }
}

/// Whether this is an upsd on this very machine.
pub fn is_here(address: &UpsAddress) -> bool {
    let host = address.host();
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// `An Eaton 5E`.
fn with_article(name: &str) -> String {
    let article = if name.starts_with(['A', 'E', 'I', 'O']) { "An" } else { "A" };
    format!("{article} {name}")
}

fn clean(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    text.trim().to_owned()
}

/// The place as an address of a UPS whose name nobody knows yet.
fn parse(place: &str) -> Result<UpsAddress, LookError> {
    let place = place.trim();
    // Somebody who knows the name may write it: all are shown anyway.
    let place = place.split_once('@').map_or(place, |(_, place)| place);
    let bare: Result<std::net::Ipv6Addr, _> = place.parse();
    let text = match bare {
        Ok(address) => format!("ups@[{address}]"),
        Err(_) => format!("ups@{place}"),
    };
    text.parse().map_err(|_| LookError::Place(clean(place)))
}

fn with_name(at: &UpsAddress, name: &str) -> Result<UpsAddress, polder_site::UpsAddressError> {
    let text = at.to_string();
    let place = text.split_once('@').map_or("", |(_, place)| place);
    format!("{name}@{place}").parse()
}

fn shown(at: &UpsAddress) -> String {
    let text = at.to_string();
    text.split_once('@').map_or("", |(_, place)| place).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(on_mains: Option<bool>, charge: Option<u8>, minutes: Option<u64>) -> String {
        let runtime = minutes.map(|minutes| Duration::from_secs(minutes * 60));
        let address = "ups@10.0.0.2".parse().unwrap();
        Heard { address, name: "Eaton 5E".to_owned(), on_mains, charge, runtime }.words()
    }

    #[test]
    fn what_was_found_is_said_as_one_would() {
        let found = Found { name: "APC Back-UPS".into(), driver: "usbhid-ups", id: String::new() };
        assert_eq!(found.words(), "An APC Back-UPS is plugged in, by USB.");
        assert_eq!(
            heard(Some(true), Some(100), Some(12)),
            "An Eaton 5E is there: 10.0.0.2 listens to it, and its battery has 100 % and holds 12 minutes by its own count."
        );
        assert!(heard(Some(false), None, None).contains("on battery just now"));
        assert!(heard(None, None, None).ends_with("not heard just now: is its cable in?"));
        assert_eq!(with_article("UPS 0665:5161"), "A UPS 0665:5161");
    }

    #[test]
    fn a_place_is_an_address_or_a_name_and_nothing_else() {
        for (place, expected) in [
            (" 10.0.0.2 ", "10.0.0.2"),
            ("10.0.0.2:4000", "10.0.0.2:4000"),
            ("box@cellar.local", "cellar.local"),
            ("2001:db8::9", "[2001:db8::9]"),
        ] {
            assert_eq!(shown(&parse(place).unwrap()), expected, "{place}");
        }
        for bad in ["", "a b", "10.0.0.2/24", "x\ny", "10.0.0.2:port", "http://10.0.0.2"] {
            assert!(matches!(parse(bad), Err(LookError::Place(_))), "{bad:?}");
        }
    }
}
