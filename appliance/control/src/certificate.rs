use std::fmt;

use serde::{Deserialize, Serialize};

/// A secret of the public certificate's that a steward gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretName {
    /// Of the account that the authority gave (external account binding), base64url.
    Account,
    /// Of the key to the DNS zone, base64.
    DnsKey,
    /// What the hook is asked with: `NAME:PASSWORD`, or a token.
    Hook,
}

/// A secret's text: it shows in no `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Takes text in, without space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text itself, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The certificate that the world trusts: what there is, and what comes next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicStatus {
    /// Names that the site wants; none where it wants no such certificate.
    pub wanted: Vec<String>,
    /// What is served.
    pub held: Option<HeldCertificate>,
    /// What is done, or will be done next, in words.
    pub next: String,
    /// What is being done just now, in words.
    pub doing: Option<String>,
    /// The last try, if it failed.
    pub failed: Option<FailedTry>,
    /// Secrets that are kept.
    pub secrets: Vec<SecretName>,
}

/// A certificate that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldCertificate {
    /// For these names.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Unix seconds.
    pub from: i64,
    /// Unix seconds.
    pub until: i64,
    /// When it is renewed, Unix seconds.
    pub renews: i64,
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTry {
    /// Unix seconds.
    pub at: i64,
    /// How many failed since the last success.
    pub times: u32,
    /// Why, and what to do.
    pub why: String,
}
