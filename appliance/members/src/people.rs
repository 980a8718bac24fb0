use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Members, MembersError, Secret, announcements, ending, forgetting, identities, invites, kept,
    setup, stewards, words,
};

/// Names a member; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub i64);

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks after the box.
    Steward,
    /// Uses it.
    Member,
}

impl Role {
    /// `steward` or `member`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steward => "steward",
            Self::Member => "member",
        }
    }
    pub(crate) fn from_column(text: &str) -> Self {
        // The column has a CHECK; whatever else it said would be the lesser role.
        if text == "steward" { Self::Steward } else { Self::Member }
    }
}

/// Somebody who may use the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: MemberId,
    /// What they are called; unique whatever the case.
    pub name: String,
    /// As they typed it: unproven, not theirs alone, so only shown. Nothing is sent to it, and no
    /// web app is told it.
    pub email: Option<String>,
    /// What they may do.
    pub role: Role,
    /// True while they may not sign in and their keys do not work.
    pub disabled: bool,
    /// False for one who never set a password, such as the steward of `polder up --yes`.
    pub has_password: bool,
    /// Unix seconds.
    pub created_at: i64,
    /// How much of the engines is theirs where there is not enough for all.
    pub share: Share,
    /// They refuse to have their questions answered anywhere but on this box.
    pub stays_here: bool,
    /// People on the box made them a member: no group of a service makes them a steward until a steward lets it.
    pub kept_member: bool,
}

/// What a member may claim of the engines beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// In percent of what everybody has.
    pub percent: u16,
    /// Most answers that an engine writes for them at once, whatever they come from; more wait. `None`: as many as there
    /// is room for.
    pub answers_at_once: Option<u16>,
}

impl Default for Share {
    /// As everybody.
    fn default() -> Self {
        Self { percent: 100, answers_at_once: None }
    }
}

impl Share {
    /// The share must be 10 to 1000 percent, and at least one answer at once.
    fn check(self) -> Result<(), MembersError> {
        let wrong = if !(10..=1000).contains(&self.percent) {
            "a share is from a tenth of everybody's to ten times as much"
        } else if self.answers_at_once == Some(0) {
            "nobody could get an answer with 0 answers at once; leave it empty for no limit"
        } else {
            return Ok(());
        };
        Err(MembersError::Field(wrong.into()))
    }
}

impl Member {
    /// May they look after the box?
    pub fn is_steward(&self) -> bool {
        self.role == Role::Steward && !self.disabled
    }
}

/// What a person says of themselves when they join.
#[derive(Debug, Clone)]
pub struct NewMember {
    /// 1 to 40 letters.
    pub name: String,
    /// Optional.
    pub email: Option<String>,
    /// At least 10 signs.
    pub password: Secret,
}

