//! What the wizard needs of the box it sets up. The gateway implements it; tests fake it.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use polder_control::{
    BoxStatus, Disk, KitWords, Machine, Plan, PluggedDisk, RecoveryKey, Run, RunId, SecretText,
};
use polder_power::around::{Around, Heard};
use polder_site::{BackupPlace, RecipeName, SiteChange};

use crate::wizard::Refusal;

/// Something that could not be done. Every message is one sentence for the person at the page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Not at this step.
    #[error(transparent)]
    NotNow(#[from] Refusal),
    /// The wizard's notes could not be read or written: nothing goes on without them.
    #[error("the box could not keep its notes ({0}); see whether its disk is full, then try again")]
    Notes(String),
    /// The code was not taken.
    #[error(transparent)]
    Claim(#[from] ClaimRefusal),
    /// Somebody answered, and said no, or nobody answered: their own sentence.
    #[error("{0}")]
    Refused(String),
}

/// Why a claim code was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimRefusal {
    /// Too many tries.
    #[error("too many tries; wait {} and try again", in_words(*.0))]
    TooMany(Duration),
    /// Mistyped, used, too old, or never one: deliberately one answer.
    #[error(
        "that code is not good: it is mistyped, used, or too old; look at the machine's screen again, or make a new one there with: polder claim reopen"
    )]
    Wrong,
    /// Another key, or another box.
    #[error(
        "that key file is not this box's: choose the one that was saved together with its seed"
    )]
    NotTheOwner,
}

/// The time in which a code is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// A code is good for this long.
    Open(Duration),
    /// None is.
    Closed,
}

/// Proves that a browser showed the code. Never written to a log.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimToken(pub String);

/// The first member, just made, and what only they may see.
#[derive(Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// `Set-Cookie` values that sign the browser in.
    pub cookies: Vec<HeaderValue>,
    /// Their API key, said once.
    pub api_key: String,
}

/// The other end of the connection that a request came by. The gateway puts one into every
/// request's extensions; without it nothing is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// Its address.
    pub from: IpAddr,
    /// How far away that is.
    pub distance: Distance,
    /// The address of this machine that it reached.
    pub reached: IpAddr,
    /// True over TLS.
    pub tls: bool,
}

/// How far away somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// At this very machine, or through an `ssh -L`.
    ThisMachine,
    /// On a network that is not the internet.
    LocalNetwork,
    /// Anywhere else.
    Foreign,
}

/// What a member's programs need to trust the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Where the certificate of the box's own authority is on this machine.
    pub ca_file: PathBuf,
    /// SHA-256 of that certificate, for reading aloud.
    pub fingerprint: String,
    /// Where a browser downloads it, and reads how to trust it: a path on this box.
    pub page: &'static str,
}

