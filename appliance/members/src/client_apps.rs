use rusqlite::{OptionalExtension, Row, params};

use crate::secret::{self, Digest};
use crate::{Members, MembersError, Secret, words};

/// Apps that may let people sign in with the box.
const MOST: i64 = 100;

/// An app that lets people sign in with the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientApp {
    /// What it calls itself (client id); not secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Whether it has a secret; one that runs in people's hands could keep none.
    pub has_secret: bool,
    /// Where people are sent back to, letter by letter.
    pub redirects: Vec<String>,
    /// Only stewards may go there.
    pub for_stewards: bool,
    /// What it was given for somebody opens the API in their name.
    pub asks_models: bool,
    /// Unix seconds.
    pub created_at: i64,
}

/// An app as it is written down. Its addresses were checked by whoever asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewClientApp {
    /// 1 to 60 letters.
    pub name: String,
    /// Where people are sent back to.
    pub redirects: Vec<String>,
    /// Gives it a secret.
    pub with_secret: bool,
    /// Only stewards may go there.
    pub for_stewards: bool,
    /// Lets it ask models in the name of whoever is there.
    pub asks_models: bool,
}

impl Members {
    /// Writes an app down. Its secret is shown once.
    pub fn add_client_app(
        &self,
        new: &NewClientApp,
    ) -> Result<(ClientApp, Option<Secret>), MembersError> {
        let name = words::line("name", &new.name, 60)?;
        if name.is_empty() || new.redirects.is_empty() {
            return Err(MembersError::Field(
                "an app needs a name, and an address that people are sent back to".into(),
            ));
        }
        let secret = if new.with_secret { Some(secret::token()?) } else { None };
        let (id, now) = (secret::short_id()?, self.now());
        let db = self.db();
        let count: i64 = db.query_row("SELECT count(*) FROM client_apps", [], |row| row.get(0))?;
        if count >= MOST {
            return Err(MembersError::Field(format!(
                "there are {MOST} apps already; remove one that is not used"
            )));
        }
        db.execute(
            "INSERT INTO client_apps (id, name, digest, redirects, for_stewards, created_at, asks_models)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id,
                name,
                secret.as_ref().map(|secret| secret.digest().0),
                new.redirects.join("\n"),
                new.for_stewards,
                now,
                new.asks_models
            ],
        )?;
        let app = ClientApp {
            id,
            name,
            has_secret: secret.is_some(),
            redirects: new.redirects.clone(),
            for_stewards: new.for_stewards,
            asks_models: new.asks_models,
            created_at: now,
        };
        Ok((app, secret))
    }

    /// All of them, by name.
    pub fn client_apps(&self) -> Result<Vec<ClientApp>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!("{SELECT} ORDER BY lower(name), id"))?;
        let rows = query.query_map([], from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One of them.
    pub fn client_app(&self, id: &str) -> Result<Option<ClientApp>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
        Ok(query.query_row([id], from_row).optional()?)
    }

    /// Has the app this secret? Never true for one that has none.
    pub fn is_client_secret(&self, id: &str, secret: &str) -> Result<bool, MembersError> {
        let db = self.db();
        let stored: Option<Option<Vec<u8>>> = db
            .prepare_cached("SELECT digest FROM client_apps WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        Ok(stored.flatten().is_some_and(|stored| Digest::of(secret).same(&stored)))
    }

    /// Lets people sign in there no more; what it was given is worth nothing from now on.
    pub fn remove_client_app(&self, id: &str) -> Result<(), MembersError> {
        self.db().execute("DELETE FROM client_apps WHERE id = ?1", [id])?;
        self.end_at_apps(|at| at.app == id);
        self.keep_gone();
        Ok(())
    }
}

const SELECT: &str =
    "SELECT id, name, digest IS NOT NULL, redirects, for_stewards, created_at, asks_models
    FROM client_apps";

fn from_row(row: &Row<'_>) -> rusqlite::Result<ClientApp> {
    let redirects: String = row.get(3)?;
    Ok(ClientApp {
        id: row.get(0)?,
        name: row.get(1)?,
        has_secret: row.get(2)?,
        redirects: redirects.lines().map(str::to_owned).collect(),
        for_stewards: row.get(4)?,
        created_at: row.get(5)?,
        asks_models: row.get(6)?,
    })
}
