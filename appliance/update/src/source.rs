//! Where updates come from: a web address, or a disk that somebody plugged in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polder_recipes::{FileSpec, Recipe, Source};
use polder_site::write_durably;
use polder_weights::{CancelFlag, Event, Origin, Store};
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::manifest::LONGEST;
use crate::small;
use crate::{Here, Keys, Manifest, Refusal, UpdateError, Version, folder, judge};

/// A server that says nothing for so long is not asked further.
const PATIENCE: Duration = Duration::from_secs(8);
/// On a disk, updates lie at the top or in this folder.
const ON_A_DISK: &str = "polder";
/// So many manifests of a folder are looked at; there may be any number.
const MOST_IN_A_FOLDER: usize = 64;

/// The newest update that this box may take, with the texts that prove it and where it was found. `web` is asked
/// where it is given; otherwise the disks mounted in `disks` are looked at.
pub fn find(
    web: Option<&str>,
    disks: &Path,
    keys: &Keys,
    here: &Here,
    highest: Option<&Version>,
) -> Result<Found, UpdateError> {
    let candidates = match web {
        Some(base) => vec![ask(base, &here.arch)?],
        None => on_disks(disks, &here.arch)?,
    };
    let mut best: Option<Found> = None;
    let mut refused: Option<Refusal> = None;
    for Candidate { text, signature, from } in candidates {
        let believed = keys.believe(&text, &signature).and_then(|manifest| {
            judge(&manifest, here, highest)?;
            Ok(manifest)
        });
        match believed {
            Ok(manifest) => {
                if best.as_ref().is_none_or(|best| best.manifest.version < manifest.version) {
                    best = Some(Found { manifest, text, signature, from });
                }
            }
            // The last word is about the newest: files come in the order of their names.
            Err(refusal) => refused = Some(refusal),
        }
    }
    match (best, refused) {
        (Some(found), _) => Ok(found),
        (None, Some(refusal)) => Err(refusal.into()),
        (None, None) => Err(UpdateError::NoStick),
    }
}

/// An update that was found, and is signed and fit for this box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub manifest: Manifest,
    /// Its text as it was signed.
    pub text: String,
    /// The signature.
    pub signature: String,
    /// A web address, or a folder.
    pub from: String,
}

struct Candidate {
    text: String,
    signature: String,
    from: String,
}

/// What a server offers: `polder_ARCH.toml` is a copy of its newest manifest.
fn ask(base: &str, arch: &str) -> Result<Candidate, UpdateError> {
    let base = base.trim_end_matches('/');
    let agent = agent()?;
    let get = |name: &str| {
        let address = format!("{base}/{name}");
        let fail = |why: String| UpdateError::Server { address: address.clone(), why };
        let mut answer = agent.get(&address).call().map_err(|error| match error {
            ureq::Error::StatusCode(404) => {
                fail("there is nothing of that name; is the address right?".to_owned())
            }
            other => fail(format!("{other}; is the address right, and is there a network?")),
        })?;
        let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        answer
            .body_mut()
            .with_config()
            .limit(limit)
            .read_to_string()
            .map_err(|error| fail(error.to_string()))
    };
    let name = format!("polder_{arch}.toml");
    let text = get(&name)?;
    let signature = get(&format!("{name}.minisig"))?;
    Ok(Candidate { text, signature, from: base.to_owned() })
}

fn agent() -> Result<Agent, UpdateError> {
    let roots = match std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()) {
        None => RootCerts::WebPki,
        Some(path) => {
            let path = PathBuf::from(path);
            let pem = fs::read(&path).map_err(UpdateError::file("read", &path))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            RootCerts::from(certificates.collect::<Vec<_>>())
        }
    };
    let tls = TlsConfig::builder().root_certs(roots).build();
    let config = Agent::config_builder().tls_config(tls).timeout_global(Some(PATIENCE)).build();
    Ok(config.into())
}

