//! What is a member's own, for them to take along; and how much goes when they leave.

use std::collections::BTreeMap;

use rusqlite::{Row, params};
use serde_json::{Value, json};

use crate::usage::KEPT_DAYS;
use crate::{MemberId, Members, MembersError, announcements, people};

/// How much goes with a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belongings {
    /// API keys.
    pub keys: u64,
    /// Signed-in browsers.
    pub sessions: u64,
    /// Invites that they made and nobody took.
    pub invites: u64,
    /// Lines of what was counted.
    pub usage: u64,
    /// They are among those who hold a recovery sheet that is in force.
    pub sheet: bool,
    /// Entries of the books that are about them, or that they made: those stay, and so does their name beside them until somebody asks that it go.
    pub entries: u64,
    /// They are the only one who looks after the box.
    pub last_steward: bool,
    /// Without them one steward is left, alone.
    pub leaves_one: bool,
}

impl Members {
    /// What would go with this member.
    pub fn belongings(&self, id: MemberId) -> Result<Belongings, MembersError> {
        self.catch_up();
        let member = self.member(id)?;
        let now = self.now();
        let db = self.db();
        let count = |query: &str, with: &[i64]| -> Result<u64, MembersError> {
            let found: i64 =
                db.query_row(query, rusqlite::params_from_iter(with), |row| row.get(0))?;
            Ok(found.max(0) as u64)
        };
        let stewards = crate::stewards::stewards(&db)?;
        Ok(Belongings {
            keys: count("SELECT count(*) FROM keys WHERE member = ?1", &[id.0])?,
            sessions: count("SELECT count(*) FROM sessions WHERE member = ?1", &[id.0])?,
            invites: count(
                "SELECT count(*) FROM invites WHERE made_by = ?1 AND expires_at > ?2",
                &[id.0, now],
            )?,
            usage: count("SELECT count(*) FROM usage WHERE member = ?1", &[id.0])?,
            sheet: count(
                "SELECT count(*) FROM sheets WHERE holder = ?1 AND confirmed_at IS NOT NULL",
                &[id.0],
            )? > 0,
            entries: count(
                "SELECT count(*) FROM ledger WHERE member = ?1 OR by_member = ?1",
                &[id.0],
            )?,
            last_steward: member.is_steward() && stewards == 1,
            leaves_one: member.is_steward() && stewards == 2,
        })
    }

    /// A member leaves by themselves. Where they were a steward everybody is told.
    pub fn leave(&self, id: MemberId) -> Result<(), MembersError> {
        let member = self.member(id)?;
        let now = self.now();
        self.change_member(id, |change| {
            if member.is_steward() {
                let told = format!("{} left, and is no steward any more.", member.name);
                announcements::announce(change, now, &told, "the box")?;
            }
            people::remove(change, id)
        })?;
        self.sent_away(id);
        self.keep_gone();
        Ok(())
    }

