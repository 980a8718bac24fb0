//! One key for each member. When it is gone, so is everything that was sealed under it.
//!
//! ```text
//! keys/<24 hex digits>, mode 0600:  magic 16 | secret 32 | name's tag 32 | check 32
//! ```
//!
//! The file's name is drawn at random. Whose key it is, the tag tells to those who have the secret and guess the
//! name; once the secret is gone, nobody can try names.

use std::fs::{DirBuilder, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::digest::hex;

/// Bytes of a key's number.
pub(crate) const KEY_ID: usize = 12;
const MAGIC: &[u8; 16] = b"polder-kv key 1\n";
const FILE: usize = 16 + 32 + 32 + 32;

/// A key's number, and its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyId(pub(crate) [u8; KEY_ID]);

/// A member's key.
pub(crate) struct MemberKey {
    pub(crate) id: KeyId,
    secret: Zeroizing<[u8; 32]>,
    pub(crate) cipher: Box<LessSafeKey>,
    tag: [u8; 32],
    forgotten: AtomicBool,
    /// Whether its file is there.
    kept: Mutex<bool>,
}

/// Fills an array with what nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(bytes)
}

impl MemberKey {
    /// A new key for a member.
    pub(crate) fn generate(member: &str) -> io::Result<Self> {
        let secret = Zeroizing::new(random()?);
        let tag = name_tag(&secret, member);
        Ok(Self::new(KeyId(random()?), secret, tag, false))
    }

    fn new(id: KeyId, secret: Zeroizing<[u8; 32]>, tag: [u8; 32], kept: bool) -> Self {
        let bytes = Zeroizing::new(derive(&secret, &[b"cipher"]));
        let (forgotten, kept) = (AtomicBool::new(false), Mutex::new(kept));
        Self { id, secret, cipher: Box::new(cipher(&bytes)), tag, forgotten, kept }
    }

    /// Whether it is the key of this member.
    pub(crate) fn is_of(&self, member: &str) -> bool {
        name_tag(&self.secret, member) == self.tag
    }

    /// Whether its member has asked to be forgotten.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    fn to_file(&self) -> Zeroizing<[u8; FILE]> {
        let mut file = Zeroizing::new([0; FILE]);
        file[..16].copy_from_slice(MAGIC);
        file[16..48].copy_from_slice(&*self.secret);
        file[48..80].copy_from_slice(&self.tag);
        file[80..].copy_from_slice(&derive(&self.secret, &[b"file", &self.id.0, &self.tag]));
        file
    }

    /// None where the file is not what was written.
    fn from_file(id: KeyId, file: &[u8; FILE]) -> Option<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(&file[16..48]);
        let mut tag = [0; 32];
        tag.copy_from_slice(&file[48..80]);
        let check = derive(&secret, &[b"file", &id.0, &tag]);
        (file[..16] == *MAGIC && file[80..] == check).then(|| Self::new(id, secret, tag, true))
    }
}

impl Drop for MemberKey {
    fn drop(&mut self) {
        // The cipher cannot be wiped, but overwritten by that of another key.
        *self.cipher = cipher(&[0; 32]);
        black_box(&mut self.cipher);
    }
}

impl std::fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemberKey(..)")
    }
}

fn cipher(bytes: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are a key's length");
    LessSafeKey::new(key)
}

fn derive(secret: &[u8; 32], what: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    what.iter().for_each(|part| context.update(part));
    let mut derived = [0; 32];
    derived.copy_from_slice(context.sign().as_ref());
    derived
}

fn name_tag(secret: &[u8; 32], member: &str) -> [u8; 32] {
    derive(secret, &[b"member", member.as_bytes()])
}

/// The folder with the keys' files.
#[derive(Debug)]
pub(crate) struct KeyFolder {
    path: PathBuf,
}

