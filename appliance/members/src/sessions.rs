use std::net::IpAddr;

use rusqlite::{OptionalExtension, params};

use crate::limits::Net;
use crate::secret::{self, Digest};
use crate::{Member, MemberId, Members, MembersError, Secret, SignInRefused, people, words};

/// A session ends this long after its beginning at the latest: the cookie's Max-Age.
pub const SESSION_SECONDS: i64 = 30 * 24 * 3600;
/// And this long after it was last used.
const IDLE_SECONDS: i64 = 7 * 24 * 3600;
/// "Last used" is written at most this often, so that reading a page does not write to the disk.
const SEEN_EVERY: i64 = 300;
/// A member has at most this many; the oldest ends.
const MOST_PER_MEMBER: i64 = 20;

/// A browser that is signed in, for the list on a member's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds, within five minutes.
    pub seen_at: i64,
    /// True for the one that asked.
    pub this_one: bool,
}

impl Members {
    /// Checks name and password; on success begins a session and returns its cookie's value.
    ///
    /// Counted per name and address and per address; an unknown name takes as long as a wrong
    /// password and is answered in the same way.
    pub fn sign_in(
        &self,
        name: &str,
        password: &Secret,
        from: IpAddr,
    ) -> Result<(Member, Secret), SignInRefused> {
        let (net, now) = (Net::of(from), self.0.clock.millis());
        // A name that could not exist is looked up (and not found) like any other.
        let name_key = words::member_name(name).map(|(_, key)| key).unwrap_or_default();
        let counted = (name_key.clone(), net);
        self.0
            .sign_ins_by_address
            .take(net, now)
            .and_then(|()| self.0.sign_ins.take(counted.clone(), now))
            .map_err(|seconds| SignInRefused::TooMany { seconds })?;

        let found: Option<(i64, Option<String>, bool)> = self
            .db()
            .query_row(
                "SELECT id, password, disabled FROM members WHERE name_key = ?1",
                [&name_key],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()
            .map_err(MembersError::from)?;
        let stored = found.as_ref().and_then(|(_, stored, _)| stored.as_deref());
        let right = self.0.hashing.verify(password.expose(), stored)?;
        match found {
            Some((id, _, false)) if right => {
                self.0.sign_ins.forgive(&counted);
                Ok(self.begin_session(MemberId(id))?)
            }
            _ => Err(SignInRefused::Wrong),
        }
    }

    /// Begins a session for a member who proved otherwise who they are: accepted an invite, or
    /// made the first steward. Returns the cookie's value.
    pub fn begin_session(&self, id: MemberId) -> Result<(Member, Secret), MembersError> {
        let (token, session) = (secret::token()?, secret::short_id()?);
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let member =
            people::member(&change, id)?.filter(|m| !m.disabled).ok_or(MembersError::NoMember)?;
        change.execute(
            "INSERT INTO sessions (digest, id, member, created_at, seen_at)
             VALUES (?1, ?2, ?3, ?4, ?4)",
            params![token.digest().0, session, id.0, now],
        )?;
        let mut over = removed(
            &change,
            "DELETE FROM sessions WHERE created_at <= ?1 OR seen_at <= ?2 RETURNING digest",
            [now - SESSION_SECONDS, now - IDLE_SECONDS],
        )?;
        over.extend(removed(
            &change,
            "DELETE FROM sessions WHERE member = ?1 AND digest NOT IN
             (SELECT digest FROM sessions WHERE member = ?1 ORDER BY created_at DESC, rowid DESC LIMIT ?2)
             RETURNING digest",
            [id.0, MOST_PER_MEMBER],
        )?);
        change.commit()?;
        drop(db);
        if !over.is_empty() {
            self.end_at_apps(|at| over.contains(&at.session));
        }
        Ok((member, token))
    }

    /// Whose cookie is this? `None` for one that is unknown, too old, or whose member is disabled.
    pub fn session(&self, token: &str) -> Result<Option<Member>, MembersError> {
        let (digest, now) = (Digest::of(token), self.now());
        let db = self.db();
        let found: Option<(i64, i64, i64)> = db
            .prepare_cached("SELECT member, created_at, seen_at FROM sessions WHERE digest = ?1")?
            .query_row([digest.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((id, created, seen)) = found else { return Ok(None) };
        if now >= created + SESSION_SECONDS || now >= seen + IDLE_SECONDS {
            return Ok(None);
        }
        let member = people::member(&db, MemberId(id))?.filter(|m| !m.disabled);
        if member.is_some() && now >= seen + SEEN_EVERY {
            // A full disk must not sign anybody out: the session then merely ages.
            if let Err(error) = db.execute(
                "UPDATE sessions SET seen_at = ?2 WHERE digest = ?1",
                params![digest.0, now],
            ) {
                log::warn!("a session's last use was not written: {error}");
            }
        }
        Ok(member)
    }

    /// Every browser a member is signed in from; `token` is the asking one's cookie.
    pub fn sessions(&self, id: MemberId, token: &str) -> Result<Vec<SessionInfo>, MembersError> {
        let mine = Digest::of(token);
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT digest, created_at, seen_at FROM sessions WHERE member = ?1 ORDER BY seen_at DESC",
        )?;
        let rows = query.query_map([id.0], |row| {
            Ok(SessionInfo {
                this_one: mine.same(&row.get::<_, Vec<u8>>(0)?),
                created_at: row.get(1)?,
                seen_at: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ends one session, and what apps ask by it.
    pub fn sign_out(&self, token: &str) -> Result<(), MembersError> {
        let session = Digest::of(token).0;
        self.db().execute("DELETE FROM sessions WHERE digest = ?1", [session])?;
        self.end_at_apps(|at| at.session == session);
        Ok(())
    }

    /// Ends every session of a member, and what apps ask by them.
    pub fn sign_out_everywhere(&self, id: MemberId) -> Result<(), MembersError> {
        self.db().execute("DELETE FROM sessions WHERE member = ?1", [id.0])?;
        self.end_at_apps(|at| at.member == id);
        Ok(())
    }
}

/// The sessions that went with this.
fn removed(
    db: &rusqlite::Connection,
    work: &str,
    values: [i64; 2],
) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut query = db.prepare_cached(work)?;
    let rows = query.query_map(values, |row| row.get(0))?;
    rows.collect()
}

/// Whose session this is, and when it began, unless it is too old.
pub(crate) fn alive(
    db: &rusqlite::Connection,
    digest: &[u8],
    now: i64,
) -> rusqlite::Result<Option<(i64, i64)>> {
    let found: Option<(i64, i64, i64)> = db
        .prepare_cached("SELECT member, created_at, seen_at FROM sessions WHERE digest = ?1")?
        .query_row([digest], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let alive =
        |created: i64, seen: i64| now < created + SESSION_SECONDS && now < seen + IDLE_SECONDS;
    Ok(found
        .filter(|(_, created, seen)| alive(*created, *seen))
        .map(|(id, created, _)| (id, created)))
}
