//! Another house: other addresses, another router. What of the box depends on where it is, and where it answers while the addresses
//! that it is told to listen on are not there.

use std::net::IpAddr;
use std::time::Duration;

use polder_site::{BackupPlace, Proof, Site, SpareRole};

use crate::peer::is_local_network;

/// Addresses that are gone for so long are gone: a cable is out for less, and so is a lease.
pub(crate) const GONE: Duration = Duration::from_secs(10);

/// Where the box answers instead, while none of the addresses on which its local networks are to find it is there any more: the
/// addresses that it has on local networks now. Never one that the internet can see; what is to be open there, a steward says.
pub(crate) fn stand_ins(listen: &[IpAddr], here: &[IpAddr]) -> Vec<IpAddr> {
    let everywhere = listen.iter().any(IpAddr::is_unspecified);
    let local = |ip: &&IpAddr| is_local_network(**ip) && !ip.is_loopback();
    let wanted: Vec<&IpAddr> = listen.iter().filter(local).collect();
    if everywhere || wanted.is_empty() || wanted.iter().any(|ip| here.contains(ip)) {
        return Vec::new();
    }
    // Link-local ones need the name of a network card beside them.
    let usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let mut found: Vec<IpAddr> = here.iter().filter(local).filter(usable).copied().collect();
    found.retain(|ip| !listen.contains(ip));
    found
}

/// The door with addresses that are here in place of those that are gone.
pub(crate) fn settled(listen: &[IpAddr], here: &[IpAddr]) -> Option<Vec<IpAddr>> {
    let stand_ins = stand_ins(listen, here);
    if stand_ins.is_empty() {
        return None;
    }
    let stays = |ip: &&IpAddr| !is_local_network(**ip) || ip.is_loopback();
    Some(listen.iter().filter(stays).copied().chain(stand_ins).collect())
}

/// What becomes of something when the box is carried to another house.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing has to be done.
    Stays,
    /// The box does it by itself.
    Follows,
    /// Somebody has to look at it.
    Look,
}

/// Something that may depend on where the box is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) what: &'static str,
    /// As it is now.
    pub(crate) now: String,
    pub(crate) fate: Fate,
    pub(crate) then: &'static str,
    /// The page where it is changed.
    pub(crate) page: Option<&'static str>,
}

