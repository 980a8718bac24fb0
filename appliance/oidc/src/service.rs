//! The collective's own service: what it says of itself, the way to it and back, and who came back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreClaimName, CoreClaimType, CoreClientAuthMethod,
    CoreErrorResponseType, CoreGenderClaim, CoreGrantType, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm,
    CoreResponseMode, CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse,
    CoreSubjectIdentifierType, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessTokenHash, AdditionalClaims, AdditionalProviderMetadata, AuthType, AuthenticationFlow,
    AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken, DiscoveryError,
    EmptyExtraTokenFields, IdTokenClaims, IdTokenFields, IdTokenVerifier, IssuerUrl, Nonce,
    OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, ProviderMetadata, RedirectUrl,
    RequestTokenError, Scope, StandardErrorResponse, StandardTokenResponse, TokenResponse,
    UserInfoClaims,
};
use openidconnect::{ClaimsVerificationError, SignatureVerificationError};
use polder_site::SignIn;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use crate::OidcError;
use crate::groups::groups_in;
use crate::web::{Web, WebError};

/// What a service says of itself is good for so long.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Keys that it has since are looked for at most so often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Clocks may differ by so much.
const LEEWAY: TimeDelta = TimeDelta::seconds(120);
/// Letters of what a service says that are shown or kept.
const LONGEST: usize = 200;
/// Signatures that a service's public key proves. Not those by the shared secret: whoever knows that could write anything.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// Every claim that is none of the standard's.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Others(Map<String, Value>);
impl AdditionalClaims for Others {}

/// What this crate wants to know beside the usual.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Beside {
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}
impl AdditionalProviderMetadata for Beside {}

type Described = ProviderMetadata<
    Beside,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

type Tokens = StandardTokenResponse<
    IdTokenFields<
        Others,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

/// The service as it described itself.
pub struct Service {
    sign_in: SignIn,
    secret: Option<ClientSecret>,
    described: Described,
    web: Web,
    at: Instant,
}

/// One browser's way to the service and back: what only the box and the service know of it.
pub struct Way {
    issuer: String,
    state: CsrfToken,
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    redirect: String,
}

/// What a browser brings back.
#[derive(Debug, Default, Deserialize)]
pub struct Answer {
    /// Good once for a token.
    pub code: Option<String>,
    /// Which way it is.
    pub state: Option<String>,
    /// Who says so (RFC 9207).
    pub iss: Option<String>,
    /// That nobody was let in.
    pub error: Option<String>,
    /// Why.
    pub error_description: Option<String>,
}

/// Who came back, proven by the service's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The service.
    pub issuer: String,
    /// What it calls them, for ever.
    pub subject: String,
    /// What they may be called, best first.
    pub names: Vec<String>,
    /// Their address, only if the service says that it is proven.
    pub email: Option<String>,
    /// Their groups; nothing where it told none.
    pub groups: Option<Vec<String>>,
}

/// Services that described themselves of late: the site's, and the one before it for those on the way.
#[derive(Default)]
pub struct Services(Mutex<HashMap<[u8; 32], Arc<Service>>>);

impl Services {
    /// The service that the site names, asked for what it says of itself if that is not known. Blocks.
    pub fn of(&self, sign_in: &SignIn, secret: Option<&str>) -> Result<Arc<Service>, OidcError> {
        let known = self.known(sign_in, secret);
        match known.filter(|service| service.at.elapsed() < KNOWN_FOR) {
            Some(service) => Ok(service),
            None => self.anew(sign_in, secret),
        }
    }

    /// The same, asked in any case. Blocks.
    pub fn anew(&self, sign_in: &SignIn, secret: Option<&str>) -> Result<Arc<Service>, OidcError> {
        let service = Arc::new(Service::look(sign_in, secret)?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        known.insert(key(sign_in, secret), service.clone());
        Ok(service)
    }

    fn known(&self, sign_in: &SignIn, secret: Option<&str>) -> Option<Arc<Service>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(sign_in, secret)).cloned()
    }

    /// [`Service::finish`], and once more with the keys that the service has now, where it seems to have others. Blocks.
    pub fn finish(
        &self,
        sign_in: &SignIn,
        secret: Option<&str>,
        way: Way,
        answer: &Answer,
    ) -> Result<Known, OidcError> {
        let service = self.of(sign_in, secret)?;
        let tokens = service.redeem(way, answer)?;
        match service.read(&tokens) {
            Err(Unproven::Key) if service.at.elapsed() >= LOOK_AGAIN => {
                let service = self.anew(sign_in, secret)?;
                service.read(&tokens).map_err(|why| service.not_proven(why))
            }
            read => read.map_err(|why| service.not_proven(why)),
        }
    }
}

