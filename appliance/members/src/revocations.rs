//! What must never work again, as a list that only grows: in the database, filled by its own triggers, and beside it in a file that no
//! backup brings back to an earlier day.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use crate::{MemberId, Members, MembersError, agreements, late};

/// The file of what was revoked, in the state folder. Backups have it, and no restore replaces it.
pub const GONE: &str = "gone.jsonl";
/// One answer has at most this many.
const MOST: u32 = 1000;
/// Lines and files beyond this are not ours: a line is some hundred bytes, and a collective is small.
const LONGEST_LINE: usize = 500;
const LONGEST_FILE: u64 = 64 << 20;

/// One thing that works no more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revocation {
    /// Counted from 1, growing.
    pub number: u64,
    /// Unix seconds.
    pub at: i64,
    /// What.
    pub what: Revoked,
}

/// A line of the file. What a main box tells one that stands in for it is told late: it counts for less, wherever the file is brought.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Line {
    number: u64,
    at: i64,
    what: Revoked,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    late: bool,
}

impl Line {
    fn of(revocation: &Revocation) -> Self {
        let Revocation { number, at, what } = revocation.clone();
        Self { number, at, what, late: false }
    }
}

/// What works no more. A member is told by their id and when they joined, so that somebody else who has the same id in another version
/// of the database is not meant. No names: who left is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Revoked {
    /// A member was removed.
    Member {
        /// Who.
        member: MemberId,
        /// When they joined, in Unix seconds.
        since: i64,
    },
    /// A key was revoked.
    Key {
        /// Its public id.
        key: String,
    },
    /// A member may not come in for now.
    ShutOut {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
    },
    /// A member may come in again.
    LetIn {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
    },
    /// A member is no steward any more.
    NoSteward {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
    },
    /// An app that let people sign in with the box was removed.
    App {
        /// Its public id.
        app: String,
    },
    /// A member is linked no more to who they are at a service.
    Link {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
        /// When they were linked, in Unix seconds. Who they are there is not told.
        linked: i64,
    },
    /// The stewards made them a member: no group of a service makes them a steward again.
    KeptMember {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
    },
    /// A steward lets the groups decide about them again.
    GroupsAgain {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
    },
    /// The same of somebody who was removed, should they come in anew by who they are at a service.
    KeptIdentity {
        /// A digest of that.
        identity: String,
    },
    /// A member agreed no more to what an app may learn of them and do in their name.
    Agreement {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
        /// The app's public id.
        app: String,
        /// Which agreement it was: a number of its own; of those of an older version, when it was. All others for this app are taken back
        /// with it, but for those that are agreed to again.
        agreed: i64,
    },
    /// A member agreed to it again, after they had taken it back: this agreement holds, as long as it is not taken back by its own number.
    AgreedAgain {
        /// Who.
        member: MemberId,
        /// When they joined.
        since: i64,
        /// The app's public id.
        app: String,
        /// Which agreement.
        agreed: i64,
    },
    /// The box was ended: whoever had joined by then.
    Everybody,
}

impl Members {
    /// What was revoked after number `n`, in order; at most 1000, so ask again with the last one's number.
    pub fn revocations_since(&self, n: u64) -> Result<Vec<Revocation>, MembersError> {
        Ok(read_since(&self.db(), n)?)
    }

    /// Makes true here what was revoked elsewhere, or in a later version of this box: idempotent. Of how many it was news.
    pub fn apply_revocations(&self, wanted: &[Revocation]) -> Result<usize, MembersError> {
        let wanted: Vec<Line> = wanted.iter().map(Line::of).collect();
        let news = {
            let mut db = self.db();
            let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let news = apply(&change, &wanted)?;
            change.commit()?;
            news
        };
        self.keep_gone();
        self.end_what_is_gone()?;
        Ok(news)
    }

    /// What somebody else has added to the file while this box runs (see [`keep_late_lines`]) is made true, and what runs by it ends: the main box of
    /// one that stands in tells what it revoked only when it is back. Idempotent. Of how many it was news.
    pub fn hear_gone(&self) -> Result<usize, MembersError> {
        let news = {
            let mut kept = self.0.gone_kept.lock().unwrap_or_else(PoisonError::into_inner);
            let (last, news) = settle(&mut self.db(), &self.0.path)?;
            *kept = last;
            news
        };
        self.end_what_is_gone()?;
        Ok(news)
    }

