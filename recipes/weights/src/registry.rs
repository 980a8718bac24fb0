//! Container images out of a registry, by digest: each layer is a file like any other of this store, fetched in chunks, gone on with after a cut, and
//! known by its SHA-256. What comes of it is a folder that `podman pull dir:FOLDER` takes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Mutex;

use polder_recipes::{Digest, FileSpec, Recipe, Source};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::Agent;

use crate::import::Origin;
use crate::partial::write_new;
use crate::progress::{CancelFlag, Event, Phase, Teller};
use crate::store::Store;
use crate::web::Web;
use crate::{WeightsError, names, view};

/// A manifest is a list of layers, and no longer than this.
const LONGEST_MANIFEST: u64 = 4 << 20;
/// More layers than any image has.
const MOST_LAYERS: usize = 512;
/// What a server may say of a pass.
const LONGEST_TOKEN: u64 = 64 << 10;
/// The kinds of manifests that podman takes.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// How a folder says that it is one of these.
const DIRECTORY: &[u8] = b"Directory Transport Version: 1.1\n";

/// An image that is wholly on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedImage {
    /// For `podman pull dir:`.
    pub folder: PathBuf,
    /// What podman knows it by: the digest of the manifest for this machine.
    pub manifest: Digest,
    /// The list of manifests that was asked for by its digest, word for word, where it was one.
    pub list: Option<Vec<u8>>,
    /// Bytes that came over the network this time.
    pub brought: u64,
}

#[derive(Deserialize)]
struct Described {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Described>,
    #[serde(default)]
    config: Option<Described>,
    #[serde(default)]
    layers: Vec<Described>,
}

impl Store {
    /// Fetches the image of this digest from the registry in its name (`docker.io/vllm/vllm-openai`, `registry.lan:5000/vllm`). A registry on this very
    /// machine is asked in the clear unless the options name an authority.
    ///
    /// # Errors
    /// As an import; what was fetched is kept, and the next call goes on.
    pub fn fetch_image(
        &self,
        name: &str,
        digest: &Digest,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
    ) -> Result<FetchedImage, WeightsError> {
        let at = Place::of(name, self.options.ca_file.is_some())?;
        let web = Web::new(&self.options, &at.base)?.of_registry(&self.options);
        let mut teller = Teller::new(observer, self.options.tell_every);
        teller.begin(Phase::CheckingSpace, 0, None);
        let ask = |digest: &Digest, teller: &mut Teller<'_>| {
            let url = format!("{}/manifests/sha256:{digest}", at.base);
            let text = web.small("the image's manifest", &url, LONGEST_MANIFEST, teller, cancel)?;
            let found = Digest::from_bytes(Sha256::digest(&text).into());
            match found == *digest {
                true => Ok(text),
                false => Err(WeightsError::WrongBytes {
                    file: "the image's manifest".to_owned(),
                    source_name: at.shown(),
                    whose: "the site names",
                    expected: *digest,
                    found: Box::new(found),
                }),
            }
        };
        let mut text = ask(digest, &mut teller)?;
        let mut manifest = at.read(&text)?;
        let (mut list, mut own) = (None, *digest);
        if !manifest.manifests.is_empty() {
            own = for_this_machine(&manifest.manifests)
                .ok_or_else(|| at.fault("it has no image for this kind of machine"))?
                .parse_digest()
                .ok_or_else(|| at.fault("its list names no digest"))?;
            let inner = ask(&own, &mut teller)?;
            list = Some(std::mem::replace(&mut text, inner));
            manifest = at.read(&text)?;
        }
        drop(teller);
        let recipe = at.recipe(&own, &manifest)?;
        let source = Origin::AsTheRecipeSays;
        let of_registry = |web: Web| web.of_registry(&self.options);
        let imported = self.import_by(&recipe, &source, observer, cancel, of_registry)?;
        let folder = self.images().join(own.to_string());
        let fail = || WeightsError::writing("the image", &folder);
        view::remove(&folder).map_err(fail())?;
        fs::create_dir_all(&folder).map_err(fail())?;
        for file in &imported.manifest.files {
            symlink(self.blob(&file.sha256), folder.join(file.sha256.to_string()))
                .map_err(fail())?;
        }
        write_new(&folder.join("version"), DIRECTORY).map_err(fail())?;
        write_new(&folder.join("manifest.json"), &text).map_err(fail())?;
        // Where its files are named, and the folder itself: once it is said to be here it is, also after a power cut.
        for folder in [folder.as_path(), &self.images(), self.root()] {
            std::fs::File::open(folder).and_then(|open| open.sync_all()).map_err(fail())?;
        }
        Ok(FetchedImage { folder, manifest: own, list, brought: imported.brought })
    }

    /// Forgets an image that nobody needs any more, also one whose files were laid into its folder by somebody else.
    pub fn forget_image(&self, manifest: &Digest) -> Result<(), WeightsError> {
        let folder = self.images().join(manifest.to_string());
        view::remove(&folder).map_err(WeightsError::store("remove", &folder))?;
        if self.manifest(&recipe_name(manifest))?.is_some() {
            self.remove(&recipe_name(manifest))?;
        }
        self.gc(crate::STALE).map(drop)
    }

    fn images(&self) -> PathBuf {
        self.root().join("images")
    }
}

