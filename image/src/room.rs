//! Rooms: small Debians of pinned packages in which images are made and tried, so that the machine's own
//! programs have no part in what comes out.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;
use crate::plan::scripts;
use crate::{Arch, ImageError};

/// Enters the room: mounts of its own, which end with it. Arguments: the room, pairs of folders to bring in, `--`, the command.
const ENTER: &str = r#"
room=$1; shift
mount --make-rprivate /
mount --bind "$room" "$room"
mount -t proc proc "$room/proc"
mount -t sysfs sys "$room/sys"
mount --rbind /dev "$room/dev"
mount -t tmpfs tmp "$room/tmp"
mount -t tmpfs run "$room/run"
mount -t tmpfs work "$room/mnt"
while [ "$1" != -- ]; do
    mkdir -p "$room/mnt/$2"
    mount --bind "$1" "$room/mnt/$2"
    shift 2
done
shift
exec chroot "$room" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TZ=UTC "$@"
"#;

/// A room that is ready for work.
#[derive(Debug, Clone)]
pub struct Room {
    pub(crate) root: PathBuf,
    pub(crate) epoch: u64,
    /// Whose programs run in it beside this machine's own.
    pub(crate) emulates: Option<Arch>,
}

impl Room {
    /// The room in this folder, as [`Workshop::tester`](crate::Workshop::tester) tells.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), epoch: 0, emulates: None }
    }

    /// A command line that begins in the room, with the given folders at `/mnt/NAME`; what is appended to it is
    /// run there. Killing it kills what runs.
    pub fn command(&self, folders: &[(&str, &Path)]) -> Command {
        self.enter(&["--mount"], folders)
    }

    fn enter(&self, apart: &[&str], folders: &[(&str, &Path)]) -> Command {
        let mut command = Command::new("unshare");
        command.args(apart).args(["--", "sh", "-euc", ENTER, "enter"]).arg(&self.root);
        for (name, folder) in folders {
            command.arg(folder).arg(name);
        }
        command.arg("--");
        command
    }

    /// Runs one of our scripts with the given folders at `/mnt/NAME`.
    pub(crate) fn run(
        &self,
        what: &str,
        script: &str,
        folders: &[(&str, &Path)],
        settings: &[(&str, String)],
        log: &Path,
    ) -> Result<(), ImageError> {
        // Without a network: a build takes nothing that the lock does not name.
        let mut command = self.enter(&["--mount", "--net"], folders);
        command.arg(format!("SOURCE_DATE_EPOCH={}", self.epoch));
        command.args(settings.iter().map(|(name, value)| format!("{name}={value}")));
        let script = match self.emulates {
            Some(arch) => {
                command.arg(format!("EMULATE={arch}"));
                format!("{}{script}", scripts::EMULATE)
            }
            None => script.to_owned(),
        };
        command.args(["/bin/bash", "-euo", "pipefail", "-c", &script, "step"]);
        run(what, &mut command, log)
    }
}
