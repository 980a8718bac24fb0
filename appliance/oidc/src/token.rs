//! What an app gets for a code, and how the box describes itself. Pure, but for the signature.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use openidconnect::core::{
    CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
};
use openidconnect::{
    AccessToken, AdditionalClaims, Audience, EndUserEmail, EndUserName, EndUserUsername, IdToken,
    IdTokenClaims, IssuerUrl, Nonce, StandardClaims, SubjectIdentifier,
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::{Keys, OidcError};

/// How long a proof is good, in seconds: as long as the token beside it. An app that uses both asks for new ones before the first of them
/// is over, and Open WebUI begins with that five minutes before.
const PROVEN_FOR: i64 = 600;

/// A question at the token endpoint, as it came.
#[derive(Default, Clone, Deserialize)]
#[serde(default)]
pub struct TokenAsked {
    /// `authorization_code` or `refresh_token`.
    pub grant_type: String,
    /// Good once.
    pub code: String,
    /// The one that the code was sent to.
    pub redirect_uri: Option<String>,
    /// What the challenge was made of.
    pub code_verifier: Option<String>,
    /// Good once.
    pub refresh_token: String,
    /// Which app, where it does not say so in a header.
    pub client_id: Option<String>,
    /// Its secret, where it does not say so in a header.
    pub client_secret: Option<String>,
}

/// Which app says that it is asking, and how it proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its number.
    pub client: String,
    /// Its secret, if it sent one.
    pub secret: Option<String>,
}

/// What was given, and what the code was made for.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The app.
    pub app: &'a str,
    /// The address of the box that it asked.
    pub issuer: &'a str,
    /// Where the code was sent.
    pub redirect: &'a str,
    /// What was challenged.
    pub challenge: Option<&'a str>,
}

/// An app gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRefused {
    /// 400 or 401.
    pub status: u16,
    /// The standard's word.
    pub error: &'static str,
    /// What to do.
    pub why: &'static str,
}

impl TokenRefused {
    fn new(error: &'static str, why: &'static str) -> Self {
        Self { status: 400, error, why }
    }

    /// It did not prove which app it is.
    pub fn client() -> Self {
        let why = "the client's number and secret do not belong together; a steward sees them on the page Apps";
        Self { status: 401, error: "invalid_client", why }
    }

    /// What it brought is not good.
    pub fn grant() -> Self {
        Self::new(
            "invalid_grant",
            "this was used, is too old, or its member has signed out; have them sign in again",
        )
    }

    /// It wants something else.
    pub fn kind() -> Self {
        Self::new(
            "unsupported_grant_type",
            "only authorization_code and refresh_token are known here",
        )
    }

    /// Two ways to say who it is, or none.
    fn unclear() -> Self {
        Self::new("invalid_request", "say once which client asks: by Basic, or in the form")
    }

    /// As the standard has it.
    pub fn json(&self) -> Value {
        json!({ "error": self.error, "error_description": self.why })
    }
}

/// Which app asks: by Basic, whose two parts are form-encoded, or in the form, and never by both.
pub fn credentials(
    authorization: Option<&str>,
    asked: &TokenAsked,
) -> Result<Credentials, TokenRefused> {
    let basic = match authorization.map(|text| text.split_once(' ').unwrap_or((text, ""))) {
        None => None,
        Some((scheme, text)) if scheme.eq_ignore_ascii_case("basic") => {
            let text = STANDARD.decode(text.trim()).ok().and_then(|b| String::from_utf8(b).ok());
            let text = text.ok_or_else(TokenRefused::unclear)?;
            let (id, secret) = text.split_once(':').ok_or_else(TokenRefused::unclear)?;
            Some((decoded(id), decoded(secret)))
        }
        Some(_) => return Err(TokenRefused::unclear()),
    };
    let in_form = asked.client_id.clone().filter(|id| !id.is_empty());
    let secret = asked.client_secret.clone().filter(|secret| !secret.is_empty());
    match (basic, in_form, secret) {
        (Some((id, _)), Some(other), _) if id != other => Err(TokenRefused::unclear()),
        (Some(_), _, Some(_)) => Err(TokenRefused::unclear()),
        (Some((client, secret)), ..) => Ok(Credentials { client, secret: Some(secret) }),
        (None, Some(client), secret) => Ok(Credentials { client, secret }),
        (None, None, _) => Err(TokenRefused::unclear()),
    }
}

