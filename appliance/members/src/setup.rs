use std::net::IpAddr;
use std::time::Duration;

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

use crate::error::{ClaimRefused, MembersError};
use crate::limits::Net;
use crate::secret::{self, Digest, Secret};
use crate::{Member, Members, NewMember, Role};

/// The wizard's session cookie: 256 bits, kept only as a digest.
///
/// The one of a first claim is good until the box has its first steward; the one of a reopened
/// setup until its time is over or [`Members::end_setup`].
#[derive(Debug, Clone)]
pub struct ClaimToken(pub Secret);

/// Whether a claim code would be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetupWindow {
    /// No code is good.
    Closed,
    /// A code is good for this many seconds more.
    Open {
        /// Until it closes.
        seconds: u64,
    },
}

impl Members {
    /// True once somebody looks after the box: a steward exists.
    pub fn is_claimed(&self) -> Result<bool, MembersError> {
        is_claimed(&self.db())
    }

    /// Makes the one-time code by which the first steward claims the box, good for `ttl`. An
    /// earlier code dies. Refused ([`MembersError::Claimed`]) once there is a steward.
    pub fn open_claim(&self, ttl: Duration) -> Result<Secret, MembersError> {
        self.open_window(ttl, false)
    }

    /// Makes a code that opens the wizard again on a claimed box (or claims an unclaimed one).
    pub fn reopen_setup(&self, ttl: Duration) -> Result<Secret, MembersError> {
        self.open_window(ttl, true)
    }

    fn open_window(&self, ttl: Duration, reopens: bool) -> Result<Secret, MembersError> {
        let code = secret::readable_code()?;
        let expires = self.now().saturating_add(ttl.as_secs().min(1 << 40) as i64);
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !reopens && is_claimed(&change)? {
            return Err(MembersError::Claimed);
        }
        change.execute(
            "INSERT OR REPLACE INTO claim (one, digest, expires_at, reopens) VALUES (1, ?1, ?2, ?3)",
            params![code.digest().0, expires, reopens],
        )?;
        change.commit()?;
        Ok(code)
    }

    /// Whether a code would be taken now, and for how long.
    pub fn setup_window(&self) -> Result<SetupWindow, MembersError> {
        let expires: Option<i64> = self
            .db()
            .query_row("SELECT expires_at FROM claim WHERE one = 1", [], |row| row.get(0))
            .optional()?;
        let left = expires.map_or(0, |at| at - self.now());
        Ok(if left > 0 { SetupWindow::Open { seconds: left as u64 } } else { SetupWindow::Closed })
    }

    /// Takes the code: single use, so that of two at once exactly one gets the token. A winning
    /// claim ends the setup session of an earlier one.
    pub fn claim(&self, code: &str, from: IpAddr) -> Result<ClaimToken, ClaimRefused> {
        self.may_try(from)?;
        let given = Digest::of(&secret::normal_code(code));
        let token = secret::token()?;
        if self.take_code(&given, &token)? {
            self.0.claims_by_address.forgive(&Net::of(from));
            Ok(ClaimToken(token))
        } else {
            Err(ClaimRefused::Wrong)
        }
    }

    /// Gives the set-up to somebody who proves in another way than by a code that the box is theirs. `proof` is
    /// asked within the same limits. Refused once there is a steward; it ends the setup session of an earlier
    /// one like a code.
    pub fn claim_proven(
        &self,
        proof: impl FnOnce() -> bool,
        from: IpAddr,
    ) -> Result<ClaimToken, ClaimRefused> {
        self.may_try(from)?;
        if !proof() {
            return Err(ClaimRefused::Wrong);
        }
        let token = secret::token()?;
        let mut db = self.db();
        let change = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(MembersError::from)?;
        if is_claimed(&change)? {
            return Err(ClaimRefused::Wrong);
        }
        begin_session(&change, &token, None)?;
        change.commit().map_err(MembersError::from)?;
        self.0.claims_by_address.forgive(&Net::of(from));
        Ok(ClaimToken(token))
    }

    fn may_try(&self, from: IpAddr) -> Result<(), ClaimRefused> {
        let (net, now) = (Net::of(from), self.0.clock.millis());
        self.0
            .claims_by_address
            .take(net, now)
            .and_then(|()| {
                // Whoever sits at the machine is not locked out by others' guessing.
                if net.is_this_machine() { Ok(()) } else { self.0.claims_in_all.take((), now) }
            })
            .map_err(|seconds| ClaimRefused::TooMany { seconds })
    }

