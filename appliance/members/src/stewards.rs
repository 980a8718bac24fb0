//! Who looks after the box, where more than one has to agree: two stewards replace a third, and nobody does it alone.

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::{
    Member, MemberId, Members, MembersError, Role, announcements, ending, invites, people,
};

/// Whoever is a steward for less than this, in seconds, says yes to nothing that needs two: otherwise one steward would invite a second
/// self and be two.
pub(crate) const SEASONED: i64 = 24 * 3600;
/// A proposal that nobody answers is gone after this.
const LASTS: i64 = 14 * 24 * 3600;

/// What is to become of a steward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A member like others.
    Member,
    /// Removed, with everything that is kept about them.
    Removed,
}

/// What one steward wants done with another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Which.
    pub id: i64,
    /// With whom.
    pub target: Member,
    /// What.
    pub what: Wanted,
    /// Who becomes a steward in their place.
    pub successor: Option<Member>,
    /// Who says so.
    pub by: Member,
    /// Unix seconds.
    pub at: i64,
}

/// What two stewards have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// As it was proposed.
    pub proposal: Proposal,
    /// The sentence that everybody was told.
    pub told: String,
}

impl Members {
    /// Whether this steward may change another's role, access or password without anybody else: their own, and that of whoever is no
    /// steward. Refused otherwise, with where to go.
    pub fn may_alone(&self, by: MemberId, target: MemberId) -> Result<(), MembersError> {
        let target_is = self.member(target)?;
        if by == target || !target_is.is_steward() {
            return Ok(());
        }
        Err(MembersError::NeedsTwo(target_is.name))
    }

    /// One steward makes a member a steward, or stops being one. Everybody is told. Another steward's role is for two.
    pub fn decide_role(
        &self,
        by: MemberId,
        target: MemberId,
        role: Role,
    ) -> Result<(), MembersError> {
        let now = self.now();
        {
            let mut db = self.db();
            let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let by = steward(&change, by)?;
            let them = people::member(&change, target)?.ok_or(MembersError::NoMember)?;
            if them.is_steward() && by.id != target {
                return Err(MembersError::NeedsTwo(them.name));
            }
            if role == Role::Member {
                invites::withdraw_all_by(&change, target)?;
                change.execute("DELETE FROM proposals WHERE by = ?1", [target.0])?;
                ending::forget_of(&change, target)?;
            }
            people::give_role(&change, target, role, now)?;
            if stewards(&change)? == 0 {
                return Err(MembersError::LastSteward);
            }
            let told = match (them.role, role) {
                (Role::Member, Role::Steward) => {
                    Some(format!("{} made {} a steward.", by.name, them.name))
                }
                (Role::Steward, Role::Member) => {
                    Some(format!("{} is no steward any more.", them.name))
                }
                _ => None,
            };
            if let Some(told) = told {
                announcements::announce(&change, now, &told, &by.name)?;
            }
            change.commit()?;
        }
        self.keep_gone();
        self.refresh_owner(target)
    }

    /// One steward proposes that another be replaced. Everybody is told.
    pub fn propose(
        &self,
        by: MemberId,
        target: MemberId,
        what: Wanted,
        successor: Option<MemberId>,
    ) -> Result<Proposal, MembersError> {
        let field = |why: &str| MembersError::Field(why.to_owned());
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        forget_old(&change, now)?;
        steward(&change, by)?;
        if by == target {
            return Err(field(
                "for yourself nobody else is needed: on your own account page, or on the page Members",
            ));
        }
        steward(&change, target).map_err(|_| {
            field("they are no steward; one steward is enough, on the page Members")
        })?;
        if let Some(successor) = successor {
            let next = people::member(&change, successor)?.ok_or(MembersError::NoMember)?;
            if next.disabled || next.role == Role::Steward {
                return Err(field("choose somebody who is a member now, and not disabled"));
            }
        }
        let there: bool = change.query_row(
            "SELECT EXISTS (SELECT 1 FROM proposals WHERE target = ?1)",
            [target.0],
            |row| row.get(0),
        )?;
        if there {
            return Err(field("there is a proposal about them already; answer that one"));
        }
        change.execute(
            "INSERT INTO proposals (target, what, successor, by, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![target.0, word(what), successor.map(|s| s.0), by.0, now],
        )?;
        let made = one(&change, change.last_insert_rowid())?;
        let text = format!(
            "{} proposes that {}. It happens when another steward agrees.",
            made.by.name,
            wanted_in_words(&made)
        );
        announcements::announce(&change, now, &text, &made.by.name)?;
        change.commit()?;
        Ok(made)
    }

