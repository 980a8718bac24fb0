use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::secret::{self, Digest};
use crate::{
    Member, MemberId, Members, MembersError, NewMember, Role, Secret, announcements, people, words,
};

/// Names an invite; not secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InviteId(pub String);

/// An invite that nobody has used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Which.
    pub id: InviteId,
    /// What the one who takes it becomes.
    pub role: Role,
    /// For whom, in the inviter's words.
    pub note: String,
    /// Who made it, if they are still here.
    pub made_by: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

impl Members {
    /// Makes an invite that one person can take within `ttl`. The secret goes into the link and
    /// is shown once.
    pub fn invite(
        &self,
        by: MemberId,
        role: Role,
        note: &str,
        ttl: Duration,
    ) -> Result<(Invite, Secret), MembersError> {
        let note = words::line("note", note, 60)?;
        let (token, id) = (secret::token()?, secret::short_id()?);
        let now = self.now();
        let expires = now.saturating_add(ttl.as_secs().min(1 << 40) as i64);
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made_by = people::member(&change, by)?.ok_or(MembersError::NoMember)?.name;
        change.execute("DELETE FROM invites WHERE expires_at <= ?1", [now])?;
        change.execute(
            "INSERT INTO invites (id, digest, role, note, made_by, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![id, token.digest().0, role.as_str(), note, by.0, now, expires],
        )?;
        change.commit()?;
        let invite = Invite {
            id: InviteId(id),
            role,
            note,
            made_by: Some(made_by),
            created_at: now,
            expires_at: expires,
        };
        Ok((invite, token))
    }

    /// Every invite that can still be taken, newest first.
    pub fn invites(&self) -> Result<Vec<Invite>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!(
            "{SELECT} WHERE i.expires_at > ?1 ORDER BY i.created_at DESC, i.rowid DESC"
        ))?;
        let rows = query.query_map([self.now()], from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Withdraws an invite. One that is gone already is no error.
    pub fn withdraw_invite(&self, id: &InviteId) -> Result<(), MembersError> {
        self.db().execute("DELETE FROM invites WHERE id = ?1", [&id.0])?;
        Ok(())
    }

    /// What the invite behind a link offers, without taking it.
    pub fn look_at_invite(&self, token: &str) -> Result<Invite, MembersError> {
        let db = self.db();
        let mut query =
            db.prepare_cached(&format!("{SELECT} WHERE i.digest = ?1 AND i.expires_at > ?2"))?;
        query
            .query_row(params![Digest::of(token).0, self.now()], from_row)
            .optional()?
            .ok_or(MembersError::InviteGone)
    }

    /// Takes the invite: of two at once exactly one becomes a member. A refused name or password
    /// leaves the invite as it was.
    pub fn accept_invite(&self, token: &str, new: &NewMember) -> Result<Member, MembersError> {
        // Before any password is hashed, so that strangers cannot make the box hash.
        self.look_at_invite(token)?;
        let ready = self.prepare(new)?;
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (role, by): (String, Option<String>) = change
            .query_row(
                "DELETE FROM invites WHERE digest = ?1 AND expires_at > ?2
                 RETURNING role, (SELECT name FROM members WHERE id = made_by)",
                params![Digest::of(token).0, now],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?
            .ok_or(MembersError::InviteGone)?;
        let id = ready.insert(&change, Role::from_column(&role), now)?;
        let member = people::member(&change, id)?.ok_or(MembersError::NoMember)?;
        if member.role == Role::Steward {
            // Of any other steward more everybody hears, too.
            let by = by.unwrap_or_else(|| "a steward who is gone".to_owned());
            let told = format!("{} is a steward now: {by} invited them as one.", member.name);
            announcements::announce(&change, now, &told, &by)?;
        }
        change.commit()?;
        Ok(member)
    }
}

/// Whoever may invite no more leaves no open invite behind: with one they could let themselves in.
pub(crate) fn withdraw_all_by(change: &Connection, id: MemberId) -> rusqlite::Result<usize> {
    change.execute("DELETE FROM invites WHERE made_by = ?1", [id.0])
}

const SELECT: &str = "SELECT i.id, i.role, i.note, m.name, i.created_at, i.expires_at
    FROM invites i LEFT JOIN members m ON m.id = i.made_by";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Invite> {
    Ok(Invite {
        id: InviteId(row.get(0)?),
        role: Role::from_column(&row.get::<_, String>(1)?),
        note: row.get(2)?,
        made_by: row.get(3)?,
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
    })
}
