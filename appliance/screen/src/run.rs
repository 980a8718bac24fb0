//! Looks at the box now and then, paints every terminal, and does what keys ask for.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, Claim, Client, ControlError, DoorReply, DoorRequest, Power, Reply, Request, Run, Sockets,
};
use polder_pki::decide::plausible;
use polder_seal::{Answer, Ask as Seal, LOCKED, SOCKET};
use polder_site::{InterfaceName, PortAddress, SiteChange};
use tokio::sync::mpsc;

use crate::keys::{Act, Here, Mode, press};
use crate::paint::{Facts, Shown, paint};
use crate::terminal::Terminal;

/// Between two looks at the box.
const LOOK: Duration = Duration::from_secs(1);
/// A part that answers later than this does not answer.
const LIMIT: Duration = Duration::from_secs(3);
/// A disk's keys are made slow on purpose.
const DISK_LIMIT: Duration = Duration::from_secs(240);
/// What came of a key is shown this long.
const NOTE: Duration = Duration::from_secs(20);
/// A question that nobody answers goes away, so that the next person sees the box.
const QUESTION: Duration = Duration::from_secs(60);

/// The screen cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// There is nothing to show it on.
    #[error(
        "none of the terminals could be used; name one that this machine has, as in `polder screen /dev/tty1`"
    )]
    NoTerminal,
}

/// Shows the box on these terminals until `shutdown`. On a box that nobody owns it asks for the first claim
/// code: whoever can see the machine's screen may claim it.
pub async fn run(
    state: &Path,
    version: String,
    terminals: Vec<OwnedFd>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ScreenError> {
    if terminals.is_empty() {
        return Err(ScreenError::NoTerminal);
    }
    let (pressed, mut keys) = mpsc::channel(16);
    let mut terminals: Vec<Terminal> = terminals
        .into_iter()
        .enumerate()
        .map(|(number, terminal)| Terminal::open(terminal, number, pressed.clone()))
        .collect();
    let mut modes: BTreeMap<usize, (Mode, Instant)> = BTreeMap::new();
    let mut box_ = TheBox {
        state: state.to_owned(),
        sockets: Sockets::of(state),
        claim: None,
        opened: false,
        cards: None,
        note: None,
    };
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut facts = Facts { version, ..Facts::default() };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            _ = looks.tick() => box_.look(&mut facts).await,
            Some((terminal, key)) = keys.recv() => {
                let mode = modes.remove(&terminal).map_or(Mode::Home, |(mode, _)| mode);
                let ports: Vec<_> = facts.ports.iter().map(|(name, _)| name.clone()).collect();
                let here =
                    Here {
                        name: facts.name(),
                        disk: facts.disk,
                        locked: facts.locked,
                        early: facts.early.is_some(),
                        ports: &ports,
                        waits: facts.waits.is_some(),
                    };
                let (mode, act) = press(mode, key, here);
                modes.insert(terminal, (mode, Instant::now()));
                if let Some(act) = act {
                    box_.act(act).await;
                    box_.look(&mut facts).await;
                }
            }
        }
        modes.retain(|_, (_, since)| since.elapsed() < QUESTION);
        for (number, terminal) in terminals.iter_mut().enumerate() {
            let mode = modes.get(&number).map_or(&Mode::Home, |(mode, _)| mode);
            terminal.show(&paint(&facts, mode, terminal.width()));
        }
    }
}

/// A code that was asked for.
struct Code {
    code: String,
    until: Instant,
    /// For the set-up of a box that has an owner, and not for claiming it.
    of_owned: bool,
}

/// The parts of the box, as they are asked from the machine itself.
struct TheBox {
    state: PathBuf,
    sockets: Sockets,
    /// The code that was asked for here, and until when it is good.
    claim: Option<Code>,
    /// The first code is asked for once: later ones by a key, so that a door does not stand open for good.
    opened: bool,
    /// Once known: what there is to say of cards that nothing drives.
    cards: Option<Option<String>>,
    note: Option<(String, Instant)>,
}

