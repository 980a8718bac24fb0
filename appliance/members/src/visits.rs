//! Somebody at an app that they signed in to with the box. All that the app was given for it hangs on their session here, and on what they
//! agreed to for that app: when either ends, so does it.

use std::collections::HashMap;
use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio_util::sync::CancellationToken;

use crate::secret::{self, Digest};
use crate::{Member, MemberId, Members, MembersError, Secret, agreements, people, sessions};

/// A code is redeemed by a program, at once. In seconds.
const CODE: i64 = 60;
/// How long an app may ask who somebody is without asking for a new token, in seconds.
const ACCESS: i64 = 600;
/// A session is no longer either.
const REFRESH: i64 = sessions::SESSION_SECONDS;
/// Letters of everything that an app is given.
const TOKEN_LETTERS: usize = 52;
/// Of one session; the oldest ends.
const MOST: i64 = 50;

/// Somebody who goes to an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVisit {
    /// Which app.
    pub app: String,
    /// The address under which the box answers for them.
    pub issuer: String,
    /// Where they are sent back to.
    pub redirect: String,
    /// What the app will have to know to redeem the code (PKCE, S256).
    pub challenge: Option<String>,
    /// What the app wants to find again.
    pub nonce: Option<String>,
    /// What the app wants to know, words with spaces between.
    pub scope: String,
}

/// Somebody at an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// Which visit.
    pub id: String,
    /// Who.
    pub member: Member,
    /// When they signed in on the box; Unix seconds.
    pub signed_in_at: i64,
    /// What was asked for.
    pub asked: NewVisit,
}

/// What an app is given.
#[derive(Debug)]
pub struct VisitTokens {
    /// With which it asks who somebody is.
    pub access: Secret,
    /// With which it gets new ones, once.
    pub refresh: Option<Secret>,
    /// How long the first is good, in seconds.
    pub seconds: i64,
}

/// Somebody in whose name an app asks models.
#[derive(Debug, Clone)]
pub struct AtApp {
    /// Who.
    pub member: Member,
    /// Fires when they take back that the app may, when it is removed, when they sign out on the box, and when they are sent away: end what
    /// it asks.
    pub ended: CancellationToken,
}

impl Members {
    /// A code for the app, of the holder of `session`; `None` while they have not agreed to what it wants.
    pub fn begin_visit(
        &self,
        session: &str,
        new: &NewVisit,
    ) -> Result<Option<Secret>, MembersError> {
        let (code, id) = (secret::token()?, secret::short_id()?);
        let (session, now) = (Digest::of(session), self.now());
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (member, _) =
            sessions::alive(&change, &session.0, now)?.ok_or(MembersError::NoMember)?;
        match agreements::is_agreed(&change, MemberId(member), &new.app, &new.scope)? {
            Some(true) => {}
            Some(false) => return Ok(None),
            None => return Err(MembersError::Field("the app was removed meanwhile".into())),
        }
        change.execute("DELETE FROM visit_tokens WHERE expires_at <= ?1", [now])?;
        // Without a token there is no way back to it.
        change.execute(
            "DELETE FROM visits WHERE NOT EXISTS (SELECT 1 FROM visit_tokens WHERE visit = visits.id)",
            [],
        )?;
        change.execute(
            "INSERT INTO visits (id, app, session, issuer, redirect, challenge, nonce, scope, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                id,
                new.app,
                session.0,
                new.issuer,
                new.redirect,
                new.challenge,
                new.nonce,
                new.scope,
                now
            ],
        )?;
        let over: Vec<String> = change
            .prepare_cached(
                "DELETE FROM visits WHERE session = ?1 AND id NOT IN
                 (SELECT id FROM visits WHERE session = ?1 ORDER BY created_at DESC, rowid DESC LIMIT ?2)
                 RETURNING id",
            )?
            .query_map(params![session.0, MOST], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        keep(&change, &code, &id, "code", now + CODE)?;
        change.commit()?;
        self.end_visits(&over);
        drop(db);
        Ok(Some(code))
    }

