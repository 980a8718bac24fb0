//! What a member agreed to that an app may learn of them and do in their name. Without it the app is given nothing; when they take it back, all
//! that it was given ends.

use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio_util::sync::CancellationToken;

use crate::{ClientApp, MemberId, Members, MembersError, people};

/// What a member agreed to for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// The app's public id.
    pub app: String,
    /// What people call it.
    pub name: String,
    /// What it may learn: OpenID Connect's words with spaces between.
    pub scope: String,
    /// It may ask models in their name.
    pub asks_models: bool,
    /// When they agreed last, Unix seconds. Where the clock was ahead then, and is not any more: now.
    pub at: i64,
}

impl Agreement {
    /// Whether all of this was agreed to. An app that was let do more since is not covered.
    pub fn covers(&self, app: &ClientApp, scope: &str) -> bool {
        covers((&self.scope, self.asks_models), app.asks_models, scope)
    }
}

impl Members {
    /// A member agrees: beside what they agreed to before.
    pub fn agree_to_app(
        &self,
        member: MemberId,
        app: &str,
        scope: &str,
        asks_models: bool,
    ) -> Result<(), MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        people::member(&change, member)?.ok_or(MembersError::NoMember)?;
        let before = agreed(&change, member, app)?.unwrap_or_default();
        let at = now.max(latest(&change, member, app)?);
        change.execute(
            "INSERT INTO agreements (member, app, scope, asks_models, at) SELECT ?1, id, ?3, ?4, ?5
             FROM client_apps WHERE id = ?2
             ON CONFLICT (member, app) DO UPDATE SET scope = excluded.scope,
                 asks_models = excluded.asks_models, at = excluded.at",
            params![member.0, app, together(&before.0, scope), asks_models || before.1, at],
        )?;
        change.commit()?;
        Ok(())
    }

    /// What a member agreed to, by the apps' names.
    pub fn agreements(&self, member: MemberId) -> Result<Vec<Agreement>, MembersError> {
        let now = self.now();
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT app, name, scope, agreements.asks_models, at FROM agreements
             JOIN client_apps ON client_apps.id = app WHERE member = ?1 ORDER BY lower(name), app",
        )?;
        let rows = query.query_map([member.0], |row| {
            Ok(Agreement {
                app: row.get(0)?,
                name: row.get(1)?,
                scope: row.get(2)?,
                asks_models: row.get(3)?,
                at: row.get::<_, i64>(4)?.min(now),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// They agree no more: whatever the app was given for them is good for nothing, and what it is asking in their name ends. Says
    /// whether there was something to take back.
    pub fn take_back_from_app(&self, member: MemberId, app: &str) -> Result<bool, MembersError> {
        // What the app was given goes by the database's own trigger, so that no way of ending this forgets it.
        let gone = self.db().execute(
            "DELETE FROM agreements WHERE member = ?1 AND app = ?2",
            params![member.0, app],
        )?;
        self.end_at_apps(|at| at.member == member && at.app == app);
        self.keep_gone();
        Ok(gone > 0)
    }

    /// Fires when a member takes back what they agreed to for this app, when the app is removed, when they sign out where they went
    /// there from, and when they are sent away.
    pub(crate) fn at_app(&self, at: AtAppFrom) -> Result<CancellationToken, MembersError> {
        let gone = self.gone(at.member);
        let known = {
            let all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&at).filter(|token| !token.is_cancelled()).cloned()
        };
        if let Some(token) = known {
            return Ok(token);
        }
        // So that sessions that grew old leave nothing here.
        self.end_without_session(at.member)?;
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        let token = all.entry(at).or_insert_with(|| gone.child_token());
        // They were sent away, and are back.
        if token.is_cancelled() {
            *token = gone.child_token();
        }
        Ok(token.clone())
    }

    /// Ends what apps ask in a member's name for whom they went there from a browser in which they are signed in no more.
    pub(crate) fn end_without_session(&self, member: MemberId) -> Result<(), MembersError> {
        let alive: Vec<Vec<u8>> = {
            let db = self.db();
            let mut query = db.prepare_cached("SELECT digest FROM sessions WHERE member = ?1")?;
            let rows = query.query_map([member.0], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        self.end_at_apps(|at| at.member == member && !alive.contains(&at.session));
        Ok(())
    }

    /// Ends what apps ask in members' names, where this is so. *In memory*.
    pub(crate) fn end_at_apps(&self, which: impl Fn(&AtAppFrom) -> bool) {
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|at, token| {
            let ends = which(at);
            if ends {
                token.cancel();
            }
            !ends
        });
    }
}

/// Somebody at an app, and the digest of the session from which they went there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AtAppFrom {
    pub(crate) member: MemberId,
    pub(crate) app: String,
    pub(crate) session: Vec<u8>,
}

/// No agreement of theirs for this app may be told as earlier than this, whatever the clock says: not than what they agreed to before, and later
/// than what they took back, so that a database of an earlier day brings back nothing that was taken back since.
fn latest(db: &Connection, member: MemberId, app: &str) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "SELECT max(
            coalesce((SELECT at FROM agreements WHERE member = ?1 AND app = ?2), 0),
            coalesce((SELECT max(CAST(substr(key, length(?2) + 2) AS INTEGER)) + 1
                FROM revocations JOIN members ON members.id = member AND created_at = since
                WHERE kind = 'agreement' AND member = ?1 AND substr(key, 1, length(?2) + 1) = ?2 || ' '), 0))",
    )?
    .query_row(params![member.0, app], |row| row.get(0))
}

/// Whether a member agreed that this app learns all of `scope` and does what it may do by now; `None` where there is no such app.
pub(crate) fn is_agreed(
    db: &Connection,
    member: MemberId,
    app: &str,
    scope: &str,
) -> rusqlite::Result<Option<bool>> {
    let mut query = db.prepare_cached("SELECT asks_models FROM client_apps WHERE id = ?1")?;
    let Some(asks) = query.query_row([app], |row| row.get::<_, bool>(0)).optional()? else {
        return Ok(None);
    };
    let agreed = agreed(db, member, app)?;
    Ok(Some(agreed.is_some_and(|(known, lets)| covers((&known, lets), asks, scope))))
}

/// What the app may learn, and whether it may ask models.
pub(crate) fn agreed(
    db: &Connection,
    member: MemberId,
    app: &str,
) -> rusqlite::Result<Option<(String, bool)>> {
    db.prepare_cached("SELECT scope, asks_models FROM agreements WHERE member = ?1 AND app = ?2")?
        .query_row(params![member.0, app], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn covers((known, lets): (&str, bool), asks_models: bool, scope: &str) -> bool {
    has_all(known, scope) && (lets || !asks_models)
}

/// Whether all words of `scope` are among those known.
pub(crate) fn has_all(known: &str, scope: &str) -> bool {
    scope.split_whitespace().all(|word| known.split(' ').any(|known| known == word))
}

fn together(before: &str, scope: &str) -> String {
    let mut words: Vec<&str> = before.split_whitespace().collect();
    words.extend(scope.split_whitespace().filter(|word| !before.split(' ').any(|b| b == *word)));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agreement_covers_what_was_said_and_not_what_grew_since() {
        assert!(covers(("openid email", false), false, "email openid"));
        assert!(!covers(("openid email", false), false, "openid email groups"));
        assert!(!covers(("openid email", false), true, "openid"));
        assert!(covers(("openid", true), true, "openid"));
        assert!(!covers(("", true), false, "openid"));
        assert_eq!(together("openid email", "openid groups"), "openid email groups");
        assert_eq!(together("", "openid"), "openid");
    }
}
