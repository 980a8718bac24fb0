//! What everybody is told: by a steward, or by the box about who looks after it.

use rusqlite::{TransactionBehavior, params};

use crate::{Member, MemberId, Members, MembersError, words};

/// The longest text of one, in letters.
const LONGEST: usize = 300;
/// As many are kept.
const MOST: i64 = 200;

/// Something that all members are told, until each has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Counted from 1.
    pub id: i64,
    /// Unix seconds.
    pub at: i64,
    /// Who said it, as a name.
    pub by: String,
    /// One or two sentences.
    pub text: String,
}

impl Members {
    /// Tells everybody; `by` is a name. Returns its number.
    pub fn announce(&self, text: &str, by: &str) -> Result<i64, MembersError> {
        let text = words::line("announcement", text, LONGEST)?;
        if text.is_empty() {
            return Err(MembersError::Field("the announcement is empty; write a sentence".into()));
        }
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id = announce(&change, now, &text, by)?;
        change.commit()?;
        Ok(id)
    }

    /// The newest first.
    pub fn announcements(&self) -> Result<Vec<Announcement>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!("{SELECT} ORDER BY a.id DESC"))?;
        Ok(query.query_map([], from_row)?.collect::<Result<_, _>>()?)
    }

    /// What this member has not read yet, the newest first: nothing of before they joined.
    pub fn unread(&self, reader: &Member) -> Result<Vec<Announcement>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!(
            "{SELECT} WHERE a.at >= ?2 AND NOT EXISTS (
                SELECT 1 FROM announcements_read r WHERE r.member = ?1 AND r.announcement = a.id)
             ORDER BY a.id DESC"
        ))?;
        let rows = query.query_map([reader.id.0, reader.created_at], from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// This member has read everything up to this one.
    pub fn has_read(&self, reader: MemberId, up_to: i64) -> Result<(), MembersError> {
        self.db().execute(
            "INSERT OR IGNORE INTO announcements_read (member, announcement)
             SELECT ?1, id FROM announcements WHERE id <= ?2",
            params![reader.0, up_to],
        )?;
        Ok(())
    }
}

/// As part of another change.
pub(crate) fn announce(
    change: &rusqlite::Connection,
    now: i64,
    text: &str,
    by: &str,
) -> rusqlite::Result<i64> {
    change.execute(
        "INSERT INTO announcements (at, by, text) VALUES (?1, ?2, ?3)",
        params![now, by, text],
    )?;
    let id = change.last_insert_rowid();
    change.execute("DELETE FROM announcements WHERE id <= ?1", [id - MOST])?;
    Ok(id)
}

const SELECT: &str = "SELECT a.id, a.at, a.by, a.text FROM announcements a";

fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Announcement> {
    Ok(Announcement { id: row.get(0)?, at: row.get(1)?, by: row.get(2)?, text: row.get(3)? })
}
