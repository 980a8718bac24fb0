use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::money::Currency;
use crate::names::{RecipeName, UpstreamName};

/// Servers elsewhere, by what the box calls them.
pub type Upstreams = BTreeMap<UpstreamName, UpstreamServer>;

/// More models than this no form could show.
const MOST_MODELS: usize = 100;

/// A server elsewhere that is asked when this box cannot answer, or for models that only it has. Its API key is not here: the
/// gateway keeps it in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamServer {
    /// What it is.
    pub kind: UpstreamKind,
    /// Where its API begins, such as `https://elm.example.org:8443/v1`.
    pub url: UpstreamUrl,
    /// The certificate of the authority that signed the server's, PEM, where that is not one the world trusts; then no other is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Most that it may cost in a calendar month (UTC).
    pub budget: Amount,
    /// What the money is called, three letters: only shown.
    #[serde(default)]
    pub currency: Currency,
    /// Asked when the engine of a model does not answer.
    #[serde(default)]
    pub when_down: bool,
    /// Asked when the engine of a model refuses for want of room, or lets too many wait.
    #[serde(default)]
    pub when_full: bool,
    /// With `when_full`: so many questions that wait for the engine are too many. Without it only a refusal is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_at: Option<u16>,
    /// What it serves, by what members of this box call it. A model that no engine here serves lives only there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<RecipeName, UpstreamModel>,
}

/// What a server elsewhere is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamKind {
    /// Another Polder box: it speaks everything that this one does.
    Polder,
    /// A server of the collective's, or of friends, that speaks OpenAI's API: vLLM, SGLang, NIM, llama.cpp.
    Server,
    /// A company's.
    Cloud,
}

/// One model elsewhere, with its price per million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamModel {
    /// What it is called there.
    pub called: String,
    /// For what it reads.
    pub input: Amount,
    /// For what it writes.
    pub output: Amount,
    /// For what it reads and had kept from before; without it, the same as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<Amount>,
    /// For what it reads and keeps from then on for some minutes; without it, a quarter more than `input`. For an hour it is taken to be 1.6 times this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Amount>,
    /// Most tokens that it writes in one answer there. Where nothing is said, neither here nor in the question, a server that costs money is told to
    /// end after 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<u32>,
}

/// Where an API begins: TLS, or plain HTTP to this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamUrl {
    text: String,
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Something about a server elsewhere that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// Not an address.
    #[error(
        "{0:?} is not where an API begins; write it whole, as in https://elm.example.org:8443/v1, without a name or password and without a question mark"
    )]
    Url(String),
    /// In the clear over a network.
    #[error(
        "{0:?} is not on this machine and not over TLS, so that questions and the key would go over the network in the clear; write https://"
    )]
    Clear(String),
    /// Not a certificate.
    #[error("upstreams.{0}.authority is not a certificate in PEM; correct it or leave it out")]
    Authority(UpstreamName),
    /// Not what anything is called.
    #[error(
        "upstreams.{0}.models.{1}.called is empty, too long or has a space in it; write what the model is called there"
    )]
    Called(UpstreamName, RecipeName),
    /// Too many.
    #[error("upstreams.{0} has {1} models, and {MOST_MODELS} are the most; remove some")]
    ManyModels(UpstreamName, usize),
    /// Nothing may ever be written.
    #[error(
        "upstreams.{0}.models.{1}.longest is 0; write how long an answer there may be, or leave it out"
    )]
    NothingLong(UpstreamName, RecipeName),
    /// Nobody may ever wait.
    #[error(
        "upstreams.{0}.full_at is 0, so that nothing would be asked of the box itself; write 1 or more, or leave it out"
    )]
    FullAtNothing(UpstreamName),
    /// The box would ask itself.
    #[error("upstreams.{0} is this box itself; name another one")]
    Itself(UpstreamName),
}

