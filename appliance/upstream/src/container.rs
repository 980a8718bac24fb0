//! Servers in containers, under podman: images by the digest of their manifest, a container without a network, the model's
//! files read-only.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use polder_site::{Container, EngineName, ImageDigest};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::process::{Child, Command};

use crate::cards::Cards;

/// Another program than `podman` on the path: for tests.
const PROGRAM: &str = "POLDER_PODMAN";
/// A container has so long to end when it is asked to.
const STOP: u64 = 10;
/// Looking something up takes no longer.
const LOOK: Duration = Duration::from_secs(60);
/// Bringing in an image of tens of gigabytes from a slow disk may take this long.
const BRING: Duration = Duration::from_secs(4 * 3600);
/// An archive's list of images, and one image's list of layers, are no longer than this.
const LONGEST_LIST: u64 = 4 << 20;
/// Files in an archive that are looked at before it counts as none.
const MOST_FILES: usize = 10_000;

/// podman with images and containers of this box alone.
#[derive(Debug, Clone)]
pub struct Podman {
    program: PathBuf,
    state: PathBuf,
    /// Where cards and their driver are looked for.
    machine: PathBuf,
}

/// What podman did not do.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// It is not there.
    #[error("podman could not be run ({0}); containers need it: install Debian's package podman")]
    NoPodman(io::Error),
    /// It says no.
    #[error("podman could not {act}: {why}")]
    Podman {
        /// What it was to do.
        act: &'static str,
        /// Its own last line.
        why: String,
    },
    /// It takes too long.
    #[error("podman did not {act} within {seconds} s")]
    Slow {
        /// What it was to do.
        act: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The image is not there.
    #[error(
        "the container image {0} is not on this box; let the box fetch it by serving it again, or bring it in with `polder engine image import FILE`, from `podman save --format oci-archive`"
    )]
    NoImage(ImageDigest),
    /// The file is none, or cannot be read.
    #[error("{} is no OCI archive ({why}); make one with `podman save --format oci-archive`", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The file is another image.
    #[error("{} holds the image {found}, and {wanted} is what the box is told to run; nothing was brought in", path.display())]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
        /// What was to be.
        wanted: ImageDigest,
    },
    /// The model's files.
    #[error("the model's files cannot be looked at in {}: {source}", folder.display())]
    Weights {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A list of manifests could not be kept.
    #[error("the list that names the image could not be kept: {0}")]
    List(io::Error),
    /// Only root can go into a container's network.
    #[error(
        "a container has no network of its own, and to reach it polder has to run as root, which it does not here"
    )]
    NotRoot,
}

impl Podman {
    /// For the box in this state folder.
    pub fn of(state: &Path) -> Self {
        let program = std::env::var_os(PROGRAM).map_or_else(|| "podman".into(), PathBuf::from);
        Self { program, state: state.to_owned(), machine: "/".into() }
    }

    /// With the cards of another machine, whose files are here: for tests.
    pub fn with_cards_of(self, machine: &Path) -> Self {
        Self { machine: machine.to_owned(), ..self }
    }

