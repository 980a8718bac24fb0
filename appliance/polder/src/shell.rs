use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use polder_supervisor::{OPEN_SHELL, ShellOrder};

use crate::state::State;

/// Between two looks at the time and at the server.
const LOOK: Duration = Duration::from_secs(1);
const SSHD: &str = "/usr/sbin/sshd";
/// The least that a server needs; nothing else of Debian's own settings applies.
const SETTINGS: [&str; 14] = [
    "Port=22",
    "UsePAM=no",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "PubkeyAuthentication=yes",
    "PermitRootLogin=no",
    "AllowUsers=polder",
    "AllowTcpForwarding=no",
    "AllowAgentForwarding=no",
    "X11Forwarding=no",
    "MaxAuthTries=3",
    "MaxSessions=4",
    "PidFile=none",
    "PrintMotd=no",
];

/// The remote shell that a steward may open for a while. A unit of the image runs this.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder shell serve --state /var/lib/polder")]
pub(crate) struct Shell {
    #[command(subcommand)]
    command: ShellCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ShellCommand {
    /// Let the holder of the key in that a steward gave, as the box's own user, until the time is up.
    #[command(after_help = "Example:\n  polder shell serve --state /var/lib/polder")]
    Serve {
        #[command(flatten)]
        state: State,
    },
}

impl Shell {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        crate::part::log("info");
        let ShellCommand::Serve { state } = self.command;
        let state = state.folder()?;
        let order = read(&state)?;
        let mut server = serve(&state, &order)?;
        log::info!("a shell is open until {}, for the key {}", order.until, order.fingerprint);
        // Whoever is inside goes with the server: systemd ends everything that this unit started.
        while now() < order.until {
            match read(&state) {
                Ok(found) if found == order => {}
                // Started again, with the other key.
                Ok(_) => bail!("it is open for another key now"),
                Err(_) => break,
            }
            if let Some(status) = server.try_wait().context("could not look at the SSH server")? {
                bail!("the SSH server ended: {status}");
            }
            std::thread::sleep(LOOK);
        }
        let _ = server.kill();
        log::info!("the shell is closed");
        Ok(())
    }
}

fn read(state: &Path) -> anyhow::Result<ShellOrder> {
    let path = state.join(OPEN_SHELL);
    let text = fs::read(&path).with_context(|| "no steward has opened a shell".to_owned())?;
    serde_json::from_slice(&text).with_context(|| format!("{} cannot be read", path.display()))
}

fn serve(state: &Path, order: &ShellOrder) -> anyhow::Result<Child> {
    let folder = state.join("shell");
    let (host, keys) = (folder.join("host_key"), folder.join("authorized_keys"));
    if !host.exists() {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "polder", "-f"])
            .arg(&host)
            .status();
        if !made.context("could not run ssh-keygen")?.success() {
            bail!("the machine's own SSH key could not be made in {}", folder.display());
        }
    }
    fs::write(&keys, format!("{}\n", order.key))
        .and_then(|()| fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("could not write {}", keys.display()))?;
    let mut command = Command::new(SSHD);
    command.args(["-D", "-e", "-f", "/dev/null"]);
    command.arg("-h").arg(&host);
    for setting in SETTINGS {
        command.args(["-o", setting]);
    }
    // The folder belongs to the only user who may log in; its mode is the box's own concern.
    command.args(["-o", "StrictModes=no", "-o"]);
    command.arg(format!("AuthorizedKeysFile={}", keys.display()));
    // Whoever is inside means this box.
    command.arg("-o").arg(format!("SetEnv=POLDER_STATE={}", state.display()));
    command.spawn().with_context(|| format!("could not run {SSHD}"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
