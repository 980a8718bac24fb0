//! What is a member's own, for them to take along; and how much goes when they leave.

use std::collections::BTreeMap;

use rusqlite::params;
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
        let linked: Vec<Value> = self
            .identities(id)?
            .iter()
            .map(|l| json!({ "issuer": l.issuer, "name": l.shown, "email": l.email, "last_used": time(l.seen_at) }))
            .collect();
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
            ("identities.json", text(&json!(linked))),
            ("apps.json", text(&json!(apps))),
            ("money.csv", money),
            ("sessions.json", text(&sessions)),
            ("invites.json", text(&invites)),
            ("usage-by-month.json", text(&json!(months))),
            ("usage-by-day.json", text(&json!(days))),
        ])
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
