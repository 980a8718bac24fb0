use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use polder_backup::Folders;
use polder_control::{DoorReply, DoorRequest, Sockets};
use polder_recipes::{DEFAULT_RECIPE, Recipe};
use polder_site::{EngineName, Site, SiteChange, Store};
use polder_supervisor::{Children, Ending, Options, Patience, Weights};
use tokio::sync::watch;

use crate::console::heard;
use crate::follow::Follower;
use crate::greeting::{Greeting, Surroundings, url};
use crate::part;
use crate::state::{State, unexpected};

/// Where a box listens unless it is told otherwise.
pub(crate) const DEFAULT_PORT: u16 = 8443;
/// The slot that the first model is served in.
const FIRST_ENGINE: &str = "fast";
/// The parts of a box that has just ended may hold the port for this long.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Start a box here and keep it running: the first time it prints where to claim it, after that it
/// goes on where it was.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder up                                  then open the link that it prints\n  polder up --yes                            without a browser: serve a model, print a key\n  polder up --yes --json --state DIR --port 9000"
)]
pub(crate) struct Up {
    #[command(flatten)]
    state: State,
    /// The port for everything; from now on, also without saying it again. [default: 8443]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// An address to listen on instead of this machine's own loopback; from now on. May be given
    /// several times.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<IpAddr>,
    /// Without a browser: serve a model, make a steward, print a key.
    #[arg(long)]
    yes: bool,
    /// With --yes: which model. [default: the one being served, or the trial model]
    #[arg(long, value_name = "RECIPE", requires = "yes")]
    model: Option<String>,
    /// With --yes: print one JSON line when ready: url, ca_file, api_key, model.
    #[arg(long, requires = "yes")]
    json: bool,
}

impl Up {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        part::log("warn");
        // A misspelt name is told before anything is made.
        self.model.as_deref().map(Recipe::find).transpose()?;
        let state = self.state.make()?;
        self.check_door(&state)?;
        let runtime = part::runtime()?;
        let done = runtime.block_on(self.start(&state));
        // An import that hangs on a server must not hold the end up.
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }

    /// Runs the box; when another one was restored in its place, that one.
    async fn start(&self, state: &Path) -> anyhow::Result<()> {
        let (end, ending) = part::endings()?;
        let mut another = Another::No;
        loop {
            let ended = self.once(state, &end, ending.clone(), another).await;
            another = Another::waits(state);
            if another == Another::No || *ending.borrow() != Ending::No {
                return ended;
            }
        }
    }

    async fn once(
        &self,
        state: &Path,
        end: &watch::Sender<Ending>,
        ending: watch::Receiver<Ending>,
        another: Another,
    ) -> anyhow::Result<()> {
        // The parts are as calm as this console.
        let level = std::env::var(part::LEVEL).unwrap_or_else(|_| "warn".to_owned());
        let parts = Children::of(&crate::supervise::program()?, state).with(part::LEVEL, &level);
        let options = Options {
            state: state.to_owned(),
            first: Site::unclaimed(DEFAULT_PORT),
            port: self.port,
            listen: (!self.listen.is_empty()).then(|| self.listen.clone()),
            patience: Patience::default(),
        };
        let mut over = ending.clone();
        let supervising =
            polder_supervisor::run(options, parts, Arc::new(Weights::of(state)?), ending);
        tokio::pin!(supervising);
        let attended = tokio::select! {
            // It could not begin, or was told to end while somebody watched.
            ended = &mut supervising => return Ok(ended?),
            attended = self.attend(state, another) => attended,
            _ = over.wait_for(|e| *e != Ending::No) => Ok(true),
        };
        if !matches!(attended, Ok(true)) && Another::waits(state) == Another::No {
            end.send_replace(Ending::InOrder);
        }
        let ended = supervising.await;
        attended?;
        Ok(ended?)
    }

    /// Tells the person at the console what they need, then what changes. False when nobody
    /// listens: then the box ends, as it does when the terminal is closed.
    async fn attend(&self, state: &Path, another: Another) -> anyhow::Result<bool> {
        let follower = Follower::of(state);
        // After its end the box is nobody's: `--yes` was said of the one before.
        let yes = self.yes && another != Another::New;
        if !heard(self.greet(state, &follower, yes).await?)? {
            return Ok(false);
        }
        follower.tell(follower.status().await?).await?;
        Ok(true)
    }

    /// What is said first, once the box is up.
    async fn greet(&self, state: &Path, follower: &Follower, yes: bool) -> anyhow::Result<String> {
        let door = follower.door().await?;
        let status = follower.status().await?;
        let here = Surroundings::of_this_machine();
        let site = status.site.clone();
        let (ca_file, fingerprint) = (&*door.ca_file, &*door.fingerprint);
        let greeting = Greeting { site: &site, state, ca_file, fingerprint, here: &here };
        let text = if yes {
            let model = self.serve(follower, &site).await?;
            let DoorReply::Key(key) = follower.ask_door(&DoorRequest::UpKey).await? else {
                return Err(unexpected());
            };
            if self.json {
                let url = url(&site);
                let ready = serde_json::json!({
                    "url": url, "ca_file": ca_file, "api_key": key, "model": model,
                });
                return Ok(ready.to_string());
            }
            greeting.ready(&key, &model)
        } else if door.claimed {
            greeting.claimed(&status)
        } else {
            match follower.ask_door(&DoorRequest::OpenClaim).await? {
                DoorReply::Claim(claim) => greeting.unclaimed("/", &claim),
                DoorReply::Claimed => greeting.claimed(&status),
                _ => return Err(unexpected()),
            }
        };
        Ok(format!("{text}\n\nCtrl-C stops the box."))
    }

    /// Sees to it that a model is served, and gives its name.
    async fn serve(&self, follower: &Follower, site: &Site) -> anyhow::Result<String> {
        follower.let_finish().await?;
        let (name, recipe) = first_engine(site, self.model.as_deref())?;
        let slot = site.slot_with(&name, recipe.name.parse()?);
        follower.apply(SiteChange::Engine { name: name.clone(), slot }).await?;
        Ok(follower.engine(&name).await?.recipe.to_string())
    }

    /// Says in a sentence what the gateway would otherwise die of.
    fn check_door(&self, state: &Path) -> anyhow::Result<()> {
        let site = Store::open(state)?.current()?;
        let door = site.unwrap_or_else(|| Site::unclaimed(DEFAULT_PORT)).door;
        let port = self.port.unwrap_or(door.port);
        let listen = if self.listen.is_empty() { &door.listen } else { &self.listen };
        // The box that already runs here has the port; the supervisor says so better.
        let control = Sockets::of(state).control();
        if std::os::unix::net::UnixStream::connect(control).is_ok() {
            return Ok(());
        }
        listen.iter().try_for_each(|address| try_port(*address, port))
    }
}