/// The box, as the wizard sees it.
///
/// What a member types passes through as it was typed; the implementor judges it.
pub trait Host: Send + Sync + 'static {
    /// The notes as last saved, if there are any.
    fn load(&self) -> impl Future<Output = Result<Option<String>, SetupError>> + Send;
    /// Keeps the notes. When this returns they survive a power cut.
    fn save(&self, notes: String) -> impl Future<Output = Result<(), SetupError>> + Send;

    /// The name of a steward, if there is one.
    fn steward(&self) -> impl Future<Output = Result<Option<String>, SetupError>> + Send;
    /// Whether a code would be taken now.
    fn window(&self) -> impl Future<Output = Result<Window, SetupError>> + Send;
    /// Uses up the code: of several callers with the same code at most one gets a token.
    fn claim(
        &self,
        code: String,
        from: IpAddr,
    ) -> impl Future<Output = Result<ClaimToken, SetupError>> + Send;
    /// On a box that came with an owner's key and has no steward yet: what the owner has to sign. Such a box has
    /// no code.
    fn owner_text(&self) -> impl Future<Output = Result<Option<String>, SetupError>> + Send;
    /// The same as [`claim`](Self::claim) for whoever signed that text.
    fn claim_as_owner(
        &self,
        signature: String,
        from: IpAddr,
    ) -> impl Future<Output = Result<ClaimToken, SetupError>> + Send;
    /// True if this token is good.
    fn holds_claim(
        &self,
        token: ClaimToken,
    ) -> impl Future<Output = Result<bool, SetupError>> + Send;
    /// Makes the first member, a steward, in the name of this claim; signs them in and mints a key.
    /// Of several callers at most one succeeds. `secure`: the browser came over TLS.
    fn make_steward(
        &self,
        by: ClaimToken,
        name: String,
        password: String,
        secure: bool,
    ) -> impl Future<Output = Result<Newcomer, SetupError>> + Send;
    /// Ends every claim: the wizard is over.
    fn end(&self) -> impl Future<Output = Result<(), SetupError>> + Send;

    /// The hardware.
    fn machine(&self) -> impl Future<Output = Result<Machine, SetupError>> + Send;
    /// How the disk is kept shut; nothing where that is not the box's affair.
    fn disk(&self) -> impl Future<Output = Result<Option<Disk>, SetupError>> + Send;
    /// Makes a recovery key for the disk; until it is confirmed the disk opens as before.
    fn seal(&self) -> impl Future<Output = Result<RecoveryKey, SetupError>> + Send;
    /// Seals the disk to the machine and takes the empty passphrase away, if this key opens it.
    fn confirm_seal(&self, key: RecoveryKey)
    -> impl Future<Output = Result<(), SetupError>> + Send;
    /// The person wants the disk to stay open: for the audit trail.
    fn leave_disk_open(&self) -> impl Future<Output = Result<(), SetupError>> + Send;
    /// The box now.
    fn status(&self) -> impl Future<Output = Result<BoxStatus, SetupError>> + Send;
    /// Models that are wholly in the store.
    fn imported(&self) -> impl Future<Output = Result<Vec<RecipeName>, SetupError>> + Send;
    /// What a change would do.
    fn preview(&self, change: SiteChange) -> impl Future<Output = Result<Plan, SetupError>> + Send;
    /// Begins a change.
    fn apply(&self, change: SiteChange) -> impl Future<Output = Result<RunId, SetupError>> + Send;
    /// Changes under way and the last ones that ended, newest first.
    fn runs(&self) -> impl Future<Output = Result<Vec<Run>, SetupError>> + Send;
    /// Says of one that changed the network that the box is still reached.
    fn confirm(&self, run: RunId) -> impl Future<Output = Result<(), SetupError>> + Send;
    /// Stops one.
    fn cancel(&self, run: RunId) -> impl Future<Output = Result<(), SetupError>> + Send;

    /// Disks that are plugged in by USB.
    fn plugged(&self) -> impl Future<Output = Result<Vec<PluggedDisk>, SetupError>> + Send;

    /// Begins to make this machine the box whose backups are there, if the key opens them.
    fn restore(
        &self,
        from: BackupPlace,
        key: KitWords,
    ) -> impl Future<Output = Result<RunId, SetupError>> + Send;

    /// Where the record is, on a box that others have ended.
    fn ended(&self) -> Option<&'static str> {
        None
    }

    /// UPSes of this machine's own.
    fn batteries(&self) -> impl Future<Output = Around> + Send;
    /// UPSes that NUT at this place listens to, or one sentence.
    fn batteries_at(
        &self,
        place: String,
    ) -> impl Future<Output = Result<Vec<Heard>, String>> + Send;
    /// Keeps what the box says to upsd.
    fn ups_password(
        &self,
        password: SecretText,
    ) -> impl Future<Output = Result<(), SetupError>> + Send;

    /// Addresses by which others may reach this machine; loopback is none.
    fn addresses(&self) -> impl Future<Output = Result<Vec<IpAddr>, SetupError>> + Send;
    /// How to trust the box.
    fn trust(&self) -> impl Future<Output = Result<Trust, SetupError>> + Send;
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimToken(hidden)")
    }
}
impl fmt::Debug for Newcomer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newcomer(hidden)")
    }
}

/// `40 seconds`, `3 minutes`: rounded up, so that nobody comes too early.
pub(crate) fn in_words(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    match seconds {
        0 | 1 => "a second".into(),
        2..=119 => format!("{seconds} seconds"),
        120..=7199 => format!("{} minutes", seconds.div_ceil(60)),
        _ => format!("{} hours", seconds.div_ceil(3600)),
    }
}
