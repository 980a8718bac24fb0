//! The end of the collective: one steward asks for it, a second one agrees, or two recovery sheets do.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::{MemberId, Members, MembersError, announcements, stewards};

/// Asked for and not agreed to within this, it is forgotten.
const LASTS: i64 = 7 * 24 * 3600;

/// The end, as somebody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndingAsked {
    /// Who.
    pub by: String,
    /// Their id; none where it was by recovery sheets.
    pub member: Option<MemberId>,
    /// Unix seconds.
    pub at: i64,
    /// The models stay for the next collective.
    pub keep_models: bool,
}

/// The end, agreed to by two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Who asked, and who agreed.
    pub by: Vec<String>,
    /// The models stay.
    pub keep_models: bool,
}

impl Members {
    /// The end that somebody asked for and nobody has agreed to yet.
    pub fn ending(&self) -> Result<Option<EndingAsked>, MembersError> {
        Ok(asked(&self.db(), self.now())?)
    }

    /// A steward asks for the end. Nothing happens but that everybody is told.
    pub fn ask_to_end(&self, by: MemberId, keep_models: bool) -> Result<(), MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let by = stewards::steward(&change, by)?;
        if asked(&change, now)?.is_some() {
            return Err(MembersError::Field(
                "somebody has asked for it already; agree to that, or take it back".into(),
            ));
        }
        change.execute(
            "INSERT OR REPLACE INTO ending (one, by, member, at, keep_models) VALUES (1, ?1, ?2, ?3, ?4)",
            params![by.name, by.id.0, now, keep_models],
        )?;
        let text = format!(
            "{} asks for the end of this box: everything that it keeps of its members would be erased. It happens when a second steward agrees. Take your data with you, from your account page.",
            by.name
        );
        announcements::announce(&change, now, &text, &by.name)?;
        change.commit()?;
        Ok(())
    }

    /// Any steward takes it back.
    pub fn take_end_back(&self, by: MemberId) -> Result<(), MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let by = stewards::steward(&change, by)?;
        if change.execute("DELETE FROM ending", [])? > 0 {
            let text = format!("{} took it back: the box does not end.", by.name);
            announcements::announce(&change, now, &text, &by.name)?;
        }
        change.commit()?;
        Ok(())
    }

    /// A second steward agrees. It is for the caller to carry it out; asked for it stays until then.
    pub fn agree_to_end(&self, by: MemberId) -> Result<Ending, MembersError> {
        let now = self.now();
        let db = self.db();
        let asked = asked(&db, now)?.ok_or_else(|| {
            MembersError::Field("nobody asks for the end any more; somebody took it back".into())
        })?;
        let first = asked.member.ok_or(MembersError::NoMember)?;
        stewards::steward(&db, first)?;
        let second = stewards::second(&db, by, first, now)?;
        Ok(Ending { by: vec![asked.by, second.name], keep_models: asked.keep_models })
    }
}

/// Whoever is no steward any more asks for no end.
pub(crate) fn forget_of(db: &Connection, member: MemberId) -> rusqlite::Result<()> {
    db.execute("DELETE FROM ending WHERE member = ?1", [member.0]).map(drop)
}

fn asked(db: &Connection, now: i64) -> rusqlite::Result<Option<EndingAsked>> {
    db.query_row(
        "SELECT by, member, at, keep_models FROM ending WHERE one = 1 AND at > ?1",
        [now - LASTS],
        |row| {
            Ok(EndingAsked {
                by: row.get(0)?,
                member: row.get::<_, Option<i64>>(1)?.map(MemberId),
                at: row.get(2)?,
                keep_models: row.get(3)?,
            })
        },
    )
    .optional()
}
