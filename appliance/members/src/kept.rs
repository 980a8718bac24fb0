//! That people on the box decided somebody is to be no steward, kept for who they are at a service, beyond their removal.

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest as _, Sha256};

use crate::MemberId;

/// Before a member is removed: that people decided they are to be no steward holds for who they are at a service, should they come in by it
/// again.
pub(crate) fn note(db: &Connection, id: MemberId) -> rusqlite::Result<()> {
    let mut query = db.prepare_cached(
        "SELECT issuer, subject FROM identities JOIN members ON members.id = identities.member
         WHERE member = ?1 AND kept_member",
    )?;
    let kept: Vec<String> = query
        .query_map([id.0], |row| Ok(digest(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)))?
        .collect::<Result<_, _>>()?;
    for identity in kept {
        keep(db, identity)?;
    }
    Ok(())
}

/// The same before they are linked no more to who they are at this service, so that unlinking and leaving is no way round it.
pub(crate) fn note_link(db: &Connection, id: MemberId, issuer: &str) -> rusqlite::Result<()> {
    let subject: Option<String> = db
        .query_row(
            "SELECT subject FROM identities JOIN members ON members.id = identities.member
             WHERE member = ?1 AND issuer = ?2 AND kept_member",
            params![id.0, issuer],
            |row| row.get(0),
        )
        .optional()?;
    subject.map_or(Ok(()), |subject| keep(db, digest(issuer, &subject)))
}

fn keep(db: &Connection, identity: String) -> rusqlite::Result<()> {
    db.execute("INSERT OR IGNORE INTO kept_identities (identity) VALUES (?1)", [identity])?;
    Ok(())
}

/// Somebody comes in by who they are at a service, anew: what was decided holds for them.
pub(crate) fn honour(
    db: &Connection,
    id: MemberId,
    issuer: &str,
    subject: &str,
) -> rusqlite::Result<()> {
    let decided =
        db.execute("DELETE FROM kept_identities WHERE identity = ?1", [digest(issuer, subject)])?;
    if decided > 0 {
        db.execute(
            "UPDATE members SET kept_member = 1 WHERE id = ?1 AND role = 'member'",
            params![id.0],
        )?;
    }
    Ok(())
}

/// Who somebody is at a service, without saying so.
fn digest(issuer: &str, subject: &str) -> String {
    let digest = Sha256::digest(format!("{issuer}\n{subject}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
