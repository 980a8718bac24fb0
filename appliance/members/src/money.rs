//! The collective's ledger, as it is kept in the database; what entries mean is for `polder-ledger`.

use std::collections::{BTreeMap, BTreeSet};

use polder_ledger::{Cents, Entry, EntryId, Kind, Month, NewEntry};
use rusqlite::{Connection, Row, TransactionBehavior, params};

use crate::{MemberId, Members, MembersError};

/// Most entries that are written down at once.
const MOST_AT_ONCE: usize = 5_000;

impl Members {
    /// Writes entries down, all or none. Gives how many.
    pub fn enter(&self, by: MemberId, entries: &[NewEntry]) -> Result<usize, MembersError> {
        self.enter_from(by, |_| Ok(entries.to_vec()))
    }

    /// Writes down what follows from the books, which nobody else changes meanwhile: of two who write the same month's dues at once, the
    /// second finds those of the first. All or none; gives how many.
    pub fn enter_from(
        &self,
        by: MemberId,
        follows: impl FnOnce(&[Entry]) -> Result<Vec<NewEntry>, String>,
    ) -> Result<usize, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = read(&change, None)?;
        let entries = follows(&before).map_err(MembersError::Field)?;
        if entries.len() > MOST_AT_ONCE {
            return Err(MembersError::Field("those are too many entries at once".into()));
        }
        for entry in &entries {
            entry.check().map_err(|error| MembersError::Field(error.to_string()))?;
        }
        let written = write(&change, by, &before, &entries, now)?;
        change.commit()?;
        Ok(written)
    }

    /// Everything that was written down, in the order in which it was.
    pub fn ledger(&self) -> Result<Vec<Entry>, MembersError> {
        read(&self.db(), None)
    }

    /// What was written down about one member.
    pub fn ledger_of(&self, member: MemberId) -> Result<Vec<Entry>, MembersError> {
        read(&self.db(), Some(member))
    }

    /// What tables that are brought in need not bring again.
    pub fn known_entries(&self) -> Result<BTreeSet<String>, MembersError> {
        Ok(known(&read(&self.db(), None)?))
    }

    /// What everybody in the books is called: members, and those who left and did not ask for their name to go.
    pub fn names_in_books(&self) -> Result<BTreeMap<i64, String>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT member, name FROM ledger_names UNION ALL SELECT id, name FROM members",
        )?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets what somebody was called who is no member any more. Their entries stay under their number.
    pub fn take_name_off(&self, member: i64) -> Result<(), MembersError> {
        match self.db().execute("DELETE FROM ledger_names WHERE member = ?1", [member])? {
            0 => Err(MembersError::NoMember),
            _ => Ok(()),
        }
    }

    /// A member agrees, from the present month on, that costs are split by what everybody used; or does not any more, for whatever is
    /// not split yet.
    pub fn agree_to_usage_shares(&self, member: MemberId, agree: bool) -> Result<(), MembersError> {
        let month = self.0.clock.month();
        let db = self.db();
        match agree {
            true => db.execute(
                "INSERT OR IGNORE INTO usage_shares (member, from_month) VALUES (?1, ?2)",
                params![member.0, month],
            )?,
            false => db.execute("DELETE FROM usage_shares WHERE member = ?1", [member.0])?,
        };
        Ok(())
    }

    /// Who agreed to that for a month.
    pub fn usage_agreed(&self, month: Month) -> Result<BTreeSet<i64>, MembersError> {
        let db = self.db();
        let mut query =
            db.prepare_cached("SELECT member FROM usage_shares WHERE from_month <= ?1")?;
        let rows = query.query_map([month.number()], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether a member agrees now.
    pub fn agrees_to_usage_shares(&self, member: MemberId) -> Result<bool, MembersError> {
        let asked = "SELECT EXISTS (SELECT 1 FROM usage_shares WHERE member = ?1)";
        Ok(self.db().query_row(asked, [member.0], |row| row.get(0))?)
    }

    /// Tokens that each member used in a month, read and written together.
    pub fn usage_in_month(&self, month: Month) -> Result<BTreeMap<i64, u64>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT member, prompt, completion FROM usage WHERE substr(day, 1, 7) = ?1",
        )?;
        let mut used = BTreeMap::new();
        let mut rows = query.query([month.to_string()])?;
        while let Some(row) = rows.next()? {
            let tokens = |n: i64| u64::try_from(n).unwrap_or(0);
            let sum: &mut u64 = used.entry(row.get(0)?).or_default();
            *sum = sum.saturating_add(tokens(row.get(1)?)).saturating_add(tokens(row.get(2)?));
        }
        Ok(used)
    }
}

