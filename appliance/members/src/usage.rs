use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row, TransactionBehavior, params};

use crate::clock::Clock;
use crate::elsewhere::Settled;
use crate::{KeyId, MemberId, Members, MembersError, database};

/// Counts older than this are deleted.
pub(crate) const KEPT_DAYS: i64 = 400;

/// What one member used of one model on one day through one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// UTC, `2026-11-23`.
    pub day: String,
    /// Who.
    pub member: MemberId,
    /// What they are called.
    pub member_name: String,
    /// The key's label; `None` for the chat page, and for a key that was revoked since.
    pub key_label: Option<String>,
    /// Which model.
    pub model: String,
    /// Requests.
    pub requests: u64,
    /// Tokens read.
    pub prompt: u64,
    /// Tokens written.
    pub completion: u64,
}

/// How long requests and answers were, and how many people asked. Nobody's name, nothing of what was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsedLengths {
    /// For each day, member, key and model: requests, tokens read, tokens written.
    pub rows: Vec<[u64; 3]>,
    /// Members who asked on the day when most did.
    pub most_members: u64,
}

impl UsedLengths {
    /// Of the last `days` days, read beside a box that runs. Nothing is written; a box without a database has counted nothing.
    pub fn read(path: &Path, days: u32) -> Result<Self, MembersError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let since = Clock::system().day_before(i64::from(days.min(4000)).saturating_sub(1).max(0));
        let mut query =
            db.prepare("SELECT requests, prompt, completion FROM usage WHERE day >= ?1")?;
        let count = |row: &Row<'_>, i: usize| row.get::<_, i64>(i).map(|n| n.max(0) as u64);
        let rows = query
            .query_map([&since], |row| Ok([count(row, 0)?, count(row, 1)?, count(row, 2)?]))?;
        let rows = rows.collect::<Result<_, _>>()?;
        let most_members = db.query_row(
            "SELECT coalesce(max(members), 0) FROM
             (SELECT count(DISTINCT member) AS members FROM usage WHERE day >= ?1 GROUP BY day)",
            [&since],
            |row| count(row, 0),
        )?;
        Ok(Self { rows, most_members })
    }
}

impl Members {
    /// Counts usage per member from now on, or stops. Off until told: the gateway says what the
    /// site says. Stopping deletes nothing; see [`Members::forget_usage`]. A key with a monthly
    /// quota has its month's total counted in any case, and nothing else.
    pub fn set_metering(&self, on: bool) {
        self.0.ledger.metering.store(on, Ordering::Relaxed);
    }

    /// Is usage counted per member?
    pub fn metering(&self) -> bool {
        self.0.ledger.metering.load(Ordering::Relaxed)
    }

    /// Counts a request that came without a key: from the chat page. *In memory*, on the disk
    /// within a second; nothing at all while usage is not counted.
    pub fn count_chat(&self, member: MemberId, model: &str, prompt: u64, completion: u64) {
        self.0.ledger.add_usage(&self.0.clock, member, None, model, prompt, completion);
    }

    /// What a member used in the last `days` days, newest first.
    pub fn usage_of(&self, member: MemberId, days: u32) -> Result<Vec<UsageRow>, MembersError> {
        self.usage(Some(member), days)
    }

    /// What everyone used in the last `days` days, newest first. Whether the asker may see it is
    /// for the caller to decide, by the site's word.
    pub fn usage_of_all(&self, days: u32) -> Result<Vec<UsageRow>, MembersError> {
        self.usage(None, days)
    }

