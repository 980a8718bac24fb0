//! What people did that is still to be written into the audit trail, which another process keeps and may not answer just now.

use rusqlite::params;

use crate::{Members, MembersError};

/// More are not kept: whoever cannot write a trail for so long has other troubles. The oldest go.
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
    /// Notes a deed of just now; on the disk when this returns.
    pub fn note_deed(&self, text: &str) -> Result<i64, MembersError> {
        self.note_deed_of(self.now(), text)
    }

    /// Notes a deed of an earlier second, in Unix time; on the disk when this returns.
    pub fn note_deed_of(&self, at: i64, text: &str) -> Result<i64, MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        change.execute("INSERT INTO deeds (at, text) VALUES (?1, ?2)", params![at, text])?;
        let id = change.last_insert_rowid();
        change.execute("DELETE FROM deeds WHERE id <= ?1", [id - MOST])?;
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
}
