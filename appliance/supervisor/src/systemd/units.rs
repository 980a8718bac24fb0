use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_site::{EngineKind, Store};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use zbus::{OwnedObjectPath, OwnedVariant, Type};

use crate::image::Helper;
use crate::parts::{Ended, Part, Parts, PartsError, Process};
use crate::systemd::bus::{Bus, MANAGER, Place, say};
use crate::systemd::words::{Begun, Seen, Verdict, begun};
use crate::systemd::{Chores, Host};

/// A unit is looked at this often even if nobody says that it changed.
const LOOK: Duration = Duration::from_secs(5);
/// The same while it is being started.
const LOOK_STARTING: Duration = Duration::from_millis(200);
/// How long a bus may be away before an end that was to be asked for over it is given up.
const BUS_AWAY: Duration = Duration::from_secs(30);
/// However long the bus is away: that says nothing about a part, and later it can be started.
const FOREVER: Duration = Duration::MAX;
/// How long a unit may stand in systemd's queue. An engine may stand there for as long as the cards take, a minute at most
/// (polder-cards.service in the image).
const QUEUED: Duration = Duration::from_secs(90);
/// At the start of the box nobody waits longer than this for a list of leftovers.
const LEFTOVERS: Duration = Duration::from_secs(5);

const ENGINE: &str = "polder-engine@";
/// A slot that another server serves: it has a network, and neither cards nor weights.
const SERVED: &str = "polder-served@";
/// A slot that a container serves: it has a folder for its image, and may make namespaces.
const CONTAINED: &str = "polder-contained@";
const SERVICE: &str = ".service";
const WAN: &str = "polder-wan.service";
const SPARE: &str = "polder-spare.service";
const POWER: &str = "polder-power.service";

/// Parts as units of the init system: `polder-gateway.service`, `polder-engine@NAME.service` (or `polder-served@NAME.service`, where another
/// server serves the slot, and `polder-contained@NAME.service`, where a container does), `polder-power.service`, `polder-wan.service` and `polder-spare.service`.
///
/// They outlive the supervisor: `start` takes over a unit that runs already. The units have
/// `Restart=no`, because the supervisor alone decides about restarts.
#[derive(Clone)]
pub struct Units {
    bus: Bus,
    /// Where the site is, which says what serves a slot.
    state: PathBuf,
    /// What the manager is being told and nobody waits for.
    telling: TaskTracker,
}

impl Units {
    /// Units of the systemd that answers on this bus, for the box in this state folder.
    pub fn on(bus: Bus, state: &Path) -> Self {
        Self { bus, state: state.to_owned(), telling: TaskTracker::new() }
    }

    /// The unit of a part, as the site is now.
    async fn unit_now(&self, part: &Part) -> String {
        let Part::Engine(name) = part else { return unit_of(part, EngineKind::Polder) };
        let (state, name) = (self.state.clone(), name.clone());
        let kind = tokio::task::spawn_blocking(move || {
            let site = Store::open(&state).and_then(|store| store.current()).ok().flatten();
            let slot = site.and_then(|mut site| site.engines.remove(&name));
            slot.map_or(EngineKind::Polder, |slot| slot.kind)
        });
        unit_of(part, kind.await.unwrap_or(EngineKind::Polder))
    }

    async fn manager<B, R>(&self, method: &str, body: &B, patience: Duration) -> zbus::Result<R>
    where
        B: serde::Serialize + Type + Sync,
        R: serde::de::DeserializeOwned + Type,
    {
        self.bus.ask(&MANAGER, method, body, patience).await
    }

    /// Where the unit is on the bus. It need not run, nor even have a file.
    async fn find(&self, unit: &str) -> zbus::Result<OwnedObjectPath> {
        self.manager("LoadUnit", &unit, FOREVER).await
    }