    /// By this program instead.
    pub fn run_by(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// What every call begins with: images, containers and locks of this box, and none of the machine's own.
    fn options(&self) -> Vec<String> {
        let path = |part: &str| self.state.join(part).display().to_string();
        [
            ("--root", path("containers")),
            ("--runroot", path("run/containers")),
            ("--cgroup-manager", "cgroupfs".to_owned()),
            ("--events-backend", "none".to_owned()),
            ("--log-level", "error".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.options()).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn say(
        &self,
        act: &'static str,
        arguments: &[&str],
        within: Duration,
    ) -> Result<String, ContainerError> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let output = tokio::time::timeout(within, self.command(&arguments).output()).await;
        let slow = ContainerError::Slow { act, seconds: within.as_secs() };
        let output = output.map_err(|_| slow)?.map_err(ContainerError::NoPodman)?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(ContainerError::Podman { act, why: last_line(&output.stderr) }),
        }
    }

    /// What podman itself calls the image of this digest, if it is on the box.
    pub async fn find(&self, digest: &ImageDigest) -> Result<Option<String>, ContainerError> {
        let images = self.images().await?;
        // Asked once, however many the list names.
        let listed = || self.listed(digest).iter().find_map(|own| found_in(&images, own));
        Ok(found_in(&images, digest).or_else(listed))
    }

    /// All of them, as podman lists them.
    async fn images(&self) -> Result<String, ContainerError> {
        let list = ["images", "--all", "--digests", "--no-trunc", "--format", "json"];
        self.say("list its images", &list, LOOK).await
    }

    /// Brings in the image of this digest from an archive. What is in the archive is looked at before podman is.
    pub async fn import(&self, archive: &Path, digest: &ImageDigest) -> Result<(), ContainerError> {
        let (path, wanted) = (archive.to_owned(), digest.clone());
        let checked = tokio::task::spawn_blocking(move || check_archive(&path, &wanted)).await;
        checked.map_err(|error| ContainerError::Archive {
            path: archive.to_owned(),
            why: error.to_string(),
        })??;
        let path = archive.display().to_string();
        self.say("bring in the image", &["load", "--quiet", "--input", &path], BRING).await?;
        self.find(digest).await?.map(drop).ok_or_else(|| ContainerError::NoImage(digest.clone()))
    }

    /// Takes in an image whose files lie in a folder, as they were fetched: each of them was compared with its digest already, and podman does it again. `own` is the
    /// digest of its manifest; `list` is the list of manifests that the site names instead, word for word, where it names one.
    pub async fn take_in(
        &self,
        folder: &Path,
        own: &ImageDigest,
        list: Option<&[u8]>,
    ) -> Result<(), ContainerError> {
        let from = format!("dir:{}", folder.display());
        self.say("take in the image", &["pull", "--quiet", &from], BRING).await?;
        if found_in(&self.images().await?, own).is_none() {
            return Err(ContainerError::NoImage(own.clone()));
        }
        let Some(list) = list else { return Ok(()) };
        let keep = || -> io::Result<()> {
            std::fs::create_dir_all(self.lists())?;
            std::fs::write(self.lists().join(format!("{}.json", hex(list))), list)
        };
        keep().map_err(ContainerError::List)
    }

    /// The lists of manifests of those images that the site names by such a list's digest.
    fn lists(&self) -> PathBuf {
        self.state.join("containers/lists")
    }

    /// What the list of this digest names, where it was kept and is what it says.
    fn listed(&self, digest: &ImageDigest) -> Vec<ImageDigest> {
        let name = digest.as_str().trim_start_matches("sha256:");
        let read = std::fs::File::open(self.lists().join(format!("{name}.json")));
        let mut text = Vec::new();
        let read = read.and_then(|file| file.take(LONGEST_LIST).read_to_end(&mut text));
        if read.is_err() || hex(&text) != name {
            return Vec::new();
        }
        let index: Index = serde_json::from_slice(&text).unwrap_or_default();
        index.manifests.iter().filter_map(|one| one.digest.parse().ok()).collect()
    }

    /// Starts the container of a slot, in the foreground of a child process. One that an earlier life of the slot left behind goes first.
    pub async fn start(
        &self,
        slot: &EngineName,
        container: &Container,
        model: &Path,
    ) -> Result<Running, ContainerError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ContainerError::NotRoot);
        }
        let image = self.find(&container.digest).await?;
        let image = image.ok_or_else(|| ContainerError::NoImage(container.digest.clone()))?;
        let files = files(model)?;
        let pid_file = self.pid_file(slot);
        // That of an earlier life would lead into a network that is gone, or somebody else's.
        let _ = std::fs::remove_file(&pid_file);
        let cards = Cards::of(&self.machine);
        if let Some(how) = cards.how() {
            log::warn!(
                "the container of {slot} is given the graphics cards of this machine {how}; nobody has run that with a card yet"
            );
        }
        let arguments = run_arguments(slot, container, &image, &files, &pid_file, &cards);
        let child = self.command(&arguments).spawn().map_err(ContainerError::NoPodman)?;
        Ok(Running { podman: self.clone(), slot: slot.clone(), child, pid_file })
    }

    fn pid_file(&self, slot: &EngineName) -> PathBuf {
        self.state.join("run").join(format!("container-{slot}.pid"))
    }

    /// Ends the container of a slot, if there is one, and removes it.
    pub async fn remove(&self, slot: &EngineName) -> Result<(), ContainerError> {
        let (name, time) = (name_of(slot), STOP.to_string());
        let remove = ["rm", "--force", "--ignore", "--time", &time, &name];
        self.say("end the container", &remove, Duration::from_secs(STOP * 3)).await.map(drop)
    }
}

/// A container that was started.
pub struct Running {
    podman: Podman,
    slot: EngineName,
    child: Child,
    pid_file: PathBuf,
}

