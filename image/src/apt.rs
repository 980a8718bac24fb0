//! Asking Debian's apt, in a root of its own: which packages a layer needs, and their files.
//!
//! The machine's own packages are neither looked at nor touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{answer, run};
use crate::{Arch, ImageError};

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The archive, and the archive of security updates where that is another place.
    archives: Vec<String>,
}

impl Mirror {
    /// This one, for everything.
    pub fn at(address: &str) -> Self {
        Self { archives: vec![address.trim_end_matches('/').to_owned()] }
    }

    /// Those that this machine's own apt uses.
    pub fn of_this_machine() -> Result<Self, ImageError> {
        let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
        let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        parts.sort();
        texts.extend(parts.iter().filter_map(|path| fs::read_to_string(path).ok()));
        Self::in_sources(&texts.join("\n")).ok_or(ImageError::NoMirror)
    }

    /// Reads apt's own files, of both formats.
    fn in_sources(text: &str) -> Option<Self> {
        let mut archives: Vec<String> = Vec::new();
        for line in text.lines() {
            let words = line.split_whitespace();
            let of_this_line: Vec<&str> = match line.split_once(':') {
                Some(("URIs", uris)) => uris.split_whitespace().collect(),
                _ if line.starts_with("deb ") => {
                    words.skip(1).filter(|w| w.contains("://")).take(1).collect()
                }
                _ => continue,
            };
            for uri in of_this_line {
                let uri = uri.trim_end_matches('/');
                if uri.contains("debian") && !archives.iter().any(|known| known == uri) {
                    archives.push(uri.to_owned());
                }
            }
        }
        (!archives.is_empty()).then_some(Self { archives })
    }

    /// `sources.list` for a release, with these parts of the archive besides `main`.
    fn sources(&self, suite: &str, components: &[String]) -> String {
        let parts = components.iter().fold("main".to_owned(), |parts, part| parts + " " + part);
        let line = |archive: &String| {
            if archive.ends_with("-security") {
                format!("deb {archive} {suite}-security {parts}\n")
            } else {
                format!("deb {archive} {suite} {parts}\ndeb {archive} {suite}-updates {parts}\n")
            }
        };
        self.archives.iter().map(line).collect()
    }
}

/// A file that apt would install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// `linux-image-amd64`, or `systemd-boot-efi:arm64` where it is not the root's own kind.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
}

/// apt in a root of its own.
pub(crate) struct Apt {
    folder: PathBuf,
    arch: Arch,
    log: PathBuf,
}

impl Apt {
    /// Makes the root and reads the mirror's lists. `also` is a folder of packages of our own.
    pub(crate) fn new(
        folder: &Path,
        arch: Arch,
        suite: &str,
        components: &[String],
        mirror: &Mirror,
        also: Option<&Path>,
        log: &Path,
    ) -> Result<Self, ImageError> {
        for part in
            ["state/lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/apt.conf.d"]
        {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(ImageError::file("make", &path))?;
        }
        let apt = Self { folder: folder.to_owned(), arch, log: log.to_owned() };
        let mut sources = mirror.sources(suite, components);
        if let Some(also) = also {
            sources += &format!("deb [trusted=yes] copy://{} ./\n", also.display());
        }
        apt.write("etc/sources.list", &sources)?;
        apt.write("state/status", "")?;
        apt.write("apt.conf", &apt.configuration())?;
        run("reading the mirror's lists", apt.command("apt-get").arg("update"), log)?;
        Ok(apt)
    }

    /// Which packages `wanted` comes to, with all that it depends on.
    pub(crate) fn resolve(&self, wanted: &[String]) -> Result<Vec<Found>, ImageError> {
        let mut command = self.command("apt-get");
        let essential = format!("?essential?architecture({})", self.arch.debian());
        command.args(["install", "--simulate", &essential]).args(wanted);
        let text = answer("working out which packages are needed", &mut command, &self.log)?;
        Ok(simulated(&text, self.arch))
    }

