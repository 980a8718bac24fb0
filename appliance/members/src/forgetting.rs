use rusqlite::{Connection, TransactionBehavior, params};

use crate::{MemberId, Members, MembersError};

/// Stands for every engine of the box, until it is known which those are.
const ALL: &str = "*";

impl Members {
    /// Notes that all engines are to forget what they keep of a member's conversations. Once this returns it is not
    /// lost: it stays noted until each engine has confirmed it, however often anything starts anew.
    pub fn want_forgotten(&self, id: MemberId) -> Result<(), MembersError> {
        note(&self.db(), id)?;
        Ok(())
    }

    /// Who is still to be forgotten by which of these engines. What was noted for others is dropped: what
    /// they kept goes with them.
    pub fn to_forget(&self, engines: &[String]) -> Result<Vec<(MemberId, String)>, MembersError> {
        let mut db = self.db();
        let none: bool =
            db.query_row("SELECT NOT EXISTS (SELECT 1 FROM forgetting)", [], |row| row.get(0))?;
        if none {
            return Ok(Vec::new());
        }
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for engine in engines {
            change.execute(
                "INSERT OR IGNORE INTO forgetting (member, engine)
                 SELECT member, ?1 FROM forgetting WHERE engine = ?2",
                params![engine, ALL],
            )?;
        }
        let all: Vec<(MemberId, String)> = {
            let mut query =
                change.prepare("SELECT member, engine FROM forgetting ORDER BY member, engine")?;
            let rows = query.query_map([], |row| Ok((MemberId(row.get(0)?), row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        let (here, gone): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, engine)| engines.contains(engine));
        for (member, engine) in gone {
            confirm(&change, member, &engine)?;
        }
        change.commit()?;
        Ok(here)
    }

    /// An engine has forgotten a member.
    pub fn forgotten(&self, id: MemberId, engine: &str) -> Result<(), MembersError> {
        Ok(confirm(&self.db(), id, engine)?)
    }
}

/// Notes it as part of another change.
pub(crate) fn note(db: &Connection, id: MemberId) -> rusqlite::Result<usize> {
    db.execute(
        "INSERT OR IGNORE INTO forgetting (member, engine) VALUES (?1, ?2)",
        params![id.0, ALL],
    )
}

fn confirm(db: &Connection, id: MemberId, engine: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM forgetting WHERE member = ?1 AND engine = ?2", params![id.0, engine])?;
    Ok(())
}
