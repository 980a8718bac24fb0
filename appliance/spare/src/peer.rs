use std::io;

use serde::{Deserialize, Serialize};

use crate::{Certificate, Folders, SpareError};

/// Which of the two boxes this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// It serves, and has a spare.
    Main,
    /// It is the spare.
    Spare,
}

/// The other box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Which of the two *this* box is.
    pub side: Side,
    /// What the other one is called.
    pub name: String,
    /// The only certificate that is taken from it.
    pub certificate: Certificate,
    /// On the main box: where the spare is, as `HOST:PORT`.
    pub address: Option<String>,
    /// Unix seconds.
    pub paired_at: i64,
    /// The other box is known to have pinned this one. On the spare that is so from the main box's first connection; a
    /// pairing that gets no further is forgotten.
    pub settled: bool,
}

impl Peer {
    /// The other box, if there is one.
    pub fn read(folders: &Folders) -> Result<Option<Self>, SpareError> {
        let path = folders.peer();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SpareError::File { path, source }),
        };
        let read = serde_json::from_slice(&text);
        read.map(Some).map_err(|error| SpareError::Damaged { path, why: error.to_string() })
    }

    /// Writes it down, whole and durably, with its certificate beside for programs that want a file.
    pub fn keep(&self, folders: &Folders) -> Result<(), SpareError> {
        let pki = |error: polder_pki::PkiError| SpareError::Certificate(error.to_string());
        polder_pki::files::private_folder(folders.own()).map_err(pki)?;
        polder_pki::files::write(&folders.peer_certificate(), &self.certificate.pem())
            .map_err(pki)?;
        // What a restore has noted of a pairing that this machine has not: see the crate `backup`.
        let _ = std::fs::remove_file(folders.own().join("unpaired"));
        let text = serde_json::to_string_pretty(self).expect("a peer has only plain values");
        polder_pki::files::write(&folders.peer(), &text).map_err(pki)
    }

    /// Whether the spare of the box in this state folder is somewhere else than on the local network, as far as its address says.
    pub fn is_far(state: &std::path::Path) -> bool {
        let address = Self::read(&Folders::of(state)).ok().flatten().and_then(|peer| peer.address);
        address.is_some_and(|address| !is_near(&address))
    }

    /// Forgets the other box: it is let in no more, and its key to the backups is gone. Backups stay.
    pub fn forget(folders: &Folders) -> Result<(), SpareError> {
        for path in [
            folders.peer(),
            folders.peer_certificate(),
            folders.main_key(),
            folders.tombstones(),
            folders.heads(),
            folders.lease(),
            // Of the crate `takeover`: a term is one of two boxes.
            folders.own().join("term.json"),
            folders.drill(),
        ] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SpareError::File { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `HOST:PORT` of a local network: a private address, a name without dots or one that only local networks have.
fn is_near(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => crate::door::is_local_network(ip),
        Err(_) => {
            !host.contains('.')
                || [".local", ".lan", ".internal"].iter().any(|end| host.ends_with(end))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_house_is_near_and_any_other_is_paid_for() {
        for near in ["10.0.0.2:8444", "[fd00::2]:8444", "ash.local:8444", "ash:8444", "127.0.0.1:1"]
        {
            assert!(is_near(near), "{near}");
        }
        for far in ["8.8.8.8:8444", "ash.example.org:8444", "[2001:db8::1]:8444"] {
            assert!(!is_near(far), "{far}");
        }
    }
}
