//! A container's image, fetched by its digest from Debian's docker-registry as a step of a run.

use std::process::{Child, Command, Stdio};

use polder_site::{Container, EngineKind};

use super::*;

struct Registry {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("store").display()
        );
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        Self { folder, port, child: None }
    }

    fn open(&mut self) {
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.folder.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is there (make tools-test)");
        self.child = Some(child);
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the registry does not open");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn close(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// From now on it wants a user and a password.
    fn guard(&mut self) {
        self.close();
        let path = |name: &str| self.folder.path().join(name);
        // `a heron, stands: in reeds`, by crypt(3), as htpasswd -B does.
        let people = "house:$2y$05$Qk2Yc1mT0bXo8uV7rWn3LeHj5gZMtEOsFKI9HwJmpAD1oM0SilNt6\n";
        std::fs::write(path("people"), people).unwrap();
        let config = std::fs::read_to_string(path("config.yml")).unwrap();
        let people = path("people");
        let auth = format!("auth:\n  htpasswd:\n    realm: x\n    path: {}\n", people.display());
        std::fs::write(path("config.yml"), config + &auth).unwrap();
        self.open();
    }

    /// Puts an image with one file in it there, from another machine's podman; gives its digest.
    fn fill(&self) -> String {
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("word"), "word").unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).output().unwrap();
            assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap().trim().to_owned()
        };
        let (layer, digest) = (path("layer.tar"), path("digest"));
        let folder = self.folder.path().display().to_string();
        run("tar", &["-C", &folder, "-cf", layer.to_str().unwrap(), "word"]);
        let (root, runroot) = (path("root"), path("runroot"));
        let podman = |arguments: &[&str]| {
            let own = ["--root", root.to_str().unwrap(), "--runroot", runroot.to_str().unwrap()];
            let own =
                [&own[..], &["--cgroup-manager", "cgroupfs", "--events-backend", "none"]].concat();
            run("podman", &[&own[..], arguments].concat())
        };
        let id = podman(&["import", "--quiet", layer.to_str().unwrap()]);
        let to = format!("docker://127.0.0.1:{}/house/toy:1", self.port);
        let file = digest.to_str().unwrap();
        podman(&["push", "--quiet", "--tls-verify=false", "--digestfile", file, &id, &to]);
        podman(&["rmi", "--force", &id]);
        std::fs::read_to_string(digest).unwrap().trim().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_image_is_fetched_by_its_digest_as_a_step_and_once() {
    let mut registry = Registry::new();
    registry.open();
    let digest = registry.fill();
    registry.guard();
    let box_ = Box_::new(&[]).await;
    let mut slot = EngineSlot::serving("m1".parse().unwrap());
    slot.kind = EngineKind::Container;
    let container = |digest: &str| Container {
        image: format!("127.0.0.1:{}/house/toy", registry.port).parse().unwrap(),
        digest: digest.parse().unwrap(),
        authority: None,
        port: 8000,
        arguments: Vec::new(),
        called: None,
        health: None,
        environment: Default::default(),
    };
    let change = |name: &str, container: Container| {
        let slot = EngineSlot { container: Some(Box::new(container)), ..slot.clone() };
        SiteChange::Engine { name: name.parse().unwrap(), slot }
    };
    // Nobody gets it without the password, which is in no file but one.
    let run = box_.until_over(box_.apply(change("big", container(&digest))).await).await;
    let RunState::Failed(why) = &run.state else { panic!("{run:?}") };
    assert!(why.contains("401") && why.contains("polder engine image login"), "{why}");
    let secrets = polder_upstream::Secrets::of(box_.state.path());
    let password = polder_control::SecretText::new("a heron, stands: in reeds");
    let login = polder_upstream::login("house", &password).unwrap();
    let host = format!("127.0.0.1:{}", registry.port);
    secrets.keep(polder_upstream::Holder::Registry(&host), &login).unwrap();
    // Another one of that name is not taken, and nothing has changed.
    let other = container(&format!("sha256:{}", "ab".repeat(32)));
    let run = box_.until_over(box_.apply(change("big", other)).await).await;
    let RunState::Failed(why) = &run.state else { panic!("{run:?}") };
    assert!(why.contains("is not on this box") && why.contains("404"), "{why}");
    assert!(box_.status().await.site.engines.is_empty());
    let run = box_.until_over(box_.apply(change("big", container(&digest))).await).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    let step = run.plan.steps.iter().find(|step| step.id == "bring-image").unwrap();
    assert!(step.title.contains(&digest), "{step:?}");
    let grep = |text: &str| {
        let found = Command::new("grep").args(["-rlF", text]).arg(box_.state.path()).output();
        String::from_utf8(found.unwrap().stdout).unwrap()
    };
    assert_eq!(grep(password.expose()), "");
    let file = box_.state.path().join("upstreams/secrets.json");
    assert_eq!(grep(login.expose()).trim(), file.display().to_string());
    // It is there as it was fetched; the slot unpacks its own.
    let images = polder_upstream::images::Images::of(box_.state.path());
    assert!(images.find(&digest.parse().unwrap()).is_some());
    // Nobody is asked for what is here.
    let wanted = container(&digest);
    registry.close();
    let run = box_.until_over(box_.apply(change("other", wanted)).await).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    // It stays while one slot needs it.
    for (slot, stays) in [("big", true), ("other", false)] {
        let mut own = EngineSlot::serving("m1".parse().unwrap());
        own.kind = EngineKind::Polder;
        let change = SiteChange::Engine { name: slot.parse().unwrap(), slot: own };
        let run = box_.until_over(box_.apply(change).await).await;
        assert_eq!(run.state, RunState::Done, "{run:?}");
        assert_eq!(images.find(&digest.parse().unwrap()).is_some(), stays, "{slot}");
    }
    let blobs = images.fetched().join("blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
    box_.over().await;
}
