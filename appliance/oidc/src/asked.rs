//! What an app asks for when it sends somebody to the box. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

/// Bytes of an address that people are sent back to.
const LONGEST_REDIRECT: usize = 500;
/// Bytes of what an app wants to find again.
const LONGEST_TEXT: usize = 2000;

/// The question, as it came. A part that comes twice is refused before.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// `code`.
    pub response_type: String,
    /// Which app.
    pub client_id: String,
    /// Where to send people back to.
    pub redirect_uri: String,
    /// What it wants to know.
    pub scope: String,
    /// What it wants to find again.
    pub state: Option<String>,
    /// The same, in the proof.
    pub nonce: Option<String>,
    /// SHA-256 of what it will redeem the code with.
    pub code_challenge: Option<String>,
    /// `S256`.
    pub code_challenge_method: Option<String>,
    /// `none`, `login` or `consent`.
    pub prompt: Option<String>,
    /// Seconds since which somebody may have signed in.
    pub max_age: Option<String>,
    /// `query`.
    pub response_mode: Option<String>,
    /// Not known here.
    pub request: Option<String>,
    /// Not known here.
    pub request_uri: Option<String>,
}

/// What is known of the app.
#[derive(Debug, Clone, Copy)]
pub struct AppFacts<'a> {
    /// Where it may have people sent back to.
    pub redirects: &'a [String],
    /// Whether it can keep a secret.
    pub has_secret: bool,
}

/// A question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// One of the app's own.
    pub redirect: String,
    /// Given back as it is.
    pub state: Option<String>,
    /// Goes into the proof.
    pub nonce: Option<String>,
    /// S256.
    pub challenge: Option<String>,
    /// Those of the words that are known here.
    pub scope: String,
    /// Nobody may be asked anything.
    pub silent: bool,
    /// They are to be asked what the app may, whatever they agreed to before.
    pub asks_them: bool,
    /// Whoever signed in longer ago than this must do so again, in seconds.
    pub max_age: Option<i64>,
}

/// A question that cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// To be shown, and nobody sent anywhere: where to is not known to be the app's.
    Show(&'static str),
    /// To be told to the app.
    Tell {
        /// Where.
        redirect: String,
        /// Given back as it is.
        state: Option<String>,
        /// The standard's word for it.
        error: &'static str,
        /// What to do.
        why: &'static str,
    },
}

/// Reads a question of an app's; `None` is one that the box does not know.
pub fn judge(asked: &Asked, app: Option<AppFacts<'_>>) -> Result<Wanted, Wrong> {
    let Some(app) = app else {
        return Err(Wrong::Show(
            "no app with this number may let people sign in with the box; a steward must write it down on the page Apps",
        ));
    };
    if !app.redirects.contains(&asked.redirect_uri) {
        return Err(Wrong::Show(
            "the app wants people sent back to an address that is not written down for it; a steward must write it down on the page Apps, letter by letter",
        ));
    }
    let long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > LONGEST_TEXT);
    if long(&asked.state) || long(&asked.nonce) {
        return Err(Wrong::Show("the app sends more along than the box takes"));
    }
    let tell = |error, why| {
        let (redirect, state) = (asked.redirect_uri.clone(), asked.state.clone());
        Err(Wrong::Tell { redirect, state, error, why })
    };
    if asked.request.is_some() {
        return tell("request_not_supported", "ask with plain parameters");
    }
    if asked.request_uri.is_some() {
        return tell("request_uri_not_supported", "ask with plain parameters");
    }
    if asked.response_type != "code" {
        return tell("unsupported_response_type", "only the code flow is known here");
    }
    if asked.response_mode.as_deref().is_some_and(|mode| mode != "query") {
        return tell("invalid_request", "only the response mode query is known here");
    }
    let scopes: Vec<&str> = asked.scope.split(' ').collect();
    if !scopes.contains(&"openid") {
        return tell("invalid_scope", "ask for the scope openid");
    }
    let known = ["openid", "profile", "email", "groups", "offline_access"];
    let scope = known.iter().filter(|known| scopes.contains(known)).copied();
    let scope = scope.collect::<Vec<_>>().join(" ");
    let challenge = asked.code_challenge.clone().filter(|text| !text.is_empty());
    match (&challenge, asked.code_challenge_method.as_deref()) {
        (None, None) if app.has_secret => {}
        (None, _) => return tell("invalid_request", "send a code_challenge (PKCE, S256)"),
        (Some(challenge), Some("S256")) if is_digest(challenge) => {}
        (Some(_), _) => return tell("invalid_request", "code_challenge_method must be S256"),
    }
    let prompts: Vec<&str> = asked.prompt.as_deref().unwrap_or_default().split(' ').collect();
    let silent = prompts.contains(&"none");
    if silent && prompts.len() > 1 {
        return tell("invalid_request", "prompt none stands alone");
    }
    let again = prompts.contains(&"login") || prompts.contains(&"select_account");
    let max_age = match (again, &asked.max_age) {
        (true, _) => Some(0),
        (false, None) => None,
        (false, Some(text)) => match text.parse::<u32>() {
            Ok(seconds) => Some(i64::from(seconds)),
            Err(_) => return tell("invalid_request", "max_age is a number of seconds"),
        },
    };
    Ok(Wanted {
        redirect: asked.redirect_uri.clone(),
        state: asked.state.clone(),
        nonce: asked.nonce.clone(),
        challenge,
        scope,
        silent,
        asks_them: prompts.contains(&"consent"),
        max_age,
    })
}

