use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::limits::Bucket;
use crate::people::Ready;
use crate::secret::{self, Digest};
use crate::usage::Ledger;
use crate::{
    KeyRefused, LimitReached, MemberId, Members, MembersError, Role, Secret, Share, words,
};

/// Every key begins with this, so that people and secret scanners know what they found.
const PREFIX: &str = "plk_";
/// What the key of `polder up --yes` is called.
const UP: &str = "up";
/// What the box's own key for asking its models is called.
const TEST: &str = "the box's own test";
/// Such a key lives so long: a model that is asked with it may have to be loaded first.
const TEST_LIVES: Duration = Duration::from_secs(10 * 60);
/// A member has at most this many keys.
const MOST_PER_MEMBER: i64 = 100;
/// A key that expired is shown for so many seconds, so that its member sees why a program stopped, and then removed: a program that
/// makes itself a new one each night must not fill the list.
const EXPIRED_KEPT: i64 = 30 * 24 * 3600;
/// "Last used" is written at most this often, in seconds.
const USED_EVERY: i64 = 60;

/// Names a key; not secret: it is the part after `plk_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub String);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The API under `/v1`.
    Api,
    /// `GET /auth`: other web apps that ask this box who somebody is.
    Auth,
}

impl Scope {
    /// Both.
    pub const ALL: [Scope; 2] = [Scope::Api, Scope::Auth];
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Auth => "auth",
        }
    }
}

/// What a key may use; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Requests per minute; as many may come at once.
    pub requests_per_minute: Option<u32>,
    /// Prompt and completion tokens per minute. What a request costs is known after it, so one
    /// may go over and the next then waits.
    pub tokens_per_minute: Option<u32>,
    /// Prompt and completion tokens per calendar month (UTC). The request that crosses it is
    /// finished; the next is refused.
    pub tokens_per_month: Option<u64>,
    /// Requests at once.
    pub at_once: Option<u32>,
}

/// What a key should be.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// What its owner calls it.
    pub label: String,
    /// What it opens; empty means the API.
    pub scopes: Vec<Scope>,
    /// Only these models; empty means all.
    pub models: Vec<String>,
    /// Refuse unknown fields in requests instead of naming them.
    pub strict: bool,
    /// Its requests wait for those of its owner's that are not in the background.
    pub background: bool,
    /// What is asked with it is never answered elsewhere.
    pub stays_here: bool,
    /// Good for this long; `None` until it is revoked.
    pub expires_in: Option<Duration>,
    /// What it may use.
    pub limits: KeyLimits,
}

/// A key as its owner sees it: everything but the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Which.
    pub id: KeyId,
    /// Whose.
    pub member: MemberId,
    /// What it is called.
    pub label: String,
    /// What it opens.
    pub scopes: Vec<Scope>,
    /// Only these models; empty means all.
    pub models: Vec<String>,
    /// Unknown request fields are refused.
    pub strict: bool,
    /// Its requests wait for the owner's others.
    pub background: bool,
    /// What is asked with it is never answered elsewhere.
    pub stays_here: bool,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub expires_at: Option<i64>,
    /// Unix seconds, within a minute or so.
    pub used_at: Option<i64>,
    /// What it may use.
    pub limits: KeyLimits,
    /// Tokens used this month; counted only for a key with a monthly quota.
    pub tokens_this_month: u64,
}

impl KeyInfo {
    /// Its beginning, by which its owner knows it again: `plk_ab3d…`.
    pub fn beginning(&self) -> String {
        format!("{PREFIX}{}…", self.id.0.chars().take(12).collect::<String>())
    }
}

/// A new key, with the one sight of its secret.
#[derive(Debug, Clone)]
pub struct MintedKey {
    /// What is kept.
    pub info: KeyInfo,
    /// What is shown once.
    pub key: Secret,
}

