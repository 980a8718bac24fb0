use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use polder_site::Site;
use polder_supervisor::systemd::{Bus, Hold, Host, Units};
use polder_supervisor::{Children, Ending, Options, Patience, Weights};
use tokio::sync::watch;

use crate::notify::{self, Who};
use crate::part;
use crate::state::State;

/// A machine that goes down ends us soon after we let it.
const GOING_DOWN: Duration = Duration::from_secs(60);

/// Keep the gateway and the engines of a box running (what `polder up` does, for a machine that
/// starts it by itself).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder supervise --state /var/lib/polder\n  polder supervise --state /var/lib/polder --units    where systemd runs the parts"
)]
pub(crate) struct Supervise {
    #[command(flatten)]
    state: State,
    /// Run the parts as systemd's polder-gateway.service and polder-engine@NAME.service.
    #[arg(long)]
    units: bool,
    /// The port of a box that has no site yet. [default: 8443]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    first_port: Option<u16>,
    /// An address that a box without a site listens on, instead of loopback. May be given several
    /// times.
    #[arg(long, value_name = "ADDR")]
    first_listen: Vec<IpAddr>,
}

impl Supervise {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        part::log("info");
        let state = self.state.make()?;
        let runtime = part::runtime()?;
        let done = runtime.block_on(async {
            let (end, ending) = part::endings()?;
            let (of, told) = (state.clone(), ending.clone());
            tokio::spawn(async move { notify::keep_telling(Who::Supervisor, &of, told).await });
            match self.units {
                true => self.keep_units(&state, end, ending).await,
                false => {
                    let parts = Children::of(&program()?, &state);
                    let shelf = Arc::new(Weights::of(&state)?);
                    Ok(polder_supervisor::run(self.options(&state), parts, shelf, ending).await?)
                }
            }
        });
        // An import that hangs on a server must not hold the end up.
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }

    /// The parts are units, and finish what they have before the machine goes down.
    async fn keep_units(
        &self,
        state: &Path,
        end: watch::Sender<Ending>,
        ending: watch::Receiver<Ending>,
    ) -> anyhow::Result<()> {
        let bus = Bus::system();
        let parts = Units::on(bus.clone(), state);
        let machine = tokio::spawn(end_with_the_machine(Host::on(bus), end));
        let shelf = Arc::new(Weights::of(state)?);
        let ran = polder_supervisor::run(self.options(state), parts, shelf, ending.clone()).await;
        if machine.is_finished()
            && let Ok(hold) = machine.await
        {
            // Ended because of the machine: were this process gone, it would be started again.
            let mut ending = ending;
            ending.mark_unchanged();
            drop(hold);
            let _ = tokio::time::timeout(GOING_DOWN, ending.changed()).await;
        }
        Ok(ran?)
    }

    fn options(&self, state: &Path) -> Options {
        let mut first = Site::unclaimed(self.first_port.unwrap_or(crate::up::DEFAULT_PORT));
        if !self.first_listen.is_empty() {
            first.door.listen.clone_from(&self.first_listen);
        }
        // What the seed of the stick said, where there was one.
        if let Some(name) = first_name(state) {
            first.name = name;
        }
        let (state, patience) = (state.to_owned(), Patience::default());
        Options { state, first, port: None, listen: None, patience }
    }
}

/// What a box is called whose seed says so. One that cannot be read costs it its name, not its start.
fn first_name(state: &Path) -> Option<polder_site::BoxName> {
    let path = state.join(polder_seed::KEPT);
    let text = std::fs::read_to_string(path).ok()?;
    match polder_seed::Seed::parse(&text) {
        Ok(seed) => seed.name,
        Err(error) => {
            log::warn!("{error}");
            None
        }
    }
}

/// Asks for time, and ends the box in order when the machine is about to go down. What it gives
/// back is let go when the parts have ended.
async fn end_with_the_machine(machine: Host, end: watch::Sender<Ending>) -> Option<Hold> {
    let hold = match machine.hold("answers that are being given are finished first").await {
        Ok(hold) => Some(hold),
        Err(error) => {
            log::warn!("{error}; a shutdown will cut off answers that are being given");
            None
        }
    };
    machine.goes_down().await;
    log::info!("the machine is going down");
    end.send_if_modified(|ending| {
        let first = *ending == Ending::No;
        if first {
            *ending = Ending::InOrder;
        }
        first
    });
    hold
}

/// This program, to be run again as a part.
pub(crate) fn program() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("could not find out where the polder program is")
}
