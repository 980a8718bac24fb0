//! `packages.toml`: what is wanted, before anything is resolved.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Arch, Layer};

/// What images are made of and with, by the names that people think in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Want {
    /// Debian's release: `trixie`.
    pub suite: String,
    #[serde(flatten)]
    layers: BTreeMap<Layer, Named>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    packages: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    apart: bool,
    #[serde(default)]
    wheels: bool,
    #[serde(default)]
    x86_64: Vec<String>,
    #[serde(default)]
    aarch64: Vec<String>,
}

impl Want {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The packages of one layer of an image for `arch`.
    pub fn packages(&self, layer: Layer, arch: Arch) -> Vec<String> {
        let Some(named) = self.layers.get(&layer) else { return Vec::new() };
        let more = match arch {
            Arch::X86_64 => &named.x86_64,
            Arch::Aarch64 => &named.aarch64,
        };
        named.packages.iter().chain(more).cloned().collect()
    }

    /// The archive's parts that a layer may take packages from, besides `main`.
    pub fn components(&self, layer: Layer) -> &[String] {
        self.layers.get(&layer).map_or(&[], |named| &named.components)
    }

    /// Whether a layer's packages are taken apart and not installed, so that none of what they depend on is
    /// taken with them.
    pub fn apart(&self, layer: Layer) -> bool {
        self.layers.get(&layer).is_some_and(|named| named.apart)
    }

    /// Whether a layer's packages are PyPI's and not Debian's, each with its version: `name==1.2`.
    pub fn wheels(&self, layer: Layer) -> bool {
        self.layers.get(&layer).is_some_and(|named| named.wheels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_in_the_tree_are_named_for_both_kinds_of_machine() {
        let want = Want::parse(include_str!("../packages.toml")).unwrap();
        let has = |layer, arch, name: &str| want.packages(layer, arch).iter().any(|p| p == name);
        assert!(has(Layer::Root, Arch::X86_64, "linux-image-amd64"));
        assert!(has(Layer::Root, Arch::Aarch64, "linux-image-arm64"));
        assert!(!has(Layer::Root, Arch::Aarch64, "linux-image-amd64"));
        for layer in Layer::ALL {
            assert!(!want.packages(layer, Arch::X86_64).is_empty(), "{layer}");
        }
    }

    #[test]
    fn only_the_driver_and_what_compiles_for_it_are_taken_from_outside_debian_proper() {
        let want = Want::parse(include_str!("../packages.toml")).unwrap();
        for layer in Layer::ALL {
            assert_eq!(want.components(layer).is_empty(), layer != Layer::Driver, "{layer}");
            assert_eq!(want.apart(layer), layer == Layer::Driver, "{layer}");
            assert_eq!(want.wheels(layer), layer == Layer::Kernels, "{layer}");
        }
    }

    #[test]
    fn a_layer_that_nobody_knows_is_refused() {
        let error = Want::parse("suite = \"x\"\n[rooot]\npackages = []").unwrap_err();
        assert!(error.to_string().contains("rooot"), "{error}");
    }
}