    async fn look(&self, path: &OwnedObjectPath, patience: Duration) -> zbus::Result<Seen> {
        const UNIT: &str = "org.freedesktop.systemd1.Unit";
        let get = |interface, name| self.property(path, interface, name, patience);
        let (job, _): (u32, OwnedObjectPath) = get(UNIT, "Job").await?.try_into()?;
        Ok(Seen {
            active: get(UNIT, "ActiveState").await?.try_into()?,
            job: job != 0,
            invocation: get(UNIT, "InvocationID").await?.try_into()?,
            pid: get(OF_SERVICE, "MainPID").await?.try_into()?,
        })
    }

    async fn verdict(&self, path: &OwnedObjectPath, patience: Duration) -> zbus::Result<Verdict> {
        let get = |name| self.property(path, OF_SERVICE, name, patience);
        Ok(Verdict {
            result: get("Result").await?.try_into()?,
            code: get("ExecMainCode").await?.try_into()?,
            status: get("ExecMainStatus").await?.try_into()?,
            said: get("StatusText").await?.try_into()?,
        })
    }

    async fn property(
        &self,
        path: &OwnedObjectPath,
        interface: &str,
        name: &str,
        patience: Duration,
    ) -> zbus::Result<OwnedVariant> {
        let place = Place {
            service: MANAGER.service,
            path: path.as_str(),
            interface: "org.freedesktop.DBus.Properties",
        };
        self.bus.ask(&place, "Get", &(interface, name), patience).await
    }
}

const OF_SERVICE: &str = "org.freedesktop.systemd1.Service";

impl Parts for Units {
    type Process = UnitProcess;

    fn machine(&self) -> Option<Host> {
        Some(Host::on(self.bus.clone()))
    }

    fn helper(&self) -> Option<Arc<dyn Helper>> {
        // A machine that somebody else installed has no slots.
        let image = polder_update::here().ok().flatten();
        image.map(|_| Arc::new(Chores::on(self.bus.clone())) as Arc<dyn Helper>)
    }

    async fn start(&self, part: &Part) -> Result<UnitProcess, PartsError> {
        let unit = self.unit_now(part).await;
        let fail = |act: &'static str| {
            let unit = unit.clone();
            move |why: String| PartsError::Unit { act, unit, why }
        };
        let refused = |act| {
            let fail = fail(act);
            move |error: zbus::Error| fail(say(&error))
        };
        // Also for one that runs already, whoever started it: nobody would look after it.
        let mut promise = Promise { units: self, unit: Some(unit.clone()) };
        // Heard from before the first look on, so that nothing between the two is missed.
        let mut bell = self.bus.bell();
        let found = async {
            let path = self.find(&unit).await.map_err(refused("find"))?;
            let before = self.look(&path, FOREVER).await.map_err(refused("look at"))?;
            Ok((path, before))
        };
        let (path, before) = found.await.inspect_err(|_| promise.unit = None)?;
        let process = |seen: &Seen| UnitProcess {
            units: self.clone(),
            unit: unit.clone(),
            path: path.clone(),
            invocation: seen.invocation.clone(),
            pid: Some(seen.pid).filter(|pid| *pid != 0),
        };
        if before.runs() {
            log::info!("the {part} runs already; taking it over");
            promise.unit = None;
            return Ok(process(&before));
        }
        let asked: zbus::Result<OwnedObjectPath> =
            self.manager("StartUnit", &(unit.as_str(), "replace"), FOREVER).await;
        if let Err(error) = asked {
            promise.unit = None;
            return Err(refused("start")(error));
        }
        let told = Instant::now();
        loop {
            let now = self.look(&path, FOREVER).await.map_err(refused("look at"))?;
            match begun(&before, &now) {
                Begun::Yes => {
                    promise.unit = None;
                    return Ok(process(&now));
                }
                Begun::Never => {
                    promise.unit = None;
                    let why = format!(
                        "systemd did not run it, or it ended at once; `journalctl -u {unit}` says why"
                    );
                    return Err(fail("start")(why));
                }
                Begun::NotYet if told.elapsed() > QUEUED => {
                    let why = "it still waits for something else that systemd has to do first; \
                               `systemctl list-jobs` shows what";
                    return Err(fail("start")(why.to_owned()));
                }
                Begun::NotYet => rung(&mut bell, LOOK_STARTING).await,
            }
        }
    }

    async fn keep_only(&self, wanted: &BTreeSet<Part>) {
        let ours = [
            format!("{ENGINE}*{SERVICE}"),
            format!("{SERVED}*{SERVICE}"),
            format!("{CONTAINED}*{SERVICE}"),
            WAN.to_owned(),
            POWER.to_owned(),
        ];
        let listed = self.running(&ours).await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(why) => {
                log::error!(
                    "could not list the parts that an earlier supervisor left running: {why}"
                );
                return;
            }
        };
        for unit in listed {
            let part = part_of(&unit).filter(|part| wanted.contains(part));
            if let Some(part) = part
                && self.unit_now(&part).await == unit
            {
                continue;
            }
            log::info!("{unit} still runs but is not in the site any more; ending it");
            self.tell("stop", "StopUnit", (unit, "replace".to_owned()));
        }
    }

    async fn quiet(&self) -> Result<(), PartsError> {
        let ours = [
            format!("{ENGINE}*{SERVICE}"),
            format!("{SERVED}*{SERVICE}"),
            format!("{CONTAINED}*{SERVICE}"),
            unit_of(&Part::Gateway, EngineKind::Polder),
            unit_of(&Part::Health, EngineKind::Polder),
            WAN.to_owned(),
            POWER.to_owned(),
        ];
        let begun = Instant::now();
        loop {
            let fail = |why: String| PartsError::Unit { act: "end", unit: ours.join(", "), why };
            let listed = self.running(&ours).await.map_err(fail)?;
            if listed.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > QUEUED {
                return Err(fail(format!("{} still run", listed.join(", "))));
            }
            for unit in listed {
                self.tell("stop", "StopUnit", (unit, "replace".to_owned()));
            }
            tokio::time::sleep(LOOK_STARTING).await;
        }
    }

    async fn passed_on(&self) {
        self.telling.close();
        self.telling.wait().await;
    }
}

