use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use polder_reach::Register;
use polder_reach::relay::{Limits, run};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::console::say;
use crate::part;

/// Be a relay: let members outside reach boxes that nobody can call. For any small server; it reads nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder relay run --listen 0.0.0.0:443 --listen '[::]:443'\n  polder relay add oak --at relay.example.org:443 oak.relay.example.org\n  polder relay list\n  polder relay remove oak"
)]
pub(crate) struct Relay {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Folder {
    /// Where the relay keeps its key and the boxes it knows.
    #[arg(
        long = "folder",
        value_name = "DIR",
        env = "POLDER_RELAY",
        default_value = "/var/lib/polder-relay"
    )]
    path: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take calls of boxes and of members, until it is told to end.
    #[command(after_help = "Example:\n  polder relay run --listen 0.0.0.0:443 --listen '[::]:443'")]
    Run {
        /// An address and port of this server; may be given again.
        #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:443")]
        listen: Vec<SocketAddr>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Let a box be reached here under these names, and print its pass: it is shown once. Once more for the same box makes a new pass.
    #[command(
        after_help = "Example:\n  polder relay add oak --at relay.example.org:443 oak.relay.example.org\n\nThe names must lead to this server in the DNS. Paste what is printed on the box's page Outside."
    )]
    Add {
        /// What the box is called here.
        name: String,
        /// Where boxes reach this relay.
        #[arg(long, value_name = "HOST:PORT")]
        at: String,
        /// Names that members' programs ask for.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Take a box's pass away; its lines end within seconds.
    #[command(after_help = "Example:\n  polder relay remove oak")]
    Remove {
        /// What the box is called here.
        name: String,
        #[command(flatten)]
        folder: Folder,
    },
    /// Print a unit for systemd that runs the relay, locked up, with how to install it.
    #[command(
        after_help = "Example:\n  polder relay unit | sudo tee /etc/systemd/system/polder-relay.service"
    )]
    Unit,
    /// Show which boxes may be reached here.
    #[command(after_help = "Example:\n  polder relay list")]
    List {
        #[command(flatten)]
        folder: Folder,
    },
}

impl Relay {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run { listen, folder } => serve(&listen, &Register::open(&folder.path)?),
            Command::Add { name, at, hosts, folder } => {
                let Some((host, port)) = at.rsplit_once(':') else {
                    bail!("{at:?} has no port; write it as relay.example.org:443");
                };
                let port = port.parse().with_context(|| format!("{port:?} is no port"))?;
                let pass = Register::open(&folder.path)?.add(&name, &hosts, (host, port))?;
                // Read back as a box will read it: a host that no pass can carry is said here.
                let pass: polder_reach::Pass =
                    pass.to_string().parse().ok().with_context(|| {
                        format!("{host:?} is no host name or address that a box could call")
                    })?;
                say(pass);
                Ok(())
            }
            Command::Unit => {
                say(polder_reach::UNIT.trim_end());
                Ok(())
            }
            Command::Remove { name, folder } => {
                Register::open(&folder.path)?.remove(&name)?;
                say(format!("{name} is known here no more"));
                Ok(())
            }
            Command::List { folder } => {
                let all = Register::open(&folder.path)?.list()?;
                if all.is_empty() {
                    say("no box is known here; `polder relay add` lets one in");
                }
                for (name, hosts) in all {
                    say(format!("{name}: {}", hosts.join(", ")));
                }
                Ok(())
            }
        }
    }
}

fn serve(listen: &[SocketAddr], register: &Register) -> anyhow::Result<()> {
    part::log("info");
    // Each caller takes one, and 1,024 are the usual most.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: most.maximum, ..most };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, all) {
        log::warn!("no more files may be open than usual: {error}");
    }
    let runtime = part::runtime()?;
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for address in listen {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("could not listen on {address}; is another program using that port?")
            })?;
            log::info!("taking calls at {address}");
            listeners.push(listener);
        }
        let (_end, mut ending) = part::endings()?;
        let stop = CancellationToken::new();
        let told = stop.clone();
        tokio::spawn(async move {
            let _ = ending.wait_for(|ending| *ending != polder_supervisor::Ending::No).await;
            told.cancel();
        });
        Ok(run(register.clone(), listeners, Limits::default(), stop).await?)
    })
}