    /// Makes what is in memory what the database says, after revocations that came all at once.
    fn end_what_is_gone(&self) -> Result<(), MembersError> {
        let (here, agreed) = {
            let db = self.db();
            self.reload_keys(&db, None)?;
            (all_here(&db)?, all_agreed(&db)?)
        };
        let away: Vec<MemberId> = {
            let gone = self.0.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.keys().filter(|id| !here.contains(id)).copied().collect()
        };
        away.into_iter().for_each(|id| self.sent_away(id));
        self.end_at_apps(|at| !agreed.contains(&(at.member, at.app.clone())));
        Ok(())
    }

    /// The box is being ended: a spare that hears of it lets none of its members in any more. Here everything is erased anyway; it is written
    /// on the list only.
    pub fn everybody_is_gone(&self) -> Result<(), MembersError> {
        let now = self.now();
        self.db().execute("INSERT INTO revocations (at, kind) VALUES (?1, 'everybody')", [now])?;
        self.keep_gone();
        Ok(())
    }

    /// Brings the file up to date with the list. A file that cannot be written is tried again with the next change, and at each start.
    pub(crate) fn keep_gone(&self) {
        let mut kept = self.0.gone_kept.lock().unwrap_or_else(PoisonError::into_inner);
        let written = keep_after(&self.db(), &file_beside(&self.0.path), *kept);
        match written {
            Ok(last) => *kept = last,
            Err(error) => log::error!(
                "what was revoked could not be written to {}: {error}; until it is, a restored backup could bring it back",
                file_beside(&self.0.path).display()
            ),
        }
    }
}

/// For a box that is not serving: adds to the state folder what works no more, so that whatever database is brought there honours it. Says
/// how many were news.
pub fn keep_revocations(state: &Path, wanted: &[Revocation]) -> io::Result<usize> {
    keep_lines(state, wanted.iter().map(Line::of))
}

/// The same with lines of another such file, as they are there. What cannot be read of them is passed over.
pub fn keep_gone_lines(state: &Path, lines: &str) -> io::Result<usize> {
    keep_lines(state, readable(lines))
}

/// The same on a box that stands in, with what its main box tells of before, at `now` in Unix seconds. This box has decided since, and the other may be
/// in a thief's hands by now: nothing is opened by it, nobody is sent away all at once, none of it is of a later moment than now, and no word of it takes
/// the last steward away, who is told of instead.
pub fn keep_late_lines(state: &Path, lines: &str, now: i64) -> io::Result<usize> {
    let before = read_file(&state.join(GONE))?;
    // By their numbers: at another moment than it says there one may be in this file.
    let known: BTreeSet<(u64, &Revoked)> = before.iter().map(|l| (l.number, &l.what)).collect();
    let counts = |line: &Line| !line.what.opens() && line.what != Revoked::Everybody;
    let news = readable(lines).filter(|l| counts(l) && !known.contains(&(l.number, &l.what)));
    keep_lines(state, news.map(|line| Line { at: line.at.min(now), late: true, ..line }))
}

fn readable(lines: &str) -> impl Iterator<Item = Line> {
    let lines = lines.lines().filter(|line| line.len() <= LONGEST_LINE);
    lines.filter_map(|line| serde_json::from_str(line).ok())
}

fn keep_lines(state: &Path, wanted: impl Iterator<Item = Line>) -> io::Result<usize> {
    let path = state.join(GONE);
    // A word that came late once counts in full where it comes as any other.
    let same = |line: Line| (line.number, line.at, line.what, line.late);
    let before: BTreeSet<_> = read_file(&path)?.into_iter().map(same).collect();
    let news: Vec<Line> = wanted.filter(|line| !before.contains(&same(line.clone()))).collect();
    append(&path, news.iter())?;
    Ok(news.len())
}

/// At the opening of a database: what the file knows and the database does not is made true, before anybody can come in. Returns the
/// number up to which the file has everything, and of how many it was news.
pub(crate) fn settle(db: &mut Connection, path: &Path) -> Result<(i64, usize), MembersError> {
    let file = file_beside(path);
    let unreadable = |error: io::Error| MembersError::Open {
        path: file.clone(),
        why: format!("{error}; without it somebody who was removed could come back"),
    };
    let known = read_file(&file).map_err(unreadable)?;
    let mut news = 0;
    if !known.is_empty() {
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        news = apply(&change, &known)?;
        change.commit()?;
        if news > 0 {
            log::warn!(
                "{news} members, keys, apps, links or agreements of this database were removed or revoked later than it; they were removed again"
            );
        }
    }
    // All of the list that the file has not: after a restore, or where an older version removed somebody.
    let mut all = Vec::new();
    let mut last = 0;
    loop {
        let some = read_since(db, last)?;
        let Some(end) = some.last() else { break };
        last = end.number;
        all.extend(some);
    }
    let there: BTreeSet<(i64, Revoked)> = known.into_iter().map(|r| (r.at, r.what)).collect();
    let missing: Vec<&Revocation> =
        all.iter().filter(|r| !there.contains(&(r.at, r.what.clone()))).collect();
    if let Err(error) =
        append(&file, missing.iter().copied().map(Line::of).collect::<Vec<_>>().iter())
    {
        log::error!("what was revoked could not be written to {}: {error}", file.display());
        return Ok((0, news));
    }
    Ok((last as i64, news))
}