/// Every manifest on every disk, with its signature where it has one.
fn on_disks(disks: &Path, arch: &str) -> Result<Vec<Candidate>, UpdateError> {
    let mut found = Vec::new();
    for disk in sorted(disks) {
        for place in [disk.clone(), disk.join(ON_A_DISK)] {
            let is_one = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with("polder_") && name.ends_with(&format!("{arch}.toml"))
            };
            let all: Vec<PathBuf> = sorted(&place).into_iter().filter(is_one).collect();
            // The last of them are the newest.
            for path in &all[all.len().saturating_sub(MOST_IN_A_FOLDER)..] {
                // One that cannot be read keeps no other from being found.
                let Ok(text) = small::read(path, LONGEST) else { continue };
                let signature = path.with_added_extension("minisig");
                let signature = small::read(&signature, LONGEST).unwrap_or_default();
                found.push(Candidate { text, signature, from: place.display().to_string() });
            }
        }
    }
    Ok(found)
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The updates that a box has brought: `STATE/update`.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// Of the box in this state folder.
    pub fn of(state: &Path) -> Self {
        Self { folder: folder(state) }
    }

    /// Remembers what was found, so that it can be believed again when it is written.
    pub fn remember(&self, found: &Found) -> Result<(), UpdateError> {
        let folder = self.folder.join("manifests");
        fs::create_dir_all(&folder).map_err(UpdateError::file("make", &folder))?;
        let [text, signature] = self.texts(&found.manifest.version);
        for (path, content) in [(&signature, &found.signature), (&text, &found.text)] {
            write_durably(path, content.as_bytes()).map_err(UpdateError::file("write", path))?;
        }
        Ok(())
    }

    /// What was remembered of a version, believed anew.
    pub fn manifest(&self, version: &Version, keys: &Keys) -> Result<Manifest, UpdateError> {
        // Root asks too, and the folder is not root's.
        let read = |path: &Path| {
            small::read(path, LONGEST).map_err(|why| match why.kind() {
                std::io::ErrorKind::NotFound => UpdateError::NotHere(version.clone()),
                _ => Refusal::Unreadable(why.to_string()).into(),
            })
        };
        let [text, signature] = self.texts(version);
        Ok(keys.believe(&read(&text)?, &read(&signature)?)?)
    }

    /// Brings the files of an update; what is here is not fetched again, what was cut off goes on. Files of other
    /// updates go.
    pub fn bring(
        &self,
        manifest: &Manifest,
        from: &str,
        observer: &mut dyn FnMut(Event),
        cancel: &CancelFlag,
    ) -> Result<(), UpdateError> {
        let store = self.store()?;
        let recipe = recipe(manifest);
        for other in store.list()? {
            if other.recipe != recipe.name {
                store.remove(&other.recipe)?;
            }
        }
        store.gc(Duration::ZERO)?;
        let origin = match from.contains("://") {
            true => Origin::Web(from.to_owned()),
            false => Origin::Folder(PathBuf::from(from)),
        };
        store.import(&recipe, &origin, observer, cancel)?;
        Ok(())
    }

    /// Whether every file of an update is here.
    pub fn has(&self, manifest: &Manifest) -> bool {
        self.store().is_ok_and(|store| store.model_folder(&recipe(manifest)).is_some())
    }

    /// Where a file of an update that was brought is.
    pub(crate) fn file(&self, manifest: &Manifest, name: &str) -> PathBuf {
        self.folder.join("files/models").join(shelf_name(manifest)).join(name)
    }

    fn store(&self) -> Result<Store, UpdateError> {
        Ok(Store::open(self.folder.join("files"))?)
    }

    fn texts(&self, version: &Version) -> [PathBuf; 2] {
        let text = self.folder.join("manifests").join(format!("{version}.toml"));
        let signature = text.with_added_extension("minisig");
        [text, signature]
    }
}

fn shelf_name(manifest: &Manifest) -> String {
    format!("polder-{}", manifest.version)
}

/// An update's files for the importer of models, which fetches, resumes and checks them.
fn recipe(manifest: &Manifest) -> Recipe {
    let file = |(part, _): (&crate::Part, &str)| FileSpec {
        name: part.name.clone(),
        size: Some(part.size),
        sha256: Some(part.sha256),
        parts: Vec::new(),
    };
    let files = manifest.parts().map(file).to_vec();
    let title = format!("Polder {}", manifest.version);
    Recipe::of_files(shelf_name(manifest), title, Source::Web { base: String::new() }, files)
}

#[cfg(test)]
mod tests {
    use polder_recipes::Digest;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::manifest::tests::manifest;
    use crate::trust::tests::{keys, pair, signature};

    fn here() -> Here {
        Here { version: "0.1.0".parse().unwrap(), arch: "x86_64".into() }
    }