    fn usage(&self, member: Option<MemberId>, days: u32) -> Result<Vec<UsageRow>, MembersError> {
        self.catch_up();
        let since = self.0.clock.day_before(i64::from(days.min(4000)).saturating_sub(1).max(0));
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT u.day, u.member, m.name, k.label, u.model, u.requests, u.prompt, u.completion
             FROM usage u JOIN members m ON m.id = u.member LEFT JOIN keys k ON k.id = u.key
             WHERE u.day >= ?1 AND (?2 IS NULL OR u.member = ?2)
             ORDER BY u.day DESC, m.name_key, u.model, k.label",
        )?;
        let rows = query.query_map(params![since, member.map(|m| m.0)], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Deletes what was counted about a member. (Quota totals stay until the month is over.)
    pub fn forget_usage(&self, member: MemberId) -> Result<(), MembersError> {
        self.flush()?;
        self.db().execute("DELETE FROM usage WHERE member = ?1", [member.0])?;
        Ok(())
    }

    /// [`Members::flush`] before something is shown: on a full disk older counts are better than none.
    pub(crate) fn catch_up(&self) {
        if let Err(error) = self.flush() {
            log::warn!("the newest counts are not shown yet: {error}");
        }
    }

    /// Writes what is counted but not yet on the disk.
    pub fn flush(&self) -> Result<(), MembersError> {
        self.0.ledger.write(&mut self.db(), &self.0.clock)
    }
}

/// Counts on their way to the disk: added up in memory, written by a thread of its own.
pub(crate) struct Ledger {
    metering: AtomicBool,
    pending: Mutex<Pending>,
    more: Condvar,
    /// Held from taking the pending counts until they are committed.
    writing: Mutex<()>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Pending {
    usage: HashMap<(String, MemberId, String, String), Counts>,
    quota: HashMap<(String, i64), u64>,
    used: HashMap<String, i64>,
    settled: Vec<Settled>,
    stop: bool,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    requests: u64,
    prompt: u64,
    completion: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.usage.is_empty()
            && self.quota.is_empty()
            && self.used.is_empty()
            && self.settled.is_empty()
    }
}

impl Ledger {
    pub(crate) fn start(path: &Path, clock: Clock) -> Result<Arc<Self>, MembersError> {
        let mut db = database::connect(path)?;
        let ledger = Arc::new(Self {
            metering: AtomicBool::new(false),
            pending: Mutex::default(),
            more: Condvar::new(),
            writing: Mutex::default(),
            writer: Mutex::default(),
        });
        let own = ledger.clone();
        let writer = std::thread::Builder::new()
            .name("usage".into())
            .spawn(move || own.run(&mut db, &clock))
            .map_err(|e| MembersError::Open { path: path.to_owned(), why: e.to_string() })?;
        *ledger.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(ledger)
    }

    /// Writes what is left and ends the thread.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.more.notify_all();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            log::error!("the thread that writes usage counts died; the last counts may be lost");
        }
    }

    pub(crate) fn add_usage(
        &self,
        clock: &Clock,
        member: MemberId,
        key: Option<&KeyId>,
        model: &str,
        prompt: u64,
        completion: u64,
    ) {
        if !self.metering.load(Ordering::Relaxed) {
            return;
        }
        let key = key.map(|k| k.0.clone()).unwrap_or_default();
        let model = model.chars().take(64).collect();
        let mut pending = self.lock();
        let first = pending.is_empty();
        let counts = pending.usage.entry((clock.day(), member, key, model)).or_default();
        counts.add(Counts { requests: 1, prompt, completion });
        self.tell(first);
    }

    pub(crate) fn add_quota(&self, key: &KeyId, month: i64, tokens: u64) {
        let mut pending = self.lock();
        let first = pending.is_empty();
        let sum = pending.quota.entry((key.0.clone(), month)).or_default();
        *sum = sum.saturating_add(tokens);
        self.tell(first);
    }

    pub(crate) fn touch(&self, key: &KeyId, now: i64) {
        let mut pending = self.lock();
        let first = pending.is_empty();
        pending.used.insert(key.0.clone(), now);
        self.tell(first);
    }

    /// What an answer from elsewhere used, and that nothing is set aside for it any more.
    pub(crate) fn add_settled(&self, settled: Settled) {
        let mut pending = self.lock();
        let first = pending.is_empty();
        pending.settled.push(settled);
        self.tell(first);
    }

    /// Wakes the writer for the first count only: for more it is awake already, and waits.
    fn tell(&self, first: bool) {
        if first {
            self.more.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, db: &mut Connection, clock: &Clock) {
        let mut failing = false;
        loop {
            {
                let mut pending = self.lock();
                while pending.is_empty() && !pending.stop {
                    pending = self.more.wait(pending).unwrap_or_else(PoisonError::into_inner);
                }
                // What comes within a moment shares one write; after a failure, wait for space.
                let pause = Duration::from_millis(if failing { 10_000 } else { 250 });
                if !pending.stop {
                    let _ = self
                        .more
                        .wait_timeout_while(pending, pause, |p| !p.stop)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
            match self.write(db, clock) {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        log::warn!(
                            "usage counts could not be written and are kept in memory: {error}"
                        );
                    }
                    failing = true;
                }
            }
            if self.lock().stop {
                return;
            }
        }
    }

    pub(crate) fn write(&self, db: &mut Connection, clock: &Clock) -> Result<(), MembersError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = {
            let mut pending = self.lock();
            if pending.is_empty() {
                return Ok(());
            }
            let stop = pending.stop;
            std::mem::replace(&mut *pending, Pending { stop, ..Pending::default() })
        };
        let written = store(db, &taken, clock);
        if written.is_err() {
            let mut pending = self.lock();
            for (what, counts) in taken.usage {
                pending.usage.entry(what).or_default().add(counts);
            }
            for (what, tokens) in taken.quota {
                let sum = pending.quota.entry(what).or_default();
                *sum = sum.saturating_add(tokens);
            }
            for (key, at) in taken.used {
                pending.used.entry(key).or_insert(at);
            }
            pending.settled.extend(taken.settled);
        }
        written
    }
}

