//! A server in a real container of podman's: its image is made here, from one program without a library. What starts it is this very program once more, as somebody
//! who is nobody's root, in a network out of which no way leads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use polder_site::{Container, ImageDigest, Served};
use polder_upstream::container::{ContainerError, Podman, is_alone, unpacked_by};
use polder_upstream::images::{Images, digest_of_archive};
use polder_upstream::{ServerRecipe, StandIn};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use toy::{archive, hex, image, toy};

mod toy;

/// However loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the program is told that is started once more.
const TOLD: &str = "POLDER_TEST_STAND_IN";
/// Somebody whom every Debian has, and who has nothing.
const SOMEBODY: &str = "1";

/// The stand-in of a slot in a process of its own.
struct Slot {
    child: Child,
    socket: PathBuf,
    said: BufReader<std::process::ChildStdout>,
}

impl Slot {
    /// Of the box in this folder. Where control groups of both kinds are mounted, which crun refuses, it runs where there is only the new kind; and cards are
    /// described where the folder describes them.
    fn start(state: &Path, digest: &ImageDigest, arguments: &[&str]) -> Self {
        Self::start_as(state, digest, arguments, "")
    }

    /// The same by another program, as `polder up` does it.
    fn start_as(state: &Path, digest: &ImageDigest, arguments: &[&str], by: &str) -> Self {
        let socket = state.join("run/engine.sock");
        let told = json!({ "state": state, "digest": digest, "arguments": arguments });
        let mut before = "ip link set lo up; ".to_owned();
        if Path::new("/sys/fs/cgroup/unified").exists() {
            before += "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; ";
        }
        let cards = state.join("cards/var/run/cdi");
        if cards.exists() {
            before += &format!("mkdir -p /run/cdi; mount --bind {} /run/cdi; ", cards.display());
            // A node beside those that every machine has.
            before += "mkdir -p \"$1/dev/shm\" \"$1/dev/pts\"; \
                for node in null zero full random urandom tty; do : > \"$1/dev/$node\"; mount --bind /dev/$node \"$1/dev/$node\"; done; \
                : > \"$1/dev/a-card\"; mount --bind /dev/null \"$1/dev/a-card\"; \
                mount --rbind /dev/pts \"$1/dev/pts\"; ln -s /proc/self/fd \"$1/dev/fd\"; mount --rbind \"$1/dev\" /dev; ";
        }
        let mut command = Command::new("unshare");
        let somebody = match rustix::process::geteuid().is_root() {
            true => {
                command.args(["--mount", "--net"]);
                // All of it is theirs, as the box's own folder is the box's user's.
                let own = Command::new("chown").args(["-R", SOMEBODY]).arg(state).status();
                assert!(own.unwrap().success());
                format!(
                    "setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups --no-new-privs --bounding-set -all "
                )
            }
            // Whoever tests without rights is somebody already.
            false => {
                command.args(["--user", "--map-root-user", "--mount", "--net"]);
                String::new()
            }
        };
        // Opened before, since where it lies may be nobody else's affair.
        let inside = format!(
            "{before}exec 9<\"$0\"; exec {somebody}{by}/proc/self/fd/9 --ignored --exact the_stand_in_of_a_slot --nocapture"
        );
        command.args(["sh", "-c", &inside]).arg(std::env::current_exe().unwrap()).arg(state);
        command.env(TOLD, told.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, socket, said }
    }