    /// Takes a code, once. One that comes again was stolen, or is replayed: the visit ends with all that the app was given for it and what it
    /// asks by that (RFC 6749, 4.1.2), for as long as any of it is good.
    pub fn redeem_code(&self, code: &str) -> Result<Option<Visit>, MembersError> {
        self.take(code, "code")
    }

    /// Takes what new tokens are to be had with, once; in the same way.
    pub fn take_refresh(&self, token: &str) -> Result<Option<Visit>, MembersError> {
        self.take(token, "refresh")
    }

    /// When the session with this cookie began, Unix seconds; nothing if it is none.
    pub fn signed_in_since(&self, session: &str) -> Result<Option<i64>, MembersError> {
        let (digest, now) = (Digest::of(session), self.now());
        Ok(sessions::alive(&self.db(), &digest.0, now)?.map(|(_, since)| since))
    }

    /// Whose visit an app asks about.
    pub fn visit_behind(&self, access: &str) -> Result<Option<Visit>, MembersError> {
        let now = self.now();
        let db = self.db();
        match token(&db, access, "access", now)? {
            Some((id, _)) => visit(&db, &id, now),
            None => Ok(None),
        }
    }

    /// In whose name an app asks models with what it was given for them: where a steward lets that app, they agreed to it, and they may
    /// be there.
    pub fn asks_models_for(&self, access: &str) -> Result<Option<AtApp>, MembersError> {
        // What is none of ours is not even looked for.
        if !self.may_be_at_app(access) {
            return Ok(None);
        }
        let Some(visit) = self.visit_behind(access)? else { return Ok(None) };
        let session: Option<Vec<u8>> = self
            .db()
            .prepare_cached("SELECT session FROM visits WHERE id = ?1")?
            .query_row([&visit.id], |row| row.get(0))
            .optional()?;
        let Some(session) = session else { return Ok(None) };
        let (member, at) = (visit.member.id, visit.asked.app);
        let from = agreements::AtAppFrom { member, app: at, session };
        let ended = self.at_app(from, &visit.id)?;
        // Looked up after that: what was taken back just before it was taken is never told by it, nor who signed out.
        let Some(visit) = self.visit_behind(access)? else { return Ok(None) };
        let app = self.client_app(&visit.asked.app)?;
        let lets = app
            .filter(|app| app.asks_models)
            .is_some_and(|app| !app.for_stewards || visit.member.is_steward());
        let agreed = agreements::agreed(&self.db(), visit.member.id, &visit.asked.app)?;
        let agreed = agreed.is_some_and(|(_, asks_models)| asks_models);
        Ok((lets && agreed).then_some(AtApp { member: visit.member, ended }))
    }

