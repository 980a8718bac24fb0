//! Signatures over checksums and manifests, as `minisign` makes and checks them: who has the public key can tell whether
//! an image is ours, and the secret one is on no box and in no checkout.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use minisign::{PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};
use polder_recipes::Digest;
use polder_update::Version;

use crate::debs::digest_of;
use crate::{Arch, ImageError};

/// Signs every list of checksums in `folder`, once the files beside it are as it says, and every manifest that is in one
/// of them. Lays out the newest manifest of each kind of machine as `polder_ARCH.toml`, which is what boxes ask a server
/// for. `password` opens the key; a key without one is taken only where none is given. Says what was written.
pub fn sign(
    folder: &Path,
    key: &Path,
    password: Option<String>,
) -> Result<Vec<PathBuf>, ImageError> {
    let secret = secret_key(key, password)?;
    let mut written = Vec::new();
    let mut newest: BTreeMap<String, (Version, PathBuf)> = BTreeMap::new();
    for list in lists(folder)? {
        let text = read(&list)?;
        let files = check_files(&list, &text)?;
        written.push(sign_file(&list, &text, &secret, key)?);
        for manifest in files.into_iter().filter(|file| is_manifest(file)) {
            written.push(sign_file(&manifest, &read(&manifest)?, &secret, key)?);
            let Some((version, arch)) = version_and_arch(&manifest) else { continue };
            let known = newest.entry(arch).or_insert_with(|| (version.clone(), manifest.clone()));
            if known.0 < version {
                *known = (version, manifest);
            }
        }
    }
    for (arch, (_, manifest)) in newest {
        let latest = folder.join(format!("polder_{arch}.toml"));
        // The signature first: a box that asks in between is told that it does not fit, and asks again.
        for (from, to) in
            [(signature_of(&manifest), signature_of(&latest)), (manifest, latest.clone())]
        {
            fs::copy(&from, &to).map_err(ImageError::file("write", &to))?;
            written.push(to);
        }
    }
    Ok(written)
}

/// Signs one file; the signature lies beside it.
fn sign_file(
    path: &Path,
    text: &str,
    secret: &SecretKey,
    key: &Path,
) -> Result<PathBuf, ImageError> {
    let fail =
        |error: minisign::PError| ImageError::Key { path: key.to_owned(), why: error.to_string() };
    let public = PublicKey::from_secret_key(secret).map_err(fail)?;
    let comment = format!("file:{}", name(path));
    let reader = Cursor::new(text.as_bytes());
    let signature =
        minisign::sign(Some(&public), secret, reader, Some(&comment), Some("Polder image"))
            .map_err(fail)?;
    let path = signature_of(path);
    fs::write(&path, signature.to_bytes()).map_err(ImageError::file("write", &path))?;
    Ok(path)
}

/// Whether everything of Polder in `folder` is signed by the holder of this key, and as it was then. Says which
/// files those are.
pub fn check(folder: &Path, key: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let public = public_key(key)?;
    let mut good = Vec::new();
    let lists = lists(folder)?;
    for list in &lists {
        let text = read(list)?;
        check_signature(list, &text, &public)?;
        good.extend(check_files(list, &text)?);
    }
    // Manifests are read by boxes without the list beside them.
    let latest = ours(folder)?.into_iter().filter(|path| is_latest(path));
    let manifests: Vec<PathBuf> =
        good.iter().filter(|file| is_manifest(file)).cloned().chain(latest).collect();
    for manifest in &manifests {
        check_signature(manifest, &read(manifest)?, &public)?;
    }
    // Whoever asks will take a file of this folder, and not look which.
    let signed = || lists.iter().chain(&manifests);
    let known: BTreeSet<PathBuf> = good
        .iter()
        .cloned()
        .chain(signed().map(|path| signature_of(path)))
        .chain(signed().cloned())
        .collect();
    match ours(folder)?.into_iter().find(|path| !known.contains(path)) {
        None => Ok(good),
        Some(stranger) => Err(ImageError::Unsigned(stranger)),
    }
}

fn check_signature(path: &Path, text: &str, public: &PublicKey) -> Result<(), ImageError> {
    let fail = |why: String| ImageError::BadSignature { path: path.to_owned(), why };
    let beside = signature_of(path);
    let signature = fs::read_to_string(&beside).map_err(|error| {
        fail(format!("its signature {} could not be read: {error}", name(&beside)))
    })?;
    let signature =
        SignatureBox::from_string(&signature).map_err(|error| fail(error.to_string()))?;
    let reader = Cursor::new(text.as_bytes());
    minisign::verify(public, &signature, reader, true, false, false)
        .map_err(|error| fail(error.to_string()))
}

