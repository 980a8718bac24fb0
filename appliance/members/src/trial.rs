use std::collections::HashMap;
use std::sync::PoisonError;

use rusqlite::{Connection, TransactionBehavior};

use crate::{MemberId, Members, MembersError};

/// How a member who was chosen for it tries a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trying {
    /// Under the usual name too, because they said so; otherwise under its own name only.
    pub under_alias: bool,
}

impl Members {
    /// Chooses who tries a model before everybody has it; these and nobody else. Whoever had it under the usual name has to say so anew.
    pub fn choose_for_trial(&self, chosen: &[MemberId]) -> Result<(), MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        change.execute("DELETE FROM trial", [])?;
        for member in chosen {
            // Somebody may have been removed since the page was drawn.
            change.execute(
                "INSERT OR IGNORE INTO trial (member) SELECT id FROM members WHERE id = ?1",
                [member.0],
            )?;
        }
        change.commit()?;
        self.keep_trying(load(&db)?);
        Ok(())
    }

    /// Has the model on trial under the usual name too, or no more. An error for who was not chosen.
    pub fn try_under_alias(&self, member: MemberId, under_alias: bool) -> Result<(), MembersError> {
        let db = self.db();
        let changed = db.execute(
            "UPDATE trial SET under_alias = ?2 WHERE member = ?1",
            (member.0, under_alias),
        )?;
        if changed == 0 {
            return Err(MembersError::Field("nobody chose you to try another model".into()));
        }
        self.keep_trying(load(&db)?);
        Ok(())
    }

    /// Whether a member tries a model, and how. *In memory*.
    pub fn trying(&self, member: MemberId) -> Option<Trying> {
        let trying = self.0.trying.read().unwrap_or_else(PoisonError::into_inner);
        trying.get(&member).copied()
    }

    /// Everybody who does. *In memory*.
    pub fn all_trying(&self) -> Vec<MemberId> {
        let trying = self.0.trying.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = trying.keys().copied().collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn tries_no_more(&self, member: MemberId) {
        let mut trying = self.0.trying.write().unwrap_or_else(PoisonError::into_inner);
        trying.remove(&member);
    }

    fn keep_trying(&self, trying: HashMap<MemberId, Trying>) {
        *self.0.trying.write().unwrap_or_else(PoisonError::into_inner) = trying;
    }
}

pub(crate) fn load(db: &Connection) -> Result<HashMap<MemberId, Trying>, MembersError> {
    let mut query = db.prepare_cached("SELECT member, under_alias FROM trial")?;
    let rows = query
        .query_map([], |row| Ok((MemberId(row.get(0)?), Trying { under_alias: row.get(1)? })))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewMember, Role, Secret};

    #[test]
    fn only_who_was_chosen_tries_a_model_and_who_is_removed_tries_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        let members = Members::open(&path).unwrap();
        let join = |name: &str| {
            let password = Secret::new("four words in a row".into());
            let new = NewMember { name: name.into(), email: None, password };
            members.add_member(&new, Role::Steward).unwrap().id
        };
        let (ada, ben) = (join("ada"), join("ben"));
        members.choose_for_trial(&[ada, MemberId(99)]).unwrap();
        assert_eq!(members.all_trying(), [ada]);
        assert!(members.try_under_alias(ben, true).is_err());
        members.try_under_alias(ada, true).unwrap();
        let again = Members::open(&path).unwrap();
        assert_eq!(again.trying(ada), Some(Trying { under_alias: true }));
        members.choose_for_trial(&[ada, ben]).unwrap();
        assert_eq!(members.trying(ada), Some(Trying { under_alias: false }), "chosen anew");
        members.remove_member(ada).unwrap();
        assert_eq!((members.trying(ada), members.all_trying()), (None, vec![ben]));
        assert_eq!(Members::open(&path).unwrap().all_trying(), [ben]);
    }
}
