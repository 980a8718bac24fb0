//! Gives the network ports of an image the addresses that the site says, by way of networkd.
//!
//! [`give`] makes networkd's folder say it; telling networkd is the caller's affair.

mod file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polder_site::{InterfaceName, PortAddress, Ports};

pub use file::file;

/// Every file of ours begins so, and no other: networkd takes it before the image's own.
const OURS: &str = "70-polder-port-";
const ENDING: &str = ".network";

/// The addresses could not be written down.
#[derive(Debug, thiserror::Error)]
#[error("could not {act} {}", path.display())]
pub struct GiveError {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes the files in networkd's folder say what `ports` say: writes those that differ, removes those of ports that ask a router again. True
/// where something changed.
pub fn give(networks: &Path, ports: &Ports) -> Result<bool, GiveError> {
    let fail = |act, path: &Path| {
        let path = path.to_owned();
        move |source| GiveError { act, path, source }
    };
    fs::create_dir_all(networks).map_err(fail("make", networks))?;
    let path_of = |name: &InterfaceName| networks.join(format!("{OURS}{name}{ENDING}"));
    let fixed: Vec<(&InterfaceName, &PortAddress)> =
        ports.iter().filter(|(_, port)| !port.by_dhcp()).collect();
    let names: Vec<&InterfaceName> = fixed.iter().map(|(name, _)| *name).collect();
    let places = file::places(&names, |name| fs::read_to_string(path_of(name)).ok());
    let wanted: Vec<(PathBuf, String)> = fixed
        .iter()
        .zip(places)
        .map(|((name, port), place)| (path_of(name), file(name, port, place)))
        .collect();
    let mut changed = false;
    for entry in fs::read_dir(networks).map_err(fail("look into", networks))?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let ours = name.to_str().is_some_and(|name| name.starts_with(OURS));
        if ours && wanted.iter().all(|(kept, _)| *kept != path) {
            fs::remove_file(&path).map_err(fail("remove", &path))?;
            changed = true;
        }
    }
    for (path, text) in wanted {
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            continue;
        }
        // networkd never reads half a file: it takes names that end as they should.
        let partial = path.with_extension("partial");
        fs::write(&partial, text).map_err(fail("write", &partial))?;
        fs::rename(&partial, &path).map_err(fail("write", &path))?;
        changed = true;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn each_port_has_a_file_of_its_own_and_one_that_asks_a_router_again_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let networks = folder.path().join("systemd/network");
        let port = |line: &str| PortAddress::line(line).unwrap();
        let mut ports: Ports =
            [("enp1s0", "192.168.7.20/24 192.168.7.1"), ("enp2s0", "10.0.0.5/8")]
                .map(|(name, line)| (name.parse().unwrap(), port(line)))
                .into();
        ports.insert("enp3s0".parse().unwrap(), PortAddress::default());
        assert!(give(&networks, &ports).unwrap());
        let both = ["70-polder-port-enp1s0.network", "70-polder-port-enp2s0.network"];
        assert_eq!(names(&networks), both);
        assert!(!give(&networks, &ports).unwrap(), "nothing changed");

        fs::write(networks.join("60-of-the-machine.network"), "[Match]\n").unwrap();
        ports.insert("enp1s0".parse().unwrap(), PortAddress::default());
        ports.insert("enp2s0".parse().unwrap(), port("10.0.0.6/8"));
        assert!(give(&networks, &ports).unwrap());
        assert_eq!(names(&networks), ["60-of-the-machine.network", both[1]]);
        let text = fs::read_to_string(networks.join(both[1])).unwrap();
        assert!(text.contains("Address=10.0.0.6/8\n") && !text.contains("10.0.0.5"), "{text}");
        assert!(give(&networks, &Ports::new()).unwrap());
        assert_eq!(names(&networks), ["60-of-the-machine.network"], "only our own are touched");
    }

    #[test]
    fn a_port_that_comes_or_goes_changes_no_other_ports_file() {
        let folder = tempfile::tempdir().unwrap();
        let port = |line: &str| PortAddress::line(line).unwrap();
        let mut ports: Ports =
            [("enp2s0", "192.168.7.20/24 192.168.7.1"), ("enp3s0", "10.0.0.5/8 10.0.0.1")]
                .map(|(name, line)| (name.parse().unwrap(), port(line)))
                .into();
        assert!(give(folder.path(), &ports).unwrap());
        let read = |name: &str| {
            fs::read_to_string(folder.path().join(format!("70-polder-port-{name}.network")))
        };
        let before = ["enp2s0", "enp3s0"].map(|name| read(name).unwrap());
        ports.insert("enp1s0".parse().unwrap(), port("172.16.0.5/12 172.16.0.1"));
        assert!(give(folder.path(), &ports).unwrap());
        assert_eq!(["enp2s0", "enp3s0"].map(|name| read(name).unwrap()), before);
        assert!(read("enp1s0").unwrap().contains("Metric=514\n"));
        ports.remove(&"enp2s0".parse::<InterfaceName>().unwrap());
        assert!(give(folder.path(), &ports).unwrap());
        assert_eq!(read("enp3s0").unwrap(), before[1]);
        assert!(read("enp1s0").unwrap().contains("Metric=514\n") && read("enp2s0").is_err());
        assert!(!give(folder.path(), &ports).unwrap(), "nothing changed");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let networks = folder.path().join("file");
        fs::write(&networks, "").unwrap();
        let said = give(&networks, &Ports::new()).unwrap_err().to_string();
        assert_eq!(said, format!("could not make {}", networks.display()));
    }
}