/// Everybody who may come in.
fn all_here(db: &Connection) -> rusqlite::Result<HashSet<MemberId>> {
    let mut query = db.prepare_cached("SELECT id FROM members WHERE NOT disabled")?;
    let rows = query.query_map([], |row| row.get(0).map(MemberId))?;
    rows.collect()
}

/// Who agreed to which app.
fn all_agreed(db: &Connection) -> rusqlite::Result<HashSet<(MemberId, String)>> {
    let mut query = db.prepare_cached("SELECT member, app FROM agreements")?;
    let rows = query.query_map([], |row| Ok((MemberId(row.get(0)?), row.get(1)?)))?;
    rows.collect()
}

fn keep_after(db: &Connection, file: &Path, after: i64) -> Result<i64, MembersError> {
    let mut last = after;
    loop {
        let some = read_since(db, last.max(0) as u64)?;
        let Some(end) = some.last() else { return Ok(last) };
        let lines: Vec<Line> = some.iter().map(Line::of).collect();
        append(file, lines.iter()).map_err(|error| MembersError::Open {
            path: file.to_owned(),
            why: error.to_string(),
        })?;
        last = end.number as i64;
    }
}

/// Makes each of them true that the list does not have, and puts it there.
fn apply(change: &Transaction<'_>, wanted: &[Line]) -> Result<usize, MembersError> {
    let mut news = 0;
    for line in wanted {
        let Columns { kind, member, since, key } = columns(&line.what);
        let known: bool = change.query_row(
            "SELECT EXISTS (SELECT 1 FROM revocations
             WHERE (kind = ?1 OR ?6 AND kind = 'held ' || ?1) AND member IS ?2 AND since IS ?3 AND key IS ?4
             AND (at = ?5 OR ?1 IN ('member', 'key', 'app', 'link', 'kept-identity', 'agreement', 'agreed-again')))",
            params![kind, member, since, key, line.at, line.late],
            |row| row.get(0),
        )?;
        // What is not made true is not on the list either: whoever looks at its last word would take that for what is.
        if known || is_shut_since(change, line)? {
            continue;
        }
        // Under its own number where that is free; the list of another line of history may have used it.
        let taken: bool = change.query_row(
            "SELECT EXISTS (SELECT 1 FROM revocations WHERE number = ?1)",
            [line.number as i64],
            |row| row.get(0),
        )?;
        let number = (!taken && line.number > 0).then_some(line.number as i64);
        let list = |kind: &str| {
            change.execute(
                "INSERT INTO revocations (number, at, kind, member, since, key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![number, line.at, kind, member, since, key],
            )
        };
        if line.late && late::is_last_steward(change, &line.what)? {
            // Under a name that nobody reads as a revocation, so that it is told once, and not made true at the next start.
            list(&format!("held {kind}"))?;
            late::tell_of_held(change, &line.what)?;
            continue;
        }
        let steward = if line.late { late::steward_meant(change, &line.what)? } else { None };
        list(kind)?;
        news += make_true(change, line)?;
        if let Some(name) = steward {
            late::tell_of_done(change, &line.what, &name)?;
        }
    }
    Ok(news + agreements::settle(change)?)
}

/// What a box that stands in has shut since is not opened by what its main box says of earlier.
fn is_shut_since(change: &Transaction<'_>, line: &Line) -> rusqlite::Result<bool> {
    let (kind, member, since) = match &line.what {
        Revoked::LetIn { member, since } => ("shut-out", member, since),
        Revoked::GroupsAgain { member, since } => ("kept-member", member, since),
        _ => return Ok(false),
    };
    change.query_row(
        "SELECT EXISTS (SELECT 1 FROM revocations WHERE kind = ?1 AND member = ?2 AND since = ?3 AND at > ?4)",
        params![kind, member.0, since, line.at],
        |row| row.get(0),
    )
}

