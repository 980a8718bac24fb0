//! Servers of others that may serve a slot, as recipes (`recipes/servers/*.toml`): which image by which digest, and what it is told.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use polder_site::{Container, ForeignFault, ImageDigest, ImageName};
use serde::Deserialize;

/// Where a recipe says so, the name of the model stands.
const MODEL: &str = "{model}";

/// A server of others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerRecipe {
    /// As it is named on a command line.
    pub name: String,
    /// As people call it.
    pub title: String,
    /// A line for whoever chooses.
    pub about: String,
    /// Who has run it under Polder.
    pub run: Run,
    /// What its registry wants before it gives the image, for people.
    #[serde(default)]
    pub login: Option<String>,
    /// How it is put into a container.
    pub container: Packed,
}

/// Whether anybody has seen it work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// Nobody.
    Never,
}

/// An image, and what the server in it is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packed {
    /// Where it is.
    pub image: ImageName,
    /// Which version the arguments are for.
    pub version: String,
    /// The tag of that version; `v` and the version without one.
    #[serde(default)]
    pub tag: Option<String>,
    /// Of which commit that was built.
    #[serde(default)]
    pub commit: Option<String>,
    /// The image of that version, where it is known.
    #[serde(default)]
    pub digest: Option<ImageDigest>,
    /// Whence that is known, or why it is not.
    pub source: String,
    /// Where it listens.
    pub port: u16,
    /// What it is told; `{model}` is the model's name.
    pub arguments: Vec<String>,
    /// What stands in its environment, in the same way.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Where it says that it answers, if not at `/health`.
    #[serde(default)]
    pub health: Option<String>,
}

/// It is not run so.
#[derive(Debug, thiserror::Error)]
pub enum ServerFault {
    /// No such recipe.
    #[error("there is no recipe for a server called {given:?}; there are {have}")]
    Unknown {
        /// What was named.
        given: String,
        /// What there is.
        have: String,
    },
    /// Which image is not known.
    #[error(
        "{title} {version} is known here by its name only ({source_of_it}), and a name alone may be another image tomorrow; say which image it is with --digest sha256:…: the registry's page of {image} shows it beside the tag {tag}, and `podman pull {image}:{tag}` followed by `podman images --digests` on any computer does too"
    )]
    NoDigest {
        /// What.
        title: String,
        /// Which.
        version: String,
        /// What that is called there.
        tag: String,
        /// Where.
        image: ImageName,
        /// Why it is not known.
        source_of_it: String,
    },
    /// A name that cannot be.
    #[error(transparent)]
    Foreign(#[from] ForeignFault),
}

static ALL: LazyLock<Vec<ServerRecipe>> = LazyLock::new(|| {
    let texts = [
        include_str!("../../../recipes/servers/vllm.toml"),
        include_str!("../../../recipes/servers/sglang.toml"),
        include_str!("../../../recipes/servers/nim.toml"),
    ];
    texts
        .iter()
        .map(|text| toml::from_str(text).expect("built in; a test reads every one"))
        .collect()
});

