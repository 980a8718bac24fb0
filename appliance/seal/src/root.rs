use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use polder_control::{Disk, Lock, RecoveryKey};

use crate::ask::{Answer, Ask, LOCKED, SAFE_MODE};
use crate::decide::{binding, lock, slots};
use crate::forget::write_down;
use crate::programs::{CRYPTSETUP, ENROLL, Key, SECRET, SYSTEMCTL, run};

/// A question is one short line.
const LONGEST: u64 = 4096;

/// Where things are on an image.
#[derive(Debug, Clone)]
pub struct Places {
    /// The disk's partition.
    pub device: PathBuf,
    /// What is on it.
    pub var: PathBuf,
    /// The firmware's variables.
    pub variables: PathBuf,
    /// What the boot loader's part of the system leaves: the key and the signature of what it measures.
    pub measured: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            device: "/dev/polder/polder-var".into(),
            var: "/var".into(),
            variables: "/sys/firmware/efi/efivars".into(),
            measured: "/run/systemd".into(),
        }
    }
}

/// Something about the disk could not be done: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A tool of systemd's failed.
    #[error("could not {act}: {why}")]
    Tool {
        /// What it was to do.
        act: &'static str,
        /// Its last words.
        why: String,
    },
    /// A file could not be used.
    #[error("could not {act} {}: {source}", path.display())]
    File {
        /// `read`, `write`.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The question is none.
    #[error("that is no question that can be answered ({0}); are both sides of one version?")]
    NoQuestion(serde_json::Error),
    /// There is no chip.
    #[error(
        "this machine has no TPM 2.0 to seal the disk to; switch it on in the firmware's menu, or leave the disk open"
    )]
    NoChip,
    /// It is sealed, and the key that would open it is not here.
    #[error(
        "the disk is sealed already; a new recovery key can only be made after a reset, which makes everything anew"
    )]
    Sealed,
    /// There is nothing to open.
    #[error(
        "the disk that holds everything of the box is not there; see whether it is plugged in, then start the machine again"
    )]
    NoDisk,
    /// The typed key is another.
    #[error(
        "the disk does not open with that key; compare it with what was shown, letter by letter"
    )]
    OtherKey,
}

impl SealError {
    pub(crate) fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { act, path: path.to_owned(), source }
    }
}

/// Takes one question, as a line of JSON, does what it asks for, and writes the answer.
pub fn answer(
    places: &Places,
    question: impl BufRead,
    mut to: impl Write,
) -> Result<(), SealError> {
    let mut line = String::new();
    let socket = Path::new(crate::SOCKET);
    question.take(LONGEST).read_line(&mut line).map_err(SealError::file("read", socket))?;
    let answer = serde_json::from_str(&line)
        .map_err(SealError::NoQuestion)
        .and_then(|ask| one_at_a_time(places, &ask))
        .unwrap_or_else(|error| Answer::Refused(error.to_string()));
    let mut text = serde_json::to_string(&answer).map_err(SealError::NoQuestion)?;
    text.push('\n');
    to.write_all(text.as_bytes()).map_err(SealError::file("write", socket))
}

/// Two who change one header would undo each other's work.
fn one_at_a_time(places: &Places, ask: &Ask) -> Result<Answer, SealError> {
    let path = Path::new(crate::SOCKET).with_file_name("lock");
    let lock = File::create(&path).map_err(SealError::file("write", &path))?;
    lock.lock().map_err(SealError::file("lock", &path))?;
    act(places, ask)
}

fn act(places: &Places, ask: &Ask) -> Result<Answer, SealError> {
    match ask {
        Ask::Look => Ok(Answer::Disk(look(places)?)),
        Ask::Seal => Ok(Answer::RecoveryKey(seal(places)?)),
        Ask::Confirm(key) => confirm(places, key),
        Ask::Open { key, anew } => open(places, key, *anew),
        Ask::Reset(reset) => {
            write_down(*reset, &places.variables, &places.var)?;
            start_again()
        }
        Ask::SafeMode => {
            let path = places.var.join("lib/polder").join(SAFE_MODE);
            let written = File::create(&path).and_then(|file| file.sync_all());
            written.map_err(SealError::file("write", &path))?;
            start_again()
        }
    }
}

fn look(places: &Places) -> Result<Disk, SealError> {
    let device = text(&places.device);
    let listed = run("look at the disk", ENROLL, &[&device], &Key::None)?;
    let secure_boot = places.variables.join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    let chips = fs::read_dir("/sys/class/tpmrm").into_iter().flatten().count();
    Ok(Disk {
        lock: lock(&slots(&listed)),
        chip: chips > 0,
        // Four bytes of attributes, then the value.
        secure_boot: fs::read(secure_boot).is_ok_and(|bytes| bytes.get(4) == Some(&1)),
        signed: measured_key(places).is_file()
            && places.measured.join("tpm2-pcr-signature.json").is_file(),
    })
}