    fn take_code(&self, given: &Digest, token: &Secret) -> Result<bool, MembersError> {
        let now = self.now();
        let mut db = self.db();
        // Immediate: the second of two at once waits here and then finds the code gone.
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let row: Option<(Vec<u8>, i64, bool)> = change
            .query_row("SELECT digest, expires_at, reopens FROM claim WHERE one = 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        let (digest, expires, reopens) = row.unwrap_or((vec![0; 32], 0, false));
        let claimed = is_claimed(&change)?;
        let good = given.same(&digest) & (now < expires) & (reopens | !claimed);
        if !good {
            return Ok(false);
        }
        change.execute("DELETE FROM claim", [])?;
        let until = claimed.then_some(now + REOPENED_SECONDS);
        begin_session(&change, token, until)?;
        change.commit()?;
        Ok(true)
    }

    /// Is this the cookie of the setup session that is open now?
    pub fn setup_session(&self, token: &str) -> Result<bool, MembersError> {
        setup_session(&self.db(), token, self.now())
    }

    /// Makes the first steward (in a reopened setup: one more), inside the setup session `token`.
    /// The session of a first claim is over with it.
    pub fn add_first_steward(&self, token: &str, new: &NewMember) -> Result<Member, MembersError> {
        let ready = self.prepare(new)?;
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !setup_session(&change, token, now)? {
            return Err(MembersError::SetupOver);
        }
        let id = ready.insert(&change, Role::Steward, now)?;
        let member = crate::people::member(&change, id)?.ok_or(MembersError::NoMember)?;
        change.execute("DELETE FROM setup_session WHERE expires_at IS NULL", [])?;
        change.commit()?;
        Ok(member)
    }

    /// Ends the setup session and closes the window: the wizard is done.
    pub fn end_setup(&self) -> Result<(), MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        change.execute("DELETE FROM setup_session", [])?;
        change.execute("DELETE FROM claim", [])?;
        Ok(change.commit()?)
    }

    /// What the wizard wrote last with [`Members::set_wizard_state`].
    pub fn wizard_state(&self) -> Result<Option<String>, MembersError> {
        let db = self.db();
        Ok(db
            .query_row("SELECT state FROM wizard WHERE one = 1", [], |row| row.get(0))
            .optional()?)
    }

    /// Keeps the wizard's state: on the disk when this returns.
    pub fn set_wizard_state(&self, state: &str) -> Result<(), MembersError> {
        self.db().execute("INSERT OR REPLACE INTO wizard (one, state) VALUES (1, ?1)", [state])?;
        Ok(())
    }
}

fn begin_session(
    change: &Transaction<'_>,
    token: &Secret,
    until: Option<i64>,
) -> Result<(), MembersError> {
    change.execute(
        "INSERT OR REPLACE INTO setup_session (one, digest, expires_at) VALUES (1, ?1, ?2)",
        params![token.digest().0, until],
    )?;
    Ok(())
}

/// How long a reopened setup may take.
const REOPENED_SECONDS: i64 = 2 * 3600;

fn is_claimed(db: &rusqlite::Connection) -> Result<bool, MembersError> {
    Ok(db.query_row(
        "SELECT EXISTS (SELECT 1 FROM members WHERE role = 'steward' AND NOT disabled)",
        [],
        |row| row.get(0),
    )?)
}

fn setup_session(db: &rusqlite::Connection, token: &str, now: i64) -> Result<bool, MembersError> {
    let row: Option<(Vec<u8>, Option<i64>)> = db
        .query_row("SELECT digest, expires_at FROM setup_session WHERE one = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((digest, expires)) = row else { return Ok(false) };
    let alive = match expires {
        Some(at) => now < at,
        None => !is_claimed(db)?,
    };
    Ok(Digest::of(token).same(&digest) & alive)
}

/// Ends the setup session of a first claim: called wherever a steward comes to be.
pub(crate) fn end_first_claim(change: &Transaction<'_>) -> Result<(), MembersError> {
    change.execute("DELETE FROM setup_session WHERE expires_at IS NULL", [])?;
    change.execute("DELETE FROM claim WHERE NOT reopens", [])?;
    Ok(())
}