impl KeyFolder {
    /// Makes the folder where it is missing.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        match path.symlink_metadata()?.is_dir() {
            true => Ok(Self { path }),
            false => Err(io::Error::other("it is a link, and keys are kept in a folder")),
        }
    }

    /// All keys. What is no key is destroyed.
    pub(crate) fn load(&self) -> io::Result<Vec<MemberKey>> {
        let mut keys = Vec::new();
        for entry in self.path.read_dir()? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(parse) else { continue };
            match self.read(id)? {
                Some(key) => keys.push(key),
                None => self.destroy(id)?,
            }
        }
        Ok(keys)
    }

    /// Writes a key's file, unless it is there. False where its member has been forgotten meanwhile.
    pub(crate) fn keep(&self, key: &MemberKey) -> io::Result<bool> {
        let mut kept = key.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if key.is_forgotten() {
            return Ok(false);
        }
        if !*kept {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(self.path.join(hex(&key.id.0)))?;
            file.write_all(&*key.to_file())?;
            file.sync_all()?;
            self.sync()?;
            *kept = true;
        }
        Ok(true)
    }

    /// Destroys a key's file, and sees to it that none is written later.
    pub(crate) fn forget(&self, key: &MemberKey) -> io::Result<()> {
        key.forgotten.store(true, Ordering::Release);
        // Whoever is writing it now finishes first.
        let mut kept = key.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.destroy(key.id)?;
        *kept = false;
        Ok(())
    }

    /// Overwrites a key's file and removes it. Fine where there is none.
    fn destroy(&self, id: KeyId) -> io::Result<()> {
        destroy(&self.path.join(hex(&id.0)))?;
        self.sync()
    }

    /// Destroys all keys.
    pub(crate) fn destroy_all(&self) -> io::Result<()> {
        for entry in self.path.read_dir()? {
            let entry = entry?;
            // A folder is no key's file, whoever made it.
            let is_folder = entry.file_type()?.is_dir();
            if !is_folder && entry.file_name().to_str().and_then(parse).is_some() {
                destroy(&entry.path())?;
            }
        }
        self.sync()
    }

    fn read(&self, id: KeyId) -> io::Result<Option<MemberKey>> {
        let mut bytes = Zeroizing::new([0; FILE]);
        let mut file = File::open(self.path.join(hex(&id.0)))?;
        let whole = match file.read_exact(&mut *bytes) {
            Ok(()) => file.read(&mut [0])? == 0,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        Ok(if whole { MemberKey::from_file(id, &bytes) } else { None })
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Overwrites a key's file and removes it: what a file system keeps of a removed file may be what was there last.
///
/// Whoever took an engine over may have put something else here, for whoever erases its folder later and may do more than
/// it. What a link leads to is not written to, and nobody waits at a pipe.
fn destroy(path: &Path) -> io::Result<()> {
    let kind = match path.symlink_metadata() {
        Ok(about) => about.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_file() {
        let mut file = OpenOptions::new().write(true).custom_flags(not_elsewhere()).open(path)?;
        file.write_all(&random::<FILE>()?)?;
        file.sync_all()?;
    }
    std::fs::remove_file(path)
}

/// To open a file here and nowhere else, without waiting.
pub(crate) fn not_elsewhere() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

fn parse(name: &str) -> Option<KeyId> {
    let mut id = [0; KEY_ID];
    if name.len() != 2 * KEY_ID
        || !name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(name.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(KeyId(id))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_found_again_by_its_members_name_and_by_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::open(folder.path().join("keys")).unwrap();
        let key = MemberKey::generate("ada").unwrap();
        assert!(keys.keep(&key).unwrap() && keys.keep(&key).unwrap());
        let path = folder.path().join("keys").join(hex(&key.id.0));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let again = keys.load().unwrap();
        assert_eq!(again.len(), 1);
        assert!(again[0].is_of("ada") && !again[0].is_of("bob") && again[0].id == key.id);
        assert_eq!(again[0].secret, key.secret);
        assert_eq!(format!("{key:?}"), "MemberKey(..)");
        keys.forget(&key).unwrap();
        assert!(!path.exists() && key.is_forgotten());
        assert!(!keys.keep(&key).unwrap() && !path.exists());
        // What is gone already is no failure.
        keys.forget(&key).unwrap();
    }

    #[test]
    fn a_damaged_key_is_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::open(folder.path().to_owned()).unwrap();
        for bit in (0..8 * FILE).step_by(5) {
            let key = MemberKey::generate("ada").unwrap();
            keys.keep(&key).unwrap();
            let path = folder.path().join(hex(&key.id.0));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert!(keys.load().unwrap().is_empty() && !path.exists());
        }
        for length in [0, 1, FILE - 1, FILE + 1] {
            std::fs::write(folder.path().join("0123456789abcdef01234567"), vec![7; length])
                .unwrap();
            assert!(keys.load().unwrap().is_empty());
        }
        // Other people's files are theirs.
        std::fs::write(folder.path().join("README"), "x").unwrap();
        keys.destroy_all().unwrap();
        assert!(folder.path().join("README").exists());
    }
}
