//! A repository in the Hugging Face layout: what it has, and at which commit.

use polder_recipes::Digest;
use serde::Deserialize;

use crate::progress::{CancelFlag, Teller};
use crate::select::{INDEX, Listed};
use crate::web::Web;
use crate::{WeightsError, names};

/// No list of a repository is longer.
const LONGEST_LIST: u64 = 16 << 20;
/// No index of shards is longer.
const LONGEST_INDEX: u64 = 64 << 20;

/// One repository on one server.
pub(crate) struct Hub {
    endpoint: String,
    repo: String,
}

/// What it has at one commit.
#[derive(Debug, PartialEq)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<Listed>,
}

impl Hub {
    pub(crate) fn new(
        recipe: &str,
        endpoint: Option<&str>,
        repo: &str,
    ) -> Result<Self, WeightsError> {
        let none = || WeightsError::NoEndpoint { recipe: recipe.to_owned() };
        let endpoint = names::base_url("POLDER_HF_ENDPOINT", endpoint.ok_or_else(none)?)?;
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 128
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        match repo.split_once('/') {
            Some((owner, name)) if plain(owner) && plain(name) => {
                Ok(Self { endpoint, repo: repo.to_owned() })
            }
            _ => Err(WeightsError::Recipe {
                recipe: recipe.to_owned(),
                why: format!("its repository {:?} is not owner/name", names::shorten(repo)),
            }),
        }
    }
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
    /// Asks what the repository has at a branch, tag or commit.
    pub(crate) fn list(
        &self,
        web: &Web,
        revision: &str,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
    ) -> Result<Listing, WeightsError> {
        // A branch may have a slash in its name, which is one part of this path.
        let branch = names::in_url(revision).replace('/', "%2F");
        let url =
            format!("{}/api/models/{}/revision/{branch}?blobs=true", self.endpoint, self.repo);
        let what = format!("the list of {}", self.repo);
        let text = web.small(&what, &url, LONGEST_LIST, teller, cancel)?;
        let listing = parse(&text).and_then(|listing| match is_commit(revision) {
            true if listing.commit != revision => {
                Err(format!("it answered for commit {} instead of {revision}", listing.commit))
            }
            _ => Ok(listing),
        });
        listing.map_err(|why| WeightsError::Server {
            what,
            server: names::shown(&url),
            why,
            hint: "check that POLDER_HF_ENDPOINT is a server with the Hugging Face layout",
        })
    }
    /// The index of shards at a commit.
    pub(crate) fn index(
        &self,
        web: &Web,
        commit: &str,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
    ) -> Result<Vec<u8>, WeightsError> {
        web.small(INDEX, &self.file(commit, INDEX), LONGEST_INDEX, teller, cancel)
    }
    /// The address of a file.
    pub(crate) fn file(&self, revision: &str, name: &str) -> String {
        let branch = names::in_url(revision).replace('/', "%2F");
        format!("{}/{}/resolve/{branch}/{}", self.endpoint, self.repo, names::in_url(name))
    }
    /// In words, for manifests and messages.
    pub(crate) fn shown(&self, revision: &str) -> String {
        format!("{} at {} of {}", self.repo, names::shorten(revision), names::shown(&self.endpoint))
    }
}

/// Whether a revision is a full commit, which nobody can move.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn parse(text: &[u8]) -> Result<Listing, String> {
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    struct Sibling {
        rfilename: String,
        size: Option<u64>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: Option<Digest>,
        size: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(text)
        .map_err(|e| format!("its list cannot be read ({})", names::shorten(&e.to_string())))?;
    if !is_commit(&answer.sha) {
        return Err("its list names no commit".into());
    }
    let listed = |sibling: Sibling| {
        let lfs = sibling.lfs.as_ref();
        let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
        let sha256 = lfs.and_then(|lfs| lfs.sha256);
        Listed { name: sibling.rfilename, size, sha256 }
    };
    Ok(Listing { commit: answer.sha, files: answer.siblings.into_iter().map(listed).collect() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_list_gives_the_digests_of_large_files() {
        let digest = "ab".repeat(32);
        let text = format!(
            r#"{{"sha": "{COMMIT}", "other": 1, "siblings": [
                {{"rfilename": "config.json", "size": 12, "blobId": "x"}},
                {{"rfilename": "m.safetensors", "size": 99, "lfs": {{"sha256": "{digest}", "size": 99, "pointerSize": 1}}}}
            ]}}"#
        );
        let listing = parse(text.as_bytes()).unwrap();
        assert_eq!(listing.commit, COMMIT);
        assert_eq!((listing.files[0].size, listing.files[0].sha256), (Some(12), None));
        assert_eq!(listing.files[1].sha256.unwrap().to_string(), digest);
    }
    #[test]
    fn a_list_without_a_full_commit_is_refused() {
        assert!(parse(br#"{"sha": "main", "siblings": []}"#).is_err());
    }
    #[test]
    fn a_machine_without_an_endpoint_is_told_which_setting_to_make() {
        let said = Hub::new("m", None, "a/b").err().unwrap().to_string();
        assert!(said.contains("POLDER_HF_ENDPOINT"), "{said}");
    }
    #[test]
    fn repositories_and_branches_cannot_bend_the_address() {
        for repo in ["a", "a/b/c", "../b", "a/..", "a/b?x", "/b"] {
            assert!(Hub::new("m", Some("http://hub.lan"), repo).is_err(), "{repo}");
        }
        let hub = Hub::new("m", Some("http://hub.lan/"), "a/b").unwrap();
        assert_eq!(
            hub.file("pr/1", "x/y z.json"),
            "http://hub.lan/a/b/resolve/pr%2F1/x/y%20z.json"
        );
    }

    proptest! {
        #[test]
        fn no_list_panics(text in ".{0,200}") {
            let _ = parse(text.as_bytes());
        }
    }
}
