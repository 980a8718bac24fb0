use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a box looks for updates of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updates {
    /// The web address of a folder with signed images.
    pub from: UpdateUrl,
}

/// The web address of a folder. Plain http is enough: what comes from there is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpdateUrl(String);

/// Not an address from which updates could come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address that updates can come from; write the folder's own, as in https://example.org/polder, without a name or password"
)]
pub struct UpdateUrlError(String);

/// Longer than any address that somebody would type.
const LONGEST: usize = 300;

impl UpdateUrl {
    /// As it was written, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpdateUrl {
    type Err = UpdateUrlError;

    fn from_str(given: &str) -> Result<Self, UpdateUrlError> {
        let refuse = || UpdateUrlError(given.chars().take(80).collect());
        let rest = given.strip_prefix("https://").or_else(|| given.strip_prefix("http://"));
        let host = rest.ok_or_else(refuse)?.split('/').next().unwrap_or_default();
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:/[]".contains(&c);
        // An address with a password in it would be everybody's to read in site.toml.
        if host.is_empty() || given.len() > LONGEST || !given.bytes().all(plain) {
            return Err(refuse());
        }
        Ok(Self(given.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for UpdateUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for UpdateUrl {
    type Error = UpdateUrlError;
    fn try_from(given: String) -> Result<Self, UpdateUrlError> {
        given.parse()
    }
}

impl From<UpdateUrl> for String {
    fn from(url: UpdateUrl) -> Self {
        url.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_come_from_a_folder_on_the_web_and_no_password_is_written_down() {
        for (given, read) in [
            ("https://example.org/polder/", "https://example.org/polder"),
            ("http://10.0.2.2:8099", "http://10.0.2.2:8099"),
            ("http://[::1]:80/x", "http://[::1]:80/x"),
        ] {
            assert_eq!(given.parse::<UpdateUrl>().unwrap().as_str(), read);
        }
        for bad in [
            "",
            "example.org",
            "ftp://example.org",
            "https://",
            "https:///x",
            "https://ada:secret@example.org",
            "https://example.org/a b",
            "https://example.org/?x",
            &format!("https://{}", "a".repeat(400)),
        ] {
            let error = bad.parse::<UpdateUrl>().unwrap_err().to_string();
            assert!(error.contains("updates can come from"), "{bad}");
        }
    }
}
