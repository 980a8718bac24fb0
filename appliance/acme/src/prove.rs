//! Shows an authority that a name is the box's: at the door, or in the DNS.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use instant_acme::ChallengeType;
use polder_control::{SecretName, SecretText};
use polder_dns::{Change, Data, Key, Name, Zone};
use polder_site::{Proof, PublicCertificate};

use crate::store::Secrets;
use crate::web::Web;

/// How long others may keep a proof's record, in seconds.
const TTL: u32 = 60;
/// Where an authority asks the door (RFC 8555, 8.3).
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// What the door answers an authority that asks it for proofs.
#[derive(Debug, Default)]
pub struct HttpProofs(RwLock<HashMap<String, String>>);

impl HttpProofs {
    /// The answer for this path, if it is one that an authority was told of. Everybody may have it: it proves nothing
    /// but that this box ordered.
    pub fn answer(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// Answers so from now on.
    pub(crate) fn show(&self, proofs: &[Shown]) {
        self.change(|all| all.extend(proofs.iter().cloned()));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, String>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One proof: for HTTP a token and its answer, for the DNS a name and its text.
pub(crate) type Shown = (String, String);

/// Shows proofs in the way that the site says.
pub(crate) enum Prover {
    Http(Arc<HttpProofs>),
    Update { zone: Zone, wait: u16 },
    Hook { web: Web, url: String, secret: Option<SecretText>, wait: u16 },
}

/// What a steward has to give before anything can be ordered, in words.
pub(crate) fn lacks(certificate: &PublicCertificate, secrets: &Secrets) -> Option<String> {
    if certificate.account.is_some() && !secrets.contains_key(&SecretName::Account) {
        return Some(
            "the secret of the account that the authority gave is missing; enter it on the page Certificate".into(),
        );
    }
    if certificate.dns_update.is_some() && !secrets.contains_key(&SecretName::DnsKey) {
        return Some(
            "the secret of the DNS key is missing; enter it on the page Certificate".into(),
        );
    }
    None
}

impl Prover {
    pub(crate) fn of(
        certificate: &PublicCertificate,
        secrets: &Secrets,
        proofs: &Arc<HttpProofs>,
        web: &Web,
    ) -> Result<Self, String> {
        Ok(match certificate.proof() {
            Proof::Http => Self::Http(proofs.clone()),
            Proof::DnsUpdate(update) => {
                let secret = secrets.get(&SecretName::DnsKey).map_or("", |text| text.expose());
                let key = Key::new(&update.key, secret).map_err(|error| error.to_string())?;
                let name = update.zone.parse::<Name>().map_err(|error| error.to_string())?;
                let server = update.server.with_port(53);
                Self::Update { zone: Zone { server, name, key }, wait: update.wait }
            }
            Proof::DnsHook(hook) => Self::Hook {
                web: web.clone(),
                url: hook.url.as_str().trim_end_matches('/').to_owned(),
                secret: secrets.get(&SecretName::Hook).cloned(),
                wait: hook.wait,
            },
        })
    }

    pub(crate) fn kind(&self) -> ChallengeType {
        match self {
            Self::Http(_) => ChallengeType::Http01,
            Self::Update { .. } | Self::Hook { .. } => ChallengeType::Dns01,
        }
    }

    /// How long the world needs to see what was shown.
    pub(crate) fn wait(&self) -> Duration {
        match self {
            Self::Http(_) => Duration::ZERO,
            Self::Update { wait, .. } | Self::Hook { wait, .. } => {
                Duration::from_secs(u64::from(*wait))
            }
        }
    }

    pub(crate) async fn show(&self, proofs: &[Shown]) -> Result<(), String> {
        match self {
            Self::Http(at_the_door) => {
                at_the_door.show(proofs);
                Ok(())
            }
            Self::Update { zone, .. } => {
                let add = |name, data| Change::Add { name, ttl: TTL, data };
                update(zone, proofs, &add).await
            }
            Self::Hook { .. } => self.ask_hook("present", proofs).await,
        }
    }

    pub(crate) async fn remove(&self, proofs: &[Shown]) -> Result<(), String> {
        match self {
            Self::Http(at_the_door) => {
                at_the_door
                    .change(|all| proofs.iter().for_each(|(token, _)| drop(all.remove(token))));
                Ok(())
            }
            Self::Update { zone, .. } => {
                let remove = |name, data| Change::Remove { name, data };
                update(zone, proofs, &remove).await
            }
            Self::Hook { .. } => self.ask_hook("cleanup", proofs).await,
        }
    }

    async fn ask_hook(&self, what: &str, proofs: &[Shown]) -> Result<(), String> {
        let Self::Hook { web, url, secret, .. } = self else { return Ok(()) };
        for (name, text) in proofs {
            let body = serde_json::json!({ "fqdn": format!("{name}."), "value": text }).to_string();
            let mut request = Request::new(Bytes::from(body));
            *request.method_mut() = http::Method::POST;
            let address = format!("{url}/{what}");
            *request.uri_mut() =
                address.parse().map_err(|_| format!("{address} is not an address"))?;
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(secret) = secret {
                headers.insert(AUTHORIZATION, credential(secret)?);
            }
            let answer =
                web.send(request).await.map_err(|error| format!("the DNS hook at {error}"))?;
            if !answer.status().is_success() {
                return Err(format!(
                    "the DNS hook at {address} answered {}; its log says why",
                    answer.status()
                ));
            }
        }
        Ok(())
    }
}

fn credential(secret: &SecretText) -> Result<HeaderValue, String> {
    let text = secret.expose();
    let line = match text.contains(':') {
        true => format!("Basic {}", BASE64_STANDARD.encode(text)),
        false => format!("Bearer {text}"),
    };
    let mut value = HeaderValue::try_from(line).map_err(|_| {
        "the secret of the DNS hook has a character that no header can have".to_owned()
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn update(
    zone: &Zone,
    proofs: &[Shown],
    change: &(dyn Fn(Name, Data) -> Change + Sync),
) -> Result<(), String> {
    let mut changes = Vec::new();
    for (name, text) in proofs {
        let name = name.parse::<Name>().map_err(|error| error.to_string())?;
        changes.push(change(name, Data::Txt(text.clone())));
    }
    polder_dns::update(zone, &changes).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_door_answers_only_what_was_shown_and_not_any_more_when_it_is_over() {
        let proofs = Arc::new(HttpProofs::default());
        let prover = Prover::Http(proofs.clone());
        let shown = [("token".to_owned(), "token.print".to_owned())];
        prover.show(&shown).await.unwrap();
        let path = "/.well-known/acme-challenge/token";
        assert_eq!(proofs.answer(path).as_deref(), Some("token.print"));
        for not in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/other", "/token"] {
            assert_eq!(proofs.answer(not), None, "{not}");
        }
        prover.remove(&shown).await.unwrap();
        assert_eq!(proofs.answer(path), None);
    }

    #[test]
    fn a_hook_is_asked_with_a_name_and_password_or_with_a_token() {
        let line = |text: &str| credential(&SecretText::new(text)).unwrap();
        assert_eq!(line("ada:x").to_str().unwrap(), "Basic YWRhOng=");
        assert_eq!(line("t0ken").to_str().unwrap(), "Bearer t0ken");
        assert!(!format!("{:?}", line("t0ken")).contains("t0ken"));
    }
}