impl Wanted {
    /// Where somebody goes with this code. `issuer` says who gives it (RFC 9207).
    pub fn with_code(&self, code: &str, issuer: &str) -> String {
        back(&self.redirect, self.state.as_deref(), issuer, &[("code", code)])
    }

    /// Where somebody goes who gets none.
    pub fn without(&self, error: &'static str, why: &'static str) -> Wrong {
        let (redirect, state) = (self.redirect.clone(), self.state.clone());
        Wrong::Tell { redirect, state, error, why }
    }
}

impl Wrong {
    /// Where it is told; the sentence where it is shown instead.
    pub fn told(&self, issuer: &str) -> Result<String, &'static str> {
        match self {
            Self::Show(why) => Err(why),
            Self::Tell { redirect, state, error, why } => {
                let said = [("error", *error), ("error_description", *why)];
                Ok(back(redirect, state.as_deref(), issuer, &said))
            }
        }
    }
}

fn back(redirect: &str, state: Option<&str>, issuer: &str, said: &[(&str, &str)]) -> String {
    // It was one when it was written down.
    let Ok(mut to) = Url::parse(redirect) else { return "/".to_owned() };
    {
        let mut query = to.query_pairs_mut();
        query.extend_pairs(said);
        if let Some(state) = state {
            query.append_pair("state", state);
        }
        query.append_pair("iss", issuer);
    }
    to.into()
}

/// SHA-256 in base64url: 43 letters.
fn is_digest(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
}

/// An address of an app's that people may be sent back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect(String);

/// Not such an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address that people can be sent back to; write it whole, as the app says it: https://HOST/PATH, or http://localhost:PORT/PATH on this machine"
)]
pub struct RedirectError(String);

impl FromStr for Redirect {
    type Err = RedirectError;

