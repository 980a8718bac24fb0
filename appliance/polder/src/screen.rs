use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use polder_supervisor::Ending;

use crate::part;
use crate::state::State;

/// Show the box on the machine's own screen and serial line.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder screen --state /var/lib/polder /dev/tty1 /dev/ttyS0")]
pub(crate) struct Screen {
    #[command(flatten)]
    state: State,
    /// The terminals to show it on. Those that the machine does not have are left out.
    #[arg(value_name = "TERMINAL", required = true)]
    terminals: Vec<PathBuf>,
}

impl Screen {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        part::log("info");
        let state = self.state.folder()?;
        let terminals = self.terminals.iter().filter_map(|path| open(path)).collect();
        let runtime = part::one_thread()?;
        let done = runtime.block_on(async {
            let (_end, mut ending) = part::endings()?;
            let told = async move {
                let _ = ending.wait_for(|e| *e != Ending::No).await;
            };
            // What a person would ask for is the image's, where there is one.
            let version = match polder_update::here() {
                Ok(Some(image)) => image.version.to_string(),
                _ => env!("CARGO_PKG_VERSION").to_owned(),
            };
            anyhow::Ok(polder_screen::run(&state, version, terminals, told).await?)
        });
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }
}

pub(crate) fn open(path: &Path) -> Option<OwnedFd> {
    // Without NOCTTY a hang-up of the line would end this process.
    let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => Some(file.into()),
        Err(error) => {
            log::info!("nothing is shown on {}: {error}", path.display());
            None
        }
    }
}