/// What a good key says of its bearer.
#[derive(Clone)]
pub struct KeyGrant {
    /// Which key.
    pub key: KeyId,
    /// What its owner calls it.
    pub label: String,
    /// Whose it is.
    pub member: MemberId,
    /// What they are called.
    pub member_name: String,
    /// What they may do.
    pub role: Role,
    /// What the key opens.
    pub scopes: Vec<Scope>,
    /// Only these models; empty means all.
    pub models: Vec<String>,
    /// Refuse unknown request fields instead of naming them.
    pub strict: bool,
    /// Its requests wait for the owner's others.
    pub background: bool,
    /// Nothing that is asked with it leaves the box: because of the key, or of its owner.
    pub stays_here: bool,
    /// What its owner may claim of the engines.
    pub share: Share,
    /// Fires when the key is revoked, or its owner disabled or removed: end what runs.
    pub revoked: CancellationToken,
    limits: KeyLimits,
    expires_at: Option<i64>,
    counters: Arc<Counters>,
}

impl KeyGrant {
    /// Does the key open this?
    pub fn opens(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
    /// May the key use this model?
    pub fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|m| m == model)
    }
    fn is_over(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }
}

impl std::fmt::Debug for KeyGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyGrant")
            .field("key", &self.key)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

/// One admitted request. Dropping it frees its place among the requests at once.
pub struct Admission {
    grant: Arc<KeyGrant>,
    ledger: Arc<Ledger>,
    clock: Clock,
    /// Tokens set aside for it while it runs.
    reserved: u64,
}

impl Admission {
    /// Does the key have a limit in tokens?
    pub fn counts_tokens(&self) -> bool {
        let KeyLimits { tokens_per_minute, tokens_per_month, .. } = self.grant.limits;
        tokens_per_minute.is_some() || tokens_per_month.is_some()
    }

    /// Has the key's time run out since the request was admitted?
    pub fn expired(&self) -> bool {
        self.grant.expires_at.is_some() && self.grant.is_over(self.clock.seconds())
    }

    /// Sets tokens aside until the request is over, so that many at once do not go through a limit
    /// together. Refused when what runs already may use up what is left; a request alone never is.
    pub fn reserve(&mut self, tokens: u64) -> Result<(), LimitReached> {
        if !self.counts_tokens() {
            return Ok(());
        }
        let KeyLimits { tokens_per_minute, tokens_per_month, .. } = self.grant.limits;
        let mut state = self.grant.counters.lock();
        let others = state.reserved - self.reserved;
        if others > 0 {
            state.turn_month(self.clock.month());
            if let Some(limit) = tokens_per_month
                && state.month_tokens.saturating_add(others) >= limit
            {
                return Err(LimitReached::Reserved { limit });
            }
            if let Some(limit) = tokens_per_minute {
                let (need, per_minute) = (1.0 + others as f64, f64::from(limit));
                let enough = state.tokens.has(need, per_minute, per_minute, self.clock.millis());
                enough.map_err(|_| LimitReached::Reserved { limit: limit.into() })?;
            }
        }
        // No single request is believed to be larger than this, and the sum cannot overflow.
        self.reserved = tokens.min(1 << 32);
        state.reserved = others + self.reserved;
        Ok(())
    }

    /// Counts what the request used, towards the key's limits and, where the site counts, towards
    /// its member's usage. Call it once, when the answer is over, complete or not. *In memory*; on
    /// the disk within a second.
    pub fn count(&self, model: &str, prompt: u64, completion: u64) {
        let tokens = prompt.saturating_add(completion);
        let KeyLimits { tokens_per_minute, tokens_per_month, .. } = self.grant.limits;
        if tokens_per_minute.is_some() || tokens_per_month.is_some() {
            let mut state = self.grant.counters.lock();
            state.turn_month(self.clock.month());
            state.tokens.pay(tokens as f64);
            state.month_tokens = state.month_tokens.saturating_add(tokens);
        }
        if tokens_per_month.is_some() {
            self.ledger.add_quota(&self.grant.key, self.clock.month(), tokens);
        }
        let key = Some(&self.grant.key);
        self.ledger.add_usage(&self.clock, self.grant.member, key, model, prompt, completion);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.grant.counters.lock();
        state.running -= 1;
        state.reserved -= self.reserved;
    }
}

/// What a key used lately; shared by everyone who holds its grant.
pub(crate) struct Counters {
    state: Mutex<CounterState>,
    used_at: AtomicI64,
}

struct CounterState {
    requests: Bucket,
    tokens: Bucket,
    running: u32,
    /// Tokens set aside for what runs.
    reserved: u64,
    month: i64,
    month_tokens: u64,
}

