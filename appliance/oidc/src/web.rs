//! One request to a service, and its whole answer. Blocks.

use std::time::Duration;

use openidconnect::{HttpRequest, HttpResponse};
use polder_site::{IssuerUrl, SignIn};
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::OidcError;

/// From the look-up of the name to the last byte: somebody waits for it.
const WITHIN: Duration = Duration::from_secs(10);
/// A service with many keys has some tens of thousands of bytes.
const LONGEST: u64 = 256 << 10;

/// Asks the service, and in the clear nobody who is not on this machine.
#[derive(Clone)]
pub(crate) struct Web {
    agent: Agent,
    issuer: IssuerUrl,
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    #[error("it names an address that is not over TLS")]
    InTheClear,
    #[error("{0}")]
    Failed(String),
}

impl Web {
    /// Trusts what browsers trust, or only the certificate that the site names.
    pub(crate) fn of(sign_in: &SignIn) -> Result<Self, OidcError> {
        let roots = match &sign_in.root {
            None => RootCerts::WebPki,
            Some(pem) => {
                let certificate = |item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                };
                let found: Vec<_> = parse_pem(pem.as_bytes()).filter_map(certificate).collect();
                if found.is_empty() {
                    return Err(OidcError::Root);
                }
                RootCerts::from(found)
            }
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_global(Some(WITHIN))
            // Whoever answers elsewhere is somebody else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .proxy(None)
            .user_agent("polder")
            .build()
            .new_agent();
        Ok(Self { agent, issuer: sign_in.issuer.clone() })
    }

    /// Sends it.
    pub(crate) fn call(&self, request: HttpRequest) -> Result<HttpResponse, WebError> {
        if !self.issuer.allows(&request.uri().to_string()) {
            return Err(WebError::InTheClear);
        }
        let answer = self.agent.run(request).map_err(|error| WebError::Failed(words(&error)))?;
        let (head, body) = answer.into_parts();
        let body = body.into_with_config().limit(LONGEST).read_to_vec();
        Ok(HttpResponse::from_parts(head, body.map_err(|error| WebError::Failed(words(&error)))?))
    }
}

/// What went wrong, without the address, which may have a code in it.
fn words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer within 10 s".to_owned(),
        ureq::Error::HostNotFound => "its name leads nowhere".to_owned(),
        ureq::Error::Io(error) => format!("it cannot be reached: {}", error.kind()),
        ureq::Error::Rustls(error) => format!("no secure connection: {error}"),
        ureq::Error::BodyExceedsLimit(_) => "its answer is too long".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}
