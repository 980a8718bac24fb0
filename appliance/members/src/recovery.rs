//! When no steward can get in: who holds the three sheets, and what two of them have asked for.

use std::net::IpAddr;

use polder_recovery::{Digest, RecoveryError, SHEETS, Sheet, Stage, WAIT, pair, stage};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::limits::Net;
use crate::people::{self, Ready};
use crate::{
    Ending, Member, MemberId, Members, MembersError, NewMember, RecoveryRefused, Role, Secret,
    announcements, stewards,
};

/// One sheet, as far as the box knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SheetInfo {
    /// 1 to 3.
    pub number: u8,
    /// Who has it, as they were called when it was made.
    pub holder: String,
    /// Their id, while they are here.
    pub member: Option<MemberId>,
    /// It was shown to them.
    pub shown: bool,
    /// They typed it back from the paper: when, in Unix seconds.
    pub confirmed_at: Option<i64>,
}

/// The sheets there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sheets {
    /// Two of these are enough: every one was typed back by its holder.
    pub in_force: Vec<SheetInfo>,
    /// These are being made.
    pub in_making: Vec<SheetInfo>,
}

impl Sheets {
    /// A sheet in the making that this member is to write down.
    pub fn of(&self, member: MemberId) -> Option<&SheetInfo> {
        let mut waiting = self.in_making.iter().filter(|s| s.confirmed_at.is_none());
        waiting.find(|s| s.member == Some(member))
    }
}

/// Who is to become a steward.
#[derive(Debug, Clone)]
pub enum WhoRecovers {
    /// A member, by name, who signs in as they always did.
    Member(String),
    /// Somebody new.
    New(NewMember),
}

/// What two sheets have asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryAsked {
    /// Who is to become a steward.
    pub name: String,
    /// True where they are no member yet.
    pub new: bool,
    /// Whose sheets they were.
    pub holders: String,
    /// Unix seconds.
    pub asked_at: i64,
    /// When it happens unless a steward says no.
    pub due_at: i64,
}

/// Two sheets had their way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Who is a steward now; none where nothing could come of it.
    pub name: Option<String>,
    /// The sentence that everybody was told.
    pub told: String,
}

impl Members {
    /// Begins three new sheets for three different members. Those in force stay until each of the new ones was typed back.
    pub fn make_sheets(&self, by: MemberId, holders: [MemberId; 3]) -> Result<(), MembersError> {
        if holders[0] == holders[1] || holders[1] == holders[2] || holders[0] == holders[2] {
            return Err(MembersError::Field(
                "the three sheets go to three different people: with two of them one could do it alone".into(),
            ));
        }
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let by = stewards::steward(&change, by)?;
        drop_unfinished(&change)?;
        let newest: Option<i64> =
            change.query_row("SELECT max(made) FROM sheets", [], |row| row.get(0))?;
        let made = now.max(newest.unwrap_or_default() + 1);
        let mut names = Vec::new();
        for (number, holder) in (1..).zip(holders) {
            let holder = people::member(&change, holder)?
                .filter(|m| !m.disabled)
                .ok_or(MembersError::NoMember)?;
            change.execute(
                "INSERT INTO sheets (made, number, holder, holder_name) VALUES (?1, ?2, ?3, ?4)",
                params![made, number, holder.id.0, holder.name],
            )?;
            names.push(holder.name);
        }
        let text = format!(
            "{} asks {} to keep a recovery sheet each: the page Recovery sheets shows it to each of them.",
            by.name,
            names.join(", ")
        );
        announcements::announce(&change, now, &text, &by.name)?;
        change.commit()?;
        Ok(())
    }

    /// The sheets there are.
    pub fn sheets(&self) -> Result<Sheets, MembersError> {
        let db = self.db();
        let (in_force, in_making) = (made(&db, true)?, made(&db, false)?);
        let of = |made: Option<i64>| made.map_or(Ok(Vec::new()), |made| infos(&db, made));
        Ok(Sheets { in_force: of(in_force)?, in_making: of(in_making)? })
    }

    /// Makes what is on a member's sheet, to be shown this once. Until it was typed back it can be made anew, which ends the one before.
    pub fn show_sheet(&self, holder: MemberId) -> Result<Sheet, MembersError> {
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (made, number) = waiting(&change, holder)?;
        let sheet = Sheet::make(number).map_err(|e| MembersError::Random(e.to_string()))?;
        change.execute(
            "UPDATE sheets SET digest = ?3 WHERE made = ?1 AND number = ?2",
            params![made, number, sheet.digest()],
        )?;
        change.commit()?;
        Ok(sheet)
    }