fn measured_key(places: &Places) -> PathBuf {
    places.measured.join("tpm2-pcr-public-key.pem")
}

/// Makes a recovery key. Nothing else changes before it was typed back: a disk that only the machine opens would be
/// lost with it.
fn seal(places: &Places) -> Result<RecoveryKey, SealError> {
    let disk = look(places)?;
    if !disk.chip {
        return Err(SealError::NoChip);
    }
    if disk.lock == Lock::Sealed {
        return Err(SealError::Sealed);
    }
    let device = text(&places.device);
    let arguments = ["--recovery-key", "--wipe-slot=recovery", &device];
    let printed = run("make a recovery key", ENROLL, &arguments, &Key::Empty)?;
    RecoveryKey::typed(&printed).ok_or_else(|| SealError::Tool {
        act: "make a recovery key",
        why: "it is not of the form that was expected".to_owned(),
    })
}

/// Seals the disk to the machine as it is started now, with the key, and only then wipes these slots. (The tool asks
/// for no key where it only wipes.)
fn to_the_machine(places: &Places, key: &RecoveryKey, wipe: &str) -> Result<(), SealError> {
    let (signed, device) = (look(places)?.signed, text(&places.device));
    let (unlock, wipe) = (format!("--unlock-key-file={SECRET}"), format!("--wipe-slot={wipe}"));
    let mut arguments = binding(signed, &text(&measured_key(places)));
    arguments.extend([unlock, wipe, device]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("seal the disk to this machine", ENROLL, &arguments, &Key::Recovery(key)).map(drop)
}

fn confirm(places: &Places, key: &RecoveryKey) -> Result<Answer, SealError> {
    to_the_machine(places, key, "tpm2,empty").map_err(other_key)?;
    match look(places)?.lock {
        Lock::Sealed => Ok(Answer::Done),
        Lock::Open => Err(SealError::Tool {
            act: "take the empty passphrase away",
            why: "the disk still has one; look at the log".to_owned(),
        }),
    }
}

/// A key that opens nothing is told as what it is.
fn other_key(error: SealError) -> SealError {
    match &error {
        SealError::Tool { why, .. } if why.contains("Operation not permitted") => {
            log::warn!("{error}");
            SealError::OtherKey
        }
        _ => error,
    }
}

fn open(places: &Places, key: &RecoveryKey, anew: bool) -> Result<Answer, SealError> {
    let device = text(&places.device);
    let arguments = ["attach", "var", &device, SECRET, "luks,headless=yes"];
    if !places.device.exists() {
        return Err(SealError::NoDisk);
    }
    if let Err(error) = run("open the disk", CRYPTSETUP, &arguments, &Key::Recovery(key)) {
        log::warn!("{error}");
        return Err(SealError::OtherKey);
    }
    // What could not begin without the disk begins now.
    for unit in ["var.mount", "multi-user.target"] {
        run("go on with the start", SYSTEMCTL, &["--no-block", "start", unit], &Key::None)?;
    }
    let _ = fs::remove_file(LOCKED);
    if anew {
        to_the_machine(places, key, "tpm2")?;
    }
    Ok(Answer::Done)
}

fn start_again() -> Result<Answer, SealError> {
    run("start the machine again", SYSTEMCTL, &["--no-block", "reboot"], &Key::None)?;
    Ok(Answer::Done)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_question_is_refused_in_a_sentence() {
        for line in ["", "{}", "\"look", "\"wipe\"\n", "{\"confirm\":\"x\"}{"] {
            let mut said = Vec::new();
            answer(&Places::default(), line.as_bytes(), &mut said).unwrap();
            let said = String::from_utf8(said).unwrap();
            assert!(said.starts_with("{\"refused\":\"that is no question"), "{line}: {said}");
            assert!(said.ends_with("\"}\n"), "{said}");
        }
    }

    #[test]
    fn a_question_survives_the_way() {
        let text = "eujukuik-ljvniheb-tchngetr-henfkdfn-hjcrhelj-lufhrbcg-ivivhfvr-ncueblhj";
        let key = RecoveryKey::typed(text).unwrap();
        for ask in
            [Ask::Look, Ask::Confirm(key.clone()), Ask::Open { key, anew: true }, Ask::SafeMode]
        {
            let line = serde_json::to_string(&ask).unwrap();
            assert_eq!(serde_json::from_str::<Ask>(&line).unwrap(), ask);
        }
    }
}
