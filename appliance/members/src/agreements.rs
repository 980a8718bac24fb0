//! What a member agreed to that an app may learn of them and do in their name. Without it the app is given nothing; when they take it back, all
//! that it was given ends.

use std::collections::HashMap;
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
        // Its number, and whether it is one that holds after another was taken back, is the database's own affair.
        change.execute(
            "INSERT INTO agreements (member, app, scope, asks_models, at) SELECT ?1, id, ?3, ?4, ?5
             FROM client_apps WHERE id = ?2
             ON CONFLICT (member, app) DO UPDATE SET scope = excluded.scope,
                 asks_models = excluded.asks_models, at = excluded.at",
            params![member.0, app, together(&before.0, scope), asks_models || before.1, now],
        )?;
        change.commit()?;
        drop(db);
        self.keep_gone();
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

    /// Fires when this visit ends before its time, when a member takes back what they agreed to for the app, when it is removed, when they sign
    /// out where they went there from, and when they are sent away.
    pub(crate) fn at_app(
        &self,
        at: AtAppFrom,
        visit: &str,
    ) -> Result<CancellationToken, MembersError> {
        let gone = self.gone(at.member);
        let known = {
            let all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(&at).and_then(|ends| ends.visits.get(visit));
            known.filter(|token| !token.is_cancelled()).cloned()
        };
        if let Some(token) = known {
            return Ok(token);
        }
        // So that sessions that grew old leave nothing here, nor visits.
        self.end_without_session(at.member)?;
        let there: Vec<String> = {
            let db = self.db();
            let mut query =
                db.prepare_cached("SELECT id FROM visits WHERE session = ?1 AND app = ?2")?;
            let rows = query.query_map(params![at.session, at.app], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        let new = || EndsAtApp { all: gone.child_token(), visits: HashMap::new() };
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = all.entry(at).or_insert_with(new);
        // They were sent away, and are back.
        if ends.all.is_cancelled() {
            *ends = new();
        }
        // An answer may last longer than its visit, and ends with the session all the same.
        ends.visits.retain(|id, _| there.contains(id));
        let token = ends.visits.entry(visit.to_owned()).or_insert_with(|| ends.all.child_token());
        Ok(token.clone())
    }

    /// Ends what apps ask by these visits. *In memory*. Whoever removed them from the database still holds it: another visit that enters meanwhile
    /// would take them for ones that grew old, whose answers go on.
    pub(crate) fn end_visits(&self, visits: &[String]) {
        let mut all = self.0.at_apps.lock().unwrap_or_else(PoisonError::into_inner);
        for ends in all.values_mut() {
            for token in visits.iter().filter_map(|visit| ends.visits.remove(visit)) {
                token.cancel();
            }
        }
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
        all.retain(|at, known| {
            let ends = which(at);
            if ends {
                known.all.cancel();
            }
            !ends
        });
    }
}

/// Ends what an app asks in somebody's name: all of it, or by one visit.
#[derive(Debug)]
pub(crate) struct EndsAtApp {
    all: CancellationToken,
    /// By the visits' ids; each of them ends with all of it too.
    visits: HashMap<String, CancellationToken>,
}

/// Somebody at an app, and the digest of the session from which they went there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AtAppFrom {
    pub(crate) member: MemberId,
    pub(crate) app: String,
    pub(crate) session: Vec<u8>,
}