fn decoded(text: &str) -> String {
    let pair = format!("x={text}");
    let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// May this app have tokens for this code at this address of the box?
pub fn redeem(
    given: Given<'_>,
    client: &str,
    issuer: &str,
    asked: &TokenAsked,
) -> Result<(), TokenRefused> {
    refresh(given, client, issuer)?;
    if asked.redirect_uri.as_deref() != Some(given.redirect) {
        return Err(TokenRefused::new(
            "invalid_grant",
            "redirect_uri is not the one of the question",
        ));
    }
    let verifier = asked.code_verifier.as_deref().filter(|verifier| !verifier.is_empty());
    let proven = match (given.challenge, verifier) {
        (None, None) => true,
        (Some(challenge), Some(verifier)) if (43..=128).contains(&verifier.len()) => {
            let made = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
            made.as_bytes().ct_eq(challenge.as_bytes()).into()
        }
        // A verifier without a challenge: somebody took the challenge out of the question.
        _ => false,
    };
    match proven {
        true => Ok(()),
        false => {
            Err(TokenRefused::new("invalid_grant", "code_verifier does not fit the code_challenge"))
        }
    }
}

/// May this app have new tokens?
pub fn refresh(given: Given<'_>, client: &str, issuer: &str) -> Result<(), TokenRefused> {
    if given.app != client || given.issuer != issuer {
        return Err(TokenRefused::grant());
    }
    Ok(())
}

/// Somebody, as apps are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Never given to anybody else.
    pub subject: String,
    /// What they are called on the box.
    pub name: String,
    /// By which apps tell people apart.
    pub email: String,
    /// Whether it is proven to be theirs.
    pub email_verified: bool,
    /// `stewards`, `members`.
    pub groups: Vec<&'static str>,
    /// When they signed in on the box; Unix seconds.
    pub signed_in_at: i64,
}

/// What is none of the standard's.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Groups {
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    groups: Vec<String>,
}
impl AdditionalClaims for Groups {}

type Proof =
    IdToken<Groups, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

impl Keys {
    /// Signs who somebody is, for an app that asked for `scope`. Blocks where a key must be made.
    pub fn prove(
        &self,
        person: &Person,
        given: Given<'_>,
        nonce: Option<&str>,
        scope: &str,
        access: &str,
        now: i64,
    ) -> Result<String, OidcError> {
        let signer = self.signer(now)?;
        let fail = |why: &str| OidcError::Key { path: "pki/identity".into(), why: why.to_owned() };
        let at = |seconds| DateTime::<Utc>::from_timestamp(seconds, 0).unwrap_or_default();
        let has = |word: &str| scope.split(' ').any(|known| known == word);
        let mut standard =
            StandardClaims::<CoreGenderClaim>::new(SubjectIdentifier::new(person.subject.clone()));
        if has("profile") {
            standard = standard
                .set_name(Some(EndUserName::new(person.name.clone()).into()))
                .set_preferred_username(Some(EndUserUsername::new(person.name.clone())));
        }
        if has("email") {
            standard = standard
                .set_email(Some(EndUserEmail::new(person.email.clone())))
                .set_email_verified(Some(person.email_verified));
        }
        let groups = match has("groups") || has("profile") {
            true => person.groups.iter().map(|group| (*group).to_owned()).collect(),
            false => Vec::new(),
        };
        let claims = IdTokenClaims::new(
            IssuerUrl::new(given.issuer.to_owned()).map_err(|_| fail("the address is none"))?,
            vec![Audience::new(given.app.to_owned())],
            at(now + PROVEN_FOR),
            at(now),
            standard,
            Groups { groups },
        )
        .set_auth_time(Some(at(person.signed_in_at)))
        .set_nonce(nonce.map(|nonce| Nonce::new(nonce.to_owned())));
        let token = Proof::new(
            claims,
            &*signer,
            CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
            Some(&AccessToken::new(access.to_owned())),
            None,
        )
        .map_err(|_| fail("nothing could be signed"))?;
        Ok(token.to_string())
    }
}

/// The same, unsigned, for whoever has a token.
pub fn userinfo(person: &Person, scope: &str) -> Value {
    let has = |word: &str| scope.split(' ').any(|known| known == word);
    let mut told = json!({ "sub": person.subject });
    if has("profile") {
        told["name"] = person.name.clone().into();
        told["preferred_username"] = person.name.clone().into();
    }
    if has("email") {
        told["email"] = person.email.clone().into();
        told["email_verified"] = person.email_verified.into();
    }
    if has("groups") || has("profile") {
        told["groups"] = json!(person.groups);
    }
    told
}

