//! Container images out of Debian's docker-registry, and out of a registry that gives passes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_recipes::Digest;
use polder_weights::{CancelFlag, Event, FetchedImage, Options, Phase, Store, WeightsError};

use crate::common::{bytes, digest, quick};

/// A registry at a port of its own, with its files in a folder of its own.
struct Registry {
    folder: tempfile::TempDir,
    child: Child,
    port: u16,
    ca: Option<PathBuf>,
}

impl Registry {
    fn open(tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = |name: &str| folder.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            path("store").display()
        );
        if tls {
            let (ca, chain, key) = certificate();
            for (name, pem) in [("ca.pem", ca), ("chain.pem", chain), ("key.pem", key)] {
                std::fs::write(path(name), pem).unwrap();
            }
            let (chain, key) = (path("chain.pem"), path("key.pem"));
            config += &format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                chain.display(),
                key.display()
            );
        }
        let ca = tls.then(|| path("ca.pem"));
        Self::serving(folder, &config, port, ca)
    }

    fn serving(folder: tempfile::TempDir, config: &str, port: u16, ca: Option<PathBuf>) -> Self {
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is there (make tools-test)");
        let registry = Self { folder, child, port, ca };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the registry does not open");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// The same images behind a user and a password.
    fn guarded(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Made by crypt(3), as htpasswd -B does.
        let people = "house:$2y$05$Qk2Yc1mT0bXo8uV7rWn3LeHj5gZMtEOsFKI9HwJmpAD1oM0SilNt6";
        std::fs::write(folder.path().join("people"), format!("{people}\n")).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\nauth:\n  htpasswd:\n    realm: house\n    path: {}\n",
            self.folder.path().join("store").display(),
            folder.path().join("people").display()
        );
        Self::serving(folder, &config, port, None)
    }

    fn image(&self) -> String {
        format!("localhost:{}/house/toy", self.port)
    }

    fn agent(&self) -> ureq::Agent {
        let builder = ureq::Agent::config_builder().proxy(None);
        match &self.ca {
            None => builder.build().new_agent(),
            Some(file) => {
                let pem = std::fs::read(file).unwrap();
                let root = ureq::tls::Certificate::from_pem(&pem).unwrap();
                let roots = ureq::tls::RootCerts::new_with_certs(&[root]);
                let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
                builder.tls_config(tls).build().new_agent()
            }
        }
    }

    fn base(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}/v2/house/toy", self.port)
    }

    /// As `podman push` does.
    fn put_blob(&self, content: &[u8]) -> String {
        let named = format!("sha256:{}", digest(content));
        let agent = self.agent();
        let begun = agent.post(format!("{}/blobs/uploads/", self.base())).send_empty().unwrap();
        let to = begun.headers()["location"].to_str().unwrap().to_owned();
        let and = if to.contains('?') { '&' } else { '?' };
        let put = agent.put(format!("{to}{and}digest={named}"));
        put.header("content-type", "application/octet-stream").send(content).unwrap();
        named
    }

    fn put_manifest(&self, kind: &str, text: &str) -> Digest {
        let is = digest(text.as_bytes());
        let put = self.agent().put(format!("{}/manifests/sha256:{is}", self.base()));
        put.header("content-type", kind).send(text).unwrap();
        is
    }

    /// Where it keeps a blob.
    fn file_of(&self, blob: &str) -> PathBuf {
        let hex = blob.trim_start_matches("sha256:");
        let store = self.folder.path().join("store/docker/registry/v2/blobs/sha256");
        store.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificate() -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &ca).unwrap();
    (ca.pem(), leaf.pem(), key.serialize_pem())
}

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest(config: &[u8], layers: &[Vec<u8>]) -> String {
    let one = |kind: &str, content: &[u8]| {
        format!(
            "{{\"mediaType\":\"application/vnd.oci.image.{kind}\",\"digest\":\"sha256:{}\",\"size\":{}}}",
            digest(content),
            content.len()
        )
    };
    let layers: Vec<String> = layers.iter().map(|layer| one("layer.v1.tar", layer)).collect();
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{OCI}\",\"config\":{},\"layers\":[{}]}}",
        one("config.v1+json", config),
        layers.join(",")
    )
}

fn images(state: &Path, options: Options) -> Store {
    Store::open_with(state.join("images"), options).unwrap()
}

fn fetch(store: &Store, name: &str, wanted: &Digest) -> Result<FetchedImage, WeightsError> {
    store.fetch_image(name, wanted, &mut |_| {}, &CancelFlag::default())
}

/// What podman would find: each blob under its digest, the manifest word for word.
fn assert_whole(fetched: &FetchedImage, text: &str, blobs: &[&[u8]]) {
    let read = |name: &str| std::fs::read(fetched.folder.join(name)).unwrap();
    assert_eq!(read("manifest.json"), text.as_bytes());
    assert!(read("version").starts_with(b"Directory Transport Version"));
    for blob in blobs {
        assert_eq!(read(&digest(blob).to_string()), *blob);
    }
}

