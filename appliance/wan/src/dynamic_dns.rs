//! Tells a service or a zone where the box is, whenever it goes out another way, until it was heard.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use polder_dns::{Change, Data, Key, Zone, update};
use polder_site::{DnsZone, DynamicDns, HookUrl, UplinkName};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::probe::{self, Pages};
use crate::run::Announcement;

/// What only the service or the zone's server may know; in the state folder.
pub const SECRET: &str = "uplinks/secret";
/// For how long others may keep the address: one that is wrong should not be kept for long.
const TTL: u32 = 60;
/// A service has this long to answer.
const WITHIN: Duration = Duration::from_secs(20);
/// Between two tries: first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Telling {
    /// This page is asked for.
    Page { host: String, port: u16, path: String },
    /// These records are changed.
    Records(Vec<Change>),
}

/// What is to be told, by the addresses of the uplink in use. A name keeps no address that nobody could reach it by.
fn telling(
    dns: &DynamicDns,
    secret: Option<&str>,
    announced: &Announcement,
) -> Result<Telling, String> {
    let public = |six: bool| {
        let own = announced.addresses.iter().copied();
        let router = announced.router.map(IpAddr::V4).into_iter();
        own.chain(router).find(|a| a.is_ipv6() == six && is_public(*a))
    };
    match (&dns.hook, &dns.zone) {
        (Some(hook), _) => page(hook, secret, public(false), public(true)),
        (None, Some(zone)) => records(zone, public(false), public(true), &announced.uplink),
        (None, None) => Err("the site says nobody to tell".to_owned()),
    }
}

/// A service sees where it is asked from, so that an address that is private is no hindrance.
fn page(
    hook: &HookUrl,
    secret: Option<&str>,
    four: Option<IpAddr>,
    six: Option<IpAddr>,
) -> Result<Telling, String> {
    let (host, port, path) = hook.parts();
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let mut path = path.replace("{ip4}", &text(four)).replace("{ip6}", &text(six));
    if path.contains("{secret}") {
        let secret =
            secret.ok_or("the secret of the service is missing; enter it on the page Uplinks")?;
        path = path.replace("{secret}", &escaped(secret));
    }
    if path.starts_with('?') {
        path.insert(0, '/');
    }
    Ok(Telling::Page { host: host.to_owned(), port, path })
}

/// As it may stand in a web address.
fn escaped(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(letter).collect()
}

fn records(
    zone: &DnsZone,
    four: Option<IpAddr>,
    six: Option<IpAddr>,
    uplink: &UplinkName,
) -> Result<Telling, String> {
    if four.is_none() && six.is_none() {
        return Err(format!(
            "{uplink} has no public address of its own, and none of its router is known, so that {} would lead nowhere; a service that sees where it is asked from can still be told (a hook)",
            zone.name
        ));
    }
    let name: polder_dns::Name = zone.name.as_str().parse().map_err(|e| format!("{e}"))?;
    let remove = |like| Change::RemoveAll { name: name.clone(), like };
    // One message: a name that has an address never has none.
    let mut changes = vec![
        remove(Data::A(Ipv4Addr::UNSPECIFIED)),
        remove(Data::Aaaa(std::net::Ipv6Addr::UNSPECIFIED)),
    ];
    for address in [four, six].into_iter().flatten() {
        let data = match address {
            IpAddr::V4(four) => Data::A(four),
            IpAddr::V6(six) => Data::Aaaa(six),
        };
        changes.push(Change::Add { name: name.clone(), ttl: TTL, data });
    }
    Ok(Telling::Records(changes))
}

/// Whether others can reach it, as far as an address tells.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            !(four.is_private()
                || is_shared(address)
                || four.is_loopback()
                || four.is_link_local()
                || four.is_unspecified()
                || four.is_multicast()
                || four.is_broadcast())
        }
        IpAddr::V6(six) => six.segments()[0] & 0xe000 == 0x2000,
    }
}

/// RFC 6598: what providers put their customers behind.
pub(crate) fn is_shared(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(four) if four.octets()[0] == 100 && four.octets()[1] & 0xc0 == 64)
}

/// What it goes by.
pub(crate) struct Teller {
    /// The state folder.
    pub(crate) state: PathBuf,
    /// What pages are asked with.
    pub(crate) pages: Pages,
    /// One sentence for people: what was told, or why it was not.
    pub(crate) said: watch::Sender<Option<String>>,
}