impl Counters {
    fn new(limits: &KeyLimits, clock: &Clock, month_tokens: u64, used_at: i64) -> Self {
        let size = |limit: Option<u32>| f64::from(limit.unwrap_or(0));
        let now = clock.millis();
        Self {
            state: Mutex::new(CounterState {
                requests: Bucket::full(size(limits.requests_per_minute), now),
                tokens: Bucket::full(size(limits.tokens_per_minute), now),
                running: 0,
                reserved: 0,
                month: clock.month(),
                month_tokens,
            }),
            used_at: AtomicI64::new(used_at),
        }
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, CounterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CounterState {
    fn turn_month(&mut self, month: i64) {
        if self.month != month {
            (self.month, self.month_tokens) = (month, 0);
        }
    }
}

/// A key that works now.
pub(crate) struct Live {
    digest: Digest,
    grant: Arc<KeyGrant>,
}

impl Members {
    /// Whose key is this? *In memory*: about half a microsecond.
    pub fn verify_key(&self, key: &str) -> Result<Arc<KeyGrant>, KeyRefused> {
        let rest = key.strip_prefix(PREFIX).ok_or(KeyRefused::Unknown)?;
        let (id, _) = rest.split_once('_').ok_or(KeyRefused::Unknown)?;
        let grant = {
            let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
            let live = keys.get(id).ok_or(KeyRefused::Unknown)?;
            if !Digest::of(key).same(&live.digest.0) {
                return Err(KeyRefused::Unknown);
            }
            live.grant.clone()
        };
        let now = self.now();
        if grant.is_over(now) {
            return Err(KeyRefused::Expired);
        }
        if now - grant.counters.used_at.load(Ordering::Relaxed) >= USED_EVERY {
            grant.counters.used_at.store(now, Ordering::Relaxed);
            self.0.ledger.touch(&grant.key, now);
        }
        Ok(grant)
    }

    /// Takes a place for one request, or says which limit of the key is reached. *In memory*.
    pub fn admit(&self, grant: &Arc<KeyGrant>) -> Result<Admission, LimitReached> {
        let (limits, clock) = (&grant.limits, &self.0.clock);
        let now = clock.millis();
        let mut state = grant.counters.lock();
        state.turn_month(clock.month());
        if let Some(limit) = limits.tokens_per_month
            && state.month_tokens >= limit
        {
            return Err(LimitReached::Month { limit, seconds: clock.seconds_left_in_month() });
        }
        if let Some(limit) = limits.at_once
            && state.running >= limit
        {
            return Err(LimitReached::Concurrency { limit });
        }
        if let Some(limit) = limits.tokens_per_minute {
            let per_minute = f64::from(limit);
            state
                .tokens
                .has(1.0, per_minute, per_minute, now)
                .map_err(|seconds| LimitReached::Tokens { limit, seconds })?;
        }
        // Last, because it alone takes something.
        if let Some(limit) = limits.requests_per_minute {
            let per_minute = f64::from(limit);
            state
                .requests
                .has(1.0, per_minute, per_minute, now)
                .map_err(|seconds| LimitReached::Requests { limit, seconds })?;
            state.requests.pay(1.0);
        }
        state.running += 1;
        drop(state);
        Ok(Admission {
            grant: grant.clone(),
            ledger: self.0.ledger.clone(),
            clock: self.0.clock.clone(),
            reserved: 0,
        })
    }

    /// Makes a key. Its secret is in the answer and nowhere else.
    pub fn mint_key(&self, owner: MemberId, new: &NewKey) -> Result<MintedKey, MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let minted = self.insert_key(&change, owner, new, false)?;
        change.commit()?;
        self.reload_keys(&db, Some(owner))?;
        Ok(minted)
    }

    /// For `polder up --yes`: makes sure that there is a steward (named `steward`, without a
    /// password, if there is none), revokes the key that was made so before, makes a new one.
    pub fn ensure_up_key(&self) -> Result<MintedKey, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let owner = match first_steward(&change)? {
            Some(owner) => owner,
            None => add_bare_steward(&change, now)?,
        };
        let before: Vec<String> = change
            .prepare("DELETE FROM keys WHERE for_up AND label = ?1 RETURNING id")?
            .query_map([UP], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let new = NewKey { label: UP.into(), scopes: Scope::ALL.to_vec(), ..NewKey::default() };
        let minted = self.insert_key(&change, owner, &new, true)?;
        change.commit()?;
        self.forget(|id, _| before.contains(id));
        self.reload_keys(&db, Some(owner))?;
        drop(db);
        self.keep_gone();
        Ok(minted)
    }

    /// A key of the first steward with which the box asks its own models something, as a member would. There is
    /// one at a time: the one before goes, and it goes by itself after ten minutes. None while nobody owns the box.
    pub fn mint_test_key(&self) -> Result<Option<MintedKey>, MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some(owner) = first_steward(&change)? else { return Ok(None) };
        let before: Vec<String> = change
            .prepare("DELETE FROM keys WHERE for_up AND label = ?1 RETURNING id")?
            .query_map([TEST], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let new = NewKey {
            label: TEST.into(),
            expires_in: Some(TEST_LIVES),
            limits: KeyLimits { at_once: Some(1), ..KeyLimits::default() },
            ..NewKey::default()
        };
        let minted = self.insert_key(&change, owner, &new, true)?;
        change.commit()?;
        self.forget(|id, _| before.contains(id));
        self.reload_keys(&db, Some(owner))?;
        Ok(Some(minted))
    }

    /// A member's keys, newest first.
    pub fn keys_of(&self, owner: MemberId) -> Result<Vec<KeyInfo>, MembersError> {
        self.catch_up();
        let month = self.0.clock.month();
        let db = self.db();
        let mut query = db.prepare_cached(&format!(
            "{SELECT} WHERE k.member = ?2 ORDER BY k.created_at DESC, k.rowid DESC"
        ))?;
        let rows = query.query_map([month, owner.0], info_from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Revokes one of a member's own keys: it opens nothing from now on, and what it runs ends.
    pub fn revoke_key(&self, owner: MemberId, key: &KeyId) -> Result<KeyInfo, MembersError> {
        let month = self.0.clock.month();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let info = change
            .query_row(
                &format!("{SELECT} WHERE k.member = ?2 AND k.id = ?3"),
                params![month, owner.0, key.0],
                info_from_row,
            )
            .optional()?
            .ok_or(MembersError::NoKey)?;
        change.execute("DELETE FROM keys WHERE id = ?1", [&key.0])?;
        change.commit()?;
        // It is gone for good: nothing that may fail stands between that and the key's end.
        self.forget(|id, _| *id == key.0);
        drop(db);
        self.keep_gone();
        Ok(info)
    }

    /// A member may use the box no more: none of their keys opens anything, and what they run ends.
    /// Cannot fail.
    pub(crate) fn forget_owner(&self, owner: MemberId) {
        self.forget(|_, live| live.grant.member == owner);
    }

    /// Takes keys out of memory and ends what they run.
    fn forget(&self, which: impl Fn(&String, &Live) -> bool) {
        let mut keys = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|id, live| {
            let goes = which(id, live);
            if goes {
                live.grant.revoked.cancel();
            }
            !goes
        });
    }

    /// After a member changed: their keys as they are now, or none.
    pub(crate) fn refresh_owner(&self, owner: MemberId) -> Result<(), MembersError> {
        self.reload_keys(&self.db(), Some(owner))
    }

    fn insert_key(
        &self,
        change: &Connection,
        owner: MemberId,
        new: &NewKey,
        for_up: bool,
    ) -> Result<MintedKey, MembersError> {
        let label = words::line("label", &new.label, 60)?;
        let label = if label.is_empty() { "unnamed".to_owned() } else { label };
        check_limits(&new.limits)?;
        let name_ok = |m: &String| {
            (1..=64).contains(&m.len())
                && m.chars().all(|c| c.is_ascii_alphanumeric() || "-._/:".contains(c))
        };
        if new.models.len() > 64 || !new.models.iter().all(name_ok) {
            return Err(MembersError::Field("a model's name in the key is not one".into()));
        }
        change.execute(
            "DELETE FROM keys WHERE member = ?1 AND expires_at <= ?2",
            [owner.0, self.now().saturating_sub(EXPIRED_KEPT)],
        )?;
        let held: i64 =
            change.query_row("SELECT count(*) FROM keys WHERE member = ?1", [owner.0], |row| {
                row.get(0)
            })?;
        if held >= MOST_PER_MEMBER {
            return Err(MembersError::Field(format!(
                "there are {MOST_PER_MEMBER} keys already; revoke those that nobody uses"
            )));
        }
        let scopes = if new.scopes.is_empty() { vec![Scope::Api] } else { new.scopes.clone() };
        let id = secret::short_id()?;
        let key = Secret::new(format!("{PREFIX}{id}_{}", secret::token()?.expose()));
        let now = self.now();
        let expires_at =
            new.expires_in.map(|after| now.saturating_add(after.as_secs().min(1 << 40) as i64));
        let limits = new.limits;
        change
            .execute(
                "INSERT INTO keys (id, digest, member, label, scopes, models, strict, for_up,
                    created_at, expires_at, requests_per_minute, tokens_per_minute,
                    tokens_per_month, at_once, background, stays_here)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                params![
                    id,
                    key.digest().0,
                    owner.0,
                    label,
                    scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" "),
                    new.models.join(" "),
                    new.strict,
                    for_up,
                    now,
                    expires_at,
                    limits.requests_per_minute,
                    limits.tokens_per_minute,
                    limits.tokens_per_month.map(|n| n as i64),
                    limits.at_once,
                    new.background,
                    new.stays_here,
                ],
            )
            .map_err(|e| match e.sqlite_error_code() {
                // The only constraint that can fail here is the reference to the owner.
                Some(rusqlite::ErrorCode::ConstraintViolation) => MembersError::NoMember,
                _ => e.into(),
            })?;
        let info = KeyInfo {
            id: KeyId(id),
            member: owner,
            label,
            scopes,
            models: new.models.clone(),
            strict: new.strict,
            background: new.background,
            stays_here: new.stays_here,
            created_at: now,
            expires_at,
            used_at: None,
            limits,
            tokens_this_month: 0,
        };
        Ok(MintedKey { info, key })
    }

