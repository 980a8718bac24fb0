use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::{Cents, LedgerError};

/// Names an entry: counted from 1, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub i64);

/// A month, such as `2026-11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month {
    year: i16,
    month: i8,
}

/// Text that is no month.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no month; write it such as 2026-11")]
pub struct MonthError(String);

impl Month {
    /// The month of a day.
    pub fn of(day: Date) -> Self {
        Self { year: day.year(), month: day.month() }
    }

    /// A number that grows by one each month.
    pub fn number(self) -> i64 {
        i64::from(self.year) * 12 + i64::from(self.month) - 1
    }
}

impl FromStr for Month {
    type Err = MonthError;

    fn from_str(text: &str) -> Result<Self, MonthError> {
        let wrong = || MonthError(text.chars().take(40).collect());
        let day: Date = format!("{}-01", text.trim()).parse().map_err(|_| wrong())?;
        (text.trim().len() == 7 && (1970..=9000).contains(&day.year()))
            .then_some(Self::of(day))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

/// What an entry is about, and so whose money it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A member owes it.
    Dues,
    /// A member owes it, as their part of what a month cost.
    Share,
    /// A member paid it into the fund.
    Payment,
    /// It went out of the fund.
    Cost,
    /// It is in the fund, or is lacking there, for a reason that the note says.
    Fund,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Dues, Self::Share, Self::Payment, Self::Cost, Self::Fund];

    /// As it is written in tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dues => "dues",
            Self::Share => "share",
            Self::Payment => "payment",
            Self::Cost => "cost",
            Self::Fund => "fund",
        }
    }

    /// Is it about a member?
    pub const fn has_member(self) -> bool {
        matches!(self, Self::Dues | Self::Share | Self::Payment)
    }

    /// Of an amount, what a member's balance gains.
    pub fn to_member(self, amount: Cents) -> Cents {
        match self {
            Self::Dues | Self::Share => -amount,
            Self::Payment => amount,
            Self::Cost | Self::Fund => Cents(0),
        }
    }

    /// Of an amount, what the fund gains.
    pub fn to_fund(self, amount: Cents) -> Cents {
        match self {
            Self::Payment | Self::Fund => amount,
            Self::Cost => -amount,
            Self::Dues | Self::Share => Cents(0),
        }
    }
}

impl FromStr for Kind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.word() == text).ok_or(())
    }
}

/// Something to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// The day it is of.
    pub day: Date,
    /// What it is about.
    pub kind: Kind,
    /// The member's number, where it is about one.
    pub member: Option<i64>,
    /// How much. Less than nothing only for what takes another entry back, and for the fund.
    pub amount: Cents,
    /// The month that dues, a cost or a share are for.
    pub month: Option<Month>,
    /// A few words.
    pub note: String,
    /// The entry that it takes back.
    pub corrects: Option<EntryId>,
    /// What it was known by in a table that was brought in, so that it is brought in once.
    pub known_by: Option<String>,
}

/// Something that was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub id: EntryId,
    /// What.
    pub what: NewEntry,
    /// The number of the member who wrote it down.
    pub by: i64,
    /// When, Unix seconds.
    pub at: i64,
}

impl NewEntry {
    /// A plain one.
    pub fn of(kind: Kind, day: Date, member: Option<i64>, amount: Cents) -> Self {
        let (note, month, corrects, known_by) = (String::new(), None, None, None);
        Self { day, kind, member, amount, month, note, corrects, known_by }
    }

    /// Can it be written down?
    pub fn check(&self) -> Result<(), LedgerError> {
        if self.amount == Cents(0) {
            return Err(LedgerError::Nothing);
        }
        let either_sign = matches!(self.kind, Kind::Fund | Kind::Share);
        let wrong_sign = self.amount.0 < 0 && self.corrects.is_none() && !either_sign;
        if wrong_sign || self.kind.has_member() != self.member.is_some() {
            return Err(LedgerError::Amount(self.amount.to_string()));
        }
        if self.amount.size().0 > Cents::MOST {
            return Err(LedgerError::TooMuch(self.amount.to_string()));
        }
        let letters = self.note.chars().count();
        if letters > 200 || self.note.chars().any(char::is_control) {
            return Err(LedgerError::Note(letters));
        }
        Ok(())
    }
}

impl Entry {
    /// What takes this one back.
    pub fn taken_back(&self, day: Date, note: String) -> NewEntry {
        let (amount, corrects) = (-self.what.amount, Some(self.id));
        NewEntry { day, amount, note, corrects, known_by: None, ..self.what.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_read_and_shown_and_counted() {
        let month: Month = "2026-12".parse().unwrap();
        assert_eq!(month.to_string(), "2026-12");
        assert_eq!("2027-01".parse::<Month>().unwrap().number(), month.number() + 1);
        for bad in ["2026-13", "2026", "2026-1", "26-01", "2026-01-01", "", "-2026-01"] {
            assert!(bad.parse::<Month>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_written_down() {
        let day: Date = "2026-11-27".parse().unwrap();
        let of = |kind, member, cents| NewEntry::of(kind, day, member, Cents(cents));
        assert!(of(Kind::Payment, Some(1), 5).check().is_ok());
        assert!(of(Kind::Payment, None, 5).check().is_err());
        assert!(of(Kind::Cost, Some(1), 5).check().is_err());
        assert!(of(Kind::Cost, None, -5).check().is_err());
        assert!(of(Kind::Fund, None, -5).check().is_ok());
        assert_eq!(of(Kind::Fund, None, 0).check(), Err(LedgerError::Nothing));
        assert!(of(Kind::Fund, None, Cents::MOST + 1).check().is_err());
        let noted = NewEntry { note: "a\nb".into(), ..of(Kind::Cost, None, 5) };
        assert!(noted.check().is_err());
    }
}
