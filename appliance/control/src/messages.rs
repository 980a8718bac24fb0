use std::net::IpAddr;
use std::path::PathBuf;

use polder_site::{Difference, Door, EngineName, RecipeName, Site, SiteChange};
use serde::{Deserialize, Serialize};

use crate::backup::{BackupStatus, BackupWish, KitWords};
use crate::certificate::{PublicStatus, SecretName, SecretText};
use crate::disk::{Disk, RecoveryKey};
use crate::ending::EndRecord;
use crate::plan::{Plan, Run, RunId};
use crate::supply::Supply;
use crate::takeover::{Closed, TakeoverStatus, TakeoverWish};

/// Who did something: for the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// Somebody with the claim code, before there is a member.
    Claimer,
    /// A member, by name.
    Member(String),
    /// Somebody at the machine itself.
    Console,
    /// The box by itself.
    Itself,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claimer => f.write_str("the person claiming the box"),
            Self::Member(name) => f.write_str(name),
            Self::Console => f.write_str("somebody at the console"),
            Self::Itself => f.write_str("the box"),
        }
    }
}

/// To the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// → [`Reply::Status`].
    Status,
    /// → [`Reply::Machine`].
    Machine,
    /// What would this change do? → [`Reply::Preview`].
    Preview(SiteChange),
    /// Do it. → [`Reply::Accepted`]; a change that needs nothing is done at once with an empty run.
    Apply {
        /// What should be different.
        change: SiteChange,
        /// Who says so.
        by: Actor,
    },
    /// Bring a model into the store without serving it. → [`Reply::Accepted`].
    Import {
        /// Which.
        recipe: RecipeName,
        /// From where.
        from: ImportSource,
        /// Who says so.
        by: Actor,
    },
    /// Stop a run between steps or inside an import. → [`Reply::Done`].
    Cancel(RunId),
    /// What a run did is good: it stays. → [`Reply::Done`].
    Confirm {
        /// Which run.
        run: RunId,
        /// Who says so.
        by: Actor,
    },
    /// Runs, newest first: those running, and the last ones that ended. → [`Reply::Runs`].
    Runs,
    /// Recipes whose every file is in the store and was checked. → [`Reply::Imported`].
    Imported,
    /// Something a person did that the supervisor did not do itself. → [`Reply::Done`].
    Record {
        /// Who.
        by: Actor,
        /// What they did: `invited`, `revoked key`.
        what: String,
        /// To what: a member's or a key's name, never a secret.
        on: String,
    },
    /// Something that the part which looks after the box's health did by itself: told stewards of an issue, or that it is
    /// over. → [`Reply::Done`].
    Noticed {
        /// What: `told stewards of`.
        what: String,
        /// About what.
        on: String,
    },
    /// The last entry of the audit trail, to be kept where nobody who changes the trail can change it too.
    /// → [`Reply::AuditHead`].
    AuditHead,
    /// The audit trail, newest first, from before this entry number. → [`Reply::Audit`].
    Audit {
        /// Only entries with a smaller number.
        before: Option<u64>,
        /// At most this many (and at most 500).
        limit: u32,
    },
    /// Turn the machine off, or start it again, in order: answers under way are finished first. → [`Reply::Done`].
    Power {
        /// Which.
        how: Power,
        /// Who asked.
        by: Actor,
    },
    /// Start a part again that was given up, or that waits after it died. → [`Reply::Done`].
    StartPart {
        /// Which.
        part: PartName,
        /// Who asked.
        by: Actor,
    },
    /// From the part that watches the UPS: how the power is, every few seconds. What has to be done about it is done by the
    /// supervisor. → [`Reply::Supplied`].
    Supply(Box<Supply>),
    /// Keep this password for upsd: the box's own at another machine's, that of other machines at its own. An empty text forgets the one
    /// there is. → [`Reply::Done`].
    UpsPassword {
        /// The password.
        text: SecretText,
        /// Who entered it.
        by: Actor,
    },
    /// Set the machine's clock, where it has nobody to ask for the time. → [`Reply::Done`].
    SetClock {
        /// Unix seconds.
        to: u64,
        /// Who asked.
        by: Actor,
    },
    /// What runs, what is in the other slot, what was found, what became of updates. → [`Reply::Updates`].
    Updates,
    /// Look for an update: on disks that are plugged in, then where the site says. → [`Reply::Updates`].
    CheckUpdate,
    /// Whether a remote shell is open. → [`Reply::Shell`].
    Shell,
    /// Open one for the holder of this key, for some hours. → [`Reply::Shell`].
    OpenShell {
        /// A public key, as OpenSSH writes it.
        key: String,
        /// Hours until it closes by itself.
        hours: u64,
        /// Who says so.
        by: Actor,
    },
    /// Close it, and end what runs in it. → [`Reply::Shell`].
    CloseShell {
        /// Who says so.
        by: Actor,
    },
    /// What would this do? → [`Reply::Preview`].
    PreviewUpdate(UpdateWish),
    /// Bring an update, change to it, or go back. → [`Reply::Accepted`].
    Update {
        /// Which.
        wish: UpdateWish,
        /// Who says so.
        by: Actor,
    },
    /// Is a version on trial no worse than the one before? Answers when that is known, which may take as long as
    /// a model takes to load. → [`Reply::Judged`].
    Judge,
    /// How the disk is kept shut; nothing where that is not the box's affair. → [`Reply::Disk`].
    Disk,
    /// Seals the disk to the machine; until the key is confirmed it opens as before. → [`Reply::RecoveryKey`].
    Seal {
        /// Who asked.
        by: Actor,
    },
    /// The recovery key was written down: from now on only it and the machine open the disk. → [`Reply::Done`].
    ConfirmSeal {
        /// As it was typed back.
        key: RecoveryKey,
        /// Who did.
        by: Actor,
    },
    /// Backups: what was made, what failed, what is lacking. → [`Reply::Backup`].
    Backup,
    /// The key of the emergency kit, made at first use, to be written down. → [`Reply::Kit`].
    BackupKit {
        /// Who sees it.
        by: Actor,
    },
    /// The kit is on paper. → [`Reply::Done`].
    ConfirmKit {
        /// As it was typed back.
        key: KitWords,
        /// Who did.
        by: Actor,
    },
    /// What would this do? → [`Reply::Preview`].
    PreviewBackup(BackupWish),
    /// Make a backup, hold a drill, or become the box of a backup. → [`Reply::Accepted`].
    Backups {
        /// Which.
        wish: BackupWish,
        /// Opens the backups, where they are not this box's own: for [`BackupWish::Restore`] alone.
        key: Option<KitWords>,
        /// Who says so.
        by: Actor,
    },
    /// What would the end of the box do? → [`Reply::Preview`].
    PreviewEnd {
        /// The models stay.
        keep_models: bool,
    },
    /// Erase everything that the box keeps of its members, and be a new box: two have agreed. → [`Reply::Ended`], and soon after that
    /// the box ends.
    End {
        /// The models stay.
        keep_models: bool,
        /// Who decided it, in order.
        by: Vec<String>,
        /// SHA-256 of the certificate of the box's own authority.
        fingerprint: String,
    },
    /// Which of a pair serves. → [`Reply::Takeover`]; nothing where the box has no pair.
    Takeover,
    /// What would this do? → [`Reply::Preview`].
    PreviewTakeover(TakeoverWish),
    /// Take over, give back, or go on. → [`Reply::Accepted`].
    TakeOver {
        /// Which.
        wish: TakeoverWish,
        /// Who says so.
        by: Actor,
    },
    /// On a main box that cannot ask its spare: that one certainly does not serve. Only from the machine itself. → [`Reply::Done`].
    ServeAnyway {
        /// Who says so.
        by: Actor,
    },
    /// On a main box: whether it stops when it does not hear from its spare for the lease. → [`Reply::Done`].
    Yield {
        /// Whether.
        yields: bool,
        /// Who says so.
        by: Actor,
    },
    /// Pair with the spare at this address, which shows this code; from then on the box has a spare. → [`Reply::Accepted`].
    PairSpare {
        /// `HOST` or `HOST:PORT`.
        address: String,
        /// As it was typed.
        code: SecretText,
        /// Who says so.
        by: Actor,
    },
    /// Turns the connection into a stream of [`Event`]s, beginning with the current status and
    /// every run that is not over.
    Watch,
}