impl Counts {
    fn add(&mut self, more: Counts) {
        self.requests = self.requests.saturating_add(more.requests);
        self.prompt = self.prompt.saturating_add(more.prompt);
        self.completion = self.completion.saturating_add(more.completion);
    }
}

/// No sum grows beyond this. Two of them still fit a column: one that does not would be refused, and with it every count
/// of everybody that is written along.
pub(crate) const MOST: i64 = 1 << 62;

fn store(db: &mut Connection, taken: &Pending, clock: &Clock) -> Result<(), MembersError> {
    let sql = |n: u64| n.min(MOST as u64 - 1) as i64;
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // A member or key that is gone meanwhile is passed over: nothing is kept about them.
    for ((day, member, key, model), counts) in &taken.usage {
        change
            .prepare_cached(
                "INSERT INTO usage (day, member, key, model, requests, prompt, completion)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM members WHERE id = ?2)
                 ON CONFLICT DO UPDATE SET requests = min(requests + excluded.requests, ?8),
                    prompt = min(prompt + excluded.prompt, ?8),
                    completion = min(completion + excluded.completion, ?8)",
            )?
            .execute(params![
                day,
                member.0,
                key,
                model,
                sql(counts.requests),
                sql(counts.prompt),
                sql(counts.completion),
                MOST
            ])?;
    }
    for ((key, month), tokens) in &taken.quota {
        change
            .prepare_cached(
                "INSERT INTO quota_use (key, month, tokens)
                 SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM keys WHERE id = ?1)
                 ON CONFLICT DO UPDATE SET tokens = min(tokens + excluded.tokens, ?4)",
            )?
            .execute(params![key, month, sql(*tokens), MOST])?;
        change.execute("DELETE FROM quota_use WHERE month < ?1", [clock.month()])?;
    }
    for (key, at) in &taken.used {
        change
            .prepare_cached("UPDATE keys SET used_at = ?2 WHERE id = ?1")?
            .execute(params![key, at])?;
    }
    for settled in &taken.settled {
        settled.write(&change)?;
    }
    if !taken.usage.is_empty() {
        change.execute("DELETE FROM usage WHERE day < ?1", [clock.day_before(KEPT_DAYS)])?;
    }
    Ok(change.commit()?)
}

fn row(row: &Row<'_>) -> rusqlite::Result<UsageRow> {
    let count = |i: usize| row.get::<_, i64>(i).map(|n| n.max(0) as u64);
    Ok(UsageRow {
        day: row.get(0)?,
        member: MemberId(row.get(1)?),
        member_name: row.get(2)?,
        key_label: row.get(3)?,
        model: row.get(4)?,
        requests: count(5)?,
        prompt: count(6)?,
        completion: count(7)?,
    })
}
