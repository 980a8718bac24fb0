use std::fmt;
use std::io;
use std::path::Path;

use polder_site::{EngineName, RecipeName};
use serde::{Deserialize, Serialize};

use crate::{Actor, PartName, Sockets, SpareStatus};

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// What the driver of a graphics card wrote into the kernel's log.
    GpuFault,
    /// A graphics card's memory: bits that turned over, rows that were replaced.
    GpuMemory,
    /// A graphics card's temperature.
    GpuHeat,
    /// A graphics card that runs slower than it could.
    GpuSlow,
    /// Memory that others take, of a card or of the machine.
    Memory,
    /// What a disk says about itself (SMART).
    DiskHealth,
    /// Room on the disk that holds the box's state.
    DiskSpace,
    /// The machine's clock.
    Clock,
    /// The certificates that the door shows.
    Certificate,
    /// The parts of the box, engines above all.
    Part,
    /// Questions that wait.
    Queue,
    /// Versions of the image.
    Update,
    /// Whether weights are what was imported.
    Weights,
    /// The ways out of the box.
    Uplink,
    /// Whether members outside can come in.
    Outside,
    /// Mains and battery.
    Battery,
    /// Copies of the box's state, and whether they can be restored.
    Backup,
    /// The other box, where one of the two is the other's spare.
    Spare,
    /// Telling stewards.
    Alerts,
    /// Who looks after the box.
    Stewards,
    /// A change of model that was announced.
    Model,
}

impl Check {
    /// As it is written on the wire and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::GpuFault => "gpu-fault",
            Self::GpuMemory => "gpu-memory",
            Self::GpuHeat => "gpu-heat",
            Self::GpuSlow => "gpu-slow",
            Self::Memory => "memory",
            Self::DiskHealth => "disk-health",
            Self::DiskSpace => "disk-space",
            Self::Clock => "clock",
            Self::Certificate => "certificate",
            Self::Part => "part",
            Self::Queue => "queue",
            Self::Update => "update",
            Self::Weights => "weights",
            Self::Uplink => "uplink",
            Self::Outside => "outside",
            Self::Battery => "battery",
            Self::Backup => "backup",
            Self::Spare => "spare",
            Self::Alerts => "alerts",
            Self::Stewards => "stewards",
            Self::Model => "model",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How soon somebody has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know; nothing is lost by waiting.
    Notice,
    /// To be looked at within days.
    Warning,
    /// To be looked at now: something does not work, or soon will not.
    Urgent,
}

impl Severity {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Urgent => "urgent",
        }
    }
}

/// What is wrong with what. One of them stands at most once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IssueId {
    /// What was looked at.
    pub check: Check,
    /// What it is wrong with: `the state disk`, `GPU 0`.
    pub on: String,
}

/// Something that is wrong, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    /// Which.
    pub id: IssueId,
    /// How soon somebody has to do something.
    pub severity: Severity,
    /// What is wrong: a sentence without its full stop.
    pub what: String,
    /// What to do: one or more sentences without the last full stop, for whoever can hold a screwdriver.
    pub advice: String,
    /// What the box can do about it itself when a steward presses a button.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
    /// An update of the image would itself be unsafe now. Never because of what the update may mend.
    #[serde(default)]
    pub unsafe_to_update: bool,
}

/// What a press of a button does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// Start this engine again.
    StartEngine(EngineName),
    /// Start a part again that was given up.
    StartPart(PartName),
    /// Bring this model's files again.
    BringModel(RecipeName),
    /// Look whether there is an update.
    CheckUpdate,
}

impl Fix {
    /// What is on the button.
    pub fn label(&self) -> String {
        match self {
            Self::StartEngine(name) => format!("Start {name} again"),
            Self::StartPart(_) => "Start it again".to_owned(),
            Self::BringModel(recipe) => format!("Bring {recipe} again"),
            Self::CheckUpdate => "Look for an update".to_owned(),
        }
    }
}

/// An issue and since when it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What is wrong.
    pub issue: Issue,
    /// Unix seconds.
    pub since: i64,
    /// It was not seen the last time, which is not yet long enough to count as over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<i64>,
}