/// How the box describes itself at this address of it.
pub fn description(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oidc/authorize"),
        "token_endpoint": format!("{issuer}/oidc/token"),
        "userinfo_endpoint": format!("{issuer}/oidc/userinfo"),
        "jwks_uri": format!("{issuer}/oidc/keys"),
        "end_session_endpoint": format!("{issuer}/oidc/end"),
        "scopes_supported": ["openid", "profile", "email", "groups", "offline_access"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "code_challenge_methods_supported": ["S256"],
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "auth_time", "nonce", "name",
            "preferred_username", "email", "email_verified", "groups"],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "authorization_response_iss_parameter_supported": true,
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
        "claims_parameter_supported": false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    const GIVEN: Given<'_> = Given {
        app: "wiki",
        issuer: "https://oak.local",
        redirect: "https://wiki.example/back",
        challenge: Some(CHALLENGE),
    };

    fn asked() -> TokenAsked {
        TokenAsked {
            redirect_uri: Some(GIVEN.redirect.into()),
            code_verifier: Some(VERIFIER.into()),
            ..TokenAsked::default()
        }
    }

    #[test]
    fn a_code_is_redeemed_by_its_own_app_at_its_own_address_with_its_own_verifier() {
        let says = |given: Given<'_>, client: &str, issuer: &str, asked: &TokenAsked| {
            redeem(given, client, issuer, asked).map_err(|refused| refused.error)
        };
        assert_eq!(says(GIVEN, "wiki", GIVEN.issuer, &asked()), Ok(()));
        let refused = Err("invalid_grant");
        assert_eq!(says(GIVEN, "other", GIVEN.issuer, &asked()), refused);
        assert_eq!(says(GIVEN, "wiki", "https://oak.example", &asked()), refused);
        let elsewhere = TokenAsked { redirect_uri: Some("https://evil.example".into()), ..asked() };
        assert_eq!(says(GIVEN, "wiki", GIVEN.issuer, &elsewhere), refused);
        assert_eq!(
            says(GIVEN, "wiki", GIVEN.issuer, &TokenAsked { redirect_uri: None, ..asked() }),
            refused
        );
        for verifier in [None, Some(""), Some("x"), Some(CHALLENGE)] {
            let verifier = verifier.map(str::to_owned);
            let asked = TokenAsked { code_verifier: verifier, ..asked() };
            assert_eq!(says(GIVEN, "wiki", GIVEN.issuer, &asked), refused);
        }
        // Somebody took the challenge out on the way: the app's verifier has nothing to fit.
        let without = Given { challenge: None, ..GIVEN };
        assert_eq!(says(without, "wiki", GIVEN.issuer, &asked()), refused);
        let plain = TokenAsked { code_verifier: None, ..asked() };
        assert_eq!(says(without, "wiki", GIVEN.issuer, &plain), Ok(()));
    }

    #[test]
    fn an_app_says_once_which_one_it_is() {
        let form = |id: Option<&str>, secret: Option<&str>| TokenAsked {
            client_id: id.map(str::to_owned),
            client_secret: secret.map(str::to_owned),
            ..TokenAsked::default()
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let says = |header: Option<&str>, asked: TokenAsked| {
            credentials(header, &asked).map(|c| (c.client, c.secret)).map_err(|r| r.error)
        };
        let good = |id: &str, secret: Option<&str>| Ok((id.to_owned(), secret.map(str::to_owned)));
        assert_eq!(says(Some(&basic("a:b")), form(None, None)), good("a", Some("b")));
        assert_eq!(says(Some(&basic("a:b")), form(Some("a"), None)), good("a", Some("b")));
        assert_eq!(says(Some(&basic("a%20x:b%3A+c")), form(None, None)), good("a x", Some("b: c")));
        assert_eq!(says(None, form(Some("a"), Some("b"))), good("a", Some("b")));
        assert_eq!(says(None, form(Some("a"), None)), good("a", None));
        for (header, asked) in [
            (None, form(None, None)),
            (None, form(None, Some("b"))),
            (Some(basic("a:b")), form(Some("c"), None)),
            (Some(basic("a:b")), form(None, Some("b"))),
            (Some(basic("ab")), form(None, None)),
            (Some("Basic !".to_owned()), form(Some("a"), None)),
            (Some("Bearer x".to_owned()), form(Some("a"), None)),
        ] {
            assert_eq!(says(header.as_deref(), asked), Err("invalid_request"));
        }
    }

    #[test]
    fn apps_are_told_what_they_asked_for_and_no_more() {
        let person = Person {
            subject: "member-7".into(),
            name: "Ada".into(),
            email: "member-7@oak.local".into(),
            email_verified: false,
            groups: vec!["stewards", "members"],
            signed_in_at: 1_800_000_000,
        };
        assert_eq!(userinfo(&person, "openid"), json!({ "sub": "member-7" }));
        let all = userinfo(&person, "openid profile email groups");
        assert_eq!(all["groups"], json!(["stewards", "members"]));
        assert_eq!(all["email_verified"], json!(false));
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::of(folder.path());
        let read = |scope: &str| -> Value {
            let proof = keys.prove(&person, GIVEN, Some("n"), scope, "access", 1_800_000_000);
            let proof = proof.unwrap();
            let payload = proof.split('.').nth(1).unwrap();
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
        };
        let bare = read("openid");
        assert_eq!((&bare["sub"], &bare["nonce"]), (&json!("member-7"), &json!("n")));
        assert!(bare.get("email").is_none() && bare.get("groups").is_none(), "{bare}");
        let all = read("openid email profile");
        assert_eq!(all["email"], json!("member-7@oak.local"));
        assert_eq!(all["groups"], json!(["stewards", "members"]));
        assert_eq!(all["exp"].as_i64().unwrap() - all["iat"].as_i64().unwrap(), PROVEN_FOR);
    }
}