impl ServerRecipe {
    /// All that Polder brings along.
    pub fn builtin() -> &'static [Self] {
        &ALL
    }

    /// The one of this name.
    pub fn find(given: &str) -> Result<&'static Self, ServerFault> {
        let found = Self::builtin().iter().find(|recipe| recipe.name == given);
        found.ok_or_else(|| {
            let have: Vec<&str> = Self::builtin().iter().map(|r| r.name.as_str()).collect();
            ServerFault::Unknown { given: given.chars().take(80).collect(), have: have.join(", ") }
        })
    }

    /// The container that serves a model called so; of another digest where one is named. What is told beside comes after the recipe's own.
    pub fn container(
        &self,
        model: &str,
        digest: Option<ImageDigest>,
        beside: &[String],
    ) -> Result<Container, ServerFault> {
        let packed = &self.container;
        let digest =
            digest.or_else(|| packed.digest.clone()).ok_or_else(|| ServerFault::NoDigest {
                title: self.title.clone(),
                version: packed.version.clone(),
                tag: packed.tag.clone().unwrap_or_else(|| format!("v{}", packed.version)),
                image: packed.image.clone(),
                source_of_it: packed.source.clone(),
            })?;
        let filled = |word: &String| match word.as_str() {
            MODEL => model.to_owned(),
            word => word.to_owned(),
        };
        let told = packed.arguments.iter().map(filled);
        let environment =
            packed.environment.iter().map(|(name, value)| (name.clone(), filled(value)));
        Ok(Container {
            image: packed.image.clone(),
            digest,
            authority: None,
            port: packed.port,
            arguments: told.chain(beside.iter().cloned()).collect(),
            called: None,
            health: packed.health.clone(),
            environment: environment.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_says_what_it_runs_and_that_nobody_has_run_it() {
        for recipe in ServerRecipe::builtin() {
            assert_eq!(recipe.run, Run::Never, "{}: say who has, and where", recipe.name);
            let packed = &recipe.container;
            let port = packed.port.to_string();
            let commit =
                packed.commit.as_deref().unwrap_or("0000000000000000000000000000000000000000");
            assert!(commit.len() == 40 && commit.bytes().all(|c| c.is_ascii_hexdigit()));
            if recipe.name == "nim" {
                continue;
            }
            let words: Vec<&str> = packed.arguments.iter().map(String::as_str).collect();
            // It listens where it is asked, and nowhere else.
            assert!(
                words.windows(2).any(|pair| pair == ["--port", port.as_str()]),
                "{}",
                recipe.name
            );
            assert!(
                words.windows(2).any(|pair| pair == ["--host", "127.0.0.1"]),
                "{}",
                recipe.name
            );
            assert!(words.contains(&MODEL) && words.contains(&"/weights"), "{}", recipe.name);
        }
    }

    #[test]
    fn nim_serves_the_models_files_as_they_are_and_needs_no_key_for_it() {
        let nim = ServerRecipe::find("nim").unwrap();
        let digest: ImageDigest = format!("sha256:{}", "cd".repeat(32)).parse().unwrap();
        let beside = ["--max-model-len".to_owned(), "8192".to_owned()];
        let container = nim.container("qwen3-4b", Some(digest), &beside).unwrap();
        assert_eq!(container.arguments.join(" "), "nim-serve --max-model-len 8192");
        assert_eq!(container.health.as_deref(), Some("/v1/health/ready"));
        let told: Vec<String> =
            container.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            told.join(" "),
            "NIM_CACHE_PATH=/tmp/nim NIM_MODEL_PATH=/weights NIM_SERVED_MODEL_NAME=qwen3-4b NIM_SERVER_PORT=8000"
        );
        assert_eq!(container.environment["NIM_SERVER_PORT"], container.port.to_string());
        // How one comes to the image is said where it is asked for.
        let login = nim.login.as_deref().unwrap();
        assert!(login.contains("login nvcr.io --user '$oauthtoken' < FILE"), "{login}");
        assert_eq!(container.image.registry(), "nvcr.io");
        let says = nim.container("m", None, &[]).unwrap_err().to_string();
        assert!(says.contains("podman pull nvcr.io/nim/nvidia/model-free-nim:2.0.13"), "{says}");
        // It is a slot that a site may have.
        let mut site = polder_site::Site::unclaimed(1);
        let mut slot = polder_site::EngineSlot::serving("qwen3-4b".parse().unwrap());
        slot.kind = polder_site::EngineKind::Container;
        slot.container = Some(Box::new(container));
        site.engines.insert("slow".parse().unwrap(), slot);
        assert_eq!(polder_site::Site::from_toml(&site.to_toml()).unwrap().engines, site.engines);
    }

    #[test]
    fn vllm_is_one_image_of_one_commit_and_told_the_models_name() {
        let vllm = ServerRecipe::find("vllm").unwrap();
        let container =
            vllm.container("qwen3-4b", None, &["--max-model-len".into(), "8192".into()]).unwrap();
        assert_eq!(
            container.arguments.join(" "),
            "/weights --served-model-name qwen3-4b --host 127.0.0.1 --port 8000 --max-model-len 8192"
        );
        assert_eq!(container.digest, *vllm.container.digest.as_ref().unwrap());
        let other: ImageDigest = format!("sha256:{}", "cd".repeat(32)).parse().unwrap();
        assert_eq!(vllm.container("m", Some(other.clone()), &[]).unwrap().digest, other);
    }

    #[test]
    fn what_is_not_known_or_cannot_be_is_refused_in_words() {
        let says = |name: &str| {
            let recipe = ServerRecipe::find(name);
            recipe.and_then(|recipe| recipe.container("m", None, &[])).unwrap_err().to_string()
        };
        let mut unpinned = ServerRecipe::find("sglang").unwrap().clone();
        assert!(unpinned.container("m", None, &[]).is_ok());
        unpinned.container.digest = None;
        let unpinned = unpinned.container("m", None, &[]).unwrap_err().to_string();
        assert!(
            unpinned.contains("--digest sha256:") && unpinned.contains("podman images --digests"),
            "{unpinned}"
        );
        assert!(unpinned.contains(":v0.5.16"), "{unpinned}");
        assert!(says("vlm").contains("there are vllm, sglang, nim"));
    }
}