/// What becomes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Turned off.
    Off,
    /// Started again.
    Restart,
}

/// What to do about the update that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateWish {
    /// Bring its files onto the box.
    Fetch,
    /// Bring them, write them into the other slot, and start the machine again with them.
    Apply,
    /// Start the machine again with what ran before.
    Back,
}

/// The image, and everything about its updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// What runs; none where this is no image, which has no slots and takes no updates.
    pub image: Option<ImageStatus>,
    /// What was found last and may be taken.
    pub offer: Option<OfferStatus>,
    /// A version that is being tried, or will be at the next start.
    pub trying: Option<String>,
    /// What became of each update, newest first, in words.
    pub why: Vec<String>,
    /// When it was last looked for one, Unix seconds, where that worked.
    #[serde(default)]
    pub looked: Option<i64>,
    /// For how many seconds nobody could look where the site says, by the last try, and why not.
    #[serde(default)]
    pub unlooked: Option<(i64, String)>,
}

/// A remote shell that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenShell {
    /// Of the key that opens it, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// Unix seconds.
    pub until: u64,
}

/// The image that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Its version.
    pub version: String,
    /// The machines that it is for.
    pub arch: String,
    /// Over every byte of its root file system.
    pub roothash: String,
    /// The kernel.
    pub kernel: String,
    /// The NVIDIA driver that is loaded, if one is.
    pub driver: Option<String>,
    /// What the other slot holds, if anything.
    pub other: Option<String>,
    /// What the machine could go back to, or why to nothing.
    pub back: Result<String, String>,
    /// Keys for updates that the image has.
    pub keys: usize,
}

