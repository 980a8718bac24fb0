//! Gives the machine's network ports their addresses, where the image's own system listens to the box.

use std::path::Path;

use polder_site::{InterfaceName, PortAddress};

use super::{Refusal, Work};
use crate::image::Chore;
use crate::parts::Parts;

/// Elsewhere.
pub(crate) const NOT_OURS: &str = "this box is only a program on this machine, whose own system gives its ports their addresses; set them there";

impl<P: Parts> Work<P> {
    /// Whether a port is one that can be given an address. One that is gone can only lose it.
    pub(super) fn may_have_address(
        &self,
        port: &InterfaceName,
        address: &PortAddress,
    ) -> Result<(), Refusal> {
        let image = self.image.as_ref().ok_or(NOT_OURS)?;
        let net = image.ports();
        match is_there(net, port) || address.by_dhcp() {
            true => Ok(()),
            false => Err(format!(
                "this machine has no network port called {port}; it has {}",
                ports_in(net).join(", ")
            )),
        }
    }

    /// Whether nothing need be known of a port any more: it is gone, and no seed has an address for it.
    pub(super) fn may_be_forgotten(&self, port: &InterfaceName) -> bool {
        let image = self.image.as_ref();
        image.is_some_and(|image| is_forgettable(image.ports(), &self.state, port))
    }

    /// Has root do what the site says now.
    pub(super) async fn give_addresses(&self) -> Result<(), Refusal> {
        let image = self.image.as_ref().ok_or(NOT_OURS)?;
        image.helper().does(Chore::GiveAddresses).await
    }
}

/// Ethernet by its kind, and not the machine's way to itself.
fn is_there(net: &Path, port: &InterfaceName) -> bool {
    let kind = std::fs::read_to_string(net.join(port.as_str()).join("type"));
    kind.is_ok_and(|kind| kind.trim() == "1")
}

fn is_forgettable(net: &Path, state: &Path, port: &InterfaceName) -> bool {
    let seeded = polder_seed::bound(state);
    !is_there(net, port) && seeded.is_ok_and(|seeded| seeded.as_ref() != Some(port))
}

fn ports_in(net: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(net).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut names: Vec<String> = names
        .filter(|name| is_there(net, name))
        .map(|name: InterfaceName| name.to_string())
        .collect();
    names.sort();
    if names.is_empty() { vec!["none".to_owned()] } else { names }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_port_that_is_gone_and_has_no_seed_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (net, state) = (folder.path().join("net"), folder.path().join("state"));
        fs::create_dir_all(net.join("enp1s0")).unwrap();
        fs::create_dir(&state).unwrap();
        fs::write(net.join("enp1s0/type"), "1\n").unwrap();
        let forgettable = |name: &str| is_forgettable(&net, &state, &name.parse().unwrap());
        assert!(!forgettable("enp1s0"));
        assert!(forgettable("enp9s0"));
        fs::write(state.join(polder_seed::BOUND), "enp9s0\n").unwrap();
        assert!(!forgettable("enp9s0"), "its seed would give it the address again");
    }
}