/// An issue that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Which.
    pub id: IssueId,
    /// How bad it was at its worst.
    pub severity: Severity,
    /// What was wrong.
    pub what: String,
    /// Unix seconds.
    pub since: i64,
    /// Unix seconds.
    pub until: i64,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// What.
    pub check: Check,
    /// Why, and what to do if somebody wants it looked at.
    pub why: String,
}

/// How the box is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// When it was last looked at, Unix seconds; 0 before the first time.
    pub at: i64,
    /// What is wrong now, the most urgent first.
    pub standing: Vec<Standing>,
    /// What was wrong, the last first.
    pub past: Vec<Past>,
    /// What nobody can tell.
    pub unseen: Vec<Unseen>,
    /// How stewards are told, one line for each way.
    #[serde(default)]
    pub channels: Vec<ChannelState>,
}

impl HealthReport {
    /// How bad the worst of it is.
    pub fn worst(&self) -> Option<Severity> {
        self.standing.iter().map(|s| s.issue.severity).max()
    }
}

/// A way in which stewards are told, or the world is told that all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// An e-mail to each steward.
    Mail,
    /// A JSON document to a web address.
    Webhook,
    /// A message to a topic of ntfy.
    Ntfy,
    /// A web address that is asked for while all is well.
    DeadMan,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mail, Self::Webhook, Self::Ntfy, Self::DeadMan];

    /// As it is written on the wire and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mail => "mail",
            Self::Webhook => "webhook",
            Self::Ntfy => "ntfy",
            Self::DeadMan => "dead-man",
        }
    }

    /// Which one has this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.word() == word)
    }
}

/// How telling stewards in one way goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    /// Which way.
    pub channel: Channel,
    /// The site says that it is used.
    pub on: bool,
    /// When it last worked, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worked: Option<i64>,
    /// Why it did not work the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A secret of telling stewards; kept in a file of its own and in no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertSecret {
    /// The password for the mail server.
    MailPassword,
    /// The webhook's web address: whoever knows it can write there.
    WebhookUrl,
    /// The topic's web address, as in `https://ntfy.sh/TOPIC`: whoever knows it can read along.
    NtfyUrl,
    /// The access token for it, where it needs one.
    NtfyToken,
    /// The web address that is asked for while all is well.
    DeadManUrl,
}

/// To the part that looks after the box's health.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthRequest {
    /// Is it up? → [`HealthReply::Done`].
    Ready,
    /// → [`HealthReply::Report`].
    Report,
    /// Look now, and say what is so. → [`HealthReply::Report`].
    LookNow,
    /// Tell something in this way now, to see whether it works. → [`HealthReply::Done`].
    Test(Channel),
    /// Keep a secret, or with an empty value forget it. → [`HealthReply::Done`].
    Keep {
        /// Which.
        secret: AlertSecret,
        /// What.
        value: String,
    },
    /// Which secrets are kept. → [`HealthReply::Kept`].
    Kept,
    /// What somebody who helps needs to know of the box, without secrets and without a word that anybody wrote to a model.
    /// → [`HealthReply::Support`].
    Support {
        /// Who asks.
        by: Actor,
    },
}

// Secrets must not reach a log through a stray `{:?}`.
impl fmt::Debug for HealthRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("Ready"),
            Self::Report => f.write_str("Report"),
            Self::LookNow => f.write_str("LookNow"),
            Self::Test(channel) => write!(f, "Test({channel:?})"),
            Self::Keep { secret, .. } => {
                write!(f, "Keep {{ secret: {secret:?}, value: (hidden) }}")
            }
            Self::Kept => f.write_str("Kept"),
            Self::Support { by } => write!(f, "Support {{ by: {by:?} }}"),
        }
    }
}

/// From it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthReply {
    /// How the box is.
    Report(Box<HealthReport>),
    /// The secrets that are kept.
    Kept(Vec<AlertSecret>),
    /// A text for whoever helps.
    Support(String),
    /// Done.
    Done,
    /// No; one sentence.
    Refused(String),
}

/// What a part saw that is not the health part's to look at. Each is a file in `run/seen/`, written whole and
/// renamed, so that whoever writes needs to know nothing of whoever reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// From the part that watches the UPS.
    Battery(BatterySeen),
    /// From the part that makes backups.
    Backup(BackupSeen),
    /// From the part that keeps in touch with the other box.
    Spare(Box<SpareStatus>),
}