/// An update that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferStatus {
    /// Its version.
    pub version: String,
    /// Where it was found.
    pub from: String,
    /// How old its packages are, in words.
    pub age: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Whether they are on the box.
    pub here: bool,
    /// Over every byte of its root file system.
    pub roothash: String,
}

/// Where an import takes its files from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportSource {
    /// Where the recipe says.
    Recipe,
    /// A folder or a mounted disk.
    Folder(PathBuf),
    /// A web server that has the recipe's files under this address.
    Web(String),
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The box now.
    Status(Box<BoxStatus>),
    /// The hardware.
    Machine(Machine),
    /// What a change would do.
    Preview {
        /// Lines of site.toml that would differ.
        differences: Vec<Difference>,
        /// Steps that would be taken.
        plan: Plan,
    },
    /// A run has begun.
    Accepted(RunId),
    /// Runs, newest first.
    Runs(Vec<Run>),
    /// Recipes that are wholly there.
    Imported(Vec<RecipeName>),
    /// Audit entries, newest first.
    Audit(Vec<AuditEntry>),
    /// The last entry of the audit trail.
    AuditHead(AuditHead),
    /// The image and its updates.
    Updates(Box<UpdateStatus>),
    /// The remote shell, if one is open.
    Shell(Option<OpenShell>),
    /// What a version on trial cannot do that was possible before; nothing where it is no worse.
    Judged(Option<String>),
    /// The disk.
    Disk(Option<Disk>),
    /// A new recovery key, said once.
    RecoveryKey(RecoveryKey),
    /// Noted.
    Supplied {
        /// Every part that answers people has ended, and what they had to write is on disk.
        drained: bool,
    },
    /// Backups.
    Backup(Box<BackupStatus>),
    /// Which of a pair serves.
    Takeover(Option<Box<TakeoverStatus>>),
    /// The key of the emergency kit.
    Kit(KitWords),
    /// The end is written down and will be carried out whatever happens; to be printed.
    Ended(Box<EndRecord>),
    /// Done, nothing to say.
    Done,
    /// No; one sentence: what, where, what to do.
    Refused(String),
    /// Only after [`Request::Watch`].
    Event(Event),
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "events are few, and sent on at once")]
pub enum Event {
    /// The site or a part's state is different.
    Status(Box<BoxStatus>),
    /// A run is further, or over.
    Run(Run),
}

/// The box at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxStatus {
    /// What it is told to be.
    pub site: Site,
    /// The gateway.
    pub gateway: PartStatus,
    /// The engines.
    pub engines: Vec<EngineStatus>,
    /// All other parts that the site asks for.
    #[serde(default)]
    pub others: Vec<OtherPart>,
    /// In safe mode no engine and no app runs; the next start of the machine leaves it.
    #[serde(default)]
    pub safe: bool,
    /// The power, where a UPS is watched and was heard of.
    #[serde(default)]
    pub supply: Option<Supply>,
    /// Why nobody is let in, though the box runs: another one serves in its place, or may.
    #[serde(default)]
    pub closed: Option<Closed>,
}