fn make_true(change: &Transaction<'_>, revocation: &Line) -> rusqlite::Result<usize> {
    let only = "id = ?1 AND created_at = ?2";
    let of = |member: &MemberId, since: &i64, work: &str| {
        change.execute(&format!("{work} WHERE {only}"), params![member.0, since])
    };
    let uninvite = |member: &MemberId, since: &i64| {
        change.execute(
            "DELETE FROM invites WHERE made_by IN (SELECT id FROM members WHERE id = ?1 AND created_at = ?2)",
            params![member.0, since],
        )
    };
    match &revocation.what {
        Revoked::Everybody => {
            change.execute("DELETE FROM invites", [])?;
            change.execute("DELETE FROM client_apps WHERE created_at <= ?1", [revocation.at])?;
            change.execute("DELETE FROM members WHERE created_at <= ?1", [revocation.at])
        }
        Revoked::Key { key } => change.execute("DELETE FROM keys WHERE id = ?1", [key]),
        Revoked::Member { member, since } => {
            uninvite(member, since)?;
            of(member, since, "DELETE FROM members")
        }
        Revoked::ShutOut { member, since } => {
            change.execute("DELETE FROM sessions WHERE member = ?1", [member.0])?;
            uninvite(member, since)?;
            of(member, since, "UPDATE members SET disabled = 1")
        }
        Revoked::LetIn { member, since } => of(member, since, "UPDATE members SET disabled = 0"),
        Revoked::NoSteward { member, since } => {
            uninvite(member, since)?;
            of(member, since, "UPDATE members SET role = 'member'")
        }
        Revoked::App { app } => change.execute("DELETE FROM client_apps WHERE id = ?1", [app]),
        Revoked::Link { member, since, linked } => change.execute(
            "DELETE FROM identities WHERE created_at = ?3
             AND member IN (SELECT id FROM members WHERE id = ?1 AND created_at = ?2)",
            params![member.0, since, linked],
        ),
        // What holds of them is known only when all are on the list.
        Revoked::Agreement { .. } | Revoked::AgreedAgain { .. } => Ok(0),
        Revoked::KeptMember { member, since } => {
            of(member, since, "UPDATE members SET kept_member = 1")
        }
        Revoked::GroupsAgain { member, since } => {
            of(member, since, "UPDATE members SET kept_member = 0")
        }
        Revoked::KeptIdentity { identity } => change
            .execute("INSERT OR IGNORE INTO kept_identities (identity) VALUES (?1)", [identity]),
    }
}

impl Revoked {
    /// Whether something works again by it.
    fn opens(&self) -> bool {
        matches!(self, Self::LetIn { .. } | Self::GroupsAgain { .. } | Self::AgreedAgain { .. })
    }
}

struct Columns<'a> {
    kind: &'static str,
    member: Option<i64>,
    since: Option<i64>,
    key: Option<Cow<'a, str>>,
}

fn columns(what: &Revoked) -> Columns<'_> {
    let of = |kind, member: &MemberId, since: &i64| Columns {
        kind,
        member: Some(member.0),
        since: Some(*since),
        key: None,
    };
    fn named<'a>(kind: &'static str, key: &'a str) -> Columns<'a> {
        Columns { kind, member: None, since: None, key: Some(key.into()) }
    }
    match what {
        Revoked::Member { member, since } => of("member", member, since),
        Revoked::ShutOut { member, since } => of("shut-out", member, since),
        Revoked::LetIn { member, since } => of("let-in", member, since),
        Revoked::NoSteward { member, since } => of("no-steward", member, since),
        Revoked::Everybody => Columns { kind: "everybody", member: None, since: None, key: None },
        Revoked::Key { key } => named("key", key),
        Revoked::App { app } => named("app", app),
        Revoked::Link { member, since, linked } => {
            Columns { key: Some(linked.to_string().into()), ..of("link", member, since) }
        }
        Revoked::Agreement { member, since, app, agreed } => Columns {
            key: Some(format!("{app} {agreed}").into()),
            ..of("agreement", member, since)
        },
        Revoked::AgreedAgain { member, since, app, agreed } => Columns {
            key: Some(format!("{app} {agreed}").into()),
            ..of("agreed-again", member, since)
        },
        Revoked::KeptMember { member, since } => of("kept-member", member, since),
        Revoked::GroupsAgain { member, since } => of("groups-again", member, since),
        Revoked::KeptIdentity { identity } => named("kept-identity", identity),
    }
}