impl TheBox {
    async fn look(&mut self, facts: &mut Facts) {
        facts.status = match self.ask(&Request::Status).await {
            Ok(Reply::Status(status)) => Some(*status),
            _ => None,
        };
        // Where nothing is wrong nothing becomes wrong; the driver may only not be loaded yet.
        if self.cards != Some(None)
            && let Ok(Reply::Machine(machine)) = self.ask(&Request::Machine).await
        {
            self.cards = Some(machine.driver.filter(|_| machine.idle_cards > 0));
        }
        facts.cards = self.cards.clone().flatten();
        facts.door = self.door().await;
        facts.addresses = polder_pki::machine_addresses();
        let waiting = self.waiting().await;
        facts.waits = waiting.map(|run| run.plan.title);
        facts.ports = ports(Path::new("/sys/class/net"));
        facts.disk = Path::new(SOCKET).exists();
        facts.locked = Path::new(LOCKED).exists();
        // What only root may still use is not free to the box.
        let room = rustix::fs::statvfs(&self.state).ok();
        facts.free = room.map(|room| room.f_bavail.saturating_mul(room.f_frsize));
        facts.early = early();
        facts.was_reset = polder_seal::was_reset(Path::new("/sys/firmware/efi/efivars"));
        self.note = self.note.take().filter(|(_, since)| since.elapsed() < NOTE);
        facts.note = self.note.as_ref().map(|(note, _)| note.clone());
    }

    async fn door(&mut self) -> Option<Shown> {
        let Ok(DoorReply::Ready { fingerprint, claimed, owner_key, .. }) =
            self.ask_door(&DoorRequest::Ready).await
        else {
            return None;
        };
        if !claimed && !owner_key && !self.opened {
            self.reopen().await;
        }
        // With the code for claiming nobody can do anything any more once the box was claimed.
        let good = |code: &Code| code.until > Instant::now() && code.of_owned == claimed;
        self.claim = self.claim.take().filter(good);
        let claim = self.claim.as_ref().map(|Code { code, until, .. }| Claim {
            code: code.clone(),
            // Whole minutes: the screen is not painted anew for every second.
            seconds: until.duration_since(Instant::now()).as_secs().div_ceil(60) * 60,
        });
        Some(Shown { fingerprint, claimed, owner_key, claim })
    }

    async fn reopen(&mut self) {
        let claimed = matches!(
            self.ask_door(&DoorRequest::Ready).await,
            Ok(DoorReply::Ready { claimed: true, .. })
        );
        let question = if claimed { DoorRequest::ReopenSetup } else { DoorRequest::OpenClaim };
        match self.ask_door(&question).await {
            Ok(DoorReply::Claim(Claim { code, seconds })) => {
                self.opened = true;
                let until = Instant::now() + Duration::from_secs(seconds);
                self.claim = Some(Code { code, until, of_owned: claimed });
            }
            Ok(DoorReply::Refused(why)) => self.say(why),
            Ok(_) => {}
            Err(error) => self.say(error.to_string()),
        }
    }

    async fn act(&mut self, act: Act) {
        let power = match act {
            Act::ReopenSetUp => return self.reopen().await,
            Act::PowerOff => Power::Off,
            Act::Restart => Power::Restart,
            Act::SafeMode => {
                return self
                    .tell_disk(
                        &Seal::SafeMode,
                        "The machine starts again now, without engines and apps.",
                    )
                    .await;
            }
            Act::Reset(reset) => {
                return self
                    .tell_disk(&Seal::Reset(reset), "The machine starts again now and forgets.")
                    .await;
            }
            Act::Open { key, anew } => {
                return self
                    .tell_disk(&Seal::Open { key, anew }, "The disk is open; the box starts now.")
                    .await;
            }
            Act::SetClock(to) => {
                let request = Request::SetClock { to, by: Actor::Console };
                return self.have_done(&request, "The clock is set.").await;
            }
            Act::GiveAddress { port, address } => return self.give_address(port, address).await,
            Act::KeepNetwork => return self.keep_network().await,
            Act::Say(what) => return self.say(what.to_owned()),
        };
        let request = Request::Power { how: power, by: Actor::Console };
        self.have_done(&request, "Answers under way are finished first.").await;
    }

