//! Files from PyPI, fetched by name and version with this machine's own pip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ImageError;
use crate::command::run;

/// Fetches one, for the kind of machine that this is, into a folder of its own, and says where it lies.
pub(crate) fn fetch(
    name: &str,
    version: &str,
    folder: &Path,
    log: &Path,
) -> Result<PathBuf, ImageError> {
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--no-cache-dir", "--dest"])
        .arg(folder)
        .arg(format!("{name}=={version}"));
    run("fetching NVIDIA's compiler from PyPI", &mut command, log)?;
    let entries = fs::read_dir(folder).map_err(ImageError::file("read", folder))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let wheel = paths.find(|path| path.extension().is_some_and(|end| end == "whl"));
    wheel.ok_or_else(|| ImageError::Gone { first: format!("{name} {version}"), count: 1 })
}

/// The two halves of `name==1.2`.
pub(crate) fn pinned(wanted: &str) -> Option<(&str, &str)> {
    let (name, version) = wanted.split_once("==")?;
    (!name.is_empty() && !version.is_empty()).then_some((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pypi_has_is_wanted_in_one_version() {
        assert_eq!(
            pinned("nvidia-cuda-nvrtc-cu12==12.9.86"),
            Some(("nvidia-cuda-nvrtc-cu12", "12.9.86"))
        );
        for loose in ["nvidia-cuda-nvrtc", "x>=1", "==1", "x=="] {
            assert_eq!(pinned(loose), None, "{loose}");
        }
    }
}
