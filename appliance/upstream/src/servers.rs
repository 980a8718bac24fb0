//! Servers of others that may serve a slot, as recipes (`recipes/servers/*.toml`): which image by which digest, and what it is told.

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
    /// How it is put into a container.
    #[serde(default)]
    pub container: Option<Packed>,
    /// Why it is not.
    #[serde(default)]
    pub refused: Option<String>,
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
    /// Not in a container.
    #[error("{title} is not put into a container by Polder: {why}")]
    Refused {
        /// What.
        title: String,
        /// Why.
        why: String,
    },
    /// Which image is not known.
    #[error(
        "{title} {version} is known here by its name only ({source_of_it}), and a name alone may be another image tomorrow; say which image it is with --digest sha256:…: the registry's page of {image} shows it beside the tag v{version}, and `podman pull {image}:v{version}` followed by `podman images --digests` on any computer does too"
    )]
    NoDigest {
        /// What.
        title: String,
        /// Which.
        version: String,
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
        let title = self.title.clone();
        let Some(packed) = &self.container else {
            let why = self.refused.clone().unwrap_or_default();
            return Err(ServerFault::Refused { title, why });
        };
        let digest =
            digest.or_else(|| packed.digest.clone()).ok_or_else(|| ServerFault::NoDigest {
                title,
                version: packed.version.clone(),
                image: packed.image.clone(),
                source_of_it: packed.source.clone(),
            })?;
        let told = packed.arguments.iter().map(|word| match word.as_str() {
            MODEL => model.to_owned(),
            word => word.to_owned(),
        });
        Ok(Container {
            image: packed.image.clone(),
            digest,
            authority: None,
            port: packed.port,
            arguments: told.chain(beside.iter().cloned()).collect(),
            called: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_says_what_it_runs_or_why_not_and_that_nobody_has_run_it() {
        for recipe in ServerRecipe::builtin() {
            assert_eq!(recipe.container.is_some(), recipe.refused.is_none(), "{}", recipe.name);
            assert_eq!(recipe.run, Run::Never, "{}: say who has, and where", recipe.name);
            let Some(packed) = &recipe.container else { continue };
            let port = packed.port.to_string();
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
            let commit =
                packed.commit.as_deref().unwrap_or("0000000000000000000000000000000000000000");
            assert!(commit.len() == 40 && commit.bytes().all(|c| c.is_ascii_hexdigit()));
        }
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
        assert_eq!(container.digest, *vllm.container.as_ref().unwrap().digest.as_ref().unwrap());
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
        unpinned.container.as_mut().unwrap().digest = None;
        let unpinned = unpinned.container("m", None, &[]).unwrap_err().to_string();
        assert!(
            unpinned.contains("--digest sha256:") && unpinned.contains("podman images --digests"),
            "{unpinned}"
        );
        assert!(says("nim").contains("--url"));
        assert!(says("vlm").contains("there are vllm, sglang, nim"));
    }
}