impl Teller {
    /// Tells what is announced, again and again until it was heard; also when somebody else is to be told.
    pub(crate) async fn tell(
        self,
        mut site: watch::Receiver<Option<DynamicDns>>,
        mut announced: mpsc::UnboundedReceiver<Announcement>,
    ) {
        let mut newest = None;
        loop {
            let dns = site.borrow_and_update().clone();
            let telling = async {
                if let (Some(dns), Some(newest)) = (&dns, &newest) {
                    self.until_heard(dns, newest).await;
                } else {
                    self.said.send_replace(None);
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = telling => {}
                changed = site.changed() => if changed.is_err() { return },
                next = announced.recv() => match next {
                    Some(next) => newest = Some(next),
                    None => return,
                },
            }
        }
    }

    async fn until_heard(&self, dns: &DynamicDns, announced: &Announcement) {
        let mut pause = AGAIN.0;
        loop {
            let said = match self.once(dns, announced).await {
                Ok(()) => {
                    let said =
                        format!("{} was told that the box is at {}", whom(dns), announced.uplink);
                    log::info!("{said}");
                    self.said.send_replace(Some(said));
                    return;
                }
                Err(why) => format!("{} could not be told where the box is: {why}", whom(dns)),
            };
            log::warn!("{said}");
            self.said.send_replace(Some(said));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn once(&self, dns: &DynamicDns, announced: &Announcement) -> Result<(), String> {
        let secret = secret(&self.state);
        match telling(dns, secret.as_deref(), announced)? {
            Telling::Page { host, port, path } => {
                let asking = async {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    probe::page(stream, "GET", &host, &path, &self.pages).await
                };
                match tokio::time::timeout(WITHIN, asking).await {
                    Ok(Ok(200..=299)) => Ok(()),
                    Ok(Ok(status)) => {
                        Err(format!("it answered {status}; is the address right, and the secret?"))
                    }
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("it did not answer in time".to_owned()),
                }
            }
            Telling::Records(changes) => {
                let zone = dns.zone.as_ref().ok_or("the site names no zone")?;
                let secret = secret
                    .ok_or("the secret of the key is missing; enter it on the page Uplinks")?;
                let key = Key::new(zone.key.as_str(), &secret).map_err(|e| e.to_string())?;
                let name = zone.zone.as_str().parse().map_err(|e| format!("{e}"))?;
                let zone = Zone { server: zone.server_and_port(), name, key };
                update(&zone, &changes).await.map_err(|error| error.to_string())
            }
        }
    }
}

fn whom(dns: &DynamicDns) -> String {
    match (&dns.hook, &dns.zone) {
        (Some(hook), _) => hook.parts().0.to_owned(),
        (None, Some(zone)) => zone.zone.to_string(),
        (None, None) => "nobody".to_owned(),
    }
}

fn secret(state: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state.join(SECRET)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(addresses: &[&str]) -> Announcement {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Announcement { uplink: "mobile".parse().unwrap(), addresses, router: None }
    }

    fn hook(url: &str) -> DynamicDns {
        DynamicDns { hook: Some(url.parse().unwrap()), zone: None }
    }

    fn zone() -> DynamicDns {
        let name = |text: &str| text.parse().unwrap();
        let (server, key) = ("ns1.example.org".into(), name("box"));
        let zone =
            DnsZone { name: name("gpu.example.org"), zone: name("example.org"), server, key };
        DynamicDns { hook: None, zone: Some(zone) }
    }

    #[test]
    fn a_service_is_told_public_addresses_and_the_secret_and_nothing_private() {
        let dns = hook("https://dyn.example.org/up?a={ip4}&b={ip6}&k={secret}");
        let at = announced(&["100.64.0.9", "2001:db8::7", "fd00::1"]);
        let told = telling(&dns, Some("a&b/ü"), &at).unwrap();
        let path = "/up?a=&b=2001:db8::7&k=a%26b%2F%C3%BC".to_owned();
        assert_eq!(told, Telling::Page { host: "dyn.example.org".into(), port: 443, path });
        assert!(telling(&dns, None, &at).unwrap_err().contains("secret of the service is missing"));
        let bare = telling(&hook("https://dyn.example.org:8443?x"), None, &at).unwrap();
        assert_eq!(
            bare,
            Telling::Page { host: "dyn.example.org".into(), port: 8443, path: "/?x".into() }
        );
    }

    #[test]
    fn a_zone_gets_what_is_public_in_place_of_what_was_there_and_a_private_uplink_is_said() {
        let Ok(Telling::Records(changes)) =
            telling(&zone(), None, &announced(&["198.51.100.4", "10.0.0.1"]))
        else {
            panic!()
        };
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!(
            matches!(&changes[2], Change::Add { data: Data::A(at), ttl: 60, .. } if at.to_string() == "198.51.100.4")
        );
        let why = telling(&zone(), None, &announced(&["192.168.1.2", "100.100.1.1", "fe80::1"]));
        assert!(why.unwrap_err().contains("mobile has no public address"));
    }

    #[test]
    fn a_zone_gets_the_routers_address_where_the_uplink_has_none_of_its_own() {
        let behind = |addresses: &[&str], router: &str| {
            let router = Some(router.parse().unwrap());
            let Ok(Telling::Records(changes)) =
                telling(&zone(), None, &Announcement { router, ..announced(addresses) })
            else {
                return Vec::new();
            };
            let added = |change: &Change| match change {
                Change::Add { data: Data::A(at), .. } => Some(at.to_string()),
                Change::Add { data: Data::Aaaa(at), .. } => Some(at.to_string()),
                _ => None,
            };
            changes.iter().filter_map(added).collect()
        };
        assert_eq!(behind(&["192.168.1.7"], "203.0.113.5"), ["203.0.113.5"]);
        assert_eq!(
            behind(&["192.168.1.7", "2001:db8::7"], "203.0.113.5"),
            ["203.0.113.5", "2001:db8::7"]
        );
        assert_eq!(behind(&["198.51.100.4"], "203.0.113.5"), ["198.51.100.4"]);
        assert!(behind(&["192.168.1.7"], "100.64.1.1").is_empty());
    }

    #[test]
    fn private_and_shared_addresses_are_told_from_public_ones() {
        for public in ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.15.0.1", "2620:fe::fe"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "10.1.1.1",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }
}