/// A start that is given up on the way must not end in a unit that nobody looks after.
struct Promise<'a> {
    units: &'a Units,
    unit: Option<String>,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if let Some(unit) = self.unit.take() {
            self.units.tell("stop", "StopUnit", (unit, "replace".to_owned()));
        }
    }
}

impl Units {
    /// Those units of these patterns that run, or are about to.
    async fn running(&self, patterns: &[String]) -> Result<Vec<String>, String> {
        type Listed = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let asked = (["active", "activating", "deactivating"].as_slice(), patterns);
        let listing = self.manager("ListUnitsByPatterns", &asked, LEFTOVERS);
        // A bus that is there and says nothing is waited for no longer than one that is away.
        match tokio::time::timeout(LEFTOVERS, listing).await {
            Ok(Ok(listed)) => {
                let listed: Vec<Listed> = listed;
                Ok(listed.into_iter().map(|(unit, ..)| unit).collect())
            }
            Ok(Err(error)) => Err(say(&error)),
            Err(_) => Err("the message bus does not answer".to_owned()),
        }
    }

    /// Tells the manager something that nobody waits for.
    fn tell<B>(&self, act: &'static str, method: &'static str, body: B)
    where
        B: serde::Serialize + Type + Send + Sync + std::fmt::Debug + 'static,
    {
        let units = self.clone();
        self.telling.spawn(async move {
            if let Err(error) = units.bus.call(&MANAGER, method, &body, BUS_AWAY).await {
                log::error!("could not {act} {body:?}: {}", say(&error));
            }
        });
    }
}

/// A part that runs as a unit. It goes on when this is dropped.
pub struct UnitProcess {
    units: Units,
    unit: String,
    path: OwnedObjectPath,
    invocation: Vec<u8>,
    pid: Option<u32>,
}