    /// A stick with an update of a few bytes for each of these versions, signed by `pair`.
    fn stick(disks: &Path, pair: &minisign::KeyPair, versions: &[&str]) {
        let folder = disks.join("STICK/polder");
        fs::create_dir_all(&folder).unwrap();
        for version in versions {
            let mut manifest = manifest(version);
            let fill = |part: &mut crate::Part| {
                let content = format!("{} of {version}", part.name);
                part.size = content.len() as u64;
                part.sha256 = Digest::from_bytes(Sha256::digest(&content).into());
                fs::write(folder.join(&part.name), content).unwrap();
            };
            fill(&mut manifest.root);
            fill(&mut manifest.verity);
            fill(&mut manifest.entry);
            let (text, name) = (manifest.to_text(), manifest.file_name("toml"));
            fs::write(folder.join(format!("{name}.minisig")), signature(pair, &text)).unwrap();
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_newest_update_on_a_stick_is_found_brought_and_believed_again() {
        let (disks, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pair = pair();
        stick(disks.path(), &pair, &["0.1.0", "0.10.0", "0.9.0"]);
        let keys = keys(&[&pair]);
        let found = find(None, disks.path(), &keys, &here(), None).unwrap();
        assert_eq!(found.manifest.version.as_str(), "0.10.0");
        let shelf = Shelf::of(state.path());
        assert!(!shelf.has(&found.manifest));
        shelf.remember(&found).unwrap();
        shelf.bring(&found.manifest, &found.from, &mut |_| {}, &CancelFlag::default()).unwrap();
        assert!(shelf.has(&found.manifest));
        assert_eq!(shelf.manifest(&found.manifest.version, &keys).unwrap(), found.manifest);
        let root = shelf.file(&found.manifest, &found.manifest.root.name);
        assert!(fs::read_to_string(root).unwrap().ends_with("of 0.10.0"));
    }

    #[test]
    fn a_truncated_file_is_refused_by_name_and_not_kept() {
        let (disks, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pair = pair();
        stick(disks.path(), &pair, &["0.2.0"]);
        let found = find(None, disks.path(), &keys(&[&pair]), &here(), None).unwrap();
        fs::write(Path::new(&found.from).join(&found.manifest.root.name), "half").unwrap();
        let shelf = Shelf::of(state.path());
        let bring = shelf.bring(&found.manifest, &found.from, &mut |_| {}, &CancelFlag::default());
        let error = bring.unwrap_err().to_string();
        assert!(error.contains("polder_0.2.0_x86_64.root"), "{error}");
        assert!(!shelf.has(&found.manifest));
    }

    #[test]
    fn unsigned_and_old_updates_on_a_stick_are_refused_with_the_reason() {
        let disks = tempfile::tempdir().unwrap();
        let (ours, theirs) = (pair(), pair());
        let look =
            |keys: &Keys| find(None, disks.path(), keys, &here(), None).unwrap_err().to_string();
        assert!(look(&keys(&[&ours])).contains("plug in a stick"));
        stick(disks.path(), &theirs, &["0.2.0"]);
        assert!(look(&keys(&[&ours])).contains("not signed"));
        fs::remove_file(disks.path().join("STICK/polder/polder_0.2.0_x86_64.toml.minisig"))
            .unwrap();
        assert!(look(&keys(&[&theirs])).contains("not signed"));
        fs::remove_dir_all(disks.path().join("STICK")).unwrap();
        stick(disks.path(), &ours, &["0.0.9"]);
        assert!(look(&keys(&[&ours])).contains("not newer"));
    }

    #[test]
    fn a_stick_that_was_made_to_do_harm_neither_hangs_nor_fills_nor_hides_a_good_one() {
        let disks = tempfile::tempdir().unwrap();
        let pair = pair();
        stick(disks.path(), &pair, &["0.2.0"]);
        let folder = disks.path().join("EVIL");
        fs::create_dir(&folder).unwrap();
        let at = |name: &str| folder.join(format!("polder_{name}_x86_64.toml"));
        std::os::unix::fs::symlink("/dev/zero", at("0.3.0")).unwrap();
        fs::create_dir(at("0.4.0")).unwrap();
        fs::write(at("0.5.0"), [0xff; 100]).unwrap();
        fs::write(at("0.6.0"), "version = 1").unwrap();
        let endless = at("0.6.0").with_added_extension("minisig");
        fs::File::create(endless).unwrap().set_len(4 << 30).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at("0.7.0"), pipe, mode, 0).unwrap();
        for n in 0..100 {
            fs::write(at(&format!("0.1.{n}")), "nonsense").unwrap();
        }
        let found = find(None, disks.path(), &keys(&[&pair]), &here(), None).unwrap();
        assert_eq!(found.manifest.version.as_str(), "0.2.0");
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let none = Path::new("/nonexistent");
        let pair = pair();
        let asked = find(Some("http://127.0.0.1:1/x/"), none, &keys(&[&pair]), &here(), None);
        let error = asked.unwrap_err().to_string();
        assert!(
            error.starts_with("http://127.0.0.1:1/x/polder_x86_64.toml gave no update"),
            "{error}"
        );
    }
}