    /// The change that is undone soon, unless somebody confirms it.
    async fn waiting(&self) -> Option<Run> {
        let Ok(Reply::Runs(runs)) = self.ask(&Request::Runs).await else { return None };
        runs.into_iter().find(|run| run.waits_for_confirmation().is_some())
    }

    async fn give_address(&mut self, port: InterfaceName, address: PortAddress) {
        let change = SiteChange::Port { port, address };
        let request = Request::Apply { change, by: Actor::Console };
        match self.ask(&request).await {
            Ok(Reply::Accepted(_)) => self.say(
                "The port gets it now. If it is good, press y here within a minute, or confirm it on the box's page; else it is undone."
                    .to_owned(),
            ),
            Ok(Reply::Refused(why)) => self.say(why),
            Ok(_) => {}
            Err(error) => self.say(error.to_string()),
        }
    }

    async fn keep_network(&mut self) {
        let Some(run) = self.waiting().await else {
            return self.say("Nothing waits any more: it was undone, or confirmed.".to_owned());
        };
        let request = Request::Confirm { run: run.id, by: Actor::Console };
        self.have_done(&request, "It stays.").await;
    }

    /// Has the supervisor do something, and says what came of it.
    async fn have_done(&mut self, request: &Request, done: &str) {
        match self.ask(request).await {
            Ok(Reply::Done) => self.say(done.to_owned()),
            Ok(Reply::Refused(why)) => self.say(why),
            Ok(_) => {}
            Err(error) => self.say(error.to_string()),
        }
    }

    /// Asks the part that may touch the disk, and says what came of it.
    async fn tell_disk(&mut self, question: &Seal, done: &str) {
        let asked = async {
            let mut client: Client<Seal, Answer> = Client::connect(Path::new(SOCKET)).await?;
            client.ask_within(DISK_LIMIT, question).await
        };
        match asked.await {
            Ok(Answer::Refused(why)) => self.say(why),
            Ok(_) => self.say(done.to_owned()),
            Err(error) => self.say(error.to_string()),
        }
    }

    fn say(&mut self, what: String) {
        self.note = Some((what, Instant::now()));
    }

    async fn ask(&self, question: &Request) -> Result<Reply, ControlError> {
        Client::connect(&self.sockets.control()).await?.ask_within(LIMIT, question).await
    }

    async fn ask_door(&self, question: &DoorRequest) -> Result<DoorReply, ControlError> {
        Client::connect(&self.sockets.gateway()).await?.ask_within(LIMIT, question).await
    }
}

/// What the clock shows, to the minute, if it cannot be right.
fn early() -> Option<String> {
    let now = jiff::Timestamp::now();
    (!plausible(now.as_second())).then(|| now.strftime("%Y-%m-%d %H:%M").to_string())
}

/// The machine's own network ports, with a word about each.
fn ports(net: &Path) -> Vec<(InterfaceName, String)> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(net).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.sort();
    let port = |path: &PathBuf| {
        // Only hardware has a device behind it.
        path.join("device").exists().then_some(())?;
        let name = path.file_name()?.to_str()?.parse().ok()?;
        let carrier = fs::read_to_string(path.join("carrier")).unwrap_or_default();
        let word =
            if carrier.trim() == "1" { "connected" } else { "no cable, or the other end is off" };
        Some((name, word.to_owned()))
    };
    found.iter().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_is_a_network_port() {
        let folder = tempfile::tempdir().unwrap();
        for (name, device, carrier) in
            [("enp1s0", true, "1\n"), ("enp2s0", true, "0\n"), ("lo", false, "1\n")]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(if device { path.join("device") } else { path.clone() }).unwrap();
            fs::write(path.join("carrier"), carrier).unwrap();
        }
        let found = ports(folder.path());
        let words = [("enp1s0", "connected"), ("enp2s0", "no cable, or the other end is off")];
        let words = words.map(|(name, word)| (name.parse().unwrap(), word.to_owned()));
        assert_eq!(found, words);
    }
}