/// Everything of the box that may depend on where it is. `relay`: the host that it calls out to, where it does.
pub(crate) fn inventory(site: &Site, here: &[IpAddr], relay: Option<&str>) -> Vec<Item> {
    let mut items = Vec::new();
    let mut item = |what, now: String, fate, then, page| {
        items.push(Item { what, now, fate, then, page });
    };
    item(
        "Members, keys, conversations",
        "on the box's own disk".into(),
        Fate::Stays,
        "Everybody signs in as before and every key works. The box has its owner; nobody can claim it.",
        None,
    );
    item(
        "The box's name",
        format!("{}.local", site.name),
        Fate::Stays,
        "It is found by this name where the devices of the new network pass such names on. Otherwise give the name to the box in the new router.",
        None,
    );
    item(
        "Its certificate authority",
        "trusted by members' computers".into(),
        Fate::Stays,
        "It speaks for the box's names wherever they lead, so that no computer has to trust anything anew.",
        None,
    );
    for ip in &site.door.listen {
        let (fate, then) = match ip {
            ip if ip.is_loopback() => (Fate::Stays, "This machine alone."),
            ip if ip.is_unspecified() => {
                (Fate::Follows, "The box answers on whatever address it gets.")
            }
            ip if is_local_network(*ip) => (
                Fate::Follows,
                "When this address is gone, the box answers on those that it gets in the new house. Make that last on this page there.",
            ),
            _ => (
                Fate::Look,
                "The internet knows this address, so the box puts no other one in its place. Set the new one on this page.",
            ),
        };
        item("Address of the door", ip.to_string(), fate, then, None);
    }
    for name in &site.door.names {
        let (fate, then) = match name.parse::<IpAddr>() {
            Ok(_) => {
                (Fate::Look, "It is an address of the old house; members who use it need a name.")
            }
            Err(_) if site.dynamic_dns.is_some() || relay.is_some() => {
                (Fate::Follows, "The box tells where it is, or is reached by its relay.")
            }
            Err(_) => (
                Fate::Look,
                "It leads to an address of the old house. Have it lead to the new one where your name is looked after.",
            ),
        };
        item("Further name", name.clone(), fate, then, Some("/outside"));
    }
    for ip in here {
        item(
            "Address that programs may use",
            format!("https://{}:{}", host(*ip), site.door.port),
            Fate::Look,
            "A program that was given this address has to be given the name once. The page Connect shows it.",
            Some("/connect"),
        );
    }
    if let Some(relay) = relay {
        let then = "The box calls out to it from wherever it is; members outside notice nothing.";
        item("Relay", relay.to_owned(), Fate::Follows, then, Some("/outside"));
    }
    if let Some(dns) = &site.dynamic_dns {
        let now = match (&dns.zone, &dns.hook) {
            (Some(zone), _) => zone.name.to_string(),
            (None, Some(hook)) => hook.parts().0.to_string(),
            (None, None) => String::new(),
        };
        item("Dynamic DNS", now, Fate::Follows, "The box tells its new address.", Some("/uplinks"));
    }
    if let Some(certificate) = &site.certificate {
        let names: Vec<&str> = certificate.names.iter().map(|name| name.as_str()).collect();
        let (fate, then) = match certificate.proof() {
            Proof::Http => (
                Fate::Look,
                "It is renewed by a question at port 80 from outside: forward that in the new router, or the box's own certificate serves alone when this one is over.",
            ),
            _ => (Fate::Stays, "It is renewed by way of the DNS, from wherever the box is."),
        };
        item("Public certificate", names.join(", "), fate, then, Some("/certificate"));
    }
    for (name, port) in site.ports.iter().filter(|(_, port)| !port.by_dhcp()) {
        item(
            "Fixed address",
            format!("{name}: {port}"),
            Fate::Look,
            "It belongs to the old house's network. Have the port ask the router before the move, or there on the machine's own screen (key n).",
            Some("/uplinks#ports"),
        );
    }
    for (name, uplink) in &site.uplinks {
        let old = uplink.targets.iter().any(|target| is_near(target.as_str()));
        let (fate, then) = match old {
            true => (
                Fate::Look,
                "It is tested by something in the old house. Choose something that the new one has.",
            ),
            false => (
                Fate::Stays,
                "The same socket of the machine, whatever is plugged in. A fixed address is set anew on the machine's own screen (key n), or before on the page Uplinks.",
            ),
        };
        let now = format!("{name}, at {}", uplink.interface.as_str());
        item("Way to the internet", now, fate, then, Some("/uplinks"));
    }
    if let Some(power) = &site.power {
        let (fate, then) = match power.ups.host() {
            "localhost" | "127.0.0.1" | "::1" => {
                (Fate::Stays, "It hangs on this machine; carry both.")
            }
            _ => (
                Fate::Look,
                "It is watched over the network of the old house. Set where it is in the new one.",
            ),
        };
        item("UPS", power.ups.to_string(), fate, then, Some("/power"));
    }
    if let Some(backup) = &site.backup {
        let (fate, then) = match &backup.to {
            BackupPlace::Folder(_) => (
                Fate::Look,
                "If a disk or another machine's folder is mounted there, it has to be there in the new house too.",
            ),
            _ => (Fate::Look, "Carry it along, or see that it can be reached from the new house."),
        };
        item("Backups", backup.to.shown(), fate, then, Some("/backup"));
    }
    if let Some(spare) = &site.spare {
        let now = match spare.role {
            SpareRole::OfThis => "another box is its spare",
            SpareRole::ForAnother => "it is the spare of another box",
        };
        let then = "The two find each other where they were when they were paired. If that was an address which changes, pair them again there; a name that the new router knows as well goes on.";
        item("Spare", now.to_owned(), Fate::Look, then, Some("/spare"));
    }
    if let Some(mail) = site.alerts.as_ref().and_then(|alerts| alerts.mail.as_ref()) {
        let (fate, then) = match is_near(mail.server.as_str()) {
            true => (Fate::Look, "It is a mail server of the old house."),
            false => (Fate::Stays, "It is somewhere on the internet."),
        };
        item("Mail to stewards", mail.server.as_str().to_owned(), fate, then, Some("/issues"));
    }
    if let Some(updates) = &site.updates {
        let (fate, then) = match is_near(updates.from.as_str()) {
            true => (Fate::Look, "It is a machine of the old house."),
            false => (Fate::Stays, "It is somewhere on the internet."),
        };
        item("Updates", updates.from.as_str().to_owned(), fate, then, Some("/versions"));
    }
    items
}

