//! What a main box tells one that stands in for it takes no last steward away, and everybody is told of each that it takes away.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::clock::Clock;
use crate::{Revoked, announcements, stewards};

/// The name of the steward who would be one no more, or could not come in any more.
pub(crate) fn steward_meant(
    change: &Transaction<'_>,
    what: &Revoked,
) -> rusqlite::Result<Option<String>> {
    let (Revoked::Member { member, since }
    | Revoked::ShutOut { member, since }
    | Revoked::NoSteward { member, since }) = what
    else {
        return Ok(None);
    };
    let name = change.query_row(
        "SELECT name FROM members WHERE id = ?1 AND created_at = ?2 AND role = 'steward' AND NOT disabled",
        params![member.0, since],
        |row| row.get(0),
    );
    name.optional()
}

/// Whether nobody could look after the box any more.
pub(crate) fn is_last_steward(change: &Transaction<'_>, what: &Revoked) -> rusqlite::Result<bool> {
    Ok(steward_meant(change, what)?.is_some() && stewards::stewards(change)? == 1)
}

/// Everybody is told of what was not done for that.
pub(crate) fn tell_of_held(change: &Transaction<'_>, what: &Revoked) -> rusqlite::Result<()> {
    let name = steward_meant(change, what)?.unwrap_or_default();
    let (wanted, _) = words(what);
    let told = format!(
        "The main box says that {name} was to be {wanted}. It was not done, because nobody else is a steward here: make somebody else one first, if that is right."
    );
    log::warn!("{told}");
    tell(change, &told)
}

/// Everybody is told of a steward who is none any more.
pub(crate) fn tell_of_done(
    change: &Transaction<'_>,
    what: &Revoked,
    name: &str,
) -> rusqlite::Result<()> {
    let (_, gone) = words(what);
    let told = format!(
        "{name} {gone}: so it was decided on the main box, which says it only now that this one stands in for it."
    );
    tell(change, &told)
}

/// What was to become of a steward, and what did.
fn words(what: &Revoked) -> (&'static str, &'static str) {
    match what {
        Revoked::NoSteward { .. } => ("a steward no more", "is no steward any more"),
        Revoked::ShutOut { .. } => ("shut out", "is shut out"),
        _ => ("removed", "was removed"),
    }
}

fn tell(change: &Transaction<'_>, told: &str) -> rusqlite::Result<()> {
    announcements::announce(change, Clock::system().seconds(), told, "the box").map(drop)
}
