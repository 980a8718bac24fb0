//! Three sheets of paper with three people, of which two together make somebody a steward when nobody can get in: what is on them,
//! whether two are enough, and when. Pure: no file and no clock.

mod decide;
mod sheet;

pub use decide::{Stage, WAIT, pair, stage};
pub use sheet::{Digest, SHEETS, Sheet};

/// What was typed or made is no good. Each message is one sentence fit for a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// A letter is wrong or missing.
    #[error(
        "{0} is not on a sheet as it was typed: there are ten groups of four letters; look for a slip of the pen"
    )]
    Mistyped(&'static str),
    /// The same sheet twice.
    #[error("that is the same sheet twice; two different ones are needed")]
    Same,
    /// Not of this box, or of an earlier set: one answer.
    #[error(
        "these are not two sheets of this box that are in force; sheets that were replaced or used are not any more"
    )]
    Wrong,
    /// The system has no random numbers.
    #[error("the system gave no random numbers, so no sheet could be made: {0}")]
    Random(String),
}