    /// Everything that the database has about a member, as files: what it is called, and its text. Nothing of it opens anything.
    pub fn own_data(&self, id: MemberId) -> Result<Vec<(&'static str, String)>, MembersError> {
        let member = self.member(id)?;
        let name = member.name.clone();
        let keys = self.keys_of(id)?;
        let usage = self.usage_of(id, KEPT_DAYS as u32)?;
        let profile = json!({
            "name": member.name,
            "email": member.email,
            "role": member.role.as_str(),
            "member_since": time(member.created_at),
            "share_percent": member.share.percent,
            "answers_at_once": member.share.answers_at_once,
            "disabled": member.disabled,
            "no_steward_by_groups": member.kept_member,
            "has_password": member.has_password,
            "never_asked_elsewhere": member.stays_here,
            "steward_since": self.steward_since(id)?.map(time),
        });
        let keys: Vec<Value> = keys
            .iter()
            .map(|key| {
                json!({
                    "label": key.label,
                    "begins_with": key.beginning(),
                    "scopes": key.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
                    "models": key.models,
                    "made": time(key.created_at),
                    "last_used": key.used_at.map(time),
                    "expires": key.expires_at.map(time),
                    "requests_per_minute": key.limits.requests_per_minute,
                    "tokens_per_minute": key.limits.tokens_per_minute,
                    "tokens_per_month": key.limits.tokens_per_month,
                    "requests_at_once": key.limits.at_once,
                    "refuses_unknown_fields": key.strict,
                    "waits_for_others": key.background,
                    "never_asked_elsewhere": key.stays_here,
                    "tokens_this_month": key.tokens_this_month,
                })
            })
            .collect();
        let mut months: BTreeMap<(String, String), [u64; 3]> = BTreeMap::new();
        for row in &usage {
            let month = row.day.get(..7).unwrap_or(&row.day).to_owned();
            let sums = months.entry((month, row.model.clone())).or_default();
            for (sum, more) in sums.iter_mut().zip([row.requests, row.prompt, row.completion]) {
                *sum = sum.saturating_add(more);
            }
        }
        let months: Vec<Value> = months
            .into_iter()
            .map(|((month, model), [requests, read, written])| {
                json!({ "month": month, "model": model, "requests": requests, "tokens_read": read, "tokens_written": written })
            })
            .collect();
        let days: Vec<Value> = usage
            .iter()
            .map(|row| {
                json!({ "day": row.day, "model": row.model, "key": row.key_label, "requests": row.requests,
                        "tokens_read": row.prompt, "tokens_written": row.completion })
            })
            .collect();
        let (sessions, invites) = (self.own_sessions(id)?, self.own_invites(id)?);
        let linked = self.own_rows(
            "SELECT issuer, subject, shown, email, made_steward, created_at, seen_at FROM identities WHERE member = ?1 ORDER BY issuer",
            id,
            |row| {
                Ok(json!({
                    "issuer": row.get::<_, String>(0)?,
                    "known_there_as": row.get::<_, String>(1)?,
                    "name": row.get::<_, String>(2)?,
                    "email": row.get::<_, Option<String>>(3)?,
                    "made_you_steward": row.get::<_, bool>(4)?,
                    "linked": time(row.get(5)?),
                    "last_used": time(row.get(6)?),
                }))
            },
        )?;
        let apps: Vec<Value> = self
            .agreements(id)?
            .iter()
            .map(|a| json!({ "app": a.name, "learns": a.scope, "asks_models": a.asks_models, "agreed": time(a.at) }))
            .collect();
        // Of others in it, only their numbers.
        let money = polder_ledger::write_own(&self.ledger_of(id)?, &|member| {
            if member == id.0 { name.clone() } else { format!("member {member}") }
        });
        let text = |value: &Value| format!("{value:#}\n");
        Ok(vec![
            ("profile.json", text(&profile)),
            ("keys.json", text(&json!(keys))),
            ("identities.json", text(&linked)),
            ("apps.json", text(&json!(apps))),
            ("at-apps.json", text(&self.own_visits(id)?)),
            ("collective.json", text(&self.own_part(id)?)),
            ("money.csv", money),
            ("sessions.json", text(&sessions)),
            ("invites.json", text(&invites)),
            ("usage-by-month.json", text(&json!(months))),
            ("usage-by-day.json", text(&json!(days))),
        ])
    }

    /// What a query says about a member, who is its first value.
    fn own_rows(
        &self,
        query: &str,
        id: MemberId,
        one: impl Fn(&Row<'_>) -> rusqlite::Result<Value>,
    ) -> Result<Value, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(query)?;
        let rows = query.query_map([id.0], |row| one(row))?;
        let all: Vec<Value> = rows.collect::<Result<_, _>>()?;
        Ok(json!(all))
    }

    fn steward_since(&self, id: MemberId) -> Result<Option<i64>, MembersError> {
        let since: i64 = self.db().query_row(
            "SELECT steward_since FROM members WHERE id = ?1",
            [id.0],
            |row| row.get(0),
        )?;
        Ok(Some(since).filter(|since| *since > 0))
    }

    /// Where they went to with the box. What the app was given for it is no word about them.
    fn own_visits(&self, id: MemberId) -> Result<Value, MembersError> {
        self.own_rows(
            "SELECT name, visits.scope, visits.created_at FROM visits JOIN client_apps ON client_apps.id = app
             JOIN sessions ON sessions.digest = session WHERE member = ?1 ORDER BY visits.created_at",
            id,
            |row| {
                Ok(json!({
                    "app": row.get::<_, String>(0)?,
                    "asked": row.get::<_, String>(1)?,
                    "went_there": time(row.get(2)?),
                }))
            },
        )
    }