    /// Whether this could be what an app asks with; no is certain. *In memory*.
    pub fn may_be_at_app(&self, access: &str) -> bool {
        access.len() == TOKEN_LETTERS
            && self
                .0
                .access
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&Digest::of(access).0)
                .is_some_and(|end| *end > self.now())
    }

    /// New tokens for a visit. The access tokens before them end.
    pub fn visit_tokens(&self, visit: &str, refresh: bool) -> Result<VisitTokens, MembersError> {
        let access = secret::token()?;
        let refresh = if refresh { Some(secret::token()?) } else { None };
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let there: bool = change.query_row(
            "SELECT EXISTS (SELECT 1 FROM visits WHERE id = ?1)",
            [visit],
            |row| row.get(0),
        )?;
        if !there {
            return Err(MembersError::NoMember);
        }
        change.execute("DELETE FROM visit_tokens WHERE visit = ?1 AND kind = 'access'", [visit])?;
        keep(&change, &access, visit, "access", now + ACCESS)?;
        if let Some(refresh) = &refresh {
            keep(&change, refresh, visit, "refresh", now + REFRESH)?;
        }
        // The code is known for as long as what it was good for is.
        let until = now + if refresh.is_some() { REFRESH } else { ACCESS };
        change.execute(
            "UPDATE visit_tokens SET expires_at = max(expires_at, ?2)
             WHERE visit = ?1 AND kind = 'code' AND spent = 1",
            params![visit, until],
        )?;
        change.commit()?;
        let mut known = self.0.access.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, end| *end > now);
        known.insert(access.digest().0, now + ACCESS);
        drop(known);
        Ok(VisitTokens { access, refresh, seconds: ACCESS })
    }

    /// Ends a visit with all that the app was given for it, and what it asks by that.
    pub fn end_visit(&self, visit: &str) -> Result<(), MembersError> {
        let db = self.db();
        db.execute("DELETE FROM visits WHERE id = ?1", [visit])?;
        self.end_visits(&[visit.to_owned()]);
        drop(db);
        Ok(())
    }

    fn take(&self, given: &str, kind: &str) -> Result<Option<Visit>, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some((id, spent)) = token(&change, given, kind, now)? else { return Ok(None) };
        if spent {
            change.execute("DELETE FROM visits WHERE id = ?1", [&id])?;
            change.commit()?;
            self.end_visits(&[id]);
            drop(db);
            log::warn!(kind = kind; "a token that an app had used already came again; its visit is ended");
            return Ok(None);
        }
        change.execute(
            "UPDATE visit_tokens SET spent = 1 WHERE digest = ?1",
            [Digest::of(given).0],
        )?;
        let found = visit(&change, &id, now)?;
        change.commit()?;
        Ok(found)
    }
}