#[test]
fn an_image_is_fetched_by_its_digest_goes_on_after_a_cut_and_is_forgotten() {
    let registry = Registry::open(false);
    let layers = [bytes(1, 3 << 20), bytes(2, 100_000)];
    let config = b"{\"architecture\":\"amd64\"}".to_vec();
    let text = manifest(&config, &layers);
    layers.iter().chain([&config]).for_each(|blob| drop(registry.put_blob(blob)));
    let wanted = registry.put_manifest(OCI, &text);
    let state = tempfile::tempdir().unwrap();
    let options =
        Options { chunk: 256 << 10, connections: 1, tell_every: Duration::ZERO, ..quick() };
    let store = images(state.path(), options);
    let cancel = CancelFlag::default();
    let cut = store.fetch_image(
        &registry.image(),
        &wanted,
        &mut |event| {
            if let Event::Progress(progress) = event
                && progress.phase == Phase::Fetching
                && progress.done > 1 << 20
            {
                assert!(progress.total.is_some_and(|total| total > 3 << 20));
                cancel.cancel();
            }
        },
        &cancel,
    );
    assert!(matches!(cut, Err(WeightsError::Cancelled)), "{cut:?}");
    let fetched = fetch(&store, &registry.image(), &wanted).unwrap();
    assert!((1..(3 << 20)).contains(&fetched.brought), "{} bytes again", fetched.brought);
    assert_eq!((fetched.manifest, &fetched.list), (wanted, &None));
    assert_whole(&fetched, &text, &[&layers[0], &layers[1], &config]);
    // All here: only its manifest is asked for.
    assert_eq!(fetch(&store, &registry.image(), &wanted).unwrap().brought, 0);
    store.forget_image(&wanted).unwrap();
    assert!(!fetched.folder.exists());
    let left = std::fs::read_dir(state.path().join("images/blobs/sha256")).unwrap().count();
    assert_eq!(left, 0, "blobs are left");
}

#[test]
fn a_list_leads_to_the_image_for_this_machine_over_tls_by_an_authority_of_ones_own() {
    let registry = Registry::open(true);
    let (layer, config) = (bytes(3, 5000), b"{}".to_vec());
    let text = manifest(&config, std::slice::from_ref(&layer));
    [&layer, &config].into_iter().for_each(|blob| drop(registry.put_blob(blob)));
    let own = registry.put_manifest(OCI, &text);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |digest: &str, architecture: &str| {
        format!(
            "{{\"mediaType\":\"{OCI}\",\"digest\":\"{digest}\",\"size\":{},\"platform\":{{\"architecture\":\"{architecture}\",\"os\":\"linux\"}}}}",
            text.len()
        )
    };
    let own_named = format!("sha256:{own}");
    let list = |all: &[String]| {
        format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{}]}}",
            all.join(",")
        )
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let both = list(&[entry(&own_named, "s390x"), entry(&own_named, architecture)]);
    let listed = registry.put_manifest(kind, &both);
    let other = registry.put_manifest(kind, &list(&[entry(&own_named, "s390x")]));
    let state = tempfile::tempdir().unwrap();
    // Whom nobody named is not trusted, and in the clear nothing is asked once one is named.
    let strict = Options { ca_file: registry.ca.clone(), ..quick() };
    let store = images(state.path(), strict);
    let fetched = fetch(&store, &registry.image(), &listed).unwrap();
    assert_eq!((fetched.manifest, fetched.list.as_deref()), (own, Some(both.as_bytes())));
    assert_whole(&fetched, &text, &[&layer, &config]);
    let says = fetch(&store, &registry.image(), &other).unwrap_err().to_string();
    assert!(says.contains("no image for this kind of machine"), "{says}");
    let stranger = certificate().0;
    let file = state.path().join("stranger.pem");
    std::fs::write(&file, stranger).unwrap();
    let store = images(&state.path().join("other"), Options { ca_file: Some(file), ..quick() });
    let says = fetch(&store, &registry.image(), &listed).unwrap_err().to_string();
    assert!(says.contains("trusts the server's certificate"), "{says}");
}

#[test]
fn what_is_not_what_its_digest_says_is_not_taken() {
    let registry = Registry::open(false);
    let (layer, config) = (bytes(4, 50_000), b"{}".to_vec());
    let text = manifest(&config, std::slice::from_ref(&layer));
    let blob = registry.put_blob(&layer);
    registry.put_blob(&config);
    let wanted = registry.put_manifest(OCI, &text);
    let state = tempfile::tempdir().unwrap();
    let store = images(state.path(), quick());
    // A layer, in the registry's own folder.
    let mut spoilt = layer.clone();
    spoilt[77] ^= 1;
    std::fs::write(registry.file_of(&blob), spoilt).unwrap();
    let says = fetch(&store, &registry.image(), &wanted).unwrap_err().to_string();
    assert!(says.contains("expected sha256") && says.contains("nothing was imported"), "{says}");
    assert!(!state.path().join("images/images").join(wanted.to_string()).exists());
    // One that is not there.
    let nobody = digest(b"nobody");
    let says = fetch(&store, &registry.image(), &nobody).unwrap_err().to_string();
    assert!(says.contains("404"), "{says}");
    let says = fetch(&store, "vllm-openai", &wanted).unwrap_err().to_string();
    assert!(says.contains("in which registry"), "{says}");
}