impl Running {
    /// The network inside, once there is one.
    pub fn network(&self) -> Option<PathBuf> {
        let text = std::fs::read_to_string(&self.pid_file).ok()?;
        let pid: u32 = text.trim().parse().ok()?;
        Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// Waits until it has ended, and says how.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => match status.code() {
                // What podman itself could not do.
                Some(125) => "podman could not start it; the line before says why".to_owned(),
                Some(126 | 127) => {
                    "its program could not be run; the line before says why".to_owned()
                }
                Some(137) => "it was killed (perhaps memory ran out)".to_owned(),
                Some(code) => format!("it ended with status {code}"),
                None => "podman was killed".to_owned(),
            },
            Err(error) => format!("it could not be waited for: {error}"),
        }
    }

    /// Asks it to end, and removes it.
    pub async fn stop(mut self) {
        if let Err(error) = self.podman.remove(&self.slot).await {
            log::warn!("the container of {} may still be there: {error}", self.slot);
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
    }
}

fn name_of(slot: &EngineName) -> String {
    format!("polder-{slot}")
}

/// The files of a model, by name, each where its link leads: nothing else of the store is to be seen inside.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>, ContainerError> {
    let fail = |source| ContainerError::Weights { folder: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push((name, std::fs::canonicalize(entry.path()).map_err(fail)?));
    }
    files.sort();
    Ok(files)
}

/// `podman run` and everything behind it.
fn run_arguments(
    slot: &EngineName,
    container: &Container,
    image: &str,
    files: &[(String, PathBuf)],
    pid_file: &Path,
    cards: &Cards,
) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "run",
        "--rm",
        "--replace",
        "--pull=never",
        "--network=none",
        // It stays among the slot's own processes, with their limits.
        "--cgroups=disabled",
        "--read-only",
        "--tmpfs=/tmp",
        "--env=HOME=/tmp",
        "--shm-size=1g",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        // What it says goes to our own standard error, and is kept nowhere else.
        "--log-driver=none",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--stop-timeout={STOP}"));
    arguments.push(format!("--name={}", name_of(slot)));
    arguments.push(format!("--pidfile={}", pid_file.display()));
    arguments.extend(cards.arguments());
    let mount = |(name, path): &(String, PathBuf)| {
        format!("--mount=type=bind,source={},target=/weights/{name},readonly", path.display())
    };
    arguments.extend(files.iter().map(mount));
    arguments.push(image.to_owned());
    arguments.extend(container.arguments.iter().cloned());
    arguments
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
}

/// The image of this digest in podman's list: its own manifest's, or that of a list of manifests that it was fetched by.
fn found_in(list: &str, digest: &ImageDigest) -> Option<String> {
    let listed: Vec<Listed> = serde_json::from_str(list).ok()?;
    let is = |image: &&Listed| {
        let by = image.repo_digests.iter().flatten().filter_map(|name| name.rsplit_once('@'));
        image.digest == digest.as_str() || by.into_iter().any(|(_, d)| d == digest.as_str())
    };
    listed.iter().find(is).map(|image| image.id.clone())
}

/// The digest of the only image in an archive.
pub fn digest_of_archive(path: &Path) -> Result<ImageDigest, ContainerError> {
    let none = |why: &str| ContainerError::Archive { path: path.to_owned(), why: why.to_owned() };
    match &digests_in(path)?[..] {
        [only] => only.parse().map_err(|_| none("its image has no digest that can be checked")),
        [] => Err(none("there is no image in it")),
        _ => Err(none("there are several images in it")),
    }
}

/// Whether an archive holds this image, and its manifest is what its digest says. (The layers are checked by podman, by the digests in
/// the manifest.)
fn check_archive(path: &Path, wanted: &ImageDigest) -> Result<(), ContainerError> {
    let digests = digests_in(path)?;
    if !digests.iter().any(|digest| digest == wanted.as_str()) {
        let found = if digests.is_empty() { "nothing".to_owned() } else { digests.join(", ") };
        return Err(ContainerError::WrongDigest {
            path: path.to_owned(),
            found,
            wanted: wanted.clone(),
        });
    }
    let none = |why: &str| ContainerError::Archive { path: path.to_owned(), why: why.to_owned() };
    let hex = wanted.as_str().trim_start_matches("sha256:");
    let manifest = read_in(path, &format!("blobs/sha256/{hex}"))?;
    let manifest = manifest.ok_or_else(|| none("its image is not in it"))?;
    let is = self::hex(&manifest);
    match is == hex {
        true => Ok(()),
        false => Err(ContainerError::WrongDigest {
            path: path.to_owned(),
            found: format!("sha256:{is}"),
            wanted: wanted.clone(),
        }),
    }
}

#[derive(Deserialize, Default)]
struct Index {
    manifests: Vec<Manifest>,
}