    /// Every proposal that waits, oldest first.
    pub fn proposals(&self) -> Result<Vec<Proposal>, MembersError> {
        let db = self.db();
        forget_old(&db, self.now())?;
        let ids: Vec<i64> = {
            let mut query = db.prepare_cached("SELECT id FROM proposals ORDER BY id")?;
            query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        ids.into_iter().map(|id| one(&db, id)).collect()
    }

    /// A second steward agrees: it is done, and everybody is told.
    pub fn agree(&self, by: MemberId, id: i64) -> Result<Replaced, MembersError> {
        let now = self.now();
        let (replaced, target) = {
            let mut db = self.db();
            let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            forget_old(&change, now)?;
            let proposal = one(&change, id)?;
            second(&change, by, proposal.by.id, now)?;
            if by == proposal.target.id {
                return Err(MembersError::Field(
                    "it is about you: another steward has to agree".into(),
                ));
            }
            // Whoever proposed it may be a steward no more.
            steward(&change, proposal.by.id)?;
            let target = proposal.target.id;
            let holds_sheet: bool = change.query_row(
                "SELECT EXISTS (SELECT 1 FROM sheets WHERE holder = ?1 AND confirmed_at IS NOT NULL)",
                [target.0],
                |row| row.get(0),
            )?;
            if let Some(successor) = &proposal.successor {
                people::give_role(&change, successor.id, Role::Steward, now)?;
            }
            match proposal.what {
                Wanted::Removed => {
                    // Should they come in anew by who they are elsewhere, then as a member.
                    people::give_role(&change, target, Role::Member, now)?;
                    people::remove(&change, target)?;
                }
                Wanted::Member => {
                    invites::withdraw_all_by(&change, target)?;
                    people::give_role(&change, target, Role::Member, now)?;
                    // What they wanted as a steward goes with it.
                    change.execute("DELETE FROM proposals WHERE by = ?1", [target.0])?;
                }
            }
            ending::forget_of(&change, target)?;
            change.execute("DELETE FROM proposals WHERE id = ?1", [id])?;
            if stewards(&change)? == 0 {
                return Err(MembersError::LastSteward);
            }
            let by = people::member(&change, by)?.ok_or(MembersError::NoMember)?;
            let mut told = format!(
                "{} and {} decided that {}. It is done.",
                proposal.by.name,
                by.name,
                wanted_in_words(&proposal)
            );
            if holds_sheet {
                told += " They keep a recovery sheet, which stays good until new ones are made.";
            }
            announcements::announce(&change, now, &told, &by.name)?;
            change.commit()?;
            (Replaced { proposal, told }, target)
        };
        match replaced.proposal.what {
            Wanted::Removed => self.sent_away(target),
            Wanted::Member => self.refresh_owner(target)?,
        }
        if let Some(successor) = &replaced.proposal.successor {
            self.refresh_owner(successor.id)?;
        }
        self.keep_gone();
        Ok(replaced)
    }

    /// A steward says no, the one whom it is about too: it is gone, and everybody is told.
    pub fn refuse_proposal(&self, by: MemberId, id: i64) -> Result<Proposal, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let by = steward(&change, by)?;
        let proposal = one(&change, id)?;
        if by.id == proposal.target.id && stewards(&change)? > 2 {
            return Err(MembersError::Field(
                "it is about you: one of the other stewards has to say no".into(),
            ));
        }
        change.execute("DELETE FROM proposals WHERE id = ?1", [id])?;
        let text = format!("{} said no to this: {}.", by.name, wanted_in_words(&proposal));
        announcements::announce(&change, now, &text, &by.name)?;
        change.commit()?;
        Ok(proposal)
    }
}

/// What a proposal is about, as the end of a sentence.
pub(crate) fn wanted_in_words(proposal: &Proposal) -> String {
    let mut text = match proposal.what {
        Wanted::Member => format!("{} is no steward any more", proposal.target.name),
        Wanted::Removed => format!("{} is removed from the box", proposal.target.name),
    };
    if let Some(successor) = &proposal.successor {
        text += &format!(", and {} becomes a steward", successor.name);
    }
    text
}

/// Somebody who may look after the box now.
pub(crate) fn steward(db: &Connection, id: MemberId) -> Result<Member, MembersError> {
    people::member(db, id)?
        .filter(Member::is_steward)
        .ok_or_else(|| MembersError::Field("only somebody who is a steward now can do that".into()))
}

/// How many look after the box.
pub(crate) fn stewards(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row(
        "SELECT count(*) FROM members WHERE role = 'steward' AND NOT disabled",
        [],
        |row| row.get(0),
    )
}

/// A second steward, other than the first, and not of yesterday.
pub(crate) fn second(
    db: &Connection,
    by: MemberId,
    first: MemberId,
    now: i64,
) -> Result<Member, MembersError> {
    let second = steward(db, by)?;
    if by == first {
        return Err(MembersError::Field(
            "you asked for it yourself: a second steward has to agree".into(),
        ));
    }
    let since: i64 =
        db.query_row("SELECT steward_since FROM members WHERE id = ?1", [by.0], |r| r.get(0))?;
    if now < since.saturating_add(SEASONED) {
        return Err(MembersError::Field(
            "you are a steward for less than a day; such a thing is agreed to by somebody who is it for longer"
                .into(),
        ));
    }
    Ok(second)
}

fn forget_old(db: &Connection, now: i64) -> rusqlite::Result<()> {
    db.execute("DELETE FROM proposals WHERE at <= ?1", [now - LASTS]).map(drop)
}

fn one(db: &Connection, id: i64) -> Result<Proposal, MembersError> {
    type Columns = (i64, String, Option<i64>, i64, i64);
    let read = |row: &Row<'_>| -> rusqlite::Result<Columns> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    };
    let found = db
        .query_row(
            "SELECT target, what, successor, by, at FROM proposals WHERE id = ?1",
            [id],
            read,
        )
        .optional()?;
    let gone =
        || MembersError::Field("there is no such proposal any more; somebody answered it".into());
    let (target, what, successor, by, at) = found.ok_or_else(gone)?;
    let named = |id: i64| people::member(db, MemberId(id))?.ok_or(MembersError::NoMember);
    Ok(Proposal {
        id,
        target: named(target)?,
        what: if what == "remove" { Wanted::Removed } else { Wanted::Member },
        successor: successor.map(named).transpose()?,
        by: named(by)?,
        at,
    })
}

fn word(what: Wanted) -> &'static str {
    match what {
        Wanted::Member => "member",
        Wanted::Removed => "remove",
    }
}
