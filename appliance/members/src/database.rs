use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::MembersError;

/// Each entry brings the file from the layout of its index to the next, which older versions cannot read: an update with
/// one cannot be taken back. Never edit one that was released: add another, and an addition if that will do.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE members (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        name_key TEXT NOT NULL UNIQUE,
        email TEXT,
        role TEXT NOT NULL CHECK (role IN ('steward', 'member')),
        password TEXT,
        disabled INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE sessions (
        digest BLOB PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
        created_at INTEGER NOT NULL,
        seen_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX sessions_of_member ON sessions(member);
    CREATE TABLE invites (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        role TEXT NOT NULL CHECK (role IN ('steward', 'member')),
        note TEXT NOT NULL,
        made_by INTEGER REFERENCES members(id) ON DELETE SET NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL,
        member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
        label TEXT NOT NULL,
        scopes TEXT NOT NULL,
        models TEXT NOT NULL,
        strict INTEGER NOT NULL DEFAULT 0,
        for_up INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        used_at INTEGER,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        tokens_per_month INTEGER,
        at_once INTEGER
    ) STRICT;
    CREATE INDEX keys_of_member ON keys(member);
    CREATE TABLE usage (
        day TEXT NOT NULL,
        member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt INTEGER NOT NULL,
        completion INTEGER NOT NULL,
        PRIMARY KEY (member, day, key, model)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE quota_use (
        key TEXT NOT NULL REFERENCES keys(id) ON DELETE CASCADE,
        month INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (key, month)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE claim (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        digest BLOB NOT NULL,
        expires_at INTEGER NOT NULL,
        reopens INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE setup_session (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        digest BLOB NOT NULL,
        expires_at INTEGER
    ) STRICT;
    CREATE TABLE wizard (one INTEGER PRIMARY KEY CHECK (one = 1), state TEXT NOT NULL) STRICT;
"];

/// What later versions added, each by a name, in any order: new tables, and new columns with a default. Older versions
/// read and write a file that has them, so that an update can be taken back.
const ADDITIONS: &[(&str, &str)] = &[
    (
        "shares",
        "ALTER TABLE members ADD COLUMN share_percent INTEGER NOT NULL DEFAULT 100;
     ALTER TABLE members ADD COLUMN answers_at_once INTEGER;
     ALTER TABLE keys ADD COLUMN background INTEGER NOT NULL DEFAULT 0;",
    ),
    (
        "forgetting",
        "-- Whom which engine is still to forget; a member who was removed too.
     CREATE TABLE forgetting (
         member INTEGER NOT NULL,
         engine TEXT NOT NULL,
         PRIMARY KEY (member, engine)
     ) STRICT, WITHOUT ROWID;
     -- Whoever removes a member, also a version that knows nothing of this.
     CREATE TRIGGER forget_removed AFTER DELETE ON members BEGIN
         INSERT OR IGNORE INTO forgetting (member, engine) VALUES (OLD.id, '*');
     END;",
    ),
    (
        "identities",
        "-- Who a member is where the collective signs in, and the address that was proven there.
     CREATE TABLE identities (
         issuer TEXT NOT NULL,
         subject TEXT NOT NULL,
         member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
         shown TEXT NOT NULL,
         email TEXT,
         made_steward INTEGER NOT NULL DEFAULT 0,
         created_at INTEGER NOT NULL,
         seen_at INTEGER NOT NULL,
         PRIMARY KEY (issuer, subject),
         UNIQUE (member, issuer)
     ) STRICT, WITHOUT ROWID;",
    ),
    (
        "client apps",
        "-- Apps that let people sign in with the box.
     CREATE TABLE client_apps (
         id TEXT PRIMARY KEY,
         name TEXT NOT NULL,
         digest BLOB,
         redirects TEXT NOT NULL,
         for_stewards INTEGER NOT NULL,
         created_at INTEGER NOT NULL
     ) STRICT;
     -- Each time that somebody went there; it ends with their session.
     CREATE TABLE visits (
         id TEXT PRIMARY KEY,
         app TEXT NOT NULL REFERENCES client_apps(id) ON DELETE CASCADE,
         session BLOB NOT NULL REFERENCES sessions(digest) ON DELETE CASCADE,
         issuer TEXT NOT NULL,
         redirect TEXT NOT NULL,
         challenge TEXT,
         nonce TEXT,
         scope TEXT NOT NULL,
         created_at INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX visits_of_session ON visits(session);
     CREATE INDEX visits_of_app ON visits(app);
     -- What an app was given for it.
     CREATE TABLE visit_tokens (
         digest BLOB PRIMARY KEY,
         visit TEXT NOT NULL REFERENCES visits(id) ON DELETE CASCADE,
         kind TEXT NOT NULL CHECK (kind IN ('code', 'access', 'refresh')),
         spent INTEGER NOT NULL DEFAULT 0,
         expires_at INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX tokens_of_visit ON visit_tokens(visit);",
    ),
    (
        "revocations",
        "-- What must never work again, so that a spare and a restored backup honour it. Only grows.
     CREATE TABLE revocations (
         number INTEGER PRIMARY KEY AUTOINCREMENT,
         at INTEGER NOT NULL,
         kind TEXT NOT NULL CHECK (kind IN ('member', 'key', 'shut-out', 'let-in', 'no-steward', 'everybody')),
         member INTEGER,
         since INTEGER,
         key TEXT
     ) STRICT;
     CREATE INDEX revocations_of_member ON revocations(member);
     CREATE UNIQUE INDEX revoked_once ON revocations(kind, ifnull(member, 0), ifnull(since, 0), ifnull(key, ''))
         WHERE kind IN ('member', 'key');
     -- Whoever removes somebody, also a version that knows nothing of this.
     CREATE TRIGGER revoke_member AFTER DELETE ON members BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, member, since)
         VALUES (unixepoch(), 'member', OLD.id, OLD.created_at);
     END;
     -- A removed member's keys go with them. The box's own, which live ten minutes, are nobody's affair.
     CREATE TRIGGER revoke_key AFTER DELETE ON keys
     WHEN NOT (OLD.for_up AND OLD.expires_at IS NOT NULL)
          AND EXISTS (SELECT 1 FROM members WHERE id = OLD.member) BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, key) VALUES (unixepoch(), 'key', OLD.id);
     END;
     CREATE TRIGGER revoke_access AFTER UPDATE OF disabled ON members
     WHEN OLD.disabled <> NEW.disabled
          AND CASE NEW.disabled WHEN 0 THEN 'let-in' ELSE 'shut-out' END IS NOT
              (SELECT kind FROM revocations WHERE member = NEW.id AND since = NEW.created_at
               AND kind IN ('let-in', 'shut-out') ORDER BY number DESC LIMIT 1) BEGIN
         INSERT INTO revocations (at, kind, member, since) VALUES
             (unixepoch(), CASE NEW.disabled WHEN 0 THEN 'let-in' ELSE 'shut-out' END, NEW.id, NEW.created_at);
     END;
     CREATE TRIGGER revoke_stewardship AFTER UPDATE OF role ON members
     WHEN OLD.role = 'steward' AND NEW.role = 'member'
          AND NOT EXISTS (SELECT 1 FROM revocations WHERE kind = 'no-steward' AND member = NEW.id
                          AND since = NEW.created_at AND at >= unixepoch() - 1) BEGIN
         INSERT INTO revocations (at, kind, member, since)
         VALUES (unixepoch(), 'no-steward', NEW.id, NEW.created_at);
     END;",
    ),
    (
        "collective",
        "-- What everybody is told, and who has read it.
     CREATE TABLE announcements (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         at INTEGER NOT NULL,
         by TEXT NOT NULL,
         text TEXT NOT NULL
     ) STRICT;
     CREATE TABLE announcements_read (
         member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
         announcement INTEGER NOT NULL REFERENCES announcements(id) ON DELETE CASCADE,
         PRIMARY KEY (member, announcement)
     ) STRICT, WITHOUT ROWID;
     -- Since when somebody looks after the box: who does not yet for a day confirms no change of stewards.
     ALTER TABLE members ADD COLUMN steward_since INTEGER NOT NULL DEFAULT 0;
     -- What one steward wants done with another: a second one says yes to it, or somebody says no.
     CREATE TABLE proposals (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         target INTEGER NOT NULL UNIQUE REFERENCES members(id) ON DELETE CASCADE,
         what TEXT NOT NULL CHECK (what IN ('member', 'remove')),
         successor INTEGER REFERENCES members(id) ON DELETE CASCADE,
         by INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
         at INTEGER NOT NULL
     ) STRICT;
     -- Recovery sheets: what is kept of each is its digest.
     CREATE TABLE sheets (
         made INTEGER NOT NULL,
         number INTEGER NOT NULL CHECK (number BETWEEN 1 AND 3),
         holder INTEGER REFERENCES members(id) ON DELETE SET NULL,
         holder_name TEXT NOT NULL,
         digest BLOB,
         confirmed_at INTEGER,
         PRIMARY KEY (made, number)
     ) STRICT, WITHOUT ROWID;
     -- Two sheets were shown: whom they make a steward when nobody has refused it by then.
     CREATE TABLE recovery (
         one INTEGER PRIMARY KEY CHECK (one = 1),
         asked_at INTEGER NOT NULL,
         member INTEGER REFERENCES members(id) ON DELETE CASCADE,
         name TEXT NOT NULL,
         name_key TEXT NOT NULL,
         password TEXT,
         holders TEXT NOT NULL
     ) STRICT;
     -- The end of the collective, as far as one has asked for it.
     CREATE TABLE ending (
         one INTEGER PRIMARY KEY CHECK (one = 1),
         by TEXT NOT NULL,
         member INTEGER REFERENCES members(id) ON DELETE CASCADE,
         at INTEGER NOT NULL,
         keep_models INTEGER NOT NULL
     ) STRICT;",
    ),
    (
        "trial",
        "-- Who tries a model before everybody has it, and who has it under the usual name too.
     CREATE TABLE trial (
         member INTEGER PRIMARY KEY REFERENCES members(id) ON DELETE CASCADE,
         under_alias INTEGER NOT NULL DEFAULT 0
     ) STRICT;",
    ),
    (
        "money",
        "-- What was written down stays: a correction is another entry.
     CREATE TABLE ledger (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         day TEXT NOT NULL,
         kind TEXT NOT NULL CHECK (kind IN ('dues', 'share', 'payment', 'cost', 'fund')),
         member INTEGER,
         cents INTEGER NOT NULL CHECK (cents <> 0),
         month TEXT,
         note TEXT NOT NULL,
         corrects INTEGER UNIQUE REFERENCES ledger(id),
         known_by TEXT UNIQUE,
         by_member INTEGER NOT NULL,
         at INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX ledger_of_member ON ledger(member);
     CREATE TRIGGER ledger_changes_nothing BEFORE UPDATE ON ledger BEGIN
         SELECT RAISE(ABORT, 'entries of the ledger stay as they are');
     END;
     CREATE TRIGGER ledger_loses_nothing BEFORE DELETE ON ledger BEGIN
         SELECT RAISE(ABORT, 'entries of the ledger stay');
     END;
     -- What members were called who are no more, until somebody asks that it be forgotten.
     CREATE TABLE ledger_names (member INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
     CREATE TRIGGER ledger_keeps_name AFTER DELETE ON members
     WHEN EXISTS (SELECT 1 FROM ledger WHERE member = OLD.id OR by_member = OLD.id) BEGIN
         INSERT OR REPLACE INTO ledger_names (member, name) VALUES (OLD.id, OLD.name);
     END;
     -- Who agrees that costs are split by usage, from which month on.
     CREATE TABLE usage_shares (
         member INTEGER PRIMARY KEY REFERENCES members(id) ON DELETE CASCADE,
         from_month INTEGER NOT NULL
     ) STRICT;",
    ),
    (
        "deeds",
        "-- What is still to be written into the audit trail.
     CREATE TABLE deeds (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         at INTEGER NOT NULL,
         text TEXT NOT NULL
     ) STRICT;",
    ),
    (
        "elsewhere",
        "ALTER TABLE members ADD COLUMN stays_here INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE keys ADD COLUMN stays_here INTEGER NOT NULL DEFAULT 0;
     -- What was answered elsewhere and what it cost, in millionths: of everybody together, nobody by name.
     CREATE TABLE elsewhere (
         month INTEGER NOT NULL,
         upstream TEXT NOT NULL,
         model TEXT NOT NULL,
         requests INTEGER NOT NULL,
         prompt INTEGER NOT NULL,
         completion INTEGER NOT NULL,
         cost INTEGER NOT NULL,
         PRIMARY KEY (month, upstream, model)
     ) STRICT, WITHOUT ROWID;
     -- What was set aside for questions whose answers are not over.
     CREATE TABLE elsewhere_open (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         month INTEGER NOT NULL,
         upstream TEXT NOT NULL,
         model TEXT NOT NULL,
         cost INTEGER NOT NULL
     ) STRICT;",
    ),
    (
        "kept a member",
        "-- The stewards made them a member: no group of a service makes them a steward until a steward lets it.
     ALTER TABLE members ADD COLUMN kept_member INTEGER NOT NULL DEFAULT 0;
     -- The same for somebody who was removed: a digest of who they are at a service, in case they come in by it anew.
     CREATE TABLE kept_identities (identity TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;",
    ),
    (
        "apps that ask models",
        "ALTER TABLE client_apps ADD COLUMN asks_models INTEGER NOT NULL DEFAULT 0;",
    ),
    (
        "revocations of what people sign in with",
        "-- The same list, without a fixed set of kinds: apps that were removed, links that were undone, and who is kept a member are on it too.
     DROP TRIGGER revoke_member;
     DROP TRIGGER revoke_key;
     DROP TRIGGER revoke_access;
     DROP TRIGGER revoke_stewardship;
     CREATE TABLE revoked (
         number INTEGER PRIMARY KEY AUTOINCREMENT,
         at INTEGER NOT NULL,
         kind TEXT NOT NULL,
         member INTEGER,
         since INTEGER,
         key TEXT
     ) STRICT;
     INSERT INTO revoked SELECT number, at, kind, member, since, key FROM revocations;
     DROP TABLE revocations;
     ALTER TABLE revoked RENAME TO revocations;
     CREATE INDEX revocations_of_member ON revocations(member);
     CREATE UNIQUE INDEX revoked_once ON revocations(kind, ifnull(member, 0), ifnull(since, 0), ifnull(key, ''))
         WHERE kind IN ('member', 'key', 'app', 'link', 'kept-identity');
     CREATE TRIGGER revoke_member AFTER DELETE ON members BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, member, since)
         VALUES (unixepoch(), 'member', OLD.id, OLD.created_at);
     END;
     CREATE TRIGGER revoke_key AFTER DELETE ON keys
     WHEN NOT (OLD.for_up AND OLD.expires_at IS NOT NULL)
          AND EXISTS (SELECT 1 FROM members WHERE id = OLD.member) BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, key) VALUES (unixepoch(), 'key', OLD.id);
     END;
     CREATE TRIGGER revoke_access AFTER UPDATE OF disabled ON members
     WHEN OLD.disabled <> NEW.disabled
          AND CASE NEW.disabled WHEN 0 THEN 'let-in' ELSE 'shut-out' END IS NOT
              (SELECT kind FROM revocations WHERE member = NEW.id AND since = NEW.created_at
               AND kind IN ('let-in', 'shut-out') ORDER BY number DESC LIMIT 1) BEGIN
         INSERT INTO revocations (at, kind, member, since) VALUES
             (unixepoch(), CASE NEW.disabled WHEN 0 THEN 'let-in' ELSE 'shut-out' END, NEW.id, NEW.created_at);
     END;
     CREATE TRIGGER revoke_stewardship AFTER UPDATE OF role ON members
     WHEN OLD.role = 'steward' AND NEW.role = 'member'
          AND NOT EXISTS (SELECT 1 FROM revocations WHERE kind = 'no-steward' AND member = NEW.id
                          AND since = NEW.created_at AND at >= unixepoch() - 1) BEGIN
         INSERT INTO revocations (at, kind, member, since)
         VALUES (unixepoch(), 'no-steward', NEW.id, NEW.created_at);
     END;
     CREATE TRIGGER revoke_app AFTER DELETE ON client_apps BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, key) VALUES (unixepoch(), 'app', OLD.id);
     END;
     -- Told by when it was made: who somebody is elsewhere is nobody's affair. A removed member's links go with them.
     CREATE TRIGGER revoke_link AFTER DELETE ON identities BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'link', id, created_at, CAST(OLD.created_at AS TEXT) FROM members WHERE id = OLD.member;
     END;
     CREATE TRIGGER revoke_groups AFTER UPDATE OF kept_member ON members
     WHEN OLD.kept_member <> NEW.kept_member
          AND CASE NEW.kept_member WHEN 0 THEN 'groups-again' ELSE 'kept-member' END IS NOT
              (SELECT kind FROM revocations WHERE member = NEW.id AND since = NEW.created_at
               AND kind IN ('groups-again', 'kept-member') ORDER BY number DESC LIMIT 1) BEGIN
         INSERT INTO revocations (at, kind, member, since) VALUES
             (unixepoch(), CASE NEW.kept_member WHEN 0 THEN 'groups-again' ELSE 'kept-member' END, NEW.id, NEW.created_at);
     END;
     CREATE TRIGGER revoke_identity AFTER INSERT ON kept_identities BEGIN
         INSERT OR IGNORE INTO revocations (at, kind, key) VALUES (unixepoch(), 'kept-identity', NEW.identity);
     END;",
    ),
    (
        "agreements with apps",
        "-- What a member agreed to that an app may learn of them and do in their name.
     CREATE TABLE agreements (
         member INTEGER NOT NULL REFERENCES members(id) ON DELETE CASCADE,
         app TEXT NOT NULL REFERENCES client_apps(id) ON DELETE CASCADE,
         scope TEXT NOT NULL,
         asks_models INTEGER NOT NULL,
         at INTEGER NOT NULL,
         PRIMARY KEY (member, app)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX agreements_of_app ON agreements(app);
     CREATE UNIQUE INDEX taken_back_once ON revocations(member, since, key) WHERE kind = 'agreement';
     -- What the app was given ends with it. An app's and a member's end is on the list by itself.
     CREATE TRIGGER revoke_agreement AFTER DELETE ON agreements BEGIN
         DELETE FROM visits WHERE app = OLD.app
             AND session IN (SELECT digest FROM sessions WHERE member = OLD.member);
         INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'agreement', members.id, members.created_at, OLD.app || ' ' || OLD.at
         FROM members JOIN client_apps ON client_apps.id = OLD.app WHERE members.id = OLD.member;
     END;",
    ),
    (
        "agreements by number",
        "-- Which one it is, whatever the clock says: what was taken back is told by this. Those of before are known by when.
     ALTER TABLE agreements ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
     UPDATE agreements SET number = at;
     CREATE UNIQUE INDEX agreed_again_once ON revocations(member, since, key) WHERE kind = 'agreed-again';
     -- Where they had taken back what they agreed to for this app, only what is on the list as agreed to since holds.
     INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'agreed-again', members.id, created_at, app || ' ' || agreements.number
         FROM agreements JOIN members ON members.id = agreements.member
         WHERE EXISTS (SELECT 1 FROM revocations WHERE kind = 'agreement' AND member = members.id AND since = created_at
             AND substr(key, 1, length(app) + 1) = app || ' ');
     -- Larger than any time, so that it is none of before.
     CREATE TRIGGER number_agreement AFTER INSERT ON agreements WHEN NEW.number = 0 BEGIN
         UPDATE agreements SET number = (random() & 2305843009213693951) | 2305843009213693952
             WHERE member = NEW.member AND app = NEW.app;
         INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'agreed-again', members.id, created_at, app || ' ' || agreements.number
         FROM agreements JOIN members ON members.id = agreements.member
         WHERE agreements.member = NEW.member AND app = NEW.app
             AND EXISTS (SELECT 1 FROM revocations WHERE kind = 'agreement' AND member = members.id AND since = created_at
                 AND substr(key, 1, length(app) + 1) = app || ' ');
     END;
     DROP TRIGGER revoke_agreement;
     CREATE TRIGGER revoke_agreement AFTER DELETE ON agreements BEGIN
         DELETE FROM visits WHERE app = OLD.app
             AND session IN (SELECT digest FROM sessions WHERE member = OLD.member);
         -- With one that held, those of other days go which a restore had taken away. One that did not hold takes nothing along.
         INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'agreement', other.member, other.since, other.key
         FROM members JOIN client_apps ON client_apps.id = OLD.app
         JOIN revocations AS other ON other.kind = 'agreed-again' AND other.member = members.id
             AND other.since = members.created_at AND substr(other.key, 1, length(OLD.app) + 1) = OLD.app || ' '
         WHERE members.id = OLD.member
             AND EXISTS (SELECT 1 FROM revocations WHERE kind = 'agreed-again' AND member = members.id
                 AND since = members.created_at AND key = OLD.app || ' ' || OLD.number)
             AND NOT EXISTS (SELECT 1 FROM revocations WHERE kind = 'agreement' AND member = members.id
                 AND since = members.created_at AND key = OLD.app || ' ' || OLD.number);
         INSERT OR IGNORE INTO revocations (at, kind, member, since, key)
         SELECT unixepoch(), 'agreement', members.id, members.created_at, OLD.app || ' ' || OLD.number
         FROM members JOIN client_apps ON client_apps.id = OLD.app WHERE members.id = OLD.member;
     END;",
    ),
];

/// Opens the file, private to its owner, and brings its layout up to date.
pub(crate) fn open(path: &Path) -> Result<Connection, MembersError> {
    let failed = |why: String| MembersError::Open { path: path.to_owned(), why };
    // Made by us before SQLite does, so that there is no moment at which others can read it.
    // SQLite gives its -wal and -shm files the same permissions.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)))
        .map_err(|e| failed(e.to_string()))?;
    let mut db = connect(path)?;
    migrate(&mut db).map_err(|e| match e {
        MembersError::Database(e) => failed(e.to_string()),
        other => other,
    })?;
    Ok(db)
}

/// A connection to a file that [`open`] has prepared.
pub(crate) fn connect(path: &Path) -> Result<Connection, MembersError> {
    let failed =
        |e: rusqlite::Error| MembersError::Open { path: path.to_owned(), why: e.to_string() };
    let db = Connection::open(path).map_err(failed)?;
    db.busy_timeout(Duration::from_secs(10)).map_err(failed)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;",
    )
    .map_err(failed)?;
    Ok(db)
}

fn migrate(db: &mut Connection) -> Result<(), MembersError> {
    let known = MIGRATIONS.len() as i64;
    // Taken before the version is read: two processes that start at once migrate one after the other.
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = change.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known || found < 0 {
        return Err(MembersError::Newer { found, known });
    }
    for step in &MIGRATIONS[found as usize..] {
        change.execute_batch(step)?;
    }
    change.pragma_update(None, "user_version", known)?;
    change.execute_batch("CREATE TABLE IF NOT EXISTS additions (name TEXT PRIMARY KEY) STRICT")?;
    for (name, step) in ADDITIONS {
        if change.execute("INSERT OR IGNORE INTO additions VALUES (?1)", [name])? == 1 {
            change.execute_batch(step)?;
        }
    }
    Ok(change.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_durable_and_keeps_its_references() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        let db = open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let pragma =
            |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0));
        assert_eq!(pragma("synchronous").unwrap(), 2);
        assert_eq!(pragma("foreign_keys").unwrap(), 1);
        let mode: String = db.query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
        assert_eq!(mode, "wal");
        for side in ["polder.db-wal", "polder.db-shm"] {
            let mode = std::fs::metadata(folder.path().join(side)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{side}");
        }
    }

    #[test]
    fn a_file_of_a_newer_polder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(open(&path), Err(MembersError::Newer { found: 99, .. })));
    }

    #[test]
    fn what_a_newer_polder_added_is_kept_and_does_not_keep_this_one_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        let db = open(&path).unwrap();
        db.execute_batch(
            "INSERT INTO additions VALUES ('of tomorrow');
             ALTER TABLE members ADD COLUMN tomorrow INTEGER NOT NULL DEFAULT 7;",
        )
        .unwrap();
        drop(db);
        let members = crate::Members::open(&path).unwrap();
        let new = crate::NewMember {
            name: "ada".into(),
            email: None,
            password: crate::Secret::new("four words in a row".into()),
        };
        members.add_member(&new, crate::Role::Steward).unwrap();
        let tomorrow: i64 =
            members.db().query_row("SELECT tomorrow FROM members", [], |r| r.get(0)).unwrap();
        assert_eq!(tomorrow, 7);
    }

    #[test]
    fn a_file_of_the_first_version_gets_what_was_added_since() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        let first = connect(&path).unwrap();
        first.execute_batch(MIGRATIONS[0]).unwrap();
        first.pragma_update(None, "user_version", 1).unwrap();
        first
            .execute_batch(
                "INSERT INTO members (name, name_key, role, created_at)
                 VALUES ('ada', 'ada', 'steward', 1)",
            )
            .unwrap();
        drop(first);
        let members = crate::Members::open(&path).unwrap();
        assert_eq!(members.members().unwrap()[0].share, crate::Share::default());
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("polder.db");
        std::fs::write(&path, "not a database, but long enough to be read as one".repeat(40))
            .unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("polder.db"));
    }

    #[test]
    fn a_full_disk_is_one_sentence_and_what_was_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let members = crate::Members::open(&folder.path().join("polder.db")).unwrap();
        members.set_wizard_state("before").unwrap();
        // As many pages as there are now: the next one is refused as on a full disk.
        let pages: i64 = members.db().query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        let _: i64 = members
            .db()
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |r| r.get(0))
            .unwrap();
        let error = members.set_wizard_state(&"x".repeat(200_000)).unwrap_err();
        assert!(matches!(error, MembersError::DiskFull), "{error}");
        assert_eq!(members.wizard_state().unwrap().as_deref(), Some("before"));
    }
}