#[derive(Deserialize)]
struct Manifest {
    digest: String,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digests_in(path: &Path) -> Result<Vec<String>, ContainerError> {
    let none = |why: String| ContainerError::Archive { path: path.to_owned(), why };
    let index =
        read_in(path, "index.json")?.ok_or_else(|| none("it has no index.json".to_owned()))?;
    let index: Index = serde_json::from_slice(&index)
        .map_err(|error| none(format!("its index.json cannot be read: {error}")))?;
    let shown = |m: Manifest| m.digest.chars().filter(|c| !c.is_control()).take(80).collect();
    Ok(index.manifests.into_iter().take(100).map(shown).collect())
}

/// A short file of an archive.
fn read_in(path: &Path, wanted: &str) -> Result<Option<Vec<u8>>, ContainerError> {
    let none = |why: String| ContainerError::Archive { path: path.to_owned(), why };
    let fail = |error: io::Error| none(error.to_string());
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut archive = tar::Archive::new(file);
    // Seeking past what is not wanted: layers are gigabytes.
    let entries = archive.entries_with_seek().map_err(fail)?;
    for entry in entries.take(MOST_FILES) {
        let entry = entry.map_err(fail)?;
        let name = entry.path().map_err(fail)?.into_owned();
        if name.strip_prefix("./").unwrap_or(&name) != Path::new(wanted) {
            continue;
        }
        if entry.size() > LONGEST_LIST {
            return Err(none(format!("{wanted} in it is too long")));
        }
        let mut content = Vec::new();
        entry.take(LONGEST_LIST).read_to_end(&mut content).map_err(fail)?;
        return Ok(Some(content));
    }
    Ok(None)
}

fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line =
        said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
    let line = line.trim().trim_start_matches("Error: ");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(arguments: &[&str]) -> Container {
        Container {
            image: "docker.io/vllm/vllm-openai".parse().unwrap(),
            digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            authority: None,
            port: 8000,
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            called: None,
        }
    }

    #[test]
    fn a_container_has_no_network_no_rights_and_nothing_to_write_but_what_it_forgets() {
        let files = [("model.safetensors".to_owned(), PathBuf::from("/s/weights/blobs/sha256/00"))];
        let container = container(&["--model", "/weights", "--port", "8000"]);
        let slot = "big".parse().unwrap();
        let run = run_arguments(
            &slot,
            &container,
            "e6f6",
            &files,
            Path::new("/s/run/x.pid"),
            &Cards::Described,
        );
        assert_eq!(
            run.join(" "),
            "run --rm --replace --pull=never --network=none --cgroups=disabled --read-only --tmpfs=/tmp --env=HOME=/tmp \
             --shm-size=1g --cap-drop=all --security-opt=no-new-privileges --log-driver=none --stop-timeout=10 \
             --name=polder-big --pidfile=/s/run/x.pid --device=nvidia.com/gpu=all \
             --mount=type=bind,source=/s/weights/blobs/sha256/00,target=/weights/model.safetensors,readonly \
             e6f6 --model /weights --port 8000"
        );
    }

    #[test]
    fn an_image_is_found_by_its_digest_and_by_nothing_else() {
        let digest = container(&[]).digest;
        let of = |text: &str| found_in(text, &digest);
        assert_eq!(
            of(&format!("[{{\"Id\":\"a\",\"Digest\":\"{digest}\"}}]")).as_deref(),
            Some("a")
        );
        let by_list = format!(
            "[{{\"Id\":\"b\",\"Digest\":\"x\",\"RepoDigests\":[\"docker.io/v@{digest}\"]}}]"
        );
        assert_eq!(of(&by_list).as_deref(), Some("b"));
        for none in
            ["", "[]", "{}", "[{\"Id\":\"a\",\"Digest\":\"sha256:00\",\"RepoDigests\":null}]"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        for content in [&b""[..], b"not a tar at all", &[0; 2048], &[b'x'; 4096]] {
            std::fs::write(&path, content).unwrap();
            let says = digest_of_archive(&path).unwrap_err().to_string();
            assert!(says.contains("is no OCI archive") && says.contains("podman save"), "{says}");
        }
        let says = digest_of_archive(&folder.path().join("none.tar")).unwrap_err().to_string();
        assert!(says.contains("none.tar"), "{says}");
    }

    #[test]
    fn podmans_own_last_words_are_repeated_in_one_line() {
        assert_eq!(last_line(b"Trying...\nError: no such image\n\n"), "no such image");
        assert_eq!(last_line(b""), "it did not say why");
    }
}
