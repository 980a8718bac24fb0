use std::net::IpAddr;

use polder_site::Site;

/// What the box is called and where it is: what its certificates speak for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Host names, lower case, sorted, each once.
    pub hosts: Vec<String>,
    /// Addresses, sorted, each once; loopback always among them.
    pub addresses: Vec<IpAddr>,
}

impl Names {
    /// The names that the site gives the box, and these addresses of the machine.
    pub fn of(site: &Site, machine: impl IntoIterator<Item = IpAddr>) -> Self {
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let mut names = Self::default();
        names.addresses.extend(loopback.into_iter().chain(machine));
        let apps = site.apps.keys().flat_map(|app| site.hosts_of(app));
        for host in &site.host_names().into_iter().chain(apps).collect::<Vec<_>>() {
            // A steward may write an address where a name is asked for.
            match host.parse::<IpAddr>() {
                Ok(address) => names.addresses.push(address),
                Err(_) if is_narrow(host) => names.hosts.push(host.to_ascii_lowercase()),
                // A box called `garden` must not have an authority for all of `.garden`.
                Err(_) => {}
            }
        }
        names.hosts.sort();
        names.hosts.dedup();
        names.addresses.sort();
        names.addresses.dedup();
        names
    }

    /// The first name that another machine can use; for people to recognise the certificate by.
    pub(crate) fn spoken(&self) -> &str {
        let local = self.hosts.iter().find(|host| host.ends_with(".local"));
        local.or(self.hosts.first()).map_or("localhost", String::as_str)
    }
}

/// May an authority speak for this host? It then speaks for everything below it too, and below a
/// name without a dot may lie a whole top-level domain.
pub(crate) fn is_narrow(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.trim_matches('.').contains('.')
}

#[cfg(test)]
mod tests {
    use polder_site::App;

    use super::*;

    #[test]
    fn certificates_speak_for_the_apps_behind_the_door() {
        let mut site = Site::unclaimed(8443);
        let upstream = "http://127.0.0.1:3000".parse().unwrap();
        site.apps.insert("wiki".parse().unwrap(), App { upstream, open_to: Default::default() });
        let hosts = Names::of(&site, []).hosts;
        assert_eq!(hosts, ["localhost", "polder.local", "wiki.localhost", "wiki.polder.local"]);
    }
}
