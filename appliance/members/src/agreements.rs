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
    /// When they agreed last, Unix seconds.
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
        change.execute(
            "INSERT INTO agreements (member, app, scope, asks_models, at) SELECT ?1, id, ?3, ?4, ?5
             FROM client_apps WHERE id = ?2
             ON CONFLICT (member, app) DO UPDATE SET scope = excluded.scope,
                 asks_models = excluded.asks_models, at = excluded.at",
            params![member.0, app, together(&before.0, scope), asks_models || before.1, now],
        )?;
        change.commit()?;
        Ok(())
    }

    /// What a member agreed to, by the apps' names.
    pub fn agreements(&self, member: MemberId) -> Result<Vec<Agreement>, MembersError> {
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
                at: row.get(4)?,
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
        self.end_at_app(|who, at| who == member && at == app);
        self.keep_gone();
        Ok(gone > 0)
    }

    /// Fires when a member takes back what they agreed to for this app, when the app is removed, and when they are sent away. *In memory*.
    pub(crate) fn at_app(&self, member: MemberId, app: &str) -> CancellationToken {
        let gone = self.gone(member);
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        let token = all.entry((member, app.to_owned())).or_insert_with(|| gone.child_token());
        // They were sent away, and are back.
        if token.is_cancelled() {
            *token = gone.child_token();
        }
        token.clone()
    }

    /// Ends what apps ask in members' names, where this is so.
    pub(crate) fn end_at_app(&self, which: impl Fn(MemberId, &str) -> bool) {
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(member, app), token| {
            let ends = which(*member, app);
            if ends {
                token.cancel();
            }
            !ends
        });
    }
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
