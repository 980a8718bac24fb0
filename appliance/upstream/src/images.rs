//! Images of containers as they lie on the box until a slot unpacks its own: a folder for each manifest, every file of it under its digest,
//! fetched from a registry (`polder_weights::Store::fetch_image`) or brought in as an OCI archive.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use polder_site::{ImageDigest, write_durably};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::container::ContainerError;

/// An archive's list of images, and one image's list of layers, are no longer than this.
const LONGEST_LIST: u64 = 4 << 20;
/// Files in an archive that are looked at before it counts as none.
const MOST_FILES: usize = 10_000;
/// More layers than any image has.
const MOST_LAYERS: usize = 512;
/// Bytes that stay free for the box's own records.
pub(crate) const RESERVE: u64 = 1 << 30;
/// How a folder says that podman can read it.
const DIRECTORY: &[u8] = b"Directory Transport Version: 1.1\n";

/// The images of the box in one state folder.
#[derive(Debug, Clone)]
pub struct Images {
    folder: PathBuf,
}

/// One that is wholly here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What podman knows it by: the digest of the manifest for this machine.
    pub manifest: ImageDigest,
    /// For `podman pull dir:`.
    pub folder: PathBuf,
    /// Bytes of its files, which are mostly packed.
    pub bytes: u64,
}

impl Images {
    /// Of the box in this state folder.
    pub fn of(state: &Path) -> Self {
        Self { folder: state.join("containers") }
    }

    /// Where images are fetched into: the folder of a store of files. Each image is in `images/HEX` there.
    pub fn fetched(&self) -> PathBuf {
        self.folder.join("fetched")
    }

    /// The image of this digest, which may be that of a list of manifests that was kept.
    pub fn find(&self, digest: &ImageDigest) -> Option<Image> {
        let listed = self.listed(digest);
        [digest].into_iter().chain(&listed).find_map(|own| self.whole(own))
    }

    /// Keeps a list of manifests, word for word, so that what it names is known by its digest.
    pub fn keep_list(&self, list: &[u8]) -> Result<(), ContainerError> {
        let lists = self.lists();
        let keep = || -> io::Result<()> {
            fs::create_dir_all(&lists)?;
            write_durably(&lists.join(format!("{}.json", hex(list))), list)?;
            sync(&self.folder)
        };
        keep().map_err(ContainerError::List)
    }

    /// Takes in the image of this digest from an OCI archive: every file of it is compared with its digest on the way.
    pub fn import(&self, archive: &Path, digest: &ImageDigest) -> Result<(), ContainerError> {
        let none = |why: &str| ContainerError::Archive { path: archive.into(), why: why.into() };
        let text = check_archive(archive, digest)?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| none(&format!("its image's manifest cannot be read: {error}")))?;
        let files = manifest.files().ok_or_else(|| none("its image has no layers"))?;
        let name = digest.as_str().trim_start_matches("sha256:");
        let all = self.fetched().join("images");
        let (folder, part) = (all.join(name), all.join(format!(".{name}.part")));
        let fail = |source| ContainerError::Keep { folder: folder.clone(), source };
        if part.exists() {
            fs::remove_dir_all(&part).map_err(fail)?;
        }
        fs::create_dir_all(&part).map_err(fail)?;
        let bytes = files.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
        room_for("the container image", bytes, &part)?;
        unpack(archive, &part, &files)?;
        for (name, text) in [("version", DIRECTORY), ("manifest.json", &text[..])] {
            write_durably(&part.join(name), text).map_err(fail)?;
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(fail)?;
        }
        fs::rename(&part, &folder).map_err(fail)?;
        // Where it is, and the folders that were made for it.
        [&all, &self.fetched(), &self.folder]
            .into_iter()
            .try_for_each(|folder| sync(folder))
            .map_err(fail)
    }

    /// The image with this very manifest, where every file that the manifest names is there in the size that it says.
    fn whole(&self, own: &ImageDigest) -> Option<Image> {
        let name = own.as_str().trim_start_matches("sha256:");
        let folder = self.fetched().join("images").join(name);
        let text = short(&folder.join("manifest.json")).ok()?;
        if hex(&text) != name {
            return None;
        }
        let files = serde_json::from_slice::<Manifest>(&text).ok()?.files()?;
        let there = |(name, size): &(String, u64)| {
            fs::metadata(folder.join(name)).is_ok_and(|file| file.is_file() && file.len() == *size)
        };
        let bytes = files.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
        files.iter().all(there).then(|| Image { manifest: own.clone(), folder, bytes })
    }

    fn lists(&self) -> PathBuf {
        self.folder.join("lists")
    }

    /// What the list of this digest names, where it was kept and is what it says.
    fn listed(&self, digest: &ImageDigest) -> Vec<ImageDigest> {
        let name = digest.as_str().trim_start_matches("sha256:");
        let text = short(&self.lists().join(format!("{name}.json"))).unwrap_or_default();
        if hex(&text) != name {
            return Vec::new();
        }
        let index: Index = serde_json::from_slice(&text).unwrap_or_default();
        index.manifests.iter().filter_map(|one| one.digest.parse().ok()).collect()
    }
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