pub(crate) fn load(db: &Connection) -> rusqlite::Result<HashMap<[u8; 32], i64>> {
    let mut query =
        db.prepare("SELECT digest, expires_at FROM visit_tokens WHERE kind = 'access'")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn keep(
    db: &Connection,
    token: &Secret,
    visit: &str,
    kind: &str,
    expires_at: i64,
) -> rusqlite::Result<usize> {
    db.execute(
        "INSERT INTO visit_tokens (digest, visit, kind, expires_at) VALUES (?1, ?2, ?3, ?4)",
        params![token.digest().0, visit, kind, expires_at],
    )
}

/// The visit of a token, and whether it was used.
fn token(
    db: &Connection,
    given: &str,
    kind: &str,
    now: i64,
) -> rusqlite::Result<Option<(String, bool)>> {
    db.prepare_cached(
        "SELECT visit, spent FROM visit_tokens WHERE digest = ?1 AND kind = ?2 AND expires_at > ?3",
    )?
    .query_row(params![Digest::of(given).0, kind, now], |row| Ok((row.get(0)?, row.get(1)?)))
    .optional()
}

fn visit(db: &Connection, id: &str, now: i64) -> Result<Option<Visit>, MembersError> {
    let found = db
        .prepare_cached(
            "SELECT session, app, issuer, redirect, challenge, nonce, scope FROM visits WHERE id = ?1",
        )?
        .query_row([id], |row| {
            let asked = NewVisit {
                app: row.get(1)?,
                issuer: row.get(2)?,
                redirect: row.get(3)?,
                challenge: row.get(4)?,
                nonce: row.get(5)?,
                scope: row.get(6)?,
            };
            Ok((row.get::<_, Vec<u8>>(0)?, asked))
        })
        .optional()?;
    let Some((session, asked)) = found else { return Ok(None) };
    let Some((member, signed_in_at)) = sessions::alive(db, &session, now)? else { return Ok(None) };
    // A version that knew nothing of agreements let people in at an app without one, and perhaps with more than was agreed to since.
    let agreed = agreements::agreed(db, MemberId(member), &asked.app)?;
    if !agreed.is_some_and(|(known, _)| agreements::has_all(&known, &asked.scope)) {
        return Ok(None);
    }
    let member = people::member(db, MemberId(member))?.filter(|member| !member.disabled);
    Ok(member.map(|member| Visit { id: id.to_owned(), member, signed_in_at, asked }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, NewClientApp, NewMember, Role};

    struct Place {
        members: Members,
        clock: Clock,
        app: String,
        ada: MemberId,
        session: Secret,
        _folder: tempfile::TempDir,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let path = folder.path().join("polder.db");
        let members = Members::open_with_clock(&path, clock.clone()).unwrap();
        let password = Secret::new("four words in a row".into());
        let ada = NewMember { name: "ada".into(), email: None, password };
        let ada = members.add_member(&ada, Role::Steward).unwrap().id;
        let session = members.begin_session(ada).unwrap().1;
        let redirects = vec!["https://wiki.example/back".to_owned()];
        let new = NewClientApp {
            name: "Wiki".into(),
            redirects,
            with_secret: true,
            ..Default::default()
        };
        let (app, secret) = members.add_client_app(&new).unwrap();
        let secret = secret.unwrap();
        members.agree_to_app(ada, &app.id, "openid", false).unwrap();
        assert!(members.is_client_secret(&app.id, secret.expose()).unwrap());
        assert!(!members.is_client_secret(&app.id, "").unwrap());
        assert!(!members.is_client_secret("nobody", secret.expose()).unwrap());
        Place { members, clock, app: app.id, ada, session, _folder: folder }
    }

    /// The same, and the app may ask models.
    fn asking() -> Place {
        let place = place();
        place.members.db().execute("UPDATE client_apps SET asks_models = 1", []).unwrap();
        place.members.agree_to_app(place.ada, &place.app, "openid", true).unwrap();
        place
    }

    impl Place {
        fn new_visit(&self) -> NewVisit {
            NewVisit {
                app: self.app.clone(),
                issuer: "https://oak.local".into(),
                redirect: "https://wiki.example/back".into(),
                challenge: Some("c".into()),
                nonce: None,
                scope: "openid".into(),
            }
        }
        fn code(&self) -> Secret {
            self.members.begin_visit(self.session.expose(), &self.new_visit()).unwrap().unwrap()
        }
        fn tokens(&self) -> VisitTokens {
            let visit = self.members.redeem_code(self.code().expose()).unwrap().unwrap();
            assert_eq!((visit.member.id, &visit.asked), (self.ada, &self.new_visit()));
            self.members.visit_tokens(&visit.id, true).unwrap()
        }
        fn is_good(&self, tokens: &VisitTokens) -> bool {
            self.members.visit_behind(tokens.access.expose()).unwrap().is_some()
        }
    }

    #[test]
    fn a_code_that_comes_again_ends_what_it_was_good_for() {
        let place = place();
        let code = place.code();
        let visit = place.members.redeem_code(code.expose()).unwrap().unwrap();
        let tokens = place.members.visit_tokens(&visit.id, true).unwrap();
        assert!(place.is_good(&tokens));
        assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None);
        assert!(!place.is_good(&tokens));
        let refresh = tokens.refresh.unwrap();
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
    }

    #[test]
    fn a_refresh_token_is_good_once_and_a_second_time_ends_the_visit() {
        let place = place();
        let first = place.tokens();
        let refresh = first.refresh.as_ref().unwrap();
        let visit = place.members.take_refresh(refresh.expose()).unwrap().unwrap();
        let second = place.members.visit_tokens(&visit.id, true).unwrap();
        assert!(place.is_good(&second) && !place.is_good(&first));
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
        assert!(!place.is_good(&second));
        // One kind is not another.
        let tokens = place.tokens();
        assert_eq!(place.members.take_refresh(tokens.access.expose()).unwrap(), None);
        assert_eq!(place.members.redeem_code(tokens.access.expose()).unwrap(), None);
    }

    #[test]
    fn what_an_app_was_given_ends_with_the_session_the_member_and_the_app() {
        let place = place();
        let begin = |place: &Place| place.members.begin_session(place.ada).unwrap().1;
        let tokens = place.tokens();
        place.members.sign_out(place.session.expose()).unwrap();
        assert!(!place.is_good(&tokens));
        let place = Place { session: begin(&place), ..place };
        let tokens = place.tokens();
        place.members.remove_client_app(&place.app).unwrap();
        assert!(!place.is_good(&tokens));
        assert!(place.members.begin_visit("not-a-session", &place.new_visit()).is_err());
    }

    #[test]
    fn an_app_asks_models_only_where_a_steward_lets_it_and_only_with_a_token_that_is_good() {
        let place = place();
        let asks = |place: &Place, token: &str| {
            place.members.asks_models_for(token).unwrap().map(|at| at.member.id)
        };
        assert_eq!(asks(&place, place.tokens().access.expose()), None);
        let redirects = vec!["https://chat.example/back".to_owned()];
        let new = NewClientApp {
            name: "Chat".into(),
            redirects,
            asks_models: true,
            ..Default::default()
        };
        let app = place.members.add_client_app(&new).unwrap().0.id;
        let place = Place { app, ..place };
        place.members.agree_to_app(place.ada, &place.app, "openid", true).unwrap();
        let (code, tokens) = (place.code(), place.tokens());
        assert_eq!(asks(&place, tokens.access.expose()), Some(place.ada));
        for other in
            [code.expose(), tokens.refresh.as_ref().unwrap().expose(), "", place.session.expose()]
        {
            assert_eq!(asks(&place, other), None);
        }
        place
            .members
            .end_visit(&place.members.visit_behind(tokens.access.expose()).unwrap().unwrap().id)
            .unwrap();
        assert_eq!(asks(&place, tokens.access.expose()), None);
        let tokens = place.tokens();
        // A stranger's costs no look into the database, and one that is good is known after a restart too.
        assert!(place.members.may_be_at_app(tokens.access.expose()));
        assert!(!place.members.may_be_at_app(&"A".repeat(TOKEN_LETTERS)));
        let path = place.members.path().to_owned();
        let again = Members::open_with_clock(&path, place.clock.clone()).unwrap();
        assert!(again.asks_models_for(tokens.access.expose()).unwrap().is_some());
        place.clock.pass(601);
        assert!(!place.members.may_be_at_app(tokens.access.expose()));
        assert_eq!(asks(&place, tokens.access.expose()), None);
    }

    #[test]
    fn without_a_members_word_an_app_is_given_nothing_and_what_grew_is_asked_anew() {
        let place = place();
        let begin = |scope: &str| {
            let visit = NewVisit { scope: scope.into(), ..place.new_visit() };
            place.members.begin_visit(place.session.expose(), &visit).unwrap()
        };
        assert!(begin("openid").is_some() && begin("openid email").is_none());
        place.members.agree_to_app(place.ada, &place.app, "openid email", false).unwrap();
        assert!(begin("openid email").is_some() && begin("openid").is_some());
        let tokens = place.tokens();
        // The app is let do more: what it has goes on being what it was, and no more.
        let db = place.members.db();
        db.execute("UPDATE client_apps SET asks_models = 1", []).unwrap();
        drop(db);
        assert!(place.members.asks_models_for(tokens.access.expose()).unwrap().is_none());
        assert!(place.is_good(&tokens) && begin("openid").is_none());
        place.members.agree_to_app(place.ada, &place.app, "openid", true).unwrap();
        let there = place.members.agreements(place.ada).unwrap();
        assert_eq!((there[0].scope.as_str(), there[0].asks_models), ("openid email", true));
        let at = place.members.asks_models_for(tokens.access.expose()).unwrap().unwrap();
        // Taken back, everything ends at once, and agreeing anew brings none of it back.
        assert!(!at.ended.is_cancelled());
        assert!(place.members.take_back_from_app(place.ada, &place.app).unwrap());
        assert!(at.ended.is_cancelled());
        assert!(!place.members.take_back_from_app(place.ada, &place.app).unwrap());
        assert!(!place.is_good(&tokens) && begin("openid").is_none());
        place.members.agree_to_app(place.ada, &place.app, "openid", true).unwrap();
        assert!(!place.is_good(&tokens));
        let refresh = tokens.refresh.as_ref().unwrap();
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
        let tokens = place.tokens();
        let at = place.members.asks_models_for(tokens.access.expose()).unwrap().unwrap();
        assert!(!at.ended.is_cancelled());
        place.members.set_disabled(place.ada, true).unwrap_err();
        place.members.remove_client_app(&place.app).unwrap();
        assert!(at.ended.is_cancelled() && place.members.agreements(place.ada).unwrap().is_empty());
    }

    #[test]
    fn whoever_signs_out_where_they_went_to_an_app_from_ends_what_it_asks_in_their_name() {
        type Leaves = fn(&Place) -> Result<(), MembersError>;
        let new = || Secret::new("five words in another row".into());
        let signs_out: Leaves = |place| place.members.sign_out(place.session.expose());
        let everywhere: Leaves = |place| place.members.sign_out_everywhere(place.ada);
        let cases: [(Leaves, bool); 3] =
            [(signs_out, true), (everywhere, false), (|_| Ok(()), true)];
        let mut place = place();
        place.members.db().execute("UPDATE client_apps SET asks_models = 1", []).unwrap();
        place.members.agree_to_app(place.ada, &place.app, "openid", true).unwrap();
        for (leaves, stays_elsewhere) in cases {
            let at = |place: &Place| {
                let tokens = place.tokens();
                place.members.asks_models_for(tokens.access.expose()).unwrap().unwrap().ended
            };
            place.session = place.members.begin_session(place.ada).unwrap().1;
            let elsewhere = at(&place);
            place.session = place.members.begin_session(place.ada).unwrap().1;
            let here = at(&place);
            leaves(&place).unwrap();
            assert_eq!(elsewhere.is_cancelled(), !stays_elsewhere);
            if here.is_cancelled() {
                continue;
            }
            // With another password, whoever had the old one is out; where it was changed they stay.
            place.members.set_password(place.ada, &new()).unwrap();
            assert!(here.is_cancelled() && elsewhere.is_cancelled());
        }
        // Nothing is left of sessions that are over.
        place.session = place.members.begin_session(place.ada).unwrap().1;
        let tokens = place.tokens();
        assert!(place.members.asks_models_for(tokens.access.expose()).unwrap().is_some());
        assert_eq!(place.members.0.at_apps.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_was_taken_back_stays_so_whatever_the_clock_said_when_it_was_agreed_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, earlier) = (folder.path().join("polder.db"), folder.path().join("earlier.db"));
        let clock = Clock::system();
        let members = Members::open_with_clock(&path, clock.clone()).unwrap();
        let password = Secret::new("four words in a row".into());
        let ada = NewMember { name: "ada".into(), email: None, password };
        let ada = members.add_member(&ada, Role::Member).unwrap().id;
        let redirects = vec!["https://wiki.example/back".to_owned()];
        let new = NewClientApp { name: "Wiki".into(), redirects, ..Default::default() };
        let app = members.add_client_app(&new).unwrap().0.id;
        // A clock that is two years ahead, and the backup of that day.
        clock.pass(63_000_000);
        members.agree_to_app(ada, &app, "openid", true).unwrap();
        let copy = format!("VACUUM INTO '{}'", earlier.display());
        members.db().execute_batch(&copy).unwrap();
        clock.pass(-63_000_000);
        let shown = members.agreements(ada).unwrap()[0].at;
        assert!(shown <= members.now(), "told as agreed to in two years");
        members.agree_to_app(ada, &app, "openid email", true).unwrap();
        assert!(members.take_back_from_app(ada, &app).unwrap());
        drop(members);
        std::fs::rename(&earlier, &path).unwrap();
        let restored = Members::open_with_clock(&path, clock.clone()).unwrap();
        assert_eq!(restored.agreements(ada).unwrap(), [], "what was taken back is there again");
        // Agreed to anew it holds, also where the list comes once more, and taken back it is gone.
        for _ in 0..2 {
            restored.agree_to_app(ada, &app, "openid", false).unwrap();
            let list = restored.revocations_since(0).unwrap();
            restored.apply_revocations(&list).unwrap();
            assert_eq!(restored.agreements(ada).unwrap().len(), 1);
            assert!(restored.take_back_from_app(ada, &app).unwrap());
        }
        // Each time both were written down, once, beside the one of the backup.
        let list = restored.revocations_since(0).unwrap();
        let again = |r: &&crate::Revocation| matches!(r.what, crate::Revoked::AgreedAgain { .. });
        assert_eq!((list.len(), list.iter().filter(again).count()), (5, 2));
    }

    #[test]
    fn what_an_older_version_gave_an_app_without_asking_is_good_for_nothing() {
        let place = place();
        let tokens = place.tokens();
        // As it left it.
        let db = place.members.db();
        db.execute_batch("CREATE TABLE kept AS SELECT * FROM visits; CREATE TABLE kept_tokens AS SELECT * FROM visit_tokens;
            DELETE FROM agreements; INSERT INTO visits SELECT * FROM kept; INSERT INTO visit_tokens SELECT * FROM kept_tokens;")
            .unwrap();
        drop(db);
        assert!(!place.is_good(&tokens));
        let refresh = tokens.refresh.unwrap();
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
    }

    #[test]
    fn codes_and_tokens_grow_old_and_sessions_too() {
        let place = place();
        let code = place.code();
        place.clock.pass(61);
        assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None);
        let tokens = place.tokens();
        place.clock.pass(601);
        assert!(!place.is_good(&tokens));
        let refresh = tokens.refresh.unwrap();
        let visit = place.members.take_refresh(refresh.expose()).unwrap().unwrap();
        let tokens = place.members.visit_tokens(&visit.id, true).unwrap();
        // Nobody was at the box for a week: its own session is too old by then.
        place.clock.pass(8 * 24 * 3600);
        let refresh = tokens.refresh.unwrap();
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
    }

    #[test]
    fn what_an_app_asks_ends_with_the_sessions_and_visits_that_make_room_for_new_ones() {
        let mut place = asking();
        let at = |place: &Place| {
            let tokens = place.tokens();
            place.members.asks_models_for(tokens.access.expose()).unwrap().unwrap().ended
        };
        let first = at(&place);
        // As many browsers as one may be signed in from, and one more.
        let others: Vec<_> = (0..20)
            .map(|_| {
                assert!(!first.is_cancelled());
                place.members.begin_session(place.ada).unwrap().1
            })
            .collect();
        assert!(first.is_cancelled(), "the session is gone, and what asked by it is not");
        // What grew old goes when anybody signs in.
        place.session = others[19].clone();
        let aged = at(&place);
        place.clock.pass(8 * 24 * 3600);
        assert!(!aged.is_cancelled());
        place.session = place.members.begin_session(place.ada).unwrap().1;
        assert!(aged.is_cancelled());
        let oldest = at(&place);
        let newer = at(&place);
        (0..MOST - 1).for_each(|_| drop(place.code()));
        assert!(oldest.is_cancelled() && !newer.is_cancelled());
    }

    #[test]
    fn a_code_or_token_that_comes_again_ends_the_answers_by_it_and_no_others() {
        let place = asking();
        let ask = |tokens: &VisitTokens| {
            place.members.asks_models_for(tokens.access.expose()).unwrap().unwrap().ended
        };
        let other = ask(&place.tokens());
        let begin = |refresh: bool| {
            let code = place.code();
            let visit = place.members.redeem_code(code.expose()).unwrap().unwrap();
            (code, place.members.visit_tokens(&visit.id, refresh).unwrap())
        };
        // Long after the code itself would be too old, also when somebody else went to an app meanwhile.
        let (code, tokens) = begin(false);
        let asked = ask(&tokens);
        place.clock.pass(ACCESS - 10);
        place.code();
        assert!(!asked.is_cancelled() && place.is_good(&tokens));
        assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None);
        assert!(asked.is_cancelled() && !place.is_good(&tokens));
        // And where the first tokens are over, what came after them.
        let (code, tokens) = begin(true);
        place.clock.pass(2 * ACCESS);
        let visit = place.members.take_refresh(tokens.refresh.unwrap().expose()).unwrap().unwrap();
        let tokens = place.members.visit_tokens(&visit.id, true).unwrap();
        let asked = ask(&tokens);
        place.code();
        assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None);
        assert!(asked.is_cancelled() && !place.is_good(&tokens));
        let (_, tokens) = begin(true);
        let asked = ask(&tokens);
        let refresh = tokens.refresh.unwrap();
        assert!(place.members.take_refresh(refresh.expose()).unwrap().is_some());
        assert!(!asked.is_cancelled(), "what is being answered goes on with the next token");
        assert_eq!(place.members.take_refresh(refresh.expose()).unwrap(), None);
        assert!(asked.is_cancelled());
        // Handed in by another app, or with a wrong proof: the door ends the visit.
        let (_, tokens) = begin(false);
        let asked = ask(&tokens);
        let visit = place.members.visit_behind(tokens.access.expose()).unwrap().unwrap().id;
        place.members.end_visit(&visit).unwrap();
        assert!(asked.is_cancelled() && !other.is_cancelled());
        // A code that nobody used is no longer good than before.
        let code = place.code();
        place.clock.pass(CODE + 1);
        assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None);
        place.members.sign_out(place.session.expose()).unwrap();
        assert!(other.is_cancelled(), "an answer outlives its visit, and not its session");
        assert!(place.members.0.at_apps.lock().unwrap().is_empty());
    }

    #[test]
    fn who_ends_a_visit_lets_nobody_in_before_its_answers_ended() {
        let place = place();
        let code = place.code();
        place.members.redeem_code(code.expose()).unwrap().unwrap();
        let other = Connection::open(place._folder.path().join("polder.db")).unwrap();
        let is_there = || {
            let count = "SELECT count(*) FROM visits";
            other.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap() > 0
        };
        for end in ["a code that comes again", "the door"] {
            if !is_there() {
                place.code();
            }
            std::thread::scope(|scope| {
                let answers = place.members.0.at_apps.lock().unwrap();
                let ends = scope.spawn(|| match end {
                    "the door" => {
                        let db = place.members.db();
                        let id: String =
                            db.query_row("SELECT id FROM visits", [], |row| row.get(0)).unwrap();
                        drop(db);
                        place.members.end_visit(&id).unwrap();
                    }
                    _ => assert_eq!(place.members.redeem_code(code.expose()).unwrap(), None),
                });
                while is_there() {
                    assert!(!ends.is_finished());
                    std::thread::yield_now();
                }
                // Whoever enters now would look into the database first.
                assert!(place.members.0.db.try_lock().is_err(), "{end}");
                drop(answers);
                ends.join().unwrap();
            });
        }
    }

    #[test]
    fn visits_of_one_session_are_bounded() {
        let place = place();
        for _ in 0..MOST + 5 {
            place.code();
        }
        let count: i64 =
            place.members.db().query_row("SELECT count(*) FROM visits", [], |r| r.get(0)).unwrap();
        assert_eq!(count, MOST);
    }
}