fn key(sign_in: &SignIn, secret: Option<&str>) -> [u8; 32] {
    let all = format!("{sign_in:?} {secret:?}");
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, all.as_bytes()).as_ref());
    key
}

impl Service {
    fn look(sign_in: &SignIn, secret: Option<&str>) -> Result<Self, OidcError> {
        let web = Web::of(sign_in)?;
        let name = || sign_in.name.clone();
        let no_service = |why: String| OidcError::NoService { name: name(), why };
        let issuer = IssuerUrl::new(sign_in.issuer.to_string())
            .map_err(|_| no_service("its address is none".to_owned()))?;
        let call = |request| web.call(request);
        let described = Described::discover(&issuer, &call).map_err(|error| match error {
            DiscoveryError::Request(WebError::Failed(why)) => OidcError::Away { name: name(), why },
            DiscoveryError::Request(error) => no_service(error.to_string()),
            DiscoveryError::Response(status, ..) if status.is_server_error() => {
                OidcError::Away { name: name(), why: format!("it answered {status}") }
            }
            DiscoveryError::Response(status, ..) => no_service(format!("it answered {status}")),
            DiscoveryError::Validation(_) => OidcError::Elsewhere { name: name() },
            DiscoveryError::Parse(error) => no_service(format!(
                "what it says at {} cannot be read",
                clean(&error.path().to_string())
            )),
            _ => no_service("what it says cannot be read".to_owned()),
        })?;
        let addresses = [
            Some(described.authorization_endpoint().as_str()),
            described.token_endpoint().map(|url| url.as_str()),
            described.userinfo_endpoint().map(|url| url.as_str()),
            Some(described.jwks_uri().as_str()),
        ];
        if !addresses.into_iter().flatten().all(|address| sign_in.issuer.allows(address)) {
            return Err(no_service(WebError::InTheClear.to_string()));
        }
        if described.token_endpoint().is_none() {
            return Err(no_service("it has no address to redeem a code at".to_owned()));
        }
        let secret = secret.map(|secret| ClientSecret::new(secret.to_owned()));
        Ok(Self { sign_in: sign_in.clone(), secret, described, web, at: Instant::now() })
    }

    /// Where a browser is sent to, and what is to be known of it when it comes back to `redirect`. `another`: the service should
    /// ask who it is even if it knows.
    pub fn begin(&self, redirect: &str, another: bool) -> Result<(String, Way), OidcError> {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (state, nonce) = (CsrfToken::new_random(), Nonce::new_random());
        let (told, kept) = (state.clone(), nonce.clone());
        let client = self.client(redirect)?;
        let flow = AuthenticationFlow::<CoreResponseType>::AuthorizationCode;
        let mut request =
            client.authorize_url(flow, move || told, move || kept).set_pkce_challenge(challenge);
        // Of what is none of the standard's only a service that lists it wants to hear.
        let listed = |scope: &&str| {
            let known = self.described.scopes_supported();
            known.is_some_and(|known| known.iter().any(|known| known.as_str() == *scope))
        };
        let claim = Some(self.sign_in.groups_claim.as_str()).filter(|claim| *claim != "groups");
        let more = Some("groups").into_iter().chain(claim).filter(listed);
        for scope in ["profile", "email"].into_iter().chain(more) {
            request = request.add_scope(Scope::new(scope.to_owned()));
        }
        if another {
            request = request.add_prompt(CoreAuthPrompt::SelectAccount);
        }
        let to = request.url().0.to_string();
        let (issuer, redirect) = (self.sign_in.issuer.to_string(), redirect.to_owned());
        Ok((to, Way { issuer, state, nonce, verifier, redirect }))
    }

