//! Running other people's programs: all that they say goes to a log, and the end of it to whoever
//! has to know why they failed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::ImageError;

/// Lines of a failed program that people are shown.
const TAIL: usize = 12;

/// Runs `command` to its end, which must be a good one. `what` is what it is for: `making the root
/// file system`.
pub(crate) fn run(what: &str, command: &mut Command, log: &Path) -> Result<(), ImageError> {
    let out = open(log)?;
    let errors = out.try_clone().map_err(ImageError::file("write", log))?;
    let _ = writeln!(&out, "$ {command:?}");
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors)
        .status()
        .map_err(|source| missing(command, source))?;
    if status.success() { Ok(()) } else { Err(failed(what, status.to_string(), log)) }
}

/// The same, for a program whose answer is wanted.
pub(crate) fn answer(what: &str, command: &mut Command, log: &Path) -> Result<String, ImageError> {
    let errors = open(log)?;
    let _ = writeln!(&errors, "$ {command:?}");
    let done = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .output()
        .map_err(|source| missing(command, source))?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(failed(what, done.status.to_string(), log))
    }
}

fn open(log: &Path) -> Result<File, ImageError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).open(log).map_err(ImageError::file("write", log))
}

fn missing(command: &Command, source: std::io::Error) -> ImageError {
    let program = command.get_program().to_string_lossy().into_owned();
    match source.kind() {
        std::io::ErrorKind::NotFound => {
            ImageError::NoProgram { package: package_of(&program), program }
        }
        _ => ImageError::File { act: "run", path: program.into(), source },
    }
}

/// Debian's package for the few programs that are not brought along.
fn package_of(program: &str) -> &'static str {
    match program {
        "mmdebstrap" => "mmdebstrap",
        "unshare" => "util-linux",
        "dpkg-deb" => "dpkg",
        "apt-get" | "apt-cache" => "apt",
        "cargo" | "rustc" => "rustup",
        "aarch64-linux-gnu-gcc" => "gcc-aarch64-linux-gnu",
        "x86_64-linux-gnu-gcc" => "gcc-x86-64-linux-gnu",
        _ => "of that name",
    }
}

fn failed(what: &str, status: String, log: &Path) -> ImageError {
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("$ ")).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    ImageError::Failed { what: what.to_owned(), status, log: log.to_owned(), tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_told_with_the_last_that_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; echo no such disk >&2; exit 4"]);
        let error = run("writing the disk", &mut command, &log).unwrap_err().to_string();
        assert!(error.starts_with("writing the disk failed (exit status: 4)"), "{error}");
        assert!(error.ends_with("begun\nno such disk"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("/nowhere/mmdebstrap");
        let error = run("x", &mut command, &folder.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/mmdebstrap is not on this machine"), "{error}");
    }
}
