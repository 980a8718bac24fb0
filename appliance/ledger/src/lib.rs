//! A collective's money, as it is written down: dues, payments, costs and the fund. Pure: no database, no clock, and nothing here
//! moves money.
//!
//! Every amount is whole cents of the site's one currency. What was entered stays: a mistake is corrected by another [`Entry`] that
//! takes it back, so that the sums of yesterday can be had tomorrow.

mod amount;
mod bank;
mod entry;
mod sheet;
mod sums;

pub use amount::{Cents, split};
pub use bank::{Found, Row, read_bank};
pub use entry::{Entry, EntryId, Kind, Month, MonthError, NewEntry};
pub use sheet::{harmless, read_own, write_own};
pub use sums::{Basis, Books, Share, shares};

/// Why money cannot be written down so. Each is one sentence: what, where, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// No amount.
    #[error("{0:?} is no amount of money; write it such as 12.50")]
    Amount(String),
    /// More than anybody's books hold.
    #[error("{0} is more than books here can hold; is there a digit too many?")]
    TooMuch(String),
    /// No day.
    #[error("{0:?} is no day; write it such as 2026-11-27")]
    Day(String),
    /// A note that no line could show.
    #[error("the note has {0} letters or a sign that cannot be printed; 200 letters are the most")]
    Note(usize),
    /// Nothing to write down.
    #[error("the amount is 0, so there is nothing to write down")]
    Nothing,
    /// A table that cannot be read.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong there, and what to do.
        why: String,
    },
    /// A table without the columns that are needed.
    #[error(
        "the table has no column for {0}; its first line must name the columns, such as date, amount and text"
    )]
    Column(&'static str),
    /// A table that is too long.
    #[error("the table has more than {0} lines; bring it in piece by piece")]
    TooLong(usize),
}