    /// A holder typed their sheet back. True when it was the third, and all are in force.
    pub fn confirm_sheet(&self, holder: MemberId, typed: &Secret) -> Result<bool, MembersError> {
        let typed = Sheet::typed(typed.expose(), "that").map_err(field)?;
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (made, number) = waiting(&change, holder)?;
        let kept: Option<Vec<u8>> = change.query_row(
            "SELECT digest FROM sheets WHERE made = ?1 AND number = ?2",
            params![made, number],
            |row| row.get(0),
        )?;
        if kept.is_none_or(|kept| !crate::secret::Digest(typed.digest()).same(&kept)) {
            return Err(MembersError::Field(
                "that is another sheet, or one that was shown before the last; type the one that was shown last"
                    .into(),
            ));
        }
        change.execute(
            "UPDATE sheets SET confirmed_at = ?3 WHERE made = ?1 AND number = ?2",
            params![made, number, now],
        )?;
        let left: i64 = change.query_row(
            "SELECT count(*) FROM sheets WHERE made = ?1 AND confirmed_at IS NULL",
            [made],
            |row| row.get(0),
        )?;
        if left == 0 {
            change.execute("DELETE FROM sheets WHERE made <> ?1", [made])?;
            let names: Vec<String> = infos(&change, made)?.into_iter().map(|s| s.holder).collect();
            let text = format!(
                "The recovery sheets of {} are in force: two of them together can make somebody a steward. Earlier ones are good for nothing.",
                names.join(", ")
            );
            announcements::announce(&change, now, &text, "the box")?;
        }
        change.commit()?;
        Ok(left == 0)
    }

    /// Two people with their sheets ask that somebody become a steward. It happens after a day, unless a steward says no. Everybody is
    /// told at once.
    pub fn ask_recovery(
        &self,
        sheets: [&Secret; 2],
        who: &WhoRecovers,
        from: IpAddr,
    ) -> Result<RecoveryAsked, RecoveryRefused> {
        self.may_try_sheets(from)?;
        let sheets = read(sheets)?;
        // Compared before a password is hashed: strangers make the box hash nothing.
        pair_of(&self.db(), &sheets)?;
        let ready = match who {
            WhoRecovers::New(new) => Some(self.prepare(new)?),
            WhoRecovers::Member(_) => None,
        };
        let now = self.now();
        let mut db = self.db();
        let change = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(MembersError::from)?;
        let holders = pair_of(&change, &sheets)?;
        if recovery(&change)?.is_some() {
            return Err(MembersError::Field(
                "two sheets have asked for something already; it is decided first".into(),
            )
            .into());
        }
        keep(&change, who, ready.as_ref(), &holders, now)?;
        let asked = recovery(&change)?.ok_or(MembersError::NoMember)?;
        let text = format!(
            "Two recovery sheets were used, those of {}: {} becomes a steward in 24 hours, unless a steward says no before, on the page Stewards.",
            asked.holders, asked.name
        );
        announcements::announce(&change, now, &text, "the box").map_err(MembersError::from)?;
        change.commit().map_err(MembersError::from)?;
        self.0.recoveries.forgive(&Net::of(from));
        Ok(asked)
    }

    /// What two sheets have asked for, while it waits.
    pub fn recovery(&self) -> Result<Option<RecoveryAsked>, MembersError> {
        recovery(&self.db())
    }