/// An address as it stands in a link.
pub(crate) fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// Is this on a local network, as far as its text tells: an address of one, or a name that only one has?
fn is_near(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => match authority.rsplit_once(':') {
            Some((name, port))
                if port.bytes().all(|c| c.is_ascii_digit()) && !name.contains(':') =>
            {
                name
            }
            _ => authority,
        },
    };
    match name.parse::<IpAddr>() {
        Ok(ip) => is_local_network(ip) && !ip.is_loopback(),
        Err(_) => {
            name != "localhost"
                && (!name.contains('.') || name.ends_with(".local") || name.ends_with(".lan"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_box_answers_elsewhere_only_when_all_its_local_addresses_are_gone_and_never_to_the_internet()
     {
        let stand = |listen: &[&str], here: &[&str]| stand_ins(&ips(listen), &ips(here));
        let (new, none) = (ips(&["10.2.0.7"]), ips(&[]));
        assert_eq!(stand(&["192.168.1.5"], &["10.2.0.7"]), new);
        assert_eq!(stand(&["127.0.0.1", "192.168.1.5"], &["10.2.0.7"]), new);
        assert_eq!(stand(&["192.168.1.5"], &["192.168.1.5", "10.2.0.7"]), none);
        assert_eq!(stand(&["192.168.1.5", "192.168.1.6"], &["192.168.1.6", "10.2.0.7"]), none);
        assert_eq!(stand(&["192.168.1.5"], &["203.0.113.9", "2001:db8::1"]), none);
        assert_eq!(
            stand(&["192.168.1.5"], &["169.254.3.4", "fe80::1", "fd00::7"]),
            ips(&["fd00::7"])
        );
        assert_eq!(stand(&["192.168.1.5"], &[]), none, "a cable is out");
        for told in [&["0.0.0.0"][..], &["127.0.0.1"], &["203.0.113.9"], &["::", "192.168.1.5"]] {
            assert_eq!(stand(told, &["10.2.0.7"]), none, "{told:?}");
        }
    }

    #[test]
    fn what_is_made_to_last_are_the_addresses_that_are_here_beside_those_that_stay() {
        let settled = |listen: &[&str], here: &[&str]| settled(&ips(listen), &ips(here));
        let door = settled(&["127.0.0.1", "192.168.1.5", "203.0.113.9"], &["10.2.0.7"]);
        assert_eq!(door, Some(ips(&["127.0.0.1", "203.0.113.9", "10.2.0.7"])));
        assert_eq!(settled(&["192.168.1.5"], &["192.168.1.5"]), None);
    }

    #[test]
    fn whatever_names_a_place_of_the_old_house_is_to_be_looked_at() {
        for near in [
            "192.168.1.9:53",
            "nas",
            "nas.local",
            "http://10.0.0.1/x",
            "https://[fd00::1]:8/y",
            "nas.lan:25",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in [
            "1.1.1.1:443",
            "smtp.example.org",
            "https://example.org/a",
            "localhost",
            "127.0.0.1:80",
            "https://[2001:db8::1]/",
        ] {
            assert!(!is_near(far), "{far}");
        }
        let mut site = Site::unclaimed(8443);
        site.door.listen = ips(&["192.168.1.5"]);
        site.door.names = vec!["gpu.example.org".into(), "203.0.113.9".into()];
        site.power = Some(polder_site::PowerPlan::of("ups@nas".parse().unwrap()));
        site.backup = Some(polder_site::Backup::to("/mnt/usb".parse().unwrap()));
        let items = inventory(&site, &ips(&["192.168.1.5"]), None);
        let look: Vec<&str> =
            items.iter().filter(|i| i.fate == Fate::Look).map(|i| i.now.as_str()).collect();
        assert_eq!(
            look,
            ["gpu.example.org", "203.0.113.9", "https://192.168.1.5:8443", "ups@nas", "/mnt/usb"]
        );
        let relayed = inventory(&site, &[], Some("relay.example.org"));
        let fate = |now: &str| relayed.iter().find(|item| item.now == now).map(|item| item.fate);
        assert_eq!(fate("gpu.example.org"), Some(Fate::Follows));
    }
}