fn write(
    change: &Connection,
    by: MemberId,
    before: &[Entry],
    entries: &[NewEntry],
    now: i64,
) -> Result<usize, MembersError> {
    let (known, mut numbers) = (known(before), numbers(before));
    let mut written = 0;
    for entry in entries {
        if entry.known_by.as_ref().is_some_and(|key| known.contains(key)) {
            continue;
        }
        if let Some(member) = entry.member
            && !is_known(change, member)?
        {
            return Err(MembersError::NoMember);
        }
        let corrects = match (entry.corrects, &entry.known_by) {
            // In a table that is brought in, numbers are those of the books that it is from.
            (Some(EntryId(number)), Some(_)) => Some(*numbers.get(&number).ok_or_else(|| {
                let why = format!("entry {number}, which another one takes back, is not here and not in the table before it");
                MembersError::Field(why)
            })?),
            (corrects, _) => corrects.map(|id| id.0),
        };
        if let Some(id) = corrects {
            free_to_correct(change, id)?;
        }
        change.execute(
            "INSERT INTO ledger (day, kind, member, cents, month, note, corrects, known_by, by_member, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                entry.day.to_string(),
                entry.kind.word(),
                entry.member,
                entry.amount.0,
                entry.month.map(|month| month.to_string()),
                entry.note,
                corrects,
                entry.known_by,
                by.0,
                now
            ],
        )?;
        if let Some(number) = entry.known_by.as_deref().and_then(own_number) {
            numbers.insert(number, change.last_insert_rowid());
        }
        written += 1;
    }
    Ok(written)
}

