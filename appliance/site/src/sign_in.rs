use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Groups that may be named in all.
const MOST_GROUPS: usize = 100;
/// Letters of a group, a claim or a client's number.
const LONGEST: usize = 200;
/// Letters of what the button says.
const LONGEST_NAME: usize = 40;

/// Where the collective's people sign in already: a service that speaks OpenID Connect. The box sends them there, and hears
/// who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignIn {
    /// What people call it; the button on the sign-in page says it.
    pub name: String,
    /// Where it is, exactly as it says so itself.
    pub issuer: IssuerUrl,
    /// What it knows the box by.
    pub client: String,
    /// The claim in which it tells somebody's groups.
    #[serde(default = "usual_claim")]
    pub groups_claim: String,
    /// Who is in one of these groups may come in. Empty: whoever it knows may. Always written: see `unknown.rs`.
    #[serde(default)]
    pub members: Vec<String>,
    /// Who is in one of these groups is a steward. Empty: it makes nobody a steward.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stewards: Vec<String>,
    /// Makes members of people who are new to the box.
    #[serde(default)]
    pub new_people: bool,
    /// Tells other web apps the address that it has proven.
    #[serde(default)]
    pub tell_email: bool,
    /// A certificate (PEM) of the authority that signed its own, where browsers do not know that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

/// An issuer's address: over TLS, or on this machine. Two that differ in a slash are two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IssuerUrl(String);

/// Nobody could sign in in that way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    /// Not where people's identities may come from.
    #[error(
        "{0:?} is not the address of a service that people sign in with; write https://HOST, with the path if it has one, exactly as the service says it"
    )]
    Issuer(String),
    /// Nothing that a button could say.
    #[error(
        "the service that people sign in with needs a name of 1 to 40 letters, such as what you call it among you"
    )]
    Name,
    /// Not what a service gives its clients.
    #[error(
        "the client's number (client id) has 1 to 200 signs without spaces; copy it from the service"
    )]
    Client,
    /// Not the name of a claim.
    #[error(
        "the claim that has the groups is one word of up to 200 signs, such as groups; look at what the service sends"
    )]
    Claim,
    /// Not the names of groups.
    #[error(
        "a group has 1 to 200 signs, and no line ends in it, and there are 100 at most; correct the list of groups"
    )]
    Group,
    /// Not a certificate.
    #[error(
        "the certificate of the authority is text that begins with -----BEGIN CERTIFICATE-----; paste it whole, or leave it empty"
    )]
    Root,
}

fn usual_claim() -> String {
    "groups".to_owned()
}

impl SignIn {
    /// With the usual values for everything else: it lets in whom the box knows, and makes nobody a steward.
    pub fn at(name: &str, issuer: IssuerUrl, client: &str) -> Self {
        Self {
            name: name.to_owned(),
            issuer,
            client: client.to_owned(),
            groups_claim: usual_claim(),
            members: Vec::new(),
            stewards: Vec::new(),
            new_people: false,
            tell_email: false,
            root: None,
        }
    }

    /// What types cannot say.
    pub fn check(&self) -> Result<(), SignInError> {
        let name = self.name.chars().count();
        if self.name.trim() != self.name
            || !(1..=LONGEST_NAME).contains(&name)
            || self.name.chars().any(char::is_control)
        {
            return Err(SignInError::Name);
        }
        let word = |text: &str| {
            (1..=LONGEST).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic())
        };
        if !word(&self.client) {
            return Err(SignInError::Client);
        }
        if !word(&self.groups_claim) {
            return Err(SignInError::Claim);
        }
        let group = |text: &String| {
            (1..=LONGEST).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        let groups = || self.members.iter().chain(&self.stewards);
        if groups().count() > MOST_GROUPS || !groups().all(group) {
            return Err(SignInError::Group);
        }
        let pem = |text: &str| {
            text.len() <= 16 << 10
                && text.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
                && text.trim_end().ends_with("-----END CERTIFICATE-----")
        };
        if self.root.as_deref().is_some_and(|root| !pem(root)) {
            return Err(SignInError::Root);
        }
        Ok(())
    }
}