/// Whether another box begins in the place of the one that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Another {
    No,
    /// One from a backup.
    Restored,
    /// A new one: the one that ran was ended.
    New,
}

impl Another {
    fn waits(state: &Path) -> Self {
        if polder_supervisor::ending(state) {
            Self::New
        } else if polder_backup::restore::pending(&Folders::of(state)) {
            Self::Restored
        } else {
            Self::No
        }
    }
}

/// What `--yes` serves: what was asked for, else what is served already, else the trial model.
fn first_engine(site: &Site, asked: Option<&str>) -> anyhow::Result<(EngineName, &'static Recipe)> {
    let first: EngineName = FIRST_ENGINE.parse().expect("the literal is a valid name");
    let slot = match site.engines.get_key_value(&first) {
        Some(slot) => Some(slot),
        None => site.engines.first_key_value(),
    };
    Ok(match (asked, slot) {
        (Some(asked), _) => (first, Recipe::find(asked)?),
        (None, Some((name, slot))) => (name.clone(), Recipe::find(slot.recipe.as_str())?),
        (None, None) => (first, Recipe::find(DEFAULT_RECIPE)?),
    })
}

fn try_port(address: IpAddr, port: u16) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let error = match TcpListener::bind((address, port)) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::AddrInUse if begun.elapsed() < PORT_PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            io::ErrorKind::AddrInUse => bail!(
                "port {port} at {address} is used by another program; end that one, or choose \
                 another port with --port"
            ),
            io::ErrorKind::PermissionDenied => bail!(
                "port {port} is kept for the system's own programs; choose one above 1023 with --port"
            ),
            io::ErrorKind::AddrNotAvailable => {
                bail!("this machine has no address {address}; choose one of its own with --listen")
            }
            _ => {
                return Err(error)
                    .with_context(|| format!("could not listen at {address}, port {port}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_serves_what_was_asked_for_else_what_is_there_else_the_trial_model() {
        let mut site = Site::unclaimed(1);
        let pick = |site: &Site, asked| {
            let (name, recipe) = first_engine(site, asked).unwrap();
            (name.to_string(), recipe.name.clone())
        };
        assert_eq!(pick(&site, None), ("fast".into(), DEFAULT_RECIPE.into()));
        let slot = polder_site::EngineSlot::serving("gemma-3-270m".parse().unwrap());
        site.engines.insert("slow".parse().unwrap(), slot);
        assert_eq!(pick(&site, None), ("slow".into(), "gemma-3-270m".into()));
        assert_eq!(pick(&site, Some(DEFAULT_RECIPE)), ("fast".into(), DEFAULT_RECIPE.into()));
    }

    #[test]
    fn a_port_that_is_taken_is_told_in_one_sentence_that_names_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = try_port([127, 0, 0, 1].into(), port).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        let error = try_port([192, 0, 2, 1].into(), 8443).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
    }
}
