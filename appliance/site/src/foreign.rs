use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::upstreams::UpstreamUrl;

/// A server in a container that serves a slot's model instead of our own engine: vLLM, SGLang, NIM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Where its image is pulled from, without a tag; or what it is called, for one that is only brought in as a file.
    pub image: ImageName,
    /// SHA-256 of its manifest: no other image is started.
    pub digest: ImageDigest,
    /// The authority that signed the certificate of the registry that it is fetched from, PEM, where that is not one the world trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Where it listens inside the container, which has no network but its own loopback.
    #[serde(default = "usual_port")]
    pub port: u16,
    /// What it is told when it starts. The model's files are in `/weights`, to be read only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// What it calls the model; the recipe's name without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
    /// Where it says that it has its model and answers; `/health` without one, or its list of models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// What stands in its environment. No secret: it has no network to use one in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl Container {
    pub(crate) fn check(&self, slot: &str) -> Result<(), ForeignFault> {
        if self.port == 0 {
            return Err(ForeignFault::Port(slot.to_owned()));
        }
        if self.authority.as_deref().is_some_and(|text| !is_pem(text)) {
            return Err(ForeignFault::Authority(slot.to_owned()));
        }
        if self.health.as_deref().is_some_and(|path| !is_path(path)) {
            return Err(ForeignFault::Health(slot.to_owned()));
        }
        let fault = |name: &str| ForeignFault::Environment {
            slot: slot.to_owned(),
            name: name.chars().take(80).collect(),
        };
        for (name, value) in &self.environment {
            if !is_variable(name) || !is_word(value) || self.environment.len() > MOST_VARIABLES {
                return Err(fault(name));
            }
            if name.split('_').any(|word| SECRETS.contains(&word)) {
                return Err(ForeignFault::Secret { slot: slot.to_owned(), name: name.clone() });
            }
        }
        Ok(())
    }
}

const MOST_VARIABLES: usize = 50;
/// Words in the name of a variable that holds one.
const SECRETS: [&str; 7] =
    ["KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "CREDENTIALS"];

fn is_pem(text: &str) -> bool {
    text.len() <= 16 << 10
        && text.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
        && text.trim_end().ends_with("-----END CERTIFICATE-----")
}

fn is_path(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"/-._".contains(&c);
    text.starts_with('/') && text.len() <= 200 && text.bytes().all(plain)
}

fn is_variable(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    (1..=100).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn usual_port() -> u16 {
    8000
}

/// A server of the collective's that somebody else starts and stops, in place of our own engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Where its API begins.
    pub url: UpstreamUrl,
    /// The authority that signed its certificate, PEM, where that is not one the world trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// What it calls the model; the recipe's name without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
}

/// `docker.io/vllm/vllm-openai`: no tag, no digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// `sha256:` and 64 small hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDigest(String);

/// Something about a foreign server that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignFault {
    /// Not an image.
    #[error(
        "{0:?} is not what an image is called; write it without a tag, as in docker.io/vllm/vllm-openai"
    )]
    Image(String),
    /// Not a digest.
    #[error(
        "{0:?} is not an image's digest; write sha256: and its 64 digits, as `podman images --digests` shows it"
    )]
    Digest(String),
    /// The kind and its table do not go together.
    #[error(
        "engines.{slot} has kind {kind:?}, which needs a table engines.{slot}.{needed} and no other"
    )]
    Table {
        /// Which slot.
        slot: String,
        /// What it says.
        kind: &'static str,
        /// What belongs to it.
        needed: &'static str,
    },
    /// An argument or a name that cannot be passed on.
    #[error(
        "engines.{0} has an argument or a name for its model that is empty, too long or has a control character in it"
    )]
    Word(String),
    /// Port 0.
    #[error("engines.{0}.container.port is 0; write where the server listens")]
    Port(String),
    /// Not a certificate.
    #[error(
        "engines.{0}.container.authority is not a certificate in PEM; correct it or leave it out"
    )]
    Authority(String),
    /// Not a path.
    #[error(
        "engines.{0}.container.health is not where a server is asked; write a path, as in /v1/health/ready"
    )]
    Health(String),
    /// Not a variable.
    #[error(
        "engines.{slot}.container.environment has {name:?}, which cannot be: a name has capital letters, digits and _, a value is one line of at most 500 signs, and there are 50 at most"
    )]
    Environment {
        /// Which slot.
        slot: String,
        /// Its name.
        name: String,
    },
    /// A secret.
    #[error(
        "engines.{slot}.container.environment has {name}, which is called like a secret. Those have no place in a site, and a container has no network to use one in: a registry's key is kept with `polder engine image login`; what a server would fetch with a key has to be in its image or among the model's files"
    )]
    Secret {
        /// Which slot.
        slot: String,
        /// Its name.
        name: String,
    },
}

/// A word that may stand in a command line and in a log.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=500).contains(&text.len()) && !text.chars().any(char::is_control)
}

impl ImageName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry that it is fetched from: what is before the first slash.
    pub fn registry(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl ImageDigest {
    /// As text, with `sha256:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = ForeignFault;

    fn from_str(given: &str) -> Result<Self, ForeignFault> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._/:".contains(&c);
        let last = given.rsplit('/').next().unwrap_or_default();
        let part = |p: &str| !p.is_empty() && p.starts_with(|c: char| c.is_ascii_alphanumeric());
        let good = given.len() <= 200
            && given.bytes().all(plain)
            && given.split('/').all(part)
            && !last.contains(':');
        if good {
            Ok(Self(given.to_owned()))
        } else {
            Err(ForeignFault::Image(given.chars().take(80).collect()))
        }
    }
}