    /// The packages of these names alone, in the versions that would be installed.
    pub(crate) fn alone(&self, wanted: &[String]) -> Result<Vec<Found>, ImageError> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions"]).args(wanted);
        let text = answer("asking the mirror about packages", &mut command, &self.log)?;
        Ok(shown(&text, self.arch))
    }

    /// Fetches files into `cache/archives`, which it returns; apt checks them against the archive's
    /// signature. Those that cannot be had are left out.
    pub(crate) fn fetch(&self, packages: &[Found]) -> Result<PathBuf, ImageError> {
        let folder = self.folder.join("cache/archives");
        let there = self.there(packages)?;
        let named: Vec<String> = packages
            .iter()
            .filter(|p| there.contains(&(p.plain_name().to_owned(), p.version.clone())))
            .map(|p| format!("{}:{}={}", p.plain_name(), p.arch_for_apt(self.arch), p.version))
            .collect();
        if !named.is_empty() {
            let mut command = self.command("apt-get");
            command.arg("download").args(named).current_dir(&folder);
            run("fetching packages", &mut command, &self.log)?;
        }
        Ok(folder)
    }

    /// Which of these the mirror still has.
    fn there(&self, packages: &[Found]) -> Result<BTreeSet<(String, String)>, ImageError> {
        let names: BTreeSet<&str> = packages.iter().map(Found::plain_name).collect();
        let mut command = self.command("apt-cache");
        command.arg("madison").args(names);
        let text = answer("asking the mirror what it has", &mut command, &self.log)?;
        let line = |line: &str| {
            let mut parts = line.split('|').map(str::trim);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(ImageError::file("write", &path))
    }

    fn configuration(&self) -> String {
        // A builder on x86_64 also needs the other kind's boot loader.
        let kinds: BTreeSet<&str> = [self.arch.debian(), Arch::Aarch64.debian()].into();
        let kinds: Vec<String> = kinds.iter().map(|kind| format!("\"{kind}\";")).collect();
        let settings = BTreeMap::from([
            ("Dir", self.folder.display().to_string()),
            ("Dir::State", "state".into()),
            ("Dir::State::status", "state/status".into()),
            ("Dir::Cache", "cache".into()),
            ("Dir::Etc", "etc".into()),
            ("Dir::Etc::sourcelist", "sources.list".into()),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::main", "/dev/null".into()),
            ("Dir::Etc::parts", "apt.conf.d".into()),
            ("Dir::Etc::trustedparts", "/usr/share/keyrings/".into()),
            ("APT::Architecture", self.arch.debian().into()),
            ("APT::Install-Recommends", "false".into()),
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
            // apt takes itself for essential everywhere; an image has no use for it.
            ("pkgCacheGen::ForceEssential", ",".into()),
            // A pinned copy of the archive is old on purpose.
            ("Acquire::Check-Valid-Until", "false".into()),
            ("Acquire::Retries", "3".into()),
        ]);
        let lines = settings.iter().map(|(name, value)| format!("{name} \"{value}\";\n"));
        lines.collect::<String>() + &format!("APT::Architectures {{ {} }};\n", kinds.join(" "))
    }
}

impl Found {
    fn plain_name(&self) -> &str {
        self.name.split(':').next().unwrap_or(&self.name)
    }

    /// As `apt-get download` calls the file: a colon cannot be part of a name.
    pub(crate) fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.plain_name(), self.arch)
    }

    fn arch_for_apt(&self, own: Arch) -> &str {
        if self.arch == "all" { own.debian() } else { &self.arch }
    }
}