    /// Makes the keys in memory those in the database, for one owner or for all. The caller holds the
    /// database, so that two changes cannot overtake each other.
    pub(crate) fn reload_keys(
        &self,
        db: &Connection,
        owner: Option<MemberId>,
    ) -> Result<(), MembersError> {
        let fresh = read_live(db, &self.0.clock, owner)?;
        let mut keys = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        let (old, others): (HashMap<_, _>, HashMap<_, _>) = keys
            .drain()
            .partition(|(_, live)| owner.is_none_or(|owner| live.grant.member == owner));
        *keys = others;
        for (id, mut live) in fresh {
            if let Some(was) = old.get(&id) {
                // What runs goes on, and what was used stays used.
                live.grant = Arc::new(KeyGrant {
                    revoked: was.grant.revoked.clone(),
                    counters: was.grant.counters.clone(),
                    ..(*live.grant).clone()
                });
            }
            keys.insert(id, Arc::new(live));
        }
        for (id, was) in old {
            if !keys.contains_key(&id) {
                was.grant.revoked.cancel();
            }
        }
        Ok(())
    }
}

/// Every key that works, for the start.
pub(crate) fn load(
    db: &Connection,
    clock: &Clock,
) -> Result<HashMap<String, Arc<Live>>, MembersError> {
    Ok(read_live(db, clock, None)?.into_iter().map(|(id, live)| (id, Arc::new(live))).collect())
}

