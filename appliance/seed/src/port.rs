//! Which port the address of a seed is for, chosen once, and what all ports get: what the site says, and for one that it does not name
//! what the seed says.

use std::fs;
use std::path::Path;

use polder_site::{InterfaceName, Ports};

use crate::network::Wanted;
use crate::take::{BOUND, TakeError, read, replace};
use crate::{KEPT, Network, Seed};

/// A port of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As the system calls it.
    pub name: InterfaceName,
    /// The number that its maker gave it.
    pub number: String,
    /// There is a cable in it, and somebody at its other end.
    pub connected: bool,
}

/// The port that the address is for; none yet where it is not there, or where no cable says which.
pub fn choose(wanted: Option<&Wanted>, ports: &[Seen]) -> Option<InterfaceName> {
    let found = match (wanted, ports) {
        (Some(Wanted::Name(name)), _) => return Some(name.clone()),
        (Some(Wanted::Hardware(number)), _) => ports.iter().find(|port| port.number == *number),
        (None, [only]) => Some(only),
        (None, _) => ports.iter().find(|port| port.connected),
    };
    found.map(|port| port.name.clone())
}

/// The machine's wired ports that are hardware.
pub fn look(net: &Path) -> Vec<Seen> {
    let entries = fs::read_dir(net).into_iter().flatten().flatten();
    let mut ports: Vec<Seen> = entries
        .filter_map(|entry| {
            let at = entry.path();
            let field = |name: &str| {
                fs::read_to_string(at.join(name)).unwrap_or_default().trim().to_ascii_lowercase()
            };
            // Ethernet by its kind, with a device behind it, and no radio.
            let wired = field("type") == "1"
                && at.join("device").exists()
                && !at.join("wireless").exists()
                && !at.join("phy80211").exists();
            let name = entry.file_name().to_str()?.parse().ok().filter(|_| wired)?;
            Some(Seen { name, number: field("address"), connected: field("carrier") == "1" })
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

/// What the box that is kept in `state` gives its ports. A site that cannot be read is left out of account with a warning: a box
/// that is found by its seed's address is better than none.
pub fn ports(state: &Path) -> Result<Ports, TakeError> {
    let mut ports = of_site(state)?;
    if let (Some(network), Some(port)) = (kept(state)?, bound(state)?) {
        ports.entry(port).or_insert(network.address);
    }
    Ok(ports)
}

/// What the site alone says.
pub(crate) fn of_site(state: &Path) -> Result<Ports, TakeError> {
    let site = read(&state.join("site.toml"))?.unwrap_or_default();
    Ok(polder_site::ports_of(&site).unwrap_or_else(|fault| {
        log::warn!("{fault}; ports have what the seed says, or ask a router");
        Ports::new()
    }))
}

/// The address of the seed that this box began with.
fn kept(state: &Path) -> Result<Option<Network>, TakeError> {
    let Some(text) = read(&state.join(KEPT))? else { return Ok(None) };
    Ok(Seed::parse(&text)?.network)
}

/// The port that was chosen for it.
fn bound(state: &Path) -> Result<Option<InterfaceName>, TakeError> {
    let text = read(&state.join(BOUND))?;
    Ok(text.and_then(|text| text.trim().parse().ok()))
}

/// Chooses the port that the seed's address is for, once and for good. True when nothing is left to choose.
pub fn bind(state: &Path, net: &Path) -> Result<bool, TakeError> {
    let Some(network) = kept(state)? else { return Ok(true) };
    // Also where a restored box was told that it is for none.
    if read(&state.join(BOUND))?.is_some() {
        return Ok(true);
    }
    let Some(port) = choose(network.port.as_ref(), &look(net)) else { return Ok(false) };
    log::info!("the seed's address {} is for the port {port}", network.address);
    replace(state, &state.join(BOUND), &format!("{port}\n"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use polder_site::{PortAddress, Site, SiteChange};

    use super::*;

    const SEED: &str = "version = 1\n[network]\naddress = \"192.168.7.20/24\"\n";

    fn port(net: &Path, name: &str, number: &str, carrier: &str) {
        let at = net.join(name);
        fs::create_dir_all(at.join("device")).unwrap();
        let fields = [("type", "1\n"), ("address", number), ("carrier", carrier)];
        fields.iter().for_each(|(field, text)| fs::write(at.join(field), text).unwrap());
    }

    #[test]
    fn an_address_is_for_the_first_port_with_a_cable_and_stays_there() {
        let folder = tempfile::tempdir().unwrap();
        let (state, net) = (folder.path().join("state"), folder.path().join("net"));
        fs::create_dir(&state).unwrap();
        fs::write(state.join(KEPT), SEED).unwrap();
        port(&net, "enp1s0", "52:54:00:00:00:01\n", "0\n");
        port(&net, "enp2s0", "52:54:00:00:00:02\n", "0\n");
        fs::create_dir_all(net.join("wlan0/phy80211")).unwrap();
        assert!(!bind(&state, &net).unwrap(), "no cable says which");
        assert!(ports(&state).unwrap().is_empty(), "both ask a router");
        port(&net, "enp2s0", "52:54:00:00:00:02\n", "1\n");
        assert!(bind(&state, &net).unwrap());
        let fixed = PortAddress::line("192.168.7.20/24").unwrap();
        let second: InterfaceName = "enp2s0".parse().unwrap();
        assert_eq!(ports(&state).unwrap(), [(second.clone(), fixed)].into());
        // Another cable changes nothing.
        port(&net, "enp1s0", "52:54:00:00:00:01\n", "1\n");
        assert!(bind(&state, &net).unwrap());
        assert!(ports(&state).unwrap().contains_key(&second));

        // What the site says wins: a box that moves house is not held by its seed.
        let address = PortAddress::default();
        let change = SiteChange::Port { port: second.clone(), address: address.clone() };
        let site = change.applied_to(&Site::unclaimed(443));
        fs::write(state.join("site.toml"), site.to_toml()).unwrap();
        assert_eq!(ports(&state).unwrap(), [(second.clone(), address)].into());
        fs::write(state.join("site.toml"), "ports = 3\n").unwrap();
        assert!(!ports(&state).unwrap()[&second].by_dhcp(), "unreadable");
    }

    #[test]
    fn a_port_that_the_seed_names_needs_no_cable() {
        let seen = |name: &str, number: &str, connected| Seen {
            name: name.parse().unwrap(),
            number: number.into(),
            connected,
        };
        let both = [seen("a0", "02:00:00:00:00:01", true), seen("b0", "02:00:00:00:00:02", false)];
        let chosen = |wanted: Option<&str>, ports: &[Seen]| {
            let wanted = wanted.map(|wanted| wanted.parse::<Wanted>().unwrap());
            choose(wanted.as_ref(), ports).map(|name| name.to_string())
        };
        assert_eq!(chosen(None, &both).as_deref(), Some("a0"));
        assert_eq!(chosen(Some("b0"), &both).as_deref(), Some("b0"));
        assert_eq!(chosen(Some("02-00-00-00-00-02"), &both).as_deref(), Some("b0"));
        assert_eq!(chosen(Some("02-00-00-00-00-03"), &both), None);
        assert_eq!(chosen(None, &both[1..]).as_deref(), Some("b0"), "the only one");
        assert_eq!(chosen(None, &[]), None);
    }
}
