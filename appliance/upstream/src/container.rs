//! Servers in containers, under podman and without anybody's rights: images by the digest of their manifest, a container whose network is that of
//! whoever starts it and leads nowhere, the model's files read-only.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use polder_site::{Container, EngineName, ImageDigest};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

use crate::cards::{Cards, is_plain};
use crate::images::{Image, RESERVE, free, room_for};
use crate::removal::remove_tree;
use crate::unpacked::{Found, Note};

/// Another program than `podman` on the path: for tests.
const PROGRAM: &str = "POLDER_PODMAN";
/// A container has so long to end when it is asked to, which [`INSIDE`] knows as well.
const STOP: u64 = 10;
/// Looking something up takes no longer.
const LOOK: Duration = Duration::from_secs(60);
/// Unpacking an image of tens of gigabytes on a slow disk may take this long.
const UNPACK: Duration = Duration::from_secs(4 * 3600);
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(500);
/// How often half an image is erased, at most.
const CLEARINGS: usize = 10;
/// How much longer an image is unpacked than as it is fetched; nobody knows before.
const UNPACKED: u64 = 3;
/// What a namespace is that podman runs in: it is the only user there, every process of it ends with the first, and that one is [`INSIDE`].
const ENTER: [&str; 7] =
    ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
/// The first process there. It is told to end by a line; where whoever started it is gone, it reads the end of the file instead, and nobody is waited for.
/// podman's locks are in shared memory under one name for each user: other slots have the same user, and see others here. What podman keeps of what runs is
/// there too, since it wants a short name for that.
const INSIDE: &str = "mount -t tmpfs -o mode=700,nosuid,nodev polder /dev/shm || exit 125; exec 3<&0; \
    \"$@\" </dev/null 3<&- & p=$!; \
    { read -r word <&3 && kill -TERM $p && sleep 10; kill -KILL $p; } 2>/dev/null & wait $p";

/// Where [`INSIDE`] puts what passes.
const PASSING: &str = "/dev/shm";

/// podman with the image and the container of one slot alone.
#[derive(Debug, Clone)]
pub struct Podman {
    program: PathBuf,
    slot: EngineName,
    folder: PathBuf,
    /// Where cards and their driver are looked for.
    machine: PathBuf,
    /// Bytes of the disk that no image takes.
    reserve: u64,
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
    /// One of them has a name that podman would read as something else.
    #[error(
        "the model has a file called {name:?}, which no container can be given: letters, digits and the signs . _ - are what such a name may have; rename the file and bring the model in again"
    )]
    WeightsName {
        /// What it is called.
        name: String,
    },
    /// A list of manifests could not be kept.
    #[error("the list that names the image could not be kept: {0}")]
    List(io::Error),
    /// The disk.
    #[error("a container image could not be kept in {}: {source}", folder.display())]
    Keep {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is full.
    #[error(
        "{what} takes about {:.1} GB of the disk, and {:.1} GB are free; remove a model that nobody uses, or take a larger disk",
        *needed as f64 / 1e9,
        *free as f64 / 1e9
    )]
    NoSpace {
        /// What has no room.
        what: &'static str,
        /// Bytes, of which some are kept free.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// It became full.
    #[error(
        "the disk is too full for the container image: unpacking it left {:.1} GB free, of which the box needs {:.1} GB for its own records, so what was unpacked is gone again; remove a model that nobody uses, or take a larger disk",
        *left as f64 / 1e9,
        *kept as f64 / 1e9
    )]
    Full {
        /// Bytes that were still free.
        left: u64,
        /// Bytes that have to be.
        kept: u64,
    },
    /// The container would be on a network.
    #[error(
        "a container is started only where no way leads out of the network, and here one does; a slot that a container serves has to be started by the box itself"
    )]
    Network,
}

impl Podman {
    /// For a slot of the box in this state folder.
    pub fn of(state: &Path, slot: &EngineName) -> Self {
        let program = std::env::var_os(PROGRAM).map_or_else(|| "podman".into(), PathBuf::from);
        let folder = unpacked_by(state, slot);
        Self { program, slot: slot.clone(), folder, machine: "/".into(), reserve: RESERVE }
    }

    /// With the cards of another machine, whose files are here: for tests.
    pub fn with_cards_of(self, machine: &Path) -> Self {
        Self { machine: machine.to_owned(), ..self }
    }

    /// By this program instead.
    pub fn run_by(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }

    /// What an earlier life of the slot left half written goes, and podman finds what it needs.
    fn prepare(&self) -> Result<(), ContainerError> {
        let prepare = || -> io::Result<()> {
            erase(&self.path("tmp"))?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(self.path("tmp"))?;
            fs::write(self.path("storage.conf"), "[storage]\ndriver = \"overlay\"\n")
        };
        prepare().map_err(|source| ContainerError::Keep { folder: self.folder.clone(), source })
    }

    /// What every call begins with: images, containers and locks of this slot, and none of the machine's own.
    fn options(&self) -> Vec<String> {
        let path = |part: &str| self.path(part).display().to_string();
        [
            ("--root", path("storage")),
            ("--runroot", format!("{PASSING}/containers")),
            ("--tmpdir", format!("{PASSING}/podman")),
            // Files of an image belong to whoever is the only user here, whomever they belonged to.
            ("--storage-opt", "ignore_chown_errors=true".to_owned()),
            ("--cgroup-manager", "cgroupfs".to_owned()),
            ("--events-backend", "none".to_owned()),
            ("--log-level", "error".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    /// podman in a namespace of users of its own. It hears nothing of what we were told, an init system's socket least of all: it would hand that on.
    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new("unshare");
        command.args(ENTER).args(["--", "sh", "-c", INSIDE, "sh"]);
        command.arg(&self.program).args(self.options()).args(arguments);
        let of_process = |name: &str| std::env::var_os(name).unwrap_or_default();
        command.env_clear().env("PATH", of_process("PATH")).env("USER", "polder");
        for name in ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
            command.env(name, PASSING);
        }
        command.env("TMPDIR", self.path("tmp"));
        command.env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"));
        // It is where it would go by itself, by a helper of root's that nobody has here: this is how `podman unshare` tells it. Whoever is root already in a
        // namespace of their own is somebody too: to podman a user 0 would be the machine's root.
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        command
            .env("_CONTAINERS_USERNS_CONFIGURED", "done")
            .env("_CONTAINERS_ROOTLESS_UID", user.as_raw().max(1).to_string())
            .env("_CONTAINERS_ROOTLESS_GID", group.as_raw().max(1).to_string())
            .env("CONTAINERS_CONF", "/dev/null")
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null")
            .stdin(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn say(
        &self,
        act: &'static str,
        arguments: &[&str],
        within: Duration,
    ) -> Result<String, ContainerError> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut command = self.command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(ContainerError::NoPodman)?;
        let _held = child.stdin.take();
        let output = tokio::time::timeout(within, child.wait_with_output()).await;
        let slow = ContainerError::Slow { act, seconds: within.as_secs() };
        let output = output.map_err(|_| slow)?.map_err(ContainerError::NoPodman)?;
        let why = || last_line(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            // The shell's own word that there is no such program.
            Some(127) => Err(ContainerError::NoPodman(io::Error::other(why()))),
            _ => Err(ContainerError::Podman { act, why: why() }),
        }
    }

    /// All of its images, as podman lists them.
    async fn images(&self) -> Result<String, ContainerError> {
        let list = ["images", "--all", "--digests", "--no-trunc", "--format", "json"];
        self.say("list its images", &list, LOOK).await
    }

    /// What podman calls this image, after it was unpacked, unless it is already; `told` hears about how much of it is, from 0 to 1. Every file of the image is compared
    /// with its digest by podman. Whatever else the slot had unpacked is gone then.
    pub async fn unpack(
        &self,
        image: &Image,
        told: impl Fn(f64),
    ) -> Result<String, ContainerError> {
        self.prepare()?;
        let keep = |source| ContainerError::Keep { folder: self.folder.clone(), source };
        let note = Note::of(&self.folder);
        let found = note.says(&image.manifest);
        if found == Found::Sound
            && self.path("storage").exists()
            && let Ok(images) = self.images().await
            && let Some(known) = found_in(&images, &image.manifest)
        {
            return Ok(known);
        }
        if found == Found::CutOff {
            log::warn!(
                "the machine went down while {} was served: nobody knows whether what its container has unpacked is whole, so the image is unpacked again",
                self.slot
            );
        }
        // Another image, or half of this one.
        note.forget().map_err(keep)?;
        erase(&self.path("storage")).map_err(keep)?;
        self.prepare()?;
        let expected = image.bytes.saturating_mul(UNPACKED);
        room_for("the unpacked container image", expected, &self.folder)?;
        let before = free(&self.folder).map_err(keep)?;
        if let Err(error) = self.pull(image, before, expected, told).await {
            // Half an image is of no use, and takes room that others need.
            self.clear().await;
            return Err(error);
        }
        let known = found_in(&self.images().await?, &image.manifest);
        let known = known.ok_or_else(|| ContainerError::NoImage(image.manifest.clone()))?;
        let manifest = image.manifest.clone();
        let written = tokio::task::spawn_blocking(move || note.is_whole(&manifest)).await;
        written.map_err(io::Error::other).and_then(|written| written).map_err(keep)?;
        Ok(known)
    }

    /// Has podman read the image, and ends that where the disk becomes too full: the box's own user may write to its last byte.
    async fn pull(
        &self,
        image: &Image,
        before: u64,
        expected: u64,
        told: impl Fn(f64),
    ) -> Result<(), ContainerError> {
        told(0.0);
        let from = format!("dir:{}", image.folder.display());
        let pull = ["pull", "--quiet", &from];
        let mut pulling = std::pin::pin!(self.say("unpack the image", &pull, UNPACK));
        loop {
            tokio::select! {
                done = &mut pulling => return done.map(drop),
                () = tokio::time::sleep(TICK) => {
                    let left = free(&self.folder).unwrap_or(before);
                    room_left(left, self.reserve)?;
                    // That it is all there only podman says.
                    told((before.saturating_sub(left) as f64 / expected.max(1) as f64).min(0.99));
                }
            }
        }
    }

    /// Erases what is unpacked. Whoever wrote there was killed, and may need a moment to be gone.
    async fn clear(&self) {
        for _ in 0..CLEARINGS {
            match erase(&self.path("storage")).and_then(|()| erase(&self.path("tmp"))) {
                Ok(()) => return,
                Err(error) => log::warn!("half an image is still there: {error}"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Starts the container of the slot, of an image that podman knows by this name, in the foreground of a child process.
    pub fn start(
        &self,
        container: &Container,
        image: &str,
        model: &Path,
    ) -> Result<Running, ContainerError> {
        if !is_alone() {
            return Err(ContainerError::Network);
        }
        let files = files(model)?;
        let cards = Cards::of(&self.machine);
        if let Some(how) = cards.how() {
            log::warn!(
                "the container of {} is given the graphics cards of this machine {how}; nobody has run that with a card yet",
                self.slot
            );
        }
        let arguments = run_arguments(&self.slot, container, image, &files, &cards);
        let note = Note::of(&self.folder);
        let keep = |source| ContainerError::Keep { folder: self.folder.clone(), source };
        note.is_used().map_err(keep)?;
        let mut child = self.command(&arguments).spawn().map_err(ContainerError::NoPodman)?;
        let line = child.stdin.take();
        Ok(Running { slot: self.slot.clone(), child, line, note })
    }
}

/// A container that was started. It does not outlive this, nor this process.
pub struct Running {
    slot: EngineName,
    child: Child,
    /// To the first process inside.
    line: Option<ChildStdin>,
    /// Of what it is unpacked from.
    note: Note,
}

impl Running {
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

    /// Asks it to end, and ends it if it does not.
    pub async fn stop(mut self) {
        if let Some(line) = &mut self.line {
            // It may have ended by itself.
            let _ = line.write_all(b"end\n").await;
        }
        let patience = Duration::from_secs(STOP + 5);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            log::warn!("the container of {} had to be killed", self.slot);
            let _ = self.child.kill().await;
        }
        let note = self.note;
        match tokio::task::spawn_blocking(move || note.rests()).await {
            Ok(Ok(())) => {}
            // Its image is unpacked again should the machine go down before it is used anew.
            Ok(Err(error)) => {
                log::warn!("what the container of {} wrote is not on the disk: {error}", self.slot)
            }
            Err(error) => log::warn!("{error}"),
        }
    }
}

/// Refuses to take what the box's own records need.
fn room_left(left: u64, kept: u64) -> Result<(), ContainerError> {
    match left >= kept {
        true => Ok(()),
        false => Err(ContainerError::Full { left, kept }),
    }
}

/// Where a slot has its image unpacked.
pub fn unpacked_by(state: &Path, slot: &EngineName) -> PathBuf {
    state.join("containers/slots").join(slot.as_str())
}

/// Removes what a slot has unpacked, or a part of it: an image may have folders that even their owner may not write to, and very deep ones.
pub fn erase(folder: &Path) -> io::Result<()> {
    remove_tree(folder).map(drop)
}

/// Whether this process is in a network of its own, out of which no way leads.
pub fn is_alone() -> bool {
    let read = |table: &str| fs::read_to_string(Path::new("/proc/thread-self/net").join(table));
    leads_nowhere(read("route").ok().as_deref(), read("ipv6_route").ok().as_deref())
}

/// The kernel's two tables of ways, of which the first has a line above it. The second is not there where nobody speaks that.
fn leads_nowhere(four: Option<&str>, six: Option<&str>) -> bool {
    let near = |line: &str| line.split_whitespace().last() == Some("lo");
    four.is_some_and(|table| table.lines().skip(1).all(|line| line.starts_with("lo\t")))
        && six.unwrap_or_default().lines().all(near)
}

fn name_of(slot: &EngineName) -> String {
    format!("polder-{slot}")
}

/// The files of a model, by name, each where its link leads: nothing else of the store is to be seen inside.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>, ContainerError> {
    let fail = |source| ContainerError::Weights { folder: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_plain(&name) {
            return Err(ContainerError::WeightsName { name });
        }
        files.push((name, fs::canonicalize(entry.path()).map_err(fail)?));
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
    cards: &Cards,
) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "run",
        "--rm",
        "--replace",
        "--pull=never",
        // That of whoever starts it, out of which no way leads; what is in it can be asked from there, and podman makes none.
        "--network=host",
        "--uts=host",
        "--cgroupns=host",
        // It stays among the slot's own processes, with their limits.
        "--cgroups=disabled",
        // The only user there is, who is nobody's root; with the groups that cards belong to.
        "--user=0:0",
        "--group-add=keep-groups",
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
    arguments.extend(cards.arguments());
    let variable = |(name, value)| format!("--env={name}={value}");
    arguments.extend(container.environment.iter().map(variable));
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

fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line =
        said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
    let line = line.trim().trim_start_matches("Error: ");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn container(arguments: &[&str]) -> Container {
        Container {
            image: "docker.io/vllm/vllm-openai".parse().unwrap(),
            digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            authority: None,
            port: 8000,
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            called: None,
            health: None,
            environment: Default::default(),
        }
    }

    #[test]
    fn a_container_has_no_rights_and_nothing_to_write_but_what_it_forgets() {
        let files = [("model.safetensors".to_owned(), PathBuf::from("/s/weights/blobs/sha256/00"))];
        let mut container = container(&["--model", "/weights", "--port", "8000"]);
        container.environment.insert("NIM_MODEL_PATH".to_owned(), "/weights and more".to_owned());
        let slot = "big".parse().unwrap();
        let run = run_arguments(&slot, &container, "e6f6", &files, &Cards::Described);
        assert_eq!(
            run.join(" "),
            "run --rm --replace --pull=never --network=host --uts=host --cgroupns=host --cgroups=disabled --user=0:0 \
             --group-add=keep-groups --read-only --tmpfs=/tmp --env=HOME=/tmp --shm-size=1g --cap-drop=all \
             --security-opt=no-new-privileges --log-driver=none --stop-timeout=10 --name=polder-big --device=nvidia.com/gpu=all --env=NIM_MODEL_PATH=/weights and more \
             --mount=type=bind,source=/s/weights/blobs/sha256/00,target=/weights/model.safetensors,readonly \
             e6f6 --model /weights --port 8000"
        );
    }

    #[test]
    fn a_file_with_a_sign_of_podmans_own_in_its_name_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model-00001_of.safetensors"), "").unwrap();
        assert_eq!(files(folder.path()).unwrap().len(), 1);
        for odd in ["a,target=", "a b", "a\"b", "a\nb", "ä"] {
            let path = folder.path().join(odd);
            fs::write(&path, "").unwrap();
            let refused = files(folder.path()).unwrap_err();
            let said = refused.to_string();
            assert!(
                matches!(&refused, ContainerError::WeightsName { name } if name == odd),
                "{said}"
            );
            assert!(said.contains("rename the file") && !said.contains('\n'), "{said}");
            fs::remove_file(path).unwrap();
        }
    }

    /// A podman that knows no image and, asked to unpack one, does this.
    fn podman_that(state: &Path, unpacks: &str) -> Podman {
        let program = state.join("podman");
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in\n*pull*) mkdir -p \"$2/half\"; {unpacks};;\n*) echo '[]';;\nesac\n"
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Podman::of(state, &"big".parse().unwrap()).run_by(&program)
    }

    #[tokio::test]
    async fn half_an_image_is_erased_whether_podman_failed_or_the_disk_became_too_full() {
        let state = tempfile::tempdir().unwrap();
        let manifest = container(&[]).digest;
        let image = Image { manifest, folder: state.path().join("image"), bytes: 1 };
        let podman = podman_that(state.path(), "echo 'Error: no' >&2; exit 125");
        let failed = podman.unpack(&image, |_| ()).await.unwrap_err();
        assert!(matches!(failed, ContainerError::Podman { .. }), "{failed}");
        assert!(!podman.path("storage").exists());

        let mut podman = podman_that(state.path(), "sleep 60");
        podman.reserve = u64::MAX;
        let full = podman.unpack(&image, |_| ()).await.unwrap_err();
        assert!(matches!(full, ContainerError::Full { .. }), "{full}");
        let said = full.to_string();
        assert!(said.contains("the disk is too full for the container image"), "{said}");
        assert!(!podman.path("storage").exists());
    }

    #[tokio::test]
    async fn after_a_cut_an_image_is_unpacked_again_unless_it_was_at_rest() {
        let state = tempfile::tempdir().unwrap();
        let manifest = container(&[]).digest;
        let image =
            Image { manifest: manifest.clone(), folder: state.path().join("image"), bytes: 1 };
        let listed = format!("[{{\"Id\":\"a\",\"Digest\":\"{manifest}\"}}]");
        let times = state.path().join("times");
        let mut podman = podman_that(state.path(), &format!("echo x >> {}", times.display()));
        podman.reserve = 0;
        let program = state.path().join("podman");
        let text = fs::read_to_string(&program).unwrap();
        fs::write(&program, text.replace("echo '[]'", &format!("echo '{listed}'"))).unwrap();
        let pulled = async |podman: &Podman| {
            assert_eq!(podman.unpack(&image, |_| ()).await.unwrap(), "a");
            fs::read_to_string(&times).unwrap().lines().count()
        };
        assert_eq!(pulled(&podman).await, 1);
        assert_eq!(pulled(&podman).await, 1);
        let note = podman.path("unpacked");
        let at_rest = fs::read_to_string(&note).unwrap();
        // In use, and killed, in this life of the machine.
        Note::of(&podman.folder).is_used().unwrap();
        assert_eq!(pulled(&podman).await, 1);
        // In use when the machine went down; cut off while it was unpacked; a note that a cut tore.
        fs::write(&note, at_rest.replace("at rest", "in use since boot of-yesterday")).unwrap();
        assert_eq!(pulled(&podman).await, 2);
        fs::remove_file(&note).unwrap();
        assert_eq!(pulled(&podman).await, 3);
        fs::write(&note, "").unwrap();
        assert_eq!(pulled(&podman).await, 4);
        assert_eq!(fs::read_to_string(&note).unwrap(), at_rest);
        assert_eq!(pulled(&podman).await, 4);
    }

    #[test]
    fn the_last_of_the_disk_is_the_boxs_own() {
        assert!(room_left(RESERVE, RESERVE).is_ok());
        assert!(room_left(RESERVE - 1, RESERVE).is_err());
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
    fn a_network_leads_nowhere_when_its_tables_have_no_way_but_to_itself() {
        let head = "Iface\tDestination\tGateway\n";
        let lo = "00000000000000000000000000000001 80 00 lo\n";
        assert!(leads_nowhere(Some(head), None));
        assert!(leads_nowhere(Some(head), Some(lo)));
        let way = format!("{head}eth0\t00000000\t0102000A\n");
        assert!(!leads_nowhere(Some(&way), Some(lo)));
        assert!(!leads_nowhere(Some(head), Some(&format!("{lo}fe80 40 00 eth0\n"))));
        assert!(!leads_nowhere(None, None), "what is not known is no promise");
    }

    #[test]
    fn what_a_slot_had_unpacked_goes_whatever_its_image_says_of_its_folders() {
        let state = tempfile::tempdir().unwrap();
        let beside = state.path().join("beside");
        fs::create_dir(&beside).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o555)).unwrap();
        let folder = unpacked_by(state.path(), &"big".parse().unwrap());
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink(&beside, folder.join("a/out")).unwrap();
        for shut in ["a/b", "a"] {
            fs::set_permissions(folder.join(shut), fs::Permissions::from_mode(0o000)).unwrap();
        }
        erase(&folder).unwrap();
        assert!(!folder.exists());
        assert_eq!(beside.metadata().unwrap().permissions().mode() & 0o777, 0o555);
        erase(&folder).unwrap();
    }

    #[test]
    fn podmans_own_last_words_are_repeated_in_one_line() {
        assert_eq!(last_line(b"Trying...\nError: no such image\n\n"), "no such image");
        assert_eq!(last_line(b""), "it did not say why");
    }
}
