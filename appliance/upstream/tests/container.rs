//! A server in a real container of podman's: its image is made here, from one program without a library.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use polder_site::{Container, EngineName, ImageDigest, Served};
use polder_upstream::StandIn;
use polder_upstream::container::{ContainerError, Podman, digest_of_archive};
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// However loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// podman for the box in this folder. Where control groups of both kinds are mounted, which crun refuses, it runs where there is only the
/// new kind; nothing else about it is different.
fn podman(state: &Path) -> Podman {
    Podman::of(state).run_by(&program(state))
}

fn program(state: &Path) -> PathBuf {
    let (both, cards) = (Path::new("/sys/fs/cgroup/unified").exists(), state.join("cards"));
    let described = cards.join("var/run/cdi");
    if !both && !described.exists() {
        return "podman".into();
    }
    let program = state.join("podman");
    if !program.exists() {
        let limits =
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
        std::fs::write(state.join("containers.conf"), limits).unwrap();
        let mut before = String::new();
        if both {
            before += "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; ";
        }
        if described.exists() {
            // Where podman looks for descriptions of cards, in a view of the machine of its own.
            before += "mkdir -p /run/cdi; mount --bind ${0%/*}/cards/var/run/cdi /run/cdi; ";
        }
        let script = format!(
            "#!/bin/sh\nexport CONTAINERS_CONF=\"${{0%/*}}/containers.conf\"\nexec unshare -m sh -c '{before}exec podman \"$@\"' \"$0\" \"$@\"\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    program
}

/// Only root can enter a container's network.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not run: containers need root");
    }
    root
}

/// The toy server, compiled once.
fn toy() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("toy");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/toy.c");
    let done = Command::new("cc")
        .args(["-D_GNU_SOURCE", "-static", "-Os", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .unwrap();
    assert!(done.success(), "the toy server does not compile");
    std::fs::read(program).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(name: &str, mode: u32, bytes: &[u8], tar: &mut tar::Builder<Vec<u8>>) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// An image with this program alone in it: its layer, its configuration and its manifest.
fn image(program: &[u8]) -> (Vec<u8>, String, String) {
    let mut layer = tar::Builder::new(Vec::new());
    entry("toy", 0o755, program, &mut layer);
    let layer = layer.into_inner().unwrap();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        "{{\"architecture\":\"{arch}\",\"os\":\"linux\",\"config\":{{\"Entrypoint\":[\"/toy\"]}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{}\"]}}}}",
        hex(&layer)
    );
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:{}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:{}\",\"size\":{}}}]}}",
        hex(config.as_bytes()),
        config.len(),
        hex(&layer),
        layer.len()
    );
    (layer, config, manifest)
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

/// An OCI archive of such an image; the layer can be spoilt after its digest was written down.
fn archive(path: &Path, program: &[u8], spoil: bool) -> ImageDigest {
    let (layer, config, manifest) = image(program);
    let digest = hex(manifest.as_bytes());
    let index = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:{digest}\",\"size\":{}}}]}}",
        manifest.len()
    );
    let mut whole = tar::Builder::new(Vec::new());
    entry("oci-layout", 0o644, b"{\"imageLayoutVersion\":\"1.0.0\"}", &mut whole);
    entry("index.json", 0o644, index.as_bytes(), &mut whole);
    let (config_at, layer_at) = (hex(config.as_bytes()), hex(&layer));
    let mut kept = layer.clone();
    if spoil {
        kept[1000] ^= 1;
    }
    for (at, bytes) in
        [(&config_at, config.as_bytes()), (&layer_at, &kept), (&digest, manifest.as_bytes())]
    {
        entry(&format!("blobs/sha256/{at}"), 0o644, bytes, &mut whole);
    }
    std::fs::File::create(path).unwrap().write_all(&whole.into_inner().unwrap()).unwrap();
    format!("sha256:{digest}").parse().unwrap()
}