/// A registry that lets nobody in without a pass, and gives one to whoever asks, or to this login alone; each is good for a few questions only.
fn with_passes(things: HashMap<String, Vec<u8>>, login: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut pass, mut good_for) = (0, 0);
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let path =
                head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").to_owned();
            let shown = head.iter().any(|line| {
                line.eq_ignore_ascii_case(&format!("authorization: Bearer pass-{pass}"))
            });
            let basic = login.map(|login| format!("authorization: Basic {login}"));
            let known = basic.is_none_or(|b| head.iter().any(|line| line.eq_ignore_ascii_case(&b)));
            let asks = path.starts_with("/token?service=r&scope=repository%3Atoy%3Apull");
            let (status, more, body) = if asks && !known {
                ("401 Unauthorized", String::new(), Vec::new())
            } else if asks {
                (pass, good_for) = (pass + 1, 2);
                ("200 OK", String::new(), format!("{{\"token\":\"pass-{pass}\"}}").into_bytes())
            } else if !shown || good_for == 0 {
                let challenge = format!(
                    "www-authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"r\",scope=\"repository:toy:pull\"\r\n"
                );
                ("401 Unauthorized", challenge, Vec::new())
            } else {
                good_for -= 1;
                match things.get(&path.replace("%3A", ":")) {
                    Some(thing) => ("200 OK", String::new(), thing.clone()),
                    None => ("404 Not Found", String::new(), Vec::new()),
                }
            };
            let head = format!(
                "HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    port
}

#[test]
fn a_pass_is_asked_for_where_a_registry_wants_one_and_again_when_it_is_over() {
    let (layers, config) = ([bytes(5, 9000), bytes(6, 7000), bytes(7, 5000)], b"{}".to_vec());
    let text = manifest(&config, &layers);
    let wanted = digest(text.as_bytes());
    let mut things =
        HashMap::from([(format!("/v2/toy/manifests/sha256:{wanted}"), text.clone().into_bytes())]);
    for blob in layers.iter().chain([&config]) {
        things.insert(format!("/v2/toy/blobs/sha256:{}", digest(blob)), blob.clone());
    }
    let port = with_passes(things.clone(), None);
    let state = tempfile::tempdir().unwrap();
    let store = images(state.path(), quick());
    let fetched = fetch(&store, &format!("127.0.0.1:{port}/toy"), &wanted).unwrap();
    assert_whole(&fetched, &text, &[&layers[0], &layers[1], &layers[2], &config]);
    // One that gives passes only to whoever it knows.
    let image = format!("127.0.0.1:{}/toy", with_passes(things, Some(LOGIN)));
    for (login, well) in [(None, false), (Some(WRONG), false), (Some(LOGIN), true)] {
        let state = tempfile::tempdir().unwrap();
        let login = login.map(str::to_owned);
        let store = images(state.path(), Options { login, ..quick() });
        assert_eq!(fetch(&store, &image, &wanted).is_ok(), well);
    }
}

/// `house:a heron, stands: in reeds`, and another password.
const LOGIN: &str = "aG91c2U6YSBoZXJvbiwgc3RhbmRzOiBpbiByZWVkcw==";
const WRONG: &str = "aG91c2U6YW5vdGhlcg==";

#[test]
fn a_registry_that_wants_a_password_gives_an_image_to_whoever_has_it_and_to_nobody_else() {
    let registry = Registry::open(false);
    let (layer, config) = (bytes(8, 600_000), b"{}".to_vec());
    let text = manifest(&config, std::slice::from_ref(&layer));
    [&layer, &config].into_iter().for_each(|blob| drop(registry.put_blob(blob)));
    let wanted = registry.put_manifest(OCI, &text);
    let guarded = registry.guarded();
    let state = tempfile::tempdir().unwrap();
    for login in [None, Some(WRONG)] {
        let options = Options { login: login.map(str::to_owned), ..quick() };
        assert!(!format!("{options:?}").contains("aG91c2U6"));
        let store = images(state.path(), options);
        let says = fetch(&store, &guarded.image(), &wanted).unwrap_err().to_string();
        assert!(says.contains("401") && says.contains("polder engine image login"), "{says}");
        assert!(!says.contains("aG91c2U6"), "{says}");
    }
    let options = Options { login: Some(LOGIN.to_owned()), chunk: 100_000, ..quick() };
    let store = images(state.path(), options);
    let fetched = fetch(&store, &guarded.image(), &wanted).unwrap();
    assert_whole(&fetched, &text, &[&layer, &config]);
}