impl UpstreamServer {
    /// What types cannot say. `door` is the port of this box, on this machine.
    pub(crate) fn check(&self, name: &UpstreamName, door: u16) -> Result<(), UpstreamFault> {
        let pem = |text: &str| {
            text.len() <= 16 << 10
                && text.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
                && text.trim_end().ends_with("-----END CERTIFICATE-----")
        };
        if self.authority.as_deref().is_some_and(|text| !pem(text)) {
            return Err(UpstreamFault::Authority(name.clone()));
        }
        if self.models.len() > MOST_MODELS {
            return Err(UpstreamFault::ManyModels(name.clone(), self.models.len()));
        }
        if self.full_at == Some(0) {
            return Err(UpstreamFault::FullAtNothing(name.clone()));
        }
        if self.url.is_this_machine() && self.url.port() == door {
            return Err(UpstreamFault::Itself(name.clone()));
        }
        if let Some((model, _)) = self.models.iter().find(|(_, model)| model.longest == Some(0)) {
            return Err(UpstreamFault::NothingLong(name.clone(), model.clone()));
        }
        let called = |text: &str| {
            (1..=200).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic())
        };
        match self.models.iter().find(|(_, model)| !called(&model.called)) {
            Some((model, _)) => Err(UpstreamFault::Called(name.clone(), model.clone())),
            None => Ok(()),
        }
    }

    /// When it is asked, in words that follow "asked".
    pub fn when(&self) -> &'static str {
        match (self.when_down, self.when_full) {
            (true, true) => "when the box is down or full",
            (true, false) => "when the box is down",
            (false, true) => "when the box is full",
            (false, false) => "for what only it has",
        }
    }
}

impl UpstreamUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Over TLS?
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// A name or an address, the latter without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is put before the path of a request, without `/v1` and without a slash at its end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port`, for the Host header.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// What goes there does not leave this machine.
    pub fn is_this_machine(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamFault;

    fn from_str(given: &str) -> Result<Self, UpstreamFault> {
        let shown = || given.chars().take(80).collect::<String>();
        let refuse = || UpstreamFault::Url(shown());
        let (tls, rest) = match (given.strip_prefix("https://"), given.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(refuse()),
        };
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~:/[]%".contains(&c);
        if given.len() > 300 || !rest.bytes().all(plain) {
            return Err(refuse());
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(refuse)?,
            None => match authority.find(':') {
                Some(at) => authority.split_at(at),
                None => (authority, ""),
            },
        };
        let port = match port {
            "" => {
                if tls {
                    443
                } else {
                    80
                }
            }
            port => port
                .strip_prefix(':')
                .and_then(|p| p.parse().ok())
                .filter(|p| *p != 0)
                .ok_or_else(refuse)?,
        };
        let address = host.parse::<std::net::IpAddr>().is_ok();
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        };
        let name = host.len() <= 253 && host.split('.').all(label);
        if !address && !name {
            return Err(refuse());
        }
        if path.contains("..") || path.contains("//") {
            return Err(refuse());
        }
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        let url = Self { text: given.to_owned(), tls, host: host.to_ascii_lowercase(), port, path };
        if !tls && !url.is_this_machine() {
            return Err(UpstreamFault::Clear(shown()));
        }
        Ok(url)
    }
}