    /// Their part in what the collective decides. Of others in it, only their numbers.
    fn own_part(&self, id: MemberId) -> Result<Value, MembersError> {
        let trial =
            self.own_rows("SELECT under_alias FROM trial WHERE member = ?1", id, |row| {
                Ok(json!({ "under_its_usual_name": row.get::<_, bool>(0)? }))
            })?;
        let shares =
            self.own_rows("SELECT from_month FROM usage_shares WHERE member = ?1", id, |row| {
                let month: i64 = row.get(0)?;
                Ok(json!(format!("{:04}-{:02}", month.div_euclid(12), month.rem_euclid(12) + 1)))
            })?;
        let sheets = self.own_rows(
            "SELECT made, number, confirmed_at FROM sheets WHERE holder = ?1 ORDER BY made, number",
            id,
            |row| {
                Ok(json!({
                    "made": time(row.get(0)?),
                    "number": row.get::<_, i64>(1)?,
                    "typed_back": row.get::<_, Option<i64>>(2)?.map(time),
                }))
            },
        )?;
        let proposals = self.own_rows(
            "SELECT what, target, successor, by, at FROM proposals WHERE ?1 IN (target, successor, by) ORDER BY id",
            id,
            |row| {
                Ok(json!({
                    "what": row.get::<_, String>(0)?,
                    "about_member": row.get::<_, i64>(1)?,
                    "instead_member": row.get::<_, Option<i64>>(2)?,
                    "by_member": row.get::<_, i64>(3)?,
                    "at": time(row.get(4)?),
                }))
            },
        )?;
        let recovery =
            self.own_rows("SELECT asked_at FROM recovery WHERE member = ?1", id, |row| {
                Ok(json!(time(row.get(0)?)))
            })?;
        let ending = self.own_rows("SELECT at FROM ending WHERE member = ?1", id, |row| {
            Ok(json!(time(row.get(0)?)))
        })?;
        let read = self.own_rows(
            "SELECT at FROM announcements_read JOIN announcements ON announcements.id = announcement
             WHERE member = ?1 ORDER BY announcement",
            id,
            |row| Ok(json!(time(row.get(0)?))),
        )?;
        let list = self.own_rows(
            "SELECT at, kind, key FROM revocations JOIN members ON members.id = member AND created_at = since
             WHERE member = ?1 ORDER BY number",
            id,
            |row| {
                let (kind, key): (String, Option<String>) = (row.get(1)?, row.get(2)?);
                Ok(json!({ "at": time(row.get(0)?), "what": kind, "of": key }))
            },
        )?;
        Ok(json!({
            "tries_a_model": trial,
            "costs_by_usage_since": shares,
            "recovery_sheets_kept": sheets,
            "proposals": proposals,
            "asked_to_get_in_again": recovery,
            "asked_for_the_end_of_the_box": ending,
            "announcements_read_of": read,
            "on_the_list_of_what_never_works_again": list,
        }))
    }

    fn own_sessions(&self, id: MemberId) -> Result<Value, MembersError> {
        let sessions = self.sessions(id, "")?;
        let one = |s: &crate::SessionInfo| json!({ "signed_in": time(s.created_at), "last_used": time(s.seen_at) });
        Ok(sessions.iter().map(one).collect())
    }

    fn own_invites(&self, id: MemberId) -> Result<Value, MembersError> {
        let now = self.now();
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT note, role, created_at, expires_at FROM invites WHERE made_by = ?1 AND expires_at > ?2",
        )?;
        let rows = query.query_map(params![id.0, now], |row| {
            Ok(json!({
                "for": row.get::<_, String>(0)?,
                "as": row.get::<_, String>(1)?,
                "made": time(row.get(2)?),
                "ends": time(row.get(3)?),
            }))
        })?;
        let all: Vec<Value> = rows.collect::<Result<_, _>>()?;
        Ok(json!(all))
    }

    /// Whether this is the member's own password, at a person's pace. For what cannot be taken back. A member without one proves nothing
    /// by it: it is true for them.
    pub fn is_own_password(
        &self,
        id: MemberId,
        typed: &crate::Secret,
    ) -> Result<bool, MembersError> {
        let stored = crate::people::password_of(&self.db(), id)?;
        if stored.is_none() {
            return Ok(true);
        }
        let slow = (format!("#{}", id.0), crate::limits::Net::of([127, 0, 0, 1].into()));
        if self.0.sign_ins.take(slow, self.0.clock.millis()).is_err() {
            return Err(MembersError::Busy);
        }
        self.0.hashing.verify(typed.expose(), stored.as_deref())
    }
}