/// A UPS and its battery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatterySeen {
    /// Fed by the mains; none while nobody knows.
    pub on_mains: Option<bool>,
    /// Seconds since it was last heard of, where that is too long ago.
    pub silent: Option<u64>,
    /// Percent.
    pub charge: Option<u8>,
    /// It asks for a new battery.
    pub replace: bool,
    /// When the battery was put in, Unix seconds, where the UPS or a steward said so.
    pub installed: Option<i64>,
    /// When the UPS was made, Unix seconds, where it says so: not the same.
    #[serde(default)]
    pub made: Option<i64>,
    /// When this battery was last tested, Unix seconds.
    pub tested: Option<i64>,
    /// Why the last test failed.
    pub test_failed: Option<String>,
}

/// The copies of the box's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSeen {
    /// The disk that they go to cannot be written to at this moment: one sentence.
    #[serde(default)]
    pub away: Option<String>,
    /// Where they go, for people; none where the site names no place.
    pub to: Option<String>,
    /// When the last one was whole, Unix seconds.
    pub last: Option<i64>,
    /// Why the last try failed, if it did.
    pub failed: Option<String>,
    /// When a copy was last restored as a drill, Unix seconds.
    pub drill: Option<i64>,
    /// Why the last drill failed, if it did.
    pub drill_failed: Option<String>,
    /// Drills wait: the way to the copies is paid by its amount.
    #[serde(default)]
    pub metered: bool,
}

impl Told {
    /// The folder of what parts saw.
    pub const FOLDER: &str = "seen";

    fn file(&self) -> &'static str {
        match self {
            Self::Battery(_) => "battery.json",
            Self::Backup(_) => "backup.json",
            Self::Spare(_) => "spare.json",
        }
    }

    /// Leaves it where the health part finds it, in place of what was said before.
    pub fn leave(&self, sockets: &Sockets) -> io::Result<()> {
        let folder = sockets.folder().join(Self::FOLDER);
        std::fs::create_dir_all(&folder)?;
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let (at, beside) = (folder.join(self.file()), folder.join(format!("{}.new", self.file())));
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, &at)
    }

    /// What parts left, each with when, in Unix seconds. What cannot be read is passed over.
    pub fn left_in(folder: &Path) -> Vec<(i64, Self)> {
        const LONGEST: u64 = 1 << 20;
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let read = |path: std::path::PathBuf| {
            let about = std::fs::metadata(&path).ok().filter(|about| about.len() <= LONGEST)?;
            let at = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            let told = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            Some((i64::try_from(at.as_secs()).ok()?, told))
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .filter_map(read)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_saw_replaces_what_it_saw_before_and_garbage_is_passed_over() {
        let state = tempfile::tempdir().unwrap();
        let sockets = Sockets::of(state.path());
        Told::Backup(BackupSeen { last: Some(1), ..BackupSeen::default() })
            .leave(&sockets)
            .unwrap();
        let newer = Told::Backup(BackupSeen { last: Some(2), ..BackupSeen::default() });
        newer.leave(&sockets).unwrap();
        let folder = sockets.folder().join(Told::FOLDER);
        std::fs::write(folder.join("battery.json"), "{").unwrap();
        let left = Told::left_in(&folder);
        assert_eq!(left.len(), 1);
        assert!(left[0].0 > 1_700_000_000 && left[0].1 == newer);
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = AlertSecret::MailPassword;
        let keep = HealthRequest::Keep { secret, value: "hunter2".into() };
        assert!(!format!("{keep:?}").contains("hunter2"));
        assert!(serde_json::to_string(&keep).unwrap().contains("hunter2"));
    }

    #[test]
    fn words_are_the_ones_on_the_wire() {
        for check in [Check::GpuFault, Check::DiskSpace, Check::Part] {
            assert_eq!(serde_json::to_value(check).unwrap(), check.word());
        }
        for channel in Channel::ALL {
            assert_eq!(serde_json::to_value(channel).unwrap(), channel.word());
            assert_eq!(Channel::of(channel.word()), Some(channel));
        }
    }
}