impl IssuerUrl {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is an address of the service's one that people and their secrets may be sent to? Over TLS; in the clear only where the
    /// service is on this machine, as its issuer says.
    pub fn allows(&self, address: &str) -> bool {
        address.starts_with("https://") || (self.is_here() && is_in_the_clear_here(address))
    }

    fn is_here(&self) -> bool {
        is_in_the_clear_here(&self.0)
    }
}

/// `http://` on this machine.
fn is_in_the_clear_here(address: &str) -> bool {
    let Some(rest) = address.strip_prefix("http://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    !host.contains('@')
        && (name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

impl FromStr for IssuerUrl {
    type Err = SignInError;

    fn from_str(given: &str) -> Result<Self, SignInError> {
        let refuse = || SignInError::Issuer(given.chars().take(80).collect());
        let host = |rest: &str| {
            let host = rest.split('/').next().unwrap_or_default();
            !host.is_empty()
                && host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.:[]".contains(&c))
        };
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~/:[]%+@".contains(&c);
        let over_tls = given.strip_prefix("https://").is_some_and(host);
        let fits = given.len() <= 300 && given.bytes().all(plain);
        if fits && (over_tls || is_in_the_clear_here(given)) {
            return Ok(Self(given.to_owned()));
        }
        Err(refuse())
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for IssuerUrl {
    type Error = SignInError;
    fn try_from(given: String) -> Result<Self, SignInError> {
        given.parse()
    }
}

impl From<IssuerUrl> for String {
    fn from(url: IssuerUrl) -> Self {
        url.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_come_over_tls_or_from_this_machine() {
        for good in [
            "https://sso.example.org",
            "https://sso.example.org/realms/house/",
            "https://[2001:db8::1]:8443/o",
            "http://localhost:9000",
            "http://127.0.0.1:9000/oidc",
            "http://[::1]:9000",
        ] {
            assert_eq!(good.parse::<IssuerUrl>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "sso.example.org",
            "http://sso.example.org",
            "http://localhost.example.org",
            "http://localhost@sso.example.org",
            "http://127.0.0.1.example.org",
            "https://",
            "https:///x",
            "https://ada@sso.example.org",
            "https://sso.example.org/?x=1",
            "https://sso.example.org/#x",
            "https://sso.example.org/a b",
            "javascript:alert(1)",
        ] {
            let error = bad.parse::<IssuerUrl>().unwrap_err().to_string();
            assert!(error.contains("people sign in with"), "{bad}");
        }
    }

    #[test]
    fn a_service_elsewhere_sends_nobody_into_the_clear() {
        let there: IssuerUrl = "https://sso.example.org".parse().unwrap();
        assert!(there.allows("https://login.example.org/x"));
        assert!(!there.allows("http://127.0.0.1/x") && !there.allows("javascript:alert(1)"));
        let here: IssuerUrl = "http://localhost:9000".parse().unwrap();
        assert!(here.allows("http://127.0.0.1:9001/x") && here.allows("https://x.example/x"));
        assert!(!here.allows("http://x.example/x"));
    }

    #[test]
    fn what_nobody_could_sign_in_with_is_refused_in_a_sentence() {
        let good = SignIn::at("Our house", "https://sso.example.org".parse().unwrap(), "box");
        good.check().unwrap();
        let says = |change: fn(&mut SignIn)| {
            let mut sign_in = good.clone();
            change(&mut sign_in);
            sign_in.check().unwrap_err()
        };
        assert_eq!(says(|s| s.name = " x".into()), SignInError::Name);
        assert_eq!(says(|s| s.name = "x".repeat(41)), SignInError::Name);
        assert_eq!(says(|s| s.client = "a b".into()), SignInError::Client);
        assert_eq!(says(|s| s.groups_claim = String::new()), SignInError::Claim);
        assert_eq!(says(|s| s.members = vec!["a\nb".into()]), SignInError::Group);
        assert_eq!(says(|s| s.stewards = vec!["a".into(); 101]), SignInError::Group);
        assert_eq!(says(|s| s.root = Some("no".into())), SignInError::Root);
    }
}
