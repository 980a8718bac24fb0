//! Why there is no certificate, in words, and what that means for the order.

use instant_acme::{Error, Problem};
use polder_pki::PkiError;

/// Why a certificate was not obtained.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The authority said no, or something odd, or nothing.
    Acme(Error),
    /// It did not accept the proofs: what it says of each.
    Invalid(String),
    /// It knows no proof of the kind that the site wants.
    NoSuchProof(String),
    /// What came is no certificate for our key.
    NotOurs,
    /// It does not speak for this name.
    NotFor(String),
    /// Something on our side; a sentence.
    Said(String),
    /// A file.
    Disk(PkiError),
    /// A key.
    Key(rcgen::Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Acme(error)
    }
}

impl From<rcgen::Error> for Trouble {
    fn from(error: rcgen::Error) -> Self {
        Self::Key(error)
    }
}

impl Trouble {
    /// Nothing will come of the order any more.
    pub(crate) fn ends_the_order(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::NoSuchProof(_) | Self::NotOurs | Self::NotFor(_) => true,
            Self::Key(_) => true,
            Self::Acme(Error::Api(problem)) => !matches!(
                kind(problem),
                "rateLimited" | "serverInternal" | "badNonce" | "orderNotReady"
            ),
            Self::Acme(Error::Str(_)) => true,
            Self::Acme(_) | Self::Said(_) | Self::Disk(_) => false,
        }
    }

    /// The authority was asked for an order and speaks of it: it does not have it any more.
    pub(crate) fn is_about_the_order(&self) -> bool {
        matches!(self, Self::Acme(Error::Api(_))) && self.ends_the_order() && !self.knows_us_not()
    }

    /// The authority does not know our account any more.
    pub(crate) fn knows_us_not(&self) -> bool {
        matches!(self, Self::Acme(Error::Api(problem)) if kind(problem) == "accountDoesNotExist")
    }

    /// It wants another nonce again and again, which says nothing about anything else.
    pub(crate) fn is_nonce(&self) -> bool {
        matches!(self, Self::Acme(Error::Api(problem)) if kind(problem) == "badNonce")
    }

    /// The authority has something against the order only because it replaces a certificate.
    pub(crate) fn refuses_replacement(error: &Error) -> bool {
        match error {
            Error::Unsupported(_) => true,
            Error::Api(problem) => matches!(kind(problem), "alreadyReplaced" | "malformed"),
            // It took the order and says nothing of what it replaces; instant-acme then hides the order from us.
            Error::Other(error) => error.to_string().starts_with("replaces field mismatch"),
            _ => false,
        }
    }
}

fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().unwrap_or_default().rsplit(':').next().unwrap_or_default()
}

/// A foreign text, fit for a line of ours.
pub(crate) fn clean(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    words.join(" ").chars().take(400).collect()
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Acme(Error::Api(problem)) => {
                let mut says = clean(problem.detail.as_deref().unwrap_or(kind(problem)));
                for sub in &problem.subproblems {
                    says += &format!("; {}", clean(&sub.to_string()));
                }
                let advice = match kind(problem) {
                    "rateLimited" => "it wants to be left alone for a while, which the box does",
                    "externalAccountRequired" => "enter the number and the secret of the account that it gave you",
                    "rejectedIdentifier" => "it gives no certificates for such names; choose another authority or other names",
                    "caa" => "a CAA record of the name lets only others sign; add this authority there",
                    "invalidContact" | "unsupportedContact" => "correct the e-mail address, or leave it out",
                    "userActionRequired" => "its terms have changed; read them and try again",
                    "serverInternal" => "the box tries again",
                    _ => "the box tries again; if it stays so, check what was entered",
                };
                write!(f, "the authority refused ({}): {says}; {advice}", kind(problem))
            }
            Self::Acme(Error::Timeout(_)) => f.write_str(
                "the authority has not decided yet; the box goes on with the same order later",
            ),
            Self::Acme(Error::Json(_)) => f.write_str(
                "the authority answered something that is no ACME; check the address of its directory",
            ),
            Self::Acme(Error::Other(error)) => {
                write!(f, "the authority could not be asked: {}", clean(&error.to_string()))
            }
            Self::Acme(error) => write!(f, "the authority could not be asked: {}", clean(&error.to_string())),
            Self::Invalid(why) => write!(
                f,
                "the authority could not see that the names are the box's ({why}); check that they lead here, or that the DNS zone is the right one"
            ),
            Self::NoSuchProof(name) => write!(
                f,
                "the authority does not take this kind of proof for {name}; choose another kind"
            ),
            Self::NotOurs => f.write_str("the authority sent something that is no certificate for the box's key; the box orders anew"),
            Self::NotFor(name) => write!(f, "the authority's certificate does not speak for {name}; the box orders anew"),
            Self::Said(why) => f.write_str(why),
            Self::Disk(error) => {
                write!(f, "{error}")?;
                std::error::Error::source(error).map_or(Ok(()), |why| write!(f, " ({why})"))
            }
            Self::Key(error) => write!(f, "a key could not be made ({error})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_foreign_server_says_fits_on_a_line() {
        assert_eq!(clean("a\r\nb\u{1b}[31m  c"), "a b [31m c");
        assert_eq!(clean(&"x".repeat(1_000)).len(), 400);
    }

    #[test]
    fn an_order_outlives_a_lost_line_and_a_busy_authority_and_not_a_refusal() {
        let says = |kind: &str| {
            let text =
                format!("{{\"type\":\"urn:ietf:params:acme:error:{kind}\",\"detail\":\"d\"}}");
            Trouble::Acme(Error::Api(serde_json::from_str(&text).unwrap()))
        };
        assert!(!Trouble::Acme(Error::Other("no line".into())).ends_the_order());
        assert!(!Trouble::Acme(Error::Timeout(None)).ends_the_order());
        assert!(!says("rateLimited").ends_the_order());
        assert!(says("unauthorized").ends_the_order());
        assert!(says("accountDoesNotExist").knows_us_not());
        assert!(!says("accountDoesNotExist").is_about_the_order());
        let told = says("externalAccountRequired").to_string();
        assert!(told.contains("the number and the secret of the account"), "{told}");
    }
}