impl FromStr for ImageDigest {
    type Err = ForeignFault;

    fn from_str(given: &str) -> Result<Self, ForeignFault> {
        let hex = given.strip_prefix("sha256:").unwrap_or_default();
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        match hex.len() == 64 && hex.bytes().all(digit) {
            true => Ok(Self(given.to_owned())),
            false => Err(ForeignFault::Digest(given.chars().take(80).collect())),
        }
    }
}

macro_rules! text {
    ($name:ty) => {
        impl TryFrom<String> for $name {
            type Error = ForeignFault;
            fn try_from(given: String) -> Result<Self, ForeignFault> {
                given.parse()
            }
        }
        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text!(ImageName);
text!(ImageDigest);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineKind, EngineSlot, Site};

    fn with(kind: &str, tables: &str) -> Result<Site, String> {
        let slot = format!("\n[engines.big]\nkind = \"{kind}\"\nrecipe = \"tiny\"\n{tables}");
        Site::from_toml(&(Site::unclaimed(8443).to_toml() + &slot)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_slot_says_what_serves_it_and_an_older_version_is_told_by_the_format() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let container = format!(
            "[engines.big.container]\nimage = \"docker.io/vllm/vllm-openai\"\ndigest = \"{digest}\"\narguments = [\"--max-model-len\", \"8192\"]\n"
        );
        let site = with("container", &container).unwrap();
        let slot = &site.engines[&"big".parse().unwrap()];
        assert_eq!(slot.kind, EngineKind::Container);
        assert_eq!(slot.container.as_ref().unwrap().port, 8000);
        assert!(site.to_toml().starts_with("format = 2"), "{}", site.to_toml());
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap().to_toml(), site.to_toml());
        let text = format!("{container}authority = \"no\"\n");
        assert!(with("container", &text).unwrap_err().contains("certificate in PEM"));
        let served = with("url", "[engines.big.served]\nurl = \"http://127.0.0.1:8000/v1\"\n");
        assert_eq!(served.unwrap().engines[&"big".parse().unwrap()].kind, EngineKind::Url);
        // One that has only our own engines stays readable by those before.
        assert!(with("polder", "").unwrap().to_toml().starts_with("format = 1"));
    }

    #[test]
    fn what_a_container_is_told_beside_can_be_told_and_holds_no_secret() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let container = |beside: &str| {
            with(
                "container",
                &format!(
                    "[engines.big.container]\nimage = \"nvcr.io/nim/x\"\ndigest = \"{digest}\"\n{beside}"
                ),
            )
        };
        let site = container(
            "health = \"/v1/health/ready\"\n[engines.big.container.environment]\nNIM_SERVER_PORT = \"8000\"\n",
        );
        let site = site.unwrap();
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        for bad in ["", "v1", "/a b", "/a?b", "http://x/"] {
            let said = container(&format!("health = {bad:?}\n")).unwrap_err();
            assert!(said.contains("engines.big.container.health"), "{said}");
        }
        let variable = |name: &str, value: &str| {
            container(&format!("[engines.big.container.environment]\n{name:?} = {value:?}\n"))
        };
        for (name, value) in [
            ("", "x"),
            ("a", "x"),
            ("A B", "x"),
            ("1A", "x"),
            ("A=B", "x"),
            ("A", ""),
            ("A", "x\ny"),
        ] {
            let said = variable(name, value).unwrap_err();
            assert!(said.contains("capital letters"), "{name}: {said}");
        }
        for good in ["TOKENIZERS_PARALLELISM", "NIM_MAX_TOKENS", "A", "_A1"] {
            variable(good, "x=y z").unwrap();
        }
        for secret in ["NGC_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"] {
            let said = variable(secret, "nvapi-canary").unwrap_err();
            assert!(
                said.contains("polder engine image login") && !said.contains("canary"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_kind_without_its_table_or_with_another_is_refused() {
        let served = "[engines.big.served]\nurl = \"http://127.0.0.1:8000/v1\"\n";
        assert!(with("container", "").unwrap_err().contains("engines.big.container"));
        assert!(with("url", "").unwrap_err().contains("engines.big.served"));
        assert!(with("container", served).unwrap_err().contains("engines.big.container"));
        assert!(with("polder", served).is_err());
        assert!(with("magic", "").unwrap_err().contains("magic"));
    }

    #[test]
    fn images_and_digests_that_are_none_are_refused() {
        for good in ["docker.io/vllm/vllm-openai", "localhost/toy", "registry.example.org:5000/a/b"]
        {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", "a:latest", "a@sha256:x", "-a", "a b", "a/../b", "A/b", "/a", "a//b"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
        for bad in
            ["", "sha256:", "sha256:AB", &format!("sha256:{}", "AB".repeat(32)), &"ab".repeat(32)]
        {
            assert!(bad.parse::<ImageDigest>().is_err(), "{bad}");
        }
        let _ = EngineSlot::serving("tiny".parse().unwrap());
    }
}