    /// What the service gives for what a browser brought back on this way.
    fn redeem(&self, way: Way, answer: &Answer) -> Result<Redeemed, OidcError> {
        let name = || self.sign_in.name.clone();
        let came = answer.state.as_deref().unwrap_or_default();
        let same: bool = came.as_bytes().ct_eq(way.state.secret().as_bytes()).into();
        if !same || way.issuer != self.sign_in.issuer.as_str() {
            return Err(OidcError::Lost);
        }
        let says_so = self.described.additional_metadata();
        let mixed = match &answer.iss {
            Some(iss) => *iss != way.issuer,
            None => says_so.authorization_response_iss_parameter_supported,
        };
        if mixed {
            return Err(OidcError::MixedUp { name: name() });
        }
        if let Some(error) = &answer.error {
            let why = answer.error_description.as_ref().unwrap_or(error);
            return Err(OidcError::Denied { name: name(), why: clean(why) });
        }
        let code = answer.code.clone().filter(|code| !code.is_empty()).ok_or(OidcError::Lost)?;
        let client = self.client(&way.redirect)?;
        let not_redeemed = |why: &str| OidcError::NotRedeemed { name: name(), why: clean(why) };
        let call = |request| self.web.call(request);
        let tokens: Tokens = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|_| not_redeemed("it has no address for that"))?
            .set_pkce_verifier(way.verifier)
            .request(&call)
            .map_err(|error| match error {
                RequestTokenError::ServerResponse(said) => not_redeemed(said.error().as_ref()),
                RequestTokenError::Request(WebError::Failed(why)) => {
                    OidcError::Away { name: name(), why }
                }
                RequestTokenError::Parse(..) => not_redeemed("its answer cannot be read"),
                _ => not_redeemed("its answer is none"),
            })?;
        Ok(Redeemed { tokens, nonce: way.nonce })
    }

    /// Who came back.
    fn read(&self, redeemed: &Redeemed) -> Result<Known, Unproven> {
        let Redeemed { tokens, nonce } = redeemed;
        let token = tokens.id_token().ok_or(Unproven::Said("it sent no proof at all"))?;
        let keys = self.described.jwks().clone();
        let issuer = IssuerUrl::new(self.sign_in.issuer.to_string())
            .map_err(|_| Unproven::Said("its address is none"))?;
        let client = ClientId::new(self.sign_in.client.clone());
        let now = Utc::now();
        // Never the verifier for clients with a secret: it would take the secret for a key.
        let verifier = IdTokenVerifier::new_public_client(client, issuer, keys)
            .set_allowed_algs(ALGORITHMS)
            .set_time_fn(move || now - LEEWAY)
            .set_issue_time_verifier_fn(move |at: DateTime<Utc>| {
                (at <= now + LEEWAY).then_some(()).ok_or_else(|| "later".to_owned())
            });
        let claims = token.claims(&verifier, nonce).map_err(unproven)?;
        if let Some(told) = claims.access_token_hash() {
            let hash = token
                .signing_alg()
                .and_then(|alg| token.signing_key(&verifier).map(|key| (alg, key)))
                .ok()
                .and_then(|(alg, key)| {
                    AccessTokenHash::from_token(tokens.access_token(), alg, key).ok()
                });
            if hash.as_ref() != Some(told) {
                return Err(Unproven::Said("its proof belongs to another answer"));
            }
        }
        let subject = claims.subject().to_string();
        if subject.is_empty() || subject.len() > 255 {
            return Err(Unproven::Said("it does not say who you are"));
        }
        let mut known = Known {
            issuer: self.sign_in.issuer.to_string(),
            subject,
            names: Vec::new(),
            email: None,
            groups: None,
        };
        known.take(claims, &self.sign_in.groups_claim);
        if known.lacks_something() {
            self.ask_more(tokens, &mut known)?;
        }
        Ok(known)
    }

    /// What is not in the proof may be told at an address of its own.
    fn ask_more(&self, tokens: &Tokens, known: &mut Known) -> Result<(), Unproven> {
        if self.described.userinfo_endpoint().is_none() {
            return Ok(());
        }
        let client = self.client("https://localhost/").map_err(|_| Unproven::Key)?;
        let subject = openidconnect::SubjectIdentifier::new(known.subject.clone());
        let call = |request| self.web.call(request);
        let asked = client
            .user_info(tokens.access_token().clone(), Some(subject))
            .map_err(|_| Unproven::Said("it has no address for that"))?
            .require_signed_response(false)
            .request(&call);
        let told: UserInfoClaims<Others, CoreGenderClaim> = match asked {
            Ok(told) => told,
            Err(openidconnect::UserInfoError::ClaimsVerification(_)) => {
                return Err(Unproven::Said("it answers for somebody else than you"));
            }
            Err(_) => {
                log::warn!(service = self.sign_in.name.as_str(); "what it knows of somebody beside the proof could not be had");
                return Ok(());
            }
        };
        let name = |name: Option<&openidconnect::LocalizedClaim<openidconnect::EndUserName>>| {
            name.and_then(|name| name.get(None)).map(|name| name.to_string())
        };
        let user = told.preferred_username().map(|name| name.to_string());
        known.call([user, name(told.name())]);
        if known.email.is_none() && told.email_verified() == Some(true) {
            known.email = told.email().map(|email| email.to_string());
        }
        if known.groups.is_none() {
            known.groups = groups_in(&told.additional_claims().0, &self.sign_in.groups_claim);
        }
        Ok(())
    }

    fn not_proven(&self, why: Unproven) -> OidcError {
        let why = match why {
            Unproven::Key => "it is signed with a key that the service does not show",
            Unproven::Said(why) => why,
        };
        log::warn!(service = self.sign_in.name.as_str(); "nobody was signed in: {why}");
        OidcError::NotProven { name: self.sign_in.name.clone(), why }
    }

    #[allow(clippy::type_complexity, reason = "the library's type says which addresses are known")]
    fn client(
        &self,
        redirect: &str,
    ) -> Result<
        Client<
            Others,
            CoreAuthDisplay,
            CoreGenderClaim,
            CoreJweContentEncryptionAlgorithm,
            CoreJsonWebKey,
            CoreAuthPrompt,
            StandardErrorResponse<CoreErrorResponseType>,
            Tokens,
            CoreTokenIntrospectionResponse,
            CoreRevocableToken,
            CoreRevocationErrorResponse,
            openidconnect::EndpointSet,
            openidconnect::EndpointNotSet,
            openidconnect::EndpointNotSet,
            openidconnect::EndpointNotSet,
            openidconnect::EndpointMaybeSet,
            openidconnect::EndpointMaybeSet,
        >,
        OidcError,
    > {
        let redirect = RedirectUrl::new(redirect.to_owned()).map_err(|_| OidcError::Lost)?;
        let ways = self.described.token_endpoint_auth_methods_supported();
        let takes = |way| ways.is_some_and(|ways| ways.contains(&way));
        let basic = ways.is_none() || takes(CoreClientAuthMethod::ClientSecretBasic);
        let how = match basic || !takes(CoreClientAuthMethod::ClientSecretPost) {
            true => AuthType::BasicAuth,
            false => AuthType::RequestBody,
        };
        let client = ClientId::new(self.sign_in.client.clone());
        Ok(Client::from_provider_metadata(self.described.clone(), client, self.secret.clone())
            .set_auth_type(how)
            .set_redirect_uri(redirect))
    }
}