impl Members {
    /// Everyone, by name.
    pub fn members(&self) -> Result<Vec<Member>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!("{SELECT} ORDER BY name_key"))?;
        let rows = query.query_map([], from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One of them.
    pub fn member(&self, id: MemberId) -> Result<Member, MembersError> {
        member(&self.db(), id)?.ok_or(MembersError::NoMember)
    }

    /// Adds a member directly; the pages use invites.
    pub fn add_member(&self, new: &NewMember, role: Role) -> Result<Member, MembersError> {
        let ready = self.prepare(new)?;
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id = ready.insert(&change, role, now)?;
        let member = member(&change, id)?.ok_or(MembersError::NoMember)?;
        change.commit()?;
        Ok(member)
    }

    /// Makes somebody a steward or a member. The last steward stays one. Who becomes a mere member
    /// has the invites withdrawn that they made.
    pub fn set_role(&self, id: MemberId, role: Role) -> Result<(), MembersError> {
        let now = self.now();
        self.change_member(id, |change| {
            if role == Role::Member {
                invites::withdraw_all_by(change, id)?;
            }
            give_role(change, id, role, now)
        })?;
        self.keep_gone();
        self.refresh_owner(id)
    }

    /// The same at the word of the service that they sign in with, which may then take it back. Everybody is told why; `service` is what
    /// people call it.
    pub(crate) fn follow_service(
        &self,
        id: MemberId,
        role: Role,
        service: &str,
        why: &str,
    ) -> Result<(), MembersError> {
        let now = self.now();
        self.change_member(id, |change| {
            identities::note_role(change, id, role, true)?;
            if role == Role::Member {
                invites::withdraw_all_by(change, id)?;
                // What they wanted as a steward goes with it.
                change.execute("DELETE FROM proposals WHERE by = ?1", [id.0])?;
                ending::forget_of(change, id)?;
            }
            announcements::announce(change, now, why, service)?;
            set_role(change, id, role, now)
        })?;
        self.keep_gone();
        self.refresh_owner(id)
    }

    /// Lets the groups of the service that they sign in with make somebody a steward again, whom people on the box made a member.
    /// Everybody is told.
    pub fn let_groups_decide(&self, by: MemberId, id: MemberId) -> Result<(), MembersError> {
        let now = self.now();
        {
            let mut db = self.db();
            let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let by = stewards::steward(&change, by)?;
            let them = member(&change, id)?.ok_or(MembersError::NoMember)?;
            if !them.kept_member {
                return Ok(());
            }
            change.execute("UPDATE members SET kept_member = 0 WHERE id = ?1", [id.0])?;
            let told = format!(
                "{} lets the groups that {} is in decide again whether they are a steward.",
                by.name, them.name
            );
            announcements::announce(&change, now, &told, &by.name)?;
            change.commit()?;
        }
        self.keep_gone();
        Ok(())
    }

    /// Gives a member more or less of the engines than others. Their next request has it.
    pub fn set_share(&self, id: MemberId, share: Share) -> Result<(), MembersError> {
        share.check()?;
        self.change_member(id, |change| {
            change.execute(
                "UPDATE members SET share_percent = ?2, answers_at_once = ?3 WHERE id = ?1",
                params![id.0, share.percent, share.answers_at_once],
            )
        })?;
        self.refresh_owner(id)
    }

    /// Whether a member refuses to have questions answered elsewhere. Their next one goes by it.
    pub fn set_stays_here(&self, id: MemberId, stays_here: bool) -> Result<(), MembersError> {
        self.change_member(id, |change| {
            change.execute(
                "UPDATE members SET stays_here = ?2 WHERE id = ?1",
                params![id.0, stays_here],
            )
        })?;
        self.refresh_owner(id)
    }

    /// Lets a member in no more, or again. Their sessions, their invites and running streams of
    /// their keys end; the keys work again if they are let in again.
    pub fn set_disabled(&self, id: MemberId, disabled: bool) -> Result<(), MembersError> {
        self.change_member(id, |change| {
            if disabled {
                change.execute("DELETE FROM sessions WHERE member = ?1", [id.0])?;
                invites::withdraw_all_by(change, id)?;
            }
            change
                .execute("UPDATE members SET disabled = ?2 WHERE id = ?1", params![id.0, disabled])
        })?;
        self.keep_gone();
        if disabled {
            self.sent_away(id);
        }
        self.refresh_owner(id)
    }

    /// Removes a member with everything kept about them: sessions, invites that they made, keys
    /// (running streams end at once) and usage. Engines are to forget them too: see
    /// [`Members::to_forget`].
    pub fn remove_member(&self, id: MemberId) -> Result<(), MembersError> {
        self.change_member(id, |change| remove(change, id))?;
        self.sent_away(id);
        self.keep_gone();
        Ok(())
    }

    /// Fires when a member is disabled or removed: end what runs in their name without a key.
    /// *In memory*.
    pub fn gone(&self, id: MemberId) -> CancellationToken {
        let mut gone = self.0.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.entry(id).or_default().clone()
    }

    /// Ends everything that runs in the name of one who may use the box no more. Cannot fail: the
    /// disk may be full, and the change is made.
    pub(crate) fn sent_away(&self, id: MemberId) {
        self.forget_owner(id);
        self.tries_no_more(id);
        let token = self.0.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(token) = token {
            token.cancel();
        }
    }

    /// Does `work` to a member unless it would leave the box without an enabled steward.
    pub(crate) fn change_member(
        &self,
        id: MemberId,
        work: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> Result<(), MembersError> {
        let stewards = |db: &Connection| -> rusqlite::Result<i64> {
            db.query_row(
                "SELECT count(*) FROM members WHERE role = 'steward' AND NOT disabled",
                [],
                |row| row.get(0),
            )
        };
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = stewards(&change)?;
        member(&change, id)?.ok_or(MembersError::NoMember)?;
        work(&change)?;
        if before > 0 && stewards(&change)? == 0 {
            return Err(MembersError::LastSteward);
        }
        Ok(change.commit()?)
    }

    /// Changes one's own password. Every other session of theirs ends; `keep` is the cookie that stays.
    pub fn change_password(
        &self,
        id: MemberId,
        present: &Secret,
        new: &Secret,
        keep: &str,
    ) -> Result<(), MembersError> {
        if !self.check_password(id, present)? {
            return Err(MembersError::WrongPassword);
        }
        self.store_password(id, new, keep)
    }

    pub(crate) fn check_password(
        &self,
        id: MemberId,
        present: &Secret,
    ) -> Result<bool, MembersError> {
        let stored = password_of(&self.db(), id)?;
        // Without this, an open browser would be a place to guess at 30 a second.
        let slow = (format!("#{}", id.0), crate::limits::Net::of([127, 0, 0, 1].into()));
        if self.0.sign_ins.take(slow, self.0.clock.millis()).is_err() {
            return Err(MembersError::Busy);
        }
        self.0.hashing.verify(present.expose(), stored.as_deref())
    }

    /// Sets the password of somebody who forgot theirs, or never had one: at a steward's word.
    /// Their sessions end.
    pub fn set_password(&self, id: MemberId, new: &Secret) -> Result<(), MembersError> {
        self.store_password(id, new, "")
    }

    fn store_password(&self, id: MemberId, new: &Secret, keep: &str) -> Result<(), MembersError> {
        let hash = self.0.hashing.hash(new.expose())?;
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = change
            .execute("UPDATE members SET password = ?2 WHERE id = ?1", params![id.0, hash])?;
        if found == 0 {
            return Err(MembersError::NoMember);
        }
        change.execute(
            "DELETE FROM sessions WHERE member = ?1 AND digest <> ?2",
            params![id.0, crate::secret::Digest::of(keep).0],
        )?;
        change.commit()?;
        drop(db);
        self.end_without_session(id)
    }

    /// Checks the fields and hashes the password, before any transaction is open.
    pub(crate) fn prepare(&self, new: &NewMember) -> Result<Ready, MembersError> {
        let (name, name_key) = words::member_name(&new.name)?;
        let email = words::email(new.email.as_deref())?;
        let password = Some(self.0.hashing.hash(new.password.expose())?);
        Ok(Ready { name, name_key, email, password })
    }
}

/// A new member whose fields were checked.
pub(crate) struct Ready {
    pub(crate) name: String,
    pub(crate) name_key: String,
    pub(crate) email: Option<String>,
    pub(crate) password: Option<String>,
}

impl Ready {
    pub(crate) fn insert(
        &self,
        change: &rusqlite::Transaction<'_>,
        role: Role,
        now: i64,
    ) -> Result<MemberId, MembersError> {
        let taken: bool = change.query_row(
            "SELECT EXISTS (SELECT 1 FROM members WHERE name_key = ?1)",
            [&self.name_key],
            |row| row.get(0),
        )?;
        if taken {
            return Err(MembersError::NameTaken(self.name.clone()));
        }
        change.execute(
            "INSERT INTO members (name, name_key, email, role, password, created_at, steward_since)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
            params![self.name, self.name_key, self.email, role.as_str(), self.password, now],
        )?;
        let id = MemberId(change.last_insert_rowid());
        if role == Role::Steward {
            setup::end_first_claim(change)?;
        }
        Ok(id)
    }
}

/// Removes a member as part of another change.
pub(crate) fn remove(change: &Connection, id: MemberId) -> rusqlite::Result<usize> {
    kept::note(change, id)?;
    invites::withdraw_all_by(change, id)?;
    forgetting::note(change, id)?;
    change.execute("DELETE FROM members WHERE id = ?1", [id.0])
}

/// Gives a role at people's own word as part of another change: no service that they sign in with takes it back, or gives it back.
pub(crate) fn give_role(
    change: &Connection,
    id: MemberId,
    role: Role,
    now: i64,
) -> rusqlite::Result<usize> {
    identities::note_role(change, id, role, false)?;
    change.execute(
        "UPDATE members SET kept_member = ?2 WHERE id = ?1 AND (role = 'steward' OR ?2 = 0)",
        params![id.0, role == Role::Member],
    )?;
    set_role(change, id, role, now)
}

/// Gives a role as part of another change; who is a steward already is it since then.
fn set_role(change: &Connection, id: MemberId, role: Role, now: i64) -> rusqlite::Result<usize> {
    change.execute(
        "UPDATE members SET steward_since = ?3 WHERE id = ?1 AND role <> ?2",
        params![id.0, role.as_str(), now],
    )?;
    change.execute("UPDATE members SET role = ?2 WHERE id = ?1", params![id.0, role.as_str()])
}

const SELECT: &str =
    "SELECT id, name, email, role, disabled, password IS NOT NULL, created_at, share_percent,
    answers_at_once, stays_here, kept_member FROM members";

pub(crate) fn member(db: &Connection, id: MemberId) -> Result<Option<Member>, MembersError> {
    let mut query = db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
    Ok(query.query_row([id.0], from_row).optional()?)
}

pub(crate) fn password_of(db: &Connection, id: MemberId) -> Result<Option<String>, MembersError> {
    let stored: Option<Option<String>> = db
        .query_row("SELECT password FROM members WHERE id = ?1", [id.0], |row| row.get(0))
        .optional()?;
    Ok(stored.flatten())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member {
        id: MemberId(row.get(0)?),
        name: row.get(1)?,
        email: row.get(2)?,
        role: Role::from_column(&row.get::<_, String>(3)?),
        disabled: row.get(4)?,
        has_password: row.get(5)?,
        created_at: row.get(6)?,
        share: Share { percent: row.get(7)?, answers_at_once: row.get(8)? },
        stays_here: row.get(9)?,
        kept_member: row.get(10)?,
    })
}