fn read_since(db: &Connection, n: u64) -> rusqlite::Result<Vec<Revocation>> {
    let mut query = db.prepare_cached(
        "SELECT number, at, kind, member, since, key FROM revocations
         WHERE number > ?1 AND kind IN ('member', 'key', 'shut-out', 'let-in', 'no-steward', 'everybody',
             'app', 'link', 'kept-member', 'groups-again', 'kept-identity', 'agreement', 'agreed-again')
         ORDER BY number LIMIT ?2",
    )?;
    let rows = query.query_map(params![n.min(i64::MAX as u64) as i64, MOST], from_row)?;
    rows.collect()
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    let (kind, key): (String, Option<String>) = (row.get(2)?, row.get(5)?);
    let member = MemberId(row.get::<_, Option<i64>>(3)?.unwrap_or_default());
    let since = row.get::<_, Option<i64>>(4)?.unwrap_or_default();
    let key = key.unwrap_or_default();
    Ok(Revocation {
        number: row.get::<_, i64>(0)?.max(0) as u64,
        at: row.get(1)?,
        what: match kind.as_str() {
            "key" => Revoked::Key { key },
            "app" => Revoked::App { app: key },
            "link" => Revoked::Link { member, since, linked: key.parse().unwrap_or_default() },
            "agreement" | "agreed-again" => {
                let (app, agreed) = key.split_once(' ').unwrap_or((&key, ""));
                let (app, agreed) = (app.to_owned(), agreed.parse().unwrap_or_default());
                match kind.as_str() {
                    "agreement" => Revoked::Agreement { member, since, app, agreed },
                    _ => Revoked::AgreedAgain { member, since, app, agreed },
                }
            }
            "kept-member" => Revoked::KeptMember { member, since },
            "groups-again" => Revoked::GroupsAgain { member, since },
            "kept-identity" => Revoked::KeptIdentity { identity: key },
            "shut-out" => Revoked::ShutOut { member, since },
            "let-in" => Revoked::LetIn { member, since },
            "no-steward" => Revoked::NoSteward { member, since },
            "everybody" => Revoked::Everybody,
            // What a newer version writes there is not read at all.
            _ => Revoked::Member { member, since },
        },
    })
}

fn file_beside(database: &Path) -> PathBuf {
    database.with_file_name(GONE)
}

/// What the file has, in order. Half a line at its end was never acknowledged. A line that cannot be read (a newer version's, or a failing
/// disk's) costs itself and is said in the log: a box that does not start because of it would help nobody.
fn read_file(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = Vec::new();
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => file.take(LONGEST_FILE).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let whole = text.iter().rposition(|b| *b == b'\n').unwrap_or(0);
    let mut found = BTreeSet::new();
    let lines = text[..whole].split(|b| *b == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let read = match line.len() {
            0..=LONGEST_LINE => serde_json::from_slice(line).map_err(|error| error.to_string()),
            _ => Err("it is too long".to_owned()),
        };
        match read {
            Ok(line) => drop(found.insert(line)),
            Err(why) => log::error!(
                "line {} of {} says nothing that this version understands: {why}",
                number + 1,
                path.display()
            ),
        }
    }
    Ok(found.into_iter().collect())
}

/// Writes whole lines, on the disk when it returns. A half line that a power cut left is ended first.
fn append<'a>(path: &Path, some: impl Iterator<Item = &'a Line>) -> io::Result<()> {
    let mut text = String::new();
    for line in some {
        text += &serde_json::to_string(line).expect("numbers and letters");
        text.push('\n');
    }
    if text.is_empty() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
    // The supervisor of a box that stands in writes here as well, and half a line of one is not to be cut off by the other. Until the file is closed.
    file.lock()?;
    trim_half_line(&mut file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn trim_half_line(file: &mut std::fs::File) -> io::Result<()> {
    let mut text = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut text)?;
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < text.len() { file.set_len(whole as u64) } else { Ok(()) }
}

/// The number of the newest, for tests and pages.
pub(crate) fn newest(db: &Connection) -> rusqlite::Result<u64> {
    let newest = db
        .query_row("SELECT max(number) FROM revocations", [], |row| row.get::<_, Option<i64>>(0))
        .optional()?;
    Ok(newest.flatten().unwrap_or_default().max(0) as u64)
}

impl Members {
    /// The number of the newest revocation; 0 where there was none.
    pub fn newest_revocation(&self) -> Result<u64, MembersError> {
        Ok(newest(&self.db())?)
    }
}
