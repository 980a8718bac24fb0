//! Sign-in with the collective's own identity, and with the box on other apps: what is shared by their pages, and the one
//! secret that goes with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_members::{MemberId, Secret};
use polder_oidc::{Answer, Keys, Known, OidcError, Services, Way, Ways};
use polder_pki::{PkiError, files};
use polder_site::SignIn;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Questions to the service at once: each may wait 10 s for it on a thread of its own.
const AT_ONCE: usize = 8;
/// How long somebody waits for their turn.
const TURN: Duration = Duration::from_secs(5);
/// A service that did not answer is left alone so long.
const LEFT_ALONE: Duration = Duration::from_secs(3);

/// What is remembered of people who are on the way.
pub(crate) struct Identities {
    services: Services,
    ways: Ways<Purpose>,
    /// With which the box signs.
    pub(crate) keys: Keys,
    folder: PathBuf,
    turns: Semaphore,
    /// When the service did not answer, and what was said of it.
    away: Mutex<Option<(Instant, SignIn, String)>>,
}

/// What somebody is on the way for.
pub(crate) struct Purpose {
    /// Where on the box they go on.
    pub(crate) next: String,
    /// Who wants to link it to themselves, by which session.
    pub(crate) link: Option<(MemberId, Secret)>,
}

/// Nobody was sent, or nobody came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityTrouble {
    #[error(transparent)]
    Oidc(#[from] OidcError),
    #[error("{0}")]
    Again(String),
    #[error("too many people are signing in at this moment; try again in a few seconds")]
    Busy,
    #[error("people sign in on this box with its own passwords only")]
    Nowhere,
    #[error(transparent)]
    Files(#[from] PkiError),
}

/// The client's secret, with whom it is for: it is never sent to anybody else.
#[derive(Serialize, Deserialize)]
struct Kept {
    issuer: String,
    client: String,
    secret: String,
}

impl Identities {
    pub(crate) fn of(state: &Path) -> Self {
        Self {
            services: Services::default(),
            ways: Ways::default(),
            keys: Keys::of(state),
            folder: state.join("pki").join("identity"),
            turns: Semaphore::new(AT_ONCE),
            away: Mutex::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("secret.json")
    }

    /// The secret for this service and client, if one is kept. Blocks.
    pub(crate) fn secret(&self, sign_in: &SignIn) -> Result<Option<Secret>, PkiError> {
        let Some(text) = files::read(&self.path())? else { return Ok(None) };
        // A file that is not what we wrote is as good as none.
        let kept = serde_json::from_str::<Kept>(&text).ok();
        let kept =
            kept.filter(|k| k.issuer == sign_in.issuer.as_str() && k.client == sign_in.client);
        Ok(kept.map(|kept| Secret::new(kept.secret)))
    }

    /// Keeps it. Blocks.
    pub(crate) fn keep_secret(&self, sign_in: &SignIn, secret: &Secret) -> Result<(), PkiError> {
        let kept = Kept {
            issuer: sign_in.issuer.to_string(),
            client: sign_in.client.clone(),
            secret: secret.expose().to_owned(),
        };
        let text = serde_json::to_string(&kept)
            .map_err(|error| PkiError::Write { path: self.path(), source: error.into() })?;
        files::private_folder(&self.folder)?;
        files::write(&self.path(), &text)
    }

    /// Forgets it. Blocks.
    pub(crate) fn forget_secret(&self) -> Result<(), PkiError> {
        match std::fs::remove_file(self.path()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(PkiError::Write { path: self.path(), source })
            }
            _ => Ok(()),
        }
    }

    /// Where a browser is sent to. It comes back to `redirect` with the cookie `browser`.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        sign_in: &SignIn,
        redirect: String,
        another: bool,
        (browser, from): (&str, &str),
        purpose: Purpose,
    ) -> Result<String, IdentityTrouble> {
        if let Some(why) = self.left_alone(sign_in) {
            return Err(IdentityTrouble::Again(why));
        }
        let (to, way) = self
            .ask(sign_in, move |identities, sign_in, secret| {
                identities.services.of(sign_in, secret)?.begin(&redirect, another)
            })
            .await?;
        self.ways.begin(way, browser, from, purpose);
        Ok(to)
    }

    /// What they were on the way for, once, and who came back.
    pub(crate) async fn end(
        self: &Arc<Self>,
        sign_in: &SignIn,
        answer: Answer,
        browser: &str,
    ) -> Result<(Known, Purpose), IdentityTrouble> {
        let state = answer.state.clone().unwrap_or_default();
        let (way, purpose): (Way, Purpose) =
            self.ways.end(&state, browser).ok_or(OidcError::Lost)?;
        let known = self
            .ask(sign_in, move |identities, sign_in, secret| {
                identities.services.finish(sign_in, secret, way, &answer)
            })
            .await?;
        Ok((known, purpose))
    }

    /// Asks the service what it says of itself.
    pub(crate) async fn look(self: &Arc<Self>, sign_in: &SignIn) -> Result<(), IdentityTrouble> {
        self.ask(sign_in, |identities, sign_in, secret| {
            identities.services.anew(sign_in, secret).map(drop)
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        sign_in: &SignIn,
        work: impl FnOnce(&Self, &SignIn, Option<&str>) -> Result<T, OidcError> + Send + 'static,
    ) -> Result<T, IdentityTrouble> {
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let _turn = turn.ok().and_then(Result::ok).ok_or(IdentityTrouble::Busy)?;
        let (identities, asked) = (self.clone(), sign_in.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let secret = identities.secret(&asked)?;
            let done = work(&identities, &asked, secret.as_ref().map(Secret::expose));
            identities.note(&asked, done.as_ref().err());
            Ok(done?)
        });
        asking.await.unwrap_or(Err(IdentityTrouble::Busy))
    }

    fn note(&self, sign_in: &SignIn, error: Option<&OidcError>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error @ (OidcError::Away { .. } | OidcError::NoService { .. })) => {
                log::warn!("{error}");
                *away = Some((Instant::now(), sign_in.clone(), error.to_string()));
            }
            _ => *away = None,
        }
    }

    fn left_alone(&self, sign_in: &SignIn) -> Option<String> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, of, why) = away.as_ref()?;
        (at.elapsed() < LEFT_ALONE && of == sign_in).then(|| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_private_and_for_one_service_and_one_client_only() {
        let folder = tempfile::tempdir().unwrap();
        let identities = Identities::of(folder.path());
        let at = |issuer: &str, client: &str| SignIn::at("house", issuer.parse().unwrap(), client);
        let house = at("https://sso.example.org", "box");
        assert!(identities.secret(&house).unwrap().is_none());
        identities.keep_secret(&house, &Secret::new("s3cret".into())).unwrap();
        let mode = std::fs::metadata(identities.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(identities.secret(&house).unwrap().unwrap().expose(), "s3cret");
        for other in [at("https://evil.example", "box"), at("https://sso.example.org", "other")] {
            assert!(identities.secret(&other).unwrap().is_none());
        }
        identities.forget_secret().unwrap();
        identities.forget_secret().unwrap();
        assert!(identities.secret(&house).unwrap().is_none());
    }
}