fn read_live(
    db: &Connection,
    clock: &Clock,
    owner: Option<MemberId>,
) -> Result<Vec<(String, Live)>, MembersError> {
    let mut query = db.prepare_cached(&format!(
        "{SELECT} WHERE NOT m.disabled AND (?2 IS NULL OR k.member = ?2)"
    ))?;
    let rows = query.query_map(params![clock.month(), owner.map(|o| o.0)], |row| {
        let info = info_from_row(row)?;
        let digest: Vec<u8> = row.get(14)?;
        let share = Share { percent: row.get(18)?, answers_at_once: row.get(19)? };
        let stays: bool = row.get(21)?;
        Ok((info, digest, row.get(15)?, row.get::<_, String>(16)?, (share, stays)))
    })?;
    let mut live = Vec::new();
    for row in rows {
        let (info, digest, member_name, role, (share, owner_stays)) = row?;
        let Ok(digest) = <[u8; 32]>::try_from(digest) else { continue };
        let counters =
            Counters::new(&info.limits, clock, info.tokens_this_month, info.used_at.unwrap_or(0));
        let grant = KeyGrant {
            key: info.id.clone(),
            label: info.label,
            member: info.member,
            member_name,
            role: Role::from_column(&role),
            scopes: info.scopes,
            models: info.models,
            strict: info.strict,
            background: info.background,
            stays_here: info.stays_here || owner_stays,
            share,
            revoked: CancellationToken::new(),
            limits: info.limits,
            expires_at: info.expires_at,
            counters: Arc::new(counters),
        };
        live.push((info.id.0, Live { digest: Digest(digest), grant: Arc::new(grant) }));
    }
    Ok(live)
}