fn read(db: &Connection, member: Option<MemberId>) -> Result<Vec<Entry>, MembersError> {
    let mut query = db.prepare_cached(
        "SELECT id, day, kind, member, cents, month, note, corrects, known_by, by_member, at FROM ledger
         WHERE ?1 IS NULL OR member = ?1 ORDER BY id",
    )?;
    let rows = query.query_map([member.map(|member| member.0)], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let text = |at: usize| row.get::<_, String>(at);
    let wrong = |at: usize| {
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::InvalidColumnType(at, "ledger".to_owned(), kind)
    };
    let month: Option<String> = row.get(5)?;
    let what = NewEntry {
        day: text(1)?.parse().map_err(|_| wrong(1))?,
        kind: text(2)?.parse::<Kind>().map_err(|()| wrong(2))?,
        member: row.get(3)?,
        amount: Cents(row.get(4)?),
        month: month.map(|month| month.parse()).transpose().map_err(|_| wrong(5))?,
        note: text(6)?,
        corrects: row.get::<_, Option<i64>>(7)?.map(EntryId),
        known_by: row.get(8)?,
    };
    Ok(Entry { id: EntryId(row.get(0)?), what, by: row.get(9)?, at: row.get(10)? })
}

fn known(entries: &[Entry]) -> BTreeSet<String> {
    let theirs = entries.iter().filter_map(|entry| entry.what.known_by.clone());
    theirs.chain(entries.iter().map(Entry::known_here)).collect()
}

/// The entry of each number in the books that a table is from: its own where it was written down here.
fn numbers(entries: &[Entry]) -> BTreeMap<i64, i64> {
    let number = |entry: &Entry| {
        let theirs = entry.what.known_by.as_deref().and_then(own_number);
        (theirs.unwrap_or(entry.id.0), entry.id.0)
    };
    entries.iter().map(number).collect()
}

fn own_number(known_by: &str) -> Option<i64> {
    known_by.strip_prefix("own ")?.split(' ').next()?.parse().ok()
}

/// Is this somebody who is, or was, a member?
fn is_known(db: &Connection, member: i64) -> Result<bool, MembersError> {
    let asked = "SELECT EXISTS (SELECT 1 FROM members WHERE id = ?1)
                 OR EXISTS (SELECT 1 FROM ledger WHERE member = ?1)";
    Ok(db.query_row(asked, [member], |row| row.get(0))?)
}

fn free_to_correct(db: &Connection, id: i64) -> Result<(), MembersError> {
    let there: bool =
        db.query_row("SELECT EXISTS (SELECT 1 FROM ledger WHERE id = ?1)", [id], |row| row.get(0))?;
    let taken: bool =
        db.query_row("SELECT EXISTS (SELECT 1 FROM ledger WHERE corrects = ?1)", [id], |row| {
            row.get(0)
        })?;
    match (there, taken) {
        (true, false) => Ok(()),
        (false, _) => Err(MembersError::Field(format!("there is no entry {id}"))),
        (true, true) => Err(MembersError::Field(format!("entry {id} was taken back already"))),
    }
}

#[cfg(test)]
mod tests {
    use polder_ledger::Books;

    use super::*;
    use crate::{Clock, NewMember, Role, Secret};

    struct Place {
        members: Members,
        ada: MemberId,
        ben: MemberId,
        _folder: tempfile::TempDir,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let members = Members::open_with_clock(&folder.path().join("polder.db"), clock).unwrap();
        let join = |name: &str| {
            let password = Secret::new("four words in a row".into());
            let new = NewMember { name: name.into(), email: None, password };
            members.add_member(&new, Role::Steward).unwrap().id
        };
        let (ada, ben) = (join("Ada"), join("Ben"));
        Place { members, ada, ben, _folder: folder }
    }

    fn of(kind: Kind, member: Option<MemberId>, cents: i64) -> NewEntry {
        let day = "2026-11-27".parse().unwrap();
        NewEntry::of(kind, day, member.map(|m| m.0), Cents(cents))
    }

    #[test]
    fn what_is_written_down_stays_and_a_mistake_is_taken_back_once_by_another_entry() {
        let Place { members, ada, ben, .. } = &place();
        let entries = [of(Kind::Dues, Some(*ben), 1000), of(Kind::Payment, Some(*ben), 1200)];
        assert_eq!(members.enter(*ada, &entries).unwrap(), 2);
        let wrong = members.ledger().unwrap().remove(1);
        let back = wrong.taken_back("2026-11-28".parse().unwrap(), "typed wrongly".into());
        members.enter(*ada, std::slice::from_ref(&back)).unwrap();
        let twice = members.enter(*ada, &[back]).unwrap_err().to_string();
        assert!(twice.contains("was taken back already"), "{twice}");
        let books = Books::of(&members.ledger().unwrap());
        assert_eq!((books.fund, books.of_member(ben.0)), (Cents(0), Cents(-1000)));
        assert_eq!(members.ledger_of(*ben).unwrap().len(), 3);
        for change in
            ["UPDATE ledger SET cents = 5", "DELETE FROM ledger", "DELETE FROM ledger WHERE id = 1"]
        {
            let why = members.db().execute(change, []).unwrap_err().to_string();
            assert!(why.contains("entries of the ledger stay"), "{why}");
        }
        assert_eq!(members.ledger().unwrap().len(), 3);
    }

    #[test]
    fn of_two_stewards_who_write_the_same_dues_at_once_one_does() {
        let Place { members, ada, ben, .. } = &place();
        // Two programs, so that nothing but the database stands between them.
        let other = Members::open(members.path()).unwrap();
        let month = "2026-11".parse().unwrap();
        for round in 0..20 {
            let cents = 1000 + round;
            let once = |before: &[Entry]| {
                let there = before.iter().any(|entry| entry.what.amount == Cents(cents));
                // Long enough for the other one to come in between.
                std::thread::sleep(std::time::Duration::from_millis(2));
                let all = [*ada, *ben].map(|member| NewEntry {
                    month: Some(month),
                    ..of(Kind::Dues, Some(member), cents)
                });
                if there { Err("there already".to_owned()) } else { Ok(all.to_vec()) }
            };
            let start = std::sync::Barrier::new(2);
            let done = std::thread::scope(|scope| {
                let both = [members, &other].map(|members| {
                    scope.spawn(|| {
                        start.wait();
                        members.enter_from(*ada, once)
                    })
                });
                both.map(|one| one.join().unwrap())
            });
            let written: usize = done.iter().flatten().sum();
            assert!(written == 2 && done.iter().any(Result::is_err), "{done:?}");
        }
        assert_eq!(members.ledger().unwrap().len(), 40);
    }

    #[test]
    fn half_of_a_table_is_never_written_down() {
        let Place { members, ada, ben, .. } = &place();
        let stranger = of(Kind::Payment, Some(MemberId(99)), 5);
        let entries = [of(Kind::Payment, Some(*ben), 5), stranger];
        assert!(matches!(members.enter(*ada, &entries), Err(MembersError::NoMember)));
        assert!(members.enter(*ada, &[of(Kind::Cost, None, 5), of(Kind::Cost, None, 0)]).is_err());
        assert_eq!(members.ledger().unwrap(), []);
    }

    #[test]
    fn entries_of_who_left_stay_with_their_name_until_they_ask_that_it_goes() {
        let Place { members, ada, ben, .. } = &place();
        members.enter(*ada, &[of(Kind::Payment, Some(*ben), 500)]).unwrap();
        assert!(members.take_name_off(ben.0).is_err(), "a member has a name");
        members.remove_member(*ben).unwrap();
        assert_eq!(members.names_in_books().unwrap()[&ben.0], "Ben");
        members.take_name_off(ben.0).unwrap();
        assert!(!members.names_in_books().unwrap().contains_key(&ben.0));
        assert_eq!(Books::of(&members.ledger().unwrap()).fund, Cents(500));
    }

    #[test]
    fn a_table_of_our_own_is_brought_in_once_also_on_another_box() {
        let Place { members, ada, ben, .. } = &place();
        members
            .enter(*ada, &[of(Kind::Payment, Some(*ben), 500), of(Kind::Cost, None, 40)])
            .unwrap();
        let entry = members.ledger().unwrap().remove(1);
        members
            .enter(*ada, &[entry.taken_back("2026-11-28".parse().unwrap(), String::new())])
            .unwrap();
        let names = members.names_in_books().unwrap();
        let text = polder_ledger::write_own(&members.ledger().unwrap(), &|id| names[&id].clone());
        let find = |name: &str| names.iter().find(|(_, n)| *n == name).map(|(id, _)| *id);
        let table = polder_ledger::read_own(&text, &find).unwrap().unwrap();
        assert_eq!(members.enter(*ada, &table).unwrap(), 0, "all of it is here");
        let other = place();
        other.members.enter(*ada, &[of(Kind::Fund, None, 7)]).unwrap();
        assert_eq!(other.members.enter(*ada, &table).unwrap(), 3);
        assert_eq!(other.members.enter(*ada, &table).unwrap(), 0);
        assert_eq!(Books::of(&other.members.ledger().unwrap()).fund, Cents(507));
    }

    #[test]
    fn agreeing_counts_from_the_present_month_on_and_no_more_when_it_is_taken_back() {
        let Place { members, ada, .. } = &place();
        let now = members.0.clock.month();
        let month =
            |number: i64| format!("{:04}-{:02}", number / 12, number % 12 + 1).parse().unwrap();
        members.agree_to_usage_shares(*ada, true).unwrap();
        assert!(members.usage_agreed(month(now - 1)).unwrap().is_empty());
        assert!(members.usage_agreed(month(now)).unwrap().contains(&ada.0));
        assert!(members.agrees_to_usage_shares(*ada).unwrap());
        members.agree_to_usage_shares(*ada, false).unwrap();
        assert!(members.usage_agreed(month(now)).unwrap().is_empty());
    }

    #[test]
    fn what_was_used_in_a_month_is_summed_by_member() {
        let Place { members, ada, ben, .. } = &place();
        for (day, member, tokens) in [
            ("2026-11-01", ada, 5),
            ("2026-11-30", ada, 6),
            ("2026-12-01", ada, 100),
            ("2026-11-02", ben, 7),
        ] {
            members
                .db()
                .execute(
                    "INSERT INTO usage VALUES (?1, ?2, '', 'm', 1, ?3, 1)",
                    params![day, member.0, tokens],
                )
                .unwrap();
        }
        let used = members.usage_in_month("2026-11".parse().unwrap()).unwrap();
        assert_eq!(used, [(ada.0, 13), (ben.0, 8)].into());
    }
}
