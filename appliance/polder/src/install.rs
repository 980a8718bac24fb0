use std::path::{Path, PathBuf};

use polder_install::{Face, Installer, PORT};
use polder_supervisor::Ending;

use crate::console::say;
use crate::part;
use crate::screen::open;

/// Keys and the hash of the code, for as long as the machine is on.
const WEB: &str = "/run/polder/install/web";

/// Put Polder from the stick that this machine runs from onto one of its disks.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder install --list\n  polder install --plan nvme0n1\n  polder install /dev/tty1 /dev/ttyS0\n\nOn a stick it runs by itself, on the screen and the serial line. Nothing is written before \
                  somebody typed the name of a disk."
)]
pub(crate) struct Install {
    /// Only list the disks, what is on them, and why one cannot be used.
    #[arg(long, conflicts_with = "plan")]
    list: bool,
    /// Only say what would be done with this disk.
    #[arg(long, value_name = "DISK")]
    plan: Option<String>,
    /// The terminals to ask on. Those that the machine does not have are left out.
    #[arg(value_name = "TERMINAL", required_unless_present_any = ["list", "plan"])]
    terminals: Vec<PathBuf>,
}

impl Install {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.list {
            // Also on a machine that runs from something else: then nothing is too small.
            let needs = polder_install::least().unwrap_or_default();
            for disk in polder_install::disks(needs)? {
                let word = match &disk.refusal {
                    Some(why) => format!("not this one: {why}"),
                    None => format!("on it: {}", disk.holds()),
                };
                say(format!("{}\n    {word}", disk.title()));
            }
            return Ok(());
        }
        let source = polder_install::source()?;
        if let Some(name) = &self.plan {
            let disk = polder_install::disk(name, source.needs)?;
            let (plan, _) = polder_install::plan(&source, &disk).map_err(|why| {
                polder_install::InstallError::Refused { disk: disk.name.clone(), why }
            })?;
            say(plan);
            return Ok(());
        }
        part::log("info");
        let terminals = self.terminals.iter().filter_map(|path| open(path)).collect();
        let runtime = part::one_thread()?;
        let done = runtime.block_on(async {
            let (_end, mut ending) = part::endings()?;
            let told = async move {
                let _ = ending.wait_for(|e| *e != Ending::No).await;
            };
            let installer = Installer::new(source);
            // Without a browser there is still the screen.
            let face = match Face::open(installer.clone(), Path::new(WEB)) {
                Ok(face) => Some(face),
                Err(error) => {
                    log::error!("nobody can install in a browser: {error}");
                    None
                }
            };
            if let Some(face) = face.clone() {
                tokio::spawn(async move {
                    if let Err(error) = face.serve(PORT).await {
                        log::error!("nobody can install in a browser: {error}");
                    }
                });
            }
            polder_install::run(installer, face, terminals, told).await;
            anyhow::Ok(())
        });
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }
}