/// An engine at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Its slot.
    pub name: EngineName,
    /// The pinned model it serves.
    pub recipe: RecipeName,
    /// Where it answers HTTP.
    pub socket: PathBuf,
    /// How it is.
    pub part: PartStatus,
    /// One sentence, where it answers and could do so better on this machine.
    #[serde(default)]
    pub note: Option<String>,
}

/// A part beside the door and the engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartName {
    /// Watches the UPS.
    Power,
    /// Looks after the uplinks.
    Wan,
    /// Keeps in touch with the other box.
    Spare,
    /// Looks after the box's health.
    Health,
}

impl PartName {
    /// What it does, for people: the end of "the part that".
    pub const fn does(self) -> &'static str {
        match self {
            Self::Power => "watches the UPS",
            Self::Wan => "looks after the uplinks",
            Self::Spare => "keeps in touch with the other box",
            Self::Health => "looks after the box's health",
        }
    }
}

/// A part beside the door and the engines, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherPart {
    /// Which.
    pub name: PartName,
    /// How it is.
    pub part: PartStatus,
}

/// A long-running part at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartStatus {
    /// What it is doing.
    pub state: PartState,
    /// Starts since the supervisor began, the first one not counted.
    pub restarts: u32,
    /// Its process, while it has one.
    pub pid: Option<u32>,
}

/// What a part is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartState {
    /// Not running, and should not.
    Stopped,
    /// Started, not yet answering.
    Starting,
    /// Answers.
    Ready,
    /// Told to finish what it has and end.
    Draining,
    /// Died; will be started again after a pause of this many milliseconds.
    Waiting {
        /// The pause.
        retry_ms: u64,
        /// What it died of.
        why: String,
    },
    /// Died too often in too short a time; somebody must look. One sentence.
    GaveUp(String),
}

/// The hardware, as far as the operating system tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's own name for itself.
    pub cpu: String,
    /// Hardware threads that we may use.
    pub threads: u32,
    /// Bytes of main memory.
    pub memory: u64,
    /// Bytes free where the state folder is.
    pub disk_free: u64,
    /// Bytes there in all.
    pub disk_total: u64,
    /// Graphics processors; empty on a machine without one.
    pub gpus: Vec<Gpu>,
    /// About the driver of the image that the box runs from, in a few words; nothing on other systems.
    #[serde(default)]
    pub driver: Option<String>,
    /// NVIDIA's cards in the machine that nothing drives.
    #[serde(default)]
    pub idle_cards: u32,
    /// Its network ports, by name.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A network port that is hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// As the system calls it: `enp1s0`.
    pub name: String,
    /// A cable is in, and the device at its other end is on.
    pub connected: bool,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// Bytes of its own memory, where the driver tells.
    pub memory: Option<u64>,
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Counted from 1, without gaps.
    pub number: u64,
    /// When, RFC 3339, UTC.
    pub at: String,
    /// Who.
    pub by: Actor,
    /// What.
    pub what: String,
    /// To what.
    pub on: String,
    /// SHA-256 over the entry before and this one: a changed or missing line shows.
    pub hash: String,
}

/// How long the audit trail is and what it ends with. Whoever keeps one elsewhere can tell later that entries were cut
/// off or written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// The last entry's number; 0 for an empty trail.
    pub number: u64,
    /// Its hash.
    pub hash: String,
}

/// To the gateway, from the console only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorRequest {
    /// Is it up? → [`DoorReply::Ready`].
    Ready,
    /// What of the site has it made true? → [`DoorReply::Doorway`].
    Doorway,
    /// Open the claim window anew; earlier codes die. → [`DoorReply::Claim`], or
    /// [`DoorReply::Claimed`] on a box that has a steward.
    OpenClaim,
    /// Let the wizard be used again on a claimed box, after a sign-in with this code.
    /// → [`DoorReply::Claim`].
    ReopenSetup,
    /// Make sure that there is a steward, revoke the key named `up`, mint a new one.
    /// → [`DoorReply::Key`].
    UpKey,
    /// A key with which the supervisor asks the box's own models something, as a member would, to see whether they
    /// answer: good for minutes, gone with the next one. → [`DoorReply::Key`], or a refusal while nobody owns
    /// the box.
    TestKey,
    /// How is the certificate that the world trusts? → [`DoorReply::Certificate`].
    Certificate,
    /// Try at once what failed, or renew what is not old yet. → [`DoorReply::Certificate`].
    RenewCertificate,
    /// Keep this secret for it; an empty text forgets the one there is. → [`DoorReply::Certificate`].
    KeepSecret {
        /// Which.
        name: SecretName,
        /// Its text.
        text: SecretText,
    },
    /// Whom to tell when something is wrong. → [`DoorReply::Stewards`].
    Stewards,
    /// Can members outside come in? → [`DoorReply::Outside`].
    Outside,
    /// Something was added to the list of what never works again, in the state folder: make it true. → [`DoorReply::Gone`].
    HearGone,
}

