//! How a machine's graphics cards are given to a container: by the description that their driver's tools wrote for containers (CDI), else as the device nodes
//! themselves with the driver's own libraries beside them.

use std::io::Read;
use std::path::{Path, PathBuf};

/// What is said of cards in containers, by whoever set up this machine.
const DESCRIPTIONS: [&str; 2] = ["etc/cdi", "var/run/cdi"];
/// No description is longer.
const LONGEST: u64 = 1 << 20;
/// Where Debian and others put the driver's libraries.
const LIBRARIES: [&str; 4] =
    ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"];
/// What a program needs of the driver to compute; the rest of CUDA is in its image.
const NEEDED: [&str; 4] =
    ["libcuda.so.", "libnvidia-ml.so.", "libnvidia-ptxjitcompiler.so.", "libnvidia-nvvm.so."];
/// Where images that are made for such cards look for the driver's libraries.
const INSIDE: &str = "/usr/local/nvidia/lib64";
/// More nodes or libraries than any machine has.
const MOST: usize = 64;

/// How a container gets the cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cards {
    /// There are none.
    None,
    /// By the description for containers.
    Described,
    /// As they are.
    Nodes {
        /// Under `/dev`.
        devices: Vec<PathBuf>,
        /// By name, and where it leads.
        libraries: Vec<(String, PathBuf)>,
    },
}

impl Cards {
    /// Those of the machine whose root folder this is.
    pub(crate) fn of(machine: &Path) -> Self {
        if DESCRIPTIONS.iter().any(|folder| describes(&machine.join(folder))) {
            return Self::Described;
        }
        let number = |name: &str| {
            let number = name.strip_prefix("nvidia").unwrap_or_default();
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        };
        let control = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
        let names = names_in(&machine.join("dev"));
        if !names.iter().any(|name| number(name)) {
            return Self::None;
        }
        let devices = names.iter().filter(|name| number(name) || control.contains(&name.as_str()));
        let devices = devices.take(MOST).map(|name| Path::new("/dev").join(name)).collect();
        let mut libraries: Vec<(String, PathBuf)> = Vec::new();
        for folder in LIBRARIES.map(|folder| machine.join(folder)) {
            for name in names_in(&folder) {
                let needed = NEEDED.iter().any(|needed| name.starts_with(needed));
                let new = libraries.iter().all(|(known, _)| *known != name);
                if needed
                    && is_plain(&name)
                    && new
                    && libraries.len() < MOST
                    && let Ok(real) = std::fs::canonicalize(folder.join(&name))
                {
                    libraries.push((name, real));
                }
            }
        }
        Self::Nodes { devices, libraries }
    }

    /// In words, after "is given the cards".
    pub(crate) fn how(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Described => Some("as their driver describes them for containers"),
            Self::Nodes { .. } => {
                Some("as device nodes, because nothing in /etc/cdi describes them")
            }
        }
    }

    /// For `podman run`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Described => vec!["--device=nvidia.com/gpu=all".to_owned()],
            Self::Nodes { devices, libraries } => {
                let device = |path: &PathBuf| format!("--device={}", path.display());
                let library = |(name, path): &(String, PathBuf)| {
                    format!(
                        "--mount=type=bind,source={},target={INSIDE}/{name},readonly",
                        path.display()
                    )
                };
                devices.iter().map(device).chain(libraries.iter().map(library)).collect()
            }
        }
    }
}

/// Whether podman reads this name as a name: there is no sign of its own in it.
pub(crate) fn is_plain(name: &str) -> bool {
    name.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
}

/// Does any file here say how these cards get into a container?
fn describes(folder: &Path) -> bool {
    names_in(folder).iter().any(|name| {
        let ours = [".json", ".yaml", ".yml"].iter().any(|end| name.ends_with(end));
        let mut text = Vec::new();
        let file = ours.then(|| std::fs::File::open(folder.join(name)).ok()).flatten();
        let read = file.is_some_and(|file| file.take(LONGEST).read_to_end(&mut text).is_ok());
        read && String::from_utf8_lossy(&text).contains("nvidia.com/gpu")
    })
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "kind: nvidia.com/gpu\n").unwrap();
        }
        root
    }

    #[test]
    fn a_machine_without_cards_gives_none() {
        let bare =
            machine(&["dev/null", "dev/nvidiactl", "usr/lib64/libcuda.so.1", "etc/cdi/read.me"]);
        assert_eq!(Cards::of(bare.path()), Cards::None);
        assert!(Cards::None.arguments().is_empty() && Cards::None.how().is_none());
        // A description of somebody else's cards is none of these.
        std::fs::write(bare.path().join("etc/cdi/x.json"), "{\"kind\":\"example.org/fpga\"}")
            .unwrap();
        assert_eq!(Cards::of(bare.path()), Cards::None);
    }

    #[test]
    fn cards_are_given_as_they_are_described_for_containers_where_they_are() {
        let root = machine(&["dev/nvidia0", "var/run/cdi/nvidia.yaml"]);
        let cards = Cards::of(root.path());
        assert_eq!(cards.arguments(), ["--device=nvidia.com/gpu=all"]);
        assert!(cards.how().unwrap().contains("describes"));
    }

    #[test]
    fn else_as_their_nodes_with_the_drivers_libraries() {
        let root = machine(&[
            "dev/nvidia0",
            "dev/nvidia1",
            "dev/nvidia-uvm",
            "dev/nvidiactl",
            "dev/nvidia-caps",
            "dev/nvme0",
            "usr/lib/x86_64-linux-gnu/libcuda.so.580.1",
            "usr/lib/x86_64-linux-gnu/libcuda.so.1,target=x",
            "usr/lib/x86_64-linux-gnu/libc.so.6",
            "usr/lib64/libnvidia-ml.so.1",
        ]);
        let real = root.path().join("usr/lib/x86_64-linux-gnu");
        std::os::unix::fs::symlink("libcuda.so.580.1", real.join("libcuda.so.1")).unwrap();
        let shown = Cards::of(root.path()).arguments().join("\n");
        let root = std::fs::canonicalize(root.path()).unwrap();
        assert_eq!(
            shown.replace(&root.display().to_string(), ""),
            "--device=/dev/nvidia-uvm\n\
             --device=/dev/nvidia0\n\
             --device=/dev/nvidia1\n\
             --device=/dev/nvidiactl\n\
             --mount=type=bind,source=/usr/lib/x86_64-linux-gnu/libcuda.so.580.1,target=/usr/local/nvidia/lib64/libcuda.so.1,readonly\n\
             --mount=type=bind,source=/usr/lib/x86_64-linux-gnu/libcuda.so.580.1,target=/usr/local/nvidia/lib64/libcuda.so.580.1,readonly\n\
             --mount=type=bind,source=/usr/lib64/libnvidia-ml.so.1,target=/usr/local/nvidia/lib64/libnvidia-ml.so.1,readonly"
        );
    }
}