fn container(digest: ImageDigest, arguments: &[&str]) -> Container {
    Container {
        image: "localhost/toy".parse().unwrap(),
        digest,
        authority: None,
        port: 8123,
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        called: Some("toy".to_owned()),
    }
}

/// A state folder with a model in its store, whose file is a link as the importer makes them.
fn state() -> (tempfile::TempDir, PathBuf) {
    let state = tempfile::tempdir().unwrap();
    let (blobs, model) =
        (state.path().join("weights/blobs"), state.path().join("weights/models/tiny"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&model).unwrap();
    std::fs::create_dir_all(state.path().join("run")).unwrap();
    std::fs::write(blobs.join("w"), "word").unwrap();
    std::os::unix::fs::symlink("../../blobs/w", model.join("word.txt")).unwrap();
    (state, model)
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
    if !is_root() {
        return;
    }
    let (state, model) = state();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, &toy(), false);
    assert_eq!(digest_of_archive(&file).unwrap(), digest);
    let podman = podman(state.path());
    podman.import(&file, &digest).await.unwrap();
    let (slot, socket): (EngineName, _) =
        ("big".parse().unwrap(), state.path().join("engine.sock"));
    let container = container(digest, &["8123"]);
    // Twice: what an earlier life left is no hindrance.
    for round in 0..2 {
        let stand_in = StandIn { socket: socket.clone(), called: "toy".to_owned() };
        let (stop, stopped) = oneshot::channel::<()>();
        let running = async {
            let told = async { drop(stopped.await) };
            stand_in.contain(&podman, &slot, &container, &model, told).await.unwrap();
        };
        let asking = async {
            until_well(&socket).await;
            let question = "{\"model\":\"tiny\",\"messages\":[]}";
            let (status, headers, body, trailers) =
                ask(&socket, "POST", "/v1/chat/completions", question).await.unwrap();
            // The model's file is there, nothing can be written, nobody outside can be reached, the model has its name there.
            assert!(status == 200 && body.contains("word kept alone toy"), "{round}: {body}");
            assert!(!headers.contains("set-cookie"), "{headers}");
            assert!(trailers.contains("prompt=11,completion=3"), "{trailers}");
            assert_eq!(ask(&socket, "DELETE", "/kv", "").await.unwrap().0, 404);
            drop(stop);
        };
        tokio::join!(running, asking);
        assert!(!socket.exists());
    }
    let list = Command::new(program(state.path()))
        .arg("--root")
        .arg(state.path().join("containers"))
        .arg("--runroot")
        .arg(state.path().join("run/containers"))
        .args(["ps", "--all", "--quiet"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), "", "a container is left");
}

#[tokio::test]
async fn what_was_fetched_is_taken_in_and_known_by_the_digest_that_the_site_names() {
    let (state, _) = state();
    let folder = state.path().join("fetched");
    let (own, list) = fetched(&folder, b"a program");
    let listed: ImageDigest = format!("sha256:{}", hex(list.as_bytes())).parse().unwrap();
    let podman = podman(state.path());
    assert_eq!(podman.find(&own).await.unwrap(), None);
    podman.take_in(&folder, &own, Some(list.as_bytes())).await.unwrap();
    let known = podman.find(&own).await.unwrap();
    assert!(known.is_some() && podman.find(&listed).await.unwrap() == known);
    // A list that was changed leads nowhere.
    let kept = state.path().join("containers/lists").join(format!("{}.json", hex(list.as_bytes())));
    std::fs::write(&kept, list.replace("schemaVersion", "schemaversion")).unwrap();
    assert_eq!(podman.find(&listed).await.unwrap(), None);
    // Bytes that are not what the manifest says are podman's to refuse, too.
    let other = state.path().join("other");
    let (own, _) = fetched(&other, b"another program");
    let (layer, ..) = image(b"another program");
    let mut spoilt = layer.clone();
    spoilt[600] ^= 1;
    std::fs::write(other.join(hex(&layer)), spoilt).unwrap();
    let refused = podman.take_in(&other, &own, None).await.unwrap_err();
    assert!(matches!(refused, ContainerError::Podman { .. }), "{refused}");
    assert_eq!(podman.find(&own).await.unwrap(), None);
}

