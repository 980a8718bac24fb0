//! Runs systemd's own tools. A secret reaches them as a file in memory, never as an argument.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use polder_control::RecoveryKey;
use rustix::fs::MemfdFlags;

use crate::root::SealError;

/// Manages what opens a disk.
pub(crate) const ENROLL: &str = "/usr/bin/systemd-cryptenroll";
/// Opens one.
pub(crate) const CRYPTSETUP: &str = "/usr/bin/systemd-cryptsetup";
/// Starts units, and the machine again.
pub(crate) const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Where a tool finds the secret that it was given.
pub(crate) const SECRET: &str = "/dev/stdin";

/// What a tool is given to open the disk with.
pub(crate) enum Key<'a> {
    /// Nothing.
    None,
    /// The empty passphrase.
    Empty,
    /// This key, at [`SECRET`].
    Recovery(&'a RecoveryKey),
}

/// Runs a tool to its good end; returns what it printed.
pub(crate) fn run(
    act: &'static str,
    program: &str,
    arguments: &[&str],
    key: &Key<'_>,
) -> Result<String, SealError> {
    let fail = |why: String| SealError::Tool { act, why };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/usr/sbin");
    // Its sentences are for a log.
    command.envs([("SYSTEMD_COLORS", "0"), ("SYSTEMD_EMOJI", "0"), ("SYSTEMD_PAGER", "cat")]);
    command.stdin(match key {
        Key::Recovery(key) => secret(key).map_err(|error| fail(error.to_string()))?.into(),
        Key::None | Key::Empty => Stdio::null(),
    });
    if matches!(key, Key::Empty) {
        command.env("PASSWORD", "");
    }
    let done = command.output().map_err(|error| fail(format!("{program}: {error}")))?;
    let said = String::from_utf8_lossy(&done.stderr);
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        log::info!("{}: {line}", name(program));
    }
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(fail(format!("{}: {} ({})", name(program), last.trim(), done.status)))
}

/// A file in memory that ends with whoever has it open.
fn secret(key: &RecoveryKey) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("key", MemfdFlags::CLOEXEC)?);
    file.write_all(key.expose().as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn name(program: &str) -> &str {
    Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_reads_its_secret_from_a_file_and_sees_it_nowhere_else() {
        let text = "eujukuik-ljvniheb-tchngetr-henfkdfn-hjcrhelj-lufhrbcg-ivivhfvr-ncueblhj";
        let key = RecoveryKey::typed(text).unwrap();
        let look =
            ["-c", "cat /dev/stdin; echo; cat /dev/stdin; env; tr '\\0' ' ' < /proc/$$/cmdline"];
        let said = run("look", "/bin/sh", &look, &Key::Recovery(&key)).unwrap();
        assert!(said.starts_with(&format!("{text}\n")), "{said}");
        // Once per reading of the file; not in the environment, not among the arguments.
        assert!(said.matches(text).count() <= 2, "{said}");
        let said =
            run("look", "/bin/sh", &["-c", "echo \"${PASSWORD-none}\""], &Key::Empty).unwrap();
        assert_eq!(said, "\n");
    }

    #[test]
    fn a_tool_that_fails_is_told_with_its_last_words() {
        let arguments = ["-c", "echo first >&2; echo no such disk >&2; exit 3"];
        let error = run("open the disk", "/bin/sh", &arguments, &Key::None).unwrap_err();
        assert_eq!(error.to_string(), "could not open the disk: sh: no such disk (exit status: 3)");
    }
}
