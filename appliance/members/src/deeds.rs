//! What people did that is still to be written into the audit trail, which another process keeps and may not answer just now.

use rusqlite::params;

use crate::{Members, MembersError};

/// More are not kept: whoever cannot write a trail for so long has other troubles. What comes then is refused, so that whoever notes it knows.
const MOST: i64 = 10_000;
/// As many are handed out at once.
const A_HANDFUL: i64 = 100;

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Counts up, also over restarts.
    pub id: i64,
    /// When, Unix seconds.
    pub at: i64,
    /// What, in the words of whoever noted it.
    pub text: String,
}

impl Members {
    /// Notes a deed of just now; on the disk when this returns. An error where ten thousand wait to be told.
    pub fn note_deed(&self, text: &str) -> Result<i64, MembersError> {
        self.note_deed_of(self.now(), text)
    }

    /// Notes a deed of an earlier second, in Unix time; on the disk when this returns.
    pub fn note_deed_of(&self, at: i64, text: &str) -> Result<i64, MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let waiting: i64 = change.query_row("SELECT count(*) FROM deeds", [], |row| row.get(0))?;
        if waiting >= MOST {
            let why = format!("{MOST} deeds wait already to be written into the audit trail");
            return Err(MembersError::Field(why));
        }
        change.execute("INSERT INTO deeds (at, text) VALUES (?1, ?2)", params![at, text])?;
        let id = change.last_insert_rowid();
        change.commit()?;
        Ok(id)
    }

    /// Deeds that are not told yet, oldest first, a hundred at most.
    pub fn untold_deeds(&self) -> Result<Vec<Deed>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT id, at, text FROM deeds ORDER BY id LIMIT ?1")?;
        let rows = query.query_map([A_HANDFUL], |row| {
            Ok(Deed { id: row.get(0)?, at: row.get(1)?, text: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// It is in the trail.
    pub fn deed_is_told(&self, id: i64) -> Result<(), MembersError> {
        self.db().execute("DELETE FROM deeds WHERE id = ?1", [id])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_wait_over_a_restart_until_they_are_told_and_never_take_a_number_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        let members = Members::open(&path).unwrap();
        let first = members.note_deed("made key: laptop").unwrap();
        let second = members.note_deed("revoked key: laptop").unwrap();
        drop(members);
        let members = Members::open(&path).unwrap();
        let untold = members.untold_deeds().unwrap();
        let texts: Vec<&str> = untold.iter().map(|deed| deed.text.as_str()).collect();
        assert_eq!(texts, ["made key: laptop", "revoked key: laptop"]);
        members.deed_is_told(first).unwrap();
        members.deed_is_told(second).unwrap();
        assert!(members.untold_deeds().unwrap().is_empty());
        assert!(members.note_deed("joined").unwrap() > second);
    }

    #[test]
    fn none_of_those_that_wait_is_pushed_out_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let members = Members::open(&folder.path().join("polder.db")).unwrap();
        let all = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MOST})
             INSERT INTO deeds (at, text) SELECT 1, 'deed ' || i FROM n"
        );
        members.db().execute_batch(&all).unwrap();
        let refused = members.note_deed("one more").unwrap_err().to_string();
        assert!(refused.contains("10000 deeds wait already"), "{refused}");
        let first = members.untold_deeds().unwrap().remove(0);
        assert_eq!(first.text, "deed 1");
        members.deed_is_told(first.id).unwrap();
        members.note_deed("one more").unwrap();
    }
}