/// Refuses what the disk of this folder has no room for.
pub(crate) fn room_for(
    what: &'static str,
    bytes: u64,
    folder: &Path,
) -> Result<(), ContainerError> {
    let fail = |source| ContainerError::Keep { folder: folder.to_owned(), source };
    let free = free(folder).map_err(fail)?;
    let needed = bytes.saturating_add(RESERVE);
    match needed <= free {
        true => Ok(()),
        false => Err(ContainerError::NoSpace { what, needed, free }),
    }
}

/// Bytes that may still be written to the disk of this folder.
pub(crate) fn free(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[derive(Deserialize, Default)]
struct Index {
    manifests: Vec<Described>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Described>,
    #[serde(default)]
    layers: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    digest: String,
    #[serde(default)]
    size: u64,
}

impl Manifest {
    /// Every file that it names: its digest in hexadecimal, and its size. None where that is no image's manifest.
    fn files(&self) -> Option<Vec<(String, u64)>> {
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            return None;
        }
        let named = self.layers.iter().chain([self.config.as_ref()?]);
        let mut files: Vec<(String, u64)> = Vec::new();
        for one in named {
            let digest: ImageDigest = one.digest.parse().ok()?;
            let name = digest.as_str().trim_start_matches("sha256:").to_owned();
            if files.iter().all(|(known, _)| *known != name) {
                files.push((name, one.size));
            }
        }
        Some(files)
    }
}

/// The manifest of this image in an archive, where it is what its digest says.
fn check_archive(path: &Path, wanted: &ImageDigest) -> Result<Vec<u8>, ContainerError> {
    let digests = digests_in(path)?;
    let other = |found: String| ContainerError::WrongDigest {
        path: path.to_owned(),
        found,
        wanted: wanted.clone(),
    };
    if !digests.iter().any(|digest| digest == wanted.as_str()) {
        let nothing = digests.is_empty();
        return Err(other(if nothing { "nothing".to_owned() } else { digests.join(", ") }));
    }
    let none = |why: &str| ContainerError::Archive { path: path.to_owned(), why: why.to_owned() };
    let name = wanted.as_str().trim_start_matches("sha256:");
    let manifest = read_in(path, &format!("blobs/sha256/{name}"))?;
    let manifest = manifest.ok_or_else(|| none("its image is not in it"))?;
    let is = hex(&manifest);
    match is == name {
        true => Ok(manifest),
        false => Err(other(format!("sha256:{is}"))),
    }
}

/// Writes these files of an archive into a folder, and sees that each is what its digest says.
fn unpack(path: &Path, into: &Path, files: &[(String, u64)]) -> Result<(), ContainerError> {
    let none = |why: String| ContainerError::Archive { path: path.to_owned(), why };
    let fail = |error: io::Error| none(error.to_string());
    let keep = |source| ContainerError::Keep { folder: into.to_owned(), source };
    let mut archive = tar::Archive::new(File::open(path).map_err(fail)?);
    let mut missing: Vec<&(String, u64)> = files.iter().collect();
    for entry in archive.entries_with_seek().map_err(fail)?.take(MOST_FILES) {
        let mut entry = entry.map_err(fail)?;
        let name = entry.path().map_err(fail)?.into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).strip_prefix("blobs/sha256").ok();
        let at = missing.iter().position(|(file, _)| name == Some(Path::new(file)));
        let Some((name, size)) = at.map(|at| missing.swap_remove(at)) else { continue };
        if entry.size() != *size {
            return Err(none(format!("{name} in it is not as long as its image says")));
        }
        let mut file = File::create_new(into.join(name)).map_err(keep)?;
        let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            let n = entry.read(&mut piece).map_err(fail)?;
            if n == 0 {
                break;
            }
            hash.update(&piece[..n]);
            file.write_all(&piece[..n]).map_err(keep)?;
        }
        if digits(&hash.finalize()) != *name {
            return Err(none(format!("{name} in it is not what its digest says")));
        }
        file.sync_all().map_err(keep)?;
    }
    match missing.first() {
        None => Ok(()),
        Some((name, _)) => Err(none(format!("{name}, which belongs to its image, is not in it"))),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    digits(&Sha256::digest(bytes))
}