const SELECT: &str = "SELECT k.id, k.member, k.label, k.scopes, k.models, k.strict, k.created_at,
    k.expires_at, k.used_at, k.requests_per_minute, k.tokens_per_minute, k.tokens_per_month,
    k.at_once, coalesce(q.tokens, 0), k.digest, m.name, m.role, k.background,
    m.share_percent, m.answers_at_once, k.stays_here, m.stays_here
    FROM keys k JOIN members m ON m.id = k.member
    LEFT JOIN quota_use q ON q.key = k.id AND q.month = ?1";

fn info_from_row(row: &Row<'_>) -> rusqlite::Result<KeyInfo> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let scopes = words(row.get(3)?);
    Ok(KeyInfo {
        id: KeyId(row.get(0)?),
        member: MemberId(row.get(1)?),
        label: row.get(2)?,
        scopes: Scope::ALL.into_iter().filter(|s| scopes.iter().any(|w| w == s.as_str())).collect(),
        models: words(row.get(4)?),
        strict: row.get(5)?,
        background: row.get(17)?,
        stays_here: row.get(20)?,
        created_at: row.get(6)?,
        expires_at: row.get(7)?,
        used_at: row.get(8)?,
        limits: KeyLimits {
            requests_per_minute: row.get(9)?,
            tokens_per_minute: row.get(10)?,
            tokens_per_month: row.get::<_, Option<i64>>(11)?.map(|n| n.max(0) as u64),
            at_once: row.get(12)?,
        },
        tokens_this_month: row.get::<_, i64>(13)?.max(0) as u64,
    })
}

fn check_limits(limits: &KeyLimits) -> Result<(), MembersError> {
    let zero = [limits.requests_per_minute, limits.tokens_per_minute, limits.at_once]
        .contains(&Some(0))
        || limits.tokens_per_month == Some(0);
    if zero {
        return Err(MembersError::Field(
            "a limit of 0 would make a key that opens nothing; leave it empty for no limit".into(),
        ));
    }
    if limits.tokens_per_month.is_some_and(|n| n > 1 << 53) {
        return Err(MembersError::Field("the monthly quota is too large to be one".into()));
    }
    Ok(())
}

/// Who has been a steward for longest.
fn first_steward(change: &Connection) -> Result<Option<MemberId>, MembersError> {
    const FIRST: &str =
        "SELECT id FROM members WHERE role = 'steward' AND NOT disabled ORDER BY id LIMIT 1";
    Ok(change.query_row(FIRST, [], |row| row.get(0)).optional()?.map(MemberId))
}

/// `steward`, or `steward 2` and so on where a mere member took that name.
fn add_bare_steward(
    change: &rusqlite::Transaction<'_>,
    now: i64,
) -> Result<MemberId, MembersError> {
    for number in 1..=1000 {
        let name = if number == 1 { "steward".to_owned() } else { format!("steward {number}") };
        let ready = Ready { name_key: name.clone(), name, email: None, password: None };
        match ready.insert(change, Role::Steward, now) {
            Err(MembersError::NameTaken(_)) => {}
            other => return other,
        }
    }
    Err(MembersError::NameTaken("steward".into()))
}
