//! Who may use the box: claim, members, invites, sign-in, API keys and what they used, all in
//! `STATE/polder.db`, for the gateway, which alone writes it.
//!
//! [`Members`] is a cheap clone. Every method that is not marked *in memory* reads or writes the
//! database or hashes a password, and so **blocks for milliseconds**: from async code go through
//! [`Members::ask`], which runs it on the blocking pool. Checking a key and its limits
//! ([`Members::verify_key`], [`Members::admit`]) is in memory and made for every request.
//!
//! A method that returns `Ok` has its effect on the disk (SQLite, `synchronous=FULL`). The two
//! exceptions are said where they are: a key's *last used* and usage counts follow within a second.

mod agreements;
mod announcements;
mod client_apps;
mod clock;
mod database;
mod deeds;
mod elsewhere;
mod ending;
mod error;
mod forgetting;
mod identities;
mod invites;
mod kept;
mod keys;
mod late;
mod leaving;
mod limits;
mod money;
mod password;
mod people;
mod recovery;
mod revocations;
mod secret;
mod sessions;
mod setup;
mod stewards;
mod trial;
mod usage;
mod visits;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

pub use agreements::Agreement;
pub use announcements::Announcement;
pub use client_apps::{ClientApp, NewClientApp};
pub use clock::Clock;
pub use deeds::Deed;
pub use elsewhere::{BudgetUsedUp, Month, Reserved, SpentElsewhere, UsedElsewhere};
pub use ending::{Ending, EndingAsked};
pub use error::{
    ClaimRefused, KeyRefused, LimitReached, MembersError, RecoveryRefused, SignInRefused,
};
pub use identities::{Arrived, Identity, IdentityRefused, Linked, Ruling};
pub use invites::{Invite, InviteId};
pub use keys::{Admission, KeyGrant, KeyId, KeyInfo, KeyLimits, MintedKey, NewKey, Scope};
pub use leaving::Belongings;
pub use people::{Member, MemberId, NewMember, Role, Share};
pub use polder_recovery::Sheet;
pub use recovery::{Recovered, RecoveryAsked, SheetInfo, Sheets, WhoRecovers};
pub use revocations::{
    GONE, Revocation, Revoked, keep_gone_lines, keep_late_lines, keep_revocations,
};
pub use secret::Secret;
pub use sessions::{SESSION_SECONDS, SessionInfo};
pub use setup::{ClaimToken, SetupWindow};
pub use stewards::{Proposal, Replaced, Wanted};
pub use trial::Trying;
pub use usage::{UsageRow, UsedLengths};
pub use visits::{AtApp, NewVisit, Visit, VisitTokens};

use tokio_util::sync::CancellationToken;

use elsewhere::Books;
use limits::KeyedBuckets;
use password::Hashing;
use usage::Ledger;

/// Everybody who may use the box, and what they may do.
#[derive(Clone)]
pub struct Members(Arc<Inner>);

struct Inner {
    path: PathBuf,
    clock: Clock,
    db: Mutex<rusqlite::Connection>,
    /// Keys by their public id.
    keys: RwLock<HashMap<String, Arc<keys::Live>>>,
    /// For members who run something without a key.
    gone: Mutex<HashMap<MemberId, CancellationToken>>,
    /// For members in whose name an app asks models.
    at_apps: Mutex<HashMap<agreements::AtAppFrom, agreements::EndsAtApp>>,
    /// What apps ask with, by digest, with its end: so that what strangers make up costs no look into the database.
    access: Mutex<HashMap<[u8; 32], i64>>,
    /// Up to which revocation the file beside the database has them all.
    gone_kept: Mutex<i64>,
    /// Who tries a model that others do not reach yet.
    trying: RwLock<HashMap<MemberId, Trying>>,
    hashing: Hashing,
    claims_by_address: KeyedBuckets<limits::Net>,
    claims_in_all: KeyedBuckets<()>,
    sign_ins: KeyedBuckets<(String, limits::Net)>,
    sign_ins_by_address: KeyedBuckets<limits::Net>,
    recoveries: KeyedBuckets<limits::Net>,
    recoveries_in_all: KeyedBuckets<()>,
    ledger: Arc<Ledger>,
    elsewhere: Arc<Books>,
}

impl Members {
    /// Opens `polder.db` at `path`, making it (0600) or bringing it up to date where needed.
    /// Blocks.
    pub fn open(path: &Path) -> Result<Self, MembersError> {
        Self::open_with_clock(path, Clock::system())
    }

    /// [`Members::open`], telling the time by `clock`: for tests of what expires.
    pub fn open_with_clock(path: &Path, clock: Clock) -> Result<Self, MembersError> {
        let mut db = database::open(path)?;
        let (gone_kept, _) = revocations::settle(&mut db, path)?;
        elsewhere::close_left_open(&db)?;
        let keys = keys::load(&db, &clock)?;
        let trying = trial::load(&db)?;
        let access = visits::load(&db)?;
        let ledger = Ledger::start(path, clock.clone())?;
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            db: Mutex::new(db),
            keys: RwLock::new(keys),
            gone: Mutex::default(),
            at_apps: Mutex::default(),
            access: Mutex::new(access),
            gone_kept: Mutex::new(gone_kept),
            trying: RwLock::new(trying),
            hashing: Hashing::new(),
            // A person mistypes a code a few times; a program tries many.
            claims_by_address: KeyedBuckets::new(10.0, 10.0),
            claims_in_all: KeyedBuckets::new(60.0, 60.0),
            sign_ins: KeyedBuckets::new(10.0, 5.0),
            sign_ins_by_address: KeyedBuckets::new(60.0, 30.0),
            // A sheet has 128 random bits: this is against noise, not against luck.
            recoveries: KeyedBuckets::new(5.0, 1.0),
            recoveries_in_all: KeyedBuckets::new(20.0, 10.0),
            ledger,
            elsewhere: Arc::default(),
            clock,
        })))
    }

    /// Runs `work` on the blocking pool: how async code calls everything here that blocks.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Members) -> T + Send + 'static,
    ) -> T {
        let members = self.clone();
        match tokio::task::spawn_blocking(move || work(&members)).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("a blocking task is cancelled only with the whole runtime"),
            },
        }
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    fn db(&self) -> MutexGuard<'_, rusqlite::Connection> {
        // A panic inside a transaction rolls it back, so the connection is good to use.
        self.0.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn now(&self) -> i64 {
        self.0.clock.seconds()
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ledger.stop();
    }
}
