//! What was answered by servers elsewhere and what it cost, month by month, kept within a budget.
//!
//! What a question may cost is set aside before it is asked, on the disk, and settled when its answer is over. What is still set
//! aside when the box starts was cut off by a power cut: it counts as spent, because nobody can say that it was not.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags, Row, params};

use crate::clock::Clock;
use crate::usage::{Ledger, MOST};
use crate::{Members, MembersError};

/// Months that are kept, this one too.
const KEPT_MONTHS: i64 = 25;

/// What a server elsewhere has cost this month, in millionths of the collective's currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Month {
    /// By answers that are over.
    pub spent: u64,
    /// Set aside for those that are not.
    pub reserved: u64,
}

/// The month's budget would not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUsedUp {
    /// Seconds until the next month begins.
    pub seconds: u64,
}

/// What an answer from elsewhere used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsedElsewhere {
    /// Tokens read.
    pub prompt: u64,
    /// Tokens written.
    pub completion: u64,
    /// In millionths.
    pub cost: u64,
    /// False for a question that was not answered at all: it is no request then.
    pub answered: bool,
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentElsewhere {
    /// `2026-11`, UTC.
    pub month: String,
    /// Which server.
    pub upstream: String,
    /// Which model, as members call it.
    pub model: String,
    /// Requests.
    pub requests: u64,
    /// Tokens read.
    pub prompt: u64,
    /// Tokens written.
    pub completion: u64,
    /// In millionths.
    pub cost: u64,
}