/// A card that nobody has: a description that puts another name on a device that every machine has.
#[tokio::test]
async fn a_card_that_is_described_for_containers_is_in_the_container() {
    if !is_root() {
        return;
    }
    let (state, model) = state();
    let cards = state.path().join("cards");
    std::fs::create_dir_all(cards.join("var/run/cdi")).unwrap();
    let description = "{\"cdiVersion\":\"0.3.0\",\"kind\":\"nvidia.com/gpu\",\"devices\":[{\"name\":\"all\",\"containerEdits\":{\"deviceNodes\":[{\"path\":\"/dev/a-card\",\"type\":\"c\",\"major\":1,\"minor\":3}]}}]}";
    std::fs::write(cards.join("var/run/cdi/nvidia.json"), description).unwrap();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, &toy(), false);
    let podman = podman(state.path()).with_cards_of(&cards);
    podman.import(&file, &digest).await.unwrap();
    let socket = state.path().join("engine.sock");
    let stand_in = StandIn { socket: socket.clone(), called: "toy".to_owned() };
    let (stop, stopped) = oneshot::channel::<()>();
    let (slot, container) = ("big".parse().unwrap(), container(digest, &["8123"]));
    let running = async {
        let told = async { drop(stopped.await) };
        stand_in.contain(&podman, &slot, &container, &model, told).await.unwrap();
    };
    let asking = async {
        until_well(&socket).await;
        let question = "{\"model\":\"tiny\"}";
        let answer = ask(&socket, "POST", "/v1/chat/completions", question).await.unwrap();
        assert!(answer.2.contains("word kept alone with a card toy"), "{}", answer.2);
        drop(stop);
    };
    tokio::join!(running, asking);
}

#[tokio::test]
async fn an_image_of_another_digest_is_not_brought_in_and_nothing_is_started() {
    let (state, model) = state();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, b"not this one", false);
    let podman = podman(state.path());
    let wanted: ImageDigest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    let refused = podman.import(&file, &wanted).await.unwrap_err();
    assert!(matches!(refused, ContainerError::WrongDigest { .. }), "{refused}");
    let says = refused.to_string();
    assert!(says.contains(digest.as_str()) && says.contains(wanted.as_str()), "{says}");
    assert_eq!(podman.find(&digest).await.unwrap(), None);
    let slot = "big".parse().unwrap();
    if is_root() {
        let started = podman.start(&slot, &container(wanted, &[]), &model).await;
        let says = started.map(drop).unwrap_err().to_string();
        assert!(says.contains("is not on this box") && says.contains("image import"), "{says}");
    }
    // The manifest is right and a layer is not: podman itself refuses it.
    let spoilt = archive(&file, b"not this one", true);
    let refused = podman.import(&file, &spoilt).await.unwrap_err();
    assert!(matches!(refused, ContainerError::Podman { .. }), "{refused}");
    assert_eq!(podman.find(&spoilt).await.unwrap(), None);
}

#[tokio::test]
async fn a_container_that_ends_by_itself_is_told_with_why() {
    if !is_root() {
        return;
    }
    let (state, model) = state();
    let file = state.path().join("toy.tar");
    let digest = archive(&file, b"this is no program", false);
    let podman = podman(state.path());
    podman.import(&file, &digest).await.unwrap();
    let stand_in = StandIn { socket: state.path().join("engine.sock"), called: "toy".to_owned() };
    let slot = "big".parse().unwrap();
    let never = std::future::pending();
    let container = container(digest, &[]);
    let ended = stand_in.contain(&podman, &slot, &container, &model, never);
    let why = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap_err().to_string();
    assert!(why.contains("the container ended"), "{why}");
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