    /// Ends it as it is ended in life, and waits until it has.
    fn stop(&mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// What it failed of.
    fn failed(mut self) -> String {
        let mut line = String::new();
        let begun = Instant::now();
        while !line.contains("failed: ") {
            assert!(begun.elapsed() < PATIENCE, "it does not fail");
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "it says nothing");
        }
        self.stop();
        line
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run by the others alone.
#[tokio::test]
#[ignore = "it is what the other tests start"]
async fn the_stand_in_of_a_slot() {
    let told: Value = serde_json::from_str(&std::env::var(TOLD).unwrap()).unwrap();
    let state = PathBuf::from(told["state"].as_str().unwrap());
    assert!(is_alone());
    // Of what nobody is to reach, the nearest.
    assert!(std::net::TcpStream::connect("192.0.2.1:53").is_err());
    let digest: ImageDigest = told["digest"].as_str().unwrap().parse().unwrap();
    let mut podman = Podman::of(&state, &"big".parse().unwrap());
    if state.join("cards").exists() {
        podman = podman.with_cards_of(&state.join("cards"));
    }
    let arguments = told["arguments"].as_array().unwrap().iter();
    let arguments: Vec<&str> = arguments.map(|word| word.as_str().unwrap()).collect();
    let stand_in = StandIn { socket: state.join("run/engine.sock"), called: "toy".to_owned() };
    let image = Images::of(&state).find(&digest).unwrap();
    let container = match arguments.first().and_then(|word| word.strip_prefix("recipe=")) {
        Some(recipe) => {
            let recipe = ServerRecipe::find(recipe).unwrap();
            recipe.container("toy", Some(digest), &[]).unwrap()
        }
        None => container(digest, &arguments),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        drop(stop);
    });
    let model = state.join("weights/models/tiny");
    let told = async { drop(stopped.await) };
    if let Err(error) = stand_in.contain(&podman, &container, &image, &model, told).await {
        println!("failed: {error}");
    }
}

/// Processes of this program, in whatever container.
fn running(program: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").trim() == program
    };
    pids.filter(is).collect()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder as a registry's files are fetched into, and the list of manifests that leads to it.
fn fetched(folder: &Path, program: &[u8]) -> (ImageDigest, String) {
    let (layer, config, manifest) = image(program);
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    std::fs::write(folder.join("manifest.json"), &manifest).unwrap();
    for blob in [&layer[..], config.as_bytes()] {
        std::fs::write(folder.join(hex(blob)), blob).unwrap();
    }
    let own = format!("sha256:{}", hex(manifest.as_bytes()));
    let list = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"digest\":\"{own}\",\"size\":{}}}]}}",
        manifest.len()
    );
    (own.parse().unwrap(), list)
}

fn container(digest: ImageDigest, arguments: &[&str]) -> Container {
    Container {
        image: "localhost/toy".parse().unwrap(),
        digest,
        authority: None,
        port: 8123,
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        called: Some("toy".to_owned()),
        health: None,
        environment: Default::default(),
    }
}

/// A state folder with a model in its store, whose file is a link as the importer makes them.
fn state() -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    let (blobs, model) =
        (state.path().join("weights/blobs"), state.path().join("weights/models/tiny"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&model).unwrap();
    std::fs::create_dir_all(state.path().join("run")).unwrap();
    std::fs::write(blobs.join("w"), "word").unwrap();
    std::os::unix::fs::symlink("../../blobs/w", model.join("word.txt")).unwrap();
    state
}

/// One request to a stand-in, and what it says: status, headers, body, trailers.
async fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, String, String, String)> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let worked = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "engine")
        .header("te", "trailers")
        .body(http_body_util::Full::new(bytes::Bytes::from(body.to_owned())))
        .unwrap();
    let answer = sender.send_request(request).await.ok()?;
    let (status, headers) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
    let body = answer.into_body().collect().await.ok()?;
    let trailers = format!("{:?}", body.trailers());
    worked.abort();
    Some((status, headers, String::from_utf8_lossy(&body.to_bytes()).into_owned(), trailers))
}