fn recipe_name(manifest: &Digest) -> String {
    format!("image-{manifest}")
}

/// Where an image is in a registry.
struct Place {
    /// `https://HOST/v2/NAME`.
    base: String,
    name: String,
}

impl Place {
    fn of(name: &str, tls: bool) -> Result<Self, WeightsError> {
        let option = "the image's name";
        let fail = |why: &str| Err(WeightsError::Option { option, why: why.to_owned() });
        let Some((host, path)) = name.split_once('/') else {
            return fail(
                "it does not say in which registry it is, as docker.io/vllm/vllm-openai does",
            );
        };
        if host == "localhost" || !(host.contains(['.', ':'])) {
            return fail(
                "it does not say in which registry it is, as docker.io/vllm/vllm-openai does; an image that is in none is brought in as a file",
            );
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let host_fine = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
        if !path.chars().all(fine)
            || path.split('/').any(|part| part.is_empty() || part == "..")
            || !host.chars().all(host_fine)
        {
            return fail("it has a sign in it that no image's name has");
        }
        // As the registry of this name is found by everybody's tools.
        let (host, path) = match host {
            "docker.io" if !path.contains('/') => {
                ("registry-1.docker.io", format!("library/{path}"))
            }
            "docker.io" => ("registry-1.docker.io", path.to_owned()),
            host => (host, path.to_owned()),
        };
        let here = host.split(':').next().is_some_and(|host| {
            host == "localhost"
                || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        });
        let scheme = if here && !tls { "http" } else { "https" };
        Ok(Self { base: format!("{scheme}://{host}/v2/{path}"), name: name.to_owned() })
    }

    fn shown(&self) -> String {
        names::shown(&self.base)
    }

    fn fault(&self, why: &str) -> WeightsError {
        WeightsError::Recipe { recipe: self.name.clone(), why: why.to_owned() }
    }

    fn read(&self, text: &[u8]) -> Result<Manifest, WeightsError> {
        serde_json::from_slice(text).map_err(|why| {
            self.fault(&format!(
                "its manifest cannot be read: {}",
                names::shorten(&why.to_string())
            ))
        })
    }

    /// The image as files of the store, by their digests.
    fn recipe(&self, own: &Digest, manifest: &Manifest) -> Result<Recipe, WeightsError> {
        let config = manifest
            .config
            .as_ref()
            .ok_or_else(|| self.fault("its manifest has no configuration"))?;
        if manifest.layers.is_empty() || manifest.layers.len() > MOST_LAYERS {
            return Err(self.fault("its manifest has no layers, or more than any image"));
        }
        let mut files: Vec<FileSpec> = Vec::new();
        for one in manifest.layers.iter().chain([config]) {
            let sha256 =
                one.parse_digest().ok_or_else(|| self.fault("a layer of it has no SHA-256"))?;
            let name = sha256.to_string();
            if files.iter().any(|file| file.name == name) {
                continue;
            }
            let parts = vec![format!("sha256:{sha256}")];
            files.push(FileSpec { name, size: Some(one.size), sha256: Some(sha256), parts });
        }
        let source = Source::Web { base: format!("{}/blobs", self.base) };
        Ok(Recipe::of_files(recipe_name(own), self.name.clone(), source, files))
    }
}

impl Described {
    fn parse_digest(&self) -> Option<Digest> {
        self.digest.strip_prefix("sha256:")?.parse().ok()
    }
}

/// The one of a list that runs here.
fn for_this_machine(list: &[Described]) -> Option<&Described> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    list.iter().take(MOST_LAYERS).find(|one| {
        let platform = one.platform.as_ref();
        platform.is_some_and(|p| p.os == "linux" && p.architecture == architecture)
    })
}

/// Passes that a registry gives to anybody who asks, each for a few minutes; or to whoever has a password, which some want to see each time.
pub(crate) struct Passes {
    /// As a request says it.
    now: Mutex<Option<String>>,
    /// User and password in base64.
    login: Option<String>,
}

impl Passes {
    pub(crate) fn of(login: Option<String>) -> Self {
        Self { now: Mutex::default(), login }
    }