macro_rules! text {
    ($name:ty, $field:tt) => {
        impl TryFrom<String> for $name {
            type Error = UpstreamFault;
            fn try_from(given: String) -> Result<Self, UpstreamFault> {
                given.parse()
            }
        }
        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.$field
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.$field)
            }
        }
    };
}
text!(UpstreamUrl, text);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Site, SiteChange};

    fn cloud() -> UpstreamServer {
        let price = |text: &str| text.parse::<Amount>().unwrap();
        let model = UpstreamModel {
            called: "vendor/big".into(),
            input: price("0.15"),
            output: price("0.6"),
            cached: None,
            written: None,
            longest: None,
        };
        UpstreamServer {
            kind: UpstreamKind::Cloud,
            url: "https://api.example.org/v1".parse().unwrap(),
            authority: None,
            budget: price("25"),
            currency: Currency::default(),
            when_down: true,
            when_full: false,
            full_at: None,
            models: BTreeMap::from([("big".parse().unwrap(), model)]),
        }
    }

    #[test]
    fn a_server_elsewhere_reads_back_as_it_was_written_and_its_key_is_nowhere() {
        let site = Site::unclaimed(8443);
        assert!(!site.to_toml().contains("upstreams"));
        let name: UpstreamName = "cloud".parse().unwrap();
        let upstream = Box::new(cloud());
        let next = SiteChange::Upstream { name: name.clone(), upstream }.applied_to(&site);
        next.check().unwrap();
        let text = next.to_toml();
        assert_eq!(Site::from_toml(&text).unwrap(), next);
        assert!(text.contains("budget = \"25.00\"") && !text.contains("key"), "{text}");
        assert_eq!(SiteChange::RemoveUpstream(name).applied_to(&next), site);
        // What it costs cannot be left out by mistake.
        for necessary in ["budget", "input", "output", "called"] {
            let text = text.replace(&format!("{necessary} ="), &format!("{necessary}x ="));
            let says = Site::from_toml(&text).unwrap_err().to_string();
            assert!(says.contains(&format!("missing field `{necessary}`")), "{says}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_a_sentence() {
        let says = |change: fn(&mut UpstreamServer)| {
            let mut site = Site::unclaimed(8443);
            let mut upstream = cloud();
            change(&mut upstream);
            site.upstreams.insert("cloud".parse().unwrap(), upstream);
            site.check().unwrap_err().to_string()
        };
        assert!(says(|u| u.authority = Some("no".into())).contains("certificate in PEM"));
        assert!(says(|u| u.full_at = Some(0)).contains("full_at is 0"));
        assert!(says(|u| u.url = "https://localhost:8443/v1".parse().unwrap()).contains("itself"));
        let called = says(|u| u.models.values_mut().for_each(|m| m.called = "a b".into()));
        assert!(called.contains("upstreams.cloud.models.big.called"), "{called}");
        let longest = says(|u| u.models.values_mut().for_each(|m| m.longest = Some(0)));
        assert!(longest.contains("upstreams.cloud.models.big.longest"), "{longest}");
    }

    #[test]
    fn an_api_begins_at_an_address_over_tls_or_on_this_machine() {
        let read = |text: &str| text.parse::<UpstreamUrl>();
        for (text, authority, path) in [
            ("https://api.example.org/v1", "api.example.org", ""),
            ("https://api.example.org", "api.example.org", ""),
            ("https://elm.local:8443/v1/", "elm.local:8443", ""),
            ("https://api.example.org/compat/openai/v1", "api.example.org", "/compat/openai"),
            ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", ""),
            ("https://[2001:db8::1]:8443/v1", "[2001:db8::1]:8443", ""),
        ] {
            let url = read(text).unwrap();
            assert_eq!((url.authority().as_str(), url.path()), (authority, path), "{text}");
            assert_eq!(url.to_string(), text);
        }
        for clear in ["http://10.0.0.5:8000/v1", "http://api.example.org/v1"] {
            assert!(matches!(read(clear), Err(UpstreamFault::Clear(_))), "{clear}");
        }
        for bad in [
            "",
            "api.example.org/v1",
            "ftp://a/v1",
            "https://",
            "https://a:b@c/v1",
            "https://a/v1?key=x",
            "https://a/../v1",
            "https://a:0/v1",
            "https://a:99999/v1",
            "https://a\r\nx/v1",
            "https://a b/v1",
            "https://[::1/v1",
            "https://a//v1",
            "https://-a/v1",
        ] {
            assert!(matches!(read(bad), Err(UpstreamFault::Url(_))), "{bad}");
        }
    }
}