async fn until_well(socket: &Path) {
    let begun = Instant::now();
    while ask(socket, "GET", "/health", "").await.is_none_or(|(status, ..)| status != 200) {
        assert!(begun.elapsed() < PATIENCE, "it does not get well");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_in_a_container_answers_as_an_engine_sees_the_models_file_and_nobody_else() {
    let state = state();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, &toy(), false);
    assert_eq!(digest_of_archive(&file).unwrap(), digest);
    Images::of(state.path()).import(&file, &digest).unwrap();
    // Somebody on the machine's own loopback, who hears nothing of it.
    let out = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    out.set_nonblocking(true).unwrap();
    let (port, reach) = ("8123", out.local_addr().unwrap().port().to_string());
    // Three times: what is unpacked stays, and what an earlier life left is no hindrance, nor is one that was killed in the middle. At last by somebody who is
    // the root of a namespace already.
    for round in 0..3 {
        let by = if round == 2 { "unshare --user --map-root-user " } else { "" };
        let mut slot = Slot::start_as(state.path(), &digest, &[port, &reach], by);
        until_well(&slot.socket).await;
        let question = "{\"model\":\"tiny\",\"messages\":[]}";
        let (status, headers, body, trailers) =
            ask(&slot.socket, "POST", "/v1/chat/completions", question).await.unwrap();
        // The model's file is there, nothing can be written, nobody outside can be reached, the model has its name there.
        assert!(status == 200 && body.contains("word kept alone toy"), "{round}: {body}");
        assert!(!headers.contains("set-cookie"), "{headers}");
        assert!(trailers.contains("prompt=11,completion=3"), "{trailers}");
        assert_eq!(ask(&slot.socket, "DELETE", "/kv", "").await.unwrap().0, 404);
        assert!(out.accept().is_err(), "it reached the machine's own loopback");
        let program = format!("/toy {port} {reach}");
        let inside = running(&program);
        assert_eq!(inside.len(), 1, "{inside:?}");
        let about = std::fs::read_to_string(format!("/proc/{}/status", inside[0])).unwrap();
        let line =
            |key: &str| about.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        let own = rustix::process::geteuid();
        let user = if own.is_root() { SOMEBODY.to_owned() } else { own.as_raw().to_string() };
        assert_eq!(line("Uid:"), [user.as_str(); 4].join("\t"));
        for none in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(none), "0000000000000000", "{none}");
        }
        assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1", "2"));
        match round {
            1 => {
                slot.child.kill().unwrap();
                slot.child.wait().unwrap();
            }
            _ => slot.stop(),
        }
        until("the end of the container", || running(&program).is_empty());
        assert_eq!(slot.socket.exists(), round == 1);
    }
    let unpacked = unpacked_by(state.path(), &"big".parse().unwrap());
    // The machine went down while it was served, and what was not on the disk yet is lost: the server's own program, for one.
    let note = unpacked.join("unpacked");
    let at_rest = std::fs::read_to_string(&note).unwrap();
    assert_eq!(at_rest, format!("{digest}\nat rest\n"));
    let layers = std::fs::read_dir(unpacked.join("storage/overlay")).unwrap().flatten();
    let program =
        layers.map(|layer| layer.path().join("diff/toy")).find(|toy| toy.exists()).unwrap();
    std::fs::write(&program, "").unwrap();
    std::fs::write(&note, at_rest.replace("at rest", "in use since boot of-yesterday")).unwrap();
    let mut slot = Slot::start(state.path(), &digest, &[port]);
    until_well(&slot.socket).await;
    let used = std::fs::read_to_string(&note).unwrap();
    assert!(used.contains("in use since boot ") && !used.contains("of-yesterday"), "{used}");
    slot.stop();
    assert_eq!(std::fs::read_to_string(&note).unwrap(), at_rest);
    let podman = Podman::of(state.path(), &"big".parse().unwrap());
    let refused = podman.start(&container(digest, &[]), "x", state.path()).map(drop).unwrap_err();
    assert!(matches!(refused, ContainerError::Network), "{refused}");
    assert!(unpacked.join("storage").is_dir());
    polder_upstream::container::erase(&unpacked).unwrap();
    assert!(!unpacked.exists());
}

/// By the recipe as it is, but for the image: what is in that is a stand-in, since nobody here has NVIDIA's.
#[tokio::test]
async fn what_behaves_as_nim_is_told_everything_by_its_recipe_and_asked_where_it_says_that_it_is_ready()
 {
    let state = state();
    let file = state.path().join("nim.tar");
    let digest = archive(&file, &toy(), false);
    Images::of(state.path()).import(&file, &digest).unwrap();
    let mut slot = Slot::start(state.path(), &digest, &["recipe=nim"]);
    // What stands before it answers at once; the slot is not well before the model is there, and nobody is told so earlier.
    let program = "/toy nim-serve";
    until("the server", || !running(program).is_empty());
    let question = "{\"model\":\"tiny\",\"messages\":[]}";
    until_well(&slot.socket).await;
    let (status, _, body, _) =
        ask(&slot.socket, "POST", "/v1/chat/completions", question).await.unwrap();
    assert!(status == 200 && body.contains("word kept alone toy"), "{body}");
    slot.stop();
    until("the end of the container", || running(program).is_empty());
}