/// From the gateway.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorReply {
    /// It is up; with what a member needs to reach it.
    Ready {
        /// The certificate of the local CA, to be trusted by clients.
        ca_file: PathBuf,
        /// SHA-256 of that certificate, for reading aloud.
        fingerprint: String,
        /// True once the box has a steward.
        claimed: bool,
        /// True where the box came with an owner's key: until it has a steward it has no code.
        #[serde(default)]
        owner_key: bool,
    },
    /// What it has made true of the site.
    Doorway(Doorway),
    /// A claim code, said once.
    Claim(Claim),
    /// There is a steward already.
    Claimed,
    /// An API key, said once.
    Key(String),
    /// The certificate that the world trusts.
    Certificate(PublicStatus),
    /// Everybody who looks after the box.
    Stewards(Vec<StewardContact>),
    /// The lines to the relay.
    Outside(OutsideSeen),
    /// Of so many it was news.
    Gone(usize),
    /// No; one sentence.
    Refused(String),
}

/// Somebody who looks after the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StewardContact {
    /// Their name.
    pub name: String,
    /// Their e-mail address, where they gave one.
    pub email: Option<String>,
}

/// How members outside can come in, as far as the door knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideSeen {
    /// The relay's host; none where there is no relay, and then nobody knocks from outside either.
    pub relay: Option<String>,
    /// The lines to it, one for each way out.
    pub lines: Vec<OutsideLine>,
}

/// One line to the relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideLine {
    /// By which interface; none where it is whichever the machine uses.
    pub interface: Option<String>,
    /// For how many seconds it has not been held, and why not.
    pub broken: Option<(u64, String)>,
    /// The port at which nobody answered when the relay knocked, although somebody should: the address is the box's own, or its router says that it
    /// passes callers on. Over IPv6 only where somebody wants callers to come in there.
    pub shut: Option<u16>,
    /// The relay knocked over IPv6, where routers have a firewall before everybody's own addresses.
    #[serde(default)]
    pub six: bool,
}

/// What the gateway has made true of the site, which it follows while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doorway {
    /// The door whose addresses it opened last; none before it has heard of one.
    pub door: Option<Door>,
    /// Those of them that it could not open, each with why.
    pub shut: Vec<(IpAddr, String)>,
    /// Every host name that its certificate was last made for.
    pub names: Vec<String>,
    /// Answers of engines that are under way.
    #[serde(default)]
    pub answering: u32,
    /// It is closed to everybody, and who was being answered was cut off.
    #[serde(default)]
    pub closed: bool,
}

/// A claim code and how long it is good for.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// What to type.
    pub code: String,
    /// Seconds until the window closes.
    pub seconds: u64,
}

// Codes and keys must not reach a log through a stray `{:?}`.
impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim {{ code: (hidden), seconds: {} }}", self.seconds)
    }
}
impl std::fmt::Debug for DoorReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready { ca_file, fingerprint, claimed, owner_key } => f
                .debug_struct("Ready")
                .field("ca_file", ca_file)
                .field("fingerprint", fingerprint)
                .field("claimed", claimed)
                .field("owner_key", owner_key)
                .finish(),
            Self::Doorway(doorway) => doorway.fmt(f),
            Self::Certificate(status) => status.fmt(f),
            Self::Claim(claim) => claim.fmt(f),
            Self::Claimed => f.write_str("Claimed"),
            Self::Key(_) => f.write_str("Key(hidden)"),
            Self::Stewards(stewards) => write!(f, "Stewards({})", stewards.len()),
            Self::Outside(seen) => seen.fmt(f),
            Self::Gone(count) => write!(f, "Gone({count})"),
            Self::Refused(why) => write!(f, "Refused({why:?})"),
        }
    }
}