    pub(crate) fn now(&self) -> Option<String> {
        self.now.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Asks for a pass where the registry says that they are to be had, or takes the password where it wants that itself; whether there is another
    /// one now than before.
    pub(crate) fn renew(&self, agent: &Agent, challenge: &str) -> bool {
        let basic = self.login.as_ref().map(|login| format!("Basic {login}"));
        let asks_itself = challenge.get(..5).is_some_and(|kind| kind.eq_ignore_ascii_case("basic"));
        let pass = match asks_itself {
            true => basic,
            false => ask_for_pass(agent, challenge, basic).map(|pass| format!("Bearer {pass}")),
        };
        let mut now = self.now.lock().unwrap_or_else(|e| e.into_inner());
        // The same once more would be refused once more.
        let got = pass.is_some() && *now != pass;
        *now = pass;
        got
    }
}

fn ask_for_pass(agent: &Agent, challenge: &str, basic: Option<String>) -> Option<String> {
    #[derive(Deserialize)]
    struct Pass {
        #[serde(alias = "access_token")]
        token: String,
    }
    let url = pass_url(challenge)?;
    let mut asked = agent.get(&url);
    if let Some(basic) = basic {
        asked = asked.header("authorization", basic);
    }
    let mut answer = asked.call().ok().filter(|answer| answer.status().is_success())?;
    let text = answer.body_mut().with_config().limit(LONGEST_TOKEN).read_to_vec().ok()?;
    let pass: Pass = serde_json::from_slice(&text).ok()?;
    let fine = !pass.token.is_empty() && pass.token.bytes().all(|byte| byte.is_ascii_graphic());
    fine.then_some(pass.token)
}

/// `Bearer realm="https://auth/token",service="s",scope="t"` as the address to ask. Over TLS, or on this machine.
fn pass_url(challenge: &str) -> Option<String> {
    let rest = challenge.get(..7).filter(|kind| kind.eq_ignore_ascii_case("bearer "))?;
    let rest = &challenge[rest.len()..];
    let value = |name: &str| {
        let at = rest.find(&format!("{name}=\""))? + name.len() + 2;
        rest[at..].split('"').next().filter(|value| value.len() <= 1000)
    };
    let realm = value("realm")?;
    let here = realm.strip_prefix("http://").is_some_and(|rest| {
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        ["127.0.0.1", "localhost"].contains(&host) && port.bytes().all(|c| c.is_ascii_digit())
    });
    let secure = here || realm.starts_with("https://");
    if !secure || realm.contains(['?', '#', ' ']) {
        return None;
    }
    let query: Vec<String> = ["service", "scope"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", names::in_url(value(name)?))))
        .collect();
    Some(format!("{realm}?{}", query.join("&")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_leads_to_its_registry_and_one_without_a_registry_is_refused() {
        let base = |name: &str, tls| Place::of(name, tls).map(|place| place.base);
        for (name, leads) in [
            ("docker.io/vllm/vllm-openai", "https://registry-1.docker.io/v2/vllm/vllm-openai"),
            ("docker.io/debian", "https://registry-1.docker.io/v2/library/debian"),
            ("registry.lan:5000/a/b", "https://registry.lan:5000/v2/a/b"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a"),
            ("localhost:5000/a", "http://localhost:5000/v2/a"),
        ] {
            assert_eq!(base(name, false).unwrap(), leads);
        }
        assert_eq!(base("localhost:5000/a", true).unwrap(), "https://localhost:5000/v2/a");
        for bad in [
            "vllm",
            "vllm/vllm-openai",
            "localhost/toy",
            "a.b/../c",
            "a.b//c",
            "a.b/c?d",
            "a.b@c/d",
        ] {
            let says = base(bad, false).unwrap_err().to_string();
            assert!(says.contains("the image's name"), "{says}");
        }
    }

    #[test]
    fn a_pass_is_asked_for_over_tls_or_on_this_machine_only() {
        let challenge = "Bearer realm=\"https://auth.example.org/token\",service=\"r\",scope=\"repository:a/b:pull\"";
        assert_eq!(
            pass_url(challenge).unwrap(),
            "https://auth.example.org/token?service=r&scope=repository%3Aa/b%3Apull"
        );
        let here = "Bearer realm=\"http://127.0.0.1:5001/token\",service=\"r\"";
        assert_eq!(pass_url(here).unwrap(), "http://127.0.0.1:5001/token?service=r");
        for bad in [
            "",
            "Basic realm=\"x\"",
            "Bearer realm=\"http://auth.example.org\"",
            "Bearer realm=\"http://127.0.0.1.example.org/token\"",
            "Bearer realm=\"http://localhost:80@example.org/token\"",
            "Bearer service=\"x\"",
        ] {
            assert_eq!(pass_url(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_challenge_and_no_name_panics(text in ".{0,80}") {
            let _ = pass_url(&text);
            let _ = pass_url(&format!("Bearer {text}"));
            let _ = Place::of(&text, false);
        }
    }
}