impl SpentElsewhere {
    /// Of the last `months` calendar months, newest first, read beside a box that runs. Nothing is written; a box without a database has
    /// spent nothing.
    pub fn read(path: &Path, months: u32) -> Result<Vec<Self>, MembersError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Self::since(&db, Clock::system().month(), months)
    }

    fn since(db: &Connection, now: i64, months: u32) -> Result<Vec<Self>, MembersError> {
        let since = now - i64::from(months.min(KEPT_MONTHS as u32)) + 1;
        let mut query = db.prepare_cached(
            "SELECT month, upstream, model, requests, prompt, completion, cost FROM elsewhere
             WHERE month >= ?1 ORDER BY month DESC, upstream, model",
        )?;
        let rows = query.query_map([since], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// The present month of every server that was asked.
#[derive(Default)]
pub(crate) struct Books(Mutex<HashMap<String, Book>>);

#[derive(Clone, Copy)]
struct Book {
    month: i64,
    now: Month,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Book>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Money that is set aside for one question. Dropped without a word it counts as spent.
pub struct Reserved {
    id: i64,
    month: i64,
    upstream: String,
    model: String,
    cost: u64,
    books: Arc<Books>,
    ledger: Arc<Ledger>,
    over: bool,
}

impl Reserved {
    /// The answer is over and used this. *In memory*; on the disk within a second.
    pub fn settle(mut self, used: UsedElsewhere) {
        self.end(used);
    }

    fn end(&mut self, used: UsedElsewhere) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(book) = self.books.lock().get_mut(&self.upstream)
            && book.month == self.month
        {
            book.now.reserved = book.now.reserved.saturating_sub(self.cost);
            book.now.spent = book.now.spent.saturating_add(used.cost);
        }
        let (upstream, model) = (self.upstream.clone(), self.model.clone());
        self.ledger.add_settled(Settled { id: self.id, month: self.month, upstream, model, used });
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.end(UsedElsewhere { cost: self.cost, answered: true, ..UsedElsewhere::default() });
    }
}

/// On its way to the disk.
#[derive(Clone)]
pub(crate) struct Settled {
    id: i64,
    month: i64,
    upstream: String,
    model: String,
    used: UsedElsewhere,
}

impl Settled {
    pub(crate) fn write(&self, change: &Connection) -> rusqlite::Result<()> {
        let open = change
            .prepare_cached("DELETE FROM elsewhere_open WHERE id = ?1")?
            .execute([self.id])?;
        let nothing = !self.used.answered && self.used.cost == 0;
        // It was counted already, or there is nothing to count.
        if open == 0 || nothing {
            return Ok(());
        }
        let sql = |n: u64| n.min(MOST as u64 - 1) as i64;
        change
            .prepare_cached(ADD)?
            .execute(params![
                self.month,
                self.upstream,
                self.model,
                i64::from(self.used.answered),
                sql(self.used.prompt),
                sql(self.used.completion),
                sql(self.used.cost),
                MOST
            ])
            .map(drop)
    }
}

const ADD: &str =
    "INSERT INTO elsewhere (month, upstream, model, requests, prompt, completion, cost)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT DO UPDATE SET requests = min(requests + excluded.requests, ?8),
        prompt = min(prompt + excluded.prompt, ?8),
        completion = min(completion + excluded.completion, ?8),
        cost = min(cost + excluded.cost, ?8)";

/// At the start: what was going on when the box went down counts as spent.
pub(crate) fn close_left_open(db: &Connection) -> Result<(), MembersError> {
    db.execute_batch(
        "BEGIN IMMEDIATE;
         INSERT INTO elsewhere (month, upstream, model, requests, prompt, completion, cost)
            SELECT month, upstream, model, count(*), 0, 0, sum(cost) FROM elsewhere_open
            WHERE true GROUP BY month, upstream, model
            ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
                cost = cost + excluded.cost;
         DELETE FROM elsewhere_open;
         COMMIT;",
    )?;
    Ok(())
}

impl Members {
    /// Sets aside what a question to `upstream` may cost, if that is still within the month's `budget`; both in millionths. On the disk
    /// when this returns.
    pub fn reserve_elsewhere(
        &self,
        upstream: &str,
        model: &str,
        budget: u64,
        cost: u64,
    ) -> Result<Result<Reserved, BudgetUsedUp>, MembersError> {
        let (clock, cost) = (&self.0.clock, cost.min(MOST as u64 / 2));
        let month = clock.month();
        // Held throughout, so that two cannot pass where there is room for one.
        let mut db = self.db();
        let now = self.book(&mut db, upstream)?;
        // What costs nothing needs no budget.
        if cost > 0 && now.spent.saturating_add(now.reserved).saturating_add(cost) > budget {
            return Ok(Err(BudgetUsedUp { seconds: clock.seconds_left_in_month() }));
        }
        db.prepare_cached(
            "INSERT INTO elsewhere_open (month, upstream, model, cost) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![month, upstream, model, cost as i64])?;
        let id = db.last_insert_rowid();
        let mut books = self.0.elsewhere.lock();
        if let Some(book) = books.get_mut(upstream) {
            book.now.reserved = book.now.reserved.saturating_add(cost);
        }
        drop(books);
        Ok(Ok(Reserved {
            id,
            month,
            upstream: upstream.to_owned(),
            model: model.to_owned(),
            cost,
            books: self.0.elsewhere.clone(),
            ledger: self.0.ledger.clone(),
            over: false,
        }))
    }

    /// What a server elsewhere has cost this month.
    pub fn month_elsewhere(&self, upstream: &str) -> Result<Month, MembersError> {
        let mut db = self.db();
        self.book(&mut db, upstream)
    }

    /// The book of the present month, opened if it is another than the last one seen.
    fn book(&self, db: &mut Connection, upstream: &str) -> Result<Month, MembersError> {
        let month = self.0.clock.month();
        let known = self.0.elsewhere.lock().get(upstream).copied();
        if let Some(book) = known
            && book.month == month
        {
            return Ok(book.now);
        }
        // What is settled must not be read from the disk before it is there.
        self.0.ledger.write(db, &self.0.clock)?;
        let sum = |table: &str| -> rusqlite::Result<u64> {
            let question = format!(
                "SELECT coalesce(sum(cost), 0) FROM {table} WHERE month = ?1 AND upstream = ?2"
            );
            db.query_row(&question, params![month, upstream], |row| row.get::<_, i64>(0))
                .map(|sum| sum.max(0) as u64)
        };
        let now = Month { spent: sum("elsewhere")?, reserved: sum("elsewhere_open")? };
        // Months that nobody looks up any more.
        db.execute("DELETE FROM elsewhere WHERE month <= ?1", [month - KEPT_MONTHS])?;
        self.0.elsewhere.lock().insert(upstream.to_owned(), Book { month, now });
        Ok(now)
    }

    /// What was answered elsewhere in the last `months` calendar months, newest first. Nobody's name is in it.
    pub fn spent_elsewhere(&self, months: u32) -> Result<Vec<SpentElsewhere>, MembersError> {
        self.catch_up();
        SpentElsewhere::since(&self.db(), self.0.clock.month(), months)
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<SpentElsewhere> {
    let count = |i: usize| row.get::<_, i64>(i).map(|n| n.max(0) as u64);
    Ok(SpentElsewhere {
        month: Clock::month_in_words(row.get(0)?),
        upstream: row.get(1)?,
        model: row.get(2)?,
        requests: count(3)?,
        prompt: count(4)?,
        completion: count(5)?,
        cost: count(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &std::path::Path, clock: &Clock) -> Members {
        Members::open_with_clock(&folder.join("polder.db"), clock.clone()).unwrap()
    }

    fn used(cost: u64) -> UsedElsewhere {
        UsedElsewhere { prompt: 10, completion: 5, cost, answered: true }
    }

    #[test]
    fn what_is_set_aside_and_what_was_spent_never_go_beyond_the_budget_together() {
        let folder = tempfile::tempdir().unwrap();
        let members = open(folder.path(), &Clock::system());
        let ask = |cost| members.reserve_elsewhere("cloud", "big", 100, cost).unwrap();
        let first = ask(60).ok().unwrap();
        assert!(ask(41).is_err(), "60 are set aside");
        let second = ask(40).ok().unwrap();
        assert_eq!(members.month_elsewhere("cloud").unwrap(), Month { spent: 0, reserved: 100 });
        first.settle(used(10));
        assert_eq!(members.month_elsewhere("cloud").unwrap(), Month { spent: 10, reserved: 40 });
        second.settle(UsedElsewhere::default());
        let third = ask(90).ok().unwrap();
        assert!(ask(1).is_err());
        third.settle(used(90));
        let refused = ask(1).err().unwrap();
        assert!((1..=31 * 86_400).contains(&refused.seconds));
        // One that costs nothing can always be asked.
        ask(0).ok().unwrap().settle(used(0));
        // Another one has its own budget.
        assert!(members.reserve_elsewhere("elm", "big", 1, 1).unwrap().is_ok());
        let rows = members.spent_elsewhere(1).unwrap();
        assert_eq!((rows.len(), rows[0].requests, rows[0].cost), (2, 3, 100), "{rows:?}");
        assert_eq!((rows[0].prompt, rows[0].completion), (30, 15));
    }

    #[test]
    fn many_at_once_do_not_pass_where_there_is_room_for_some() {
        let folder = tempfile::tempdir().unwrap();
        let members = open(folder.path(), &Clock::system());
        let passed: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let got = members.reserve_elsewhere("cloud", "big", 50, 20).unwrap();
                        got.map(|reserved| reserved.settle(used(20))).is_ok()
                    })
                })
                .collect();
            tries.into_iter().map(|t| usize::from(t.join().unwrap())).sum()
        });
        assert_eq!(passed, 2);
        assert_eq!(members.month_elsewhere("cloud").unwrap().spent, 40);
    }

    #[test]
    fn a_month_begins_anew_by_the_clock_and_what_began_in_the_last_one_belongs_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let members = open(folder.path(), &clock);
        let ask = |cost| members.reserve_elsewhere("cloud", "big", 100, cost).unwrap();
        ask(70).ok().unwrap().settle(used(70));
        let late = ask(30).ok().unwrap();
        clock.pass(32 * 86_400);
        assert_eq!(members.month_elsewhere("cloud").unwrap(), Month::default());
        late.settle(used(30));
        assert_eq!(members.month_elsewhere("cloud").unwrap(), Month::default());
        ask(100).ok().unwrap().settle(used(100));
        // A clock that goes back finds that month as it was.
        clock.pass(-32 * 86_400);
        assert_eq!(members.month_elsewhere("cloud").unwrap().spent, 100);
        clock.pass(32 * 86_400);
        assert_eq!(members.month_elsewhere("cloud").unwrap().spent, 100);
        let costs: Vec<u64> = members.spent_elsewhere(3).unwrap().iter().map(|r| r.cost).collect();
        assert_eq!(costs, [100, 100]);
    }

    #[test]
    fn what_a_power_cut_left_open_counts_as_spent_once() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let members = open(folder.path(), &clock);
        let open_one = members.reserve_elsewhere("cloud", "big", 100, 60).unwrap().ok().unwrap();
        // A second start while the first's question is still going on: as after a power cut.
        std::mem::forget(open_one);
        let again = open(folder.path(), &clock);
        assert_eq!(again.month_elsewhere("cloud").unwrap(), Month { spent: 60, reserved: 0 });
        drop(again);
        let again = open(folder.path(), &clock);
        assert_eq!(again.month_elsewhere("cloud").unwrap().spent, 60);
        assert!(again.reserve_elsewhere("cloud", "big", 100, 41).unwrap().is_err());
    }

    #[test]
    fn one_that_is_dropped_without_a_word_counts_as_it_was_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let members = open(folder.path(), &Clock::system());
        drop(members.reserve_elsewhere("cloud", "big", 100, 25).unwrap().ok());
        assert_eq!(members.month_elsewhere("cloud").unwrap(), Month { spent: 25, reserved: 0 });
    }

    #[test]
    fn months_that_nobody_looks_up_any_more_go() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let members = open(folder.path(), &clock);
        members.reserve_elsewhere("cloud", "big", 9, 5).unwrap().ok().unwrap().settle(used(5));
        members.flush().unwrap();
        assert_eq!(members.spent_elsewhere(25).unwrap().len(), 1);
        clock.pass(27 * 31 * 86_400);
        members.month_elsewhere("cloud").unwrap();
        let left: i64 =
            members.db().query_row("SELECT count(*) FROM elsewhere", [], |r| r.get(0)).unwrap();
        assert_eq!(left, 0);
    }
}