fn digits(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file that has no right to be long.
fn short(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST_LIST).read_to_end(&mut text)?;
    Ok(text)
}

fn digests_in(path: &Path) -> Result<Vec<String>, ContainerError> {
    let none = |why: String| ContainerError::Archive { path: path.to_owned(), why };
    let index =
        read_in(path, "index.json")?.ok_or_else(|| none("it has no index.json".to_owned()))?;
    let index: Index = serde_json::from_slice(&index)
        .map_err(|error| none(format!("its index.json cannot be read: {error}")))?;
    let shown = |m: Described| m.digest.chars().filter(|c| !c.is_control()).take(80).collect();
    Ok(index.manifests.into_iter().take(100).map(shown).collect())
}

/// A short file of an archive.
fn read_in(path: &Path, wanted: &str) -> Result<Option<Vec<u8>>, ContainerError> {
    let none = |why: String| ContainerError::Archive { path: path.to_owned(), why };
    let fail = |error: io::Error| none(error.to_string());
    let file = File::open(path).map_err(fail)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_archive_is_refused_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        for content in [&b""[..], b"not a tar at all", &[0; 2048], &[b'x'; 4096]] {
            fs::write(&path, content).unwrap();
            let says = digest_of_archive(&path).unwrap_err().to_string();
            assert!(says.contains("is no OCI archive") && says.contains("podman save"), "{says}");
        }
        let says = digest_of_archive(&folder.path().join("none.tar")).unwrap_err().to_string();
        assert!(says.contains("none.tar"), "{says}");
    }

    /// An image as it lies there, with a layer of these bytes.
    fn lying(images: &Images, layer: &[u8]) -> ImageDigest {
        let described = |bytes: &[u8]| {
            format!("{{\"digest\":\"sha256:{}\",\"size\":{}}}", hex(bytes), bytes.len())
        };
        let manifest =
            format!("{{\"config\":{},\"layers\":[{}]}}", described(b"{}"), described(layer));
        let folder = images.fetched().join("images").join(hex(manifest.as_bytes()));
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in [
            ("manifest.json".to_owned(), manifest.as_bytes()),
            (hex(b"{}"), &b"{}"[..]),
            (hex(layer), layer),
        ] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        format!("sha256:{}", hex(manifest.as_bytes())).parse().unwrap()
    }

    #[test]
    fn an_image_is_here_when_its_manifest_is_what_its_digest_says_and_every_file_of_it_is() {
        let state = tempfile::tempdir().unwrap();
        let images = Images::of(state.path());
        let digest = lying(&images, b"a layer");
        let found = images.find(&digest).unwrap();
        assert_eq!((found.manifest, found.bytes), (digest.clone(), 9));
        // By a list of manifests too, as long as that one is what its own digest says.
        let list = format!("{{\"manifests\":[{{\"digest\":\"{digest}\"}}]}}");
        let listed: ImageDigest = format!("sha256:{}", hex(list.as_bytes())).parse().unwrap();
        assert_eq!(images.find(&listed), None);
        images.keep_list(list.as_bytes()).unwrap();
        assert_eq!(images.find(&listed).unwrap().manifest, digest);
        let kept = images.lists().join(format!("{}.json", hex(list.as_bytes())));
        fs::write(&kept, list.replace(':', ": ")).unwrap();
        assert_eq!(images.find(&listed), None);
        let layer = found.folder.join(hex(b"a layer"));
        fs::write(&layer, b"a laye").unwrap();
        assert_eq!(images.find(&digest), None, "a layer is cut off");
        fs::write(&layer, b"a layer").unwrap();
        assert!(images.find(&digest).is_some());
        let manifest = found.folder.join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, format!("{text} ")).unwrap();
        assert_eq!(images.find(&digest), None, "its manifest is another one");
    }

    #[test]
    fn a_manifest_that_names_files_elsewhere_or_none_is_no_images() {
        let files = |text: &str| serde_json::from_str::<Manifest>(text).unwrap().files();
        let one = format!("{{\"digest\":\"sha256:{}\"}}", "ab".repeat(32));
        assert!(files(&format!("{{\"config\":{one},\"layers\":[{one}]}}")).is_some());
        for bad in [
            "{}".to_owned(),
            format!("{{\"config\":{one},\"layers\":[]}}"),
            format!("{{\"layers\":[{one}]}}"),
            format!("{{\"config\":{one},\"layers\":[{{\"digest\":\"sha256:../../x\"}}]}}"),
        ] {
            assert!(files(&bad).is_none(), "{bad}");
        }
    }
}