    fn from_str(given: &str) -> Result<Self, RedirectError> {
        let refuse = || RedirectError(given.chars().take(80).collect());
        let plain = given.len() <= LONGEST_REDIRECT
            && given.bytes().all(|c| c.is_ascii_graphic() && !b"*\\\"<>".contains(&c));
        if !plain {
            return Err(refuse());
        }
        let url = Url::parse(given).map_err(|_| refuse())?;
        let clean = url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && !given.contains('#');
        let here = |host: &str| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        let fits = match url.scheme() {
            "https" => url.host_str().is_some_and(|host| !host.is_empty()),
            "http" => url.host_str().is_some_and(here),
            // Of a program on somebody's own machine, by a name that its maker owns (RFC 8252).
            own => own.contains('.'),
        };
        if clean && fits { Ok(Self(given.to_owned())) } else { Err(refuse()) }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: &str = "https://wiki.example/back?x=1";

    fn asked() -> Asked {
        Asked {
            response_type: "code".into(),
            client_id: "wiki".into(),
            redirect_uri: BACK.into(),
            scope: "openid email other".into(),
            state: Some("a&b=c".into()),
            code_challenge: Some("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM".into()),
            code_challenge_method: Some("S256".into()),
            ..Asked::default()
        }
    }

    fn says(has_secret: bool, change: impl FnOnce(&mut Asked)) -> Result<Wanted, Wrong> {
        let mut asked = asked();
        change(&mut asked);
        let redirects = [BACK.to_owned(), "https://wiki.example/other".to_owned()];
        judge(&asked, Some(AppFacts { redirects: &redirects, has_secret }))
    }

    fn told(has_secret: bool, change: impl FnOnce(&mut Asked)) -> &'static str {
        match says(has_secret, change) {
            Err(Wrong::Tell { error, .. }) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_question_is_answered_at_the_app_s_own_address() {
        let wanted = says(false, |_| {}).unwrap();
        assert_eq!((wanted.scope.as_str(), wanted.silent), ("openid email", false));
        let to = wanted.with_code("c", "https://oak.local");
        assert_eq!(to, format!("{BACK}&code=c&state=a%26b%3Dc&iss=https%3A%2F%2Foak.local"));
        let told = wanted.without("access_denied", "for stewards").told("https://oak.local");
        assert!(told.unwrap().starts_with("https://wiki.example/back?x=1&error=access_denied&"));
    }

    #[test]
    fn nobody_is_sent_anywhere_that_was_not_written_down() {
        assert!(matches!(judge(&asked(), None), Err(Wrong::Show(_))));
        for elsewhere in [
            "",
            "https://evil.example/back",
            "https://wiki.example/back",
            "https://wiki.example/back?x=1&y=2",
            "https://wiki.example/back?x=1#y",
            "https://wiki.example/back/../back?x=1",
            "https://wiki.example:443/back?x=1",
            "HTTPS://wiki.example/back?x=1",
            "https://wiki.example@evil.example/back?x=1",
        ] {
            let says = says(true, |asked| asked.redirect_uri = elsewhere.into());
            assert!(matches!(says, Err(Wrong::Show(_))), "{elsewhere}");
        }
        let long = says(true, |asked| asked.state = Some("x".repeat(2001)));
        assert!(matches!(long, Err(Wrong::Show(_))));
    }

    #[test]
    fn whoever_keeps_no_secret_must_prove_that_the_code_is_theirs() {
        let none = |asked: &mut Asked| {
            (asked.code_challenge, asked.code_challenge_method) = (None, None);
        };
        assert_eq!(told(false, none), "invalid_request");
        assert!(says(true, none).unwrap().challenge.is_none());
        for has_secret in [false, true] {
            let plain = |asked: &mut Asked| asked.code_challenge_method = Some("plain".into());
            assert_eq!(told(has_secret, plain), "invalid_request");
            assert_eq!(told(has_secret, |a| a.code_challenge_method = None), "invalid_request");
            assert_eq!(told(has_secret, |a| a.code_challenge = None), "invalid_request");
            let short = |asked: &mut Asked| asked.code_challenge = Some("short".into());
            assert_eq!(told(has_secret, short), "invalid_request");
        }
    }

    #[test]
    fn what_is_not_known_here_is_told_to_the_app_by_name() {
        assert_eq!(told(true, |a| a.response_type = "token".into()), "unsupported_response_type");
        assert_eq!(
            told(true, |a| a.response_type = "code id_token".into()),
            "unsupported_response_type"
        );
        assert_eq!(told(true, |a| a.scope = "email".into()), "invalid_scope");
        assert_eq!(told(true, |a| a.request = Some("x".into())), "request_not_supported");
        assert_eq!(told(true, |a| a.request_uri = Some("x".into())), "request_uri_not_supported");
        assert_eq!(told(true, |a| a.response_mode = Some("fragment".into())), "invalid_request");
        assert_eq!(told(true, |a| a.max_age = Some("-1".into())), "invalid_request");
        assert_eq!(told(true, |a| a.prompt = Some("none login".into())), "invalid_request");
        assert_eq!(says(true, |a| a.prompt = Some("login".into())).unwrap().max_age, Some(0));
        assert!(says(true, |a| a.prompt = Some("none".into())).unwrap().silent);
        assert!(says(true, |a| a.prompt = Some("login consent".into())).unwrap().asks_them);
        assert!(!says(true, |a| a.prompt = Some("login".into())).unwrap().asks_them);
        assert_eq!(says(true, |a| a.max_age = Some("60".into())).unwrap().max_age, Some(60));
    }

    #[test]
    fn addresses_that_people_can_be_sent_back_to() {
        for good in [
            "https://chat.oak.local:8443/oauth/oidc/callback",
            "http://localhost:3000/back",
            "http://127.0.0.1:3000/back",
            "http://[::1]:3000/",
            "org.example.app:/back",
        ] {
            assert_eq!(good.parse::<Redirect>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "/back",
            "https://",
            "http://chat.oak.local/back",
            "http://localhost.evil.example/",
            "https://x.example/back#here",
            "https://x.example/#",
            "https://ada@x.example/",
            "https://*.x.example/",
            "https://x.example/a b",
            "https://x.example/a\nb",
            "javascript:alert(1)",
            "data:text/html,x",
        ] {
            assert!(bad.parse::<Redirect>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_checks_panic(text in ".{0,200}", other in ".{0,50}") {
            let _ = text.parse::<Redirect>();
            let _ = says(true, |asked| {
                asked.scope = text.clone();
                asked.prompt = Some(other.clone());
                asked.code_challenge = Some(text);
                asked.state = Some(other);
            }).map(|wanted| wanted.with_code("c", "https://oak.local"));
        }
    }
}
