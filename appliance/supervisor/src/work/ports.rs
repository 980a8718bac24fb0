//! Gives the machine's network ports their addresses, where the image's own system listens to the box.

use std::path::Path;

use polder_site::InterfaceName;

use super::{Refusal, Work};
use crate::image::Chore;
use crate::parts::Parts;

/// Elsewhere.
pub(crate) const NOT_OURS: &str = "this box is only a program on this machine, whose own system gives its ports their addresses; set them there";

impl<P: Parts> Work<P> {
    /// Whether a port is one that can be given an address.
    pub(super) fn may_have_address(&self, port: &InterfaceName) -> Result<(), Refusal> {
        let image = self.image.as_ref().ok_or(NOT_OURS)?;
        let net = image.ports();
        match is_there(net, port) {
            true => Ok(()),
            false => Err(format!(
                "this machine has no network port called {port}; it has {}",
                ports_in(net).join(", ")
            )),
        }
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