/// `polder_VERSION_ARCH.toml`.
fn is_manifest(path: &Path) -> bool {
    version_and_arch(path).is_some()
}

/// `polder_ARCH.toml`, the copy of the newest one.
fn is_latest(path: &Path) -> bool {
    let name = name(path);
    let arch = name.strip_prefix("polder_").and_then(|rest| rest.strip_suffix(".toml"));
    arch.is_some_and(|arch| arch.parse::<Arch>().is_ok())
}

fn version_and_arch(path: &Path) -> Option<(Version, String)> {
    let name = name(path);
    let (version, arch) = name.strip_prefix("polder_")?.strip_suffix(".toml")?.split_once('_')?;
    Some((version.parse().ok()?, arch.to_owned()))
}

/// Every file of the list must be beside it and as it says.
fn check_files(list: &Path, text: &str) -> Result<Vec<PathBuf>, ImageError> {
    let fault = |line: &str| ImageError::Sums {
        path: list.to_owned(),
        line: line.chars().take(120).collect(),
    };
    let mut files = Vec::new();
    for line in text.lines() {
        let (expected, file) = sum(line).ok_or_else(|| fault(line))?;
        let path = list.with_file_name(file);
        let found = digest_of(&path)?.0;
        if found != expected {
            return Err(ImageError::WrongFile { path, expected, found });
        }
        files.push(path);
    }
    if files.is_empty() { Err(fault("")) } else { Ok(files) }
}

/// A line of a list: the digest and the plain name of a file.
fn sum(line: &str) -> Option<(Digest, &str)> {
    let (digest, name) = line.split_once("  ")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = name.starts_with("polder_") && name.chars().all(plain);
    Some((digest.parse().ok()?, name)).filter(|_| good)
}

fn lists(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = ours(folder)?;
    found.retain(|path| path.extension().is_some_and(|ending| ending == "sha256"));
    if found.is_empty() { Err(ImageError::NoSums(folder.to_owned())) } else { Ok(found) }
}