/// Unix seconds as people and programs read them.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Value as Cell;

    use super::*;
    use crate::{NewClientApp, NewKey, NewMember, NewVisit, Role, Secret};

    /// Every table, and in which file of a member's own data it is, or why it is in none.
    const WHERE: [(&str, Result<&str, &str>); 32] = [
        ("members", Ok("profile.json")),
        ("sessions", Ok("sessions.json")),
        ("invites", Ok("invites.json")),
        ("keys", Ok("keys.json")),
        ("quota_use", Ok("keys.json")),
        ("usage", Ok("usage-by-day.json")),
        ("identities", Ok("identities.json")),
        ("agreements", Ok("apps.json")),
        ("visits", Ok("at-apps.json")),
        ("ledger", Ok("money.csv")),
        ("trial", Ok("collective.json")),
        ("usage_shares", Ok("collective.json")),
        ("sheets", Ok("collective.json")),
        ("proposals", Ok("collective.json")),
        ("recovery", Ok("collective.json")),
        ("ending", Ok("collective.json")),
        ("announcements_read", Ok("collective.json")),
        ("revocations", Ok("collective.json")),
        ("visit_tokens", Err("digests of what an app was given for a visit")),
        ("announcements", Err("what everybody is told")),
        ("client_apps", Err("apps of everybody")),
        ("ledger_names", Err("of whoever is a member no more")),
        ("kept_identities", Err("digests, of whoever is a member no more")),
        ("forgetting", Err("a number, until the engines have forgotten")),
        ("deeds", Err("on its way into the audit trail")),
        ("elsewhere", Err("nobody's by name")),
        ("elsewhere_open", Err("nobody's by name")),
        ("claim", Err("nobody's yet")),
        ("setup_session", Err("nobody's yet")),
        ("wizard", Err("nobody's yet")),
        ("additions", Err("the layout of the file")),
        ("sqlite_sequence", Err("the file's own")),
    ];

    /// A box on which Zoë has something in every table, and Ben.
    fn place() -> (Members, MemberId, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let members = Members::open(&folder.path().join("polder.db")).unwrap();
        let add = |name: &str, email: &str| {
            let password = Secret::new("four words in a row".into());
            let new = NewMember { name: name.into(), email: Some(email.into()), password };
            members.add_member(&new, Role::Steward).unwrap().id
        };
        let (ben, zoe) = (add("Ben", "ben@oak.example"), add("Zo\u{eb}", "zoe@canary.example"));
        let (_, session) = members.begin_session(zoe).unwrap();
        let key = NewKey { label: "canary-key".into(), ..Default::default() };
        let key = members.mint_key(zoe, &key).unwrap().info.id.0;
        let hour = std::time::Duration::from_secs(3600);
        members.invite(zoe, Role::Member, "canary-invite", hour).unwrap();
        let redirects = vec!["https://wiki.example/back".to_owned()];
        let new = NewClientApp { name: "canary-app".into(), redirects, ..Default::default() };
        let app = members.add_client_app(&new).unwrap().0.id;
        for _ in 0..2 {
            members.agree_to_app(zoe, &app, "openid", false).unwrap();
            members.take_back_from_app(zoe, &app).unwrap();
        }
        members.agree_to_app(zoe, &app, "openid", false).unwrap();
        let visit = NewVisit {
            app,
            issuer: "https://oak.local".into(),
            redirect: "https://wiki.example/back".into(),
            challenge: None,
            nonce: None,
            scope: "openid".into(),
        };
        members.begin_visit(session.expose(), &visit).unwrap().unwrap();
        members.db().execute_batch(&format!(
            "INSERT INTO usage VALUES ('2026-11-01', {z}, '{key}', 'canary-model', 3, 4, 5);
             INSERT INTO quota_use VALUES ('{key}', 24322, 77);
             INSERT INTO identities VALUES ('https://sso.example', 'canary-subject', {z}, 'canary-shown', 'zoe@canary.example', 1, 5, 6);
             INSERT INTO ledger (day, kind, member, cents, note, by_member, at) VALUES ('2026-11-02', 'payment', {z}, 4711, 'dues', {b}, 7);
             INSERT INTO trial VALUES ({z}, 1);
             INSERT INTO usage_shares VALUES ({z}, 24322);
             INSERT INTO sheets VALUES (86400, 1, {z}, 'Zo\u{eb}', x'00', 90000);
             INSERT INTO proposals (target, what, successor, by, at) VALUES ({b}, 'member', NULL, {z}, 172800);
             INSERT INTO recovery VALUES (1, 259200, {z}, 'Zo\u{eb}', 'zo\u{eb}', NULL, 'Ben');
             INSERT INTO ending VALUES (1, 'Zo\u{eb}', {z}, 345600, 1);
             INSERT INTO announcements (at, by, text) VALUES (432000, 'the box', 'Zo\u{eb} looks after it');
             INSERT INTO announcements_read VALUES ({z}, (SELECT max(id) FROM announcements));",
            z = zoe.0, b = ben.0
        )).unwrap();
        (members, zoe, folder)
    }

    fn tables(members: &Members) -> Vec<String> {
        let db = members.db();
        let mut query = db
            .prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            .unwrap();
        let rows = query.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn what_a_member_takes_along_is_of_every_table_that_knows_them() {
        let (members, zoe, _folder) = place();
        let there: std::collections::BTreeSet<String> = tables(&members).into_iter().collect();
        let known = WHERE.iter().map(|(table, _)| (*table).to_owned()).collect();
        assert_eq!(there, known, "say where the table is in a member's own data, or why not");
        let files = members.own_data(zoe).unwrap();
        let file = |name: &str| &files.iter().find(|(known, _)| *known == name).unwrap().1;
        for (table, place) in WHERE {
            assert!(place.is_err() || !file(place.unwrap()).is_empty(), "{table}");
        }
        for (name, canaries) in [
            ("profile.json", &["zoe@canary.example", "never_asked_elsewhere", "has_password"][..]),
            ("keys.json", &["canary-key", "refuses_unknown_fields", "waits_for_others"]),
            ("invites.json", &["canary-invite"]),
            ("usage-by-day.json", &["canary-model"]),
            ("usage-by-month.json", &["canary-model"]),
            (
                "identities.json",
                &["canary-subject", "canary-shown", "zoe@canary.example", "1970-01-01T00:00:05Z"],
            ),
            ("apps.json", &["canary-app"]),
            ("at-apps.json", &["canary-app"]),
            ("money.csv", &["47.11"]),
            (
                "collective.json",
                &[
                    "\"under_its_usual_name\": true",
                    "2026-11",
                    "1970-01-02T00:00:00Z",
                    "1970-01-02T01:00:00Z",
                    "1970-01-03T00:00:00Z",
                    "1970-01-04T00:00:00Z",
                    "1970-01-05T00:00:00Z",
                    "1970-01-06T00:00:00Z",
                    "agreed-again",
                ],
            ),
        ] {
            for canary in canaries {
                assert!(file(name).contains(canary), "{canary} is not in {name}: {}", file(name));
            }
        }
        for (name, text) in &files {
            assert!(!text.contains("Ben") && !text.contains("ben@"), "{name}: {text}");
        }
    }

    #[test]
    fn of_a_member_who_was_removed_nothing_is_left_but_what_their_plan_says() {
        let (members, zoe, _folder) = place();
        let goes = members.belongings(zoe).unwrap();
        assert_eq!((goes.keys, goes.sessions, goes.invites, goes.usage), (1, 1, 1, 1));
        assert!(goes.sheet && goes.entries == 1);
        members.remove_member(zoe).unwrap();
        let mut left = Vec::new();
        for table in tables(&members) {
            let db = members.db();
            let mut query = db.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
            let columns: Vec<String> = query.column_names().map(str::to_owned).collect();
            let mut rows = query.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for (at, column) in columns.iter().enumerate() {
                    let of_a_member =
                        ["member", "made_by", "holder", "target", "successor", "by_member"];
                    let is = match row.get::<_, Cell>(at).unwrap() {
                        Cell::Integer(number) => {
                            number == zoe.0 && of_a_member.contains(&column.as_str())
                        }
                        Cell::Text(text) => ["zo\u{eb}", "zoe@", "canary-"]
                            .iter()
                            .any(|word| text.to_lowercase().contains(word)),
                        _ => false,
                    };
                    if is {
                        left.push(format!("{table}.{column}"));
                    }
                }
            }
        }
        left.sort();
        left.dedup();
        assert_eq!(
            left,
            [
                // Everybody was told, and everybody's app.
                "announcements.text",
                "client_apps.name",
                // Until the engines have forgotten.
                "forgetting.member",
                // A number, and the name until somebody asks that it go.
                "ledger.member",
                "ledger_names.member",
                "ledger_names.name",
                // A number.
                "revocations.member",
                // Whom to ask for the paper, until new ones are made.
                "sheets.holder_name",
            ]
        );
        members.take_name_off(zoe.0).unwrap();
    }
}