/// Removes what does not hold by the list of revocations: an agreement for an app for which its member took something back, unless it is one that
/// they agreed to again and did not take back by itself. No clock and no order is in it, so that it does not matter of which day a database is, nor
/// which was restored before. Says how many.
///
/// Those of a former layout have a clock for a number, smaller than every number: a backup of that layout says of each that it holds when it is brought
/// to this one, and does not know of what was taken back after it. Such a word is gone before anything goes by it.
pub(crate) fn settle(db: &Connection) -> rusqlite::Result<usize> {
    db.execute(
        "DELETE FROM revocations WHERE kind = 'agreed-again'
            AND CAST(substr(key, instr(key, ' ') + 1) AS INTEGER) < 2305843009213693952
            AND EXISTS (SELECT 1 FROM revocations AS later WHERE later.kind = 'agreement'
                AND later.member = revocations.member AND later.since = revocations.since
                AND substr(later.key, 1, instr(later.key, ' ')) = substr(revocations.key, 1, instr(revocations.key, ' '))
                AND CAST(substr(later.key, instr(later.key, ' ') + 1) AS INTEGER)
                    > CAST(substr(revocations.key, instr(revocations.key, ' ') + 1) AS INTEGER))",
        [],
    )?;
    db.execute(
        "DELETE FROM agreements WHERE EXISTS (
            SELECT 1 FROM members JOIN revocations ON revocations.member = members.id AND since = members.created_at
            WHERE members.id = agreements.member AND kind = 'agreement' AND substr(key, 1, length(app) + 1) = app || ' ')
         AND (NOT EXISTS (
            SELECT 1 FROM members JOIN revocations ON revocations.member = members.id AND since = members.created_at
            WHERE members.id = agreements.member AND kind = 'agreed-again' AND key = app || ' ' || agreements.number)
         OR EXISTS (
            SELECT 1 FROM members JOIN revocations ON revocations.member = members.id AND since = members.created_at
            WHERE members.id = agreements.member AND kind = 'agreement' AND key = app || ' ' || agreements.number))",
        [],
    )
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
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::{Clock, NewClientApp, NewMember, Role, Secret};

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

    /// What happens to what somebody agreed to.
    #[derive(Debug, Clone)]
    enum Happens {
        Agrees(bool),
        TakesBack,
        IsBackedUp,
        /// One of the backups so far.
        IsRestored(usize),
        /// In days, also back.
        ClockMoves(i64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            3 => any::<bool>().prop_map(Happens::Agrees),
            3 => Just(Happens::TakesBack),
            3 => Just(Happens::IsBackedUp),
            3 => any::<usize>().prop_map(Happens::IsRestored),
            1 => (-900i64..900).prop_map(Happens::ClockMoves),
        ]
    }

    /// A box of one member and one app, and the clock that it goes by.
    fn new_box(folder: &Path) -> (MemberId, String) {
        let members = Members::open(&folder.join("polder.db")).unwrap();
        let password = Secret::new("four words in a row".into());
        let ada = NewMember { name: "ada".into(), email: None, password };
        let ada = members.add_member(&ada, Role::Member).unwrap().id;
        let redirects = vec!["https://wiki.example/back".to_owned()];
        let new = NewClientApp { name: "Wiki".into(), redirects, ..Default::default() };
        (ada, members.add_client_app(&new).unwrap().0.id)
    }

    /// Goes through it all, and compares with what was agreed to and taken back in truth: by the order in which people did it.
    fn goes_through(folder: &Path, (ada, app): &(MemberId, String), all: &[Happens]) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("polder.db");
        std::fs::copy(folder.join("polder.db"), &path).unwrap();
        let clock = Clock::system();
        let mut members = Members::open_with_clock(&path, clock.clone()).unwrap();
        let mut backups: Vec<(std::path::PathBuf, Option<usize>)> = Vec::new();
        // When what holds was agreed to, and when something was taken back last.
        let (mut holds, mut taken_back) = (None, 0);
        for (now, happened) in all.iter().enumerate() {
            let now = now + 1;
            match happened {
                Happens::Agrees(more) => {
                    let scope = if *more { "openid email" } else { "openid" };
                    members.agree_to_app(*ada, app, scope, false).unwrap();
                    holds = holds.or(Some(now));
                }
                Happens::TakesBack => {
                    assert_eq!(members.take_back_from_app(*ada, app).unwrap(), holds.is_some());
                    taken_back = if holds.take().is_some() { now } else { taken_back };
                }
                Happens::IsBackedUp => {
                    let copy = place.path().join(format!("{now}.db"));
                    let into = format!("VACUUM INTO '{}'", copy.display());
                    members.db().execute_batch(&into).unwrap();
                    backups.push((copy, holds));
                }
                Happens::IsRestored(which) if !backups.is_empty() => {
                    let (copy, held) = &backups[which % backups.len()];
                    drop(members);
                    for side in ["-wal", "-shm"] {
                        let _ = std::fs::remove_file(place.path().join(format!("polder.db{side}")));
                    }
                    std::fs::copy(copy, &path).unwrap();
                    members = Members::open_with_clock(&path, clock.clone()).unwrap();
                    holds = held.filter(|agreed| *agreed > taken_back);
                }
                Happens::IsRestored(_) => {}
                Happens::ClockMoves(days) => clock.pass(days * 86_400),
            }
            let there = !members.agreements(*ada).unwrap().is_empty();
            assert_eq!(there, holds.is_some(), "after step {now} of {all:?}");
        }
    }

    #[test]
    fn what_was_taken_back_stays_so_whichever_of_two_backups_is_restored_first() {
        use Happens::{Agrees, ClockMoves, IsBackedUp, IsRestored, TakesBack};
        let folder = tempfile::tempdir().unwrap();
        let ids = new_box(folder.path());
        for (one, other) in [(IsRestored(0), IsRestored(1)), (IsRestored(1), IsRestored(0))] {
            // A backup without it, one of a day on which the clock was two years ahead; agreed to and taken back between the two.
            goes_through(
                folder.path(),
                &ids,
                &[
                    IsBackedUp,
                    ClockMoves(730),
                    Agrees(true),
                    IsBackedUp,
                    ClockMoves(-730),
                    one,
                    Agrees(false),
                    TakesBack,
                    other,
                ],
            );
        }
    }

    #[test]
    fn a_backup_of_the_former_layout_brings_nothing_back_that_was_taken_back_after_it() {
        use crate::{Revocation, Revoked, keep_revocations};
        const NUMBER: i64 = (1 << 61) + 5;
        let folder = tempfile::tempdir().unwrap();
        let (member, app) = new_box(folder.path());
        let path = folder.path().join("polder.db");
        let members = Members::open(&path).unwrap();
        members.agree_to_app(member, &app, "openid", false).unwrap();
        let since = members.member(member).unwrap().created_at;
        // As the former layout is brought to this one: the number is a clock, and there is a word that it holds, since one was taken back before.
        members.db().execute("UPDATE agreements SET number = 1000", []).unwrap();
        for (kind, clock) in [("agreement", 500), ("agreed-again", 1000)] {
            let word =
                "INSERT INTO revocations (at, kind, member, since, key) VALUES (1, ?1, ?2, ?3, ?4)";
            let values = params![kind, member.0, since, format!("{app} {clock}")];
            members.db().execute(word, values).unwrap();
        }
        drop(members);
        for (taken_back, holds) in [(900, true), (1000, false), (2000, false), (NUMBER + 1, false)]
        {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("polder.db");
            std::fs::copy(folder.path().join("polder.db"), &path).unwrap();
            let word = |number, what| Revocation { number, at: 7, what };
            let (one, other) = (app.clone(), app.clone());
            let words = [
                word(90, Revoked::Agreement { member, since, app: one, agreed: taken_back }),
                word(91, Revoked::AgreedAgain { member, since, app: other, agreed: NUMBER }),
            ];
            keep_revocations(place.path(), &words).unwrap();
            let members = Members::open(&path).unwrap();
            let there = !members.agreements(member).unwrap().is_empty();
            assert_eq!(there, holds, "taken back at {taken_back}");
            let listed = |kind: &str, number: i64| {
                let count = "SELECT count(*) FROM revocations WHERE kind = ?1 AND key = ?2";
                let values = params![kind, format!("{app} {number}")];
                members.db().query_row(count, values, |row| row.get::<_, i64>(0)).unwrap()
            };
            assert_eq!(listed("agreed-again", 1000) == 1, taken_back <= 1000, "{taken_back}");
            let file = std::fs::read_to_string(place.path().join("gone.jsonl")).unwrap();
            let goes_on = file.lines().any(|line| {
                let word: Revocation = serde_json::from_str(line).unwrap();
                matches!(word.what, Revoked::AgreedAgain { agreed: 1000, .. })
            });
            assert_eq!(goes_on, taken_back <= 1000, "{file}");
            // What was agreed to since, and is in another backup, is not taken along.
            assert_eq!((listed("agreed-again", NUMBER), listed("agreement", NUMBER)), (1, 0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_holds_is_what_was_agreed_to_after_it_was_last_taken_back_whatever_is_restored(
            all in proptest::collection::vec(happens(), 1..14),
        ) {
            static BOX: std::sync::OnceLock<(tempfile::TempDir, (MemberId, String))> =
                std::sync::OnceLock::new();
            let (folder, ids) = BOX.get_or_init(|| {
                let folder = tempfile::tempdir().unwrap();
                let ids = new_box(folder.path());
                (folder, ids)
            });
            goes_through(folder.path(), ids, &all);
        }
    }
}