/// Everything that looks like ours, in order.
fn ours(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(ImageError::file("read", folder))? {
        let path = entry.map_err(ImageError::file("read", folder))?.path();
        if name(&path).starts_with("polder_") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn signature_of(list: &Path) -> PathBuf {
    list.with_added_extension("minisig")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<String, ImageError> {
    fs::read_to_string(path).map_err(ImageError::file("read", path))
}

fn secret_key(path: &Path, password: Option<String>) -> Result<SecretKey, ImageError> {
    let key = SecretKeyBox::from(read(path)?);
    let fail = |why: String| ImageError::Key { path: path.to_owned(), why };
    match password {
        Some(password) => {
            key.into_secret_key(Some(password)).map_err(|error| fail(error.to_string()))
        }
        // The library itself would ask the terminal for one.
        None => key.into_unencrypted_secret_key().map_err(|error| {
            fail(format!("{error}; if it has a password, name its file with --password-file"))
        }),
    }
}

fn public_key(path: &Path) -> Result<PublicKey, ImageError> {
    let key = PublicKeyBox::from(read(path)?).into_public_key();
    key.map_err(|error| ImageError::Key { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;
    use sha2::{Digest as _, Sha256};
    use tempfile::TempDir;

    use super::*;

    const DISK: &str = "polder_0.1.0_x86_64.raw";
    const LIST: &str = "polder_0.1.0_x86_64.sha256";

    struct Desk {
        folder: TempDir,
        keys: TempDir,
    }

    impl Desk {
        /// An image of a few bytes, and a key without a password.
        fn new() -> Self {
            let desk =
                Self { folder: tempfile::tempdir().unwrap(), keys: tempfile::tempdir().unwrap() };
            desk.keep("a", &KeyPair::generate_unencrypted_keypair().unwrap());
            desk.write(DISK, "a disk");
            desk.write(LIST, &line("a disk", DISK));
            desk
        }

        fn keep(&self, name: &str, pair: &KeyPair) {
            fs::write(self.key(name), pair.sk.to_box(None).unwrap().to_bytes()).unwrap();
            fs::write(self.public(name), pair.pk.to_box().unwrap().to_bytes()).unwrap();
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.folder.path().join(name), content).unwrap();
        }

        fn key(&self, name: &str) -> PathBuf {
            self.keys.path().join(format!("{name}.key"))
        }

        fn public(&self, name: &str) -> PathBuf {
            self.keys.path().join(format!("{name}.pub"))
        }

        fn sign(&self) {
            sign(self.folder.path(), &self.key("a"), None).unwrap();
        }

        fn refused(&self) -> String {
            check(self.folder.path(), &self.public("a")).unwrap_err().to_string()
        }
    }

    fn line(content: &str, name: &str) -> String {
        format!("{}  {name}\n", Digest::from_bytes(Sha256::digest(content).into()))
    }

    #[test]
    fn what_was_signed_is_found_as_it_was() {
        let desk = Desk::new();
        desk.sign();
        let good = check(desk.folder.path(), &desk.public("a")).unwrap();
        assert_eq!(good, [desk.folder.path().join(DISK)]);
    }

    #[test]
    fn manifests_are_signed_by_themselves_and_the_newest_is_laid_out_for_boxes() {
        let desk = Desk::new();
        for version in ["0.9.0", "0.10.0"] {
            let manifest = format!("polder_{version}_x86_64.toml");
            desk.write(&manifest, version);
            desk.write(&format!("polder_{version}_x86_64.sha256"), &line(version, &manifest));
        }
        desk.sign();
        let latest = desk.folder.path().join("polder_x86_64.toml");
        assert_eq!(fs::read_to_string(&latest).unwrap(), "0.10.0");
        let public = public_key(&desk.public("a")).unwrap();
        check_signature(&latest, "0.10.0", &public).unwrap();
        assert_eq!(check(desk.folder.path(), &desk.public("a")).unwrap().len(), 3);
        // An unsigned one in its place is noticed.
        fs::write(&latest, "0.11.0").unwrap();
        assert!(desk.refused().contains("polder_x86_64.toml is not signed with this key"));
    }

    #[test]
    fn a_key_with_a_password_is_opened_by_that_one_only() {
        let desk = Desk::new();
        desk.keep("b", &KeyPair::generate_encrypted_keypair(Some("mill".into())).unwrap());
        let with = |password: Option<&str>| {
            sign(desk.folder.path(), &desk.key("b"), password.map(str::to_owned))
        };
        let error = with(Some("wheel")).unwrap_err().to_string();
        assert!(error.contains("b.key") && error.contains("Wrong password"), "{error}");
        assert!(with(None).unwrap_err().to_string().contains("if it has a password"));
        assert!(!desk.folder.path().join(format!("{LIST}.minisig")).exists());
        with(Some("mill")).unwrap();
        check(desk.folder.path(), &desk.public("b")).unwrap();
    }

    #[test]
    fn another_key_a_changed_list_and_no_signature_are_refused() {
        let desk = Desk::new();
        assert!(desk.refused().contains("its signature polder_0.1.0_x86_64.sha256.minisig"));
        desk.keep("other", &KeyPair::generate_unencrypted_keypair().unwrap());
        sign(desk.folder.path(), &desk.key("other"), None).unwrap();
        assert!(desk.refused().contains("is not signed with this key"));
        desk.sign();
        desk.write(DISK, "a desk");
        desk.write(LIST, &line("a desk", DISK));
        assert!(desk.refused().contains("is not signed with this key"));
    }

    #[test]
    fn a_file_that_changed_went_or_came_after_signing_is_refused_by_name() {
        let desk = Desk::new();
        desk.sign();
        desk.write(DISK, "a dusk");
        let error = desk.refused();
        assert!(error.contains(DISK) && error.contains("do not use it"), "{error}");
        fs::remove_file(desk.folder.path().join(DISK)).unwrap();
        assert!(desk.refused().contains(DISK));
        desk.write(DISK, "a disk");
        desk.write("polder_0.2.0_x86_64.raw", "another disk");
        let error = desk.refused();
        assert!(error.contains("polder_0.2.0_x86_64.raw is in no signed list"), "{error}");
    }

    #[test]
    fn nothing_is_signed_that_is_not_as_its_list_says() {
        let desk = Desk::new();
        let refused = || sign(desk.folder.path(), &desk.key("a"), None).unwrap_err().to_string();
        desk.write(DISK, "half a di");
        assert!(refused().contains("do not use it"));
        for list in
            ["", "abc\n", &line("a", "../polder_x"), &line("a", "polder_/x"), &line("a", "passwd")]
        {
            desk.write(LIST, list);
            let error = refused();
            assert!(error.contains("is not a list of checksums"), "{list}: {error}");
        }
        fs::remove_file(desk.folder.path().join(LIST)).unwrap();
        assert!(refused().contains("has no polder_*.sha256"));
    }

    #[test]
    fn what_is_no_key_is_refused_by_name() {
        let desk = Desk::new();
        desk.sign();
        for text in ["", "x", "untrusted comment: x\nAAAA\n"] {
            fs::write(desk.key("a"), text).unwrap();
            fs::write(desk.public("a"), text).unwrap();
            let error = sign(desk.folder.path(), &desk.key("a"), None).unwrap_err().to_string();
            assert!(error.contains("a.key cannot be used"), "{error}");
            assert!(desk.refused().contains("a.pub cannot be used"));
        }
    }
}