/// What the service gave.
struct Redeemed {
    tokens: Tokens,
    nonce: Nonce,
}

/// Why what it says is not proven.
enum Unproven {
    /// None of its keys that are known; it may have another by now.
    Key,
    Said(&'static str),
}

fn unproven(error: ClaimsVerificationError) -> Unproven {
    use ClaimsVerificationError as E;
    use SignatureVerificationError as S;
    Unproven::Said(match error {
        E::SignatureVerification(S::NoMatchingKey) => return Unproven::Key,
        E::SignatureVerification(S::NoSignature) => "it is not signed",
        E::SignatureVerification(S::DisallowedAlg(_) | S::UnsupportedAlg(_)) => {
            "it is signed in a way that anybody who knows the client's secret could sign, or that this box does not know; a steward can choose RS256 or ES256 there"
        }
        E::SignatureVerification(_) => "its signature is wrong",
        E::Expired(_) => {
            "it was too old when it came; the clock of the service or of this box is wrong"
        }
        E::InvalidIssuer(_) => "another service says it",
        E::InvalidAudience(_) => "it is meant for somebody else than this box",
        E::InvalidNonce(_) => "it is the answer to another question",
        E::Other(_) => {
            "it is of a time that is still to come; the clock of the service or of this box is wrong"
        }
        _ => "it is of a kind that this box does not know",
    })
}

impl Known {
    fn take(&mut self, claims: &IdTokenClaims<Others, CoreGenderClaim>, groups: &str) {
        let name = claims.name().and_then(|name| name.get(None)).map(|name| name.to_string());
        self.call([claims.preferred_username().map(|name| name.to_string()), name]);
        if claims.email_verified() == Some(true) {
            self.email = claims.email().map(|email| email.to_string());
        }
        self.groups = groups_in(&claims.additional_claims().0, groups);
    }

    fn call(&mut self, names: [Option<String>; 2]) {
        for name in names.into_iter().flatten() {
            let name = clean(&name);
            if !name.is_empty() && !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }

    fn lacks_something(&self) -> bool {
        self.names.is_empty() || self.email.is_none() || self.groups.is_none()
    }
}

impl Way {
    /// By which the browser's answer is recognised.
    pub(crate) fn state(&self) -> &str {
        self.state.secret()
    }

    #[cfg(test)]
    pub(crate) fn for_tests(state: &str) -> Self {
        Self {
            issuer: String::new(),
            state: CsrfToken::new(state.to_owned()),
            nonce: Nonce::new_random(),
            verifier: PkceCodeChallenge::new_random_sha256().1,
            redirect: String::new(),
        }
    }
}

/// A text from elsewhere that a page may show: one line, not too long.
fn clean(text: &str) -> String {
    let line = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(line).take(LONGEST).collect::<String>().trim().to_owned()
}