    /// A steward who is there says no. Everybody is told.
    pub fn refuse_recovery(&self, by: MemberId) -> Result<RecoveryAsked, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let by = stewards::steward(&change, by)?;
        let asked = recovery(&change)?.ok_or_else(|| {
            MembersError::Field("nothing is asked for by recovery sheets any more".into())
        })?;
        if stage(asked.asked_at, now) == Stage::Due {
            return Err(MembersError::Field("the 24 hours are over".into()));
        }
        change.execute("DELETE FROM recovery", [])?;
        let text = format!(
            "{} said no to the recovery sheets: {} becomes no steward.",
            by.name, asked.name
        );
        announcements::announce(&change, now, &text, &by.name)?;
        change.commit()?;
        Ok(asked)
    }

    /// Does what two sheets have asked for, if its time has come: to be called now and then, and after every start.
    pub fn settle_recovery(&self) -> Result<Option<Recovered>, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let Some(asked) = recovery(&db)? else { return Ok(None) };
        if stage(asked.asked_at, now) != Stage::Due {
            return Ok(None);
        }
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made = make_steward(&change, now)?;
        change.execute("DELETE FROM recovery", [])?;
        let told = match made {
            Some(_) => {
                // A sheet that was shown to a browser is good once.
                change.execute("DELETE FROM sheets", [])?;
                format!(
                    "{} is a steward now, by the recovery sheets of {}. All three sheets are used up: make new ones.",
                    asked.name, asked.holders
                )
            }
            None => format!(
                "Nothing came of the recovery sheets of {}: somebody else is called {} by now, or they may not come in.",
                asked.holders, asked.name
            ),
        };
        announcements::announce(&change, now, &told, "the box")?;
        change.commit()?;
        drop(db);
        if let Some(id) = made {
            self.refresh_owner(id)?;
        }
        Ok(Some(Recovered { name: made.map(|_| asked.name), told }))
    }

    /// Two sheets agree to the end of the collective, where no two stewards are left to do so.
    pub fn end_with_sheets(
        &self,
        sheets: [&Secret; 2],
        keep_models: bool,
        from: IpAddr,
    ) -> Result<Ending, RecoveryRefused> {
        self.may_try_sheets(from)?;
        let (sheets, now) = (read(sheets)?, self.now());
        let db = self.db();
        let holders = pair_of(&db, &sheets)?;
        self.0.recoveries.forgive(&Net::of(from));
        if stewards::stewards(&db).map_err(MembersError::from)? >= 2 {
            return Err(MembersError::Field(
                "two stewards are there: they end the collective, on the page The end".into(),
            )
            .into());
        }
        // One steward who hands sheets to three friends would otherwise end it in an hour.
        let newest: Option<i64> = match made(&db, true)? {
            Some(made) => infos(&db, made)?.iter().filter_map(|s| s.confirmed_at).max(),
            None => None,
        };
        if newest.is_none_or(|newest| now.saturating_sub(newest) < WAIT) {
            return Err(MembersError::Field(
                "these recovery sheets are younger than 24 hours; until then everybody can still hear of them"
                    .into(),
            )
            .into());
        }
        Ok(Ending { by: vec![format!("the recovery sheets of {holders}")], keep_models })
    }

    fn may_try_sheets(&self, from: IpAddr) -> Result<(), RecoveryRefused> {
        let (net, now) = (Net::of(from), self.0.clock.millis());
        self.0
            .recoveries
            .take(net, now)
            .and_then(|()| self.0.recoveries_in_all.take((), now))
            .map_err(|seconds| RecoveryRefused::TooMany { seconds })
    }
}

fn read(sheets: [&Secret; 2]) -> Result<[Sheet; 2], RecoveryRefused> {
    let [first, second] = sheets;
    let first = Sheet::typed(first.expose(), "the first sheet").map_err(RecoveryRefused::Sheets)?;
    let second =
        Sheet::typed(second.expose(), "the second sheet").map_err(RecoveryRefused::Sheets)?;
    Ok([first, second])
}

/// Whose sheets these are, if they are two of those in force.
fn pair_of(db: &Connection, sheets: &[Sheet; 2]) -> Result<String, RecoveryRefused> {
    let wrong = || RecoveryRefused::Sheets(RecoveryError::Wrong);
    let made = made(db, true)?.ok_or_else(wrong)?;
    let digests: Vec<Vec<u8>> = {
        let mut query = db
            .prepare_cached("SELECT digest FROM sheets WHERE made = ?1 ORDER BY number")
            .map_err(MembersError::from)?;
        let rows = query.query_map([made], |row| row.get(0)).map_err(MembersError::from)?;
        rows.collect::<Result<_, _>>().map_err(MembersError::from)?
    };
    let digests: Vec<Digest> = digests.into_iter().filter_map(|d| d.try_into().ok()).collect();
    let kept: [Digest; SHEETS as usize] = digests.try_into().map_err(|_| wrong())?;
    let (first, second) = pair(&kept, &sheets[0], &sheets[1]).map_err(RecoveryRefused::Sheets)?;
    let infos = infos(db, made)?;
    let mut names = Vec::new();
    for sheet in infos.iter().filter(|s| [first, second].contains(&s.number)) {
        let holder = sheet.member.map(|id| people::member(db, id)).transpose()?.flatten();
        if holder.is_none_or(|holder| holder.disabled) {
            return Err(MembersError::Field(format!(
                "the sheet of {} is good for nothing: they are no member any more, or may not come in",
                sheet.holder
            ))
            .into());
        }
        names.push(sheet.holder.as_str());
    }
    Ok(names.join(" and "))
}