/// The `Inst` lines of a simulated install: `Inst libc6 (2.41-12 Debian:13/stable [amd64]) [...]`.
fn simulated(text: &str, own: Arch) -> Vec<Found> {
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let inside = rest.split_once('(')?.1.split_once(')')?.0;
        let version = inside.split(' ').next()?.to_owned();
        let arch = inside.rsplit_once('[')?.1.trim_end_matches(']').to_owned();
        let plain = name.split(':').next()?;
        Some(Found { name: named(plain, &arch, own), version, arch })
    };
    text.lines().filter_map(line).collect()
}

/// The stanzas of `apt-cache show`.
fn shown(text: &str, own: Arch) -> Vec<Found> {
    let stanza = |stanza: &str| {
        let field = |name: &str| {
            let line = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
            stanza.lines().find_map(line)
        };
        let (plain, version, arch) = (field("Package")?, field("Version")?, field("Architecture")?);
        Some(Found { name: named(&plain, &arch, own), version, arch })
    };
    text.split("\n\n").filter_map(stanza).collect()
}

/// As a lock calls a package.
fn named(plain: &str, arch: &str, own: Arch) -> String {
    if arch == "all" || arch == own.debian() { plain.to_owned() } else { format!("{plain}:{arch}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_install_names_packages_versions_and_kinds() {
        let text = "\
            Inst gcc-14-base (14.2.0-19 Debian:13.1/stable [amd64])\n\
            Inst libc6 (2.41-12+deb13u4 Debian:13.1/stable, Debian-Security:13 [amd64]) []\n\
            Inst adduser (3.152 Debian:13.1/stable [all])\n\
            Inst systemd-boot-efi:arm64 (257.13-1 Debian:13.1/stable [arm64])\n\
            Conf adduser (3.152 Debian:13.1/stable [all])\n";
        let found = simulated(text, Arch::X86_64);
        let told: Vec<String> =
            found.iter().map(|f| format!("{} {} {}", f.name, f.version, f.arch)).collect();
        assert_eq!(
            told,
            [
                "gcc-14-base 14.2.0-19 amd64",
                "libc6 2.41-12+deb13u4 amd64",
                "adduser 3.152 all",
                "systemd-boot-efi:arm64 257.13-1 arm64"
            ]
        );
    }

    #[test]
    fn the_machines_own_mirrors_are_read_from_either_format() {
        let new = "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm\n\n\
                   URIs: http://a.example/debian-security/\n";
        let old = "# deb http://no.example/debian x main\n\
                   deb [signed-by=/k] http://a.example/debian bookworm main\n\
                   deb http://a.example/debian-security bookworm-security main\n\
                   deb http://elsewhere.example/other stable main\n";
        for text in [new, old] {
            let mirror = Mirror::in_sources(text).unwrap();
            assert_eq!(
                mirror.sources("trixie", &[]),
                "deb http://a.example/debian trixie main\n\
                 deb http://a.example/debian trixie-updates main\n\
                 deb http://a.example/debian-security trixie-security main\n",
            );
        }
        assert_eq!(Mirror::in_sources(""), None);
    }

    #[test]
    fn other_parts_of_the_archive_are_named_beside_main() {
        let mirror = Mirror::at("http://a.example/debian/");
        assert_eq!(
            mirror.sources("trixie", &["contrib".into(), "non-free".into()]),
            "deb http://a.example/debian trixie main contrib non-free\n\
             deb http://a.example/debian trixie-updates main contrib non-free\n",
        );
    }

    #[test]
    fn of_what_apt_shows_the_first_version_of_each_package_is_the_one_to_take() {
        let text = "Package: libcuda1\nArchitecture: amd64\nVersion: 550.163.01-2\nDepends: x\n\n\
                    Package: nvidia-modprobe\nVersion: 570.133.07-1\nArchitecture: amd64\n";
        let told: Vec<String> = shown(text, Arch::X86_64)
            .iter()
            .map(|f| format!("{} {} {}", f.name, f.version, f.arch))
            .collect();
        assert_eq!(told, ["libcuda1 550.163.01-2 amd64", "nvidia-modprobe 570.133.07-1 amd64"]);
    }
}