impl UnitProcess {
    async fn over(&self) -> zbus::Result<Option<Ended>> {
        let now = self.units.look(&self.path, FOREVER).await?;
        if now.is_alive() && now.invocation == self.invocation {
            return Ok(None);
        }
        if now.is_alive() {
            let status = "a restart that the supervisor did not ask for".to_owned();
            return Ok(Some(Ended { status, last_words: None }));
        }
        Ok(Some(self.units.verdict(&self.path, FOREVER).await?.ended(&self.unit)))
    }

    fn signal(&self, whom: &str, signal: i32) {
        let body = (self.unit.clone(), whom.to_owned(), signal);
        self.units.tell("signal", "KillUnit", body);
    }
}

impl Process for UnitProcess {
    fn pid(&self) -> Option<u32> {
        self.pid
    }

    async fn ended(&mut self) -> Ended {
        let mut bell = self.units.bus.bell();
        let mut told = false;
        loop {
            match self.over().await {
                Ok(Some(ended)) => return ended,
                Ok(None) => told = false,
                Err(error) => {
                    if !told {
                        log::error!("could not look at {}: {}", self.unit, say(&error));
                        told = true;
                    }
                }
            }
            rung(&mut bell, LOOK).await;
        }
    }

    fn drain(&self) {
        // Not StopUnit: systemd 257 at times takes the process of a unit with PrivatePIDs= for somebody else's child,
        // and then stops it with the signal that nobody can refuse.
        self.hurry();
    }

    fn hurry(&self) {
        self.signal("main", rustix::process::Signal::TERM.as_raw());
    }

    fn kill(&self) {
        self.signal("all", rustix::process::Signal::KILL.as_raw());
    }
}

/// Waits until the bell rings, but not longer than `limit`.
async fn rung(bell: &mut watch::Receiver<u64>, limit: Duration) {
    // Its sender lives in the bus, which whoever waits here holds.
    let _ = tokio::time::timeout(limit, bell.changed()).await;
}

/// The unit of a part. Every character of an engine's name may stand in a unit's name as it is, and
/// the unit file reads it with `%i`, which is the name unchanged.
fn unit_of(part: &Part, kind: EngineKind) -> String {
    match part {
        Part::Gateway => format!("polder-gateway{SERVICE}"),
        Part::Engine(name) => {
            let unit = match kind {
                EngineKind::Polder => ENGINE,
                EngineKind::Url => SERVED,
                EngineKind::Container => CONTAINED,
            };
            format!("{unit}{name}{SERVICE}")
        }
        Part::Power => POWER.to_owned(),
        Part::Wan => WAN.to_owned(),
        Part::Spare => SPARE.to_owned(),
        Part::Health => format!("polder-health{SERVICE}"),
    }
}

fn part_of(unit: &str) -> Option<Part> {
    if unit == POWER {
        return Some(Part::Power);
    }
    if unit == WAN {
        return Some(Part::Wan);
    }
    if unit == SPARE {
        return Some(Part::Spare);
    }
    let name = [ENGINE, SERVED, CONTAINED].iter().find_map(|prefix| unit.strip_prefix(prefix))?;
    let name = name.strip_suffix(SERVICE)?;
    Some(Part::Engine(name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_name_is_a_units_name_as_it_stands() {
        for name in ["fast", "a-b-c", "0", "x".repeat(32).as_str()] {
            let part = Part::Engine(name.parse().unwrap());
            for kind in [EngineKind::Polder, EngineKind::Url, EngineKind::Container] {
                let unit = unit_of(&part, kind);
                // What unit names may be made of: unit_name_is_valid() in systemd.
                let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
                assert!(unit.len() < 256 && unit.chars().all(valid), "{unit}");
                assert_eq!(part_of(&unit), Some(part.clone()));
            }
        }
        assert_eq!(part_of("polder-engine@Not A Name.service"), None);
        assert_eq!(part_of("polder-gateway.service"), None);
        for part in [Part::Wan, Part::Power, Part::Spare] {
            assert_eq!(part_of(&unit_of(&part, EngineKind::Polder)), Some(part));
        }
    }
}