fn keep(
    change: &Connection,
    who: &WhoRecovers,
    ready: Option<&Ready>,
    holders: &str,
    now: i64,
) -> Result<(), MembersError> {
    let (member, name, key, password) = match (who, ready) {
        (WhoRecovers::New(_), Some(ready)) => {
            let taken: bool = change.query_row(
                "SELECT EXISTS (SELECT 1 FROM members WHERE name_key = ?1)",
                [&ready.name_key],
                |row| row.get(0),
            )?;
            if taken {
                return Err(MembersError::NameTaken(ready.name.clone()));
            }
            (None, ready.name.clone(), ready.name_key.clone(), ready.password.clone())
        }
        (WhoRecovers::New(new), None) => return Err(MembersError::NameTaken(new.name.clone())),
        (WhoRecovers::Member(name), _) => {
            let (name, key) = crate::words::member_name(name)?;
            let found: Option<i64> = change
                .query_row("SELECT id FROM members WHERE name_key = ?1", [&key], |row| row.get(0))
                .optional()?;
            let member: Option<Member> =
                found.map(|id| people::member(change, MemberId(id))).transpose()?.flatten();
            let member = member.ok_or_else(|| {
                MembersError::Field(format!(
                    "nobody here is called {name:?}; write the name of a member, or choose a password to make a new one"
                ))
            })?;
            if member.disabled || member.role == Role::Steward || !member.has_password {
                return Err(MembersError::Field(format!(
                    "{} is a steward already, or cannot sign in; name another member, or a new one",
                    member.name
                )));
            }
            (Some(member.id.0), member.name, key, None)
        }
    };
    change.execute(
        "INSERT INTO recovery (one, asked_at, member, name, name_key, password, holders)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)",
        params![now, member, name, key, password, holders],
    )?;
    Ok(())
}

/// Makes whom two sheets named a steward, if that is still possible.
fn make_steward(
    change: &rusqlite::Transaction<'_>,
    now: i64,
) -> Result<Option<MemberId>, MembersError> {
    type Kept = (Option<i64>, String, String, Option<String>);
    let (member, name, name_key, password): Kept =
        change.query_row("SELECT member, name, name_key, password FROM recovery", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    match member {
        Some(id) => {
            let found = people::member(change, MemberId(id))?.filter(|m| !m.disabled);
            let Some(member) = found else { return Ok(None) };
            people::give_role(change, member.id, Role::Steward, now)?;
            Ok(Some(member.id))
        }
        None => {
            let ready = Ready { name, name_key, email: None, password };
            match ready.insert(change, Role::Steward, now) {
                Ok(id) => Ok(Some(id)),
                Err(MembersError::NameTaken(_)) => Ok(None),
                Err(error) => Err(error),
            }
        }
    }
}

fn recovery(db: &Connection) -> Result<Option<RecoveryAsked>, MembersError> {
    let found = db
        .query_row(
            "SELECT name, password IS NOT NULL, holders, asked_at FROM recovery",
            [],
            |row| {
                let asked_at: i64 = row.get(3)?;
                Ok(RecoveryAsked {
                    name: row.get(0)?,
                    new: row.get(1)?,
                    holders: row.get(2)?,
                    asked_at,
                    due_at: asked_at.saturating_add(WAIT),
                })
            },
        )
        .optional()?;
    Ok(found)
}

/// When the sheets in force, or those in the making, were begun: which names them.
fn made(db: &Connection, whole: bool) -> Result<Option<i64>, MembersError> {
    let found = db
        .query_row(
            "SELECT made FROM sheets GROUP BY made
             HAVING (count(confirmed_at) = ?1) = ?2 ORDER BY made DESC LIMIT 1",
            params![SHEETS, whole],
            |row| row.get(0),
        )
        .optional()?;
    Ok(found)
}

fn drop_unfinished(db: &Connection) -> Result<(), MembersError> {
    if let Some(made) = made(db, false)? {
        db.execute("DELETE FROM sheets WHERE made = ?1", [made])?;
    }
    Ok(())
}

fn infos(db: &Connection, made: i64) -> Result<Vec<SheetInfo>, MembersError> {
    let mut query = db.prepare_cached(
        "SELECT number, holder_name, holder, digest IS NOT NULL, confirmed_at
         FROM sheets WHERE made = ?1 ORDER BY number",
    )?;
    let rows = query.query_map([made], |row| {
        Ok(SheetInfo {
            number: row.get(0)?,
            holder: row.get(1)?,
            member: row.get::<_, Option<i64>>(2)?.map(MemberId),
            shown: row.get(3)?,
            confirmed_at: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The sheet in the making that this member is to write down.
fn waiting(db: &Connection, holder: MemberId) -> Result<(i64, u8), MembersError> {
    let none = || {
        MembersError::Field(
            "no recovery sheet waits for you; a steward asks people to keep one, on the page Recovery sheets".into(),
        )
    };
    let made = made(db, false)?.ok_or_else(none)?;
    let number = db
        .query_row(
            "SELECT number FROM sheets WHERE made = ?1 AND holder = ?2 AND confirmed_at IS NULL",
            params![made, holder.0],
            |row| row.get(0),
        )
        .optional()?;
    Ok((made, number.ok_or_else(none)?))
}

fn field(error: RecoveryError) -> MembersError {
    MembersError::Field(error.to_string())
}