#[tokio::test]
async fn what_was_fetched_is_known_by_the_digest_that_the_site_names_and_unpacked_once() {
    let state = state();
    let images = Images::of(state.path());
    let of = |program: &[u8]| {
        let (_, _, manifest) = image(program);
        images.fetched().join("images").join(hex(manifest.as_bytes()))
    };
    let (own, list) = fetched(&of(b"a program"), b"a program");
    let listed: ImageDigest = format!("sha256:{}", hex(list.as_bytes())).parse().unwrap();
    images.keep_list(list.as_bytes()).unwrap();
    let found = images.find(&listed).unwrap();
    assert_eq!((&found.manifest, images.find(&own)), (&own, Some(found.clone())));
    // It is no program: that is told with why, after it was unpacked.
    let slot = Slot::start(state.path(), &listed, &[]);
    let why = slot.failed();
    assert!(why.contains("the container ended"), "{why}");
    // Bytes that are not what the manifest says are podman's to refuse, too; and what was unpacked of another image is gone.
    let other = of(b"another program");
    let (own, _) = fetched(&other, b"another program");
    let (layer, ..) = image(b"another program");
    let mut spoilt = layer.clone();
    spoilt[600] ^= 1;
    std::fs::write(other.join(hex(&layer)), spoilt).unwrap();
    let why = Slot::start(state.path(), &own, &[]).failed();
    assert!(why.contains("podman could not unpack the image"), "{why}");
}

/// A card that nobody has: a description that puts another name on a device that every machine has.
#[tokio::test]
async fn a_card_that_is_described_for_containers_is_in_the_container() {
    let state = state();
    let cards = state.path().join("cards/var/run/cdi");
    std::fs::create_dir_all(&cards).unwrap();
    let description = "{\"cdiVersion\":\"0.3.0\",\"kind\":\"nvidia.com/gpu\",\"devices\":[{\"name\":\"all\",\"containerEdits\":{\"deviceNodes\":[{\"path\":\"/dev/a-card\",\"type\":\"c\",\"major\":1,\"minor\":3}]}}]}";
    std::fs::write(cards.join("nvidia.json"), description).unwrap();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, &toy(), false);
    Images::of(state.path()).import(&file, &digest).unwrap();
    let mut slot = Slot::start(state.path(), &digest, &["8123"]);
    until_well(&slot.socket).await;
    let question = "{\"model\":\"tiny\"}";
    let answer = ask(&slot.socket, "POST", "/v1/chat/completions", question).await.unwrap();
    assert!(answer.2.contains("word kept alone with a card toy"), "{}", answer.2);
    slot.stop();
}

#[tokio::test]
async fn an_image_of_another_digest_is_not_brought_in_and_nothing_is_started() {
    let state = state();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, b"not this one", false);
    let images = Images::of(state.path());
    let wanted: ImageDigest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    let refused = images.import(&file, &wanted).unwrap_err();
    assert!(matches!(refused, ContainerError::WrongDigest { .. }), "{refused}");
    let says = refused.to_string();
    assert!(says.contains(digest.as_str()) && says.contains(wanted.as_str()), "{says}");
    assert_eq!((images.find(&digest), images.find(&wanted)), (None, None));
    // The manifest is right and a layer is not.
    let spoilt = archive(&file, b"not this one", true);
    let refused = images.import(&file, &spoilt).unwrap_err();
    assert!(refused.to_string().contains("is not what its digest says"), "{refused}");
    assert_eq!(images.find(&spoilt), None);
}

#[tokio::test]
async fn a_slot_that_a_server_elsewhere_serves_waits_for_it_and_passes_on_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("toy");
    std::fs::write(&program, toy()).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let socket = folder.path().join("engine.sock");
    let stand_in = StandIn { socket: socket.clone(), called: "toy".to_owned() };
    let url = format!("http://127.0.0.1:{port}/v1").parse().unwrap();
    let served = Served { url, authority: None, called: None };
    let (stop, stopped) = oneshot::channel::<()>();
    let running = async {
        stand_in.serve(&served, None, async { drop(stopped.await) }).await.unwrap();
    };
    let asking = async {
        let begun = Instant::now();
        let mut health = None;
        while health.is_none() && begun.elapsed() < PATIENCE {
            health = ask(&socket, "GET", "/health", "").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(health.unwrap().0, 503, "nobody serves it yet");
        let refused = ask(&socket, "POST", "/v1/chat/completions", "{}").await.unwrap();
        assert!(refused.0 == 503 && refused.2.contains("cannot be reached"), "{refused:?}");
        let mut server = Command::new(&program).arg(port.to_string()).spawn().unwrap();
        until_well(&socket).await;
        let (status, _, body, trailers) =
            ask(&socket, "POST", "/v1/chat/completions", "{\"model\":\"tiny\"}").await.unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(status == 200 && body.contains("toy"), "{body}");
        assert!(trailers.contains("prompt=11,completion=3"), "{trailers}");
        drop(stop);
    };
    tokio::join!(running, asking);
}
